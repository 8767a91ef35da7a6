//! Free space of the file system below the data directory, seen before there is none.
//!
//! Two watermarks follow from the size of the file system. Below the upper one a node is *low*: the cluster
//! refuses what grows while it has no majority of nodes with room, and goes on serving reads and deletes. Below the lower one it is
//! *full*: nothing new is taken. A ballast file stands for space that others cannot take; it is removed when the
//! lower mark is passed, so that what was acknowledged can still be written out. Whoever writes asks for room first and
//! waits until there is some: log and state must never meet a full disk, after which only opening them
//! again would help.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::StorageError;

const MIB: u64 = 1024 * 1024;
/// A look at the file system holds for this long, and for so many bytes written.
const FRESH: Duration = Duration::from_millis(20);
const FRESH_BYTES: u64 = MIB;
/// How often a writer without room looks again.
const WAIT: Duration = Duration::from_millis(50);
/// A write needs twice its size, for what it writes is merged later, and this much on top.
const OVERHEAD_BYTES: u64 = MIB;
/// What the ballast file is called.
const BALLAST: &str = "ballast";

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    /// Enough for everything.
    Ample,
    /// Enough for reads, deletes and what is under way, not for growth.
    Low,
    /// Only what was acknowledged is still written out; nothing new is taken.
    Full,
}

/// Where [`SpaceLevel`] changes, in bytes, for one size of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Less than this is [`SpaceLevel::Low`]: 2 % of the file system, from 64 to 256 MiB, but never more than a
    /// quarter of it.
    pub low_bytes: u64,
    /// Less than this is [`SpaceLevel::Full`]: a quarter of `low_bytes`. Log and state are not opened below it.
    pub full_bytes: u64,
    /// What the ballast file takes: as `full_bytes`, 16 MiB at most.
    pub ballast_bytes: u64,
}

impl Watermarks {
    /// The marks of a file system of so many bytes.
    pub fn of(total_bytes: u64) -> Self {
        let low_bytes = (total_bytes / 50).clamp(64 * MIB, 256 * MIB).min(total_bytes / 4);
        let full_bytes = low_bytes / 4;
        Self { low_bytes, full_bytes, ballast_bytes: full_bytes.min(16 * MIB) }
    }

    /// Enough to be called ample again: a quarter more than what is low, so that the level does not flap.
    fn ample_bytes(self) -> u64 {
        self.low_bytes + self.low_bytes / 4
    }

    fn judge(self, before: SpaceLevel, free_bytes: u64) -> SpaceLevel {
        let (low, full) = match before {
            SpaceLevel::Ample => (self.low_bytes, self.full_bytes),
            SpaceLevel::Low => (self.ample_bytes(), self.full_bytes),
            SpaceLevel::Full => (self.ample_bytes(), self.full_bytes + self.full_bytes / 2),
        };
        match free_bytes {
            free if free < full => SpaceLevel::Full,
            free if free < low => SpaceLevel::Low,
            _ => SpaceLevel::Ample,
        }
    }
}

/// What was seen at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceView {
    /// Bytes that an unprivileged process may still write.
    pub free_bytes: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// What that means.
    pub level: SpaceLevel,
}

impl SpaceView {
    /// The marks that the level was judged by.
    pub fn watermarks(&self) -> Watermarks {
        Watermarks::of(self.total_bytes)
    }
}

/// Bytes free for an unprivileged process, and in all.
pub(crate) type FileSystem = (u64, u64);

type Source = Box<dyn Fn(&Path) -> Result<FileSystem, StorageError> + Send + Sync>;

/// Asks the kernel.
pub(crate) fn statvfs(path: &Path) -> Result<FileSystem, StorageError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| StorageError::io(format!("free space of {}", path.display()), e.into()))?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// The watch over one file system.
pub struct Space {
    path: PathBuf,
    source: Source,
    look: Mutex<Look>,
    /// Told when room may have come back.
    looked: Condvar,
    // What others see, without waiting for a look that hangs.
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
    level: AtomicU8,
    waiting: AtomicU32,
}

struct Look {
    at: Instant,
    /// Bytes that may be written before the next look.
    budget: u64,
    level: SpaceLevel,
    ballast: Ballast,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Space({:?})", self.view())
    }
}

impl Space {
    /// Looks for the first time. A ballast that an earlier run has left counts as one.
    ///
    /// # Errors
    /// [`StorageError::Io`] if the file system does not say.
    pub fn new(path: &Path) -> Result<Self, StorageError> {
        Self::with_source(path, Box::new(statvfs))
    }

    fn with_source(path: &Path, source: Source) -> Result<Self, StorageError> {
        let ballast = Ballast::found(path.join(BALLAST));
        let space = Self {
            path: path.to_owned(),
            source,
            look: Mutex::new(Look { at: Instant::now(), budget: 0, level: SpaceLevel::Ample, ballast }),
            looked: Condvar::new(),
            free_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            level: AtomicU8::new(SpaceLevel::Ample as u8),
            waiting: AtomicU32::new(0),
        };
        space.look()?;
        Ok(space)
    }

    /// What was seen last; asks nobody.
    pub fn view(&self) -> SpaceView {
        let level = match self.level.load(Ordering::Acquire) {
            0 => SpaceLevel::Ample,
            1 => SpaceLevel::Low,
            _ => SpaceLevel::Full,
        };
        SpaceView {
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            level,
        }
    }

    /// Whether somebody waits for room.
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Looks at the file system, and removes the ballast where it is needed.
    ///
    /// # Errors
    /// [`StorageError::Io`] if the file system does not say.
    pub fn look(&self) -> Result<SpaceView, StorageError> {
        let mut look = self.look.lock();
        self.look_now(&mut look, 0)?;
        drop(look);
        self.looked.notify_all();
        Ok(self.view())
    }

    /// Puts the ballast down where there is room for it. A file system that cannot reserve blocks goes without.
    pub fn keep_ballast(&self) {
        let mut look = self.look.lock();
        let marks = Watermarks::of(self.total_bytes.load(Ordering::Relaxed));
        let free = self.free_bytes.load(Ordering::Relaxed);
        if look.level == SpaceLevel::Ample && free >= marks.ample_bytes() + marks.ballast_bytes {
            look.ballast.put_down(marks.ballast_bytes);
        }
    }

    /// Waits until `bytes` can be written; at once, where the last look leaves no doubt.
    ///
    /// # Errors
    /// [`StorageError::Full`] when `give_up` says so while there is no room; nothing was written.
    pub fn wait_for_room(&self, bytes: u64, give_up: impl Fn() -> bool) -> Result<(), StorageError> {
        let mut look = self.look.lock();
        if look.budget >= bytes && look.at.elapsed() < FRESH {
            look.budget -= bytes;
            return Ok(());
        }
        let need = bytes.saturating_mul(2) + OVERHEAD_BYTES;
        let mut waiting = None;
        loop {
            // A file system that does not say how much is free is found out by the write itself.
            let Ok(free) = self.look_now(&mut look, need) else { return Ok(()) };
            if free >= need {
                look.budget = (free - need).min(FRESH_BYTES);
                return Ok(());
            }
            if give_up() {
                return Err(StorageError::Full { path: self.path.clone(), free_bytes: free });
            }
            waiting.get_or_insert_with(|| Waiting::new(&self.waiting));
            self.looked.wait_for(&mut look, WAIT);
        }
    }

    /// Looks, with `need` as what somebody waits for, and gives the bytes that are free.
    fn look_now(&self, look: &mut Look, need: u64) -> Result<u64, StorageError> {
        let judge = |free: u64, total: u64, before: SpaceLevel| {
            if free < need { SpaceLevel::Full } else { Watermarks::of(total).judge(before, free) }
        };
        let (mut free, mut total) = (self.source)(&self.path)?;
        let mut level = judge(free, total, look.level);
        if level == SpaceLevel::Full && look.ballast.release() {
            tracing::warn!(path = %self.path.display(), free_bytes = free, "the ballast file was removed to make room");
            (free, total) = (self.source)(&self.path)?;
            level = judge(free, total, look.level.min(SpaceLevel::Low));
        }
        (look.at, look.budget) = (Instant::now(), 0);
        self.free_bytes.store(free, Ordering::Relaxed);
        self.total_bytes.store(total, Ordering::Relaxed);
        self.level.store(level as u8, Ordering::Release);
        self.tell(look.level, SpaceView { free_bytes: free, total_bytes: total, level });
        look.level = level;
        Ok(free)
    }

    /// Metrics at every look, an event at every change.
    fn tell(&self, before: SpaceLevel, now: SpaceView) {
        let flag = |set: bool| if set { 1.0 } else { 0.0 };
        metrics::gauge!("keystead_disk_free_bytes").set(now.free_bytes as f64);
        metrics::gauge!("keystead_disk_total_bytes").set(now.total_bytes as f64);
        metrics::gauge!("keystead_node_disk_low").set(flag(now.level >= SpaceLevel::Low));
        metrics::gauge!("keystead_node_disk_full").set(flag(now.level == SpaceLevel::Full));
        if before == now.level {
            return;
        }
        let path = self.path.display();
        let SpaceView { free_bytes, total_bytes, level } = now;
        let Watermarks { low_bytes, full_bytes, .. } = now.watermarks();
        match level {
            SpaceLevel::Ample => {
                tracing::info!(%path, free_bytes, total_bytes, "the disk has room again");
            }
            SpaceLevel::Low => tracing::warn!(
                %path, free_bytes, total_bytes, low_bytes,
                "the disk is almost full: free space on this file system or enlarge it, then everything goes on by itself"
            ),
            SpaceLevel::Full => tracing::error!(
                %path, free_bytes, total_bytes, full_bytes,
                "the disk is full, and this node takes nothing new: free space on this file system or enlarge it, then everything goes on by itself"
            ),
        }
    }
}

/// Counts one writer as waiting for as long as it lives.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file of reserved blocks.
struct Ballast {
    path: PathBuf,
    there: bool,
    /// The file system cannot reserve blocks.
    hopeless: bool,
}

impl Ballast {
    fn found(path: PathBuf) -> Self {
        let there = path.is_file();
        Self { path, there, hopeless: false }
    }

    fn put_down(&mut self, bytes: u64) {
        if self.there || self.hopeless {
            return;
        }
        match reserve(&self.path, bytes) {
            Ok(()) => self.there = true,
            Err(error) => {
                tracing::info!(%error, path = %self.path.display(), "no ballast file: space is not reserved here");
                self.hopeless = true;
                self.there = true;
                self.release();
            }
        }
    }

    /// Whether there was anything to remove.
    fn release(&mut self) -> bool {
        if !self.there {
            return false;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "the ballast file cannot be removed");
                false
            }
            _ => {
                self.there = false;
                true
            }
        }
    }
}

fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A file system of 256 MiB on which so much is free, the ballast taken off.
    fn fake(free: &Arc<AtomicU64>, path: &Path) -> Space {
        let free = free.clone();
        let source = move |path: &Path| {
            let ballast = fs::metadata(path.join(BALLAST)).map_or(0, |found| found.len());
            Ok((free.load(Ordering::Relaxed).saturating_sub(ballast), 256 * MIB))
        };
        Space::with_source(path, Box::new(source)).unwrap()
    }

    #[test]
    fn the_marks_fit_small_and_large_disks() {
        let marks = |total: u64| {
            let marks = Watermarks::of(total * MIB);
            [marks.low_bytes / MIB, marks.full_bytes / MIB, marks.ballast_bytes / MIB]
        };
        assert_eq!(marks(64), [16, 4, 4]);
        assert_eq!(marks(256), [64, 16, 16]);
        assert_eq!(marks(3_200), [64, 16, 16]);
        assert_eq!(marks(10_000), [200, 50, 16]);
        assert_eq!(marks(1_000_000), [256, 64, 16]);
    }

    #[test]
    fn a_level_is_left_only_with_room_to_spare() {
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(200 * MIB));
        let space = fake(&free, dir.path());
        let at = |mib: u64| {
            free.store(mib * MIB, Ordering::Relaxed);
            space.look().unwrap().level
        };
        use SpaceLevel::{Ample, Full, Low};
        let seen = [64, 63, 64, 79, 80, 16, 15, 16, 23, 24, 15, 80].map(at);
        assert_eq!(seen, [Ample, Low, Low, Low, Ample, Low, Full, Full, Full, Low, Full, Ample]);
    }

    #[test]
    fn the_ballast_is_removed_when_it_is_needed_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(200 * MIB));
        let space = fake(&free, dir.path());
        space.keep_ballast();
        let ballast = dir.path().join(BALLAST);
        assert_eq!(fs::metadata(&ballast).unwrap().len(), 16 * MIB);
        free.store(30 * MIB, Ordering::Relaxed); // 14 without the ballast's
        assert_eq!(space.look().unwrap().level, SpaceLevel::Low, "the ballast was given up instead");
        assert!(!ballast.exists());
        free.store(10 * MIB, Ordering::Relaxed);
        assert_eq!(space.look().unwrap().level, SpaceLevel::Full);
        free.store(90 * MIB, Ordering::Relaxed);
        space.look().unwrap();
        space.keep_ballast();
        assert!(!ballast.exists(), "there would be too little without it");
        free.store(96 * MIB, Ordering::Relaxed);
        space.look().unwrap();
        space.keep_ballast();
        assert!(ballast.exists());
    }

    #[test]
    fn a_writer_waits_for_room_and_goes_on_when_there_is_some() {
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(0));
        let space = fake(&free, dir.path());
        let error = space.wait_for_room(MIB, || true).unwrap_err();
        assert!(matches!(error, StorageError::Full { free_bytes: 0, .. }), "{error}");
        let looks = AtomicU64::new(0);
        let freeing = || {
            let seen = looks.fetch_add(1, Ordering::Relaxed);
            assert_eq!(space.is_waited_for(), seen > 0);
            if seen == 2 {
                free.store(3 * MIB, Ordering::Relaxed);
            }
            false
        };
        space.wait_for_room(MIB, freeing).unwrap();
        assert_eq!(looks.load(Ordering::Relaxed), 3);
        assert!(!space.is_waited_for());
        assert_eq!(space.view().level, SpaceLevel::Full, "enough for this write, and for nothing new");
    }

    #[test]
    fn the_kernel_is_asked_about_a_real_directory() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path()).unwrap();
        let view = space.view();
        assert!(view.total_bytes > 0 && view.free_bytes <= view.total_bytes);
    }
}
