//! Workers that create, advance, translate and end connections at once, and whether what they leave adds up.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use penstock_wire::tcp::{ACK, FIN, RST, SYN};

use super::life::Marks;
use super::model::{ASSURED, HALF_OPEN, WORKERS, all, numbered, opening, table};
use super::nat::{self, Mapping, Pool};
use super::*;

#[test]
fn two_workers_at_once_leave_a_table_that_adds_up() {
    let table = table(512);
    let settings = Settings::default();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (table, settings) = (&table, &settings);
            scope.spawn(move || churn(table, settings, worker, 60_000));
        }
    });
    check_whole(&table, Seconds(1));
    let mut live = all(&table);
    // Connections first: a binding stays as long as one uses it.
    live.sort_by_key(|connection| connection.status.state == State::Binding);
    live.iter().for_each(|connection| assert!(table.remove(WorkerId(0), connection.reference)));
    let counts = table.counts();
    assert_eq!((counts.live, counts.half_open), (0, 0));
    assert_eq!(table.share(Owner::endpoint(0)), (0, 0));
    // Every entry came back to a free list, and every slot to the index.
    for number in 0..512 {
        let opening = opening(numbered(number), ASSURED, 0);
        table.create(WorkerId(0), &opening, Limits::NONE, &settings, Seconds(1)).unwrap();
    }
}

/// What a worker does all day, `rounds` times, over tuples that all workers share.
pub(super) fn churn(table: &Table, settings: &Settings, worker: u16, rounds: u32) {
    let mut dice = u64::from(worker) * 7919 + u64::from(std::process::id()) + 1;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let outside: IpAddr = "192.0.2.7".parse().unwrap();
    let free = Pool::new(&[outside], 2000..=2099).unwrap();
    let other: IpAddr = "192.0.2.8".parse().unwrap();
    let bound = Pool::new(&[other], 2000..=2099).unwrap().mapping(Mapping::EndpointIndependent);
    let (worker, now) = (WorkerId(worker), Seconds(1));
    for _ in 0..rounds {
        let original = numbered(roll(300) as u32);
        let found = table.find(&original, now);
        match (roll(8), found) {
            (0..=1, Some(found)) => {
                table.remove(worker, found.connection);
            }
            (_, Some(found)) => {
                let direction = if roll(2) == 0 { Direction::Original } else { Direction::Reply };
                let flags = [SYN | ACK, ACK, ACK, FIN | ACK, RST][roll(5) as usize];
                table.advance(worker, found.connection, direction, Packet::Tcp(flags), settings, now);
                table.decide(found.connection, Decision { epoch: 1, verdict: original.sport() });
            }
            (kind, None) => {
                let mut opening = opening(original, HALF_OPEN, 0);
                opening.parties.backend = expected_backend(&original);
                // Whoever is not the first finds the tuple taken, and a full table or pool is part of the day.
                let _ = match kind {
                    0..=3 => table.create(worker, &opening, Limits::NONE, settings, now),
                    4..=5 => nat::open(table, worker, &opening, &free, Limits::NONE, settings, now),
                    _ => nat::open(table, worker, &opening, &bound, Limits::NONE, settings, now),
                };
            }
        }
        table.sweep(worker, 2, now);
    }
}

fn expected_backend(original: &Tuple) -> u32 {
    u32::from(original.sport()) << 8 ^ 0x5a
}

/// Whether everything that a table holds fits together, once nobody writes to it.
pub(super) fn check_whole(table: &Table, now: Seconds) {
    let (mut tuples, mut bindings, mut uses) = (HashSet::new(), HashMap::new(), HashMap::new());
    let live = all(table);
    for connection in &live {
        assert!(tuples.insert(connection.original), "{} twice", connection.original);
        assert!(tuples.insert(connection.reply), "{} twice", connection.reply);
        for (direction, tuple) in
            [(Direction::Original, connection.original), (Direction::Reply, connection.reply)]
        {
            let found = table.find(&tuple, now).unwrap();
            assert_eq!((found.connection, found.direction), (connection.reference, direction));
        }
        if connection.status.state == State::Binding {
            let record = table.records.at(connection.reference.index());
            bindings.insert(connection.original, entry::uses_of(record));
            continue;
        }
        let sent = connection.leaves_as(Direction::Original);
        assert_eq!(sent.dst(), connection.original.dst());
        assert_eq!(connection.parties.backend, expected_backend(&connection.original));
        let verdict = connection.decision.verdict;
        assert!(verdict == 0 || verdict == connection.original.sport(), "another connection's decision");
        if connection.status.marks.has(Marks::BOUND) {
            *uses.entry(upkeep::binding_key(&connection.original, &connection.reply)).or_insert(0) += 1;
        }
    }
    for (key, held) in bindings {
        assert_eq!(uses.remove(&key).unwrap_or(0), held, "a binding's uses");
    }
    assert!(uses.is_empty(), "bound connections without a binding: {uses:?}");
    let counts = table.counts();
    assert_eq!(counts.live, live.len() as u64);
    let half_open = live.iter().filter(|connection| connection.status.is_half_open()).count();
    assert_eq!(counts.half_open, half_open as u64);
    let of_nobody = live.iter().filter(|c| c.parties.owner == Owner::NOBODY).count();
    assert_eq!(table.share(Owner::endpoint(0)), ((live.len() - of_nobody) as u32, half_open as u32));
}
