//! One node's replication, put together: storage, the library, the cluster port and the tasks beside them.
//!
//! Consensus and the cluster port run on a runtime of their own, so that a flood of requests cannot keep a
//! heartbeat waiting.

use std::{collections::BTreeMap, net::TcpListener as StdListener, sync::Arc, time::Duration};

use bytes::Bytes;
use keystead_storage::{DataDir, SealedState, StorageError, Txn};
use keystead_tls::ClusterId;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::{runtime::Runtime, sync::watch};

use crate::{
    changes::read_directory,
    conn::{CallError, Method},
    directory::{Directory, DirectoryMember},
    hello::Channel,
    identity::{ClusterParams, Identity},
    leadership::heir,
    machine::Place,
    replicated::{
        BoxFuture, ForwardError, Leadership, ProposeError, ProposeOutcome, ReadBarrier, ReadError,
        Replicated, Shortage,
    },
    shared::Shared,
    standing::OwnStanding,
    types::Member,
    vault_side::VaultSide,
};

/// A member that was not heard of for this long may be elsewhere.
const MISSED: Duration = Duration::from_secs(3);
/// How long channels go on that were opened by a proof of the former root key.
const FORMER_CHANNELS: Duration = Duration::from_secs(10);
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
    /// This node should lead when it can.
    pub preferred_leader: bool,
    /// What this release can do.
    pub feature_level: u32,
    /// This release, for people.
    pub version: String,
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
    #[error(
        "node id {node_id:?} belongs to a member that was heard of {silent_s} s ago; give this node another node_id, remove that member, or wait until it has been silent for 10 s"
    )]
    InUse {
        /// The place.
        node_id: String,
        /// How long its member has been silent, in seconds.
        silent_s: u64,
    },
    /// Another node has drawn the same incarnation.
    #[error("this node's random id is taken; start it again so that it draws another")]
    Collision,
    /// The removal would leave a cluster that cannot decide anything.
    #[error(
        "removing or demoting {node_id:?} now would leave no quorum: {reachable} of {voters} voters can be reached; bring more of them back first"
    )]
    Unsafe {
        /// Who was to go.
        node_id: String,
        /// Voters that were heard of lately, this node included.
        reachable: usize,
        /// Voters there are.
        voters: usize,
    },
    /// The vote of the member that is to go was not taken in time.
    #[error("{node_id:?} loses its vote, which takes longer than {waited_s} s; remove it again then")]
    Pending {
        /// Who is to go.
        node_id: String,
        /// How long that was waited for.
        waited_s: u64,
    },
    /// The incarnation was removed before.
    #[error(
        "this incarnation was removed from the cluster; stop this node, run `keystead operator raft rebuild` and start it again"
    )]
    Removed,
    /// The last voter can go nowhere.
    #[error("the last voter can be neither removed nor demoted; let another node join and vote first")]
    LastVoter,
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such member, or it votes already.
    #[error("server is not a non-voter")]
    NotNonVoter,
    /// There is no such member, or it does not vote.
    #[error("server is not a voter")]
    NotVoter,
    /// Some members do not know yet what was asked for.
    #[error(
        "the cluster is at feature level {cluster}, and this needs level {needed}: upgrade {older} first; the level rises by itself then"
    )]
    LevelTooLow {
        /// What every member can do.
        cluster: u32,
        /// What is needed.
        needed: u32,
        /// Who cannot do it, by node id.
        older: String,
    },
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
    /// The cluster writes what this release cannot read.
    #[error(
        "this release is at feature level {level}, and the cluster of this node at {cluster}: start it with a release at level {cluster} or newer"
    )]
    TooOld {
        /// What this release can do.
        level: u32,
        /// What the cluster writes.
        cluster: u32,
    },
    /// The library.
    #[error("replication cannot start: {0}")]
    Raft(String),
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

    /// What it is made of, for the other parts of it.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    async fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
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

    /// Shows a new certificate by another CA, and trusts that CA, on connections from now on. The key stays.
    ///
    /// # Errors
    /// As [`keystead_tls::ClusterTls::new`]; nothing has changed then.
    pub fn renew_certificate(&self, identity: &Identity) -> Result<(), keystead_tls::Error> {
        let tls = &self.shared.server.tls;
        tls.renew(ClusterId(identity.cluster_id), &identity.ca_cert_der, &identity.cert_der, identity.key()?)
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

    /// What this node says of itself, and how its disk does.
    pub fn own_standing(&self) -> &OwnStanding {
        &self.shared.own
    }

    /// Why the members will not talk to this node, if that is so: it was removed, is too old, or is a copy.
    pub fn refusal(&self) -> Option<String> {
        let led = self.shared.leadership.borrow().leader.is_some();
        self.shared.pool.refusal().filter(|_| !led).map(|refusal| refusal.to_string())
    }

    /// Whether a member has not been heard of for a while.
    pub fn misses_members(&self) -> bool {
        let directory = self.shared.directory.current();
        let own = self.shared.myself.incarnation;
        let heard = |id: u64| self.shared.peers.heard_within(id, MISSED);
        directory.members.iter().any(|member| member.incarnation != own && !heard(member.incarnation))
    }

    /// Somebody says where the cluster port of a member is; its certificate has to prove it.
    pub fn hint_address(&self, incarnation: u64, cluster_addr: String) {
        self.shared.pool.hint(incarnation, cluster_addr);
    }

    /// What was heard of a member.
    pub fn peer_status(&self, incarnation: u64) -> Option<crate::peers::PeerStatus> {
        self.shared.peers.status(incarnation)
    }

    /// Checks the directory's MAC: to be called once this node has been unsealed. A wrong one latches.
    pub fn verify_directory(&self) {
        let shared = &self.shared;
        let place = Place { cluster_id: shared.myself.cluster_id, epoch: shared.myself.epoch };
        let own = shared.myself.incarnation;
        if let Some(directory) = read_directory(&*shared.state, &*shared.vault, place, own) {
            shared.directory.set(directory);
        }
    }

    /// This node has been sealed: its open channels end.
    pub fn sealed(&self) {
        self.shared.pool.close_open_channels();
    }

    /// The root key was replaced: channels that were opened by a proof of the former one end. Calls go over new ones at
    /// once; what is under way on the others, or comes from a peer that has not got so far yet, has a while.
    pub fn root_replaced(&self) {
        let (shared, until) = (self.shared.clone(), std::time::Instant::now());
        shared.pool.close_open_channels();
        if let Some(runtime) = self.runtime.lock().as_ref() {
            runtime.spawn(async move {
                tokio::time::sleep(FORMER_CHANNELS).await;
                shared.server.connections.close_open(until);
            });
        }
    }

    /// Has the state written to the disk as soon as the entry that is being applied counts as applied.
    pub fn flush_when_applied(&self) {
        let shared = self.shared.clone();
        let mut applied = shared.applied.clone();
        if let Some(runtime) = self.runtime.lock().as_ref() {
            runtime.spawn(async move {
                // It ends with replication.
                if applied.changed().await.is_ok() {
                    shared.state.flush(Box::new(|result| {
                        if let Err(error) = result {
                            tracing::debug!(%error, "the state was not flushed; the log will replay it");
                        }
                    }));
                }
            });
        }
    }

    /// Hands something to every other member that is open and within reach, over open channels, for `timeout` each at
    /// most. Returns the node ids of those that took it.
    pub async fn hand_over(&self, body: &[u8], timeout: Duration) -> Vec<String> {
        let shared = &self.shared;
        let directory = shared.directory.current();
        // What a member said last of its seal may be a heartbeat old; one that is sealed refuses the channel.
        let fits =
            |id: u64| id != shared.myself.incarnation && shared.peers.heard_within(id, shared.lease * 2);
        let calls = directory.members.iter().filter(|member| fits(member.incarnation)).map(|member| async move {
            let call =
                shared.pool.call(member.incarnation, Channel::Open, Method::HandOver, body, timeout);
            match tokio::time::timeout(timeout, call).await {
                Ok(Ok(_)) => Some(member.node_id.clone()),
                Ok(Err(error)) => {
                    tracing::debug!(node = member.node_id, %error, "a member did not take what was handed to it");
                    None
                }
                Err(_) => None,
            }
        });
        futures_util::future::join_all(calls).await.into_iter().flatten().collect()
    }

    /// The parameters that all nodes of this cluster share.
    pub fn params(&self) -> ClusterParams {
        self.shared.params
    }

    /// Hands leadership to an unsealed voter that has everything, or nearly, trying until `deadline`. Returns
    /// whether this node does not lead any more.
    pub async fn transfer_away(&self, deadline: Duration) -> bool {
        let shared = &self.shared;
        let until = tokio::time::Instant::now() + deadline;
        while shared.raft.is_leader() && tokio::time::Instant::now() < until {
            let own = shared.myself.incarnation;
            let directory = shared.directory.current();
            let heir = heir(&shared.raft, &shared.peers, &directory, own, shared.lease, |_| true);
            if let Some(heir) = heir {
                let (raft, transfers) = (shared.raft.clone(), shared.transfers.clone());
                self.on_runtime(async move { transfers.to(&raft, heir).await }).await;
            } else if !shared.may_find_heir() {
                return false;
            }
            let mut leadership = shared.leadership.clone();
            let moved =
                leadership.wait_for(|l| l.leader.as_ref().is_none_or(|leader| leader.incarnation != own));
            // The next round looks again.
            drop(tokio::time::timeout(shared.lease, moved).await);
        }
        !shared.raft.is_leader()
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
                match directory.member(member.incarnation) {
                    Some(known)
                        if known.spki_sha256 == member.spki_sha256 && known.node_id == member.node_id =>
                    {
                        return Ok(false);
                    }
                    Some(_) => return Err(JoinError::Collision),
                    None => {}
                }
                if let Some(old) = directory.by_node_id(&member.node_id).map(|old| old.incarnation) {
                    self.shared.check_replaceable(&member.node_id, old)?;
                    directory.remove(old);
                }
                directory.members.push(member.clone());
                Ok(true)
            })
            .await
    }
}

impl Replicated for Replica {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<ProposeOutcome, ProposeError>> {
        Box::pin(self.shared.proposer.propose(txn))
    }

    fn shortage(&self) -> Option<Shortage> {
        self.shared.shortage.borrow().clone()
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
            pool.call(leader, Channel::Open, Method::Forward, &request, deadline).await.map_err(|error| {
                match error {
                    CallError::NotSent(text) => ForwardError::NotSent(text),
                    CallError::Lost => ForwardError::Lost("connection lost".into()),
                    CallError::Timeout(after) => ForwardError::Lost(format!("no answer within {after:?}")),
                    CallError::Failed(text) => ForwardError::Refused(text),
                }
            })
        })
    }
}
