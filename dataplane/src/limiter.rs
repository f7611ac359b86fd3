//! A token bucket in time-stamp ticks: how many ICMP errors may go out.

use penstock_io::{Ticks, TicksPerSecond};

/// Lets through so many a second, and a burst of them after a quiet time.
pub(crate) struct Limiter {
    ticks_each: u64,
    burst: u64,
    /// When the bucket would be full again.
    full_at: u64,
}

impl Limiter {
    pub(crate) fn new(rate: TicksPerSecond, per_second: u64, burst: u64) -> Limiter {
        Limiter { ticks_each: rate.0 / per_second.max(1), burst, full_at: 0 }
    }

    /// Takes a token, if there is one.
    pub(crate) fn allow(&mut self, now: Ticks) -> bool {
        let full_at = self.full_at.max(now.0) + self.ticks_each;
        if full_at - now.0 > self.burst * self.ticks_each {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut limiter = Limiter::new(TicksPerSecond(1_000_000), 1000, 50);
        let start = Ticks(77_000_000);
        assert_eq!((0..200).filter(|_| limiter.allow(start)).count(), 50);
        assert_eq!((0..200).filter(|_| limiter.allow(Ticks(start.0 + 10_000))).count(), 10);
        assert_eq!((0..200).filter(|_| limiter.allow(Ticks(start.0 + 9_000_000))).count(), 50);
    }
}
