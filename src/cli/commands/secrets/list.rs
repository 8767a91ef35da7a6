//! `secrets list`.

use serde_json::{Map, Value};

use crate::cli::output::{self, Document, Format};
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.read("sys/mounts", &[]);
    let answer = answer.map_err(|error| invocation.refused("Error listing secrets engines", &error))?;
    let mounts = answer.and_then(|secret| secret.data).unwrap_or_default();
    let detailed = invocation.flags.bool("detailed");
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let mounts = mounts.iter().map(|(path, mount)| (path.clone(), entry(mount)));
        return Ok(output::print(ui, format, Document::Object(mounts.collect())));
    }
    ui.output(&if detailed { detailed_table(&mounts) } else { short_table(&mounts) });
    Ok(0)
}

fn short_table(mounts: &Map<String, Value>) -> String {
    let row = |(path, mount): (&String, &Value)| {
        vec![path.clone(), text(mount, "type"), text(mount, "accessor"), text(mount, "description")]
    };
    output::table(&["Path", "Type", "Accessor", "Description"], &mounts.iter().map(row).collect::<Vec<_>>())
}

fn detailed_table(mounts: &Map<String, Value>) -> String {
    let header = [
        "Path",
        "Plugin",
        "Accessor",
        "Default TTL",
        "Max TTL",
        "Force No Cache",
        "Replication",
        "Seal Wrap",
        "External Entropy Access",
        "Options",
        "Description",
        "UUID",
        "Version",
        "Running Version",
        "Running SHA256",
        "Deprecation Status",
    ];
    let row = |(path, mount): (&String, &Value)| {
        let none = Value::Null;
        let config = mount.get("config").unwrap_or(&none);
        let ttl = |key| match (path.as_str(), config.get(key).and_then(Value::as_i64)) {
            ("sys/" | "cubbyhole/", _) => "n/a".to_owned(),
            (_, None | Some(0)) => "system".to_owned(),
            (_, Some(seconds)) => seconds.to_string(),
        };
        let local = mount.get("local").and_then(Value::as_bool).unwrap_or(false);
        let options = mount.get("options").filter(|options| options.is_object());
        vec![
            path.clone(),
            text(mount, "type"),
            text(mount, "accessor"),
            ttl("default_lease_ttl"),
            ttl("max_lease_ttl"),
            flag(config, "force_no_cache"),
            if local { "local" } else { "replicated" }.to_owned(),
            flag(mount, "seal_wrap"),
            flag(mount, "external_entropy_access"),
            options.map_or_else(|| "map[]".to_owned(), output::go),
            text(mount, "description"),
            text(mount, "uuid"),
            text(mount, "plugin_version"),
            text(mount, "running_plugin_version"),
            text(mount, "running_sha256"),
            text(mount, "deprecation_status"),
        ]
    };
    output::table(&header, &mounts.iter().map(row).collect::<Vec<_>>())
}

/// A mount's fields in Vault's order; what else the server knows follows, sorted.
fn entry(mount: &Value) -> Document {
    const ORDER: [&str; 12] = [
        "uuid",
        "type",
        "description",
        "accessor",
        "config",
        "options",
        "local",
        "seal_wrap",
        "external_entropy_access",
        "plugin_version",
        "running_plugin_version",
        "running_sha256",
    ];
    const CONFIG: [&str; 3] = ["default_lease_ttl", "max_lease_ttl", "force_no_cache"];
    ordered(mount, &ORDER, |name, value| match name {
        "config" => ordered(value, &CONFIG, |_, value| value.clone().into()),
        _ => value.clone().into(),
    })
}

fn ordered(value: &Value, order: &[&str], document: impl Fn(&str, &Value) -> Document) -> Document {
    let Some(fields) = value.as_object() else { return value.clone().into() };
    let known = order.iter().filter_map(|name| fields.get_key_value(*name));
    let others = fields.iter().filter(|(name, _)| !order.contains(&name.as_str()));
    Document::object(known.chain(others).map(|(name, value)| (name.as_str(), document(name, value))))
}

fn text(fields: &Value, key: &str) -> String {
    fields.get(key).filter(|value| !value.is_null()).map(output::go).unwrap_or_default()
}

fn flag(fields: &Value, key: &str) -> String {
    fields.get(key).and_then(Value::as_bool).unwrap_or(false).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mounts() -> Map<String, Value> {
        let mounts = json!({
            "sys/": {"type": "system", "accessor": "system_1", "description": "", "config": {"default_lease_ttl": 0}},
            "secret/": {"type": "kv", "accessor": "kv_1", "description": "d", "uuid": "u", "options": {"version": "2"},
                        "config": {"default_lease_ttl": 0, "max_lease_ttl": 3600}},
        });
        mounts.as_object().unwrap().clone()
    }

    #[test]
    fn mounts_are_listed_by_path() {
        let expected = "\
Path       Type      Accessor    Description
----       ----      --------    -----------
secret/    kv        kv_1        d
sys/       system    system_1    n/a";
        assert_eq!(short_table(&mounts()), expected);
    }

    #[test]
    fn the_detailed_table_spells_defaults_out() {
        let table = detailed_table(&mounts());
        let cells =
            |line: usize| table.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            cells(2).starts_with(
                "secret/ kv kv_1 system 3600 false replicated false false map[version:2] d u n/a"
            )
        );
        assert!(cells(3).starts_with("sys/ system system_1 n/a n/a false replicated"));
    }

    #[test]
    fn a_mount_begins_with_its_uuid_in_json() {
        let json = entry(&mounts()["secret/"]).render(Format::Json).unwrap();
        assert!(json.starts_with("{\n  \"uuid\": \"u\",\n  \"type\": \"kv\""), "{json}");
    }
}
