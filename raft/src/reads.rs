//! Linearizable reads on every node (Raft dissertation, 6.4).
//!
//! The leader answers by its lease, of which only half counts, or by a round of acks when the lease is older
//! than that, when this machine was suspended, or when no clock is to be trusted. A standby asks the leader for
//! its index in one exchange that all waiting reads share, and waits until it has applied that far.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use keystead_storage::SealedState;
use openraft::Instant as _;
#[cfg(not(feature = "test-no-lease-check"))]
use openraft::raft::linearizable_read::LinearizerOption;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::{
    clock::{ClusterClock, SuspendWatch},
    codec::Reader,
    conn::Method,
    hello::Channel,
    leadership::Transfers,
    network::Told,
    pool::Pool,
    replicated::{Leadership, ReadBarrier, ReadError},
    types::Raft,
    vault_side::VaultSide,
};

type Waiter = oneshot::Sender<Result<ReadBarrier, ReadError>>;

/// What reads need.
pub struct Reads {
    /// The library.
    pub raft: Raft,
    /// The local state.
    pub state: Arc<dyn SealedState>,
    /// Connections to the leader.
    pub pool: Arc<Pool>,
    /// Whether this node is open.
    pub vault: Arc<dyn VaultSide>,
    /// Cluster time.
    pub clock: Arc<ClusterClock>,
    /// Whether this machine has slept.
    pub suspend: SuspendWatch,
    /// The leader's lease: the greatest election timeout.
    pub lease: Duration,
    /// Trust no clock: every read costs a round of acks.
    pub quorum: bool,
    /// The applied index.
    pub applied: watch::Receiver<u64>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Whether another node was asked to take over.
    pub transfers: Arc<Transfers>,
    /// What the peers were told to be committed.
    pub told: Arc<Told>,
}

/// The entrance to linearizable reads.
#[derive(Clone)]
pub struct ReadGate {
    reads: Arc<Reads>,
    next: Arc<Next>,
}

/// The next exchange, and whose turn it is.
#[derive(Default)]
struct Next {
    /// Each is a request, whose number the listeners bound.
    waiting: Mutex<Vec<Waiter>>,
    /// Held by the one exchange in flight.
    turn: tokio::sync::Mutex<()>,
}

impl ReadGate {
    /// An entrance through which nobody has come yet.
    pub fn new(reads: Reads) -> Self {
        Self { reads: Arc::new(reads), next: Arc::default() }
    }

    /// Waits until local state holds everything acknowledged before the call.
    pub async fn barrier(&self) -> Result<ReadBarrier, ReadError> {
        if !self.reads.vault.is_open() {
            return Err(ReadError::Sealed);
        }
        if self.reads.raft.is_leader() {
            return self.reads.on_leader().await;
        }
        let (tx, rx) = oneshot::channel();
        let first = {
            let mut waiting = self.next.waiting.lock();
            waiting.push(tx);
            waiting.len() == 1
        };
        if first {
            tokio::spawn(self.clone().exchange());
        }
        rx.await.map_err(|_| ReadError::Stopped("replication is shutting down".into()))?
    }

    /// One exchange with the leader for everybody who has come when it begins; one is in flight at a time.
    ///
    /// It runs beside the requests, on their runtime: after those that are ready to be served there have come along, and
    /// so that one message from another thread wakes them all.
    async fn exchange(self) {
        let _turn = self.next.turn.lock().await;
        tokio::task::yield_now().await;
        let waiters = std::mem::take(&mut *self.next.waiting.lock());
        let result = self.reads.exchange().await;
        for waiter in waiters {
            // Whoever asked may have gone.
            drop(waiter.send(result.clone()));
        }
    }

    /// Whether the leader that confirmed `barrier` still holds its lease.
    pub fn confirm(&self, barrier: &ReadBarrier) -> bool {
        barrier.own_term == 0 || self.reads.still_leads(barrier)
    }

    /// A leader's answer to a standby's exchange: index and cluster time.
    pub async fn answer(&self) -> Result<Bytes, ReadError> {
        let barrier = self.reads.on_leader().await?;
        let mut out = BytesMut::with_capacity(16);
        out.put_u64(barrier.applied_index);
        out.put_u64(barrier.cluster_time_ms);
        Ok(out.freeze())
    }
}

impl Reads {
    #[cfg(feature = "test-no-lease-check")]
    async fn on_leader(&self) -> Result<ReadBarrier, ReadError> {
        let applied_index = *self.applied.borrow();
        Ok(ReadBarrier { applied_index, cluster_time_ms: self.clock.now_ms(), own_term: 0, by_lease: false })
    }

    #[cfg(not(feature = "test-no-lease-check"))]
    async fn on_leader(&self) -> Result<ReadBarrier, ReadError> {
        let trusted = !self.quorum && !self.suspend.suspended_within(self.lease * 2);
        if trusted && let Some(mut barrier) = self.by_fresh_lease() {
            let told = self.told.index();
            if barrier.applied_index < told {
                barrier.applied_index = self.wait_applied(told).await?;
            }
            return Ok(barrier);
        }
        let age = if trusted { self.lease / 2 } else { Duration::ZERO };
        let option = LinearizerOption::new(Some(age), true).with_wait_timeout(self.lease);
        // The library answers nothing while its vote waits for a disk that hangs.
        let asked = tokio::time::timeout(self.lease * 5, self.raft.get_read_linearizer(option));
        let linearizer = asked.await.map_err(|_| ReadError::Timeout)?.map_err(|error| match error {
            openraft::errors::RaftError::Fatal(fatal) => ReadError::Stopped(fatal.to_string()),
            openraft::errors::RaftError::APIError(_) => ReadError::NoLeader,
        })?;
        let own_term = self.raft.as_leader().map_err(|_| ReadError::NoLeader)?.term();
        let index = linearizer.read_log_id().index();
        let applied_index = self.wait_applied(index).await?;
        Ok(ReadBarrier { applied_index, cluster_time_ms: self.clock.now_ms(), own_term, by_lease: trusted })
    }

    /// The barrier of a leader whose lease is fresh, without asking the library's task, which would cost two
    /// switches of threads for every read.
    ///
    /// A write is acknowledged only once its leader has applied it. So what this leader has applied holds
    /// everything that it acknowledged itself; and since it counts as leading only after the first entry of its
    /// term is applied, everything that was acknowledged before. What was read on a standby that had applied more by
    /// then is for the caller to wait for ([`Told`]). Nobody has led after it as long as its lease holds, which
    /// [`Reads::still_leads`] finds out once more when the read is done.
    #[cfg(not(feature = "test-no-lease-check"))]
    fn by_fresh_lease(&self) -> Option<ReadBarrier> {
        let leader = self.raft.as_leader().ok()?;
        let own_term = leader.term();
        let leads = {
            let leadership = self.leadership.borrow();
            leadership.is_self && leadership.term == own_term
        };
        let fresh = || leader.last_quorum_acked().is_some_and(|at| at.elapsed() < self.lease / 2);
        if !leads || self.transfers.asked_in(own_term) || !(fresh() || self.raft.voter_ids().count() == 1) {
            return None;
        }
        let applied_index = *self.applied.borrow();
        let cluster_time_ms = self.clock.now_ms();
        Some(ReadBarrier { applied_index, cluster_time_ms, own_term, by_lease: true })
    }

    /// Whether the barrier's lease, if it was one, still held when the read was done. An eighth of the lease is
    /// left for clocks that drift.
    fn still_leads(&self, barrier: &ReadBarrier) -> bool {
        let Ok(leader) = self.raft.as_leader() else { return false };
        if leader.term() != barrier.own_term {
            return false;
        }
        let fresh = || leader.last_quorum_acked().is_some_and(|at| at.elapsed() < self.lease * 7 / 8);
        let held = !barrier.by_lease || (fresh() && !self.suspend.suspended_within(self.lease));
        // A lone voter's lease is its own. It is asked last, for the library copies the membership to say it.
        held || self.raft.voter_ids().count() == 1
    }

    async fn wait_applied(&self, index: u64) -> Result<u64, ReadError> {
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|&applied| applied >= index);
        match tokio::time::timeout(self.lease * 5, reached).await {
            Ok(Ok(applied)) => Ok(*applied),
            Ok(Err(_)) => Err(ReadError::Stopped("the apply thread is gone".into())),
            Err(_) => Err(ReadError::Timeout),
        }
    }

    /// One exchange with the leader.
    async fn exchange(&self) -> Result<ReadBarrier, ReadError> {
        let leader = self.leadership.borrow().leader.as_ref().map(|leader| leader.incarnation);
        let leader = leader.ok_or(ReadError::NoLeader)?;
        let answer =
            self.pool.call(leader, Channel::Reads, Method::ReadIndex, &[], self.lease * 2).await.map_err(
                |error| {
                    tracing::debug!(%error, "read index exchange failed");
                    ReadError::NoLeader
                },
            )?;
        let mut reader = Reader::new(answer);
        let malformed = |_| ReadError::NoLeader;
        let (index, time) = (reader.u64().map_err(malformed)?, reader.u64().map_err(malformed)?);
        self.clock.observe(time);
        let applied_index = self.wait_applied(index).await?;
        Ok(ReadBarrier { applied_index, cluster_time_ms: time, own_term: 0, by_lease: false })
    }
}
