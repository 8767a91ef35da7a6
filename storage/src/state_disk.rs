//! The state on the disk: one tree per install, one pointer to the current one.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use lsm_tree::Cache;

use crate::codec;
use crate::datadir;
use crate::digest::{LtHash, PlainApplied, from_plain, plain};
use crate::error::StorageError;
use crate::overlay::{BatchEnd, Before};
use crate::row::{self, Row, Stored};
use crate::snapshot::WindowMark;
use crate::sync_meter::SyncMeter;
use crate::tree::{self, Batch, Slice, Tree};
use crate::window::{Remembered, Window};

/// Reads mostly hit the overlay or repeat; what is beyond is the page cache's business.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// What is staged reaches the disk in files of about this size.
const STAGED_BYTES: u64 = 8 * 1024 * 1024;
const FORMAT: u8 = 1;
const POINTER: &str = "current";
const META: &[u8] = b"m";
const WINDOW: u8 = b'w';
/// Window rows that one batch removes at most.
const WINDOW_REMOVALS: usize = 4;
/// How often a large value is read again because it was replaced meanwhile.
const PART_RETRIES: usize = 64;

/// The directory of the state.
#[derive(Clone)]
pub(crate) struct StateDisk {
    dir: PathBuf,
    cache: Arc<Cache>,
    meter: Arc<SyncMeter>,
    /// The number of the next tree. No number is used twice.
    next: Arc<AtomicU64>,
}

/// One tree. When it is no longer current, it is removed with its last reader.
pub(crate) struct StateTree {
    tree: Tree,
    number: u64,
    retired: AtomicBool,
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
        datadir::check_room_to_open(dir)?;
        let cache = Arc::new(Cache::with_capacity_bytes(CACHE_BYTES));
        let disk = Self { dir: dir.to_owned(), cache, meter: Arc::default(), next: Arc::default() };
        let number = disk.current()?;
        if number.is_none() {
            disk.check_unfinished()?;
        }
        disk.next.store(number.unwrap_or(1) + 1, Ordering::Relaxed);
        disk.remove_others(number)?;
        let opened = match number {
            Some(number) => disk.load(number)?,
            None => disk.create()?,
        };
        Ok((disk, opened))
    }

    /// How long syncs take.
    pub fn meter(&self) -> &Arc<SyncMeter> {
        &self.meter
    }

    /// Makes an empty tree beside the current one.
    pub fn stage(&self) -> Result<Arc<StateTree>, StorageError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tree = self.tree(number)?;
        tree.retired.store(true, Ordering::Release); // until it becomes the current one
        Ok(tree)
    }

    /// Makes a staged tree, which is on the disk already, the current one.
    pub fn flip(&self, old: &StateTree, new: &StateTree) -> Result<(), StorageError> {
        // Before the pointer is written: if that fails, it may point to either tree, and both must stay for the next open.
        new.retired.store(false, Ordering::Release);
        self.point_to(new.number)?;
        old.retired.store(true, Ordering::Release);
        Ok(())
    }

    fn current(&self) -> Result<Option<u64>, StorageError> {
        let bytes = datadir::read_bounded(&self.dir.join(POINTER), 64)?;
        bytes.map(|bytes| codec::decode("pointer to the state", FORMAT, &bytes)).transpose()
    }

    fn point_to(&self, number: u64) -> Result<(), StorageError> {
        datadir::write_file_durably(&self.dir.join(POINTER), &codec::encode(FORMAT, &number), 0o600)
    }

    fn tree_dir(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string())
    }

    /// Numbers of the trees that are there.
    fn numbers(&self) -> Result<Vec<u64>, StorageError> {
        let context = |e| StorageError::io(format!("read {}", self.dir.display()), e);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(context)? {
            let name = entry.map_err(context)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// Without a pointer there may be what a crash left of the first tree, in which nothing was applied yet, and nothing
    /// else.
    fn check_unfinished(&self) -> Result<(), StorageError> {
        let numbers = self.numbers()?;
        let applied = |number| {
            self.tree(number).and_then(|tree| tree.meta()).is_ok_and(|meta| meta.end.applied.log_id.is_some())
        };
        if numbers.iter().any(|number| *number != 1 || applied(*number)) {
            let pointer = self.dir.join(POINTER);
            return Err(StorageError::damaged(format!(
                "{} is missing: which tree counts is not known",
                pointer.display()
            )));
        }
        Ok(())
    }

    /// Removes trees that a crash left: staged and not made current, or replaced and not removed.
    fn remove_others(&self, current: Option<u64>) -> Result<(), StorageError> {
        let numbers = self.numbers()?;
        let others = numbers.into_iter().filter(|number| Some(*number) != current);
        others.map(|number| self.tree_dir(number)).try_for_each(|dir| tree::remove(&dir))
    }

    fn tree(&self, number: u64) -> Result<Arc<StateTree>, StorageError> {
        let tree = Tree::open(&self.tree_dir(number), &self.cache, &self.meter)?;
        Ok(Arc::new(StateTree { tree, number, retired: AtomicBool::new(false) }))
    }

    fn create(&self) -> Result<Opened, StorageError> {
        let tree = self.tree(1)?;
        let mut meta = Meta::default();
        meta.end.applied.generation = 1;
        tree.apply(Batch::default(), Some(&meta));
        tree.sync()?;
        self.point_to(1)?;
        Ok(Opened { tree, meta, window: Window::default(), window_rows: WindowRows::default() })
    }

    fn load(&self, number: u64) -> Result<Opened, StorageError> {
        let dir = self.tree_dir(number);
        if !dir.is_dir() {
            return Err(StorageError::damaged(format!("the tree in {} is missing", dir.display())));
        }
        let tree = self.tree(number)?;
        let meta = tree.meta()?;
        let (window, window_rows) = tree.window(&meta.end)?;
        tree.check()?;
        Ok(Opened { tree, meta, window, window_rows })
    }
}

impl Drop for StateTree {
    fn drop(&mut self) {
        if *self.retired.get_mut()
            && let Err(error) = tree::remove(self.tree.dir())
        {
            // The next open removes it.
            tracing::warn!(%error, "an old state tree could not be removed");
        }
    }
}

impl StateTree {
    /// Reads a row without its parts.
    pub fn stored(&self, key: &[u8]) -> Result<Option<Stored>, StorageError> {
        self.tree.get(key)?.map(|bytes| row::decode(&bytes)).transpose()
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
    ) -> impl Iterator<Item = Result<(Bytes, Slice), StorageError>> {
        self.tree.range(from, end)
    }

    /// Brings everything written so far to the disk, all of it or nothing.
    pub fn sync(&self) -> Result<(), StorageError> {
        self.tree.sync()
    }

    /// Brings what was staged to the disk once it is worth a file.
    pub fn sync_when_large(&self) -> Result<(), StorageError> {
        if self.tree.unsynced_bytes() < STAGED_BYTES { Ok(()) } else { self.tree.sync() }
    }

    /// Merges files of the tree where there are too many of them.
    pub fn merge(&self) -> Result<(), StorageError> {
        self.tree.merge()
    }

    /// Joins a stored row; `None` if its parts were replaced meanwhile.
    pub fn whole(&self, key: &[u8], stored: Stored) -> Result<Option<Row>, StorageError> {
        let split = match stored {
            Stored::Whole(row) => return Ok(Some(row)),
            Stored::Split(split) => split,
        };
        let mut parts = Vec::new();
        for part in split.at().keys(key) {
            match self.tree.get(&part)? {
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
        let mut batch = Batch::default();
        let mut orphans = Batch::default();
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
                old.keys(key).for_each(|part| orphans.remove(part));
            }
            match row {
                None => batch.remove(key.as_ref()),
                Some(row) => {
                    let (main, parts) = row::encode(key, row);
                    let mut new = Batch::default();
                    parts.into_iter().for_each(|(part, value)| new.insert(part, value.as_ref()));
                    self.tree.write(new);
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
        self.apply(batch, meta);
        self.tree.write(orphans);
        Ok(())
    }

    fn apply(&self, mut batch: Batch, meta: Option<&Meta>) {
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
        self.tree.write(batch);
    }

    fn meta(&self) -> Result<Meta, StorageError> {
        let bytes = self.tree.get(META)?;
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
