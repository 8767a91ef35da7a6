//! What is done to nodes and links while clients work.

use std::time::Duration;

use super::{history::Recording, seed::Seed};
use crate::{Cluster, Direction, Result};

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
}

impl Fault {
    /// All of them.
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
