//! How long syncs of a file take, and whether one hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::log::SyncStats;

/// Measures syncs, the one under way included.
#[derive(Debug)]
pub(crate) struct SyncMeter {
    epoch: Instant,
    /// Microseconds since `epoch` when the sync under way began, plus one; zero if there is none.
    running: AtomicU64,
    syncs: AtomicU64,
    last_us: AtomicU64,
    total_us: AtomicU64,
    groups: AtomicU64,
    entries: AtomicU64,
}

impl Default for SyncMeter {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            epoch: Instant::now(),
            running: zero(),
            syncs: zero(),
            last_us: zero(),
            total_us: zero(),
            groups: zero(),
            entries: zero(),
        }
    }
}

impl SyncMeter {
    fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A sync begins; what it gives is for [`end`](Self::end).
    pub fn begin(&self) -> u64 {
        let now = self.now_us();
        self.running.store(now + 1, Ordering::Relaxed);
        now
    }

    /// The sync that began then has ended, well or not.
    pub fn end(&self, began: u64) {
        let took = self.now_us() - began;
        self.running.store(0, Ordering::Relaxed);
        self.last_us.store(took, Ordering::Relaxed);
        self.total_us.fetch_add(took, Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a group of appends that shared a sync.
    pub fn group(&self, entries: u64) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_add(entries, Ordering::Relaxed);
    }

    /// All measurements so far.
    pub fn stats(&self) -> SyncStats {
        let syncs = self.syncs.load(Ordering::Relaxed);
        SyncStats {
            syncs,
            groups: self.groups.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
            last_us: self.last_us.load(Ordering::Relaxed),
            mean_us: self.total_us.load(Ordering::Relaxed).checked_div(syncs).unwrap_or(0),
            running_us: self.running_us(),
        }
    }

    /// How long the sync under way has been running, in microseconds; zero if there is none.
    pub fn running_us(&self) -> u64 {
        match self.running.load(Ordering::Relaxed) {
            0 => 0,
            began => (self.now_us() + 1).saturating_sub(began),
        }
    }
}

#[cfg(test)]
impl SyncMeter {
    /// A meter of a sync that began so long ago.
    pub fn begun(ago: std::time::Duration) -> Self {
        Self { epoch: Instant::now() - ago, running: AtomicU64::new(1), ..Self::default() }
    }

    /// That sync ends.
    pub fn finish(&self) {
        self.end(0);
    }
}
