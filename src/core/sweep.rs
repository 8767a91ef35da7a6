//! Background work of the leader: records that nothing refers to any more.

use std::sync::Arc;

use bytes::Bytes;
use keystead_raft::ProposeOutcome;
use keystead_storage::{
    Child, FolderKey, MAX_OPERATIONS, RecordKey, RequestId, SealedState, Txn, Write, operation_count,
};

use super::{
    Core,
    error::ApiError,
    mounts::MountTable,
    request::fresh_id,
    response::{Answer, Response},
    txn::{Transaction, storage_error},
};
use crate::{barrier::MountId, engines};

/// Records that one step deletes.
const BATCH: usize = 200;

/// What a step of the sweep came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// There is nothing to do.
    Nothing,
    /// Something was done, and there may be more.
    Some,
}

impl Core {
    /// Does one small piece of the leader's background work. To be called now and then, and again soon while it finds
    /// something.
    ///
    /// # Errors
    /// When the node is sealed, does not lead or fails to write; the work stays for another time.
    pub async fn background_step(&self) -> Result<Swept, ApiError> {
        if self.sweep_step().await? == Swept::Some {
            return Ok(Swept::Some);
        }
        if self.tend_keys().await? == Swept::Some {
            return Ok(Swept::Some);
        }
        self.rewrap_step().await
    }

    /// Deletes some of what nothing refers to any more, as one log entry. To be called on the leader, now and then,
    /// and again soon while it finds something.
    ///
    /// # Errors
    /// When the node is sealed, does not lead or fails to write; the work stays for another time.
    pub async fn sweep_step(&self) -> Result<Swept, ApiError> {
        let (unsealed, replica) = self.open()?;
        let state = replica.state();
        let mut txn =
            Transaction::new(Arc::clone(&unsealed.barrier), Arc::clone(&state), replica.cluster_time_ms());
        let mut table = MountTable::load(&mut txn)?;
        let entry = if let Some(&mount) = table.removed.first() {
            let records = some_records(&*state, mount)?;
            if records.is_empty() {
                table.removed.remove(0);
                table.store(&mut txn)?;
                into_entry(txn)?
            } else {
                // No checks: nothing can be written below a mount that is gone, for every write depends on
                // the mount table.
                bounded_deletes(records)
            }
        } else {
            let mut found = false;
            for mount in &table.mounts {
                found = engines::sweep(mount, &mut txn)?;
                if found {
                    break;
                }
            }
            if !found {
                return Ok(Swept::Nothing);
            }
            into_entry(txn)?
        };
        match replica.propose(entry).await {
            Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => Ok(Swept::Some),
            // Somebody was there in between; the next step looks again.
            Ok(ProposeOutcome::Conflict { .. }) => Ok(Swept::Some),
            Err(error) => Err(ApiError::Busy(error.to_string())),
        }
    }
}

/// An entry that nobody will ask about again: it stays out of the request window.
fn into_entry(txn: Transaction) -> Result<Txn, ApiError> {
    let nobody = Response { id: fresh_id(), result: Ok(Answer::NoContent) };
    let mut entry = txn.into_entry(nobody.id, &nobody)?;
    entry.request_id = RequestId::NONE;
    entry.response = Bytes::new();
    Ok(entry)
}

/// Up to [`BATCH`] records below a mount, depth first.
fn some_records(state: &dyn SealedState, mount: MountId) -> Result<Vec<RecordKey>, ApiError> {
    let mut records = Vec::new();
    let mut folders = vec![FolderKey::root(mount.0)];
    let invalid = |error| ApiError::internal("walking a removed mount", &error);
    while let Some(folder) = folders.pop() {
        let children = state.children(&folder, None, BATCH).map_err(|error| storage_error(&error))?;
        for Child { segment, folder: is_folder } in children {
            if is_folder {
                folders.push(folder.folder(&segment).map_err(invalid)?);
            } else {
                records.push(folder.child(&segment).map_err(invalid)?);
            }
        }
        if records.len() >= BATCH {
            break;
        }
    }
    records.truncate(BATCH);
    Ok(records)
}

/// As many deletions as one entry may hold: deep paths have many folders that vanish with them.
fn bounded_deletes(mut records: Vec<RecordKey>) -> Txn {
    loop {
        let writes = records.iter().map(|key| Write::Delete { key: key.clone() }).collect();
        let entry = Txn { writes, ..Txn::default() };
        if operation_count(&entry) <= MAX_OPERATIONS || records.len() == 1 {
            return entry;
        }
        records.truncate(records.len() / 2);
    }
}
