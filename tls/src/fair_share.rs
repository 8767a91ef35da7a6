//! A bounded quantity (connections, handshakes, bytes) that strangers take from.
//!
//! A bound on the whole keeps memory bounded and hands the node to whoever is first to use it up. So there is a
//! bound for each address as well, and it shrinks as the whole runs out: an address never takes more when it would then
//! hold more than it leaves free. So the greediest leaves half of what it found, and those who hold most get nothing
//! new until the others have caught up: what comes and goes evens out at one part in `n + 1` for each of `n` addresses
//! (the dynamic threshold of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

/// What is shared out.
pub struct FairShare {
    total: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// Addresses that hold something.
    by_address: HashMap<IpAddr, usize>,
}

/// The whole is used up, or the address has its share; what was asked for was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is in use already")]
pub struct Exhausted;

/// What one holder has; given back when it is dropped.
pub struct Portion {
    share: Arc<FairShare>,
    address: Option<IpAddr>,
    amount: usize,
}

impl FairShare {
    /// Shares out `total`, of which one address may hold `per_address`.
    #[must_use]
    pub fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, taken: Mutex::default() })
    }

    /// Takes some. Without an address, as for a proxy that speaks for many clients, only the whole is a bound. A
    /// network of IPv6 (64 bits) counts as one address, for a single host has all of it.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn take(self: &Arc<Self>, address: Option<IpAddr>, amount: usize) -> Result<Portion, Exhausted> {
        let address = address.map(holder);
        let mut portion = Portion { share: Arc::clone(self), address, amount: 0 };
        portion.grow(amount)?;
        Ok(portion)
    }

    /// How much is taken at present.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

impl Portion {
    /// Takes more.
    ///
    /// # Errors
    /// [`Exhausted`]; what was held before is still held.
    pub fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        let mut taken = self.share.taken.lock();
        let free = self.share.total.saturating_sub(taken.all).checked_sub(more).ok_or(Exhausted)?;
        if let Some(address) = self.address {
            let held = taken.by_address.get(&address).copied().unwrap_or(0) + more;
            if held > self.share.per_address || held > free + 1 {
                return Err(Exhausted);
            }
            taken.by_address.insert(address, held);
        }
        taken.all += more;
        self.amount += more;
        Ok(())
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        let mut taken = self.share.taken.lock();
        taken.all -= self.amount;
        if let Some(address) = self.address
            && let Some(held) = taken.by_address.get_mut(&address)
        {
            *held -= self.amount;
            if *held == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

/// Who stands behind an address.
fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    /// Takes one by one until nothing more is given.
    fn greed(share: &Arc<FairShare>, address: Option<IpAddr>) -> Vec<Portion> {
        std::iter::from_fn(|| share.take(address, 1).ok()).collect()
    }

    #[test]
    fn an_address_has_its_bound_and_gets_back_what_it_gives_back() {
        let share = FairShare::new(100, 10);
        let mut held = greed(&share, address(1));
        assert_eq!((held.len(), share.taken()), (10, 10));
        held.pop();
        assert!(share.take(address(1), 1).is_ok());
        drop(held);
        assert_eq!(share.taken(), 0);
        assert!(share.taken.lock().by_address.is_empty(), "nobody is remembered who holds nothing");
    }

    #[test]
    fn however_many_are_greedy_the_next_one_gets_a_share() {
        let share = FairShare::new(1_000, 1_000);
        let mut held = Vec::new();
        let mut found = 1_000;
        for n in 0..8 {
            held.push(greed(&share, address(n)));
            let free = 1_000 - share.taken();
            assert!(free + 1 >= found / 2, "address {n} found {found} and left {free}");
            assert!(share.take(address(100), 1).is_ok());
            found = free;
        }
        // What the first one lets go of is for the others: it gets nothing new while it holds most.
        held[0].truncate(300);
        assert_eq!(share.take(address(0), 1).err(), Some(Exhausted));
        assert!(share.take(address(7), 90).is_ok());
    }

    #[test]
    fn the_whole_is_a_bound_for_everybody() {
        let share = FairShare::new(5, 100);
        let held = greed(&share, None);
        assert_eq!(held.len(), 5);
        assert_eq!(share.take(address(1), 1).err(), Some(Exhausted));
    }

    #[test]
    fn a_portion_that_cannot_grow_stays_as_it_was() {
        let share = FairShare::new(100, 30);
        let mut portion = share.take(address(1), 20).unwrap();
        assert_eq!(portion.grow(11), Err(Exhausted));
        assert_eq!(portion.grow(usize::MAX), Err(Exhausted));
        assert_eq!(portion.grow(10), Ok(()));
        drop(portion);
        assert_eq!(share.taken(), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_holder_and_so_is_an_address_in_either_spelling() {
        let share = FairShare::new(100, 1);
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let other: IpAddr = "2001:db8:1:2:ffff::9".parse().unwrap();
        let _held = share.take(Some(one), 1).unwrap();
        assert!(share.take(Some(other), 1).is_err());
        assert!(share.take("2001:db8:1:3::1".parse().ok(), 1).is_ok());
        let _mapped = share.take("::ffff:10.0.0.1".parse().ok(), 1).unwrap();
        assert!(share.take(address(1), 1).is_err());
    }
}
