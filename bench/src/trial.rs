//! A trial on ports in memory: frames come as fast as they are taken, or on a schedule into a ring of a network card's size.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use penstock_io::{Ticks, TicksPerSecond};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::node::{Subject, Tally};
use crate::peers::PeerError;
use crate::profile::Profile;
use crate::traffic::TrafficError;
use crate::validity::{Calibration, MOST_DISAGREEMENT, Validity, guarded};
use crate::windows::WINDOW;

/// The CPU of the first worker where there is more than one CPU: what else runs is on the first.
const FIRST_CPU: usize = 1;
/// Frames that the ring in front of a worker holds: the rest of what comes is missed, as by a network card.
pub const RING: u64 = 2048;
/// Bytes that a frame takes on a wire besides its own: preamble, start delimiter and the least gap (IEEE 802.3).
pub(crate) const WIRE_EXTRA: f64 = 20.0;
/// The check sequence, which frames in memory are without.
pub(crate) const CHECK_SEQUENCE: f64 = 4.0;
/// What was lost because the ring was full is counted under this reason.
pub const MISSED: &str = "receive-ring-full";
/// The longest latency that is told apart.
const LONGEST: u64 = 60_000_000_000;

/// Why there is no trial.
#[derive(Debug, Error)]
pub enum TrialError {
    /// There is no such traffic.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// The figures contradict each other: a fault of the program, not of the machine.
    #[error(
        "the frames do not add up: {offered} offered, {received} received, {lost} lost (this is a fault of the program that is \
         measured or of this one; please report it with the command)"
    )]
    DoesNotAddUp {
        /// Frames that came.
        offered: u64,
        /// Frames that arrived at the other end.
        received: u64,
        /// Frames that were lost for known reasons.
        lost: u64,
    },
    /// A program that takes part is missing, said no or ended.
    #[error(transparent)]
    Outside(#[from] PeerError),
    /// Nothing arrived at the far end.
    #[error("of {offered} frames none arrived; lost: {lost}")]
    NothingArrived {
        /// Frames that came.
        offered: u64,
        /// Reasons and counts.
        lost: String,
    },
    /// Its flows take too long to be learnt.
    #[error(
        "{packets} packets twice at {rate} a second take too long: ask for a higher --rate or fewer --flows"
    )]
    TooSlow {
        /// Packets until the first comes again.
        packets: u64,
        /// Packets a second.
        rate: f64,
    },
    /// What only ports in memory do.
    #[error("only --ports memory takes {0}")]
    OnlyInMemory(&'static str),
    /// Its thread could not be pinned.
    #[error(
        "cannot pin to CPU {0}: ask for fewer --workers than this process has CPUs (taskset -cp $$ tells which)"
    )]
    Pin(usize),
}

/// How frames come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// As fast as they are taken.
    Full,
    /// So many a second, whatever becomes of them.
    Rate(f64),
}

/// What a trial measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Frames that came.
    pub offered: u64,
    /// Frames that arrived at the other end.
    pub received: u64,
    /// Frames that did not, by reason; together with those received they are those offered.
    pub lost: BTreeMap<String, u64>,
    /// How long frames came.
    pub seconds: f64,
    /// Packets a second that arrived, in millions.
    pub mpps: f64,
    /// Gbit/s of frames with their check sequences, as they came.
    pub gbit_l2: f64,
    /// Gbit/s of a wire that carries them.
    pub gbit_l1: f64,
    /// Ticks of the time-stamp counter that a worker spends a packet: the median window.
    pub cycles: f64,
    /// The same in the cheapest window.
    pub least_cycles: f64,
    /// The mean, over all turns with packets.
    pub mean_cycles: f64,
    /// The median in nanoseconds.
    pub nanoseconds: f64,
    /// Packets in a burst.
    pub burst: f64,
    /// The share of the time in turns with packets.
    pub busy: f64,
    /// How far mean cycles times packets is from the time that passed; of a trial at full load.
    pub disagreement: Option<f64>,
    /// Whether it may be believed.
    pub validity: Validity,
}

impl Outcome {
    /// Frames lost, for whatever reason.
    #[must_use]
    pub fn lost_frames(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Whether nothing speaks against it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.validity.sound && self.disagreement.is_none_or(|share| share <= MOST_DISAGREEMENT)
    }
}

/// What one worker measured.
struct Run {
    offered: u64,
    missed: u64,
    tally: Tally,
    elapsed: Duration,
    /// Ticks of turns with packets, and those of each window of full turns.
    busy_ticks: u64,
    windows: Vec<u32>,
    latencies: Option<Histogram<u64>>,
}

/// A subject for each worker, ready to be measured again and again.
pub struct Trial {
    profile: Profile,
    subjects: Vec<Subject>,
}

impl Trial {
    /// Makes the subjects of a profile, which know every flow then.
    ///
    /// # Errors
    /// When there is no such traffic or no such CPU.
    pub fn new(profile: Profile) -> Result<Trial, TrialError> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if usize::from(profile.workers) > cpus {
            return Err(TrialError::Pin(usize::from(profile.workers) - 1));
        }
        let made = |number: u16| on_cpu(cpu_of(number), || Subject::new(&profile));
        let subjects =
            (0..profile.workers).map(|number| Ok(made(number)??)).collect::<Result<_, TrialError>>()?;
        Ok(Trial { profile, subjects })
    }

    /// What it is of.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Measures for a while.
    ///
    /// # Errors
    /// When the figures contradict each other.
    pub fn measure(&mut self, load: Load, time: Duration) -> Result<Outcome, TrialError> {
        let workers = self.subjects.len() as f64;
        let (runs, validity) = guarded(|calibration| self.runs(load, time, calibration, false))?;
        outcome(&runs, load, workers, validity)
    }

    /// Measures at a rate how long each frame takes from the moment at which it was to come until it has been sent, in
    /// nanoseconds. What was late to be received counts in full: nothing waits for an answer.
    ///
    /// # Errors
    /// When the figures contradict each other.
    pub fn latency(&mut self, rate: f64, time: Duration) -> Result<(Outcome, Histogram<u64>), TrialError> {
        let workers = self.subjects.len() as f64;
        let (runs, validity) = guarded(|calibration| self.runs(Load::Rate(rate), time, calibration, true))?;
        let mut all = histogram();
        for latencies in runs.iter().filter_map(|run| run.latencies.as_ref()) {
            // Both tell the same values apart.
            let _ = all.add(latencies);
        }
        Ok((outcome(&runs, Load::Rate(rate), workers, validity)?, all))
    }

    fn runs(
        &mut self,
        load: Load,
        time: Duration,
        calibration: &Calibration,
        with_latency: bool,
    ) -> Result<Vec<Run>, TrialError> {
        let each = match load {
            Load::Full => Load::Full,
            Load::Rate(rate) => Load::Rate(rate / self.subjects.len() as f64),
        };
        let ticks = TicksPerSecond(calibration.ticks_per_second as u64);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0u16..)
                .zip(&mut self.subjects)
                .map(|(number, subject)| {
                    scope.spawn(move || {
                        pin(cpu_of(number))?;
                        Ok(match each {
                            Load::Full => flat_out(subject, time),
                            Load::Rate(rate) => paced(subject, rate, time, ticks, with_latency),
                        })
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(run) => run,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        })
    }
}

pub(crate) fn cpu_of(number: u16) -> Option<usize> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus > 1)
        .then_some(if number == 0 { FIRST_CPU } else { usize::from(number) + 1 })
        .map(|cpu| if cpu >= cpus { cpu - cpus } else { cpu })
}

pub(crate) fn pin(cpu: Option<usize>) -> Result<(), TrialError> {
    match cpu {
        Some(id) if !core_affinity::set_for_current(core_affinity::CoreId { id }) => Err(TrialError::Pin(id)),
        _ => Ok(()),
    }
}

/// Runs on a thread of its own that is pinned, so that what is made there is near.
fn on_cpu<T: Send>(cpu: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T, TrialError> {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| pin(cpu).map(|()| work()));
        match pinned.join() {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whole windows, one after the other: a burst is always full.
fn flat_out(subject: &mut Subject, time: Duration) -> Run {
    subject.set_paced(false);
    let before = subject.tally();
    let (start, mut windows) = (Instant::now(), Vec::with_capacity(1 << 16));
    let first = Ticks::now();
    let mut last = first;
    while start.elapsed() < time {
        for _ in 0..WINDOW {
            subject.turn(last);
        }
        let now = Ticks::now();
        windows.push(u32::try_from(now.since(last)).unwrap_or(u32::MAX));
        last = now;
    }
    let elapsed = start.elapsed();
    let tally = subject.tally().since(&before);
    let busy_ticks = last.since(first);
    Run { offered: tally.received, missed: 0, tally, elapsed, busy_ticks, windows, latencies: None }
}

/// Frames come on a schedule, from the first tick to the end of `time`; then the ring is emptied.
fn paced(subject: &mut Subject, rate: f64, time: Duration, clock: TicksPerSecond, with_latency: bool) -> Run {
    let before = subject.tally();
    let (ticks_a_frame, end) = (clock.0 as f64 / rate.max(1.0), clock.ticks(time));
    let due_at = |moment: u64| (moment.min(end) as f64 / ticks_a_frame) as u64;
    let mut latencies = with_latency.then(histogram);
    let mut schedule = Schedule::default();
    subject.set_paced(true);
    let (wall, start) = (Instant::now(), Ticks::now());
    let (mut offered, mut missed, mut waiting, mut busy_ticks) = (0, 0, 0, 0);
    let mut now = start;
    let sent_before = subject.sent();
    let mut seen = 0;
    loop {
        let due = due_at(now.since(start));
        let accepted = (due - offered).min(RING - waiting);
        if latencies.is_some() {
            schedule.accept(offered, accepted);
        }
        missed += due - offered - accepted;
        offered = due;
        if subject.arrive(accepted) == 0 {
            if now.since(start) >= end {
                break;
            }
            now = Ticks::now();
            waiting = 0;
            continue;
        }
        subject.turn(now);
        waiting = subject.arrive(0);
        let after = Ticks::now();
        busy_ticks += after.since(now);
        now = after;
        if let Some(latencies) = &mut latencies {
            let sent = subject.sent() - sent_before;
            schedule.sent(sent - seen, |number| {
                let intended = (number as f64 + 1.0) * ticks_a_frame;
                let spent = now.since(start) as f64 - intended;
                let nanoseconds = (spent.max(0.0) * 1e9 / clock.0 as f64) as u64;
                // Longer ones count as the longest.
                latencies.saturating_record(nanoseconds.max(1));
            });
            seen = sent;
        }
    }
    // Frames came for `time`; what was in the ring at the end is served, and is not part of it.
    let elapsed = time.min(wall.elapsed());
    let tally = subject.tally().since(&before);
    Run { offered, missed, tally, elapsed, busy_ticks, windows: Vec::new(), latencies }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST, 3).expect("three digits up to a minute of nanoseconds")
}

/// Which frames of a schedule got into the ring and were not sent yet: they leave in the order in which they came.
#[derive(Debug, Default)]
struct Schedule {
    /// (number of the first frame, how many follow each other).
    waiting: std::collections::VecDeque<(u64, u64)>,
}

impl Schedule {
    fn accept(&mut self, first: u64, count: u64) {
        if count > 0 {
            self.waiting.push_back((first, count));
        }
    }

    fn sent(&mut self, mut count: u64, mut each: impl FnMut(u64)) {
        while count > 0
            && let Some((first, waiting)) = self.waiting.front_mut()
        {
            let taken = count.min(*waiting);
            (*first..*first + taken).for_each(&mut each);
            (*first, *waiting) = (*first + taken, *waiting - taken);
            count -= taken;
            if *waiting == 0 {
                self.waiting.pop_front();
            }
        }
    }
}

/// Adds the workers up.
fn outcome(runs: &[Run], load: Load, workers: f64, validity: Validity) -> Result<Outcome, TrialError> {
    let mut tally = Tally::default();
    runs.iter().for_each(|run| tally.add(&run.tally));
    let offered: u64 = runs.iter().map(|run| run.offered).sum();
    let missed: u64 = runs.iter().map(|run| run.missed).sum();
    let mut lost: BTreeMap<String, u64> = tally.drops.iter().cloned().collect();
    for (reason, count) in [(MISSED, missed), ("kept-for-the-node", tally.consumed), ("waits", tally.held)] {
        if count > 0 {
            lost.insert(reason.to_owned(), count);
        }
    }
    let received = tally.sent - tally.made.min(tally.sent);
    let all_lost: u64 = lost.values().sum();
    if offered != received + all_lost {
        return Err(TrialError::DoesNotAddUp { offered, received, lost: all_lost });
    }
    let seconds = runs.iter().map(|run| run.elapsed.as_secs_f64()).fold(0.0, f64::max);
    let rate = received as f64 / seconds;
    let frame =
        if tally.received == 0 { 0.0 } else { tally.bytes as f64 / tally.received as f64 } + CHECK_SEQUENCE;
    let ticks_per_second = validity.calibration.ticks_per_second;
    let mut windows: Vec<u32> = runs.iter().flat_map(|run| run.windows.iter().copied()).collect();
    windows.sort_unstable();
    let busy: u64 = runs.iter().map(|run| run.busy_ticks).sum();
    let mean_cycles = busy as f64 / tally.received.max(1) as f64;
    let packets = (WINDOW as usize * penstock_io::BURST) as f64;
    let window = |at: usize| windows.get(at).map_or(mean_cycles, |&ticks| f64::from(ticks) / packets);
    let cycles = window(windows.len() / 2);
    let disagreement =
        (load == Load::Full).then(|| (mean_cycles * rate / workers / ticks_per_second - 1.0).abs());
    Ok(Outcome {
        offered,
        received,
        lost,
        seconds,
        mpps: rate / 1e6,
        gbit_l2: rate * frame * 8.0 / 1e9,
        gbit_l1: rate * (frame + WIRE_EXTRA) * 8.0 / 1e9,
        cycles,
        least_cycles: window(0),
        mean_cycles,
        nanoseconds: cycles * 1e9 / ticks_per_second,
        burst: tally.received as f64 / tally.bursts.max(1) as f64,
        busy: (busy as f64 / ticks_per_second / seconds / workers).min(1.0),
        disagreement,
        validity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Path, Popularity, Ports, Segment, Size};

    fn profile(path: Path) -> Profile {
        Profile {
            path,
            ports: Ports::Memory,
            size: Size::Bytes(64),
            flows: 1000,
            rules: 10,
            workers: 1,
            ipv6: false,
            segment: Segment::Udp,
            popularity: Popularity::Uniform,
            seed: 1,
        }
    }

    #[test]
    fn a_full_load_is_received_whole_and_cycles_agree_with_the_clock() {
        let mut trial = Trial::new(profile(Path::L3)).expect("sound traffic");
        let outcome = trial.measure(Load::Full, Duration::from_millis(50)).expect("figures that add up");
        assert_eq!((outcome.offered, outcome.lost_frames()), (outcome.received, 0));
        assert!(outcome.disagreement.is_some_and(|share| share < 0.1), "{outcome:?}");
        assert!(outcome.mpps > 0.05 && outcome.cycles > 10.0 && outcome.burst > 31.9, "{outcome:?}");
    }

    #[test]
    fn a_load_below_capacity_arrives_and_one_far_above_is_missed_to_the_frame() {
        let mut trial = Trial::new(profile(Path::VxlanEncap)).expect("sound traffic");
        let time = Duration::from_millis(100);
        let low = trial.measure(Load::Rate(20_000.0), time).expect("figures that add up");
        assert!((1990..=2000).contains(&low.offered) && low.busy < 0.9, "{low:?}");
        let high = trial.measure(Load::Rate(500e6), time).expect("figures that add up");
        assert!(high.lost[MISSED] > 0 && high.offered == high.received + high.lost_frames(), "{high:?}");
    }

    #[test]
    fn every_frame_of_a_schedule_has_a_latency() {
        let mut trial = Trial::new(profile(Path::StatefulVxlan)).expect("sound traffic");
        let (outcome, latencies) =
            trial.latency(50_000.0, Duration::from_millis(100)).expect("figures that add up");
        assert_eq!(latencies.len(), outcome.received);
        assert!(latencies.min() > 0 && latencies.max() < LONGEST);
    }

    #[test]
    fn frames_leave_a_schedule_in_the_order_in_which_they_came() {
        let (mut schedule, mut sent) = (Schedule::default(), Vec::new());
        schedule.accept(0, 3);
        schedule.accept(7, 2); // Four were missed.
        schedule.sent(4, |number| sent.push(number));
        schedule.sent(9, |number| sent.push(number));
        assert_eq!(sent, [0, 1, 2, 7, 8]);
    }
}
