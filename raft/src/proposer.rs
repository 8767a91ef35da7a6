//! Proposing: admission, the one queue that assigns the sequence, the tag, the outcome.
//!
//! One task owns the sequence. It takes proposals in order, stamps each with term, sequence and cluster time,
//! has it signed, and hands it to the library, which appends in that order. An entry that reaches the log in
//! another term than it was stamped with is a no-op on every node, so a change of leadership between the stamp
//! and the append cannot let it through twice or late.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use keystead_storage::{MAX_OPERATIONS, Outcome, Txn, operation_count};
use openraft::{
    errors::ClientWriteError, impls::ProgressResponder, raft::ClientWriteResult,
    type_config::alias::CommittedLeaderIdOf,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    clock::ClusterClock,
    entry::{self, Body, EncodedBody, Header},
    machine::Place,
    replicated::{ProposeError, ProposeOutcome},
    types::{Proposal, Raft, TypeConfig},
    vault_side::VaultSide,
};

/// Proposals in flight at most.
pub const MAX_IN_FLIGHT: usize = 512;
/// Records that one entry writes at most.
pub const MAX_RECORDS: usize = 256;
/// Bytes of proposals in flight at most.
pub const MAX_BYTES_IN_FLIGHT: usize = 16 << 20;
/// A new leader turns proposals away until its first quorum of acks; this is how long that is worth waiting
/// for, here, before the caller is told.
const FRESH_LEADER: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(5);
/// How long a proposal may be in flight before its outcome is asked of whoever leads then.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

type WriteResult = ClientWriteResult<TypeConfig>;
type Signed = (Proposal, CommittedLeaderIdOf<TypeConfig>);
type Responder = ProgressResponder<TypeConfig, WriteResult>;

/// Bursts that may be on their way before the next one waits; see [`run`].
const BURSTS: usize = 2;
/// A burst of more proposals counts as two: what comes meanwhile becomes one as large.
const SMALL_BURST: usize = 16;
/// A burst of so many proposals waits for no other.
const FULL_BURST: usize = 128;
/// How long a burst waits for those before it. The disk or a peer is slow then, and what is on its way fills the
/// pipeline.
const BURST_WAIT: Duration = Duration::from_millis(20);

struct Job {
    body: EncodedBody,
    responder: Responder,
    handed_over: HandedOver,
}

/// What became of a proposal at the head of the queue: its burst, which is over when all of its proposals are, or why it
/// went no further. Whoever proposed waits for the outcome alone and looks here afterwards: being woken twice for every
/// proposal would cost more than the queue's own work.
type HandedOver = Arc<OnceLock<Result<Arc<Option<OwnedSemaphorePermit>>, ProposeError>>>;

/// The entrance to the log.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Job>,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_entry_size: usize,
}

/// What the queue's task needs.
pub struct Stamp {
    /// The library.
    pub raft: Raft,
    /// Signs.
    pub vault: Arc<dyn VaultSide>,
    /// Cluster and epoch.
    pub place: Place,
    /// Cluster time.
    pub clock: Arc<ClusterClock>,
}

impl Proposer {
    /// Starts the queue's task on the current runtime.
    pub fn start(stamp: Stamp, max_entry_size: usize) -> Self {
        let (queue, jobs) = mpsc::channel(MAX_IN_FLIGHT);
        tokio::spawn(run(stamp, jobs));
        Self {
            queue,
            count: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            bytes: Arc::new(Semaphore::new(MAX_BYTES_IN_FLIGHT)),
            max_entry_size,
        }
    }

    /// Proposes a transaction and waits until it is applied here.
    pub async fn propose(&self, txn: Txn) -> Result<ProposeOutcome, ProposeError> {
        if txn.writes.len() > MAX_RECORDS {
            return Err(ProposeError::TooManyOperations { operations: txn.writes.len(), max: MAX_RECORDS });
        }
        let operations = operation_count(&txn);
        if operations > MAX_OPERATIONS {
            return Err(ProposeError::TooManyOperations { operations, max: MAX_OPERATIONS });
        }
        match self.submit(&Body::Txn(txn)).await? {
            Outcome::Applied { version } => Ok(ProposeOutcome::Applied(version)),
            Outcome::Duplicate { version, response } => Ok(ProposeOutcome::Duplicate { version, response }),
            Outcome::Conflict { check } => Ok(ProposeOutcome::Conflict { check }),
            // Stamped in one term, appended in another: nothing happened, here or anywhere.
            Outcome::Stale | Outcome::Blank => Err(ProposeError::NotLeader),
        }
    }

    /// Proposes a body and waits until it is applied here.
    pub async fn submit(&self, body: &Body) -> Result<Outcome, ProposeError> {
        let body = EncodedBody::new(body);
        let bytes = body.entry_len();
        if bytes > self.max_entry_size {
            return Err(ProposeError::TooLarge { bytes, max: self.max_entry_size });
        }
        let _admitted = self.admit(bytes)?;
        let deadline = tokio::time::Instant::now() + FRESH_LEADER;
        loop {
            match self.once(body.clone()).await? {
                Ok(response) => return Ok(response.data.0),
                // No leader to forward to: this node has just won and waits for its first acks. Nothing was
                // appended.
                Err(ClientWriteError::ForwardToLeader(forward))
                    if forward.leader_id.is_none() && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(RETRY).await;
                }
                Err(ClientWriteError::ForwardToLeader(_)) => return Err(ProposeError::NotLeader),
                Err(ClientWriteError::LogEntryDiscarded(_)) => return Err(ProposeError::Unknown),
                Err(error) => return Err(ProposeError::Stopped(error.to_string())),
            }
        }
    }

    async fn once(&self, body: EncodedBody) -> Result<WriteResult, ProposeError> {
        let (responder, outcome) = ProgressResponder::complete_only();
        let handed_over = HandedOver::default();
        let stopped = || ProposeError::Stopped("replication is shutting down".into());
        let job = Job { body, responder, handed_over: Arc::clone(&handed_over) };
        self.queue.send(job).await.map_err(|_| stopped())?;
        // A leader that is cut off keeps the entry for as long as it is. The library drops the responder when it
        // shuts down with the entry in flight.
        match tokio::time::timeout(COMMIT_TIMEOUT, outcome).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => match handed_over.get() {
                Some(Err(error)) => Err(error.clone()),
                _ => Err(ProposeError::Unknown),
            },
        }
    }

    fn admit(&self, bytes: usize) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), ProposeError> {
        let refused = |_| {
            metrics::counter!("keystead_raft_proposals_refused").increment(1);
            ProposeError::Overloaded
        };
        let count = self.count.clone().try_acquire_owned().map_err(refused)?;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = self.bytes.clone().try_acquire_many_owned(bytes).map_err(refused)?;
        Ok((count, bytes))
    }
}

/// Takes proposals in bursts. What comes while two bursts are on their way, or a large one, waits for one to end: it
/// becomes one group in the log of every node, one sync and one message, where it would have become many
/// (Nagle's rule, RFC 896). A lone proposal never waits.
async fn run(stamp: Stamp, mut jobs: mpsc::Receiver<Job>) {
    let mut sequence = Sequence::default();
    let bursts = Arc::new(Semaphore::new(BURSTS));
    let mut burst = Vec::new();
    while jobs.recv_many(&mut burst, FULL_BURST).await > 0 {
        let permit = match burst.len() {
            FULL_BURST.. => None,
            _ => tokio::time::timeout(BURST_WAIT, Arc::clone(&bursts).acquire_owned()).await.ok(),
        };
        while burst.len() < FULL_BURST
            && let Ok(job) = jobs.try_recv()
        {
            burst.push(job);
        }
        let mut permit = permit.and_then(Result::ok);
        if let Some(permit) = &mut permit
            && burst.len() > SMALL_BURST
            && let Ok(second) = Arc::clone(&bursts).try_acquire_owned()
        {
            permit.merge(second);
        }
        let permit = Arc::new(permit);
        // Signed first and handed over at once, so that the library finds them together.
        let signed: Vec<_> = burst.drain(..).map(|job| (stamp.sign(&mut sequence, &job.body), job)).collect();
        for (signed, job) in signed {
            // Whoever asked may have gone; the entry goes its way all the same. What is told is told before the responder
            // goes, with which the one who waits wakes.
            let Job { responder, handed_over, .. } = job;
            match signed {
                Ok(signed) => {
                    drop(handed_over.set(Ok(Arc::clone(&permit))));
                    stamp.hand_over(signed, responder).await;
                }
                Err(error) => {
                    drop(handed_over.set(Err(error)));
                    drop(responder);
                }
            }
        }
    }
}

/// The last sequence number of a term.
#[derive(Default)]
struct Sequence {
    term: u64,
    last: u64,
}

impl Sequence {
    fn next(&mut self, term: u64) -> u64 {
        if self.term != term {
            *self = Self { term, last: 0 };
        }
        self.last += 1;
        self.last
    }
}

impl Stamp {
    fn sign(&self, sequence: &mut Sequence, body: &EncodedBody) -> Result<Signed, ProposeError> {
        let leader = self.raft.as_leader().map_err(|_| ProposeError::NotLeader)?;
        let term = leader.term();
        let key_term = self.vault.log_key_term().ok_or(ProposeError::Sealed)?;
        let header = Header {
            cluster_id: self.place.cluster_id,
            epoch: self.place.epoch,
            term,
            sequence: sequence.next(term),
            cluster_time_ms: self.clock.tick_ms(),
            key_term,
        };
        let proposal = entry::encode_command(&header, body, |signed| {
            self.vault.sign_entry(key_term, signed).ok_or(ProposeError::Sealed)
        })?;
        Ok((proposal, leader.to_committed_leader_id()))
    }

    /// A library that has stopped drops the responder, and whether the entry is in the log is not known then.
    async fn hand_over(&self, (proposal, leader): Signed, responder: Responder) {
        if let Err(fatal) = self.raft.write(proposal).with_leader(leader).responder(responder).await {
            tracing::debug!(%fatal, "a proposal met a library that has stopped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_increases_within_a_term_and_begins_anew_in_the_next() {
        let mut sequence = Sequence::default();
        assert_eq!([sequence.next(3), sequence.next(3), sequence.next(4), sequence.next(4)], [1, 2, 1, 2]);
    }
}
