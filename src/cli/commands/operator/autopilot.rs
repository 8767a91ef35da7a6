//! `operator raft autopilot state`, `get-config` and `set-config`.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::{Invocation, Outcome};

const CONFIG: &str = "sys/storage/raft/autopilot/configuration";

pub const SET_FLAGS: &[Flag] = &[
    Flag::new("cleanup-dead-servers", Kind::Bool, "Take dead members out; needs -min-quorum."),
    Flag::new("last-contact-threshold", Kind::Duration, "A member silent for longer is unhealthy."),
    Flag::new(
        "dead-server-last-contact-threshold",
        Kind::Duration,
        "A member silent for this long is dead; at least a minute.",
    ),
    Flag::new("max-trailing-logs", Kind::Int, "A member further behind, in log entries, is unhealthy."),
    Flag::new("min-quorum", Kind::Int, "Taking dead members out leaves at least this many voters."),
    Flag::new(
        "server-stabilization-time",
        Kind::Duration,
        "How long a member must have been healthy before it becomes the fourth voter or a later one.",
    ),
    Flag::new("disable-upgrade-migration", Kind::Bool, "Kept for Vault's clients; nothing depends on it."),
];

pub fn get_config(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.read(CONFIG, &[]);
    let answer =
        answer.map_err(|error| invocation.refused("Error fetching autopilot configuration", &error))?;
    let config = answer.and_then(|secret| secret.data).unwrap_or_default();
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        return Ok(output::print(ui, format, Document::Value(Value::Object(config))));
    }
    ui.output(&config_table(&config));
    Ok(0)
}

fn config_table(config: &Map<String, Value>) -> String {
    let rows = [
        ("Cleanup Dead Servers", "cleanup_dead_servers"),
        ("Last Contact Threshold", "last_contact_threshold"),
        ("Dead Server Last Contact Threshold", "dead_server_last_contact_threshold"),
        ("Server Stabilization Time", "server_stabilization_time"),
        ("Min Quorum", "min_quorum"),
        ("Max Trailing Logs", "max_trailing_logs"),
    ];
    let row = |(name, key): (&str, &str)| vec![name.to_owned(), text(config, key)];
    output::table(&["Key", "Value"], &rows.map(row))
}

pub fn set_config(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let flags = &invocation.flags;
    let mut body = Map::new();
    for flag in SET_FLAGS.iter().filter(|flag| flags.has(flag.name)) {
        let value = match flag.kind {
            Kind::Bool => Some(flags.bool(flag.name).into()),
            Kind::Int => flags.int(flag.name).map(Value::from),
            _ => flags.go_duration(flag.name).map(|duration| duration.to_string().into()),
        };
        body.extend(value.map(|value| (flag.name.replace('-', "_"), value)));
    }
    let session = invocation.session()?;
    let answer = session.call("POST", CONFIG, &[], Some(&Value::Object(body)));
    answer.map_err(|error| invocation.refused("Error setting autopilot configuration", &error))?;
    Ok(0)
}

pub fn state(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.read("sys/storage/raft/autopilot/state", &[]);
    let answer = answer.map_err(|error| invocation.refused("Error checking autopilot state", &error))?;
    let Some(state) = answer.and_then(|secret| secret.data) else { return Ok(0) };
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        return Ok(output::print(ui, format, state_document(&state)));
    }
    ui.output(&state_text(&state));
    Ok(0)
}

fn text(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).filter(|value| !value.is_null()).map(output::go).unwrap_or_default()
}

fn names(state: &Map<String, Value>, key: &str) -> Vec<String> {
    state.get(key).and_then(Value::as_array).into_iter().flatten().map(output::go).collect()
}

fn servers(state: &Map<String, Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    let servers = state.get("servers").and_then(Value::as_object).into_iter().flatten();
    servers.filter_map(|(id, server)| Some((id, server.as_object()?)))
}

fn state_text(state: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (label, key) in
        [("Healthy:", "healthy"), ("Failure Tolerance:", "failure_tolerance"), ("Leader:", "leader")]
    {
        let _ = writeln!(out, "{label:<33}{}", text(state, key));
    }
    for (label, key) in [("Voters:", "voters"), ("Non Voters:", "non_voters")] {
        let names = names(state, key);
        if key == "voters" || !names.is_empty() {
            let _ = writeln!(out, "{label}");
            for name in names {
                let _ = writeln!(out, "   {name}");
            }
        }
    }
    out.push_str("Servers:\n");
    for (id, server) in servers(state) {
        let _ = writeln!(out, "   {id}");
        for (label, key) in [
            ("Name:", "name"),
            ("Address:", "address"),
            ("Status:", "status"),
            ("Node Status:", "node_status"),
            ("Healthy:", "healthy"),
            ("Last Contact:", "last_contact"),
            ("Last Term:", "last_term"),
            ("Last Index:", "last_index"),
            ("Version:", "version"),
            ("Upgrade Version:", "upgrade_version"),
            ("Redundancy Zone:", "redundancy_zone"),
            ("Node Type:", "node_type"),
        ] {
            let value = text(server, key);
            if !value.is_empty() || key == "version" {
                let _ = writeln!(out, "      {label:<19}{value}");
            }
        }
    }
    out.trim_end().to_owned()
}

/// As Vault prints it: the names of the fields of its own structures.
fn state_document(state: &Map<String, Value>) -> Document {
    let value = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or_default();
    let string = |map: &Map<String, Value>, key: &str| Value::from(text(map, key));
    let server = |server: &Map<String, Value>| {
        let fields = [
            ("ID", "id"),
            ("Name", "name"),
            ("Address", "address"),
            ("NodeStatus", "node_status"),
            ("LastContact", "last_contact"),
            ("LastTerm", "last_term"),
            ("LastIndex", "last_index"),
            ("Healthy", "healthy"),
            ("StableSince", "stable_since"),
            ("Status", "status"),
            ("Version", "version"),
            ("UpgradeVersion", "upgrade_version"),
            ("NodeType", "node_type"),
        ];
        Document::object(fields.map(|(name, key)| match name {
            "UpgradeVersion" | "Version" => (name, string(server, key)),
            _ => (name, value(server, key)),
        }))
    };
    let servers = servers(state).map(|(id, fields)| (id.clone(), server(fields)));
    Document::object([
        ("Healthy", Document::Value(value(state, "healthy"))),
        ("FailureTolerance", Document::Value(value(state, "failure_tolerance"))),
        ("Servers", Document::object(servers)),
        ("Leader", Document::Value(value(state, "leader"))),
        ("Voters", Document::Value(value(state, "voters"))),
        ("NonVoters", Document::Value(value(state, "non_voters"))),
        ("Upgrade", Document::Value(Value::Null)),
        ("OptimisticFailureTolerance", Document::Value(value(state, "optimistic_failure_tolerance"))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_state_is_vaults_block_of_labels() {
        let state = json!({
            "healthy": true, "failure_tolerance": 0, "leader": "n0", "voters": ["n0"], "non_voters": ["n1"],
            "servers": {
                "n0": {"id": "n0", "name": "n0", "address": "127.0.0.1:8201", "status": "leader",
                       "node_status": "alive", "healthy": true, "last_contact": "0s", "last_term": 3,
                       "last_index": 33, "version": "1.16.3", "node_type": "voter"},
            },
        });
        let expected = "\
Healthy:                         true
Failure Tolerance:               0
Leader:                          n0
Voters:
   n0
Non Voters:
   n1
Servers:
   n0
      Name:              n0
      Address:           127.0.0.1:8201
      Status:            leader
      Node Status:       alive
      Healthy:           true
      Last Contact:      0s
      Last Term:         3
      Last Index:        33
      Version:           1.16.3
      Node Type:         voter";
        assert_eq!(state_text(state.as_object().unwrap()), expected);
    }

    #[test]
    fn the_configuration_is_a_table() {
        let config = json!({
            "cleanup_dead_servers": false, "last_contact_threshold": "10s",
            "dead_server_last_contact_threshold": "24h0m0s", "server_stabilization_time": "10s",
            "min_quorum": 0, "max_trailing_logs": 1000,
        });
        let expected = "\
Key                                   Value
---                                   -----
Cleanup Dead Servers                  false
Last Contact Threshold                10s
Dead Server Last Contact Threshold    24h0m0s
Server Stabilization Time             10s
Min Quorum                            0
Max Trailing Logs                     1000";
        assert_eq!(config_table(config.as_object().unwrap()), expected);
    }
}
