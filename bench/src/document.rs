//! What every command writes with `--json`, and what reports are made from.

use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::machine::Machine;
use crate::profile::Profile;
use crate::search::Found;
use crate::statistics::{Interval, Ratio, Round, median};
use crate::trial::Outcome;

/// A file of results could not be read or written.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is none of ours.
    #[error("{} holds no results of penstock-bench (written with --json): {source}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// A trial and what it was of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measured {
    /// What it was of.
    pub profile: Profile,
    /// What it measured.
    pub outcome: Outcome,
}

/// The rates that were found for a profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Searched {
    /// What it was of.
    pub profile: Profile,
    /// One for each goal.
    pub found: Vec<Found>,
    /// Maximum receive rate: trials at full load, packets a second.
    pub mrr: Vec<f64>,
    /// How many trials it took.
    pub trials: usize,
}

/// How long packets took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    /// What was measured.
    pub title: String,
    /// Packets a second that were sent.
    pub rate: f64,
    /// The same as a share of the rate that may be partly dropped; none where no such rate was searched for.
    pub share: Option<f64>,
    /// Packets that arrived, and those that did not.
    pub received: u64,
    /// Packets that did not.
    pub lost: u64,
    /// (quantile, nanoseconds), ascending.
    pub quantiles: Vec<(f64, u64)>,
    /// The longest, in nanoseconds.
    pub max: u64,
}

/// The quantiles of a report.
const QUANTILES: [f64; 6] = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];

/// The quantiles of a report, those left out that are of less than one packet.
pub(crate) fn quantiles(latencies: &Histogram<u64>) -> Vec<(f64, u64)> {
    let count = latencies.len() as f64;
    let told = QUANTILES.into_iter().filter(|quantile| count * (1.0 - quantile) >= 1.0);
    told.map(|quantile| (quantile, latencies.value_at_quantile(quantile))).collect()
}

/// A quantile's name: p99.9. What binary fractions add is left out.
pub(crate) fn percentile(quantile: f64) -> String {
    format!("p{}", (quantile * 1e5).round() / 1e3)
}

/// Ours beside a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Compared {
    /// The row's short name, as `--only` takes it.
    pub row: String,
    /// What both did.
    pub title: String,
    /// Who ours is and how it was set.
    pub ours: String,
    /// Who the peer is and how it was set.
    pub peer: String,
    /// What each did in each round, packets a second.
    pub rounds: Vec<Round>,
    /// What follows.
    pub ratio: Option<Ratio>,
    /// The most that was stolen from a trial, as a share.
    pub steal: f64,
    /// Rounds thrown away because too much was stolen from them.
    pub repeated: u32,
    /// Anything else that a reader must know.
    pub note: Option<String>,
}

impl Compared {
    /// Our median rate, packets a second.
    #[must_use]
    pub fn ours_rate(&self) -> f64 {
        median(&self.ours_rates())
    }

    /// The peer's.
    #[must_use]
    pub fn peer_rate(&self) -> f64 {
        median(&self.peer_rates())
    }

    /// All rates of ours.
    #[must_use]
    pub fn ours_rates(&self) -> Vec<f64> {
        self.rounds.iter().flat_map(|round| [round.ours, round.again]).collect()
    }

    /// All rates of the peer.
    #[must_use]
    pub fn peer_rates(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.theirs).collect()
    }

    /// The least and the greatest of ours and of the peer's.
    #[must_use]
    pub fn spreads(&self) -> [Interval; 2] {
        [Interval::spread(&self.ours_rates()), Interval::spread(&self.peer_rates())]
    }
}

/// A look-up beside others of its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lookup {
    /// What is looked up, and in how much.
    pub title: String,
    /// Who does.
    pub contender: String,
    /// Ticks of the time-stamp counter each.
    pub cycles: f64,
    /// How it was measured.
    pub note: String,
}

/// How long a change takes until all workers go by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Changed {
    /// What was changed.
    pub title: String,
    /// Policies known at the time.
    pub policies: u32,
    /// Endpoints known at the time, the cluster's.
    pub endpoints: u32,
    /// How many changes were measured.
    pub changes: usize,
    /// The median, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// How long the whole took to be compiled from nothing, in milliseconds.
    pub compile_ms: f64,
    /// Bytes of the tables that packets are looked up in.
    pub table_bytes: u64,
    /// Bytes by which the process grew.
    pub resident_bytes: u64,
    /// Packets a second that were forwarded meanwhile, in millions.
    pub mpps: f64,
    /// Frames lost meanwhile.
    pub lost: u64,
}

/// All that a command measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Document {
    /// On what.
    pub machine: Machine,
    /// The command, as it was given.
    pub command: String,
    /// Trials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<Measured>,
    /// Searches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<Searched>,
    /// Latencies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<Latency>,
    /// Comparisons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Compared>,
    /// Look-ups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<Lookup>,
    /// Changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Changed>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Document {
    /// Of this machine and command, with nothing in it yet.
    #[must_use]
    pub fn begin() -> Document {
        let mut words: Vec<String> = std::env::args().collect();
        // Where the figures go is nobody's who repeats the command.
        if let Some(at) = words.iter().position(|word| word == "--json") {
            words.drain(at..words.len().min(at + 2));
        }
        if let Some(program) = words.first_mut() {
            *program = "penstock-bench".into();
        }
        Document {
            machine: Machine::here(),
            command: words.join(" "),
            trials: Vec::new(),
            searches: Vec::new(),
            latencies: Vec::new(),
            comparisons: Vec::new(),
            lookups: Vec::new(),
            changes: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(path: &Path) -> Result<Document, DocumentError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| DocumentError::File { path: path.to_owned(), source })?;
        serde_json::from_str(&text).map_err(|source| DocumentError::Foreign { path: path.to_owned(), source })
    }

    /// Writes it; `-` is standard output.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DocumentError> {
        let text = serde_json::to_string_pretty(self).expect("results have no keys but strings") + "\n";
        if path == Path::new("-") {
            print!("{text}");
            return Ok(());
        }
        write(path, &text)
    }

    /// Takes up what another one holds.
    pub fn merge(&mut self, other: Document) {
        self.trials.extend(other.trials);
        self.searches.extend(other.searches);
        self.latencies.extend(other.latencies);
        self.comparisons.extend(other.comparisons);
        self.lookups.extend(other.lookups);
        self.changes.extend(other.changes);
        self.seconds += other.seconds;
        for version in other.machine.versions {
            if !self.machine.versions.contains(&version) {
                self.machine.versions.push(version);
            }
        }
        self.command = format!("{}\n{}", self.command, other.command);
    }
}

/// Writes a text file.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), DocumentError> {
    std::fs::write(path, text).map_err(|source| DocumentError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_have_the_names_that_people_know() {
        assert_eq!([0.5, 0.99, 0.9999, 0.99999].map(percentile), ["p50", "p99", "p99.99", "p99.999"]);
    }

    #[test]
    fn a_quantile_of_less_than_one_packet_is_not_told() {
        let mut latencies = Histogram::new(3).unwrap();
        (1..=1000).for_each(|value| latencies.record(value).unwrap());
        let told: Vec<f64> = quantiles(&latencies).iter().map(|(quantile, _)| *quantile).collect();
        assert_eq!(told, [0.5, 0.9, 0.99, 0.999]);
    }
}
