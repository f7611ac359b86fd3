//! The table against a naive one, over sequences of packets that come in any order, from either
//! side, more than once, and at either of two workers.

use std::collections::HashMap;
use std::net::IpAddr;

use penstock_wire::proto;
use penstock_wire::tcp::{ACK, FIN, RST, SYN};
use proptest::prelude::*;

use super::life::{self, Marks};
use super::oracle::{Oracle, Outcome};
use super::*;

const SEED: HashSeed = HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);
pub(super) const WORKERS: u16 = 2;

pub(super) fn table(capacity: u32) -> Table {
    let plan = Plan { capacity, owners: 16, workers: WORKERS };
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

/// Few enough tuples that they meet: four hosts, two ports, three protocols.
fn any_tuple() -> impl Strategy<Value = Tuple> {
    (0u8..4, 0u8..4, 0u16..2, 0u16..2, 0usize..3).prop_filter_map(
        "mixed families",
        |(a, b, p, q, protocol)| {
            let protocol = [proto::TCP, proto::UDP, proto::SCTP][protocol];
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
        first: usize,
        owners: (u16, Option<u16>),
        limits: (u32, u32),
    },
    /// A packet of whatever connection the tuple belongs to.
    Packet {
        tuple: Tuple,
        kind: usize,
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
    prop_oneof![
        6 => (
            (any_tuple(), 0usize..3), prop::option::of(1000u16..1004), prop::option::of(0u8..4),
            (0u16..3, prop::option::of(0u16..3)), (1u32..40, 1u32..10),
        )
            .prop_map(|((original, first), source, receiver, owners, limits)| {
                Event::Open { original, first, source, receiver, owners, limits }
            }),
        8 => (any_tuple(), 0..KINDS).prop_map(|(tuple, kind)| Event::Packet { tuple, kind }),
        2 => any_tuple().prop_map(|tuple| Event::KeepAlive { tuple }),
        1 => any_tuple().prop_map(|tuple| Event::Remove { tuple }),
        2 => (1u32..300).prop_map(|budget| Event::Sweep { budget }),
        2 => prop_oneof![1u32..20, 20u32..400].prop_map(|seconds| Event::Pass { seconds }),
    ]
}

/// Kinds of packets of each protocol; most of those that open come first.
pub(super) const KINDS: usize = 9;

pub(super) fn packet_of(tuple: &Tuple, kind: usize) -> Packet {
    // Chunk types of RFC 9260 section 3.2: INIT, DATA, INIT ACK, COOKIE ECHO, COOKIE ACK, SHUTDOWN, its ACK and the end
    // of it, ABORT.
    const SCTP: [u8; KINDS] = [1, 0, 2, 10, 11, 7, 8, 14, 6];
    const TCP: [u8; KINDS] = [SYN, ACK, SYN | ACK, ACK, SYN | ACK, FIN | ACK, FIN | ACK, 0, RST];
    match tuple.protocol() {
        proto::TCP => Packet::Tcp(TCP[kind]),
        proto::SCTP => Packet::Sctp(Chunks::only(SCTP[kind])),
        _ => Packet::Udp,
    }
}

/// A table as one would first write it.
#[derive(Default)]
struct Naive {
    live: Vec<Connection>,
    /// How far each is, by rules of their own.
    lives: HashMap<ConnectionRef, Oracle>,
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
        let ends = |parties: &Parties| [parties.owner, parties.receiver].map(|it| u32::from(it == owner));
        let own = |connection: &Connection| ends(&connection.parties).iter().sum::<u32>();
        let half_open = self.live.iter().filter(|connection| connection.status.is_half_open());
        (self.live.iter().map(own).sum(), half_open.map(own).sum())
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

/// Whether a connection of the one's gives way to a connection of the other's.
fn is_theirs(of: &Parties, other: &Parties) -> bool {
    let owners =
        |parties: &Parties| [parties.owner, parties.receiver].map(|it| (it != Owner::NOBODY).then_some(it));
    owners(of).iter().flatten().any(|owner| owners(other).contains(&Some(*owner)))
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
            Event::Open { original, first, source, receiver, owners, limits } => {
                let mut forwarded = original;
                if let Some(sent) = source.and_then(|port| forwarded.with_source(address(2), port)) {
                    forwarded = sent;
                }
                if let Some(sent) = receiver.and_then(|host| forwarded.with_destination(address(host), 1001))
                {
                    forwarded = sent;
                }
                let share = Share { connections: limits.0, half_open: limits.1 };
                let (owner, receiver) = owners;
                let parties = Parties {
                    owner: Owner::endpoint(owner),
                    receiver: receiver.map_or(Owner::NOBODY, Owner::endpoint),
                    backend: 3,
                };
                self.open((original, forwarded), packet_of(&original, first), parties, share, worker);
            }
            Event::Packet { tuple, kind } => self.packet(&tuple, kind, worker),
            Event::KeepAlive { tuple } => {
                if let Some(found) = self.naive.find(&tuple, self.now) {
                    let (connection, direction) = (found.connection, found.direction);
                    let kept = self.table.keep_alive(worker, connection, direction, &self.settings, self.now);
                    // Handshakes, endings and resets are watched packet by packet, and are as before.
                    assert_eq!(kept, found.status.is_cacheable());
                    if !kept {
                        return;
                    }
                    let seen = self.table.view(connection).unwrap();
                    let (at, _) = self.naive.position(&tuple).unwrap();
                    let oracle = self.naive.lives.get_mut(&connection).unwrap();
                    if tuple.protocol() == proto::UDP {
                        oracle.step(direction, Packet::Udp);
                    }
                    assert!(oracle.agrees(seen.status), "{oracle:?} is {seen:?}");
                    let full = oracle.timeout();
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

    fn open(
        &mut self,
        (original, forwarded): (Tuple, Tuple),
        first: Packet,
        parties: Parties,
        share: Share,
        worker: WorkerId,
    ) {
        let (status, oracle) = (life::open(first, &self.settings).ok(), Oracle::begin(first));
        assert_eq!(status.is_some(), oracle.is_some(), "{first:?}");
        let Some((status, oracle)) = status.zip(oracle) else { return };
        let decision = Decision { epoch: 4, verdict: 5 };
        let opening = Opening { original, forwarded, status, parties, decision };
        let half = status.is_half_open();
        let is_at_limit = |owner: Owner, more: u32| {
            let (connections, half_open) = self.naive.share(owner);
            let counts = owner != Owner::NOBODY;
            counts && (connections + more >= share.connections || half && half_open + more >= share.half_open)
        };
        let to_itself = u32::from(parties.owner == parties.receiver);
        let limited = is_at_limit(parties.owner, 0) || is_at_limit(parties.receiver, to_itself);
        let limits = Limits { owner: share, receiver: share };
        let created = self.table.create(worker, &opening, limits, &self.settings, self.now);
        if limited {
            // One of each owner's own may have given way: if any has, it is over or unassured.
            let (table, now) = (&self.table, self.now);
            let gone = |c: &Connection| !table.is_live(c.reference);
            let left = self.naive.live.iter().filter(|c| gone(c)).count();
            assert!(left <= 4, "{left} gave way");
            assert!(
                self.naive.live.iter().filter(|c| gone(c)).all(|c| {
                    c.deadline <= now || is_theirs(&parties, &c.parties) && !c.status.is_assured()
                })
            );
            self.naive.live.retain(|c| table.is_live(c.reference));
        }
        match created {
            Ok(reference) => {
                assert_eq!(self.naive.make_way(&opening, self.now), None);
                let seen = self.table.view(reference).unwrap();
                let deadline = self.now.after(oracle.timeout());
                let reply = forwarded.inverse();
                let expected = Connection { reference, original, reply, status, deadline, parties, decision };
                assert_eq!(seen, expected);
                assert!(oracle.agrees(seen.status));
                self.naive.live.push(seen);
                self.naive.lives.insert(reference, oracle);
            }
            Err(Refused::Taken { ours, by }) => {
                assert_eq!(self.naive.make_way(&opening, self.now), Some(ours));
                let taken = if ours == Direction::Original { original } else { forwarded.inverse() };
                assert_eq!(self.naive.find(&taken, self.now), Some(by));
            }
            Err(Refused::OwnerLimit(owner) | Refused::HalfOpenLimit(owner)) => {
                assert!(limited && [parties.owner, parties.receiver].contains(&owner));
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn packet(&mut self, tuple: &Tuple, kind: usize, worker: WorkerId) {
        let Some(found) = self.naive.find(tuple, self.now) else { return };
        let (at, direction) = self.naive.position(tuple).unwrap();
        let packet = packet_of(tuple, kind);
        let progress =
            self.table.advance(worker, found.connection, direction, packet, &self.settings, self.now);
        let connection = &mut self.naive.live[at];
        let oracle = self.naive.lives.get_mut(&found.connection).unwrap();
        let expected = match oracle.step(direction, packet) {
            Outcome::Goes => {
                let Progress::Going(status) = progress else { panic!("{progress:?}, and it goes on") };
                assert!(oracle.agrees(status), "{oracle:?} is {status:?}");
                connection.status = status;
                connection.deadline = self.now.after(oracle.timeout());
                progress
            }
            Outcome::Ignored => Progress::Ignored(connection.status),
            Outcome::Invalid(why) => Progress::Invalid(why),
            Outcome::Ended => Progress::Ended,
            Outcome::Reopened => Progress::Reopened,
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

pub(super) fn opening(original: Tuple, status: Status, owner: u16) -> Opening {
    Opening {
        original,
        forwarded: original,
        status,
        parties: Parties { owner: Owner::endpoint(owner), ..Parties::default() },
        decision: Decision::default(),
    }
}

pub(super) fn numbered(number: u32) -> Tuple {
    let src = IpAddr::V4((0x0a00_0001 + number / 60_000).into());
    tuple(proto::TCP, src, "192.0.2.1".parse().unwrap(), 1000 + (number % 60_000) as u16, 80).unwrap()
}

pub(super) const ASSURED: Status =
    Status { state: State::Established, marks: Marks(Marks::ASSURED.0 | Marks::REPLIED.0) };
pub(super) const HALF_OPEN: Status = Status::of(State::SynSent);

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
    let limits = Limits { owner: Share { connections: 4, half_open: 2 }, ..Limits::NONE };
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
    assert_eq!(create(14, ASSURED, 1), Err(Refused::OwnerLimit(Owner::endpoint(1))));
    assert_eq!(create(15, HALF_OPEN, 100), Err(Refused::UnknownOwner));
    assert_eq!(table.counts().owner_limit, 2);
}

#[test]
fn an_endpoint_at_its_limit_is_reached_by_nobody_and_what_it_has_goes_on() {
    let (table, settings) = (table(64), Settings::default());
    let server = Owner::endpoint(2);
    let limits = Limits { receiver: Share { connections: 4, half_open: 2 }, ..Limits::NONE };
    let create = |number, status, owner| {
        let mut opening = opening(numbered(number), status, 0);
        opening.parties = Parties { owner, receiver: server, backend: 0 };
        table.create(WorkerId(0), &opening, limits, &settings, Seconds(1))
    };
    let kept: Vec<_> = (0..2).map(|number| create(number, ASSURED, Owner::OUTSIDE).unwrap()).collect();
    let flood: Vec<_> = (10..12).map(|number| create(number, HALF_OPEN, Owner::OUTSIDE).unwrap()).collect();
    // Of the receiver's half-open ones, whoever opened them, one gives way.
    assert!(create(12, HALF_OPEN, Owner::NOBODY).is_ok());
    assert_eq!(flood.iter().filter(|&&connection| table.is_live(connection)).count(), 1);
    assert_eq!((table.share(server), table.share(Owner::OUTSIDE)), ((4, 2), (3, 1)));
    assert!((20..22).all(|number| create(number, ASSURED, Owner::endpoint(0)).is_ok()));
    assert_eq!(create(22, ASSURED, Owner::endpoint(0)), Err(Refused::OwnerLimit(server)));
    assert_eq!(create(23, HALF_OPEN, Owner::OUTSIDE), Err(Refused::OwnerLimit(server)));
    assert_eq!(table.share(Owner::endpoint(0)), (2, 0), "who was refused is not counted");
    assert!(kept.iter().all(|&connection| table.is_live(connection)));
}

#[test]
fn what_is_over_the_limit_of_half_open_connections_costs_no_open_one() {
    let (table, settings) = (table(64), Settings::default());
    let limits = Limits { owner: Share { half_open: 1, ..Share::WHOLE }, ..Limits::NONE };
    let create = |number, status| {
        let opening = opening(numbered(number), status, 1);
        table.create(WorkerId(0), &opening, limits, &settings, Seconds(1))
    };
    // Unassured, and done with its handshake: it does not stand in the way.
    let datagrams: Vec<_> =
        (0..30).map(|number| create(number, Status::of(State::UdpUnreplied)).unwrap()).collect();
    for number in 100..140 {
        // With few looks the half-open one may not be found: then the newcomer is refused.
        let refused = create(number, HALF_OPEN).err();
        assert!(refused.is_none_or(|it| it == Refused::HalfOpenLimit(Owner::endpoint(1))), "{refused:?}");
    }
    assert!(datagrams.iter().all(|&connection| table.is_live(connection)));
    assert_eq!(table.share(Owner::endpoint(1)), (31, 1));
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
