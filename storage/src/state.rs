//! The sealed state as the rest of the node sees it.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::StorageError;
use crate::ids::{LogId, RequestId, Version};
use crate::keys::{FolderKey, RecordKey};
use crate::log::Done;
use crate::snapshot::{Installer, Manifest, SnapshotCut};
use crate::txn::{Check, Command};

/// A record as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The write that made it so.
    pub version: Version,
    /// The (sealed) value.
    pub value: Bytes,
}

/// A name in a folder. A segment that names both a record and a folder is two children.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Child {
    /// The (sealed) name.
    pub segment: Vec<u8>,
    /// Whether it names a folder.
    pub folder: bool,
}

/// What a committed entry asks of the state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyOp {
    /// An entry without a payload, which a new leader proposes.
    Blank,
    /// A change of membership; opaque, kept with the applied index.
    Membership(Bytes),
    /// A transaction.
    Command(Command),
    /// An entry whose payload the layer above rejected; it only moves the applied index.
    NoOp,
}

/// A committed entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApplyEntry {
    /// Its name; indexes must follow each other without a gap.
    pub log_id: LogId,
    /// What it asks.
    pub op: ApplyOp,
}

/// How a committed entry ended; the same on every node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It carried no transaction.
    Blank,
    /// Its term is not that of the entry, or its sequence does not exceed the last one; no effect.
    Stale,
    /// All checks held and all writes landed.
    Applied {
        /// The version of every record that was written.
        version: Version,
    },
    /// The request had been applied before; no effect.
    Duplicate {
        /// The version of the first application.
        version: Version,
        /// The answer of the first application.
        response: Bytes,
    },
    /// A check did not hold; no effect.
    Conflict {
        /// Position of the first check that failed.
        check: usize,
    },
}

/// Told about every change before the applied index shows it. Called on the applying thread: it must
/// not block and must not call `apply`, `validate`, `cut` or an installer.
pub trait Observer: Send + Sync {
    /// An entry was applied and changed these records.
    fn applied(&self, log_id: LogId, changed: &[RecordKey]);

    /// A snapshot, or what was staged, replaced the whole state.
    fn replaced(&self);

    /// The digest at this index is not the one that the proposer of a checkpoint had.
    /// Called on the flushing thread.
    fn digest_mismatch(&self, index: u64);
}

/// How far the state has come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The newest applied entry.
    pub log_id: Option<LogId>,
    /// The newest applied membership and the entry that carried it.
    pub membership: Option<(LogId, Bytes)>,
    /// Cluster time in milliseconds since the Unix epoch; it never goes backwards.
    pub cluster_time_ms: u64,
    /// State generation; a restore raises it.
    pub generation: u32,
    /// Term and sequence of the newest command that was not stale.
    pub last_sequence: (u64, u64),
}

/// The replicated state of one node: records, folders, the request window.
///
/// Applying is deterministic: the same entries give the same outcomes and the same digest on every node.
/// A crash may leave the disk at any earlier entry boundary not before [`SealedState::flushed`]; the
/// caller then applies again from there. After the first failure the state is latched: every later
/// change ends with [`StorageError::Latched`].
pub trait SealedState: Send + Sync + 'static {
    /// Sets who is told about changes.
    fn set_observer(&self, observer: Arc<dyn Observer>);

    /// Applies committed entries in order. Blocks while too much waits for the disk. Entries up to the
    /// applied index are an error of the caller and refused.
    ///
    /// # Errors
    /// Any [`StorageError`] latches the state.
    fn apply(&self, entries: Vec<ApplyEntry>) -> Result<Vec<Outcome>, StorageError>;

    /// How far the state has come; everything up to here is visible and observed.
    fn applied(&self) -> Applied;

    /// Reads one record.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if the disk does not hold what was written.
    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StorageError>;

    /// The version of a folder's children: of the last time a name appeared in it or vanished. `None`
    /// if it has none.
    ///
    /// # Errors
    /// As [`SealedState::get`].
    fn children_version(&self, folder: &FolderKey) -> Result<Option<Version>, StorageError>;

    /// Lists direct children in the order of (segment, folder), at most `limit`, after `after`.
    ///
    /// Not a point in time: a listing is one if [`SealedState::children_version`] is the same before and
    /// after, or validates afterwards.
    ///
    /// # Errors
    /// As [`SealedState::get`].
    fn children(
        &self,
        folder: &FolderKey,
        after: Option<Child>,
        limit: usize,
    ) -> Result<Vec<Child>, StorageError>;

    /// Names of staged pieces of any restore, at most `limit`, in the order of restores and sequences.
    ///
    /// # Errors
    /// As [`SealedState::get`].
    fn staged(&self, limit: usize) -> Result<Vec<RecordKey>, StorageError>;

    /// Whether all checks hold at one point in time, between two applied entries.
    ///
    /// # Errors
    /// As [`SealedState::get`].
    fn validate(&self, checks: &[Check]) -> Result<bool, StorageError>;

    /// Looks a request up in the window of those applied.
    fn request(&self, id: RequestId) -> Option<(Version, Bytes)>;

    /// Log index of the oldest request still remembered; 0 if none was ever forgotten.
    fn window_floor(&self) -> u64;

    /// The newest applied entry that is on the disk; the log may be purged up to here.
    fn flushed(&self) -> Option<LogId>;

    /// Brings everything applied so far to the disk, then calls `done`.
    fn flush(&self, done: Done);

    /// The digest at a checkpoint, of the latest ones; it is there once the checkpoint was flushed.
    fn digest_at(&self, index: u64) -> Option<[u8; 32]>;

    /// The newest digest that was computed at a checkpoint.
    fn digest(&self) -> Option<(u64, [u8; 32])>;

    /// Cuts the state between two applied entries. Cheap; one at a time.
    ///
    /// # Errors
    /// [`StorageError::Busy`] while another cut lives.
    fn cut(&self) -> Result<SnapshotCut, StorageError>;

    /// Begins to stage a snapshot beside the state; nothing changes before [`Installer::finish`].
    ///
    /// # Errors
    /// [`StorageError::Busy`] while another installer lives.
    fn begin_install(&self, manifest: Manifest) -> Result<Installer, StorageError>;

    /// The failure that stopped the state for good, if any.
    fn latch(&self) -> Option<String>;
}
