//! `operator raft list-peers`, `remove-peer`, `promote`, `demote` and `join`.

use serde_json::{Value, json};

use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::{Invocation, Outcome, data};

pub const JOIN_FLAGS: &[Flag] = &[
    Flag::new("leader-ca-cert", Kind::Text, "CA certificate of the leader's API, as PEM text or @file."),
    Flag::new(
        "leader-client-cert",
        Kind::Text,
        "Client certificate to show the leader, as PEM text or @file.",
    ),
    Flag::new("leader-client-key", Kind::Text, "Private key of that certificate, as PEM text or @file."),
    Flag::new("retry", Kind::Bool, "Keep trying in the background."),
    Flag::new("non-voter", Kind::Bool, "Join without a vote."),
    Flag::new("auto-join-scheme", Kind::Text, "Scheme of addresses that are discovered."),
    Flag::new("auto-join-port", Kind::Int, "Port of addresses that are discovered."),
];

/// The raft commands word their count of arguments in their own way.
pub fn expect(invocation: &mut Invocation<'_, '_>, allowed: &[usize], expected: &str) -> Result<(), i32> {
    let got = invocation.args.len();
    if allowed.contains(&got) {
        return Ok(());
    }
    Err(invocation.fail(&format!("Incorrect arguments (expected {expected}, got {got})")))
}

pub fn list_peers(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[0], "0")?;
    let session = invocation.session()?;
    let answer = session.read("sys/storage/raft/configuration", &[]);
    let answer =
        answer.map_err(|error| invocation.refused("Error reading the raft cluster configuration", &error))?;
    let Some(secret) = answer else {
        invocation.ui.error("No raft cluster configuration found");
        return Err(2);
    };
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        return Ok(secret.print(ui, format));
    }
    let config = secret.data.as_ref().and_then(|data| data.get("config"));
    let servers = config.and_then(|config| config.get("servers")).and_then(Value::as_array);
    ui.output(&peers_table(servers.map(Vec::as_slice).unwrap_or_default()));
    Ok(0)
}

fn peers_table(servers: &[Value]) -> String {
    let row = |server: &Value| {
        let text = |key: &str| server.get(key).map(output::go).unwrap_or_default();
        let leads = server.get("leader").and_then(Value::as_bool).unwrap_or(false);
        let state = if leads { "leader" } else { "follower" };
        vec![text("node_id"), text("address"), state.to_owned(), text("voter")]
    };
    output::table(&["Node", "Address", "State", "Voter"], &servers.iter().map(row).collect::<Vec<_>>())
}

/// Exit code when a member differs, or cannot be asked.
const NOT_ALIKE: i32 = 2;

pub const VERIFY_FLAGS: &[Flag] =
    &[Flag::new("scrub", Kind::Bool, "Have every member read all of its state from the disk before.")];

pub fn verify(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[0], "0")?;
    let body = json!({"scrub": invocation.flags.bool("scrub")});
    let session = invocation.session()?;
    let answer = session.send("PUT", "sys/storage/raft/verify", Some(&body));
    let answer = answer.map_err(|error| invocation.refused("Error comparing the members", &error))?;
    let data = answer.and_then(|secret| secret.data).unwrap_or_default();
    let agree = data.get("agree").and_then(Value::as_bool).unwrap_or(false);
    let code = if agree { 0 } else { NOT_ALIKE };
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let fields = data.into_iter().collect::<Vec<_>>();
        return match output::print(ui, format, Document::object(fields)) {
            0 => Ok(code),
            failed => Err(failed),
        };
    }
    let servers = data.get("servers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let row = |server: &Value| {
        let text = |key: &str| server.get(key).map(output::go).unwrap_or_default();
        let state = match (server["agrees"] == true, text("error")) {
            (true, _) => "agrees".to_owned(),
            (false, error) if error.is_empty() => "DIFFERS".to_owned(),
            (false, error) => format!("not compared: {error}"),
        };
        vec![text("node_id"), text("digest").chars().take(16).collect(), state]
    };
    ui.output(&format!("Entry {}", data.get("index").map(output::go).unwrap_or_default()));
    ui.output(&output::table(&["Node", "Digest", "State"], &servers.iter().map(row).collect::<Vec<_>>()));
    if servers.iter().any(|server| server["agrees"] != true && server["error"] == "") {
        ui.warn("The state of a member differs from the others': stop it, run \"operator raft rebuild\", and start it, so that it gets everything anew.");
    }
    Ok(code)
}

pub fn remove_peer(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[1], "1")?;
    let body = json!({"server_id": invocation.args[0].trim()});
    let session = invocation.session()?;
    let answer = session.call("PUT", "sys/storage/raft/remove-peer", &[], Some(&body));
    answer.map_err(|error| invocation.refused("Error removing the peer from raft cluster", &error))?;
    invocation.ui.output("Peer removed successfully!");
    Ok(0)
}

pub fn promote(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[1], "1")?;
    let body = json!({"server_id": invocation.args[0].trim()});
    let session = invocation.session()?;
    let answer = session.call("PUT", "sys/storage/raft/promote", &[], Some(&body));
    answer.map_err(|error| invocation.refused("Error promoting server", &error))?;
    invocation.ui.output("Server promoted successfully!");
    Ok(0)
}

pub fn demote(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[1], "1")?;
    let body = json!({"server_id": invocation.args[0].trim()});
    let session = invocation.session()?;
    let answer = session.call("PUT", "sys/storage/raft/demote", &[], Some(&body));
    answer.map_err(|error| invocation.refused("Error demoting server", &error))?;
    invocation.ui.output("Server demoted successfully!");
    Ok(0)
}

pub fn join(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[0, 1], "0 or 1")?;
    let target = invocation.args.first().map(|target| target.trim().to_owned()).unwrap_or_default();
    // As with Vault, an argument that names a provider says how to find the leader, not where it is.
    let (address, auto_join) =
        if target.contains("provider=") { (String::new(), target) } else { (target, String::new()) };
    let mut pem = |flag: &str| text_or_file(invocation, flag);
    let (ca, cert, key) = (pem("leader-ca-cert")?, pem("leader-client-cert")?, pem("leader-client-key")?);
    let flags = &invocation.flags;
    let body = json!({
        "leader_api_addr": address,
        "leader_ca_cert": ca,
        "leader_client_cert": cert,
        "leader_client_key": key,
        "retry": flags.bool("retry"),
        "non_voter": flags.bool("non-voter"),
        "auto_join": auto_join,
        "auto_join_scheme": flags.text("auto-join-scheme").unwrap_or_default(),
        "auto_join_port": flags.int("auto-join-port").unwrap_or(0),
    });
    let session = invocation.session()?;
    let answer = session.raw_json("POST", "sys/storage/raft/join", Some(&body));
    let answer =
        answer.map_err(|error| invocation.refused("Error joining the node to the Raft cluster", &error))?;
    let joined = answer.get("joined").and_then(Value::as_bool).unwrap_or(false);
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        return Ok(output::print(ui, format, Document::object([("joined", joined)])));
    }
    ui.output(&output::table(&["Key", "Value"], &[vec!["Joined".to_owned(), joined.to_string()]]));
    Ok(0)
}

fn text_or_file(invocation: &mut Invocation<'_, '_>, flag: &str) -> Result<String, i32> {
    let value = invocation.flags.text(flag).unwrap_or_default().trim().to_owned();
    let Some(path) = value.strip_prefix('@') else { return Ok(value) };
    let bytes =
        data::file(path).map_err(|why| invocation.fail(&format!("Failed to parse -{flag}: {why}")))?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| invocation.fail(&format!("Failed to parse -{flag}: not a PEM file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_a_table_in_the_servers_order() {
        let servers = json!([
            {"node_id": "n1", "address": "127.0.0.1:8201", "leader": true, "voter": true},
            {"node_id": "n2", "address": "127.0.0.1:8203", "leader": false, "voter": false},
        ]);
        let expected = "\
Node    Address           State       Voter
----    -------           -----       -----
n1      127.0.0.1:8201    leader      true
n2      127.0.0.1:8203    follower    false";
        assert_eq!(peers_table(servers.as_array().unwrap()), expected);
    }
}
