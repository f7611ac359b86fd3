//! `latency`: how long packets take, by schedule.

use std::time::Instant;

use super::{CommandError, rate, search, seconds};
use crate::args::Latency as Arguments;
use crate::document::{Document, Latency, percentile, quantiles};
use crate::progress::Progress;
use crate::search::pdr;
use crate::trial::Trial;

pub(super) fn latency(arguments: &Arguments) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    let time = seconds("duration", arguments.duration)?;
    for profile in arguments.profile.profiles() {
        let rates: Vec<(f64, Option<f64>)> = match arguments.rate {
            Some(value) => vec![(rate("rate", value)?, None)],
            None => {
                let searched = search::find(profile, &[pdr(0.5, 0.02)])?;
                let full = searched.found.first().and_then(|found| found.throughput);
                let full = full.unwrap_or(1_000.0);
                document.searches.push(searched);
                let share = |&percent: &f64| Ok((rate("at", full * percent / 100.0)?, Some(percent / 100.0)));
                arguments.at.iter().map(share).collect::<Result<_, CommandError>>()?
            }
        };
        let progress = Progress::of(rates.len());
        let mut trial = Trial::new(profile)?;
        for (rate, share) in rates {
            progress.say(format!("{} at {:.3} Mpps", profile.title(), rate / 1e6));
            let (outcome, latencies) = trial.latency(rate, time)?;
            progress.step();
            let latency = Latency {
                title: format!("{}, memory to memory", profile.title()),
                rate,
                share,
                received: outcome.received,
                lost: outcome.lost_frames(),
                quantiles: quantiles(&latencies),
                max: latencies.max(),
            };
            if arguments.output.prints_text() {
                progress.print(&describe(&latency));
            }
            document.latencies.push(latency);
        }
    }
    arguments.output.write(document, started)
}

pub(super) fn describe(latency: &Latency) -> String {
    let mut text = match latency.share {
        Some(share) => {
            format!("{} at {:.0} % of PDR, {:.3} Mpps", latency.title, share * 100.0, latency.rate / 1e6)
        }
        None => format!("{} at {:.3} Mpps", latency.title, latency.rate / 1e6),
    };
    text += &format!("\n  {} packets, {} lost; us:", latency.received, latency.lost);
    for (quantile, nanoseconds) in &latency.quantiles {
        text += &format!("  {} {:.1}", percentile(*quantile), *nanoseconds as f64 / 1e3);
    }
    text + &format!("  max {:.1}", latency.max as f64 / 1e3)
}
