//! Clocks: the cluster's time, and the kernel's opinion on whether this machine has slept.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// A leap of the wall clock against cluster time that is worth an alarm.
const ALARM_MS: u64 = 5_000;
/// Cluster time below this was never set by anybody.
const ALARM_FLOOR_NS: u128 = 1_000 * NS_PER_MS;
/// How long an estimate carried over from the previous leader is better than the own wall clock.
const ESTIMATE_AGE: Duration = Duration::from_secs(60);

/// Cluster time: milliseconds since the Unix epoch that never go backwards.
///
/// Every expiry is judged by it, on every node alike. It is advanced by the monotonic clock and slewed to the
/// wall clock by at most a tenth, so that a step of one machine's wall clock expires nothing.
pub struct ClusterClock {
    inner: Mutex<Anchor>,
    wall: fn() -> u64,
}

/// Cluster time at one instant of this machine's monotonic clock, in nanoseconds so that ticks lose nothing.
struct Anchor {
    cluster_ns: u128,
    at: Instant,
    heard: Option<Instant>,
    /// The latest time that anybody was told. Slewing sets time back by a part of what has passed since it was slewed
    /// last, which somebody may have been told in between.
    told_ns: u128,
}

const NS_PER_MS: u128 = 1_000_000;

impl Anchor {
    fn now_ns(&self, now: Instant) -> u128 {
        self.cluster_ns + now.duration_since(self.at).as_nanos()
    }

    /// The time to be told: not earlier than any before.
    fn tell_ms(&mut self, now: Instant) -> u64 {
        self.told_ns = self.told_ns.max(self.now_ns(now));
        to_ms(self.told_ns)
    }

    fn set(&mut self, cluster_ns: u128, now: Instant) {
        self.cluster_ns = cluster_ns;
        self.at = now;
    }
}

/// The wall clock, in milliseconds since the Unix epoch.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl ClusterClock {
    /// A clock that has heard nothing yet.
    pub fn new() -> Self {
        Self::with_wall(wall_ms)
    }

    fn with_wall(wall: fn() -> u64) -> Self {
        Self {
            inner: Mutex::new(Anchor { cluster_ns: 0, at: Instant::now(), heard: None, told_ns: 0 }),
            wall,
        }
    }

    /// A live leader that holds the root key said what time it is.
    pub fn observe(&self, cluster_ms: u64) {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        let later = anchor.now_ns(now).max(u128::from(cluster_ms) * NS_PER_MS);
        anchor.set(later, now);
        anchor.heard = Some(now);
    }

    /// An entry carried this time. It may be an old one that is being replayed: time is at least that late, and
    /// nothing is learnt of how much later.
    pub fn at_least(&self, cluster_ms: u64) {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        let later = anchor.now_ns(now).max(u128::from(cluster_ms) * NS_PER_MS);
        anchor.set(later, now);
    }

    /// This node begins to lead: with a recent estimate time runs on from it, otherwise it leaps to the wall
    /// clock, never backwards. Returns the leap in milliseconds when it deserves an alarm.
    pub fn lead(&self) -> Option<u64> {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        if anchor.heard.is_some_and(|heard| now.duration_since(heard) < ESTIMATE_AGE) {
            return None;
        }
        let before = anchor.now_ns(now);
        let known = anchor.cluster_ns >= ALARM_FLOOR_NS;
        let wall = u128::from((self.wall)()) * NS_PER_MS;
        anchor.set(before.max(wall), now);
        anchor.heard = Some(now);
        let leap = (anchor.cluster_ns - before) / NS_PER_MS;
        (known && leap > u128::from(ALARM_MS)).then_some(u64::try_from(leap).unwrap_or(u64::MAX))
    }

    /// Cluster time now, as well as this node knows it.
    pub fn now_ms(&self) -> u64 {
        self.inner.lock().tell_ms(Instant::now())
    }

    /// Cluster time now on the leader, slewed towards the wall clock. Never goes backwards.
    pub fn tick_ms(&self) -> u64 {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        let elapsed = now.duration_since(anchor.at).as_nanos();
        let here = anchor.cluster_ns + elapsed;
        let wall = u128::from((self.wall)()) * NS_PER_MS;
        let slew = (elapsed / 10).min(here.abs_diff(wall));
        let slewed = if wall >= here { here + slew } else { here - slew };
        anchor.set(slewed, now);
        anchor.heard = Some(now);
        anchor.tell_ms(now)
    }
}

fn to_ms(ns: u128) -> u64 {
    u64::try_from(ns / NS_PER_MS).unwrap_or(u64::MAX)
}

impl Default for ClusterClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Watches BOOTTIME minus MONOTONIC: when it moves, this machine was suspended, and a lease is worth nothing.
pub struct SuspendWatch {
    /// The difference as it was, and when it was last seen to move.
    inner: Mutex<(Option<i128>, Option<Instant>)>,
}

/// A difference that no reading of the clocks explains.
const SUSPENDED_NS: i128 = 5_000_000;
/// Readings that took longer than this say nothing.
const SPREAD_NS: i128 = 1_000_000;

/// BOOTTIME minus MONOTONIC, or nothing when this thread was interrupted between the two readings.
fn boottime_minus_monotonic_ns() -> Option<i128> {
    use rustix::time::{ClockId, clock_gettime};
    let ns = |id| {
        let t = clock_gettime(id);
        i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec)
    };
    let (before, boot, after) = (ns(ClockId::Monotonic), ns(ClockId::Boottime), ns(ClockId::Monotonic));
    (after - before < SPREAD_NS).then(|| boot - before)
}

impl SuspendWatch {
    /// Starts watching.
    pub fn new() -> Self {
        Self { inner: Mutex::new((boottime_minus_monotonic_ns(), None)) }
    }

    /// Whether the machine was suspended within the last `window`.
    pub fn suspended_within(&self, window: Duration) -> bool {
        let difference = boottime_minus_monotonic_ns();
        let mut inner = self.inner.lock();
        if let Some(difference) = difference {
            if inner.0.is_some_and(|before| (difference - before).abs() > SUSPENDED_NS) {
                inner.1 = Some(Instant::now());
            }
            inner.0 = Some(difference);
        }
        inner.1.is_some_and(|at| at.elapsed() < window)
    }
}

impl Default for SuspendWatch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_backwards_when_the_wall_clock_is_behind() {
        let clock = ClusterClock::with_wall(|| 1_000);
        clock.observe(50_000);
        let mut last = 0;
        for _ in 0..1_000 {
            let now = clock.tick_ms();
            assert!(now >= last && now >= 50_000);
            last = now;
        }
    }

    #[test]
    fn a_fresh_leader_takes_the_wall_clock_and_reports_a_leap() {
        let clock = ClusterClock::with_wall(|| 100_000);
        assert_eq!(clock.lead(), None, "there was nothing to leap from");
        assert!(clock.now_ms() >= 100_000);
        let clock = ClusterClock::with_wall(|| 100_000);
        clock.observe(10_000);
        assert_eq!(clock.lead(), None, "a recent estimate runs on");
        assert!(clock.now_ms() < 20_000);
        clock.observe(1);
        assert!(clock.now_ms() >= 10_000, "no leader turns time back");
        clock.observe(u64::MAX);
        assert_eq!(clock.tick_ms(), u64::MAX, "and none can overflow it");
        let clock = ClusterClock::with_wall(|| 100_000);
        clock.at_least(10_000);
        assert!(clock.lead().is_some_and(|leap| leap > 80_000), "replayed entries are no estimate");
        assert!(clock.now_ms() >= 100_000);
    }

    #[test]
    fn a_step_of_the_wall_clock_is_slewed() {
        let clock = ClusterClock::with_wall(|| 1_000_000);
        clock.observe(10_000);
        let started = Instant::now();
        let now = clock.tick_ms();
        let elapsed = started.elapsed().as_millis() as u64 + 1;
        assert!(now - 10_000 <= elapsed + elapsed / 10 + 1, "time leapt by {} ms", now - 10_000);
    }

    #[test]
    fn slewing_takes_back_no_time_that_was_told() {
        let clock = ClusterClock::with_wall(|| 1_000);
        // Ten seconds have passed since the last tick, on a leader whose wall clock is far behind.
        let before = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        clock.inner.lock().set(50_000 * NS_PER_MS, before);
        let told = clock.now_ms();
        assert!(told >= 60_000, "{told}");
        assert!(clock.tick_ms() >= told, "an entry that was made at that time carries it");
        assert!(clock.now_ms() >= told);
        let slewed = clock.inner.lock().now_ns(Instant::now());
        assert!(slewed < u128::from(told) * NS_PER_MS, "time is slewed all the same, and waits");
    }

    #[test]
    fn a_machine_that_did_not_sleep_is_not_taken_for_one_that_did() {
        assert!(!SuspendWatch::new().suspended_within(Duration::from_secs(60)));
    }
}
