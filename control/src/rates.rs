//! What happened between two looks at the counters.

use penstock_api::proto;
use serde::Serialize;

use crate::table::{Left, Right, Table};
use crate::units;

/// How much a counter grew in each second. A counter that shrank began anew in between, from 0.
fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    now.checked_sub(before).unwrap_or(now) as f64 / seconds
}

/// Packets and bits of a node or a port queue, a second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Traffic {
    rx_pps: f64,
    rx_bps: f64,
    tx_pps: f64,
    tx_bps: f64,
    drops_per_second: f64,
}

impl Traffic {
    fn cells(&self) -> [String; 5] {
        [
            units::rate(self.rx_pps, "pps"),
            units::rate(self.rx_bps, "bit/s"),
            units::rate(self.tx_pps, "pps"),
            units::rate(self.tx_bps, "bit/s"),
            units::rate(self.drops_per_second, "pps"),
        ]
    }
}

/// The node's traffic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NodeRates {
    #[serde(flatten)]
    traffic: Traffic,
    flows: u64,
    generation: u64,
}

pub(crate) fn node(before: &proto::NodeStatus, now: &proto::NodeStatus, seconds: f64) -> NodeRates {
    let rate = |field: fn(&proto::NodeStatus) -> u64| per_second(field(before), field(now), seconds);
    NodeRates {
        traffic: Traffic {
            rx_pps: rate(|s| s.rx_packets),
            rx_bps: 8.0 * rate(|s| s.rx_bytes),
            tx_pps: rate(|s| s.tx_packets),
            tx_bps: 8.0 * rate(|s| s.tx_bytes),
            drops_per_second: rate(|s| s.dropped),
        },
        flows: now.flows,
        generation: now.generation,
    }
}

pub(crate) fn node_table(rates: &NodeRates) -> String {
    let mut table = Table::new(
        [
            ("RX", Right),
            ("RX BITS", Right),
            ("TX", Right),
            ("TX BITS", Right),
            ("DROPPED", Right),
            ("FLOWS", Right),
            ("GENERATION", Right),
        ],
        "",
    );
    let [rx, rx_bits, tx, tx_bits, dropped] = rates.traffic.cells();
    let (flows, generation) = (units::count(rates.flows), rates.generation.to_string());
    table.row([rx, rx_bits, tx, tx_bits, dropped, flows, generation]);
    table.to_string()
}

/// A port queue's traffic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PortRates {
    id: u32,
    name: String,
    queue: u32,
    state: String,
    #[serde(flatten)]
    traffic: Traffic,
}

/// The rates of every port queue that is there now. One that was not there before began at 0.
pub(crate) fn ports(before: &[proto::Port], now: &[proto::Port], seconds: f64) -> Vec<PortRates> {
    let same = |a: &proto::Port, b: &proto::Port| a.id == b.id && a.name == b.name && a.queue == b.queue;
    let rates = |port: &proto::Port| {
        let was = before.iter().find(|was| same(was, port)).cloned().unwrap_or_default();
        let rate = |field: fn(&proto::Port) -> u64| per_second(field(&was), field(port), seconds);
        PortRates {
            id: port.id,
            name: port.name.clone(),
            queue: port.queue,
            state: port.state.clone(),
            traffic: Traffic {
                rx_pps: rate(|p| p.rx_packets),
                rx_bps: 8.0 * rate(|p| p.rx_bytes),
                tx_pps: rate(|p| p.tx_packets),
                tx_bps: 8.0 * rate(|p| p.tx_bytes),
                drops_per_second: rate(|p| p.rx_drops.saturating_add(p.tx_drops)),
            },
        }
    };
    now.iter().map(rates).collect()
}

pub(crate) fn ports_table(rates: &[PortRates]) -> String {
    let mut table = Table::new(
        [
            ("ID", Right),
            ("PORT", Left),
            ("QUEUE", Right),
            ("STATE", Left),
            ("RX", Right),
            ("RX BITS", Right),
            ("TX", Right),
            ("TX BITS", Right),
            ("DROPPED", Right),
        ],
        "no ports",
    );
    for port in rates {
        let [rx, rx_bits, tx, tx_bits, dropped] = port.traffic.cells();
        let (id, queue) = (port.id.to_string(), port.queue.to_string());
        table.row([id, port.name.clone(), queue, port.state.clone(), rx, rx_bits, tx, tx_bits, dropped]);
    }
    table.to_string()
}

/// A worker's load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct WorkerRates {
    id: u32,
    state: String,
    busy_percent: f64,
    cycles_per_packet: f64,
    rx_pps: f64,
    tx_pps: f64,
    drops_per_second: f64,
    /// Of the packets in between, how many were known flows; absent when none came.
    hit_percent: Option<f64>,
    sleeps_per_second: f64,
}

/// The rates of every worker.
pub(crate) fn workers(before: &[proto::Worker], now: &[proto::Worker], seconds: f64) -> Vec<WorkerRates> {
    let rates = |worker: &proto::Worker| {
        let was = before.iter().find(|was| was.id == worker.id).cloned().unwrap_or_default();
        let rate = |field: fn(&proto::Worker) -> u64| per_second(field(&was), field(worker), seconds);
        let hits = rate(|w| w.lookups.unwrap_or_default().hit);
        let lookups = hits
            + rate(|w| w.lookups.unwrap_or_default().stale)
            + rate(|w| w.lookups.unwrap_or_default().miss)
            + rate(|w| w.lookups.unwrap_or_default().slow_only);
        WorkerRates {
            id: worker.id,
            state: worker.state.clone(),
            busy_percent: worker.busy_percent,
            cycles_per_packet: worker.cycles_per_packet,
            rx_pps: rate(|w| w.rx_packets),
            tx_pps: rate(|w| w.tx_packets),
            drops_per_second: rate(|w| w.dropped),
            hit_percent: (lookups > 0.0).then(|| 100.0 * hits / lookups),
            sleeps_per_second: rate(|w| w.idle_sleeps),
        }
    };
    now.iter().map(rates).collect()
}

pub(crate) fn workers_table(rates: &[WorkerRates]) -> String {
    let mut table = Table::new(
        [
            ("ID", Right),
            ("STATE", Left),
            ("BUSY", Right),
            ("CYCLES/PKT", Right),
            ("RX", Right),
            ("TX", Right),
            ("DROPPED", Right),
            ("HIT", Right),
            ("SLEEPS", Right),
        ],
        "no workers",
    );
    for w in rates {
        table.row([
            w.id.to_string(),
            w.state.clone(),
            format!("{:.0} %", w.busy_percent),
            if w.cycles_per_packet > 0.0 { format!("{:.0}", w.cycles_per_packet) } else { String::new() },
            units::rate(w.rx_pps, "pps"),
            units::rate(w.tx_pps, "pps"),
            units::rate(w.drops_per_second, "pps"),
            w.hit_percent.map(|percent| format!("{percent:.1} %")).unwrap_or_default(),
            units::rate(w.sleeps_per_second, "/s"),
        ]);
    }
    table.to_string()
}

/// How often a reason happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DropRates {
    reason: String,
    sentence: String,
    per_second: f64,
    packets: u64,
}

/// The rates of every reason.
pub(crate) fn drops(before: &[proto::Drop], now: &[proto::Drop], seconds: f64) -> Vec<DropRates> {
    let rates = |drop: &proto::Drop| {
        let was = before.iter().find(|was| was.reason == drop.reason).map_or(0, |was| was.packets);
        DropRates {
            reason: drop.reason.clone(),
            sentence: drop.sentence.clone(),
            per_second: per_second(was, drop.packets, seconds),
            packets: drop.packets,
        }
    };
    now.iter().map(rates).collect()
}

pub(crate) fn drops_table(rates: &[DropRates]) -> String {
    let mut table = Table::new(
        [("RATE", Right), ("PACKETS", Right), ("REASON", Left), ("MEANING", Left)],
        "nothing was dropped",
    );
    for drop in rates {
        table.row([
            units::rate(drop.per_second, "pps"),
            units::count(drop.packets),
            drop.reason.clone(),
            drop.sentence.clone(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_began_anew_counts_from_nothing() {
        assert_eq!(per_second(100, 300, 2.0), 100.0);
        assert_eq!(per_second(100, 50, 2.0), 25.0);
    }

    #[test]
    fn ports_are_compared_with_themselves() {
        let port = |id: u32, queue: u32, rx: u64| proto::Port {
            id,
            name: "web".to_owned(),
            queue,
            rx_packets: rx,
            rx_bytes: rx * 100,
            ..Default::default()
        };
        let rates = ports(&[port(1, 0, 10), port(2, 1, 20)], &[port(2, 1, 40), port(3, 2, 6)], 2.0);
        let seen: Vec<(u32, f64, f64)> =
            rates.iter().map(|r| (r.id, r.traffic.rx_pps, r.traffic.rx_bps)).collect();
        assert_eq!(seen, [(2, 10.0, 8000.0), (3, 3.0, 2400.0)]);
    }

    #[test]
    fn the_hit_share_is_of_the_packets_in_between() {
        let worker = |hit, miss| proto::Worker {
            lookups: Some(proto::CacheLookups { hit, miss, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(workers(&[worker(1000, 0)], &[worker(1003, 1)], 1.0)[0].hit_percent, Some(75.0));
        assert_eq!(workers(&[worker(5, 5)], &[worker(5, 5)], 1.0)[0].hit_percent, None);
    }
}
