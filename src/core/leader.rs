//! A write on the leader: latch, run, propose, and again if something it had read changed meanwhile.

use std::sync::Arc;

use keystead_raft::{ProposeError, ProposeOutcome, Replicated};

use super::{
    Core, MAX_RERUNS,
    error::ApiError,
    mounts::MountTable,
    node_ops::Unsealed,
    request::{Operation, Request},
    response::{Answer, Response},
    router::{Handler, Route},
    txn::{Transaction, open_response},
};
use crate::{barrier::MountId, engines};

/// What writes are ordered by: the mount, and the key below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LatchKey {
    mount: MountId,
    key: String,
}

/// How an attempt on a leader ended.
#[derive(Debug, Clone)]
pub(super) enum Led {
    /// With an answer.
    Answered(Result<Answer, ApiError>),
    /// This node does not lead (any more); nothing was executed.
    NotLeader,
    /// It may have been executed; the next leader knows.
    Unknown,
}

impl From<ApiError> for Led {
    fn from(error: ApiError) -> Self {
        Self::Answered(Err(error))
    }
}

impl Core {
    /// Executes a request if this node leads. One that is in flight already is joined, not run again.
    ///
    /// # Cancel safety
    /// The request runs in a task of its own, and its latch is held to the end, whoever waits for it.
    pub(super) async fn lead(self: &Arc<Self>, request: Arc<Request>, route: &Route) -> Led {
        let (first, outcome) = self.inflight.enter(request.id);
        if let Some(leading) = first {
            let (core, route) = (Arc::clone(self), *route);
            self.runtime.spawn(async move {
                let led = core.lead_now(&request, &route).await.unwrap_or_else(Led::from);
                leading.finish(led);
            });
        }
        match outcome.outcome().await {
            Some(led) => led,
            // A panic, and no request panics once it has been proposed: what comes after only waits.
            None => Led::Answered(Err(ApiError::Internal("internal error".to_owned()))),
        }
    }

    async fn lead_now(&self, request: &Request, route: &Route) -> Result<Led, ApiError> {
        let (unsealed, replica) = self.open()?;
        if !replica.leadership().borrow().is_self {
            return Ok(Led::NotLeader);
        }
        if request.retry
            && let Some(led) = remembered(request, &unsealed, &*replica)?
        {
            return Ok(led);
        }
        let members = match route.handler {
            Handler::StepDown | Handler::RemovePeer | Handler::Promote | Handler::Demote => true,
            Handler::AutopilotConfig => request.operation.writes(),
            _ => false,
        };
        if members {
            return Ok(match self.read(request, route).await {
                Ok(_) => self.change_members(request, route.handler).await,
                Err(error) => error.into(),
            });
        }
        if matches!(
            route.handler,
            Handler::SealSync
                | Handler::RaftChallenge
                | Handler::RaftAnswer
                | Handler::BreakGlassChange
                | Handler::Rekey
                | Handler::GenerateRoot
                | Handler::SnapshotRestore
                | Handler::RaftVerify
                | Handler::Rotate
        ) {
            return Ok(self.lead_effect(request, route).await);
        }
        let _latched = match self.latch_key(request, route, &unsealed, &*replica)? {
            Some(key) => Some(self.latches.acquire(key).await),
            None => None,
        };
        for _ in 0..=MAX_RERUNS {
            if let Some(led) = self.attempt(request, route, &unsealed, &*replica).await? {
                return Ok(led);
            }
            metrics::counter!("keystead_core_conflicts_total").increment(1);
            self.mounts.clear();
        }
        Err(ApiError::Busy("too many conflicting writes; try again".to_owned()))
    }

    /// Runs a request once. `None` when what it read had changed before the end.
    async fn attempt(
        &self,
        request: &Request,
        route: &Route,
        unsealed: &Unsealed,
        replica: &dyn Replicated,
    ) -> Result<Option<Led>, ApiError> {
        let mut txn =
            Transaction::new(Arc::clone(&unsealed.barrier), replica.state(), replica.cluster_time_ms());
        let result = self.run(request, route, unsealed, &mut txn);
        if result.is_err() {
            txn.discard_writes();
        }
        match result {
            // What is answered to a request that comes again goes through the log even if it changes nothing: an
            // earlier attempt may still be on its way, held up in a network, and then has to find its answer
            // there and not run on a state that the client has gone on from.
            result if txn.writes() > 0 || (request.retry && request.operation.writes()) => {
                if txn.writes() > 0 {
                    check_room(request.operation, &txn, replica)?;
                }
                let response = Response { id: request.id, result };
                let entry = txn.into_entry(request.id, &response)?;
                let outcome = replica.propose(entry).await;
                Ok(concluded(outcome, response, unsealed)?)
            }
            result => {
                // Nothing to write, so nothing goes through the log that could prove what was read. The
                // barrier after the reads does: whatever still holds then was true when it was met.
                let Ok(barrier) = replica.read_barrier().await else {
                    return Ok(Some(Led::NotLeader));
                };
                if !txn.still_holds()? {
                    return Ok(None);
                }
                if !replica.confirm_read(&barrier) {
                    return Ok(Some(Led::NotLeader));
                }
                Ok(Some(Led::Answered(result)))
            }
        }
    }

    /// What changes the cluster and not the state, after the caller was found allowed to do it.
    async fn lead_effect(&self, request: &Request, route: &Route) -> Led {
        if let Err(error) = self.read(request, route).await {
            return error.into();
        }
        let result = match route.handler {
            Handler::RaftChallenge => {
                self.node().raft_challenge(request.data.clone()).await.map(Answer::data)
            }
            Handler::SealSync => self.seal_sync(request).await,
            Handler::RaftAnswer => self.node().raft_answer(request.data.clone()).await.map(Answer::data),
            Handler::BreakGlassChange => self.change_break_glass(request).await,
            Handler::Rekey => self.rekey(request).await,
            Handler::GenerateRoot => self.generate_root(request).await,
            Handler::SnapshotRestore => self.restore_snapshot(request).await,
            Handler::RaftVerify => self.verify_members(request).await,
            _ => self.node().rotate().await.map(|()| Answer::NoContent),
        };
        Led::Answered(result)
    }

    fn latch_key(
        &self,
        request: &Request,
        route: &Route,
        unsealed: &Unsealed,
        replica: &dyn Replicated,
    ) -> Result<Option<LatchKey>, ApiError> {
        match route.handler {
            Handler::Mount | Handler::Remount => {
                Ok(Some(LatchKey { mount: MountId::VAULT, key: MountTable::LATCH.to_owned() }))
            }
            Handler::Engine => {
                let mut txn = Transaction::new(Arc::clone(&unsealed.barrier), replica.state(), 0);
                let table = self.mounts().table(&unsealed.barrier, &mut txn)?;
                let found = table.route(request.path.as_str());
                Ok(found.map(|(mount, rest)| LatchKey {
                    mount: mount.id,
                    key: engines::latch(mount, rest).to_owned(),
                }))
            }
            _ => Ok(None),
        }
    }
}

/// Refuses what grows while there is no room for it. The refusal is an answer like any other: it is given again to
/// whoever repeats the request, until there is room.
fn check_room(operation: Operation, txn: &Transaction, replica: &dyn Replicated) -> Result<(), ApiError> {
    let Some(shortage) = replica.shortage() else { return Ok(()) };
    if shortage.deletes && (operation == Operation::Delete || txn.deletes()) {
        return Ok(());
    }
    metrics::counter!("keystead_core_writes_refused_disk_full_total").increment(1);
    Err(ApiError::DiskFull(shortage.to_string()))
}

/// What is remembered of an earlier attempt at the same request.
fn remembered(
    request: &Request,
    unsealed: &Unsealed,
    replica: &dyn Replicated,
) -> Result<Option<Led>, ApiError> {
    let state = replica.state();
    // The floor is read first: an id that is evicted between the two reads would else look as if it had never
    // been there.
    let floor = state.window_floor();
    if let Some((_, sealed)) = state.request(request.id) {
        let response = open_response(&unsealed.barrier, request.id, &sealed)?;
        return Ok(Some(Led::Answered(response.result)));
    }
    let floor = floor.max(state.window_floor());
    Ok((request.base_index < floor).then_some(Led::Answered(Err(ApiError::OutcomeUnknown))))
}

/// What the outcome of a proposal means. `None` is a conflict.
fn concluded(
    outcome: Result<ProposeOutcome, ProposeError>,
    response: Response,
    unsealed: &Unsealed,
) -> Result<Option<Led>, ApiError> {
    Ok(Some(match outcome {
        Ok(ProposeOutcome::Applied(_)) => Led::Answered(response.result),
        Ok(ProposeOutcome::Duplicate { response: sealed, .. }) => {
            Led::Answered(open_response(&unsealed.barrier, response.id, &sealed)?.result)
        }
        Ok(ProposeOutcome::Conflict { .. }) => return Ok(None),
        Err(ProposeError::NotLeader | ProposeError::Sealed) => Led::NotLeader,
        Err(ProposeError::Overloaded) => {
            ApiError::Busy("too many writes in flight; try again".to_owned()).into()
        }
        Err(error @ ProposeError::TooLarge { .. }) => {
            ApiError::TooLarge(format!("put failed due to value being too large: {error}")).into()
        }
        Err(error @ ProposeError::TooManyOperations { .. }) => ApiError::TooLarge(error.to_string()).into(),
        // Replication that stops takes what was in flight with it, so this, too, may have been executed.
        Err(ProposeError::Unknown | ProposeError::Stopped(_)) => Led::Unknown,
    }))
}
