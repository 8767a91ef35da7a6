//! Secrets engines: what answers below a mount.
//!
//! An engine is a pure function of a request and a transaction. It draws random numbers, for its outcome is
//! what gets replicated, but keeps nothing between requests and waits for nobody.

mod kv1;
mod kv2;
mod kv2_meta;

use serde_json::{Map, Value};

use crate::core::{
    error::ApiError,
    mounts::{EngineKind, MountEntry},
    request::Operation,
    response::Answer,
    txn::{Name, Transaction},
};

/// A request as an engine sees it.
pub struct EngineRequest<'a> {
    /// What is asked.
    pub operation: Operation,
    /// The path below the mount, with its trailing slash if it has one.
    pub path: &'a str,
    /// The fields.
    pub data: &'a Map<String, Value>,
    /// The mount.
    pub mount: &'a MountEntry,
    /// How long what the mount says nothing about is good for, in seconds.
    pub default_lease_ttl_s: u64,
}

/// Lets the engine of a mount handle a request.
pub fn handle(request: &EngineRequest<'_>, txn: &mut Transaction) -> Result<Answer, ApiError> {
    match request.mount.engine {
        EngineKind::Kv1 => kv1::handle(request, txn),
        EngineKind::Kv2 | EngineKind::Kv2Upgraded { .. } => kv2::handle(request, txn),
        EngineKind::System | EngineKind::Cubbyhole | EngineKind::Identity => {
            Err(ApiError::UnsupportedPath { authenticated: true })
        }
    }
}

/// What a mount is for, and its paths, for people.
pub fn help(mount: &MountEntry) -> &'static str {
    match mount.engine {
        EngineKind::Kv1 => kv1::HELP,
        engine if engine.has_versions() => kv2::HELP,
        _ => "This mount belongs to the vault itself.\n",
    }
}

/// What two writes must have in common to get into each other's way.
pub fn latch<'p>(mount: &MountEntry, path: &'p str) -> &'p str {
    match mount.engine {
        // `data/a`, `delete/a` and `metadata/a` all change the metadata record of `a`.
        engine if engine.has_versions() => path.split_once('/').map_or(path, |(_, key)| key),
        _ => path,
    }
}

/// The first segments of all records of a mount.
pub fn record_roots(mount: &MountEntry) -> impl Iterator<Item = crate::barrier::MountId> {
    let further = match mount.engine {
        EngineKind::Kv2Upgraded { records, .. } => Some(records),
        _ => None,
    };
    std::iter::once(mount.id).chain(further)
}

/// Does a piece of a mount's background work. True when there may be more.
pub fn sweep(mount: &MountEntry, txn: &mut Transaction) -> Result<bool, ApiError> {
    if mount.engine.has_versions() { kv2::sweep(mount, txn) } else { Ok(false) }
}

/// A listing as clients expect it: folders end in a slash.
fn listing(names: Vec<Name>) -> Result<Answer, ApiError> {
    let mut keys: Vec<String> = names
        .into_iter()
        .map(|Name { name, folder }| if folder { format!("{name}/") } else { name })
        .collect();
    // `a` and `a/` may both be there, and `a-b` stands between them.
    keys.sort_unstable();
    Answer::keys(keys)
}
