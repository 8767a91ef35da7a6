//! Snapshots on their way to a peer: the state is cut once, spooled to one local file of sealed bytes, and
//! everybody who needs it is served from that file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_storage::{SnapshotCut, SnapshotFile, SnapshotMeta, StorageError};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A spooled snapshot serves whoever asks within this time; later a newer cut is taken, so that a follower does
/// not start from a point that the log has left behind.
const FRESH: Duration = Duration::from_secs(60);

type Spooled = Option<Result<Arc<SnapshotFile>, StorageError>>;

/// One cut and the file it is spooled to.
pub struct Spool {
    /// What the cut is of.
    pub meta: SnapshotMeta,
    path: PathBuf,
    made: Instant,
    file: watch::Receiver<Spooled>,
}

impl Spool {
    /// Waits until the file is complete.
    ///
    /// # Errors
    /// What went wrong while spooling; the cut may have been given up because too much was written meanwhile.
    pub async fn file(&self) -> Result<Arc<SnapshotFile>, StorageError> {
        let mut file = self.file.clone();
        match file.wait_for(Option::is_some).await {
            Ok(done) => done.clone().expect("wait_for saw it"),
            Err(_) => Err(StorageError::Latched { first: "spooling a snapshot was abandoned".into() }),
        }
    }

    fn is_spent(&self, floor: u64) -> bool {
        match &*self.file.borrow() {
            // The one cut there can be is in use until it is written.
            None => false,
            Some(Err(_)) => true,
            Some(Ok(_)) => {
                let index = self.meta.log_id.as_ref().map_or(0, |id| id.index);
                self.made.elapsed() > FRESH || index < floor
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty()
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a spooled snapshot");
        }
    }
}

/// The spools of a node: at most one current one.
pub struct Spools {
    dir: PathBuf,
    latest: Mutex<Option<Arc<Spool>>>,
}

impl Spools {
    /// Spools go to `dir`; what an earlier process left there is removed.
    pub fn new(dir: PathBuf) -> Self {
        remove_leftovers(&dir);
        Self { dir, latest: Mutex::default() }
    }

    /// Where they lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The current spool: one that is being written, or one that is fresh and ends above `floor`, the last
    /// index that the log no longer has.
    pub fn latest(&self, floor: u64) -> Option<Arc<Spool>> {
        let mut latest = self.latest.lock();
        if latest.as_ref().is_some_and(|spool| spool.is_spent(floor)) {
            *latest = None;
        }
        latest.clone()
    }

    /// Lets a spool go that nobody needs any more.
    pub fn tidy(&self) {
        let mut latest = self.latest.lock();
        if latest.as_ref().is_some_and(|spool| spool.is_spent(0)) {
            *latest = None;
        }
    }

    /// A spool of a cut that could not be taken: whoever wants to send it learns why, and tries again later.
    pub fn failed(&self, meta: SnapshotMeta, error: StorageError) -> Arc<Spool> {
        let (_, file) = watch::channel(Some(Err(error)));
        Arc::new(Spool { meta, path: PathBuf::new(), made: Instant::now(), file })
    }

    /// Starts spooling a cut on a thread of its own.
    pub fn start(&self, cut: SnapshotCut) -> Arc<Spool> {
        let meta = cut.meta().clone();
        let index = meta.log_id.as_ref().map_or(0, |id| id.index);
        let path = self.dir.join(format!("spool-{index}-{:016x}", crate::identity::fresh_incarnation()));
        let (tx, file) = watch::channel(None);
        let spool = Arc::new(Spool { meta, path: path.clone(), made: Instant::now(), file });
        tokio::task::spawn_blocking(move || {
            let result = cut.spool(&path).map(Arc::new);
            if let Err(error) = &result {
                tracing::warn!(%error, "spooling a snapshot failed");
            }
            tx.send_replace(Some(result));
        });
        *self.latest.lock() = Some(spool.clone());
        spool
    }
}

fn remove_leftovers(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("spool-")
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove an old spooled snapshot");
        }
    }
}
