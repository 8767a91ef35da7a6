//! `status`, and the seal status that `operator unseal` prints.

use serde_json::{Map, Value};

use crate::cli::api_error::ApiError;
use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::{Command, Invocation, Outcome};

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "status",
    synopsis: "Prints seal and HA status",
    about: "Prints the state of the node at the address: initialised or not, sealed or not, and its part in the\n\
            cluster. The exit code is 0 if it is unsealed, 2 if it is sealed, 1 if it cannot be asked.",
    run: Some(run),
    ..Command::DEFAULT
}];

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let printed = session
        .raw_json("GET", "sys/seal-status", None)
        .map_err(|error| ("Error checking seal status", error))
        .and_then(|status| SealStatus::with_leader(status, &session));
    match printed {
        Ok(status) => {
            let code = if status.is_sealed() { 2 } else { 0 };
            match status.print(invocation) {
                0 => Ok(code),
                failed => Err(failed),
            }
        }
        // Unlike everywhere else, a server that cannot be asked is 1 here: 2 means sealed.
        Err((doing, error)) => Err(invocation.refused(doing, &error).min(1)),
    }
}

/// A node's seal status, with what it says of the leader once it is unsealed.
pub struct SealStatus {
    seal: Map<String, Value>,
    leader: Map<String, Value>,
}

const NO_TIME: &str = "0001-01-01T00:00:00Z";

impl SealStatus {
    /// Asks for the leader too. A sealed node that refuses to name it is no error.
    ///
    /// # Errors
    /// What was being done, and why it failed.
    pub fn with_leader(seal: Value, session: &Session) -> Result<SealStatus, (&'static str, ApiError)> {
        let Value::Object(seal) = seal else {
            let why = "the server's answer is no seal status".to_owned();
            return Err(("Error checking seal status", ApiError::Unreadable(why)));
        };
        let leader = match session.raw_json("GET", "sys/leader", None) {
            Ok(Value::Object(leader)) => leader,
            Ok(_) => Map::new(),
            Err(error) if error.says_sealed() => {
                Map::from_iter([("ha_enabled".to_owned(), Value::from(true))])
            }
            Err(error) => return Err(("Error checking leader status", error)),
        };
        Ok(SealStatus { seal, leader })
    }

    /// How many shares the node has, of how many it needs.
    pub fn progress(&self) -> (u64, u64) {
        let number = |key: &str| self.seal.get(key).and_then(Value::as_u64).unwrap_or(0);
        (number("progress"), number("t"))
    }

    /// The other members, in the answer to the share that completed a ceremony for all of them.
    pub fn ceremony(&self) -> Option<&Map<String, Value>> {
        self.seal.get("ceremony").and_then(Value::as_object)
    }

    /// Whether the node serves nothing; an uninitialised one counts as sealed.
    pub fn is_sealed(&self) -> bool {
        self.seal.get("sealed").and_then(Value::as_bool).unwrap_or(true)
    }

    /// Prints it in the invocation's format and gives the exit code of printing.
    pub fn print(self, invocation: &mut Invocation<'_, '_>) -> i32 {
        let (ui, format) = invocation.printer();
        // A certificate that runs out soon, for one. Not among the fields: those are Vault's.
        ui.server_warnings(&self.warnings());
        if format == Format::Table {
            ui.output(&output::table(&["Key", "Value"], &self.rows()));
            return 0;
        }
        output::print(ui, format, self.document())
    }

    fn warnings(&self) -> Vec<String> {
        let warnings = self.seal.get("warnings").and_then(Value::as_array);
        warnings.into_iter().flatten().map(output::go).collect()
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let seal = |key: &str| text(&self.seal, key);
        let leader = |key: &str| text(&self.leader, key);
        let yes = |fields: &Map<String, Value>, key: &str| {
            fields.get(key).and_then(Value::as_bool).unwrap_or(false)
        };
        let recovery = if yes(&self.seal, "recovery_seal") { "Recovery " } else { "" };
        let mut rows = vec![
            (format!("{recovery}Seal Type"), seal("type")),
            ("Initialized".to_owned(), seal("initialized")),
            ("Sealed".to_owned(), seal("sealed")),
            (format!("Total {recovery}Shares"), seal("n")),
            ("Threshold".to_owned(), seal("t")),
        ];
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        if self.is_sealed() {
            row("Unseal Progress", format!("{}/{}", seal("progress"), seal("t")));
            row("Unseal Nonce", seal("nonce"));
        }
        if yes(&self.seal, "migration") {
            row("Seal Migration in Progress", "true".to_owned());
        }
        row("Version", seal("version"));
        row("Build Date", seal("build_date"));
        row("Storage Type", seal("storage_type"));
        if !seal("cluster_name").is_empty() || !seal("cluster_id").is_empty() {
            row("Cluster Name", seal("cluster_name"));
            row("Cluster ID", seal("cluster_id"));
        }
        let ha = yes(&self.leader, "ha_enabled");
        row("HA Enabled", ha.to_string());
        if ha && !self.is_sealed() {
            self.ha_rows(&mut row);
        }
        for (name, key) in
            [("Raft Committed Index", "raft_committed_index"), ("Raft Applied Index", "raft_applied_index")]
        {
            if self.leader.get(key).and_then(Value::as_u64).is_some_and(|index| index > 0) {
                row(name, leader(key));
            }
        }
        rows.into_iter().map(|(name, value)| vec![name, value]).collect()
    }

    fn ha_rows(&self, row: &mut impl FnMut(&str, String)) {
        let leader = |key: &str| text(&self.leader, key);
        // An empty cell prints as n/a.
        row("HA Cluster", leader("leader_cluster_address"));
        if self.leader.get("is_self").and_then(Value::as_bool).unwrap_or(false) {
            row("HA Mode", "active".to_owned());
            if !matches!(leader("active_time").as_str(), "" | NO_TIME) {
                row("Active Since", leader("active_time"));
            }
        } else {
            row("HA Mode", "standby".to_owned());
            let address = leader("leader_address");
            row("Active Node Address", if address.is_empty() { "<none>".to_owned() } else { address });
        }
    }

    fn document(self) -> Document {
        let mut fields: Vec<(&str, Value)> = Vec::new();
        let absent: [(&str, Value); 14] = [
            ("type", "".into()),
            ("initialized", false.into()),
            ("sealed", true.into()),
            ("t", 0.into()),
            ("n", 0.into()),
            ("progress", 0.into()),
            ("nonce", "".into()),
            ("version", "".into()),
            ("build_date", "".into()),
            ("migration", false.into()),
            ("cluster_name", Value::Null),
            ("cluster_id", Value::Null),
            ("recovery_seal", false.into()),
            ("storage_type", "".into()),
        ];
        for (key, default) in absent {
            let value = self.seal.get(key).cloned().unwrap_or(default);
            let left_out = key.starts_with("cluster_") && text(&self.seal, key).is_empty();
            if !left_out {
                fields.push((key, value));
            }
        }
        let leader = |key: &str| self.leader.get(key).cloned();
        fields.push(("ha_enabled", leader("ha_enabled").unwrap_or(false.into())));
        let active = leader("is_self") == Some(true.into());
        if active {
            fields.push(("is_self", true.into()));
        }
        fields.push(("active_time", leader("active_time").unwrap_or(NO_TIME.into())));
        for key in ["leader_address", "leader_cluster_address", "raft_committed_index", "raft_applied_index"]
        {
            if let Some(value) = leader(key).filter(|value| value != "" && value != 0) {
                fields.push((key, value));
            }
        }
        Document::object(fields)
    }
}

fn text(fields: &Map<String, Value>, key: &str) -> String {
    match fields.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(value) => output::go(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(seal: Value, leader: Value) -> SealStatus {
        let object = |value: Value| value.as_object().unwrap().clone();
        SealStatus { seal: object(seal), leader: object(leader) }
    }

    fn names(status: &SealStatus) -> String {
        status.rows().iter().map(|row| row[0].as_str()).collect::<Vec<_>>().join(", ")
    }

    fn sealed() -> Value {
        json!({"type": "shamir", "initialized": true, "sealed": true, "t": 3, "n": 5, "progress": 1,
               "nonce": "", "version": "1.16.3", "build_date": "b", "migration": false,
               "recovery_seal": false, "storage_type": "raft"})
    }

    #[test]
    fn a_sealed_node_shows_its_progress() {
        let status = status(sealed(), json!({"ha_enabled": true}));
        assert_eq!(
            output::table(&["Key", "Value"], &status.rows()),
            "\
Key                Value
---                -----
Seal Type          shamir
Initialized        true
Sealed             true
Total Shares       5
Threshold          3
Unseal Progress    1/3
Unseal Nonce       n/a
Version            1.16.3
Build Date         b
Storage Type       raft
HA Enabled         true"
        );
        assert!(status.is_sealed());
    }

    #[test]
    fn an_unsealed_node_shows_its_part_in_the_cluster() {
        let mut seal = sealed();
        seal["sealed"] = false.into();
        seal["cluster_name"] = "c".into();
        seal["cluster_id"] = "i".into();
        let active = json!({"ha_enabled": true, "is_self": true, "active_time": "2026-11-22T10:00:00Z",
            "leader_address": "https://a", "leader_cluster_address": "https://c",
            "raft_committed_index": 34, "raft_applied_index": 34});
        let front = "Seal Type, Initialized, Sealed, Total Shares, Threshold, Version, Build Date, Storage Type, \
                     Cluster Name, Cluster ID, HA Enabled, HA Cluster, HA Mode, ";
        assert_eq!(
            names(&status(seal.clone(), active.clone())),
            format!("{front}Active Since, Raft Committed Index, Raft Applied Index")
        );
        let standby =
            json!({"ha_enabled": true, "is_self": false, "leader_address": "", "leader_cluster_address": ""});
        let standby = status(seal.clone(), standby);
        assert_eq!(names(&standby), format!("{front}Active Node Address"));
        assert_eq!(standby.rows()[11], ["HA Cluster", ""]);

        let json = status(seal, active).document().render(Format::Json).unwrap();
        let keys: Vec<_> = json.lines().filter_map(|line| line.trim().split('"').nth(1)).collect();
        assert_eq!(
            keys.join(" "),
            "type initialized sealed t n progress nonce version build_date migration cluster_name cluster_id \
             recovery_seal storage_type ha_enabled is_self active_time leader_address leader_cluster_address \
             raft_committed_index raft_applied_index"
        );
    }

    #[test]
    fn cluster_and_leader_are_left_out_of_json_while_unknown() {
        let json = status(sealed(), json!({"ha_enabled": true})).document().render(Format::Json).unwrap();
        assert!(!json.contains("cluster_") && !json.contains("is_self") && !json.contains("leader_"));
        assert!(json.contains(r#""active_time": "0001-01-01T00:00:00Z""#));
    }
}
