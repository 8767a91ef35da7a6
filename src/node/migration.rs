//! Moving a vault from shares to seals that open by themselves, and back.
//!
//! The key holders' shares open a node with `migrate`; whichever node leads and was opened so writes the new seal
//! configuration and a new root key, as one entry: before it the vault is opened the old way, after it the new way, and
//! nothing is between.

use std::time::Duration;

use keystead_raft::{ProposeOutcome, Replicated as _};
use keystead_storage::{Check, Txn, Version, Write};

use super::{Node, records};
use crate::{
    core::{error::ApiError, request::fresh_id},
    seal::{SealConfig, Share, SharePoint, ShareRejection, ShareSet, recovery_kek},
    secret::{Kek, RootKey},
};

/// The first pause between two attempts; each is twice the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Where a vault is to move.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// From shares to this node's seals.
    ToSeals,
    /// From seals, all of which are disabled, to what are its recovery shares so far.
    ToShares,
}

/// A migration that key holders have agreed to.
pub enum Agreed {
    /// To this node's seals.
    ToSeals,
    /// To the shares of this key.
    ToShares(Kek),
}

impl Migration {
    /// The shares that agree to it.
    pub fn shares(self, config: &SealConfig) -> Option<&ShareSet> {
        match self {
            Self::ToSeals => config.shamir().map(|(_, set)| set),
            Self::ToShares => config.recovery.as_ref(),
        }
    }

    /// Whether `share` is one of them.
    pub fn check_share(self, config: &SealConfig, share: &Share) -> Result<(), ShareRejection> {
        match self {
            Self::ToSeals => config.check_share(share),
            Self::ToShares => config.check_recovery_share(share),
        }
    }
}

impl Node {
    /// Whether a vault that is opened as `config` says is to move, going by this node's stanzas.
    pub(super) fn migration(&self, config: &SealConfig) -> Option<Migration> {
        let seals = &self.settings.seals;
        let by_itself = config.unattended().next().is_some();
        if !by_itself && config.shamir().is_some() && !seals.enabled().is_empty() {
            return Some(Migration::ToSeals);
        }
        let left = by_itself && config.unattended().any(|(entry, _)| seals.is_disabled(&entry.name));
        (left && config.recovery.is_some() && seals.enabled().is_empty()).then_some(Migration::ToShares)
    }

    /// The root key, and what was agreed to, from enough shares.
    pub(super) async fn agree(
        &self,
        migration: Migration,
        config: &SealConfig,
        points: &[SharePoint],
    ) -> Result<(RootKey, Agreed), ApiError> {
        let invalid = |e: &dyn std::fmt::Display| {
            ApiError::invalid(format!("unable to retrieve stored keys: invalid key: {e}"))
        };
        if migration == Migration::ToSeals {
            return Ok((config.unwrap_root(points).map_err(|e| invalid(&e))?, Agreed::ToSeals));
        }
        let kek = recovery_kek(points).map_err(|e| invalid(&e))?;
        for seal in self.settings.seals.all() {
            if let Some(Ok(root)) = self.ask_seal(&**seal, config).await {
                return Ok((root, Agreed::ToShares(kek)));
            }
        }
        let why = self.settings.seals.warnings(None).join("; ");
        Err(ApiError::Internal(format!(
            "the migration needs the seal that it leaves once more, and it does not open the vault: {why}"
        )))
    }

    /// Carries out what was agreed to as soon as this node leads; it is given up when the node is sealed.
    pub(super) fn carry_out(&self, agreed: Agreed) {
        let node = self.me.clone();
        let mut stopping = self.stopping.subscribe();
        tokio::spawn(async move {
            let mut told = None;
            let mut pause = FIRST_PAUSE;
            loop {
                let Some(node) = node.upgrade() else { return };
                if node.keys.read().is_none() && !node.is_opening() {
                    return;
                }
                match node.try_to_move(&agreed).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(why) => {
                        if told.as_ref() != Some(&why) {
                            tracing::warn!(why, "the seal migration waits");
                            told = Some(why);
                        }
                    }
                }
                drop(node);
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Whether the vault has moved. False while another node leads.
    async fn try_to_move(&self, agreed: &Agreed) -> Result<bool, String> {
        let (Some(replica), Some(keys)) = (self.replica(), self.keys.read().clone()) else {
            return Ok(false);
        };
        let Some((config, version)) = self.signed_config(keys.root())? else { return Ok(false) };
        let pending = self.migration(&config);
        if pending.is_none() {
            return Ok(true);
        }
        if !replica.leadership().borrow().is_self {
            return Err("this node does not lead; open the leader with -migrate as well".to_owned());
        }
        let now_ms = keystead_raft::clock::wall_ms();
        let moved = match agreed {
            Agreed::ToSeals => {
                let seals = self.settings.seals.enabled();
                let moved = config.moved_to_seals(&seals, now_ms).await;
                Some(moved.map_err(|fault| fault.to_string())?)
            }
            Agreed::ToShares(kek) => config.moved_to_shares(kek, now_ms),
        };
        let Some(moved) = moved else { return Ok(true) };
        let seals: Vec<_> = moved.config.seals.iter().map(|entry| entry.name.clone()).collect();
        let done = self.replace_root(moved, version).await?;
        if done {
            tracing::info!(?seals, "the vault has moved to other seals");
        }
        Ok(done)
    }

    /// The seal configuration as it is replicated, checked against the root key, and the version of its record.
    pub(super) fn signed_config(&self, root: &RootKey) -> Result<Option<(SealConfig, Version)>, String> {
        let Some(replica) = self.replica() else { return Ok(None) };
        let record = replica.state().get(&records::seal_config_key()).map_err(|e| e.to_string())?;
        let Some(record) = record else { return Ok(None) };
        let config = SealConfig::decode(&record.value).map_err(|e| e.to_string())?;
        config.verify(root).map_err(|e| e.to_string())?;
        Ok(Some((config, record.version)))
    }

    /// Writes another seal configuration in place of the one of that version. False if it is not there any more.
    pub(super) async fn replace_config(&self, config: &SealConfig, version: Version) -> Result<bool, String> {
        let replica = self.replica().ok_or("replication has stopped")?;
        let key = records::seal_config_key();
        let txn = Txn {
            request_id: fresh_id(),
            checks: vec![Check::Record { key: key.clone(), version: Some(version) }],
            writes: vec![Write::Put { key, value: config.encode().into() }],
            ..Txn::default()
        };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => Ok(true),
            Ok(ProposeOutcome::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}
