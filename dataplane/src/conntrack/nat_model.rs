//! Address translation against a naive model: connections opened and ended by two workers, from a pool so small that it
//! runs out.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use penstock_wire::proto;
use proptest::prelude::*;

use super::life::Marks;
use super::model::{ASSURED, WORKERS, all, numbered, opening, table, tuple};
use super::nat::{self, Mapping, Pool};
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
                let inside = nat::inside_of(&self.table, &sent.inverse()).unwrap();
                assert_eq!((inside.1, inside.2), internal);
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
