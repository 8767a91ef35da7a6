//! The endpoints that answer without an envelope, about the node that was asked.
//!
//! They work while the node is sealed, not initialised or without a leader: an operator asks them first.

use serde::Serialize;
use serde_json::Value;

use super::{
    Core, RAFT,
    error::ApiError,
    fields::{Fields, integer, parse_bool},
    gojson,
    node_ops::{
        Ceremony, CeremonyMember, HealthFacts, InitRequest, JoinRequest, ResetRequest, SealBackend,
        SealStatus, UnsealRequest,
    },
    request::{Operation, Request},
    response::{Answer, HealthState},
    router::Handler,
    sys_info,
    time::{ZERO_TIME, rfc3339},
};
use crate::secret::SecretString;

/// The version that clients are told.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// When this was built; set by whoever builds a release.
pub const BUILD_DATE: &str = match option_env!("KEYSTEAD_BUILD_DATE") {
    Some(date) => date,
    None => "1970-01-01T00:00:00Z",
};

impl Core {
    /// Answers a request to one of these endpoints, except `sys/seal`, which needs a token.
    pub(super) async fn answer_raw(&self, handler: Handler, request: &Request) -> Result<Answer, ApiError> {
        match handler {
            Handler::Init if request.operation == Operation::Read => {
                let initialized = self.node().seal_status().initialized;
                Ok(raw(&serde_json::json!({ "initialized": initialized })))
            }
            Handler::Init => self.init(request).await,
            Handler::SealStatus => Ok(self.seal_status(&self.node().seal_status())),
            Handler::SealBackends => Ok(seal_backends(&self.node().seal_backends())),
            Handler::Unseal => self.unseal(request).await,
            Handler::UnsealMembers => self.unseal_members(request).await,
            Handler::VerifyShare => self.verify_share(request),
            Handler::Health => health(&self.node().health(), &Fields(&request.data)),
            Handler::Alive => alive(&self.node().health(), &Fields(&request.data)),
            Handler::Ready => Ok(ready(&self.node().health())),
            Handler::FeatureFlags => Ok(sys_info::feature_flags()),
            Handler::Leader => self.leader(),
            Handler::RaftJoin => self.raft_join(request).await,
            Handler::RaftAddress => Ok(raw(&self.node().own_address())),
            Handler::RaftEpoch => Ok(raw(&self.node().raft_epoch(&request.data)?)),
            Handler::RaftClaim => Ok(raw(&self.node().raft_claim(&request.data)?)),
            _ => Err(ApiError::MethodNotAllowed),
        }
    }

    async fn init(&self, request: &Request) -> Result<Answer, ApiError> {
        let fields = Fields(&request.data);
        let init = InitRequest {
            secret_shares: fields.count("secret_shares")?,
            secret_threshold: fields.count("secret_threshold")?,
            pgp_keys: fields.texts("pgp_keys")?.unwrap_or_default(),
            root_token_pgp_key: fields.text_or_empty("root_token_pgp_key")?,
            recovery_shares: fields.count("recovery_shares")?,
            recovery_threshold: fields.count("recovery_threshold")?,
            break_glass_shares: fields.count("break_glass_shares")?,
            break_glass_threshold: fields.count("break_glass_threshold")?,
            recovery_pgp_keys: fields.texts("recovery_pgp_keys")?.unwrap_or_default(),
            break_glass_pgp_keys: fields.texts("break_glass_pgp_keys")?.unwrap_or_default(),
        };
        let made = self.node().init(init).await?;

        #[derive(Serialize, Default)]
        struct Body<'a> {
            keys: Vec<&'a str>,
            keys_base64: Vec<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            recovery_keys: Option<Vec<&'a str>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            recovery_keys_base64: Option<Vec<&'a str>>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            break_glass_keys: Vec<&'a str>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            break_glass_keys_base64: Vec<&'a str>,
            root_token: &'a str,
        }
        let hex = made.keys_hex.iter().map(SecretString::expose).collect();
        let base64 = made.keys_base64.iter().map(SecretString::expose).collect();
        let root_token = made.root_token.expose();
        Ok(raw(&if made.recovery {
            let (recovery_keys, recovery_keys_base64) = (Some(hex), Some(base64));
            Body {
                recovery_keys,
                recovery_keys_base64,
                break_glass_keys: made.break_glass_hex.iter().map(SecretString::expose).collect(),
                break_glass_keys_base64: made.break_glass_base64.iter().map(SecretString::expose).collect(),
                root_token,
                ..Body::default()
            }
        } else {
            Body { keys: hex, keys_base64: base64, root_token, ..Body::default() }
        }))
    }

    async fn unseal(&self, request: &Request) -> Result<Answer, ApiError> {
        let fields = Fields(&request.data);
        let key = fields.text("key")?.filter(|key| !key.is_empty()).map(SecretString::new);
        let reset = fields.flag("reset")?.unwrap_or(false);
        let migrate = fields.flag("migrate")?.unwrap_or(false);
        if key.is_none() && !reset {
            return Err(ApiError::invalid(
                "'key' must be specified in request body as JSON, or 'reset' set to true",
            ));
        }
        let cluster = fields.flag("cluster")?.unwrap_or(false);
        let reset = reset.then_some(ResetRequest {
            nonce: fields.text_or_empty("nonce")?,
            client_address: request.client_address.clone(),
            named_only: request.no_unseal_reset,
        });
        let status = self.node().unseal(UnsealRequest { key, reset, migrate, cluster }).await?;
        Ok(self.seal_status(&status))
    }

    async fn unseal_members(&self, request: &Request) -> Result<Answer, ApiError> {
        let fields = Fields(&request.data);
        let nonce = fields.text_or_empty("nonce")?;
        let members = self.node().unseal_members(nonce, fields.texts("members")?).await?;
        Ok(raw(&serde_json::json!({ "members": members.iter().map(ceremony_member).collect::<Vec<_>>() })))
    }

    fn verify_share(&self, request: &Request) -> Result<Answer, ApiError> {
        let key = Fields(&request.data).text("key")?.filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| ApiError::invalid("'key' must be specified in request body as JSON"))?;
        let facts = self.node().verify_share(&SecretString::new(key))?;
        Ok(raw(&serde_json::json!({
            "valid": true,
            "kind": facts.kind,
            "number": facts.number,
            "n": facts.shares,
            "t": facts.threshold,
            "generation": facts.generation,
        })))
    }

    fn seal_status(&self, status: &SealStatus) -> Answer {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: &'a str,
            initialized: bool,
            sealed: bool,
            t: u32,
            n: u32,
            progress: u32,
            nonce: &'a str,
            version: &'a str,
            build_date: &'a str,
            migration: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            cluster_name: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            cluster_id: Option<&'a str>,
            recovery_seal: bool,
            storage_type: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            ceremony: Option<Value>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            warnings: Vec<String>,
        }
        raw(&Body {
            r#type: &status.seal_type,
            initialized: status.initialized,
            sealed: status.sealed,
            t: status.threshold,
            n: status.shares,
            progress: status.progress,
            nonce: &status.nonce,
            version: VERSION,
            build_date: BUILD_DATE,
            migration: status.migration,
            cluster_name: status.cluster_name.as_deref(),
            cluster_id: status.cluster_id.as_deref(),
            recovery_seal: status.recovery_seal,
            storage_type: self.settings.storage_type,
            ceremony: status.ceremony.as_ref().map(ceremony),
            warnings: [self.warnings.lock().clone(), self.node().health().warnings].concat(),
        })
    }

    async fn raft_join(&self, request: &Request) -> Result<Answer, ApiError> {
        if self.settings.storage_type != RAFT {
            return Err(ApiError::Internal("raft backend not in use".to_owned()));
        }
        let fields = Fields(&request.data);
        let join = JoinRequest {
            leader_api_addr: fields.text_or_empty("leader_api_addr")?,
            leader_ca_cert: fields.text_or_empty("leader_ca_cert")?,
            leader_client_cert: fields.text_or_empty("leader_client_cert")?,
            leader_client_key: SecretString::new(fields.text_or_empty("leader_client_key")?),
            leader_tls_servername: fields.text_or_empty("leader_tls_servername")?,
            retry: fields.flag("retry")?.unwrap_or(false),
            non_voter: fields.flag("non_voter")?.unwrap_or(false),
        };
        let joined = self.node().raft_join(join).await?;
        Ok(raw(&serde_json::json!({ "joined": joined })))
    }

    fn leader(&self) -> Result<Answer, ApiError> {
        if self.node().unsealed().is_none() {
            return Err(ApiError::Sealed);
        }
        #[derive(Serialize)]
        struct Body {
            ha_enabled: bool,
            is_self: bool,
            active_time: String,
            leader_address: String,
            leader_cluster_address: String,
            performance_standby: bool,
            performance_standby_last_remote_wal: u64,
            raft_committed_index: u64,
            raft_applied_index: u64,
        }
        let status = self.node().leader_status();
        let active_time = if status.is_self { rfc3339(status.active_since_ms) } else { ZERO_TIME.to_owned() };
        Ok(raw(&Body {
            ha_enabled: status.ha_enabled && self.settings.storage_type == RAFT,
            is_self: status.is_self,
            active_time,
            leader_address: status.leader_address,
            leader_cluster_address: status.leader_cluster_address,
            performance_standby: false,
            performance_standby_last_remote_wal: 0,
            raft_committed_index: status.committed_index,
            raft_applied_index: status.applied_index,
        }))
    }
}

fn raw<T: Serialize>(body: &T) -> Answer {
    Answer::Raw(gojson::to_string(body))
}

/// Vault's, since 1.16.
fn seal_backends(seals: &[SealBackend]) -> Answer {
    #[derive(Serialize)]
    struct Backend<'a> {
        name: &'a str,
        healthy: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        unhealthy_since: Option<String>,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        healthy: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        unhealthy_since: Option<String>,
        backends: Vec<Backend<'a>>,
        fully_wrapped: bool,
    }
    let backends: Vec<_> = seals
        .iter()
        .map(|seal| Backend {
            name: &seal.name,
            healthy: seal.unhealthy_since_ms.is_none(),
            unhealthy_since: seal.unhealthy_since_ms.map(rfc3339),
        })
        .collect();
    let first = seals.iter().filter_map(|seal| seal.unhealthy_since_ms).min();
    raw(&Body {
        healthy: first.is_none(),
        unhealthy_since: first.map(rfc3339),
        backends,
        fully_wrapped: seals.iter().all(|seal| seal.wraps),
    })
}

fn health(facts: &HealthFacts, query: &Fields<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Body<'a> {
        initialized: bool,
        sealed: bool,
        standby: bool,
        performance_standby: bool,
        replication_performance_mode: &'a str,
        replication_dr_mode: &'a str,
        server_time_utc: u64,
        version: &'a str,
        enterprise: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        cluster_name: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cluster_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        failure: Option<&'a str>,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        warnings: &'a [String],
    }
    let closed = facts.sealed || !facts.initialized;
    let mut state = if facts.failure.is_some() {
        HealthState::Failed
    } else if !facts.initialized {
        HealthState::Uninitialized
    } else if facts.sealed {
        HealthState::Sealed
    } else if facts.standby {
        HealthState::Standby
    } else {
        HealthState::Active
    };
    let standby_ok = health_flag(query, "standbyok")?;
    // There are no performance standbys here; the parameter is still read, so that a wrong one is told.
    health_flag(query, "perfstandbyok")?;
    let mut codes = [None; 5];
    for (name, of) in [
        ("activecode", Some(HealthState::Active)),
        ("standbycode", Some(HealthState::Standby)),
        ("sealedcode", Some(HealthState::Sealed)),
        ("uninitcode", Some(HealthState::Uninitialized)),
        ("drsecondarycode", None),
        ("performancestandbycode", None),
        ("haunhealthycode", None),
        ("removedcode", None),
    ] {
        let code = health_code(query, name)?;
        if let Some(of) = of {
            codes[of as usize] = code;
        }
    }
    if state == HealthState::Standby && standby_ok {
        state = HealthState::Active;
    }
    let mode = if closed || !facts.leader_known { "unknown" } else { "disabled" };
    let body = gojson::to_string(&Body {
        initialized: facts.initialized,
        sealed: facts.sealed,
        standby: closed || facts.standby,
        performance_standby: false,
        replication_performance_mode: mode,
        replication_dr_mode: mode,
        server_time_utc: facts.server_time_s,
        version: VERSION,
        enterprise: false,
        cluster_name: facts.cluster_name.as_deref(),
        cluster_id: facts.cluster_id.as_deref(),
        failure: facts.failure.as_deref(),
        warnings: &facts.warnings,
    });
    Ok(Answer::Health { state, code: codes[state as usize], body })
}

/// `/health` and `/livez`: as `sys/health`, but 200 in every state for which no code is asked for. An orchestrator
/// restarts what does not answer 200 here, and a restart would not unseal a sealed node.
fn alive(facts: &HealthFacts, query: &Fields<'_>) -> Result<Answer, ApiError> {
    Ok(match health(facts, query)? {
        Answer::Health { state, code, body } => {
            Answer::Health { state, code: Some(code.unwrap_or(200)), body }
        }
        other => other,
    })
}

/// `/ready` and `/readyz`: 200 where requests for secrets are answered, by this node or through it.
fn ready(facts: &HealthFacts) -> Answer {
    let ready = facts.initialized && !facts.sealed && facts.leader_known;
    let body = gojson::to_string(&serde_json::json!({
        "initialized": facts.initialized,
        "leader_known": facts.leader_known,
        "ready": ready,
        "sealed": facts.sealed,
    }));
    let state = if ready { HealthState::Active } else { HealthState::Sealed };
    Answer::Health { state, code: None, body }
}

/// A flag of `sys/health`; one without a value counts as set, for nobody sends it meaning the opposite.
fn health_flag(query: &Fields<'_>, name: &str) -> Result<bool, ApiError> {
    match query.value(name).map(|value| value.as_str()) {
        None => Ok(false),
        Some(Some("")) => Ok(true),
        Some(Some(text)) => parse_bool(text).ok_or(ApiError::Malformed),
        Some(None) => Err(ApiError::Malformed),
    }
}

fn health_code(query: &Fields<'_>, name: &str) -> Result<Option<u16>, ApiError> {
    let Some(value) = query.value(name) else {
        return Ok(None);
    };
    if value.as_str() == Some("") {
        return Err(ApiError::Malformed);
    }
    integer(value)
        .and_then(|code| u16::try_from(code).ok())
        // Below 200 a code would announce that the answer is still to come.
        .filter(|code| (200..=999).contains(code))
        .map(Some)
        .ok_or(ApiError::Malformed)
}
/// What key holders are shown of the other members.
fn ceremony(ceremony: &Ceremony) -> Value {
    let members: Vec<Value> = ceremony.members.iter().map(ceremony_member).collect();
    serde_json::json!({ "nonce": ceremony.nonce, "members": members })
}

fn ceremony_member(member: &CeremonyMember) -> Value {
    serde_json::json!({
        "node_id": member.node_id,
        "cluster_address": member.cluster_addr,
        "listed_address": member.listed_addr,
        "fingerprint": member.fingerprint,
        "state": member.state.name(),
        "why": member.why,
    })
}
