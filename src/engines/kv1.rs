//! KV without versions: a path holds an object.

use serde_json::Value;

use super::{EngineRequest, listing};
use crate::core::{
    error::ApiError,
    path::segments,
    request::Operation,
    response::{Answer, Logical, map_to_text, text_to_map},
    time::parse_duration_s,
    txn::{Transaction, kind},
};

pub(super) const HELP: &str = "\
Key/value store without versions: a path holds an object, and a write replaces it.

## PATHS

    <path>
        read, list, update, delete

A field named ttl or lease says how long a client may keep what it has read.
";

pub(super) fn handle(request: &EngineRequest<'_>, txn: &mut Transaction) -> Result<Answer, ApiError> {
    let mount = request.mount.id;
    let path: Vec<&str> = segments(request.path).collect();
    let is_folder = request.path.is_empty() || request.path.ends_with('/');
    match request.operation {
        Operation::List => listing(txn.list(mount, &path)?),
        Operation::Read if is_folder => Err(ApiError::NotFound),
        Operation::Read => read(request, &path, txn),
        Operation::Update if is_folder => Err(ApiError::invalid("cannot write to a path ending in '/'")),
        Operation::Update => {
            if request.data.is_empty() {
                return Err(ApiError::invalid("missing data fields"));
            }
            let text = map_to_text(request.data).into_bytes();
            txn.put(mount, &path, kind::KV1, text)?;
            Ok(Answer::NoContent)
        }
        Operation::Delete if is_folder => Ok(Answer::NoContent),
        Operation::Delete => {
            // Read first, so that deleting nothing does not cost a log entry.
            if txn.get(mount, &path, kind::KV1)?.is_some() {
                txn.delete(mount, &path)?;
            }
            Ok(Answer::NoContent)
        }
        Operation::Patch | Operation::Help => Err(ApiError::UnsupportedOperation { authenticated: true }),
    }
}

fn read(request: &EngineRequest<'_>, path: &[&str], txn: &mut Transaction) -> Result<Answer, ApiError> {
    let bytes = txn.get(request.mount.id, path, kind::KV1)?.ok_or(ApiError::NotFound)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|error| ApiError::internal("reading a stored secret", &error))?;
    let data = text_to_map(text)?;
    let default = match request.mount.default_lease_ttl_s {
        0 => request.default_lease_ttl_s,
        seconds => seconds,
    };
    // A secret may say itself how long a client should keep it.
    let own = ["ttl", "lease"].iter().find_map(|name| data.get(*name)).filter(|value| *value != &Value::Null);
    let lease_duration_s = own
        .and_then(parse_duration_s)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(default);
    Ok(Answer::Logical(Logical { data: Some(data), lease_duration_s, ..Logical::default() }))
}
