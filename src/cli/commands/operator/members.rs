//! `operator members`.

use serde_json::Value;

use crate::cli::output::{self, Document, Format};
use crate::cli::time::Timestamp;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.raw_json("GET", "sys/ha-status", None);
    let answer = answer.map_err(|error| invocation.refused("Error reading HA status", &error))?;
    let nodes = answer.get("nodes").or_else(|| answer.get("data")?.get("nodes"));
    let nodes = nodes.and_then(Value::as_array).cloned().unwrap_or_default();
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&table(&nodes));
        return Ok(0);
    }
    let nodes = nodes.iter().map(document).collect();
    Ok(output::print(ui, format, Document::object([("Nodes", Document::List(nodes))])))
}

fn table(nodes: &[Value]) -> String {
    let in_zones = nodes.iter().any(|node| !text(node, "redundancy_zone").is_empty());
    let mut header =
        vec!["Host Name", "API Address", "Cluster Address", "Active Node", "Version", "Upgrade Version"];
    header.extend(in_zones.then_some("Redundancy Zone"));
    header.push("Last Echo");
    let row = |node: &Value| {
        let fields =
            ["hostname", "api_address", "cluster_address", "active_node", "version", "upgrade_version"];
        let mut row = fields.map(|field| text(node, field)).to_vec();
        row.extend(in_zones.then(|| text(node, "redundancy_zone")));
        let echo = text(node, "last_echo");
        row.push(Timestamp::parse(&echo).map_or(echo, |time| time.whole_seconds()));
        row
    };
    output::table(&header, &nodes.iter().map(row).collect::<Vec<_>>())
}

/// A node with the fields that Vault's structure always has, in its order; what else the server knows follows.
fn document(node: &Value) -> Document {
    let always: [(&str, Value); 7] = [
        ("hostname", "".into()),
        ("api_address", "".into()),
        ("cluster_address", "".into()),
        ("active_node", false.into()),
        ("last_echo", Value::Null),
        ("version", "".into()),
        ("upgrade_version", "".into()),
    ];
    let known = always.iter().map(|(name, absent)| (*name, node.get(*name).unwrap_or(absent).clone()));
    let others = node.as_object().into_iter().flatten();
    let others = others.filter(|(name, _)| !always.iter().any(|(known, _)| known == name));
    Document::object(known.chain(others.map(|(name, value)| (name.as_str(), value.clone()))))
}

fn text(node: &Value, field: &str) -> String {
    node.get(field).filter(|value| !value.is_null()).map(output::go).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_active_node_has_no_echo() {
        let nodes = json!([
            {"hostname": "a", "api_address": "https://a", "cluster_address": "https://ac", "active_node": true,
             "last_echo": null, "version": "1.16.3", "upgrade_version": "1.16.3"},
            {"hostname": "b", "api_address": "https://b", "cluster_address": "https://bc", "active_node": false,
             "last_echo": "2026-11-22T10:00:00.123Z", "version": "1.16.3", "upgrade_version": "1.16.3"},
        ]);
        let expected = "\
Host Name    API Address    Cluster Address    Active Node    Version    Upgrade Version    Last Echo
---------    -----------    ---------------    -----------    -------    ---------------    ---------
a            https://a      https://ac         true           1.16.3     1.16.3             n/a
b            https://b      https://bc         false          1.16.3     1.16.3             2026-11-22T10:00:00Z";
        assert_eq!(table(nodes.as_array().unwrap()), expected);
    }
}
