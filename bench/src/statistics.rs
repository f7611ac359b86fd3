//! Medians, confidence intervals by resampling, and when a difference may be claimed.

use serde::{Deserialize, Serialize};

use crate::traffic::Dice;

/// Samples drawn for an interval: enough that its ends move by less than they are rounded.
const RESAMPLES: usize = 2000;

/// The middle one; of an even number the mean of the two in the middle, of none not a number.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// The figure below which the share `quantile` (0 to 1) of the others lie, the nearest rank; of none not a number.
#[must_use]
pub fn quantile(figures: &[f64], quantile: f64) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let rank = (figures.len() as f64 * quantile).ceil() as usize;
    figures.get(rank.clamp(1, figures.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The arithmetic mean and the sample's standard deviation.
#[must_use]
pub fn mean_and_deviation(figures: &[f64]) -> (f64, f64) {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    (mean, if figures.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

/// Fewer rounds than these show nothing.
const FEWEST_ROUNDS: usize = 3;

/// From the least to the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// The least and the greatest of some figures.
    #[must_use]
    pub fn spread(figures: &[f64]) -> Interval {
        let ends = |(low, high): (f64, f64), &figure: &f64| (low.min(figure), high.max(figure));
        let (low, high) = figures.iter().fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        Interval { low, high }
    }

    fn holds(self, figure: f64) -> bool {
        (self.low..=self.high).contains(&figure)
    }
}

/// One round of a comparison: ours, theirs, ours again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Our rate before the peer's turn, packets a second.
    pub ours: f64,
    /// The peer's rate.
    pub theirs: f64,
    /// Our rate after the peer's turn: what differs from the first is noise.
    pub again: f64,
}

impl Round {
    fn ratio(&self) -> f64 {
        f64::midpoint(self.ours, self.again) / self.theirs
    }

    /// How far our two figures are apart, as a share of the second.
    fn noise(&self) -> f64 {
        (self.ours / self.again - 1.0).abs()
    }
}

/// What may be said of two contenders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// Ours is faster.
    Faster,
    /// Ours is slower.
    Slower,
    /// The difference is not larger than what one contender differs from itself.
    WithinNoise,
    /// The interval of the ratio has one in it.
    Undecided,
    /// There were too few rounds to say anything.
    TooFew,
}

impl Claim {
    /// As a reader wants it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Claim::Faster => "faster",
            Claim::Slower => "slower",
            Claim::WithinNoise => "no claim: within the noise",
            Claim::Undecided => "no claim: the interval holds 1",
            Claim::TooFew => "no claim: fewer than three rounds",
        }
    }
}

/// How many times as fast as the peer, and how sure that is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The median over the rounds of our rate over theirs in the same round.
    pub median: f64,
    /// Its 95 % interval, by resampling the rounds.
    pub interval: Interval,
    /// A/A: the median of how far two measurements of ours in one round are apart, as a share.
    pub noise: f64,
    /// What follows.
    pub claim: Claim,
}

impl Ratio {
    /// Of these rounds; `None` of none.
    #[must_use]
    pub fn of(rounds: &[Round]) -> Option<Ratio> {
        if rounds.is_empty() {
            return None;
        }
        let ratios: Vec<f64> = rounds.iter().map(Round::ratio).collect();
        let noise = median(&rounds.iter().map(Round::noise).collect::<Vec<_>>());
        let (middle, interval) = (median(&ratios), resampled(&ratios));
        let claim = if rounds.len() < FEWEST_ROUNDS {
            Claim::TooFew
        } else if (middle - 1.0).abs() <= noise {
            Claim::WithinNoise
        } else if interval.holds(1.0) {
            Claim::Undecided
        } else if middle > 1.0 {
            Claim::Faster
        } else {
            Claim::Slower
        };
        Some(Ratio { median: middle, interval, noise, claim })
    }
}

/// The percentile bootstrap's 95 % interval of the median (Efron, 1979), with dice that always fall the same way.
#[must_use]
pub fn resampled(figures: &[f64]) -> Interval {
    let mut dice = Dice::new(1);
    let one = |_| {
        let draw = |_| figures[dice.below(figures.len() as u64) as usize];
        median(&(0..figures.len()).map(draw).collect::<Vec<_>>())
    };
    let medians: Vec<f64> = (0..RESAMPLES).map(one).collect();
    Interval { low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rounds(figures: &[(f64, f64, f64)]) -> Vec<Round> {
        figures.iter().map(|&(ours, theirs, again)| Round { ours, theirs, again }).collect()
    }

    #[test]
    fn the_paired_ratio_does_not_mind_a_slow_minute() {
        let ratio = Ratio::of(&rounds(&[(20.0, 10.0, 20.0), (2.0, 1.0, 2.0), (20.0, 10.0, 20.2)]));
        let ratio = ratio.expect("three rounds");
        assert!((ratio.median - 2.0).abs() < 1e-9 && ratio.claim == Claim::Faster, "{ratio:?}");
    }

    #[test]
    fn a_difference_smaller_than_the_noise_is_not_claimed() {
        let ratio = Ratio::of(&rounds(&[(11.0, 11.0, 13.0), (13.0, 11.0, 11.0), (13.0, 11.5, 10.9)]));
        assert_eq!(ratio.map(|ratio| ratio.claim), Some(Claim::WithinNoise));
    }

    #[test]
    fn rounds_that_contradict_each_other_decide_nothing() {
        let ratio = Ratio::of(&rounds(&[(5.0, 10.0, 5.0), (10.0, 8.0, 10.0), (12.0, 10.0, 12.0)]));
        assert_eq!(ratio.map(|ratio| ratio.claim), Some(Claim::Undecided));
        assert_eq!(Ratio::of(&[]), None);
        let two = Ratio::of(&rounds(&[(5.0, 1.0, 5.0), (5.0, 1.0, 5.0)]));
        assert_eq!(two.map(|ratio| ratio.claim), Some(Claim::TooFew));
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let figures: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&figures, share)), [1.0, 50.0, 99.0, 100.0]);
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert!((mean - 5.0).abs() < 1e-9 && (deviation - 2.138).abs() < 1e-3);
    }

    proptest! {
        #[test]
        fn the_interval_lies_within_the_spread_and_holds_the_median(
            figures in prop::collection::vec(0.1f64..10.0, 1..12)
        ) {
            let (interval, spread) = (resampled(&figures), Interval::spread(&figures));
            prop_assert!(spread.low <= interval.low && interval.high <= spread.high);
            prop_assert!(interval.holds(median(&figures)));
        }
    }
}
