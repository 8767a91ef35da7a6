//! The seals are exercised while nobody needs them, so that a token that has stopped working is known long before a
//! start depends on it; and the leader wraps the root key anew by a seal that lacks it, or whose key was rotated.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use keystead_raft::Replicated as _;
use tokio::sync::watch;

use super::Node;
use crate::seal::{AutoSeal, SealConfig, SealFault, UnattendedError, exercise};

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
            let outcome = match exercise(&**seal).await {
                Ok(sealed) => {
                    let name = seal.name().to_owned();
                    metrics::histogram!("keystead_seal_canary_seconds", "seal" => name.clone())
                        .record(began.elapsed().as_secs_f64());
                    metrics::gauge!("keystead_seal_last_success_time_seconds", "seal" => name)
                        .set(keystead_raft::clock::wall_ms() as f64 / 1000.0);
                    self.look_after_wrap(seal, &sealed.key_id).await
                }
                Err(fault) => Err(fault),
            };
            self.settings.seals.note(&**seal, outcome);
        }
        if let Err(why) =
            self.take_out("that are disabled", |name| self.settings.seals.is_disabled(name)).await
        {
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

    /// Has the leader wrap by a seal that has no wrap of the root key yet, or one under a key that was replaced since,
    /// and sees whether what there is opens: a start would need just that.
    async fn look_after_wrap(&self, seal: &Arc<dyn AutoSeal>, key_id: &str) -> Result<(), SealFault> {
        let Some(config) = self.seal_configs().unwrap_or_default().pop() else { return Ok(()) };
        if lacks(&config, &**seal, key_id) {
            if let Err(why) = self.wrap_by(seal).await {
                tracing::warn!(seal = seal.name(), why, "the root key could not be wrapped by this seal");
            }
            return Ok(());
        }
        let mut entries = config.unattended();
        let Some(entry) = entries.find(|(entry, _)| entry.name == seal.name() && entry.kind() == seal.kind())
        else {
            return Ok(());
        };
        match config.open_with(&**seal, entry).await {
            Ok(_) => Ok(()),
            Err(UnattendedError::Seal(fault @ (SealFault::Unavailable(_) | SealFault::NeedsOperator(_)))) => {
                Err(fault)
            }
            Err(error) => Err(SealFault::NotOurs(format!(
                "{error}; this seal works, and would not open the vault at a start: restore its key, or, if its present \
                 key is the right one, wrap by that with `keystead hsm sync`"
            ))),
        }
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
