//! Whether a figure may be believed: the clock, the noise of the machine, and what was stolen while it was measured.

use std::time::{Duration, Instant};

use penstock_io::{Ticks, TicksPerSecond};
use serde::{Deserialize, Serialize};

/// How long the clock and the noise are looked at before a trial.
const LOOK: Duration = Duration::from_millis(20);
/// The share of a trial that a hypervisor may take.
pub const MOST_STEAL: f64 = 0.01;
/// How far the clock may be from what it was.
pub const MOST_DRIFT: f64 = 0.005;
/// How far cycles times rate may be from the clock.
pub const MOST_DISAGREEMENT: f64 = 0.02;
/// How often a trial is repeated before its figures are given up.
pub const MOST_REPEATS: u32 = 3;
/// Two readings of the clock this far apart had something between them that is not the program.
const GAP: Duration = Duration::from_micros(5);

/// What the machine was like just before a trial.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Calibration {
    /// Ticks of the time-stamp counter a second.
    pub ticks_per_second: f64,
    /// How far two looks at that are apart, as a share.
    pub drift: f64,
    /// The share of a loop that does nothing that went elsewhere: interrupts, other programs, a hypervisor.
    pub noise: f64,
    /// The longest time away, in microseconds.
    pub longest_gap_us: f64,
}

impl Calibration {
    /// Looks at the clock and at the noise of this CPU.
    #[must_use]
    pub fn take() -> Calibration {
        let rate = TicksPerSecond::measure(LOOK);
        let (away, longest, whole) = gaps(rate);
        let again = TicksPerSecond::measure(LOOK);
        Calibration {
            ticks_per_second: again.0 as f64,
            drift: (rate.0 as f64 / again.0 as f64 - 1.0).abs(),
            noise: away as f64 / whole.max(1) as f64,
            longest_gap_us: rate.duration(longest).as_secs_f64() * 1e6,
        }
    }

    /// Whether the clock stood still while it was looked at.
    #[must_use]
    pub fn is_stable(&self) -> bool {
        self.drift <= MOST_DRIFT
    }
}

/// Ticks spent elsewhere, the most of them at once, and all.
fn gaps(rate: TicksPerSecond) -> (u64, u64, u64) {
    let (limit, start) = (rate.ticks(GAP), Ticks::now());
    let (mut away, mut longest, mut last) = (0, 0, start);
    let end = rate.ticks(LOOK);
    while last.since(start) < end {
        let now = Ticks::now();
        let gap = now.since(last);
        if gap > limit {
            away += gap;
            longest = longest.max(gap);
        }
        last = now;
    }
    (away, longest, last.since(start))
}

/// What the kernel says was stolen from all CPUs of the machine by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stolen {
    /// Clock ticks of the kernel that a hypervisor gave to others.
    steal: u64,
    /// All of them.
    whole: u64,
}

impl Stolen {
    /// By now; nothing where the kernel does not say.
    #[must_use]
    pub fn by_now() -> Stolen {
        std::fs::read_to_string("/proc/stat").map(|text| Stolen::parse(&text)).unwrap_or_default()
    }

    /// The first line: `cpu user nice system idle iowait irq softirq steal guest guest_nice` (proc(5)).
    fn parse(text: &str) -> Stolen {
        let line = text.lines().next().unwrap_or_default();
        let numbers: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        Stolen { steal: numbers.get(7).copied().unwrap_or(0), whole: numbers.iter().take(8).sum() }
    }

    /// The share of the time since then that was stolen, 0 to 1.
    #[must_use]
    pub fn share_since(self, earlier: Stolen) -> f64 {
        let whole = self.whole.saturating_sub(earlier.whole);
        if whole == 0 { 0.0 } else { self.steal.saturating_sub(earlier.steal) as f64 / whole as f64 }
    }
}

/// What stood in the way of a trial and of those that were repeated for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Validity {
    /// What the machine was like before it.
    pub calibration: Calibration,
    /// The share that was stolen while it ran.
    pub steal: f64,
    /// Trials thrown away before it: too much was stolen, or the clock was not stable.
    pub repeated: u32,
    /// Whether this one is sound; the last of too many is kept even so, and said to be unsound.
    pub sound: bool,
}

/// Runs a trial, again as long as too much was stolen from it or the clock was not stable.
///
/// # Errors
/// The trial's own.
pub fn guarded<T, E>(mut trial: impl FnMut(&Calibration) -> Result<T, E>) -> Result<(T, Validity), E> {
    let mut repeated = 0;
    loop {
        let calibration = Calibration::take();
        let (before, start) = (Stolen::by_now(), Instant::now());
        let outcome = trial(&calibration)?;
        let steal = Stolen::by_now().share_since(before);
        // The kernel counts in hundredths of a second: of a short trial one tick is a large share.
        let is_long_enough = start.elapsed() >= Duration::from_millis(300);
        let sound = calibration.is_stable() && (steal <= MOST_STEAL || !is_long_enough);
        if sound || repeated == MOST_REPEATS {
            return Ok((outcome, Validity { calibration, steal, repeated, sound }));
        }
        repeated += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_number_of_the_first_line() {
        let before = Stolen::parse("cpu  100 0 100 700 0 0 0 100 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        let after = Stolen::parse("cpu  150 0 120 728 0 0 0 102 90 0\n");
        assert!((after.share_since(before) - 0.02).abs() < 1e-9);
        assert_eq!(before.share_since(before).to_bits(), 0f64.to_bits());
    }

    #[test]
    fn a_calibration_finds_a_clock_that_runs() {
        let calibration = Calibration::take();
        assert!(calibration.ticks_per_second > 1e8, "{calibration:?}");
        assert!((0.0..=1.0).contains(&calibration.noise), "{calibration:?}");
    }

    #[test]
    fn a_trial_that_fails_is_not_repeated() {
        let mut runs = 0;
        let outcome: Result<((), Validity), &str> = guarded(|_| {
            runs += 1;
            Err("broken")
        });
        assert_eq!((outcome.err(), runs), (Some("broken"), 1));
    }
}
