//! Clocks: the cluster's time, and the kernel's opinion on whether this machine has slept.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// A leap of the wall clock against cluster time that is worth an alarm.
const ALARM_MS: u64 = 5_000;
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

struct Anchor {
    cluster_ms: u64,
    at: Instant,
    heard: Option<Instant>,
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
        Self { inner: Mutex::new(Anchor { cluster_ms: 0, at: Instant::now(), heard: None }), wall }
    }

    /// A live leader said what time it is.
    pub fn observe(&self, cluster_ms: u64) {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        let here = anchor.cluster_ms + now.duration_since(anchor.at).as_millis() as u64;
        anchor.cluster_ms = if anchor.heard.is_some() { here.max(cluster_ms) } else { cluster_ms };
        anchor.at = now;
        anchor.heard = Some(now);
    }

    /// An entry carried this time. It may be an old one that is being replayed: time is at least that late, and
    /// nothing is learnt of how much later.
    pub fn at_least(&self, cluster_ms: u64) {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        let here = anchor.cluster_ms + now.duration_since(anchor.at).as_millis() as u64;
        if cluster_ms > here {
            anchor.cluster_ms = cluster_ms;
            anchor.at = now;
        }
    }

    /// This node begins to lead: with a recent estimate time runs on from it, otherwise it leaps to the wall
    /// clock, never backwards. Returns the leap in milliseconds when it deserves an alarm.
    pub fn lead(&self) -> Option<u64> {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        if anchor.heard.is_some_and(|heard| now.duration_since(heard) < ESTIMATE_AGE) {
            return None;
        }
        let before = anchor.cluster_ms;
        anchor.cluster_ms = before.max((self.wall)());
        anchor.at = now;
        anchor.heard = Some(now);
        let leap = anchor.cluster_ms - before;
        (before != 0 && leap > ALARM_MS).then_some(leap)
    }

    /// Cluster time now, as well as this node knows it.
    pub fn now_ms(&self) -> u64 {
        let anchor = self.inner.lock();
        anchor.cluster_ms + anchor.at.elapsed().as_millis() as u64
    }

    /// Cluster time now on the leader, slewed towards the wall clock. Never goes backwards.
    pub fn tick_ms(&self) -> u64 {
        let mut anchor = self.inner.lock();
        let now = Instant::now();
        let elapsed = now.duration_since(anchor.at).as_millis() as u64;
        if elapsed == 0 {
            return anchor.cluster_ms;
        }
        let here = anchor.cluster_ms + elapsed;
        let wall = (self.wall)();
        let slew = (elapsed / 10).max(1);
        anchor.cluster_ms = if wall >= here {
            here + slew.min(wall - here)
        } else {
            here - slew.min(here - wall).min(elapsed)
        };
        anchor.at = now;
        anchor.heard = Some(now);
        anchor.cluster_ms
    }
}

impl Default for ClusterClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Watches BOOTTIME minus MONOTONIC: when it moves, this machine was suspended, and a lease is worth nothing.
pub struct SuspendWatch {
    inner: Mutex<(i128, Option<Instant>)>,
}

/// A difference of the two clocks that is more than the time between reading them.
const SUSPENDED_NS: i128 = 5_000_000;

fn boottime_minus_monotonic_ns() -> i128 {
    use rustix::time::{ClockId, clock_gettime};
    let ns = |id| {
        let t = clock_gettime(id);
        i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec)
    };
    ns(ClockId::Boottime) - ns(ClockId::Monotonic)
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
        if (difference - inner.0).abs() > SUSPENDED_NS {
            inner.1 = Some(Instant::now());
        }
        inner.0 = difference;
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
    fn a_machine_that_did_not_sleep_is_not_taken_for_one_that_did() {
        assert!(!SuspendWatch::new().suspended_within(Duration::from_secs(60)));
    }
}
