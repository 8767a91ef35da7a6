//! Rows of the tree that were read lately, so that what every request reads costs no search in it.
//!
//! Only what the tree holds comes here; what is applied and not written yet is in the overlay, which readers
//! ask first. Nothing stale can stay: whoever missed holds the shard's epoch, and a row is taken only as long
//! as no batch was written since, for until then every change of the row is still in the overlay.

use std::collections::HashMap;

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::row::Row;

const SHARDS: usize = 16;
/// Bytes of one generation of one shard: 16 MiB in all.
const GENERATION_BYTES: usize = 512 * 1024;
/// Rows past this size are not worth their room.
const MAX_ROW_BYTES: usize = 16 * 1024;

type Rows = HashMap<Bytes, Option<Row>, RandomState>;

/// The cache. Rows that are not there are remembered as well.
#[derive(Default)]
pub(crate) struct RowCache([Mutex<Shard>; SHARDS]);

/// Two generations: what was not read during a whole one is dropped.
#[derive(Default)]
struct Shard {
    epoch: u64,
    young: Rows,
    old: Rows,
    /// Of the young generation.
    bytes: usize,
}

/// What was known when a row was looked for and not found here.
#[derive(Clone, Copy)]
pub(crate) struct Ticket(u64);

impl RowCache {
    /// The row of a key, or a ticket with which it may be brought here. To be called under the view's lock.
    pub fn get(&self, key: &[u8]) -> Result<Option<Row>, Ticket> {
        let mut shard = self.shard(key).lock();
        if let Some(row) = shard.young.get(key) {
            return Ok(row.clone());
        }
        match shard.old.remove_entry(key) {
            Some((key, row)) => {
                shard.add(key, row.clone());
                Ok(row)
            }
            None => Err(Ticket(shard.epoch)),
        }
    }

    /// Keeps what the tree had, unless a batch was written since the ticket.
    pub fn put(&self, key: &[u8], ticket: Ticket, row: Option<&Row>) {
        if Row::weight(key, row) > MAX_ROW_BYTES {
            return;
        }
        let mut shard = self.shard(key).lock();
        if shard.epoch == ticket.0 {
            shard.add(Bytes::copy_from_slice(key), row.cloned());
        }
    }

    /// Takes note of rows that were written: what they are now, where they are likely to be asked for again.
    /// To be called under the view's lock, together with their leaving the overlay.
    pub fn written<'a>(&self, rows: impl Iterator<Item = (&'a Bytes, Option<&'a Row>)>) {
        for shard in &self.0 {
            shard.lock().epoch += 1;
        }
        for (key, row) in rows {
            let mut shard = self.shard(key).lock();
            if let Some(row) = shard.young.remove(key) {
                shard.bytes = shard.bytes.saturating_sub(Row::weight(key, row.as_ref()));
            }
            shard.old.remove(key);
            if let Some(row) = row.filter(|row| Row::weight(key, Some(row)) <= MAX_ROW_BYTES) {
                shard.add(key.clone(), Some(row.detached()));
            }
        }
    }

    /// Forgets everything: another tree is the state.
    pub fn clear(&self) {
        for shard in &self.0 {
            let mut shard = shard.lock();
            *shard = Shard { epoch: shard.epoch + 1, ..Shard::default() };
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        &self.0[crc32fast::hash(key) as usize % SHARDS]
    }
}

impl Shard {
    fn add(&mut self, key: Bytes, row: Option<Row>) {
        self.bytes += Row::weight(&key, row.as_ref());
        self.young.insert(key, row);
        if self.bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;
    use crate::row::Folder;

    fn row(index: u64) -> Row {
        Row::Folder(Folder { version: Version { generation: 1, index }, children: index })
    }

    fn miss(cache: &RowCache, key: &[u8]) -> Ticket {
        cache.get(key).expect_err("not there")
    }

    #[test]
    fn what_was_read_is_found_again_until_it_is_written() {
        let cache = RowCache::default();
        cache.put(b"a", miss(&cache, b"a"), Some(&row(1)));
        cache.put(b"b", miss(&cache, b"b"), None);
        assert!(cache.get(b"a").is_ok_and(|found| found == Some(row(1))));
        assert!(cache.get(b"b").is_ok_and(|found| found.is_none()));
        cache.written([(&Bytes::from_static(b"a"), None)].into_iter());
        assert!(cache.get(b"a").is_err());
        assert!(cache.get(b"b").is_ok());
        cache.written([(&Bytes::from_static(b"b"), Some(&row(3)))].into_iter());
        assert!(cache.get(b"b").is_ok_and(|found| found == Some(row(3))));
        cache.clear();
        assert!(cache.get(b"b").is_err());
    }

    #[test]
    fn a_row_that_was_read_before_a_write_does_not_come_in_after_it() {
        let cache = RowCache::default();
        let ticket = miss(&cache, b"a");
        cache.written([(&Bytes::from_static(b"a"), None)].into_iter());
        cache.put(b"a", ticket, Some(&row(1)));
        assert!(cache.get(b"a").is_err());
        let ticket = miss(&cache, b"a");
        cache.clear();
        cache.put(b"a", ticket, Some(&row(1)));
        assert!(cache.get(b"a").is_err());
    }

    #[test]
    fn memory_is_bounded_and_what_is_read_stays() {
        let cache = RowCache::default();
        cache.put(b"hot", miss(&cache, b"hot"), Some(&row(1)));
        for n in 0..200_000_u32 {
            let key = n.to_be_bytes();
            cache.put(&key, miss(&cache, &key), Some(&row(2)));
            assert!(cache.get(b"hot").is_ok(), "after {n}");
        }
        let count = |shard: &Shard| shard.young.len() + shard.old.len();
        let rows: usize = cache.0.iter().map(|shard| count(&shard.lock())).sum();
        assert!(rows * 132 <= SHARDS * (2 * GENERATION_BYTES + 132), "{rows} rows");
    }
}
