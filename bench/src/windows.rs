//! Cycles of a loop, measured so that what a hypervisor or the kernel takes away in between does not count.

use penstock_io::Ticks;

/// Rounds in a window: some tens of microseconds, short beside the slices that a hypervisor takes away.
const WINDOW: u64 = 32;

/// Runs `round` that many times and tells what all of them would have cost had each cost what those of the median window
/// did, in time-stamp counter ticks. `round` takes the time at which its window began.
pub fn median_window(rounds: u64, mut round: impl FnMut(Ticks)) -> u64 {
    let windows = rounds.div_ceil(WINDOW).max(1);
    let mut costs: Vec<u64> = (0..windows)
        .map(|_| {
            let start = Ticks::now();
            for _ in 0..WINDOW {
                round(start);
            }
            Ticks::now().since(start)
        })
        .collect();
    let middle = costs.len() / 2;
    let (_, &mut median, _) = costs.select_nth_unstable(middle);
    (u128::from(median) * u128::from(rounds) / u128::from(WINDOW)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_stolen_slice_does_not_count() {
        let mut rounds = 0;
        let cost = median_window(10 * WINDOW, |_| {
            rounds += 1;
            if rounds == 3 {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(rounds, 10 * WINDOW);
        let slice =
            penstock_io::TicksPerSecond::measure(Duration::from_millis(5)).ticks(Duration::from_millis(20));
        assert!(cost < slice, "{cost}");
    }
}
