//! Snapshots by a schedule: the leader takes them.
//!
//! When the latest began is in the replicated state, so that a new leader goes on where the former one was, and takes none that
//! was taken. What a leader that dies was about to write down is taken again.

use std::{
    path::{Component, Path},
    sync::Weak,
    time::Duration,
};

use keystead_raft::Replicated as _;
use tokio::sync::watch;

use super::{Node, snapshot_store::Store};
use crate::{
    backup::{self, BackupError, Contents, KeyRecords},
    core::{
        Core,
        error::ApiError,
        snapshot_auto::{Schedule, Status, Target},
    },
};

/// How often the schedules are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Takes what is due, as long as the node runs.
pub(super) async fn keep(node: Weak<Node>, mut stopping: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            changed = stopping.changed() => if changed.is_err() || *stopping.borrow() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
        let Some(node) = node.upgrade() else { return };
        let taking = node.take_what_is_due();
        tokio::select! {
            changed = stopping.changed() => if changed.is_err() || *stopping.borrow() { return },
            () = taking => {}
        }
    }
}

impl Node {
    async fn take_what_is_due(&self) {
        let leads = self.replica().is_some_and(|replica| replica.leadership().borrow().is_self);
        let core = self.core().filter(|_| leads && self.keys.read().is_some());
        let Some(core) = core else {
            self.snapshot_warnings.lock().clear();
            return;
        };
        let schedules = match core.snapshot_schedules() {
            Ok(schedules) => schedules,
            Err(error) => {
                tracing::debug!(%error, "the schedules of snapshots cannot be read");
                return;
            }
        };
        let mut warnings = Vec::new();
        for (name, schedule, mut status) in schedules {
            let now_ms = self.replica().map_or(0, |replica| replica.cluster_time_ms());
            if schedule.next_ms(&status) <= now_ms {
                status = self.take_scheduled(&core, &name, &schedule, status).await;
            }
            if schedule.is_overdue(&status, now_ms) {
                warnings.push(format!(
                    "scheduled snapshots {name:?} have not succeeded for more than twice their interval: {}",
                    status.error
                ));
            }
            let seconds = status.succeeded_ms as f64 / 1000.0;
            metrics::gauge!("keystead_snapshot_auto_last_success_time_seconds", "name" => name.clone())
                .set(seconds);
            metrics::gauge!("keystead_snapshot_auto_consecutive_errors", "name" => name)
                .set(status.consecutive_errors as f64);
        }
        *self.snapshot_warnings.lock() = warnings;
    }

    async fn take_scheduled(&self, core: &Core, name: &str, schedule: &Schedule, before: Status) -> Status {
        let now = || self.replica().map_or(0, |replica| replica.cluster_time_ms());
        let started_ms = now();
        let taken = self.take_to_store(schedule).await;
        let mut status = Status { started_ms, ended_ms: now(), ..before };
        match taken {
            Ok(Stored { url, index }) => {
                tracing::info!(
                    name,
                    url,
                    index,
                    tested = schedule.test_restore,
                    "a scheduled snapshot was stored"
                );
                status.consecutive_errors = 0;
                status.succeeded_ms = status.ended_ms;
                status.tested = schedule.test_restore;
                (status.url, status.index, status.error) = (url, index, String::new());
            }
            Err(error) => {
                tracing::warn!(name, error, "a scheduled snapshot failed, and is tried again");
                metrics::counter!("keystead_snapshot_auto_failures_total").increment(1);
                status.consecutive_errors += 1;
                status.error = error;
            }
        }
        if let Err(error) = core.note_snapshot(name, &status).await {
            tracing::warn!(name, %error, "how a scheduled snapshot went cannot be written down");
        }
        status
    }

    async fn take_to_store(&self, schedule: &Schedule) -> Result<Stored, String> {
        if matches!(schedule.target, Target::Local { .. }) {
            self.check_directory(Path::new(&schedule.path_prefix))?;
        }
        let store = Store::open(schedule)?;
        let taken = self.take_snapshot().await.map_err(|error: ApiError| error.to_string())?;
        let (meta, archive) = taken.send();
        let file = format!("{}-{:013}.snap", schedule.file_prefix, meta.keystead.created_ms);
        store.put(&file, archive).await?;
        if schedule.test_restore {
            self.test_restore(&store, &file)
                .await
                .map_err(|error| format!("the stored snapshot failed its test: {error}"))?;
        }
        store.tidy(&file).await.map_err(|error| format!("older snapshots cannot be removed: {error}"))?;
        Ok(Stored { url: store.url(&file), index: meta.index })
    }

    /// Opens everything in a stored snapshot, with the keys of this node.
    async fn test_restore(&self, store: &Store, file: &str) -> Result<(), String> {
        let keys = self.keys.read().clone().ok_or("this node was sealed meanwhile")?;
        let spooled = self
            .settings
            .dir
            .snapshots()
            .join(format!("spool-test-{:016x}", keystead_raft::fresh_incarnation()));
        let fetched = store.fetch(file, spooled).await?;
        let tested = tokio::task::spawn_blocking(move || {
            let open = || std::fs::File::open(fetched.path()).map_err(BackupError::Io);
            let mut records = KeyRecords::default();
            let backup = backup::read(open()?, |item| {
                records.take(&item);
                Ok(())
            })?;
            let barrier = records.open(&backup, keys.root())?;
            let mut contents = Contents::default();
            backup::read(open()?, |item| backup::check(&barrier, &item, &mut contents))?;
            Ok::<_, BackupError>(contents)
        });
        let contents = tested.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        tracing::debug!(records = contents.records(), "a stored snapshot was opened");
        Ok(())
    }

    /// Whether snapshots may be put into a directory: below the one that the configuration names, which no token can
    /// leave.
    pub(super) fn check_directory(&self, directory: &Path) -> Result<(), String> {
        let Some(allowed) = &self.settings.snapshot_directory else {
            return Err("this node stores no snapshots on its disk: set snapshot_directory in its storage \"raft\" block, or use aws-s3".to_owned());
        };
        let plain =
            directory.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir));
        if !plain || !directory.starts_with(allowed) {
            return Err(format!(
                "path_prefix must be {} or below it (snapshot_directory)",
                allowed.display()
            ));
        }
        Ok(())
    }
}

/// What was stored.
struct Stored {
    url: String,
    index: u64,
}
