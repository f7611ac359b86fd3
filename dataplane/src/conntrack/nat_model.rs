//! Address translation against a naive model: connections opened and ended by two workers, from a pool so small that it
//! runs out, and their packets both ways, late, lost and repeated.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use penstock_wire::proto;
use proptest::prelude::*;

use super::life::Marks;
use super::model::{ASSURED, KINDS, WORKERS, all, numbered, opening, packet_of, table, tuple};
use super::nat::{self, Mapping, Pool};
use super::oracle::{Oracle, Outcome};
use super::*;

proptest! {
    #[test]
    fn no_two_connections_ever_leave_by_the_same_mapping(
        steps in prop::collection::vec((0u8..12, 0u16..4, 0u8..2, 0..WORKERS, 0u8..8), 1..250),
        bound: bool, paired: bool, ports in 4u16..16,
    ) {
        let mapping = if bound { Mapping::EndpointIndependent } else { Mapping::PerConnection };
        let addresses = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|octets| IpAddr::V4(octets.into()));
        let pool = Pool::new(&addresses, 1000..=1000 + ports - 1).unwrap().mapping(mapping).paired(paired);
        let mut nat = Translator { table: table(1024), pool, bound, live: Vec::new() };
        for (host, port, remote, worker, kind) in steps {
            if kind == 0 && !nat.live.is_empty() {
                let gone = nat.live.swap_remove(usize::from(host) % nat.live.len());
                assert!(nat.table.remove(WorkerId(worker), gone.reference));
            } else {
                nat.open(host, 999 + port, remote, WorkerId(worker));
            }
            nat.check();
        }
    }
}

/// A pool's connections, beside what they must be.
struct Translator {
    table: Table,
    pool: Pool,
    bound: bool,
    live: Vec<Connection>,
}

impl Translator {
    fn open(&mut self, host: u8, port: u16, remote: u8, worker: WorkerId) {
        let internal = IpAddr::V4([10, 1, 0, host + 1].into());
        let remote = IpAddr::V4([198, 51, 100, remote + 1].into());
        let original = tuple(proto::UDP, internal, remote, port, 53).unwrap();
        let opening = Opening {
            original,
            forwarded: original.in_network(NetworkId::new(1).unwrap()),
            status: Status::of(State::UdpUnreplied),
            parties: Parties::default(),
            decision: Decision::default(),
        };
        let settings = Settings::default();
        let known = self.live.iter().any(|connection| connection.original == original);
        match nat::open(&self.table, worker, &opening, &self.pool, Limits::NONE, &settings, Seconds(5)) {
            Ok(reference) => {
                assert!(!known);
                self.live.push(self.table.view(reference).unwrap());
            }
            Err(Refused::Taken { ours: Direction::Original, .. }) => assert!(known),
            Err(Refused::Exhausted) => self.check_exhausted(&opening.forwarded),
            Err(other) => panic!("{other}"),
        }
    }

    /// Two addresses of at most sixteen ports are few enough that the tries meet every one of them.
    fn check_exhausted(&self, sent: &Tuple) {
        let externals = self.live.iter().map(|c| c.leaves_as(Direction::Original));
        let used: HashSet<_> = if self.bound {
            all(&self.table)
                .iter()
                .filter(|c| c.status.state == State::Binding)
                .map(|c| (c.reply.dst(), c.reply.dport()))
                .collect()
        } else {
            externals.filter(|e| e.dst() == sent.dst()).map(|e| (e.src(), e.sport())).collect()
        };
        let free: Vec<_> = [1, 2]
            .into_iter()
            .flat_map(|last| (1000..1016).map(move |port| (IpAddr::V4([192, 0, 2, last].into()), port)))
            .filter(|&(address, port)| self.pool.covers(address, port) && !used.contains(&(address, port)))
            .collect();
        // A paired host may have run out on its own address only.
        let addresses: HashSet<_> = free.iter().map(|(address, _)| *address).collect();
        let paired = self.pool != self.pool.clone().paired(false);
        assert!(free.is_empty() || paired && addresses.len() < 2, "{free:?} were free");
    }

    fn check(&self) {
        let mut mappings = HashSet::new();
        let mut bindings = HashMap::new();
        let mut hosts = HashMap::new();
        let paired = self.pool != self.pool.clone().paired(false);
        for connection in &self.live {
            let sent = connection.leaves_as(Direction::Original);
            assert!(mappings.insert(sent), "{sent} twice");
            assert!(self.pool.covers(sent.src(), sent.sport()));
            let answer = self.table.find(&sent.inverse(), Seconds(5)).unwrap();
            assert_eq!((answer.connection, answer.direction), (connection.reference, Direction::Reply));
            assert_eq!(connection.leaves_as(Direction::Reply), connection.original.inverse());
            let internal = (connection.original.src(), connection.original.sport());
            let external = (sent.src(), sent.sport());
            if self.bound {
                assert_eq!(*bindings.entry(internal).or_insert(external), external);
                assert!(connection.status.marks.has(Marks::BOUND));
            }
            if paired {
                assert_eq!(*hosts.entry(internal.0).or_insert(external.0), external.0);
            }
        }
        let externals: HashSet<_> = bindings.values().collect();
        assert_eq!(externals.len(), bindings.len(), "two internal ports share an external one");
    }
}

#[test]
fn a_binding_outlives_its_time_while_a_connection_uses_it() {
    let (table, settings) = (table(64), Settings::default());
    let outside: IpAddr = "192.0.2.1".parse().unwrap();
    let pool = Pool::new(&[outside], 1000..=1000).unwrap().mapping(Mapping::EndpointIndependent);
    let open = |number, now| {
        let opening = opening(numbered(number), ASSURED, 0);
        nat::open(&table, WorkerId(0), &opening, &pool, Limits::NONE, &settings, Seconds(now))
    };
    let connection = open(1, 1).unwrap();
    let later = 2 + settings.timeouts.binding;
    (0..WORKERS).for_each(|worker| assert_eq!(table.sweep(WorkerId(worker), 64, Seconds(later)).expired, 0));
    assert_eq!(open(2, later), Err(Refused::Exhausted));
    assert_eq!(table.counts().exhausted, 1);
    assert!(table.remove(WorkerId(0), connection));
    let swept: u32 = (0..WORKERS).map(|n| table.sweep(WorkerId(n), 64, Seconds(later)).expired).sum();
    assert_eq!(swept, 1);
    assert!(open(2, later).is_ok());
}

#[test]
fn two_hosts_that_ping_with_one_identifier_leave_with_two() {
    let (table, settings) = (table(64), Settings::default());
    let outside: IpAddr = "192.0.2.1".parse().unwrap();
    let pool = Pool::new(&[outside], 1000..=1999).unwrap();
    let mut identifiers = HashSet::new();
    for host in 1..=20 {
        let internal = IpAddr::V4([10, 0, 0, host].into());
        let ping = tuple(proto::ICMP, internal, "198.51.100.1".parse().unwrap(), 1234, 0x0800).unwrap();
        let opening = opening(ping, Status::of(State::EchoSent), 0);
        let made =
            nat::open(&table, WorkerId(0), &opening, &pool, Limits::NONE, &settings, Seconds(1)).unwrap();
        let sent = table.view(made).unwrap().leaves_as(Direction::Original);
        assert_eq!((sent.src(), sent.dport()), (outside, 0x0800));
        assert!(pool.covers(outside, sent.sport()) && identifiers.insert(sent.sport()));
        assert!(identifiers.contains(&1234), "the first keeps its own");
        let pong = table.find(&sent.inverse(), Seconds(1)).unwrap();
        assert_eq!((pong.connection, pong.direction), (made, Direction::Reply));
    }
}

/// A packet that is sent, or comes again, or comes late; and time.
#[derive(Clone, Debug)]
enum Event {
    /// A host sends.
    Sends {
        host: u8,
        port: u16,
        remote: u8,
        protocol: usize,
        kind: usize,
    },
    /// One of the packets that left is answered, be it long ago or for the second time.
    Answered {
        which: usize,
        kind: usize,
    },
    /// One of the packets that left is answered by somebody else.
    Disturbed {
        which: usize,
        remote: u8,
    },
    Removed {
        which: usize,
    },
    Passes {
        seconds: u32,
    },
    Swept,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u8..4, 0u16..3, 0u8..2, 0usize..3, 0..KINDS).prop_map(|(host, port, remote, protocol, kind)| {
            Event::Sends { host, port, remote, protocol, kind }
        }),
        6 => (0usize..1000, 0..KINDS).prop_map(|(which, kind)| Event::Answered { which, kind }),
        2 => (0usize..1000, 0u8..4).prop_map(|(which, remote)| Event::Disturbed { which, remote }),
        1 => (0usize..1000).prop_map(|which| Event::Removed { which }),
        2 => prop_oneof![1u32..20, 20u32..400].prop_map(|seconds| Event::Passes { seconds }),
        1 => Just(Event::Swept),
    ]
}

/// What is known of a translated connection without asking the table.
#[derive(Clone, Copy)]
struct Translated {
    original: Tuple,
    /// As its packets leave.
    sent: Tuple,
    reference: ConnectionRef,
    oracle: Oracle,
    deadline: Seconds,
}

/// Hosts behind a pool, and those that they speak with.
struct Wire {
    table: Table,
    pool: Pool,
    now: Seconds,
    live: Vec<Translated>,
    /// Every packet that ever left.
    left: Vec<Tuple>,
    /// By which address and port each internal one left last.
    bindings: HashMap<(IpAddr, u16, u8), (IpAddr, u16)>,
}

impl Wire {
    fn position(&self, is: impl Fn(&Translated) -> bool) -> Option<usize> {
        self.live.iter().position(|it| it.deadline > self.now && is(it))
    }

    fn play(&mut self, event: Event, worker: WorkerId) {
        match event {
            Event::Sends { host, port, remote, protocol, kind } => {
                let protocol = [proto::TCP, proto::UDP, proto::SCTP][protocol];
                let [src, dst] = [[10, 1, 0, host + 1], [198, 51, 100, remote + 1]].map(IpAddr::from);
                let original = tuple(protocol, src, dst, 999 + port, 53).unwrap();
                let packet = packet_of(&original, kind);
                match self.position(|it| it.original == original) {
                    Some(at) => self.goes(at, Direction::Original, packet, worker),
                    None => self.opens(original, packet, worker),
                }
            }
            Event::Answered { which, kind } => {
                let Some(&sent) = self.left.get(which % self.left.len().max(1)) else { return };
                self.arrives(sent.inverse(), packet_of(&sent, kind), worker);
            }
            Event::Disturbed { which, remote } => {
                let Some(sent) = self.left.get(which % self.left.len().max(1)) else { return };
                let other = IpAddr::from([198, 51, 100, remote + 1]);
                let answer = sent.with_destination(other, 53 + u16::from(remote % 2)).unwrap().inverse();
                self.arrives(answer, packet_of(&answer, 1), worker);
            }
            Event::Removed { which } => {
                if !self.live.is_empty() {
                    let gone = self.live.swap_remove(which % self.live.len());
                    // Its entry may be another's by now if its time was over.
                    let removed = self.table.remove(worker, gone.reference);
                    assert!(removed || gone.deadline <= self.now);
                }
            }
            Event::Passes { seconds } => self.now = self.now.after(seconds),
            Event::Swept => {
                for worker in 0..WORKERS {
                    self.table.sweep(WorkerId(worker), 1024, self.now);
                }
            }
        }
    }

    /// A packet from outside: it is let in if it answers a connection that lives, and then it goes to whoever opened that.
    fn arrives(&mut self, arrived: Tuple, packet: Packet, worker: WorkerId) {
        let found = self.table.find(&arrived, self.now);
        let Some(at) = self.position(|it| it.sent.inverse() == arrived) else {
            return assert_eq!(found, None, "{arrived} is let in, and answers nobody");
        };
        let (found, expected) = (found.expect("an answer is let in"), self.live[at]);
        assert_eq!((found.connection, found.direction), (expected.reference, Direction::Reply));
        let inside = self.table.view(found.connection).unwrap().leaves_as(Direction::Reply);
        assert_eq!(inside, expected.original.inverse(), "it reaches another host");
        self.goes(at, Direction::Reply, packet, worker);
    }

    /// A packet of a known connection.
    fn goes(&mut self, at: usize, direction: Direction, packet: Packet, worker: WorkerId) {
        let known = &mut self.live[at];
        let settings = Settings::default();
        let seen = self.table.view(known.reference).unwrap();
        assert_eq!(seen.leaves_as(Direction::Original), known.sent, "a connection keeps its mapping");
        let progress = self.table.advance(worker, known.reference, direction, packet, &settings, self.now);
        match known.oracle.step(direction, packet) {
            Outcome::Goes => {
                assert!(matches!(progress, Progress::Going(status) if known.oracle.agrees(status)));
                known.deadline = self.now.after(known.oracle.timeout());
            }
            Outcome::Ignored => assert!(matches!(progress, Progress::Ignored(_))),
            Outcome::Invalid(why) => return assert_eq!(progress, Progress::Invalid(why)),
            outcome => {
                let is_end = outcome == Outcome::Ended;
                assert_eq!(progress, if is_end { Progress::Ended } else { Progress::Reopened });
                let gone = self.live.swap_remove(at);
                if !is_end && direction == Direction::Original {
                    self.opens(gone.original, packet, worker);
                }
                return;
            }
        }
        if direction == Direction::Original {
            self.left.push(self.live[at].sent);
        }
    }

    fn opens(&mut self, original: Tuple, packet: Packet, worker: WorkerId) {
        let settings = Settings::default();
        let Some(oracle) = Oracle::begin(packet) else { return };
        let opening = Opening {
            original,
            forwarded: original.in_network(NetworkId::new(1).unwrap()),
            status: life::open(packet, &settings).unwrap(),
            parties: Parties::default(),
            decision: Decision::default(),
        };
        let opened = nat::open(&self.table, worker, &opening, &self.pool, Limits::NONE, &settings, self.now);
        let reference = match opened {
            Ok(reference) => reference,
            Err(Refused::Exhausted) => return,
            Err(other) => panic!("{other}"),
        };
        let sent = self.table.view(reference).unwrap().leaves_as(Direction::Original);
        let external = (sent.src(), sent.sport());
        assert!(self.pool.covers(external.0, external.1));
        assert_eq!(self.position(|it| it.sent == sent), None, "a living connection has that mapping");
        let deadline = self.now.after(oracle.timeout());
        let internal = |tuple: &Tuple| (tuple.src(), tuple.sport(), tuple.protocol());
        if self.pool != self.pool.clone().mapping(Mapping::PerConnection) {
            let is_in_use = self.position(|it| internal(&it.original) == internal(&original)).is_some();
            let before = self.bindings.insert(internal(&original), external);
            assert!(!is_in_use || before == Some(external), "a host has another mapping for another remote");
            let of_others = self.position(|it| {
                (it.sent.src(), it.sent.sport(), it.sent.protocol()) == internal(&sent)
                    && internal(&it.original) != internal(&original)
            });
            assert_eq!(of_others, None, "two hosts share a mapping");
        }
        self.live.retain(|it| it.original != original);
        self.live.push(Translated { original, sent, reference, oracle, deadline });
        self.left.push(sent);
    }
}

proptest! {
    #[test]
    fn packets_in_any_order_reach_whom_they_are_for_and_nobody_else(
        events in prop::collection::vec((any_event(), 0..WORKERS), 1..300), bound: bool, ports in 2u16..8,
    ) {
        let mapping = if bound { Mapping::EndpointIndependent } else { Mapping::PerConnection };
        let addresses = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|octets| IpAddr::V4(octets.into()));
        let pool = Pool::new(&addresses, 1000..=1000 + ports - 1).unwrap().mapping(mapping);
        let (live, left, bindings) = (Vec::new(), Vec::new(), HashMap::new());
        let mut wire = Wire { table: table(1024), pool, now: Seconds(1), live, left, bindings };
        for (event, worker) in events {
            wire.play(event, WorkerId(worker));
        }
    }
}
