//! The table against a naive one, over sequences of packets that come in any order, from either
//! side, more than once, and at either of two workers.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use penstock_wire::proto;
use penstock_wire::tcp::{ACK, FIN, RST, SYN};
use proptest::prelude::*;

use super::life::{self, Marks, Step};
use super::nat::{self, Mapping, Pool};
use super::*;

const SEED: HashSeed = HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);
pub(super) const WORKERS: u16 = 2;

pub(super) fn table(capacity: u32) -> Table {
    let plan = Plan { capacity, owners: 8, workers: WORKERS };
    let (table, adoption) =
        Table::over(Memory::private(capacity).unwrap(), SEED, plan, Seconds(1), |_| None).unwrap();
    assert_eq!(adoption, Adoption::default());
    table
}

fn address(host: u8) -> IpAddr {
    // One host of each family more than the other tests need would only dilute the collisions.
    if host == 3 { "fd00::3".parse().unwrap() } else { IpAddr::V4([10, 0, 0, host + 1].into()) }
}

pub(super) fn tuple(protocol: u8, src: IpAddr, dst: IpAddr, sport: u16, dport: u16) -> Option<Tuple> {
    Tuple::new(NetworkId::new(9)?, src, dst, protocol, sport, dport)
}

/// Few enough tuples that they meet: four hosts, two ports, two protocols.
fn any_tuple() -> impl Strategy<Value = Tuple> {
    (0u8..4, 0u8..4, 0u16..2, 0u16..2, any::<bool>()).prop_filter_map(
        "mixed families",
        |(a, b, p, q, tcp)| {
            let protocol = if tcp { proto::TCP } else { proto::UDP };
            tuple(protocol, address(a), address(b), 1000 + p, 1000 + q)
        },
    )
}

#[derive(Clone, Debug)]
enum Event {
    /// A packet that no connection is known for, maybe translated to another source port or another receiver.
    Open {
        original: Tuple,
        source: Option<u16>,
        receiver: Option<u8>,
        owner: u32,
        limits: (u32, u32),
    },
    /// A packet of whatever connection the tuple belongs to.
    Packet {
        tuple: Tuple,
        flags: u8,
    },
    KeepAlive {
        tuple: Tuple,
    },
    Remove {
        tuple: Tuple,
    },
    Sweep {
        budget: u32,
    },
    Pass {
        seconds: u32,
    },
}

fn any_event() -> impl Strategy<Value = Event> {
    let flags = prop::sample::select(vec![SYN, SYN | ACK, ACK, FIN | ACK, RST, 0]);
    prop_oneof![
        6 => (any_tuple(), prop::option::of(1000u16..1004), prop::option::of(0u8..4), 0u32..3, (1u32..40, 1u32..10))
            .prop_map(|(original, source, receiver, owner, limits)| {
                Event::Open { original, source, receiver, owner, limits }
            }),
        8 => (any_tuple(), flags).prop_map(|(tuple, flags)| Event::Packet { tuple, flags }),
        2 => any_tuple().prop_map(|tuple| Event::KeepAlive { tuple }),
        1 => any_tuple().prop_map(|tuple| Event::Remove { tuple }),
        2 => (1u32..300).prop_map(|budget| Event::Sweep { budget }),
        2 => prop_oneof![1u32..20, 20u32..400].prop_map(|seconds| Event::Pass { seconds }),
    ]
}

fn packet_of(tuple: &Tuple, flags: u8) -> Packet {
    if tuple.protocol() == proto::TCP { Packet::Tcp(flags) } else { Packet::Udp }
}

/// A table as one would first write it.
#[derive(Default)]
struct Naive {
    live: Vec<Connection>,
}

impl Naive {
    /// Where a tuple's connection is, be its time over or not, and which way the tuple goes.
    fn position(&self, tuple: &Tuple) -> Option<(usize, Direction)> {
        self.live.iter().enumerate().find_map(|(at, connection)| {
            let way = if connection.original == *tuple {
                Direction::Original
            } else if connection.reply == *tuple {
                Direction::Reply
            } else {
                return None;
            };
            Some((at, way))
        })
    }

    fn find(&self, tuple: &Tuple, now: Seconds) -> Option<Match> {
        let (at, direction) = self.position(tuple)?;
        let connection = &self.live[at];
        let found = Match { connection: connection.reference, direction, status: connection.status };
        (connection.deadline > now).then_some(found)
    }

    fn share(&self, owner: Owner) -> (u32, u32) {
        let own = || self.live.iter().filter(|connection| connection.parties.owner == owner);
        (own().count() as u32, own().filter(|connection| connection.status.is_half_open()).count() as u32)
    }

    /// What creating should say; expired connections in the way are gone afterwards.
    fn make_way(&mut self, opening: &Opening, now: Seconds) -> Option<Direction> {
        let ways = [(Direction::Original, opening.original), (Direction::Reply, opening.forwarded.inverse())];
        for (ours, tuple) in ways {
            while let Some((at, _)) = self.position(&tuple) {
                if self.live[at].deadline > now {
                    return Some(ours);
                }
                self.live.swap_remove(at);
            }
        }
        None
    }
}

/// Both tables, and what is handed to them.
struct Pair {
    table: Table,
    naive: Naive,
    settings: Settings,
    now: Seconds,
}

impl Pair {
    fn play(&mut self, event: Event, worker: WorkerId) {
        match event {
            Event::Open { original, source, receiver, owner, limits } => {
                let mut forwarded = original;
                if let Some(sent) = source.and_then(|port| forwarded.with_source(address(2), port)) {
                    forwarded = sent;
                }
                if let Some(sent) = receiver.and_then(|host| forwarded.with_destination(address(host), 1001))
                {
                    forwarded = sent;
                }
                let limits = Limits { connections: limits.0, half_open: limits.1 };
                self.open(original, forwarded, Owner::endpoint(owner), limits, worker);
            }
            Event::Packet { tuple, flags } => self.packet(&tuple, flags, worker),
            Event::KeepAlive { tuple } => {
                if let Some(found) = self.naive.find(&tuple, self.now) {
                    let (connection, direction) = (found.connection, found.direction);
                    assert!(self.table.keep_alive(worker, connection, direction, &self.settings, self.now));
                    let seen = self.table.view(connection).unwrap();
                    let (at, _) = self.naive.position(&tuple).unwrap();
                    let status = life::keep_alive(self.naive.live[at].status, direction);
                    let full = self.settings.timeouts.of(status);
                    assert_eq!(seen.status, status);
                    assert!(seen.deadline <= self.now.after(full));
                    assert!(seen.deadline >= self.now.after(full - full / 16));
                    self.naive.live[at] = seen;
                }
            }
            Event::Remove { tuple } => {
                if let Some((at, _)) = self.naive.position(&tuple) {
                    let gone = self.naive.live.swap_remove(at);
                    assert!(self.table.remove(worker, gone.reference));
                    assert!(!self.table.remove(worker, gone.reference));
                    assert!(!self.table.is_live(gone.reference));
                }
            }
            Event::Sweep { budget } => {
                self.table.sweep(worker, budget, self.now);
                // A sweep may forget any whose time is over, and no other.
                self.naive.live.retain(|c| c.deadline > self.now || self.table.is_live(c.reference));
            }
            Event::Pass { seconds } => self.now = self.now.after(seconds),
        }
    }

    fn open(&mut self, original: Tuple, forwarded: Tuple, owner: Owner, limits: Limits, worker: WorkerId) {
        let Ok(status) = life::open(packet_of(&original, SYN), &self.settings) else { return };
        let parties = Parties { owner, backend: 3 };
        let decision = Decision { epoch: 4, verdict: 5 };
        let opening = Opening { original, forwarded, status, parties, decision };
        let (connections, half_open) = self.naive.share(owner);
        let half = status.is_half_open();
        let limited = connections >= limits.connections || half && half_open >= limits.half_open;
        let created = self.table.create(worker, &opening, limits, &self.settings, self.now);
        if limited {
            // One of the owner's own may have given way: if any has, it is over or unassured.
            let (table, now) = (&self.table, self.now);
            let gone = |c: &Connection| !table.is_live(c.reference);
            let left = self.naive.live.iter().filter(|c| gone(c)).count();
            assert!(left <= 3, "{left} gave way");
            assert!(
                self.naive
                    .live
                    .iter()
                    .filter(|c| gone(c))
                    .all(|c| { c.deadline <= now || c.parties.owner == owner && !c.status.is_assured() })
            );
            self.naive.live.retain(|c| table.is_live(c.reference));
        }
        match created {
            Ok(reference) => {
                assert_eq!(self.naive.make_way(&opening, self.now), None);
                let seen = self.table.view(reference).unwrap();
                let deadline = self.now.after(self.settings.timeouts.of(status));
                let reply = forwarded.inverse();
                let expected = Connection {
                    reference,
                    original,
                    reply,
                    status,
                    deadline,
                    parties,
                    decision,
                    bytes: [0; 2],
                };
                assert_eq!(seen, expected);
                self.naive.live.push(seen);
            }
            Err(Refused::Taken { ours, by }) => {
                assert_eq!(self.naive.make_way(&opening, self.now), Some(ours));
                let taken = if ours == Direction::Original { original } else { forwarded.inverse() };
                assert_eq!(self.naive.find(&taken, self.now), Some(by));
            }
            Err(Refused::OwnerLimit | Refused::HalfOpenLimit) => assert!(limited),
            Err(other) => panic!("{other}"),
        }
    }

    fn packet(&mut self, tuple: &Tuple, flags: u8, worker: WorkerId) {
        let Some(found) = self.naive.find(tuple, self.now) else { return };
        let (at, direction) = self.naive.position(tuple).unwrap();
        let packet = packet_of(tuple, flags);
        let progress =
            self.table.advance(worker, found.connection, direction, packet, &self.settings, self.now);
        let connection = &mut self.naive.live[at];
        let expected = match life::advance(connection.status, direction, packet) {
            Step::To(status) => {
                connection.status = status;
                connection.deadline = self.now.after(self.settings.timeouts.of(status));
                Progress::Going(status)
            }
            Step::Ignore => Progress::Ignored(connection.status),
            Step::Invalid(why) => Progress::Invalid(why),
            Step::End => Progress::Ended,
            Step::Reopen => Progress::Reopened,
        };
        assert_eq!(progress, expected);
        if matches!(expected, Progress::Ended | Progress::Reopened) {
            self.naive.live.swap_remove(at);
        }
    }

    fn compare(&self) {
        for connection in &self.naive.live {
            for (way, tuple) in
                [(Direction::Original, connection.original), (Direction::Reply, connection.reply)]
            {
                let found = self.table.find(&tuple, self.now);
                assert_eq!(found, self.naive.find(&tuple, self.now), "{way:?} of {tuple}");
            }
            assert_eq!(self.table.view(connection.reference), Some(*connection));
        }
        for owner in (0..3).map(Owner::endpoint) {
            assert_eq!(self.table.share(owner), self.naive.share(owner));
        }
        let counts = self.table.counts();
        assert_eq!(counts.live, self.naive.live.len() as u64);
        let half_open = self.naive.live.iter().filter(|c| c.status.is_half_open()).count();
        assert_eq!(counts.half_open, half_open as u64);
        assert_eq!(counts.created - counts.expired - counts.removed - counts.early_dropped, counts.live);
    }
}

/// Every connection that a table lists, a few at a time.
pub(super) fn all(table: &Table) -> Vec<Connection> {
    let (mut found, mut from) = (Vec::new(), Some(0));
    while let Some(entry) = from {
        let mut rows = Vec::with_capacity(7);
        from = table.list(entry, &mut rows, |_| true);
        found.extend(rows);
    }
    found
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_naive_one(
        events in prop::collection::vec((any_event(), 0..WORKERS), 1..200)
    ) {
        let mut pair = Pair {
            table: table(256),
            naive: Naive::default(),
            settings: Settings::default(),
            now: Seconds(1),
        };
        for (event, worker) in events {
            pair.play(event, WorkerId(worker));
            pair.compare();
        }
        let mut listed = all(&pair.table);
        listed.sort_by_key(|connection| connection.reference.index());
        pair.naive.live.sort_by_key(|connection| connection.reference.index());
        prop_assert_eq!(listed, pair.naive.live);
    }
}

pub(super) fn opening(original: Tuple, status: Status, owner: u32) -> Opening {
    Opening {
        original,
        forwarded: original,
        status,
        parties: Parties { owner: Owner::endpoint(owner), backend: 0 },
        decision: Decision::default(),
    }
}

pub(super) fn numbered(number: u32) -> Tuple {
    let src = IpAddr::V4((0x0a00_0001 + number / 60_000).into());
    tuple(proto::TCP, src, "192.0.2.1".parse().unwrap(), 1000 + (number % 60_000) as u16, 80).unwrap()
}

pub(super) const ASSURED: Status =
    Status { state: State::Established, marks: Marks(Marks::ASSURED.0 | Marks::REPLIED.0) };
const HALF_OPEN: Status = Status::of(State::SynSent);

#[test]
fn established_connections_survive_a_flood_that_fills_the_table() {
    let (table, settings, worker) = (table(4096), Settings::default(), WorkerId(0));
    let create = |number, status, owner| {
        table.create(worker, &opening(numbered(number), status, owner), Limits::NONE, &settings, Seconds(9))
    };
    let kept: Vec<_> = (0..2000).map(|number| create(number, ASSURED, 1).unwrap()).collect();
    let flooded = (0..100_000).filter(|number| create(10_000 + number, HALF_OPEN, 2).is_ok()).count();
    assert_eq!(flooded, 100_000, "a newcomer was refused although unassured ones could give way");
    assert!(kept.iter().all(|&connection| table.is_live(connection)));
    assert!((0..2000).all(|number| table.find(&numbered(number), Seconds(9)).is_some()));
    let counts = table.counts();
    assert_eq!((counts.live, counts.half_open), (4096, 2096));
    assert_eq!(counts.early_dropped, 100_000 - 2096);
}

#[test]
fn a_table_full_of_assured_connections_refuses_and_counts() {
    let (table, settings) = (table(64), Settings::default());
    let create = |number, now| {
        let opening = opening(numbered(number), ASSURED, 0);
        table.create(WorkerId(1), &opening, Limits::NONE, &settings, Seconds(now))
    };
    assert!((0..64).all(|number| create(number, 1).is_ok()));
    assert_eq!(create(64, 1), Err(Refused::Full));
    assert_eq!(table.counts().full, 1);
    assert_eq!(table.share(Owner::endpoint(0)), (64, 0));
    // Those whose time is over give way without waiting for the sweep.
    assert!(create(64, 1 + settings.timeouts.tcp_established).is_ok());
}

#[test]
fn an_owner_at_its_limit_loses_its_own_unassured_and_nobody_elses() {
    let (table, settings) = (table(32), Settings::default());
    let limits = Limits { connections: 4, half_open: 2 };
    let create = |number, status, owner| {
        table.create(WorkerId(0), &opening(numbered(number), status, owner), limits, &settings, Seconds(1))
    };
    let others: Vec<_> = (0..2).map(|number| create(number, HALF_OPEN, 0).unwrap()).collect();
    assert!((10..12).all(|number| create(number, ASSURED, 1).is_ok()));
    let flood: Vec<_> = (20..22).map(|number| create(number, HALF_OPEN, 1).unwrap()).collect();
    assert!(create(22, HALF_OPEN, 1).is_ok());
    assert_eq!(flood.iter().filter(|&&connection| table.is_live(connection)).count(), 1);
    assert!(others.iter().all(|&connection| table.is_live(connection)));
    assert!((12..14).all(|number| create(number, ASSURED, 1).is_ok()));
    assert_eq!(table.share(Owner::endpoint(1)), (4, 0));
    assert_eq!(create(14, ASSURED, 1), Err(Refused::OwnerLimit));
    assert_eq!(create(15, HALF_OPEN, 100), Err(Refused::UnknownOwner));
    assert_eq!(table.counts().owner_limit, 2);
}

#[test]
fn a_reference_to_a_connection_that_is_gone_is_never_anothers() {
    let (table, settings) = (table(1), Settings::default());
    let create = |number| {
        let opening = opening(numbered(number), ASSURED, 0);
        table.create(WorkerId(0), &opening, Limits::NONE, &settings, Seconds(1)).unwrap()
    };
    let first = create(1);
    assert!(table.decide(first, Decision { epoch: 7, verdict: 1 }));
    assert!(table.remove(WorkerId(1), first));
    let second = create(2);
    assert!(table.is_live(second) && !table.is_live(first));
    assert_eq!(table.view(first), None);
    assert!(!table.decide(first, Decision { epoch: 8, verdict: 2 }));
    assert!(!table.keep_alive(WorkerId(0), first, Direction::Original, &settings, Seconds(1)));
    let packet = Packet::Tcp(ACK);
    let progress = table.advance(WorkerId(0), first, Direction::Original, packet, &settings, Seconds(1));
    assert_eq!(progress, Progress::Gone);
    assert_eq!(table.view(second).unwrap().decision, Decision::default());
    assert!(!table.is_live(ConnectionRef::NONE));
    assert_eq!(ConnectionRef::from_bits(second.to_bits()), second);
}

#[test]
fn workers_together_sweep_every_entry() {
    let (table, settings) = (table(1001), Settings::default());
    for number in 0..1001 {
        let opening = opening(numbered(number), HALF_OPEN, 0);
        table.create(WorkerId(0), &opening, Limits::NONE, &settings, Seconds(1)).unwrap();
    }
    let over = Seconds(1 + settings.timeouts.tcp_syn_sent);
    for _ in 0..20 {
        (0..WORKERS).for_each(|worker| assert!(table.sweep(WorkerId(worker), 30, over).looked <= 30));
    }
    assert_eq!((table.counts().live, table.counts().expired), (0, 1001));
    assert_eq!(table.share(Owner::endpoint(0)), (0, 0));
}

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
    u32::from(original.sport()) << 16 ^ 0x5a5a
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
            bindings.insert(connection.original, connection.bytes[0]);
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
    assert_eq!(table.share(Owner::NOBODY).0, of_nobody as u32);
    assert_eq!(table.share(Owner::endpoint(0)), ((live.len() - of_nobody) as u32, half_open as u32));
}
