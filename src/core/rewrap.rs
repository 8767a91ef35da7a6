//! After a rotation: what older barrier keys have sealed is sealed anew, in the background.
//!
//! The leader walks all records, a few at a time. Which key sealed a value stands in front of it, so what is new enough is
//! only read. A record that changes meanwhile is left to whoever changed it, for that seals under the newest key. When the walk
//! has come to its end the term is written down, so that the next leader does not begin again.

use std::sync::Arc;

use bytes::Bytes;
use keystead_raft::ProposeOutcome;
use keystead_storage::{Check, Child, FolderKey, RecordKey, SealedState, Txn, Write};

use super::{
    Core, codec,
    error::ApiError,
    mounts::MountTable,
    sweep::Swept,
    txn::{Transaction, kind, open_any, seal_record, storage_error},
};
use crate::{
    barrier::{Barrier, MountId, value_term},
    engines,
};

const PATH: [&str; 2] = ["core", "sealed-under"];
/// What one entry seals anew, at most.
const RECORDS: usize = 64;
const BYTES: usize = 256 << 10;
/// Records that one step looks at, at most.
const LOOKED_AT: usize = 2_000;
const PAGE: usize = 200;

/// How far it has come, on a leader.
#[derive(Default)]
pub(super) struct Rewrap {
    /// The term that everything is to be sealed under.
    term: u32,
    /// Folders to go through, the last one next, each from behind a child.
    todo: Vec<(FolderKey, Option<Child>)>,
    sealed: u64,
    done: bool,
}

/// What one step found.
struct Found {
    todo: Vec<(FolderKey, Option<Child>)>,
    checks: Vec<Check>,
    writes: Vec<Write>,
}

impl Core {
    /// Seals a few records anew, if an older key has sealed them. To be called on the leader.
    ///
    /// # Errors
    /// When the node is sealed, does not lead, or a record does not open; it goes on there another time.
    pub(super) async fn rewrap_step(&self) -> Result<Swept, ApiError> {
        let (unsealed, replica) = self.open()?;
        let mut rewrap = self.rewrap.lock().await;
        let term = unsealed.barrier.term();
        if !replica.leadership().borrow().is_self {
            *rewrap = Rewrap::default();
            return Ok(Swept::Nothing);
        }
        let state = replica.state();
        if rewrap.term != term {
            let mut txn = Transaction::new(
                Arc::clone(&unsealed.barrier),
                Arc::clone(&state),
                replica.cluster_time_ms(),
            );
            *rewrap = begin(term, &unsealed.barrier, &mut txn)?;
        }
        // What grows is refused when disks are full, and this would.
        if rewrap.done || replica.shortage().is_some() {
            return Ok(Swept::Nothing);
        }
        let found = look(&rewrap.todo, term, &unsealed.barrier, &*state)?;
        let (ends, records) = (found.todo.is_empty(), found.writes.len() as u64);
        let mut writes = found.writes;
        if ends {
            let record = codec::encode(&term)?;
            writes.push(seal_record(&unsealed.barrier, MountId::VAULT, &PATH, kind::SEALED_UNDER, &record)?);
        }
        if !writes.is_empty() {
            let entry = Txn { checks: found.checks, writes, ..Txn::default() };
            match replica.propose(entry).await {
                Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => {}
                // Somebody changed one of them: the next step looks again.
                Ok(ProposeOutcome::Conflict { .. }) => return Ok(Swept::Some),
                Err(error) => return Err(ApiError::Busy(error.to_string())),
            }
        }
        metrics::counter!("keystead_barrier_resealed_total").increment(records);
        rewrap.todo = found.todo;
        rewrap.sealed += records;
        if ends {
            rewrap.done = true;
            tracing::info!(
                term,
                records = rewrap.sealed,
                "everything is sealed under the newest barrier key"
            );
        }
        Ok(Swept::Some)
    }
}

fn begin(term: u32, barrier: &Barrier, txn: &mut Transaction) -> Result<Rewrap, ApiError> {
    let known = txn.get(MountId::VAULT, &PATH, kind::SEALED_UNDER)?;
    let known: u32 = known.map_or(Ok(1), |record| codec::decode(&record))?;
    if known >= term {
        return Ok(Rewrap { term, done: true, ..Rewrap::default() });
    }
    let table = MountTable::load(txn)?;
    let mounts = table.mounts.iter().flat_map(engines::record_roots);
    let roots = std::iter::once(MountId::VAULT).chain(mounts);
    let todo = roots.map(|mount| (FolderKey::root(mount.0), None)).collect();
    debug_assert_eq!(barrier.term(), term);
    Ok(Rewrap { term, todo, ..Rewrap::default() })
}

/// The next records that an older key has sealed, sealed anew, and where to go on.
fn look(
    todo: &[(FolderKey, Option<Child>)],
    term: u32,
    barrier: &Barrier,
    state: &dyn SealedState,
) -> Result<Found, ApiError> {
    let mut found = Found { todo: todo.to_vec(), checks: Vec::new(), writes: Vec::new() };
    let (mut bytes, mut looked_at) = (0, 0);
    let invalid = |error| ApiError::internal("walking the records", &error);
    while let Some((folder, after)) = found.todo.pop() {
        let page = state.children(&folder, after.clone(), PAGE).map_err(|error| storage_error(&error))?;
        let whole = page.len() < PAGE;
        let (mut last, mut below) = (after, Vec::new());
        let mut full = false;
        for child in page {
            full = found.writes.len() >= RECORDS || bytes >= BYTES || looked_at >= LOOKED_AT;
            if full {
                break;
            }
            looked_at += 1;
            if child.folder {
                below.push((folder.folder(&child.segment).map_err(invalid)?, None));
            } else {
                let key = folder.child(&child.segment).map_err(invalid)?;
                bytes += reseal(key, term, barrier, state, &mut found)?;
            }
            last = Some(child);
        }
        if full || !whole {
            found.todo.push((folder, last));
        }
        found.todo.extend(below);
        if full {
            break;
        }
    }
    Ok(found)
}

/// Adds one record to what was found, if an older key has sealed it. Gives the bytes it has.
fn reseal(
    key: RecordKey,
    term: u32,
    barrier: &Barrier,
    state: &dyn SealedState,
    found: &mut Found,
) -> Result<usize, ApiError> {
    let Some(record) = state.get(&key).map_err(|error| storage_error(&error))? else { return Ok(0) };
    let of = value_term(&record.value).map_err(|error| ApiError::internal("reading a record", &error))?;
    if of >= term {
        return Ok(0);
    }
    let opened = open_any(barrier, key.as_bytes(), &record.value);
    let (kind, value) =
        opened.ok_or_else(|| ApiError::internal("sealing a record anew", &"it does not open"))?;
    let value = Bytes::from(barrier.seal_value(kind, key.as_bytes(), &value));
    let bytes = value.len();
    found.checks.push(Check::Record { key: key.clone(), version: Some(record.version) });
    found.writes.push(Write::Put { key, value });
    Ok(bytes)
}
