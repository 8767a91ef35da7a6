//! Free ports on loopback.
//!
//! A port that the system hands out for "any" lies in the range from which it also takes the source ports of
//! outgoing connections, so a node that is down for a moment could find its port taken by its own peer. Ports
//! are therefore drawn from below that range, tried, and never given out twice by one process.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Mutex, PoisonError},
};

use crate::{Error, Result};

const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;
const TRIES: usize = 1_000;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on 127.0.0.1 on which nothing listens.
///
/// # Errors
/// [`Error::Broken`] after a thousand ports that were all taken.
pub fn free() -> Result<SocketAddr> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..TRIES {
        let mut random = [0; 2];
        getrandom::fill(&mut random).expect("the system's generator works");
        let port = FIRST + u16::from_be_bytes(random) % COUNT;
        let address = loopback(port);
        if !given.contains(&port) && TcpListener::bind(address).is_ok() {
            given.insert(port);
            return Ok(address);
        }
    }
    Err(Error::Broken(format!("no free port in {TRIES} tries")))
}

/// `count` free ports, each `step` above the one before, as a development cluster takes them.
///
/// # Errors
/// As [`free`].
pub fn free_row(count: u16, step: u16) -> Result<SocketAddr> {
    for _ in 0..TRIES {
        let first = free()?;
        let all = (0..count * step).map(|above| loopback(first.port() + above));
        if all.into_iter().all(|address| TcpListener::bind(address).is_ok()) {
            return Ok(first);
        }
    }
    Err(Error::Broken("no free row of ports".into()))
}

/// 127.0.0.1 with a port.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice_and_none_can_be_a_source_port() {
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let port = free().unwrap().port();
            assert!(port < 32_768);
            assert!(seen.insert(port));
        }
    }
}
