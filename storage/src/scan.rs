//! Walking the state in the order of its keys: overlay and tree merged, optionally as of a cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::StorageError;
use crate::keys::{FolderKey, RecordKey, STAGED};
use crate::row::{self, Row};
use crate::shared::Shared;
use crate::state::Child;
use crate::state_disk::StateTree;

/// Keys that are merged at a time.
const CHUNK_KEYS: usize = 256;

/// A row as it was found.
enum Found {
    Memory(Row),
    Disk(lsm_tree::Slice),
}

/// Merged keys from a range.
struct Chunk {
    items: BTreeMap<Bytes, Found>,
    tree: Arc<StateTree>,
    /// Where the next chunk begins; `None` at the end of the range.
    next: Option<Vec<u8>>,
}

/// Reads up to `limit` keys from each side and merges what both have covered.
///
/// The overlay is read first: a row that the flusher moves meanwhile is then seen at least once.
fn chunk(shared: &Shared, from: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Chunk, StorageError> {
    let (mut above, tree) = {
        let view = shared.view.read();
        (view.overlay.range(from, end, limit), Arc::clone(&view.tree))
    };
    let mut next = (above.len() == limit).then(|| successor(&above[limit - 1].0));
    let mut items = BTreeMap::new();
    for item in tree.range(from, next.as_deref().or(end)).take(limit) {
        let (key, value) = item?;
        items.insert(key, Found::Disk(value));
    }
    if items.len() == limit {
        let last = items.last_key_value().expect("the limit is not zero").0;
        next = Some(successor(last));
        above.retain(|(key, _)| key <= last);
    }
    for (key, row) in above {
        match row {
            Some(row) => items.insert(key, Found::Memory(row)),
            None => items.remove(&key),
        };
    }
    Ok(Chunk { items, tree, next })
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Lists direct children of a folder.
pub(crate) fn children(
    shared: &Shared,
    folder: &FolderKey,
    after: Option<&Child>,
    limit: usize,
) -> Result<Vec<Child>, StorageError> {
    let prefix = row::children_prefix(folder);
    let end = row::prefix_end(&prefix);
    let mut from = after.map_or_else(|| prefix.clone(), |child| row::past_child(&prefix, child));
    let mut out = Vec::new();
    while out.len() < limit {
        let found = chunk(shared, &from, end.as_deref(), CHUNK_KEYS.min(limit.saturating_add(1)))?;
        let mut past: Option<Vec<u8>> = None;
        for key in found.items.keys() {
            if past.as_deref().is_some_and(|past| key.as_ref() < past) {
                continue; // below a folder that is listed already
            }
            if out.len() == limit {
                return Ok(out);
            }
            let child = row::child_of(&key[prefix.len()..])?;
            past = Some(row::past_child(&prefix, &child));
            out.push(child);
        }
        match found.next {
            Some(next) => from = past.map_or_else(|| next.clone(), |past| past.max(next.clone())),
            None => break,
        }
    }
    Ok(out)
}

/// Lists staged pieces.
pub(crate) fn staged(shared: &Shared, limit: usize) -> Result<Vec<RecordKey>, StorageError> {
    let (mut from, end) = (vec![STAGED], [STAGED + 1]);
    let mut out = Vec::new();
    while out.len() < limit {
        let found = chunk(shared, &from, Some(&end), CHUNK_KEYS)?;
        for key in found.items.keys().take(limit - out.len()) {
            let key = row::record_of(key);
            out.push(key.map_err(|_| StorageError::damaged("a key of the state cannot be read"))?);
        }
        match found.next {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(out)
}

/// Calls `emit` for every row as it was at the cut, in the order of keys.
///
/// A live row is read first, then the undo map, whose row wins: apply notes there what a key held
/// before it changes it. Keys that vanished since the cut are in the undo map alone.
pub(crate) fn rows_at_cut(
    shared: &Shared,
    mut emit: impl FnMut(&[u8], &Row) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    for area in row::DATA_AREAS {
        let end = [area + 1];
        let mut from = vec![area];
        loop {
            let found = chunk(shared, &from, Some(&end), CHUNK_KEYS)?;
            let upper = found.next.clone().unwrap_or_else(|| end.to_vec());
            // A row whose parts were replaced while it was read has changed since the cut: the undo
            // map has it.
            let mut rows: BTreeMap<Bytes, Option<Row>> = BTreeMap::new();
            for (key, item) in found.items {
                let row = match item {
                    Found::Memory(row) => Some(row),
                    Found::Disk(bytes) => found.tree.whole(&key, row::decode(&bytes)?)?,
                };
                rows.insert(key, row);
            }
            {
                let view = shared.view.read();
                let undo = view.undo.as_ref().ok_or_else(given_up)?;
                if undo.overflowed {
                    return Err(given_up());
                }
                for (key, row) in undo.range(&from, &upper) {
                    match row {
                        Some(row) => rows.insert(key.clone(), Some(row.clone())),
                        None => rows.remove(key),
                    };
                }
            }
            for (key, row) in &rows {
                let row = row.as_ref().ok_or_else(|| {
                    StorageError::damaged("parts of a large value of the state are missing")
                })?;
                emit(key, row)?;
            }
            match found.next {
                Some(next) => from = next,
                None => break,
            }
        }
    }
    Ok(())
}

fn given_up() -> StorageError {
    StorageError::Busy {
        what: "writing faster than the snapshot could follow, or an install; it was given up and it"
            .to_owned(),
    }
}
