//! What was applied and is not on the disk yet: rows to read, batches to write.
//!
//! Entries go into an open batch, coalesced by key; a batch is made of whole entries and is written to
//! the tree as one. Readers see the newest row of every key that is still in a batch.

use std::collections::{BTreeSet, HashMap, VecDeque, hash_map};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::row::Row;
use crate::snapshot::WindowMark;
use crate::state::Applied;
use crate::txn::CheckpointMark;
use crate::window::Remembered;

/// A batch takes no more entries past so many bytes.
const BATCH_BYTES: usize = 1024 * 1024;
/// Or so many rows.
const BATCH_ROWS: usize = 4_000;

/// What a key held before a change.
#[derive(Clone)]
pub(crate) enum Before {
    /// Nothing.
    Absent,
    /// This.
    Row(Row),
    /// Something that is too large to have been read for this.
    Unread,
}

/// One change of one row; a row that is `None` is removed.
#[derive(Clone)]
pub(crate) struct Change {
    pub key: Bytes,
    pub row: Option<Row>,
    pub before: Before,
}

/// A row of a batch: what it becomes, and what it was before the batch.
pub(crate) struct Changed {
    pub row: Option<Row>,
    pub before: Before,
}

/// What a batch leaves behind: the state's own record after its last entry.
#[derive(Clone, Default)]
pub(crate) struct BatchEnd {
    pub applied: Applied,
    pub window_mark: WindowMark,
    pub window_hash: [u8; 32],
    pub window_next: u64,
}

/// Whole entries, coalesced.
#[derive(Default)]
pub(crate) struct Batch {
    number: u64,
    pub rows: HashMap<Bytes, Changed, RandomState>,
    pub remembered: Vec<(u64, Remembered)>,
    pub end: BatchEnd,
    pub checkpoint: Option<CheckpointMark>,
    /// The digest after this batch, once it was written.
    pub digest: OnceLock<[u8; 32]>,
    pub bytes: usize,
    pub entries: usize,
}

impl Batch {
    /// Index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.end.applied.log_id.map_or(0, |id| id.index)
    }
}

struct Slot {
    row: Option<Row>,
    /// The batch that changed the row last.
    batch: u64,
}

/// The keys of the rows that are here, each once.
///
/// A place in their order costs a dozen comparisons of keys most of which begin alike, and few of them are walked over
/// before they leave: they are sorted when somebody walks.
#[derive(Default)]
struct Order {
    sorted: BTreeSet<Bytes>,
    unsorted: Vec<Bytes>,
}

/// Rows and batches between apply and disk.
#[derive(Default)]
pub(crate) struct Overlay {
    rows: HashMap<Bytes, Slot, RandomState>,
    order: RwLock<Order>,
    open: Batch,
    closed: VecDeque<Arc<Batch>>,
}

/// One applied entry, ready to be added.
pub(crate) struct Entry {
    pub changes: Vec<Change>,
    pub remembered: Option<(u64, Remembered)>,
    pub end: BatchEnd,
    pub checkpoint: Option<CheckpointMark>,
}

impl Overlay {
    /// The newest row of a key, if it is here: `Some(None)` was removed.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Row>> {
        self.rows.get(key).map(|slot| slot.row.as_ref())
    }

    /// Keys and rows from `from` up to and without `end`, `limit` of them at most.
    pub fn range(&self, from: &[u8], end: Option<&[u8]>, limit: usize) -> Vec<(Bytes, Option<Row>)> {
        let mut order = self.order.read();
        if !order.unsorted.is_empty() {
            drop(order);
            let mut sorting = self.order.write();
            let Order { sorted, unsorted } = &mut *sorting;
            sorted.extend(unsorted.drain(..));
            order = RwLockWriteGuard::downgrade(sorting);
        }
        let empty = end.is_some_and(|end| end <= from);
        let end = if empty { Bound::Excluded(from) } else { end.map_or(Bound::Unbounded, Bound::Excluded) };
        let keys = order.sorted.range::<[u8], _>((Bound::Included(from), end));
        keys.filter_map(|key| Some((key.clone(), self.rows.get(key)?.row.clone()))).take(limit).collect()
    }

    /// Adds an applied entry. Gives the bytes that it added.
    pub fn add(&mut self, entry: Entry) -> usize {
        let Entry { changes, remembered, end, checkpoint } = entry;
        if self.open.rows.len() > BATCH_ROWS || self.open.bytes > BATCH_BYTES {
            self.close();
        }
        let before = self.open.bytes;
        for Change { key, row, before } in changes {
            self.open.bytes += Row::weight(&key, row.as_ref());
            match self.open.rows.entry(key.clone()) {
                hash_map::Entry::Occupied(mut slot) => {
                    // What the key held before the first change is what the batch finds on the disk.
                    let old = std::mem::replace(&mut slot.get_mut().row, row.clone());
                    self.open.bytes -= Row::weight(&key, old.as_ref());
                }
                hash_map::Entry::Vacant(slot) => {
                    if let Before::Row(old) = &before {
                        self.open.bytes += Row::weight(&[], Some(old));
                    }
                    slot.insert(Changed { row: row.clone(), before });
                }
            }
            let slot = Slot { row, batch: self.open.number };
            if self.rows.insert(key.clone(), slot).is_none() {
                self.order.get_mut().unsorted.push(key);
            }
        }
        if let Some((number, request)) = remembered {
            self.open.bytes += request.encoded_bytes() + 64;
            self.open.remembered.push((number, request));
        }
        self.open.entries += 1;
        self.open.end = end;
        let added = self.open.bytes.saturating_sub(before);
        if checkpoint.is_some() {
            self.open.checkpoint = checkpoint;
            self.close();
        }
        added
    }

    /// Closes the open batch, so that its last entry is a boundary.
    pub fn close(&mut self) {
        if self.open.entries > 0 {
            let next = Batch { number: self.open.number + 1, ..Batch::default() };
            self.closed.push_back(Arc::new(std::mem::replace(&mut self.open, next)));
        }
    }

    /// The newest closed batch.
    pub fn newest_closed(&self) -> Option<Arc<Batch>> {
        self.closed.back().cloned()
    }

    /// Index of the last entry of the oldest closed batch.
    pub fn oldest_closed(&self) -> Option<u64> {
        self.closed.front().map(|batch| batch.last_index())
    }

    /// The oldest closed batches that end at or before entry `until`: up to `bytes`, but at least one if
    /// there is one.
    pub fn group(&self, bytes: usize, until: u64) -> Vec<Arc<Batch>> {
        let mut room = bytes;
        let mut group: Vec<Arc<Batch>> = Vec::new();
        for batch in self.closed.iter().take_while(|batch| batch.last_index() <= until) {
            if !group.is_empty() && batch.bytes > room {
                break;
            }
            room = room.saturating_sub(batch.bytes);
            group.push(Arc::clone(batch));
        }
        group
    }

    /// Lets go of the oldest closed batches, which are in the tree now. Gives their bytes.
    pub fn retire(&mut self, group: &[Arc<Batch>]) -> usize {
        let mut bytes = 0;
        let order = self.order.get_mut();
        for batch in group {
            let oldest = self.closed.pop_front();
            debug_assert!(oldest.is_some_and(|oldest| Arc::ptr_eq(&oldest, batch)));
            bytes += batch.bytes;
            for key in batch.rows.keys() {
                if self.rows.get(key).is_some_and(|slot| slot.batch == batch.number) {
                    self.rows.remove(key);
                    order.sorted.remove(key);
                }
            }
        }
        order.unsorted.retain(|key| self.rows.contains_key(key));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogId, Version};
    use crate::row::Folder;

    fn entry(index: u64, keys: &[&'static str]) -> Entry {
        let version = Version { generation: 1, index };
        let row = Row::Folder(Folder { version, children: index });
        let log_id = Some(LogId { term: 1, node: 1, index });
        Entry {
            changes: keys
                .iter()
                .map(|key| Change {
                    key: Bytes::from_static(key.as_bytes()),
                    row: Some(row.clone()),
                    before: Before::Absent,
                })
                .collect(),
            remembered: None,
            end: BatchEnd { applied: Applied { log_id, ..Applied::default() }, ..BatchEnd::default() },
            checkpoint: None,
        }
    }

    #[test]
    fn a_row_stays_until_its_last_change_is_written() {
        let mut overlay = Overlay::default();
        overlay.add(entry(1, &["a", "b"]));
        overlay.close();
        let first = overlay.group(1, 9);
        overlay.add(entry(2, &["b"]));
        overlay.retire(&first);
        assert!(overlay.get(b"a").is_none());
        assert!(overlay.get(b"b").is_some());
        overlay.close();
        overlay.retire(&overlay.group(1, 9));
        assert!(overlay.get(b"b").is_none());
    }

    #[test]
    fn a_walk_sees_each_row_once_whenever_it_came_and_until_it_leaves() {
        let mut overlay = Overlay::default();
        let walk = |overlay: &Overlay, from: &str, end: Option<&str>, limit| {
            let rows = overlay.range(from.as_bytes(), end.map(str::as_bytes), limit);
            rows.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect::<String>()
        };
        overlay.add(entry(1, &["d", "b"]));
        overlay.close();
        let first = overlay.group(1, 9);
        assert_eq!(walk(&overlay, "", None, 9), "bd");
        overlay.add(entry(2, &["c", "b", "a"]));
        assert_eq!(walk(&overlay, "", None, 9), "abcd");
        assert_eq!(walk(&overlay, "b", Some("d"), 9), "bc");
        assert_eq!(
            (walk(&overlay, "", None, 2), walk(&overlay, "c", Some("b"), 9)),
            ("ab".into(), "".into())
        );
        overlay.add(entry(3, &["e"]));
        overlay.retire(&first);
        assert_eq!(walk(&overlay, "", None, 9), "abce");
        overlay.add(entry(4, &["f", "d"]));
        overlay.close();
        let second = overlay.group(usize::MAX, 9);
        overlay.add(entry(5, &["d"]));
        overlay.retire(&second);
        assert_eq!(walk(&overlay, "", None, 9), "d");
    }

    #[test]
    fn a_checkpoint_ends_its_batch() {
        let mut overlay = Overlay::default();
        overlay.add(entry(1, &["a"]));
        overlay.add(Entry { checkpoint: Some(CheckpointMark::default()), ..entry(2, &["a"]) });
        overlay.add(entry(3, &["a"]));
        overlay.close();
        let batches = overlay.group(usize::MAX, 9);
        assert_eq!(batches.iter().map(|b| b.last_index()).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((batches[0].rows.len(), batches[0].entries), (1, 2));
        assert_eq!(overlay.group(usize::MAX, 2).len(), 1, "entry 3 may not be written yet");
    }
}
