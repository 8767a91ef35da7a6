//! Who leads, who may stand for election, and when a leader hands over.
//!
//! An unsealed voter stands for election as Raft says. A sealed one, one whose disk hangs or is full, or one that an operator had step down, stands only
//! after a while in which nobody has won, for it may hold entries that the others lack; it then replicates, and hands
//! over to a voter that is better off as soon as one is reachable and caught up. So does a leader whose disk begins to
//! hang or is almost full. Nodes never get different timeouts: the timeout is the lease too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_storage::{RaftLog, SealedState};
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    clock::{ClusterClock, wall_ms},
    directory::{Directory, DirectoryCache},
    machine::{Latch, storage_failure},
    peers::Peers,
    replicated::{LeaderInfo, Leadership, Shortage},
    standing::{OwnStanding, Standing, Voter, shortage},
    types::{Raft, TypeConfig},
    vault_side::VaultSide,
};

/// An heir this close behind has the rest before its own election: the library makes it wait for it.
const CLOSE_ENTRIES: u64 = 64;
/// A voter that was not heard of for this long counts neither as having room nor as lacking it.
const HEARD_LATELY: Duration = Duration::from_secs(3);
/// How often seal states and contacts are looked at. Changes of leadership are seen at once.
const TICK: Duration = Duration::from_millis(25);

/// When this node last took an append of a leader.
#[derive(Default)]
pub struct Contact(Mutex<Option<(u64, Instant)>>);

impl Contact {
    /// A leader's append or heartbeat was accepted.
    pub fn heard(&self, leader: u64) {
        *self.0.lock() = Some((leader, Instant::now()));
    }

    /// How long ago, and from whom.
    fn last(&self) -> Option<(u64, Duration)> {
        self.0.lock().map(|(leader, at)| (leader, at.elapsed()))
    }
}

/// The one way in which this node asks another to take over.
///
/// Whom the library asks may stand at once, whatever lease its voters gave. So a term in which that was asked
/// has no lease any more, and reads must know before the other one does.
#[derive(Default)]
pub struct Transfers(AtomicU64);

impl Transfers {
    /// Asks `target` to stand for election.
    ///
    /// # Errors
    /// [`openraft::errors::Fatal`] when the library has stopped.
    pub async fn to(&self, raft: &Raft, target: u64) -> Result<(), openraft::errors::Fatal<TypeConfig>> {
        let Ok(leader) = raft.as_leader() else { return Ok(()) };
        self.0.store(leader.term(), Ordering::SeqCst);
        raft.trigger().transfer_leader(target).await
    }

    /// Whether another node was asked to take over in this term.
    pub fn asked_in(&self, term: u64) -> bool {
        self.0.load(Ordering::SeqCst) == term
    }
}

/// Everything the leadership task looks at.
pub struct Watcher {
    /// This node's Raft id.
    pub incarnation: u64,
    /// This node as others should see it when it leads.
    pub myself: LeaderInfo,
    /// The library.
    pub raft: Raft,
    /// The local log.
    pub log: Arc<dyn RaftLog>,
    /// The local state.
    pub state: Arc<dyn SealedState>,
    /// Who is a member, and where.
    pub directory: Arc<DirectoryCache>,
    /// What was heard of the others.
    pub peers: Arc<Peers>,
    /// Whether this node is open.
    pub vault: Arc<dyn VaultSide>,
    /// What this node says of itself.
    pub own: Arc<OwnStanding>,
    /// Stops apply.
    pub latch: Arc<Latch>,
    /// Cluster time.
    pub clock: Arc<ClusterClock>,
    /// The last append taken.
    pub contact: Arc<Contact>,
    /// Hands over.
    pub transfers: Arc<Transfers>,
    /// The greatest election timeout, which is the lease.
    pub lease: Duration,
    /// Set while this node must neither vote nor stand, for it forgot what it promised before its start.
    pub quiet: Arc<AtomicBool>,
    /// Where the result goes.
    pub leadership: watch::Sender<Leadership>,
    /// What is refused for want of space.
    pub shortage: watch::Sender<Option<Shortage>>,
}

impl Watcher {
    /// Runs until the raft runtime stops. `quiet` is how long this node keeps out of elections after its start.
    pub async fn run(self, quiet: Duration) {
        let started = Instant::now();
        let mut metrics = self.raft.server_metrics();
        let mut applied = self.raft.watch_apply_progress();
        let mut late = LateCandidate::new(self.lease);
        let mut was_leader = false;
        let mut handed_over: Option<Instant> = None;
        let mut low_since: Option<Instant> = None;
        loop {
            let over = started.elapsed() >= quiet;
            if over {
                self.quiet.store(false, Ordering::Release);
            }
            self.look_at_storage();
            self.publish();
            let leads = self.raft.is_leader();
            if leads && !was_leader {
                self.began_to_lead();
            }
            was_leader = leads;
            self.candidacy(over, leads, &mut late).await;
            let own = self.own.now();
            if leads && own.burden() > 0 {
                self.hand_over(own, &mut handed_over).await;
            }
            low_since = low_since.or(Some(Instant::now())).filter(|_| leads && own.disk_low);
            self.judge_space(leads, own, low_since.map(|since| since.elapsed()));
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { return self.stopped().await },
                _ = applied.changed(), if leads && !self.leadership.borrow().is_self => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// A database that failed latches the node at once, not with the next entry, which may be long in coming.
    fn look_at_storage(&self) {
        if self.latch.reason().is_some() {
            return;
        }
        let failed = self.log.latch().map(|why| storage_failure("log", &why));
        let failed = failed.or_else(|| self.state.latch().map(|why| storage_failure("state", &why)));
        let Some(reason) = failed else { return };
        self.latch.set(&reason);
        self.vault.latched(&reason);
    }

    /// Says what is refused for want of space, and tells of a change once.
    fn judge_space(&self, leads: bool, own: Standing, low_for: Option<Duration>) {
        let found = if leads { self.shortage(own, low_for) } else { None };
        let kind = |shortage: &Option<Shortage>| shortage.as_ref().map(|s| (s.node_id.clone(), s.deletes));
        let before = kind(&self.shortage.borrow());
        match &found {
            Some(shortage) if before != kind(&found) => tracing::warn!(%shortage, "writes are refused"),
            None if before.is_some() => tracing::info!("writes are not refused for want of space any more"),
            _ => {}
        }
        metrics::gauge!("keystead_raft_writes_refused").set(if found.is_some() { 1.0 } else { 0.0 });
        self.shortage.send_if_modified(|current| {
            let changed = *current != found;
            *current = found;
            changed
        });
    }

    fn shortage(&self, own: Standing, low_for: Option<Duration>) -> Option<Shortage> {
        let others: Vec<Voter> = self
            .raft
            .voter_ids()
            .filter(|id| *id != self.incarnation)
            .map(|id| {
                let heard = self.peers.status(id);
                let name = heard.as_ref().map(|heard| heard.node_id.clone());
                let lately = heard.as_ref().filter(|heard| heard.heard.elapsed() < HEARD_LATELY);
                Voter {
                    node_id: name.unwrap_or_else(|| format!("{id:016x}")),
                    standing: lately.map(|heard| heard.standing),
                    free_bytes: heard.and_then(|heard| heard.free_bytes),
                }
            })
            .collect();
        let own = Voter {
            node_id: self.myself.node_id.clone(),
            standing: Some(own),
            free_bytes: Some(self.own.free_bytes()),
        };
        shortage(&own, &others, low_for)
    }

    /// The core has stopped. Nobody may go on believing what it said last.
    async fn stopped(&self) {
        self.leadership.send_replace(Leadership::default());
        self.own.set_leads(false);
        self.look_at_storage();
        let state = self.raft.metrics().borrow_watched().running_state.clone();
        let why = match state {
            Err(openraft::errors::Fatal::Stopped) => None,
            Err(fatal) => Some(fatal.to_string()),
            // A core that ends in order says so before its metrics end.
            Ok(()) => Some("its task panicked".to_owned()),
        };
        if let Some(why) = why {
            tracing::error!(why, "consensus has stopped on this node");
            self.vault
                .latched(&format!("consensus has stopped: {why}; mend the cause and start this node again"));
        }
        // Whoever watches must see that nobody leads, not that the watch has ended.
        std::future::pending().await
    }

    fn began_to_lead(&self) {
        if let Some(leap_ms) = self.clock.lead() {
            tracing::warn!(
                leap_ms,
                "cluster time leaps to this leader's wall clock; check the clocks of all nodes"
            );
            metrics::counter!("keystead_cluster_time_leaps").increment(1);
        }
        tracing::info!("this node leads");
        metrics::counter!("keystead_raft_elections_won").increment(1);
    }

    fn publish(&self) {
        let view = self.view();
        self.leadership.send_if_modified(|current| {
            let mut view = view;
            if view.is_self && current.is_self && view.term == current.term {
                view.active_since_ms = current.active_since_ms;
            }
            let changed = *current != view;
            *current = view;
            changed
        });
        self.own.set_leads(self.leadership.borrow().is_self);
    }

    fn view(&self) -> Leadership {
        let (term, leads, current) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            // A core that has stopped still says that it leads.
            if metrics.running_state.is_err() {
                return Leadership::default();
            }
            (metrics.current_term, metrics.state.is_leader(), metrics.current_leader)
        };
        // A core whose vote waits for the disk does not learn that another leads, and heartbeats are not answered
        // before what came earlier is written.
        if self.own.disk().is_stalled()
            && let Some(leader) = self.peers.leading(self.lease * 2).and_then(|id| self.info(id))
        {
            return Leadership { term, leader: Some(leader), is_self: false, active_since_ms: 0 };
        }
        if leads {
            // A leader answers once the first entry of its term is applied: only then has it applied
            // everything that was acknowledged before.
            let is_self = self.state.applied().log_id.is_some_and(|id| id.term == term);
            let active_since_ms = if is_self { wall_ms() } else { 0 };
            return Leadership { term, leader: Some(self.myself.clone()), is_self, active_since_ms };
        }
        let fresh = self.contact.last().filter(|(_, ago)| *ago < self.lease * 2);
        let leader = match (current, fresh) {
            (Some(id), Some((heard, _))) if id == heard && id != self.incarnation => self.info(id),
            _ => None,
        };
        Leadership { term, leader, is_self: false, active_since_ms: 0 }
    }

    fn info(&self, incarnation: u64) -> Option<LeaderInfo> {
        let directory = self.directory.current();
        let listed = directory.member(incarnation);
        let heard = self.peers.status(incarnation);
        // Clients are sent there with their tokens: what a peer says of itself counts once it has proved that
        // it holds the root key, and before that only what the MACed directory says.
        let proven = heard.and_then(|heard| heard.proven);
        let listed_at = listed.map(|m| (m.cluster_addr.clone(), m.api_addr.clone()));
        let node_id = listed?.node_id.clone();
        let (cluster_addr, api_addr) = proven.or(listed_at)?;
        Some(LeaderInfo { incarnation, node_id, api_addr, cluster_addr: format!("https://{cluster_addr}") })
    }

    /// Switches this node's candidacy with its standing, and lets a sealed node, or one with a bad disk, stand late.
    async fn candidacy(&self, over: bool, leads: bool, late: &mut LateCandidate) {
        let fit = self.own.now().stands_at_once() && !self.own.rests();
        // Switching candidacy off under a healthy leader would depose it; a sealed leader hands over instead.
        if !leads {
            self.raft.runtime_config().elect(over && fit);
        }
        let silent = self.contact.last().is_none_or(|(_, ago)| ago > self.lease);
        if leads || fit || !over || !silent || !self.is_voter() {
            late.rest(self.lease);
            return;
        }
        if late.due(self.lease) {
            tracing::info!(
                "nobody leads: this node stands for election, to hand over to one that is better off"
            );
            if let Err(error) = self.raft.trigger().elect(true).await {
                tracing::debug!(%error, "cannot stand for election");
            }
        }
    }

    fn is_voter(&self) -> bool {
        self.raft.voter_ids().any(|id| id == self.incarnation)
    }

    /// Hands leadership to an unsealed voter that is better off, is reachable and has nearly everything.
    async fn hand_over(&self, own: Standing, last: &mut Option<Instant>) {
        if last.is_some_and(|at| at.elapsed() < self.lease * 2) {
            return;
        }
        let better = |standing: Standing| standing.burden() < own.burden();
        let Some(target) =
            heir(&self.raft, &self.peers, &self.directory.current(), self.incarnation, self.lease, better)
        else {
            return;
        };
        *last = Some(Instant::now());
        let why = match own {
            Standing { sealed: true, .. } => "it is sealed",
            Standing { disk_slow: true, .. } => "its disk hangs",
            Standing { disk_full: true, .. } => "its disk is full",
            _ => "its disk is almost full",
        };
        let heir = self.info(target).map_or_else(|| format!("{target:016x}"), |info| info.node_id);
        metrics::counter!("keystead_raft_handovers_total").increment(1);
        tracing::warn!(why, heir, "this node hands leadership over");
        if let Err(error) = self.transfers.to(&self.raft, target).await {
            tracing::warn!(%error, "cannot hand leadership over");
        }
    }
}

/// The unsealed voter with the least burden, the preferred one among equals, that was heard of within `window`, has the
/// log but for its last entries, keeps its vote, and fits.
pub fn heir(
    raft: &Raft,
    peers: &Peers,
    directory: &Directory,
    own: u64,
    window: Duration,
    fits: impl Fn(Standing) -> bool,
) -> Option<u64> {
    let (last, matched) = {
        let metrics = raft.data_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.last_log, metrics.replication.clone()?)
    };
    // Raft's membership follows the directory: whoever that has taken the vote from must not lead any more.
    let keeps = |id: &u64| !directory.is_tombstoned(*id) && directory.member(*id).is_none_or(|m| m.voter);
    let voters: Vec<u64> = raft.voter_ids().filter(keeps).collect();
    let reachable = voters.into_iter().filter(|id| *id != own).filter_map(|id| {
        let status = peers.status(id).filter(|status| status.heard.elapsed() <= window)?;
        (!status.standing.sealed && fits(status.standing)).then_some((id, status.standing))
    });
    let caught_up = reachable.filter(|(id, _)| {
        matched.get(id).is_some_and(|at| {
            let behind = |at: u64| last.map_or(0, |last| last.index).saturating_sub(at);
            at.as_ref().is_some_and(|at| behind(at.index) <= CLOSE_ENTRIES)
        })
    });
    caught_up.min_by_key(|(_, standing)| (standing.burden(), !standing.preferred)).map(|(id, _)| id)
}

/// The timer of the candidacy of a node that stands late.
struct LateCandidate {
    since: Instant,
    wait: Duration,
}

impl LateCandidate {
    fn new(lease: Duration) -> Self {
        Self { since: Instant::now(), wait: Self::draw(lease) }
    }

    /// Between two and five leases: after every unsealed voter has had its turns.
    fn draw(lease: Duration) -> Duration {
        let random = (crate::identity::fresh_incarnation() % 1000) as u32;
        lease * 2 + lease * 3 * random / 1000
    }

    fn rest(&mut self, lease: Duration) {
        if self.since.elapsed() > TICK {
            *self = Self::new(lease);
        }
    }

    fn due(&mut self, lease: Duration) -> bool {
        let due = self.since.elapsed() >= self.wait;
        if due {
            *self = Self::new(lease);
        }
        due
    }
}
