//! The small tasks that run beside consensus on every node.

use std::{sync::Arc, time::Duration};

use keystead_storage::{CheckpointMark, Outcome};
use tokio::sync::watch;

use crate::{
    conn::Method, directory::DirectoryMember, entry::Body, hello::Channel, peers::PeerStatus, shared::Shared,
    types::TypeConfig,
};

/// Every node makes itself heard by every other this often.
const PING: Duration = Duration::from_secs(1);
/// Entries between two digest checkpoints.
const CHECKPOINT_ENTRIES: u64 = 1024;
/// Time of writing between two digest checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// The log is purged when it is larger than this many bytes or a sixteenth of its file system, or by the library's
/// count of entries.
const LOG_BYTES: u64 = 32 << 20;

impl Shared {
    /// Makes this node heard: hellos carry addresses, acks carry the seal.
    pub async fn pings(self: Arc<Self>) {
        loop {
            for member in &self.directory.current().members {
                let (id, shared) = (member.incarnation, self.clone());
                if id != self.myself.incarnation {
                    tokio::spawn(async move {
                        let ping = shared.pool.call(id, Channel::Control, Method::Ping, &[], PING);
                        match ping.await.as_deref().map(<[u8]>::first_chunk::<8>) {
                            Ok(Some(free)) => shared.peers.free_bytes(id, u64::from_be_bytes(*free)),
                            Ok(None) => {}
                            Err(error) => {
                                tracing::debug!(%error, peer = format!("{id:016x}"), "peer does not answer");
                            }
                        }
                    });
                }
            }
            tokio::time::sleep(PING).await;
        }
    }

    /// An open standby keeps the leader's time, as it says it on a channel on which it proved the root key.
    pub async fn time(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PING).await;
            let leadership = self.leadership.borrow().clone();
            let Some(leader) = leadership.leader.filter(|_| !leadership.is_self && self.vault.is_open())
            else {
                continue;
            };
            let call = self.pool.call(leader.incarnation, Channel::Reads, Method::Time, &[], PING);
            match call.await.as_deref().map(<[u8]>::first_chunk::<8>) {
                Ok(Some(time)) => self.clock.observe(u64::from_be_bytes(*time)),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "the leader does not tell the time"),
            }
        }
    }

    /// The leader proposes a digest checkpoint after enough writing.
    pub async fn checkpoints(self: Arc<Self>) {
        let (mut last_index, mut last_at) = (0, tokio::time::Instant::now());
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let applied = *self.applied.borrow();
            let written = applied.saturating_sub(last_index);
            let due =
                written >= CHECKPOINT_ENTRIES || (written > 0 && last_at.elapsed() >= CHECKPOINT_INTERVAL);
            if !due || !self.leadership.borrow().is_self || !self.vault.is_open() {
                continue;
            }
            let mark = CheckpointMark { of: self.state.digest() };
            match self.proposer.submit(&Body::Checkpoint(mark)).await {
                Ok(Outcome::Applied { version }) => last_index = version.index,
                Ok(_) => last_index = applied,
                Err(error) => tracing::debug!(%error, "checkpoint not proposed"),
            }
            last_at = tokio::time::Instant::now();
        }
    }

    /// Purges by bytes; by entries the library purges by itself.
    pub async fn purges(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let bytes = self.log.size_bytes();
            let stats = self.log.sync_stats();
            metrics::gauge!("keystead_raft_log_bytes").set(bytes as f64);
            metrics::gauge!("keystead_raft_log_sync_last_us").set(stats.last_us as f64);
            metrics::gauge!("keystead_raft_applied_index").set(*self.applied.borrow() as f64);
            self.spools.tidy();
            let total_bytes = self.own.disk().status().space.total_bytes;
            let limit = LOG_BYTES.min(total_bytes / 16);
            if bytes > limit
                && let Err(error) = self.purge_by_bytes(bytes, limit).await
            {
                tracing::warn!(%error, "the log cannot be purged");
            }
        }
    }

    /// Keeps about half the limit, as far as the state has been flushed.
    async fn purge_by_bytes(
        &self,
        bytes: u64,
        limit: u64,
    ) -> Result<(), openraft::errors::Fatal<TypeConfig>> {
        self.raft.trigger().snapshot().await?;
        let bounds = self.log.bounds();
        let (first, last) = (bounds.purged.map_or(0, |id| id.index), bounds.last.map_or(0, |id| id.index));
        let entries = last.saturating_sub(first).max(1);
        let keep = limit / 2 / (bytes / entries).max(1);
        let flushed = self.state.flushed().map_or(0, |id| id.index);
        let up_to = last.saturating_sub(keep).min(flushed);
        if up_to > first { self.raft.trigger().purge_log(up_to).await } else { Ok(()) }
    }

    /// Ends the connections of members that were removed.
    pub async fn close_removed(self: Arc<Self>, mut tombstoned: watch::Receiver<u64>) {
        while tombstoned.changed().await.is_ok() {
            tombstoned.borrow_and_update();
            for gone in &self.directory.current().tombstones {
                self.server.connections.close(*gone);
                self.pool.close(*gone);
                self.peers.forget(*gone);
            }
        }
    }

    /// The leader writes into the directory where members say that they are now.
    pub async fn addresses(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PING).await;
            if !self.leadership.borrow().is_self || !self.vault.is_open() {
                continue;
            }
            let stale = self.directory.current().members.iter().any(|m| self.moved(m).is_some());
            if !stale {
                continue;
            }
            let updated = self
                .change_directory(|directory| {
                    let mut any = false;
                    for member in &mut directory.members {
                        if let Some((cluster_addr, api_addr)) = self.moved(member) {
                            (member.cluster_addr, member.api_addr) = (cluster_addr, api_addr);
                            any = true;
                        }
                    }
                    Ok(any)
                })
                .await;
            match updated {
                Ok(_) => tracing::info!("the directory has the members' new addresses"),
                Err(error) => tracing::debug!(%error, "new addresses not written yet"),
            }
        }
    }

    /// A member's addresses, if they are not those in the directory.
    fn moved(&self, member: &DirectoryMember) -> Option<(String, String)> {
        let (cluster_addr, api_addr) = if member.incarnation == self.myself.incarnation {
            (self.myself.cluster_addr.clone(), self.myself.api_addr.clone())
        } else {
            // Only what a peer said where it proved that it holds the root key goes into the MACed directory.
            let PeerStatus { proven, .. } = self.peers.status(member.incarnation)?;
            proven?
        };
        let same = member.cluster_addr == cluster_addr && member.api_addr == api_addr;
        (!same).then_some((cluster_addr, api_addr))
    }
}
