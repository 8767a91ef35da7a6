//! The consensus library's types, filled in, and their mapping to the storage crate's.
//!
//! Nothing outside this crate sees them. Everything that reaches a disk or a wire is encoded by
//! [`crate::entry`] and [`crate::wire`], whose formats are ours and versioned.

use std::{fmt, io};

use bytes::Bytes;
use keystead_storage as storage;
use openraft::{impls::leader_id_std, type_config::alias};

/// A member of the cluster as Raft's own membership entry records it.
///
/// The operator's name and the addresses are in the directory; the membership carries only what lets a person
/// read a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Member {
    /// The operator's name of the place.
    pub node_id: String,
}

/// An encoded log entry payload (see [`crate::entry`]); cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What apply says of one entry.
#[derive(Debug, Clone)]
pub struct EntryResult(pub storage::Outcome);

impl fmt::Display for EntryResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntryResult")
    }
}

openraft::declare_raft_types!(
    /// Keystead's instantiation of openraft. Standard leader ids: one leader per term (Raft paper, 5.2).
    pub TypeConfig:
        D = Proposal,
        R = EntryResult,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

pub type Raft = openraft::Raft<TypeConfig, crate::machine::Machine>;
pub type RaftLogId = alias::LogIdOf<TypeConfig>;
pub type RaftVote = alias::VoteOf<TypeConfig>;
pub type RaftEntry = alias::EntryOf<TypeConfig>;
pub type RaftMembership = openraft::Membership<u64, Member>;
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub type RpcError = openraft::errors::RPCError<TypeConfig>;

type CommittedLeader = alias::CommittedLeaderIdOf<TypeConfig>;

/// The storage crate's form of a log id. The node part is unused: a term has one leader.
pub fn to_storage(id: &RaftLogId) -> storage::LogId {
    storage::LogId { term: *id.leader_id, node: 0, index: id.index }
}

/// openraft's form of a log id.
pub fn from_storage(id: &storage::LogId) -> RaftLogId {
    RaftLogId::new(CommittedLeader::from(id.term), id.index)
}

/// The storage crate's form of a vote.
pub fn vote_to_storage(vote: &RaftVote) -> storage::Vote {
    storage::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

/// openraft's form of a vote.
pub fn vote_from_storage(vote: &storage::Vote) -> RaftVote {
    if vote.committed {
        RaftVote::new_committed(vote.term, vote.node)
    } else {
        RaftVote::new(vote.term, vote.node)
    }
}

/// A storage error as the io error that openraft takes; it stops the node.
pub fn io_error(error: storage::StorageError) -> io::Error {
    io::Error::other(error)
}
