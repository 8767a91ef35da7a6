//! The Raft log as the rest of the node sees it.

use bytes::Bytes;

use crate::error::StorageError;
use crate::ids::{LogId, Vote};

/// One entry of the log; what the payload means is not known here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    /// Name of the entry.
    pub log_id: LogId,
    /// The entry as the layer above encoded it.
    pub payload: Bytes,
}

/// Called once with how a queued operation ended, on a storage thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// Where the log begins and ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogBounds {
    /// The last entry that was purged; the log begins after it.
    pub purged: Option<LogId>,
    /// The newest entry, or `purged` if the log is empty.
    pub last: Option<LogId>,
}

/// How long syncs take and how much each one carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncStats {
    /// Syncs since it was opened.
    pub syncs: u64,
    /// Groups of appends since it was opened; each cost one sync.
    pub groups: u64,
    /// Entries that those groups carried.
    pub entries: u64,
    /// Duration of the newest sync in microseconds.
    pub last_us: u64,
    /// Mean duration of all syncs in microseconds.
    pub mean_us: u64,
    /// How long the sync under way has been running in microseconds; zero if there is none. A hung
    /// disk shows here and nowhere else.
    pub running_us: u64,
}

/// The durable Raft log and vote of one node.
///
/// What a `done` acknowledges is on the disk and survives a power cut. After the first failure the log
/// is latched: every later operation ends with [`StorageError::Latched`] and changes nothing.
/// Operations take effect in the order of the calls. Queueing blocks only while the bounded queue is
/// full.
pub trait RaftLog: Send + Sync + 'static {
    /// Where the log begins and ends, entries that are not yet on the disk included.
    fn bounds(&self) -> LogBounds;

    /// The vote that was saved last, whether or not it is on the disk yet.
    fn vote(&self) -> Option<Vote>;

    /// The newest committed entry that is known here, never newer than the log when it was opened.
    fn committed(&self) -> Option<LogId>;

    /// Reads `[from, until)`, or a prefix of it: it ends early before `max_bytes` of payload are
    /// exceeded, but holds at least one record if there is one at `from`.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if the disk does not hold what was written.
    fn read(&self, from: u64, until: u64, max_bytes: usize) -> Result<Vec<LogRecord>, StorageError>;

    /// Queues records that follow the newest one; they can be read at once, and `done` is called when
    /// they are on the disk. Appends that wait together share one sync.
    fn append(&self, records: Vec<LogRecord>, done: Done);

    /// Saves the vote; `done` is called when it is on the disk, after a sync of its own.
    fn save_vote(&self, vote: Vote, done: Done);

    /// Remembers what is committed. It reaches the disk with the next group of appends: losing it costs
    /// a new exchange with the leader, never data.
    fn save_committed(&self, committed: LogId);

    /// Removes every record after `after` (all of them if `None`); `done` is called when that is on the
    /// disk.
    fn truncate_after(&self, after: Option<u64>, done: Done);

    /// Removes every record up to and including `up_to`, which may be newer than the log; `done` is
    /// called when the new beginning is on the disk.
    fn purge(&self, up_to: LogId, done: Done);

    /// Bytes of the records between the bounds.
    fn size_bytes(&self) -> u64;

    /// How long syncs take.
    fn sync_stats(&self) -> SyncStats;

    /// The failure that stopped the log for good, if any.
    fn latch(&self) -> Option<String>;
}
