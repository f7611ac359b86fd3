//! Time-stamp counter cycles of the rooms and of a whole turn, on ports in memory.
//!
//! `cargo bench -p penstock-bench` prints cycles a packet; receive (a copy of the template) and send are in the turns.

#![allow(missing_docs)]

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use penstock_bench::traffic::{Conversation, shuffled, udp_flows};
use penstock_dataplane::flow::{Action, Cache, Coarse, DeviceId, Found, Key4, Seed, ZoneId};
use penstock_dataplane::snapshot::Epoch;
use penstock_dataplane::testbed::{self, FIRST_ENDPOINT, Testbed, UPLINK, UPLINK_MAC};
use penstock_io::mem::MemPort;
use penstock_io::{BURST, Ticks};
use penstock_wire::parse::{Net, parse};
use penstock_wire::{MacAddr, Vni, encap};
use std::hint::black_box;
use std::net::IpAddr;

/// Cycles of the time-stamp counter in the place of seconds.
struct Cycles;

impl Measurement for Cycles {
    type Intermediate = Ticks;
    type Value = u64;

    fn start(&self) -> Ticks {
        Ticks::now()
    }

    fn end(&self, start: Ticks) -> u64 {
        Ticks::now().since(start)
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Cycles
    }
}

impl ValueFormatter for Cycles {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "cycles"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(count) = throughput {
            values.iter_mut().for_each(|value| *value /= *count as f64);
        }
        "cycles/packet"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "cycles"
    }
}

const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const NODE: [u8; 4] = [192, 168, 1, 1];
const OBJECTS: &str = r#"
    [[network]]
    name = "default"
    vni = 100
    prefixes = ["10.1.0.0/16"]
    [[endpoint]]
    name = "a"
    network = "default"
    mac = "02:00:00:00:00:01"
    addresses = ["10.1.1.1"]
    attachment = { tap = { interface = "pa" } }
    [[endpoint]]
    name = "b"
    network = "default"
    mac = "02:00:00:00:00:02"
    addresses = ["10.1.1.2"]
    attachment = { tap = { interface = "pb" } }
    [[peer]]
    name = "node2"
    address = "192.168.1.2"
    [[route]]
    network = "default"
    prefix = "10.1.2.0/24"
    via = { peer = "node2" }
"#;

fn to(dst: [u8; 4]) -> Conversation {
    let dst_mac = MacAddr::from_underlay(IpAddr::V4(NODE.into()));
    Conversation { dst_mac, src_mac: MAC_A, src: [10, 1, 1, 1], dst, frame_len: 60 }
}

/// A node whose one busy port replays these frames in a random order; what is sent is discarded.
fn node_with(device: u16, frames: &[Vec<u8>]) -> Testbed {
    let flows = frames.len().max(1024) * 2;
    let mut node = testbed::node_with(OBJECTS, &[IpAddr::V4(NODE.into())], flows, 4096);
    node.open(UPLINK, MemPort::discard());
    node.open(FIRST_ENDPOINT + 1, MemPort::discard());
    node.open(device, MemPort::replay(frames, shuffled(frames.len() as u32)));
    // Every flow is known before the clock starts.
    for _ in 0..3 * frames.len() / BURST + 10 {
        node.worker.turn(Ticks::now());
    }
    node
}

/// Runs whole turns; an iteration is a packet.
fn turns(node: &mut Testbed, packets: u64) -> u64 {
    let count = packets.div_ceil(BURST as u64);
    let start = Ticks::now();
    for _ in 0..count {
        black_box(node.worker.turn(start));
    }
    let cycles = Ticks::now().since(start);
    cycles * packets / (count * BURST as u64)
}

fn whole_turns(criterion: &mut Criterion<Cycles>) {
    let mut group = criterion.benchmark_group("turn");
    for flows in [1_000, 100_000, 1_000_000] {
        for (name, dst) in [("l3-forward", [10, 1, 1, 2]), ("vxlan-encap", [10, 1, 2, 1])] {
            let mut node = node_with(FIRST_ENDPOINT, &udp_flows(to(dst), flows));
            let before = node.worker.counts();
            group.bench_function(BenchmarkId::new(name, flows), |bench| {
                bench.iter_custom(|packets| turns(&mut node, packets));
            });
            let after = node.worker.counts();
            assert_eq!(after.dropped, before.dropped, "a bench that drops measures something else");
            let missed = after.misses - before.misses;
            assert!(
                missed * 100 < after.rx - before.rx,
                "{missed} of {} packets missed",
                after.rx - before.rx
            );
        }
    }
    let inner = udp_flows(Conversation { src: [10, 1, 2, 1], ..to([10, 1, 1, 1]) }, 1_000);
    let wrapped = inner.iter().map(|frame| from_peer(frame)).collect::<Vec<_>>();
    let mut node = node_with(UPLINK, &wrapped);
    group.bench_function(BenchmarkId::new("vxlan-decap", 1_000), |bench| {
        bench.iter_custom(|packets| turns(&mut node, packets));
    });
    group.finish();
}

/// A frame in the tunnel from the peer to us.
fn from_peer(frame: &[u8]) -> Vec<u8> {
    let template = template();
    let mut wire = vec![0; template.len()];
    let packet = &frame[14..];
    template.write(&mut wire, packet, packet.len() as u16, 0, 0x0800, u32::from(frame[35]));
    wire.extend_from_slice(packet);
    wire
}

fn template() -> encap::EncapTemplate {
    let path = encap::OuterPath {
        src_mac: MAC_A,
        dst_mac: UPLINK_MAC,
        addresses: encap::OuterAddresses::V4 { src: [192, 168, 1, 2].into(), dst: NODE.into() },
        dst_port: 4789,
        ttl: 64,
        dscp: encap::DscpMode::Copy,
        udp_checksum: false,
        inner_src_mac: MAC_A,
        inner_dst_mac: MacAddr::from_underlay(IpAddr::V4(NODE.into())),
    };
    encap::EncapTemplate::vxlan(&path, Vni::new(100).expect("24 bits"))
}

fn rooms(criterion: &mut Criterion<Cycles>) {
    let mut group = criterion.benchmark_group("room");
    let frames = udp_flows(to([10, 1, 1, 2]), 1_000);
    let mut next = frames.iter().cycle();
    group.bench_function("parse", |bench| {
        bench.iter(|| parse(black_box(next.next().expect("an endless cycle"))));
    });
    let template = template();
    let mut head = vec![0; template.len()];
    group.bench_function("encap", |bench| {
        bench.iter(|| template.write(black_box(&mut head), &[], 46, 0, 0x0800, black_box(7)));
    });
    for flows in [1_000u32, 100_000, 1_000_000] {
        look_ups(&mut group, flows);
    }
    group.finish();
}

fn look_ups(group: &mut criterion::BenchmarkGroup<'_, Cycles>, flows: u32) {
    let zone = ZoneId::new(1).expect("a small number");
    let keys: Vec<Key4> = udp_flows(to([10, 1, 1, 2]), flows)
        .iter()
        .filter_map(|frame| match parse(frame) {
            Ok(parsed) => match parsed.net {
                Net::V4(flow) => Some(Key4::new(zone, &flow)),
                _ => None,
            },
            Err(_) => None,
        })
        .collect();
    let mut cache = Cache::with_capacity(2 * keys.len(), Seed::random()).expect("memory for the cache");
    let action = Action::forward(DeviceId(1), MAC_A, MAC_A, 1500);
    for key in &keys {
        cache.install(key, action, Epoch(1), Coarse(0));
    }
    let order = shuffled(flows);
    let mut at = 0;
    group.bench_function(BenchmarkId::new("look-up", flows), |bench| {
        bench.iter_custom(|packets| {
            let bursts = packets.div_ceil(BURST as u64);
            let start = Ticks::now();
            for _ in 0..bursts {
                look_up_burst(&mut cache, &keys, &order, &mut at);
            }
            Ticks::now().since(start) * packets / (bursts * BURST as u64)
        });
    });
}

/// The three stages of a look-up, over a burst.
fn look_up_burst(cache: &mut Cache<Key4>, keys: &[Key4], order: &[u32], at: &mut usize) {
    let picked: [Key4; BURST] = std::array::from_fn(|lane| keys[order[(*at + lane) % order.len()] as usize]);
    *at = (*at + BURST) % order.len();
    let hashes = picked.map(|key| cache.hash(&key));
    hashes.iter().for_each(|&hash| cache.touch(hash));
    let candidates = hashes.map(|hash| cache.candidate(hash));
    for lane in 0..BURST {
        if let Found::Current(index) = cache.find(&picked[lane], hashes[lane], candidates[lane], Epoch(1)) {
            black_box(cache.count(index, 60, Coarse(0)));
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(Cycles).sample_size(20).without_plots();
    targets = rooms, whole_turns
}
criterion_main!(benches);
