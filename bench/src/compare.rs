//! The rows of a comparison: what ours and a peer do with the same frames, set up so that they can take turns.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use penstock_wire::MacAddr;

use crate::args::PeerChoice;
use crate::document::Compared;
use crate::forwarder::FORWARDING;
use crate::node::{policies, traffic};
use crate::peers::daemon::{CACHED, Daemon, GATEWAY, settings};
use crate::peers::headers::Headers;
use crate::peers::kernel::{Street, Who, Work};
use crate::peers::lab::{Lab, Program};
use crate::peers::vhost::{Guest, MACS, Rings, sockets};
use crate::peers::{PeerError, ovs, testpmd};
use crate::profile::{Path, Popularity, Ports, Profile, Segment, Size, counted};
use crate::statistics::{Ratio, Round};
use crate::trial::{Load, Trial, TrialError};
use crate::validity::{Calibration, guarded};

/// The rules of ours under which a stateful path is compared.
const RULES: u32 = 100;

/// What both do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    /// From memory to memory, beside testpmd's ports.
    MemoryPorts(u32),
    /// From memory to memory, beside Open vSwitch.
    Memory(Path, ovs::Work, u32),
    /// From one port of a guest to the other, ports alone.
    Guest(Rings),
    /// The same with connections and policy, beside ports alone.
    PolicedGuest(Rings),
    /// The same beside Open vSwitch, which may track connections.
    SwitchedGuest { is_tracked: bool },
    /// From one veth to the other.
    Veths(Who, Who, Work),
}

/// A row.
pub(crate) struct Row {
    /// Its short name.
    pub(crate) key: String,
    /// What both do.
    pub(crate) title: String,
    peer: PeerChoice,
    task: Task,
}

/// Somebody whose turn it may be.
type Turn = Box<dyn FnMut(Duration) -> Result<f64, RowError>>;

/// Both, set up.
struct Pair {
    ours: Turn,
    theirs: Turn,
    who: [String; 2],
    note: Option<String>,
    /// Turns in which all that was sent arrived: the generator was the limit, not who forwarded.
    unloaded: Rc<Cell<usize>>,
}

/// Why a row could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    /// The peer's side.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Our side.
    #[error(transparent)]
    Trial(#[from] TrialError),
}

/// All rows beside these peers.
pub(crate) fn rows(choice: PeerChoice) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |key: String, title: String, peer, task| rows.push(Row { key, title, peer, task });
    for flows in [1_000, 100_000] {
        add(
            format!("memory-forward-{}", flows / 1000),
            format!("memory: ports alone, {} flows", counted(flows)),
            PeerChoice::Testpmd,
            Task::MemoryPorts(flows),
        );
    }
    for (key, title, path, work) in [
        ("l3", "L3 forward", Path::L3, ovs::Work::Forward),
        ("vxlan", "VXLAN", Path::VxlanEncap, ovs::Work::Vxlan),
        ("geneve", "Geneve", Path::GeneveEncap, ovs::Work::Geneve),
        (
            "stateful-vxlan",
            "connections (ours with policy), VXLAN",
            Path::StatefulVxlan,
            ovs::Work::TrackedVxlan,
        ),
        ("snat", "connections (ours with policy), source NAT", Path::Snat, ovs::Work::SourceNat),
        ("service", "connections (ours with policy), service", Path::Service, ovs::Work::DestinationNat),
    ] {
        for flows in [1_000, 100_000] {
            add(
                format!("memory-{key}-{}", flows / 1000),
                format!("memory: {title}, {} flows", counted(flows)),
                PeerChoice::OvsDpdk,
                Task::Memory(path, work, flows),
            );
        }
    }
    for packed in [false, true] {
        let kind = if packed { "packed" } else { "split" };
        for size in [64, 512, 1500] {
            let rings = Rings { packed, size };
            add(
                format!("vhost-{kind}-{size}"),
                format!("guest to guest: {kind} rings, {size} B, ports alone"),
                PeerChoice::Testpmd,
                Task::Guest(rings),
            );
            add(
                format!("vhost-stateful-{kind}-{size}"),
                format!("guest to guest: {kind} rings, {size} B, ours with connections and policy"),
                PeerChoice::Testpmd,
                Task::PolicedGuest(rings),
            );
        }
    }
    for (key, title, is_tracked) in [
        ("vhost-ovs-switch", "ours with connections and policy, theirs without", false),
        ("vhost-ovs-tracked", "connections, ours with policy", true),
    ] {
        add(
            key.into(),
            format!("guest to guest: split rings, 64 B, {title}"),
            PeerChoice::OvsDpdk,
            Task::SwitchedGuest { is_tracked },
        );
    }
    add(
        "veth-ports".into(),
        "AF_XDP on veths: ports alone".into(),
        PeerChoice::Testpmd,
        Task::Veths(Who::Ports, Who::Testpmd, Work::Wire),
    );
    for (key, title, work) in [
        ("bridge", "pod to pod, the kernel's bridge", Work::Bridge),
        ("route", "pod to pod, the kernel's route", Work::Route),
        ("vxlan", "pod to another node, VXLAN", Work::Vxlan),
        ("rules-0", "pod to pod, connections, no rules", Work::Rules(0)),
        ("rules-1k", "pod to pod, connections, 1 k rules", Work::Rules(1_000)),
        ("rules-10k", "pod to pod, connections, 10 k rules", Work::Rules(10_000)),
    ] {
        let task = Task::Veths(Who::Daemon, Who::Kernel, work);
        add(format!("veth-{key}"), format!("veths: {title}"), PeerChoice::Kernel, task);
    }
    rows.retain(|row| choice == PeerChoice::All || row.peer == choice);
    rows
}

impl Row {
    /// Sets both up, lets them take turns, takes them down.
    pub(crate) fn measure(
        &self,
        rounds: usize,
        time: Duration,
        mut say: impl FnMut(&str),
    ) -> Result<Compared, RowError> {
        say("setting up");
        let Pair { mut ours, mut theirs, who, note, unloaded } = self.set_up()?;
        let [ours_is, peer_is] = who;
        let (mut all, mut steal, mut repeated, mut unsound) = (Vec::with_capacity(rounds), 0.0f64, 0, 0);
        for number in 1..=rounds {
            let (round, validity) = guarded(|_: &Calibration| {
                say(&format!("round {number}: ours"));
                let before = ours(time)?;
                say(&format!("round {number}: the peer"));
                let other = theirs(time)?;
                say(&format!("round {number}: ours again"));
                Ok::<Round, RowError>(Round { ours: before, theirs: other, again: ours(time)? })
            })?;
            steal = steal.max(validity.steal);
            repeated += validity.repeated;
            unsound += u32::from(!validity.sound);
            all.push(round);
        }
        let limit = (unloaded.get() > rounds)
            .then(|| "the generator was the limit in more than a third of the turns".to_owned());
        let stolen = (unsound > 0).then(|| format!("{unsound} rounds are not sound: too much was stolen"));
        let notes: Vec<String> = [note, limit, stolen].into_iter().flatten().collect();
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        Ok(Compared {
            row: self.key.clone(),
            title: self.title.clone(),
            ours: ours_is,
            peer: peer_is,
            ratio: Ratio::of(&all),
            rounds: all,
            steal,
            repeated,
            note,
        })
    }

    fn set_up(&self) -> Result<Pair, RowError> {
        match self.task {
            Task::MemoryPorts(flows) => memory_ports(flows),
            Task::Memory(path, work, flows) => memory(path, work, flows),
            Task::Guest(rings) => guests(rings, false),
            Task::PolicedGuest(rings) => guests(rings, true),
            Task::SwitchedGuest { is_tracked } => switched_guests(is_tracked),
            Task::Veths(ours, theirs, work) => veths(ours, theirs, work),
        }
    }
}

fn profile(path: Path, flows: u32) -> Profile {
    Profile {
        path,
        ports: Ports::Memory,
        size: Size::Bytes(64),
        flows,
        rules: if path.is_stateful() { RULES } else { 0 },
        workers: 1,
        ipv6: false,
        segment: Segment::Udp,
        popularity: Popularity::Uniform,
        seed: 1,
    }
}

/// Ours on ports in memory.
fn in_memory(profile: Profile) -> Result<Turn, RowError> {
    let mut trial = Trial::new(profile)?;
    Ok(Box::new(move |time| Ok(trial.measure(Load::Full, time)?.mpps * 1e6)))
}

/// Writes the frames that ours replays, in the same order.
fn capture(lab: &Lab, profile: &Profile) -> Result<PathBuf, RowError> {
    let traffic = traffic(profile).map_err(TrialError::from)?;
    let file = lab.path("frames.pcap");
    traffic.write(&file).map_err(|source| PeerError::File { path: file.clone(), source })?;
    Ok(file)
}

fn memory_ports(flows: u32) -> Result<Pair, RowError> {
    let profile = profile(Path::Forward, flows);
    let lab = Lab::new(&["memory"])?;
    let file = capture(&lab, &profile)?;
    let mut peer = testpmd::from_memory(&lab, &file, flows as usize)?;
    Ok(Pair {
        ours: in_memory(profile)?,
        theirs: Box::new(move |time| {
            let _lab = &lab;
            let (_, sent) = peer.turn(time)?;
            if sent > 0.0 { Ok(sent) } else { Err(peer.idle("testpmd").into()) }
        }),
        who: [
            "memory ports, new MAC addresses".into(),
            "testpmd: mac, net_pcap infinite_rx to net_null".into(),
        ],
        note: None,
        unloaded: Rc::default(),
    })
}

fn memory(path: Path, work: ovs::Work, flows: u32) -> Result<Pair, RowError> {
    let profile = profile(path, flows);
    let files = Lab::new(&["files"])?;
    let switch = ovs::Switch::from_memory(&capture(&files, &profile)?, work)?;
    let rules = if path.is_stateful() { format!(", {RULES} other rules") } else { String::new() };
    Ok(Pair {
        ours: in_memory(profile)?,
        theirs: Box::new(move |time| {
            let _files = &files;
            Ok(switch.turn(time)?)
        }),
        who: [
            format!("a worker on memory ports{rules}"),
            format!("OVS-DPDK: {work:?}, one PMD, net_pcap infinite_rx to net_null"),
        ],
        note: None,
        unloaded: Rc::default(),
    })
}

/// Who serves a guest's sockets.
enum Server {
    Ports(Lab, Program),
    Daemon(Lab, Daemon),
    Testpmd(Lab, testpmd::Testpmd),
    Switch(ovs::Switch),
}

impl Server {
    fn lab(&self) -> &Lab {
        match self {
            Server::Ports(lab, _) | Server::Daemon(lab, _) | Server::Testpmd(lab, _) => lab,
            Server::Switch(switch) => switch.lab(),
        }
    }

    fn pause(&self) -> Result<(), PeerError> {
        match self {
            Server::Ports(_, program) => program.pause(),
            Server::Daemon(_, daemon) => daemon.pause(),
            Server::Testpmd(_, testpmd) => testpmd.pause(),
            Server::Switch(switch) => switch.pause(),
        }
    }

    fn resume(&self) -> Result<(), PeerError> {
        match self {
            Server::Ports(_, program) => program.resume(),
            Server::Daemon(_, daemon) => daemon.resume(),
            Server::Testpmd(_, testpmd) => testpmd.resume(),
            Server::Switch(switch) => switch.resume(),
        }
    }
}

/// A server and a guest of it take their turn.
fn circulate(server: Server, rings: Rings, headers: Option<&[Headers; 2]>) -> Result<Turn, RowError> {
    let mut guest = Guest::start(server.lab(), rings, headers)?;
    // Some take a while until they serve a guest that has come.
    guest.come_round().or_else(|error| refused(&server, error))?;
    guest.pause()?;
    server.pause()?;
    Ok(Box::new(move |time| {
        server.resume()?;
        let rate = guest.turn(time).or_else(|error| refused(&server, error))?;
        server.pause()?;
        Ok(rate)
    }))
}

/// What our daemon dropped says more than that nothing came back.
fn refused(server: &Server, error: PeerError) -> Result<f64, RowError> {
    let Server::Daemon(_, daemon) = server else {
        return Err(error.into());
    };
    let log = format!("drops: {:?}", daemon.drops()?);
    Err(PeerError::Idle { peer: "the guest behind penstockd", log }.into())
}

/// The guest of both, where ours answers to connections.
const WITH_HEADERS: &str = "the guest's transmit queues give its frames their first headers back (eBPF)";

fn guests(rings: Rings, is_policed: bool) -> Result<Pair, RowError> {
    let ours = if is_policed { policed_turn(rings)? } else { circulate(ports_alone()?, rings, None)? };
    let lab = Lab::new(&["peer"])?;
    let switch = testpmd::switch(&lab, &sockets(&lab))?;
    let its = is_policed.then(|| headers(rings));
    let theirs = circulate(Server::Testpmd(lab, switch), rings, its.as_ref())?;
    let ours_is = if is_policed { policed_is() } else { "vhost-user ports alone".to_owned() };
    let note = is_policed.then(|| WITH_HEADERS.to_owned());
    Ok(Pair {
        ours,
        theirs,
        who: [ours_is, "testpmd: net_vhost, io; the guest is a testpmd with two virtio-user ports".into()],
        note,
        unloaded: Rc::default(),
    })
}

fn switched_guests(is_tracked: bool) -> Result<Pair, RowError> {
    let rings = Rings { packed: false, size: 64 };
    let ours = policed_turn(rings)?;
    let theirs =
        circulate(Server::Switch(ovs::Switch::for_guest(is_tracked)?), rings, Some(&headers(rings)))?;
    let work = if is_tracked { "ct, output" } else { "output" };
    Ok(Pair {
        ours,
        theirs,
        who: [policed_is(), format!("OVS-DPDK: {work}, one PMD, dpdkvhostuser")],
        note: Some(WITH_HEADERS.to_owned()),
        unloaded: Rc::default(),
    })
}

/// Our ports without a worker between them.
fn ports_alone() -> Result<Server, RowError> {
    let lab = Lab::new(&["vhost"])?;
    let [left, right] = sockets(&lab).map(|path| path.display().to_string());
    let program = lab.start_part(0, "1", &["forward-sockets", &left, &right], FORWARDING)?;
    Ok(Server::Ports(lab, program))
}

fn policed_turn(rings: Rings) -> Result<Turn, RowError> {
    let lab = Lab::new(&["vhost"])?;
    let daemon = policed(&lab)?;
    circulate(Server::Daemon(lab, daemon), rings, Some(&headers(rings)))
}

fn policed_is() -> String {
    format!("penstockd: two vhost-user endpoints, connections, policy with {RULES} other rules")
}

/// Our daemon with the guest's two ports as endpoints under policy.
fn policed(lab: &Lab) -> Result<Daemon, RowError> {
    let paths = sockets(lab);
    let mut file = settings(lab, "node1", 1, "poll", GATEWAY, CACHED)
        + "[[network]]\nname = \"default\"\nvni = 100\nmtu = 1500\nprefixes = [\"10.1.0.0/16\"]\n";
    for (number, (path, mac)) in paths.iter().zip(MACS).enumerate() {
        file += &format!(
            "[[endpoint]]\nname = \"guest{number}\"\nnetwork = \"default\"\nmac = \"{mac}\"\naddresses = [\"10.1.1.{}\"]\n\
             attachment = {{ vhost-user = {{ socket = \"{}\", role = \"server\" }} }}\n",
            number + 1,
            path.display()
        );
    }
    file += &policies(RULES);
    // Whichever end's first packet comes first, it may pass.
    file += "[[policy.rules]]\nname = \"back\"\ndirection = \"ingress\"\naction = \"allow\"\n\
             peers = [{ prefix = \"10.1.0.0/16\" }]\nports = [{ protocol = \"udp\" }]\n";
    Ok(Daemon::start(lab, 0, "node1", "0,1", &file)?)
}

/// What the guest's two ports write in front of each frame.
fn headers(rings: Rings) -> [Headers; 2] {
    let [one, other] = [1, 2].map(|host| Ipv4Addr::new(10, 1, 1, host));
    let station = |last| MacAddr([2, 0, 0, 0, 0, last]);
    let headers = Headers {
        dst_mac: station(0xfe),
        src_mac: station(1),
        src: one,
        dst: other,
        size: rings.size,
        is_answer: false,
    };
    let back = Headers { src_mac: station(2), src: other, dst: one, is_answer: true, ..headers };
    [headers, back]
}

fn veths(ours: Who, theirs: Who, work: Work) -> Result<Pair, RowError> {
    let unloaded = Rc::<Cell<usize>>::default();
    let turn = |who: Who| -> Result<Turn, RowError> {
        let (street, unloaded) = (Street::build(who, work)?, Rc::clone(&unloaded));
        Ok(Box::new(move |time| {
            let (arrived, sent) = street.turn(time)?;
            if arrived >= sent * 0.98 {
                unloaded.set(unloaded.get() + 1);
            }
            Ok(arrived)
        }))
    };
    let who = |who: Who| match who {
        Who::Kernel => format!("Linux: {work:?} on CPU 1 by receive packet steering"),
        Who::Daemon => "penstockd: AF_XDP on both veths, one worker".to_owned(),
        Who::Ports => "AF_XDP ports alone".to_owned(),
        Who::Testpmd => "testpmd: net_af_xdp, io".to_owned(),
    };
    let note = matches!(work, Work::Rules(_)).then(|| {
        "for nftables flows that are never answered stay new, so that each of their packets meets every rule".to_owned()
    });
    let who = [who(ours), who(theirs)];
    Ok(Pair { ours: turn(ours)?, theirs: turn(theirs)?, who, note, unloaded: Rc::clone(&unloaded) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_has_a_name_of_its_own_and_a_peer() {
        let all = rows(PeerChoice::All);
        let names: HashSet<&str> = all.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(names.len(), all.len());
        let of = |choice| rows(choice).len();
        assert_eq!(
            of(PeerChoice::Testpmd) + of(PeerChoice::OvsDpdk) + of(PeerChoice::Kernel),
            all.len(),
            "rows of each peer are all rows"
        );
    }
}
