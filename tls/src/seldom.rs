//! Says seldom what strangers can make happen often.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets a message through now and then, so that no stranger fills a log.
pub struct Seldom {
    interval: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    /// Every ten seconds, at most.
    #[must_use]
    pub const fn new() -> Self {
        Self { interval: Duration::from_secs(10), state: Mutex::new((None, 0)) }
    }

    /// Counts one occurrence. When it is time to speak of it: how many there were since the last time.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let (said, count) = &mut *state;
        *count += 1;
        if said.is_some_and(|said| now.saturating_duration_since(said) < self.interval) {
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(count))
    }
}

impl Default for Seldom {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_rest_together() {
        let seldom = Seldom::new();
        let start = Instant::now();
        assert_eq!(seldom.due_at(start), Some(1));
        for n in 1..100 {
            assert_eq!(seldom.due_at(start + Duration::from_millis(n)), None);
        }
        assert_eq!(seldom.due_at(start + Duration::from_secs(10)), Some(100));
        assert_eq!(seldom.due_at(start + Duration::from_secs(11)), None);
    }
}
