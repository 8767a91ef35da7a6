//! What happens when the state changes: the directory's cache, the connections and the vault are told before the
//! applied index is published.

use std::sync::Arc;

use keystead_storage::{LogId, Observer, RecordKey, SealedState, error::REBUILD};
use tokio::sync::watch;

use crate::{
    clock::ClusterClock,
    directory::{Directory, DirectoryCache},
    machine::{Latch, Place},
    vault_side::VaultSide,
};

/// Hands the state's changes on: to the directory's cache, the connections, the vault.
pub struct Changes {
    /// Stops apply.
    pub latch: Arc<Latch>,
    /// The state that is observed.
    pub state: std::sync::Weak<dyn SealedState>,
    /// Who is a member.
    pub directory: Arc<DirectoryCache>,
    /// The vault.
    pub vault: Arc<dyn VaultSide>,
    /// Cluster time.
    pub clock: Arc<ClusterClock>,
    /// Told of every member that is removed.
    pub tombstoned: watch::Sender<u64>,
    /// Cluster and epoch.
    pub place: Place,
    /// This node's Raft id.
    pub incarnation: u64,
}

impl Changes {
    fn reload_directory(&self) {
        let Some(state) = self.state.upgrade() else { return };
        if let Some(directory) = read_directory(&*state, &*self.vault, self.place, self.incarnation) {
            let before = self.directory.current();
            let gone = directory.tombstones.iter().copied().find(|gone| before.member(*gone).is_some());
            self.directory.set(directory);
            // After the new directory stands, so that whoever is woken sees it.
            if let Some(gone) = gone {
                self.tombstoned.send_replace(gone);
            }
        }
    }
}

impl Observer for Changes {
    fn applied(&self, _log_id: LogId, changed: &[RecordKey]) {
        let key = Directory::key();
        if changed.contains(&key) {
            self.reload_directory();
        }
        if let Some(state) = self.state.upgrade() {
            self.clock.at_least(state.applied().cluster_time_ms);
        }
        self.vault.applied(changed);
    }

    fn replaced(&self) {
        self.reload_directory();
        if let Some(state) = self.state.upgrade() {
            self.clock.at_least(state.applied().cluster_time_ms);
        }
        self.vault.replaced();
    }

    fn digest_mismatch(&self, index: u64) {
        tracing::error!(index, "this node's state differs from the leader's: it has diverged; {REBUILD}");
        metrics::counter!("keystead_state_digest_mismatches").increment(1);
        let reason = format!("the state's digest at index {index} differs from the leader's; {REBUILD}");
        self.latch.set(&reason);
        self.vault.latched(&reason);
    }
}

/// The directory of the local state, as it counts at `place` for the node `incarnation`. A damaged or edited one
/// latches the vault and is not handed out.
pub fn read_directory(
    state: &dyn SealedState,
    vault: &dyn VaultSide,
    place: Place,
    incarnation: u64,
) -> Option<Directory> {
    let record = match state.get(&Directory::key()) {
        Ok(record) => record?,
        Err(error) => {
            tracing::error!(%error, "the directory cannot be read");
            return None;
        }
    };
    match Directory::open(&record.value) {
        Ok((directory, mac)) => {
            if directory.verify(&mac, vault) == Some(false) {
                vault.latched(&format!("the directory's MAC is wrong: it was edited on disk; {REBUILD}"));
                return None;
            }
            Some(directory.of_cluster(place.cluster_id, place.epoch, incarnation))
        }
        Err(error) => {
            vault.latched(&format!("the directory is damaged: {error}; {REBUILD}"));
            None
        }
    }
}
