//! The watchdog: what each worker did of late, and which one takes no turns any more.

use std::time::{Duration, Instant};

use crate::stats::Counts;

/// What a worker did between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Of its time, how much went into turns that moved packets, in percent.
    pub busy_percent: f64,
    /// Time-stamp ticks of such turns for each packet received; 0 when none was.
    pub cycles_per_packet: f64,
    /// Whether it received anything.
    pub received: bool,
}

/// What is known of one worker.
#[derive(Clone, Copy, Debug)]
struct Watched {
    counts: Counts,
    moved: Instant,
    pace: Pace,
    stalled: bool,
}

/// Looks at workers' counters once a second.
#[derive(Debug)]
pub(super) struct Watchdog {
    workers: Vec<Watched>,
}

/// A worker that sleeps still turns ten times a second, so one that did not for this long is stuck.
const STALLED_AFTER: Duration = Duration::from_millis(900);

impl Watchdog {
    /// Workers that have done nothing yet.
    pub(super) fn over(workers: usize, now: Instant) -> Watchdog {
        let fresh = Watched { counts: Counts::default(), moved: now, pace: Pace::default(), stalled: false };
        Watchdog { workers: vec![fresh; workers] }
    }

    /// Takes a look at a worker's counters; says when it has stalled just now (`true`) or come back (`false`).
    pub(super) fn look(&mut self, worker: usize, counts: Counts, now: Instant) -> Option<bool> {
        let watched = &mut self.workers[worker];
        let before = std::mem::replace(&mut watched.counts, counts);
        if counts.turns != before.turns {
            watched.moved = now;
        }
        watched.pace = pace(&before, &counts);
        let stalled = now.saturating_duration_since(watched.moved) >= STALLED_AFTER;
        let changed = std::mem::replace(&mut watched.stalled, stalled) != stalled;
        changed.then_some(stalled)
    }

    /// What a worker did in the last second.
    pub(super) fn pace(&self, worker: usize) -> Pace {
        self.workers[worker].pace
    }

    /// Whether a worker is stuck.
    pub(super) fn is_stalled(&self, worker: usize) -> bool {
        self.workers[worker].stalled
    }
}

fn pace(before: &Counts, now: &Counts) -> Pace {
    let ticks = now.ticks.saturating_sub(before.ticks);
    let busy = now.busy_ticks.saturating_sub(before.busy_ticks) as f64;
    let received = now.rx.saturating_sub(before.rx);
    Pace {
        busy_percent: if ticks == 0 { 0.0 } else { (100.0 * busy / ticks as f64).min(100.0) },
        cycles_per_packet: if received == 0 { 0.0 } else { busy / received as f64 },
        received: received > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(turns: u64, busy_ticks: u64, rx: u64) -> Counts {
        Counts { turns, ticks: turns * 10, busy_ticks, rx, ..Counts::default() }
    }

    #[test]
    fn a_worker_without_turns_is_told_once_and_once_more_when_it_is_back() {
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let mut watchdog = Watchdog::over(1, start);
        assert_eq!(watchdog.look(0, counts(10, 0, 0), second(1)), None);
        assert_eq!(watchdog.look(0, counts(10, 0, 0), second(2)), Some(true));
        assert_eq!(watchdog.look(0, counts(10, 0, 0), second(3)), None);
        assert!(watchdog.is_stalled(0));
        assert_eq!(watchdog.look(0, counts(11, 0, 0), second(4)), Some(false));
    }

    #[test]
    fn the_pace_is_of_the_last_interval_alone() {
        let start = Instant::now();
        let mut watchdog = Watchdog::over(1, start);
        watchdog.look(0, counts(100, 900, 10), start);
        watchdog.look(0, counts(200, 1400, 15), start);
        assert_eq!(watchdog.pace(0), Pace { busy_percent: 50.0, cycles_per_packet: 100.0, received: true });
        watchdog.look(0, counts(300, 1400, 15), start);
        assert_eq!(watchdog.pace(0), Pace::default());
    }
}
