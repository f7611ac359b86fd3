//! Time-stamp counter cycles a packet: of the rooms that a packet passes, and of a worker's whole turn on ports in memory.
//!
//! `cargo bench -p penstock-bench --bench dataplane -- [FILTER]`; an iteration is a packet. Receive (a copy of the frame)
//! and send are in the turns. Figures are of the median of many short windows, so that what a hypervisor takes away in
//! between does not count; `--bench peers` measures by the wall clock instead.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use penstock_bench::cycles::{Cycles, measure};
use penstock_bench::scenario::{self, Path, PortToPort, Running};
use penstock_bench::traffic::shuffled;
use penstock_dataplane::flow::{Action, Cache, Coarse, DeviceId, Found, Key4, LinkId, Seed, ZoneId};
use penstock_dataplane::snapshot::Epoch;
use penstock_io::BURST;
use penstock_wire::decap::{self, TunnelKind};
use penstock_wire::encap::{EncapTemplate, OuterAddresses, OuterPath};
use penstock_wire::parse::{Net, parse};

const FLOWS: [u32; 3] = [1_000, 100_000, 1_000_000];

/// A worker's turn: receive, think, send, settle.
fn whole_turns(criterion: &mut Criterion<Cycles>) {
    let mut group = criterion.benchmark_group("turn");
    group.sampling_mode(SamplingMode::Flat);
    for flows in FLOWS {
        let mut ports = PortToPort::new(flows);
        measure(&mut group, BenchmarkId::new("forward-only", flows), |_| ports.turn());
        for path in Path::ALL {
            let mut running: Option<Running> = None;
            // Made when the filter lets it run.
            measure(&mut group, BenchmarkId::new(path.name(), flows), |now| {
                running.get_or_insert_with(|| Running::new(path, flows)).turn(now);
            });
            if let Some(running) = running {
                running.check();
            }
        }
    }
    group.finish();
}

fn rooms(criterion: &mut Criterion<Cycles>) {
    let mut group = criterion.benchmark_group("room");
    group.sampling_mode(SamplingMode::Flat);
    parsing(&mut group);
    encapsulation(&mut group);
    for flows in FLOWS {
        look_ups(&mut group, flows);
    }
    group.finish();
}

/// Parse and key; for a tunnel packet both headers.
fn parsing(group: &mut BenchmarkGroup<'_, Cycles>) {
    let frames = scenario::frames(Path::Forward, 1_000);
    let mut at = 0;
    let mut next = move |count: usize| {
        at = (at + BURST) % (count - BURST);
        at..at + BURST
    };
    measure(group, BenchmarkId::new("parse", "plain"), |_| {
        for frame in &frames[next(frames.len())] {
            black_box(key_of(frame));
        }
    });
    let tunnelled = scenario::frames(Path::Decap, 1_000);
    measure(group, BenchmarkId::new("parse", "vxlan"), |_| {
        for frame in &tunnelled[next(frames.len())] {
            let inner = parse(frame).and_then(|outer| decap::tunnel(frame, outer.l4, TunnelKind::Vxlan));
            black_box(inner.ok().map(|tunnel| (tunnel.vni, key_of(&frame[usize::from(tunnel.inner)..]))));
        }
    });
}

#[inline(always)]
fn key_of(frame: &[u8]) -> Option<Key4> {
    match parse(frame) {
        Ok(parsed) => match parsed.net {
            Net::V4(flow) => Some(Key4::new(ZoneId::default(), &flow)),
            _ => None,
        },
        Err(_) => None,
    }
}

/// One header for each packet of a burst, each into its own room.
fn encapsulation(group: &mut BenchmarkGroup<'_, Cycles>) {
    let v4 = scenario::path_from_peer();
    let [src, dst] = [1, 2].map(|host| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host));
    let v6 = OuterPath { addresses: OuterAddresses::V6 { src, dst }, ..v4 };
    let geneve = |path| EncapTemplate::geneve(path, scenario::vni(), &[]).expect("no options");
    for (name, template) in [
        ("vxlan-ipv4", EncapTemplate::vxlan(&v4, scenario::vni())),
        ("vxlan-ipv6", EncapTemplate::vxlan(&v6, scenario::vni())),
        ("geneve-ipv4", geneve(&v4)),
        ("geneve-ipv6", geneve(&v6)),
    ] {
        let mut heads = vec![[0u8; 128]; BURST];
        measure(group, BenchmarkId::new("encap", name), |now| {
            let template = black_box(&template);
            for (entropy, head) in (now.0 as u32..).zip(&mut heads) {
                template.write(&mut head[..template.len()], &[], 46, 0, 0x0800, entropy);
            }
            black_box(&mut heads);
        });
    }
}

/// The three stages of a look-up and the count of the hit, over bursts in a random order of flows.
fn look_ups(group: &mut BenchmarkGroup<'_, Cycles>, flows: u32) {
    let frames = scenario::frames(Path::Forward, flows);
    let keys: Vec<Key4> = shuffled(flows).iter().filter_map(|&flow| key_of(&frames[flow as usize])).collect();
    let mut cache = Cache::with_capacity(2 * keys.len(), Seed::random()).expect("memory for the cache");
    let action = Action::forward(DeviceId(1), LinkId(0), 1500);
    for key in &keys {
        cache.install(key, action, Epoch(1), Coarse(0));
    }
    let mut bursts = keys.as_chunks::<BURST>().0.iter().cycle();
    measure(group, BenchmarkId::new("look-up", flows), |_| {
        if let Some(burst) = bursts.next() {
            look_up_burst(&mut cache, burst);
        }
    });
}

fn look_up_burst(cache: &mut Cache<Key4>, keys: &[Key4; BURST]) {
    let hashes = keys.map(|key| cache.hash(&key));
    hashes.iter().for_each(|&hash| cache.touch(hash));
    let candidates = hashes.map(|hash| cache.candidate(hash));
    for lane in 0..BURST {
        if let Found::Current(index) = cache.find(&keys[lane], hashes[lane], candidates[lane], Epoch(1)) {
            black_box(cache.count(index, 60, Coarse(0)));
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(Cycles)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .without_plots();
    targets = rooms, whole_turns
}
criterion_main!(benches);
