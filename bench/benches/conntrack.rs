//! Time-stamp counter cycles of the connection table's operations, at a thousand, a hundred thousand and a million
//! connections, in a random order; and how long adopting such a table takes.
//!
//! `cargo bench -p penstock-bench --bench conntrack`

#![allow(missing_docs)]

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use penstock_bench::traffic::shuffled;
use penstock_dataplane::conntrack::life::Marks;
use penstock_dataplane::conntrack::nat::{self, Pool};
use penstock_dataplane::conntrack::{
    ConnectionRef, Decision, Direction, HashSeed, Limits, Memory, NetworkId, Opening, Owner, Packet, Parties,
    Plan, Refused, Seconds, Settings, State, Status, Table, Tuple, WorkerId,
};
use penstock_io::Ticks;
use penstock_wire::{proto, tcp};

const NOW: Seconds = Seconds(1);
const WORKER: WorkerId = WorkerId(0);

fn tuple(number: u32) -> Tuple {
    let src = IpAddr::V4((0x0a00_0001 + number / 50_000).into());
    let dst = IpAddr::V4([192, 0, 2, (number % 7) as u8 + 1].into());
    let sport = 1024 + (number % 50_000) as u16;
    Tuple::new(NetworkId::default(), src, dst, proto::TCP, sport, 80).expect("two hosts of one family")
}

fn opening(number: u32) -> Opening {
    let status = Status { state: State::Established, marks: Marks::ASSURED.with(Marks::REPLIED) };
    let original = tuple(number);
    let parties = Parties { owner: Owner::endpoint((number % 100) as u16), ..Parties::default() };
    Opening { original, forwarded: original, status, parties, decision: Decision::default() }
}

fn plan(connections: u32) -> Plan {
    Plan { capacity: connections, owners: 128, workers: 2 }
}

fn over(memory: Memory, connections: u32) -> (Table, u32) {
    let seed = HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);
    let (table, adoption) =
        Table::over(memory, seed, plan(connections), NOW, |connection| Some(connection.parties))
            .expect("there is memory");
    (table, adoption.kept)
}

/// Median cycles of one of `count` operations, over five rounds.
fn cycles(count: u32, mut round: impl FnMut()) -> f64 {
    let mut rounds: Vec<u64> = (0..5)
        .map(|_| {
            let start = Ticks::now();
            round();
            Ticks::now().since(start)
        })
        .collect();
    rounds.sort_unstable();
    rounds[2] as f64 / f64::from(count)
}

fn create(table: &Table, number: u32) -> ConnectionRef {
    table.create(WORKER, &opening(number), Limits::NONE, &Settings::default(), NOW).expect("there is room")
}

fn measure(connections: u32) {
    let memory = Memory::private(connections).expect("there is memory");
    let (table, _) = over(memory, connections);
    let settings = Settings::default();
    let order = shuffled(connections);
    // Another order than that of creation, in which entries lie side by side.
    let other: Vec<usize> = order.iter().map(|&number| order[number as usize] as usize).collect();
    let tuples: Vec<Tuple> = other.iter().map(|&number| tuple(number as u32)).collect();
    let strangers: Vec<Tuple> = order.iter().map(|&number| tuple(number + 100_000_000)).collect();
    let mut references = vec![ConnectionRef::NONE; connections as usize];
    let mut row = Vec::new();

    let mut fill = || {
        for (&number, reference) in order.iter().zip(&mut references) {
            *reference = create(&table, number);
        }
    };
    let mut created = Vec::new();
    let mut removed = Vec::new();
    for _ in 0..3 {
        let start = Ticks::now();
        fill();
        created.push(Ticks::now().since(start) / u64::from(connections));
        let start = Ticks::now();
        tuples.iter().for_each(|tuple| {
            let found = table.find(tuple, NOW).expect("it was created");
            table.remove(WORKER, found.connection);
        });
        removed.push(Ticks::now().since(start) / u64::from(connections));
    }
    fill();
    let references: Vec<ConnectionRef> = other.iter().map(|&at| references[at]).collect();
    created.sort_unstable();
    removed.sort_unstable();
    row.push(("create", created[1] as f64));
    row.push(("find and remove", removed[1] as f64));
    row.push((
        "find, original",
        cycles(connections, || {
            tuples.iter().for_each(|tuple| assert!(black_box(table.find(tuple, NOW)).is_some()));
        }),
    ));
    row.push((
        "find, reply",
        cycles(connections, || {
            tuples.iter().for_each(|tuple| assert!(black_box(table.find(&tuple.inverse(), NOW)).is_some()));
        }),
    ));
    row.push((
        "find, 32 touched ahead",
        cycles(connections, || {
            for burst in tuples.chunks(32) {
                burst.iter().for_each(|tuple| table.touch(tuple));
                burst.iter().for_each(|tuple| assert!(black_box(table.find(tuple, NOW)).is_some()));
            }
        }),
    ));
    row.push((
        "find, nobody",
        cycles(connections, || {
            strangers.iter().for_each(|tuple| assert!(black_box(table.find(tuple, NOW)).is_none()));
        }),
    ));
    row.push((
        "is_live",
        cycles(connections, || {
            references.iter().for_each(|&reference| assert!(black_box(table.is_live(reference))));
        }),
    ));
    row.push((
        "view",
        cycles(connections, || {
            references.iter().for_each(|&reference| assert!(black_box(table.view(reference)).is_some()));
        }),
    ));
    let mut now = NOW;
    row.push((
        "advance",
        cycles(connections, || {
            now = now.after(1);
            let packet = Packet::Tcp(tcp::ACK);
            references.iter().for_each(|&reference| {
                black_box(table.advance(WORKER, reference, Direction::Reply, packet, &settings, now));
            });
        }),
    ));
    row.push((
        "keep_alive",
        cycles(connections, || {
            references.iter().for_each(|&reference| {
                assert!(table.keep_alive(WORKER, reference, Direction::Reply, &settings, now));
            });
        }),
    ));
    row.push((
        "sweep, an entry",
        cycles(connections / 2, || {
            assert_eq!(table.sweep(WORKER, connections / 2, now).expired, 0);
        }),
    ));
    println!(
        "{connections} connections, {:.1} bytes each with the index",
        table.bytes() as f64 / f64::from(connections)
    );
    row.iter().for_each(|(name, cycles)| println!("  {name:<24}{cycles:>8.0} cycles"));
    drop(table);
    let start = Instant::now();
    let (_table, kept) = over(memory, connections);
    println!("  adopting {kept} connections {:>14.1} ms", start.elapsed().as_secs_f64() * 1e3);
}

/// Source ports of one address, to one receiver, while the ports run out.
fn translate() {
    let memory = Memory::private(1 << 17).expect("there is memory");
    let (table, _) = over(memory, 1 << 17);
    let outside = IpAddr::V4([203, 0, 113, 1].into());
    let pool = Pool::new(&[outside], 1024..=65_535).expect("a sound pool");
    let settings = Settings::default();
    println!("source ports, of 64512, all to one receiver and port");
    let (mut number, mut refused, mut start) = (0, 0, Ticks::now());
    for taken in 1..=64_512u32 {
        let original =
            tuple(number).with_destination(IpAddr::V4([192, 0, 2, 1].into()), 80).expect("one family");
        number += 1;
        let opening = Opening { original, forwarded: original, ..opening(number) };
        refused +=
            u32::from(nat::open(&table, WORKER, &opening, &pool, Limits::NONE, &settings, NOW).is_err());
        if taken % 16_128 == 0 {
            let cycles = Ticks::now().since(start) / 16_128;
            let share = (taken - refused) as f64 / 645.12;
            println!("  until {share:>3.0} % are taken {cycles:>9} cycles, {refused} refused");
            start = Ticks::now();
        }
    }
}

/// Connections made and ended a second by one worker, and by two at once.
fn churn() {
    const EACH: u32 = 1_000_000;
    let memory = Memory::private(1 << 18).expect("there is memory");
    let (table, _) = over(memory, 1 << 18);
    let settings = Settings::default();
    for workers in [1u16, 2] {
        let before = table.counts();
        let start = Instant::now();
        std::thread::scope(|scope| {
            for worker in 0..workers {
                let (table, settings) = (&table, &settings);
                scope.spawn(move || {
                    for number in 0..EACH {
                        let opening = opening(u32::from(worker) * EACH + number);
                        match table.create(WorkerId(worker), &opening, Limits::NONE, settings, NOW) {
                            Ok(connection) => assert!(table.remove(WorkerId(worker), connection)),
                            // The other thread was interrupted with a bucket locked.
                            Err(Refused::Contended) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
        });
        let spent = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        let counts = table.counts();
        println!(
            "{workers} workers: {:.2} M connections made and ended a second, {} contended",
            (counts.created - before.created) as f64 / spent / 1e6,
            counts.contended - before.contended
        );
    }
}

fn main() {
    [1_000, 100_000, 1_000_000].into_iter().for_each(measure);
    translate();
    churn();
}
