//! The log in memory: its bounds, and its newest records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StorageError;
use crate::ids::{LogId, Vote};
use crate::log::{LogBounds, LogRecord};
use crate::log_disk::{Recovered, size_of};
use crate::log_frame::Known;

/// Bytes of newest records kept in memory, those beyond that are not on the disk yet not counted.
const TAIL_BYTES: u64 = 4 * 1024 * 1024;

/// The log as callers see it: what was queued has happened.
pub(crate) struct LogView {
    pub bounds: LogBounds,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// Bytes of each record between the bounds.
    sizes: VecDeque<u32>,
    size_bytes: u64,
    /// The newest records, all that are not on the disk among them.
    tail: VecDeque<LogRecord>,
    tail_bytes: u64,
    /// Highest index up to which the log is on the disk.
    durable: Option<u64>,
    /// The same for others, who must not keep the log open; 0 if there is none.
    durable_cell: Arc<AtomicU64>,
    /// Last index kept by each truncation that was queued and is not on the disk yet. An append queued
    /// before one of them makes no more durable than it keeps.
    truncations: VecDeque<Option<u64>>,
}

impl LogView {
    pub fn new(found: Recovered) -> Self {
        let Known { floor, last, vote, committed } = found.known;
        Self {
            bounds: LogBounds { purged: floor, last },
            vote,
            committed,
            size_bytes: found.sizes.iter().map(|&s| u64::from(s)).sum(),
            sizes: found.sizes.into(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            durable: last.map(|l| l.index),
            durable_cell: Arc::new(AtomicU64::new(last.map_or(0, |l| l.index))),
            truncations: VecDeque::new(),
        }
    }

    /// A cell that follows the highest index up to which the log is on the disk.
    pub fn durable_cell(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.durable_cell)
    }

    fn set_durable(&mut self, durable: Option<u64>) {
        self.durable = durable;
        self.durable_cell.store(durable.unwrap_or(0), Ordering::Release);
    }

    /// Bytes of the records between the bounds.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Adds records that must follow the newest one.
    ///
    /// # Errors
    /// What is wrong with them; nothing was added then.
    pub fn append(&mut self, records: &[LogRecord]) -> Result<(), String> {
        let mut next = self.bounds.last.map(|l| l.index + 1);
        for record in records {
            let index = record.log_id.index;
            if next.map_or(index > 1, |next| next != index) {
                return Err(format!("entry {index} does not follow the log"));
            }
            next = Some(index + 1);
        }
        for record in records {
            self.bounds.last = Some(record.log_id);
            let size = size_of(record);
            self.sizes.push_back(size);
            self.size_bytes += u64::from(size);
            self.tail_bytes += u64::from(size);
            self.tail.push_back(record.clone());
        }
        self.evict();
        Ok(())
    }

    /// Takes note that records up to `last`, which were queued before any truncation still listed, are
    /// on the disk.
    pub fn made_durable(&mut self, last: u64) {
        let kept = self.truncations.iter().copied().min().map_or(Some(last), |kept| kept.min(Some(last)));
        self.set_durable(self.durable.max(kept));
        self.evict();
    }

    /// Removes every record after `after`. `last` is the entry at `after`.
    pub fn truncate_after(&mut self, after: Option<u64>, last: Option<LogId>) {
        let floor = self.bounds.purged.map(|p| p.index);
        let after = after.max(floor);
        while self.bounds.last.map(|l| l.index) > after {
            let Some(size) = self.sizes.pop_back() else { break };
            self.size_bytes -= u64::from(size);
            if self.tail.pop_back().is_some() {
                self.tail_bytes -= u64::from(size);
            }
            let index = self.bounds.last.map_or(0, |l| l.index);
            self.bounds.last = index.checked_sub(1).map(|index| LogId { index, ..LogId::default() });
        }
        self.bounds.last = if after.is_none() || after == floor { self.bounds.purged } else { last };
        self.set_durable(self.durable.min(after));
        self.truncations.push_back(after);
        if self.committed.map(|c| c.index) > after {
            self.committed = self.bounds.last;
        }
    }

    /// The oldest truncation is on the disk.
    pub fn truncated(&mut self) {
        self.truncations.pop_front();
    }

    /// Removes every record up to `up_to`; false if that was purged before.
    pub fn purge(&mut self, up_to: LogId) -> bool {
        let floor = self.bounds.purged.map(|p| p.index);
        if floor >= Some(up_to.index) {
            return false;
        }
        let last = self.bounds.last.map(|l| l.index);
        let first = last.map_or(0, |last| last + 1) - self.sizes.len() as u64;
        for _ in first..=up_to.index {
            let Some(size) = self.sizes.pop_front() else { break };
            self.size_bytes -= u64::from(size);
        }
        while self.tail.front().is_some_and(|r| r.log_id.index <= up_to.index) {
            let record = self.tail.pop_front().expect("there is a front");
            self.tail_bytes -= u64::from(size_of(&record));
        }
        self.bounds.purged = Some(up_to);
        if last <= Some(up_to.index) {
            self.bounds.last = Some(up_to);
            self.set_durable(self.durable.max(Some(up_to.index)));
        }
        true
    }

    /// Index of the first record that is in memory; the one after the newest if none is.
    pub fn tail_first(&self) -> u64 {
        match self.tail.front() {
            Some(record) => record.log_id.index,
            None => self.bounds.last.map_or(0, |l| l.index + 1),
        }
    }

    /// The record at `index`, if it is in memory.
    pub fn in_memory(&self, index: u64) -> Option<&LogRecord> {
        let offset = index.checked_sub(self.tail.front()?.log_id.index)?;
        self.tail.get(usize::try_from(offset).ok()?)
    }

    /// Copies records from memory, from `from` on, while they fit into `room`; the first always does if
    /// `at_least_one`.
    pub fn copy(&self, from: u64, until: u64, mut room: usize, at_least_one: bool) -> Vec<LogRecord> {
        let mut out = Vec::new();
        for index in from..until {
            let Some(record) = self.in_memory(index) else { break };
            let first = out.is_empty() && at_least_one;
            if record.payload.len() > room && !first {
                break;
            }
            room = room.saturating_sub(record.payload.len());
            out.push(record.clone());
        }
        out
    }

    fn evict(&mut self) {
        while self.tail_bytes > TAIL_BYTES
            && self.tail.front().is_some_and(|r| Some(r.log_id.index) <= self.durable)
        {
            let record = self.tail.pop_front().expect("there is a front");
            self.tail_bytes -= u64::from(size_of(&record));
        }
    }
}

/// An append that does not follow the log: a mistake of the caller, which changed nothing.
pub(crate) fn misplaced(why: String) -> StorageError {
    StorageError::io("append to the log", std::io::Error::new(std::io::ErrorKind::InvalidInput, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64, size: usize) -> LogRecord {
        let log_id = LogId { term: 1, node: 1, index };
        LogRecord { log_id, payload: vec![0; size].into() }
    }

    fn view(last: u64, size: usize) -> LogView {
        let mut view = LogView::new(Recovered::default());
        let records: Vec<_> = (1..=last).map(|i| record(i, size)).collect();
        view.append(&records).expect("follows");
        view
    }

    #[test]
    fn records_that_are_not_on_the_disk_stay_in_memory() {
        let mut view = view(40, 1 << 20);
        assert_eq!(view.tail_first(), 1);
        view.made_durable(30);
        assert!(view.tail_first() > 20 && view.tail_first() <= 31, "{}", view.tail_first());
    }

    #[test]
    fn a_late_sync_makes_nothing_durable_that_was_cut() {
        let mut view = view(10, 1);
        view.truncate_after(Some(5), Some(record(5, 1).log_id));
        view.append(&[record(6, 1)]).expect("follows");
        view.made_durable(10);
        assert_eq!(view.durable, Some(5));
        view.truncated();
        view.made_durable(6);
        assert_eq!(view.durable, Some(6));
    }

    #[test]
    fn a_gap_is_refused_whole() {
        let mut view = view(3, 1);
        assert!(view.append(&[record(4, 1), record(6, 1)]).is_err());
        assert_eq!(view.bounds.last.map(|l| l.index), Some(3));
    }

    #[test]
    fn the_size_is_that_of_what_is_left() {
        let mut view = view(10, 100);
        let each = view.size_bytes() / 10;
        view.purge(record(4, 1).log_id);
        view.truncate_after(Some(8), Some(record(8, 1).log_id));
        assert_eq!(view.size_bytes(), 4 * each);
        assert!(!view.purge(record(3, 1).log_id));
        view.purge(record(50, 1).log_id);
        assert_eq!((view.size_bytes(), view.bounds.last.map(|l| l.index)), (0, Some(50)));
        assert_eq!(view.durable, Some(50));
    }
}
