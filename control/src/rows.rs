//! The tables that the daemon's answers become.

use penstock_api::proto;

use crate::table::{Left, Right, Table, fields, printable};
use crate::units;

pub(crate) fn status(status: &proto::NodeStatus) -> String {
    let packets =
        |packets: u64, bytes: u64| format!("{} packets, {}", units::count(packets), units::bytes(bytes));
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let generation = if status.live_generation == status.generation {
        format!("generation {}, live on every worker", status.generation)
    } else {
        let behind = status.slowest_worker.map(|id| format!(", worker {id} is behind")).unwrap_or_default();
        format!("generation {}, live up to {}{behind}", status.generation, status.live_generation)
    };
    let frames = status.frames.map_or_else(
        || "unknown".to_owned(),
        |it| {
            format!(
                "{} free, {} under way, {} to receive into, {} being sent",
                it.free, it.user, it.fill, it.tx
            )
        },
    );
    let mut text = fields(&[
        ("node", status.name.clone()),
        ("penstockd", format!("{}, up {}", status.version, units::span(status.uptime_ms))),
        ("configuration", generation),
        ("workers", status.workers.to_string()),
        ("port queues", status.ports.to_string()),
        ("flows", units::count(status.flows)),
        ("memory", or_none(&status.hugepages)),
        ("frames", frames),
        ("agent", or_none(&status.agent)),
        ("underlay", or_none(&status.underlay_addresses.join(", "))),
        ("received", packets(status.rx_packets, status.rx_bytes)),
        ("sent", packets(status.tx_packets, status.tx_bytes)),
        ("dropped", format!("{} packets", units::count(status.dropped))),
    ]);
    for warning in &status.warnings {
        text.push_str(&format!("warning: {}\n", printable(warning)));
    }
    text
}

/// What the kernel dropped before a port could see it.
fn kernel_drops(port: &proto::Port) -> Option<u64> {
    port.kernel.as_ref().map(|k| {
        [k.rx_dropped, k.rx_invalid_descriptors, k.rx_ring_full].into_iter().fold(0, u64::saturating_add)
    })
}

pub(crate) fn ports(ports: &[proto::Port]) -> String {
    let mut table = Table::new(
        [
            ("ID", Right),
            ("PORT", Left),
            ("QUEUE", Right),
            ("KIND", Left),
            ("MODE", Left),
            ("NETWORK", Left),
            ("INTERFACE", Left),
            ("WORKER", Right),
            ("MTU", Right),
            ("STATE", Left),
            ("RX", Right),
            ("RX BYTES", Right),
            ("TX", Right),
            ("TX BYTES", Right),
            ("RX DROP", Right),
            ("TX DROP", Right),
            ("KERNEL DROP", Right),
        ],
        "no ports",
    );
    for p in ports {
        let mode: Vec<&str> =
            [p.xdp.as_str(), p.copy.as_str()].into_iter().filter(|m| !m.is_empty()).collect();
        table.row([
            p.id.to_string(),
            p.name.clone(),
            p.queue.to_string(),
            p.kind.clone(),
            mode.join(" "),
            p.network.clone(),
            p.interface.clone(),
            p.worker.to_string(),
            p.mtu.to_string(),
            p.state.clone(),
            units::count(p.rx_packets),
            units::bytes(p.rx_bytes),
            units::count(p.tx_packets),
            units::bytes(p.tx_bytes),
            units::count(p.rx_drops),
            units::count(p.tx_drops),
            kernel_drops(p).map(units::count).unwrap_or_default(),
        ]);
    }
    table.to_string()
}

pub(crate) fn workers(workers: &[proto::Worker]) -> String {
    let mut table = Table::new(
        [
            ("ID", Right),
            ("CPU", Right),
            ("STATE", Left),
            ("BUSY", Right),
            ("CYCLES/PKT", Right),
            ("RX", Right),
            ("TX", Right),
            ("DROPPED", Right),
            ("HIT", Right),
            ("STALE", Right),
            ("MISS", Right),
            ("SLOW", Right),
            ("FLOWS", Right),
            ("ROOM", Right),
            ("FREE", Right),
            ("USER", Right),
            ("FILL", Right),
            ("TX RING", Right),
            ("SLEEPS", Right),
            ("RESTARTS", Right),
        ],
        "no workers",
    );
    for w in workers {
        let lookups = w.lookups.unwrap_or_default();
        let frames = w.frames.unwrap_or_default();
        table.row([
            w.id.to_string(),
            w.cpu.map(|cpu| cpu.to_string()).unwrap_or_default(),
            w.state.clone(),
            format!("{:.0} %", w.busy_percent),
            if w.cycles_per_packet > 0.0 { format!("{:.0}", w.cycles_per_packet) } else { String::new() },
            units::count(w.rx_packets),
            units::count(w.tx_packets),
            units::count(w.dropped),
            units::count(lookups.hit),
            units::count(lookups.stale),
            units::count(lookups.miss),
            units::count(lookups.slow_only),
            units::count(w.cache_entries),
            units::count(w.cache_capacity),
            frames.free.to_string(),
            frames.user.to_string(),
            frames.fill.to_string(),
            frames.tx.to_string(),
            units::count(w.idle_sleeps),
            w.restarts.to_string(),
        ]);
    }
    let mut text = table.to_string();
    for w in workers.iter().filter(|w| !w.last_panic.is_empty()) {
        text.push_str(&format!("worker {} last panicked with: {}\n", w.id, printable(&w.last_panic)));
    }
    text
}

pub(crate) fn flows(flows: &[proto::Flow]) -> String {
    let mut table = Table::new(
        [
            ("WORKER", Right),
            ("NETWORK", Left),
            ("FROM", Left),
            ("PROTO", Left),
            ("SOURCE", Left),
            ("DESTINATION", Left),
            ("ACTION", Left),
            ("OUT", Left),
            ("PACKETS", Right),
            ("BYTES", Right),
            ("IDLE", Right),
            ("STALE", Left),
        ],
        "no flows",
    );
    for flow in flows {
        table.row([
            flow.worker.to_string(),
            flow.network.clone(),
            flow.zone.clone(),
            units::protocol(flow.protocol),
            end(&flow.source, flow.protocol, flow.source_port),
            end(&flow.destination, flow.protocol, flow.destination_port),
            flow.action.clone(),
            flow.out_port.clone(),
            units::count(flow.packets),
            units::bytes(flow.bytes),
            units::span(flow.idle_ms),
            if flow.stale { "yes".to_owned() } else { String::new() },
        ]);
    }
    table.to_string()
}

/// An address with its port, if the protocol has ports: `10.1.0.7:53`, `[fd00::7]:53`.
pub(crate) fn end(address: &str, protocol: u32, port: u32) -> String {
    match protocol {
        6 | 17 | 132 if address.contains(':') => format!("[{address}]:{port}"),
        6 | 17 | 132 => format!("{address}:{port}"),
        _ => address.to_owned(),
    }
}

pub(crate) fn drops(drops: &[proto::Drop]) -> String {
    let mut table =
        Table::new([("PACKETS", Right), ("REASON", Left), ("MEANING", Left)], "nothing was dropped");
    for drop in drops {
        table.row([units::count(drop.packets), drop.reason.clone(), drop.sentence.clone()]);
    }
    table.to_string()
}

pub(crate) fn routes(routes: &[proto::RouteRow]) -> String {
    let mut table =
        Table::new([("NETWORK", Left), ("PREFIX", Left), ("VIA", Left), ("ORIGIN", Left)], "no routes");
    for route in routes {
        table.row([route.network.clone(), route.prefix.clone(), route.target.clone(), route.origin.clone()]);
    }
    table.to_string()
}

pub(crate) fn peers(peers: &[proto::PeerRow]) -> String {
    let mut table = Table::new(
        [
            ("PEER", Left),
            ("ADDRESS", Left),
            ("REACHABLE", Left),
            ("NEXT HOP", Left),
            ("MAC", Left),
            ("INTERFACE", Left),
            ("MTU", Right),
            ("LEARNT MTU", Right),
            ("TEMPLATES", Right),
        ],
        "no peers",
    );
    for peer in peers {
        table.row([
            peer.name.clone(),
            peer.address.clone(),
            if peer.reachable { "yes" } else { "no" }.to_owned(),
            peer.next_hop.clone(),
            peer.mac.clone(),
            peer.interface.clone(),
            if peer.mtu == 0 { String::new() } else { peer.mtu.to_string() },
            peer.learnt_mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            peer.templates.to_string(),
        ]);
    }
    table.to_string()
}

pub(crate) fn explanation(explanation: &proto::Explanation) -> String {
    let mut table =
        Table::new([("STAGE", Left), ("DECISION", Left), ("WHY", Left)], "the packet met no stage");
    for step in &explanation.steps {
        table.row([step.stage.clone(), step.decision.clone(), step.detail.clone()]);
    }
    let outcome = if explanation.delivered { "delivered" } else { "dropped" };
    format!("{table}{outcome}: {}\n", printable(&explanation.verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_that_is_not_live_names_the_worker_behind() {
        let behind = proto::NodeStatus {
            generation: 9,
            live_generation: 8,
            slowest_worker: Some(3),
            ..Default::default()
        };
        assert!(status(&behind).contains("generation 9, live up to 8, worker 3 is behind\n"));
        let live = proto::NodeStatus { generation: 9, live_generation: 9, ..Default::default() };
        assert!(status(&live).contains("generation 9, live on every worker\n"));
    }

    #[test]
    fn only_protocols_with_ports_show_them() {
        assert_eq!(end("10.0.0.1", 6, 80), "10.0.0.1:80");
        assert_eq!(end("fd00::1", 17, 53), "[fd00::1]:53");
        assert_eq!(end("fd00::1", 58, 1), "fd00::1");
    }

    #[test]
    fn kernel_drops_are_those_on_the_way_in() {
        let kernel = proto::XdpStatistics {
            rx_dropped: 1,
            rx_invalid_descriptors: 2,
            rx_ring_full: 4,
            tx_invalid_descriptors: 8,
            fill_ring_empty: 16,
            tx_ring_empty: 32,
        };
        let port = proto::Port { kernel: Some(kernel), ..Default::default() };
        assert_eq!(kernel_drops(&port), Some(7));
        assert_eq!(kernel_drops(&proto::Port::default()), None);
    }
}
