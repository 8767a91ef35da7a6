//! The state on the disk: one tree per install, one pointer to the current one.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::codec;
use crate::database::{BATCH_OPERATIONS, Database, guarded};
use crate::digest::{LtHash, PlainApplied, from_plain, plain};
use crate::error::StorageError;
use crate::key_filter::KeyFilter;
use crate::overlay::{BatchEnd, Before};
use crate::row::{self, Row, Stored};
use crate::snapshot::WindowMark;
use crate::sync_meter::SyncMeter;
use crate::window::{Remembered, Window};

/// Reads mostly hit the overlay or repeat; what is beyond is the page cache's business.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
const FORMAT: u8 = 1;
const TREE_PREFIX: &str = "state.";
const POINTER: &str = "current";
const META: &[u8] = b"m";
const WINDOW: u8 = b'w';
/// Window rows that one batch removes at most, so that it stays within sled's comfort.
const WINDOW_REMOVALS: usize = 4;
/// How often a large value is read again because it was replaced meanwhile.
const PART_RETRIES: usize = 64;

/// The database of the state.
#[derive(Clone)]
pub(crate) struct StateDisk {
    database: Arc<Database>,
    /// The number of the next tree. No number is used twice: a tree that is abandoned is dropped by name.
    next: Arc<AtomicU64>,
}

/// One tree. When it is no longer current, it is dropped with its last reader.
pub(crate) struct StateTree {
    tree: sled::Tree,
    number: u64,
    retired: AtomicBool,
    /// Knows the rows of the tree, but not the parts of large ones.
    keys: KeyFilter,
    // Last, so that it is dropped after the tree.
    database: Arc<Database>,
}

/// What is stored in the tree about the state as a whole.
#[derive(Clone, Default)]
pub(crate) struct Meta {
    pub end: BatchEnd,
    pub lanes: LtHash,
    /// Index and digest of the newest checkpoints, oldest first.
    pub ring: VecDeque<(u64, [u8; 32])>,
}

/// Where the window lies: first number, number after the last, and keys, by row.
#[derive(Default)]
pub(crate) struct WindowRows(VecDeque<(u64, Vec<Vec<u8>>)>);

/// What was found when the state was opened.
pub(crate) struct Opened {
    pub tree: Arc<StateTree>,
    pub meta: Meta,
    pub window: Window,
    pub window_rows: WindowRows,
}

type StoredMeta = (PlainApplied, (WindowMark, [u8; 32], u64), Vec<u8>, Vec<(u64, [u8; 32])>);

impl StateDisk {
    /// Opens the state, or makes an empty one of generation 1.
    pub fn open(dir: &Path) -> Result<(Self, Opened), StorageError> {
        let database = Arc::new(Database::open(dir, CACHE_BYTES)?);
        let disk = Self { database, next: Arc::default() };
        guarded(dir, || {
            let number = disk.current()?;
            disk.next.store(number.unwrap_or(1) + 1, Ordering::Relaxed);
            for name in disk.database.tree_names(TREE_PREFIX) {
                if Some(name.as_str()) != number.map(tree_name).as_deref() {
                    disk.database.drop_tree(&name)?;
                }
            }
            let opened = match number {
                Some(number) => disk.load(number)?,
                None => disk.create()?,
            };
            Ok((disk.clone(), opened))
        })
    }

    /// Brings everything written so far to the disk.
    pub fn sync(&self) -> Result<(), StorageError> {
        self.database.sync()
    }

    /// How long syncs take.
    pub fn meter(&self) -> &Arc<SyncMeter> {
        self.database.meter()
    }

    /// Makes an empty tree beside the current one.
    pub fn stage(&self) -> Result<Arc<StateTree>, StorageError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tree = self.tree(number, KeyFilter::default())?;
        tree.retired.store(true, Ordering::Release); // until it becomes the current one
        Ok(tree)
    }

    /// Makes a staged tree, which is on the disk already, the current one.
    pub fn flip(&self, old: &StateTree, new: &StateTree) -> Result<(), StorageError> {
        self.point_to(new.number)?;
        new.retired.store(false, Ordering::Release);
        old.retired.store(true, Ordering::Release);
        self.database.check_blobs()
    }

    fn current(&self) -> Result<Option<u64>, StorageError> {
        let pointers = self.database.tree("pointers")?;
        let bytes = pointers.get(POINTER).map_err(|e| self.database.error("read", e))?;
        bytes.map(|bytes| codec::decode("pointer to the state", FORMAT, &bytes)).transpose()
    }

    fn point_to(&self, number: u64) -> Result<(), StorageError> {
        let pointers = self.database.tree("pointers")?;
        pointers
            .insert(POINTER, codec::encode(FORMAT, &number))
            .map_err(|e| self.database.error("write", e))?;
        self.sync()
    }

    fn tree(&self, number: u64, keys: KeyFilter) -> Result<Arc<StateTree>, StorageError> {
        let tree = self.database.tree(&tree_name(number))?;
        let database = Arc::clone(&self.database);
        Ok(Arc::new(StateTree { tree, number, retired: AtomicBool::new(false), keys, database }))
    }

    fn create(&self) -> Result<Opened, StorageError> {
        let tree = self.tree(1, KeyFilter::default())?;
        let mut meta = Meta::default();
        meta.end.applied.generation = 1;
        tree.apply(sled::Batch::default(), Some(&meta))?;
        self.sync()?;
        self.point_to(1)?;
        Ok(Opened { tree, meta, window: Window::default(), window_rows: WindowRows::default() })
    }

    fn load(&self, number: u64) -> Result<Opened, StorageError> {
        let tree = self.tree(number, KeyFilter::unfilled())?;
        let meta = tree.meta()?;
        let (window, window_rows) = tree.window(&meta.end)?;
        tree.check()?;
        Ok(Opened { tree, meta, window, window_rows })
    }
}

impl Drop for StateTree {
    fn drop(&mut self) {
        if *self.retired.get_mut()
            && let Err(error) = self.database.guarded(|| self.database.drop_tree(&tree_name(self.number)))
        {
            // The next open drops it.
            tracing::warn!(%error, "an old state tree could not be dropped");
        }
    }
}

/// sled reads a page when it is wanted, and panics if it finds it damaged: so whatever touches pages is guarded, and
/// damage is an error wherever it is met.
impl StateTree {
    /// Which rows may be there.
    pub fn keys(&self) -> &KeyFilter {
        &self.keys
    }

    /// Reads a row without its parts.
    pub fn stored(&self, key: &[u8]) -> Result<Option<Stored>, StorageError> {
        if !self.keys.may_hold(key) {
            return Ok(None);
        }
        self.database.guarded(|| {
            let bytes = self.tree.get(key).map_err(|e| self.database.error("read", e))?;
            bytes.map(|bytes| row::decode(&bytes)).transpose()
        })
    }

    /// Reads a row with its parts.
    pub fn row(&self, key: &[u8]) -> Result<Option<Row>, StorageError> {
        for _ in 0..PART_RETRIES {
            match self.stored(key)? {
                None => return Ok(None),
                Some(stored) => {
                    if let Some(row) = self.whole(key, stored)? {
                        return Ok(Some(row));
                    }
                }
            }
        }
        Err(StorageError::damaged("parts of a large value of the state are missing"))
    }

    /// Keys from `from` up to and without `end`, with their rows as stored.
    pub fn range(
        &self,
        from: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Bytes, sled::IVec), StorageError>> {
        let empty = end.is_some_and(|end| end <= from);
        let mut iter = match end {
            Some(end) if !empty => self.tree.range(from..end),
            Some(_) => self.tree.range(from..from),
            None => self.tree.range(from..),
        };
        let mut next = move || {
            let item = iter.next().transpose().map_err(|e| self.database.error("read", e))?;
            Ok(item.map(|(key, value)| (Bytes::copy_from_slice(&key), value)))
        };
        std::iter::from_fn(move || self.database.guarded(&mut next).transpose())
    }

    /// Joins a stored row; `None` if its parts were replaced meanwhile.
    pub fn whole(&self, key: &[u8], stored: Stored) -> Result<Option<Row>, StorageError> {
        let split = match stored {
            Stored::Whole(row) => return Ok(Some(row)),
            Stored::Split(split) => split,
        };
        let mut parts = Vec::new();
        for part in split.at().keys(key) {
            let read = || self.tree.get(part).map_err(|e| self.database.error("read", e));
            match self.database.guarded(read)? {
                Some(part) => parts.push(part),
                None => return Ok(None),
            }
        }
        split.join(&parts).map(Some)
    }

    /// Writes changed rows, the requests to remember and the state's own record as one batch. The new
    /// parts of large values go before it and the old ones after it: nobody sees them without their row.
    pub fn write<'a>(
        &self,
        rows: impl Iterator<Item = (&'a Bytes, Option<&'a Row>, &'a Before)>,
        remembered: &[(u64, Remembered)],
        window_rows: &mut WindowRows,
        meta: Option<&Meta>,
    ) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        let (mut orphans, mut vanished) = (Vec::new(), Vec::new());
        let counted = self.keys.is_complete();
        for (key, row, before) in rows {
            let old = match before {
                Before::Absent => None,
                Before::Row(row) => row::split_of(row),
                Before::Unread => match self.stored(key)? {
                    Some(Stored::Split(split)) => Some(split.at()),
                    _ => None,
                },
            };
            if let Some(old) = old.filter(|old| Some(old.version) != row.map(Row::version)) {
                orphans.extend(old.keys(key).map(|part| (part, None)));
            }
            match row {
                None => {
                    batch.remove(key.as_ref());
                    if counted && !matches!(before, Before::Absent) {
                        vanished.push(key);
                    }
                }
                Some(row) => {
                    if matches!(before, Before::Absent) {
                        self.keys.add(key);
                    }
                    let (main, parts) = row::encode(key, row);
                    self.apply_many(parts.into_iter().map(|(part, value)| (part, Some(value))))?;
                    batch.insert(key.as_ref(), main);
                }
            }
        }
        for (first, key, value) in encode_window(remembered) {
            window_rows.push(first, key.clone());
            batch.insert(key, value);
        }
        if let Some(meta) = meta {
            for key in window_rows.forgotten(meta.end.window_mark.first) {
                batch.remove(key);
            }
        }
        self.apply(batch, meta)?;
        for key in vanished {
            self.keys.remove(key);
        }
        self.apply_many(orphans.into_iter())
    }

    fn apply(&self, mut batch: sled::Batch, meta: Option<&Meta>) -> Result<(), StorageError> {
        if let Some(meta) = meta {
            let end = &meta.end;
            let stored: StoredMeta = (
                plain(&end.applied),
                (end.window_mark, end.window_hash, end.window_next),
                meta.lanes.to_bytes(),
                meta.ring.iter().copied().collect(),
            );
            batch.insert(META, codec::encode(FORMAT, &stored));
        }
        self.database.guarded(|| self.tree.apply_batch(batch).map_err(|e| self.database.error("write", e)))
    }

    /// Writes or removes what nobody looks at yet, or any more, in batches that sled takes well.
    fn apply_many(
        &self,
        changes: impl Iterator<Item = (Vec<u8>, Option<Bytes>)>,
    ) -> Result<(), StorageError> {
        let mut changes = changes.peekable();
        while changes.peek().is_some() {
            let mut batch = sled::Batch::default();
            for (key, value) in changes.by_ref().take(BATCH_OPERATIONS) {
                match value {
                    Some(value) => batch.insert(key, value.as_ref()),
                    None => batch.remove(key),
                }
            }
            self.apply(batch, None)?;
        }
        Ok(())
    }

    fn meta(&self) -> Result<Meta, StorageError> {
        let bytes = self.tree.get(META).map_err(|e| self.database.error("read", e))?;
        let bytes = bytes.ok_or_else(|| StorageError::damaged("the state lacks its own record"))?;
        let (applied, (window_mark, window_hash, window_next), lanes, ring): StoredMeta =
            codec::decode("record of the state", FORMAT, &bytes)?;
        let applied = from_plain(applied);
        let lanes = LtHash::from_bytes(&lanes)
            .ok_or_else(|| StorageError::damaged("the digest of the state has the wrong length"))?;
        let end = BatchEnd { applied, window_mark: window_mark.check()?, window_hash, window_next };
        Ok(Meta { end, lanes, ring: ring.into() })
    }

    /// Reads every row and every part, so that a damaged page is met now and not by a request.
    fn check(&self) -> Result<(), StorageError> {
        for area in row::DATA_AREAS {
            for item in self.range(&[area], Some(&[area + 1])) {
                let (key, value) = item?;
                if self.whole(&key, row::decode(&value)?)?.is_none() {
                    return Err(StorageError::damaged("parts of a large value of the state are missing"));
                }
            }
        }
        Ok(())
    }

    fn window(&self, end: &BatchEnd) -> Result<(Window, WindowRows), StorageError> {
        let mut window = Window::beginning(end.window_mark);
        let mut rows = WindowRows::default();
        let mut stream = Vec::new();
        let mut number = None;
        for item in self.range(&[WINDOW], Some(&[WINDOW + 1])) {
            let (key, value) = item?;
            let (first, chunk) = decode_window_row(&key, &value)?;
            number.get_or_insert(first);
            rows.push(first, key.to_vec());
            stream.extend_from_slice(chunk);
        }
        let mut stream = Bytes::from(stream);
        let mut number = number.unwrap_or(end.window_next);
        while !stream.is_empty() {
            let request = Remembered::decode(&mut stream)
                .ok_or_else(|| StorageError::damaged("the request window is cut off"))?;
            if number >= end.window_mark.first {
                window.record(request);
            }
            number += 1;
        }
        window.verify(&end.window_hash, end.window_next)?;
        Ok((window, rows))
    }
}

impl WindowRows {
    fn push(&mut self, first: u64, key: Vec<u8>) {
        match self.0.back_mut() {
            Some((last, keys)) if *last == first => keys.push(key),
            _ => self.0.push_back((first, vec![key])),
        }
    }

    /// Keys of rows that hold only requests before `mark`.
    fn forgotten(&mut self, mark: u64) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for _ in 0..WINDOW_REMOVALS {
            match self.0.get(1) {
                Some((next, _)) if *next <= mark => {
                    out.extend(self.0.pop_front().map(|(_, keys)| keys).unwrap_or_default());
                }
                _ => break,
            }
        }
        out
    }
}

/// Packs requests into rows: key `w`, number of the first one, part; value a chunk and its CRC32. A
/// request that does not fit into a row lies alone, cut into parts.
fn encode_window(remembered: &[(u64, Remembered)]) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let mut groups: Vec<(u64, Vec<u8>)> = Vec::new();
    for (number, request) in remembered {
        let fits = |g: &(u64, Vec<u8>)| g.1.len() + request.encoded_bytes() <= row::INLINE_BYTES;
        if !groups.last().is_some_and(fits) {
            groups.push((*number, Vec::new()));
        }
        let (_, out) = groups.last_mut().expect("one was just pushed if there was none");
        request.encode(out);
    }
    let mut rows = Vec::new();
    for (first, bytes) in groups {
        for (part, chunk) in (0u16..).zip(bytes.chunks(row::INLINE_BYTES)) {
            let mut key = vec![WINDOW];
            key.extend_from_slice(&first.to_be_bytes());
            key.extend_from_slice(&part.to_be_bytes());
            let mut value = chunk.to_vec();
            value.extend_from_slice(&crc32fast::hash(chunk).to_be_bytes());
            rows.push((first, key, value));
        }
    }
    rows
}

fn decode_window_row<'a>(key: &[u8], value: &'a [u8]) -> Result<(u64, &'a [u8]), StorageError> {
    let bad = || StorageError::damaged("a row of the request window cannot be read");
    let first = key.get(1..9).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).ok_or_else(bad)?;
    WindowMark { first, ..WindowMark::default() }.check()?;
    let (chunk, crc) = value.split_last_chunk::<4>().ok_or_else(bad)?;
    if crc32fast::hash(chunk) != u32::from_be_bytes(*crc) {
        return Err(bad());
    }
    Ok((first, chunk))
}

fn tree_name(number: u64) -> String {
    format!("{TREE_PREFIX}{number}")
}
