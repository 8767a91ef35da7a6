//! The log on the disk: a tree of packed pieces per segment, and a tree with floor, vote and commit.
//!
//! Only the writer thread changes anything here. sled recovers to a prefix of what was written, so every
//! step is ordered so that each prefix of it is a good log: appends go upwards, truncations downwards,
//! the floor is on the disk before a segment is dropped.

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::RwLock;

use crate::codec;
use crate::database::{BATCH_OPERATIONS, Database, guarded};
use crate::error::StorageError;
use crate::ids::{LogId, Vote};
use crate::log::LogRecord;
use crate::packed::{self, Piece};

/// A segment takes no more groups past so many records. Purging drops whole segments.
const SEGMENT_ENTRIES: u64 = 2_500;
/// Nor past so many bytes: thousands of large records would never be purged.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// The log is read once and in order; sled's own cache earns little.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

const FORMAT: u8 = 1;
const SEGMENT_PREFIX: &str = "log.";
const FLOOR: &[u8] = b"floor";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";

/// What was found when the log was opened.
#[derive(Default)]
pub(crate) struct Recovered {
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// Bytes of each record after `purged`.
    pub sizes: Vec<u32>,
}

struct Segment {
    name: String,
    tree: sled::Tree,
    entries: u64,
    bytes: u64,
}

/// The trees of the log.
pub(crate) struct LogDisk {
    meta: sled::Tree,
    /// By the index of the first record. Readers hold it shared while they read, so that they see a
    /// truncation whole or not at all.
    segments: RwLock<BTreeMap<u64, Segment>>,
    // Last, so that it is dropped after its trees.
    database: Database,
}

impl LogDisk {
    /// Opens the log and verifies every record after the floor.
    pub fn open(dir: &Path) -> Result<(Self, Recovered), StorageError> {
        let database = Database::open(dir, CACHE_BYTES)?;
        guarded(dir, || {
            let meta = database.tree("meta")?;
            let disk = Self { meta, segments: RwLock::default(), database };
            let recovered = disk.recover()?;
            Ok((disk, recovered))
        })
    }

    /// The database, to sync and to measure.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Writes records after those already there. Not on the disk before a sync.
    pub fn append(&self, records: &[LogRecord]) -> Result<(), StorageError> {
        let Some(first) = records.first() else { return Ok(()) };
        let mut segments = self.segments.write();
        let full = |s: &Segment| s.entries >= SEGMENT_ENTRIES || s.bytes >= SEGMENT_BYTES;
        if segments.last_key_value().is_none_or(|(_, s)| full(s)) {
            let name = format!("{SEGMENT_PREFIX}{:020}", first.log_id.index);
            let tree = self.database.tree(&name)?;
            segments.insert(first.log_id.index, Segment { name, tree, entries: 0, bytes: 0 });
        }
        let mut last = segments.last_entry().expect("one was inserted if there was none");
        let segment = last.get_mut();
        segment.entries += records.len() as u64;
        segment.bytes += records.iter().map(packed::frame_bytes).sum::<u64>();
        self.write_pieces(&segment.tree, packed::pack(records))
    }

    /// Writes the commit point, to reach the disk with the next sync.
    pub fn write_committed(&self, committed: LogId) -> Result<(), StorageError> {
        self.put_meta(COMMITTED, codec::encode(FORMAT, &committed))
    }

    /// Writes the vote, to reach the disk with the next sync.
    pub fn write_vote(&self, vote: Vote) -> Result<(), StorageError> {
        self.put_meta(VOTE, codec::encode(FORMAT, &vote))
    }

    /// Writes the floor, to reach the disk with the next sync.
    pub fn write_floor(&self, floor: LogId) -> Result<(), StorageError> {
        self.put_meta(FLOOR, codec::encode(FORMAT, &floor))
    }

    /// Removes every record with an index of at least `from`. Not on the disk before a sync.
    ///
    /// Works downwards, so that after a crash half-way the log is shorter but whole. A piece that begins
    /// below `from` and reaches beyond it is written again without its tail, or that tail would come
    /// back behind whatever is appended next.
    pub fn truncate_from(&self, from: u64) -> Result<(), StorageError> {
        let mut segments = self.segments.write();
        while let Some(last) = segments.last_entry() {
            if *last.key() < from {
                break;
            }
            self.database.drop_tree(&last.remove().name)?;
        }
        // The saved commit point must not point beyond the log: that is how a lost tail is noticed.
        let committed: Option<LogId> = self.read_meta("commit point of the log", COMMITTED)?;
        if committed.is_some_and(|c| c.index >= from) {
            self.meta.remove(COMMITTED).map_err(|e| self.database.error("truncate", e))?;
        }
        let Some(mut last) = segments.last_entry() else { return Ok(()) };
        let first = *last.key();
        let segment = last.get_mut();
        self.remove_pieces(&segment.tree, from)?;
        if let Some(records) = self.piece_before(&segment.tree, from)? {
            let keep: Vec<LogRecord> = records.iter().filter(|r| r.log_id.index < from).cloned().collect();
            if keep.len() < records.len() {
                self.write_pieces(&segment.tree, packed::pack(&keep))?;
            }
        }
        segment.entries = from - first;
        Ok(())
    }

    /// Drops segments that lie wholly at or below `floor`, which is on the disk already. `last` is the
    /// newest record that was written.
    pub fn drop_segments(&self, floor: u64, last: Option<u64>) -> Result<(), StorageError> {
        let mut segments = self.segments.write();
        loop {
            let mut firsts = segments.keys();
            let Some(&first) = firsts.next() else { return Ok(()) };
            let end = firsts.next().map(|next| next - 1).or(last).unwrap_or(first);
            if end > floor {
                return Ok(());
            }
            let segment = segments.remove(&first).expect("the key was just read");
            self.database.drop_tree(&segment.name)?;
        }
    }

    /// Reads `[from, until)` or a prefix of it, as far as it is in sled.
    pub fn read(&self, from: u64, until: u64, max_bytes: usize) -> Result<Vec<LogRecord>, StorageError> {
        let segments = self.segments.read();
        let mut out: Vec<LogRecord> = Vec::new();
        let mut room = max_bytes;
        let Some((&start, _)) = segments.range(..=from).next_back() else { return Ok(out) };
        for segment in segments.range(start..).map(|(_, segment)| segment) {
            let mut pieces = Pieces::from(self, &segment.tree, from)?;
            while let Some(records) = pieces.next()? {
                for record in records.into_iter().filter(|r| r.log_id.index >= from) {
                    let gap = record.log_id.index != from + out.len() as u64;
                    let full = !out.is_empty() && record.payload.len() > room;
                    if gap || full || record.log_id.index >= until {
                        return Ok(out);
                    }
                    room = room.saturating_sub(record.payload.len());
                    out.push(record);
                }
            }
        }
        Ok(out)
    }

    fn recover(&self) -> Result<Recovered, StorageError> {
        let mut found = Recovered {
            purged: self.read_meta("floor of the log", FLOOR)?,
            vote: self.read_meta("vote", VOTE)?,
            committed: self.read_meta("commit point of the log", COMMITTED)?,
            ..Recovered::default()
        };
        found.last = found.purged;
        let floor = found.purged.map(|p| p.index);
        let mut segments = self.segments.write();
        for name in self.database.tree_names(SEGMENT_PREFIX) {
            let first: u64 = name[SEGMENT_PREFIX.len()..]
                .parse()
                .map_err(|_| StorageError::damaged(format!("unknown tree {name} in the log")))?;
            let mut segment = Segment { tree: self.database.tree(&name)?, name, entries: 0, bytes: 0 };
            let mut end = None;
            let mut pieces = Pieces::from(self, &segment.tree, 0)?;
            while let Some(records) = pieces.next()? {
                for record in records {
                    segment.entries += 1;
                    segment.bytes += packed::frame_bytes(&record);
                    end = Some(record.log_id.index);
                    if floor.is_none_or(|f| record.log_id.index > f) {
                        accept(&mut found, &record)?;
                    }
                }
            }
            // Empty: made and not filled before a crash. Below the floor: not dropped before a crash.
            match end {
                Some(end) if floor.is_none_or(|f| end > f) => {
                    segments.insert(first, segment);
                }
                _ => self.database.drop_tree(&segment.name)?,
            }
        }
        drop(segments);
        if found.committed.map(|c| c.index) > found.last.map(|l| l.index) {
            let committed = found.committed.unwrap_or_default().index;
            let last = found.last.map_or("nothing".to_owned(), |l| format!("entry {}", l.index));
            let what = format!("the log ends with {last}, but had held committed entry {committed}");
            return Err(StorageError::damaged(what));
        }
        Ok(found)
    }

    fn write_pieces(&self, tree: &sled::Tree, sets: Vec<Vec<Piece>>) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        let mut operations = 0;
        for set in sets {
            if operations + set.len() > BATCH_OPERATIONS {
                let full = std::mem::take(&mut batch);
                tree.apply_batch(full).map_err(|e| self.database.error("append", e))?;
                operations = 0;
            }
            operations += set.len();
            for piece in set {
                batch.insert(&piece.key, piece.value);
            }
        }
        tree.apply_batch(batch).map_err(|e| self.database.error("append", e))
    }

    /// Removes pieces that begin at `from` or later, from the end.
    fn remove_pieces(&self, tree: &sled::Tree, from: u64) -> Result<(), StorageError> {
        loop {
            let mut batch = sled::Batch::default();
            let mut operations = 0;
            for key in tree.range(packed::key(from, 0)..).keys().rev().take(BATCH_OPERATIONS) {
                batch.remove(key.map_err(|e| self.database.error("truncate", e))?);
                operations += 1;
            }
            tree.apply_batch(batch).map_err(|e| self.database.error("truncate", e))?;
            if operations < BATCH_OPERATIONS {
                return Ok(());
            }
        }
    }

    /// The records of the last piece that begins before `from`.
    fn piece_before(&self, tree: &sled::Tree, from: u64) -> Result<Option<Vec<LogRecord>>, StorageError> {
        match from.checked_sub(1) {
            Some(before) => Pieces::from(self, tree, before)?.next(),
            None => Ok(None),
        }
    }

    fn put_meta(&self, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        self.meta.insert(key, value).map_err(|e| self.database.error("write", e))?;
        Ok(())
    }

    fn read_meta<T: bincode::Decode<()>>(&self, what: &str, key: &[u8]) -> Result<Option<T>, StorageError> {
        let bytes = self.meta.get(key).map_err(|e| self.database.error("read", e))?;
        bytes.map(|bytes| codec::decode(what, FORMAT, &bytes)).transpose()
    }
}

/// Takes one more record while the log is verified.
fn accept(found: &mut Recovered, record: &LogRecord) -> Result<(), StorageError> {
    let index = record.log_id.index;
    match found.last {
        Some(last) if index != last.index + 1 => {
            let what = format!("log entry {} is missing, the next one is {index}", last.index + 1);
            return Err(StorageError::damaged(what));
        }
        Some(last) if record.log_id.term < last.term => {
            let what = format!("log entry {index} has an older term than the one before it");
            return Err(StorageError::damaged(what));
        }
        None if index > 1 => {
            let what = format!("the log begins with entry {index}, the ones before are missing");
            return Err(StorageError::damaged(what));
        }
        _ => {}
    }
    found.last = Some(record.log_id);
    found.sizes.push(size_of(record));
    Ok(())
}

/// The size of a record as the view counts it.
pub(crate) fn size_of(record: &LogRecord) -> u32 {
    u32::try_from(packed::frame_bytes(record)).expect("payloads are capped below 4 GiB")
}

/// Walks the pieces of a segment upwards.
struct Pieces<'a> {
    disk: &'a LogDisk,
    iter: std::iter::Peekable<sled::Iter>,
}

impl<'a> Pieces<'a> {
    /// Begins with the piece that holds `index`, or the first one after it.
    fn from(disk: &'a LogDisk, tree: &sled::Tree, index: u64) -> Result<Self, StorageError> {
        let start = match tree.range(..=packed::key(index, u16::MAX)).next_back() {
            Some(found) => packed::parse_key(&found.map_err(|e| disk.database.error("read", e))?.0)?.0,
            None => 0,
        };
        Ok(Self { disk, iter: tree.range(packed::key(start, 0)..).peekable() })
    }

    /// The records of the next piece, all its parts joined.
    fn next(&mut self) -> Result<Option<Vec<LogRecord>>, StorageError> {
        let mut parts: Vec<sled::IVec> = Vec::new();
        let mut first = None;
        loop {
            let same = match self.iter.peek() {
                Some(Ok((key, _))) => {
                    let (index, part) = packed::parse_key(key)?;
                    let follows = usize::from(part) == parts.len();
                    if *first.get_or_insert(index) == index && !follows {
                        let what = format!("log entry {index} is damaged (part {} is missing)", parts.len());
                        return Err(StorageError::damaged(what));
                    }
                    first == Some(index)
                }
                Some(Err(_)) => true,
                None => false,
            };
            if !same {
                break;
            }
            let (_, value) = self
                .iter
                .next()
                .expect("it was just peeked at")
                .map_err(|e| self.disk.database.error("read", e))?;
            parts.push(value);
        }
        match first {
            Some(first) if !parts.is_empty() => packed::unpack(first, packed::join(&parts)?).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(range: std::ops::RangeInclusive<u64>, size: usize) -> Vec<LogRecord> {
        range
            .map(|index| LogRecord {
                log_id: LogId { term: 1, node: 1, index },
                payload: vec![index as u8; size].into(),
            })
            .collect()
    }

    fn reopened(dir: &Path) -> Result<Recovered, StorageError> {
        LogDisk::open(dir).map(|(_, recovered)| recovered)
    }

    fn filled(dir: &Path) -> LogDisk {
        let (disk, _) = LogDisk::open(dir).expect("new");
        for first in [1, 11, 21] {
            disk.append(&records(first..=first + 9, 100)).expect("append");
        }
        disk
    }

    #[test]
    fn a_missing_piece_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = filled(dir.path());
        disk.segments.read()[&1].tree.remove(packed::key(11, 0)).expect("remove");
        disk.database.sync().expect("sync");
        drop(disk);
        let error = reopened(dir.path()).err().expect("a gap");
        assert!(error.to_string().contains("log entry 11 is missing"), "{error}");
    }

    #[test]
    fn a_changed_piece_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = filled(dir.path());
        let tree = disk.segments.read()[&1].tree.clone();
        let mut value = tree.get(packed::key(11, 0)).expect("get").expect("there").to_vec();
        *value.last_mut().expect("not empty") ^= 1;
        tree.insert(packed::key(11, 0), value).expect("insert");
        disk.database.sync().expect("sync");
        drop((disk, tree));
        let error = reopened(dir.path()).err().expect("a wrong checksum");
        assert!(error.to_string().contains("log entry 20 is damaged"), "{error}");
    }

    #[test]
    fn a_missing_part_of_a_large_record_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (disk, _) = LogDisk::open(dir.path()).expect("new");
        disk.append(&records(1..=1, 400_000)).expect("append");
        disk.segments.read()[&1].tree.remove(packed::key(1, 3)).expect("remove");
        disk.database.sync().expect("sync");
        drop(disk);
        let error = reopened(dir.path()).err().expect("a missing part");
        assert!(error.to_string().contains("log entry 1 is damaged"), "{error}");
    }

    #[test]
    fn a_lost_tail_with_committed_entries_is_noticed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = filled(dir.path());
        disk.write_committed(LogId { term: 1, node: 1, index: 25 }).expect("write");
        disk.segments.read()[&1].tree.remove(packed::key(21, 0)).expect("remove");
        disk.database.sync().expect("sync");
        drop(disk);
        let error = reopened(dir.path()).err().expect("a lost tail");
        assert!(error.to_string().contains("ends with entry 20"), "{error}");
    }

    #[test]
    fn a_cut_tail_does_not_come_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = filled(dir.path());
        disk.truncate_from(15).expect("truncate");
        disk.append(&records(15..=15, 7)).expect("append");
        disk.database.sync().expect("sync");
        drop(disk);
        let (disk, found) = LogDisk::open(dir.path()).expect("whole");
        assert_eq!(found.last.map(|l| l.index), Some(15));
        let read = disk.read(14, 99, 1 << 20).expect("read");
        assert_eq!(read.iter().map(|r| r.payload.len()).collect::<Vec<_>>(), [100, 7]);
    }

    #[test]
    fn a_damaged_file_is_reported_and_does_not_panic() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = filled(dir.path());
        disk.database.sync().expect("sync");
        drop(disk);
        let path = dir.path().join("db");
        let good = std::fs::read(&path).expect("read");
        let at = good.windows(50).rposition(|w| w == [15u8; 50]).expect("the payload of entry 15");
        let mut bad = good;
        bad[at] ^= 0x10;
        std::fs::write(&path, bad).expect("write");
        // sled may panic, refuse, or lose its tail; each must end as damage or as a shorter log, and a
        // shorter log never with something wrong in it.
        match LogDisk::open(dir.path()) {
            Err(error) => assert!(matches!(error, StorageError::Damaged { .. }), "{error}"),
            Ok((disk, found)) => {
                let last = found.last.map_or(0, |l| l.index);
                assert_eq!(disk.read(1, 99, 1 << 20).expect("read"), records(1..=last, 100));
            }
        }
    }
}
