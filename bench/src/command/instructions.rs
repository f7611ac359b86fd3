//! `instructions`: instructions a packet, beside those recorded.

use std::collections::BTreeMap;
use std::io::Write;

use super::CommandError;
use crate::args::Instructions;
use crate::instructions::{Change, InstructionsError, Record, Records, build, count, judge, paths};
use crate::machine::Machine;
use crate::progress::Progress;

pub(super) fn instructions(arguments: &Instructions) -> Result<(), CommandError> {
    let records = Records::read(&arguments.file)?;
    let progress = Progress::of(paths().len());
    let mut now = BTreeMap::new();
    for &path in paths() {
        progress.say(path.name());
        now.insert(path.name(), count(path)?);
        progress.step();
    }
    drop(progress);
    let last = records.last(build());
    let none =
        Record { date: String::new(), why: String::new(), build: String::new(), packets: BTreeMap::new() };
    let changes = last.unwrap_or(&none).beside(&now);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&changes).expect("changes have no keys but strings"));
    } else {
        changes.iter().for_each(describe);
    }
    if let Some(why) = &arguments.record {
        let date = Machine::here().date().chars().take(10).collect();
        let record = Record { date, why: why.clone(), build: build().into(), packets: now };
        return Ok(append(arguments, &record)?);
    }
    if last.is_none() {
        return Err(InstructionsError::NoRecord { path: arguments.file.clone(), build: build() }.into());
    }
    Ok(judge(&changes)?)
}

fn describe(change: &Change) {
    match change.recorded {
        Some(recorded) => println!(
            "{:<16}{:>9.1} instructions a packet, {recorded:.1} recorded ({:+.1} %)",
            change.path,
            change.now,
            change.growth() * 100.0
        ),
        None => println!("{:<16}{:>9.1} instructions a packet", change.path, change.now),
    }
}

fn append(arguments: &Instructions, record: &Record) -> Result<(), InstructionsError> {
    let path = &arguments.file;
    let write = || {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(record.text().as_bytes())
    };
    write().map_err(|source| InstructionsError::File { path: path.clone(), source })
}
