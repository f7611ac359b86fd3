//! `round-trip`: latency from a pod of one node to a pod of another and back.

use std::time::Instant;

use super::{CommandError, rate, seconds};
use crate::args::RoundTrip;
use crate::document::{Document, Latency};
use crate::overlay::Overlay;
use crate::peers;
use crate::progress::Progress;

/// Huge pages that two daemons take.
const PAGES: u64 = 160;

pub(super) fn round_trip(arguments: &RoundTrip) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    let time = seconds("duration", arguments.duration)?;
    peers::check(PAGES)?;
    super::take_down_when_interrupted()?;
    let progress = Progress::of(arguments.rate.len());
    progress.say("two nodes come up");
    let overlay = Overlay::build()?;
    for &value in &arguments.rate {
        let rate = rate("rate", value.into())?;
        progress.say(format!("{value} a second"));
        let trips = overlay.trips(rate, time)?;
        progress.step();
        let latency = Latency {
            title: "round trip from pod to pod over two nodes, VXLAN, veths, adaptive workers".into(),
            rate,
            share: None,
            received: trips.received,
            lost: trips.sent.saturating_sub(trips.received),
            quantiles: trips.quantiles,
            max: trips.max,
        };
        if arguments.output.prints_text() {
            progress.print(&super::latency::describe(&latency));
        }
        document.latencies.push(latency);
    }
    drop(progress);
    arguments.output.write(document, started)
}
