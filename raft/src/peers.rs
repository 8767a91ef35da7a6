//! What this node has heard of the others: how they do, when last, at which addresses.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::RwLock;

use crate::{hello::Hello, standing::Standing};

/// What is known of one peer, from its hellos and acks.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The operator's name of the place.
    pub node_id: String,
    /// `host:port` of its cluster port, as it said itself.
    pub cluster_addr: String,
    /// Base URL of its API, as it said itself.
    pub api_addr: String,
    /// What it says of itself, by its latest frame.
    pub standing: Standing,
    /// Bytes free on its disk, by its latest answer to a ping.
    pub free_bytes: Option<u64>,
    /// When its latest frame came in.
    pub heard: Instant,
    /// What its release can do.
    pub feature_level: u32,
    /// Its release, for people.
    pub version: String,
    /// Its addresses as it gave them on a channel on which it proved that it holds the root key: `host:port` of
    /// the cluster port and base URL of the API.
    pub proven: Option<(String, String)>,
    /// What its release can do, as it said on such a channel.
    pub proven_level: Option<u32>,
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
        let known = all.get(&hello.incarnation);
        let proven = known.and_then(|known| known.proven.clone());
        let proven_level = known.and_then(|known| known.proven_level);
        let free_bytes = known.and_then(|known| known.free_bytes);
        let before = known.map(|known| known.standing).unwrap_or_default();
        all.insert(
            hello.incarnation,
            PeerStatus {
                proven,
                proven_level,
                feature_level: hello.feature_level,
                version: hello.version.clone(),
                node_id: hello.node_id.clone(),
                cluster_addr: hello.cluster_addr.clone(),
                api_addr: hello.api_addr.clone(),
                standing: Standing { sealed: hello.sealed, ..before },
                free_bytes,
                heard: Instant::now(),
            },
        );
    }

    /// The peer has proved, on the connection that this hello opened, that it holds the root key.
    pub fn proven(&self, hello: &Hello) {
        if let Some(status) = self.by_incarnation.write().get_mut(&hello.incarnation) {
            status.proven = Some((hello.cluster_addr.clone(), hello.api_addr.clone()));
            status.proven_level = Some(hello.feature_level);
        }
    }

    /// A frame came in.
    pub fn frame(&self, incarnation: u64, standing: Standing) {
        if let Some(status) = self.by_incarnation.write().get_mut(&incarnation) {
            status.standing = standing;
            status.heard = Instant::now();
        }
    }

    /// It said how much is free on its disk.
    pub fn free_bytes(&self, incarnation: u64, free_bytes: u64) {
        if let Some(status) = self.by_incarnation.write().get_mut(&incarnation) {
            status.free_bytes = Some(free_bytes);
        }
    }

    /// Who says that it leads, of those heard of within `window`.
    pub fn leading(&self, window: Duration) -> Option<u64> {
        let all = self.by_incarnation.read();
        let leads = |status: &&PeerStatus| status.standing.leads && status.heard.elapsed() <= window;
        all.iter()
            .filter(|(_, status)| leads(status))
            .max_by_key(|(_, status)| status.heard)
            .map(|(id, _)| *id)
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
