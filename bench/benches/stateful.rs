//! What the stateful tier costs by the time-stamp counter: packets of known connections in whole turns, first packets of
//! connections, connections a second with a full table, and the memory of a million connections by part.
//!
//! `cargo bench -p penstock-bench --bench stateful -- [hits|first|churn|memory]`; receive (a copy of the frame) and send
//! are in the figures of packets.

#![allow(missing_docs)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use penstock_bench::stateful::{Work, churning};
use penstock_bench::windows::costs;
use penstock_dataplane::conntrack::{ConnectionRef, Direction, HashSeed, Memory, Plan, Seconds, Table};
use penstock_dataplane::flow::{
    Action, Cache, Coarse, DeviceId, Key4, LinkId, Remembered, Seed, Tracked, ZoneId,
};
use penstock_dataplane::snapshot::Epoch;
use penstock_io::{BURST, Ticks};
use penstock_wire::parse::{Net, parse};
use penstock_wire::rewrite::{Change, Rewrite4};

/// Turns of a run.
const TURNS: u64 = 20_000;
/// Connections that the memory is counted for.
const MANY: u32 = 1_000_000;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let parts: [(&str, fn()); 4] = [("hits", hits), ("first", first), ("churn", churn), ("memory", memory)];
    if let Some(unknown) = wanted.iter().find(|word| !parts.iter().any(|(name, _)| name == word)) {
        eprintln!("stateful: no part {unknown:?}; there are hits, first, churn and memory");
        return ExitCode::FAILURE;
    }
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            part();
        }
    }
    ExitCode::SUCCESS
}

/// Packets of known connections.
fn hits() {
    for work in Work::ALL {
        for connections in [1_000, 100_000, 1_000_000] {
            let mut running = work.running(connections);
            let costs = costs(TURNS, |now| running.turn(now));
            running.check();
            let [median, least] = [costs.median, costs.least].map(|cost| per_packet(cost, TURNS));
            println!(
                "hit    {:<18}{connections:>9} connections {median:>8.1} cycles a packet, {least:.1} at best",
                work.name()
            );
        }
    }
}

/// First packets of connections.
fn first() {
    for work in Work::ALL {
        for connections in [100_000, 1_000_000] {
            let turns = u64::from(connections) / BURST as u64;
            let mut rounds: Vec<f64> =
                (0..3).map(|_| per_packet(work.first_packets(connections).median, turns)).collect();
            rounds.sort_by(f64::total_cmp);
            println!(
                "first  {:<18}{connections:>9} connections {:>8.1} cycles a packet",
                work.name(),
                rounds[1]
            );
        }
    }
}

fn per_packet(cost: u64, turns: u64) -> f64 {
    cost as f64 / (turns * BURST as u64) as f64
}

/// Connections a second by the wall clock, the table full all the time.
fn churn() {
    for connections in [1 << 14, 1 << 18] {
        let mut running = churning(connections, 4 * connections);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let now = Ticks::now();
            (0..100).for_each(|_| running.turn(now));
        }
        let spent = start.elapsed().as_secs_f64();
        let (before, after) = running.since_known();
        let counts =
            running.node().tracker.as_ref().map(|tracker| tracker.table.counts()).unwrap_or_default();
        println!(
            "churn  a full table of {connections:>7}: {:.2} M packets a second, {:.1} in a hundred open a connection, {} \
             connections gave way, {} refused",
            (after.rx - before.rx) as f64 / spent / 1e6,
            (after.misses - before.misses + after.stale - before.stale) as f64 * 100.0
                / (after.rx - before.rx) as f64,
            counts.early_dropped,
            counts.full,
        );
    }
}

/// Bytes of this process that are in memory, huge pages included.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.trim().split(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0)
    };
    (kilobytes("VmRSS:") + kilobytes("HugetlbPages:")) * 1024.0
}

/// What a step adds to this process, a connection.
fn grown<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let before = resident();
    let made = step();
    println!("memory {what:<52}{:>8.1} bytes a connection", (resident() - before) / f64::from(MANY));
    made
}

/// A million connections with the flows of both directions in one worker's cache.
fn memory() {
    let plan = Plan { capacity: MANY, owners: u16::MAX, workers: 1 };
    let start = resident();
    let table = grown("connection table, index and shares", || {
        let memory = Memory::private(MANY).expect("memory for the connections");
        Table::over(memory, HashSeed::new([3, 5]), plan, Seconds(1), |_| None)
            .expect("memory for the index")
            .0
    });
    let frames = Work::SourceNat.frames(MANY);
    let keys: Vec<(Key4, Rewrite4)> = frames.iter().flat_map(|frame| both_ways(frame)).collect();
    drop(frames);
    let spent_on_keys = resident() - start - table.bytes() as f64;
    let mut cache = Cache::with_capacity(keys.len(), Seed::random()).expect("memory for the cache");
    let action = Action::forward(DeviceId(1), LinkId(0), 1500);
    let fill = |cache: &mut Cache<Key4>, tracked, translated: bool| {
        keys.iter()
            .filter_map(|(key, rewrite)| {
                let flow = Remembered { action, tracked, rewrite: translated.then_some(*rewrite) };
                cache.install(key, flow, Epoch(1), Coarse(0))
            })
            .count()
    };
    let tracked = Tracked { connection: ConnectionRef::from_bits(1 << 32), direction: Direction::Reply };
    let kept =
        grown("flow cache: tags and lines of both directions", || fill(&mut cache, Tracked::NONE, false));
    grown("flow cache: which connection", || fill(&mut cache, tracked, false));
    println!(
        "memory {:<52}{:>8.1} bytes a connection",
        "all of a connection that is not translated",
        (resident() - start - spent_on_keys) / f64::from(MANY)
    );
    grown("flow cache: other addresses and ports", || fill(&mut cache, tracked, true));
    println!(
        "memory {:<52}{:>8.1} bytes a connection",
        "all of one that is",
        (resident() - start - spent_on_keys) / f64::from(MANY)
    );
    println!(
        "memory {:<52}{:>8.1} bytes a connection",
        "what the tables hold, without the rest of their last pages",
        (table.bytes() + cache.bytes()) as f64 / f64::from(MANY)
    );
    println!("memory {kept} of {} flows found a place among {}", keys.len(), cache.capacity());
}

/// The keys of a frame's flow and of its answers', with the translation of each.
fn both_ways(frame: &[u8]) -> [(Key4, Rewrite4); 2] {
    let Ok(Net::V4(flow)) = parse(frame).map(|parsed| parsed.net) else { panic!("a sound frame") };
    let zone = |number| ZoneId::new(number).expect("a small number");
    let pool = std::net::Ipv4Addr::new(192, 168, 1, 1);
    let answer = penstock_wire::parse::V4Flow {
        src: flow.dst,
        dst: pool,
        sport: flow.dport,
        dport: flow.sport,
        ..flow
    };
    let there = Change { src: Some(pool.into()), ..Change::default() };
    let back = Change { dst: Some(flow.src.into()), ..Change::default() };
    let rewrite = |flow: &_, change: &Change| Rewrite4::new(flow, change).expect("IPv4 to IPv4");
    [
        (Key4::new(zone(1), &flow), rewrite(&flow, &there)),
        (Key4::new(zone(2), &answer), rewrite(&answer, &back)),
    ]
}
