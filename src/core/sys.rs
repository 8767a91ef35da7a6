//! The vault's own endpoints that answer in an envelope: mounts, tokens, keys, members.

use serde_json::{Map, Value, json};

use super::{
    Core, RAFT,
    auth::{Audited, Caller, lookup},
    error::ApiError,
    fields::Fields,
    mounts::{EngineKind, MountEntry, MountTable},
    node_ops::Unsealed,
    request::Request,
    response::Answer,
    router::Handler,
    time::rfc3339,
    token::TokenRecord,
    txn::Transaction,
};
use crate::secret::SecretString;

impl Core {
    /// Answers a request to one of these endpoints inside a transaction.
    pub(super) fn answer_sys(
        &self,
        audited: &Audited,
        handler: Handler,
        request: &Request,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        match handler {
            Handler::LookupSelf | Handler::Lookup => token_lookup(audited, request, unsealed, txn),
            Handler::KeyStatus => {
                let status = self.node().key_status().ok_or(ApiError::Sealed)?;
                let mut data = Map::new();
                data.insert("encryptions".to_owned(), status.encryptions.into());
                data.insert("install_time".to_owned(), rfc3339(status.installed_ms).into());
                data.insert("term".to_owned(), status.term.into());
                Ok(Answer::duplicated(data))
            }
            Handler::RotationConfig => self.rotation_config(request, txn),
            Handler::SnapshotAuto => self.snapshot_auto(request, txn),
            Handler::ShareBackup => self.share_backup(request, txn),
            Handler::BreakGlass => self.node().break_glass().map(Answer::data),
            Handler::RaftConfiguration => self.raft_configuration(),
            Handler::Metrics => self.metrics(&Fields(&request.data)),
            handler => match self
                .answer_members(handler, request)
                .or_else(|| self.answer_info(handler, request, unsealed, txn))
            {
                Some(answer) => answer,
                None => self.answer_mounts(audited, handler, request, unsealed, txn),
            },
        }
    }

    fn raft_configuration(&self) -> Result<Answer, ApiError> {
        if self.settings.storage_type != RAFT {
            return Err(ApiError::invalid("raft storage is not in use"));
        }
        let servers: Vec<Value> = self
            .node()
            .raft_configuration()?
            .into_iter()
            .map(|server| {
                json!({
                    "address": server.address,
                    "leader": server.leader,
                    "node_id": server.node_id,
                    "protocol_version": "3",
                    "voter": server.voter,
                })
            })
            .collect();
        Ok(Answer::data(Map::from_iter([("config".to_owned(), json!({ "index": 0, "servers": servers }))])))
    }

    /// The wraps of the root key, mended first where that is asked for.
    pub(super) async fn seal_sync(&self, request: &Request) -> Result<Answer, ApiError> {
        let wraps = if request.operation.writes() {
            let prune = Fields(&request.data).flag("prune")?.unwrap_or(false);
            self.node().sync_seals(prune).await?
        } else {
            self.node().seal_wraps().await?
        };
        let seals: Vec<Value> = wraps
            .into_iter()
            .map(|wrap| {
                json!({
                    "key": wrap.key,
                    "name": wrap.name,
                    "root_generation": wrap.root_generation,
                    "state": wrap.state.name(),
                    "type": wrap.kind,
                    "why": wrap.why,
                    "wrap_id": wrap.wrap_id,
                    "wrapped_by": wrap.wrapped_by,
                })
            })
            .collect();
        Ok(Answer::data(Map::from_iter([("seals".to_owned(), seals.into())])))
    }

    pub(super) fn metrics(&self, query: &Fields<'_>) -> Result<Answer, ApiError> {
        match query.text_or_empty("format")?.as_str() {
            "" | "prometheus" => Ok(Answer::Text {
                content_type: "text/plain; version=0.0.4; charset=utf-8".to_owned(),
                body: self.node().metrics_text(),
            }),
            _ => Err(ApiError::invalid("metric format not built; use format=prometheus")),
        }
    }
}

impl MountTable {
    /// The latch of a write to the table itself.
    pub(super) const LATCH: &'static str = "mounts";

    /// Whether a mount's engine has endpoints here.
    pub(super) fn is_built(mount: &MountEntry) -> bool {
        mount.engine == EngineKind::Kv1 || mount.engine.has_versions()
    }
}

fn token_lookup(
    audited: &Audited,
    request: &Request,
    unsealed: &Unsealed,
    txn: &mut Transaction,
) -> Result<Answer, ApiError> {
    let asked = match request.path.as_str() {
        "auth/token/lookup" => Fields(&request.data).text("token")?.filter(|token| !token.is_empty()),
        _ => None,
    };
    let (token, record) = match asked {
        Some(token) => {
            let token = SecretString::new(token);
            let record = lookup(&token, unsealed, txn)?;
            (token, record.ok_or_else(|| ApiError::Forbidden("bad token".to_owned()))?)
        }
        None => match (audited.caller(), &request.token) {
            (Caller::Holder(record), Some(token)) => (token.clone(), record.clone()),
            _ => return Err(ApiError::BadToken),
        },
    };
    Ok(Answer::data(token_data(&token, &record)))
}

fn token_data(token: &SecretString, record: &TokenRecord) -> Map<String, Value> {
    let data = json!({
        "accessor": record.accessor,
        "creation_time": record.created_ms / 1_000,
        "creation_ttl": 0,
        "display_name": record.display_name,
        "entity_id": "",
        "expire_time": null,
        "explicit_max_ttl": 0,
        "id": token.expose(),
        "meta": null,
        "num_uses": 0,
        "orphan": true,
        "path": record.path,
        "policies": record.policies,
        "ttl": 0,
        "type": "service",
    });
    match data {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
