//! Markdown tables.

use std::fmt::Write;

use super::{budgets, claim, is_miss, mpps, ratio, short};
use crate::document::{Document, percentile};
use crate::statistics::mean_and_deviation;

/// The lines that a table is put between.
const BEGIN: &str = "<!-- bench -->";
const END: &str = "<!-- /bench -->";

/// The table of comparisons, with when, where and how it was measured.
#[must_use]
pub fn comparisons(document: &Document) -> String {
    let mut text = String::from(
        "| what both do | Penstock, Mpps | peer, Mpps | ratio (95 % interval) | noise | |\n|---|---:|---:|---:|---:|---|\n",
    );
    let hertz = document.machine.calibration.ticks_per_second;
    for compared in &document.comparisons {
        let [ours, theirs] = [compared.ours_rate(), compared.peer_rate()];
        let noise = compared.ratio.map_or(f64::NAN, |ratio| ratio.noise * 100.0);
        let said = if is_miss(compared) {
            format!("**miss: {}**", claim(compared))
        } else {
            claim(compared).to_owned()
        };
        line(
            &mut text,
            format_args!(
                "| {} | {} ({:.0} cycles) | {}: {} ({:.0}) | {} | {noise:.1} % | {said} |",
                compared.title,
                mpps(ours),
                hertz / ours,
                short(&compared.peer),
                mpps(theirs),
                hertz / theirs,
                ratio(compared.ratio.as_ref()),
            ),
        );
    }
    // Of several commands the time of one is not known.
    let is_alone = document.command.lines().count() == 1;
    let took = if is_alone { format!(" in {:.0} s", document.seconds) } else { String::new() };
    let command = document.command.lines().find(|line| line.contains(" compare")).unwrap_or_default();
    let rounds = document.comparisons.iter().map(|compared| compared.rounds.len()).max().unwrap_or(0);
    line(
        &mut text,
        format_args!(
            "\nMeasured {}{} on {}, by `{}`: medians of {rounds} rounds, each ours, the peer, ours again; cycles are \
             of the time-stamp counter, a packet; noise is how far our two figures of a round are apart.",
            document.machine.date(),
            took,
            document.machine.line(),
            command,
        ),
    );
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string takes all that is written to it.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

/// Every table that there is something for.
#[must_use]
pub fn full(document: &Document) -> String {
    let mut text = String::new();
    let mut table = |title: &str, is_empty: bool, rows: fn(&mut String, &Document)| {
        if !is_empty {
            line(&mut text, format_args!("## {title}\n"));
            rows(&mut text, document);
            text.push('\n');
        }
    };
    table("Budgets", budgets::table(document).is_empty(), |text, document| {
        *text += &budgets::table(document);
    });
    table("Beside peers", document.comparisons.is_empty(), beside_peers);
    table("Trials", document.trials.is_empty(), trials);
    table("Rates without loss", document.searches.is_empty(), searches);
    table("Latency", document.latencies.is_empty(), latencies);
    table("Look-ups", document.lookups.is_empty(), lookups);
    table("Changes", document.changes.is_empty(), changes);
    machine(&mut text, document);
    text
}

fn beside_peers(text: &mut String, document: &Document) {
    *text += &comparisons(document);
    line(text, format_args!("\nWho they were and how they were set:\n"));
    for compared in &document.comparisons {
        let note = compared.note.as_ref().map_or(String::new(), |note| format!(" {note}."));
        line(text, format_args!("- `{}`: {}; beside {}.{note}", compared.row, compared.ours, compared.peer));
    }
}

fn trials(text: &mut String, document: &Document) {
    *text += "| path | Mpps | TSC cycles a packet | best window | ns | Gbit/s L1 | lost | steal |\n\
              |---|---:|---:|---:|---:|---:|---:|---:|\n";
    for measured in &document.trials {
        let outcome = &measured.outcome;
        line(
            text,
            format_args!(
                "| {} | {:.2} | {:.1} | {:.1} | {:.1} | {:.2} | {} of {} | {:.2} %{} |",
                measured.profile.title(),
                outcome.mpps,
                outcome.cycles,
                outcome.least_cycles,
                outcome.nanoseconds,
                outcome.gbit_l1,
                outcome.lost_frames(),
                outcome.offered,
                outcome.validity.steal * 100.0,
                if outcome.is_sound() { "" } else { ", not sound" },
            ),
        );
    }
}

fn searches(text: &mut String, document: &Document) {
    *text += "| path | rate | lost | Mpps | bounds | MRR, Mpps |\n|---|---|---:|---:|---:|---:|\n";
    for searched in &document.searches {
        let (mean, deviation) = mean_and_deviation(&searched.mrr);
        for found in &searched.found {
            let rate = |rate: Option<f64>| rate.map_or("none".to_owned(), mpps);
            line(
                text,
                format_args!(
                    "| {} | {} | {} % | {} | {} to {} | {} +- {} |",
                    searched.profile.title(),
                    found.goal.name,
                    found.goal.loss * 100.0,
                    rate(found.throughput),
                    rate(found.lower),
                    rate(found.upper),
                    mpps(mean),
                    mpps(deviation),
                ),
            );
        }
    }
}

fn latencies(text: &mut String, document: &Document) {
    *text += "Microseconds from the moment at which a packet was to be sent.\n\n| path | Mpps | of PDR | quantiles | max | lost |\n\
              |---|---:|---:|---|---:|---:|\n";
    for latency in &document.latencies {
        let quantiles: Vec<String> = latency
            .quantiles
            .iter()
            .map(|(quantile, nanoseconds)| {
                format!("{} {:.1}", percentile(*quantile), *nanoseconds as f64 / 1e3)
            })
            .collect();
        line(
            text,
            format_args!(
                "| {} | {} | {} | {} | {:.1} | {} |",
                latency.title,
                mpps(latency.rate),
                latency.share.map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
                quantiles.join(", "),
                latency.max as f64 / 1e3,
                latency.lost,
            ),
        );
    }
}

fn lookups(text: &mut String, document: &Document) {
    *text += "| what | who | TSC cycles | how |\n|---|---|---:|---|\n";
    for lookup in &document.lookups {
        line(
            text,
            format_args!(
                "| {} | {} | {:.1} | {} |",
                lookup.title, lookup.contender, lookup.cycles, lookup.note
            ),
        );
    }
}

fn changes(text: &mut String, document: &Document) {
    *text += "From the change until every worker goes by it, while it forwards.\n\n| change | p50, ms | p99, ms | max, ms | \
              all compiled, ms | tables, MB | process, MB | Mpps meanwhile | lost |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for changed in &document.changes {
        line(
            text,
            format_args!(
                "| {} among {} policies, {} endpoints | {:.2} | {:.2} | {:.2} | {:.0} | {:.1} | {:.1} | {:.2} | {} |",
                changed.title,
                changed.policies,
                changed.endpoints,
                changed.p50_ms,
                changed.p99_ms,
                changed.max_ms,
                changed.compile_ms,
                changed.table_bytes as f64 / 1e6,
                changed.resident_bytes as f64 / 1e6,
                changed.mpps,
                changed.lost,
            ),
        );
    }
}

fn machine(text: &mut String, document: &Document) {
    let machine = &document.machine;
    let (reserved, free) = machine.hugepages;
    line(text, format_args!("## Machine\n\n- {}", machine.line()));
    line(text, format_args!("- {}; huge pages of 2 MiB: {reserved}, free {free}", machine.date()));
    let calibration = &machine.calibration;
    line(
        text,
        format_args!(
            "- noise of an idle loop {:.2} %, longest gap {:.0} us; clock steady to {:.4} %",
            calibration.noise * 100.0,
            calibration.longest_gap_us,
            calibration.drift * 100.0
        ),
    );
    for (name, version) in &machine.versions {
        line(text, format_args!("- {name}: {version}"));
    }
    for (name, said) in &machine.mitigations {
        line(text, format_args!("- {name}: {said}"));
    }
    for command in document.command.lines() {
        line(text, format_args!("- `{command}`"));
    }
}

/// Puts a table between the lines of a text that are there for it; `None` where there are none.
#[must_use]
pub fn embed(text: &str, table: &str) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text[begin..].find(END)?;
    Some(format!("{}\n\n{}\n{}", &text[..begin], table.trim_end(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_what_was_between_its_lines() {
        let text = "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n";
        let once = embed(text, "| new |\n");
        assert_eq!(once.as_deref(), Some("before\n<!-- bench -->\n\n| new |\n<!-- /bench -->\nafter\n"));
        assert_eq!(once.as_deref().and_then(|text| embed(text, "| new |\n")), once);
        assert_eq!(embed("nothing", "| new |"), None);
    }
}
