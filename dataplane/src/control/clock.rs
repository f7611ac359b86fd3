//! Wall-clock time of what workers saw.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use penstock_io::{Ticks, TicksPerSecond};

/// Wall-clock time as told by time-stamp ticks.
#[derive(Clone, Copy)]
pub(super) struct WallClock {
    wall: Duration,
    ticks: Ticks,
    rate: TicksPerSecond,
}

impl WallClock {
    pub(super) fn now(rate: TicksPerSecond) -> WallClock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallClock { wall, ticks: Ticks::now(), rate }
    }

    /// Nanoseconds since 1970 at `at`, before or after the clock was set.
    pub(super) fn nanoseconds(&self, at: Ticks) -> u64 {
        let after = self.wall + self.rate.duration(at.since(self.ticks));
        after.saturating_sub(self.rate.duration(self.ticks.since(at))).as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_before_and_after_the_clock_was_set_are_told_in_wall_time() {
        let clock =
            WallClock { wall: Duration::from_secs(100), ticks: Ticks(5000), rate: TicksPerSecond(1000) };
        assert_eq!(clock.nanoseconds(Ticks(5000)), 100_000_000_000);
        assert_eq!(clock.nanoseconds(Ticks(5500)), 100_500_000_000);
        assert_eq!(clock.nanoseconds(Ticks(4000)), 99_000_000_000);
    }
}
