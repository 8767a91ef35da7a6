//! The first frame each way on the cluster port: who speaks, and what the channel is for.

use crate::codec::{self, DecodeError};

/// What a connection is for. Each kind has connections of its own, so that a heartbeat never waits behind bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Channel {
    /// Votes, heartbeats, leadership transfer.
    Control,
    /// Append streams.
    Bulk,
    /// Snapshot pieces.
    Snapshot,
    /// Forwarded requests, between nodes that have proved to hold the root key.
    Open,
    /// Read-index exchanges and the leader's time, with the same proof: a read never waits behind a large
    /// request.
    Reads,
}

impl Channel {
    /// Whether both sides must have proved that they hold the root key.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Reads)
    }

    /// The largest frame that this kind of channel carries.
    pub fn limit(self) -> usize {
        if self == Self::Open { crate::frame::OPEN_LIMIT } else { crate::frame::REPLICATION_LIMIT }
    }
}

/// Who speaks. Kept outside Raft: addresses heal themselves through it.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Hello {
    /// What this release can do; a cluster's level is raised by an entry once every member supports it.
    pub feature_level: u32,
    /// The oldest level of a cluster in which this release can be a member.
    pub oldest_level: u32,
    /// The release, for people.
    pub version: String,
    /// Raised by a recovery from lost quorum; members of different epochs do not talk.
    pub epoch: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id; must be the certificate's.
    pub incarnation: u64,
    /// `host:port` of the cluster port.
    pub cluster_addr: String,
    /// Base URL of the HTTP API.
    pub api_addr: String,
    /// Drawn at each start of the process: two of them at once under one incarnation are a clone.
    pub boot_id: u64,
    /// What the connection is for.
    pub channel: Channel,
    /// Whether the speaker is sealed.
    pub sealed: bool,
}

/// The feature level of this release: 2 knows the configuration of autopilot.
pub const FEATURE_LEVEL: u32 = 2;
/// The oldest level of a cluster in which this release can be a member.
pub const OLDEST_LEVEL: u32 = 1;

/// Why a node will not talk.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode, thiserror::Error)]
pub enum Refusal {
    /// The caller's incarnation has been removed from the cluster.
    #[error(
        "this node was removed from the cluster; to use it again, stop it, run `keystead operator raft rebuild` and start it again so that it joins anew"
    )]
    Removed,
    /// The caller's key is not the one that the directory pins for its incarnation.
    #[error("the directory knows another key for this incarnation")]
    KeyNotPinned,
    /// The caller is of another epoch: one side went through a recovery from lost quorum.
    #[error(
        "this cluster is at epoch {ours}, the caller at {theirs}: a recovery from lost quorum lies between them"
    )]
    Epoch {
        /// The refusing side's epoch.
        ours: u64,
        /// The caller's epoch.
        theirs: u64,
    },
    /// Another live process claims the same incarnation: one of the two runs on a copy of the other's disk.
    #[error(
        "another process is connected under this node's identity: one of the two runs on a copy of the other's data directory; stop the copy"
    )]
    Clone,
    /// The caller cannot read what this cluster writes.
    #[error(
        "this node is too old: its release is at feature level {theirs}, the cluster at {cluster}; upgrade this node to a release at level {cluster} or newer"
    )]
    TooOld {
        /// What the cluster writes.
        cluster: u32,
        /// What the caller can do.
        theirs: u32,
    },
    /// The caller's release has forgotten what this node still writes.
    #[error(
        "this node is too new: its release joins clusters at feature level {oldest} or above, and this one is at {cluster}; upgrade the other members by a release between first"
    )]
    TooNew {
        /// What the cluster writes.
        cluster: u32,
        /// The least the caller can be a member of.
        oldest: u32,
    },
    /// The hello did not agree with the certificate, or was not understood.
    #[error("malformed hello")]
    Malformed,
    /// Too many connections.
    #[error("too many connections")]
    Busy,
}

impl Hello {
    /// Reads a hello.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let hello: Self = codec::decode(bytes)?;
        let plausible = hello.node_id.len() <= keystead_tls::peer::NODE_ID_MAX_BYTES
            && hello.cluster_addr.len() <= 512
            && hello.version.len() <= 64
            && hello.api_addr.len() <= 512;
        if plausible { Ok(hello) } else { Err(DecodeError::Invalid("hello")) }
    }
}
