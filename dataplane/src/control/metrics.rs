//! What the daemon counts, as Prometheus reads it.
//!
//! A label's values are as many as the node has ports, workers, networks and peers; nothing is counted by flow or address.

mod exposition;
mod http;

use std::time::Duration;

use penstock_api::proto;

use super::look;
use crate::conntrack::Counts as ConnectionCounts;
use crate::stats::Counts;
use crate::supervisor::{Engine, RefusedChanges};
use exposition::Exposition;
pub use http::{MetricsError, MetricsListener};

/// Everything that a scrape tells, as of one moment.
pub(super) struct Scrape {
    status: proto::NodeStatus,
    memory: Memory,
    workers: Vec<Worker>,
    ports: Vec<proto::Port>,
    drops: Vec<proto::Drop>,
    peers: Vec<proto::PeerRow>,
    networks: Vec<Network>,
    endpoints: usize,
    connections: Option<ConnectionCounts>,
    refused: RefusedChanges,
}

struct Memory {
    chunks: u32,
    bytes: usize,
}

struct Worker {
    row: proto::Worker,
    counts: Counts,
    /// Time in turns that moved packets.
    busy: Duration,
}

struct Network {
    name: String,
    routes: usize,
}

/// A metric of one kind of thing: its name, what it says, and where the number is.
type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

const WORKER_COUNTERS: [Metric<Worker>; 9] = [
    ("penstock_worker_turns_total", "Turns of the worker's loop.", |it| it.counts.turns),
    ("penstock_worker_busy_turns_total", "Turns that moved at least one packet.", |it| it.counts.busy_turns),
    ("penstock_worker_sleeps_total", "Times the worker blocked for want of packets.", |it| it.counts.sleeps),
    ("penstock_worker_received_packets_total", "Packets that the worker received.", |it| it.counts.rx),
    ("penstock_worker_sent_packets_total", "Packets that the worker handed to a device.", |it| it.counts.tx),
    ("penstock_worker_dropped_packets_total", "Packets that the worker dropped.", |it| it.counts.dropped),
    ("penstock_worker_consumed_packets_total", "Packets for the dataplane itself.", |it| it.counts.consumed),
    ("penstock_worker_made_packets_total", "Answers, ICMP errors and fragments.", |it| it.counts.made),
    (
        "penstock_worker_withheld_errors_total",
        "ICMP errors that were not sent because too many were.",
        |it| it.counts.errors_withheld,
    ),
];

const PORT_COUNTERS: [Metric<proto::Port>; 4] = [
    ("penstock_port_received_packets_total", "Packets received from the port.", |it| it.rx_packets),
    ("penstock_port_received_bytes_total", "Bytes received from the port.", |it| it.rx_bytes),
    ("penstock_port_sent_packets_total", "Packets sent to the port.", |it| it.tx_packets),
    ("penstock_port_sent_bytes_total", "Bytes sent to the port.", |it| it.tx_bytes),
];

const PORT_GAUGES: [Metric<proto::Port>; 2] = [
    ("penstock_port_up", "Whether the port carries packets.", |it| u64::from(it.state == "up")),
    ("penstock_port_mtu_bytes", "The longest IP packet that the port takes.", |it| it.mtu.into()),
];

/// The states of a worker as `look::workers` names them.
const WORKER_STATES: [&str; 5] = ["running", "idle", "stalled", "draining", "stopped"];

impl Scrape {
    pub(super) fn of(engine: &Engine) -> Scrape {
        let snapshot = engine.snapshot();
        let (rate, region) = (engine.rate(), engine.region());
        let rows = look::workers(engine).into_iter().zip(engine.workers());
        let workers = rows.map(|(row, handle)| {
            let counts = handle.stats.counts();
            Worker { row, counts, busy: rate.duration(counts.busy_ticks) }
        });
        let networks = snapshot.networks.iter();
        Scrape {
            status: look::status(engine),
            memory: Memory { chunks: region.chunks(), bytes: region.bytes() },
            workers: workers.collect(),
            ports: look::ports(engine),
            drops: look::drops(engine, true),
            peers: look::peers(engine),
            networks: networks.map(|it| Network { name: it.name.clone(), routes: it.rows.len() }).collect(),
            endpoints: snapshot.endpoints.len(),
            connections: engine.tracker().map(|tracker| tracker.table.counts()),
            refused: engine.refused_changes(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut out = Exposition::default();
        self.node(&mut out);
        self.workers(&mut out);
        self.flow_caches(&mut out);
        self.ports(&mut out);
        self.tables(&mut out);
        self.connections(&mut out);
        out.into_text()
    }

    fn node(&self, out: &mut Exposition) {
        let status = &self.status;
        out.gauge("penstock_info", "Which node this is, and which version runs there.")
            .sample(&[("node", &status.name), ("version", &status.version)], 1);
        out.gauge("penstock_uptime_seconds", "Since when the daemon runs.")
            .sample(&[], Duration::from_millis(status.uptime_ms).as_secs_f64());
        out.gauge("penstock_generation", "How often the configuration changed.")
            .sample(&[], status.generation);
        out.gauge("penstock_live_generation", "The newest generation that every worker has.")
            .sample(&[], status.live_generation);
        let mut refused =
            out.counter("penstock_refused_changes_total", "Changes of the configuration that were refused.");
        let RefusedChanges { faulty, too_large, not_opened } = self.refused;
        for (reason, changes) in [("faulty", faulty), ("does_not_fit", too_large), ("not_opened", not_opened)]
        {
            refused.sample(&[("reason", reason)], changes);
        }
        out.gauge("penstock_warnings", "What is not as it should be; `penstock status` has the sentences.")
            .sample(&[], status.warnings.len());
        out.gauge("penstock_packet_memory_bytes", "Packet memory.").sample(&[], self.memory.bytes);
        out.gauge("penstock_packet_memory_chunks", "Chunks of packet memory.")
            .sample(&[], self.memory.chunks);
        let mut drops = out.counter("penstock_dropped_packets_total", "Dropped packets by reason.");
        for drop in &self.drops {
            drops.sample(&[("reason", &drop.reason)], drop.packets);
        }
    }

    fn workers(&self, out: &mut Exposition) {
        let numbers: Vec<String> = self.workers.iter().map(|it| it.row.id.to_string()).collect();
        let workers = || numbers.iter().map(String::as_str).zip(&self.workers);
        let mut info = out.gauge("penstock_worker_info", "Which CPU a worker is pinned to.");
        for (number, it) in workers() {
            let cpu = it.row.cpu.map(|cpu| cpu.to_string()).unwrap_or_default();
            info.sample(&[("worker", number), ("cpu", &cpu)], 1);
        }
        let mut states = out.gauge("penstock_worker_state", "1 for the state that the worker is in.");
        for (number, it) in workers() {
            for state in WORKER_STATES {
                states.sample(&[("worker", number), ("state", state)], u8::from(it.row.state == state));
            }
        }
        let mut restarts =
            out.counter("penstock_worker_restarts_total", "Panics that a worker went on after.");
        workers().for_each(|(number, it)| restarts.sample(&[("worker", number)], it.row.restarts));
        let mut busy =
            out.counter("penstock_worker_busy_seconds_total", "Time spent in turns that moved packets.");
        workers().for_each(|(number, it)| busy.sample(&[("worker", number)], it.busy.as_secs_f64()));
        for (name, help, of) in WORKER_COUNTERS {
            let mut family = out.counter(name, help);
            workers().for_each(|(number, it)| family.sample(&[("worker", number)], of(it)));
        }
        let mut frames =
            out.gauge("penstock_worker_chunks", "Chunks of packet memory by where the worker has them.");
        for (number, Worker { counts, .. }) in workers() {
            let places = [
                ("free", counts.free),
                ("held", counts.held),
                ("fill", counts.fill),
                ("send", counts.to_send),
            ];
            for (place, chunks) in places {
                frames.sample(&[("worker", number), ("place", place)], chunks);
            }
        }
    }

    fn flow_caches(&self, out: &mut Exposition) {
        let numbers: Vec<String> = self.workers.iter().map(|it| it.row.id.to_string()).collect();
        let workers = || numbers.iter().map(String::as_str).zip(&self.workers);
        let mut lookups = out.counter(
            "penstock_flow_cache_lookups_total",
            "Packets by how their flow was looked up; each is in just one class.",
        );
        for (number, Worker { counts, .. }) in workers() {
            let classes = [
                ("hit", counts.hits),
                ("stale", counts.stale),
                ("miss", counts.misses),
                ("slow_only", counts.slow_only),
            ];
            for (class, packets) in classes {
                lookups.sample(&[("worker", number), ("class", class)], packets);
            }
        }
        let mut entries = out.gauge("penstock_flow_cache_entries", "Flows in a worker's caches.");
        for (number, Worker { counts, .. }) in workers() {
            entries.sample(&[("worker", number), ("family", "ipv4")], counts.flows4);
            entries.sample(&[("worker", number), ("family", "ipv6")], counts.flows6);
        }
        let mut room =
            out.gauge("penstock_flow_cache_capacity", "Flows that a worker's caches have room for.");
        workers().for_each(|(number, it)| room.sample(&[("worker", number)], it.row.cache_capacity));
    }

    fn ports(&self, out: &mut Exposition) {
        let queues: Vec<String> = self.ports.iter().map(|port| port.queue.to_string()).collect();
        // An uplink and an endpoint may have the same name, so their role tells them apart.
        let rows: Vec<([(&str, &str); 3], &proto::Port)> = self
            .ports
            .iter()
            .zip(&queues)
            .map(|(port, queue)| ([("port", &*port.name), ("role", role(port)), ("queue", queue)], port))
            .collect();
        let mut info = out.gauge("penstock_port_info", "What a port's queue is.");
        for (labels, port) in &rows {
            let worker = port.worker.to_string();
            let more = [
                ("worker", worker.as_str()),
                ("kind", &port.kind),
                ("interface", &port.interface),
                ("network", &port.network),
                ("xdp", &port.xdp),
                ("copy", &port.copy),
            ];
            info.sample(&[&labels[..], &more].concat(), 1);
        }
        for (name, help, of) in PORT_GAUGES {
            let mut family = out.gauge(name, help);
            rows.iter().for_each(|(labels, port)| family.sample(labels, of(port)));
        }
        for (name, help, of) in PORT_COUNTERS {
            let mut family = out.counter(name, help);
            rows.iter().for_each(|(labels, port)| family.sample(labels, of(port)));
        }
        let mut dropped = out.counter(
            "penstock_port_dropped_packets_total",
            "Packets from the port that were dropped, and packets to it that found no room.",
        );
        for (labels, port) in &rows {
            for (direction, packets) in [("receive", port.rx_drops), ("send", port.tx_drops)] {
                dropped.sample(&[&labels[..], &[("direction", direction)]].concat(), packets);
            }
        }
        let mut events = out.counter(
            "penstock_port_kernel_events_total",
            "What the kernel counts for the queue's AF_XDP socket (XDP_STATISTICS).",
        );
        for (labels, port) in &rows {
            for (event, times) in port.kernel.iter().flat_map(kernel_events) {
                events.sample(&[&labels[..], &[("event", event)]].concat(), times);
            }
        }
    }

    fn tables(&self, out: &mut Exposition) {
        out.gauge("penstock_networks", "Networks.").sample(&[], self.networks.len());
        out.gauge("penstock_endpoints", "Endpoints whose port is open.").sample(&[], self.endpoints);
        let mut routes = out.gauge("penstock_routes", "Routes of a network, endpoints' own included.");
        for network in &self.networks {
            routes.sample(&[("network", &network.name)], network.routes);
        }
        let mut reachable = out.gauge("penstock_peer_reachable", "Whether the peer's next hop is known.");
        for peer in &self.peers {
            reachable.sample(&[("peer", &peer.name)], u8::from(peer.reachable));
        }
        let mut mtus =
            out.gauge("penstock_peer_mtu_bytes", "The longest packet that the way to the peer carries.");
        for peer in &self.peers {
            mtus.sample(&[("peer", &peer.name)], peer.learnt_mtu.unwrap_or(peer.mtu));
        }
    }
}

impl Scrape {
    fn connections(&self, out: &mut Exposition) {
        let Some(counts) = &self.connections else { return };
        out.gauge("penstock_connections", "Connections that are remembered.").sample(&[], counts.live);
        out.gauge("penstock_half_open_connections", "Of these, those whose handshake is not done.")
            .sample(&[], counts.half_open);
        out.gauge("penstock_connections_capacity", "Connections that there is room for.")
            .sample(&[], counts.capacity);
        out.counter("penstock_connections_opened_total", "Connections that were remembered since the start.")
            .sample(&[], counts.created);
        let mut ended = out.counter(
            "penstock_connections_forgotten_total",
            "Connections that were forgotten: in their time, at their end, or early for a newcomer.",
        );
        for (why, count) in
            [("expired", counts.expired), ("ended", counts.removed), ("dropped_early", counts.early_dropped)]
        {
            ended.sample(&[("why", why)], count);
        }
        let mut refused =
            out.counter("penstock_connections_refused_total", "Connections that were not opened.");
        for (why, count) in [
            ("table_full", counts.full),
            ("endpoint_limit", counts.owner_limit),
            ("endpoint_half_open_limit", counts.half_open_limit),
            ("taken", counts.taken),
            ("contended", counts.contended),
            ("no_nat_port", counts.exhausted),
        ] {
            refused.sample(&[("why", why)], count);
        }
    }
}

fn role(port: &proto::Port) -> &'static str {
    match (port.endpoint.is_empty(), port.network.is_empty()) {
        (false, _) => "endpoint",
        (true, false) => "host",
        (true, true) => "uplink",
    }
}

fn kernel_events(kernel: &proto::XdpStatistics) -> [(&'static str, u64); 6] {
    [
        ("rx_dropped", kernel.rx_dropped),
        ("rx_invalid_descriptor", kernel.rx_invalid_descriptors),
        ("rx_ring_full", kernel.rx_ring_full),
        ("fill_ring_empty", kernel.fill_ring_empty),
        ("tx_invalid_descriptor", kernel.tx_invalid_descriptors),
        ("tx_ring_empty", kernel.tx_ring_empty),
    ]
}

#[cfg(test)]
mod tests;
