//! The mount table: which engine answers below which path, and where its records are.
//!
//! One sealed record holds all of it, so that enabling, disabling and moving a mount is one small write. Every
//! request reads it, through a cache that knows the version it holds.

use std::{collections::BTreeMap, sync::Arc};

use bincode::{Decode, Encode};
use keystead_storage::{RecordKey, Version};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::{
    codec,
    error::ApiError,
    fields::Fields,
    mount_change::check_visibility,
    txn::{Transaction, kind, record_key},
};
use crate::{
    barrier::{Barrier, MountId},
    secret::random_array,
};

/// Path of the table below the vault's own mount.
pub const MOUNTS_PATH: [&str; 1] = ["mounts"];
/// The lease that a mount gives when nothing else says how long: 32 days.
pub const DEFAULT_LEASE_TTL_S: u64 = 2_764_800;
/// First segments that belong to the vault itself.
pub(super) const PROTECTED: [&str; 5] = ["sys", "auth", "cubbyhole", "identity", "audit"];
/// Lists of names in a mount's configuration that are kept for the client and not yet acted on.
pub(super) const NAME_LISTS: [&str; 4] = [
    "audit_non_hmac_request_keys",
    "audit_non_hmac_response_keys",
    "passthrough_request_headers",
    "allowed_response_headers",
];

/// Which engine a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum EngineKind {
    /// The vault's own endpoints.
    System,
    /// Secrets of one token; not built yet.
    Cubbyhole,
    /// Entities and groups; not built yet.
    Identity,
    /// KV without versions.
    Kv1,
    /// KV with versions.
    Kv2,
    /// KV with versions that began without: what stood there is version 1 of its key and stays where it is,
    /// under the mount's own id. Everything of the new kind is below another one.
    Kv2Upgraded {
        /// First segment of all records of the new kind.
        records: MountId,
        /// When it was upgraded, in milliseconds since the Unix epoch: the age of every version that was there.
        since_ms: u64,
    },
}

impl EngineKind {
    /// It is KV with versions, however it began.
    pub fn has_versions(self) -> bool {
        matches!(self, Self::Kv2 | Self::Kv2Upgraded { .. })
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MountEntry {
    /// Where it is, with a slash at the end.
    pub path: String,
    /// What it is.
    pub engine: EngineKind,
    /// What the client called it.
    pub type_name: String,
    /// A public handle.
    pub accessor: String,
    /// First segment of all its records. Never used again, so that a deleted mount's records cannot come back.
    pub id: MountId,
    /// The operator's words.
    pub description: String,
    /// Not replicated beyond this cluster.
    pub local: bool,
    /// Asked for by the client; every record is sealed anyway.
    pub seal_wrap: bool,
    /// Asked for by the client; kept for it.
    pub external_entropy_access: bool,
    /// Options such as `version`.
    pub options: Option<BTreeMap<String, String>>,
    /// Default lease in seconds, 0 for the system's.
    pub default_lease_ttl_s: u64,
    /// Longest lease in seconds, 0 for the system's.
    pub max_lease_ttl_s: u64,
    /// Asked for by the client; kept for it.
    pub force_no_cache: bool,
    /// `unauth`, `hidden` or empty.
    pub listing_visibility: String,
    /// Lists of names, by the field they came in.
    pub name_lists: BTreeMap<String, Vec<String>>,
}

/// All mounts, and those that are gone but not swept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct MountTable {
    /// The mounts, in the order of their paths.
    pub mounts: Vec<MountEntry>,
    /// Unlinked mounts whose records wait for the sweep.
    pub removed: Vec<MountId>,
}

impl MountEntry {
    fn new(path: &str, engine: EngineKind, type_name: &str, description: &str) -> Self {
        let accessor: [u8; 4] = random_array();
        Self {
            path: path.to_owned(),
            engine,
            type_name: type_name.to_owned(),
            accessor: format!("{type_name}_{}", hex::encode(accessor)),
            id: MountId(super::request::fresh_id().0),
            description: description.to_owned(),
            local: false,
            seal_wrap: false,
            external_entropy_access: false,
            options: None,
            default_lease_ttl_s: 0,
            max_lease_ttl_s: 0,
            force_no_cache: false,
            listing_visibility: String::new(),
            name_lists: BTreeMap::new(),
        }
    }

    /// Reads the body of `POST sys/mounts/<path>`.
    pub fn from_request(path: &str, data: &Map<String, Value>) -> Result<Self, ApiError> {
        let fields = Fields(data);
        let sent_type = match fields.text_or_empty("type")? {
            empty if empty.is_empty() => fields.text_or_empty("plugin_name")?,
            sent => sent,
        };
        let mut options = fields.text_map("options")?;
        let version = options.as_ref().and_then(|options| options.get("version").cloned());
        let (engine, type_name) = match sent_type.as_str() {
            "" => return Err(ApiError::invalid("backend type must be specified as a string")),
            "kv" | "kv-v1" | "kv-v2" => {
                let version = match sent_type.as_str() {
                    "kv-v1" => Some("1".to_owned()),
                    "kv-v2" => Some("2".to_owned()),
                    _ => version,
                };
                if let Some(version) = &version {
                    options.get_or_insert_default().insert("version".to_owned(), version.clone());
                }
                match version.as_deref() {
                    None | Some("" | "1") => (EngineKind::Kv1, "kv"),
                    Some("2") => (EngineKind::Kv2, "kv"),
                    Some(_) => return Err(ApiError::invalid("invalid version for a kv mount: use 1 or 2")),
                }
            }
            "generic" if version.is_none() => (EngineKind::Kv1, "generic"),
            "generic" => {
                return Err(ApiError::invalid("secrets engine of this type does not support versioning"));
            }
            other => {
                let shown = if other.len() <= 128 { other } else { "(a very long name)" };
                return Err(ApiError::invalid(format!("plugin not found in the catalog: {shown}")));
            }
        };
        let mut entry = Self::new(path, engine, type_name, &fields.text_or_empty("description")?);
        entry.options = options;
        entry.local = fields.flag("local")?.unwrap_or(false);
        entry.seal_wrap = fields.flag("seal_wrap")?.unwrap_or(false);
        entry.external_entropy_access = fields.flag("external_entropy_access")?.unwrap_or(false);
        if let Some(config) = fields.object("config")? {
            entry.configure(&Fields(config))?;
        }
        Ok(entry)
    }

    fn configure(&mut self, config: &Fields<'_>) -> Result<(), ApiError> {
        self.default_lease_ttl_s = lease_ttl(config, "default_lease_ttl")?;
        self.max_lease_ttl_s = lease_ttl(config, "max_lease_ttl")?;
        if self.max_lease_ttl_s > 0 && self.default_lease_ttl_s > self.max_lease_ttl_s {
            return Err(ApiError::invalid(
                "given default lease TTL greater than given max lease TTL".to_owned(),
            ));
        }
        self.force_no_cache = config.flag("force_no_cache")?.unwrap_or(false);
        self.listing_visibility = check_visibility(config.text_or_empty("listing_visibility")?)?;
        for name in NAME_LISTS {
            if let Some(names) = config.texts(name)?.filter(|names| !names.is_empty()) {
                self.name_lists.insert(name.to_owned(), names);
            }
        }
        Ok(())
    }

    /// What `sys/mounts` shows of it.
    pub fn to_json(&self) -> Value {
        let mut config = Map::new();
        config.insert("default_lease_ttl".to_owned(), self.default_lease_ttl_s.into());
        config.insert("max_lease_ttl".to_owned(), self.max_lease_ttl_s.into());
        config.insert("force_no_cache".to_owned(), self.force_no_cache.into());
        if !self.listing_visibility.is_empty() {
            config.insert("listing_visibility".to_owned(), self.listing_visibility.clone().into());
        }
        for (name, names) in &self.name_lists {
            config.insert(name.clone(), names.clone().into());
        }
        let options = match &self.options {
            Some(options) => options.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect(),
            None => Value::Null,
        };
        serde_json::json!({
            "accessor": self.accessor,
            "config": config,
            "deprecation_status": "supported",
            "description": self.description,
            "external_entropy_access": self.external_entropy_access,
            "local": self.local,
            "options": options,
            "plugin_version": "",
            "running_plugin_version": concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.keystead"),
            "running_sha256": "",
            "seal_wrap": self.seal_wrap,
            "type": self.type_name,
            "uuid": self.id.to_string(),
        })
    }
}

/// A lease time: a duration, `"system"`, or empty; 0 means the system's.
pub(super) fn lease_ttl(config: &Fields<'_>, name: &str) -> Result<u64, ApiError> {
    if config.value(name).and_then(Value::as_str) == Some("system") {
        return Ok(0);
    }
    let seconds = config.duration_s(name)?.unwrap_or(0);
    u64::try_from(seconds).map_err(|_| ApiError::invalid("ttl must be positive"))
}

impl MountTable {
    /// The mounts of a new vault.
    pub fn initial(dev_mounts: bool) -> Self {
        let mut cubbyhole = MountEntry::new(
            "cubbyhole/",
            EngineKind::Cubbyhole,
            "cubbyhole",
            "per-token private secret storage",
        );
        cubbyhole.local = true;
        let identity = MountEntry::new("identity/", EngineKind::Identity, "identity", "identity store");
        let mut system = MountEntry::new(
            "sys/",
            EngineKind::System,
            "system",
            "system endpoints used for control, policy and debugging",
        );
        system.seal_wrap = true;
        let mut mounts = vec![cubbyhole, identity, system];
        if dev_mounts {
            let mut secret = MountEntry::new("secret/", EngineKind::Kv2, "kv", "key/value secret storage");
            secret.options = Some(BTreeMap::from([("version".to_owned(), "2".to_owned())]));
            mounts.insert(2, secret);
        }
        Self { mounts, removed: Vec::new() }
    }

    /// The mount that owns a path, and the rest of the path below it.
    pub fn route<'a, 'p>(&'a self, path: &'p str) -> Option<(&'a MountEntry, &'p str)> {
        self.mounts.iter().find_map(|mount| match path.strip_prefix(mount.path.as_str()) {
            Some(rest) => Some((mount, rest)),
            // `secret` without its slash is the root of the mount, too.
            None => (mount.path.strip_suffix('/') == Some(path)).then_some((mount, "")),
        })
    }

    /// The mount at exactly this path.
    pub fn at(&self, path: &str) -> Option<&MountEntry> {
        self.mounts.iter().find(|mount| mount.path == path)
    }

    /// Adds a mount.
    ///
    /// # Errors
    /// When the path belongs to the vault itself, or lies below or above another mount.
    pub fn enable(&mut self, entry: MountEntry) -> Result<(), ApiError> {
        let first = entry.path.split('/').next().unwrap_or_default();
        if PROTECTED.contains(&first) {
            return Err(ApiError::invalid(format!("cannot mount \"{}\"", entry.path)));
        }
        let clash =
            |mount: &&MountEntry| mount.path.starts_with(&entry.path) || entry.path.starts_with(&mount.path);
        if let Some(other) = self.mounts.iter().find(clash) {
            return Err(ApiError::invalid(format!("path is already in use at {}", other.path)));
        }
        let at = self.mounts.partition_point(|mount| mount.path < entry.path);
        self.mounts.insert(at, entry);
        Ok(())
    }

    /// Unlinks a mount; its records are swept later. False when there was none.
    ///
    /// # Errors
    /// When the path belongs to the vault itself.
    pub fn disable(&mut self, path: &str) -> Result<bool, ApiError> {
        let first = path.split('/').next().unwrap_or_default();
        if PROTECTED.contains(&first) {
            return Err(ApiError::invalid(format!("cannot unmount \"{path}\"")));
        }
        let Some(at) = self.mounts.iter().position(|mount| mount.path == path) else {
            return Ok(false);
        };
        let gone = self.mounts.remove(at);
        self.removed.push(gone.id);
        if let EngineKind::Kv2Upgraded { records, .. } = gone.engine {
            self.removed.push(records);
        }
        Ok(true)
    }

    /// Reads the table through a transaction, so that whatever follows depends on it.
    pub fn load(txn: &mut Transaction) -> Result<Self, ApiError> {
        let bytes = txn
            .get(MountId::VAULT, &MOUNTS_PATH, kind::MOUNTS)?
            .ok_or_else(|| ApiError::internal("reading the mount table", &"there is none"))?;
        codec::decode(&bytes)
    }

    /// Writes the table.
    pub fn store(&self, txn: &mut Transaction) -> Result<(), ApiError> {
        txn.put(MountId::VAULT, &MOUNTS_PATH, kind::MOUNTS, self.encode()?)
    }

    /// The bytes that are sealed.
    pub fn encode(&self) -> Result<Vec<u8>, ApiError> {
        codec::encode(self)
    }
}

/// The decoded mount table, kept until somebody changes it.
#[derive(Default)]
pub struct MountCache {
    inner: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    /// Raised by every invalidation: what was read before one may not be stored after it.
    epoch: u64,
    entry: Option<Cached>,
}

#[derive(Clone)]
struct Cached {
    key: RecordKey,
    version: Option<Version>,
    table: Arc<MountTable>,
}

impl MountCache {
    /// The table, as current as the applied index at the start of `txn`, which from now on depends on it.
    pub fn table(&self, barrier: &Barrier, txn: &mut Transaction) -> Result<Arc<MountTable>, ApiError> {
        let (epoch, cached) = {
            let state = self.inner.lock();
            (state.epoch, state.entry.clone())
        };
        if let Some(cached) = cached {
            txn.depend_on(cached.key, cached.version);
            return Ok(cached.table);
        }
        let (bytes, version) = txn
            .get_versioned(MountId::VAULT, &MOUNTS_PATH, kind::MOUNTS)?
            .ok_or_else(|| ApiError::internal("reading the mount table", &"there is none"))?;
        let table = Arc::new(codec::decode::<MountTable>(&bytes)?);
        let key = record_key(barrier, MountId::VAULT, &MOUNTS_PATH)?;
        let mut state = self.inner.lock();
        if state.epoch == epoch {
            state.entry = Some(Cached { key, version, table: Arc::clone(&table) });
        }
        Ok(table)
    }

    /// Forgets the table if one of these records is it. Called before the change becomes visible in the
    /// applied index.
    pub fn invalidate(&self, changed: &[RecordKey]) {
        let mut state = self.inner.lock();
        // Without an entry nobody knows the key (its path is sealed), and a reader may be about to store one.
        let hit = state.entry.as_ref().is_none_or(|cached| changed.contains(&cached.key));
        if hit {
            state.epoch += 1;
            state.entry = None;
        }
    }

    /// Forgets everything: the vault was sealed, or a snapshot replaced the state.
    pub fn clear(&self) {
        let mut state = self.inner.lock();
        state.epoch += 1;
        state.entry = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::response::text_to_map;

    fn entry(path: &str, body: &str) -> Result<MountEntry, ApiError> {
        MountEntry::from_request(path, &text_to_map(body).unwrap())
    }

    #[test]
    fn paths_are_routed_to_their_mount() {
        let table = MountTable::initial(true);
        let (mount, rest) = table.route("secret/data/a").unwrap();
        assert_eq!((mount.path.as_str(), rest), ("secret/", "data/a"));
        assert_eq!(table.route("secret").unwrap().1, "");
        assert!(table.route("secretive/x").is_none());
        assert!(table.route("nosuch/x").is_none());
    }

    #[test]
    fn mounts_cannot_overlap_or_take_what_is_the_vaults() {
        let mut table = MountTable::initial(true);
        for (path, text) in [
            ("secret/", "path is already in use at secret/"),
            ("secret/deep/", "path is already in use at secret/"),
            ("sys/", "cannot mount \"sys/\""),
            ("auth/x/", "cannot mount \"auth/x/\""),
        ] {
            let error = table.enable(entry(path, r#"{"type":"kv"}"#).unwrap()).unwrap_err();
            assert_eq!(error, ApiError::invalid(text), "{path}");
        }
        table.enable(entry("team/kv/", r#"{"type":"kv"}"#).unwrap()).unwrap();
        assert!(table.enable(entry("team/", r#"{"type":"kv"}"#).unwrap()).is_err());
        assert!(table.mounts.is_sorted_by_key(|mount| mount.path.clone()));
        assert_eq!(table.disable("team/kv/"), Ok(true));
        assert_eq!(table.disable("team/kv/"), Ok(false));
        assert_eq!(table.removed.len(), 1);
        assert!(table.disable("sys/").is_err());
    }

    #[test]
    fn the_types_of_kv_are_known() {
        for (body, engine, version) in [
            (r#"{"type":"kv"}"#, EngineKind::Kv1, None),
            (r#"{"type":"kv","options":null}"#, EngineKind::Kv1, None),
            (r#"{"type":"kv","options":{"version":2}}"#, EngineKind::Kv2, Some("2")),
            (r#"{"type":"kv-v1"}"#, EngineKind::Kv1, Some("1")),
            (r#"{"type":"kv-v2"}"#, EngineKind::Kv2, Some("2")),
            (r#"{"type":"generic"}"#, EngineKind::Kv1, None),
        ] {
            let entry = entry("x/", body).unwrap();
            assert_eq!(entry.engine, engine, "{body}");
            let found = entry.options.as_ref().and_then(|options| options.get("version"));
            assert_eq!(found.map(String::as_str), version, "{body}");
        }
        for body in [r#"{}"#, r#"{"type":"transit"}"#, r#"{"type":"kv","options":{"version":"3"}}"#] {
            assert!(matches!(entry("x/", body), Err(ApiError::Invalid(_))), "{body}");
        }
    }

    #[test]
    fn lease_times_are_taken_in_every_spelling() {
        let body =
            r#"{"type":"kv","config":{"default_lease_ttl":"0s","max_lease_ttl":"1h0m0s","options":null}}"#;
        let entry = entry("x/", body).unwrap();
        assert_eq!((entry.default_lease_ttl_s, entry.max_lease_ttl_s), (0, 3_600));
    }
}
