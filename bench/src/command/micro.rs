//! `micro`: look-ups beside others of their kind.

use std::time::Instant;

use super::CommandError;
use crate::args::Micro;
use crate::document::{Document, Lookup};
use crate::micro::prefixes::prefixes;
use crate::micro::{flows, rules::rules};
use crate::peers;
use crate::progress::Progress;

/// Huge pages that DPDK's programs take.
const PAGES: u64 = 256;

pub(super) fn micro(arguments: &Micro) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    peers::check(PAGES)?;
    super::take_down_when_interrupted()?;
    document.machine.note_version("DPDK", "dpkg-query", &["-W", "-f", "${Version}", "dpdk"]);
    let progress = Progress::of(1 + arguments.prefixes.len() + arguments.rules.len());
    let mut take = |lookups: Vec<Lookup>| {
        progress.step();
        for lookup in lookups {
            if arguments.output.prints_text() {
                progress
                    .print(&format!("{}: {} {:.1} cycles", lookup.title, lookup.contender, lookup.cycles));
            }
            document.lookups.push(lookup);
        }
    };
    progress.say("known flows");
    take(flows()?);
    for &count in &arguments.prefixes {
        progress.say(format!("{count} prefixes"));
        take(prefixes(count as usize)?);
    }
    for &count in &arguments.rules {
        progress.say(format!("{count} rules"));
        take(rules(count as usize)?);
    }
    drop(progress);
    arguments.output.write(document, started)
}
