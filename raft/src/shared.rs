//! What the tasks of a node's replication share, and how it is put together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keystead_storage::{Check, DataDir, RaftLog, RequestId, SealedState, StorageError, Txn, Write};
use keystead_tls::{ClusterId, ClusterTls, PeerIdentity, PeerPolicy};
use openraft::SnapshotPolicy;
use tokio::sync::watch;

use crate::{
    changes::{Changes, read_directory},
    clock::{ClusterClock, SuspendWatch},
    directory::{Directory, DirectoryCache},
    identity::{ClusterParams, fresh_incarnation},
    leadership::{Contact, Transfers, Watcher},
    log_store::LogStore,
    machine::{Latch, Machine, MachineParts, Place},
    membership::Reconciler,
    network::{Factory, Told},
    peers::Peers,
    pool::{Myself, Pool},
    proposer::{Proposer, Stamp},
    reads::{ReadGate, Reads},
    replica::{JoinError, ReplicaConfig, StartError},
    replicated::{LeaderInfo, Leadership, ProposeError, ProposeOutcome, Shortage},
    server::{CALLS_KIB, Connections, Server},
    spool::Spools,
    standing::OwnStanding,
    types::Raft,
    vault_side::VaultSide,
};

/// A silent member may be replaced by a new incarnation of the same node id after this time.
const REPLACEABLE: Duration = Duration::from_secs(10);

/// Everything that a node's replication shares between its tasks.
pub struct Shared {
    pub(crate) raft: Raft,
    pub(crate) log: Arc<dyn RaftLog>,
    pub(crate) state: Arc<dyn SealedState>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) directory: Arc<DirectoryCache>,
    pub(crate) vault: Arc<dyn VaultSide>,
    pub(crate) clock: Arc<ClusterClock>,
    pub(crate) proposer: Proposer,
    pub(crate) reads: ReadGate,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) shortage: watch::Receiver<Option<Shortage>>,
    pub(crate) own: Arc<OwnStanding>,
    pub(crate) applied: watch::Receiver<u64>,
    pub(crate) myself: Myself,
    pub(crate) lease: Duration,
    pub(crate) server: Arc<Server>,
    /// Snapshots on their way out.
    pub(crate) spools: Arc<Spools>,
    /// The cluster's parameters.
    pub(crate) params: ClusterParams,
    /// When this process began to replicate.
    pub(crate) started: std::time::Instant,
    /// What this node made of the members while it led.
    pub(crate) autopilot: crate::autopilot::Records,
    /// One change of the directory at a time on this node.
    pub(crate) directory_changes: tokio::sync::Mutex<()>,
}

/// The CA's word is enough for TLS; tombstones and pinned keys are judged at the hello, where the peer can be
/// told why.
struct AdmitSigned;

impl PeerPolicy for AdmitSigned {
    fn admit(&self, _peer: &PeerIdentity) -> Result<(), String> {
        Ok(())
    }
}

/// What is there before the library runs.
struct Parts {
    log: Arc<dyn RaftLog>,
    state: Arc<dyn SealedState>,
    myself: Myself,
    tls: Arc<ClusterTls>,
    directory: Arc<DirectoryCache>,
    peers: Arc<Peers>,
    own: Arc<OwnStanding>,
    pool: Arc<Pool>,
    clock: Arc<ClusterClock>,
    transfers: Arc<Transfers>,
    told: Arc<Told>,
    latch: Arc<Latch>,
    spools: Arc<Spools>,
    place: Place,
    lease: Duration,
    tombstoned: watch::Receiver<u64>,
}

/// Bytes in hexadecimal digits.
fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Parts {
    async fn open(config: &ReplicaConfig) -> Result<Self, StartError> {
        let (identity, vault) = (&config.identity, &config.vault);
        let dir = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || open_storage(&dir));
        let (log, state) = opened.await.map_err(std::io::Error::other)??;
        let key = identity.key()?;
        let myself = Myself {
            incarnation: identity.incarnation,
            boot_id: fresh_incarnation(),
            node_id: identity.node_id.clone(),
            spki_sha256: key.spki_sha256(),
            cluster_id: identity.cluster_id,
            epoch: identity.epoch,
            cluster_addr: config.cluster_addr.clone(),
            api_addr: config.api_addr.clone(),
            feature_level: config.feature_level,
            version: config.version.clone(),
        };
        tracing::info!(
            node_id = myself.node_id,
            cluster_addr = myself.cluster_addr,
            fingerprint = in_hex(&myself.spki_sha256),
            "this node's key on the cluster port"
        );
        let tls = Arc::new(ClusterTls::new(
            ClusterId(identity.cluster_id),
            &identity.ca_cert_der,
            &identity.cert_der,
            key,
            Arc::new(AdmitSigned),
        )?);
        let directory = Arc::new(DirectoryCache::default());
        let place = Place { cluster_id: identity.cluster_id, epoch: identity.epoch };
        let found = read_directory(&*state, &**vault, place, identity.incarnation);
        if let Some(given) = found.or_else(|| config.directory.clone()) {
            if given.feature_level > config.feature_level {
                let (level, cluster) = (config.feature_level, given.feature_level);
                return Err(StartError::TooOld { level, cluster });
            }
            directory.set(given);
        }
        let clock = Arc::new(ClusterClock::new());
        clock.at_least(state.applied().cluster_time_ms);
        let peers = Arc::new(Peers::default());
        config.dir.disk().watch()?;
        let own =
            Arc::new(OwnStanding::new(vault.clone(), config.dir.disk().clone(), config.preferred_leader));
        let pool = Arc::new(Pool::new(
            myself.clone(),
            tls.clone(),
            directory.clone(),
            peers.clone(),
            vault.clone(),
            own.clone(),
        ));
        let latch = Arc::new(Latch::default());
        let (tombstoned_tx, tombstoned) = watch::channel(0);
        state.set_observer(Arc::new(Changes {
            latch: latch.clone(),
            state: Arc::downgrade(&state),
            directory: directory.clone(),
            vault: vault.clone(),
            clock: clock.clone(),
            tombstoned: tombstoned_tx,
            place,
            incarnation: identity.incarnation,
        }));
        let lease = Duration::from_millis(identity.params.election_max_ms);
        let spools = Arc::new(Spools::new(config.dir.snapshots()));
        Ok(Self {
            log,
            state,
            myself,
            tls,
            directory,
            peers,
            own,
            pool,
            clock,
            transfers: Arc::default(),
            told: Arc::default(),
            latch,
            spools,
            place,
            lease,
            tombstoned,
        })
    }

    async fn start_raft(
        &self,
        config: &ReplicaConfig,
        applied: watch::Sender<u64>,
    ) -> Result<Raft, StartError> {
        let running = Arc::new(AtomicBool::new(false));
        let machine = Machine::start(MachineParts {
            state: self.state.clone(),
            log: self.log.clone(),
            place: self.place,
            vault: config.vault.clone(),
            directory: self.directory.clone(),
            latch: self.latch.clone(),
            spools: self.spools.clone(),
            disk: config.dir.disk().clone(),
            applied,
            running: running.clone(),
        })?;
        let factory =
            Factory { pool: self.pool.clone(), append_timeout: self.lease * 2, told: self.told.clone() };
        let settings = Arc::new(raft_config(&config.identity.params)?);
        let log = LogStore::new(self.log.clone());
        let raft = Raft::new(self.myself.incarnation, settings, factory, log, machine)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        running.store(true, Ordering::Release);
        Ok(raft)
    }

    fn server(
        &self,
        config: &ReplicaConfig,
        raft: &Raft,
        reads: &ReadGate,
        quiet: &Arc<AtomicBool>,
        contact: &Arc<Contact>,
        requests: tokio::runtime::Handle,
    ) -> Arc<Server> {
        Arc::new(Server {
            myself: self.myself.clone(),
            tls: self.tls.clone(),
            raft: raft.clone(),
            state: self.state.clone(),
            directory: self.directory.clone(),
            peers: self.peers.clone(),
            vault: config.vault.clone(),
            own: self.own.clone(),
            reads: reads.clone(),
            clock: self.clock.clone(),
            contact: contact.clone(),
            quiet: quiet.clone(),
            requests,
            connections: Connections::default(),
            suspects: crate::unsealing::Suspects::default(),
            memory_kib: Arc::new(tokio::sync::Semaphore::new(CALLS_KIB)),
            incoming: tokio::sync::Mutex::default(),
        })
    }

    fn watcher(
        &self,
        config: &ReplicaConfig,
        raft: &Raft,
        quiet: &Arc<AtomicBool>,
        contact: Arc<Contact>,
        leadership: watch::Sender<Leadership>,
        shortage: watch::Sender<Option<Shortage>>,
    ) -> Watcher {
        Watcher {
            incarnation: self.myself.incarnation,
            myself: LeaderInfo {
                incarnation: self.myself.incarnation,
                node_id: self.myself.node_id.clone(),
                api_addr: self.myself.api_addr.clone(),
                cluster_addr: format!("https://{}", self.myself.cluster_addr),
            },
            raft: raft.clone(),
            log: self.log.clone(),
            state: self.state.clone(),
            directory: self.directory.clone(),
            peers: self.peers.clone(),
            vault: config.vault.clone(),
            own: self.own.clone(),
            latch: self.latch.clone(),
            clock: self.clock.clone(),
            contact,
            transfers: self.transfers.clone(),
            lease: self.lease,
            quiet: quiet.clone(),
            leadership,
            shortage,
        }
    }
}

impl Shared {
    /// Opens the storage, starts the library, the cluster port and every task, on the current runtime.
    pub async fn start(
        config: ReplicaConfig,
        requests: tokio::runtime::Handle,
    ) -> Result<Arc<Self>, StartError> {
        let parts = Parts::open(&config).await?;
        let (applied_tx, applied) = watch::channel(parts.state.applied().log_id.map_or(0, |id| id.index));
        let raft = parts.start_raft(&config, applied_tx).await?;
        let (leadership_tx, leadership) = watch::channel(Leadership::default());
        let reads = ReadGate::new(Reads {
            raft: raft.clone(),
            state: parts.state.clone(),
            pool: parts.pool.clone(),
            vault: config.vault.clone(),
            clock: parts.clock.clone(),
            suspend: SuspendWatch::new(),
            lease: parts.lease,
            quorum: config.quorum_reads,
            applied: applied.clone(),
            leadership: leadership.clone(),
            transfers: parts.transfers.clone(),
            told: parts.told.clone(),
        });
        let stamp = Stamp {
            raft: raft.clone(),
            vault: config.vault.clone(),
            place: parts.place,
            clock: parts.clock.clone(),
        };
        let proposer = Proposer::start(stamp, config.identity.params.max_entry_size as usize);
        let quiet = Arc::new(AtomicBool::new(!config.fresh));
        let contact = Arc::new(Contact::default());
        let server = parts.server(&config, &raft, &reads, &quiet, &contact, requests);
        config.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(config.listener.try_clone()?)?;
        tokio::spawn(server.clone().run(listener));
        let (shortage_tx, shortage) = watch::channel(None);
        let watcher = parts.watcher(&config, &raft, &quiet, contact, leadership_tx, shortage_tx);
        tokio::spawn(watcher.run(if config.fresh { Duration::ZERO } else { parts.lease }));
        let reconciler = Reconciler {
            incarnation: parts.myself.incarnation,
            raft: raft.clone(),
            directory: parts.directory.clone(),
            peers: parts.peers.clone(),
            vault: config.vault.clone(),
            leadership: leadership.clone(),
        };
        tokio::spawn(reconciler.run());
        let shared = Arc::new(Self {
            raft,
            log: parts.log,
            state: parts.state,
            pool: parts.pool,
            peers: parts.peers,
            directory: parts.directory,
            vault: config.vault,
            clock: parts.clock,
            proposer,
            reads,
            transfers: parts.transfers,
            leadership,
            shortage,
            own: parts.own,
            applied,
            myself: parts.myself,
            lease: parts.lease,
            server,
            spools: parts.spools,
            params: config.identity.params,
            started: std::time::Instant::now(),
            autopilot: crate::autopilot::Records::default(),
            directory_changes: tokio::sync::Mutex::default(),
        });
        tokio::spawn(shared.clone().pings());
        tokio::spawn(shared.clone().addresses());
        tokio::spawn(shared.clone().autopilot());
        tokio::spawn(shared.clone().time());
        tokio::spawn(shared.clone().checkpoints());
        tokio::spawn(shared.clone().purges());
        tokio::spawn(shared.clone().close_removed(parts.tombstoned));
        Ok(shared)
    }

    /// Whether any other voter is unsealed and was heard of lately, so that waiting for it to catch up may help.
    pub fn may_find_heir(&self) -> bool {
        self.raft.voter_ids().any(|id| {
            id != self.myself.incarnation
                && self.peers.heard_within(id, self.lease * 2)
                && self.peers.status(id).is_some_and(|peer| !peer.standing.sealed)
        })
    }

    /// Whether the place of a member may go to a new incarnation.
    pub fn check_replaceable(&self, node_id: &str, old: u64) -> Result<(), JoinError> {
        let status = self.peers.status(old);
        let silent = status.map(|status| status.heard.elapsed());
        match silent {
            Some(silent) if silent < REPLACEABLE => {
                Err(JoinError::InUse { node_id: node_id.into(), silent_s: silent.as_secs() })
            }
            _ if old == self.myself.incarnation => {
                Err(JoinError::InUse { node_id: node_id.into(), silent_s: 0 })
            }
            // A node that has just started has heard of nobody yet.
            None if self.started.elapsed() < REPLACEABLE => {
                Err(JoinError::InUse { node_id: node_id.into(), silent_s: self.started.elapsed().as_secs() })
            }
            _ => Ok(()),
        }
    }

    /// Changes the directory in one transaction. `change` says whether there was anything to change; it may be
    /// asked again when somebody else was faster.
    pub async fn change_directory(
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
            let (directory, _) = Directory::open(&record.value).map_err(|e| unreadable(&e))?;
            let Myself { cluster_id, epoch, incarnation, .. } = self.myself;
            let mut directory = directory.of_cluster(cluster_id, epoch, incarnation);
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
                ..Txn::default()
            };
            match self.proposer.propose(txn).await? {
                ProposeOutcome::Conflict { .. } => continue,
                _ => return Ok(directory),
            }
        }
    }
}

type Storage = (Arc<dyn RaftLog>, Arc<dyn SealedState>);

fn open_storage(dir: &DataDir) -> Result<Storage, StorageError> {
    let (log, state) = keystead_storage::open(dir)?;
    Ok((Arc::new(log), Arc::new(state)))
}

fn raft_config(params: &ClusterParams) -> Result<openraft::Config, StartError> {
    openraft::Config {
        cluster_name: "keystead".into(),
        heartbeat_interval: params.heartbeat_ms,
        election_timeout_min: params.election_min_ms,
        election_timeout_max: params.election_max_ms,
        // Candidacy is switched on by the leadership task, after the quiet time and by the seal.
        enable_elect: false,
        enable_pre_vote: Some(true),
        max_payload_entries: 300,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(10_000),
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
