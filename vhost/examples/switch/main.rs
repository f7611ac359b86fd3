//! A switch of vhost-user ports: each two of them are joined by plain forwarding, in one thread.
//!
//! Tests point DPDK's virtio-user at it, and kill it.

mod forward;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use forward::Forwarder;
use penstock_io::{Hugepages, Region};
use penstock_vhost::session::{Access, Role, Session, SessionConfig};

const USAGE: &str = "\
usage: switch [--server] [--pairs N] [--poll] [--stats SECONDS] SOCKET...

Joins vhost-user ports two by two: the first with the second, the third with the fourth and so on.

  --server         serve the sockets; without it, connect to them and connect again
  --pairs N        queue pairs of each port (1)
  --poll           never sleep
  --stats SECONDS  print counters so often (never)
";

/// Turns without a frame after which it sleeps.
const PATIENCE: u32 = 1000;

struct Options {
    server: bool,
    pairs: u16,
    poll: bool,
    stats: Option<Duration>,
    sockets: Vec<PathBuf>,
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options { server: false, pairs: 1, poll: false, stats: None, sockets: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u16, String> {
            let value = arguments.next().ok_or_else(|| format!("{argument} takes a number"))?;
            value.parse().map_err(|_| format!("{argument} takes a number, not {value}"))
        };
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--server" => options.server = true,
            "--poll" => options.poll = true,
            "--pairs" => options.pairs = number()?,
            "--stats" => options.stats = Some(Duration::from_secs(number()?.max(1).into())),
            unknown if unknown.starts_with('-') => return Err(format!("unknown option {unknown}")),
            socket => options.sockets.push(PathBuf::from(socket)),
        }
    }
    if options.sockets.is_empty() {
        return Err("no socket".to_owned());
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(fault) => {
            eprint!("switch: {fault}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("switch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let role = if options.server { Role::Server(Access::default()) } else { Role::Client };
    let (mut sessions, mut devices) = (Vec::new(), Vec::new());
    for (number, path) in options.sockets.iter().enumerate() {
        let config =
            SessionConfig { role, pairs: options.pairs, ..SessionConfig::new(format!("port{number}"), path) };
        let (session, intakes) = Session::open(config)?;
        sessions.push(session);
        devices.push(intakes);
    }
    let mut forwarder = Forwarder::new(Region::map(8192, Hugepages::Off)?, devices);
    let (mut idle, mut told) = (0, Instant::now());
    println!("switch: ready");
    loop {
        idle = if forwarder.turn()? == 0 { idle + 1 } else { 0 };
        if idle > PATIENCE && !options.poll {
            forwarder.sleep(100);
            idle = 0;
        }
        if let Some(pause) = options.stats
            && idle % 64 == 0
            && told.elapsed() >= pause
        {
            tell(&sessions, &forwarder, options.pairs);
            told = Instant::now();
        }
    }
}

fn tell(sessions: &[Session], forwarder: &Forwarder, pairs: u16) {
    let lanes: Vec<_> = forwarder.counters().collect();
    for (session, lanes) in sessions.iter().zip(lanes.chunks(pairs.into())) {
        let status = session.status();
        let sum = |of: fn(&(penstock_io::PortCounters, u64)) -> u64| lanes.iter().map(of).sum::<u64>();
        println!(
            "{} {:?} connections {} faults {} rx {} tx {} dropped {} invalid {} fault {} reason {}",
            status.name,
            status.state,
            status.connections,
            status.faults,
            sum(|lane| lane.0.rx_packets),
            sum(|lane| lane.0.tx_packets),
            sum(|lane| lane.1),
            sum(|lane| lane.0.rx_invalid),
            status.fault.as_deref().unwrap_or("-"),
            status.reason.as_deref().unwrap_or("-"),
        );
    }
}
