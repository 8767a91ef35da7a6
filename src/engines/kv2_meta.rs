//! What KV v2 stores: the metadata of a key, the configuration of a mount, and how both are shown.
//!
//! Records below the mount: `c` is the configuration; `m/<path>` the metadata of a key, so that the folders of
//! names are the folders of records; `v/<id>.<n>` the n-th version of the key whose metadata names `id`;
//! `t/<id>.<from>` versions that are unlinked and wait for the sweep. The id is drawn when the key is created:
//! a key that is deleted and made again never meets versions of its former life, and a put touches two records
//! however long the history is.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bincode::{Decode, Encode};
use serde_json::{Map, Value, json};

use crate::{
    barrier::MountId,
    core::{
        codec,
        error::ApiError,
        mounts::{EngineKind, MountEntry},
        time::{go_duration, rfc3339},
        txn::{Transaction, kind},
    },
    secret::{SecretBytes, random_array},
};

/// Versions kept when neither key nor mount says how many.
const DEFAULT_MAX_VERSIONS: u64 = 10;
/// What a mount's records stand below, and what it had before it had versions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Where the records are.
    pub records: MountId,
    /// The mount has been upgraded.
    pub before: Option<Before>,
}

/// The secrets of a mount from the time when it had no versions. They are never moved: an upgrade is one write
/// however many there are, and none of them can be too large for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// Where they are, each under the path of its key.
    pub mount: MountId,
    /// When the mount was upgraded.
    pub since_ms: u64,
}

impl Place {
    pub fn of(mount: &MountEntry) -> Self {
        match mount.engine {
            EngineKind::Kv2Upgraded { records, since_ms } => {
                Self { records, before: Some(Before { mount: mount.id, since_ms }) }
            }
            _ => Self { records: mount.id, before: None },
        }
    }
}

/// What names the versions of a key: so many keys that two of them drew the same will never be.
type Id = [u8; 12];

/// Version records that one request deletes itself; what is more waits for the sweep.
const MAX_DELETED_AT_ONCE: u64 = 100;

/// The configuration of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Config {
    pub max_versions: u64,
    pub cas_required: bool,
    /// 0 is unset, negative is off.
    pub delete_version_after_s: i64,
}

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct VersionMeta {
    pub created_ms: u64,
    /// When it was or will be deleted; 0 for never.
    pub deletion_ms: u64,
    pub destroyed: bool,
}

/// The metadata of a key.
///
/// Stored, a time is the distance from the one before: it takes as many bytes as it needs, and every put writes it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Meta {
    pub id: Id,
    pub created_ms: u64,
    pub updated_ms: u64,
    /// 0 as long as there is none.
    pub current_version: u64,
    /// Number of the first of `versions`; meaningless while that is empty.
    pub first_version: u64,
    /// 0 is unset.
    pub max_versions: u64,
    pub cas_required: bool,
    /// 0 is unset, negative is off.
    pub delete_version_after_s: i64,
    pub custom: Option<BTreeMap<String, String>>,
    /// Without gaps, ending in `current_version`.
    pub versions: Vec<VersionMeta>,
}

/// Versions of a key that nothing refers to any more.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Garbage {
    pub id: Id,
    pub from: u64,
    /// Inclusive.
    pub to: u64,
}

impl Config {
    pub fn load(mount: MountId, txn: &mut Transaction) -> Result<Self, ApiError> {
        txn.get(mount, &["c"], kind::KV2_CONFIG)?.map_or(Ok(Self::default()), |bytes| codec::decode(&bytes))
    }

    pub fn store(&self, mount: MountId, txn: &mut Transaction) -> Result<(), ApiError> {
        txn.put(mount, &["c"], kind::KV2_CONFIG, codec::encode(self)?)
    }
}

impl VersionMeta {
    /// Deleted by now.
    pub fn deleted(&self, now_ms: u64) -> bool {
        self.deletion_ms != 0 && self.deletion_ms <= now_ms
    }

    fn deletion_time(&self) -> String {
        if self.deletion_ms == 0 { String::new() } else { rfc3339(self.deletion_ms) }
    }
}

impl Meta {
    pub fn new(now_ms: u64) -> Self {
        Self {
            id: random_array(),
            created_ms: now_ms,
            updated_ms: now_ms,
            current_version: 0,
            first_version: 0,
            max_versions: 0,
            cas_required: false,
            delete_version_after_s: 0,
            custom: None,
            versions: Vec::new(),
        }
    }

    pub fn load(place: Place, key: &[&str], txn: &mut Transaction) -> Result<Option<Self>, ApiError> {
        if let Some(bytes) = txn.get(place.records, &meta_path(key), kind::KV2_META)? {
            return codec::decode(&bytes).map(|stored: Self| Some(stored.with_times()));
        }
        let Some(before) = place.before else { return Ok(None) };
        let found = txn.get(before.mount, key, kind::KV1)?.is_some();
        Ok(found.then(|| Self::of_before(before.since_ms)))
    }

    /// The metadata of a key that was there before there were versions: as if it had been written once.
    fn of_before(since_ms: u64) -> Self {
        let mut meta = Self::new(since_ms);
        meta.push(&Config::default(), since_ms);
        meta
    }

    /// Reads the text of a version.
    pub fn read(
        &self,
        place: Place,
        key: &[&str],
        number: u64,
        txn: &mut Transaction,
    ) -> Result<Option<SecretBytes>, ApiError> {
        let bytes = txn.get(place.records, &["v", &version_name(self.id, number)], kind::KV2_VERSION)?;
        match (bytes, place.before) {
            (None, Some(before)) if number == 1 => txn.get(before.mount, key, kind::KV1),
            (bytes, _) => Ok(bytes),
        }
    }

    /// Writes the text of a version.
    pub fn write(
        &self,
        place: Place,
        number: u64,
        text: Vec<u8>,
        txn: &mut Transaction,
    ) -> Result<(), ApiError> {
        txn.put(place.records, &["v", &version_name(self.id, number)], kind::KV2_VERSION, text)
    }

    /// Deletes the text of a version.
    pub fn erase(
        &self,
        place: Place,
        key: &[&str],
        number: u64,
        txn: &mut Transaction,
    ) -> Result<(), ApiError> {
        self.erase_before(place, key, number, txn)?;
        delete_version(place.records, self.id, number, txn)
    }

    /// Deletes what the key was before there were versions, if that goes with version `from`.
    fn erase_before(
        &self,
        place: Place,
        key: &[&str],
        from: u64,
        txn: &mut Transaction,
    ) -> Result<(), ApiError> {
        match place.before {
            Some(before) if from == 1 => txn.delete(before.mount, key),
            _ => Ok(()),
        }
    }

    /// Deletes the metadata and the texts of all versions.
    pub fn delete(&self, place: Place, key: &[&str], txn: &mut Transaction) -> Result<(), ApiError> {
        txn.delete(place.records, &meta_path(key))?;
        if self.versions.is_empty() {
            return Ok(());
        }
        self.erase_before(place, key, self.first_version, txn)?;
        discard(place.records, self.id, self.first_version, self.current_version, txn)
    }

    pub fn store(&self, mount: MountId, key: &[&str], txn: &mut Transaction) -> Result<(), ApiError> {
        txn.put(mount, &meta_path(key), kind::KV2_META, codec::encode(&self.with_distances())?)
    }

    /// As it is stored. Times may lie before one another, so distances wrap around.
    fn with_distances(&self) -> Self {
        let mut stored = self.clone();
        let mut before = self.created_ms;
        for version in &mut stored.versions {
            let created_ms = version.created_ms;
            version.created_ms = created_ms.wrapping_sub(before);
            before = created_ms;
        }
        stored.updated_ms = self.updated_ms.wrapping_sub(before);
        stored
    }

    /// What [`Meta::with_distances`] was made of.
    fn with_times(mut self) -> Self {
        let mut before = self.created_ms;
        for version in &mut self.versions {
            version.created_ms = version.created_ms.wrapping_add(before);
            before = version.created_ms;
        }
        self.updated_ms = self.updated_ms.wrapping_add(before);
        self
    }

    pub fn version(&self, number: u64) -> Option<&VersionMeta> {
        let at = number.checked_sub(self.first_version)?;
        self.versions.get(usize::try_from(at).ok()?)
    }

    pub fn version_mut(&mut self, number: u64) -> Option<&mut VersionMeta> {
        let at = number.checked_sub(self.first_version)?;
        self.versions.get_mut(usize::try_from(at).ok()?)
    }

    /// Adds a version and gives back its number.
    pub fn push(&mut self, config: &Config, now_ms: u64) -> u64 {
        let after_s = match (self.delete_version_after_s, config.delete_version_after_s) {
            // Switched off, on either side.
            (own, mounts) if own < 0 || mounts < 0 => 0,
            (0, seconds) | (seconds, 0) => seconds,
            (own, mounts) => own.min(mounts),
        };
        let deletion_ms = match u64::try_from(after_s) {
            Ok(seconds) if seconds > 0 => now_ms.saturating_add(seconds.saturating_mul(1_000)),
            _ => 0,
        };
        self.current_version += 1;
        if self.versions.is_empty() {
            self.first_version = self.current_version;
        }
        self.versions.push(VersionMeta { created_ms: now_ms, deletion_ms, destroyed: false });
        self.updated_ms = now_ms;
        self.current_version
    }

    /// Unlinks the versions that are more than are to be kept.
    pub fn trim(
        &mut self,
        place: Place,
        key: &[&str],
        config: &Config,
        txn: &mut Transaction,
    ) -> Result<(), ApiError> {
        let keep = match (self.max_versions, config.max_versions) {
            (0, 0) => DEFAULT_MAX_VERSIONS,
            (0, mounts) => mounts,
            (own, _) => own,
        };
        let excess = self.versions.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        if excess == 0 {
            return Ok(());
        }
        let from = self.first_version;
        let to = from + excess as u64 - 1;
        self.versions.drain(..excess);
        self.first_version = to + 1;
        self.erase_before(place, key, from, txn)?;
        discard(place.records, self.id, from, to, txn)
    }

    /// The number that clients call the oldest version: 0 until one was trimmed.
    fn oldest_version(&self) -> u64 {
        if self.first_version > 1 { self.first_version } else { 0 }
    }

    fn custom_json(&self) -> Value {
        match &self.custom {
            Some(custom) => custom.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect(),
            None => Value::Null,
        }
    }

    /// What goes with a version's data.
    pub fn version_json(&self, number: u64, version: &VersionMeta) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("created_time".to_owned(), rfc3339(version.created_ms).into());
        map.insert("custom_metadata".to_owned(), self.custom_json());
        map.insert("deletion_time".to_owned(), version.deletion_time().into());
        map.insert("destroyed".to_owned(), version.destroyed.into());
        map.insert("version".to_owned(), number.into());
        map
    }

    /// What `metadata/<key>` shows.
    pub fn to_json(&self) -> Map<String, Value> {
        let versions: Map<String, Value> = (self.first_version..)
            .zip(&self.versions)
            .map(|(number, version)| {
                let shown = json!({
                    "created_time": rfc3339(version.created_ms),
                    "deletion_time": version.deletion_time(),
                    "destroyed": version.destroyed,
                });
                (number.to_string(), shown)
            })
            .collect();
        let mut map = Map::new();
        map.insert("cas_required".to_owned(), self.cas_required.into());
        map.insert("created_time".to_owned(), rfc3339(self.created_ms).into());
        map.insert("current_version".to_owned(), self.current_version.into());
        map.insert("custom_metadata".to_owned(), self.custom_json());
        map.insert("delete_version_after".to_owned(), go_duration(self.delete_version_after_s).into());
        map.insert("max_versions".to_owned(), self.max_versions.into());
        map.insert("oldest_version".to_owned(), self.oldest_version().into());
        map.insert("updated_time".to_owned(), rfc3339(self.updated_ms).into());
        map.insert("versions".to_owned(), versions.into());
        map
    }
}

/// Deletes the records of versions that nothing refers to any more, or leaves a note for the sweep when there
/// are too many for one entry.
fn discard(mount: MountId, id: Id, from: u64, to: u64, txn: &mut Transaction) -> Result<(), ApiError> {
    let direct_to = to.min(from.saturating_add(MAX_DELETED_AT_ONCE - 1));
    for number in from..=direct_to {
        delete_version(mount, id, number, txn)?;
    }
    if direct_to < to {
        let rest = Garbage { id, from: direct_to + 1, to };
        let name = format!("{}.{}", hex::encode(id), rest.from);
        txn.put(mount, &["t", &name], kind::KV2_GARBAGE, codec::encode(&rest)?)?;
    }
    Ok(())
}

/// Does one piece of what [`discard`] left over. True when there may be more.
pub(super) fn sweep(mount: MountId, txn: &mut Transaction) -> Result<bool, ApiError> {
    let Some(note) = txn.list(mount, &["t"])?.into_iter().next() else {
        return Ok(false);
    };
    if let Some(bytes) = txn.get(mount, &["t", &note.name], kind::KV2_GARBAGE)? {
        let garbage: Garbage = codec::decode(&bytes)?;
        txn.delete(mount, &["t", &note.name])?;
        discard(mount, garbage.id, garbage.from, garbage.to, txn)?;
    }
    Ok(true)
}

fn delete_version(mount: MountId, id: Id, number: u64, txn: &mut Transaction) -> Result<(), ApiError> {
    txn.delete(mount, &["v", &version_name(id, number)])
}

/// The name of a version's record. All versions of all keys lie in one folder, so that a put changes that
/// folder's row, which it shares with all other puts, and not one of its own.
fn version_name(id: Id, number: u64) -> String {
    format!("{}.{number}", URL_SAFE_NO_PAD.encode(id))
}

fn meta_path<'a>(key: &[&'a str]) -> Vec<&'a str> {
    let mut path = Vec::with_capacity(key.len() + 1);
    path.push("m");
    path.extend_from_slice(key);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_stored_as_distances_and_come_back() {
        let mut meta = Meta::new(1_700_000_000_000);
        let before = codec::encode(&meta.with_distances()).unwrap().len();
        for now_ms in [1_700_000_000_000, 1_700_000_060_000, 1_600_000_000_000, u64::MAX] {
            meta.push(&Config::default(), now_ms);
        }
        assert_eq!(meta.with_distances().with_times(), meta);
        let mut fresh = Meta::new(1_700_000_000_000);
        fresh.push(&Config::default(), fresh.created_ms);
        assert_eq!(codec::encode(&fresh.with_distances()).unwrap().len(), before + 3);
    }
}
