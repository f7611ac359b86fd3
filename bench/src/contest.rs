//! Contenders measured in turns, A B A B, so that what else happens on the machine happens to all of them.

use std::time::Duration;

use crate::peers::PeerError;

/// Somebody who forwards packets.
pub struct Contender<'a> {
    /// The name in the report.
    pub name: &'static str,
    /// Forwards for a while and tells how many packets a second it was.
    pub run: Box<dyn FnMut(Duration) -> Result<f64, PeerError> + 'a>,
}

/// What a contender did in each round, in packets a second.
#[derive(Clone, Debug)]
pub struct Score {
    /// The contender.
    pub name: &'static str,
    /// One figure a round.
    pub rates: Vec<f64>,
}

/// Runs the contenders one after the other, `rounds` times, each for `time`.
///
/// # Errors
/// The first contender's that could not run.
pub fn alternate(
    mut contenders: Vec<Contender<'_>>,
    rounds: usize,
    time: Duration,
) -> Result<Vec<Score>, PeerError> {
    let mut scores: Vec<Score> = contenders
        .iter()
        .map(|contender| Score { name: contender.name, rates: Vec::with_capacity(rounds) })
        .collect();
    for _ in 0..rounds {
        for (contender, score) in contenders.iter_mut().zip(&mut scores) {
            score.rates.push((contender.run)(time)?);
        }
    }
    Ok(scores)
}

impl Score {
    /// The middle figure.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(self.rates.clone())
    }

    /// The lowest and the highest figure.
    #[must_use]
    pub fn spread(&self) -> (f64, f64) {
        self.rates.iter().fold((f64::INFINITY, 0.0), |(low, high), &rate| (low.min(rate), high.max(rate)))
    }

    /// How many times as fast as `other`: the median of the ratios round by round, which a slow minute of the machine
    /// moves less than it moves either figure.
    #[must_use]
    pub fn ratio_to(&self, other: &Score) -> f64 {
        median(self.rates.iter().zip(&other.rates).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// The middle one; of an even number the mean of the two in the middle, of none not a number.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// Prints the scores; ratios are the first contender's to each of the others. `ticks_per_second` gives the cycles.
pub fn print(title: &str, scores: &[Score], ticks_per_second: f64) {
    println!("{title}");
    for score in scores {
        let (low, high) = score.spread();
        let ratio = scores[0].ratio_to(score);
        println!(
            "  {:<22} {:>8.3} Mpps ({:.3} to {:.3} in {} rounds) {:>7.1} TSC cycles a packet; {} is {ratio:.2} times as fast",
            score.name,
            score.median() / 1e6,
            low / 1e6,
            high / 1e6,
            score.rates.len(),
            ticks_per_second / score.median(),
            scores[0].name,
        );
    }
}

/// A comparison of two contenders, in a table of them.
pub struct Row {
    /// What was done.
    pub title: String,
    /// Ours and theirs.
    pub scores: Vec<Score>,
}

/// Prints comparisons side by side: cycles a packet of the first and of the second contender, and how many times as fast
/// the first is.
pub fn table(rows: &[Row], ticks_per_second: f64) {
    println!("{:<36}{:>12}{:>12}{:>8}   TSC cycles a packet, medians", "", "ours", "peer", "ratio");
    for row in rows {
        if let [ours, theirs, ..] = &row.scores[..] {
            let [a, b] = [ours, theirs].map(|score| ticks_per_second / score.median());
            println!("{:<36}{a:>12.1}{b:>12.1}{:>8.2}   {}", row.title, ours.ratio_to(theirs), theirs.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paired_ratio_does_not_mind_a_slow_minute() {
        let ours = Score { name: "a", rates: vec![20.0, 2.0, 20.0] };
        let theirs = Score { name: "b", rates: vec![10.0, 1.0, 10.0] };
        assert!((ours.ratio_to(&theirs) - 2.0).abs() < 1e-9);
        assert!((ours.median() - 20.0).abs() < 1e-9);
        assert_eq!(theirs.spread(), (1.0, 10.0));
    }

    #[test]
    fn contenders_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let contender = |name: &'static str| Contender {
            name,
            run: Box::new(|_| {
                order.borrow_mut().push_str(name);
                Ok(1.0)
            }),
        };
        let scores = alternate(vec![contender("a"), contender("b")], 3, Duration::ZERO).map_err(|_| ());
        assert_eq!(scores.map(|scores| scores.len()), Ok(2));
        assert_eq!(order.into_inner(), "ababab");
    }
}
