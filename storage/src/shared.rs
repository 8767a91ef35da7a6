//! What the parts of the state share, and the order of its locks.
//!
//! Locks are taken in this order: applier, disk writer, view, window; signals and the small cells last. The
//! applier's lock is held by whoever changes the state as a whole: apply, a cut, the end of an install.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::apply::Rows;
use crate::datadir::DataDir;
use crate::error::StorageError;
use crate::flusher::{DiskWriter, Signals};
use crate::ids::{LogId, Version};
use crate::overlay::{Before, Overlay};
use crate::row::{Folder, Row, Stored};
use crate::row_cache::RowCache;
use crate::state::{Applied, Observer};
use crate::state_disk::{StateDisk, StateTree};
use crate::window::Window;

/// A snapshot that falls so far behind the writes is given up.
const UNDO_BYTES: usize = 64 * 1024 * 1024;

/// A function that gives the highest index up to which the log is on the disk.
pub(crate) type DurableLog = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The state, shared by callers, the flusher, cuts and installers.
pub(crate) struct Shared {
    pub dir: DataDir,
    pub disk: StateDisk,
    /// What was applied last; its lock makes the applier the only one.
    pub applier: Mutex<Applied>,
    pub writer: Mutex<DiskWriter>,
    pub view: RwLock<View>,
    /// Rows of the view's tree; locked after the view.
    pub cache: RowCache,
    pub window: RwLock<Window>,
    /// What callers see as applied: moved when everything is visible and observed.
    pub published: RwLock<Applied>,
    pub signals: Signals,
    pub digest: RwLock<Option<(u64, [u8; 32])>>,
    pub observer: RwLock<Option<Arc<dyn Observer>>>,
    pub durable_log: RwLock<Option<DurableLog>>,
    pub cutting: AtomicBool,
    pub installing: AtomicBool,
    pub latch: Mutex<Option<String>>,
}

/// What readers look at: the overlay, then the tree.
pub(crate) struct View {
    pub overlay: Overlay,
    pub tree: Arc<StateTree>,
    pub undo: Option<Undo>,
}

/// Rows as they were at a cut, for those that changed since.
pub(crate) struct Undo {
    rows: BTreeMap<Bytes, Option<Row>>,
    bytes: usize,
    /// Past the bound: the rows are gone, the snapshot must be given up.
    pub overflowed: bool,
}

impl Undo {
    pub fn new() -> Self {
        Self { rows: BTreeMap::new(), bytes: 0, overflowed: false }
    }

    /// Whether the first change of a key is still to be noted.
    pub fn wants(&self, key: &[u8]) -> bool {
        !self.overflowed && !self.rows.contains_key(key)
    }

    /// Notes what a key held before its first change.
    pub fn note(&mut self, key: Bytes, row: Option<Row>) {
        self.bytes += Row::weight(&key, row.as_ref());
        self.rows.entry(key).or_insert(row);
        if self.bytes > UNDO_BYTES {
            self.overflowed = true;
            self.rows.clear();
        }
    }

    /// Noted keys from `from` up to and without `end`.
    pub fn range(&self, from: &[u8], end: &[u8]) -> impl Iterator<Item = (&Bytes, &Option<Row>)> {
        use std::ops::Bound::{Excluded, Included};
        let end = end.max(from);
        self.rows.range::<[u8], _>((Included(from), Excluded(end)))
    }
}

impl Shared {
    /// The error of everything that comes after the first failure.
    pub fn latched(&self) -> Result<(), StorageError> {
        match &*self.latch.lock() {
            Some(first) => Err(StorageError::Latched { first: first.clone() }),
            None => Ok(()),
        }
    }

    /// Remembers the first failure and wakes everybody who waits.
    pub fn fail(&self, error: &StorageError) {
        {
            let mut latch = self.latch.lock();
            if latch.is_some() {
                return;
            }
            tracing::error!(%error, "the state stops after a failure");
            metrics::counter!("keystead_storage_state_failures_total").increment(1);
            *latch = Some(error.to_string());
        }
        self.signals.fail(error);
    }

    /// Latches the state when something read from it is damaged: what was met here may have been met elsewhere
    /// without anybody's notice.
    pub fn noted<T>(&self, read: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(error @ StorageError::Damaged { .. }) = &read {
            self.fail(error);
        }
        read
    }

    /// Reads a whole row.
    pub fn row(&self, key: &[u8]) -> Result<Option<Row>, StorageError> {
        match self.find(key, true)? {
            Found::Row(row) => Ok(row),
            Found::Split(tree, _) => tree.row(key),
        }
    }

    /// Looks for a row where it may be; large ones are not joined. With `keep` it is found faster next time.
    fn find(&self, key: &[u8], keep: bool) -> Result<Found, StorageError> {
        let (tree, ticket) = {
            let view = self.view.read();
            if let Some(row) = view.overlay.get(key) {
                return Ok(Found::Row(row.cloned()));
            }
            match self.cache.get(key) {
                Ok(row) => return Ok(Found::Row(row)),
                Err(ticket) => (Arc::clone(&view.tree), ticket),
            }
        };
        let row = match tree.stored(key)? {
            None => None,
            Some(Stored::Whole(row)) => Some(row),
            Some(Stored::Split(split)) => return Ok(Found::Split(tree, split.version)),
        };
        if keep {
            self.cache.put(key, ticket, row.as_ref());
        }
        Ok(Found::Row(row))
    }

    /// Highest index up to which the log is on the disk, as far as somebody says.
    pub fn durable_log(&self) -> u64 {
        let durable = self.durable_log.read().clone();
        durable.map_or(u64::MAX, |durable| durable())
    }

    pub fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.read().clone()
    }

    /// The newest applied entry that is on the disk.
    pub fn flushed(&self) -> Option<LogId> {
        self.signals.flushed()
    }
}

/// Where a row was found.
enum Found {
    /// Here, or nowhere.
    Row(Option<Row>),
    /// In this tree, cut into parts.
    Split(Arc<StateTree>, Version),
}

impl Rows for Shared {
    fn record_version(&self, key: &[u8]) -> Result<Option<Version>, StorageError> {
        Ok(match self.find(key, true)? {
            Found::Row(row) => row.as_ref().map(Row::version),
            Found::Split(_, version) => Some(version),
        })
    }

    fn folder(&self, key: &[u8]) -> Result<Option<Folder>, StorageError> {
        Ok(match self.find(key, true)? {
            Found::Row(Some(Row::Folder(folder))) => Some(folder),
            Found::Row(_) | Found::Split(..) => None,
        })
    }

    fn before(&self, key: &[u8]) -> Result<Before, StorageError> {
        Ok(match self.find(key, false)? {
            Found::Row(Some(row)) => Before::Row(row),
            Found::Row(None) => Before::Absent,
            Found::Split(..) => Before::Unread,
        })
    }
}
