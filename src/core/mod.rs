//! The vault itself: how a request becomes an answer.
//!
//! Reading order: [`request`] and [`path`] (parsing), [`router`] (the table), [`auth`] (the steps before
//! execution), [`txn`] (what an engine reads and writes through), `leader` and `forward` (where a request runs
//! and what happens when leadership moves), [`mounts`], [`sys`].

pub mod auth;
mod break_glass;
pub(crate) mod codec;
mod counts;
pub mod error;
pub mod fields;
mod forward;
pub mod gojson;
mod host;
pub mod inflight;
pub mod json;
mod key_rotation;
pub mod latches;
mod leader;
pub mod member_ops;
mod members;
mod mount_change;
pub mod mounts;
pub mod node_ops;
pub mod path;
mod rekey;
pub mod request;
pub mod response;
mod rewrap;
pub mod router;
mod running;
pub mod share_backup;
pub mod snapshot_auto;
mod sweep;
mod sys;
mod sys_info;
mod sys_mounts;
mod sys_raw;
mod sys_tools;
pub mod time;
pub mod token;
pub mod txn;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod kv_tests;
#[cfg(test)]
mod sys_tests;
#[cfg(test)]
pub(crate) mod test_replica;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_raft::{ReadError, Replicated};
use keystead_storage::{RecordKey, Write};
use parking_lot::Mutex;

pub use sweep::Swept;
pub use sys_raw::{BUILD_DATE, VERSION};

use self::{
    auth::{AuditBroker, NoDevices},
    counts::Counts,
    error::ApiError,
    inflight::InFlight,
    latches::Latches,
    leader::{LatchKey, Led},
    mounts::{DEFAULT_LEASE_TTL_S, MOUNTS_PATH, MountCache, MountTable},
    node_ops::{NodeOps, RestoreRequest, Unsealed},
    request::{Operation, Request, Upload},
    response::{Answer, Response},
    router::{Handler, Place, Route},
    running::RunningRequests,
    token::TokenRecord,
    txn::{Transaction, kind, seal_record},
};
use crate::{
    barrier::MountId,
    engines::{self, EngineRequest},
    secret::{RootKey, SecretString},
};

/// The storage that several nodes can share.
const RAFT: &str = "raft";
/// How often a request runs again because what it had read changed under it, before the client is told to come
/// back.
const MAX_RERUNS: usize = 32;
/// Long bodies that are received, or worked on, at a time.
const UPLOADS: usize = 2;

/// What can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a request waits for an election that is in progress.
    pub election_wait: Duration,
    /// How long the outcome of a write that may have been executed is asked for before the client is told that
    /// it is unknown.
    pub unknown_wait: Duration,
    /// How long a forwarded request may take.
    pub forward_deadline: Duration,
    /// The lease of what neither its secret nor its mount says anything about, in seconds.
    pub default_lease_ttl_s: u64,
    /// The longest lease, in seconds.
    pub max_lease_ttl_s: u64,
    /// Kind of the storage: `raft`, or one of those that have a single node.
    pub storage_type: &'static str,
    /// What `sys/config/state/sanitized` shows: the configuration without anything secret.
    pub sanitized: serde_json::Map<String, serde_json::Value>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            election_wait: Duration::from_secs(5),
            unknown_wait: Duration::from_secs(30),
            forward_deadline: Duration::from_secs(60),
            default_lease_ttl_s: DEFAULT_LEASE_TTL_S,
            max_lease_ttl_s: DEFAULT_LEASE_TTL_S,
            storage_type: RAFT,
            sanitized: serde_json::Map::new(),
        }
    }
}

/// The vault of one node.
pub struct Core {
    node: Arc<dyn NodeOps>,
    settings: Settings,
    mounts: MountCache,
    latches: Latches<LatchKey>,
    inflight: InFlight<Led>,
    audit: Box<dyn AuditBroker>,
    running: RunningRequests,
    counts: Counts,
    rewrap: tokio::sync::Mutex<rewrap::Rewrap>,
    uploads: Arc<tokio::sync::Semaphore>,
    /// What the operator should see in `status`.
    warnings: Mutex<Vec<String>>,
    /// Where requests run, whichever runtime hands them over: those of the cluster port belong to consensus.
    runtime: tokio::runtime::Handle,
}

impl Core {
    /// A vault over a node, whose requests run on the present runtime.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(node: Arc<dyn NodeOps>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            node,
            settings,
            mounts: MountCache::default(),
            latches: Latches::new(),
            inflight: InFlight::new(),
            audit: Box::new(NoDevices),
            running: RunningRequests::default(),
            counts: Counts::new(),
            rewrap: tokio::sync::Mutex::default(),
            uploads: Arc::new(tokio::sync::Semaphore::new(UPLOADS)),
            warnings: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// Answers a request.
    ///
    /// # Cancel safety
    /// A write that has begun goes on when the future is dropped; only its answer is lost.
    pub async fn handle(self: &Arc<Self>, request: Request) -> Response {
        let started = Instant::now();
        let (id, operation) = (request.id, request.operation);
        let route = router::find(&request.path, operation);
        let _running = self.running.enter(&request);
        let result = self.dispatch(request, &route).await;
        let elapsed = started.elapsed();
        self.counts.request(operation, result.is_ok(), elapsed);
        // The path is a name, so the event carries the route's pattern instead.
        tracing::debug!(
            operation = operation.name(),
            route = route.pattern,
            ok = result.is_ok(),
            elapsed_us = elapsed.as_micros(),
            "request"
        );
        Response { id, result }
    }

    /// Forgets what was read of these records before they changed. To be called for every applied entry,
    /// before its index is published as applied.
    pub fn invalidate(&self, changed: &[RecordKey]) {
        self.mounts.invalidate(changed);
    }

    /// Replaces what `sys/seal-status` warns of.
    pub fn set_warnings(&self, warnings: Vec<String>) {
        *self.warnings.lock() = warnings;
    }

    /// Forgets everything that was read: the node was sealed or unsealed, or a snapshot replaced the state.
    pub fn forget(&self) {
        self.mounts.clear();
        // Other records may be there, sealed under other keys. A step that is under way finds out by its checks.
        if let Ok(mut rewrap) = self.rewrap.try_lock() {
            *rewrap = rewrap::Rewrap::default();
        }
        // What came back may be sealed under older keys; who is in the middle of it finds out by itself.
        if let Ok(mut rewrap) = self.rewrap.try_lock() {
            *rewrap = rewrap::Rewrap::default();
        }
    }

    fn node(&self) -> &dyn NodeOps {
        &*self.node
    }

    fn mounts(&self) -> &MountCache {
        &self.mounts
    }

    /// The open vault and its replica.
    fn open(&self) -> Result<(Arc<Unsealed>, Arc<dyn Replicated>), ApiError> {
        let unsealed = self.node.unsealed().ok_or(ApiError::Sealed)?;
        let replica = self.node.replica().ok_or(ApiError::Sealed)?;
        Ok((unsealed, replica))
    }

    /// Whether the sender of a long body may send it, before it is received; where it is put, and the room there is.
    pub(crate) async fn admit_upload(&self, request: &Request) -> Result<(Upload, u64), ApiError> {
        if !self.node.awaits_backup() {
            let route = router::find(&request.path, request.operation);
            if self.node.unsealed().is_none() {
                return Err(ApiError::Sealed);
            }
            self.read(request, &route).await?;
        }
        // Before a node belongs to a vault anybody may send it one.
        let turn = Arc::clone(&self.uploads).try_acquire_owned();
        let turn =
            turn.map_err(|_| ApiError::Busy("other snapshots are being received; try again".to_owned()))?;
        let (dir, room) = self.spool()?;
        let path = dir.join(format!("spool-upload-{:016x}", keystead_raft::fresh_incarnation()));
        Ok((Upload::in_turn(path, turn), room))
    }

    /// Restores the backup that is a request's body.
    pub(super) async fn restore_snapshot(&self, request: &Request) -> Result<Answer, ApiError> {
        let archive = request.upload.as_ref().map(|upload| upload.path().to_owned());
        let archive =
            archive.ok_or_else(|| ApiError::invalid("the snapshot is expected in the request's body"))?;
        let force = request.path.as_str().ends_with("-force");
        let root = match &request.snapshot_root {
            None => None,
            Some(text) => Some(root_key(text)?),
        };
        let revoke_tokens = request.revoke_tokens;
        self.node.restore_snapshot(RestoreRequest { archive, force, revoke_tokens, root }).await?;
        self.forget();
        Ok(Answer::NoContent)
    }

    /// Where long bodies are put, and the room there is.
    pub(crate) fn spool(&self) -> Result<(PathBuf, u64), ApiError> {
        self.node.spool()
    }

    async fn dispatch(self: &Arc<Self>, mut request: Request, route: &Route) -> Result<Answer, ApiError> {
        if route.raw {
            if route.handler == Handler::Seal && self.node.unsealed().is_none() {
                // Sealing what is sealed needs nobody's leave; it changes nothing.
                return Ok(Answer::NoContent);
            }
            if route.handler == Handler::Unsupported {
                return Err(ApiError::MethodNotAllowed);
            }
            if route.handler != Handler::Seal {
                return self.answer_raw(route.handler, &request).await;
            }
        }
        if route.handler == Handler::Metrics && request.open_metrics {
            return self.metrics(&fields::Fields(&request.data));
        }
        if route.handler == Handler::SnapshotRestore && self.node.awaits_backup() {
            return self.restore_snapshot(&request).await;
        }
        if self.node.unsealed().is_none() {
            return Err(ApiError::Sealed);
        }
        if route.handler == Handler::SafeToStop {
            self.name_node(&mut request);
        }
        if request.namespace.as_deref().is_some_and(|name| !matches!(name.trim_matches('/'), "" | "root")) {
            return Err(ApiError::NoNamespace);
        }
        match route.place {
            Place::Local | Place::Linearizable => {
                let answer = self.read(&request, route).await?;
                if route.handler == Handler::SnapshotSave {
                    return self.node.save_snapshot().await.map(Answer::Download);
                }
                if route.handler == Handler::Seal {
                    self.node.seal().await?;
                    self.forget();
                }
                Ok(answer)
            }
            Place::Leader => self.lead_or_forward(request, route).await,
        }
    }

    /// Runs a request that writes nothing on this node, so that it sees everything that was acknowledged
    /// before it came in, and sees it at one point in time.
    async fn read(&self, request: &Request, route: &Route) -> Result<Answer, ApiError> {
        let deadline = tokio::time::Instant::now() + self.settings.election_wait;
        let mut reruns = 0;
        loop {
            let (unsealed, replica) = self.open()?;
            let barrier = match replica.read_barrier().await {
                Ok(barrier) => barrier,
                Err(ReadError::Sealed) => return Err(ApiError::Sealed),
                Err(ReadError::NoLeader | ReadError::Timeout | ReadError::Stopped(_)) => {
                    if tokio::time::Instant::now() >= deadline {
                        return Err(ApiError::NoLeader);
                    }
                    pause(&*replica, deadline).await;
                    continue;
                }
            };
            let mut txn =
                Transaction::new(Arc::clone(&unsealed.barrier), replica.state(), barrier.cluster_time_ms);
            let result = blocking_if(request.operation == Operation::List, || {
                self.run(request, route, &unsealed, &mut txn)
            });
            if txn.is_one_point_in_time()? && replica.confirm_read(&barrier) {
                return result;
            }
            reruns += 1;
            if reruns > MAX_RERUNS {
                return Err(ApiError::Busy("what was read kept changing; try again".to_owned()));
            }
            self.mounts.clear();
        }
    }

    /// Runs a request once: token, policy, audit, then whatever the route does.
    fn run(
        &self,
        request: &Request,
        route: &Route,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let authenticated = auth::authenticate(request, route, unsealed, txn)?;
        let authorized = authenticated.authorize(route)?;
        let audited = authorized.audit(&*self.audit, request)?;
        let known = route.access != router::Access::None;
        let answer = match route.handler {
            Handler::Engine => self.run_engine(request, unsealed, txn),
            Handler::Unknown => Err(unknown_path(request)),
            Handler::Unsupported => Err(ApiError::UnsupportedOperation { authenticated: known }),
            // What these do happens outside of the transaction, once it has found them allowed.
            Handler::Seal
            | Handler::SnapshotSave
            | Handler::RaftVerify
            | Handler::SnapshotRestore
            | Handler::SealSync
            | Handler::RemovePeer
            | Handler::Promote
            | Handler::Demote
            | Handler::StepDown
            | Handler::RaftChallenge
            | Handler::RaftAnswer
            | Handler::BreakGlassChange
            | Handler::Rekey
            | Handler::GenerateRoot
            | Handler::Rotate => Ok(Answer::NoContent),
            handler => self.answer_sys(&audited, handler, request, unsealed, txn),
        }?;
        Ok(match known_fields(route.handler, request.operation) {
            Some(known) => answer.with_warnings(fields::Fields(&request.data).unknown_warning(known)),
            None => answer,
        })
    }

    fn run_engine(
        &self,
        request: &Request,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let table = self.mounts.table(&unsealed.barrier, txn)?;
        let path = request.path.as_str();
        let Some((mount, rest)) = table.route(path) else {
            return Err(ApiError::NoRoute(path.to_owned()));
        };
        if !MountTable::is_built(mount) {
            return Err(ApiError::UnsupportedPath { authenticated: true });
        }
        let below = EngineRequest {
            operation: request.operation,
            path: rest,
            data: &request.data,
            mount,
            default_lease_ttl_s: self.settings.default_lease_ttl_s,
        };
        engines::handle(&below, txn)
    }
}

/// A root key in base64, as the command line sends that of a snapshot.
fn root_key(text: &SecretString) -> Result<RootKey, ApiError> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let malformed = || ApiError::invalid("the root key of the snapshot cannot be read");
    let mut bytes = zeroize::Zeroizing::new([0; 33]);
    // A buffer that has room for one more shows what is too long, and no copy is left behind.
    let length = STANDARD.decode_slice(text.expose(), &mut bytes[..]).map_err(|_| malformed())?;
    let key = bytes[..length].try_into().map_err(|_| malformed())?;
    Ok(RootKey::from_bytes(key))
}

/// The first records of a vault, sealed: the mount table and the root token.
///
/// # Errors
/// Only if a record cannot be encoded, which does not happen to these.
pub fn initial_writes(
    unsealed: &Unsealed,
    root_token: &SecretString,
    now_ms: u64,
    dev_mounts: bool,
) -> Result<Vec<Write>, ApiError> {
    let barrier = &unsealed.barrier;
    let table = MountTable::initial(dev_mounts).encode()?;
    Ok(vec![
        seal_record(barrier, MountId::VAULT, &MOUNTS_PATH, kind::MOUNTS, &table)?,
        root_token_write(unsealed, root_token, now_ms)?,
    ])
}

/// The record that makes a token a root token, sealed.
///
/// # Errors
/// If the token is not printable text.
pub fn root_token_write(
    unsealed: &Unsealed,
    root_token: &SecretString,
    now_ms: u64,
) -> Result<Write, ApiError> {
    let path = token::record_path(&unsealed.token_key, root_token)
        .ok_or_else(|| ApiError::invalid("the root token must be printable text"))?;
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let record = TokenRecord::root(now_ms).encode()?;
    seal_record(&unsealed.barrier, MountId::VAULT, &path, kind::TOKEN, &record)
}

/// The fields that one of the vault's own endpoints reads, where Vault warns of others.
fn known_fields(handler: Handler, operation: Operation) -> Option<&'static [&'static str]> {
    Some(match (handler, operation) {
        (Handler::Remount, _) => &["from", "to"],
        (Handler::Random, _) => &["bytes", "format", "source"],
        (Handler::Hash, _) => &["algorithm", "format", "input"],
        (Handler::Lookup, _) => &["token"],
        (Handler::SealSync, Operation::Update) => &["prune"],
        (Handler::AutopilotConfig, Operation::Update) => members::AUTOPILOT_FIELDS,
        (Handler::Promote | Handler::Demote | Handler::RemovePeer, _) => &["server_id"],
        (Handler::SafeToStop, _) => &["node"],
        (Handler::Loggers, Operation::Update) => &["level"],
        (Handler::Metrics, _) => &["format"],
        (
            Handler::Mounts
            | Handler::Mount
            | Handler::AuthMounts
            | Handler::AuthMount
            | Handler::RemountStatus
            | Handler::VisibleMounts
            | Handler::VisibleMount
            | Handler::KeyStatus
            | Handler::BreakGlass
            | Handler::BreakGlassChange
            | Handler::RaftConfiguration
            | Handler::HaStatus
            | Handler::HostInfo
            | Handler::VersionHistory
            | Handler::Sanitized
            | Handler::Loggers
            | Handler::ResultantAcl
            | Handler::VisibleNamespaces
            | Handler::ReplicationStatus
            | Handler::LookupSelf,
            Operation::Read | Operation::List,
        ) => &[],
        _ => return None,
    })
}

fn unknown_path(request: &Request) -> ApiError {
    let path = request.path.as_str();
    if path.starts_with("auth/") && !path.starts_with("auth/token/") {
        ApiError::NoRoute(path.to_owned())
    } else {
        ApiError::UnsupportedPath { authenticated: true }
    }
}

/// Waits for a change of leadership, shortly or until the deadline.
async fn pause(replica: &dyn Replicated, deadline: tokio::time::Instant) {
    const SHORTLY: Duration = Duration::from_millis(20);
    let mut leadership = replica.leadership();
    let until = deadline.min(tokio::time::Instant::now() + SHORTLY);
    // Whether it changed or time ran out, the caller looks again. A watch that has ended changes no more.
    if let Ok(Err(_)) = tokio::time::timeout_at(until, leadership.changed()).await {
        tokio::time::sleep_until(until).await;
    }
}

/// Runs something long without keeping a worker of the runtime from the requests of others.
pub(crate) fn blocking_if<T>(long: bool, work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let many_threads =
        Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if long && many_threads { tokio::task::block_in_place(work) } else { work() }
}
