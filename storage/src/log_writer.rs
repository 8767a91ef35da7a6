//! The one thread that writes the log, and the queue in front of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::disk_watch::DiskWatch;
use crate::error::StorageError;
use crate::ids::{LogId, Vote};
use crate::log::{Done, LogRecord};
use crate::log_disk::{LogDisk, size_of};
use crate::log_view::LogView;
use crate::promise::Promise;

/// Past so many queued bytes a caller waits.
const QUEUE_BYTES: u64 = 32 * 1024 * 1024;
/// Past so many queued jobs a caller waits.
const QUEUE_JOBS: usize = 16 * 1024;
/// A group of appends takes no more past so many bytes, so that the first does not wait for all.
const GROUP_BYTES: u64 = 4 * 1024 * 1024;
/// Room for a vote, a floor or a truncation.
const SMALL_BYTES: u64 = 64 * 1024;

/// One operation for the writer.
pub(crate) enum Job {
    Append {
        records: Vec<LogRecord>,
        done: Done,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// `last` is the entry before `from`.
    Truncate {
        from: u64,
        last: Option<LogId>,
        done: Done,
    },
    Purge {
        up_to: LogId,
        done: Done,
    },
    Stop,
}

impl Job {
    fn bytes(&self) -> u64 {
        match self {
            Job::Append { records, .. } => records.iter().map(|r| u64::from(size_of(r))).sum(),
            _ => 0,
        }
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    bytes: u64,
}

/// The bounded queue of the writer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    drained: Condvar,
}

impl Queue {
    /// Waits until there is room. Called without any lock held: the writer needs the view's to go on.
    pub fn wait_for_room(&self) {
        let mut waiting = self.waiting.lock();
        self.drained.wait_while(&mut waiting, |w| w.bytes > QUEUE_BYTES || w.jobs.len() > QUEUE_JOBS);
    }

    /// Adds a job.
    pub fn push(&self, job: Job) {
        let mut waiting = self.waiting.lock();
        waiting.bytes += job.bytes();
        waiting.jobs.push_back(job);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Waits for jobs and takes the next ones: one, or all the appends at the front that form a group.
    fn take(&self) -> Vec<Job> {
        let mut waiting = self.waiting.lock();
        self.filled.wait_while(&mut waiting, |w| w.jobs.is_empty());
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(job) = waiting.jobs.front() {
            let append = matches!(job, Job::Append { .. });
            if !group.is_empty() && (!append || bytes > GROUP_BYTES) {
                break;
            }
            bytes += job.bytes();
            group.extend(waiting.jobs.pop_front());
            if !append {
                break;
            }
        }
        waiting.bytes -= bytes;
        drop(waiting);
        self.drained.notify_all();
        group
    }
}

/// What callers and the writer share.
pub(crate) struct Shared {
    pub disk: LogDisk,
    pub view: RwLock<LogView>,
    pub queue: Queue,
    /// The log is being closed.
    pub stopping: AtomicBool,
    watch: Arc<DiskWatch>,
    /// Only the writer uses it.
    promise: Mutex<Promise>,
    latch: Mutex<Option<String>>,
}

impl Shared {
    pub fn new(disk: LogDisk, view: LogView, promise: Promise, watch: Arc<DiskWatch>) -> Self {
        let (view, queue, promise) = (RwLock::new(view), Queue::default(), Mutex::new(promise));
        Self { disk, view, queue, stopping: AtomicBool::new(false), watch, promise, latch: Mutex::default() }
    }

    /// The first failure, if there was one.
    pub fn latched(&self) -> Result<(), StorageError> {
        match &*self.latch.lock() {
            Some(first) => Err(StorageError::Latched { first: first.clone() }),
            None => Ok(()),
        }
    }

    /// Remembers the first failure; nothing is written after it.
    pub fn fail(&self, error: &StorageError) {
        let mut latch = self.latch.lock();
        if latch.is_none() {
            tracing::error!(%error, "the log stops after a failure");
            metrics::counter!("keystead_storage_log_failures_total").increment(1);
            *latch = Some(error.to_string());
        }
    }
}

/// The writer: takes jobs until told to stop.
pub(crate) fn run(shared: &Arc<Shared>) {
    let mut writer = Writer { shared, written: shared.view.read().bounds.last.map(|l| l.index), saved: None };
    loop {
        let mut group = shared.queue.take();
        match group.pop().expect("a group has at least one job") {
            Job::Stop => return,
            last @ Job::Append { .. } => {
                group.push(last);
                writer.append(group);
            }
            Job::Vote { vote, done } => writer.finish(|w| w.save_vote(vote), done),
            Job::Truncate { from, last, done } => writer.finish(|w| w.truncate(from, last), done),
            Job::Purge { up_to, done } => writer.finish(|w| w.purge(up_to), done),
        }
    }
}

struct Writer<'a> {
    shared: &'a Arc<Shared>,
    /// The newest record that was written.
    written: Option<u64>,
    /// The commit point that was written.
    saved: Option<LogId>,
}

impl Writer<'_> {
    /// Runs one job unless an earlier one failed, and says how it ended.
    fn finish(&mut self, job: impl FnOnce(&mut Self) -> Result<(), StorageError>, done: Done) {
        let result = self.shared.latched().and_then(|()| {
            let result = job(self);
            if let Err(error) = &result {
                self.shared.fail(error);
            }
            result
        });
        done(result);
    }

    fn append(&mut self, group: Vec<Job>) {
        let mut records = Vec::new();
        let mut waiting: Vec<Done> = Vec::with_capacity(group.len());
        for job in group {
            if let Job::Append { records: more, done } = job {
                records.extend(more);
                waiting.push(done);
            }
        }
        let result = self.shared.latched().and_then(|()| {
            let result = self.write_group(&records);
            if let Err(error) = &result {
                self.shared.fail(error);
            }
            result
        });
        for done in waiting {
            done(result.clone());
        }
    }

    fn write_group(&mut self, records: &[LogRecord]) -> Result<(), StorageError> {
        self.wait_for_room(records.iter().map(|r| u64::from(size_of(r))).sum())?;
        let disk = &self.shared.disk;
        disk.append(records)?;
        let last = records.last().map(|r| r.log_id.index);
        self.written = last.or(self.written);
        // Never beyond what is written: at the next open that would look like a lost tail.
        let committed = self.shared.view.read().committed;
        if let Some(id) = committed.filter(|c| committed != self.saved && Some(c.index) <= self.written) {
            disk.write_committed(id);
            self.saved = committed;
        }
        self.sync()?;
        if let Some(last) = records.last() {
            self.shared.promise.lock().give_entries(last.log_id)?;
        }
        let entries = records.len() as u64;
        disk.meter().group(entries);
        metrics::counter!("keystead_storage_log_entries_total").increment(entries);
        metrics::histogram!("keystead_storage_log_group_entries").record(entries as f64);
        if let Some(last) = last {
            self.shared.view.write().made_durable(last);
        }
        Ok(())
    }

    fn save_vote(&mut self, vote: Vote) -> Result<(), StorageError> {
        self.wait_for_room(SMALL_BYTES)?;
        self.shared.disk.write_vote(vote);
        self.sync()?;
        self.shared.promise.lock().give_vote(vote)
    }

    fn truncate(&mut self, from: u64, last: Option<LogId>) -> Result<(), StorageError> {
        self.wait_for_room(SMALL_BYTES)?;
        self.shared.promise.lock().take_back(last)?;
        self.shared.disk.truncate_from(from, last);
        self.written = self.written.min(from.checked_sub(1));
        self.saved = self.saved.filter(|s| s.index < from);
        self.sync()?;
        self.shared.view.write().truncated();
        Ok(())
    }

    fn purge(&mut self, up_to: LogId) -> Result<(), StorageError> {
        self.wait_for_room(SMALL_BYTES)?;
        self.shared.disk.write_floor(up_to);
        self.sync()?;
        self.shared.disk.drop_segments(up_to.index)?;
        if self.written < Some(up_to.index) {
            self.shared.promise.lock().give_entries(up_to)?;
        }
        self.written = self.written.max(Some(up_to.index));
        metrics::gauge!("keystead_storage_log_bytes").set(self.shared.view.read().size_bytes() as f64);
        Ok(())
    }

    /// Waits while the disk is full: nothing is acknowledged meanwhile, nothing is lost, and the log never
    /// meets an error after which it would have to be opened again.
    fn wait_for_room(&self, bytes: u64) -> Result<(), StorageError> {
        let stopping = || self.shared.stopping.load(Ordering::Acquire);
        self.shared.watch.space().wait_for_room(bytes, stopping)
    }

    fn sync(&self) -> Result<(), StorageError> {
        let began = Instant::now();
        self.shared.disk.sync()?;
        metrics::histogram!("keystead_storage_log_sync_seconds").record(began.elapsed().as_secs_f64());
        Ok(())
    }
}
