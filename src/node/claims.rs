//! Who may initialise: of nodes that know of each other, one.
//!
//! Without a vault there is no leader to ask, so the nodes ask each other. Whoever is told to initialise *announces* it to
//! every `retry_join` address, makes its keys, and *commits* at every one before it writes anything, and also before it has
//! seals make keys, which several nodes may share. A node grants a commit to one claim at a time, so two that have a node in common, or of which one knows the other, never both succeed.
//! Of two claims the smaller goes first: the larger one is refused where both are known, so that one of them gets
//! through. A node that cannot be asked is left out, for a node that is down must not keep a vault from being made.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use keystead_raft::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{Node, join::JoinTarget};
use crate::core::error::ApiError;

/// How long another node's claim counts after it was last heard of.
const LEASE: Duration = Duration::from_secs(30);
/// Claims that are known at a time, at most.
const MAX_CLAIMS: usize = 64;
/// How long one node may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long to ask again while a claim that comes later holds a node.
const CONTEND: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// The endpoint.
const PATH: &str = "/v1/sys/storage/raft/bootstrap/claim";

/// What a node says to the others before it initialises, in this order; the last one when it gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Announce,
    Commit,
    Withdraw,
}

impl Step {
    const ALL: [Self; 3] = [Self::Announce, Self::Commit, Self::Withdraw];

    fn name(self) -> &'static str {
        match self {
            Self::Announce => "announce",
            Self::Commit => "commit",
            Self::Withdraw => "withdraw",
        }
    }
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Granted,
    /// It belongs to a vault, or knows of one to join.
    Initialised,
    /// Another claim counts here.
    Held {
        /// Whose it is.
        node_id: String,
        /// It goes before the one that was asked for, so asking again is of no use.
        goes_first: bool,
    },
}

struct Claim {
    node_id: String,
    committed: bool,
    /// `None` for this node's own, which counts for as long as it initialises.
    until: Option<Instant>,
}

/// The claims that a node knows of, its own among them, by their numbers: the smallest goes first.
#[derive(Default)]
pub struct Claims(Mutex<BTreeMap<u64, Claim>>);

impl Claims {
    fn judge(&self, step: Step, number: u64, node_id: &str, own: bool, now: Instant) -> Verdict {
        let mut known = self.0.lock();
        known.retain(|_, claim| claim.until.is_none_or(|until| until > now));
        if step == Step::Withdraw {
            known.remove(&number);
            return Verdict::Granted;
        }
        let mut others = known.iter().filter(|(other, _)| **other != number);
        let held = |claim: &Claim, goes_first| Verdict::Held { node_id: claim.node_id.clone(), goes_first };
        if let Some((other, first)) = others.next() {
            if *other < number {
                return held(first, true);
            }
            if let Some(claim) =
                std::iter::once(first).chain(others.map(|(_, claim)| claim)).find(|c| c.committed)
            {
                return held(claim, false);
            }
        }
        let before = known.get(&number);
        let own = own || before.is_some_and(|claim| claim.until.is_none());
        let committed = step == Step::Commit || before.is_some_and(|claim| claim.committed);
        if before.is_none() && known.len() >= MAX_CLAIMS {
            return Verdict::Held { node_id: "many others".to_owned(), goes_first: false };
        }
        let until = (!own).then_some(now + LEASE);
        known.insert(number, Claim { node_id: node_id.to_owned(), committed, until });
        Verdict::Granted
    }
}

/// A claim that was announced; it is withdrawn when this is dropped.
pub struct Claimed<'a> {
    node: &'a Node,
    number: u64,
    done: bool,
}

impl Claimed<'_> {
    /// Makes sure that no other node initialises until this one has: nothing may be written before.
    ///
    /// # Errors
    /// 400: another node does, or has.
    pub async fn commit(&self) -> Result<(), ApiError> {
        self.node.contend(Step::Commit, self.number).await
    }

    /// The vault is made: whoever asks is told so, and needs no withdrawal.
    pub fn keep(mut self) {
        self.done = true;
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        let node = self.node;
        node.claims.judge(Step::Withdraw, self.number, "", true, Instant::now());
        if self.done {
            return;
        }
        let (node, number) = (node.arc(), self.number);
        tokio::spawn(async move {
            let targets = node.targets.read().clone();
            join_all(targets.iter().map(|target| node.ask_leave(target, Step::Withdraw, number))).await;
        });
    }
}

impl Node {
    /// Announces that this node initialises a vault.
    ///
    /// # Errors
    /// 400: another node does, or has.
    pub(super) async fn claim_vault(&self) -> Result<Claimed<'_>, ApiError> {
        let (number, _, _) = self.joining.lock().credentials();
        let claimed = Claimed { node: self, number, done: false };
        self.contend(Step::Announce, number).await?;
        Ok(claimed)
    }

    /// Takes one step everywhere, again and again while a claim that comes later is in the way: that one gives up.
    async fn contend(&self, step: Step, number: u64) -> Result<(), ApiError> {
        let deadline = Instant::now() + CONTEND;
        let targets = self.targets.read().clone();
        let here = ("this node".to_owned(), self.settings.node_id.clone());
        loop {
            let own = self.claims.judge(step, number, &here.1, true, Instant::now());
            let asked = targets.iter().map(|target| self.ask_leave(target, step, number));
            let answers = join_all(asked).await;
            let names = targets.iter().map(|target| target.address.clone());
            let answers = names.zip(answers).filter_map(|(name, verdict)| Some((name, verdict?)));
            let all: Vec<_> = std::iter::once((here.0.clone(), own)).chain(answers).collect();
            if let Some((address, _)) = all.iter().find(|(_, verdict)| *verdict == Verdict::Initialised) {
                return Err(ApiError::invalid(format!(
                    "Vault is already initialized: the node at {address} is; unseal that one, and this one joins it when it is given the same shares, or its seals open that vault"
                )));
            }
            let held = all.into_iter().filter_map(|(address, verdict)| match verdict {
                Verdict::Held { node_id, goes_first } => Some((goes_first, address, node_id)),
                Verdict::Granted | Verdict::Initialised => None,
            });
            // One that goes first decides.
            let Some((goes_first, address, node_id)) = held.max() else { return Ok(()) };
            if goes_first || Instant::now() >= deadline {
                return Err(ApiError::invalid(format!(
                    "Vault is already initialized, or about to be: the node {node_id} initialises it at this moment, says {address}; this node joins that vault when it is given the same shares, or its seals open it. Should that initialisation fail, init again in half a minute"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What one node says; `None` if it does not answer, or not so.
    fn ask_leave<'a>(
        &'a self,
        target: &'a JoinTarget,
        step: Step,
        number: u64,
    ) -> BoxFuture<'a, Option<Verdict>> {
        Box::pin(async move {
            let body = json!({
                "step": step.name(),
                "claim": format!("{number:016x}"),
                "server_id": self.settings.node_id,
            });
            let body = Bytes::from(body.to_string());
            let asked = target.client.request("PUT", PATH, Some(body), &[]);
            let response = match tokio::time::timeout(ANSWER, asked).await {
                Ok(Ok(response)) if response.status.is_success() => response,
                Ok(Ok(response)) => {
                    tracing::warn!(address = target.address, status = %response.status, "this node was not told whether it may initialise");
                    return None;
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::info!(
                        address = target.address,
                        "a node could not be asked whether it initialises, too"
                    );
                    return None;
                }
            };
            let answer: Value = serde_json::from_slice(&response.body).ok()?;
            let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let flag = |name: &str| answer.get(name).and_then(Value::as_bool).unwrap_or(false);
            Some(match () {
                () if flag("initialized") => Verdict::Initialised,
                () if flag("granted") => Verdict::Granted,
                () => Verdict::Held { node_id: text("held_by"), goes_first: flag("goes_first") },
            })
        })
    }

    /// `sys/storage/raft/bootstrap/claim`: another node is about to initialise.
    pub(super) fn judge_claim(&self, body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        let invalid = || ApiError::invalid("invalid claim given");
        let step = Step::ALL.into_iter().find(|step| step.name() == text("step")).ok_or_else(invalid)?;
        let number = u64::from_str_radix(text("claim"), 16).map_err(|_| invalid())?;
        let node_id = text("server_id");
        if node_id.is_empty() || node_id.len() > keystead_tls::peer::NODE_ID_MAX_BYTES {
            return Err(invalid());
        }
        let known = self.replica().is_some() || !self.seal_configs()?.is_empty();
        let verdict = match step {
            Step::Announce | Step::Commit if known => Verdict::Initialised,
            _ => self.claims.judge(step, number, node_id, false, Instant::now()),
        };
        let answer = match verdict {
            Verdict::Granted => json!({ "granted": true }),
            Verdict::Initialised => json!({ "granted": false, "initialized": true }),
            Verdict::Held { node_id, goes_first } => {
                json!({ "granted": false, "held_by": node_id, "goes_first": goes_first })
            }
        };
        Ok(answer.as_object().cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(node_id: &str, goes_first: bool) -> Verdict {
        Verdict::Held { node_id: node_id.to_owned(), goes_first }
    }

    #[test]
    fn a_commit_is_granted_to_one_claim_and_the_smaller_goes_first() {
        let claims = Claims::default();
        let now = Instant::now();
        let say = |step, number: u64| claims.judge(step, number, &format!("n{number}"), false, now);
        assert_eq!(say(Step::Announce, 2), Verdict::Granted);
        assert_eq!(say(Step::Announce, 1), Verdict::Granted, "nothing is committed yet");
        assert_eq!(say(Step::Commit, 2), held("n1", true));
        assert_eq!(say(Step::Commit, 1), Verdict::Granted);
        assert_eq!(say(Step::Commit, 1), Verdict::Granted, "again, if its answer was lost");
        assert_eq!(say(Step::Commit, 2), held("n1", true));
        assert_eq!(say(Step::Announce, 0), held("n1", false), "committed before");
        assert_eq!(say(Step::Withdraw, 1), Verdict::Granted);
        assert_eq!(say(Step::Announce, 0), Verdict::Granted);
        assert_eq!(say(Step::Commit, 0), Verdict::Granted);
    }

    #[test]
    fn in_no_order_of_steps_do_two_nodes_get_a_commit_from_the_same_one() {
        // Every interleaving of two claims' two steps each.
        for order in 0..16_u32 {
            let claims = Claims::default();
            let mut granted = [false; 2];
            let mut next = [0; 2];
            for turn in 0..4 {
                let mut who = usize::from(order & (1 << turn) != 0);
                if next[who] == 2 {
                    who = 1 - who;
                }
                let step = Step::ALL[next[who]];
                next[who] += 1;
                let number = who as u64 + 1;
                let verdict = claims.judge(step, number, "n", false, Instant::now());
                granted[who] |= step == Step::Commit && verdict == Verdict::Granted;
            }
            assert!(granted[0] != granted[1], "{order:04b}: {granted:?}");
        }
    }

    #[test]
    fn claims_of_others_lapse_and_the_own_one_does_not() {
        let claims = Claims::default();
        let now = Instant::now();
        claims.judge(Step::Commit, 1, "other", false, now);
        let later = now + LEASE + Duration::from_millis(1);
        assert_eq!(claims.judge(Step::Commit, 2, "me", true, now), held("other", true));
        assert_eq!(claims.judge(Step::Commit, 2, "me", true, later), Verdict::Granted);
        // It may ask itself as well, where retry_join names every node.
        assert_eq!(claims.judge(Step::Commit, 2, "me", false, later), Verdict::Granted);
        assert_eq!(claims.judge(Step::Announce, 3, "third", false, later + LEASE * 9), held("me", true));
    }

    #[test]
    fn a_flood_of_claims_takes_no_more_memory_than_its_bound() {
        let claims = Claims::default();
        let now = Instant::now();
        for number in (0..10_000).rev() {
            claims.judge(Step::Announce, number, "n", false, now);
        }
        assert_eq!(claims.0.lock().len(), MAX_CLAIMS);
    }
}
