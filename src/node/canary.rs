//! The seals are exercised while nobody needs them, so that a token that has stopped working is known long before a
//! start depends on it; and the leader wraps the root key anew by a seal that lacks it, or whose key was rotated.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use keystead_raft::Replicated as _;
use tokio::sync::watch;

use super::Node;
use crate::seal::{AutoSeal, SealConfig, SealEntry, exercise};

/// How often every seal is exercised. The first time comes sooner: what was missing at init is wrapped then.
const INTERVAL: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_secs(1);
/// How soon it is tried again while one does not work.
const AGAIN: Duration = Duration::from_secs(10);

/// Exercises the seals of a node until it stops.
pub async fn watch_seals(node: Weak<Node>, mut stopping: watch::Receiver<bool>) {
    let mut wait = FIRST;
    loop {
        tokio::select! {
            changed = stopping.changed() => if changed.is_err() || *stopping.borrow() { return },
            () = tokio::time::sleep(wait) => {}
        }
        let Some(node) = node.upgrade() else { return };
        // A node that is sealed asks its seals anyway, and a newcomer has nobody to lead.
        if node.keys.read().is_none() {
            wait = FIRST;
            continue;
        }
        node.exercise_seals().await;
        let seals = &node.settings.seals;
        wait = if seals.enabled().iter().all(|seal| seals.works(seal.name())) { INTERVAL } else { AGAIN };
    }
}

impl Node {
    /// Exercises every seal once, and wraps what is to be wrapped.
    pub(super) async fn exercise_seals(&self) {
        for seal in &self.settings.seals.enabled() {
            // One that was configured after init may lack its key; nobody but the leader makes one.
            if self.is_to_be_prepared(&**seal)
                && let Err(fault) = seal.prepare().await
            {
                self.settings.seals.note(&**seal, Err(fault));
                continue;
            }
            let began = Instant::now();
            let sealed = exercise(&**seal).await;
            self.settings.seals.note(&**seal, sealed.as_ref().map(drop).map_err(Clone::clone));
            let Ok(sealed) = sealed else { continue };
            let name = seal.name().to_owned();
            metrics::histogram!("keystead_seal_canary_seconds", "seal" => name.clone())
                .record(began.elapsed().as_secs_f64());
            metrics::gauge!("keystead_seal_last_success_time_seconds", "seal" => name)
                .set(keystead_raft::clock::wall_ms() as f64 / 1000.0);
            if let Err(why) = self.rewrap(seal, &sealed.key_id).await {
                tracing::warn!(seal = seal.name(), why, "the root key could not be wrapped by this seal");
            }
        }
        if let Err(why) = self.drop_disabled().await {
            tracing::warn!(why, "the wraps of disabled seals could not be taken out");
        }
    }

    /// Whether this node leads a vault that opens by itself, and the seal has no wrap there yet.
    fn is_to_be_prepared(&self, seal: &dyn AutoSeal) -> bool {
        let leads = self.replica().is_some_and(|replica| replica.leadership().borrow().is_self);
        let Some(config) = self.seal_configs().unwrap_or_default().pop().filter(|_| leads) else {
            return false;
        };
        config.unattended().next().is_some() && config.seals.iter().all(|entry| entry.name != seal.name())
    }

    /// Wraps the root key by a seal that has no wrap of it yet, or one under a key that was replaced since. Only the
    /// leader does, and only in a vault that opens by itself.
    async fn rewrap(&self, seal: &Arc<dyn AutoSeal>, key_id: &str) -> Result<(), String> {
        let (Some(replica), Some(keys)) = (self.replica(), self.keys.read().clone()) else { return Ok(()) };
        if !replica.leadership().borrow().is_self {
            return Ok(());
        }
        let Some((config, version)) = self.signed_config(keys.root())? else { return Ok(()) };
        if !lacks(&config, &**seal, key_id) {
            return Ok(());
        }
        let (vault_id, generation) = (config.vault_id, config.root_generation);
        let entry = SealEntry::wrapped_by(&**seal, vault_id, generation, keys.root()).await;
        let entry = entry.map_err(|fault| fault.to_string())?;
        let mut seals = config.seals;
        seals.retain(|other| other.name != entry.name);
        seals.push(entry);
        let now_ms = keystead_raft::clock::wall_ms();
        let changed = SealConfig::signed(vault_id, generation, seals, config.recovery, now_ms, keys.root());
        // Where another change came between, the next round looks again.
        if self.replace_config(&changed, version).await? {
            metrics::counter!("keystead_seal_rewraps_total", "seal" => seal.name().to_owned()).increment(1);
            tracing::info!(seal = seal.name(), key_id, "the root key was wrapped by this seal");
        }
        Ok(())
    }

    /// Takes out the wraps of disabled seals, once an enabled one that works has its own.
    async fn drop_disabled(&self) -> Result<(), String> {
        let seals = &self.settings.seals;
        let (Some(replica), Some(keys)) = (self.replica(), self.keys.read().clone()) else { return Ok(()) };
        if !replica.leadership().borrow().is_self {
            return Ok(());
        }
        let Some((config, version)) = self.signed_config(keys.root())? else { return Ok(()) };
        let works = |name: &str| seals.enabled().iter().any(|seal| seal.name() == name) && seals.works(name);
        let (kept, left): (Vec<_>, Vec<_>) =
            config.seals.into_iter().partition(|entry| !seals.is_disabled(&entry.name));
        if left.is_empty() || !kept.iter().any(|entry| works(&entry.name)) {
            return Ok(());
        }
        let now_ms = keystead_raft::clock::wall_ms();
        let (vault_id, generation) = (config.vault_id, config.root_generation);
        let changed = SealConfig::signed(vault_id, generation, kept, config.recovery, now_ms, keys.root());
        if self.replace_config(&changed, version).await? {
            let left: Vec<_> = left.iter().map(|entry| entry.name.as_str()).collect();
            tracing::info!(seals = ?left, "disabled seals do not open this vault any more");
        }
        Ok(())
    }
}

/// Whether a vault that opens by itself has no wrap by this seal, or one under another key than its present one.
fn lacks(config: &SealConfig, seal: &dyn AutoSeal, key_id: &str) -> bool {
    let mut entries = config.unattended().peekable();
    if entries.peek().is_none() {
        return false;
    }
    match entries.find(|(entry, _)| entry.name == seal.name()) {
        None => config.seals.iter().all(|entry| entry.name != seal.name()),
        Some((entry, kek)) => entry.kind() == seal.kind() && kek.key_id != key_id,
    }
}
