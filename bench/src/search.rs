//! The rates at which no more than a share of the frames is lost: several such goals in one search (MLRsearch, RFC 9971).
//!
//! A load is judged by all trials at it, full-length ones and shorter ones; what shorter trials lose can be balanced by what
//! they did not lose, and a load is a goal's lower bound only when full-length trials have shown it for long enough.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is searched for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Goal {
    /// Its name in reports.
    pub name: String,
    /// The share of frames that may be lost.
    pub loss: f64,
    /// How long a full-length trial is, in seconds.
    pub trial_s: f64,
    /// How long all full-length trials at the load that is found take together, in seconds.
    pub sum_s: f64,
    /// The share of that time in which more may be lost.
    pub exceed: f64,
    /// How close the bounds come, as a share of the upper one.
    pub width: f64,
}

/// A trial at a load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Probe {
    /// Frames a second that were to come.
    pub load: f64,
    /// How long, in seconds.
    pub seconds: f64,
    /// The share that was lost.
    pub loss: f64,
}

/// What was found for a goal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// The goal.
    pub goal: Goal,
    /// The highest load that was shown to lose no more; `None` if even the least load loses more.
    pub lower: Option<f64>,
    /// The lowest load that was shown to lose more; `None` if the highest one does not.
    pub upper: Option<f64>,
    /// Frames a second that arrive at the lower bound (RFC 9971's conditional throughput).
    pub throughput: Option<f64>,
}

/// What trials say of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Lower,
    Upper,
    Undecided,
}

impl Goal {
    /// Judges a load by the trials at it (RFC 9971, "Load Classification Computations").
    fn standing(&self, probes: &[Probe]) -> Standing {
        let (mut full_low, mut full_high, mut short_low, mut short_high) = (0.0, 0.0, 0.0, 0.0);
        for probe in probes {
            let is_full = probe.seconds >= self.trial_s * 0.999;
            let sum = match (is_full, probe.loss > self.loss) {
                (true, false) => &mut full_low,
                (true, true) => &mut full_high,
                (false, false) => &mut short_low,
                (false, true) => &mut short_high,
            };
            *sum += probe.seconds;
        }
        let balance = short_low * self.exceed / (1.0 - self.exceed);
        let high = full_high + (short_high - balance).max(0.0);
        let whole = (full_low + high).max(self.sum_s);
        let allowed = whole * self.exceed + 1e-9;
        if whole - full_low <= allowed {
            Standing::Lower
        } else if high > allowed {
            Standing::Upper
        } else {
            Standing::Undecided
        }
    }

    /// The rate of what arrives at a load, by its full-length trials: lossier ones are left out as far as they may be.
    fn throughput(&self, load: f64, probes: &[Probe]) -> f64 {
        let mut full: Vec<&Probe> =
            probes.iter().filter(|probe| probe.seconds >= self.trial_s * 0.999).collect();
        full.sort_by(|a, b| a.loss.total_cmp(&b.loss));
        let whole = self.sum_s.max(full.iter().map(|probe| probe.seconds).sum());
        let (mut left, mut loss) = (whole * (1.0 - self.exceed), 0.0);
        for probe in full {
            if left <= 0.0 {
                break;
            }
            (left, loss) = (left - probe.seconds, probe.loss);
        }
        load * (1.0 - loss)
    }
}

/// Rates between which a search looks, and what it has seen.
pub struct Search {
    least: f64,
    most: f64,
    probes: Vec<Probe>,
}

impl Search {
    /// Between two rates, of which the first is not zero.
    #[must_use]
    pub fn between(least: f64, most: f64) -> Search {
        Search { least, most, probes: Vec::new() }
    }

    /// All trials so far.
    #[must_use]
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    fn at(&self, load: f64) -> Vec<Probe> {
        self.probes.iter().copied().filter(|probe| probe.load.to_bits() == load.to_bits()).collect()
    }

    /// The highest lower bound below the lowest upper one, and that one.
    fn bounds(&self, goal: &Goal) -> (Option<f64>, Option<f64>) {
        let mut loads: Vec<f64> = self.probes.iter().map(|probe| probe.load).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        let mut lower = None;
        for load in loads {
            match goal.standing(&self.at(load)) {
                Standing::Upper => return (lower, Some(load)),
                Standing::Lower => lower = Some(load),
                Standing::Undecided => {}
            }
        }
        (lower, None)
    }

    /// Finds each goal's rate; `trial` sends at a load for a while and says which share was lost. What one goal has learnt
    /// serves the next: give the one with the least loss first.
    ///
    /// # Errors
    /// The first trial's that failed.
    pub fn find<E>(
        &mut self,
        goals: &[Goal],
        mut trial: impl FnMut(f64, Duration) -> Result<f64, E>,
    ) -> Result<Vec<Found>, E> {
        let shortest = goals.iter().map(|goal| goal.trial_s).fold(f64::INFINITY, f64::min) / 8.0;
        let mut probe = |search: &mut Search, load: f64, seconds: f64| {
            let loss = trial(load, Duration::from_secs_f64(seconds))?;
            search.probes.push(Probe { load, seconds, loss });
            Ok(loss)
        };
        // What arrives when too much comes is a good guess at what can be.
        let mut guess = self.most;
        for _ in 0..2 {
            let loss = probe(self, guess, shortest)?;
            guess = (guess * (1.0 - loss)).max(self.least);
        }
        let mut found = Vec::new();
        for goal in goals {
            guess = self.narrow(goal, shortest, guess, &mut probe)?;
            let (lower, upper) = self.bounds(goal);
            let throughput = lower.map(|load| goal.throughput(load, &self.at(load)));
            found.push(Found { goal: goal.clone(), lower, upper, throughput });
        }
        Ok(found)
    }

    /// First with short trials and bounds far apart, then with longer ones and closer bounds.
    fn narrow<E>(
        &mut self,
        goal: &Goal,
        shortest: f64,
        guess: f64,
        probe: &mut impl FnMut(&mut Search, f64, f64) -> Result<f64, E>,
    ) -> Result<f64, E> {
        let mut guess = guess;
        for (part, width) in [(8.0, 8.0), (3.0, 2.5), (1.0, 1.0)] {
            let seconds = (goal.trial_s / part).max(shortest);
            let phase = Goal {
                trial_s: seconds,
                sum_s: if part > 1.0 { seconds } else { goal.sum_s },
                width: goal.width * width,
                ..goal.clone()
            };
            guess = self.settle(&phase, guess, probe)?;
        }
        Ok(guess)
    }

    /// Tries loads until the bounds of a goal are close; returns its best guess.
    fn settle<E>(
        &mut self,
        goal: &Goal,
        mut guess: f64,
        probe: &mut impl FnMut(&mut Search, f64, f64) -> Result<f64, E>,
    ) -> Result<f64, E> {
        let mut step = goal.width;
        loop {
            let load = match self.bounds(goal) {
                (Some(lower), _) if lower >= self.most => return Ok(lower),
                (_, Some(upper)) if upper <= self.least => return Ok(upper),
                (Some(lower), Some(upper)) if (upper - lower) / upper <= goal.width => return Ok(lower),
                (Some(lower), Some(upper)) => f64::midpoint(lower, upper),
                (None, Some(upper)) => {
                    step *= 2.0;
                    guess.min(upper * (1.0 - (step / 2.0).min(0.5))).max(self.least)
                }
                (Some(lower), None) => {
                    step *= 2.0;
                    (lower * (1.0 + step / 2.0)).min(self.most)
                }
                (None, None) => guess.clamp(self.least, self.most),
            };
            guess = load;
            // As often as it takes to know of this load.
            while goal.standing(&self.at(load)) == Standing::Undecided {
                probe(self, load, goal.trial_s)?;
            }
        }
    }
}

/// No drop rate: not a frame is lost (RFC 2544's throughput, found with fewer trials).
#[must_use]
pub fn ndr(trial_s: f64, width: f64) -> Goal {
    Goal { name: "NDR".into(), loss: 0.0, trial_s, sum_s: trial_s, exceed: 0.5, width }
}

/// Partial drop rate: no more than one frame in two hundred is lost.
#[must_use]
pub fn pdr(trial_s: f64, width: f64) -> Goal {
    Goal { name: "PDR".into(), loss: 0.005, trial_s, sum_s: trial_s * 2.0, exceed: 0.5, width }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A device that forwards so much and loses the rest.
    fn device(capacity: f64) -> impl FnMut(f64, Duration) -> Result<f64, ()> {
        move |load, _| Ok(((load - capacity) / load).max(0.0))
    }

    proptest! {
        #[test]
        fn the_bounds_of_every_goal_hold_the_rate_of_a_device(capacity in 1_000.0f64..90_000_000.0) {
            let mut search = Search::between(100.0, 100e6);
            let goals = [ndr(1.0, 0.005), pdr(1.0, 0.005)];
            let found = search.find(&goals, device(capacity)).expect("trials that succeed");
            for (found, rate) in found.iter().zip([capacity, capacity / 0.995]) {
                let (lower, upper) = (found.lower.expect("a bound"), found.upper.expect("a bound"));
                prop_assert!(lower <= rate && rate <= upper, "{lower} {rate} {upper}");
                prop_assert!((upper - lower) / upper <= 0.005);
                prop_assert!(found.throughput.is_some_and(|rate| rate <= capacity * 1.000_001));
            }
            prop_assert!(search.probes().len() < 150, "{} trials", search.probes().len());
        }
    }

    #[test]
    fn a_device_faster_than_the_highest_load_has_no_upper_bound() {
        let found =
            Search::between(100.0, 1e6).find(&[ndr(1.0, 0.01)], device(2e6)).expect("trials that succeed");
        assert_eq!((found[0].lower, found[0].upper), (Some(1e6), None));
    }

    #[test]
    fn a_device_that_always_loses_has_no_lower_bound() {
        let found = Search::between(100.0, 1e6)
            .find(&[ndr(1.0, 0.01)], |_, _| Ok::<f64, ()>(0.1))
            .expect("trials that succeed");
        assert_eq!((found[0].lower, found[0].upper, found[0].throughput), (None, Some(100.0), None));
    }

    #[test]
    fn short_trials_alone_never_show_a_lower_bound() {
        let goal = ndr(10.0, 0.01);
        let probe = |seconds, loss| Probe { load: 1.0, seconds, loss };
        assert_eq!(goal.standing(&[probe(1.0, 0.0); 30]), Standing::Undecided);
        assert_eq!(goal.standing(&[probe(10.0, 0.0)]), Standing::Lower);
        assert_eq!(goal.standing(&[probe(10.0, 0.1)]), Standing::Upper);
        // What shorter ones lost is balanced by what others of them did not lose.
        let balanced = [vec![probe(1.0, 0.1); 4], vec![probe(1.0, 0.0); 5]].concat();
        assert_eq!(goal.standing(&balanced), Standing::Undecided);
        assert_eq!(goal.standing(&[probe(1.0, 0.1); 6]), Standing::Upper);
    }
}
