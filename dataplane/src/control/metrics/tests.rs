use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn port(name: &str, endpoint: &str, network: &str) -> proto::Port {
    proto::Port {
        name: name.to_owned(),
        endpoint: endpoint.to_owned(),
        network: network.to_owned(),
        state: "up".to_owned(),
        rx_packets: 7,
        kernel: Some(proto::XdpStatistics { rx_ring_full: 5, ..Default::default() }),
        ..Default::default()
    }
}

fn scrape() -> Scrape {
    let counts = Counts { turns: 10, hits: 3, misses: 2, ..Counts::default() };
    let row = proto::Worker { id: 4, state: "draining".to_owned(), ..Default::default() };
    let drop = proto::Drop { reason: "no-route".to_owned(), packets: 9, ..Default::default() };
    let peer =
        proto::PeerRow { name: "node2".to_owned(), mtu: 1500, learnt_mtu: Some(1400), ..Default::default() };
    Scrape {
        status: proto::NodeStatus { name: "node1".to_owned(), generation: 6, ..Default::default() },
        memory: Memory { chunks: 2, bytes: 4096 },
        workers: vec![Worker { row, counts, busy: Duration::from_millis(1500) }],
        ports: vec![port("same", "", ""), port("same", "same", "default"), port("host", "", "default")],
        drops: vec![drop],
        peers: vec![peer],
        networks: vec![Network { name: "default".to_owned(), routes: 3 }],
        endpoints: 1,
        connections: Some(ConnectionCounts { live: 8, early_dropped: 3, ..Default::default() }),
        refused: RefusedChanges { too_large: 2, ..Default::default() },
    }
}

#[test]
fn every_family_is_told_once_with_its_kind_and_every_sample_once_in_its_family() {
    let text = scrape().text();
    let (mut kinds, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let mut family = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').expect("a name and a sentence").0;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a kind");
            assert_eq!(name, family);
            assert!(kinds.insert(name, kind).is_none(), "{name} comes twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        } else {
            let (series, _) = line.rsplit_once(' ').expect("a series and a value");
            assert_eq!(series.split('{').next(), Some(family), "{line}");
            assert!(seen.insert(series), "{series} comes twice");
        }
    }
    assert!(kinds.len() > 30, "{} families", kinds.len());
}

#[test]
fn figures_stand_where_they_belong() {
    let text = scrape().text();
    for line in [
        "penstock_generation 6",
        "penstock_dropped_packets_total{reason=\"no-route\"} 9",
        "penstock_worker_busy_seconds_total{worker=\"4\"} 1.5",
        "penstock_worker_state{worker=\"4\",state=\"draining\"} 1",
        "penstock_worker_state{worker=\"4\",state=\"running\"} 0",
        "penstock_flow_cache_lookups_total{worker=\"4\",class=\"miss\"} 2",
        "penstock_port_received_packets_total{port=\"same\",role=\"uplink\",queue=\"0\"} 7",
        "penstock_port_received_packets_total{port=\"same\",role=\"endpoint\",queue=\"0\"} 7",
        "penstock_port_kernel_events_total{port=\"host\",role=\"host\",queue=\"0\",event=\"rx_ring_full\"} 5",
        "penstock_routes{network=\"default\"} 3",
        "penstock_connections 8",
        "penstock_connections_forgotten_total{why=\"dropped_early\"} 3",
        "penstock_refused_changes_total{reason=\"does_not_fit\"} 2",
        "penstock_peer_mtu_bytes{peer=\"node2\"} 1400",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
    }
}
