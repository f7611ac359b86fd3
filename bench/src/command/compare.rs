//! `compare`: ours beside peers, in turns.

use std::time::Instant;

use super::{CommandError, gate, seconds};
use crate::args::Compare;
use crate::compare::{Row, rows};
use crate::document::{Compared, Document};
use crate::peers;
use crate::progress::Progress;

/// Huge pages that the hungriest row takes: two guests and two switches, or 100,000 frames in buffers of their own.
const PAGES: u64 = 700;
/// A short run: figures of a first look.
const QUICK: (usize, f64) = (3, 0.6);

pub(super) fn compare(arguments: &Compare) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    let (mut rounds, mut length) = (arguments.rounds, arguments.seconds);
    if arguments.quick {
        (rounds, length) = QUICK;
    }
    let time = seconds("seconds", length)?;
    let all = rows(arguments.peer);
    let wanted = |row: &Row| {
        arguments.only.is_empty() || arguments.only.iter().any(|word| row.key.contains(word.as_str()))
    };
    let names: Vec<String> = all.iter().map(|row| row.key.clone()).collect();
    let all: Vec<Row> = all.into_iter().filter(wanted).collect();
    if arguments.list {
        all.iter().for_each(|row| println!("{:<28}{}", row.key, row.title));
        return Ok(());
    }
    if all.is_empty() {
        return Err(CommandError::NoRow { words: arguments.only.join(", "), names: names.join(", ") });
    }
    peers::check(PAGES)?;
    super::take_down_when_interrupted()?;
    for (name, package) in
        [("DPDK", "dpdk"), ("Open vSwitch", "openvswitch-switch-dpdk"), ("nftables", "nftables")]
    {
        document.machine.note_version(name, "dpkg-query", &["-W", "-f", "${Version}", package]);
    }
    let progress = Progress::of(all.len());
    let mut missing = Vec::new();
    for row in all {
        let outcome = row.measure(rounds, time, |what| progress.say(format!("{}: {what}", row.key)));
        progress.step();
        match outcome {
            Ok(compared) => {
                if arguments.output.prints_text() {
                    progress.print(&describe(&compared));
                }
                document.comparisons.push(compared);
            }
            Err(error) => {
                progress.line(&format!("{}: not measured: {error}", row.key));
                missing.push(row.key);
            }
        }
    }
    drop(progress);
    let lowest = document.comparisons.iter().filter_map(|compared| Some((compared, compared.ratio?.median)));
    let lowest =
        lowest.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(compared, ratio)| (compared.row.clone(), ratio));
    arguments.output.write(document, started)?;
    if !missing.is_empty() {
        return Err(CommandError::Unmeasured(missing.join(", ")));
    }
    lowest.map_or(Ok(()), |(row, ratio)| gate(&row, ratio, arguments.threshold, "times the peer's rate"))
}

fn describe(compared: &Compared) -> String {
    let rate = |rate: f64| format!("{:.3} Mpps", rate / 1e6);
    let [ours, theirs] = compared.spreads();
    let said = compared.ratio.map_or(String::new(), |ratio| {
        format!(
            "{:.2} times ({:.2} to {:.2}), noise {:.1} %: {}",
            ratio.median,
            ratio.interval.low,
            ratio.interval.high,
            ratio.noise * 100.0,
            ratio.claim.words()
        )
    });
    format!(
        "{}\n  ours {} ({} to {})   peer {} ({} to {})   {said}",
        compared.title,
        rate(compared.ours_rate()),
        rate(ours.low),
        rate(ours.high),
        rate(compared.peer_rate()),
        rate(theirs.low),
        rate(theirs.high),
    )
}
