//! `search`: the rates at which no more than a share is lost.

use std::time::{Duration, Instant};

use super::{CommandError, gate, seconds};
use crate::args::Search as Arguments;
use crate::document::{Document, Searched};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::search::{Goal, Search, ndr, pdr};
use crate::statistics::mean_and_deviation;
use crate::trial::{Load, Trial, TrialError};

/// Trials at full load, of a second each at most.
const FULL_LOADS: usize = 10;
/// The least rate that is tried.
const LEAST: f64 = 1_000.0;
/// How much faster than at full load anything may be tried: in a ring's worth of time more can arrive than is served.
const ABOVE: f64 = 1.5;

pub(super) fn search(arguments: &Arguments) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    let trial_s = seconds("trial", arguments.trial)?.as_secs_f64();
    if !(0.0001..0.5).contains(&arguments.width) {
        return Err(CommandError::Number {
            flag: "width",
            value: arguments.width,
            takes: "from 0.0001 to 0.5",
        });
    }
    let goals: Vec<Goal> = arguments
        .goals
        .iter()
        .map(|(name, loss)| {
            let goal =
                if *loss > 0.0 { pdr(trial_s, arguments.width) } else { ndr(trial_s, arguments.width) };
            Goal { name: name.clone(), loss: *loss, ..goal }
        })
        .collect();
    let mut lowest: Option<(String, f64)> = None;
    for profile in arguments.profile.profiles() {
        let searched = find(profile, &goals)?;
        if arguments.output.prints_text() {
            describe(&searched);
        }
        let first = searched.found.first().and_then(|found| found.throughput).unwrap_or(0.0) / 1e6;
        if lowest.as_ref().is_none_or(|(_, mpps)| first < *mpps) {
            lowest = Some((profile.title(), first));
        }
        document.searches.push(searched);
    }
    arguments.output.write(document, started)?;
    lowest.map_or(Ok(()), |(what, mpps)| gate(&what, mpps, arguments.threshold, "Mpps"))
}

/// Rates at full load, then each goal's.
pub(super) fn find(profile: Profile, goals: &[Goal]) -> Result<Searched, CommandError> {
    let progress = Progress::of(0);
    progress.say(format!("{}: learning its flows", profile.title()));
    let mut trial = Trial::new(profile)?;
    let longest = goals.iter().map(|goal| goal.trial_s).fold(0.1, f64::max).min(1.0);
    let mut mrr = Vec::new();
    for _ in 0..FULL_LOADS {
        mrr.push(trial.measure(Load::Full, Duration::from_secs_f64(longest / 2.0))?.mpps * 1e6);
    }
    let most = mrr.iter().copied().fold(LEAST, f64::max) * ABOVE;
    let mut search = Search::between(LEAST, most);
    let found = search.find(goals, |load, time| {
        progress.step();
        let outcome = trial.measure(Load::Rate(load), time)?;
        let loss = outcome.lost_frames() as f64 / outcome.offered.max(1) as f64;
        progress.say(format!("{}: {:.3} Mpps lose {:.3} %", profile.title(), load / 1e6, loss * 100.0));
        Ok::<f64, TrialError>(loss)
    })?;
    Ok(Searched { profile, found, mrr, trials: search.probes().len() })
}

fn describe(searched: &Searched) {
    println!("{}", searched.profile.title());
    for found in &searched.found {
        let mpps = |rate: Option<f64>| rate.map_or("none".to_owned(), |rate| format!("{:.3}", rate / 1e6));
        println!(
            "  {} ({} % lost): {} Mpps, bounds {} and {}; trials of {} s",
            found.goal.name,
            found.goal.loss * 100.0,
            mpps(found.throughput),
            mpps(found.lower),
            mpps(found.upper),
            found.goal.trial_s,
        );
    }
    let (mean, deviation) = mean_and_deviation(&searched.mrr);
    println!(
        "  MRR: {:.3} Mpps +- {:.3} ({} trials at full load); {} trials of the search",
        mean / 1e6,
        deviation / 1e6,
        searched.mrr.len(),
        searched.trials
    );
}
