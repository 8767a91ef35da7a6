//! A transaction: what one request read, and what it wants to write.
//!
//! Engines work on plaintext and on names; this is the only place of the request path where either is sealed.
//! Every read is recorded with the version it saw, so that the log entry can say under which conditions its
//! writes may land, and so that an answer that only reads can be proved to be one point in time.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use keystead_storage::{
    Check, Child, FolderKey, RecordKey, RequestId, SealedState, StorageError, Txn, Version, Write,
};

use super::{error::ApiError, response::Response};
use crate::{
    barrier::{Barrier, MountId, RecordType},
    secret::SecretBytes,
};

/// Most records that one request may write.
pub const MAX_WRITES: usize = 256;
/// How many children are read at a time.
const LIST_PAGE: usize = 1_000;
/// Names that one listing may hold.
const MAX_LISTED: usize = 1_000_000;

/// Kinds of sealed records. The numbers are part of what is sealed: none is ever used for another kind.
pub mod kind {
    use crate::barrier::RecordType;

    macro_rules! kinds {
        ($($(#[$doc:meta])+ $name:ident = $number:literal,)+) => {
            $($(#[$doc])+ pub const $name: RecordType = RecordType($number);)+
            /// All of them.
            pub const ALL: &[RecordType] = &[$($name),+];
        };
    }

    kinds! {
        /// The answer to a write, kept beside it in the request window.
        RESPONSE = 1,
        /// The mount table.
        MOUNTS = 2,
        /// A token.
        TOKEN = 3,
        /// The latest moves of mounts.
        MOUNT_MOVES = 4,
        /// The cluster CA.
        CLUSTER_CA = 5,
        /// When the barrier key is rotated.
        ROTATION = 6,
        /// The barrier term under which everything is sealed.
        SEALED_UNDER = 7,
        /// Shares that a rekey made, encrypted for their holders.
        SHARE_BACKUP = 8,
        /// A schedule of snapshots.
        SNAPSHOT_AUTO = 9,
        /// How the latest snapshots of a schedule went.
        SNAPSHOT_AUTO_STATUS = 10,
        /// A secret of the first version of KV.
        KV1 = 16,
        /// The configuration of a KV v2 mount.
        KV2_CONFIG = 17,
        /// The metadata of a key of KV v2.
        KV2_META = 18,
        /// One version of a key of KV v2.
        KV2_VERSION = 19,
        /// Versions of KV v2 that are unlinked and wait for the sweep.
        KV2_GARBAGE = 20,
    }
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The name without a slash.
    pub name: String,
    /// It names a folder.
    pub folder: bool,
}

/// A record's plaintext and its version; `None` for one that this transaction has written itself.
pub type Versioned = (SecretBytes, Option<Version>);

enum Pending {
    Put { kind: RecordType, value: SecretBytes },
    Delete,
}

/// One request's view of the state. See the module's text.
pub struct Transaction {
    barrier: Arc<Barrier>,
    state: Arc<dyn SealedState>,
    now_ms: u64,
    start_index: u64,
    records: BTreeMap<RecordKey, Option<Version>>,
    folders: BTreeMap<FolderKey, Option<Version>>,
    writes: BTreeMap<RecordKey, Pending>,
    deletes: bool,
}

impl Transaction {
    /// A transaction that has read nothing, at cluster time `now_ms`.
    pub fn new(barrier: Arc<Barrier>, state: Arc<dyn SealedState>, now_ms: u64) -> Self {
        // Taken before the first read: see `is_one_point_in_time`.
        let start_index = state.applied().log_id.map_or(0, |id| id.index);
        Self {
            barrier,
            state,
            now_ms,
            start_index,
            records: BTreeMap::new(),
            folders: BTreeMap::new(),
            writes: BTreeMap::new(),
            deletes: false,
        }
    }

    /// Cluster time, in milliseconds since the Unix epoch. Every expiry is judged by it.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Reads a record; a write of this transaction is seen by its later reads.
    pub fn get(
        &mut self,
        mount: MountId,
        path: &[&str],
        kind: RecordType,
    ) -> Result<Option<SecretBytes>, ApiError> {
        self.get_versioned(mount, path, kind).map(|found| found.map(|(value, _)| value))
    }

    /// As [`Transaction::get`], with the version of the record.
    pub fn get_versioned(
        &mut self,
        mount: MountId,
        path: &[&str],
        kind: RecordType,
    ) -> Result<Option<Versioned>, ApiError> {
        let key = self.record_key(mount, path)?;
        match self.writes.get(&key) {
            Some(Pending::Put { value, .. }) => return Ok(Some((value.clone(), None))),
            Some(Pending::Delete) => return Ok(None),
            None => {}
        }
        let record = self.state.get(&key).map_err(|error| storage_error(&error))?;
        let version = record.as_ref().map(|record| record.version);
        // The first version seen is the one that counts: if a second read sees another, validation fails.
        self.records.entry(key.clone()).or_insert(version);
        let Some(record) = record else {
            return Ok(None);
        };
        let value = self
            .barrier
            .open_value(kind, key.as_bytes(), &record.value)
            .map_err(|error| ApiError::internal("opening a record", &error))?;
        Ok(Some((value, version)))
    }

    /// The version of a record, without opening it. The answer depends on it from now on.
    pub fn version(&mut self, key: &RecordKey) -> Result<Option<Version>, ApiError> {
        let version =
            self.state.get(key).map_err(|error| storage_error(&error))?.map(|record| record.version);
        self.records.entry(key.clone()).or_insert(version);
        Ok(version)
    }

    /// Records that the answer depends on a record that a cache has read, at the version the cache saw.
    pub fn depend_on(&mut self, key: RecordKey, version: Option<Version>) {
        self.records.entry(key).or_insert(version);
    }

    /// Lists a folder in the order of names.
    ///
    /// Names are sealed, so their order on the disk is not theirs and a page of a listing cannot be had
    /// without reading all of it. Writes of this transaction do not show.
    pub fn list(&mut self, mount: MountId, folder: &[&str]) -> Result<Vec<Name>, ApiError> {
        let folder = self.folder_key(mount, folder)?;
        let version = self.state.children_version(&folder).map_err(|error| storage_error(&error))?;
        self.folders.entry(folder.clone()).or_insert(version);
        let mut names = Vec::new();
        let mut after: Option<Child> = None;
        loop {
            let page = self
                .state
                .children(&folder, after.take(), LIST_PAGE)
                .map_err(|error| storage_error(&error))?;
            for child in &page {
                let name = self
                    .barrier
                    .open_segment(folder.as_bytes(), &child.segment)
                    .map_err(|error| ApiError::internal("opening a name", &error))?;
                names.push(Name { name, folder: child.folder });
            }
            if names.len() > MAX_LISTED {
                return Err(ApiError::Refused(format!("folder holds more than {MAX_LISTED} names")));
            }
            if page.len() < LIST_PAGE {
                break;
            }
            after = page.into_iter().next_back();
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Writes a record.
    pub fn put(
        &mut self,
        mount: MountId,
        path: &[&str],
        kind: RecordType,
        value: impl Into<SecretBytes>,
    ) -> Result<(), ApiError> {
        let key = self.record_key(mount, path)?;
        self.writes.insert(key, Pending::Put { kind, value: value.into() });
        Ok(())
    }

    /// Deletes a record; deleting one that is not there is nothing.
    pub fn delete(&mut self, mount: MountId, path: &[&str]) -> Result<(), ApiError> {
        let key = self.record_key(mount, path)?;
        self.writes.insert(key, Pending::Delete);
        Ok(())
    }

    /// Says that what is written here deletes, in the caller's eyes, whatever the operation is called: it is served
    /// where nothing that stores is.
    pub fn mark_delete(&mut self) {
        self.deletes = true;
    }

    /// Whether [`mark_delete`](Self::mark_delete) was called.
    pub fn deletes(&self) -> bool {
        self.deletes
    }

    /// Writes nothing after all; what was read is still checked.
    pub fn discard_writes(&mut self) {
        self.writes.clear();
    }

    /// How many records would be written.
    pub fn writes(&self) -> usize {
        self.writes.len()
    }

    /// Whether all that was read was true at one moment, not earlier than the start of the transaction.
    ///
    /// Free when every read found a record not newer than the applied index at the start: versions only grow,
    /// so each of them was what that index had. A record that was absent proves nothing by itself (it may have
    /// vanished between two reads), nor does a listing; those are asked for again under the apply lock.
    pub fn is_one_point_in_time(&self) -> Result<bool, ApiError> {
        let old =
            |version: &Option<Version>| version.is_some_and(|version| version.index <= self.start_index);
        if self.folders.is_empty() && self.records.values().all(old) {
            return Ok(true);
        }
        self.still_holds()
    }

    /// Whether all that was read is true now.
    pub fn still_holds(&self) -> Result<bool, ApiError> {
        if cfg!(feature = "test-no-read-validation") {
            return Ok(true);
        }
        self.state.validate(&self.checks()).map_err(|error| storage_error(&error))
    }

    /// The log entry: all that was read as checks, all that is to be written, and the answer for whoever asks
    /// again with the same id.
    ///
    /// # Errors
    /// [`ApiError::TooLarge`] when more records would change than an entry may hold.
    pub fn into_entry(self, id: RequestId, response: &Response) -> Result<Txn, ApiError> {
        if self.writes.len() > MAX_WRITES {
            return Err(ApiError::TooLarge(format!(
                "request would write {} records; {MAX_WRITES} are allowed",
                self.writes.len()
            )));
        }
        let checks = self.checks();
        let response = seal_response(&self.barrier, id, response)?;
        let barrier = &self.barrier;
        let writes = self
            .writes
            .into_iter()
            .map(|(key, pending)| match pending {
                Pending::Put { kind, value } => {
                    let value = Bytes::from(barrier.seal_value(kind, key.as_bytes(), &value));
                    Write::Put { key, value }
                }
                Pending::Delete => Write::Delete { key },
            })
            .collect();
        Ok(Txn { request_id: id, checks, writes, response, activate: None })
    }

    fn checks(&self) -> Vec<Check> {
        let records =
            self.records.iter().map(|(key, version)| Check::Record { key: key.clone(), version: *version });
        let folders = self
            .folders
            .iter()
            .map(|(folder, version)| Check::Children { folder: folder.clone(), version: *version });
        records.chain(folders).collect()
    }

    fn record_key(&self, mount: MountId, path: &[&str]) -> Result<RecordKey, ApiError> {
        record_key(&self.barrier, mount, path)
    }

    fn folder_key(&self, mount: MountId, path: &[&str]) -> Result<FolderKey, ApiError> {
        let bytes =
            self.barrier.seal_folder(mount, path).map_err(|error| ApiError::invalid(error.to_string()))?;
        FolderKey::parse(bytes).map_err(|error| ApiError::invalid(error.to_string()))
    }
}

/// The storage key of a record.
///
/// # Errors
/// [`ApiError::Invalid`] when the path is longer than storage allows.
pub fn record_key(barrier: &Barrier, mount: MountId, path: &[&str]) -> Result<RecordKey, ApiError> {
    let bytes = barrier.seal_path(mount, path).map_err(|error| ApiError::invalid(error.to_string()))?;
    RecordKey::parse(bytes).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Seals one record outside of a transaction, for the first records of a vault.
pub fn seal_record(
    barrier: &Barrier,
    mount: MountId,
    path: &[&str],
    kind: RecordType,
    value: &[u8],
) -> Result<Write, ApiError> {
    let key = record_key(barrier, mount, path)?;
    let value = Bytes::from(barrier.seal_value(kind, key.as_bytes(), value));
    Ok(Write::Put { key, value })
}

/// Opens a sealed record of whatever kind. The kind is part of what is sealed and does not stand beside it: the one that
/// opens is the one.
pub fn open_any(barrier: &Barrier, key: &[u8], sealed: &[u8]) -> Option<(RecordType, SecretBytes)> {
    // The numerous ones come last in the list.
    let mut kinds = kind::ALL.iter().rev();
    kinds.find_map(|kind| barrier.open_value(*kind, key, sealed).ok().map(|value| (*kind, value)))
}

/// Seals an answer for the request window. Its place is its id, so that it opens for no other request.
fn seal_response(barrier: &Barrier, id: RequestId, response: &Response) -> Result<Bytes, ApiError> {
    let plain = SecretBytes::from(response.encode_result()?);
    Ok(Bytes::from(barrier.seal_value(kind::RESPONSE, &id.0, &plain)))
}

/// Opens an answer from the request window.
pub fn open_response(barrier: &Barrier, id: RequestId, sealed: &[u8]) -> Result<Response, ApiError> {
    let plain = barrier
        .open_value(kind::RESPONSE, &id.0, sealed)
        .map_err(|error| ApiError::internal("opening a remembered answer", &error))?;
    Response::decode_result(id, &plain)
}

/// What a failure of storage means for a request: nothing it could mend.
pub fn storage_error(error: &StorageError) -> ApiError {
    ApiError::internal("reading the state", error)
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn no_number_is_of_two_kinds() {
        let numbers: std::collections::BTreeSet<u8> = kind::ALL.iter().map(|kind| kind.0).collect();
        assert_eq!(numbers.len(), kind::ALL.len());
    }
}
