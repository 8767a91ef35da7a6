//! Opening members from a node that is open: it gives them what its vault says over mTLS to the keys that the directory
//! pins.
//!
//! A sealed node cannot prove that it holds the root key, so this goes over a replication channel, whose ends are known by
//! their certificates alone. Whoever runs on a copy of a member's disk has its certificate, too: nothing is given to an
//! incarnation that two processes claim.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{conn::Method, directory::DirectoryMember, hello::Channel, replica::Replica};

/// How long a member may take to answer whether it is sealed.
const ASK: Duration = Duration::from_secs(2);
/// How long nothing is given to an incarnation of which a second process was seen.
const SUSPECT: Duration = Duration::from_secs(600);

/// A member, as one ceremony sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What the directory says of it.
    pub member: DirectoryMember,
    /// How it does.
    pub condition: Condition,
}

/// How a member does that might be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It is open.
    Open,
    /// It is sealed, and is this process, at this address.
    Sealed {
        /// Drawn at the start of its process.
        boot_id: u64,
        /// `host:port` at which it was reached.
        cluster_addr: String,
    },
    /// It cannot be asked, or must not be opened; why.
    Unfit(String),
}

/// Incarnations of which a second process was seen, and when last.
#[derive(Default)]
pub struct Suspects(parking_lot::Mutex<HashMap<u64, Instant>>);

impl Suspects {
    /// A second process claimed the incarnation.
    pub fn add(&self, incarnation: u64) {
        let mut all = self.0.lock();
        all.retain(|_, seen| seen.elapsed() < SUSPECT);
        all.insert(incarnation, Instant::now());
    }

    /// Whether one did lately.
    pub fn contains(&self, incarnation: u64) -> bool {
        self.0.lock().get(&incarnation).is_some_and(|seen| seen.elapsed() < SUSPECT)
    }
}

const CLONED: &str = "two processes claim its identity: one of them runs on a copy of the other's data directory; stop the copy";

impl Replica {
    /// Every other member of the directory, asked just now.
    pub async fn candidates(&self) -> Vec<Candidate> {
        let directory = self.directory();
        let others = directory.members.iter().filter(|member| member.incarnation != self.incarnation());
        let asked = others.map(|member| async move {
            let condition = match tokio::time::timeout(ASK, self.condition(member)).await {
                Ok(condition) => condition,
                Err(_) => Condition::Unfit(format!("no answer within {ASK:?}")),
            };
            Candidate { member: member.clone(), condition }
        });
        futures_util::future::join_all(asked).await
    }

    async fn condition(&self, member: &DirectoryMember) -> Condition {
        let shared = self.shared();
        let conn = match shared.pool.get(member.incarnation, Channel::Control).await {
            Ok(conn) => conn,
            Err(error) => return Condition::Unfit(error.to_string()),
        };
        // The hello may be of long ago; every answer says anew whether the node is sealed.
        if let Err(error) = conn.call(Method::Ping, &[], ASK).await {
            return Condition::Unfit(error.to_string());
        }
        let hello = &conn.peer;
        if shared.server.is_claimed_twice(hello.incarnation, hello.boot_id) {
            return Condition::Unfit(CLONED.to_owned());
        }
        match self.peer_status(member.incarnation) {
            Some(status) if status.standing.sealed => {
                Condition::Sealed { boot_id: hello.boot_id, cluster_addr: conn.address.clone() }
            }
            _ => Condition::Open,
        }
    }

    /// Gives `body` to the very process that a ceremony saw, and waits until it is open with it.
    ///
    /// # Errors
    /// A text: it is another process by now, two claim to be it, it is gone, or it would not take it.
    ///
    /// # Cancel safety
    /// What has been sent is worked on.
    pub async fn open_member(
        &self,
        member: &DirectoryMember,
        boot_id: u64,
        address: &str,
        body: &[u8],
        timeout: Duration,
    ) -> Result<(), String> {
        let shared = self.shared();
        let (id, key) = (member.incarnation, member.spki_sha256);
        // The pool compares whoever answers with the directory of this moment.
        if self.directory().member(id).is_none_or(|now| now.spki_sha256 != key) {
            return Err("it was removed, or has another key by now".to_owned());
        }
        let conn = shared.pool.get(id, Channel::Control).await.map_err(|error| error.to_string())?;
        if conn.peer.boot_id != boot_id || conn.address != address {
            return Err("it was started again, or moved, meanwhile: begin anew".to_owned());
        }
        if shared.server.is_claimed_twice(id, boot_id) {
            return Err(CLONED.to_owned());
        }
        conn.call(Method::Unseal, body, timeout).await.map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_is_suspect_for_a_while_after_a_second_process_was_seen() {
        let suspects = Suspects::default();
        assert!(!suspects.contains(7));
        suspects.add(7);
        assert!(suspects.contains(7) && !suspects.contains(8));
    }
}
