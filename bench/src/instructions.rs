//! Instructions a packet, counted by valgrind, and the file that they must not grow over: the same on every machine, however
//! busy it is.

use std::collections::BTreeMap;
use std::path::{Path as File, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use penstock_io::{BURST, Ticks};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::node::Subject;
use crate::profile::{Path, Popularity, Ports, Profile, Segment, Size};

/// How much a figure may grow before it is refused.
pub const MOST_GROWTH: f64 = 0.03;
/// Turns that are counted: enough that the random seeds of hash tables move the figure by less than a thousandth.
const TURNS: u64 = 1000;
/// The function that is counted with all that it calls, by its name in this file.
const COUNTED: &str = "*counted_turns*";
/// What valgrind says at the end: `==1== Collected : 123`.
const SAID: &str = "Collected :";

/// Why there are no figures, or none that will do.
#[derive(Debug, Error)]
pub enum InstructionsError {
    /// Valgrind is not there.
    #[error("cannot run valgrind: {0}; scripts/setup installs it")]
    NoValgrind(#[source] std::io::Error),
    /// It counted nothing.
    #[error("valgrind counted nothing for {path}: {said}")]
    NotCounted {
        /// What was to be counted.
        path: String,
        /// The end of what it said.
        said: String,
    },
    /// The file of records.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file of records is none.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: toml::de::Error,
    },
    /// There is nothing to compare with.
    #[error("{} has no record of a {build} build; make one: scripts/instructions --record 'WHY'", path.display())]
    NoRecord {
        /// The file.
        path: PathBuf,
        /// This build.
        build: &'static str,
    },
    /// More instructions than there may be.
    #[error(
        "more instructions a packet than are recorded, by more than 3 %: {0}; if they must be, say why: \
         scripts/instructions --record 'WHY'"
    )]
    Grown(String),
}

/// What was counted at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When: 2026-05-17.
    pub date: String,
    /// Why the figures were recorded anew.
    pub why: String,
    /// Which build: `dev` or `release`.
    pub build: String,
    /// Instructions a packet, by path.
    pub packets: BTreeMap<String, f64>,
}

/// The file: the last record of a build is the one that counts, those before are its history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// From the oldest to the newest.
    #[serde(default)]
    pub record: Vec<Record>,
}

/// How a figure has changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// The path.
    pub path: String,
    /// Instructions a packet that were recorded, if any were.
    pub recorded: Option<f64>,
    /// Instructions a packet now.
    pub now: f64,
}

impl Change {
    /// By how much more, as a share.
    #[must_use]
    pub fn growth(&self) -> f64 {
        self.recorded.map_or(0.0, |recorded| self.now / recorded - 1.0)
    }
}

/// This build's name in records.
#[must_use]
pub const fn build() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}

impl Records {
    /// Reads a file; one that is not there holds none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &File) -> Result<Records, InstructionsError> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|source| InstructionsError::Unreadable { path: path.to_owned(), source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Records::default()),
            Err(source) => Err(InstructionsError::File { path: path.to_owned(), source }),
        }
    }

    /// The record that counts for a build.
    #[must_use]
    pub fn last(&self, build: &str) -> Option<&Record> {
        self.record.iter().rev().find(|record| record.build == build)
    }
}

impl Record {
    /// Beside what was counted now.
    #[must_use]
    pub fn beside(&self, now: &BTreeMap<String, f64>) -> Vec<Change> {
        let one = |(path, &now): (&String, &f64)| Change {
            path: path.clone(),
            recorded: self.packets.get(path).copied(),
            now,
        };
        now.iter().map(one).collect()
    }

    /// As text at the end of the file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "\n[[record]]\ndate = {}\nwhy = {}\nbuild = {}\n[record.packets]\n",
            toml::Value::from(self.date.clone()),
            toml::Value::from(self.why.clone()),
            toml::Value::from(self.build.clone())
        );
        for (path, count) in &self.packets {
            text += &format!("{path} = {count:.1}\n");
        }
        text
    }
}

/// Refuses what has grown too much, and what was never recorded.
///
/// # Errors
/// What has.
pub fn judge(changes: &[Change]) -> Result<(), InstructionsError> {
    let grown = changes.iter().filter(|change| change.recorded.is_none() || change.growth() > MOST_GROWTH);
    let told: Vec<String> = grown
        .map(|change| match change.recorded {
            Some(recorded) => {
                format!(
                    "{} {recorded:.1} -> {:.1} (+{:.1} %)",
                    change.path,
                    change.now,
                    change.growth() * 100.0
                )
            }
            None => format!("{} {:.1}, never recorded", change.path, change.now),
        })
        .collect();
    if told.is_empty() { Ok(()) } else { Err(InstructionsError::Grown(told.join(", "))) }
}

/// Instructions a packet of a path, by this program under valgrind.
///
/// # Errors
/// When there is no valgrind, or it counts nothing.
pub fn count(path: Path) -> Result<f64, InstructionsError> {
    let program = std::env::current_exe().unwrap_or_default();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(program)
        .args(["turns", &path.name()])
        .stdin(Stdio::null())
        .output()
        .map_err(InstructionsError::NoValgrind)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match collected(&said) {
        Some(instructions) if instructions > 0 && output.status.success() => {
            Ok(instructions as f64 / (TURNS * BURST as u64) as f64)
        }
        _ => {
            let lines: Vec<&str> = said.lines().collect();
            let said = lines[lines.len().saturating_sub(5)..].join(" | ");
            Err(InstructionsError::NotCounted { path: path.name(), said })
        }
    }
}

/// Every path.
#[must_use]
pub fn paths() -> &'static [Path] {
    Path::value_variants()
}

fn collected(said: &str) -> Option<u64> {
    said.lines().rev().find_map(|line| line.split_once(SAID)?.1.trim().parse().ok())
}

/// Takes bursts of a path through, for valgrind to count.
///
/// # Errors
/// Never for the flows of its own profile.
pub fn turns(path: Path) -> Result<(), crate::traffic::TrafficError> {
    let profile = Profile {
        path,
        ports: Ports::Memory,
        size: Size::Bytes(64),
        flows: 1024,
        rules: if path.is_stateful() { 100 } else { 0 },
        workers: 1,
        ipv6: false,
        segment: Segment::Udp,
        popularity: Popularity::Uniform,
        seed: 1,
    };
    let mut subject = Subject::new(&profile)?;
    counted_turns(&mut subject, Ticks::now());
    Ok(())
}

/// Time stands still, so that what is done now and then is not done more often because valgrind is slow.
#[inline(never)]
fn counted_turns(subject: &mut Subject, now: Ticks) {
    (0..TURNS).for_each(|_| subject.turn(now));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(build: &str, l3: f64) -> Record {
        let packets = BTreeMap::from([("l3".to_owned(), l3)]);
        Record { date: "2026-05-17".into(), why: "a \"test\"".into(), build: build.into(), packets }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_the_last_of_a_build_counts() {
        let records = [record("dev", 100.0), record("release", 50.5), record("dev", 90.0)];
        let text: String = records.iter().map(Record::text).collect();
        let read: Records = toml::from_str(&text).unwrap();
        assert_eq!(read.record, records);
        assert_eq!(read.last("dev"), Some(&records[2]));
        assert_eq!(read.last("release"), Some(&records[1]));
        assert_eq!(read.last("other"), None);
    }

    #[test]
    fn three_per_cent_more_is_refused_and_so_is_what_was_never_recorded() {
        let recorded = record("dev", 100.0);
        let judged = |path: &str, count| judge(&recorded.beside(&BTreeMap::from([(path.to_owned(), count)])));
        assert!(judged("l3", 102.9).is_ok() && judged("l3", 20.0).is_ok());
        assert!(judged("l3", 103.1).is_err_and(|error| error.to_string().contains("+3.1 %")));
        assert!(judged("other", 1.0).is_err_and(|error| error.to_string().contains("never recorded")));
    }

    #[test]
    fn the_count_is_read_from_what_valgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 12345\n==7== \n==7== I   refs:      12,345\n";
        assert_eq!(collected(said), Some(12_345));
        assert_eq!(collected("nothing"), None);
    }
}
