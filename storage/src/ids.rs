//! Identifiers that the log and the state share.

use std::fmt;

use bincode::{Decode, Encode};

/// Names one log entry: the leader that proposed it (term and node) and its position.
///
/// Ordered by term, node, index. Two entries with the same id are the same entry (Raft paper, Log
/// Matching).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct LogId {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// Raft id of that leader.
    pub node: u64,
    /// Position in the log.
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}-N{}.{}", self.term, self.node, self.index)
    }
}

/// The vote of this node: for whom, in which term, and whether a majority confirmed that leader.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Encode, Decode)]
pub struct Vote {
    /// Term of the vote.
    pub term: u64,
    /// Raft id of the node voted for.
    pub node: u64,
    /// Whether a majority is known to have granted it.
    pub committed: bool,
}

/// Names the write that made a record what it is.
///
/// A record that was deleted and written again never carries an old version, for log indexes only
/// grow within a generation and a restore raises the generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct Version {
    /// Raised by every restore.
    pub generation: u32,
    /// Log index of the write.
    pub index: u64,
}

impl Version {
    /// Bytes of the fixed encoding.
    pub(crate) const BYTES: usize = 12;

    /// Encodes as generation and index, big-endian.
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.generation.to_be_bytes());
        out[4..].copy_from_slice(&self.index.to_be_bytes());
        out
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.index)
    }
}

/// Names one client request across nodes, leaders and repetitions.
///
/// All zero means that the request is not recorded in the window.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct RequestId(pub [u8; 16]);

impl RequestId {
    /// The id of transactions that are not recorded.
    pub const NONE: RequestId = RequestId([0; 16]);

    /// Whether this is [`RequestId::NONE`].
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ids_are_ordered_by_term_before_index() {
        let old = LogId { term: 1, node: 9, index: 100 };
        let new = LogId { term: 2, node: 1, index: 3 };
        assert!(old < new);
        assert_eq!(new.to_string(), "T2-N1.3");
    }
}
