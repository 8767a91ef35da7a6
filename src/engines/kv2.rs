//! KV with versions, check-and-set, soft deletion and destruction.

use serde_json::{Map, Value};

use super::{
    EngineRequest,
    kv2_meta::{self, Config, Meta, Place},
    listing,
};
use crate::{
    core::{
        error::ApiError,
        fields::{Fields, integer},
        json,
        mounts::MountEntry,
        path::segments,
        request::Operation,
        response::{Answer, Logical, Secret},
        time::go_duration,
        txn::Transaction,
    },
    secret::{SecretBytes, SecretString},
};

const AREAS: [&str; 6] = ["data", "metadata", "delete", "undelete", "destroy", "subkeys"];
const MAX_CUSTOM_KEYS: usize = 64;
const MAX_CUSTOM_KEY_BYTES: usize = 128;
const MAX_CUSTOM_VALUE_BYTES: usize = 512;

pub(super) const HELP: &str = "\
Key/value store with versions: a write adds a version, old ones can be read, deleted, undeleted and destroyed.

## PATHS

    config
        read, update: max_versions, cas_required, delete_version_after
    data/<path>
        read (?version=N), update {data, options: {cas}}, patch, delete
    delete/<path>, undelete/<path>, destroy/<path>
        update {versions}
    metadata/<path>
        read, list, update, patch, delete
    subkeys/<path>
        read (?version=N, ?depth=N)
";

/// A request for one key.
struct Key<'a> {
    place: Place,
    segments: Vec<&'a str>,
    data: &'a Map<String, Value>,
}

pub(super) fn handle(request: &EngineRequest<'_>, txn: &mut Transaction) -> Result<Answer, ApiError> {
    let (area, rest) = request.path.split_once('/').unwrap_or((request.path, ""));
    let key = Key { place: Place::of(request.mount), segments: segments(rest).collect(), data: request.data };
    if area == "config" && rest.is_empty() {
        return config(&key, request.operation, txn);
    }
    if !AREAS.contains(&area) || (request.path == area && request.operation != Operation::List) {
        return Ok(wrong_path(request));
    }
    if (area, request.operation) == ("metadata", Operation::List) {
        return key.list(txn);
    }
    if rest.is_empty() || rest.ends_with('/') {
        return Err(match request.operation {
            Operation::Update | Operation::Patch => ApiError::invalid("cannot write to a path ending in '/'"),
            _ => ApiError::NotFound,
        });
    }
    match (area, request.operation) {
        ("data", Operation::Read) => key.read(txn),
        ("data", Operation::Update) => key.put(txn),
        ("data", Operation::Patch) => key.patch(txn),
        ("data", Operation::Delete) => key.delete_latest(txn),
        ("subkeys", Operation::Read) => key.subkeys(txn),
        ("delete", Operation::Update) => key.change_versions(Change::Delete, txn),
        ("undelete", Operation::Update) => key.change_versions(Change::Undelete, txn),
        ("destroy", Operation::Update) => key.change_versions(Change::Destroy, txn),
        ("metadata", Operation::Read) => {
            let shown = Answer::data(key.meta(txn)?.ok_or(ApiError::NotFound)?.to_json());
            Ok(shown.with_warnings(Fields(key.data).unknown_warning(&[])))
        }
        ("metadata", Operation::Update) => key.write_metadata(false, txn),
        ("metadata", Operation::Patch) => key.write_metadata(true, txn),
        ("metadata", Operation::Delete) => key.delete_all(txn),
        _ => Err(ApiError::UnsupportedOperation { authenticated: true }),
    }
}

/// The answer to a path that KV without versions would have: nothing there, and what to do instead.
fn wrong_path(request: &EngineRequest<'_>) -> Answer {
    let warning = if AREAS.contains(&request.path) {
        "Non-listing operations on the root of a K/V v2 mount are not supported.".to_owned()
    } else {
        let command = match request.operation {
            Operation::Update => "put",
            Operation::Patch => "patch",
            Operation::List => "list",
            Operation::Delete => "delete",
            Operation::Read | Operation::Help => "get",
        };
        format!(
            "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API \
             endpoints to use. If using the Vault CLI, use 'vault kv {command}' for this operation."
        )
    };
    Answer::Missing(Logical { warnings: vec![warning], ..Logical::default() })
}

/// Does a piece of the engine's background work. True when there may be more.
pub(super) fn sweep(mount: &MountEntry, txn: &mut Transaction) -> Result<bool, ApiError> {
    kv2_meta::sweep(Place::of(mount).records, txn)
}

fn config(key: &Key<'_>, operation: Operation, txn: &mut Transaction) -> Result<Answer, ApiError> {
    let mut config = Config::load(key.place.records, txn)?;
    match operation {
        Operation::Read => {
            let mut data = Map::new();
            data.insert("cas_required".to_owned(), config.cas_required.into());
            let after = go_duration(config.delete_version_after_s);
            data.insert("delete_version_after".to_owned(), after.into());
            data.insert("max_versions".to_owned(), config.max_versions.into());
            Ok(Answer::data(data))
        }
        Operation::Update => {
            let fields = Fields(key.data);
            if fields.value("max_versions").is_some() {
                config.max_versions = fields.count("max_versions")?;
            }
            if let Some(required) = fields.flag("cas_required")? {
                config.cas_required = required;
            }
            if let Some(seconds) = fields.duration_s("delete_version_after")? {
                config.delete_version_after_s = seconds.max(-1);
            }
            config.store(key.place.records, txn)?;
            let known = ["max_versions", "cas_required", "delete_version_after"];
            Ok(Answer::NoContent.with_warnings(fields.unknown_warning(&known)))
        }
        _ => Err(ApiError::UnsupportedOperation { authenticated: true }),
    }
}

/// What can be done to versions by number.
#[derive(Clone, Copy)]
enum Change {
    Delete,
    Undelete,
    Destroy,
}

/// What a version's number leads to.
enum Found {
    /// Metadata to show, and the data as stored.
    Alive(Map<String, Value>, SecretBytes),
    /// Deleted or destroyed: metadata only.
    Gone(Map<String, Value>),
}

impl Key<'_> {
    fn meta(&self, txn: &mut Transaction) -> Result<Option<Meta>, ApiError> {
        Meta::load(self.place, &self.segments, txn)
    }

    fn list(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let mut folder = vec!["m"];
        folder.extend_from_slice(&self.segments);
        let mut names = txn.list(self.place.records, &folder)?;
        if let Some(before) = self.place.before {
            names.extend(txn.list(before.mount, &self.segments)?);
            names.sort_unstable();
            names.dedup();
        }
        listing(names)
    }

    /// Reads a version; 0 and less mean the latest.
    fn find(&self, meta: &Meta, number: i64, txn: &mut Transaction) -> Result<Found, ApiError> {
        let number = match u64::try_from(number) {
            Ok(number) if number > 0 => number,
            _ => meta.current_version,
        };
        let version = meta.version(number).ok_or(ApiError::NotFound)?;
        let shown = meta.version_json(number, version);
        if version.destroyed || version.deleted(txn.now_ms()) {
            return Ok(Found::Gone(shown));
        }
        let bytes = meta
            .read(self.place, &self.segments, number, txn)?
            .ok_or_else(|| ApiError::internal("reading a version", &"could not find version data"))?;
        Ok(Found::Alive(shown, bytes))
    }

    fn read(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let fields = Fields(self.data);
        let number = self.version_field()?;
        let meta = self.meta(txn)?.ok_or(ApiError::NotFound)?;
        let warnings = fields.unknown_warning(&["version"]);
        let (metadata, bytes) = match self.find(&meta, number, txn)? {
            Found::Alive(shown, bytes) => (shown, bytes),
            Found::Gone(shown) => {
                let mut body = Map::new();
                body.insert("data".to_owned(), Value::Null);
                body.insert("metadata".to_owned(), shown.into());
                return Ok(Answer::Missing(Logical { data: Some(body), warnings, ..Logical::default() }));
            }
        };
        let text =
            SecretString::try_from(bytes).map_err(|error| ApiError::internal("reading a version", &error))?;
        Ok(Answer::Secret(Secret { text, metadata, warnings }))
    }

    fn subkeys(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let number = self.version_field()?;
        let depth = Fields(self.data).count("depth")?;
        let meta = self.meta(txn)?.ok_or(ApiError::NotFound)?;
        let (shown, subkeys) = match self.find(&meta, number, txn)? {
            Found::Alive(shown, bytes) => (shown, Some(without_leaves(parsed(&bytes)?, depth))),
            Found::Gone(shown) => (shown, None),
        };
        let missing = subkeys.is_none();
        let mut body = Map::new();
        body.insert("metadata".to_owned(), shown.into());
        body.insert("subkeys".to_owned(), subkeys.unwrap_or(Value::Null));
        let warnings = Fields(self.data).unknown_warning(&["version", "depth"]);
        let logical = Logical { data: Some(body), warnings, ..Logical::default() };
        Ok(if missing { Answer::Missing(logical) } else { Answer::Logical(logical) })
    }

    fn version_field(&self) -> Result<i64, ApiError> {
        let number = Fields(self.data).integer("version").map_err(|error| match error {
            ApiError::Invalid(text) => ApiError::Invalid(format!("Field validation failed: {text}")),
            other => other,
        })?;
        Ok(number.unwrap_or(0))
    }

    fn put(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let data = match self.data.get("data") {
            Some(data @ (Value::Object(_) | Value::Null)) => data,
            Some(_) => {
                return Err(ApiError::invalid("error converting input for field \"data\": expected map"));
            }
            None => return Err(ApiError::invalid("no data provided")),
        };
        let config = Config::load(self.place.records, txn)?;
        let meta = self.meta(txn)?;
        self.check_and_set(&config, meta.as_ref())?;
        let meta = meta.unwrap_or_else(|| Meta::new(txn.now_ms()));
        self.write_version(meta, &config, data, txn)
    }

    fn patch(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let patch = Fields(self.data).object("data")?.ok_or_else(|| ApiError::invalid("no data provided"))?;
        let config = Config::load(self.place.records, txn)?;
        let meta = self.meta(txn)?.ok_or(ApiError::NotFound)?;
        self.check_and_set(&config, Some(&meta))?;
        let mut data = match self.find(&meta, 0, txn)? {
            Found::Alive(_, bytes) => parsed(&bytes)?,
            Found::Gone(shown) => {
                return Ok(Answer::Missing(Logical { data: Some(shown), ..Logical::default() }));
            }
        };
        merge(&mut data, patch);
        self.write_version(meta, &config, &data, txn)
    }

    fn write_version(
        &self,
        mut meta: Meta,
        config: &Config,
        data: &Value,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let number = meta.push(config, txn.now_ms());
        meta.write(self.place, number, data.to_string().into_bytes(), txn)?;
        meta.trim(self.place, &self.segments, config, txn)?;
        meta.store(self.place.records, &self.segments, txn)?;
        let version =
            meta.version(number).expect("the newest version is never trimmed: at least one is kept");
        let answer = Answer::data(meta.version_json(number, version));
        Ok(answer.with_warnings(self.warnings(&["data", "options", "version"])))
    }

    fn check_and_set(&self, config: &Config, meta: Option<&Meta>) -> Result<(), ApiError> {
        let options = Fields(self.data).object("options")?;
        let Some(cas) = options.and_then(|options| options.get("cas")).filter(|cas| !cas.is_null()) else {
            if config.cas_required || meta.is_some_and(|meta| meta.cas_required) {
                return Err(ApiError::invalid("check-and-set parameter required for this call"));
            }
            return Ok(());
        };
        let wrong = || ApiError::invalid("error parsing check-and-set parameter");
        let expected = match cas {
            Value::Number(_) => integer(cas).ok_or_else(wrong)?,
            Value::String(text) => text.trim().parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let current = meta.map_or(0, |meta| meta.current_version);
        if i64::try_from(current) == Ok(expected) {
            Ok(())
        } else {
            Err(ApiError::invalid("check-and-set parameter did not match the current version"))
        }
    }

    fn delete_latest(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let Some(mut meta) = self.meta(txn)? else {
            return Ok(Answer::NoContent);
        };
        let now_ms = txn.now_ms();
        let number = meta.current_version;
        if let Some(version) = meta.version_mut(number).filter(|v| !v.destroyed && !v.deleted(now_ms)) {
            version.deletion_ms = now_ms;
            meta.updated_ms = now_ms;
            meta.store(self.place.records, &self.segments, txn)?;
        }
        Ok(Answer::NoContent)
    }

    fn change_versions(&self, change: Change, txn: &mut Transaction) -> Result<Answer, ApiError> {
        if matches!(change, Change::Delete | Change::Destroy) {
            txn.mark_delete();
        }
        let texts = Fields(self.data).texts("versions")?.unwrap_or_default();
        if texts.is_empty() {
            return Err(ApiError::invalid(match change {
                Change::Destroy => "no version number provided",
                Change::Delete | Change::Undelete => "No version number provided",
            }));
        }
        let numbers = texts
            .iter()
            .map(|text| text.trim().parse::<u64>().ok())
            .collect::<Option<Vec<u64>>>()
            .ok_or_else(|| {
                ApiError::invalid("error converting input for field \"versions\": expected list of integers")
            })?;
        let Some(mut meta) = self.meta(txn)? else {
            return Ok(Answer::NoContent);
        };
        let now_ms = txn.now_ms();
        for number in numbers {
            let Some(version) = meta.version_mut(number).filter(|version| !version.destroyed) else {
                continue;
            };
            match change {
                Change::Delete if !version.deleted(now_ms) => version.deletion_ms = now_ms,
                Change::Delete => {}
                Change::Undelete => version.deletion_ms = 0,
                Change::Destroy => {
                    version.destroyed = true;
                    meta.erase(self.place, &self.segments, number, txn)?;
                }
            }
        }
        meta.updated_ms = now_ms;
        meta.store(self.place.records, &self.segments, txn)?;
        Ok(Answer::NoContent.with_warnings(self.warnings(&["versions"])))
    }

    fn write_metadata(&self, patch: bool, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let fields = Fields(self.data);
        let found = self.meta(txn)?;
        let mut meta = match found {
            Some(meta) => meta,
            None if patch => return Err(ApiError::NotFound),
            None => Meta::new(txn.now_ms()),
        };
        // In a merge patch `null` takes a field back to what it is without anybody's saying.
        let cleared = |name: &str| patch && self.data.get(name).is_some_and(Value::is_null);
        if fields.value("max_versions").is_some() || cleared("max_versions") {
            meta.max_versions = fields.count("max_versions")?;
        }
        if let Some(required) = fields.flag("cas_required")?.or(cleared("cas_required").then_some(false)) {
            meta.cas_required = required;
        }
        let after = fields.duration_s("delete_version_after")?;
        if let Some(seconds) = after.or(cleared("delete_version_after").then_some(0)) {
            meta.delete_version_after_s = seconds.max(-1);
        }
        if cleared("custom_metadata") {
            meta.custom = None;
        } else if patch {
            self.patch_custom(&mut meta)?;
        } else if let Some(custom) = fields.text_map("custom_metadata")? {
            meta.custom = Some(custom);
        }
        check_custom(&meta)?;
        meta.updated_ms = txn.now_ms();
        meta.store(self.place.records, &self.segments, txn)?;
        let known = ["max_versions", "cas_required", "delete_version_after", "custom_metadata"];
        let mut warnings = self.warnings(&known);
        if fields.flag("cas_required")? == Some(false) && Config::load(self.place.records, txn)?.cas_required
        {
            warnings.push(
                "\"cas_required\" set to false, but is mandated by backend config. This value will be ignored."
                    .to_owned(),
            );
        }
        Ok(Answer::NoContent.with_warnings(warnings))
    }

    fn patch_custom(&self, meta: &mut Meta) -> Result<(), ApiError> {
        let Some(changes) = Fields(self.data).object("custom_metadata")? else { return Ok(()) };
        let mut custom = meta.custom.take().unwrap_or_default();
        custom.retain(|name, _| changes.get(name).is_none_or(|change| !change.is_null()));
        let kept = changes.iter().filter(|(_, value)| !value.is_null());
        let kept: Map<String, Value> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        let wrapped = Map::from_iter([("custom_metadata".to_owned(), Value::Object(kept))]);
        custom.extend(Fields(&wrapped).text_map("custom_metadata")?.unwrap_or_default());
        meta.custom = Some(custom);
        Ok(())
    }

    fn delete_all(&self, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let Some(meta) = self.meta(txn)? else {
            return Ok(Answer::NoContent);
        };
        meta.delete(self.place, &self.segments, txn)?;
        Ok(Answer::NoContent)
    }

    /// Warnings about fields: those that nobody reads, and those that the path overrides.
    fn warnings(&self, known: &[&str]) -> Vec<String> {
        let mut all = known.to_vec();
        all.push("path");
        let mut warnings = Fields(self.data).unknown_warning(&all);
        if self.data.contains_key("path") {
            warnings.push(
                "Endpoint replaced the value of these parameters with the values captured from the \
                 endpoint's path: [path]"
                    .to_owned(),
            );
        }
        warnings
    }
}

fn check_custom(meta: &Meta) -> Result<(), ApiError> {
    let Some(custom) = &meta.custom else {
        return Ok(());
    };
    let refused = |why: &str| Err(ApiError::invalid(format!("custom_metadata validation failed: {why}")));
    if custom.len() > MAX_CUSTOM_KEYS {
        return refused("more than 64 keys");
    }
    for (name, value) in custom {
        if name.is_empty() || name.len() > MAX_CUSTOM_KEY_BYTES {
            return refused("a key must have 1 to 128 bytes");
        }
        if value.len() > MAX_CUSTOM_VALUE_BYTES {
            return refused("a value may have 512 bytes");
        }
        if name.chars().chain(value.chars()).any(char::is_control) {
            return refused("keys and values must be printable");
        }
    }
    Ok(())
}

/// Applies a JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, change) in patch {
        match change {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(inner) => merge(target.entry(name.clone()).or_insert(Value::Null), inner),
            other => {
                target.insert(name.clone(), other.clone());
            }
        }
    }
}

fn parsed(text: &[u8]) -> Result<Value, ApiError> {
    json::parse_own(text).map_err(|error| ApiError::internal("reading a version", &error))
}

/// The same tree of keys with every leaf `null`; objects `depth` levels down are leaves, 0 means none is.
fn without_leaves(value: Value, depth: u64) -> Value {
    fn strip(value: Value, level: u64, depth: u64) -> Value {
        match value {
            Value::Object(map) if depth == 0 || level < depth => {
                let stripped = map.into_iter().map(|(name, value)| (name, strip(value, level + 1, depth)));
                Value::Object(stripped.collect())
            }
            _ => Value::Null,
        }
    }
    strip(value, 0, depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_merge_patch_is_applied_as_rfc_7396_says() {
        for (before, patch, after) in [
            (r#"{"a":1,"b":2}"#, r#"{"b":null,"c":3}"#, r#"{"a":1,"c":3}"#),
            (r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"y":null,"z":{"n":null}}}"#, r#"{"a":{"x":1,"z":{}}}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[3]}"#, r#"{"a":[3]}"#),
            ("null", r#"{"a":1}"#, r#"{"a":1}"#),
        ] {
            let mut target = value(before);
            let Value::Object(patch) = value(patch) else { panic!("an object") };
            merge(&mut target, &patch);
            assert_eq!(target, value(after));
        }
    }

    #[test]
    fn subkeys_show_no_values() {
        let data = value(r#"{"a":"s3cr3t","b":{"c":1,"d":{"e":[2]}}}"#);
        assert_eq!(without_leaves(data.clone(), 0), value(r#"{"a":null,"b":{"c":null,"d":{"e":null}}}"#));
        assert_eq!(without_leaves(data.clone(), 1), value(r#"{"a":null,"b":null}"#));
        assert_eq!(without_leaves(data, 2), value(r#"{"a":null,"b":{"c":null,"d":null}}"#));
    }
}
