//! What each command does.

mod latency;
mod report;
mod run;
mod search;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use thiserror::Error;

use crate::args::{Arguments, Command, Output};
use crate::document::{Document, DocumentError};
use crate::peers::PeerError;
use crate::trial::TrialError;

/// The exit status of a figure below its threshold.
const BELOW_THRESHOLD: u8 = 3;

/// Why a command failed.
#[derive(Debug, Error)]
enum CommandError {
    #[error(transparent)]
    Trial(#[from] TrialError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("--{flag} is {value}: it takes a number {takes}")]
    Number { flag: &'static str, value: f64, takes: &'static str },
    #[error("{} has no place for a table: write the lines <!-- bench --> and <!-- /bench --> where it is to be", .0.display())]
    NoPlace(PathBuf),
    #[error("{figure:.3} Mpps is below the threshold of {threshold:.3} ({what})")]
    BelowThreshold { what: String, figure: f64, threshold: f64 },
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Search(arguments) => search::search(&arguments),
        Command::Latency(arguments) => latency::latency(&arguments),
        Command::Report(arguments) => report::report(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-bench: {error}");
            match error {
                CommandError::BelowThreshold { .. } => ExitCode::from(BELOW_THRESHOLD),
                CommandError::Number { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

impl Output {
    /// Whether text goes to standard output.
    fn prints_text(&self) -> bool {
        self.json.as_deref() != Some(Path::new("-"))
    }

    /// Writes the results if that was asked for.
    fn write(&self, mut document: Document, started: Instant) -> Result<(), CommandError> {
        document.seconds = started.elapsed().as_secs_f64();
        self.json.as_deref().map_or(Ok(()), |path| Ok(document.write(path)?))
    }
}

/// Seconds of a flag.
fn seconds(flag: &'static str, value: f64) -> Result<Duration, CommandError> {
    if value > 0.0 && value <= 86_400.0 {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(CommandError::Number { flag, value, takes: "of seconds above 0 and up to a day" })
}

/// A rate of a flag.
fn rate(flag: &'static str, value: f64) -> Result<f64, CommandError> {
    if (1.0..=1e9).contains(&value) {
        return Ok(value);
    }
    Err(CommandError::Number { flag, value, takes: "of packets a second from 1 to a thousand million" })
}

/// Refuses a figure below its threshold.
fn gate(what: &str, figure: f64, threshold: Option<f64>) -> Result<(), CommandError> {
    match threshold {
        Some(threshold) if figure < threshold => {
            Err(CommandError::BelowThreshold { what: what.to_owned(), figure, threshold })
        }
        _ => Ok(()),
    }
}
