//! `sys/unseal` and `sys/seal`: from shares to an open node, and back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_raft::{Replica, Replicated as _, VaultSide};
use keystead_storage::StorageError;

use super::{
    ClusterName, Node, OpenKeys, break_glass, join::JoinFailure, migration::Migration, records, shares,
};
use crate::{
    barrier::Keyring,
    core::{
        error::ApiError,
        node_ops::{NodeOps as _, ResetRequest, SealStatus, UnsealRequest},
    },
    seal::{SealConfig, Share, ShareRejection},
    secret::RootKey,
};

/// How long the answer to the last share waits for the node to be open; it goes on opening afterwards.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long an opening waits for the state to be compared with its digest; past that requests are served meanwhile.
/// A state of some ten thousand secrets has been compared by then.
const SCRUB_WAIT: Duration = Duration::from_millis(150);
/// How long the leader is given to take over what a sealing leader had.
const HAND_OVER: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(100);

impl Node {
    /// Takes one share.
    pub(super) async fn take_share(&self, request: UnsealRequest) -> Result<SealStatus, ApiError> {
        let _one = self.lifecycle.lock().await;
        let unsealed = self.keys.read().is_some();
        if let Some(reset) = request.reset {
            return self.reset_shares(&reset, unsealed);
        }
        let key = request.key.ok_or_else(|| {
            ApiError::invalid("'key' must be specified in request body as JSON, or 'reset' set to true")
        })?;
        let configs = self.seal_configs()?;
        if configs.is_empty() {
            return Err(ApiError::invalid("Vault is not initialized"));
        }
        if let Some(reason) = self.latch_reason() {
            return Err(ApiError::Internal(format!("this node has stopped serving: {reason}")));
        }
        let share = Share::parse(key.expose()).map_err(|e| ApiError::invalid(shares::text_error(&e)))?;
        let migration = configs.iter().find_map(|config| self.migration(config));
        match (migration, request.migrate) {
            (None, true) => {
                let text = "can't perform a seal migration, no migration seal found";
                return Err(ApiError::Internal(text.into()));
            }
            (Some(_), false) if !unsealed => {
                let text = "migrate option not provided and seal migration is pending";
                return Err(ApiError::Internal(text.into()));
            }
            // An open node takes shares for a migration alone.
            (None, false) if unsealed && request.cluster => {}
            (None, false) | (Some(_), false) if unsealed => return Ok(self.seal_status()),
            _ => {}
        }
        let config = judge(configs, &share, migration)?;
        let set = match migration {
            Some(migration) => migration.shares(&config),
            None => config.shamir().map(|(_, set)| set),
        };
        let threshold = set.map_or(1, |set| set.threshold);
        let points = self.progress.lock().add(config.vault_id, config.root_generation, share, threshold);
        let Some(points) = points else { return Ok(self.seal_status()) };
        if let Some(migration) = migration {
            let (root, agreed) = self.agree(migration, &config, &points).await?;
            if !unsealed {
                self.open_and_wait(config, root).await?;
            }
            self.carry_out(agreed);
            return Ok(self.seal_status());
        }
        let root = config
            .unwrap_root(&points)
            .map_err(|e| ApiError::invalid(format!("unable to retrieve stored keys: invalid key: {e}")))?;
        // The shares of an open node's key holders say that they agree; it has the key already.
        if !unsealed {
            self.open_and_wait(config, root).await?;
        }
        let mut status = self.seal_status();
        if request.cluster && !status.sealed {
            status.ceremony = Some(self.offer_members().await);
        }
        Ok(status)
    }

    /// Forgets the shares given so far. As with Vault nobody needs a token for that, so whoever does not name the series may
    /// not do it over and over while key holders are in the middle of it.
    fn reset_shares(&self, reset: &ResetRequest, unsealed: bool) -> Result<SealStatus, ApiError> {
        let (shares, nonce) = {
            let progress = self.progress.lock();
            (progress.count(), progress.nonce())
        };
        if unsealed && shares == 0 {
            return Err(ApiError::invalid("vault is unsealed"));
        }
        let from = &reset.client_address;
        if shares > 0 && reset.nonce != nonce {
            if reset.named_only {
                let text =
                    "this listener forgets entered shares only for who gives the nonce of their series";
                return Err(ApiError::Forbidden(text.to_owned()));
            }
            if !self.resets.lock().may(Instant::now()) {
                tracing::warn!(
                    from,
                    "a reset of the entered shares was refused: too many came within a minute"
                );
                return Err(ApiError::TooManyRequests(
                    "too many resets within a minute; give the nonce of the series, or wait".to_owned(),
                ));
            }
        }
        if shares > 0 || self.is_opening() {
            tracing::warn!(from, shares, "the entered shares were reset");
            metrics::counter!("keystead_seal_resets_total").increment(1);
        }
        self.progress.lock().reset();
        self.abandon_opening();
        Ok(self.seal_status())
    }

    /// Ends an opening that is under way, and forgets the keys it had come to.
    fn abandon_opening(&self) {
        if let Some(opening) = self.opening.lock().take() {
            opening.abort();
        }
        self.provisional.write().take();
    }

    /// Whether an opening is under way.
    pub(super) fn is_opening(&self) -> bool {
        self.opening.lock().as_ref().is_some_and(|opening| !opening.is_finished())
    }

    /// Opens the node with the root key, in a task that outlives the request, and waits for it a while.
    pub(super) async fn open_and_wait(&self, config: SealConfig, root: RootKey) -> Result<(), ApiError> {
        let opening = tokio::spawn(self.arc().open(config, root));
        // A new series of shares takes the place of an opening that still waits.
        if let Some(former) = self.opening.lock().replace(opening.abort_handle()) {
            former.abort();
        }
        match tokio::time::timeout(ANSWER_WAIT, opening).await {
            Ok(Ok(result)) => result,
            Ok(Err(panicked)) => Err(ApiError::internal("opening the node", &panicked)),
            // It goes on: a joining node may wait for a leader. The status says sealed until then.
            Err(_) => match self.last_join_error().filter(|_| self.replica().is_none()) {
                None => Ok(()),
                Some(error) => Err(ApiError::Internal(format!(
                    "failed to join raft cluster: {error}; this node goes on trying"
                ))),
            },
        }
    }

    async fn open(self: Arc<Self>, config: SealConfig, root: RootKey) -> Result<(), ApiError> {
        let reinstated = self.replica().is_none() && self.clone().reinstate(&config, &root).await?;
        if !reinstated && self.replica().is_none() {
            self.clone().join_with(&config, &root).await.map_err(|failure| match failure {
                JoinFailure::Refused(text) => {
                    ApiError::Internal(format!("failed to join raft cluster: {text}"))
                }
                JoinFailure::Stopped => ApiError::Internal("this node is shutting down".into()),
            })?;
        }
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let mut stopping = self.stopping.subscribe();
        let records::SealedKeys { config, keyring: sealed, keyring_version: version } = loop {
            let found = records::sealed_keys(&*replica.state());
            let found = found.map_err(|e| ApiError::internal("reading the sealed keys", &e))?;
            // A node that has just joined goes through what the vault was before.
            let known = config.root_generation;
            if let Some(found) = found.filter(|found| found.config.root_generation >= known) {
                break found;
            }
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Err(ApiError::Sealed),
                () = tokio::time::sleep(RETRY) => {}
            }
        };
        // A joining node has opened what a member offered; what was replicated since must say the same.
        config.verify(&root).map_err(|e| ApiError::invalid(e.to_string()))?;
        let keyring = Keyring::open(&sealed, &root, config.vault_id, config.root_generation)
            .map_err(|e| ApiError::internal("opening the keyring", &e))?;
        let cluster = ClusterName {
            id: shares::uuid_text(&replica.directory().cluster_id),
            name: records::cluster_name(&*replica.state()),
        };
        let keys = Arc::new(OpenKeys::new(&config, root, keyring, &cluster));
        self.compare_epochs_before_serving(&keys).await;
        self.publish(&replica, keys).await?;
        // An entry that changed the keyring may have been applied between the read and the write above.
        if !matches!(records::keyring(&*replica.state()), Ok(Some((now, _))) if now == version) {
            VaultSide::applied(&*self, &[records::keyring_key()]);
        }
        if let Some(core) = self.core() {
            core.forget();
        }
        break_glass::gauge(&config);
        metrics::gauge!("vault_core_unsealed").set(1.0);
        tracing::info!("vault is unsealed");
        Ok(())
    }

    /// Lets requests see the keys, after the directory has been judged, which only they can do, and after the state
    /// on this disk was found to be the one whose digest was kept, or is so large that this takes longer.
    async fn publish(&self, replica: &Arc<Replica>, keys: Arc<OpenKeys>) -> Result<(), ApiError> {
        *self.provisional.write() = Some(keys.clone());
        replica.verify_directory();
        let gently = Arc::new(AtomicBool::new(false));
        let scrub = tokio::spawn(self.arc().scrub(replica.clone(), gently.clone()));
        match tokio::time::timeout(SCRUB_WAIT, scrub).await {
            Ok(Ok(found)) => found?,
            Ok(Err(panicked)) => return Err(ApiError::internal("checking the state", &panicked)),
            // It goes on, and latches the node if it finds a difference.
            Err(_) => gently.store(true, Ordering::Relaxed),
        }
        let mut current = self.keys.write();
        let provisional = self.provisional.write().take();
        if let Some(reason) = self.latch_reason() {
            return Err(ApiError::Internal(format!("this node has stopped serving: {reason}")));
        }
        if !provisional.is_some_and(|provisional| Arc::ptr_eq(&provisional, &keys)) {
            let text = "the root key was replaced while this node was being opened; enter shares that are of the present one";
            return Err(ApiError::invalid(text));
        }
        *current = Some(keys);
        self.missed_root.lock().take();
        Ok(())
    }

    /// Reads the whole state and compares it with its digest; latches if it differs. While `gently` it takes half of
    /// a processor at most.
    pub(super) async fn scrub(
        self: Arc<Self>,
        replica: Arc<Replica>,
        gently: Arc<AtomicBool>,
    ) -> Result<(), ApiError> {
        let state = replica.state();
        let checked = tokio::task::spawn_blocking(move || state.cut()?.scrub(&gently).map(drop)).await;
        match checked.map_err(|e| ApiError::internal("checking the state", &e))? {
            Ok(()) => Ok(()),
            // A snapshot is being made of it, which checks the same.
            Err(StorageError::Busy { .. }) => Ok(()),
            Err(error) => {
                VaultSide::latched(&*self, &error.to_string());
                Err(ApiError::Internal(format!("this node has stopped serving: {error}")))
            }
        }
    }

    /// Seals this node: leadership goes first, then the keys.
    pub(super) async fn seal_now(&self) -> Result<(), ApiError> {
        // Before the lock: an attempt of the seals' that holds it ends with the opening.
        self.opens_itself.send_replace(false);
        let _one = self.lifecycle.lock().await;
        self.abandon_opening();
        let open = self.keys.read().is_some();
        if !open {
            self.progress.lock().reset();
            return Ok(());
        }
        let replica = self.replica();
        if let Some(replica) = &replica
            && !replica.transfer_away(HAND_OVER).await
        {
            tracing::warn!(
                "no unsealed voter is there to lead: the cluster will not serve until one is unsealed"
            );
        }
        self.drop_keys();
        if let Some(replica) = &replica {
            replica.sealed();
        }
        metrics::gauge!("vault_core_unsealed").set(0.0);
        tracing::info!("vault is sealed");
        Ok(())
    }
}

/// The configuration that a share belongs to. A wrong share is refused here, before it spoils a series.
fn judge(
    configs: Vec<SealConfig>,
    share: &Share,
    migration: Option<Migration>,
) -> Result<SealConfig, ApiError> {
    let mut first: Option<ShareRejection> = None;
    for config in configs {
        let checked = match migration {
            Some(migration) => migration.check_share(&config, share),
            None => config.check_share(share),
        };
        match checked {
            Ok(()) => return Ok(config),
            Err(rejection) => {
                first.get_or_insert(rejection);
            }
        }
    }
    let text = first.map_or_else(|| "Vault is not initialized".into(), |rejection| rejection.to_string());
    metrics::counter!("keystead_seal_shares_refused").increment(1);
    Err(ApiError::invalid(text))
}
