//! `control`: how long changes take until they are live.

use std::time::Instant;

use super::CommandError;
use crate::args::Control;
use crate::churn::{Cluster, Kind, measure};
use crate::document::{Changed, Document};
use crate::progress::Progress;

pub(super) fn control(arguments: &Control) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    let progress = Progress::of(arguments.policies.len() * 2);
    for &policies in &arguments.policies {
        for kind in [Kind::Policy, Kind::Endpoint] {
            // Without policies there is none to change: the first one comes and is changed then.
            let cluster = Cluster { policies, endpoints: arguments.endpoints };
            progress.say(format!("{policies} policies, {} endpoints", arguments.endpoints));
            let changed = measure(cluster, kind, arguments.changes.max(1))?;
            progress.step();
            if arguments.output.prints_text() {
                progress.print(&describe(&changed));
            }
            document.changes.push(changed);
        }
    }
    drop(progress);
    arguments.output.write(document, started)
}

fn describe(changed: &Changed) -> String {
    format!(
        "{} among {} policies, {} endpoints\n  live after {:.2} ms (p50), {:.2} (p99), {:.2} (max of {}); all compiled in \
         {:.0} ms; tables {:.1} MB, process {:.1} MB; {:.2} Mpps meanwhile, {} lost",
        changed.title,
        changed.policies,
        changed.endpoints,
        changed.p50_ms,
        changed.p99_ms,
        changed.max_ms,
        changed.changes,
        changed.compile_ms,
        changed.table_bytes as f64 / 1e6,
        changed.resident_bytes as f64 / 1e6,
        changed.mpps,
        changed.lost,
    )
}
