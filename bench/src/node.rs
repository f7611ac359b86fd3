//! A node in memory for each profile: one busy port that frames come to over and over, and others that discard.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use penstock_dataplane::drop::Reason;
use penstock_dataplane::flow::DeviceId;
use penstock_dataplane::port::PortId;
use penstock_dataplane::testbed::{
    self, FIRST_ENDPOINT, HOST, NEXT_HOP_MAC, NODE, POD_A, POD_A_MAC, POD_B, REMOTE_POD, Sizes, Testbed,
    UPLINK,
};
use penstock_io::mem::MemPort;
use penstock_io::{BURST, Port, Ticks};
use penstock_wire::MacAddr;

use crate::profile::{Path, Ports, Profile};
use crate::scenario::{PortToPort, tunnelled};
use crate::traffic::{Ends, FIRST_PORT, PORTS, Stream, Traffic, TrafficError};

/// Chunks of packet memory.
const CHUNKS: u32 = 8192;
/// The next hop out of the cluster, of each family.
pub(crate) const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 1, 254)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe)),
];
/// A host outside, of each family.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9))];
/// The service's address, of each family.
const SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1))];
/// How often as many connections as the table holds come by where each is to be a new one.
const CHURN: u32 = 4;

/// The address of a host of a pod network in IPv6: of the node's own pods or the peer's.
const fn pod6(node: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 1, node, 0, 0, 0, 0, host))
}

/// What a subject has counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Bytes of the frames received, without check sequences.
    pub bytes: u64,
    /// Frames dropped, by reason.
    pub drops: Vec<(String, u64)>,
    /// Frames kept for itself.
    pub consumed: u64,
    /// Frames made by itself.
    pub made: u64,
    /// Frames that wait for something.
    pub held: u64,
    /// Turns that moved frames.
    pub bursts: u64,
    /// Packets of flows known under the current tables.
    pub hits: u64,
}

impl Tally {
    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Tally) -> Tally {
        let before =
            |name: &str| earlier.drops.iter().find(|(other, _)| other == name).map_or(0, |drop| drop.1);
        let drops = self.drops.iter().map(|(name, count)| (name.clone(), count - before(name)));
        Tally {
            received: self.received - earlier.received,
            sent: self.sent - earlier.sent,
            bytes: self.bytes - earlier.bytes,
            drops: drops.filter(|drop| drop.1 > 0).collect(),
            consumed: self.consumed - earlier.consumed,
            made: self.made - earlier.made,
            held: self.held,
            bursts: self.bursts - earlier.bursts,
            hits: self.hits - earlier.hits,
        }
    }

    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Tally) {
        self.received += other.received;
        self.sent += other.sent;
        self.bytes += other.bytes;
        self.consumed += other.consumed;
        self.made += other.made;
        self.held += other.held;
        self.bursts += other.bursts;
        self.hits += other.hits;
        for (name, count) in &other.drops {
            match self.drops.iter_mut().find(|(ours, _)| ours == name) {
                Some(drop) => drop.1 += count,
                None => self.drops.push((name.clone(), *count)),
            }
        }
    }
}

/// What is measured: a node or ports alone, and the frames that come to it.
pub enum Subject {
    /// Ports without a worker.
    Ports(Box<PortToPort>),
    /// A node with one busy device.
    Node(Box<Testbed>, u16),
}

impl Subject {
    /// Makes the subject of a profile and shows it every flow, except where each packet is to be a first one.
    ///
    /// # Errors
    /// When there is no such traffic.
    pub fn new(profile: &Profile) -> Result<Subject, TrafficError> {
        let traffic = traffic(profile)?;
        let frames = traffic.order.len();
        if profile.path == Path::Forward {
            return Ok(Subject::Ports(Box::new(PortToPort::replaying(&traffic.frames, traffic.order))));
        }
        let device = if profile.path == Path::VxlanDecap { UPLINK } else { FIRST_ENDPOINT };
        let node = node(profile);
        for other in [UPLINK, HOST, FIRST_ENDPOINT, FIRST_ENDPOINT + 1] {
            node.open(other, MemPort::discard());
        }
        node.open(device, MemPort::replay(&traffic.frames, traffic.order));
        let mut subject = Subject::Node(Box::new(node), device);
        let rounds = if profile.path == Path::PolicyFirst { 1 } else { 3 };
        (0..rounds * frames / BURST + 10).for_each(|_| subject.turn(Ticks::now()));
        Ok(subject)
    }

    /// Takes a burst through.
    #[inline]
    pub fn turn(&mut self, now: Ticks) {
        match self {
            Subject::Ports(ports) => ports.turn(),
            Subject::Node(node, _) => {
                node.worker.turn(now);
            }
        }
    }

    /// The busy port.
    fn busy_port(&mut self) -> &mut MemPort {
        match self {
            Subject::Ports(ports) => ports.busy_port(),
            Subject::Node(node, device) => {
                node.worker.mem_port(PortId((*device).into())).expect("a node's devices have ports in memory")
            }
        }
    }

    /// Whether frames come only when they have arrived, from now on, or as fast as they are taken.
    pub fn set_paced(&mut self, is_paced: bool) {
        self.busy_port().set_paced(is_paced);
    }

    /// So many more frames have arrived; returns how many wait now.
    pub fn arrive(&mut self, frames: u64) -> u64 {
        self.busy_port().arrive(frames)
    }

    /// Frames sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        match self {
            Subject::Ports(ports) => ports.sent(),
            Subject::Node(node, _) => node.worker.counts().tx,
        }
    }

    /// All that it counts.
    #[must_use]
    pub fn tally(&mut self) -> Tally {
        let counters = self.busy_port().counters();
        match self {
            Subject::Ports(ports) => Tally {
                received: counters.rx_packets,
                bytes: counters.rx_bytes,
                sent: ports.sent(),
                bursts: ports.turns(),
                ..Tally::default()
            },
            Subject::Node(node, _) => {
                let counts = node.worker.counts();
                let drops = Reason::all().map(|reason| (reason.name().to_owned(), node.worker.drops(reason)));
                Tally {
                    received: counts.rx,
                    bytes: counters.rx_bytes,
                    sent: counts.tx,
                    drops: drops.filter(|(_, count)| *count > 0).collect(),
                    consumed: counts.consumed,
                    made: counts.made,
                    held: counts.held,
                    bursts: counts.busy_turns,
                    hits: counts.hits,
                }
            }
        }
    }
}

/// The frames of a profile, as they come to its busy port.
///
/// # Errors
/// When there is no such traffic.
pub fn traffic(profile: &Profile) -> Result<Traffic, TrafficError> {
    let family = usize::from(profile.ipv6);
    let [near, beside, remote] = if profile.ipv6 {
        [pod6(1, 1), pod6(1, 2), pod6(2, 1)]
    } else {
        [POD_A, POD_B, REMOTE_POD].map(|address| IpAddr::V4(address.into()))
    };
    let (src, dst) = match profile.path {
        Path::Forward | Path::L3 | Path::Stateful => (near, beside),
        Path::VxlanEncap | Path::GeneveEncap | Path::StatefulVxlan | Path::PolicyFirst => (near, remote),
        Path::VxlanDecap => (remote, near),
        Path::Snat => (near, OUTSIDE[family]),
        Path::Service => (near, SERVICE[family]),
    };
    let ends =
        Ends { dst_mac: MacAddr::from_underlay(IpAddr::V4(NODE.into())), src_mac: POD_A_MAC, src, dst };
    let stream = Stream {
        flows: if profile.path == Path::PolicyFirst {
            profile.flows.saturating_mul(CHURN)
        } else {
            profile.flows
        },
        size: profile.size,
        popularity: profile.popularity,
        segment: profile.segment,
        // What leaves a pod has one; in memory only where it is rewritten.
        has_checksum: profile.ports != Ports::Memory || matches!(profile.path, Path::Snat | Path::Service),
        seed: profile.seed,
    };
    let mut traffic = stream.traffic(&ends)?;
    if profile.path == Path::VxlanDecap {
        traffic.frames.iter_mut().for_each(|frame| *frame = tunnelled(frame));
    }
    Ok(traffic)
}

/// Pods on ports in memory: as taps, for what a veth brings may need its checksum finished first.
const IN_MEMORY: [&str; 2] = [r#"tap = { interface = "pa" }"#, r#"tap = { interface = "pb" }"#];

/// All that the node of a profile is told, its two pods attached so.
pub(crate) fn objects(profile: &Profile, attachments: [&str; 2]) -> String {
    let mut objects = pods(profile.path == Path::GeneveEncap, attachments);
    if profile.path.is_stateful() {
        objects += &policies(profile.rules);
    }
    if profile.path == Path::Service {
        objects += &service(profile.flows);
    }
    if profile.path == Path::Snat {
        objects += WAY_OUT;
    }
    objects
}

/// The node of a profile.
fn node(profile: &Profile) -> Testbed {
    let flows = profile.flows.max(1024);
    let connections = profile.path.is_stateful().then_some(flows);
    let cached = if profile.path == Path::PolicyFirst { flows } else { flows * 2 };
    let sizes = Sizes { flows: cached as usize, chunks: CHUNKS, connections };
    let mut node = testbed::node_of(&objects(profile, IN_MEMORY), &[NODE.into()], sizes);
    for gateway in GATEWAYS {
        node.underlay.neighbours.insert((DeviceId(UPLINK), gateway), NEXT_HOP_MAC);
    }
    if let Some(uplink) = node.underlay.uplinks.get_mut("wire") {
        // Room for a tunnel's headers around the largest frame of a pod.
        uplink.mtu = 1600;
    }
    node.publish();
    node
}

/// Two pods, and a peer that has other pods.
fn pods(geneve: bool, [a, b]: [&str; 2]) -> String {
    let encapsulation = if geneve { "geneve" } else { "vxlan" };
    format!(
        r#"
        [[network]]
        name = "default"
        vni = 100
        mtu = 1500
        prefixes = ["10.1.0.0/16", "fd00:1::/32"]
        encapsulation = "{encapsulation}"
        [[endpoint]]
        name = "a"
        network = "default"
        mac = "02:00:00:00:00:01"
        addresses = ["10.1.1.1", "fd00:1:1::1"]
        attachment = {{ {a} }}
        [[endpoint]]
        name = "b"
        network = "default"
        mac = "02:00:00:00:00:02"
        addresses = ["10.1.1.2", "fd00:1:1::2"]
        attachment = {{ {b} }}
        [[peer]]
        name = "node2"
        address = "192.168.1.2"
        [[route]]
        network = "default"
        prefix = "10.1.2.0/24"
        via = {{ peer = "node2" }}
        [[route]]
        network = "default"
        prefix = "fd00:1:2::/48"
        via = {{ peer = "node2" }}
    "#
    )
}

/// Policy of pod `a`: rules that its packets do not match, of one address and port each, and the ones that let them go.
#[must_use]
pub fn policies(others: u32) -> String {
    let mut text = String::from(
        r#"
        [[identity]]
        name = "client"
        network = "default"
        prefixes = ["10.1.1.1/32", "fd00:1:1::1/128"]
        [[tier]]
        name = "application"
        order = 1
        default = "deny"
        [[policy]]
        name = "client"
        network = "default"
        tier = "application"
        subjects = { identities = ["client"] }
        directions = ["ingress", "egress"]
    "#,
    );
    for number in 0..others {
        let address = Ipv4Addr::from(0xac10_0000 + number);
        let action = if number % 3 == 0 { "deny" } else { "allow" };
        // A string takes all that is written to it.
        let _ = writeln!(
            text,
            "[[policy.rules]]\nname = \"other{number}\"\ndirection = \"egress\"\naction = \"{action}\"\n\
             peers = [{{ prefix = \"{address}/32\" }}]\nports = [{{ protocol = \"tcp\", port = {} }}]",
            1 + number % 60_000
        );
    }
    for (name, prefixes) in
        [("cluster", ["10.1.0.0/16", "fd00:1::/32"]), ("outside", ["203.0.113.0/24", "2001:db8:9::/48"])]
    {
        let [four, six] = prefixes;
        let _ = writeln!(
            text,
            "[[policy.rules]]\nname = \"{name}\"\ndirection = \"egress\"\naction = \"allow\"\n\
             peers = [{{ prefix = \"{four}\" }}, {{ prefix = \"{six}\" }}]\n\
             ports = [{{ protocol = \"udp\" }}, {{ protocol = \"tcp\" }}]"
        );
    }
    text
}

/// A service with a port for each block of flows, answered by pod `b` at another port.
fn service(flows: u32) -> String {
    let blocks = flows.div_ceil(PORTS) as u16;
    let ports = |offset: u16, protocols: &[&str]| -> String {
        let mut text = String::new();
        for (number, protocol) in
            (0..blocks).flat_map(|number| protocols.iter().map(move |name| (number, name)))
        {
            let port = FIRST_PORT + number + offset;
            let said = if offset == 0 { format!(", protocol = \"{protocol}\"") } else { String::new() };
            let _ = write!(text, "{{ name = \"{protocol}{number}\", port = {port}{said} }},");
        }
        text
    };
    let asked = ports(0, &["udp", "tcp"]);
    let answered = ports(1000, &["udp", "tcp"]);
    format!(
        r#"
        [[service]]
        name = "echo"
        network = "default"
        cluster-ips = ["10.96.0.1", "fd00:96::1"]
        ports = [{asked}]
        [[backends]]
        service = "echo"
        ports = [{answered}]
        members = [{{ address = "10.1.1.2" }}, {{ address = "fd00:1:1::2" }}]
    "#
    )
}

/// A pod leaves by one address of each family, with more ports than it asks a destination from ([`PORTS`]).
const WAY_OUT: &str = r#"
    [[route]]
    network = "default"
    prefix = "0.0.0.0/0"
    via = { uplink = { uplink = "wire", gateway = "192.168.1.254" } }
    [[route]]
    network = "default"
    prefix = "::/0"
    via = { uplink = { uplink = "wire", gateway = "2001:db8:1::fe" } }
    [[nat-pool]]
    name = "outside"
    network = "default"
    sources = ["10.1.0.0/16"]
    exclusions = ["10.0.0.0/8"]
    addresses = ["198.51.100.1"]
    ports = "32768-65535"
    [[nat-pool]]
    name = "outside6"
    network = "default"
    sources = ["fd00:1::/32"]
    exclusions = ["fd00::/16"]
    addresses = ["2001:db8:2::1"]
    ports = "32768-65535"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Popularity, Ports, Segment, Size};
    use clap::ValueEnum;

    fn profile(path: Path, ipv6: bool, segment: Segment) -> Profile {
        Profile {
            path,
            ports: Ports::Memory,
            size: Size::Bytes(128),
            flows: 1500,
            rules: 10,
            workers: 1,
            ipv6,
            segment,
            popularity: Popularity::Uniform,
            seed: 1,
        }
    }

    #[test]
    fn every_path_sends_every_packet_that_it_receives_in_both_families() {
        for &path in Path::value_variants() {
            for (ipv6, segment) in [(false, Segment::Udp), (true, Segment::Udp), (false, Segment::TcpSyn)] {
                let mut subject = Subject::new(&profile(path, ipv6, segment)).expect("sound traffic");
                // A cache that is as large as there are flows is at rest when all of them have come some times.
                (0..200).for_each(|_| subject.turn(Ticks::now()));
                let before = subject.tally();
                (0..200).for_each(|_| subject.turn(Ticks::now()));
                let tally = subject.tally().since(&before);
                let told = format!("{path:?} ipv6={ipv6} {segment:?}: {tally:?}");
                assert_eq!((tally.received, tally.sent), (200 * BURST as u64, 200 * BURST as u64), "{told}");
                // What asks to open a connection is never a packet of a known one.
                let is_first = path == Path::PolicyFirst || path.is_stateful() && segment == Segment::TcpSyn;
                let hits = tally.hits * 100 / tally.received;
                // A few find no place in a cache of buckets, by its random seed.
                let expected = if is_first || path == Path::Forward { 0..=0 } else { 98..=100 };
                assert!(expected.contains(&hits), "{told}");
                assert_eq!((tally.bursts, tally.bytes), (200, tally.received * traffic_len(path)), "{told}");
            }
        }
    }

    /// Bytes of a frame without its check sequence.
    fn traffic_len(path: Path) -> u64 {
        // Outer Ethernet stays, the inner one goes into the tunnel: IPv4, UDP, VXLAN and Ethernet headers more.
        if path == Path::VxlanDecap { 124 + 50 } else { 124 }
    }
}
