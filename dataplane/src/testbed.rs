//! A node in memory for tests and benches: tables, a worker, and ports that are queues of frames.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam::channel::{Sender, unbounded};
use penstock_api::file::parse_objects;
use penstock_api::model::{Host, Node};
use penstock_io::mem::MemPort;
use penstock_io::shared::RegionClock;
use penstock_io::{Hugepages, Region, Ticks, TicksPerSecond};
use penstock_wire::MacAddr;

use crate::conntrack;
use crate::flow::DeviceId;
use crate::mailbox::{Command, Events, Exit};
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
    build(objects, underlay_addresses, flows, chunks, false)
}

/// As [`node_with`], and the node keeps connections.
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
    build(objects, underlay_addresses, flows, chunks, true)
}

/// Connections in memory of their own, as many as the largest benches have.
fn tracker(rate: TicksPerSecond) -> Tracker {
    let plan = conntrack::Plan { capacity: 1 << 20, owners: 1 << 16, workers: 1 };
    let memory = conntrack::Memory::private(plan.capacity).expect("memory for the test's connections");
    let seed = conntrack::HashSeed::new([3, 5]);
    let (table, _) = conntrack::Table::over(memory, seed, plan, conntrack::Seconds(1), |_| None)
        .expect("memory for the test's connections");
    Tracker {
        table: Arc::new(table),
        affinity: Arc::new(Affinity::with_capacity(1024)),
        settings: conntrack::Settings::default(),
        share: conntrack::Limits::NONE,
        clock: RegionClock { origin: Ticks(0), rate },
        worker: conntrack::WorkerId(0),
    }
}

fn build(
    objects: &str,
    underlay_addresses: &[IpAddr],
    flows: usize,
    chunks: u32,
    is_stateful: bool,
) -> Testbed {
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
    let tracker = is_stateful.then(|| tracker(rate));
    let plan = Plan { id: 0, cpu: None, idle: Idle::Poll, flows4: flows, flows6: flows, region, tracker };
    let reader = publisher.reader();
    let worker = Worker::new(&plan, reader, Arc::clone(&events), receiver, WorkerStats::shared())
        .expect("memory for the test's caches");
    let testbed =
        Testbed { desired, underlay, author, publisher, worker, events, commands, now: Ticks(1 << 40) };
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
            Command::SetExit(DeviceId(device), Exit::Own(id)),
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
