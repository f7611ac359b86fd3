//! The processor's time-stamp counter as the dataplane's clock.
//!
//! Only the worker's outermost loop reads it; everything below takes a time as an argument.

use std::time::{Duration, Instant};

/// A moment, in time-stamp counter ticks since some fixed start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(pub u64);

impl Ticks {
    /// Reads the counter now.
    #[inline]
    #[must_use]
    pub fn now() -> Ticks {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `rdtsc` reads a register; every x86-64 processor has it.
        let ticks = unsafe { std::arch::x86_64::_rdtsc() };
        #[cfg(not(target_arch = "x86_64"))]
        let ticks = {
            static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
            START.get_or_init(Instant::now).elapsed().as_nanos() as u64
        };
        Ticks(ticks)
    }

    /// Ticks from `earlier` to `self`; zero when `earlier` is later (counters of two cores may differ by a few ticks).
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Ticks) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How fast the counter runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TicksPerSecond(pub u64);

impl TicksPerSecond {
    /// Measures the counter against the system's monotonic clock for `window` (20 ms gives about 0.01 %).
    #[must_use]
    pub fn measure(window: Duration) -> TicksPerSecond {
        let (wall, ticks) = (Instant::now(), Ticks::now());
        while wall.elapsed() < window {
            std::hint::spin_loop();
        }
        let (elapsed, counted) = (wall.elapsed(), Ticks::now().since(ticks));
        TicksPerSecond((counted as f64 / elapsed.as_secs_f64()) as u64)
    }

    /// The number of ticks in `duration`.
    #[must_use]
    pub fn ticks(self, duration: Duration) -> u64 {
        (duration.as_secs_f64() * self.0 as f64) as u64
    }

    /// The time that `ticks` take.
    #[must_use]
    pub fn duration(self, ticks: u64) -> Duration {
        Duration::from_secs_f64(ticks as f64 / self.0.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_durations_convert_both_ways() {
        let rate = TicksPerSecond(2_500_000_000);
        assert_eq!(rate.ticks(Duration::from_millis(2)), 5_000_000);
        assert_eq!(rate.duration(5_000_000), Duration::from_millis(2));
    }

    #[test]
    fn time_never_runs_backwards_in_a_difference() {
        assert_eq!(Ticks(5).since(Ticks(9)), 0);
    }
}
