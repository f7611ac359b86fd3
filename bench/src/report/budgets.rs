//! What a packet may cost, beside what it was measured to cost: a budget that is not kept is called a miss.

use std::fmt::Write;

use crate::document::{Compared, Document};
use crate::profile::{Path, Ports, Size, counted};

/// What a packet of a path may cost on one worker, in ticks of the time-stamp counter, receive and send in memory included:
/// 64-byte frames.
struct Budget {
    path: Path,
    flows: u32,
    most: f64,
    /// What we would like.
    stretch: f64,
    /// The row of a comparison on the same path.
    row: &'static str,
}

const fn budget(path: Path, flows: u32, most: f64, stretch: f64, row: &'static str) -> Budget {
    Budget { path, flows, most, stretch, row }
}

const BUDGETS: [Budget; 14] = [
    budget(Path::Forward, 1_000, 30.0, 20.0, "memory-forward-1"),
    budget(Path::Forward, 100_000, 45.0, 35.0, "memory-forward-100"),
    budget(Path::L3, 1_000, 45.0, 35.0, "memory-l3-1"),
    budget(Path::L3, 100_000, 60.0, 48.0, "memory-l3-100"),
    budget(Path::VxlanEncap, 1_000, 52.0, 40.0, "memory-vxlan-1"),
    budget(Path::VxlanEncap, 100_000, 70.0, 55.0, "memory-vxlan-100"),
    budget(Path::StatefulVxlan, 1_000, 65.0, 50.0, "memory-stateful-vxlan-1"),
    budget(Path::StatefulVxlan, 100_000, 85.0, 65.0, "memory-stateful-vxlan-100"),
    budget(Path::StatefulVxlan, 1_000_000, 125.0, 100.0, ""),
    budget(Path::Snat, 1_000, 65.0, 50.0, "memory-snat-1"),
    budget(Path::Snat, 100_000, 85.0, 65.0, "memory-snat-100"),
    budget(Path::Service, 1_000, 65.0, 50.0, "memory-service-1"),
    budget(Path::Service, 100_000, 85.0, 65.0, "memory-service-100"),
    budget(Path::PolicyFirst, 100_000, 900.0, 600.0, ""),
];

/// What a look-up may cost: (title, whose, ticks, what we would like).
const LOOKUPS: [(&str, &str, f64, f64); 5] = [
    ("longest IPv4 prefix of 10 k", "Penstock's poptrie", 8.0, 5.0),
    ("longest IPv4 prefix of 1 M", "Penstock's poptrie", 20.0, 12.0),
    ("verdict among 100 rules", "Penstock's policy", 160.0, 100.0),
    ("verdict among 1 k rules", "Penstock's policy", 160.0, 100.0),
    ("verdict among 10 k rules", "Penstock's policy", 160.0, 100.0),
];

/// How many times a peer's rate ours is to be: (what rows' names begin with, times).
const RATIOS: [(&str, f64); 4] =
    [("vhost-split", 1.2), ("vhost-packed", 1.2), ("vhost-stateful", 1.0), ("veth-ports", 1.1)];

/// A line of the table.
#[derive(Debug, PartialEq)]
struct Line {
    what: String,
    budget: String,
    measured: String,
    peer: String,
    is_kept: bool,
}

fn cost(what: String, most: f64, stretch: f64, cycles: f64, peer: String) -> Line {
    Line {
        what,
        budget: format!("{most:.0} ({stretch:.0})"),
        measured: format!("{cycles:.1}"),
        peer,
        is_kept: cycles <= most,
    }
}

/// A peer's cycles a packet in a row.
fn peer_cycles(document: &Document, row: &str) -> String {
    let hertz = document.machine.calibration.ticks_per_second;
    let found = document.comparisons.iter().find(|compared| compared.row == row);
    found.map_or(String::new(), |compared| {
        format!("{}: {:.0}", super::short(&compared.peer), hertz / compared.peer_rate())
    })
}

fn lines(document: &Document) -> Vec<Line> {
    let mut lines = Vec::new();
    for budget in &BUDGETS {
        let measured = document.trials.iter().find(|measured| {
            let profile = &measured.profile;
            (profile.path, profile.flows, profile.ports) == (budget.path, budget.flows, Ports::Memory)
                && profile.size == Size::Bytes(64)
                && !profile.ipv6
        });
        if let Some(measured) = measured {
            let what = format!("{}, {} flows", budget.path.name(), counted(budget.flows));
            let peer = peer_cycles(document, budget.row);
            lines.push(cost(what, budget.most, budget.stretch, measured.outcome.cycles, peer));
        }
    }
    for (title, whose, most, stretch) in LOOKUPS {
        let of = |ours: bool| {
            document.lookups.iter().find(move |it| it.title == title && (it.contender == whose) == ours)
        };
        if let Some(lookup) = of(true) {
            let peer = of(false).map_or(String::new(), |it| format!("{}: {:.0}", it.contender, it.cycles));
            lines.push(cost(title.to_owned(), most, stretch, lookup.cycles, peer));
        }
    }
    lines.extend(document.comparisons.iter().filter_map(times));
    lines
}

/// A row whose ratio has a least one.
fn times(compared: &Compared) -> Option<Line> {
    let (_, least) = RATIOS.iter().find(|(row, _)| compared.row.starts_with(row))?;
    let ratio = compared.ratio.as_ref()?;
    Some(Line {
        what: compared.title.clone(),
        budget: format!("{least:.1} times"),
        measured: format!("{:.2} times", ratio.median),
        peer: super::short(&compared.peer).to_owned(),
        is_kept: ratio.median >= *least,
    })
}

/// The table; nothing when nothing was measured that has a budget.
pub(super) fn table(document: &Document) -> String {
    let lines = lines(document);
    if lines.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "Ticks of the time-stamp counter a packet or a look-up, in brackets what we would like; or times a peer's rate. The budgets \
         are from a machine where testpmd forwards from memory in 47 ticks (1 k flows) and OVS-DPDK does L3 in 130.\n\n\
         | what | budget | measured | peer | |\n|---|---:|---:|---:|---|\n",
    );
    for line in lines {
        let said = if line.is_kept { "kept" } else { "**miss**" };
        // A string takes all that is written to it.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {said} |",
            line.what, line.budget, line.measured, line.peer
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Lookup;

    #[test]
    fn what_costs_more_than_its_budget_is_a_miss() {
        let mut document = Document::begin();
        assert_eq!(table(&document), "");
        for (contender, cycles) in [("Penstock's poptrie", 8.5), ("DPDK's rte_fib", 26.0)] {
            document.lookups.push(Lookup {
                title: "longest IPv4 prefix of 10 k".into(),
                contender: contender.into(),
                cycles,
                note: String::new(),
            });
        }
        let text = table(&document);
        assert!(
            text.contains("| longest IPv4 prefix of 10 k | 8 (5) | 8.5 | DPDK's rte_fib: 26 | **miss** |"),
            "{text}"
        );
    }
}
