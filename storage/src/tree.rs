//! One log-structured merge tree on the disk, by the rules under which it keeps what it promised.
//!
//! The tree has no log of its own and needs none: what is not in its files yet is in the Raft log. Writes go into its
//! memory; [`Tree::sync`] writes them into one sorted file that is never written again, syncs it, and then, in one step
//! (a file written beside, synced, renamed, the directory synced), makes it part of the tree. So a crash leaves the
//! tree as some sync left it, whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
};
use lsm_tree::{AbstractTree, AnyTree, Cache, CompressionType, Config, Guard, SeqNo, SequenceNumberCounter};

use crate::datadir;
use crate::doubt;
use crate::error::StorageError;
use crate::guard::guarded;
use crate::sync_meter::SyncMeter;

/// A value, or a key, as the tree keeps it.
pub(crate) type Slice = lsm_tree::Slice;

/// Files of the tree are of about this size; the first sorted level takes four of them.
const TABLE_BYTES: u64 = 16 * 1024 * 1024;
/// So many unsorted files are merged into the first sorted level.
const UNSORTED_TABLES: u8 = 4;
/// Everything that was ever written.
const NEWEST: SeqNo = SeqNo::MAX >> 1;
/// Merges after one sync at most.
const MERGES: usize = 8;

/// Changes that become visible one by one, and durable together.
#[derive(Default)]
pub(crate) struct Batch(Vec<(Slice, Option<Slice>)>);

impl Batch {
    pub fn insert(&mut self, key: impl Into<Slice>, value: impl Into<Slice>) {
        self.0.push((key.into(), Some(value.into())));
    }

    pub fn remove(&mut self, key: impl Into<Slice>) {
        self.0.push((key.into(), None));
    }
}

/// An open tree.
pub(crate) struct Tree {
    tree: AnyTree,
    sequence: SequenceNumberCounter,
    dir: PathBuf,
    meter: Arc<SyncMeter>,
    /// The first sync that failed.
    failed: OnceLock<String>,
}

impl Tree {
    /// Opens or makes the tree in `dir`.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if a file of it is missing or cannot be read.
    pub fn open(dir: &Path, cache: &Arc<Cache>, meter: &Arc<SyncMeter>) -> Result<Self, StorageError> {
        let sequence = SequenceNumberCounter::default();
        let plain = CompressionPolicy::all(CompressionType::None);
        let config = Config::new(dir, sequence.clone(), SequenceNumberCounter::default())
            .use_cache(Arc::clone(cache))
            // What is sealed does not compress.
            .data_block_compression_policy(plain.clone())
            .index_block_compression_policy(plain)
            // Most searches are for what is not there: the row of a version that is about to be written. Filters and
            // indexes stay in memory, some 2 % of the data: finding them in a cache costs more than asking them.
            .filter_block_pinning_policy(PinningPolicy::all(true))
            .index_block_pinning_policy(PinningPolicy::all(true))
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
                10.0,
            ))));
        let tree = guarded(dir, || config.open().map_err(|e| opening(dir, e)))?;
        if let Some(highest) = tree.get_highest_persisted_seqno() {
            sequence.fetch_max(highest + 1);
        }
        let (dir, meter) = (dir.to_owned(), Arc::clone(meter));
        Ok(Self { tree, sequence, dir, meter, failed: OnceLock::new() })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Slice>, StorageError> {
        guarded(&self.dir, || self.tree.get(key, NEWEST).map_err(|e| self.error("read", e)))
    }

    /// Keys from `from` up to and without `end`, with their values, as they are when this is called.
    pub fn range(
        &self,
        from: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Bytes, Slice), StorageError>> {
        let empty = end.is_some_and(|end| end <= from);
        let mut items = match end {
            Some(end) if !empty => self.tree.range(from..end, NEWEST, None),
            Some(_) => self.tree.range(from..from, NEWEST, None),
            None => self.tree.range(from.., NEWEST, None),
        };
        let mut next = move || {
            let item = items.next().map(Guard::into_inner).transpose();
            let item = item.map_err(|e| self.error("read", e))?;
            Ok(item.map(|(key, value)| (Bytes::copy_from_slice(&key), value)))
        };
        std::iter::from_fn(move || guarded(&self.dir, &mut next).transpose())
    }

    /// Takes changes into memory. Nobody looks at one of them before it belongs to the state, or after.
    pub fn write(&self, batch: Batch) {
        let sequence = self.sequence.next();
        for (key, value) in batch.0 {
            match value {
                Some(value) => self.tree.insert(key, value, sequence),
                None => self.tree.remove(key, sequence),
            };
        }
    }

    /// Bytes that a sync would write.
    pub fn unsynced_bytes(&self) -> u64 {
        self.tree.active_memtable().size()
    }

    /// Brings everything written so far to the disk, all of it or nothing.
    ///
    /// # Errors
    /// After the first failure every later call fails: the kernel reports a page that it could not write once, drops
    /// it, and calls the next sync a success.
    pub fn sync(&self) -> Result<(), StorageError> {
        if let Some(first) = self.failed.get() {
            return Err(StorageError::Latched { first: first.clone() });
        }
        let began = self.meter.begin();
        let result = guarded(&self.dir, || {
            let lock = self.tree.get_flush_lock();
            self.tree.rotate_memtable();
            self.tree.flush(&lock, self.sequence.get()).map_err(|e| self.error("sync", e))
        });
        self.meter.end(began);
        result.map(drop).inspect_err(|error| self.fail(error))
    }

    /// Merges files as long as there are too many of them. Readers go on meanwhile.
    ///
    /// # Errors
    /// [`StorageError::Full`] if there was no room to; the tree is as it was, and later calls may succeed.
    pub fn merge(&self) -> Result<(), StorageError> {
        let strategy =
            Leveled::default().with_l0_threshold(UNSORTED_TABLES).with_table_target_size(TABLE_BYTES);
        let strategy = Arc::new(strategy);
        for _ in 0..MERGES {
            let before = self.tree.current_version().id();
            let merged = guarded(&self.dir, || {
                let merged = self.tree.compact(strategy.clone(), self.sequence.get());
                merged.map_err(|e| self.error("merge", e))
            });
            match merged {
                Ok(()) if self.tree.current_version().id() == before => break,
                Ok(()) => {}
                Err(error @ StorageError::Full { .. }) => return Err(error),
                Err(error) => {
                    self.fail(&error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn fail(&self, error: &StorageError) {
        let _ = self.failed.set(error.to_string());
        let state = self.dir.parent().unwrap_or(&self.dir);
        doubt::raise(state.parent().unwrap_or(state));
    }

    fn error(&self, context: &str, source: lsm_tree::Error) -> StorageError {
        translated(context, &self.dir, source)
    }
}

/// What went wrong while opening: a file that is not there is damage then.
fn opening(dir: &Path, source: lsm_tree::Error) -> StorageError {
    match source {
        lsm_tree::Error::Io(e) if e.kind() == io::ErrorKind::NotFound => {
            StorageError::damaged(format!("a file of the tree in {} is missing", dir.display()))
        }
        // It looks for something before the beginning of a file.
        lsm_tree::Error::Io(e) if e.kind() == io::ErrorKind::InvalidInput => {
            StorageError::damaged(format!("a file of the tree in {} is cut off", dir.display()))
        }
        other => translated("open", dir, other),
    }
}

fn translated(context: &str, dir: &Path, source: lsm_tree::Error) -> StorageError {
    use io::ErrorKind::{InvalidData, StorageFull, UnexpectedEof};
    match source {
        lsm_tree::Error::Io(e) if e.kind() == StorageFull => {
            let free_bytes = datadir::free_bytes(dir).unwrap_or(0);
            StorageError::Full { path: dir.to_owned(), free_bytes }
        }
        lsm_tree::Error::Io(e) if !matches!(e.kind(), InvalidData | UnexpectedEof) => {
            StorageError::io(format!("{context} {}", dir.display()), e)
        }
        other => StorageError::damaged(format!("{context} {}: {other}", dir.display())),
    }
}

/// Removes a tree that nobody needs any more.
pub(crate) fn remove(dir: &Path) -> Result<(), StorageError> {
    fs::remove_dir_all(dir).map_err(|e| StorageError::io(format!("remove {}", dir.display()), e))
}
