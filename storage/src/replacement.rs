//! Another tree becomes the state: the last step of an install and of an activation.

use std::sync::Arc;

use crate::digest::{LtHash, digest};
use crate::error::StorageError;
use crate::overlay::{BatchEnd, Overlay};
use crate::shared::Shared;
use crate::state::Applied;
use crate::state_disk::{Meta, StateTree, WindowRows};
use crate::window::{Remembered, Window};

/// Bytes of requests that are written in one batch.
const BATCH_BYTES: usize = 1024 * 1024;

/// A staged tree that holds all rows, and what goes with them.
pub(crate) struct Replacement {
    pub tree: Arc<StateTree>,
    pub lanes: LtHash,
    pub window: Window,
    /// What the window holds, with the numbers.
    pub requests: Vec<(u64, Remembered)>,
    pub applied: Applied,
}

impl Shared {
    /// Makes the tree durable and makes it the state. The applier is held by the caller; after an error the state has to
    /// be latched, for the pointer may lead to either tree.
    pub fn replace(&self, new: Replacement) -> Result<(), StorageError> {
        let Replacement { tree, lanes, window, requests, applied } = new;
        let mut window_rows = WindowRows::default();
        let mut writer = self.writer.lock();
        for requests in in_pieces(&requests) {
            tree.write(std::iter::empty(), requests, &mut window_rows, None)?;
        }
        let end = BatchEnd {
            applied: applied.clone(),
            window_mark: window.mark(),
            window_hash: window.hash(),
            window_next: window.next(),
        };
        let newest = (applied.log_id.map_or(0, |id| id.index), digest(&lanes, &window.hash(), &applied));
        let meta = Meta { end, lanes, ring: [newest].into() };
        tree.write(std::iter::empty(), &[], &mut window_rows, Some(&meta))?;
        tree.sync()?;
        let old = Arc::clone(&self.view.read().tree);
        self.disk.flip(&old, &tree)?;
        writer.meta = meta;
        writer.window_rows = window_rows;
        {
            let mut view = self.view.write();
            view.overlay = Overlay::default();
            self.cache.clear();
            view.tree = tree;
            view.undo = None; // a cut of the old state is given up
            *self.window.write() = window;
        }
        *self.digest.write() = Some(newest);
        drop(writer);
        if let Some(observer) = self.observer() {
            observer.replaced();
        }
        *self.published.write() = applied.clone();
        self.signals.replaced(applied.log_id);
        Ok(())
    }
}

/// Cuts requests so that a piece makes few rows.
fn in_pieces(requests: &[(u64, Remembered)]) -> impl Iterator<Item = &[(u64, Remembered)]> {
    let mut rest = requests;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|(_, request)| {
            bytes += request.encoded_bytes();
            bytes <= BATCH_BYTES
        });
        let count = fits.count().max(1).min(rest.len());
        let (piece, later) = rest.split_at(count);
        rest = later;
        (!piece.is_empty()).then_some(piece)
    })
}
