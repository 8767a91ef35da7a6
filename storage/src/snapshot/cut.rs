//! A consistent snapshot while writes go on: a cut, and a scan that undoes what came after it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::file::SnapshotWriter;
use super::stream;
use super::{Manifest, SnapshotFile, SnapshotMeta, WindowMark};
use crate::digest::{LtHash, digest};
use crate::error::StorageError;
use crate::overlay::Batch;
use crate::scan;
use crate::shared::{Shared, Undo};
use crate::state::Applied;
use crate::window::Remembered;

/// How long the flusher, whose digest a snapshot is compared with, may take to reach the cut.
const DIGEST_WAIT: Duration = Duration::from_secs(30);

/// Rows that a gentle scrub reads in one go; about a millisecond.
const ROWS_BETWEEN_RESTS: u32 = 512;

/// The state between two applied entries, while writes go on. One at a time.
///
/// It holds in memory what changed since, up to 64 MiB; past that it is given up. Dropping it ends it.
pub struct SnapshotCut {
    shared: Arc<Shared>,
    applied: Applied,
    meta: SnapshotMeta,
    mark: WindowMark,
    window_hash: [u8; 32],
    requests: Vec<Remembered>,
    expected: Expected,
}

/// The digest that the flusher has, or will have, at the cut.
enum Expected {
    Known([u8; 32]),
    After(Arc<Batch>),
}

impl SnapshotCut {
    /// Cuts between two applied entries.
    pub(crate) fn begin(shared: &Arc<Shared>) -> Result<Self, StorageError> {
        if shared.cutting.swap(true, Ordering::AcqRel) {
            return Err(StorageError::Busy { what: "a snapshot".to_owned() });
        }
        let applied = shared.applier.lock();
        let pending = {
            let mut view = shared.view.write();
            view.overlay.close();
            view.undo = Some(Undo::new());
            view.overlay.newest_closed()
        };
        let expected = match pending {
            Some(batch) => Expected::After(batch),
            // Nothing is pending and nothing can become so: the applier is held.
            None => Expected::Known(shared.writer.lock().digest()),
        };
        let window = shared.window.read();
        Ok(Self {
            shared: Arc::clone(shared),
            meta: meta_of(&applied),
            applied: applied.clone(),
            mark: window.mark(),
            window_hash: window.hash(),
            requests: window.freeze(),
            expected,
        })
    }

    /// What the cut is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Writes the snapshot to a new file, mode 0600, synced, and ends the cut. Until it is whole the file
    /// has another name.
    ///
    /// # Errors
    /// [`StorageError::Busy`] if writes went on faster than it could follow or an install replaced the
    /// state; [`StorageError::Damaged`] if the state does not have the digest that it should have.
    pub fn spool(self, path: &Path) -> Result<SnapshotFile, StorageError> {
        let manifest = Manifest { meta: self.meta.clone(), window: self.mark, ..Manifest::default() };
        let mut writer = SnapshotWriter::create(path, manifest)?;
        let digest = self.scan(|bytes| writer.write(bytes))?;
        writer.finish(digest)
    }

    /// Reads the whole state at the cut and compares its digest with the one that followed every change.
    /// Gives the digest.
    ///
    /// # Errors
    /// As [`SnapshotCut::spool`].
    pub fn verify(self) -> Result<[u8; 32], StorageError> {
        self.scrub(&AtomicBool::new(false))
    }

    /// As [`SnapshotCut::verify`], but while `gently` it rests as long as it works.
    ///
    /// # Errors
    /// As [`SnapshotCut::spool`].
    pub fn scrub(self, gently: &AtomicBool) -> Result<[u8; 32], StorageError> {
        let mut rows = 0_u32;
        let mut began = Instant::now();
        self.scan(|_| {
            rows += 1;
            if rows.is_multiple_of(ROWS_BETWEEN_RESTS) {
                if gently.load(Ordering::Relaxed) {
                    thread::sleep(began.elapsed());
                }
                began = Instant::now();
            }
            Ok(())
        })
    }

    /// Feeds every item to `sink` and gives the digest.
    fn scan(
        &self,
        mut sink: impl FnMut(&[u8]) -> Result<(), StorageError>,
    ) -> Result<[u8; 32], StorageError> {
        let mut lanes = LtHash::default();
        let mut bytes = Vec::new();
        scan::rows_at_cut(&self.shared, |key, row| {
            lanes.add(key, row);
            bytes.clear();
            stream::write_row(&mut bytes, key, row);
            sink(&bytes)
        })?;
        for request in &self.requests {
            bytes.clear();
            stream::write_request(&mut bytes, request);
            sink(&bytes)?;
        }
        let found = digest(&lanes, &self.window_hash, &self.applied);
        if found != self.expected()? {
            return Err(StorageError::damaged("the state does not have the digest that it should have"));
        }
        Ok(found)
    }

    fn expected(&self) -> Result<[u8; 32], StorageError> {
        let batch = match &self.expected {
            Expected::Known(digest) => return Ok(*digest),
            Expected::After(batch) => batch,
        };
        self.shared.signals.request(Some(batch.last_index()), Box::new(|_| {}));
        let deadline = Instant::now() + DIGEST_WAIT;
        let found = self.shared.signals.wait_until(deadline, || batch.digest.get().copied())?;
        found.ok_or_else(|| StorageError::Busy { what: "the flush before a snapshot".to_owned() })
    }
}

impl Drop for SnapshotCut {
    fn drop(&mut self) {
        self.shared.view.write().undo = None;
        self.shared.cutting.store(false, Ordering::Release);
    }
}

fn meta_of(applied: &Applied) -> SnapshotMeta {
    let Applied { log_id, membership, cluster_time_ms, generation, last_sequence } = applied.clone();
    SnapshotMeta { log_id, membership, cluster_time_ms, generation, last_sequence }
}
