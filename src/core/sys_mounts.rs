//! `sys/mounts`, `sys/auth`, `sys/remount` and what the interface of clients asks about mounts.

use serde_json::{Map, Value, json};

use super::{
    Core,
    auth::{Audited, Caller},
    error::ApiError,
    fields::Fields,
    mount_change::{LeaseLimits, Move},
    mounts::{MountEntry, MountTable},
    node_ops::Unsealed,
    request::{Operation, Request, fresh_id},
    response::Answer,
    router::Handler,
    txn::Transaction,
};
use crate::barrier::MountId;

const AUTH: &str = "auth/";

impl Core {
    /// Answers a request to one of these endpoints inside a transaction.
    pub(super) fn answer_mounts(
        &self,
        audited: &Audited,
        handler: Handler,
        request: &Request,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let below = |prefix: &str| request.path.as_str().strip_prefix(prefix).unwrap_or_default();
        match handler {
            Handler::Mounts => {
                let table = self.mounts().table(&unsealed.barrier, txn)?;
                let shown = table.mounts.iter().map(|mount| (mount.path.clone(), mount.to_json()));
                Ok(Answer::duplicated(shown.collect()))
            }
            Handler::Mount => match below("sys/mounts/") {
                path if path.starts_with(AUTH) => self.auth_mount(&path[AUTH.len()..], request, unsealed),
                path => match path.strip_suffix("/tune") {
                    Some(path) => self.tune(&as_mount_path(path), request, unsealed, txn),
                    None => self.mount(&as_mount_path(path), request, unsealed, txn),
                },
            },
            Handler::AuthMounts => {
                Ok(Answer::duplicated(Map::from_iter([("token/".to_owned(), token_mount(unsealed))])))
            }
            Handler::AuthMount => self.auth_mount(below("sys/auth/"), request, unsealed),
            Handler::Remount => remount(&Fields(&request.data), txn),
            Handler::RemountStatus => remount_status(below("sys/remount/status/"), txn),
            Handler::VisibleMounts => self.visible_mounts(audited, unsealed, txn),
            Handler::VisibleMount => self.visible_mount(below("sys/internal/ui/mounts/"), unsealed, txn),
            _ => Err(ApiError::UnsupportedPath { authenticated: true }),
        }
    }

    fn mount(
        &self,
        path: &str,
        request: &Request,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        match request.operation {
            Operation::Read => {
                let table = self.mounts().table(&unsealed.barrier, txn)?;
                let mount = table
                    .at(path)
                    .ok_or_else(|| ApiError::invalid(format!("No secret engine mount at {path}")))?;
                shown(mount.to_json())
            }
            Operation::Update => {
                let mut table = MountTable::load(txn)?;
                table.enable(MountEntry::from_request(path, &request.data)?)?;
                table.store(txn)?;
                Ok(Answer::NoContent)
            }
            Operation::Delete => {
                let mut table = MountTable::load(txn)?;
                if table.disable(path)? {
                    table.store(txn)?;
                }
                Ok(Answer::NoContent)
            }
            _ => Err(ApiError::UnsupportedOperation { authenticated: true }),
        }
    }

    fn tune(
        &self,
        path: &str,
        request: &Request,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        match request.operation {
            Operation::Read => {
                let table = self.mounts().table(&unsealed.barrier, txn)?;
                let mount = table
                    .at(path)
                    .ok_or_else(|| ApiError::invalid(format!("cannot fetch sysview for path \"{path}\"")))?;
                Ok(Answer::duplicated(mount.tuned_json(self.lease_limits())))
            }
            Operation::Update => {
                let mut table = MountTable::load(txn)?;
                table.tune(path, &request.data, txn.now_ms())?;
                table.store(txn)?;
                Ok(Answer::NoContent)
            }
            _ => Err(ApiError::UnsupportedOperation { authenticated: true }),
        }
    }

    /// The one auth method there is so far.
    fn auth_mount(&self, path: &str, request: &Request, unsealed: &Unsealed) -> Result<Answer, ApiError> {
        let (data, operation) = (&request.data, request.operation);
        let (path, tune) = path.strip_suffix("/tune").map_or((path, false), |path| (path, true));
        let path = as_mount_path(path);
        match (path.as_str(), operation, tune) {
            ("token/", Operation::Read, false) => shown(token_mount(unsealed)),
            ("token/", Operation::Read, true) => {
                let limits = self.lease_limits();
                shown(json!({
                    "default_lease_ttl": limits.default_s,
                    "description": "token based credentials",
                    "force_no_cache": false,
                    "max_lease_ttl": limits.max_s,
                    "token_type": "default-service",
                }))
            }
            (_, Operation::Read, true) => {
                Err(ApiError::invalid(format!("cannot fetch sysview for path \"{AUTH}{path}\"")))
            }
            (_, Operation::Read, false) => Err(ApiError::invalid(format!("No auth engine at {path}"))),
            // Methods other than tokens are not built yet.
            (_, Operation::Update, true) => {
                Err(ApiError::invalid(format!("tune of path \"{AUTH}{path}\" is not built yet")))
            }
            (_, Operation::Update, false) => {
                Err(ApiError::invalid(match Fields(data).text_or_empty("type")? {
                    empty if empty.is_empty() => "backend type must be specified as a string".to_owned(),
                    _ => "plugin not found in the catalog: no auth method but token is built yet".to_owned(),
                }))
            }
            ("token/", Operation::Delete, false) => {
                Err(ApiError::invalid("token credential backend cannot be disabled"))
            }
            (_, Operation::Delete, _) => Ok(Answer::NoContent),
            _ => Err(ApiError::UnsupportedOperation { authenticated: true }),
        }
    }

    fn lease_limits(&self) -> LeaseLimits {
        LeaseLimits { default_s: self.settings.default_lease_ttl_s, max_s: self.settings.max_lease_ttl_s }
    }

    fn visible_mounts(
        &self,
        audited: &Audited,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let known = matches!(audited.caller(), Caller::Holder(_));
        let table = self.mounts().table(&unsealed.barrier, txn)?;
        let mut secret = Map::new();
        let mut auth = Map::new();
        for mount in &table.mounts {
            if known {
                secret.insert(mount.path.clone(), mount.to_json());
            } else if mount.listing_visibility == "unauth" {
                // What its operator shows to everybody is what a login page needs, and no more.
                let full = mount.to_json();
                let few = json!({
                    "description": full["description"], "options": full["options"], "type": full["type"],
                });
                secret.insert(mount.path.clone(), few);
            }
        }
        if known {
            auth.insert("token/".to_owned(), token_mount(unsealed));
        }
        Ok(Answer::data(Map::from_iter([
            ("auth".to_owned(), Value::Object(auth)),
            ("secret".to_owned(), Value::Object(secret)),
        ])))
    }

    fn visible_mount(
        &self,
        path: &str,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let table = self.mounts().table(&unsealed.barrier, txn)?;
        let (found, path) = match path.strip_prefix(AUTH) {
            Some(rest) if rest == "token" || rest.starts_with("token/") => {
                (Some(token_mount(unsealed)), "auth/token/".to_owned())
            }
            _ => match table.route(path) {
                Some((mount, _)) => (Some(mount.to_json()), mount.path.clone()),
                None => (None, as_mount_path(path)),
            },
        };
        let Some(Value::Object(mut data)) = found else {
            return Err(ApiError::Forbidden(format!(
                "preflight capability check returned 403, please ensure client's policies grant access to \
                 path \"{path}\""
            )));
        };
        data.insert("path".to_owned(), path.into());
        Ok(Answer::data(data))
    }
}

/// Moves a mount: one record for the table, one for whoever asks later how it went.
fn remount(fields: &Fields<'_>, txn: &mut Transaction) -> Result<Answer, ApiError> {
    let place = |name: &str| -> Result<String, ApiError> {
        let sent = fields.text_or_empty(name)?;
        let text = sent.trim_matches('/');
        if text.is_empty() {
            return Err(ApiError::invalid(format!("no {name} provided: both from and to must be given")));
        }
        // The same rules as for a path that is mounted by its URL.
        super::path::RequestPath::from_decoded(format!("{text}/"))
            .map(|path| path.as_str().to_owned())
            .map_err(|error| ApiError::invalid(format!("'{name}': {error}")))
    };
    let (from, to) = (place("from")?, place("to")?);
    let mut table = MountTable::load(txn)?;
    table.remount(&from, &to)?;
    table.store(txn)?;
    let id = MountId(fresh_id().0).to_string();
    Move { id: id.clone(), from, to }.remember(txn)?;
    Ok(Answer::duplicated(Map::from_iter([("migration_id".to_owned(), id.into())])))
}

fn remount_status(id: &str, txn: &mut Transaction) -> Result<Answer, ApiError> {
    let found = Move::load_all(txn)?.into_iter().find(|made| made.id == id).ok_or(ApiError::NotFound)?;
    let info = json!({ "source_mount": found.from, "status": "success", "target_mount": found.to });
    Ok(Answer::data(Map::from_iter([
        ("migration_id".to_owned(), found.id.into()),
        ("migration_info".to_owned(), info),
    ])))
}

fn shown(value: Value) -> Result<Answer, ApiError> {
    match value {
        Value::Object(map) => Ok(Answer::duplicated(map)),
        _ => Err(ApiError::internal("showing a mount", &"not an object")),
    }
}

fn as_mount_path(path: &str) -> String {
    format!("{}/", path.trim_end_matches('/'))
}

/// How the method that is built in shows itself. It has no record, so its names come from the vault's.
fn token_mount(unsealed: &Unsealed) -> Value {
    json!({
        "accessor": format!("auth_token_{}", hex::encode(&unsealed.vault_id.0[..4])),
        "config": {
            "default_lease_ttl": 0,
            "force_no_cache": false,
            "max_lease_ttl": 0,
            "token_type": "default-service",
        },
        "deprecation_status": "supported",
        "description": "token based credentials",
        "external_entropy_access": false,
        "local": false,
        "options": null,
        "plugin_version": "",
        "running_plugin_version": concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.keystead"),
        "running_sha256": "",
        "seal_wrap": false,
        "type": "token",
        "uuid": MountId(unsealed.vault_id.0).to_string(),
    })
}
