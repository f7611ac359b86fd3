//! `penstockd`: the daemon that forwards a node's packets.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use penstock_api::Fault;
use penstock_dataplane::config::Config;
use penstock_dataplane::config::machine::Findings;
use penstock_dataplane::control::stateful::Sources;
use penstock_dataplane::control::{
    Listener, MetricsError, MetricsListener, REQUESTS, Service, SocketError, serve_health_checks,
};
use penstock_dataplane::supervisor::{Engine, Refusal, Request, StartError};
use serde::Serialize;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  penstockd check --config /etc/penstock/node.toml     every fault at once, exit code 1 if there is one
  penstockd check --config node.toml --file-only       the same, whatever this machine has
  penstockd run --config /etc/penstock/node.toml
  PENSTOCK_LOG=debug penstockd run --config node.toml  levels: error, warn, info, debug, trace, also per module

Signals: TERM and INT drain and end, a second one ends at once; HUP reads the file again, and changes nothing if it is faulty.";

/// The Penstock dataplane: pods' packets between interfaces, over VXLAN or Geneve, past the kernel.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Forward packets until told to stop.
    #[command(after_help = EXAMPLES)]
    Run {
        /// The node's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say everything that is wrong with a configuration, on this machine.
    #[command(after_help = EXAMPLES)]
    Check {
        /// The node's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Judge the file alone, not whether this machine can do what it asks.
        #[arg(long)]
        file_only: bool,
        /// Answer in JSON: { "faults": […], "notes": […] }.
        #[arg(long)]
        json: bool,
    },
}

/// Why the daemon did not run.
#[derive(Debug, Error)]
enum RunError {
    #[error("{} in the configuration", count_faults(.0))]
    Faulty(Vec<Fault>),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("no runtime for the control thread: {0}")]
    Runtime(std::io::Error),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check { config, file_only, json } => check(&config, file_only, json),
        Command::Run { config } => {
            start_log();
            match run(&config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    if let RunError::Faulty(faults) = &error {
                        faults.iter().for_each(|fault| tracing::error!("{fault}"));
                    }
                    tracing::error!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env("PENSTOCK_LOG");
    let told = filter.is_ok() || std::env::var_os("PENSTOCK_LOG").is_none();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    if !told {
        tracing::warn!(
            "PENSTOCK_LOG is no filter, so it is not heeded; write, for example, PENSTOCK_LOG=debug"
        );
    }
}

/// What `check` answers in JSON.
#[derive(Serialize)]
struct Answer {
    faults: Vec<Fault>,
    notes: Vec<Fault>,
}

fn check(path: &Path, file_only: bool, json: bool) -> ExitCode {
    let found = if file_only {
        Findings { faults: Config::load(path).err().unwrap_or_default(), notes: Vec::new() }
    } else {
        Config::load_here(path).1
    };
    let fine = found.faults.is_empty();
    // Nobody is left to tell when standard output is closed.
    let _ = if json { print_json(found) } else { print_text(path, &found) };
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_json(found: Findings) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &Answer { faults: found.faults, notes: found.notes })?;
    writeln!(out)
}

fn print_text(path: &Path, found: &Findings) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for fault in &found.faults {
        writeln!(out, "fault: {fault}")?;
    }
    for note in &found.notes {
        writeln!(out, "note: {note}")?;
    }
    let verdict = if found.faults.is_empty() { "fit to run".to_owned() } else { count_faults(&found.faults) };
    writeln!(out, "{}: {verdict}", path.display())
}

/// `1 fault`, `2 faults`.
fn count_faults(faults: &[Fault]) -> String {
    format!("{} fault{}", faults.len(), if faults.len() == 1 { "" } else { "s" })
}

fn run(path: &Path) -> Result<(), RunError> {
    let (config, found) = Config::load_here(path);
    found.notes.iter().for_each(|note| tracing::warn!("{note}"));
    let config = config.ok_or(RunError::Faulty(found.faults))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(serve(path, config))
}

async fn serve(path: &Path, config: Config) -> Result<(), RunError> {
    // From here on a signal drains instead of ending the process in the middle of something.
    let signals = Signals::install().map_err(RunError::Runtime)?;
    // The socket first: a second daemon must not touch what the first one has open.
    let listener = Listener::bind(&config.socket)?;
    let scraped = config.metrics.map(MetricsListener::bind).transpose()?;
    let (requests, asked) = mpsc::channel(REQUESTS);
    tokio::spawn(signals.heed(path.to_owned(), config.clone(), requests.clone()));
    let (engine, watcher) = Engine::start(&config).await?;
    let service = Service::new(requests).with_sources(Sources::of(&engine));
    if let Some(scraped) = scraped {
        tracing::info!("metrics are served on http://{}/metrics", scraped.address());
        tokio::spawn(service.clone().serve_metrics(scraped));
    }
    tokio::spawn(serve_health_checks(engine.health_checks()));
    let server = tokio::spawn(service.serve(listener));
    tracing::info!(
        "node {} is ready: the control interface answers on {}",
        config.node.name,
        config.socket.display()
    );
    engine.run(watcher, asked).await;
    server.abort();
    // Its end takes the socket's file away.
    let _ = server.await;
    Ok(())
}

/// The signals that the daemon heeds.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn heed(mut self, path: PathBuf, config: Config, requests: mpsc::Sender<Request>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hang_up.recv() => reload(&path, &config, &requests).await,
            }
        }
        tracing::info!("draining; a second signal ends at once");
        // In a task of its own, for the second signal is heeded however long the supervisor takes to ask. When it is gone
        // already, there is nothing left to drain.
        tokio::spawn(async move { requests.send(Request::Drain).await });
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        tracing::warn!("ended at once; the next start puts in order what is left behind");
        // As a shell says of a program that the signal killed.
        std::process::exit(128 + kind.as_raw_value());
    }
}

/// Reads the file again; a faulty one changes nothing.
async fn reload(path: &Path, config: &Config, requests: &mpsc::Sender<Request>) {
    let new = match Config::load(path) {
        Ok(new) => new,
        Err(faults) => {
            faults.iter().for_each(|fault| tracing::error!("{fault}"));
            return tracing::error!("{}: {}, so nothing changes", path.display(), count_faults(&faults));
        }
    };
    for key in config.fixed_differences(&new) {
        tracing::warn!("{}: {key} changes with the next start of the daemon only", path.display());
    }
    let (reply, answer) = oneshot::channel();
    if requests.send(Request::Change(new.reload(), reply)).await.is_err() {
        return;
    }
    match answer.await {
        Ok(Ok(live)) => {
            tracing::info!(
                "{}: read again, generation {} is live after {:?}",
                path.display(),
                live.generation,
                live.took
            );
        }
        Ok(Err(Refusal::Faulty(faults))) => {
            faults.iter().for_each(|fault| tracing::error!("{fault}"));
            tracing::error!("{}: {}, so nothing changes", path.display(), count_faults(&faults));
        }
        Ok(Err(refusal)) => tracing::error!("{}: {refusal}", path.display()),
        Err(_) => {}
    }
}
