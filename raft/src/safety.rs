//! What a cluster can do without: whether a node may be stopped, removed or demoted, and stepping down.

use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver as _;

use crate::{
    directory::Directory,
    replica::{JoinError, Replica},
    shared::Shared,
    standing::Standing,
};

/// A voter heard of within this time is reachable.
const REACHABLE: Duration = Duration::from_secs(3);
/// How long a voter that is to go may take to lose its vote.
const LOSES_VOTE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// How long a leader that is to step down waits for somebody who can take over.
const STEP_DOWN: Duration = Duration::from_secs(10);

/// Whether a node may be stopped now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Safety {
    /// The node, by the operator's name of its place.
    pub node_id: String,
    /// It leads: leadership would be handed over first.
    pub leads: bool,
    /// Why not; empty if it may.
    pub reasons: Vec<String>,
    /// What does not stand in the way and deserves a look.
    pub warnings: Vec<String>,
}

/// Why a leader goes on leading.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepDownError {
    /// It does not lead (any more).
    #[error("this node is not the leader")]
    NotLeader,
    /// Nobody can take over.
    #[error("nobody can take over leadership: {0}")]
    NoHeir(String),
}

/// A voter other than the one that is to go.
#[derive(Debug, Clone)]
struct Other {
    node_id: String,
    /// How long it has been silent; zero of the node that judges.
    silent: Duration,
    standing: Standing,
    /// Log entries it lacks; `None` if that is not known.
    behind: Option<u64>,
}

impl Other {
    /// Why it could not decide with others on what is written, if it could not.
    fn unable(&self, max_behind: u64) -> Option<String> {
        let name = &self.node_id;
        if self.silent > REACHABLE {
            return Some(format!("{name} has not been heard of for {} s", self.silent.as_secs()));
        }
        if self.standing.disk_full {
            return Some(format!("the disk of {name} is full"));
        }
        match self.behind {
            None => Some(format!("how far {name} is behind is not known yet")),
            Some(behind) if behind > max_behind => Some(format!("{name} is {behind} log entries behind")),
            Some(_) => None,
        }
    }
}

/// Judges whether `node_id` may stop. `others` are the voters but for it, `voter` says whether it is one.
fn judge(node_id: &str, voter: bool, leads: bool, others: &[Other], max_behind: u64) -> Safety {
    let mut safety = Safety { node_id: node_id.to_owned(), leads, ..Safety::default() };
    let voters = others.len() + usize::from(voter);
    let needed = voters / 2 + 1;
    let unable: Vec<String> = others.iter().filter_map(|other| other.unable(max_behind)).collect();
    let able: Vec<&Other> = others.iter().filter(|other| other.unable(max_behind).is_none()).collect();
    if voter && able.len() < needed {
        let why = if unable.is_empty() { String::new() } else { format!(": {}", unable.join("; ")) };
        safety.reasons.push(format!(
            "the quorum would be lost: {} of {voters} voters would be left that can decide, {needed} are needed{why}",
            able.len()
        ));
    } else {
        safety.warnings.extend(unable);
    }
    if voter && able.iter().all(|other| other.standing.sealed) {
        let names: Vec<&str> = able.iter().map(|other| other.node_id.as_str()).collect();
        let sealed = match names.is_empty() {
            true => "there is no other voter that could".to_owned(),
            false => format!("{} sealed; unseal one first", are(&names)),
        };
        safety.reasons.push(format!("nobody would be left to serve requests: {sealed}"));
    }
    for other in &able {
        if other.standing.sealed {
            safety.warnings.push(format!("{} is sealed", other.node_id));
        }
        if other.standing.disk_slow {
            safety.warnings.push(format!("syncs of {}'s disk hang", other.node_id));
        }
        if other.standing.disk_low {
            safety.warnings.push(format!("the disk of {} is almost full", other.node_id));
        }
    }
    safety
}

fn are(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

impl Shared {
    fn others(&self, but: u64) -> Vec<Other> {
        let (last, matched) = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_log.map_or(0, |last| last.index), metrics.replication.clone().unwrap_or_default())
        };
        let directory = self.directory.current();
        let voters = self.raft.voter_ids().filter(|id| *id != but);
        let other = |id: u64| {
            let own = id == self.myself.incarnation;
            let status = self.peers.status(id);
            let silent =
                status.as_ref().map_or_else(|| self.started.elapsed(), |status| status.heard.elapsed());
            let matched = matched.get(&id).and_then(|at| at.as_ref().map(|at| at.index));
            Other {
                node_id: directory.member(id).map_or_else(|| format!("{id:016x}"), |m| m.node_id.clone()),
                silent: if own { Duration::ZERO } else { silent },
                standing: if own { self.own.now() } else { status.map(|s| s.standing).unwrap_or_default() },
                behind: if own { Some(0) } else { matched.map(|at| last.saturating_sub(at)) },
            }
        };
        voters.map(other).collect()
    }

    /// Whether a member may be stopped, as the leader sees it; `None` if there is no such member.
    pub fn safe_to_stop(&self, node_id: &str) -> Option<Safety> {
        let directory = self.directory.current();
        let member = directory.by_node_id(node_id)?;
        let id = member.incarnation;
        let voters: Vec<u64> = self.raft.voter_ids().collect();
        let voter = voters.contains(&id);
        let leads = self.leadership.borrow().leader.as_ref().is_some_and(|leader| leader.incarnation == id);
        let others = self.others(id);
        let mut safety = judge(node_id, voter, leads, &others, directory.autopilot.max_trailing_logs);
        // Learners that are on their way to a vote change nothing; members that lost theirs do.
        let leaving = voters.iter().any(|id| directory.member(*id).is_none_or(|member| !member.voter));
        if leaving {
            safety.reasons.push("a change of members is under way; ask again in a moment".to_owned());
        }
        Some(safety)
    }

    /// Why nobody can take over.
    fn why_no_heir(&self) -> String {
        let others = self.others(self.myself.incarnation);
        if others.is_empty() {
            return "there is no other voter".to_owned();
        }
        let reason = |other: &Other| match other.unable(0) {
            Some(why) => why,
            None if other.standing.sealed => format!("{} is sealed", other.node_id),
            None => format!("{} was asked and did not", other.node_id),
        };
        others.iter().map(reason).collect::<Vec<_>>().join("; ")
    }

    /// Whether both the present voters and those that would be left can still decide.
    pub fn check_removable(&self, directory: &Directory, node_id: &str, gone: u64) -> Result<(), JoinError> {
        let voters: Vec<u64> = self.raft.voter_ids().collect();
        let alive = |id: &&u64| **id == self.myself.incarnation || self.peers.heard_within(**id, REACHABLE);
        // Raft's membership follows the directory a moment later: what that has lost already counts as gone.
        let stays = |id: &u64| *id != gone && directory.member(*id).is_some_and(|member| member.voter);
        let left: Vec<u64> = voters.iter().copied().filter(stays).collect();
        if left.is_empty() {
            return Err(JoinError::LastVoter);
        }
        let decides = |all: &[u64]| all.iter().filter(alive).count() > all.len() / 2;
        if !voters.contains(&gone) || (decides(&voters) && decides(&left)) {
            return Ok(());
        }
        let reachable = voters.iter().filter(alive).count();
        Err(JoinError::Unsafe { node_id: node_id.into(), reachable, voters: voters.len() })
    }

    /// Takes a member out. `false` if there is none.
    ///
    /// A voter loses its vote first: nobody talks to a member that is out, and the change of voters may need its word.
    pub async fn remove_incarnation(&self, incarnation: u64) -> Result<bool, JoinError> {
        let votes = || self.raft.voter_ids().any(|id| id == incarnation);
        let voter = |directory: &Directory| directory.member(incarnation).is_some_and(|member| member.voter);
        if votes() || voter(&self.directory.current()) {
            self.change_directory(|directory| {
                let Some(member) = directory.members.iter().position(|m| m.incarnation == incarnation) else {
                    return Ok(false);
                };
                self.check_removable(directory, &directory.members[member].node_id, incarnation)?;
                Ok(std::mem::replace(&mut directory.members[member].voter, false))
            })
            .await?;
            let until = Instant::now() + LOSES_VOTE;
            while votes() {
                if Instant::now() >= until {
                    let directory = self.directory.current();
                    let node_id = directory.member(incarnation).map(|member| member.node_id.clone());
                    let waited_s = LOSES_VOTE.as_secs();
                    return Err(JoinError::Pending { node_id: node_id.unwrap_or_default(), waited_s });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        let mut found = false;
        self.change_directory(|directory| {
            let Some(member) = directory.member(incarnation).cloned() else { return Ok(false) };
            self.check_removable(directory, &member.node_id, incarnation)?;
            found = true;
            Ok(directory.remove(incarnation))
        })
        .await?;
        Ok(found)
    }
}

impl Replica {
    /// Hands leadership to another voter, and leaves the next elections to the others.
    ///
    /// # Errors
    /// [`StepDownError::NoHeir`] with what is wrong with each of the others: this node goes on leading.
    pub async fn step_down(&self) -> Result<(), StepDownError> {
        let shared = self.shared();
        if !shared.raft.is_leader() {
            return Err(StepDownError::NotLeader);
        }
        // No change of members is on its way meanwhile, which could take the heir's vote.
        let _unchanged = shared.directory_changes.lock().await;
        shared.own.step_down();
        if self.transfer_away(STEP_DOWN).await {
            return Ok(());
        }
        shared.own.keep();
        Err(StepDownError::NoHeir(shared.why_no_heir()))
    }

    /// Whether a member may be stopped, as the leader sees it; `None` if there is no such member.
    pub fn safe_to_stop(&self, node_id: &str) -> Option<Safety> {
        self.shared().safe_to_stop(node_id)
    }

    /// How the members do, as the leader sees it.
    pub fn autopilot_state(&self) -> crate::AutopilotState {
        self.shared().autopilot_state()
    }

    /// Changes autopilot's configuration.
    ///
    /// # Errors
    /// [`JoinError::LevelTooLow`] while a member does not know it; what `change` says.
    pub async fn configure_autopilot(
        &self,
        change: impl FnMut(&mut crate::AutopilotConfig) -> Result<(), JoinError>,
    ) -> Result<(), JoinError> {
        self.shared().configure_autopilot(change).await
    }

    /// Takes a member out of the directory, by node id; Raft's membership follows. `false` if there is none.
    ///
    /// # Errors
    /// [`JoinError::LastVoter`], [`JoinError::Unsafe`].
    pub async fn remove(&self, node_id: &str) -> Result<bool, JoinError> {
        let incarnation = self.directory().by_node_id(node_id).map(|member| member.incarnation);
        match incarnation {
            Some(incarnation) => self.shared().remove_incarnation(incarnation).await,
            None => Ok(false),
        }
    }

    /// Whether a member may lose its vote now.
    ///
    /// # Errors
    /// [`JoinError::LastVoter`], [`JoinError::Unsafe`].
    pub fn check_removable(&self, node_id: &str) -> Result<(), JoinError> {
        let directory = self.directory();
        match directory.by_node_id(node_id) {
            Some(member) => self.shared().check_removable(&directory, node_id, member.incarnation),
            None => Ok(()),
        }
    }

    /// Gives a member a vote, once it has caught up.
    ///
    /// # Errors
    /// [`JoinError::NotNonVoter`] if it has one, or there is no such member.
    pub async fn promote(&self, node_id: &str) -> Result<(), JoinError> {
        let promoted = self.shared().change_directory(|directory| {
            let member = directory.members.iter_mut().find(|member| member.node_id == node_id);
            let member = member.filter(|member| !member.voter).ok_or(JoinError::NotNonVoter)?;
            member.voter = true;
            Ok(true)
        });
        promoted.await.map(drop)
    }

    /// Takes a member's vote; it goes on learning.
    ///
    /// # Errors
    /// [`JoinError::NotVoter`], [`JoinError::LastVoter`], [`JoinError::Unsafe`].
    pub async fn demote(&self, node_id: &str) -> Result<(), JoinError> {
        let shared = self.shared();
        let demoted = shared.change_directory(|directory| {
            let id = directory.by_node_id(node_id).filter(|member| member.voter);
            let id = id.ok_or(JoinError::NotVoter)?.incarnation;
            shared.check_removable(directory, node_id, id)?;
            for member in directory.members.iter_mut().filter(|member| member.incarnation == id) {
                member.voter = false;
            }
            Ok(true)
        });
        demoted.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(node_id: &str, silent_s: u64, behind: Option<u64>, standing: Standing) -> Other {
        Other { node_id: node_id.into(), silent: Duration::from_secs(silent_s), standing, behind }
    }

    fn fine(node_id: &str) -> Other {
        other(node_id, 0, Some(0), Standing::default())
    }

    fn sealed(node_id: &str) -> Other {
        other(node_id, 0, Some(0), Standing { sealed: true, ..Standing::default() })
    }

    fn reasons(others: &[Other]) -> String {
        judge("n1", true, false, others, 1_000).reasons.join(" | ")
    }

    #[test]
    fn one_of_three_may_stop_while_the_other_two_are_well() {
        assert_eq!(reasons(&[fine("n2"), fine("n3")]), "");
        assert_eq!(reasons(&[fine("n2"), sealed("n3")]), "");
        assert_eq!(judge("n1", true, true, &[fine("n2"), sealed("n3")], 1).warnings, ["n3 is sealed"]);
    }

    #[test]
    fn every_reason_against_it_is_said() {
        let lost = "the quorum would be lost: 1 of 3 voters would be left that can decide, 2 are needed: ";
        let silent = other("n3", 12, Some(0), Standing::default());
        assert_eq!(
            reasons(&[fine("n2"), silent.clone()]),
            format!("{lost}n3 has not been heard of for 12 s")
        );
        let behind = other("n3", 0, Some(5_000), Standing::default());
        assert_eq!(reasons(&[fine("n2"), behind]), format!("{lost}n3 is 5000 log entries behind"));
        let full = other("n3", 0, Some(0), Standing { disk_full: true, ..Standing::default() });
        assert_eq!(reasons(&[fine("n2"), full]), format!("{lost}the disk of n3 is full"));
        let both = reasons(&[sealed("n2"), sealed("n3")]);
        assert_eq!(both, "nobody would be left to serve requests: n2, n3 are sealed; unseal one first");
        let two = reasons(&[sealed("n2"), silent]);
        assert!(two.starts_with(lost) && two.ends_with("n2 is sealed; unseal one first"), "{two}");
    }

    #[test]
    fn a_cluster_of_one_or_two_voters_misses_each() {
        assert!(reasons(&[]).contains("0 of 1 voters would be left"));
        assert!(reasons(&[fine("n2")]).contains("1 of 2 voters would be left"));
    }

    #[test]
    fn a_node_without_a_vote_may_stop_at_any_time() {
        let silent = other("n3", 12, Some(0), Standing::default());
        let safety = judge("n4", false, false, &[fine("n2"), silent], 1_000);
        assert!(safety.reasons.is_empty());
        assert_eq!(safety.warnings, ["n3 has not been heard of for 12 s"]);
    }
}
