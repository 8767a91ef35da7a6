//! How the disk below the data directory does: how much is free, and whether it stands still.
//!
//! A sync that hangs shows nowhere in the consensus library: a leader whose disk hangs would go on leading. So a
//! thread of its own looks at the syncs under way and calls the disk *slow* once one takes longer than
//! [`SLOW_SYNC`]. It is called well again only when a few small writes in a row were synced quickly.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::StorageError;
use crate::guard::abort_on_panic;
use crate::space::{Space, SpaceView};
use crate::sync_meter::SyncMeter;

/// A sync that runs for longer than this makes the disk slow, and a leader hand over.
pub const SLOW_SYNC: Duration = Duration::from_secs(1);
/// How often the disk is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// So many looks in a row must see the sync hang: after a pause of the whole process the first one says nothing.
const HUNG_LOOKS: u32 = 2;
/// A slow disk is tried again this often.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// A trial that takes longer than this has failed.
const PROBE_QUICK: Duration = Duration::from_millis(100);
/// So many trials in a row must succeed.
const PROBES: u32 = 3;
/// What a trial writes.
const PROBE_BYTES: [u8; 4096] = [0; 4096];

/// The watch over one data directory's disk.
#[derive(Debug)]
pub struct DiskWatch {
    space: Space,
    probe: PathBuf,
    meters: Mutex<Vec<Weak<SyncMeter>>>,
    slow: AtomicBool,
    watched: AtomicBool,
}

/// What is known of the disk, without asking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Free space at the last look.
    pub space: SpaceView,
    /// A sync took longer than [`SLOW_SYNC`], and the disk has not shown since that it is quick again.
    pub slow: bool,
}

impl DiskWatch {
    /// Looks once; nothing is watched yet.
    ///
    /// # Errors
    /// [`StorageError::Io`] if the file system does not say how much is free.
    pub fn new(path: &Path) -> Result<Self, StorageError> {
        let probe = path.join("probe");
        remove(&probe);
        Ok(Self {
            space: Space::new(path)?,
            probe,
            meters: Mutex::default(),
            slow: AtomicBool::new(false),
            watched: AtomicBool::new(false),
        })
    }

    /// Free space, for whoever is about to write.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// How the disk does. Asks nobody, so that it answers while the disk hangs.
    pub fn status(&self) -> DiskStatus {
        DiskStatus { space: self.space.view(), slow: self.slow.load(Ordering::Acquire) }
    }

    /// How long the sync has been running that has been running longest; zero if there is none.
    pub fn running(&self) -> Duration {
        let meters = self.meters.lock();
        let running = meters.iter().filter_map(Weak::upgrade).map(|meter| meter.running_us()).max();
        Duration::from_micros(running.unwrap_or(0))
    }

    /// Whether something that was to be written is held up: by a sync that hangs, or for want of room.
    pub fn is_stalled(&self) -> bool {
        self.space.is_waited_for() || self.running() > SLOW_SYNC
    }

    /// Has the syncs of log or state looked at.
    pub(crate) fn add_meter(&self, meter: &Arc<SyncMeter>) {
        let mut meters = self.meters.lock();
        meters.retain(|known| known.strong_count() > 0);
        meters.push(Arc::downgrade(meter));
    }

    /// Starts the watching thread and keeps a ballast file, once; the thread ends when the last handle is gone.
    ///
    /// # Errors
    /// [`StorageError::Io`] when no thread can be started.
    pub fn watch(self: &Arc<Self>) -> Result<(), StorageError> {
        if self.watched.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let watch = Arc::downgrade(self);
        let run = move || {
            let mut trials = Trials::default();
            while let Some(watch) = watch.upgrade() {
                watch.tick(&mut trials);
                drop(watch);
                std::thread::sleep(INTERVAL);
            }
        };
        std::thread::Builder::new()
            .name("disk-watch".to_owned())
            .spawn(move || abort_on_panic("disk-watch", run))
            .map_err(|e| StorageError::io("start the disk watch", e))?;
        Ok(())
    }

    fn tick(&self, trials: &mut Trials) {
        let running = self.running();
        metrics::gauge!("keystead_disk_sync_running_seconds").set(running.as_secs_f64());
        trials.hung = if running > SLOW_SYNC { trials.hung + 1 } else { 0 };
        if trials.hung >= HUNG_LOOKS {
            trials.good = 0;
            self.set_slow(true, running);
        } else if self.slow.load(Ordering::Acquire) && trials.due() && trials.ended(self.try_disk()) {
            self.set_slow(false, running);
        }
        // Who cannot be told how much is free goes on with what was seen last.
        match self.space.look() {
            Ok(_) => self.space.keep_ballast(),
            Err(error) => tracing::debug!(%error, "free space is not known"),
        }
    }

    fn set_slow(&self, slow: bool, running: Duration) {
        if self.slow.swap(slow, Ordering::AcqRel) == slow {
            return;
        }
        metrics::gauge!("keystead_node_disk_slow").set(if slow { 1.0 } else { 0.0 });
        let running_ms = u64::try_from(running.as_millis()).unwrap_or(u64::MAX);
        if slow {
            metrics::counter!("keystead_disk_slow_total").increment(1);
            tracing::error!(
                running_ms,
                "a sync hangs: this node keeps away from leadership until its disk is quick again; look after the disk"
            );
        } else {
            tracing::info!("the disk is quick again");
        }
    }

    /// Writes a little, syncs it, and says how long that took.
    fn try_disk(&self) -> io::Result<Duration> {
        let began = Instant::now();
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&self.probe)?;
        let result = file.write_all(&PROBE_BYTES).and_then(|()| file.sync_data());
        remove(&self.probe);
        result.map(|()| began.elapsed())
    }
}

/// What one look tells the next: looks in a row at a sync that hangs, and trials of a slow disk since it last failed
/// one.
#[derive(Default)]
struct Trials {
    hung: u32,
    last: Option<Instant>,
    good: u32,
}

impl Trials {
    fn due(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= PROBE_INTERVAL)
    }

    /// Notes how one ended; says whether the disk has passed.
    fn ended(&mut self, took: io::Result<Duration>) -> bool {
        self.last = Some(Instant::now());
        self.good = match took {
            Ok(took) if took <= PROBE_QUICK => self.good + 1,
            _ => 0,
        };
        self.good >= PROBES
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, path = %path.display(), "a trial's file cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_hangs_makes_the_disk_slow_until_it_has_shown_that_it_is_quick() {
        let dir = tempfile::tempdir().unwrap();
        let watch = DiskWatch::new(dir.path()).unwrap();
        let quick = Arc::new(SyncMeter::begun(SLOW_SYNC / 2));
        watch.add_meter(&quick);
        let mut trials = Trials::default();
        watch.tick(&mut trials);
        assert!(!watch.status().slow);
        let meter = Arc::new(SyncMeter::begun(SLOW_SYNC * 2));
        watch.add_meter(&meter);
        watch.tick(&mut trials);
        assert!(!watch.status().slow, "the process may have been paused");
        watch.tick(&mut trials);
        assert!(watch.status().slow);
        assert!(watch.running() >= SLOW_SYNC);
        quick.finish();
        meter.finish();
        watch.tick(&mut trials);
        assert!(watch.status().slow, "one quick trial is not enough");
        assert_eq!(trials.good, 1);
        assert!(!trials.ended(Ok(PROBE_QUICK * 2)), "a slow trial begins the count anew");
        assert!(!trials.ended(Ok(PROBE_QUICK)) && !trials.ended(Err(io::ErrorKind::Other.into())));
        trials = Trials { last: None, good: PROBES - 1, hung: 0 };
        watch.tick(&mut trials);
        assert!(!watch.status().slow);
        assert!(!dir.path().join("probe").exists());
    }

    #[test]
    fn the_thread_ends_with_the_last_handle() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Arc::new(DiskWatch::new(dir.path()).unwrap());
        watch.watch().unwrap();
        let weak = Arc::downgrade(&watch);
        drop(watch);
        let deadline = Instant::now() + Duration::from_secs(10);
        while weak.strong_count() > 0 {
            assert!(Instant::now() < deadline, "the watch is still held");
            std::thread::yield_now();
        }
    }
}
