//! What the supervisor answers from what it has at hand.

use std::collections::HashMap;
use std::net::IpAddr;

use penstock_api::query::{Question, Source};
use penstock_api::{model, proto};
use penstock_io::{PageSize, Ticks};
use penstock_wire::parse::Fragment;
use tonic::Status;

use crate::drop::Reason;
use crate::flow::{DeviceId, ZoneId};
use crate::port::PortId;
use crate::slowpath::{self, facts::Fact};
use crate::stats::{Counts, PortStats};
use crate::supervisor::{Device, Engine, Owner};
use crate::tables::desired::Desired;
use crate::tables::{self, Snapshot, Zone};

/// Counters of every port queue, whichever worker has it.
fn port_stats(engine: &Engine) -> HashMap<PortId, PortStats> {
    engine.workers().iter().flat_map(|worker| worker.stats.ports()).collect()
}

pub(super) fn status(engine: &Engine) -> proto::NodeStatus {
    let snapshot = engine.snapshot();
    let stats = port_stats(engine);
    let sum = |of: fn(&PortStats) -> u64| stats.values().map(of).sum();
    let counts: Vec<Counts> = engine.workers().iter().map(|worker| worker.stats.counts()).collect();
    let stalled = (0..engine.workers().len()).find(|&index| engine.is_stalled(index));
    proto::NodeStatus {
        name: engine.desired().node.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: engine.started().elapsed().as_millis() as u64,
        generation: engine.desired().generation(),
        live_generation: engine.live_generation(),
        workers: engine.workers().len() as u32,
        slowest_worker: stalled.map(|index| u32::from(engine.workers()[index].id)),
        hugepages: memory(engine),
        agent: String::new(),
        ports: engine.devices().values().map(|device| device.queues.len() as u32).sum(),
        flows: counts.iter().map(|counts| counts.flows4 + counts.flows6).sum(),
        rx_packets: sum(|it| it.counters.rx_packets),
        rx_bytes: sum(|it| it.counters.rx_bytes),
        tx_packets: sum(|it| it.counters.tx_packets),
        tx_bytes: sum(|it| it.counters.tx_bytes),
        dropped: counts.iter().map(|counts| counts.dropped).sum(),
        underlay_addresses: snapshot.underlay_addresses.iter().map(IpAddr::to_string).collect(),
        warnings: warnings(engine, &snapshot),
        frames: Some(census(engine, &counts)),
    }
}

/// Where the chunks are. Workers count theirs a few times a second, so a chunk on its way between two holders may be seen
/// with neither or with both for a moment.
fn census(engine: &Engine, counts: &[Counts]) -> proto::FrameCensus {
    let sum = |of: fn(&Counts) -> u64| counts.iter().map(of).sum::<u64>();
    let region = engine.region();
    let (free, fill, tx) =
        (u64::from(region.in_depot()) + sum(|it| it.free), sum(|it| it.fill), sum(|it| it.to_send));
    let user = u64::from(region.chunks()).saturating_sub(free + fill + tx);
    proto::FrameCensus { free, user, fill, tx }
}

/// What memory the packets lie in, as one sentence.
fn memory(engine: &Engine) -> String {
    let region = engine.region();
    let pages = match region.pages() {
        PageSize::Huge2M => "huge pages of 2 MiB",
        PageSize::Small4K => "ordinary pages of 4 KiB",
    };
    format!("{} chunks, {} MiB in {pages}", region.chunks(), region.bytes() >> 20)
}

/// What is not as good as it could be, one sentence each.
fn warnings(engine: &Engine, snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = Vec::new();
    if engine.region().pages() == PageSize::Small4K {
        warnings.push("packet memory lies in ordinary pages, which makes forwarding slower".to_owned());
    }
    warnings.extend(unkept(engine.desired()));
    warnings.extend(engine.contested().map(|it| it.to_string()));
    warnings.extend(engine.overshadowed().map(ToString::to_string));
    warnings.extend(engine.waiting().iter().map(|(owner, why)| format!("{owner} is not open: {why}")));
    for (index, worker) in engine.workers().iter().enumerate() {
        let health = worker.health();
        if engine.is_stalled(index) {
            warnings.push(format!("worker {} takes no turns", worker.id));
        }
        if health.restarts > 0 {
            let times = health.restarts;
            warnings
                .push(format!("worker {} panicked {times} times, last: {}", worker.id, health.last_panic));
        }
    }
    let lost = snapshot.peers.iter().filter(|peer| peer.path.as_ref().is_none_or(|path| path.mac.is_none()));
    warnings.extend(lost.map(|peer| match &peer.path {
        None => format!("peer {} ({}): no way by an uplink", peer.name, peer.address),
        Some(path) => format!("peer {} ({}): {} does not answer", peer.name, peer.address, path.next_hop),
    }));
    warnings
}

/// What objects ask for and this version does not do: told, so that nobody relies on it.
fn unkept(desired: &Desired) -> Vec<String> {
    let mut unkept = Vec::new();
    for service in desired.services() {
        let network = desired.networks().find(|network| network.name == service.network);
        if service.dsr && network.is_some_and(|it| it.encapsulation != model::Encapsulation::Geneve) {
            unkept.push(format!(
                "service {}: its remote backends answer through this node, for only Geneve can tell them to answer directly",
                service.name
            ));
        }
    }
    unkept
}

pub(super) fn ports(engine: &Engine) -> Vec<proto::Port> {
    let snapshot = engine.snapshot();
    let stats = port_stats(engine);
    let mut rows: Vec<proto::Port> = Vec::new();
    for (owner, device) in engine.devices() {
        for (index, queue) in device.queues.iter().enumerate() {
            let stats = stats.get(&queue.id).copied().unwrap_or_default();
            let worker = engine.workers().get(queue.worker).map_or(0, |worker| worker.id);
            rows.push(proto::Port {
                id: queue.id.0,
                queue: index as u32,
                worker: worker.into(),
                kind: device.facts.kind.to_owned(),
                interface: device.facts.interface.clone(),
                xdp: device.facts.xdp.to_owned(),
                copy: device.facts.copy.to_owned(),
                mtu: mtu_of(owner, device, &snapshot).into(),
                state: device
                    .broken
                    .clone()
                    .map_or_else(|| engine.link_state(device), |why| format!("down: {why}")),
                ..port_counters(&stats, named(engine, owner))
            });
        }
    }
    rows.sort_by_key(|row| row.id);
    for (owner, why) in engine.waiting() {
        let (state, interface) = (format!("down: {why}"), engine.interface_of(owner));
        rows.push(proto::Port { state, interface, ..named(engine, owner) });
    }
    rows
}

/// The longest IP packet that a port takes.
fn mtu_of(owner: &Owner, device: &Device, snapshot: &Snapshot) -> u16 {
    let endpoint = snapshot.endpoints.iter().find(|endpoint| endpoint.device == device.id);
    match (owner, endpoint) {
        (Owner::Endpoint(_), Some(endpoint)) => endpoint.mtu,
        _ => device.facts.mtu,
    }
}

fn named(engine: &Engine, owner: &Owner) -> proto::Port {
    let desired = engine.desired();
    let (network, endpoint) = match owner {
        Owner::Uplink(_) => (None, None),
        Owner::Endpoint(name) => {
            let object = desired.endpoints().find(|it| it.name.as_str() == name);
            (object.map(|it| it.network.to_string()), Some(name.clone()))
        }
        Owner::Host => (desired.host.as_ref().map(|host| host.network.to_string()), None),
    };
    proto::Port {
        name: owner.port_name().to_owned(),
        network: network.unwrap_or_default(),
        endpoint: endpoint.unwrap_or_default(),
        ..proto::Port::default()
    }
}

fn port_counters(stats: &PortStats, row: proto::Port) -> proto::Port {
    let counters = stats.counters;
    proto::Port {
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        tx_packets: counters.tx_packets,
        tx_bytes: counters.tx_bytes,
        rx_drops: stats.rx_drops + counters.rx_no_chunk + counters.rx_invalid,
        tx_drops: stats.tx_drops + counters.tx_invalid,
        kernel: stats.kernel.map(|kernel| proto::XdpStatistics {
            rx_dropped: kernel.rx_dropped,
            rx_invalid_descriptors: kernel.rx_invalid,
            tx_invalid_descriptors: kernel.tx_invalid,
            rx_ring_full: kernel.rx_ring_full,
            fill_ring_empty: kernel.fill_ring_empty,
            tx_ring_empty: kernel.tx_ring_empty,
        }),
        ..row
    }
}

pub(super) fn workers(engine: &Engine) -> Vec<proto::Worker> {
    let row = |(index, worker): (usize, &crate::worker::Handle)| {
        let (counts, health, pace) = (worker.stats.counts(), worker.health(), engine.pace(index));
        let state = if health.stopped {
            "stopped"
        } else if engine.is_draining() {
            "draining"
        } else if engine.is_stalled(index) {
            "stalled"
        } else if pace.received {
            "running"
        } else {
            "idle"
        };
        proto::Worker {
            id: worker.id.into(),
            cpu: worker.cpu.map(|cpu| cpu as u32),
            state: state.to_owned(),
            turns: counts.turns,
            busy_percent: pace.busy_percent,
            idle_sleeps: counts.sleeps,
            rx_packets: counts.rx,
            tx_packets: counts.tx,
            dropped: counts.dropped,
            lookups: Some(proto::CacheLookups {
                hit: counts.hits,
                stale: counts.stale,
                miss: counts.misses,
                slow_only: counts.slow_only,
            }),
            cache_entries: counts.flows4 + counts.flows6,
            cache_capacity: engine.flow_capacity(),
            frames: Some(proto::FrameCensus {
                free: counts.free,
                user: counts.held,
                fill: counts.fill,
                tx: counts.to_send,
            }),
            restarts: health.restarts,
            last_panic: health.last_panic,
            cycles_per_packet: pace.cycles_per_packet,
            busy_turns: counts.busy_turns,
            busy_cycles: counts.busy_ticks,
        }
    };
    engine.workers().iter().enumerate().map(row).collect()
}

pub(super) fn drops(engine: &Engine, all: bool) -> Vec<proto::Drop> {
    let count =
        |reason: Reason| -> u64 { engine.workers().iter().map(|worker| worker.stats.drops(reason)).sum() };
    let rows = Reason::all().map(|reason| proto::Drop {
        reason: reason.name().to_owned(),
        sentence: reason.sentence().to_owned(),
        packets: count(reason),
    });
    rows.chain(port_losses(engine)).filter(|row| all || row.packets > 0).collect()
}

/// What ports lost, before or after a worker had it in its hands.
fn port_losses(engine: &Engine) -> impl Iterator<Item = proto::Drop> {
    let stats = port_stats(engine);
    PORT_LOSSES.into_iter().map(move |(reason, sentence, count)| proto::Drop {
        reason: reason.to_owned(),
        sentence: sentence.to_owned(),
        packets: stats.values().map(count).sum(),
    })
}

/// A reason to lose packets at a port: its name, its sentence, and where the number is.
type Loss = (&'static str, &'static str, fn(&PortStats) -> u64);

const PORT_LOSSES: [Loss; 5] = [
    ("rx-too-long", "the frame did not fit a chunk of packet memory", |it| {
        // The kernel counts a frame that found the fill ring empty as dropped as well (`__xsk_rcv` in net/xdp/xsk.c).
        it.kernel.map_or(0, |kernel| kernel.rx_dropped.saturating_sub(kernel.fill_ring_empty))
    }),
    ("rx-no-buffer", "no free chunk of packet memory was there to receive into", |it| {
        it.counters.rx_no_chunk + it.kernel.map_or(0, |kernel| kernel.fill_ring_empty)
    }),
    ("rx-ring-full", "the port's receive ring was full: its worker did not keep up", |it| {
        it.kernel.map_or(0, |kernel| kernel.rx_ring_full)
    }),
    ("rx-invalid", "the frame was too large or malformed for the port", |it| it.counters.rx_invalid),
    (
        "tx-invalid",
        "the port did not take the frame: it was too short, or its descriptor made no sense",
        |it| it.counters.tx_invalid + it.kernel.map_or(0, |kernel| kernel.tx_invalid),
    ),
];

pub(super) fn routes(engine: &Engine, network: Option<&str>) -> Vec<proto::RouteRow> {
    let snapshot = engine.snapshot();
    let networks = snapshot.networks.iter().filter(|it| network.is_none_or(|name| it.name == name));
    let mut rows: Vec<(&str, &tables::RouteRow)> =
        networks.flat_map(|network| network.rows.iter().map(|row| (network.name.as_str(), row))).collect();
    rows.sort_by_key(|(network, row)| (*network, row.prefix));
    let row = |(network, row): (&str, &tables::RouteRow)| proto::RouteRow {
        network: network.to_owned(),
        prefix: row.prefix.to_string(),
        target: row.target.clone(),
        origin: if row.implied { "implied" } else { "config" }.to_owned(),
    };
    rows.into_iter().map(row).collect()
}

pub(super) fn peers(engine: &Engine) -> Vec<proto::PeerRow> {
    let snapshot = engine.snapshot();
    let row = |peer: &tables::Peer| {
        let path = peer.path.as_ref();
        proto::PeerRow {
            name: peer.name.clone(),
            address: peer.address.to_string(),
            reachable: path.is_some_and(|path| path.mac.is_some()),
            next_hop: path.map(|path| path.next_hop.to_string()).unwrap_or_default(),
            mac: path.and_then(|path| path.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            interface: path.map(|path| path.interface.clone()).unwrap_or_default(),
            mtu: path.map_or(0, |path| path.mtu.into()),
            learnt_mtu: peer.learnt_mtu.map(u32::from),
            templates: peer.templates,
        }
    };
    snapshot.peers.iter().map(row).collect()
}

/// Where a packet would go by the tables that are published now.
pub(super) fn explain(engine: &Engine, question: &Question) -> Result<proto::Explanation, Status> {
    let snapshot = engine.snapshot();
    let zone = zone_of(engine, &snapshot, &question.from)?;
    let source = match question.source {
        Some(source) => source,
        None => own_address(&snapshot, zone, question.destination.is_ipv4()).ok_or_else(|| {
            Status::invalid_argument("source: it has no address of the destination's family; name one")
        })?,
    };
    let packet = slowpath::Question {
        src: source,
        dst: question.destination,
        proto: question.protocol,
        sport: question.source_port,
        dport: question.destination_port,
        hops: question.ttl,
        len: question.length,
        life: slowpath::first_of(question.protocol),
        fragment: Fragment::Whole,
    };
    let scene =
        slowpath::Scene { snapshot: &snapshot, tracker: engine.tracker(), now: Ticks::now(), ledger: None };
    let (steps, verdict, delivered) = slowpath::explain(scene, zone, &packet);
    let step = |step: slowpath::Step| proto::ExplainStep {
        stage: step.stage.to_owned(),
        decision: step.decision,
        detail: step.ground,
        fact: step.fact.map(|fact| name_port(engine.desired(), question, fact)),
    };
    Ok(proto::Explanation { steps: steps.into_iter().map(step).collect(), verdict, delivered })
}

/// Names the service's port that was asked: the tables only have its number.
fn name_port(desired: &Desired, question: &Question, mut fact: Fact) -> Fact {
    if let Fact::Service(fact) = &mut fact
        && let Some(service) = desired.services().find(|it| it.name.as_str() == fact.service)
    {
        let is_asked = |port: &&model::ServicePort| {
            model::Protocol::from(port.protocol).number() == question.protocol
                && [Some(port.port), port.node_port].contains(&Some(question.destination_port))
        };
        fact.port = service.ports.iter().find(is_asked).map(|port| port.name.to_string()).unwrap_or_default();
    }
    fact
}

fn zone_of(engine: &Engine, snapshot: &Snapshot, from: &Source) -> Result<ZoneId, Status> {
    match from {
        Source::Endpoint(name) => {
            let endpoint = snapshot.endpoints.iter().find(|it| it.name == name.as_str());
            endpoint.map(|it| it.zone).ok_or_else(|| {
                let why = engine.waiting().get(&Owner::Endpoint(name.to_string()));
                let why = why
                    .map_or("there is none of that name".to_owned(), |why| format!("it is not open: {why}"));
                Status::not_found(format!("endpoint {:?}: {why}", name.as_str()))
            })
        }
        Source::Host => snapshot
            .host
            .as_ref()
            .and_then(|host| zone_of_device(snapshot, host.device))
            .ok_or_else(|| Status::not_found("this node has no host port, or it is not open")),
        Source::Uplink => {
            let natives = snapshot.devices.iter().find_map(|device| match device {
                tables::Device::Uplink { native, .. } => *native,
                _ => None,
            });
            natives.ok_or_else(|| {
                Status::not_found("no network travels without tunnels here, so nothing of an uplink is taken")
            })
        }
        Source::Tunnel { peer, network } => {
            let address = engine.desired().peers().find(|it| it.name == *peer).map(|it| it.address);
            let vni = engine.desired().networks().find(|it| it.name == *network).map(|it| it.vni);
            let zone = address.zip(vni).and_then(|key| snapshot.tunnels.get(&key));
            zone.map(|it| it.zone).ok_or_else(|| {
                Status::not_found(format!(
                    "peer {:?} and network {:?}: one of them is not there, or the network has no tunnels",
                    peer.as_str(),
                    network.as_str()
                ))
            })
        }
    }
}

fn zone_of_device(snapshot: &Snapshot, device: DeviceId) -> Option<ZoneId> {
    match snapshot.devices.get(usize::from(device.0))? {
        tables::Device::Host { zone } | tables::Device::Endpoint { zone, .. } => Some(*zone),
        tables::Device::Unused | tables::Device::Uplink { .. } => None,
    }
}

/// The address that a zone's own packets come from.
fn own_address(snapshot: &Snapshot, zone: ZoneId, ipv4: bool) -> Option<IpAddr> {
    let addresses: &[IpAddr] = match snapshot.zones.get(zone.number())? {
        Zone::Endpoint { endpoint, .. } => &snapshot.endpoints.get(*endpoint as usize)?.addresses,
        Zone::Host { .. } => &snapshot.host.as_ref()?.addresses,
        Zone::Tunnel { .. } | Zone::Served { .. } | Zone::Native { .. } => return None,
    };
    addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
}
