//! What this node has heard of the others: sealed or not, when last, at which addresses.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::RwLock;

use crate::hello::Hello;

/// What is known of one peer, from its hellos and acks.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The operator's name of the place.
    pub node_id: String,
    /// `host:port` of its cluster port, as it said itself.
    pub cluster_addr: String,
    /// Base URL of its API, as it said itself.
    pub api_addr: String,
    /// Whether it is sealed, by its latest frame.
    pub sealed: bool,
    /// When its latest frame came in.
    pub heard: Instant,
    /// Its addresses as it gave them on a channel on which it proved that it holds the root key: `host:port` of
    /// the cluster port and base URL of the API.
    pub proven: Option<(String, String)>,
}

/// Every peer heard of since start, by incarnation.
#[derive(Default)]
pub struct Peers {
    by_incarnation: RwLock<HashMap<u64, PeerStatus>>,
}

impl Peers {
    /// A hello came in.
    pub fn hello(&self, hello: &Hello) {
        let mut all = self.by_incarnation.write();
        let proven = all.get(&hello.incarnation).and_then(|known| known.proven.clone());
        all.insert(
            hello.incarnation,
            PeerStatus {
                proven,
                node_id: hello.node_id.clone(),
                cluster_addr: hello.cluster_addr.clone(),
                api_addr: hello.api_addr.clone(),
                sealed: hello.sealed,
                heard: Instant::now(),
            },
        );
    }

    /// The peer has proved, on the connection that this hello opened, that it holds the root key.
    pub fn proven(&self, hello: &Hello) {
        if let Some(status) = self.by_incarnation.write().get_mut(&hello.incarnation) {
            status.proven = Some((hello.cluster_addr.clone(), hello.api_addr.clone()));
        }
    }

    /// A frame came in.
    pub fn frame(&self, incarnation: u64, sealed: bool) {
        if let Some(status) = self.by_incarnation.write().get_mut(&incarnation) {
            status.sealed = sealed;
            status.heard = Instant::now();
        }
    }

    /// What is known of a peer.
    pub fn status(&self, incarnation: u64) -> Option<PeerStatus> {
        self.by_incarnation.read().get(&incarnation).cloned()
    }

    /// Whether a peer was heard of within `window`.
    pub fn heard_within(&self, incarnation: u64, window: Duration) -> bool {
        self.status(incarnation).is_some_and(|status| status.heard.elapsed() <= window)
    }

    /// Forgets a peer that was removed.
    pub fn forget(&self, incarnation: u64) {
        self.by_incarnation.write().remove(&incarnation);
    }
}
