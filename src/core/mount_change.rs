//! What can be changed about a mount that is there: its settings, its version, its place.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use serde_json::{Map, Value};

use super::{
    codec,
    error::ApiError,
    fields::Fields,
    mounts::{EngineKind, MountEntry, MountTable, NAME_LISTS, PROTECTED, lease_ttl},
    request::fresh_id,
    txn::{Transaction, kind},
};
use crate::barrier::MountId;

/// Path of the list of moves below the vault's own mount.
const MOVES_PATH: [&str; 1] = ["mount-moves"];
/// Moves that are remembered for whoever asks how one ended.
const MAX_MOVES: usize = 32;

/// The lease limits of the server, which stand where a mount says nothing.
#[derive(Debug, Clone, Copy)]
pub struct LeaseLimits {
    /// The lease of what asks for none, in seconds.
    pub default_s: u64,
    /// The longest lease, in seconds.
    pub max_s: u64,
}

impl MountEntry {
    /// What `sys/mounts/<path>/tune` shows: the settings in force.
    pub fn tuned_json(&self, limits: LeaseLimits) -> Map<String, Value> {
        let in_force = |own: u64, server: u64| if own == 0 { server } else { own };
        let mut data = Map::new();
        let mut set = |name: &str, value: Value| data.insert(name.to_owned(), value);
        set("default_lease_ttl", in_force(self.default_lease_ttl_s, limits.default_s).into());
        set("description", self.description.clone().into());
        set("force_no_cache", self.force_no_cache.into());
        set("max_lease_ttl", in_force(self.max_lease_ttl_s, limits.max_s).into());
        if let Some(options) = &self.options {
            set("options", options.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect());
        }
        if !self.listing_visibility.is_empty() {
            set("listing_visibility", self.listing_visibility.clone().into());
        }
        for (name, names) in &self.name_lists {
            set(name, names.clone().into());
        }
        data
    }

    /// Changes what the body of `POST sys/mounts/<path>/tune` names.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]; the entry may then be half changed.
    fn tune(&mut self, fields: &Fields<'_>, now_ms: u64) -> Result<(), ApiError> {
        // The CLI sends every setting, and what it means to leave as it is as empty text.
        let given = |name: &str| fields.value(name).is_some_and(|value| value.as_str() != Some(""));
        if given("default_lease_ttl") {
            self.default_lease_ttl_s = lease_ttl(fields, "default_lease_ttl")?;
        }
        if given("max_lease_ttl") {
            self.max_lease_ttl_s = lease_ttl(fields, "max_lease_ttl")?;
        }
        let (default_s, max_s) = (self.default_lease_ttl_s, self.max_lease_ttl_s);
        if max_s > 0 && default_s > max_s {
            return Err(ApiError::invalid(format!(
                "backend max lease TTL of {max_s} would be less than backend default lease TTL of {default_s}"
            )));
        }
        if let Some(description) = fields.text("description")? {
            self.description = description;
        }
        if let Some(visibility) = fields.text("listing_visibility")? {
            self.listing_visibility = check_visibility(visibility)?;
        }
        for name in NAME_LISTS {
            match fields.texts(name)? {
                Some(names) if names.is_empty() => drop(self.name_lists.remove(name)),
                Some(names) => drop(self.name_lists.insert(name.to_owned(), names)),
                None => {}
            }
        }
        match fields.text_map("options")? {
            Some(options) => self.tune_options(options, now_ms),
            None => Ok(()),
        }
    }

    fn tune_options(&mut self, changes: BTreeMap<String, String>, now_ms: u64) -> Result<(), ApiError> {
        if let Some(version) = changes.get("version") {
            self.tune_version(version, now_ms)?;
        }
        let mut options = self.options.take().unwrap_or_default();
        for (name, value) in changes {
            if value.is_empty() && name != "version" {
                options.remove(&name);
            } else {
                options.insert(name, value);
            }
        }
        self.options = Some(options);
        Ok(())
    }

    fn tune_version(&mut self, version: &str, now_ms: u64) -> Result<(), ApiError> {
        match (self.engine, version) {
            (EngineKind::Kv1, "1") => Ok(()),
            (EngineKind::Kv1, "2") => {
                self.engine = EngineKind::Kv2Upgraded { records: MountId(fresh_id().0), since_ms: now_ms };
                Ok(())
            }
            (engine, "2") if engine.has_versions() => Ok(()),
            (engine, "1") if engine.has_versions() => {
                Err(ApiError::invalid("cannot downgrade mount from version 2"))
            }
            (EngineKind::Kv1, _) => Err(ApiError::invalid("invalid version provided: use 1 or 2")),
            (engine, _) if engine.has_versions() => {
                Err(ApiError::invalid("invalid version provided: use 1 or 2"))
            }
            _ => Err(ApiError::invalid("only kv mounts have a version")),
        }
    }
}

impl MountTable {
    /// Changes the settings of a mount.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]; the table is then not to be stored.
    pub fn tune(&mut self, path: &str, data: &Map<String, Value>, now_ms: u64) -> Result<(), ApiError> {
        if is_protected(path) {
            return Err(ApiError::invalid(format!("cannot tune \"{path}\"")));
        }
        let mount = self.mounts.iter_mut().find(|mount| mount.path == path).ok_or_else(|| {
            ApiError::invalid(format!("tune of path \"{path}\" failed: no mount entry found"))
        })?;
        mount.tune(&Fields(data), now_ms)
    }

    /// Moves a mount. Its records stay where they are, for they stand below its id.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] when there is no such mount, or the place is taken or the vault's own; the table is
    /// then not to be stored.
    pub fn remount(&mut self, from: &str, to: &str) -> Result<(), ApiError> {
        for path in [from, to] {
            if is_protected(path) {
                return Err(ApiError::invalid(format!("cannot remount \"{path}\"")));
            }
        }
        let at = self.mounts.iter().position(|mount| mount.path == from);
        let at = at.ok_or_else(|| ApiError::invalid(format!("no matching mount at \"{from}\"")))?;
        let mut mount = self.mounts.remove(at);
        mount.path = to.to_owned();
        self.enable(mount)
    }
}

/// A listing visibility as Vault knows them.
///
/// # Errors
/// [`ApiError::Invalid`] for any other word.
pub(super) fn check_visibility(sent: String) -> Result<String, ApiError> {
    match sent.as_str() {
        "" | "unauth" | "hidden" => Ok(sent),
        _ => Err(ApiError::invalid("invalid value for \"listing_visibility\": use unauth or hidden")),
    }
}

fn is_protected(path: &str) -> bool {
    PROTECTED.contains(&path.split('/').next().unwrap_or_default())
}

/// A move of a mount that has been made.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Move {
    /// What the client asks for it by.
    pub id: String,
    /// Where the mount was.
    pub from: String,
    /// Where it is since.
    pub to: String,
}

impl Move {
    /// The latest moves, oldest first.
    pub fn load_all(txn: &mut Transaction) -> Result<Vec<Self>, ApiError> {
        let bytes = txn.get(MountId::VAULT, &MOVES_PATH, kind::MOUNT_MOVES)?;
        bytes.map_or(Ok(Vec::new()), |bytes| codec::decode(&bytes))
    }

    /// Remembers it beside the earlier ones.
    pub fn remember(self, txn: &mut Transaction) -> Result<(), ApiError> {
        let mut moves = Self::load_all(txn)?;
        moves.push(self);
        let excess = moves.len().saturating_sub(MAX_MOVES);
        moves.drain(..excess);
        txn.put(MountId::VAULT, &MOVES_PATH, kind::MOUNT_MOVES, codec::encode(&moves)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::response::text_to_map;

    fn tune(table: &mut MountTable, path: &str, body: &str) -> Result<(), ApiError> {
        table.tune(path, &text_to_map(body).unwrap(), 5)
    }

    fn table() -> MountTable {
        let mut table = MountTable::initial(true);
        let entry = MountEntry::from_request("kv1/", &text_to_map(r#"{"type":"kv"}"#).unwrap()).unwrap();
        table.enable(entry).unwrap();
        table
    }

    #[test]
    fn what_is_not_named_or_empty_stays() {
        let mut table = table();
        tune(&mut table, "kv1/", r#"{"default_lease_ttl":"1h","max_lease_ttl":7200,"description":"d"}"#)
            .unwrap();
        tune(&mut table, "kv1/", r#"{"default_lease_ttl":"","max_lease_ttl":"","options":null}"#).unwrap();
        let shown =
            Value::Object(table.at("kv1/").unwrap().tuned_json(LeaseLimits { default_s: 1, max_s: 2 }));
        let expected =
            r#"{"default_lease_ttl":3600,"description":"d","force_no_cache":false,"max_lease_ttl":7200}"#;
        assert_eq!(shown.to_string(), expected);
        tune(&mut table, "kv1/", r#"{"default_lease_ttl":"system","max_lease_ttl":"system"}"#).unwrap();
        let shown = table.at("kv1/").unwrap().tuned_json(LeaseLimits { default_s: 1, max_s: 2 });
        assert_eq!(shown["default_lease_ttl"].to_string(), "1");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let mut table = table();
        for (path, body, text) in [
            (
                "kv1/",
                r#"{"default_lease_ttl":"3h","max_lease_ttl":"1h"}"#,
                "backend max lease TTL of 3600 would be less than backend default lease TTL of 10800",
            ),
            ("no/", "{}", "tune of path \"no/\" failed: no mount entry found"),
            ("sys/", "{}", "cannot tune \"sys/\""),
            ("secret/", r#"{"options":{"version":"1"}}"#, "cannot downgrade mount from version 2"),
            ("kv1/", r#"{"options":{"version":"3"}}"#, "invalid version provided: use 1 or 2"),
            ("kv1/", r#"{"default_lease_ttl":-5}"#, "ttl must be positive"),
        ] {
            assert_eq!(tune(&mut table.clone(), path, body), Err(ApiError::invalid(text)), "{path} {body}");
        }
        assert!(tune(&mut table, "kv1/", r#"{"listing_visibility":"loud"}"#).is_err());
    }

    #[test]
    fn a_moved_mount_keeps_its_records_and_hits_nothing() {
        let mut table = table();
        let before = table.at("kv1/").unwrap().id;
        assert_eq!(
            table.clone().remount("no/", "x/"),
            Err(ApiError::invalid("no matching mount at \"no/\""))
        );
        assert!(table.clone().remount("kv1/", "secret/below/").is_err());
        assert!(table.clone().remount("sys/", "x/").is_err());
        assert!(table.clone().remount("kv1/", "identity/").is_err());
        table.remount("kv1/", "kv1/deeper/").unwrap();
        assert!(table.at("kv1/").is_none());
        assert_eq!(table.at("kv1/deeper/").unwrap().id, before);
        assert!(table.mounts.is_sorted_by_key(|mount| mount.path.clone()));
    }
}
