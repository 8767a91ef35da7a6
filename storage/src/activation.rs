//! What was staged in pieces becomes the state.
//!
//! The pieces are bytes of one stream of records, in whatever order, without folders. A new tree is filled with them and
//! with what is kept, then walked once in the order of its keys: that gives the folders and the digest. Everything is
//! a function of the state and the entry, so that it ends alike on every node; a crash before the flip leaves the
//! state as it was, and the log has the entry again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::apply;
use crate::digest::LtHash;
use crate::error::StorageError;
use crate::ids::{LogId, Version};
use crate::keys::{CLEAR, FolderKey, RecordKey, SEALED};
use crate::overlay::Before;
use crate::replacement::Replacement;
use crate::row::{self, Folder, Row};
use crate::shared::Shared;
use crate::snapshot::{Item, Items};
use crate::state::{Applied, Outcome, Record};
use crate::state_disk::{StateTree, WindowRows};
use crate::txn::{Activation, Command};
use crate::window::Remembered;

/// Rows that are written in one batch.
const BATCH_ROWS: usize = 500;
/// Bytes that are written in one batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// How often the log is asked how far it is on the disk.
const LOG_POLL: Duration = Duration::from_millis(2);

impl Shared {
    /// Builds the state that a command activates; an outcome if there is nothing to be done. `applied` takes the
    /// generation of what is built.
    pub fn activation(
        &self,
        applied: &mut Applied,
        log_id: LogId,
        command: &Command,
    ) -> Result<Result<Replacement, Outcome>, StorageError> {
        let refused = apply::refusal(self, &self.window.read(), applied, log_id, command)?;
        let Some(activation) = command.txn.activate.as_ref().filter(|_| refused.is_none()) else {
            return Ok(Err(refused.unwrap_or(Outcome::Blank)));
        };
        let version = Version { generation: applied.generation + 1, index: log_id.index };
        let Some(tree) = self.filled(activation, version)? else {
            tracing::warn!(index = log_id.index, "what was to become the state is not what was announced");
            return Ok(Err(Outcome::Conflict { check: command.txn.checks.len() }));
        };
        let lanes = with_folders(&tree, version)?;
        applied.generation = version.generation;
        let mut window = self.window.read().clone();
        if !command.txn.request_id.is_none() {
            let response = Bytes::copy_from_slice(&command.txn.response);
            window.record(Remembered { id: command.txn.request_id, version, response });
        }
        let requests = (window.mark().first..).zip(window.freeze()).collect();
        self.wait_for_log(log_id.index)?;
        Ok(Ok(Replacement { tree, lanes, window, requests, applied: applied.clone() }))
    }

    /// A new tree with all records; `None` if the pieces are not what the activation says.
    fn filled(
        &self,
        activation: &Activation,
        version: Version,
    ) -> Result<Option<Arc<StateTree>>, StorageError> {
        let keep: BTreeSet<Vec<u8>> = activation.keep.iter().map(row::record_key).collect();
        let meet: Vec<Vec<u8>> = activation.meet.iter().map(row::children_prefix).collect();
        let mut filling = Filling::new(self, self.disk.stage()?);
        let (mut items, mut hasher, mut rows) = (Items::default(), blake3::Hasher::new(), 0_u64);
        for sequence in 0..activation.pieces {
            let piece = row::record_key(&RecordKey::staged(activation.restore, sequence));
            let Some(Row::Record(Record { value, .. })) = self.row(&piece)? else { return Ok(None) };
            hasher.update(&value);
            items.feed(&value);
            loop {
                let (key, value) = match items.next() {
                    Ok(Some(Item::Row(key, Row::Record(record)))) => (key, record.value),
                    Ok(None) => break,
                    Ok(Some(_)) | Err(_) => return Ok(None),
                };
                rows += 1;
                if !is_record(&key) {
                    return Ok(None);
                }
                if keep.contains(key.as_ref()) {
                    continue;
                }
                let row = match meet.iter().any(|prefix| key.starts_with(prefix)) {
                    false => Row::Record(Record { version, value }),
                    true => match self.row(&key)? {
                        Some(present) => present,
                        None => continue,
                    },
                };
                if !filling.add(key, row)? {
                    return Ok(None);
                }
            }
        }
        let whole =
            items.is_empty() && rows == activation.rows && *hasher.finalize().as_bytes() == activation.digest;
        if !whole {
            return Ok(None);
        }
        for key in keep {
            if let Some(row) = self.row(&key)? {
                filling.add(key.into(), row)?;
            }
        }
        filling.finish().map(Some)
    }

    /// Waits until the log holds an entry durably: the state must not be ahead of it after a crash.
    fn wait_for_log(&self, index: u64) -> Result<(), StorageError> {
        while self.durable_log() < index {
            self.latched()?;
            std::thread::sleep(LOG_POLL);
        }
        Ok(())
    }
}

/// Whether a key is one of a record that is not a staged piece itself.
fn is_record(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(CLEAR | SEALED))) && row::record_of(key).is_ok()
}

/// Records on their way into a new tree.
struct Filling<'a> {
    shared: &'a Shared,
    tree: Arc<StateTree>,
    pending: Vec<(Bytes, Row)>,
    keys: BTreeSet<Bytes>,
    bytes: usize,
    highest: Bytes,
}

impl<'a> Filling<'a> {
    fn new(shared: &'a Shared, tree: Arc<StateTree>) -> Self {
        Self { shared, tree, pending: Vec::new(), keys: BTreeSet::new(), bytes: 0, highest: Bytes::new() }
    }

    /// Adds a record; false if it is there already.
    fn add(&mut self, key: Bytes, row: Row) -> Result<bool, StorageError> {
        // Most come in order, and need not be looked for.
        if key <= self.highest {
            if self.keys.contains(&key) || self.tree.stored(&key)?.is_some() {
                return Ok(false);
            }
        } else {
            self.highest = key.clone();
        }
        self.bytes += Row::weight(&key, Some(&row));
        self.keys.insert(key.clone());
        self.pending.push((key, row));
        if self.pending.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(true)
    }

    fn write(&mut self) -> Result<(), StorageError> {
        let space = self.shared.dir.disk().space();
        space.wait_for_room(self.bytes as u64, || self.shared.latched().is_err())?;
        write_new(&self.tree, &self.pending)?;
        self.pending.clear();
        self.keys.clear();
        self.bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Arc<StateTree>, StorageError> {
        self.write()?;
        Ok(self.tree)
    }
}

/// Writes rows whose keys the tree does not have.
fn write_new(tree: &StateTree, rows: &[(Bytes, Row)]) -> Result<(), StorageError> {
    let rows = rows.iter().map(|(key, row)| (key, Some(row), &Before::Absent));
    tree.write(rows, &[], &mut WindowRows::default(), None)?;
    tree.sync_when_large()
}

/// Adds the folders of all records to a tree and gives the lanes of all its rows.
fn with_folders(tree: &StateTree, version: Version) -> Result<LtHash, StorageError> {
    let mut lanes = LtHash::default();
    let mut folders = Folders { version, above: Vec::new(), closed: Vec::new() };
    for area in [CLEAR, SEALED] {
        for item in tree.range(&[area], Some(&[area + 1])) {
            let (key, stored) = item?;
            let row = tree.whole(&key, row::decode(&stored)?)?;
            let row = row.ok_or_else(|| StorageError::damaged("a staged row was not written whole"))?;
            lanes.add(&key, &row);
            let record =
                row::record_of(&key).map_err(|_| StorageError::damaged("a staged key cannot be read"))?;
            if let Some(folder) = record.parent() {
                folders.child(folder);
            }
            if folders.closed.len() >= BATCH_ROWS {
                folders.write(tree, &mut lanes)?;
            }
        }
    }
    folders.leave(|_| false);
    folders.write(tree, &mut lanes)?;
    Ok(lanes)
}

/// Folders as they are met in the order of keys, in which all that is below one lies together.
struct Folders {
    version: Version,
    /// The folder that is walked through, below those that it is in, with the children counted so far.
    above: Vec<(FolderKey, u64)>,
    closed: Vec<(Bytes, Row)>,
}

impl Folders {
    /// The next record is a direct child of `folder`.
    fn child(&mut self, folder: FolderKey) {
        self.leave(|above| folder.as_bytes().starts_with(above.as_bytes()));
        let mut missing = Vec::new();
        let mut next = Some(folder);
        while let Some(folder) = next {
            if self.above.last().is_some_and(|(last, _)| *last == folder) {
                break;
            }
            next = folder.parent();
            missing.push(folder);
        }
        for folder in missing.into_iter().rev() {
            self.count();
            self.above.push((folder, 0));
        }
        self.count();
    }

    fn count(&mut self) {
        if let Some((_, children)) = self.above.last_mut() {
            *children += 1;
        }
    }

    /// Closes folders from the innermost on, as long as they are not to `stay`.
    fn leave(&mut self, stay: impl Fn(&FolderKey) -> bool) {
        while let Some((folder, children)) = self.above.pop_if(|(folder, _)| !stay(folder)) {
            let row = Row::Folder(Folder { version: self.version, children });
            self.closed.push((row::folder_key(&folder).into(), row));
        }
    }

    fn write(&mut self, tree: &StateTree, lanes: &mut LtHash) -> Result<(), StorageError> {
        for (key, row) in &self.closed {
            lanes.add(key, row);
        }
        write_new(tree, &self.closed)?;
        self.closed.clear();
        Ok(())
    }
}
