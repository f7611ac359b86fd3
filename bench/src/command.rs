//! What each command does.

mod compare;
mod control;
mod instructions;
mod latency;
mod micro;
mod report;
mod round_trip;
mod run;
mod search;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use thiserror::Error;

use crate::args::{Arguments, Command, Output};
use crate::document::{Document, DocumentError};
use crate::forwarder;
use crate::instructions::InstructionsError;
use crate::peers::{PeerError, lab};
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
    #[error(transparent)]
    Instructions(#[from] InstructionsError),
    #[error("--{flag} is {value}: it takes a number {takes}")]
    Number { flag: &'static str, value: f64, takes: &'static str },
    #[error("{} has no place for a table: write the lines <!-- bench --> and <!-- /bench --> where it is to be", .0.display())]
    NoPlace(PathBuf),
    #[error("the rows have none of these words in their names: {words}; there are {names}")]
    NoRow { words: String, names: String },
    #[error("not measured, as said above: {0}")]
    Unmeasured(String),
    #[error("cannot take note of signals: {0}")]
    Signals(ctrlc::Error),
    #[error("{0}")]
    Part(String),
    #[error("{figure:.3} {unit} is below the threshold of {threshold:.3} ({what})")]
    BelowThreshold { what: String, figure: f64, threshold: f64, unit: &'static str },
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Search(arguments) => search::search(&arguments),
        Command::Latency(arguments) => latency::latency(&arguments),
        Command::Compare(arguments) => compare::compare(&arguments),
        Command::Report(arguments) => report::report(&arguments),
        Command::RoundTrip(arguments) => round_trip::round_trip(&arguments),
        Command::Echo { port } => part(crate::overlay::echo(port)),
        Command::Probe { to, rate, seconds } => part(crate::overlay::probe(to, rate, seconds)),
        Command::Micro(arguments) => micro::micro(&arguments),
        Command::Control(arguments) => control::control(&arguments),
        Command::Instructions(arguments) => instructions::instructions(&arguments),
        Command::Turns { path } => {
            crate::instructions::turns(path).map_err(|error| TrialError::from(error).into())
        }
        Command::ForwardVeths { left, right } => part(forwarder::veths(&left, &right)),
        Command::ForwardSockets { left, right } => part(forwarder::sockets(&left, &right)),
        Command::ForwardTaps { left, right } => part(forwarder::taps(&left, &right)),
        Command::Generate { interface, frames, rate } => part(forwarder::generate(&interface, &frames, rate)),
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

/// Nothing stays behind when somebody loses patience: programs, namespaces, folders.
fn take_down_when_interrupted() -> Result<(), CommandError> {
    let handled = ctrlc::set_handler(|| {
        lab::take_down_all();
        std::process::exit(130);
    });
    handled.map_err(CommandError::Signals)
}

/// What a part of a comparison says when it fails, for the log that its owner reads.
fn part(outcome: Result<(), Box<dyn std::error::Error>>) -> Result<(), CommandError> {
    outcome.map_err(|error| CommandError::Part(error.to_string()))
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
fn gate(what: &str, figure: f64, threshold: Option<f64>, unit: &'static str) -> Result<(), CommandError> {
    match threshold {
        // What is no number is never reached.
        Some(threshold) if figure < threshold || threshold.is_nan() => {
            Err(CommandError::BelowThreshold { what: what.to_owned(), figure, threshold, unit })
        }
        _ => Ok(()),
    }
}
