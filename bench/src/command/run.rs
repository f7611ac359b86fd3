//! `run`: trials of a path.

use std::time::Instant;

use super::{CommandError, gate, rate, seconds, take_down_when_interrupted};
use crate::args::Run;
use crate::document::{Document, Measured};
use crate::live::LiveTrial;
use crate::profile::{Ports, Profile};
use crate::progress::Progress;
use crate::trial::{Load, Outcome, Trial};

pub(super) fn run(arguments: &Run) -> Result<(), CommandError> {
    let (started, mut document) = (Instant::now(), Document::begin());
    let time = seconds("duration", arguments.duration)?;
    let load = arguments.rate.map(|value| rate("rate", value)).transpose()?.map_or(Load::Full, Load::Rate);
    let profiles = arguments.profile.profiles();
    let progress = Progress::of(profiles.len());
    let mut lowest: Option<(String, f64)> = None;
    if arguments.ports != Ports::Memory {
        take_down_when_interrupted()?;
    }
    for profile in profiles {
        let profile = Profile { ports: arguments.ports, ..profile };
        progress.say(profile.title());
        let outcome = match profile.ports {
            Ports::Memory => Trial::new(profile)?.measure(load, time)?,
            Ports::Veth | Ports::Tap | Ports::Vhost => LiveTrial::new(profile)?.measure(load, time)?,
        };
        progress.step();
        let text = describe(&profile.title(), &outcome);
        if arguments.output.prints_text() {
            progress.print(&text);
        }
        if lowest.as_ref().is_none_or(|(_, mpps)| outcome.mpps < *mpps) {
            lowest = Some((profile.title(), outcome.mpps));
        }
        document.trials.push(Measured { profile, outcome });
    }
    drop(progress);
    arguments.output.write(document, started)?;
    lowest.map_or(Ok(()), |(what, mpps)| gate(&what, mpps, arguments.threshold, "Mpps"))
}

/// What people read.
fn describe(title: &str, outcome: &Outcome) -> String {
    let lost: Vec<String> = outcome.lost.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let validity = &outcome.validity;
    let mut text = format!(
        "{title}\n  {:.3} Mpps   {:.2} Gbit/s L2, {:.2} L1   {:.1} TSC cycles a packet ({:.1} at best), {:.1} ns\n  \
         offered {}  received {}  lost {} ({})  in {:.2} s\n  {:.1} packets a burst   busy {:.1} %   steal {:.2} %   noise {:.2} %, \
         longest gap {:.0} us",
        outcome.mpps,
        outcome.gbit_l2,
        outcome.gbit_l1,
        outcome.cycles,
        outcome.least_cycles,
        outcome.nanoseconds,
        outcome.offered,
        outcome.received,
        outcome.lost_frames(),
        if lost.is_empty() { "none".to_owned() } else { lost.join(", ") },
        outcome.seconds,
        outcome.burst,
        outcome.busy * 100.0,
        validity.steal * 100.0,
        validity.calibration.noise * 100.0,
        validity.calibration.longest_gap_us,
    );
    if let Some(share) = outcome.disagreement {
        text += &format!("\n  cycles x rate = clock to {:.2} %", share * 100.0);
    }
    if validity.repeated > 0 {
        text +=
            &format!("\n  {} trial(s) before this one were thrown away: steal or clock", validity.repeated);
    }
    if !outcome.is_sound() {
        text += "\n  NOT SOUND: too much was stolen, or the clock and the cycles disagree; measure on a quieter machine";
    }
    text
}
