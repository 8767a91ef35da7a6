//! Installing a snapshot: staged beside the state, verified, then flipped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::stream::{Item, Items};
use super::{CHUNK_BYTES, Manifest, applied_of};
use crate::digest::{LtHash, digest};
use crate::error::StorageError;
use crate::overlay::Before;
use crate::replacement::Replacement;
use crate::row::{DATA_AREAS, Row};
use crate::shared::Shared;
use crate::state::Applied;
use crate::state_disk::{StateTree, WindowRows};
use crate::window::{Remembered, Window};

/// Rows that are staged in one batch.
const BATCH_ROWS: usize = 500;
/// Bytes that are staged in one batch.
const BATCH_BYTES: usize = 1024 * 1024;

/// A snapshot that is being received. Dropping it forgets what was staged.
pub struct Installer {
    shared: Arc<Shared>,
    manifest: Manifest,
    staged: Arc<StateTree>,
    items: Items,
    next: u64,
    bytes: u64,
    rows: u64,
    lanes: LtHash,
    last_key: Bytes,
    pending: Vec<(Bytes, Row)>,
    pending_bytes: usize,
    window: Window,
    requests: Vec<(u64, Remembered)>,
    window_rows: WindowRows,
}

impl Installer {
    /// Begins to stage beside the current state.
    pub(crate) fn begin(shared: &Arc<Shared>, manifest: Manifest) -> Result<Self, StorageError> {
        let path = shared.dir.state();
        // Merging takes as much again as what is there, and the present state stays until the end.
        let seen = shared.dir.disk().space().look()?;
        let need = manifest.bytes.saturating_mul(2).saturating_add(seen.watermarks().low_bytes);
        if seen.free_bytes < need {
            return Err(StorageError::Full { path, free_bytes: seen.free_bytes });
        }
        let staged = shared.disk.stage().inspect_err(|error| shared.fail(error))?;
        let window = Window::beginning(manifest.window);
        Ok(Self {
            shared: Arc::clone(shared),
            manifest,
            staged,
            items: Items::default(),
            next: 0,
            bytes: 0,
            rows: 0,
            lanes: LtHash::default(),
            last_key: Bytes::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            window,
            requests: Vec::new(),
            window_rows: WindowRows::default(),
        })
    }

    /// The number of the chunk that is expected next: where a broken transfer goes on.
    pub fn next_chunk(&self) -> u64 {
        self.next
    }

    /// What is being installed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Stages chunk `n`.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it is not the next one or not part of a snapshot; the transfer must
    /// then begin again. The state is unchanged. Any other error latches the state.
    pub fn chunk(&mut self, n: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.bytes += bytes.len() as u64;
        let last = n + 1 == self.manifest.chunks;
        if n != self.next || n >= self.manifest.chunks || (!last && bytes.len() != CHUNK_BYTES) {
            return Err(damaged("a chunk is out of order or has the wrong length"));
        }
        self.next += 1;
        self.items.feed(bytes);
        while let Some(item) = self.items.next()? {
            self.rows += 1;
            match item {
                Item::Row(key, row) => self.row(key, row)?,
                Item::Request(request) => {
                    let number = self.window.record(request.clone());
                    // What a window forgets, a snapshot of it does not hold; so memory stays bounded, too.
                    if self.window.mark() != self.manifest.window {
                        return Err(damaged("it holds more requests than a window"));
                    }
                    self.requests.push((number, request));
                }
            }
        }
        Ok(())
    }

    /// Says whether [`finish`](Self::finish) will find everything in order, before anybody relies on it.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if chunks are missing or do not give the digest of the manifest: nothing was
    /// changed. Any other error latches the state.
    pub fn check(&mut self) -> Result<(), StorageError> {
        self.stage()?;
        self.verify(&applied_of(&self.manifest.meta))
    }

    /// Verifies what was staged, makes it durable and makes it the state. A snapshot that is not newer
    /// than the state changes nothing.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if chunks are missing or do not give the digest of the manifest: nothing
    /// was changed. Any other error latches the state.
    pub fn finish(mut self) -> Result<(), StorageError> {
        self.check()?;
        let applied = applied_of(&self.manifest.meta);
        let shared = Arc::clone(&self.shared);
        let mut applier = shared.applier.lock();
        shared.latched()?;
        if self.manifest.meta.log_id.map(|id| id.index) <= applier.log_id.map(|id| id.index) {
            tracing::info!("the snapshot is not newer than the state, which stays");
            return Ok(());
        }
        match self.flip(&applied) {
            Ok(()) => {
                *applier = applied;
                Ok(())
            }
            Err(error) => {
                shared.fail(&error);
                Err(error)
            }
        }
    }

    fn row(&mut self, key: Bytes, row: Row) -> Result<(), StorageError> {
        let known = key.first().is_some_and(|area| DATA_AREAS.contains(area));
        if !known || key <= self.last_key || self.window.next() != self.manifest.window.first {
            return Err(damaged("its rows are out of order"));
        }
        self.lanes.add(&key, &row);
        self.last_key = key.clone();
        self.pending_bytes += Row::weight(&key, Some(&row));
        self.pending.push((key, row));
        if self.pending.len() >= BATCH_ROWS || self.pending_bytes >= BATCH_BYTES {
            self.stage()?;
        }
        Ok(())
    }

    /// Writes pending rows to the staged tree. A failure is one of
    /// the disk that the state is on, too.
    fn stage(&mut self) -> Result<(), StorageError> {
        self.shared.latched()?;
        // Keys come in order and once, and the tree was empty.
        let rows = self.pending.iter().map(|(key, row)| (key, Some(row), &Before::Absent));
        let written = self.staged.write(rows, &[], &mut self.window_rows, None);
        written.and_then(|()| self.staged.sync_when_large()).inspect_err(|error| self.shared.fail(error))?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    fn verify(&self, applied: &Applied) -> Result<(), StorageError> {
        let Manifest { chunks, bytes, rows, digest: expected, .. } = &self.manifest;
        if self.next != *chunks || self.bytes != *bytes || self.rows != *rows || !self.items.is_empty() {
            return Err(damaged("it is not complete"));
        }
        if digest(&self.lanes, &self.window.hash(), applied) != *expected {
            return Err(damaged("it does not have the digest that it names"));
        }
        Ok(())
    }

    /// Makes the staged tree the state. The applier is held by the caller.
    fn flip(&mut self, applied: &Applied) -> Result<(), StorageError> {
        self.shared.replace(Replacement {
            tree: Arc::clone(&self.staged),
            lanes: self.lanes.clone(),
            window: std::mem::take(&mut self.window),
            requests: std::mem::take(&mut self.requests),
            applied: applied.clone(),
        })
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        self.shared.installing.store(false, Ordering::Release);
    }
}

fn damaged(why: &str) -> StorageError {
    StorageError::Damaged {
        what: format!("the snapshot cannot be installed: {why}"),
        remedy: "nothing was changed; fetch it again".to_owned(),
    }
}
