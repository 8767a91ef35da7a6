//! What a node is fit for, as it says of itself in every frame, and what the leader makes of it: who should lead
//! instead, and whether there is room for what grows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_storage::{DiskWatch, SpaceLevel};
use parking_lot::Mutex;

use crate::{frame, replicated::Shortage, vault_side::VaultSide};

/// How long a leader with a disk that is almost full goes on taking what grows: by then it has handed over, or
/// nobody is better off.
pub const HAND_OVER: Duration = Duration::from_secs(1);

/// How long a leader that an operator had step down does not stand for election while others do.
const REST: Duration = Duration::from_secs(10);
/// How long such a node is not preferred either: whoever had it step down means to do something with it.
const PREFERENCE_RESTS: Duration = Duration::from_secs(600);

/// A node's own word on its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// It is sealed.
    pub sealed: bool,
    /// It leads, and answers.
    pub leads: bool,
    /// Its disk is almost full.
    pub disk_low: bool,
    /// Its disk is full: it takes no more entries.
    pub disk_full: bool,
    /// Its syncs hang.
    pub disk_slow: bool,
    /// The operator would have it lead when it can.
    pub preferred: bool,
}

impl Standing {
    /// As it goes into a frame.
    pub fn to_flags(self) -> u16 {
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        flag(self.sealed, frame::FLAG_SEALED)
            | flag(self.leads, frame::FLAG_LEADS)
            | flag(self.disk_low, frame::FLAG_DISK_LOW)
            | flag(self.disk_full, frame::FLAG_DISK_FULL)
            | flag(self.disk_slow, frame::FLAG_DISK_SLOW)
            | flag(self.preferred, frame::FLAG_PREFERRED)
    }

    /// From a frame.
    pub fn of_flags(flags: u16) -> Self {
        let set = |flag: u16| flags & flag != 0;
        Self {
            sealed: set(frame::FLAG_SEALED),
            leads: set(frame::FLAG_LEADS),
            disk_low: set(frame::FLAG_DISK_LOW),
            disk_full: set(frame::FLAG_DISK_FULL),
            disk_slow: set(frame::FLAG_DISK_SLOW),
            preferred: set(frame::FLAG_PREFERRED),
        }
    }

    /// How much speaks against its leading: a leader hands over to whoever has less of it.
    pub fn burden(self) -> u8 {
        u8::from(self.disk_low)
            + 2 * u8::from(self.disk_full)
            + 4 * u8::from(self.disk_slow)
            + 8 * u8::from(self.sealed)
    }

    /// Whether it stands for election at once when nobody leads. What it lacks is no veto: in the end it stands too.
    pub fn stands_at_once(self) -> bool {
        !(self.sealed || self.disk_slow || self.disk_full)
    }
}

/// This node's standing.
pub struct OwnStanding {
    vault: Arc<dyn VaultSide>,
    disk: Arc<DiskWatch>,
    leads: AtomicBool,
    preferred: bool,
    stepped_down: Mutex<Option<Instant>>,
}

impl OwnStanding {
    /// Of a node with this vault on this disk, which leads by preference or not.
    pub fn new(vault: Arc<dyn VaultSide>, disk: Arc<DiskWatch>, preferred: bool) -> Self {
        Self { vault, disk, leads: AtomicBool::new(false), preferred, stepped_down: Mutex::default() }
    }

    /// An operator took leadership away from this node.
    pub fn step_down(&self) {
        *self.stepped_down.lock() = Some(Instant::now());
    }

    /// It did not come to that.
    pub fn keep(&self) {
        *self.stepped_down.lock() = None;
    }

    /// Whether that was so lately that this node leaves elections to the others while they can hold them.
    pub fn rests(&self) -> bool {
        self.stepped_down_within(REST)
    }

    fn stepped_down_within(&self, time: Duration) -> bool {
        self.stepped_down.lock().is_some_and(|at| at.elapsed() < time)
    }

    /// As it is now.
    pub fn now(&self) -> Standing {
        let disk = self.disk.status();
        Standing {
            sealed: !self.vault.is_open(),
            leads: self.leads.load(Ordering::Relaxed),
            disk_low: disk.space.level >= SpaceLevel::Low,
            disk_full: disk.space.level == SpaceLevel::Full,
            disk_slow: disk.slow,
            preferred: self.preferred && !self.stepped_down_within(PREFERENCE_RESTS),
        }
    }

    /// Bytes free on its disk.
    pub fn free_bytes(&self) -> u64 {
        self.disk.status().space.free_bytes
    }

    /// The disk.
    pub fn disk(&self) -> &DiskWatch {
        &self.disk
    }

    /// This node leads and answers, or does not any more.
    pub fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Relaxed);
    }
}

/// A voter, as the leader knows it.
#[derive(Debug, Clone)]
pub struct Voter {
    /// The operator's name of the place.
    pub node_id: String,
    /// Its last word, or nothing if it has not been heard of lately.
    pub standing: Option<Standing>,
    /// Bytes free on its disk, as far as they are known.
    pub free_bytes: Option<u64>,
}

/// What the leader must refuse for want of space, with itself among the voters. What grows needs a majority of disks
/// with room, or the cluster would stand still once those that are almost full are full; a delete needs a majority
/// that still takes entries.
pub fn shortage(own: &Voter, others: &[Voter], own_low_for: Option<Duration>) -> Option<Shortage> {
    let voters = || std::iter::once(own).chain(others);
    let quorum = voters().count() / 2 + 1;
    let reachable = |fits: fn(&Standing) -> bool| {
        voters().filter(|voter| voter.standing.as_ref().is_some_and(fits)).count()
    };
    let scarce = voters().filter(|voter| voter.standing.is_some_and(|s| s.disk_low || s.disk_full));
    let least = scarce.min_by_key(|voter| voter.free_bytes.unwrap_or(u64::MAX))?;
    let own_full = own.standing.is_some_and(|standing| standing.disk_full);
    let own_low = own_full || own_low_for.is_some_and(|low| low >= HAND_OVER);
    let deletes = !own_full && reachable(|standing| !standing.disk_full) >= quorum;
    if deletes && !own_low && reachable(|standing| !standing.disk_low) >= quorum {
        return None;
    }
    let named = if own_low { own } else { least };
    Some(Shortage { node_id: named.node_id.clone(), free_bytes: named.free_bytes.unwrap_or(0), deletes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Standing = Standing {
        sealed: false,
        leads: false,
        disk_low: false,
        disk_full: false,
        disk_slow: false,
        preferred: false,
    };
    const LOW: Standing = Standing { disk_low: true, ..GOOD };
    const FULL: Standing = Standing { disk_full: true, ..LOW };

    fn voter(node_id: &str, standing: Option<Standing>, free: u64) -> Voter {
        Voter { node_id: node_id.into(), standing, free_bytes: Some(free) }
    }

    fn judged(own: Standing, low_for: u64, others: [Option<Standing>; 2]) -> Option<(String, bool)> {
        let own = voter("n1", Some(own), 5);
        let others = [voter("n2", others[0], 3), voter("n3", others[1], 4)];
        let low_for = own.standing.filter(|s| s.disk_low).map(|_| Duration::from_millis(low_for));
        shortage(&own, &others, low_for).map(|found| (found.node_id, found.deletes))
    }

    fn refused(node_id: &str, deletes: bool) -> Option<(String, bool)> {
        Some((node_id.to_owned(), deletes))
    }

    #[test]
    fn what_grows_needs_a_majority_of_disks_with_room() {
        assert_eq!(judged(GOOD, 0, [Some(GOOD), Some(GOOD)]), None);
        assert_eq!(judged(GOOD, 0, [Some(LOW), Some(GOOD)]), None);
        assert_eq!(judged(GOOD, 0, [Some(FULL), Some(GOOD)]), None);
        assert_eq!(judged(GOOD, 0, [None, Some(GOOD)]), None);
        assert_eq!(judged(GOOD, 0, [None, None]), None, "that is no matter of space");
        assert_eq!(judged(GOOD, 0, [Some(LOW), Some(LOW)]), refused("n2", true));
        assert_eq!(judged(GOOD, 0, [Some(LOW), None]), refused("n2", true));
    }

    #[test]
    fn a_leader_that_is_low_has_a_moment_to_hand_over() {
        assert_eq!(judged(LOW, 900, [Some(GOOD), Some(GOOD)]), None);
        assert_eq!(judged(LOW, 1_100, [Some(GOOD), Some(GOOD)]), refused("n1", true));
        assert_eq!(judged(LOW, 0, [Some(LOW), Some(GOOD)]), refused("n2", true));
        assert_eq!(judged(FULL, 0, [Some(GOOD), Some(GOOD)]), refused("n1", false));
    }

    #[test]
    fn a_delete_needs_a_majority_that_takes_entries() {
        assert_eq!(judged(LOW, 2_000, [Some(LOW), Some(FULL)]), refused("n1", true));
        assert_eq!(judged(GOOD, 0, [Some(FULL), Some(FULL)]), refused("n2", false));
        assert_eq!(judged(GOOD, 0, [Some(FULL), None]), refused("n2", false));
    }

    #[test]
    fn a_standing_survives_the_frame_and_the_least_burdened_leads() {
        for flags in 0..64 {
            assert_eq!(Standing::of_flags(flags).to_flags(), flags);
        }
        let slow = Standing { disk_slow: true, ..GOOD };
        let sealed = Standing { sealed: true, ..GOOD };
        let ranks = [GOOD, LOW, FULL, slow, sealed].map(Standing::burden);
        assert!(ranks.is_sorted() && ranks[0] == 0);
        assert!(LOW.stands_at_once() && !FULL.stands_at_once() && !slow.stands_at_once());
    }
}
