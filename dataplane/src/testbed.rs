//! A node in memory for tests and benches: tables, a worker, and ports that are queues of frames.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam::channel::{Sender, unbounded};
use penstock_api::file::parse_objects;
use penstock_api::model::{Host, Node};
use penstock_io::mem::MemPort;
use penstock_io::shared::RegionClock;
use penstock_io::{Hugepages, Region, Ticks, TicksPerSecond};
use penstock_wire::{MacAddr, checksum, ethernet, ipv4, proto, udp};

use crate::conntrack;
use crate::flow::DeviceId;
use crate::mailbox::{Command, Events, Exit, Takes};
use crate::port::{AnyPort, OwnedPort, PortId};
use crate::snapshot::Publisher;
use crate::stats::WorkerStats;
use crate::tables::Snapshot;
use crate::tables::compile::{HostFacts, PathFacts, Underlay, UplinkFacts, compile};
use crate::tables::desired::{Change, Desired};
use crate::tables::rulebook::Author;
use crate::tables::service::Affinity;
use crate::tracker::Tracker;
use crate::worker::{Idle, Plan, Worker};

/// The uplink's device, and its port's number.
pub const UPLINK: u16 = 0;
/// The host port's device, and its port's number.
pub const HOST: u16 = 1;
/// The first endpoint's device, and its port's number; the others follow in the order of their names.
pub const FIRST_ENDPOINT: u16 = 2;

/// The uplink's MAC address.
pub const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);
/// The MAC address of every next hop on the underlay.
pub const NEXT_HOP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xbb]);
/// The MAC address of the host's tap.
pub const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xcc]);

/// The tunnel endpoint of a node of [`two_pods`].
pub const NODE: [u8; 4] = [192, 168, 1, 1];
/// The tunnel endpoint of its peer.
pub const PEER: [u8; 4] = [192, 168, 1, 2];
/// The address of its pod `a`.
pub const POD_A: [u8; 4] = [10, 1, 1, 1];
/// The MAC address of its pod `a`.
pub const POD_A_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// The address of its pod `b`.
pub const POD_B: [u8; 4] = [10, 1, 1, 2];
/// The address of a pod on its peer.
pub const REMOTE_POD: [u8; 4] = [10, 1, 2, 1];

/// The objects of a node with two pods, the first two endpoints, on interfaces of a kind (`veth`, `tap`), and a peer that
/// has 10.1.2.0/24.
#[must_use]
pub fn two_pods(attachment: &str) -> String {
    format!(
        r#"
        [[network]]
        name = "default"
        vni = 100
        prefixes = ["10.1.0.0/16"]
        [[endpoint]]
        name = "a"
        network = "default"
        mac = "02:00:00:00:00:01"
        addresses = ["10.1.1.1"]
        attachment = {{ {attachment} = {{ interface = "pa" }} }}
        [[endpoint]]
        name = "b"
        network = "default"
        mac = "02:00:00:00:00:02"
        addresses = ["10.1.1.2"]
        attachment = {{ {attachment} = {{ interface = "pb" }} }}
        [[peer]]
        name = "node2"
        address = "192.168.1.2"
        [[route]]
        network = "default"
        prefix = "10.1.2.0/24"
        via = {{ peer = "node2" }}
    "#
    )
}

/// A UDP datagram over IPv4, in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Destination station.
    pub dst_mac: MacAddr,
    /// Source station.
    pub src_mac: MacAddr,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Hops left.
    pub ttl: u8,
    /// Bytes of the frame, without its check sequence; at least 60.
    pub frame_len: usize,
    /// Whether it has a checksum of its own; without one, translation has less to do.
    pub has_checksum: bool,
}

impl Datagram {
    /// The shortest one from pod `a` of [`two_pods`] to its gateway.
    #[must_use]
    pub fn from_pod_a(dst: [u8; 4], sport: u16, dport: u16) -> Datagram {
        Datagram {
            dst_mac: MacAddr::from_underlay(IpAddr::V4(NODE.into())),
            src_mac: POD_A_MAC,
            src: POD_A,
            dst,
            sport,
            dport,
            ttl: 64,
            frame_len: 60,
            has_checksum: false,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let frame_len = self.frame_len.max(60);
        let datagram_len = (frame_len - ethernet::HEADER_LEN - ipv4::HEADER_LEN) as u16;
        let (src, dst) = (self.src.into(), self.dst.into());
        let header = ipv4::Repr {
            src,
            dst,
            protocol: proto::UDP,
            tos: 0,
            ttl: self.ttl,
            dont_fragment: true,
            payload_len: datagram_len,
        };
        let mut datagram = vec![b'x'; datagram_len.into()];
        for (word, value) in datagram.chunks_exact_mut(2).zip([self.sport, self.dport, datagram_len, 0]) {
            word.copy_from_slice(&value.to_be_bytes());
        }
        if self.has_checksum {
            let sum = checksum::pseudo_v4(src, dst, proto::UDP, datagram_len).add_bytes(&datagram).finish();
            // Zero would say that there is none (RFC 768).
            let sum = if sum == 0 { u16::MAX } else { sum };
            datagram[udp::HEADER_LEN - 2..udp::HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
        }
        let ethertype = ethernet::IPV4.to_be_bytes();
        [&self.dst_mac.0[..], &self.src_mac.0, &ethertype, &header.emit(), &datagram].concat()
    }
}

/// A node in memory.
pub struct Testbed {
    /// What it is told.
    pub desired: Desired,
    /// What it knows of the machine.
    pub underlay: Underlay,
    /// Its policies and services.
    pub author: Author,
    /// Its tables' publication.
    pub publisher: Publisher<Snapshot>,
    /// Its worker.
    pub worker: Worker,
    /// What the worker tells the control side.
    pub events: Arc<Events>,
    /// The connections that it keeps.
    pub tracker: Option<Tracker>,
    commands: Sender<Command>,
    now: Ticks,
}

/// A node of these objects, the text of a configuration file. Its uplink `wire` has the given addresses; every peer is on
/// the uplink's link and has answered.
///
/// # Panics
/// When the objects are faulty: a test's own mistake.
#[must_use]
pub fn node(objects: &str, underlay_addresses: &[IpAddr]) -> Testbed {
    node_with(objects, underlay_addresses, 4096, 4096)
}

/// As [`node`], with caches for that many flows and packet memory of that many chunks.
///
/// # Panics
/// As [`node`].
#[must_use]
pub fn node_with(objects: &str, underlay_addresses: &[IpAddr], flows: usize, chunks: u32) -> Testbed {
    node_of(objects, underlay_addresses, Sizes { flows, chunks, connections: None })
}

/// As [`node_with`], and the node keeps connections: at least as many as flows.
///
/// # Panics
/// As [`node`].
#[must_use]
pub fn stateful_node_with(
    objects: &str,
    underlay_addresses: &[IpAddr],
    flows: usize,
    chunks: u32,
) -> Testbed {
    let connections = Some(flows.next_multiple_of(1 << 16) as u32);
    node_of(objects, underlay_addresses, Sizes { flows, chunks, connections })
}

/// How much a node holds.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Flows in each cache.
    pub flows: usize,
    /// Chunks of packet memory.
    pub chunks: u32,
    /// Connections; `None` if none are kept. Their memory is never given back.
    pub connections: Option<u32>,
}

/// Connections in memory of their own.
fn tracker(capacity: u32, shares: Shares, rate: TicksPerSecond) -> Tracker {
    let plan = conntrack::Plan { capacity, owners: u16::MAX, workers: 1 };
    let memory = conntrack::Memory::private(plan.capacity).expect("memory for the test's connections");
    // Of no meaning, but as irregular as a real one.
    let seed = conntrack::HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);
    let (table, _) = conntrack::Table::over(memory, seed, plan, conntrack::Seconds(1), |_| None)
        .expect("memory for the test's connections");
    Tracker {
        table: Arc::new(table),
        affinity: Arc::new(Affinity::with_capacity(1024)),
        settings: conntrack::Settings::default(),
        share: shares.endpoint,
        outside: shares.outside,
        clock: RegionClock { origin: Ticks(0), rate },
        worker: conntrack::WorkerId(0),
    }
}

/// What may be had of a node's connections.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// By an endpoint that is told no number of its own.
    pub endpoint: conntrack::Share,
    /// By everybody beyond the node, together.
    pub outside: conntrack::Share,
}

impl Shares {
    /// All of them.
    pub const WHOLE: Shares = Shares { endpoint: conntrack::Share::WHOLE, outside: conntrack::Share::WHOLE };
}

/// As [`node`], of these sizes.
///
/// # Panics
/// As [`node`].
#[must_use]
pub fn node_of(objects: &str, underlay_addresses: &[IpAddr], sizes: Sizes) -> Testbed {
    node_sharing(objects, underlay_addresses, sizes, Shares::WHOLE)
}

/// As [`node_of`], its connections shared like this.
///
/// # Panics
/// As [`node`].
#[must_use]
pub fn node_sharing(objects: &str, underlay_addresses: &[IpAddr], sizes: Sizes, shares: Shares) -> Testbed {
    let Sizes { flows, chunks, connections } = sizes;
    let name = "node1".parse().expect("a valid name");
    let mut desired = Desired::new(Node { name, mac: None }, None);
    let text = format!("[[uplink]]\nname = \"wire\"\ninterface = \"wire0\"\n{objects}");
    let objects = parse_objects(&text, "testbed").expect("the test's objects are readable");
    desired.apply(Change::Upsert(objects)).expect("the test's objects are sound");
    let network = desired.networks().next().map(|network| network.name.clone());
    if let Some(network) = network {
        desired.host = Some(Host { interface: Host::default_interface(), network, addresses: Vec::new() });
    }
    let underlay = underlay_of(&desired, underlay_addresses);
    let rate = TicksPerSecond::measure(std::time::Duration::from_millis(5));
    let mut author = Author::new(None, rate);
    author.revise(&desired).expect("the test's policies and services are sound");
    author.set_addresses(underlay_addresses);
    let mut publisher = Publisher::new(compile(&desired, &underlay, author.book(), None));
    let events = Arc::<Events>::default();
    let (commands, receiver) = unbounded();
    let region = Region::map(chunks, Hugepages::Auto).expect("memory for the test's packets");
    let tracker = connections.map(|capacity| tracker(capacity, shares, rate));
    let plan = Plan {
        id: 0,
        cpu: None,
        idle: Idle::Poll,
        flows4: flows,
        flows6: flows,
        region,
        tracker: tracker.clone(),
    };
    let reader = publisher.reader();
    let worker = Worker::new(&plan, reader, Arc::clone(&events), receiver, WorkerStats::shared())
        .expect("memory for the test's caches");
    let testbed = Testbed {
        desired,
        underlay,
        author,
        publisher,
        worker,
        events,
        tracker,
        commands,
        now: Ticks(1 << 40),
    };
    let endpoints = testbed.underlay.endpoints.len() as u16;
    for device in 0..FIRST_ENDPOINT + endpoints {
        testbed.open(device, MemPort::new());
    }
    testbed
}

fn underlay_of(desired: &Desired, addresses: &[IpAddr]) -> Underlay {
    let uplink = UplinkFacts {
        device: DeviceId(UPLINK),
        interface: "wire0".into(),
        mac: UPLINK_MAC,
        mtu: 1500,
        addresses: addresses.to_vec(),
        partial_checksums: false,
    };
    let mut underlay = Underlay {
        host: Some(HostFacts { device: DeviceId(HOST), mac: HOST_MAC, mtu: 1500 }),
        ..Underlay::default()
    };
    underlay.uplinks.insert("wire".into(), uplink);
    for (number, endpoint) in desired.endpoints().enumerate() {
        underlay.endpoints.insert(endpoint.name.to_string(), DeviceId(FIRST_ENDPOINT + number as u16));
    }
    for peer in desired.peers() {
        if let Some(&source) = addresses.iter().find(|address| address.is_ipv4() == peer.address.is_ipv4()) {
            let path = PathFacts { uplink: "wire".into(), next_hop: peer.address, source, mtu: None };
            underlay.paths.insert(peer.address, path);
            underlay.neighbours.insert((DeviceId(UPLINK), peer.address), NEXT_HOP_MAC);
        }
    }
    underlay
}

impl Testbed {
    /// Gives a device's port to the worker in the place of the one it has.
    pub fn open(&self, device: u16, port: MemPort) {
        let id = PortId(device.into());
        let (done, _) = unbounded();
        let port = AnyPort::Mem(Box::new(port));
        for command in [
            Command::RemovePort(id, done),
            Command::AddPort(Box::new(OwnedPort { id, device: DeviceId(device), port })),
            Command::SetExit(DeviceId(device), Exit::Own(id, Takes::default())),
        ] {
            // The worker is ours, so it is there to take it.
            let _ = self.commands.send(command);
        }
    }

    /// Queues a command for the next turn.
    pub fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Compiles and publishes anew, after a change of `desired` or `underlay`.
    ///
    /// # Panics
    /// When policies or services are faulty.
    pub fn publish(&mut self) {
        let before = self.publisher.current();
        self.author.revise(&self.desired).expect("the test's policies and services are sound");
        let next = compile(&self.desired, &self.underlay, self.author.book(), Some(&before));
        self.publisher.publish(next);
    }

    /// Delivers a frame to a device's port.
    ///
    /// # Panics
    /// When the device has no port.
    pub fn deliver(&mut self, device: u16, frame: &[u8]) {
        self.worker.turn(self.now); // A port that was just opened is in its place.
        self.worker.mem_port(PortId(device.into())).expect("the device has a port").deliver(frame);
    }

    /// Lets time pass, and a turn.
    pub fn turn_after(&mut self, ticks: u64) {
        self.now = Ticks(self.now.0 + ticks);
        self.worker.turn(self.now);
    }

    /// The frames that left by a device since the last call.
    pub fn sent(&mut self, device: u16) -> Vec<Vec<u8>> {
        self.turn_after(1000);
        let port = self.worker.mem_port(PortId(device.into()));
        port.map(|port| std::iter::from_fn(|| port.sent()).collect()).unwrap_or_default()
    }

    /// Delivers a frame and gives back what left by another device.
    pub fn through(&mut self, from: u16, frame: &[u8], to: u16) -> Vec<Vec<u8>> {
        self.deliver(from, frame);
        self.sent(to)
    }
}
