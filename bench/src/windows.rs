//! Cycles of a loop, measured so that what a hypervisor or the kernel takes away in between does not count.

use penstock_io::Ticks;

/// Rounds in a window: some tens of microseconds, short beside the slices that a hypervisor takes away.
pub const WINDOW: u64 = 32;

/// What all rounds would have cost had each cost what those of one window did, in time-stamp counter ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Of the cheapest window: the code, with the machine to itself.
    pub least: u64,
    /// Of the median window: the code, with whatever else ran all the time.
    pub median: u64,
}

/// Runs `round` that many times, or a few more to fill a window; `round` takes the time at which its window began.
pub fn costs(rounds: u64, mut round: impl FnMut(Ticks)) -> Costs {
    let mut windows: Vec<u64> = (0..rounds.div_ceil(WINDOW).max(1))
        .map(|_| {
            let start = Ticks::now();
            for _ in 0..WINDOW {
                round(start);
            }
            Ticks::now().since(start)
        })
        .collect();
    windows.sort_unstable();
    let scaled = |cost: u64| (u128::from(cost) * u128::from(rounds) / u128::from(WINDOW)) as u64;
    Costs { least: scaled(windows[0]), median: scaled(windows[windows.len() / 2]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_stolen_slice_does_not_count() {
        let mut rounds = 0;
        let cost = costs(10 * WINDOW, |_| {
            rounds += 1;
            if rounds == 3 {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(rounds, 10 * WINDOW);
        let slice =
            penstock_io::TicksPerSecond::measure(Duration::from_millis(5)).ticks(Duration::from_millis(20));
        assert!(cost.median < slice && cost.least <= cost.median, "{cost:?}");
    }
}
