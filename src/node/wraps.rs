//! The root key's wraps beside the seals' present keys: compared, mended, and taken out where nothing needs them.
//!
//! Only the leader changes a wrap, and only in a vault that opens by itself: a stanza beside shares asks for a migration.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use keystead_raft::Replicated as _;

use super::Node;
use crate::{
    core::{
        error::ApiError,
        node_ops::{SealWrap, WrapState},
    },
    seal::{AutoSeal, SealConfig, SealEntry, SealFault, UnattendedError},
    secret::RootKey,
};

/// How long one seal may keep whoever asks for all of them. It is below what a request may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a wrap is made again because another change came between.
const ATTEMPTS: usize = 3;

impl Node {
    /// How each wrap stands, as this node's seals see it: those of its stanzas in their order, then those of none.
    ///
    /// # Errors
    /// The node is sealed.
    pub(super) async fn compare_wraps(&self) -> Result<Vec<SealWrap>, ApiError> {
        let (config, _) = self.open_config()?;
        let seals = &self.settings.seals;
        let judged = join_all(seals.all().iter().map(|seal| self.judge(&**seal, &config))).await;
        let named = |entry: &SealEntry| seals.all().iter().any(|seal| seal.name() == entry.name);
        let others = config.unattended().filter(|(entry, _)| !named(entry));
        let others = others.map(|(entry, _)| shown(entry, WrapState::Unconfigured, String::new()));
        Ok(judged.into_iter().chain(others).collect())
    }

    /// Wraps the root key by every enabled seal whose wrap is missing, stale or of no use, and tells how all stand
    /// then; with `prune`, takes out those that no stanza names.
    ///
    /// # Errors
    /// The node is sealed, or does not lead; the vault is opened by shares; nothing would be left that opens it.
    pub(super) async fn sync_wraps(&self, prune: bool) -> Result<Vec<SealWrap>, ApiError> {
        let (config, _) = self.open_config()?;
        if config.unattended().next().is_none() {
            return Err(ApiError::invalid(
                "this vault is opened by shares, so no seal wraps its root key; `operator unseal -migrate` moves it to the \
                 configured seals",
            ));
        }
        // What the canary would find within a minute, status says from now on.
        if tokio::time::timeout(PATIENCE, self.exercise_seals()).await.is_err() {
            tracing::warn!("the seals did not all answer within {PATIENCE:?}");
        }
        let enabled = self.settings.seals.enabled();
        let mended = enabled.iter().map(|seal| async {
            if let Err(why) = within(self.mend(seal)).await {
                tracing::warn!(seal = seal.name(), why, "the root key could not be wrapped by this seal");
            }
        });
        join_all(mended).await;
        let mut wraps = self.compare_wraps().await?;
        if prune && wraps.iter().any(|wrap| wrap.state == WrapState::Unconfigured) {
            if !wraps.iter().any(|wrap| wrap.state == WrapState::Agrees) {
                return Err(ApiError::invalid(
                    "no configured seal opens this vault at this moment, so the wraps of the others stay",
                ));
            }
            self.take_out("that no stanza names", |name| {
                self.settings.seals.all().iter().all(|seal| seal.name() != name)
            })
            .await
            .map_err(ApiError::Busy)?;
            wraps = self.compare_wraps().await?;
        }
        Ok(wraps)
    }

    /// The seal configuration, checked, and the root key's own copy to check by.
    fn open_config(&self) -> Result<(SealConfig, RootKey), ApiError> {
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let config = self.signed_config(keys.root()).map_err(ApiError::Internal)?;
        let (config, _) = config.ok_or(ApiError::Sealed)?;
        Ok((config, keys.root().duplicate()))
    }

    async fn judge(&self, seal: &dyn AutoSeal, config: &SealConfig) -> SealWrap {
        let disabled = self.settings.seals.is_disabled(seal.name());
        let report = within(async { seal.report().await.map_err(|fault| fault.to_string()) }).await;
        let entry = config.unattended().find(|(entry, _)| entry.name == seal.name());
        let Some((entry, kek)) = entry.filter(|(entry, _)| entry.kind() == seal.kind()) else {
            let state = if disabled { WrapState::Disabled } else { WrapState::Missing };
            let (key, why) = match report {
                Ok(report) => (report.key_id, String::new()),
                Err(why) => (String::new(), why),
            };
            let kind = seal.kind().name().into();
            return SealWrap { kind, key, why, ..SealWrap::without(seal.name(), state) };
        };
        let key_id = match report {
            Ok(report) => report.key_id,
            Err(why) => return shown(entry, WrapState::Unreachable, why),
        };
        let (state, why) = match tokio::time::timeout(PATIENCE, config.open_with(seal, (entry, kek))).await {
            Err(_) => (WrapState::Unreachable, busy()),
            Ok(Err(UnattendedError::Seal(
                fault @ (SealFault::Unavailable(_) | SealFault::NeedsOperator(_)),
            ))) => (WrapState::Unreachable, fault.to_string()),
            Ok(Err(error)) => (WrapState::Unopened, error.to_string()),
            Ok(Ok(_)) if disabled => (WrapState::Disabled, String::new()),
            Ok(Ok(_)) if kek.key_id != key_id => (WrapState::Stale, String::new()),
            Ok(Ok(_)) => (WrapState::Agrees, String::new()),
        };
        SealWrap { key: key_id, ..shown(entry, state, why) }
    }

    /// Wraps by a seal what its present key does not.
    async fn mend(&self, seal: &Arc<dyn AutoSeal>) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            let (config, _) = self.open_config().map_err(|error| error.to_string())?;
            match self.judge(&**seal, &config).await.state {
                WrapState::Missing => seal.prepare().await.map_err(|fault| fault.to_string())?,
                WrapState::Stale | WrapState::Unopened => {}
                _ => return Ok(()),
            }
            if self.wrap_by(seal).await? {
                self.settings.seals.note(&**seal, Ok(()));
                return Ok(());
            }
        }
        Err("other changes came between; try again".to_owned())
    }

    /// Wraps the root key by a seal, in the place of its entry if it has one. False when this node does not lead, or
    /// another change came between.
    pub(super) async fn wrap_by(&self, seal: &Arc<dyn AutoSeal>) -> Result<bool, String> {
        let (Some(replica), Some(keys)) = (self.replica(), self.keys.read().clone()) else {
            return Ok(false);
        };
        if !replica.leadership().borrow().is_self {
            return Ok(false);
        }
        let Some((config, version)) = self.signed_config(keys.root())? else { return Ok(false) };
        let (vault_id, generation) = (config.vault_id, config.root_generation);
        let entry = SealEntry::wrapped_by(&**seal, vault_id, generation, keys.root()).await;
        let entry = entry.map_err(|fault| fault.to_string())?;
        let mut seals = config.seals;
        seals.retain(|other| other.name != entry.name);
        seals.push(entry);
        let now_ms = keystead_raft::clock::wall_ms();
        let changed = SealConfig::signed(vault_id, generation, seals, config.recovery, now_ms, keys.root());
        let done = self.replace_config(&changed, version).await?;
        if done {
            metrics::counter!("keystead_seal_rewraps_total", "seal" => seal.name().to_owned()).increment(1);
            tracing::info!(seal = seal.name(), "the root key was wrapped by this seal");
        }
        Ok(done)
    }

    /// Takes out the wraps by seals of some names, on the leader. Shares' stay, and so does everything where nothing that
    /// works would be left.
    pub(super) async fn take_out(&self, which: &str, leaves: impl Fn(&str) -> bool) -> Result<(), String> {
        let seals = &self.settings.seals;
        let (Some(replica), Some(keys)) = (self.replica(), self.keys.read().clone()) else { return Ok(()) };
        if !replica.leadership().borrow().is_self {
            return Ok(());
        }
        let Some((config, version)) = self.signed_config(keys.root())? else { return Ok(()) };
        let works = |name: &str| seals.enabled().iter().any(|seal| seal.name() == name) && seals.works(name);
        let gone: Vec<_> = config.unattended().filter(|(entry, _)| leaves(&entry.name)).collect();
        let gone: Vec<_> = gone.into_iter().map(|(entry, _)| entry.name.clone()).collect();
        let kept: Vec<_> = config.seals.into_iter().filter(|entry| !gone.contains(&entry.name)).collect();
        if gone.is_empty() || !kept.iter().any(|entry| works(&entry.name)) {
            return Ok(());
        }
        let now_ms = keystead_raft::clock::wall_ms();
        let (vault_id, generation) = (config.vault_id, config.root_generation);
        let changed = SealConfig::signed(vault_id, generation, kept, config.recovery, now_ms, keys.root());
        if self.replace_config(&changed, version).await? {
            tracing::info!(seals = ?gone, "seals {which} do not open this vault any more");
        }
        Ok(())
    }
}

/// Gives up on a seal that takes too long.
async fn within<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(busy()))
}

fn busy() -> String {
    format!("the seal did not answer within {PATIENCE:?}")
}

fn shown(entry: &SealEntry, state: WrapState, why: String) -> SealWrap {
    SealWrap {
        kind: entry.kind().name().into(),
        root_generation: entry.wrap.root_generation,
        wrap_id: hex::encode(entry.wrap.wrap_id),
        wrapped_by: entry.key_id().into(),
        why,
        ..SealWrap::without(&entry.name, state)
    }
}
