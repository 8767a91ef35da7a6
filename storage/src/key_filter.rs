//! Which rows a tree may hold, so that looking for one that is not there costs no search in sled.
//!
//! Every new version of a secret is such a row: apply has to know that it was not there before. The filter is a
//! counting Bloom filter (Fan et al., "Summary Cache", 2000) whose counters of a key lie in one line of the processor's
//! cache. It never says no of a row that is there. Its size is fixed: with 200,000 rows it says maybe of one absent row in
//! forty, with a million of every second, and a search decides.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bits of one counter. A counter that has reached its greatest value stays there.
const COUNTER_BITS: u64 = 4;
const GREATEST: u64 = (1 << COUNTER_BITS) - 1;
const COUNTERS_PER_WORD: u64 = 64 / COUNTER_BITS;
/// A line of the cache: 128 counters.
const LINE_WORDS: usize = 8;
/// 1 MiB in all.
const LINES: usize = (1 << 20) / (LINE_WORDS * 8);
/// Counters of one key.
const PROBES: u32 = 3;

/// The filter of one tree.
///
/// Whoever writes the tree adds a key before it appears there and removes it after it has vanished, each once. The rows of
/// a tree that was opened are added by the first comparison with its digest, which proves that it met all of them; until
/// then the filter says maybe of everything, and nothing may be removed, for it may not have been added.
pub(crate) struct KeyFilter {
    complete: AtomicBool,
    lines: Box<[Line]>,
    /// Keyed, so that nobody can choose names that meet in one line.
    hasher: RandomState,
}

#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; LINE_WORDS]);

impl Default for KeyFilter {
    /// The filter of a tree without rows.
    fn default() -> Self {
        let lines = (0..LINES).map(|_| Line::default()).collect();
        Self { complete: AtomicBool::new(true), lines, hasher: RandomState::new() }
    }
}

impl KeyFilter {
    /// The filter of a tree whose rows are not known yet.
    pub fn unfilled() -> Self {
        Self { complete: AtomicBool::new(false), ..Self::default() }
    }

    /// Whether every row of the tree was added.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Every row of the tree was added, and what was written since.
    pub fn completed(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Whether the tree may hold the key. If not, it certainly does not.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        !self.is_complete()
            || self.counters(key).all(|(word, shift)| (word.load(Ordering::Acquire) >> shift) & GREATEST > 0)
    }

    /// Takes note of a key that is about to appear.
    pub fn add(&self, key: &[u8]) {
        self.change(key, |count| count + 1);
    }

    /// Takes note of a key that has vanished. To be called only if the filter was complete before it vanished.
    pub fn remove(&self, key: &[u8]) {
        self.change(key, |count| count.saturating_sub(1));
    }

    fn change(&self, key: &[u8], next: impl Fn(u64) -> u64) {
        for (word, shift) in self.counters(key) {
            // It fails only where the counter is to stay as it is.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |counters| {
                let count = (counters >> shift) & GREATEST;
                (count < GREATEST).then(|| counters & !(GREATEST << shift) | next(count) << shift)
            });
        }
    }

    /// The counters of a key: each a word, and by how many bits it is shifted there.
    fn counters(&self, key: &[u8]) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let hash = self.hasher.hash_one(key);
        let line = &self.lines[(hash >> 32) as usize % LINES];
        (0..PROBES).map(move |probe| {
            let counter = hash >> (probe * 7);
            let word = &line.0[(counter / COUNTERS_PER_WORD) as usize % LINE_WORDS];
            (word, counter % COUNTERS_PER_WORD * COUNTER_BITS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(range: std::ops::Range<u32>) -> impl Iterator<Item = [u8; 4]> {
        range.map(u32::to_be_bytes)
    }

    #[test]
    fn what_is_there_is_never_denied_and_most_of_what_is_not_is() {
        let filter = KeyFilter::default();
        keys(0..200_000).for_each(|key| filter.add(&key));
        keys(0..100_000).for_each(|key| filter.remove(&key));
        assert!(keys(100_000..200_000).all(|key| filter.may_hold(&key)));
        keys(0..100_000).for_each(|key| filter.add(&key));
        assert!(keys(0..200_000).all(|key| filter.may_hold(&key)));
        let wrong = keys(200_000..300_000).filter(|key| filter.may_hold(key)).count();
        assert!(wrong < 4_000, "{wrong} of 100,000");
    }

    #[test]
    fn a_key_that_has_vanished_is_denied_again() {
        let filter = KeyFilter::default();
        keys(0..10_000).for_each(|key| filter.add(&key));
        keys(0..10_000).for_each(|key| filter.remove(&key));
        assert_eq!(keys(0..10_000).filter(|key| filter.may_hold(key)).count(), 0);
    }

    #[test]
    fn an_unfilled_filter_denies_nothing() {
        let filter = KeyFilter::unfilled();
        assert!(filter.may_hold(b"any"));
        filter.add(b"one");
        filter.completed();
        assert!(filter.may_hold(b"one") && !filter.may_hold(b"any"));
    }

    #[test]
    fn a_counter_that_is_full_stays_full() {
        let filter = KeyFilter::default();
        for _ in 0..40 {
            filter.add(b"one");
        }
        for _ in 0..40 {
            filter.remove(b"one");
        }
        assert!(filter.may_hold(b"one"));
    }
}
