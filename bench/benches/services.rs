//! What services, limits and rewrites cost: `cargo bench -p penstock-bench --bench services`.
//!
//! Cycles are those of the time-stamp counter, the least of many rounds: noise only ever adds some.

#![allow(missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use penstock_dataplane::meter::{Limits, Meter, Purses, Rate, Way};
use penstock_dataplane::tables::service::{
    Affinity, Answer, BackendSpec, BackendState, Directory, Node, Origin, PortSpec, Protocol, Query,
    ServiceSpec, Services, Topology, TrafficPolicy,
};
use penstock_io::{Ticks, TicksPerSecond};
use penstock_wire::parse::{Net, Parsed, parse};
use penstock_wire::rewrite::{Change, Rewrite4, Rewrite6};
use penstock_wire::{Vni, checksum, ethernet, ipv4, ipv6, proto, sctp};

const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;
/// Calls of a round.
const ROUND: u64 = 10_000;

fn cycles(what: &str, mut call: impl FnMut(u64)) {
    let least = (0..200).map(|round| {
        let start = Ticks::now();
        (0..ROUND).for_each(|at| call(round * ROUND + at));
        Ticks::now().since(start) as f64 / ROUND as f64
    });
    println!("{what:<58} {:>8.1} cycles", least.fold(f64::MAX, f64::min));
}

fn service(number: u32) -> ServiceSpec {
    let backends = (0..BACKENDS).map(|at| BackendSpec {
        address: Ipv4Addr::from_bits(0x0a00_0000 + number * BACKENDS + at).into(),
        port: 8080,
        is_local: at == 0,
        zone: None,
        state: BackendState::Ready,
        weight: 1,
    });
    ServiceSpec {
        name: format!("namespace-{}/service-{number}", number % 100),
        network: Vni::MAX,
        cluster_ips: vec![vip(number)],
        external_ips: vec![],
        load_balancer_ips: vec![],
        ports: vec![PortSpec {
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            backends: backends.collect(),
        }],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        topology: Topology::Anywhere,
        is_direct: false,
        health_check_port: None,
        source_ranges: vec![],
    }
}

fn vip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a60_0000 + number).into()
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second number is the resident pages") * 4096
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn tables(rate: TicksPerSecond) -> (Directory, std::sync::Arc<Services>) {
    let node = Node { addresses: vec![[192, 168, 0, 1].into()], zone: None };
    let mut directory = Directory::new(node, rate);
    let specs: Vec<_> = (0..SERVICES).map(service).collect();
    let copies = specs.clone();
    let (memory, start) = (resident(), Instant::now());
    assert!(directory.resync(specs).is_empty());
    let tables = directory.tables();
    let (whole, memory) = (start.elapsed(), resident() - memory);
    drop(copies);
    println!("{SERVICES} services of {BACKENDS} backends: compiled in {whole:.1?}, {} MB", memory >> 20);
    let mut held = tables;
    let updates = (0..1000).map(|at| {
        let mut spec = service(at * 7 % SERVICES);
        spec.ports[0].backends.pop();
        spec.cluster_ips.push(vip(SERVICES + at));
        let start = Instant::now();
        directory.upsert(spec).expect("a sound service");
        // The snapshot before is still held by the workers, so pages are copied.
        held = directory.tables();
        start.elapsed()
    });
    println!("update of one service: median {:.1?}", median(updates.collect()));
    (directory, held)
}

fn decisions(tables: &Services) {
    let affinity = Affinity::with_capacity(1 << 16);
    let ask = |number: u64, sport: u64| {
        let query = Query {
            network: Vni::MAX,
            origin: Origin::Endpoint,
            src: Ipv4Addr::from_bits(0x0a01_0000 + number as u32 % 100).into(),
            sport: sport as u16,
            dst: vip(number as u32),
            dport: 80,
            protocol: Protocol::Tcp,
        };
        let answer = tables.decide(&query, &affinity, Ticks(1 << 40));
        assert!(matches!(black_box(answer), Answer::Backend(_)));
    };
    cycles("decide, one service", |at| ask(5, at));
    // A fixed odd step wanders over all services without a pattern that a prefetcher sees.
    cycles("decide, all services in a random order", |at| ask(at * 7919 % u64::from(SERVICES), at));
}

fn sticky(rate: TicksPerSecond) {
    let mut directory = Directory::new(Node { addresses: vec![], zone: None }, rate);
    let spec = ServiceSpec { affinity: Some(Duration::from_secs(10_800)), ..service(1) };
    directory.upsert(spec).expect("a sound service");
    let (tables, affinity) = (directory.tables(), Affinity::with_capacity(1 << 16));
    let ask = |client: u64| {
        let query = Query {
            network: Vni::MAX,
            origin: Origin::Outside,
            src: Ipv4Addr::from_bits(client as u32).into(),
            sport: 1,
            dst: vip(1),
            dport: 80,
            protocol: Protocol::Tcp,
        };
        black_box(tables.decide(&query, &affinity, Ticks(1 << 40)));
    };
    cycles("decide with affinity, 10 k clients", |at| ask(at * 7919 % 10_000));
}

fn meters(rate: TicksPerSecond) {
    let limits = Limits {
        egress_bytes: Some(Rate::bits(100_000_000_000, 1 << 24)),
        egress_packets: Some(Rate { per_second: 1_000_000_000, burst: 1 << 20 }),
        ..Limits::default()
    };
    let (meter, mut purses) = (Meter::new(limits, rate), Purses::default());
    let mut now = Ticks::now();
    cycles("meter, bandwidth and packets, passing", |_| {
        now = Ticks(now.0 + 500);
        assert!(meter.admit(&mut purses, Way::Egress, 1, 1500, now).is_ok());
    });
    let slow = Meter::new(
        Limits { egress_bytes: Some(Rate { per_second: 1, burst: 0 }), ..Limits::default() },
        rate,
    );
    let mut purses = Purses::default();
    cycles("meter, refusing", |_| {
        black_box(slow.admit(&mut purses, Way::Egress, 1, 1500, now).is_ok());
    });
}

fn frame(is_v4: bool, protocol: u8, payload: usize) -> Vec<u8> {
    let mut segment = vec![0; 20 + payload];
    segment[..4].copy_from_slice(&[0x10, 0, 0, 80]);
    (segment[12], segment[6]) = (0x50, 1);
    let length = segment.len() as u16;
    match protocol {
        proto::UDP => segment[4..6].copy_from_slice(&length.to_be_bytes()),
        proto::SCTP => sctp::finish_checksum(&mut segment).expect("a whole header"),
        _ => {}
    }
    let (ethertype, header) = if is_v4 {
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 96, 0, 1));
        let header =
            ipv4::Repr { src, dst, protocol, tos: 0, ttl: 64, dont_fragment: true, payload_len: length };
        (ethernet::IPV4, header.emit().to_vec())
    } else {
        let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        let header = ipv6::Repr {
            src,
            dst,
            next_header: protocol,
            traffic_class: 0,
            flow_label: 0,
            hop_limit: 64,
            payload_len: length,
        };
        (ethernet::IPV6, header.emit().to_vec())
    };
    [&[0; 12][..], &ethertype.to_be_bytes(), &header, &segment].concat()
}

fn rewrites() {
    let cases = [
        ("TCP", proto::TCP, 0),
        ("UDP", proto::UDP, 0),
        ("SCTP, 64 bytes", proto::SCTP, 10),
        ("SCTP, 1500 bytes", proto::SCTP, 1460),
    ];
    for (name, protocol, payload) in cases {
        let mut frames = vec![frame(true, protocol, payload); 64];
        let parsed @ Parsed { net: Net::V4(flow), .. } = parse(&frames[0]).expect("a sound frame") else {
            panic!("this is IPv4")
        };
        let change = Change { dst: Some([10, 0, 0, 9].into()), dport: Some(8080), ..Change::default() };
        let rewrite = Rewrite4::new(&flow, &change).expect("IPv4 to IPv4");
        let (l3, l4, end) = (parsed.l3.into(), parsed.l4.into(), parsed.end.into());
        cycles(&format!("rewrite IPv4 {name}"), |at| {
            assert!(rewrite.apply(black_box(&mut frames[at as usize % 64]), l3, l4, end));
        });
    }
    let mut frames = vec![frame(false, proto::TCP, 0); 64];
    let parsed @ Parsed { net: Net::V6(flow), .. } = parse(&frames[0]).expect("a sound frame") else {
        panic!("this is IPv6")
    };
    let change = Change { dst: Some(Ipv6Addr::UNSPECIFIED.into()), dport: Some(8080), ..Change::default() };
    let rewrite = Rewrite6::new(&flow, &change).expect("IPv6 to IPv6");
    let (l3, l4, end) = (parsed.l3.into(), parsed.l4.into(), parsed.end.into());
    cycles("rewrite IPv6 TCP", |at| {
        assert!(rewrite.apply(black_box(&mut frames[at as usize % 64]), l3, l4, end));
    });
    let bytes = vec![7; 1480];
    cycles("for comparison: CRC32c of 1480 bytes anew", |_| {
        black_box(penstock_wire::crc32c::crc32c(black_box(&bytes)));
    });
    cycles("for comparison: Internet checksum of 1480 bytes anew", |_| {
        black_box(checksum::sum(black_box(&bytes)).finish());
    });
}

fn main() {
    let rate = TicksPerSecond::measure(Duration::from_millis(20));
    println!("{:.2} G ticks a second", rate.0 as f64 / 1e9);
    let (_directory, tables) = tables(rate);
    decisions(&tables);
    sticky(rate);
    meters(rate);
    rewrites();
}
