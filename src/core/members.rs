//! The endpoints about members: stepping down, votes, autopilot, whether a node may be stopped.

use keystead_raft::{AutopilotConfig, AutopilotState, JoinError, ServerState};
use serde_json::{Map, Value, json};

use super::{
    Core, RAFT,
    error::ApiError,
    fields::Fields,
    leader::Led,
    request::Request,
    response::Answer,
    router::Handler,
    time::{go_duration, go_duration_exact, rfc3339},
};

/// The fields of autopilot's configuration.
pub(super) const AUTOPILOT_FIELDS: &[&str] = &[
    "cleanup_dead_servers",
    "dead_server_last_contact_threshold",
    "disable_upgrade_migration",
    "last_contact_threshold",
    "max_trailing_logs",
    "min_quorum",
    "server_stabilization_time",
];

impl Core {
    /// Answers what changes nothing, or `None` when it is another endpoint.
    pub(super) fn answer_members(
        &self,
        handler: Handler,
        request: &Request,
    ) -> Option<Result<Answer, ApiError>> {
        Some(match handler {
            Handler::AutopilotConfig => {
                self.node().autopilot_config().map(|config| Answer::data(config_data(&config)))
            }
            Handler::AutopilotState => {
                self.node().autopilot_state().map(|state| Answer::data(state_data(&state)))
            }
            Handler::SafeToStop => self.safe_to_stop(request),
            _ => return None,
        })
    }

    /// Carries out what changes something, on the leader. Whoever finds that another one leads goes there.
    pub(super) async fn change_members(&self, request: &Request, handler: Handler) -> Led {
        match self.changed_members(request, handler).await {
            Err(ApiError::NoLeader) => Led::NotLeader,
            result => Led::Answered(result.map(|()| Answer::NoContent)),
        }
    }

    async fn changed_members(&self, request: &Request, handler: Handler) -> Result<(), ApiError> {
        let fields = Fields(&request.data);
        if handler == Handler::StepDown {
            // The leader that was asked before is lost: so it has stepped down, one way or the other. Nor is there
            // anybody to hand over to where a single node has its own storage.
            if request.retry || self.settings.storage_type != RAFT {
                return Ok(());
            }
            return self.node().step_down().await;
        }
        if handler == Handler::AutopilotConfig {
            let change = AutopilotFields::read(&fields)?;
            let changed = move |config: &mut AutopilotConfig| {
                change.apply(config);
                config.check().map_err(JoinError::Invalid)
            };
            return self.node().configure_autopilot(Box::new(changed)).await;
        }
        let node_id = fields.text_or_empty("server_id")?;
        if node_id.is_empty() {
            return Err(ApiError::invalid("no server id provided"));
        }
        match handler {
            Handler::Promote => self.node().promote(node_id).await,
            Handler::Demote => self.node().demote(node_id).await,
            _ => self.node().remove_peer(node_id).await,
        }
    }

    /// Compares the states of all members.
    pub(super) async fn verify_members(&self, request: &Request) -> Result<Answer, ApiError> {
        let scrub = Fields(&request.data).flag("scrub")?.unwrap_or(false);
        let verified = self.node().verify_members(scrub).await?;
        let agreed = verified.agreed();
        let servers: Vec<Value> = verified
            .members
            .iter()
            .map(|member| {
                let (digest, error) = match &member.digest {
                    Ok(digest) => (hex::encode(digest), String::new()),
                    Err(error) => (String::new(), error.clone()),
                };
                let agrees = member.digest.as_ref().ok() == agreed.as_ref() && agreed.is_some();
                json!({ "node_id": member.node_id, "digest": digest, "agrees": agrees, "error": error })
            })
            .collect();
        let agree = servers.iter().all(|server| server["agrees"] == true);
        let differ = verified
            .members
            .iter()
            .any(|member| member.digest.is_ok() && member.digest.as_ref().ok() != agreed.as_ref());
        metrics::gauge!("keystead_state_diverged").set(if differ { 1.0 } else { 0.0 });
        tracing::info!(
            index = verified.index,
            scrub,
            agree,
            differ,
            "the states of all members were compared"
        );
        let data = json!({ "index": verified.index, "agree": agree, "scrubbed": scrub, "servers": servers });
        Ok(Answer::data(data.as_object().cloned().unwrap_or_default()))
    }

    fn safe_to_stop(&self, request: &Request) -> Result<Answer, ApiError> {
        let node_id = Fields(&request.data).text_or_empty("node")?;
        let safety = self.node().safe_to_stop(&node_id)?;
        let safety = safety.ok_or_else(|| {
            ApiError::invalid("no member has this node id; sys/storage/raft/configuration lists them")
        })?;
        let data = json!({
            "leader": safety.leads,
            "node_id": safety.node_id,
            "reasons": safety.reasons,
            "safe": safety.reasons.is_empty(),
            "warnings": safety.warnings,
        });
        Ok(Answer::data(data.as_object().cloned().unwrap_or_default()))
    }

    /// Writes into a request which node is meant, as the leader answers it.
    pub(super) fn name_node(&self, request: &mut Request) {
        let named = Fields(&request.data).text_or_empty("node").is_ok_and(|node| !node.is_empty());
        if !named {
            let node_id = self.node().node_id();
            let joint = if request.location.contains('?') { '&' } else { '?' };
            request.location.push(joint);
            request.location.push_str("node=");
            request.location.extend(node_id.bytes().map(in_query));
            request.data.insert("node".to_owned(), node_id.into());
        }
    }
}

/// A byte of a node id as it may stand in a query.
fn in_query(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

/// What a client wants changed; what it does not name stays.
struct AutopilotFields {
    cleanup_dead_servers: Option<bool>,
    last_contact_threshold_ms: Option<u64>,
    dead_server_threshold_ms: Option<u64>,
    max_trailing_logs: Option<u64>,
    min_quorum: Option<u64>,
    server_stabilization_ms: Option<u64>,
    disable_upgrade_migration: Option<bool>,
}

impl AutopilotFields {
    fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let negative = |name: &str| ApiError::invalid(format!("{name} must not be negative"));
        let ms = |name: &str| {
            let given = fields.duration_s(name)?;
            let ms = given.map(|s| u64::try_from(s).map(|s| s.saturating_mul(1_000)));
            ms.transpose().map_err(|_| negative(name))
        };
        let count = |name: &str| {
            let given = fields.integer(name)?;
            given.map(u64::try_from).transpose().map_err(|_| negative(name))
        };
        Ok(Self {
            cleanup_dead_servers: fields.flag("cleanup_dead_servers")?,
            last_contact_threshold_ms: ms("last_contact_threshold")?,
            dead_server_threshold_ms: ms("dead_server_last_contact_threshold")?,
            max_trailing_logs: count("max_trailing_logs")?,
            min_quorum: count("min_quorum")?,
            server_stabilization_ms: ms("server_stabilization_time")?,
            disable_upgrade_migration: fields.flag("disable_upgrade_migration")?,
        })
    }

    fn apply(&self, config: &mut AutopilotConfig) {
        fn set<T: Copy>(place: &mut T, given: Option<T>) {
            *place = given.unwrap_or(*place);
        }
        set(&mut config.cleanup_dead_servers, self.cleanup_dead_servers);
        set(&mut config.last_contact_threshold_ms, self.last_contact_threshold_ms);
        set(&mut config.dead_server_threshold_ms, self.dead_server_threshold_ms);
        set(&mut config.max_trailing_logs, self.max_trailing_logs);
        set(&mut config.min_quorum, self.min_quorum);
        set(&mut config.server_stabilization_ms, self.server_stabilization_ms);
        set(&mut config.disable_upgrade_migration, self.disable_upgrade_migration);
    }
}

fn seconds(ms: u64) -> String {
    go_duration(i64::try_from(ms / 1_000).unwrap_or(i64::MAX))
}

fn config_data(config: &AutopilotConfig) -> Map<String, Value> {
    let data = json!({
        "cleanup_dead_servers": config.cleanup_dead_servers,
        "dead_server_last_contact_threshold": seconds(config.dead_server_threshold_ms),
        "disable_upgrade_migration": config.disable_upgrade_migration,
        "last_contact_threshold": seconds(config.last_contact_threshold_ms),
        "max_trailing_logs": config.max_trailing_logs,
        "min_quorum": config.min_quorum,
        "server_stabilization_time": seconds(config.server_stabilization_ms),
    });
    data.as_object().cloned().unwrap_or_default()
}

fn state_data(state: &AutopilotState) -> Map<String, Value> {
    let named = |fits: fn(&ServerState) -> bool| -> Vec<&str> {
        let fitting = state.servers.iter().filter(|server| fits(server));
        fitting.map(|server| server.node_id.as_str()).collect()
    };
    let mut data = Map::new();
    data.insert("failure_tolerance".to_owned(), state.failure_tolerance.into());
    data.insert("healthy".to_owned(), state.healthy.into());
    data.insert("leader".to_owned(), named(|server| server.leader).concat().into());
    data.insert("optimistic_failure_tolerance".to_owned(), state.failure_tolerance.into());
    let servers = state.servers.iter().map(|server| (server.node_id.clone(), server_data(server)));
    data.insert("servers".to_owned(), Value::Object(servers.collect()));
    data.insert("voters".to_owned(), named(|server| server.voter).into());
    let others = named(|server| !server.voter);
    if !others.is_empty() {
        data.insert("non_voters".to_owned(), others.into());
    }
    data
}

fn server_data(server: &ServerState) -> Value {
    let status = match (server.leader, server.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "non-voter",
    };
    json!({
        "address": server.address,
        "healthy": server.healthy,
        "id": server.node_id,
        "last_contact": go_duration_exact(server.last_contact),
        "last_index": server.last_index,
        "last_term": server.last_term,
        "name": server.node_id,
        "node_status": if server.answers { "alive" } else { "failed" },
        "node_type": if server.voter { "voter" } else { "non-voter" },
        "stable_since": rfc3339(server.stable_since_ms),
        "status": status,
        "version": server.version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(data: Value) -> Result<AutopilotConfig, String> {
        let data = data.as_object().cloned().unwrap();
        let change = AutopilotFields::read(&Fields(&data)).map_err(|error| error.to_string())?;
        let mut config = AutopilotConfig::default();
        change.apply(&mut config);
        config.check().map(|()| config)
    }

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let config = changed(json!({ "cleanup_dead_servers": "true", "min_quorum": "3" })).unwrap();
        assert!(config.cleanup_dead_servers);
        assert_eq!((config.min_quorum, config.max_trailing_logs), (3, 1_000));
        let data = config_data(&changed(json!({ "dead_server_last_contact_threshold": "90m" })).unwrap());
        assert_eq!(data["dead_server_last_contact_threshold"], "1h30m0s");
        assert_eq!(data["last_contact_threshold"], "10s");
        assert_eq!(data.keys().map(String::as_str).collect::<Vec<_>>(), AUTOPILOT_FIELDS);
    }

    #[test]
    fn what_cannot_be_is_refused_and_names_the_field() {
        for (data, why) in [
            (json!({ "min_quorum": -1 }), "min_quorum must not be negative"),
            (
                json!({ "max_trailing_logs": "many" }),
                "error converting input for field \"max_trailing_logs\"",
            ),
            (json!({ "server_stabilization_time": "-5s" }), "server_stabilization_time must not be negative"),
            (json!({ "last_contact_threshold": "soon" }), "field \"last_contact_threshold\""),
            (json!({ "dead_server_last_contact_threshold": "59s" }), "should not be less than 1m"),
            (json!({ "cleanup_dead_servers": true }), "it should at least be 3"),
        ] {
            let refused = changed(data.clone()).unwrap_err();
            assert!(refused.contains(why), "{data}: {refused}");
        }
    }

    #[test]
    fn a_node_id_survives_the_query() {
        assert_eq!("n-1.a_B/ü".bytes().map(in_query).collect::<String>(), "n-1.a_B%2F%C3%BC");
    }
}
