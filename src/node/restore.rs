//! Restoring a backup: verified as a whole before anything is proposed, staged in pieces, activated in one entry.
//!
//! In place the cluster keeps who it is: seal configuration, keyring, name, directory and CA stay as they are, and a token
//! is valid afterwards only if it was valid before and is in the backup. A node that is not initialised keeps the
//! archive until the shares of its vault are entered, and then founds a cluster of its own with that vault's state.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use keystead_raft::{ProposeError, ProposeOutcome, Replica, Replicated as _};
use keystead_storage::{
    Activation, Check, FolderKey, Pieces, RecordKey, RequestId, SnapshotItem, Txn, Version, Write,
};
use tokio::sync::mpsc;

use super::{Node, OpenKeys, records};
use crate::{
    backup::{self, Backup, BackupError, KeyRecords},
    barrier::{Barrier, MountId},
    core::{error::ApiError, node_ops::RestoreRequest, request::fresh_id, txn::open_any},
    secret::random_array,
};

/// Bytes of a piece, unless entries of the cluster are bounded lower.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces in flight: half of what a leader admits in bytes is left to everybody else.
const IN_FLIGHT: usize = 12;
/// How long a piece, or the activation, is proposed again while the leader is overloaded or the outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(20);
/// Staged pieces that are removed with one entry.
const SWEPT: usize = 100;

/// What of a backup is not taken, and what of the present state stays.
pub(super) struct Plan {
    pub keep: Vec<RecordKey>,
    pub meet: Vec<FolderKey>,
    /// Below here nothing is taken.
    pub leave_out: Option<FolderKey>,
    /// What must still be so when it is activated.
    pub checks: Vec<Check>,
    /// The keys of the backup, where the present ones do not open its records.
    pub reseal: Option<Reseal>,
}

/// From the keys of a backup to those of the present vault.
pub(super) struct Reseal {
    from: Barrier,
    to: Arc<OpenKeys>,
}

impl Reseal {
    fn record(&self, key: &RecordKey, value: &[u8]) -> Result<(RecordKey, bytes::Bytes), BackupError> {
        let invalid =
            |e: &dyn std::fmt::Display| BackupError::Refused(format!("a record cannot be sealed anew: {e}"));
        let opened = open_any(&self.from, key.as_bytes(), value);
        let (kind, plain) =
            opened.ok_or_else(|| invalid(&"it does not open with the keys of the snapshot"))?;
        let (mount, path) = self.from.open_path(key.as_bytes()).map_err(|e| invalid(&e))?;
        let segments: Vec<&str> = path.iter().map(String::as_str).collect();
        let barrier = self.to.barrier();
        let key = barrier.seal_path(mount, &segments).map_err(|e| invalid(&e))?;
        let key = RecordKey::parse(key).map_err(|e| invalid(&e))?;
        let value = barrier.seal_value(kind, key.as_bytes(), &plain);
        Ok((key, value.into()))
    }
}

/// What a bad archive is told as.
pub(super) fn bad_archive(error: BackupError) -> ApiError {
    match error {
        BackupError::Io(_) => ApiError::internal("reading a backup", &error),
        _ => ApiError::invalid(error.to_string()),
    }
}

/// What Vault says of a snapshot that its own keys did not seal; clients look for it.
const OTHER_KEYS: &str = "could not verify hash file, possibly the snapshot is using a different set of unseal keys; use the snapshot-force API to bypass this check";

impl Node {
    /// Makes sure that what an archive holds can be staged and built beside the present state.
    ///
    /// # Errors
    /// 507, which names the remedy.
    pub(super) fn room_to_restore(&self, archive: &Path) -> Result<(), ApiError> {
        let packed = std::fs::metadata(archive).map_or(0, |found| found.len());
        let seen = self.settings.dir.disk().space().look();
        let seen = seen.map_err(|e| ApiError::internal("looking at the disk", &e))?;
        let need = packed.saturating_mul(3).saturating_add(seen.watermarks().low_bytes);
        if seen.free_bytes >= need {
            return Ok(());
        }
        let free = seen.free_bytes;
        Err(ApiError::DiskFull(format!(
            "nothing was restored: that takes {need} free bytes on this node's disk, and there are {free}; free space on its file system or enlarge it"
        )))
    }

    /// Restores an archive into the cluster that this node leads.
    ///
    /// # Errors
    /// 400 for an archive that is damaged, forged, or of another vault or root key; 503 when leadership was lost: nothing
    /// was changed then. After 409 it may have been restored.
    pub(super) async fn restore_in_place(&self, request: RestoreRequest) -> Result<(), ApiError> {
        let archive = request.archive.as_path();
        let busy = |_| ApiError::Busy("another restore is running; wait for its end".to_owned());
        let _one = self.restoring.try_lock().map_err(busy)?;
        let began = std::time::Instant::now();
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        self.room_to_restore(archive)?;
        let (backup, found) = judge(archive).await?;
        let plan = plan_in_place(&replica, &keys, &backup, &found, &request)?;
        if let Some(shortage) = replica.shortage() {
            return Err(ApiError::DiskFull(format!("nothing was restored: {shortage}")));
        }
        let of_index = backup.meta.index;
        let (version, records) = stage_and_activate(&replica, archive, plan).await?;
        metrics::counter!("keystead_backup_restored_total").increment(1);
        tracing::info!(
            records,
            of_index,
            generation = version.generation,
            seconds = began.elapsed().as_secs_f64(),
            "a backup was restored"
        );
        Ok(())
    }

    /// Removes pieces that nobody will activate: of a restore that failed, or whose leader is gone.
    async fn sweep_staged(&self) -> Result<(), ApiError> {
        let Ok(_one) = self.restoring.try_lock() else { return Ok(()) };
        let Some(replica) = self.replica() else { return Ok(()) };
        loop {
            if self.keys.read().is_none() || !replica.leadership().borrow().is_self {
                return Ok(());
            }
            let found = replica.state().staged(SWEPT).map_err(|e| ApiError::internal("sweeping", &e))?;
            if found.is_empty() {
                return Ok(());
            }
            let writes = found.into_iter().map(|key| Write::Delete { key }).collect();
            match replica.propose(Txn { writes, ..Txn::default() }).await {
                Ok(_) => {}
                Err(error) => return Err(ApiError::Busy(error.to_string())),
            }
        }
    }
}

/// Sweeps now and then, on the leader.
pub(super) async fn sweep(node: std::sync::Weak<Node>, mut stopping: tokio::sync::watch::Receiver<bool>) {
    const INTERVAL: Duration = Duration::from_secs(5);
    loop {
        tokio::select! {
            changed = stopping.changed() => if changed.is_err() || *stopping.borrow() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let Some(node) = node.upgrade() else { return };
        if let Err(error) = node.sweep_staged().await {
            tracing::debug!(%error, "staged pieces are removed later");
        }
    }
}

/// Judges a backup with the keys of the present vault, and says what of both is taken.
fn plan_in_place(
    replica: &Replica,
    keys: &Arc<OpenKeys>,
    backup: &Backup,
    found: &KeyRecords,
    request: &RestoreRequest,
) -> Result<Plan, ApiError> {
    let seal = &backup.seal;
    let present = keys.unsealed().vault_id;
    if seal.vault_id != present && !request.force {
        return Err(ApiError::invalid(OTHER_KEYS));
    }
    // What the present root key has not sealed, that of its time has to open.
    let from = match &request.root {
        Some(root) => found.open(backup, root).map_err(bad_archive)?,
        None if seal.vault_id != present => {
            return Err(ApiError::invalid(
                "the snapshot is of another vault, whose shares alone open it: give them to `operator raft snapshot restore -force -shares`, or restore it into a node that is not initialised",
            ));
        }
        None if seal.root_generation != keys.root_generation() => {
            let (then, now) = (seal.root_generation, keys.root_generation());
            return Err(ApiError::invalid(format!(
                "the snapshot was made under root key {then}, and the present one is {now}: give the shares of its time to `operator raft snapshot restore -shares`, or restore it into a node that is not initialised"
            )));
        }
        None => found.open(backup, keys.root()).map_err(bad_archive)?,
    };
    let keyring = from.keyring();
    let present_keyring = keys.barrier().keyring();
    let terms: BTreeMap<_, _> =
        present_keyring.barrier_terms().iter().map(|term| (term.term, &term.key)).collect();
    let same = seal.vault_id == present
        && keyring.path_key().ct_eq(present_keyring.path_key())
        && keyring
            .barrier_terms()
            .iter()
            .all(|term| terms.get(&term.term).is_some_and(|present| present.ct_eq(&term.key)));
    let tokens = keys
        .barrier()
        .seal_folder(MountId::VAULT, &["token"])
        .map_err(|e| ApiError::internal("path of the tokens", &e))?;
    let tokens = FolderKey::parse(tokens).map_err(|e| ApiError::internal("path of the tokens", &e))?;
    let state = replica.state();
    let check = |key: RecordKey| -> Result<Check, ApiError> {
        let record = state.get(&key).map_err(|e| ApiError::internal("reading the state", &e))?;
        Ok(Check::Record { key, version: record.map(|record| record.version) })
    };
    let checks = vec![check(records::seal_config_key())?, check(records::keyring_key())?];
    Ok(Plan {
        keep: kept(keys)?,
        leave_out: request.revoke_tokens.then(|| tokens.clone()),
        meet: vec![tokens],
        checks,
        reseal: (!same).then(|| Reseal { from, to: Arc::clone(keys) }),
    })
}

/// What makes a cluster the one that it is.
pub(super) fn kept(keys: &OpenKeys) -> Result<Vec<RecordKey>, ApiError> {
    Ok(vec![
        records::seal_config_key(),
        records::keyring_key(),
        records::cluster_key(),
        records::directory_key(),
        records::cluster_ca_key(keys.barrier())?,
    ])
}

/// Reads an archive to its end, as a whole and without keys: what is wrong with it is known before anything is done.
pub(super) async fn judge(archive: &Path) -> Result<(Backup, KeyRecords), ApiError> {
    let archive = archive.to_owned();
    let judged = tokio::task::spawn_blocking(move || {
        let mut found = KeyRecords::default();
        let backup = backup::read(File::open(&archive)?, |item| {
            found.take(&item);
            Ok(())
        })?;
        Ok((backup, found))
    });
    judged.await.map_err(|e| ApiError::internal("reading a backup", &e))?.map_err(bad_archive)
}

/// Stages all records of a backup and makes them the state.
///
/// # Errors
/// As [`Node::restore_in_place`].
pub(super) async fn stage_and_activate(
    replica: &Replica,
    archive: &Path,
    plan: Plan,
) -> Result<(Version, u64), ApiError> {
    let restore: [u8; 16] = random_array();
    let piece_bytes = PIECE_BYTES.min(replica.params().max_entry_size as usize / 2);
    let (pieces, mut ready) = mpsc::channel(IN_FLIGHT);
    let Plan { keep, meet, leave_out, checks, reseal } = plan;
    let (kept, archive) = (keep.clone(), archive.to_owned());
    let cutting = tokio::task::spawn_blocking(move || {
        cut_pieces(&archive, restore, piece_bytes, &kept, leave_out.as_ref(), reseal.as_ref(), &pieces)
    });
    let mut flying = FuturesUnordered::new();
    while let Some(piece) = ready.recv().await {
        flying.push(stage(replica, piece));
        if flying.len() == IN_FLIGHT
            && let Some(staged) = flying.next().await
        {
            staged?;
        }
    }
    let cut = cutting.await.map_err(|e| ApiError::internal("reading a backup", &e))?;
    let activation = match cut {
        Ok(activation) => Activation { keep, meet, ..activation },
        Err(error) => return Err(bad_archive(error)),
    };
    while let Some(staged) = flying.next().await {
        staged?;
    }
    let records = activation.rows;
    activate(replica, activation, checks).await.map(|version| (version, records))
}

/// Reads a backup and hands its records over in pieces.
fn cut_pieces(
    archive: &PathBuf,
    restore: [u8; 16],
    piece_bytes: usize,
    kept: &[RecordKey],
    leave_out: Option<&FolderKey>,
    reseal: Option<&Reseal>,
    ready: &mpsc::Sender<Write>,
) -> Result<Activation, BackupError> {
    let mut pieces = Pieces::new(restore, piece_bytes);
    // Nobody takes them any more once one could not be staged, and why is known there.
    let hand_over = |piece: Write| {
        ready.blocking_send(piece).map_err(|_| BackupError::Refused("the restore was abandoned".to_owned()))
    };
    backup::read(File::open(archive)?, |item| {
        // Clear records are the cluster's own, and staged ones of a restore that had not come to its end.
        let SnapshotItem::Record { key, record } = item else { return Ok(()) };
        if key.parent().is_none() || kept.contains(&key) {
            return Ok(());
        }
        if leave_out.is_some_and(|folder| key.as_bytes().starts_with(folder.as_bytes())) {
            return Ok(());
        }
        let (key, value) = match reseal {
            Some(reseal) => reseal.record(&key, &record.value)?,
            None => (key, record.value),
        };
        pieces.add(&key, value);
        while let Some(piece) = pieces.next_piece() {
            hand_over(piece)?;
        }
        Ok(())
    })?;
    let (last, activation) = pieces.finish();
    last.map_or(Ok(()), hand_over)?;
    Ok(activation)
}

/// Writes one piece. Writing it twice changes nothing, so an unknown outcome is no hindrance.
async fn stage(replica: &Replica, piece: Write) -> Result<(), ApiError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let txn = Txn { writes: vec![piece.clone()], ..Txn::default() };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(_)) => return Ok(()),
            Ok(other) => return Err(ApiError::internal("staging a piece", &format!("{other:?}"))),
            Err(ProposeError::Overloaded | ProposeError::Unknown)
                if tokio::time::Instant::now() < deadline && replica.shortage().is_none() =>
            {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(given_up(replica, &error)),
        }
    }
}

fn given_up(replica: &Replica, error: &ProposeError) -> ApiError {
    match replica.shortage() {
        Some(shortage) => ApiError::DiskFull(format!("nothing was restored: {shortage}")),
        None => ApiError::Busy(format!("nothing was restored: {error}; restore again")),
    }
}

/// Makes what is staged the state, once.
async fn activate(
    replica: &Replica,
    activation: Activation,
    checks: Vec<Check>,
) -> Result<Version, ApiError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let id: RequestId = fresh_id();
    let held = checks.len();
    loop {
        let activate = Some(Box::new(activation.clone()));
        let txn = Txn { request_id: id, checks: checks.clone(), activate, ..Txn::default() };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(version) | ProposeOutcome::Duplicate { version, .. }) => {
                return Ok(version);
            }
            Ok(ProposeOutcome::Conflict { check }) => {
                return Err(match check < held {
                    true => ApiError::Busy(
                        "the keys of the vault were changed meanwhile, and nothing was restored; restore again"
                            .to_owned(),
                    ),
                    false => ApiError::internal("activating a restore", &"what was staged is not what was sent"),
                });
            }
            Err(ProposeError::Overloaded | ProposeError::Unknown)
                if tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(RETRY).await;
                if let Some((version, _)) = replica.state().request(id) {
                    return Ok(version);
                }
            }
            Err(ProposeError::Unknown) => return Err(ApiError::OutcomeUnknown),
            Err(error) => {
                return match replica.state().request(id) {
                    Some((version, _)) => Ok(version),
                    None => Err(given_up(replica, &error)),
                };
            }
        }
    }
}
