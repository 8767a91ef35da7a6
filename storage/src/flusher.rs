//! Brings what was applied to the disk, behind apply: lazily, in batches of whole entries, and never
//! beyond what the log holds durably.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::digest::digest;
use crate::error::StorageError;
use crate::ids::LogId;
use crate::log::Done;
use crate::overlay::{Batch, Before, Changed};
use crate::shared::Shared;
use crate::space::SpaceLevel;
use crate::state_disk::{Meta, StateTree, WindowRows};

/// Pending bytes at which the flusher starts, and at which a group ends with a sync: each makes one file of the tree. What
/// is pending is in the log, so nothing but its size says when; a file for a few rows would cost more in merging
/// than it holds.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// Pending bytes at which apply waits for the disk.
const PENDING_BYTES: usize = 32 * 1024 * 1024;
/// How often the log is asked how far it is on the disk.
const LOG_POLL: Duration = Duration::from_millis(2);
/// How long a stop waits for the log; what is not written then is applied again after the start.
const STOP_GRACE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(2) };
/// Checkpoints that are remembered for comparison.
const RING: usize = 8;

#[derive(Default)]
struct Pending {
    bytes: usize,
    requested: bool,
    stopping: Option<Instant>,
    failed: Option<StorageError>,
    flushed: Option<LogId>,
    /// Who waits until this index is on the disk.
    waiting: Vec<(u64, Done)>,
}

/// How apply, the flusher and those who wait for it talk.
#[derive(Default)]
pub(crate) struct Signals {
    pending: Mutex<Pending>,
    work: Condvar,
    progress: Condvar,
}

impl Signals {
    /// Signals of a state that has `flushed` on the disk.
    pub fn new(flushed: Option<LogId>) -> Self {
        let pending = Pending { flushed, ..Pending::default() };
        Self { pending: Mutex::new(pending), ..Self::default() }
    }

    /// Blocks while too much is pending.
    pub fn wait_for_room(&self) {
        let mut pending = self.pending.lock();
        self.progress.wait_while(&mut pending, |p| p.bytes > PENDING_BYTES && p.failed.is_none());
    }

    /// An entry was added to the overlay.
    pub fn added(&self, bytes: usize) {
        let mut pending = self.pending.lock();
        pending.bytes += bytes;
        if pending.bytes >= GROUP_BYTES {
            self.work.notify_one();
        }
    }

    /// The newest entry on the disk.
    pub fn flushed(&self) -> Option<LogId> {
        self.pending.lock().flushed
    }

    /// Asks for a flush and calls `done` when everything up to `index` is on the disk.
    pub fn request(&self, index: Option<u64>, done: Done) {
        let mut pending = self.pending.lock();
        let result = match (&pending.failed, index) {
            (Some(error), _) => Err(StorageError::Latched { first: error.to_string() }),
            (None, Some(index)) if pending.flushed.is_none_or(|f| f.index < index) => {
                pending.waiting.push((index, done));
                pending.requested = true;
                self.work.notify_one();
                return;
            }
            _ => Ok(()),
        };
        drop(pending);
        done(result);
    }

    /// Waits until `ready` gives something, the state fails, or the deadline passes.
    pub fn wait_until<T>(
        &self,
        deadline: Instant,
        ready: impl Fn() -> Option<T>,
    ) -> Result<Option<T>, StorageError> {
        let mut pending = self.pending.lock();
        loop {
            if let Some(found) = ready() {
                return Ok(Some(found));
            }
            if let Some(error) = &pending.failed {
                return Err(StorageError::Latched { first: error.to_string() });
            }
            if self.progress.wait_until(&mut pending, deadline).timed_out() {
                return Ok(ready());
            }
        }
    }

    /// Everything up to `flushed` is on the disk.
    pub fn retired(&self, flushed: Option<LogId>, bytes: usize) {
        let mut pending = self.pending.lock();
        pending.bytes = pending.bytes.saturating_sub(bytes);
        self.settle(pending, flushed);
    }

    /// A snapshot replaced everything; nothing is pending.
    pub fn replaced(&self, flushed: Option<LogId>) {
        let mut pending = self.pending.lock();
        pending.bytes = 0;
        self.settle(pending, flushed);
    }

    fn settle(&self, mut pending: parking_lot::MutexGuard<'_, Pending>, flushed: Option<LogId>) {
        pending.flushed = flushed;
        let index = flushed.map(|f| f.index);
        let ready: Vec<_> = pending.waiting.extract_if(.., |(wanted, _)| Some(*wanted) <= index).collect();
        drop(pending);
        self.progress.notify_all();
        for (_, done) in ready {
            done(Ok(()));
        }
    }

    /// The state failed: nobody waits any longer.
    pub fn fail(&self, error: &StorageError) {
        let mut pending = self.pending.lock();
        pending.failed = Some(error.clone());
        let waiting = std::mem::take(&mut pending.waiting);
        drop(pending);
        self.progress.notify_all();
        self.work.notify_all();
        for (_, done) in waiting {
            done(Err(error.clone()));
        }
    }

    /// Ends the flusher after what is pending.
    pub fn stop(&self) {
        self.pending.lock().stopping = Some(Instant::now());
        self.work.notify_all();
    }

    /// Waits until a flush is due; says whether it is the last one.
    fn wait_for_work(&self) -> bool {
        let mut pending = self.pending.lock();
        loop {
            let stopping = pending.stopping.is_some();
            if pending.bytes >= GROUP_BYTES || stopping || pending.requested {
                pending.requested = false;
                return stopping;
            }
            self.work.wait(&mut pending);
        }
    }

    /// Whether a flush that cannot go on is to be given up.
    fn gives_up(&self) -> bool {
        let pending = self.pending.lock();
        pending.failed.is_some() || pending.stopping.is_some_and(|at| at.elapsed() > STOP_GRACE)
    }

    /// Waits a little for the log; false once there is no point in waiting any longer.
    fn wait_for_log(&self) -> bool {
        if self.gives_up() {
            return false;
        }
        let mut pending = self.pending.lock();
        self.work.wait_for(&mut pending, LOG_POLL);
        true
    }
}

/// What belongs to whoever writes the tree: digest and window rows as they are on the disk.
pub(crate) struct DiskWriter {
    pub meta: Meta,
    pub window_rows: WindowRows,
}

impl DiskWriter {
    /// The digest of what is on the disk.
    pub fn digest(&self) -> [u8; 32] {
        digest(&self.meta.lanes, &self.meta.end.window_hash, &self.meta.end.applied)
    }

    /// The digest at a checkpoint, if it is remembered.
    pub fn digest_at(&self, index: u64) -> Option<[u8; 32]> {
        self.meta.ring.iter().find(|(at, _)| *at == index).map(|(_, digest)| *digest)
    }

    /// Writes one batch. Gives the index of a checkpoint whose digest is not the proposer's.
    fn write(&mut self, tree: &StateTree, batch: &Batch) -> Result<Option<u64>, StorageError> {
        for (key, Changed { row, before }) in &batch.rows {
            match before {
                Before::Absent => {}
                Before::Row(old) => self.meta.lanes.remove(key, old),
                Before::Unread => {
                    let old = tree.row(key)?.ok_or_else(|| {
                        StorageError::damaged("a large value of the state has vanished from the disk")
                    })?;
                    self.meta.lanes.remove(key, &old);
                }
            }
            if let Some(row) = row {
                self.meta.lanes.add(key, row);
            }
        }
        self.meta.end = batch.end.clone();
        let digest = self.digest();
        let mut mismatch = None;
        if let Some(mark) = batch.checkpoint {
            mismatch = mark.of.and_then(|(index, theirs)| {
                self.digest_at(index).is_some_and(|ours| ours != theirs).then_some(index)
            });
            self.meta.ring.push_back((batch.last_index(), digest));
            if self.meta.ring.len() > RING {
                self.meta.ring.pop_front();
            }
        }
        let rows = batch.rows.iter().map(|(key, changed)| (key, changed.row.as_ref(), &changed.before));
        tree.write(rows, &batch.remembered, &mut self.window_rows, Some(&self.meta))?;
        let _ = batch.digest.set(digest);
        Ok(mismatch)
    }
}

/// The flusher: writes until told to stop.
pub(crate) fn run(shared: &Arc<Shared>) {
    loop {
        let last = shared.signals.wait_for_work();
        if let Err(error) = flush(shared).and_then(|()| if last { Ok(()) } else { merge(shared) }) {
            shared.fail(&error);
        }
        if last || shared.latched().is_err() {
            return;
        }
    }
}

/// Writes everything that was applied before the call.
fn flush(shared: &Shared) -> Result<(), StorageError> {
    let until = {
        let mut view = shared.view.write();
        view.overlay.close();
        view.overlay.newest_closed().map_or(0, |batch| batch.last_index())
    };
    loop {
        let Some(oldest) = shared.view.read().overlay.oldest_closed() else { return Ok(()) };
        if oldest > until {
            return Ok(());
        }
        if shared.durable_log() >= oldest {
            // A full disk is waited out with no lock held. What is not written now is applied again later.
            let space = shared.dir.disk().space();
            if space.wait_for_room(GROUP_BYTES as u64, || shared.signals.gives_up()).is_err() {
                return Ok(());
            }
            write_group(shared)?;
        } else if !shared.signals.wait_for_log() {
            return Ok(());
        }
    }
}

/// Merges files of the tree. Where there is no room to, there are more of them until there is.
fn merge(shared: &Shared) -> Result<(), StorageError> {
    if shared.dir.disk().space().view().level == SpaceLevel::Full {
        return Ok(());
    }
    let tree = Arc::clone(&shared.view.read().tree);
    match tree.merge() {
        Err(error @ StorageError::Full { .. }) => {
            tracing::warn!(%error, "files of the state are merged when there is room");
            Ok(())
        }
        result => result,
    }
}

/// Writes and syncs the oldest batches that the log holds durably.
fn write_group(shared: &Shared) -> Result<(), StorageError> {
    let mut mismatches = Vec::new();
    {
        // Under this lock no install replaces the tree, so what is taken here is still due.
        let mut writer = shared.writer.lock();
        let (group, tree) = {
            let view = shared.view.read();
            (view.overlay.group(GROUP_BYTES, shared.durable_log()), Arc::clone(&view.tree))
        };
        let Some(last) = group.last() else { return Ok(()) };
        let began = Instant::now();
        for batch in &group {
            mismatches.extend(writer.write(&tree, batch)?);
        }
        tree.sync()?;
        metrics::histogram!("keystead_storage_state_group_seconds").record(began.elapsed().as_secs_f64());
        *shared.digest.write() = writer.meta.ring.back().copied();
        let bytes = {
            let mut view = shared.view.write();
            let rows = group.iter().flat_map(|batch| &batch.rows);
            // What was changed before is changed again, more often than what is new.
            shared.cache.written(rows.map(|(key, Changed { row, before })| {
                (key, row.as_ref().filter(|_| !matches!(before, Before::Absent)))
            }));
            view.overlay.retire(&group)
        };
        shared.signals.retired(last.end.applied.log_id, bytes);
    }
    for index in mismatches {
        tracing::error!(index, "the digest of the state is not that of the proposer");
        if let Some(observer) = shared.observer() {
            observer.digest_mismatch(index);
        }
    }
    Ok(())
}
