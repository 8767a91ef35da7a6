//! Raft's membership follows the directory.
//!
//! Joining, replacing and removing are each one transaction on the directory. The leader, whoever it is,
//! reconciles Raft's membership to it, step by step and over and over: so a leader's death between two steps
//! loses nothing, and every step may be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::{ChangeMembers, async_runtime::watch::WatchReceiver as _};
use tokio::sync::watch;

use crate::{
    directory::{Directory, DirectoryCache},
    peers::Peers,
    replicated::Leadership,
    types::{Member, Raft},
    vault_side::VaultSide,
};

const TICK: Duration = Duration::from_millis(50);
/// A learner this close to the leader's last entry has caught up.
const CLOSE_ENTRIES: u64 = 64;
/// How long the first promotion waits for a second learner, so that there is no cluster of two voters.
const COMPANY: Duration = Duration::from_secs(3);
/// A peer heard of within this time is reachable.
const REACHABLE: Duration = Duration::from_secs(2);

/// Raft's membership as the reconciler sees it.
#[derive(Debug, Clone, Default)]
struct Now {
    voters: BTreeSet<u64>,
    nodes: BTreeSet<u64>,
    joint: bool,
    names: BTreeMap<u64, String>,
    /// Learners that have caught up and answer.
    ready: BTreeSet<u64>,
}

/// The next step towards the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Complete a joint change that somebody began.
    FinishJoint,
    /// Start replicating to a member.
    AddLearner(u64),
    /// Make exactly these the voters, in one joint change.
    SetVoters(BTreeSet<u64>),
    /// Stop replicating to these.
    RemoveNodes(BTreeSet<u64>),
}

/// What to do next, if anything. Pure: the same view always gives the same step.
fn next_step(
    directory: &Directory,
    now: &Now,
    may_promote: impl Fn(usize, &BTreeSet<u64>) -> bool,
) -> Option<Step> {
    if now.joint {
        return Some(Step::FinishJoint);
    }
    if let Some(new) = directory.members.iter().find(|m| !now.nodes.contains(&m.incarnation)) {
        return Some(Step::AddLearner(new.incarnation));
    }
    let wanted = |id: &u64| directory.member(*id).is_some_and(|m| m.voter);
    let promoted: BTreeSet<u64> =
        now.ready.iter().filter(|id| wanted(id) && !now.voters.contains(id)).copied().collect();
    let mut target: BTreeSet<u64> = now.voters.iter().filter(|id| wanted(id)).copied().collect();
    // A voter whose place has been taken by a new incarnation goes in the same joint change in which that one
    // comes, never before.
    target.extend(now.voters.iter().filter(|id| !wanted(id) && successor_pending(directory, now, **id)));
    if !promoted.is_empty() && may_promote(target.len(), &promoted) {
        target.extend(&promoted);
    }
    if target != now.voters && !target.is_empty() {
        return Some(Step::SetVoters(target));
    }
    let gone: BTreeSet<u64> = now
        .nodes
        .iter()
        .filter(|id| directory.member(**id).is_none() && !now.voters.contains(id))
        .copied()
        .collect();
    (!gone.is_empty()).then_some(Step::RemoveNodes(gone))
}

fn successor_pending(directory: &Directory, now: &Now, old: u64) -> bool {
    let Some(name) = now.names.get(&old) else { return false };
    directory.by_node_id(name).is_some_and(|new| {
        new.voter
            && new.incarnation != old
            && !now.ready.contains(&new.incarnation)
            && !now.voters.contains(&new.incarnation)
    })
}

/// The task that runs on every node and works on the leader.
pub struct Reconciler {
    /// This node's Raft id.
    pub incarnation: u64,
    /// The library.
    pub raft: Raft,
    /// What Raft's membership should be.
    pub directory: Arc<DirectoryCache>,
    /// What was heard of the others.
    pub peers: Arc<Peers>,
    /// Whether this node is open: only an open leader changes membership.
    pub vault: Arc<dyn VaultSide>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
}

impl Reconciler {
    /// Runs until the raft runtime stops.
    pub async fn run(self) {
        let mut ready_since: BTreeMap<u64, Instant> = BTreeMap::new();
        loop {
            tokio::time::sleep(TICK).await;
            let leads = self.leadership.borrow().is_self;
            let directory = self.directory.current();
            if !leads || !self.vault.is_open() || directory.members.is_empty() {
                ready_since.clear();
                continue;
            }
            let now = self.now();
            ready_since.retain(|id, _| now.ready.contains(id));
            for id in &now.ready {
                ready_since.entry(*id).or_insert_with(Instant::now);
            }
            let stable = Duration::from_millis(directory.autopilot.server_stabilization_ms);
            let step = next_step(&directory, &now, |voters, promoted| {
                may_promote(voters, promoted, &ready_since, stable)
            });
            if let Some(step) = step {
                self.take(&directory, step).await;
            }
        }
    }

    fn now(&self) -> Now {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let close = |id: &u64| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id)).cloned().flatten();
            matched.is_some_and(|at| at.index + CLOSE_ENTRIES >= last)
        };
        let ready = membership
            .learner_ids()
            .filter(|id| close(id) && self.peers.heard_within(*id, REACHABLE))
            .collect();
        Now {
            voters: membership.voter_ids().collect(),
            nodes: membership.nodes().map(|(id, _)| *id).collect(),
            joint: membership.get_joint_config().len() > 1,
            names: membership.nodes().map(|(id, node)| (*id, node.node_id.clone())).collect(),
            ready,
        }
    }

    async fn take(&self, directory: &Directory, step: Step) {
        let result = match &step {
            Step::FinishJoint => {
                let nothing = ChangeMembers::AddVoterIds(BTreeSet::new());
                self.raft.change_membership(nothing, false).await.map(drop)
            }
            Step::AddLearner(id) => {
                let node_id = directory.member(*id).map(|m| m.node_id.clone()).unwrap_or_default();
                self.raft.add_learner(*id, Member { node_id }, false).await.map(drop)
            }
            Step::SetVoters(voters) => {
                let all = ChangeMembers::ReplaceAllVoters(voters.clone());
                // Who is demoted goes on learning; who is gone goes at once, or with the next step.
                let mut lost = self.raft.voter_ids().filter(|id| !voters.contains(id));
                let learns = lost.any(|id| directory.member(id).is_some());
                self.raft.change_membership(all, learns).await.map(drop)
            }
            Step::RemoveNodes(ids) => {
                self.raft.change_membership(ChangeMembers::RemoveNodes(ids.clone()), false).await.map(drop)
            }
        };
        match result {
            Ok(()) => {
                metrics::counter!("keystead_raft_membership_changes").increment(1);
                tracing::info!(step = describe(directory, &step), "membership changed");
            }
            Err(error) => tracing::debug!(%error, ?step, "membership change not taken yet"),
        }
    }
}

fn describe(directory: &Directory, step: &Step) -> String {
    let name = |id: &u64| {
        directory.member(*id).map_or_else(|| format!("{id:016x}"), |member| member.node_id.clone())
    };
    let names = |ids: &BTreeSet<u64>| ids.iter().map(name).collect::<Vec<_>>().join(", ");
    match step {
        Step::FinishJoint => "finish a joint change".into(),
        Step::AddLearner(id) => format!("{} added as a learner", name(id)),
        Step::SetVoters(ids) => format!("voters are {}", names(ids)),
        Step::RemoveNodes(ids) => format!("{} removed", names(ids)),
    }
}

/// `stable` is how long a learner must have been plainly healthy before it becomes the fourth voter or a later one.
fn may_promote(
    voters: usize,
    promoted: &BTreeSet<u64>,
    since: &BTreeMap<u64, Instant>,
    stable: Duration,
) -> bool {
    let oldest =
        promoted.iter().filter_map(|id| since.get(id)).map(Instant::elapsed).max().unwrap_or_default();
    match voters {
        1 => promoted.len() > 1 || oldest >= COMPANY,
        2 => true,
        _ => oldest >= stable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::DirectoryMember;

    fn directory(members: &[(u64, &str)]) -> Directory {
        let members = members
            .iter()
            .map(|(incarnation, node_id)| DirectoryMember {
                incarnation: *incarnation,
                node_id: (*node_id).into(),
                spki_sha256: [0; 32],
                cluster_addr: String::new(),
                api_addr: String::new(),
                voter: true,
                feature_level: 1,
                joined_ms: 0,
            })
            .collect();
        Directory { members, ..Directory::default() }
    }

    fn now(voters: &[u64], learners: &[u64], ready: &[u64]) -> Now {
        let nodes: BTreeSet<u64> = voters.iter().chain(learners).copied().collect();
        Now {
            voters: voters.iter().copied().collect(),
            names: nodes.iter().map(|id| (*id, format!("n{}", id % 10))).collect(),
            nodes,
            joint: false,
            ready: ready.iter().copied().collect(),
        }
    }

    fn always(_: usize, _: &BTreeSet<u64>) -> bool {
        true
    }

    #[test]
    fn a_member_first_learns_then_votes() {
        let directory = directory(&[(1, "n1"), (2, "n2")]);
        assert_eq!(next_step(&directory, &now(&[1], &[], &[]), always), Some(Step::AddLearner(2)));
        assert_eq!(next_step(&directory, &now(&[1], &[2], &[]), always), None);
        let all = BTreeSet::from([1, 2]);
        assert_eq!(next_step(&directory, &now(&[1], &[2], &[2]), always), Some(Step::SetVoters(all)));
        assert_eq!(next_step(&directory, &now(&[1, 2], &[], &[]), always), None);
    }

    #[test]
    fn a_half_done_joint_change_is_finished_first() {
        let mut now = now(&[1], &[], &[]);
        now.joint = true;
        assert_eq!(next_step(&directory(&[(1, "n1"), (2, "n2")]), &now, always), Some(Step::FinishJoint));
    }

    #[test]
    fn a_wiped_node_is_replaced_in_one_joint_change() {
        let directory = directory(&[(1, "n1"), (2, "n2"), (13, "n3")]);
        // The old incarnation 3 of n3 keeps its vote until 13 has caught up.
        assert_eq!(next_step(&directory, &now(&[1, 2, 3], &[13], &[]), always), None);
        let swapped = BTreeSet::from([1, 2, 13]);
        let step = next_step(&directory, &now(&[1, 2, 3], &[13], &[13]), always);
        assert_eq!(step, Some(Step::SetVoters(swapped)));
        let step = next_step(&directory, &now(&[1, 2, 13], &[3], &[]), always);
        assert_eq!(step, Some(Step::RemoveNodes(BTreeSet::from([3]))));
    }

    #[test]
    fn a_removed_member_loses_its_vote_at_once() {
        let step = next_step(&directory(&[(1, "n1"), (2, "n2")]), &now(&[1, 2, 3], &[], &[]), always);
        assert_eq!(step, Some(Step::SetVoters(BTreeSet::from([1, 2]))));
    }

    #[test]
    fn an_empty_set_of_voters_is_never_proposed() {
        assert_eq!(next_step(&directory(&[]), &now(&[1], &[], &[]), always), None);
    }

    #[test]
    fn the_first_promotion_waits_for_company() {
        let fresh = BTreeMap::from([(2, Instant::now()), (3, Instant::now())]);
        assert!(!may_promote(1, &BTreeSet::from([2]), &fresh, Duration::from_secs(10)));
        assert!(may_promote(1, &BTreeSet::from([2, 3]), &fresh, Duration::from_secs(10)));
        assert!(may_promote(2, &BTreeSet::from([2]), &fresh, Duration::from_secs(10)));
        assert!(!may_promote(3, &BTreeSet::from([2]), &fresh, Duration::from_secs(10)));
    }
}
