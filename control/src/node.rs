//! What is done on a node for its pods: attaching them without a cluster, their addresses, installing the CNI plugin.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use penstock_cni::config::Range;
use penstock_cni::environment::AttachmentId;
use penstock_cni::protocol::{Answer, Detach, Done, Given, Request, ask};
use penstock_control::attach::{Attacher, Direct, FaultPoints, Functions, NoPods, Server, Settings};
use penstock_control::install::{PLUGIN, Places, install, uninstall, usual_configuration};
use penstock_control::ipam::RangeSet;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::node::{AttacherArgs, CniFolders, InstallCni, Ipam, IpamCommand};
use crate::failure::Failure;
use crate::output::Output;
use crate::table::{Left, Table};

/// How long the agent may take for what a person asks.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait before a dataplane that is not there is looked for again.
const PAUSE: Duration = Duration::from_millis(200);

fn agent(answer: Answer) -> Result<Done, Failure> {
    answer.map_err(|failure| Failure::Agent(failure.to_string()))
}

/// `penstock ipam …`
pub(crate) fn ipam(wanted: &Ipam, out: &mut Output) -> Result<(), Failure> {
    let tell = |request: &Request| agent(ask(&wanted.cni_socket, PATIENCE, request));
    let Done { given, astray, .. } = tell(&Request::Show)?;
    match &wanted.command {
        IpamCommand::Show => Ok(out.show(&given, |given| table(given).to_string())?),
        IpamCommand::Check => check(&given, &astray, out),
        IpamCommand::Release { container, interface, force } => {
            let id = AttachmentId::new(container.clone(), interface.clone())
                .map_err(|failure| Failure::Usage(failure.to_string()))?;
            let held: Vec<&Given> = given.iter().filter(|it| it.id == id).collect();
            if held.is_empty() {
                return Err(Failure::Usage(format!("nothing is given to {id}; see `penstock ipam show`")));
            }
            if let Some(alive) = held.iter().find(|it| !force && it.netns.exists()) {
                let path = alive.netns.display();
                let said =
                    format!("{id} may still run: {path} is there; let the runtime remove it, or add --force");
                return Err(Failure::Usage(said));
            }
            for it in held {
                let detach = Detach { id: it.id.clone(), network: it.network.clone() };
                let lease = it.holder == "lease";
                tell(&if lease { Request::Release(detach) } else { Request::Del(detach) })?;
            }
            Ok(())
        }
    }
}

fn table(given: &[Given]) -> Table {
    let columns = ["ADDRESSES", "NETWORK", "CONTAINER", "INTERFACE", "POD", "HELD AS", "POOLS"];
    let mut table = Table::new(columns.map(|title| (title, Left)), "no address is given");
    for it in given {
        let addresses: Vec<String> = it.addresses.iter().map(ToString::to_string).collect();
        let holder = if it.complete { it.holder.clone() } else { format!("{} (not complete)", it.holder) };
        table.row([
            addresses.join(" "),
            it.network.clone(),
            it.id.container_id.clone(),
            it.id.ifname.clone(),
            it.pod.clone().unwrap_or_default(),
            holder,
            it.pools.join(" "),
        ]);
    }
    table
}

/// What is wrong with an address.
#[derive(Debug, Serialize)]
struct Problem {
    /// Empty where it is a pool's affair.
    container: String,
    interface: String,
    problem: String,
}

fn check(given: &[Given], astray: &[String], out: &mut Output) -> Result<(), Failure> {
    let mut problems: Vec<Problem> = astray
        .iter()
        .map(|problem| Problem {
            container: String::new(),
            interface: String::new(),
            problem: problem.clone(),
        })
        .collect();
    for (i, it) in given.iter().enumerate() {
        let mut say = |problem: String| {
            let (container, interface) = (it.id.container_id.clone(), it.id.ifname.clone());
            problems.push(Problem { container, interface, problem });
        };
        if !it.complete {
            say("ADD did not come to its end; the next DEL or ADD undoes it".to_owned());
        }
        if !it.netns.exists() {
            let path = it.netns.display();
            say(format!(
                "its network namespace {path} is gone, and DEL never came; `penstock ipam release` takes it back"
            ));
        }
        for address in &it.addresses {
            let other = given[..i]
                .iter()
                .find(|other| other.network == it.network && other.addresses.contains(address));
            if let Some(other) = other {
                say(format!("{address} is given to {} too", other.id));
            }
        }
    }
    out.show(&problems, |problems| {
        let columns = ["CONTAINER", "INTERFACE", "PROBLEM"].map(|title| (title, Left));
        let mut table = Table::new(columns, "every address has a container");
        for it in problems {
            table.row([it.container.clone(), it.interface.clone(), it.problem.clone()]);
        }
        table.to_string()
    })?;
    match problems.len() {
        0 => Ok(()),
        count => Err(Failure::Agent(format!("{count} problems, see above"))),
    }
}

fn places(folders: &CniFolders) -> Places {
    Places {
        bin: folders.binaries.clone(),
        conf: folders.configurations.clone(),
        conf_name: folders.conf_name.clone(),
    }
}

/// `penstock install-cni`
pub(crate) fn install_cni(wanted: &InstallCni) -> Result<(), Failure> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PLUGIN)));
    let binary = wanted.binary.clone().or(beside).unwrap_or_else(|| PLUGIN.into());
    let configuration = match &wanted.conf {
        None => usual_configuration(&wanted.cni_socket),
        Some(file) => std::fs::read_to_string(file)
            .map_err(|source| Failure::Io { what: format!("reading {}", file.display()), source })?,
    };
    install(&binary, &configuration, &places(&wanted.folders))
        .map_err(|error| Failure::Agent(error.to_string()))
}

/// `penstock uninstall-cni`
pub(crate) fn uninstall_cni(folders: &CniFolders) -> Result<(), Failure> {
    uninstall(&places(folders)).map_err(|error| Failure::Agent(error.to_string()))
}

/// `penstock attacher`: serves the CNI plugin until it is told to end.
pub(crate) async fn attach(wanted: AttacherArgs, dataplane: &Path) -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let usage = |error: String| Failure::Usage(error);
    let lists: Vec<Vec<Range>> = wanted
        .range
        .iter()
        .map(|&subnet| vec![Range { subnet, range_start: None, range_end: None, gateway: None }])
        .collect();
    let ranges = RangeSet::all(&lists).map_err(|error| usage(error.to_string()))?;
    let settings = Settings {
        records: wanted.records,
        sockets: wanted.sockets,
        devices: wanted.devices,
        kubelet_pods: wanted.kubelet_pods,
        network: wanted.network,
        ranges,
        reserved: wanted.reserve,
        functions: Functions::default(),
        faults: FaultPoints(wanted.die_at),
    };
    let direct = Direct::at(dataplane.to_owned());
    let attacher =
        Attacher::open(settings, direct, NoPods).map_err(|error| Failure::Agent(error.to_string()))?;
    let attacher = Arc::new(attacher);
    if let Err(failure) = attacher.restore().await {
        tracing::warn!("not everything is as it was: {failure}");
    }
    let server = Server::listen(&wanted.cni_socket).map_err(|error| Failure::Agent(error.to_string()))?;
    tracing::info!("the CNI plugin is answered at {}", wanted.cni_socket.display());
    let listening = |source| Failure::Io { what: "waiting for signals".to_owned(), source };
    let mut end = signal(SignalKind::terminate()).map_err(listening)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(listening)?;
    tokio::select! {
        () = server.serve(Arc::clone(&attacher)) => {}
        () = follow(&attacher) => {}
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Whenever the dataplane starts anew, it is told of everything that is attached.
async fn follow(attacher: &Attacher<Direct, NoPods>) {
    loop {
        if attacher.dataplane().until_it_ends().await.is_ok() {
            tracing::warn!("the dataplane ended; everything is put to the next one");
        }
        loop {
            tokio::time::sleep(PAUSE).await;
            match attacher.restore().await {
                Ok(()) => break,
                Err(failure) => tracing::debug!("not yet: {failure}"),
            }
        }
    }
}
