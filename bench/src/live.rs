//! A trial on ports of this machine: frames come from a program on CPU 0, the daemon (or ports alone) forwards them on CPU 1,
//! and the far end is counted.
//!
//! ```text
//!  veth:  generator ── gen ═ left ── daemon ── right ═ sink
//!  tap:   generator ─────── left ── daemon ── right          the kernel's ends are counted
//!  vhost: testpmd ───────── left ── daemon ── right ── testpmd
//! ```
//!
//! What goes to another node or comes from one uses a veth at that end. Counters are read while no frame is on its way, so
//! that what came, what arrived and what was lost add up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use penstock_dataplane::testbed::{NEXT_HOP_MAC, NODE, PEER, UPLINK_MAC};
use penstock_wire::MacAddr;

use crate::forwarder::{COUNTED, Counted, FORWARDING, SENDING};
use crate::node::{GATEWAYS, objects, traffic};
use crate::peers::PeerError;
use crate::peers::daemon::{Daemon, settings};
use crate::peers::lab::{Lab, Program, wait_for};
use crate::peers::testpmd::Testpmd;
use crate::peers::vhost::{self, sockets};
use crate::profile::{Path, Ports, Profile};
use crate::trial::{CHECK_SEQUENCE, Load, Outcome, TrialError, WIRE_EXTRA};
use crate::validity::{Calibration, guarded};

/// The places of the lab.
const NEAR: usize = 0;
const MACHINE: usize = 1;
const FAR: usize = 2;
/// Seconds in which every flow is to come twice before anything is counted.
const LEARNT_WITHIN: f64 = 50.0;
/// How long nothing may move until nothing is on its way: some times the age that counters of ports may have.
const QUIET: Duration = Duration::from_millis(400);
/// What the queue in front of our port, and the one behind it, had no room for, is lost under these reasons.
const QUEUES: [&str; 2] = ["kernel-queue-in-front-full", "kernel-queue-behind-full"];

/// An end of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A port of this kind, as a pod has it.
    Pod(Ports),
    /// A veth as a wire to other nodes.
    Uplink,
}

impl End {
    /// Whether frames pass the kernel's end of a veth.
    fn is_veth(self) -> bool {
        matches!(self, End::Uplink | End::Pod(Ports::Veth))
    }

    fn is_guest(self) -> bool {
        self == End::Pod(Ports::Vhost)
    }
}

/// Where frames come in and where they leave.
fn ends(profile: &Profile) -> [End; 2] {
    let pod = End::Pod(profile.ports);
    match profile.path {
        Path::Forward | Path::L3 | Path::Stateful | Path::Service => [pod, pod],
        Path::VxlanDecap => [End::Uplink, pod],
        Path::VxlanEncap | Path::GeneveEncap | Path::StatefulVxlan | Path::Snat | Path::PolicyFirst => {
            [pod, End::Uplink]
        }
    }
}

enum Forwarder {
    Daemon(Daemon),
    Ports(Program),
}

/// Who sends; stopped while nothing is to come.
enum Source {
    Program(Program),
    Guest,
}

/// What was counted by now, all of it at rest.
#[derive(Clone, Debug)]
struct Counts {
    offered: u64,
    received: u64,
    own: Counted,
}

/// A daemon between two ports, ready to be measured again and again.
pub struct LiveTrial {
    // Programs end before the namespaces that they are in.
    forwarder: Forwarder,
    guest: Option<Testpmd>,
    ends: [End; 2],
    frames: PathBuf,
    packets: u64,
    /// Bytes of a frame, on average.
    frame: f64,
    lab: Lab,
}

impl LiveTrial {
    /// Sets everything up; nothing comes yet.
    ///
    /// # Errors
    /// When there is no such traffic, or something is missing or refused.
    pub fn new(profile: Profile) -> Result<LiveTrial, TrialError> {
        if profile.workers > 1 {
            return Err(TrialError::OnlyInMemory("--workers above 1: the frames come by one queue"));
        }
        let ends = ends(&profile);
        let has_guest = ends.iter().any(|end| end.is_guest());
        let traffic = traffic(&profile)?;
        let packets = traffic.order.len() as u64;
        crate::peers::check(if has_guest { vhost::memory(packets).div_ceil(2) } else { 0 })?;
        let lab = Lab::new(&["near", "dut", "far"])?;
        let frames = lab.path("frames.pcap");
        traffic.write(&frames).map_err(|source| PeerError::File { path: frames.clone(), source })?;
        let bytes: usize = traffic.order.iter().map(|&number| traffic.frames[number as usize].len()).sum();
        wire(&lab, ends, profile.ipv6)?;
        let forwarder = match profile.path {
            Path::Forward => Forwarder::Ports(ports_alone(&lab, profile.ports)?),
            _ => Forwarder::Daemon(daemon(&lab, &profile, ends)?),
        };
        for (name, end) in ["left", "right"].into_iter().zip(ends) {
            if end == End::Pod(Ports::Tap) {
                lab.inside(MACHINE, &format!("ip link set {name} up"))?;
            }
        }
        let [source, sink] = sockets(&lab);
        let guest = if has_guest {
            let from = ends[0].is_guest().then_some((frames.as_path(), packets, source.as_path()));
            let guest = vhost::one_way(&lab, from, ends[1].is_guest().then_some(sink.as_path()))?;
            guest.pause()?;
            Some(guest)
        } else {
            None
        };
        let frame = bytes as f64 / packets as f64;
        Ok(LiveTrial { forwarder, guest, ends, frames, packets, frame, lab })
    }

    /// Measures for a while.
    ///
    /// # Errors
    /// When a program ends, nothing arrives, or the figures contradict each other.
    pub fn measure(&mut self, load: Load, time: Duration) -> Result<Outcome, TrialError> {
        if self.ends[0].is_guest() && load != Load::Full {
            return Err(TrialError::OnlyInMemory("--rate from a guest: it sends as fast as it can"));
        }
        if let Load::Rate(rate) = load
            && 2.0 * self.packets as f64 / rate > LEARNT_WITHIN
        {
            return Err(TrialError::TooSlow { packets: self.packets, rate });
        }
        let ((before, after, elapsed), validity) = guarded(|_: &Calibration| self.run(load, time))?;
        let lost: BTreeMap<String, u64> = after
            .own
            .lost
            .iter()
            .map(|(reason, count)| {
                (reason.clone(), count - before.own.lost.get(reason).copied().unwrap_or(0))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        let (offered, received) = (after.offered - before.offered, after.received - before.received);
        let all_lost: u64 = lost.values().sum();
        if offered != received + all_lost {
            return Err(TrialError::DoesNotAddUp { offered, received, lost: all_lost });
        }
        if received == 0 {
            return Err(TrialError::NothingArrived { offered, lost: format!("{lost:?}") });
        }
        let [taken, turns, ticks] = [
            after.own.received - before.own.received,
            after.own.turns - before.own.turns,
            after.own.ticks - before.own.ticks,
        ]
        .map(|it| it as f64);
        let (seconds, clock) = (elapsed.as_secs_f64(), validity.calibration.ticks_per_second);
        let (rate, cycles) = (received as f64 / seconds, ticks / taken.max(1.0));
        Ok(Outcome {
            offered,
            received,
            lost,
            seconds,
            mpps: rate / 1e6,
            gbit_l2: rate * (self.frame + CHECK_SEQUENCE) * 8.0 / 1e9,
            gbit_l1: rate * (self.frame + CHECK_SEQUENCE + WIRE_EXTRA) * 8.0 / 1e9,
            // Of turns that last as long as frames come, the worker knows the mean only.
            cycles,
            least_cycles: cycles,
            mean_cycles: cycles,
            nanoseconds: cycles * 1e9 / clock,
            burst: taken / turns.max(1.0),
            busy: (ticks / clock / seconds).min(1.0),
            disagreement: None,
            validity,
        })
    }

    /// Lets every flow come twice, then frames for a while; returns the counts before and after that while.
    fn run(&mut self, load: Load, time: Duration) -> Result<(Counts, Counts, Duration), TrialError> {
        let source = self.start(load)?;
        let (first, enough) = (self.count()?.offered, 2 * self.packets);
        wait_for("every flow to come twice", || Ok((self.count()?.offered - first > enough).then_some(())))?;
        self.pause(&source)?;
        let before = self.at_rest()?;
        let start = Instant::now();
        self.resume(&source)?;
        std::thread::sleep(time);
        self.pause(&source)?;
        let elapsed = start.elapsed();
        Ok((before, self.at_rest()?, elapsed))
    }

    fn start(&self, load: Load) -> Result<Source, PeerError> {
        let (place, interface) = match self.ends[0] {
            End::Pod(Ports::Vhost) => {
                self.resume(&Source::Guest)?;
                return Ok(Source::Guest);
            }
            End::Pod(Ports::Tap) => (MACHINE, "left"),
            _ => (NEAR, "near"),
        };
        let mut arguments =
            vec!["generate".to_owned(), interface.to_owned(), self.frames.display().to_string()];
        if let Load::Rate(rate) = load {
            arguments.extend(["--rate".to_owned(), rate.to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let program = self.lab.start_part(place, "0", &arguments, SENDING)?;
        if let Some(guest) = &self.guest {
            guest.resume()?;
        }
        Ok(Source::Program(program))
    }

    fn pause(&self, source: &Source) -> Result<(), PeerError> {
        match (source, &self.guest) {
            (Source::Program(program), _) => program.pause(),
            (Source::Guest, Some(guest)) => guest.pause(),
            (Source::Guest, None) => Ok(()),
        }
    }

    fn resume(&self, source: &Source) -> Result<(), PeerError> {
        match (source, &self.guest) {
            (Source::Program(program), _) => program.resume(),
            (Source::Guest, Some(guest)) => guest.resume(),
            (Source::Guest, None) => Ok(()),
        }
    }

    /// The counts as soon as nothing moves any more.
    fn at_rest(&self) -> Result<Counts, PeerError> {
        let (mut last, mut since) = (self.count()?, Instant::now());
        wait_for("the last frame to arrive", || {
            let now = self.count()?;
            if (now.offered, now.received, &now.own.lost) != (last.offered, last.received, &last.own.lost) {
                (last, since) = (now, Instant::now());
                return Ok(None);
            }
            Ok((since.elapsed() > QUIET).then_some(now))
        })
    }

    fn count(&self) -> Result<Counts, PeerError> {
        let mut own = self.forwarder.counted()?;
        let number = |place, name, file: &str| -> Result<u64, PeerError> {
            Ok(self.lab.sysfs(place, name, &format!("statistics/{file}"))?.parse().unwrap_or(0))
        };
        let [source, sink] = self.ends;
        let mut missed = |reason: &str, count: u64| {
            if count > 0 {
                own.lost.insert(reason.to_owned(), count);
            }
        };
        // What a guest hands over is what we take, and what it gets is what we hand over: its ring is its own.
        let offered = if source.is_guest() {
            None
        } else {
            let (place, name) = if source.is_veth() { (NEAR, "near") } else { (MACHINE, "left") };
            let dropped = number(place, name, "tx_dropped")?;
            missed(QUEUES[0], dropped);
            Some(number(place, name, "tx_packets")? + dropped)
        };
        let received = if sink.is_guest() {
            None
        } else if sink.is_veth() {
            missed(QUEUES[1], number(MACHINE, "right", "tx_dropped")?);
            Some(number(FAR, "far", "rx_packets")?)
        } else {
            Some(number(MACHINE, "right", "rx_packets")?)
        };
        Ok(Counts { offered: offered.unwrap_or(own.received), received: received.unwrap_or(own.sent), own })
    }
}

impl Forwarder {
    fn counted(&self) -> Result<Counted, PeerError> {
        match self {
            Forwarder::Daemon(daemon) => daemon.counted(),
            Forwarder::Ports(program) => {
                let log = program.log()?;
                // The last whole line.
                let line = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
                let last = line.lines().rev().find_map(|line| line.strip_prefix(COUNTED));
                Ok(last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
            }
        }
    }
}

/// Veths where frames pass them, with the addresses of a node on a wire.
fn wire(lab: &Lab, [source, sink]: [End; 2], ipv6: bool) -> Result<(), PeerError> {
    lab.inside(MACHINE, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
    for (end, outer, inner) in [(source, (NEAR, "near"), "left"), (sink, (FAR, "far"), "right")] {
        if !end.is_veth() {
            continue;
        }
        lab.join(outer, (MACHINE, inner))?;
        if end != End::Uplink {
            continue;
        }
        // Room for a tunnel's headers around the largest frame of a pod.
        lab.inside(outer.0, &format!("ip link set {} mtu 1600", outer.1))?;
        lab.inside(MACHINE, &format!("ip link set {inner} mtu 1600 address {UPLINK_MAC}"))?;
        let [node, peer] = [NODE, PEER].map(std::net::Ipv4Addr::from);
        lab.inside(MACHINE, &format!("ip addr add {node}/24 dev {inner}"))?;
        let gateways = if ipv6 { &GATEWAYS[..] } else { &GATEWAYS[..1] };
        if ipv6 {
            // The kernel's own packets would be counted at the far end.
            lab.inside(MACHINE, "nft add table ip6 quiet")?;
            let chain = "{ type filter hook output priority 0 ; policy drop ; }";
            lab.inside(MACHINE, &format!("nft add chain ip6 quiet output {chain}"))?;
            lab.inside(MACHINE, &format!("sysctl -qw net.ipv6.conf.{inner}.disable_ipv6=0"))?;
            lab.inside(MACHINE, &format!("ip addr add 2001:db8:1::1/64 dev {inner} nodad"))?;
        }
        for next in [std::net::IpAddr::V4(peer)].iter().chain(gateways) {
            lab.inside(
                MACHINE,
                &format!("ip neigh replace {next} lladdr {NEXT_HOP_MAC} dev {inner} nud permanent"),
            )?;
        }
    }
    Ok(())
}

/// Our ports without a worker between them.
fn ports_alone(lab: &Lab, ports: Ports) -> Result<Program, PeerError> {
    let [left, right] = sockets(lab).map(|path| path.display().to_string());
    let arguments = match ports {
        Ports::Vhost => ["forward-sockets", &left, &right],
        Ports::Tap => ["forward-taps", "left", "right"],
        Ports::Veth | Ports::Memory => ["forward-veths", "left", "right"],
    };
    lab.start_part(MACHINE, "1", &arguments, FORWARDING)
}

/// Our daemon on one worker, with a node as in memory.
fn daemon(lab: &Lab, profile: &Profile, ends: [End; 2]) -> Result<Daemon, PeerError> {
    let [left, right] = sockets(lab);
    let attached = |name: &str, socket: &std::path::Path| match profile.ports {
        Ports::Vhost => format!("vhost-user = {{ socket = \"{}\", role = \"server\" }}", socket.display()),
        Ports::Tap => format!("tap = {{ interface = \"{name}\" }}"),
        Ports::Veth | Ports::Memory => format!("veth = {{ interface = \"{name}\" }}"),
    };
    // A pod that no frame meets.
    let idle = "tap = { interface = \"idle\" }".to_owned();
    let (pods, uplink) = match ends {
        [End::Uplink, _] => ([attached("right", &right), idle], Some("left")),
        [_, End::Uplink] => ([attached("left", &left), idle], Some("right")),
        _ => ([attached("left", &left), attached("right", &right)], None),
    };
    let mac = MacAddr::from_underlay(std::net::IpAddr::V4(NODE.into()));
    let flows = profile.flows.max(1024);
    let (cached, connections) =
        if profile.path == Path::PolicyFirst { (flows, flows) } else { (flows * 2, flows * 2) };
    let mut file = settings(lab, "node1", 1, "poll", &format!("mac = \"{mac}\"\n"), cached);
    file += &format!(
        "[connections]\ncapacity = {connections}\nendpoint-percent = 100\noutside-percent = 100\nhalf-open-percent = 100\n"
    );
    if let Some(interface) = uplink {
        file += &format!("[[uplink]]\nname = \"wire\"\ninterface = \"{interface}\"\n");
    }
    file += &objects(profile, [&pods[0], &pods[1]]);
    Daemon::start(lab, MACHINE, "node1", "0,1", &file)
}
