//! The Raft log in segments of its own: one writer thread, one write and one sync per group of appends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use crate::datadir::DataDir;
use crate::error::StorageError;
use crate::guard::abort_on_panic;
use crate::ids::{LogId, Vote};
use crate::log::{Done, LogBounds, LogRecord, RaftLog, SyncStats};
use crate::log_disk::Found;
use crate::log_frame::MAX_PAYLOAD_BYTES;
use crate::log_view::{LogView, misplaced};
use crate::log_writer::{self, Job, Shared};
use crate::promise::{Promise, Promised};

/// The Raft log in segments that are only appended to.
///
/// Appends that wait together are written at once and share one `fdatasync`. The newest 4 MiB stay in memory. Dropping it writes what is queued, then stops the writer thread.
pub struct SegmentLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    _dir: DataDir,
}

impl SegmentLog {
    /// Opens the log of a data directory and verifies every record of it.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if a record is missing or changed, with the index, or if the log ends before
    /// what it had acknowledged;
    /// [`StorageError::Full`] below the lower mark of free space (see [`Watermarks`](crate::Watermarks)).
    pub fn open(dir: &DataDir) -> Result<Self, StorageError> {
        let promise = Promise::open(&dir.promise())?;
        let found = Found::read(&dir.log())?;
        check_promise(&promise.promised(), &found).map_err(|e| e.found_in(&dir.log()))?;
        let view = LogView::new(found.recovered());
        let disk = found.begin()?;
        dir.disk().add_meter(disk.meter());
        let shared = Arc::new(Shared::new(disk, view, promise, Arc::clone(dir.disk())));
        let for_writer = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || abort_on_panic("log-writer", || log_writer::run(&for_writer)))
            .map_err(|e| StorageError::io("start the log writer", e))?;
        Ok(Self { shared, writer: Some(writer), _dir: dir.clone() })
    }

    /// A function that gives the highest index up to which the log is on the disk; 0 if there is none.
    /// For [`TreeState::set_durable_log`](crate::TreeState::set_durable_log); it does not keep the log open.
    pub fn durable(&self) -> Arc<dyn Fn() -> u64 + Send + Sync> {
        let cell = self.shared.view.read().durable_cell();
        Arc::new(move || cell.load(Ordering::Acquire))
    }

    /// Waits for room in the queue; gives `done` back unless the log is latched.
    fn admit(&self, done: Done) -> Option<Done> {
        match self.shared.latched() {
            Ok(()) => {
                self.shared.queue.wait_for_room();
                Some(done)
            }
            Err(error) => {
                done(Err(error));
                None
            }
        }
    }
}

impl RaftLog for SegmentLog {
    fn bounds(&self) -> LogBounds {
        self.shared.view.read().bounds
    }

    fn vote(&self) -> Option<Vote> {
        self.shared.view.read().vote
    }

    fn committed(&self) -> Option<LogId> {
        self.shared.view.read().committed
    }

    fn read(&self, from: u64, until: u64, max_bytes: usize) -> Result<Vec<LogRecord>, StorageError> {
        let view = self.shared.view.read();
        let LogBounds { purged, last } = view.bounds;
        let readable =
            |b: LogBounds| b.purged.is_none_or(|p| from > p.index) && b.last.is_some_and(|l| from <= l.index);
        if from >= until || !readable(LogBounds { purged, last }) {
            return Ok(Vec::new());
        }
        let in_memory = view.tail_first();
        if from >= in_memory {
            return Ok(view.copy(from, until, max_bytes, true));
        }
        let rest = view.copy(in_memory, until, max_bytes, false);
        drop(view);

        let mut records = self.shared.disk.read(from, until.min(in_memory), max_bytes)?;
        if records.is_empty() {
            // Purged or cut since we looked, or else lost.
            if readable(self.shared.view.read().bounds) {
                return Err(StorageError::damaged(format!("log entry {from} is missing")));
            }
            return Ok(records);
        }
        let mut room = max_bytes.saturating_sub(records.iter().map(|r| r.payload.len()).sum());
        if records.last().is_some_and(|r| r.log_id.index + 1 == in_memory) {
            for record in rest {
                if record.payload.len() > room {
                    break;
                }
                room -= record.payload.len();
                records.push(record);
            }
        }
        Ok(records)
    }

    fn append(&self, records: Vec<LogRecord>, done: Done) {
        if let Some(large) = records.iter().find(|r| r.payload.len() > MAX_PAYLOAD_BYTES) {
            let what = format!("log entry {} in bytes", large.log_id.index);
            let (size, limit) = (large.payload.len() as u64, MAX_PAYLOAD_BYTES as u64);
            return done(Err(StorageError::TooLarge { what, size, limit }));
        }
        let Some(done) = self.admit(done) else { return };
        // The lock is held until the job is queued: the order of the view is the order of the writer.
        let mut view = self.shared.view.write();
        match view.append(&records) {
            Ok(()) => self.shared.queue.push(Job::Append { records, done }),
            Err(why) => {
                drop(view);
                done(Err(misplaced(why)));
            }
        }
    }

    fn save_vote(&self, vote: Vote, done: Done) {
        let Some(done) = self.admit(done) else { return };
        let mut view = self.shared.view.write();
        view.vote = Some(vote);
        self.shared.queue.push(Job::Vote { vote, done });
    }

    fn save_committed(&self, committed: LogId) {
        let mut view = self.shared.view.write();
        if view.committed.is_none_or(|c| c.index < committed.index) {
            view.committed = Some(committed);
        }
    }

    fn truncate_after(&self, after: Option<u64>, done: Done) {
        let Some(done) = self.admit(done) else { return };
        let last = match self.log_id_at(after) {
            Ok(last) => last,
            Err(error) => return done(Err(error)),
        };
        let mut view = self.shared.view.write();
        let floor = view.bounds.purged.map(|p| p.index);
        if view.bounds.last.map(|l| l.index) <= after {
            drop(view);
            return done(Ok(()));
        }
        view.truncate_after(after, last);
        let from = after.max(floor).map_or(0, |kept| kept + 1);
        let last = view.bounds.last;
        self.shared.queue.push(Job::Truncate { from, last, done });
    }

    fn purge(&self, up_to: LogId, done: Done) {
        let Some(done) = self.admit(done) else { return };
        let mut view = self.shared.view.write();
        if view.purge(up_to) {
            self.shared.queue.push(Job::Purge { up_to, done });
        } else {
            drop(view);
            done(Ok(()));
        }
    }

    fn size_bytes(&self) -> u64 {
        self.shared.view.read().size_bytes()
    }

    fn sync_stats(&self) -> SyncStats {
        self.shared.disk.meter().stats()
    }

    fn latch(&self) -> Option<String> {
        match self.shared.latched() {
            Err(StorageError::Latched { first }) => Some(first),
            _ => None,
        }
    }
}

impl SegmentLog {
    /// The id of the entry at `index`, for a truncation that keeps it.
    fn log_id_at(&self, index: Option<u64>) -> Result<Option<LogId>, StorageError> {
        let Some(index) = index else { return Ok(None) };
        let records = self.read(index, index + 1, 0)?;
        Ok(records.first().map(|r| r.log_id).or(self.bounds().purged.filter(|p| p.index == index)))
    }
}

/// The log holds everything that it ever acknowledged, unless it was purged or truncated since.
fn check_promise(promised: &Promised, found: &Found) -> Result<(), StorageError> {
    let known = found.known();
    if let Some(vote) = promised.vote {
        let kept = known.vote.is_some_and(|found| {
            found.term > vote.term
                || (found.term == vote.term && found.node == vote.node && found.committed >= vote.committed)
        });
        if !kept {
            let what = format!("the log has lost its vote in term {}", vote.term);
            return Err(StorageError::damaged(what));
        }
    }
    let Some(last) = promised.last else { return Ok(()) };
    if known.last.is_none_or(|found| found.index < last.index) {
        let end = known.last.map_or("it holds nothing".to_owned(), |l| format!("it ends with {}", l.index));
        let what = format!("the log has lost its tail: {end}, but had acknowledged entry {}", last.index);
        return Err(StorageError::damaged(what));
    }
    if known.floor.is_some_and(|floor| floor.index > last.index) {
        return Ok(());
    }
    let there = match known.floor.filter(|floor| floor.index == last.index) {
        Some(floor) => Some(floor),
        None => found.log_id(last.index)?,
    };
    if there != Some(last) {
        let what =
            format!("the log has lost its tail: entry {} is not the one it had acknowledged", last.index);
        return Err(StorageError::damaged(what));
    }
    Ok(())
}

impl Drop for SegmentLog {
    fn drop(&mut self) {
        // Whatever waits for room on a full disk is not waited for.
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.queue.push(Job::Stop);
        if let Some(writer) = self.writer.take() {
            // A callback may own the log and be the last to let go of it, on the writer itself.
            if writer.thread().id() != thread::current().id() {
                let _ = writer.join();
            }
        }
    }
}

#[cfg(test)]
#[path = "segment_log_tests.rs"]
mod tests;
