//! Opening everything that a backup holds, as the vault would.

use std::collections::BTreeMap;

use bytes::Bytes;
use keystead_storage::{RecordKey, SnapshotItem};

use super::{Backup, BackupError};
use crate::{
    barrier::{Barrier, Keyring, RecordType, derive},
    core::txn::{kind, open_any},
    node::key_records,
    seal::SealConfig,
    secret::RootKey,
};

/// The records that lead to the keys.
#[derive(Default, Clone)]
pub struct KeyRecords {
    seal_config: Option<Bytes>,
    keyring: Option<Bytes>,
}

impl KeyRecords {
    /// Looks at one thing that a snapshot holds.
    pub fn take(&mut self, item: &SnapshotItem) {
        if let SnapshotItem::Record { key, record } = item {
            let [seal_config, keyring] = key_records();
            if *key == seal_config {
                self.seal_config = Some(record.value.clone());
            } else if *key == keyring {
                self.keyring = Some(record.value.clone());
            }
        }
    }

    /// The seal configuration: which shares and seals open it.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] without one.
    pub fn seal_config(&self) -> Result<SealConfig, BackupError> {
        let bytes = self.seal_config.as_ref();
        let bytes = bytes.ok_or_else(|| BackupError::Damaged("it has no seal configuration".to_owned()))?;
        SealConfig::decode(bytes).map_err(|error| BackupError::Damaged(error.to_string()))
    }

    /// The keyring, sealed under the root key.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] without one.
    pub fn sealed_keyring(&self) -> Result<&Bytes, BackupError> {
        self.keyring.as_ref().ok_or_else(|| BackupError::Damaged("it has no keyring".to_owned()))
    }

    /// Opens the keyring, after root key, seal configuration and the backup's own seal were found to be of each other.
    ///
    /// # Errors
    /// [`BackupError::Refused`] for a root key of something else and for a forged backup.
    pub fn open(&self, backup: &Backup, root: &RootKey) -> Result<Barrier, BackupError> {
        let config = self.seal_config()?;
        let refused = |error: &dyn std::fmt::Display| BackupError::Refused(error.to_string());
        config.verify(root).map_err(|error| refused(&error))?;
        let (vault_id, generation) = (config.vault_id, config.root_generation);
        let key = derive::<crate::barrier::Backup>(root, vault_id, generation);
        let seal = &backup.seal;
        if seal.vault_id != vault_id || seal.root_generation != generation || !seal.is_of(&key, &backup.sums)
        {
            return Err(BackupError::Refused(
                "the snapshot was changed after it was made: its checksums are right, and no open node of this vault has sealed them"
                    .to_owned(),
            ));
        }
        let keyring = Keyring::open(self.sealed_keyring()?, root, vault_id, generation)
            .map_err(|error| refused(&error))?;
        Ok(Barrier::new(vault_id, keyring))
    }
}

/// What a backup was found to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Records outside of the barrier.
    pub clear: u64,
    /// Sealed records, by their kind's number.
    pub sealed: BTreeMap<u8, u64>,
    /// Remembered answers.
    pub requests: u64,
}

impl Contents {
    /// Sealed records of a kind.
    #[must_use]
    pub fn of(&self, kind: RecordType) -> u64 {
        self.sealed.get(&kind.0).copied().unwrap_or(0)
    }

    /// All records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.clear + self.sealed.values().sum::<u64>()
    }
}

/// Opens one thing that a backup holds, path and value, and counts it. Nothing of it is kept.
///
/// # Errors
/// [`BackupError::Refused`] for what does not open, without its name.
pub fn check(barrier: &Barrier, item: &SnapshotItem, contents: &mut Contents) -> Result<(), BackupError> {
    let refused =
        |what: &str| BackupError::Refused(format!("{what} does not open with the keys of this snapshot"));
    match item {
        SnapshotItem::Folder => {}
        SnapshotItem::Request { id, response } => {
            barrier
                .open_value(kind::RESPONSE, &id.0, response)
                .map_err(|_| refused("a remembered answer"))?;
            contents.requests += 1;
        }
        SnapshotItem::Record { key, record } if is_sealed(key) => {
            barrier.open_path(key.as_bytes()).map_err(|_| refused("the path of a record"))?;
            let (kind, _) =
                open_any(barrier, key.as_bytes(), &record.value).ok_or_else(|| refused("a record"))?;
            *contents.sealed.entry(kind.0).or_default() += 1;
        }
        SnapshotItem::Record { .. } => contents.clear += 1,
    }
    Ok(())
}

fn is_sealed(key: &RecordKey) -> bool {
    key.split().is_some()
}
