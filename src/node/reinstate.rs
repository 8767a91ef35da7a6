//! A vault comes back from a backup on a node that belongs to none: first the archive, then its shares.
//!
//! The archive is kept beside the data, so that a restart in between loses nothing. When the shares, or a seal, have
//! opened it, the node founds a cluster of its own as an initialisation does, under the same marker: a crash before the end
//! leaves a node that belongs to no vault.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_raft::VaultSide;
use keystead_storage::{Check, Txn, datadir::write_file_durably};

use super::{
    ClusterName, Node, OpenKeys, forget_enrolment,
    init::{Founding, MARKER, cluster_writes, first_entry, unmark},
    records,
    restore::{Plan, bad_archive, judge, kept, stage_and_activate},
};
use crate::{
    barrier::Keyring,
    core::{error::ApiError, request::Upload},
    seal::SealConfig,
    secret::RootKey,
};

/// The archive that waits for its shares, below `snapshots/`.
const KEPT: &str = "awaiting-shares";

/// A backup whose shares are awaited.
pub struct Awaited {
    /// What recognises its shares.
    pub config: SealConfig,
}

impl Node {
    fn kept_archive(&self) -> PathBuf {
        self.settings.dir.snapshots().join(KEPT)
    }

    /// Takes up again what waited for its shares when the node stopped.
    pub(super) async fn await_kept_backup(&self) {
        let archive = self.kept_archive();
        if !archive.exists() {
            return;
        }
        match self.judge_kept(&archive).await {
            Ok(config) => *self.awaited.lock() = Some(Awaited { config }),
            Err(error) => {
                tracing::warn!(%error, "the snapshot that was to be restored here cannot be used; send it again");
                drop(Upload::at(archive));
            }
        }
    }

    async fn judge_kept(&self, archive: &Path) -> Result<SealConfig, ApiError> {
        self.room_to_restore(archive)?;
        let (backup, found) = judge(archive).await?;
        let config = found.seal_config().map_err(bad_archive)?;
        if (config.vault_id, config.root_generation) != (backup.seal.vault_id, backup.seal.root_generation) {
            return Err(ApiError::invalid("the snapshot is not of the vault that it names"));
        }
        Ok(config)
    }

    /// Keeps an archive until its shares are entered.
    ///
    /// # Errors
    /// 400 for what is no whole backup, and on a node that belongs to a vault by now.
    pub(super) async fn keep_until_opened(&self, archive: &Path) -> Result<(), ApiError> {
        let _one = self.lifecycle.lock().await;
        if self.replica().is_some() || self.is_opening() {
            return Err(ApiError::invalid("Vault is already initialized"));
        }
        if !self.joining.lock().configs().is_empty() {
            return Err(ApiError::invalid(
                "this node has found a cluster to join: restore the snapshot there, or start this node without retry_join",
            ));
        }
        let config = self.judge_kept(archive).await?;
        let failed = |e: &dyn std::fmt::Display| ApiError::internal("keeping a snapshot", e);
        let synced = std::fs::File::open(archive).and_then(|file| file.sync_all());
        synced.map_err(|e| failed(&e))?;
        std::fs::rename(archive, self.kept_archive()).map_err(|e| failed(&e))?;
        let dir = std::fs::File::open(self.settings.dir.snapshots()).and_then(|dir| dir.sync_all());
        dir.map_err(|e| failed(&e))?;
        tracing::info!(
            vault_id = %config.vault_id,
            root_generation = config.root_generation,
            "a snapshot waits for its unseal shares on this node"
        );
        self.progress.lock().reset();
        *self.awaited.lock() = Some(Awaited { config });
        Ok(())
    }

    /// Forgets an archive that was kept.
    fn forget_kept(&self) {
        self.awaited.lock().take();
        drop(Upload::at(self.kept_archive()));
    }

    /// Restores what is kept if this root key is that of its vault; false if nothing of that vault is kept.
    ///
    /// # Errors
    /// What is wrong with it: it is forgotten then, and this node belongs to no vault.
    pub(super) async fn reinstate(
        self: Arc<Self>,
        config: &SealConfig,
        root: &RootKey,
    ) -> Result<bool, ApiError> {
        let ours = |awaited: &Awaited| awaited.config == *config;
        if !self.awaited.lock().as_ref().is_some_and(ours) {
            return Ok(false);
        }
        let (node, config, root) = (Arc::clone(&self), config.clone(), root.duplicate());
        // Another series of shares ends an opening, and this must not be ended half way.
        let work = tokio::spawn(async move {
            let _one = node.restoring.lock().await;
            match node.replica().is_some() {
                true => Ok(()),
                false => node.found_from_kept(&config, root).await,
            }
        });
        work.await.unwrap_or_else(|e| Err(ApiError::internal("restoring", &e))).map(|()| true)
    }

    async fn found_from_kept(&self, config: &SealConfig, root: RootKey) -> Result<(), ApiError> {
        let began = std::time::Instant::now();
        let opened = self.open_kept(config, &root).await;
        let (sealed_keyring, keyring) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if matches!(error, ApiError::Invalid(_)) {
                    self.forget_kept();
                }
                return Err(error);
            }
        };
        let claimed = self.claim_vault().await?;
        let founding = self.found().map_err(|e| ApiError::internal("founding a cluster", &e))?;
        claimed.commit().await?;
        let dir = self.data_dir();
        let failed = |e: &dyn std::fmt::Display| {
            ApiError::Internal(format!("the restore failed: {e}; start this node again, which undoes it"))
        };
        write_file_durably(&dir.join(MARKER), b"", 0o600).map_err(|e| failed(&e))?;
        let result = self.establish_from(config, root, keyring, sealed_keyring, founding).await;
        self.provisional.write().take();
        let records = match result {
            Ok(records) => records,
            Err(error) => {
                let replica = self.replica.write().take();
                if let Some(replica) = replica {
                    replica.shutdown().await;
                }
                VaultSide::latched(self, "a restore failed; start this node again, which undoes it");
                return Err(failed(&error));
            }
        };
        unmark(&dir).map_err(|e| failed(&e))?;
        claimed.keep();
        self.forget_kept();
        forget_enrolment(&dir);
        metrics::counter!("keystead_backup_restored_total").increment(1);
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(records, seconds, "a vault was restored, and leads a cluster of its own");
        Ok(())
    }

    /// Checks what is kept with its root key, and opens its keyring.
    async fn open_kept(&self, config: &SealConfig, root: &RootKey) -> Result<(Vec<u8>, Keyring), ApiError> {
        let (backup, found) = judge(&self.kept_archive()).await?;
        if found.seal_config().map_err(bad_archive)? != *config {
            return Err(ApiError::invalid("the kept snapshot is another one by now; enter the shares again"));
        }
        let barrier = found.open(&backup, root).map_err(bad_archive)?;
        Ok((found.sealed_keyring().map_err(bad_archive)?.to_vec(), barrier.keyring().duplicate()))
    }

    async fn establish_from(
        &self,
        config: &SealConfig,
        root: RootKey,
        keyring: Keyring,
        sealed_keyring: Vec<u8>,
        founding: Founding,
    ) -> Result<u64, ApiError> {
        let failed = |context: &'static str| move |e: &dyn std::fmt::Display| ApiError::internal(context, e);
        let cluster = ClusterName { id: founding.cluster.id.clone(), name: founding.cluster.name.clone() };
        let keys = Arc::new(OpenKeys::new(config, root, keyring, &cluster));
        *self.provisional.write() = Some(keys.clone());
        let writes = cluster_writes(&keys, &config.encode(), sealed_keyring, &founding)?;
        founding.identity.save(&self.data_dir()).map_err(|e| failed("saving the identity")(&e))?;
        let identity = Arc::new(founding.identity);
        let replica = self
            .start_replica(identity, true, Some(founding.directory))
            .await
            .map_err(|e| failed("starting replication")(&e))?;
        replica.bootstrap().await.map_err(|e| failed("founding the cluster")(&e))?;
        let txn = Txn {
            checks: vec![Check::Record { key: records::seal_config_key(), version: None }],
            writes,
            ..Txn::default()
        };
        first_entry(&replica, txn).await.map_err(|e| failed("writing the first entry")(&e))?;
        let plan =
            Plan { keep: kept(&keys)?, meet: Vec::new(), leave_out: None, checks: Vec::new(), reseal: None };
        let (_, records) = stage_and_activate(&replica, &self.kept_archive(), plan).await?;
        Ok(records)
    }
}
