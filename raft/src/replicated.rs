//! The interface through which the vault sees replication.
//!
//! The vault proposes transactions, reads after a barrier, and watches who leads. It never sees a type of
//! the consensus library or of the database below.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use keystead_storage::{SealedState, Txn, Version};
use tokio::sync::watch;

/// A boxed future, so that [`Replicated`] can stand behind `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderInfo {
    /// The Raft id: one incarnation of one node's data.
    pub incarnation: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// Base URL of the leader's HTTP API.
    pub api_addr: String,
    /// URL of the leader's cluster port.
    pub cluster_addr: String,
}

/// Who leads, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The Raft term of this view.
    pub term: u64,
    /// The leader, when one is known and has been heard of within the election timeout.
    pub leader: Option<LeaderInfo>,
    /// This node leads and has applied the first entry of its term, so that it may answer.
    pub is_self: bool,
    /// When this node became the active one, in milliseconds since the Unix epoch; 0 when it is not.
    pub active_since_ms: u64,
}

/// What became of a proposal.
#[derive(Debug, Clone)]
pub enum ProposeOutcome {
    /// All checks held and all writes landed.
    Applied(Version),
    /// A transaction with this request id had landed before; this is what was answered then.
    Duplicate {
        /// Where the first one landed.
        version: Version,
        /// Its sealed response.
        response: Bytes,
    },
    /// A check did not hold; nothing was written.
    Conflict {
        /// Index of the first check that failed.
        check: usize,
    },
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads, or none: nothing was proposed.
    #[error("this node is not the leader")]
    NotLeader,
    /// Too many proposals in flight: nothing was proposed; try again shortly.
    #[error("too many writes in flight")]
    Overloaded,
    /// The entry is larger than `max_entry_size`.
    #[error("entry of {bytes} bytes is larger than max_entry_size ({max} bytes)")]
    TooLarge {
        /// Size of the encoded entry.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The transaction would change too many records at once.
    #[error("transaction of {operations} operations is over the limit of {max}")]
    TooManyOperations {
        /// Worst case of what apply would do.
        operations: usize,
        /// The limit.
        max: usize,
    },
    /// This node is sealed and cannot sign log entries.
    #[error("this node is sealed")]
    Sealed,
    /// Leadership was lost while the entry was in flight: it may or may not commit. Ask the next leader with
    /// the same request id.
    #[error("outcome unknown: leadership was lost while the write was in flight")]
    Unknown,
    /// Replication on this node has stopped.
    #[error("replication has stopped: {0}")]
    Stopped(String),
}

/// What is refused for want of space on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The node whose disk it is; one of them, if there are more.
    pub node_id: String,
    /// Bytes free there, as far as they are known.
    pub free_bytes: u64,
    /// Deletes are still taken; otherwise no write is.
    pub deletes: bool,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node_id, free_bytes, deletes } = self;
        let (how, what) = match deletes {
            true => ("almost full", "reads and deletes are served, writes that store are refused"),
            false => ("full", "reads are served, writes are refused"),
        };
        write!(
            f,
            "the disk of node {node_id:?} is {how} ({free_bytes} bytes free): {what}; free space on that node's file system or enlarge it, and writes go on by themselves"
        )
    }
}

/// Why a linearizable read cannot be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No leader is known.
    #[error("no leader is known")]
    NoLeader,
    /// This node is sealed.
    #[error("this node is sealed")]
    Sealed,
    /// The leader did not confirm in time.
    #[error("the leader did not confirm the read in time")]
    Timeout,
    /// Replication on this node has stopped.
    #[error("replication has stopped: {0}")]
    Stopped(String),
}

/// Why a forwarded request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ForwardError {
    /// No leader is known.
    #[error("no leader is known")]
    NoLeader,
    /// The request certainly did not reach the leader.
    #[error("the leader could not be reached: {0}")]
    NotSent(String),
    /// The connection was lost after the request went out: it may have been executed.
    #[error("the connection to the leader was lost: {0}")]
    Lost(String),
    /// The leader would not take it (it no longer leads, is sealed, or the channel is not open).
    #[error("the leader refused the request: {0}")]
    Refused(String),
}

/// Proof that local state holds everything that was acknowledged when it was asked for.
#[derive(Debug, Clone)]
pub struct ReadBarrier {
    /// The applied index at which the barrier was met.
    pub applied_index: u64,
    /// The leader's cluster time, in milliseconds since the Unix epoch.
    pub cluster_time_ms: u64,
    /// Term of the leader that confirmed; 0 when a leader other than this node did.
    pub(crate) own_term: u64,
    /// Confirmed by the lease alone; otherwise by a round of acks, which no pause can make untrue.
    pub(crate) by_lease: bool,
}

impl ReadBarrier {
    /// A barrier for tests of the layers above, where one process is the whole cluster.
    #[doc(hidden)]
    pub fn for_tests(applied_index: u64, cluster_time_ms: u64) -> Self {
        Self { applied_index, cluster_time_ms, own_term: 0, by_lease: false }
    }
}

/// Replication as the vault sees it.
pub trait Replicated: Send + Sync + 'static {
    /// Proposes one transaction and waits until it is applied on this node.
    ///
    /// # Cancel safety
    /// A proposal outlives the future: dropping it leaves the outcome unknown.
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<ProposeOutcome, ProposeError>>;
    /// What a leader must refuse for want of space, if anything. The caller knows what stores and what deletes.
    fn shortage(&self) -> Option<Shortage>;
    /// Waits until local state holds everything acknowledged before the call, on leader and standby alike.
    fn read_barrier(&self) -> BoxFuture<'_, Result<ReadBarrier, ReadError>>;
    /// Says, after the read and before the answer, whether the barrier's leader still led while it was read.
    fn confirm_read(&self, barrier: &ReadBarrier) -> bool;
    /// The sealed state of this node.
    fn state(&self) -> Arc<dyn SealedState>;
    /// Cluster time now: never backwards, the same on every node up to a round trip. Milliseconds since the
    /// Unix epoch.
    fn cluster_time_ms(&self) -> u64;
    /// Watches who leads.
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// Sends a request to the leader over the open channel and waits for its answer.
    fn forward(&self, request: Bytes, deadline: Duration) -> BoxFuture<'_, Result<Bytes, ForwardError>>;
}
