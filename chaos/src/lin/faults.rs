//! What is done to nodes and links while clients work.

use std::time::Duration;

use super::{history::Recording, seed::Seed};
use crate::{Clock, Cluster, Direction, Result};

const HOUR_MS: u64 = 3_600_000;

/// One kind of fault. Each is over, and undone, when it has been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and the node is started and unsealed again.
    Kill,
    /// All nodes at once.
    KillAll,
    /// SIGSTOP for longer than the lease, then SIGCONT.
    Pause,
    /// A node hears nobody and nobody hears it.
    Isolate,
    /// A node that is not heard, or does not hear.
    OneWay,
    /// What the leader replies to another node is held and then lost with its connections.
    LoseReplies,
    /// The same, and the leader is killed before its replies are through.
    LoseRepliesAndKill,
    /// The wall clock of a node is somewhere within an hour of the others'. It stays there until its next step.
    /// The cluster is one [`with_faults`](crate::Builder::with_faults), for this and the next.
    StepWall,
    /// A node's clock of timers leaps ahead, and with it, or not, the one that counts suspends: since the trial began
    /// the clocks have run at once or twice the others' rate more. Only where no clock is trusted, and only in one
    /// trial of a cluster, for these clocks never go back.
    LeapAhead,
}

impl Fault {
    /// All that is done to nodes and links, and to no clock.
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::KillAll,
        Self::Pause,
        Self::Isolate,
        Self::OneWay,
        Self::LoseReplies,
        Self::LoseRepliesAndKill,
    ];

    /// Carries it out on a cluster that has a [`Net`](crate::Net), with the leader as the usual victim.
    ///
    /// # Errors
    /// Those of finding a leader and of starting nodes again.
    pub async fn strike(self, cluster: &Cluster, seed: &mut Seed, recording: &Recording) -> Result<()> {
        let leader = cluster.leader().await?;
        let victim = match seed.below(3) {
            0 => seed.below(cluster.nodes().len() as u64) as usize,
            _ => leader,
        };
        let of = if victim == leader { "the leader, " } else { "" };
        let say = |what: &str| recording.fault(format!("{self:?} of {of}node {victim}: {what}"));
        match self {
            Self::Kill => {
                cluster.at(victim).kill();
                say("dead");
                hold(seed, 0, 1_500).await;
                Box::pin(cluster.bring_back(victim)).await?;
            }
            Self::KillAll => {
                for node in cluster.nodes() {
                    node.kill();
                }
                say("and of all the others");
                for node in cluster.nodes() {
                    node.start().await?;
                }
                cluster.unseal_all().await?;
            }
            Self::Pause => {
                cluster.at(victim).pause()?;
                say("paused");
                hold(seed, 450, 2_000).await;
                cluster.at(victim).resume()?;
            }
            Self::Isolate => {
                cluster.net().isolate(victim);
                say("cut off");
                hold(seed, 600, 2_500).await;
                cluster.net().heal();
            }
            Self::OneWay => {
                let deaf = seed.once_in(2);
                for other in cluster.others(victim) {
                    let (from, to) = if deaf { (other, victim) } else { (victim, other) };
                    block(cluster, from, to);
                }
                say(if deaf { "deaf" } else { "mute" });
                hold(seed, 600, 2_000).await;
                cluster.net().heal();
            }
            Self::LoseReplies => {
                lose_replies(cluster, leader, seed, recording, false).await;
            }
            Self::LoseRepliesAndKill => {
                lose_replies(cluster, leader, seed, recording, true).await;
                Box::pin(cluster.bring_back(leader)).await?;
            }
            Self::StepWall => {
                let ahead_ms = seed.between(0, 2 * HOUR_MS) as i64 - HOUR_MS as i64;
                cluster.at(victim).faults()?.step(Clock::Realtime, ahead_ms)?;
                say(&format!("{ahead_ms} ms ahead"));
            }
            Self::LeapAhead => {
                let ahead_ms = (recording.now_us() / 1_000) as i64 * (1 + victim as i64 % 2);
                let faults = cluster.at(victim).faults()?;
                faults.step(Clock::Monotonic, ahead_ms)?;
                let slept = seed.once_in(2);
                if !slept {
                    faults.step(Clock::Boottime, ahead_ms)?;
                }
                say(&format!("{ahead_ms} ms ahead, as after a suspend: {slept}"));
            }
        }
        recording.fault(format!("{self:?} is over"));
        Ok(())
    }
}

/// Lets nothing through from one node to another, whichever of them dialled.
fn block(cluster: &Cluster, from: usize, to: usize) {
    cluster.net().stall(from, to, Direction::Requests);
    cluster.net().stall(to, from, Direction::Replies);
}

/// Long enough for requests to be carried out, short enough for the leader to remain one.
async fn lose_replies(cluster: &Cluster, leader: usize, seed: &mut Seed, recording: &Recording, kill: bool) {
    let others = cluster.others(leader);
    let victim = *seed.pick(&others);
    cluster.net().stall(victim, leader, Direction::Replies);
    recording.fault(format!("replies of the leader, node {leader}, to node {victim} are held"));
    hold(seed, 60, 300).await;
    if kill {
        cluster.at(leader).kill();
    }
    cluster.net().cut(victim, leader);
    cluster.net().heal();
}

async fn hold(seed: &mut Seed, from_ms: u64, to_ms: u64) {
    tokio::time::sleep(Duration::from_millis(seed.between(from_ms, to_ms))).await;
}
