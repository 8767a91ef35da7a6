//! What the log has promised, kept outside of the log: that is how a lost tail is noticed.
//!
//! A damaged end of the log looks like a write that a crash tore, which is cut off whatever was acknowledged. So after every synced group the newest entry, and after every synced vote the vote, are
//! written into the file `promise` beside it. That write is not synced: a second `fdatasync` would
//! cost as much as the first. It need not be. The kernel keeps it through the death of the process, and after
//! a power cut an older promise only asks for less than the log holds. A promise never asks for more, for it
//! is given after the sync and taken back, durably, before a truncation.
//!
//! The file has two slots in sectors of their own, written in turn: `length[2]`, then format, sequence
//! number, entry, vote, CRC32. The slot with the higher number counts.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::codec;
use crate::datadir;
use crate::doubt;
use crate::error::StorageError;
use crate::ids::{LogId, Vote};

const FORMAT: u8 = 1;
const SLOT_BYTES: usize = 512;
const SLOTS: usize = 2;

/// What was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Promised {
    /// The newest entry on the disk, or the last one purged.
    pub last: Option<LogId>,
    /// The newest vote on the disk.
    pub vote: Option<Vote>,
}

/// The open file.
pub(crate) struct Promise {
    file: File,
    path: PathBuf,
    sequence: u64,
    promised: Promised,
}

type Slot = (u64, Option<LogId>, Option<Vote>);

impl Promise {
    /// Makes the file of a directory that holds nothing yet.
    pub fn create(path: &Path) -> Result<(), StorageError> {
        let mut bytes = vec![0; SLOT_BYTES * SLOTS];
        fill(&mut bytes[..SLOT_BYTES], 0, &Promised::default());
        datadir::write_file_durably(path, &bytes, 0o600)
    }

    /// Opens the file of a directory that is in use.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it is missing or neither slot can be read.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let limit = (SLOT_BYTES * SLOTS) as u64;
        let Some(bytes) = datadir::read_bounded(path, limit)? else {
            let what = format!("{} is missing: what the log has acknowledged is not known", path.display());
            return Err(StorageError::damaged(what));
        };
        let newest = bytes.chunks(SLOT_BYTES).filter_map(read).max_by_key(|(sequence, ..)| *sequence);
        let Some((sequence, last, vote)) = newest else {
            let what =
                format!("{} cannot be read: what the log has acknowledged is not known", path.display());
            return Err(StorageError::damaged(what));
        };
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(|e| StorageError::io(format!("open {}", path.display()), e))?;
        Ok(Self { file, path: path.to_owned(), sequence, promised: Promised { last, vote } })
    }

    /// What was promised last.
    pub fn promised(&self) -> Promised {
        self.promised
    }

    /// Entries up to `last` are on the disk.
    pub fn give_entries(&mut self, last: LogId) -> Result<(), StorageError> {
        self.write(Promised { last: Some(last), ..self.promised })
    }

    /// The vote is on the disk.
    pub fn give_vote(&mut self, vote: Vote) -> Result<(), StorageError> {
        self.write(Promised { vote: Some(vote), ..self.promised })
    }

    /// Entries after `last` will be removed: both slots, on the disk when this returns.
    pub fn take_back(&mut self, last: Option<LogId>) -> Result<(), StorageError> {
        for _ in 0..SLOTS {
            self.write(Promised { last, ..self.promised })?;
        }
        self.file.sync_data().map_err(|e| {
            doubt::raise(self.path.parent().unwrap_or(&self.path));
            StorageError::io(format!("sync {}", self.path.display()), e)
        })
    }

    fn write(&mut self, promised: Promised) -> Result<(), StorageError> {
        self.sequence += 1;
        self.promised = promised;
        let mut slot = [0; SLOT_BYTES];
        let length = fill(&mut slot, self.sequence, &promised);
        let at = self.sequence % SLOTS as u64 * SLOT_BYTES as u64;
        self.file
            .write_all_at(&slot[..length], at)
            .map_err(|e| StorageError::io(format!("write {}", self.path.display()), e))
    }
}

/// Gives the length of what it wrote; what lay behind may stay.
fn fill(slot: &mut [u8], sequence: u64, promised: &Promised) -> usize {
    let slot_of: Slot = (sequence, promised.last, promised.vote);
    let bytes = codec::encode(FORMAT, &slot_of);
    let length = u16::try_from(bytes.len()).expect("a slot is short");
    slot[..2].copy_from_slice(&length.to_be_bytes());
    slot[2..2 + bytes.len()].copy_from_slice(&bytes);
    2 + bytes.len()
}

fn read(slot: &[u8]) -> Option<Slot> {
    let (length, rest) = slot.split_first_chunk::<2>()?;
    let bytes = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    codec::decode("promise", FORMAT, bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId { term: 2, node: 1, index }
    }

    #[test]
    fn the_newest_slot_counts_and_a_torn_one_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("promise");
        Promise::create(&path).expect("new");
        let mut promise = Promise::open(&path).expect("open");
        assert_eq!(promise.promised(), Promised::default());
        let vote = Vote { term: 2, node: 1, committed: true };
        promise.give_vote(vote).expect("write");
        promise.give_entries(id(7)).expect("write");
        promise.give_entries(id(9)).expect("write");
        let newest = Promise::open(&path).expect("open");
        assert_eq!(newest.promised(), Promised { last: Some(id(9)), vote: Some(vote) });

        let good = std::fs::read(&path).expect("read");
        let slot = (newest.sequence % 2) as usize * SLOT_BYTES;
        let mut torn = good.clone();
        torn[slot + 20] ^= 1;
        std::fs::write(&path, torn).expect("write");
        assert_eq!(Promise::open(&path).expect("open").promised().last, Some(id(7)));
    }

    #[test]
    fn what_was_taken_back_is_in_neither_slot() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("promise");
        Promise::create(&path).expect("new");
        let mut promise = Promise::open(&path).expect("open");
        for index in 1..=9 {
            promise.give_entries(id(index)).expect("write");
        }
        promise.take_back(Some(id(3))).expect("write");
        let bytes = std::fs::read(&path).expect("read");
        for slot in bytes.chunks(SLOT_BYTES) {
            assert_eq!(read(slot).expect("whole").1, Some(id(3)));
        }
    }

    #[test]
    fn a_missing_or_unreadable_promise_is_damage() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("promise");
        assert!(matches!(Promise::open(&path), Err(StorageError::Damaged { .. })));
        std::fs::write(&path, [0; 5_000]).expect("write");
        assert!(matches!(Promise::open(&path), Err(StorageError::Damaged { .. })));
        std::fs::write(&path, [0; 100]).expect("write");
        assert!(matches!(Promise::open(&path), Err(StorageError::Damaged { .. })));
    }
}
