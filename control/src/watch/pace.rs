//! How long to wait before an API server that failed is asked again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first pause, and the longest.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Pauses that grow from failure to failure. Each is drawn from the upper half of what it may be, so that the nodes of a
/// cluster do not all come back at once.
#[derive(Debug)]
pub(super) struct Pace {
    next: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { next: BOUNDS.0 }
    }
}

impl Pace {
    /// The pause after a failure.
    pub(super) fn pause(&mut self) -> Duration {
        let most = self.next;
        self.next = (most * 2).min(BOUNDS.1);
        // The keys of every new hash state are random.
        let share = RandomState::new().hash_one(0_u8) % 1000;
        most / 2 + (most / 2) * share as u32 / 1000
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.next = BOUNDS.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_start_anew_after_a_success() {
        let mut pace = Pace::default();
        let first = pace.pause();
        assert!(first >= BOUNDS.0 / 2 && first <= BOUNDS.0, "{first:?}");
        let late = (0..20).map(|_| pace.pause()).last().unwrap();
        assert!(late >= BOUNDS.1 / 2 && late <= BOUNDS.1, "{late:?}");
        pace.reset();
        assert!(pace.pause() <= BOUNDS.0);
    }
}
