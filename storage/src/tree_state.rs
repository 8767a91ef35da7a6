//! The sealed state in a tree on the disk: applied to an overlay in memory, written behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::apply::{self, Plan};
use crate::datadir::DataDir;
use crate::error::StorageError;
use crate::flusher::{self, DiskWriter, Signals};
use crate::guard::abort_on_panic;
use crate::ids::{LogId, RequestId, Version};
use crate::keys::{FolderKey, RecordKey};
use crate::log::Done;
use crate::overlay::{BatchEnd, Before, Entry, Overlay};
use crate::row::{self, Row};
use crate::row_cache::RowCache;
use crate::scan;
use crate::shared::{Shared, View};
use crate::snapshot::{Installer, Manifest, SnapshotCut};
use crate::state::{Applied, ApplyEntry, ApplyOp, Child, Observer, Outcome, Record, SealedState};
use crate::state_disk::StateDisk;
use crate::txn::{Check, CheckpointMark, Command, Txn};
use crate::window::Remembered;

/// The sealed state in a tree on the disk.
///
/// Applying touches memory, and the disk only to read what memory lacks; a thread writes behind it.
/// Dropping it writes what the log holds durably, then stops the thread.
pub struct TreeState {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
}

impl TreeState {
    /// Opens the state of a data directory; a new one is empty and of generation 1.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it cannot be read; [`StorageError::Full`] below the
    /// lower mark of free space (see [`Watermarks`](crate::Watermarks)).
    pub fn open(dir: &DataDir) -> Result<Self, StorageError> {
        let (disk, opened) = StateDisk::open(&dir.state())?;
        dir.disk().add_meter(disk.meter());
        let applied = opened.meta.end.applied.clone();
        let digest = opened.meta.ring.back().copied();
        let shared = Arc::new(Shared {
            dir: dir.clone(),
            disk,
            signals: Signals::new(applied.log_id),
            applier: Mutex::new(applied.clone()),
            published: RwLock::new(applied),
            writer: Mutex::new(DiskWriter { meta: opened.meta, window_rows: opened.window_rows }),
            view: RwLock::new(View { overlay: Overlay::default(), tree: opened.tree, undo: None }),
            cache: RowCache::default(),
            window: RwLock::new(opened.window),
            digest: RwLock::new(digest),
            observer: RwLock::new(None),
            durable_log: RwLock::new(None),
            cutting: AtomicBool::new(false),
            installing: AtomicBool::new(false),
            latch: Mutex::new(None),
        });
        let for_flusher = Arc::clone(&shared);
        let flusher = thread::Builder::new()
            .name("state-flusher".to_owned())
            .spawn(move || abort_on_panic("state-flusher", || flusher::run(&for_flusher)))
            .map_err(|e| StorageError::io("start the state flusher", e))?;
        Ok(Self { shared, flusher: Some(flusher) })
    }

    /// Sets how far the local log is on the disk, as an index. Nothing newer is written to the state:
    /// after a crash it must not be ahead of the log. Without it nothing is waited for.
    pub fn set_durable_log(&self, durable: Arc<dyn Fn() -> u64 + Send + Sync>) {
        *self.shared.durable_log.write() = Some(durable);
    }
}

impl Shared {
    fn apply_one(&self, applied: &mut Applied, entry: ApplyEntry) -> Result<Outcome, StorageError> {
        let log_id = entry.log_id;
        let mut next = applied.clone();
        next.log_id = Some(log_id);
        let (mut request, mut checkpoint) = (None, None);
        let mut plan = match entry.op {
            ApplyOp::Blank | ApplyOp::NoOp => Plan::nothing(Outcome::Blank),
            ApplyOp::Membership(bytes) => {
                next.membership = Some((log_id, bytes));
                Plan::nothing(Outcome::Blank)
            }
            ApplyOp::Command(command @ Command { txn: Txn { activate: Some(_), .. }, .. }) => {
                match self.activation(&mut next, log_id, &command)? {
                    Err(outcome) => Plan::nothing(outcome),
                    Ok(replacement) => {
                        let version = Version { generation: next.generation, index: log_id.index };
                        self.replace(replacement)?;
                        *applied = next;
                        return Ok(Outcome::Applied { version });
                    }
                }
            }
            ApplyOp::Command(command) => {
                checkpoint = command.checkpoint;
                request = Some((command.txn.request_id, command.txn.response.clone()));
                // Only the applier changes the window, and that is us.
                apply::plan(self, &self.window.read(), &mut next, log_id, command)?
            }
        };
        if plan.outcome == Outcome::Stale {
            checkpoint = None;
        }
        let before = self.rows_for_undo(&plan)?;
        let bytes = self.show(&next, &mut plan, request, checkpoint, before);
        if let Some(observer) = self.observer() {
            observer.applied(log_id, &plan.changed);
        }
        *applied = next.clone();
        *self.published.write() = next;
        self.signals.added(bytes);
        Ok(plan.outcome)
    }

    /// Makes an applied entry visible, all of it at once. Gives the bytes that it takes.
    fn show(
        &self,
        next: &Applied,
        plan: &mut Plan,
        request: Option<(RequestId, Bytes)>,
        checkpoint: Option<CheckpointMark>,
        before: Vec<(Bytes, Option<Row>)>,
    ) -> usize {
        let mut view = self.view.write();
        let mut window = self.window.write();
        let remembered = match (&plan.outcome, request) {
            (Outcome::Applied { version }, Some((id, response))) if !id.is_none() => {
                // A copy: what is decoded from an entry shares the entry's memory, and the window would keep
                // the whole of the newest 65,536 entries.
                let response = Bytes::copy_from_slice(&response);
                let request = Remembered { id, version: *version, response };
                Some((window.record(request.clone()), request))
            }
            _ => None,
        };
        let end = BatchEnd {
            applied: next.clone(),
            window_mark: window.mark(),
            window_hash: window.hash(),
            window_next: window.next(),
        };
        drop(window);
        if let Some(undo) = &mut view.undo {
            for (key, row) in before {
                undo.note(key, row);
            }
        }
        let changes = std::mem::take(&mut plan.changes);
        view.overlay.add(Entry { changes, remembered, end, checkpoint })
    }

    /// What the keys of a plan hold now, as far as a cut wants to know it.
    fn rows_for_undo(&self, plan: &Plan) -> Result<Vec<(Bytes, Option<Row>)>, StorageError> {
        let wanted: Vec<(Bytes, Before)> = match &self.view.read().undo {
            Some(undo) => {
                let wanted = plan.changes.iter().filter(|change| undo.wants(&change.key));
                wanted.map(|change| (change.key.clone(), change.before.clone())).collect()
            }
            None => return Ok(Vec::new()),
        };
        let whole = |(key, before): (Bytes, Before)| {
            let row = match before {
                Before::Absent => None,
                Before::Row(row) => Some(row),
                Before::Unread => self.row(&key)?,
            };
            Ok((key, row))
        };
        wanted.into_iter().map(whole).collect()
    }
}

/// Entries must follow what is applied, one by one.
fn check_order(applied: &Applied, entries: &[ApplyEntry]) -> Result<(), StorageError> {
    let mut last = applied.log_id.map(|id| id.index);
    for entry in entries {
        let index = entry.log_id.index;
        if last.is_some_and(|last| index != last + 1) {
            let why = format!("entry {index} does not follow entry {}", last.unwrap_or(0));
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, why);
            return Err(StorageError::io("apply", source));
        }
        last = Some(index);
    }
    Ok(())
}

impl SealedState for TreeState {
    fn set_observer(&self, observer: Arc<dyn Observer>) {
        *self.shared.observer.write() = Some(observer);
    }

    fn apply(&self, entries: Vec<ApplyEntry>) -> Result<Vec<Outcome>, StorageError> {
        let mut applied = self.shared.applier.lock();
        self.shared.latched()?;
        check_order(&applied, &entries)?;
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            self.shared.signals.wait_for_room();
            self.shared.latched()?;
            match self.shared.apply_one(&mut applied, entry) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    self.shared.fail(&error);
                    return Err(error);
                }
            }
        }
        Ok(outcomes)
    }

    fn applied(&self) -> Applied {
        self.shared.published.read().clone()
    }

    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StorageError> {
        match self.shared.noted(self.shared.row(&row::record_key(key)))? {
            Some(Row::Record(record)) => Ok(Some(record)),
            Some(Row::Folder(_)) => Err(StorageError::damaged("a folder lies in a record's place")),
            None => Ok(None),
        }
    }

    fn children_version(&self, folder: &FolderKey) -> Result<Option<Version>, StorageError> {
        let found = self.shared.noted(apply::Rows::folder(&*self.shared, &row::folder_key(folder)))?;
        Ok(found.map(|folder| folder.version))
    }

    fn children(
        &self,
        folder: &FolderKey,
        after: Option<Child>,
        limit: usize,
    ) -> Result<Vec<Child>, StorageError> {
        self.shared.noted(scan::children(&self.shared, folder, after.as_ref(), limit))
    }

    fn staged(&self, limit: usize) -> Result<Vec<RecordKey>, StorageError> {
        self.shared.noted(scan::staged(&self.shared, limit))
    }

    fn validate(&self, checks: &[Check]) -> Result<bool, StorageError> {
        let _applier = self.shared.applier.lock();
        Ok(self.shared.noted(apply::first_failure(&*self.shared, checks))?.is_none())
    }

    fn request(&self, id: RequestId) -> Option<(Version, Bytes)> {
        self.shared.window.read().find(id).map(|r| (r.version, r.response.clone()))
    }

    fn window_floor(&self) -> u64 {
        self.shared.window.read().floor()
    }

    fn flushed(&self) -> Option<LogId> {
        self.shared.flushed()
    }

    fn flush(&self, done: Done) {
        let index = self.shared.published.read().log_id.map(|id| id.index);
        self.shared.signals.request(index, done);
    }

    fn digest_at(&self, index: u64) -> Option<[u8; 32]> {
        self.shared.writer.lock().digest_at(index)
    }

    fn digest(&self) -> Option<(u64, [u8; 32])> {
        *self.shared.digest.read()
    }

    fn cut(&self) -> Result<SnapshotCut, StorageError> {
        SnapshotCut::begin(&self.shared)
    }

    fn begin_install(&self, manifest: Manifest) -> Result<Installer, StorageError> {
        self.shared.latched()?;
        if self.shared.installing.swap(true, Ordering::AcqRel) {
            return Err(StorageError::Busy { what: "an install".to_owned() });
        }
        Installer::begin(&self.shared, manifest).inspect_err(|_| {
            self.shared.installing.store(false, Ordering::Release);
        })
    }

    fn latch(&self) -> Option<String> {
        self.shared.latch.lock().clone()
    }
}

impl Drop for TreeState {
    fn drop(&mut self) {
        self.shared.signals.stop();
        if let Some(flusher) = self.flusher.take() {
            // A callback may own the state and be the last to let go of it, on the flusher itself.
            if flusher.thread().id() != thread::current().id() {
                let _ = flusher.join();
            }
        }
    }
}

#[cfg(test)]
#[path = "tree_state_tests.rs"]
mod tests;
