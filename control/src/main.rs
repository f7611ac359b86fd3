//! The command line `penstock`: asks the node's dataplane, and tells it; what manifests mean it says without one.

#![forbid(unsafe_code)]

mod args;
mod capture;
mod change;
mod failure;
mod follow;
mod node;
mod offline;
mod output;
mod pcap;
mod rates;
mod rows;
mod show;
mod state;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;
use penstock_api::client::Client;

use crate::args::{Arguments, Command};
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(json);
            failure.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Io { what: "starting the runtime".to_owned(), source })?;
    runtime.block_on(dispatch(arguments))
}

/// Everything that can be wrong with the command itself is found before the daemon is asked for anything.
async fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { socket, json, command } = arguments;
    let connect = || Client::connect(&socket);
    let mut out = Output::new(json);
    match command {
        Command::Status(every) => show::status(&mut connect().await?, every.watch, &mut out).await,
        Command::Ports(every) => show::ports(&mut connect().await?, every.watch, &mut out).await,
        Command::Workers(every) => show::workers(&mut connect().await?, every.watch, &mut out).await,
        Command::Drops { all, every } => show::drops(&mut connect().await?, all, every.watch, &mut out).await,
        Command::Flows(wanted) => show::flows(&mut connect().await?, &wanted.query(), &mut out).await,
        Command::Routes { network } => show::routes(&mut connect().await?, network.as_ref(), &mut out).await,
        Command::Peers => show::peers(&mut connect().await?, &mut out).await,
        Command::Objects => show::objects(&mut connect().await?, &mut out).await,
        Command::Connections(wanted) => {
            state::connections(&mut connect().await?, &wanted.query(), &mut out).await
        }
        Command::Policy(wanted) => state::policies(&mut connect().await?, &wanted.query(), &mut out).await,
        Command::Services(wanted) => {
            let with_backends = wanted.backends;
            state::services(&mut connect().await?, &wanted.query(), with_backends, &mut out).await
        }
        Command::Events(wanted) => state::events(&mut connect().await?, &wanted.order(), &mut out).await,
        Command::Apply { file } => {
            let objects = change::read(&file)?;
            change::apply(&mut connect().await?, &objects, &mut out).await
        }
        Command::Resync { file } => {
            let objects = change::read(&file)?;
            change::resync(&mut connect().await?, &objects, &mut out).await
        }
        Command::Delete { kind, names } => {
            let keys = change::keys(kind, &names)?;
            change::delete(&mut connect().await?, &keys, &mut out).await
        }
        Command::Connectivity(wanted) => offline::connectivity(&wanted.manifests, &mut out),
        Command::Crds => offline::definitions(&mut out),
        Command::Explain(asked) if asked.manifests.is_some() => offline::explain(&asked, &mut out),
        Command::Explain(asked) => {
            let question = asked.question()?;
            show::explain(&mut connect().await?, &question, &mut out).await
        }
        Command::Ipam(wanted) => node::ipam(&wanted, &mut out),
        Command::InstallCni(wanted) => node::install_cni(&wanted),
        Command::UninstallCni(folders) => node::uninstall_cni(&folders),
        Command::Attacher(wanted) => node::attach(wanted, &socket).await,
        Command::Capture(wanted) => {
            let (order, file) = wanted.order();
            capture::capture(&mut connect().await?, &order, file.as_deref(), &mut out).await
        }
    }
}
