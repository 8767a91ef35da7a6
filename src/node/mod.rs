//! The life of a node: uninitialised, joining, sealed, open; and the hands it lends to replication.
//!
//! [`Node`] owns the keys. Requests see them through [`NodeOps`], replication through [`VaultSide`]; neither can
//! keep them past `sys/seal`.

mod addresses;
mod attempt;
mod break_glass;
mod canary;
mod ceremony;
mod claims;
mod generate_root;
mod init;
mod join;
mod keys;
mod members;
mod migration;
mod ops;
mod own_pki;
mod records;
mod refound;
mod reinstate;
mod rekey;
mod restore;
mod rotation;
mod save;
mod schedule;
mod shares;
mod snapshot_store;
mod strangers;
mod unattended;
mod unseal;
mod vault_side;
mod verify_share;
mod wraps;

#[cfg(test)]
mod tests;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak, atomic::AtomicBool},
    time::Duration,
};

use keystead_raft::{ClusterParams, Enrolment, Identity, Replica, ReplicaConfig, Replicated as _, recovery};
use keystead_storage::DataDir;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

pub use join::JoinTarget;
pub use keys::{ClusterName, OpenKeys};
pub use own_pki::CertificateEnds;
pub use records::{key_records, vault_id_of};
pub use shares::{uuid, uuid_text};
pub use unattended::Seals;

use crate::{
    core::{Core, error::ApiError},
    seal::SealConfig,
    secret::SecretString,
};

/// What a node is started with.
pub struct NodeSettings {
    /// The locked data directory.
    pub dir: Arc<DataDir>,
    /// The operator's name of the place.
    pub node_id: String,
    /// Base URL of the API as clients reach it.
    pub api_addr: String,
    /// `host:port` of the cluster port as other nodes reach it.
    pub cluster_addr: String,
    /// The cluster port, bound; nothing is accepted on it until this node belongs to a cluster.
    pub cluster_listener: TcpListener,
    /// Name for a cluster that is initialised here.
    pub cluster_name: Option<String>,
    /// Whom to ask to be let in.
    pub retry_join: Vec<Arc<JoinTarget>>,
    /// Join without a vote.
    pub non_voter: bool,
    /// Below it scheduled snapshots may be put.
    pub snapshot_directory: Option<PathBuf>,
    /// Lead when that is possible.
    pub preferred_leader: bool,
    /// Timing and limits for a cluster that is initialised here.
    pub params: ClusterParams,
    /// Trust no clock for reads.
    pub quorum_reads: bool,
    /// Mount `secret/` (kv v2) at init, as a development server does.
    pub dev_mounts: bool,
    /// The first root token, where a development server's operator has chosen it.
    pub dev_root_token: Option<SecretString>,
    /// What opens this node by itself.
    pub seals: Seals,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Replication.
    #[error(transparent)]
    Replica(#[from] keystead_raft::replica::StartError),
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] keystead_raft::identity::IdentityError),
    /// A certificate that was asked for and is not there, or not for this node.
    #[error(transparent)]
    Enrolment(#[from] keystead_raft::EnrolmentError),
    /// A recovery that had begun.
    #[error(transparent)]
    Recovery(#[from] recovery::RecoveryError),
    /// The data directory.
    #[error(transparent)]
    Storage(#[from] keystead_storage::StorageError),
    /// The operating system.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A node.
pub struct Node {
    settings: NodeSettings,
    /// Set once, right after the node and the core have been made.
    core: OnceLock<Weak<Core>>,
    replica: RwLock<Option<Arc<Replica>>>,
    keys: RwLock<Option<Arc<OpenKeys>>>,
    /// Keys of an initialisation or a joining in progress: they sign, no request sees them.
    provisional: RwLock<Option<Arc<OpenKeys>>>,
    progress: Mutex<shares::Progress>,
    resets: Mutex<shares::Resets>,
    saving: save::Saving,
    /// What is wrong with scheduled snapshots, on the node that takes them.
    snapshot_warnings: Mutex<Vec<String>>,
    joining: Mutex<join::Joining>,
    /// Whom to ask to be let in: the configured ones, or those named by hand.
    targets: RwLock<Vec<Arc<JoinTarget>>>,
    challenges: join::Challenges,
    /// Who initialises, of the nodes that know of each other.
    claims: claims::Claims,
    /// When the certificates of the cluster port end, of a node that has them from the operator's CA.
    certificate_ends: RwLock<Option<CertificateEnds>>,
    /// The change of the break-glass shares that key holders are asked to agree to.
    break_glass: tokio::sync::Mutex<Option<break_glass::Operation>>,
    /// New shares that key holders are asked to agree to.
    rekey: tokio::sync::Mutex<Option<rekey::Rekey>>,
    /// A root token that key holders are asked to agree to.
    root_token: tokio::sync::Mutex<Option<generate_root::Generation>>,
    /// The other members that key holders may have this node open.
    ceremony: Mutex<Option<ceremony::Offer>>,
    /// Root keys that a leader has handed over, until the entry comes that makes one of them the vault's.
    pending_roots: rotation::PendingRoots,
    /// Why this node was sealed by a new root key, until it is open again.
    missed_root: Mutex<Option<String>>,
    /// Taking over what an entry changed of the keys, one at a time.
    reloading: Mutex<()>,
    /// Where this node's tasks run, for the threads of replication.
    runtime: tokio::runtime::Handle,
    /// A restore, one at a time.
    restoring: tokio::sync::Mutex<()>,
    /// A backup whose shares this node waits for.
    awaited: Mutex<Option<reinstate::Awaited>>,
    /// Init, unseal, seal and join, one at a time.
    lifecycle: tokio::sync::Mutex<()>,
    /// The opening that is under way.
    opening: Mutex<Option<tokio::task::AbortHandle>>,
    latched: watch::Sender<Option<String>>,
    stopping: watch::Sender<bool>,
    /// Whether the seals may open this node: not after an operator sealed it, until it is started again.
    opens_itself: watch::Sender<bool>,
    me: Weak<Self>,
}

impl Node {
    /// Starts a node: with an identity it replicates at once, sealed; without one it waits to be initialised or
    /// to join.
    pub async fn start(settings: NodeSettings) -> Result<Arc<Self>, StartError> {
        init::undo_interrupted(&settings.dir)?;
        if recovery::is_pending(settings.dir.path()) {
            let dir = settings.dir.clone();
            let finished = tokio::task::spawn_blocking(move || recovery::finish(&dir)).await;
            let finished = finished.map_err(|e| StartError::Io {
                context: "recovering".into(),
                source: std::io::Error::other(e),
            })?;
            if finished?.is_some() {
                tracing::warn!("a recovery from lost quorum was interrupted: it is finished");
            }
        }
        let identity = Identity::load(settings.dir.path())?;
        let enrolment = match &identity {
            None => Enrolment::load_complete(settings.dir.path(), &settings.node_id)?,
            // What an enrolment held is in the identity now; its incarnation is never used again.
            Some(_) => {
                forget_enrolment(settings.dir.path());
                None
            }
        };
        let joining = join::Joining::new(settings.non_voter, enrolment.as_ref())
            .map_err(keystead_raft::replica::StartError::from)?;
        let targets = settings.retry_join.clone();
        let node = Arc::new_cyclic(|me| Self {
            targets: RwLock::new(targets),
            settings,
            core: OnceLock::new(),
            replica: RwLock::default(),
            keys: RwLock::default(),
            provisional: RwLock::default(),
            progress: Mutex::default(),
            resets: Mutex::default(),
            saving: save::Saving::default(),
            snapshot_warnings: Mutex::default(),
            joining: Mutex::new(joining),
            challenges: join::Challenges::default(),
            claims: claims::Claims::default(),
            certificate_ends: RwLock::default(),
            break_glass: tokio::sync::Mutex::default(),
            rekey: tokio::sync::Mutex::default(),
            root_token: tokio::sync::Mutex::default(),
            ceremony: Mutex::default(),
            pending_roots: rotation::PendingRoots::default(),
            missed_root: Mutex::default(),
            reloading: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
            restoring: tokio::sync::Mutex::default(),
            awaited: Mutex::default(),
            lifecycle: tokio::sync::Mutex::default(),
            opening: Mutex::default(),
            latched: watch::channel(None).0,
            stopping: watch::channel(false).0,
            opens_itself: watch::channel(true).0,
            me: me.clone(),
        });
        match identity {
            Some(identity) => {
                if identity.node_id != node.settings.node_id {
                    tracing::warn!(
                        configured = node.settings.node_id,
                        joined_as = identity.node_id,
                        "node_id was changed after this node joined; it keeps its old one until it joins anew"
                    );
                }
                let (cluster_id, stand_in_ca) = (identity.cluster_id, identity.stand_in_ca);
                node.start_replica(Arc::new(identity), false, None).await?;
                node.clone().watch_for_strangers(cluster_id);
                if stand_in_ca {
                    tracing::warn!(
                        "this node was recovered from lost quorum: it takes no others before it is unsealed"
                    );
                    node.clone().refound_when_open();
                }
            }
            None => {
                node.await_kept_backup().await;
                node.clone().spawn_challenge_loop();
            }
        }
        node.clone().look_for_members();
        node.clone().spawn_unattended();
        if !node.settings.seals.all().is_empty() {
            tokio::spawn(canary::watch_seals(node.me.clone(), node.stopping.subscribe()));
        }
        Ok(node)
    }

    /// Gives the node the core that answers what other nodes forward.
    pub fn attach(&self, core: &Arc<Core>) {
        // A node has one core for its life.
        drop(self.core.set(Arc::downgrade(core)));
        tokio::spawn(sweep(Arc::downgrade(core), self.stopping.subscribe()));
        tokio::spawn(scrub(self.me.clone(), self.stopping.subscribe()));
        tokio::spawn(restore::sweep(self.me.clone(), self.stopping.subscribe()));
        tokio::spawn(schedule::keep(self.me.clone(), self.stopping.subscribe()));
    }

    /// Why this node has stopped serving, if it has: damage, divergence, a failed disk.
    pub fn latch_reason(&self) -> Option<String> {
        self.latched.borrow().clone()
    }

    /// When the certificates of the cluster port end; `None` before this node belongs to a cluster, and under a
    /// built-in CA, whose certificates have no end.
    pub fn certificate_ends(&self) -> Option<CertificateEnds> {
        *self.certificate_ends.read()
    }

    /// The node will stop: hands leadership over while requests are still answered, so that clients see no
    /// error, only latency.
    pub async fn shutdown_started(&self) {
        self.stopping.send_replace(true);
        if self.keys.read().is_some()
            && let Some(replica) = self.replica()
        {
            replica.transfer_away(Duration::from_secs(2)).await;
        }
    }

    /// Stops the node: flushes, ends, forgets its keys.
    pub async fn shutdown(&self) {
        self.stopping.send_replace(true);
        // Replication holds this node, and this node it: taking it out lets both go.
        let Some(replica) = self.replica.write().take() else { return };
        replica.shutdown().await;
        self.drop_keys();
    }

    fn replica(&self) -> Option<Arc<Replica>> {
        self.replica.read().clone()
    }

    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("a node's methods run while it is alive")
    }

    fn core(&self) -> Option<Arc<Core>> {
        self.core.get().and_then(Weak::upgrade)
    }

    async fn start_replica(
        &self,
        identity: Arc<Identity>,
        fresh: bool,
        directory: Option<keystead_raft::Directory>,
    ) -> Result<Arc<Replica>, StartError> {
        let listener = self
            .settings
            .cluster_listener
            .try_clone()
            .map_err(|source| StartError::Io { context: "cluster port".into(), source })?;
        let certificate_ends = CertificateEnds::of(&identity.cert_der, &identity.ca_cert_der);
        let config = ReplicaConfig {
            dir: self.settings.dir.clone(),
            identity,
            listener,
            cluster_addr: self.settings.cluster_addr.clone(),
            api_addr: self.settings.api_addr.clone(),
            vault: self.arc(),
            quorum_reads: self.settings.quorum_reads,
            preferred_leader: self.settings.preferred_leader,
            feature_level: feature_level(),
            version: crate::core::VERSION.to_owned(),
            fresh,
            directory,
        };
        let replica = Arc::new(Replica::start(config).await?);
        *self.replica.write() = Some(replica.clone());
        *self.certificate_ends.write() = certificate_ends;
        Ok(replica)
    }

    /// The seal configuration this node goes by: the replicated one, or what members offered to a joining node.
    fn seal_configs(&self) -> Result<Vec<SealConfig>, ApiError> {
        if let Some(replica) = self.replica() {
            let config = records::seal_config(&*replica.state())
                .map_err(|e| ApiError::internal("reading the seal configuration", &e))?;
            if let Some(config) = config {
                return Ok(vec![config]);
            }
        }
        if let Some(awaited) = &*self.awaited.lock() {
            return Ok(vec![awaited.config.clone()]);
        }
        Ok(self.joining.lock().configs())
    }

    fn drop_keys(&self) {
        self.keys.write().take();
        self.provisional.write().take();
        self.pending_roots.clear();
        self.ceremony.lock().take();
        self.progress.lock().reset();
        // One that is being worked on ends with the leadership it needs.
        if let Ok(mut rekey) = self.rekey.try_lock() {
            rekey.take();
        }
        if let Ok(mut root_token) = self.root_token.try_lock() {
            root_token.take();
        }
        if let Some(core) = self.core() {
            core.forget();
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.settings.dir.path().to_path_buf()
    }
}

/// What this release can do. Builds for tests can be made to do less, as an older release would.
fn feature_level() -> u32 {
    #[cfg(debug_assertions)]
    if let Some(level) =
        std::env::var("KEYSTEAD_TEST_FEATURE_LEVEL").ok().and_then(|level| level.parse().ok())
    {
        return level;
    }
    keystead_raft::hello::FEATURE_LEVEL
}

/// Removes what a node was enrolled with, once it is in its identity.
fn forget_enrolment(data_dir: &Path) {
    if let Err(error) = Enrolment::remove(data_dir) {
        let path = Enrolment::path(data_dir);
        tracing::warn!(%error, path = %path.display(), "a used enrolment cannot be removed; the next start tries again");
    }
}

/// Compares the state with its digest, now and then.
async fn scrub(node: Weak<Node>, mut stopping: watch::Receiver<bool>) {
    const INTERVAL: Duration = Duration::from_secs(3600);
    loop {
        tokio::select! {
            changed = stopping.changed() => if changed.is_err() || *stopping.borrow() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let Some(node) = node.upgrade() else { return };
        if let Some(replica) = node.replica()
            && let Err(error) = node.scrub(replica, Arc::new(AtomicBool::new(true))).await
        {
            tracing::error!(%error, "the state does not have its digest");
        }
    }
}

/// Runs the core's background work, soon again while it finds some.
async fn sweep(core: Weak<Core>, mut stopping: watch::Receiver<bool>) {
    const IDLE: Duration = Duration::from_secs(5);
    const BUSY: Duration = Duration::from_millis(20);
    loop {
        let wait = match core.upgrade() {
            None => return,
            Some(core) => match core.background_step().await {
                Ok(crate::core::Swept::Some) => BUSY,
                // Not leading, sealed or without a quorum: somebody else sweeps, or nobody can.
                Ok(crate::core::Swept::Nothing) | Err(_) => IDLE,
            },
        };
        tokio::select! {
            changed = stopping.changed() => if changed.is_err() || *stopping.borrow() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}
