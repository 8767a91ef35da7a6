//! One node's replication, put together: storage, the library, the cluster port and the tasks beside them.
//!
//! Consensus and the cluster port run on a runtime of their own, so that a flood of requests cannot keep a
//! heartbeat waiting.

use std::{
    collections::BTreeMap,
    net::TcpListener as StdListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use keystead_storage::{
    Check, DataDir, LogId, Observer, Outcome, RaftLog, RecordKey, RequestId, SealedState, SledLog, SledState,
    StorageError, Txn, Write,
};
use keystead_tls::{ClusterId, ClusterTls, PeerIdentity, PeerPolicy};
use openraft::{SnapshotPolicy, async_runtime::watch::WatchReceiver as _};
use tokio::{runtime::Runtime, sync::watch};

use crate::{
    clock::ClusterClock,
    conn::{CallError, Method},
    directory::{Directory, DirectoryCache, DirectoryMember},
    entry::Body,
    hello::Channel,
    identity::{Identity, fresh_incarnation},
    leadership::{Contact, Watcher, heir},
    log_store::LogStore,
    machine::{Machine, Place},
    membership::Reconciler,
    network::Factory,
    peers::Peers,
    pool::{Myself, Pool},
    proposer::{Proposer, Stamp},
    reads::{ReadGate, Reads},
    replicated::{
        BoxFuture, ForwardError, LeaderInfo, Leadership, ProposeError, ProposeOutcome, ReadBarrier, ReadError,
        Replicated,
    },
    server::{Connections, Server},
    types::{Member, Raft},
    vault_side::VaultSide,
};

/// A silent member may be replaced by a new incarnation of the same node id after this time.
const REPLACEABLE: Duration = Duration::from_secs(10);
/// Every node makes itself heard by every other this often.
const PING: Duration = Duration::from_secs(1);
/// Entries between two digest checkpoints.
const CHECKPOINT_ENTRIES: u64 = 1024;
/// Time of writing between two digest checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// The log is purged when it is larger than this many bytes, or by the library's count of entries.
const LOG_BYTES: u64 = 64 << 20;
/// How long a stopping node waits for its tasks.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What a node needs to replicate.
pub struct ReplicaConfig {
    /// The locked data directory.
    pub dir: Arc<DataDir>,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// The cluster port, bound.
    pub listener: StdListener,
    /// `host:port` of the cluster port as others reach it.
    pub cluster_addr: String,
    /// Base URL of the API as clients reach it.
    pub api_addr: String,
    /// The vault above.
    pub vault: Arc<dyn VaultSide>,
    /// Trust no clock for reads.
    pub quorum_reads: bool,
    /// This node has just created its cluster: there is no promise it could have forgotten.
    pub fresh: bool,
    /// The directory a joining node was given, for the time until its own state has one.
    pub directory: Option<Directory>,
}

/// A member as `list-peers` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id.
    pub incarnation: u64,
    /// `host:port` of its cluster port.
    pub cluster_addr: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it votes.
    pub voter: bool,
}

/// Why a node may not join, or a member not leave.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinError {
    /// Another node leads, or none.
    #[error("this node is not the leader")]
    NotLeader,
    /// The place is taken by a member that is alive.
    #[error("node id {node_id:?} belongs to a member that was heard of {silent_s} s ago; give this node another node_id, remove that member, or wait until it has been silent for 10 s")]
    InUse {
        /// The place.
        node_id: String,
        /// How long its member has been silent, in seconds.
        silent_s: u64,
    },
    /// The incarnation was removed before.
    #[error("this incarnation was removed from the cluster; move the data directory away and start again")]
    Removed,
    /// The last voter cannot be removed.
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// The directory cannot be read.
    #[error("the directory cannot be read: {0}")]
    Directory(String),
    /// The change could not be proposed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// One node's replication.
pub struct Replica {
    shared: Arc<Shared>,
    runtime: parking_lot::Mutex<Option<Runtime>>,
}

struct Shared {
    raft: Raft,
    log: Arc<dyn RaftLog>,
    state: Arc<dyn SealedState>,
    pool: Arc<Pool>,
    peers: Arc<Peers>,
    directory: Arc<DirectoryCache>,
    vault: Arc<dyn VaultSide>,
    clock: Arc<ClusterClock>,
    proposer: Proposer,
    reads: ReadGate,
    leadership: watch::Receiver<Leadership>,
    applied: watch::Receiver<u64>,
    myself: Myself,
    lease: Duration,
    server: Arc<Server>,
    /// One change of the directory at a time on this node.
    directory_changes: tokio::sync::Mutex<()>,
}

/// Why replication cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The identity's key or certificate.
    #[error("the node's identity cannot be used: {0}")]
    Identity(#[from] keystead_tls::Error),
    /// The operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The library.
    #[error("replication cannot start: {0}")]
    Raft(String),
}

/// The CA's word is enough for TLS; tombstones and pinned keys are judged at the hello, where the peer can be
/// told why.
struct AdmitSigned;

impl PeerPolicy for AdmitSigned {
    fn admit(&self, _peer: &PeerIdentity) -> Result<(), String> {
        Ok(())
    }
}

/// Hands the state's changes on: to the directory's cache, the connections, the vault.
struct Changes {
    state: std::sync::Weak<dyn SealedState>,
    directory: Arc<DirectoryCache>,
    vault: Arc<dyn VaultSide>,
    clock: Arc<ClusterClock>,
    tombstoned: watch::Sender<u64>,
}

impl Changes {
    fn reload_directory(&self) {
        let Some(state) = self.state.upgrade() else { return };
        if let Some(directory) = read_directory(&*state, &*self.vault) {
            for gone in &directory.tombstones {
                if self.directory.current().member(*gone).is_some() {
                    self.tombstoned.send_replace(*gone);
                }
            }
            self.directory.set(directory);
        }
    }
}

impl Observer for Changes {
    fn applied(&self, _log_id: LogId, changed: &[RecordKey]) {
        let key = Directory::key();
        if changed.contains(&key) {
            self.reload_directory();
        }
        if let Some(state) = self.state.upgrade() {
            self.clock.at_least(state.applied().cluster_time_ms);
        }
        self.vault.applied(changed);
    }

    fn replaced(&self) {
        self.reload_directory();
        self.vault.replaced();
    }

    fn digest_mismatch(&self, index: u64) {
        tracing::error!(index, "this node's state differs from the leader's: it has diverged; rebuild it from its peers");
        metrics::counter!("keystead_state_digest_mismatches").increment(1);
        self.vault.latched(&format!("the state's digest at index {index} differs from the leader's: rebuild this node from its peers: stop it, move its data directory away and start it again so that it joins anew"));
    }
}

fn read_directory(state: &dyn SealedState, vault: &dyn VaultSide) -> Option<Directory> {
    let record = match state.get(&Directory::key()) {
        Ok(record) => record?,
        Err(error) => {
            tracing::error!(%error, "the directory cannot be read");
            return None;
        }
    };
    match Directory::open(&record.value) {
        Ok((directory, mac)) => {
            if directory.verify(&mac, vault) == Some(false) {
                vault.latched("the directory's MAC is wrong: it was edited on disk; rebuild this node from its peers: stop it, move its data directory away and start it again so that it joins anew");
                return None;
            }
            Some(directory)
        }
        Err(error) => {
            vault.latched(&format!("the directory is damaged: {error}"));
            None
        }
    }
}

impl Replica {
    /// Opens the storage and starts replicating.
    ///
    /// # Errors
    /// [`StartError::Storage`] with the remedy when what is on the disk is damaged or of a newer format.
    pub async fn start(config: ReplicaConfig) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("raft")
            .enable_all()
            .build()?;
        let requests = tokio::runtime::Handle::current();
        let shared = runtime.spawn(Shared::start(config, requests)).await.map_err(std::io::Error::other);
        match shared.and_then(|shared| shared.map_err(std::io::Error::other)) {
            Ok(shared) => Ok(Self { shared, runtime: parking_lot::Mutex::new(Some(runtime)) }),
            Err(error) => {
                runtime.shutdown_background();
                match error.downcast::<StartError>() {
                    Ok(error) => Err(error),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Makes this node the only member of a new cluster and waits until it leads.
    pub async fn bootstrap(&self) -> Result<(), StartError> {
        let member = Member { node_id: self.shared.myself.node_id.clone() };
        let members = BTreeMap::from([(self.shared.myself.incarnation, member)]);
        let shared = self.shared.clone();
        self.on_runtime(async move { shared.raft.initialize(members).await })
            .await
            .ok_or_else(|| StartError::Raft("shutting down".into()))?
            .map_err(|e| StartError::Raft(e.to_string()))?;
        // Nothing was promised to anybody before: stand at once.
        let shared = self.shared.clone();
        self.on_runtime(async move { shared.raft.trigger().elect(false).await }).await;
        let mut leadership = self.shared.leadership.clone();
        let led = tokio::time::timeout(Duration::from_secs(10), leadership.wait_for(|l| l.is_self)).await;
        match led {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StartError::Raft("the new cluster elected no leader within 10 s".into())),
        }
    }

    async fn on_runtime<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let task = self.runtime.lock().as_ref().map(|runtime| runtime.spawn(work))?;
        task.await.ok()
    }

    /// Stops replicating: flushes the state, stops the tasks, releases the cluster port.
    pub async fn shutdown(&self) {
        let shared = self.shared.clone();
        let stop = self.on_runtime(async move {
            if let Err(error) = shared.raft.shutdown().await {
                tracing::debug!(%error, "the consensus core had stopped already");
            }
            let (tx, rx) = tokio::sync::oneshot::channel();
            shared.state.flush(Box::new(move |result| drop(tx.send(result))));
            if let Ok(Err(error)) = rx.await {
                tracing::warn!(%error, "the state could not be flushed; the log will replay it");
            }
        });
        if tokio::time::timeout(SHUTDOWN, stop).await.is_err() {
            tracing::warn!("replication did not stop within {SHUTDOWN:?}");
        }
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    /// This node's Raft id.
    pub fn incarnation(&self) -> u64 {
        self.shared.myself.incarnation
    }

    /// The directory as this node has it.
    pub fn directory(&self) -> Arc<Directory> {
        self.shared.directory.current()
    }

    /// The members as Raft and the directory have them.
    pub fn members(&self) -> Vec<MemberView> {
        let directory = self.shared.directory.current();
        let leader = self.shared.leadership.borrow().leader.as_ref().map(|leader| leader.incarnation);
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let mut views: Vec<MemberView> = membership
            .nodes()
            .map(|(id, node)| MemberView {
                node_id: node.node_id.clone(),
                incarnation: *id,
                cluster_addr: directory.member(*id).map(|m| m.cluster_addr.clone()).unwrap_or_default(),
                leader: leader == Some(*id),
                voter: voters.contains(id),
            })
            .collect();
        views.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        views
    }

    /// Index of the last entry this node knows to be committed.
    pub fn committed_index(&self) -> u64 {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.local_committed.map_or(0, |id| id.index)
    }

    /// Index of the last entry this node has applied.
    pub fn applied_index(&self) -> u64 {
        *self.shared.applied.borrow()
    }

    /// What was heard of a member.
    pub fn peer_status(&self, incarnation: u64) -> Option<crate::peers::PeerStatus> {
        self.shared.peers.status(incarnation)
    }

    /// Checks the directory's MAC: to be called once this node has been unsealed. A wrong one latches.
    pub fn verify_directory(&self) {
        if let Some(directory) = read_directory(&*self.shared.state, &*self.shared.vault) {
            self.shared.directory.set(directory);
        }
    }

    /// This node has been sealed: its open channels end.
    pub fn sealed(&self) {
        self.shared.pool.close_open_channels();
    }

    /// Hands leadership to a caught-up unsealed voter, if this node leads and there is one. Returns whether
    /// this node does not lead any more.
    pub async fn transfer_away(&self, deadline: Duration) -> bool {
        let shared = &self.shared;
        if !shared.raft.is_leader() {
            return true;
        }
        let fits = |id| shared.peers.status(id).is_some_and(|peer| !peer.sealed);
        let Some(heir) = heir(&shared.raft, &shared.peers, shared.myself.incarnation, shared.lease, fits) else {
            return false;
        };
        let raft = shared.raft.clone();
        self.on_runtime(async move { raft.trigger().transfer_leader(heir).await }).await;
        let mut leadership = shared.leadership.clone();
        let moved = leadership.wait_for(|l| l.leader.as_ref().is_some_and(|leader| leader.incarnation == heir));
        tokio::time::timeout(deadline, moved).await.is_ok_and(|moved| moved.is_ok())
    }

    /// Puts a member into the directory; Raft's membership follows. Idempotent.
    ///
    /// # Errors
    /// [`JoinError::InUse`] while the place's present member is alive.
    pub async fn admit(&self, member: DirectoryMember) -> Result<Directory, JoinError> {
        self.shared
            .change_directory(|directory| {
                if directory.is_tombstoned(member.incarnation) {
                    return Err(JoinError::Removed);
                }
                if directory.member(member.incarnation) == Some(&member) {
                    return Ok(false);
                }
                directory.members.retain(|m| m.incarnation != member.incarnation);
                if let Some(old) = directory.by_node_id(&member.node_id).map(|old| old.incarnation) {
                    self.shared.check_replaceable(&member.node_id, old)?;
                    directory.remove(old);
                }
                directory.members.push(member.clone());
                Ok(true)
            })
            .await
    }

    /// Takes a member out of the directory, by node id; Raft's membership follows. `false` if there is none.
    pub async fn remove(&self, node_id: &str) -> Result<bool, JoinError> {
        let mut found = false;
        self.shared
            .change_directory(|directory| {
                let Some(member) = directory.by_node_id(node_id).cloned() else { return Ok(false) };
                let others = directory.members.iter().any(|m| m.voter && m.node_id != node_id);
                if !others {
                    return Err(JoinError::LastVoter);
                }
                found = true;
                Ok(directory.remove(member.incarnation))
            })
            .await?;
        Ok(found)
    }
}

impl Shared {
    async fn start(
        config: ReplicaConfig,
        requests: tokio::runtime::Handle,
    ) -> Result<Arc<Self>, StartError> {
        let ReplicaConfig { dir, identity, listener, vault, .. } = config;
        let (log, state) = tokio::task::spawn_blocking({
            let dir = dir.clone();
            move || open_storage(&dir)
        })
        .await
        .map_err(std::io::Error::other)??;
        let key = identity.key()?;
        let myself = Myself {
            incarnation: identity.incarnation,
            boot_id: fresh_incarnation(),
            node_id: identity.node_id.clone(),
            spki_sha256: key.spki_sha256(),
            cluster_id: identity.cluster_id,
            epoch: identity.epoch,
            cluster_addr: config.cluster_addr,
            api_addr: config.api_addr,
        };
        let tls = Arc::new(ClusterTls::new(
            ClusterId(identity.cluster_id),
            &identity.ca_cert_der,
            &identity.cert_der,
            key,
            Arc::new(AdmitSigned),
        )?);
        let directory = Arc::new(DirectoryCache::default());
        if let Some(given) = read_directory(&*state, &*vault).or(config.directory) {
            directory.set(given);
        }
        let clock = Arc::new(ClusterClock::new());
        clock.at_least(state.applied().cluster_time_ms);
        let peers = Arc::new(Peers::default());
        let pool = Arc::new(Pool::new(myself.clone(), tls.clone(), directory.clone(), peers.clone(), vault.clone()));
        let (tombstoned_tx, tombstoned) = watch::channel(0);
        state.set_observer(Arc::new(Changes {
            state: Arc::downgrade(&state),
            directory: directory.clone(),
            vault: vault.clone(),
            clock: clock.clone(),
            tombstoned: tombstoned_tx,
        }));

        let params = identity.params;
        let lease = Duration::from_millis(params.election_max_ms);
        let place = Place { cluster_id: identity.cluster_id, epoch: identity.epoch };
        let applied_now = state.applied().log_id.map_or(0, |id| id.index);
        let (applied_tx, applied) = watch::channel(applied_now);
        let machine = Machine::start(state.clone(), &dir, place, vault.clone(), applied_tx)?;
        let factory = Factory { pool: pool.clone(), append_timeout: lease * 2 };
        let raft = Raft::new(
            identity.incarnation,
            Arc::new(raft_config(&params)?),
            factory,
            LogStore::new(log.clone()),
            machine,
        )
        .await
        .map_err(|e| StartError::Raft(e.to_string()))?;

        let quiet = Arc::new(AtomicBool::new(!config.fresh));
        let contact = Arc::new(Contact::default());
        let (leadership_tx, leadership) = watch::channel(Leadership::default());
        let reads = ReadGate::start(Reads {
            raft: raft.clone(),
            state: state.clone(),
            pool: pool.clone(),
            vault: vault.clone(),
            clock: clock.clone(),
            suspend: crate::clock::SuspendWatch::new(),
            lease,
            quorum: config.quorum_reads,
            applied: applied.clone(),
            leadership: leadership.clone(),
        });
        let stamp = Stamp { raft: raft.clone(), vault: vault.clone(), place, clock: clock.clone() };
        let proposer = Proposer::start(stamp, params.max_entry_size as usize);
        let server = Arc::new(Server {
            myself: myself.clone(),
            tls,
            raft: raft.clone(),
            state: state.clone(),
            directory: directory.clone(),
            peers: peers.clone(),
            vault: vault.clone(),
            reads: reads.clone(),
            clock: clock.clone(),
            contact: contact.clone(),
            quiet: quiet.clone(),
            requests,
            connections: Connections::default(),
        });
        listener.set_nonblocking(true)?;
        tokio::spawn(server.clone().run(tokio::net::TcpListener::from_std(listener)?));
        let watcher = Watcher {
            incarnation: identity.incarnation,
            myself: LeaderInfo {
                incarnation: identity.incarnation,
                node_id: identity.node_id.clone(),
                api_addr: myself.api_addr.clone(),
                cluster_addr: format!("https://{}", myself.cluster_addr),
            },
            raft: raft.clone(),
            state: state.clone(),
            directory: directory.clone(),
            peers: peers.clone(),
            vault: vault.clone(),
            clock: clock.clone(),
            contact,
            lease,
            quiet: quiet.clone(),
            leadership: leadership_tx,
        };
        tokio::spawn(watcher.run(if config.fresh { Duration::ZERO } else { lease }));
        let reconciler = Reconciler {
            incarnation: identity.incarnation,
            raft: raft.clone(),
            directory: directory.clone(),
            peers: peers.clone(),
            vault: vault.clone(),
            leadership: leadership.clone(),
        };
        tokio::spawn(reconciler.run());
        let shared = Arc::new(Self {
            raft,
            log,
            state,
            pool,
            peers,
            directory,
            vault,
            clock,
            proposer,
            reads,
            leadership,
            applied,
            myself,
            lease,
            server,
            directory_changes: tokio::sync::Mutex::default(),
        });
        debug_assert_eq!(quiet.load(Ordering::Relaxed), !config.fresh);
        tokio::spawn(shared.clone().pings());
        tokio::spawn(shared.clone().checkpoints());
        tokio::spawn(shared.clone().purges());
        tokio::spawn(shared.clone().close_removed(tombstoned));
        Ok(shared)
    }

    fn check_replaceable(&self, node_id: &str, old: u64) -> Result<(), JoinError> {
        let status = self.peers.status(old);
        let silent = status.map(|status| status.heard.elapsed());
        match silent {
            Some(silent) if silent < REPLACEABLE => {
                Err(JoinError::InUse { node_id: node_id.into(), silent_s: silent.as_secs() })
            }
            _ if old == self.myself.incarnation => {
                Err(JoinError::InUse { node_id: node_id.into(), silent_s: 0 })
            }
            _ => Ok(()),
        }
    }

    /// Changes the directory in one transaction. `change` says whether there was anything to change; it may be
    /// asked again when somebody else was faster.
    async fn change_directory(
        &self,
        mut change: impl FnMut(&mut Directory) -> Result<bool, JoinError>,
    ) -> Result<Directory, JoinError> {
        let _one = self.directory_changes.lock().await;
        loop {
            if !self.leadership.borrow().is_self {
                return Err(JoinError::NotLeader);
            }
            let unreadable = |e: &dyn std::fmt::Display| JoinError::Directory(e.to_string());
            let record = self.state.get(&Directory::key()).map_err(|e| unreadable(&e))?;
            let record = record.ok_or_else(|| unreadable(&"it is missing"))?;
            let (mut directory, _) = Directory::open(&record.value).map_err(|e| unreadable(&e))?;
            if !change(&mut directory)? {
                return Ok(directory);
            }
            let value = directory
                .seal(|signed| self.vault.directory_mac(signed).ok_or(ProposeError::Sealed))
                .map_err(JoinError::Propose)?;
            let txn = Txn {
                request_id: RequestId([0; 16]),
                checks: vec![Check::Record { key: Directory::key(), version: Some(record.version) }],
                writes: vec![Write::Put { key: Directory::key(), value }],
                response: Bytes::new(),
            };
            match self.proposer.propose(txn).await? {
                ProposeOutcome::Conflict { .. } => continue,
                _ => return Ok(directory),
            }
        }
    }

    /// Makes this node heard: hellos carry addresses, acks carry the seal.
    async fn pings(self: Arc<Self>) {
        loop {
            for member in &self.directory.current().members {
                let (id, shared) = (member.incarnation, self.clone());
                if id != self.myself.incarnation {
                    tokio::spawn(async move {
                        let ping = shared.pool.call(id, Channel::Control, Method::Ping, &[], PING);
                        match ping.await {
                            // The leader's answer is its cluster time.
                            Ok(answer) => {
                                if let Some(time) = answer.first_chunk::<8>() {
                                    shared.clock.observe(u64::from_be_bytes(*time));
                                }
                            }
                            Err(error) => {
                                tracing::debug!(%error, peer = format!("{id:016x}"), "peer does not answer");
                            }
                        }
                    });
                }
            }
            tokio::time::sleep(PING).await;
        }
    }

    /// The leader proposes a digest checkpoint after enough writing.
    async fn checkpoints(self: Arc<Self>) {
        let (mut last_index, mut last_at) = (0, tokio::time::Instant::now());
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let applied = *self.applied.borrow();
            let written = applied.saturating_sub(last_index);
            let due = written >= CHECKPOINT_ENTRIES || (written > 0 && last_at.elapsed() >= CHECKPOINT_INTERVAL);
            if !due || !self.leadership.borrow().is_self || !self.vault.is_open() {
                continue;
            }
            let mark = keystead_storage::CheckpointMark { of: self.state.digest() };
            match self.proposer.submit(&Body::Checkpoint(mark)).await {
                Ok(Outcome::Applied { version }) => last_index = version.index,
                Ok(_) => last_index = applied,
                Err(error) => tracing::debug!(%error, "checkpoint not proposed"),
            }
            last_at = tokio::time::Instant::now();
        }
    }

    /// Purges by bytes; by entries the library purges by itself.
    async fn purges(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let bytes = self.log.size_bytes();
            let stats = self.log.sync_stats();
            metrics::gauge!("keystead_raft_log_bytes").set(bytes as f64);
            metrics::gauge!("keystead_raft_log_sync_last_us").set(stats.last_us as f64);
            metrics::gauge!("keystead_raft_applied_index").set(*self.applied.borrow() as f64);
            if bytes > LOG_BYTES
                && let Err(error) = self.raft.trigger().snapshot().await
            {
                tracing::warn!(%error, "the log cannot be purged");
            }
        }
    }

    /// Ends the connections of members that were removed.
    async fn close_removed(self: Arc<Self>, mut tombstoned: watch::Receiver<u64>) {
        while tombstoned.changed().await.is_ok() {
            tombstoned.borrow_and_update();
            for gone in &self.directory.current().tombstones {
                self.server.connections.close(*gone);
                self.pool.close(*gone);
                self.peers.forget(*gone);
            }
        }
    }
}

type Storage = (Arc<dyn RaftLog>, Arc<dyn SealedState>);

fn open_storage(dir: &DataDir) -> Result<Storage, StorageError> {
    let log = Arc::new(SledLog::open(dir)?);
    let state = SledState::open(dir)?;
    state.set_durable_log(log.durable());
    Ok((log, Arc::new(state)))
}

fn raft_config(params: &crate::identity::ClusterParams) -> Result<openraft::Config, StartError> {
    openraft::Config {
        cluster_name: "keystead".into(),
        heartbeat_interval: params.heartbeat_ms,
        election_timeout_min: params.election_min_ms,
        election_timeout_max: params.election_max_ms,
        // Candidacy is switched on by the leadership task, after the quiet time and by the seal.
        enable_elect: false,
        enable_pre_vote: Some(true),
        max_payload_entries: 300,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(20_000),
        max_in_snapshot_log_to_keep: 5_000,
        purge_batch_size: 1_000,
        replication_lag_threshold: 1_000_000,
        install_snapshot_timeout: 60_000,
        backoff: "20ms 50ms 100ms ..500ms".into(),
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|e| StartError::Raft(e.to_string()))
}

impl Replicated for Replica {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<ProposeOutcome, ProposeError>> {
        Box::pin(self.shared.proposer.propose(txn))
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<ReadBarrier, ReadError>> {
        Box::pin(self.shared.reads.barrier())
    }

    fn confirm_read(&self, barrier: &ReadBarrier) -> bool {
        self.shared.reads.confirm(barrier)
    }

    fn state(&self) -> Arc<dyn SealedState> {
        self.shared.state.clone()
    }

    fn cluster_time_ms(&self) -> u64 {
        self.shared.clock.now_ms()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.clone()
    }

    fn forward(&self, request: Bytes, deadline: Duration) -> BoxFuture<'_, Result<Bytes, ForwardError>> {
        Box::pin(async move {
            let leader = self.shared.leadership.borrow().leader.as_ref().map(|leader| leader.incarnation);
            let leader = leader.ok_or(ForwardError::NoLeader)?;
            if leader == self.shared.myself.incarnation {
                return Err(ForwardError::Refused("this node leads".into()));
            }
            let pool = &self.shared.pool;
            pool.call(leader, Channel::Open, Method::Forward, &request, deadline).await.map_err(|error| match error {
                CallError::NotSent(text) => ForwardError::NotSent(text),
                CallError::Lost => ForwardError::Lost("connection lost".into()),
                CallError::Timeout(after) => ForwardError::Lost(format!("no answer within {after:?}")),
                CallError::Failed(text) => ForwardError::Refused(text),
            })
        })
    }
}
