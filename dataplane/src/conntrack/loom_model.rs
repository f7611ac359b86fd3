//! Every interleaving of a few steps of two workers, as loom finds them.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;

const NOW: Seconds = Seconds(1);

/// Explores interleavings with at most two preemptions: one more multiplies them without new kinds.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    builder.check(model);
}

fn table(capacity: u32) -> Arc<Table> {
    let plan = Plan { capacity, owners: 4, workers: 2 };
    let memory = Memory::private(capacity).expect("loom's memory is the heap's");
    let seed = HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);
    let (table, _) = Table::over(memory, seed, plan, NOW, |_| None).expect("there is memory");
    Arc::new(table)
}

fn opening(host: u8, external: u16) -> Opening {
    let src = IpAddr::V4([10, 0, 0, host].into());
    let dst = IpAddr::V4([192, 0, 2, 1].into());
    let outside = IpAddr::V4([198, 51, 100, 1].into());
    let network = NetworkId::default();
    let original = Tuple::new(network, src, dst, 6, 7, 80).expect("two hosts of one family");
    Opening {
        original,
        forwarded: original.with_source(outside, external).expect("of one family"),
        status: Status::of(State::SynSent),
        parties: Parties { owner: Owner::endpoint(0), receiver: Owner::NOBODY, backend: u32::from(host) },
        decision: Decision { epoch: 1, verdict: u16::from(host) },
    }
}

fn create(table: &Table, worker: u16, opening: &Opening) -> Result<ConnectionRef, Refused> {
    table.create(WorkerId(worker), opening, Limits::NONE, &Settings::default(), NOW)
}

#[test]
fn loom_two_workers_never_share_a_mapping() {
    explore(|| {
        let table = table(2);
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || create(&other, 1, &opening(2, 5000)));
        let mine = create(&table, 0, &opening(1, 5000));
        let theirs = thread.join().expect("no panic");
        let answer = table.find(&opening(1, 5000).forwarded.inverse(), NOW);
        match (mine, theirs) {
            (Ok(owner), Err(Refused::Taken { ours: Direction::Reply, .. } | Refused::Contended))
            | (Err(Refused::Taken { ours: Direction::Reply, .. } | Refused::Contended), Ok(owner)) => {
                assert_eq!(answer.map(|found| found.connection), Some(owner));
            }
            (Err(Refused::Contended), Err(Refused::Contended)) => assert_eq!(answer, None),
            other => panic!("{other:?}"),
        }
        let live = u64::from(answer.is_some());
        assert_eq!((table.counts().live, table.counts().half_open), (live, live));
        assert_eq!(table.share(Owner::endpoint(0)), (live as u32, live as u32));
    });
}

#[test]
fn loom_a_reader_sees_both_directions_or_none_and_never_a_torn_one() {
    explore(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || create(&other, 1, &opening(1, 5000)).expect("alone"));
        let wanted = opening(1, 5000);
        if let Some(found) = table.find(&wanted.original, NOW) {
            let seen = table.view(found.connection).expect("nobody removes it");
            assert_eq!((seen.original, seen.reply), (wanted.original, wanted.forwarded.inverse()));
            assert_eq!((seen.parties, seen.decision), (wanted.parties, wanted.decision));
            let answer = table.find(&seen.reply, NOW).expect("the other direction came with it");
            assert_eq!((answer.connection, answer.direction), (found.connection, Direction::Reply));
        }
        let created = thread.join().expect("no panic");
        assert!(table.is_live(created));
    });
}

#[test]
fn loom_a_reference_is_never_read_as_the_connection_that_took_its_place() {
    explore(|| {
        let table = table(1);
        let first = create(&table, 0, &opening(1, 5000)).expect("alone");
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || {
            assert!(other.remove(WorkerId(1), first));
            create(&other, 1, &opening(2, 5001)).expect("the entry is free")
        });
        if let Some(seen) = table.view(first) {
            assert_eq!((seen.original, seen.parties.backend), (opening(1, 5000).original, 1));
            assert_eq!((seen.reply, seen.decision.verdict), (opening(1, 5000).forwarded.inverse(), 1));
        }
        table.decide(first, Decision { epoch: 9, verdict: 9 });
        let second = thread.join().expect("no panic");
        let seen = table.view(second).expect("it lives");
        assert_eq!((seen.original, seen.decision.verdict), (opening(2, 5001).original, 2));
        assert_eq!(table.find(&opening(1, 5000).original, NOW), None);
    });
}

#[test]
fn loom_an_advance_and_a_removal_count_a_half_open_connection_once() {
    explore(|| {
        let table = table(1);
        let connection = create(&table, 0, &opening(1, 5000)).expect("alone");
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || other.remove(WorkerId(1), connection));
        let packet = Packet::Tcp(penstock_wire::tcp::SYN | penstock_wire::tcp::ACK);
        let settings = Settings::default();
        let advance =
            |direction, packet| table.advance(WorkerId(0), connection, direction, packet, &settings, NOW);
        advance(Direction::Reply, packet);
        advance(Direction::Original, Packet::Tcp(penstock_wire::tcp::ACK));
        assert!(thread.join().expect("no panic"));
        assert_eq!((table.counts().live, table.counts().half_open), (0, 0));
        assert_eq!(table.share(Owner::endpoint(0)), (0, 0));
    });
}

#[test]
fn loom_a_connection_is_removed_once() {
    explore(|| {
        let table = table(1);
        let connection = create(&table, 0, &opening(1, 5000)).expect("alone");
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || other.remove(WorkerId(1), connection));
        let mine = table.remove(WorkerId(0), connection);
        assert!(mine ^ thread.join().expect("no panic"));
        assert_eq!(table.counts().live, 0);
        assert!(create(&table, 0, &opening(1, 5000)).is_ok());
        // The first one is unassured, so it gives way.
        assert!(create(&table, 0, &opening(2, 5001)).is_ok());
    });
}

/// A connection of one internal address and port to a remote of that number.
fn from_one_host(remote: u8) -> Opening {
    let [src, dst] = [[10, 0, 0, 1], [192, 0, 2, remote]].map(IpAddr::from);
    let original = Tuple::new(NetworkId::default(), src, dst, 17, 7, 53).expect("two hosts of one family");
    let forwarded = original.in_network(NetworkId::new(1).expect("a small number"));
    Opening { original, forwarded, status: Status::of(State::UdpUnreplied), ..opening(1, 5000) }
}

fn bind(table: &Table, worker: u16, remote: u8, now: Seconds) -> Result<ConnectionRef, Refused> {
    let outside = IpAddr::V4([198, 51, 100, 1].into());
    let pool = nat::Pool::new(&[outside], 5000..=5001).expect("a sound pool");
    let pool = pool.mapping(nat::Mapping::EndpointIndependent);
    let settings = Settings::default();
    nat::open(table, WorkerId(worker), &from_one_host(remote), &pool, Limits::NONE, &settings, now)
}

/// The binding of the internal address and port, and how many hold it.
fn binding(table: &Table) -> Option<(ConnectionRef, u64)> {
    let key = from_one_host(1).original.to_anybody(NetworkId::new(1)?);
    let found = table.find_at(table.place(&key), &key).map(|(found, _)| found.connection)?;
    Some((found, entry::uses_of(table.records.at(found.index()))))
}

fn leaves_by(table: &Table, connection: ConnectionRef) -> u16 {
    table.view(connection).expect("it lives").leaves_as(Direction::Original).sport()
}

#[test]
fn loom_connections_of_one_host_leave_by_one_binding_that_each_of_them_holds() {
    explore(|| {
        let table = table(4);
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || bind(&other, 1, 2, NOW));
        let mine = bind(&table, 0, 1, NOW);
        let theirs = thread.join().expect("no panic");
        let ways: Vec<ConnectionRef> = [mine, theirs].into_iter().flatten().collect();
        let refused = [mine, theirs].into_iter().filter_map(Result::err);
        refused.for_each(|refused| assert_eq!(refused, Refused::Contended));
        if let [one, other] = ways[..] {
            assert_eq!(leaves_by(&table, one), leaves_by(&table, other));
        }
        if let Some((binding, uses)) = binding(&table) {
            assert_eq!(uses, ways.len() as u64);
            assert_eq!(table.remove(WorkerId(0), binding), ways.is_empty(), "held, it stays");
        }
        ways.into_iter().for_each(|connection| assert!(table.remove(WorkerId(0), connection)));
        if let Some((binding, uses)) = binding(&table) {
            assert_eq!(uses, 0);
            assert!(table.remove(WorkerId(0), binding));
        }
        assert_eq!(table.counts().live, 0);
    });
}

#[test]
fn loom_a_binding_is_not_forgotten_under_the_hands_of_whoever_takes_hold_of_it() {
    explore(|| {
        let table = table(4);
        let first = bind(&table, 0, 1, NOW).expect("alone");
        assert!(table.remove(WorkerId(0), first));
        let later = NOW.after(Settings::default().timeouts.binding);
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || other.sweep(WorkerId(0), 4, later).expired);
        let opened = bind(&table, 1, 2, later);
        let mut forgotten = thread.join().expect("no panic");
        forgotten += table.sweep(WorkerId(0), 4, later).expired;
        match opened {
            Ok(connection) => {
                let (found, uses) = binding(&table).expect("its binding lives as long as it");
                assert_eq!(uses, 1);
                let external = table.view(found).expect("it lives").reply.dport();
                assert_eq!(leaves_by(&table, connection), external);
            }
            Err(refused) => assert_eq!(refused, Refused::Contended),
        }
        assert!(forgotten <= 1);
    });
}

#[test]
fn loom_a_connection_that_passes_on_and_ends_is_counted_off_once() {
    explore(|| {
        let table = table(1);
        let (former, heir) = (Owner::FORMER, Owner::endpoint(0));
        let parties = Parties { owner: former, receiver: former, backend: 1 };
        let opening = Opening { parties, status: Status::of(State::Established), ..opening(1, 5000) };
        let connection = create(&table, 0, &opening).expect("alone");
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || other.remove(WorkerId(1), connection));
        let passed = Parties { owner: heir, receiver: heir, backend: 2 };
        table.resettle(0..1, |_| Fate::Passes(passed));
        assert!(thread.join().expect("no panic"));
        assert_eq!([former, heir].map(|owner| table.share(owner)), [(0, 0); 2]);
    });
}

#[test]
fn loom_a_sweep_takes_no_connection_that_came_in_the_place_of_one_that_was_over() {
    explore(|| {
        let table = table(2);
        create(&table, 0, &opening(1, 5000)).expect("alone");
        let later = NOW.after(Settings::default().timeouts.tcp_syn_sent);
        let other = Arc::clone(&table);
        let thread = loom::thread::spawn(move || other.sweep(WorkerId(0), 2, later).expired);
        let limits = Limits::NONE;
        let created = table.create(WorkerId(1), &opening(1, 5000), limits, &Settings::default(), later);
        thread.join().expect("no panic");
        match created {
            Ok(connection) => {
                let found = table.find(&opening(1, 5000).original, later).expect("it was just created");
                assert_eq!((found.connection, table.counts().live), (connection, 1));
            }
            Err(refused) => assert_eq!(refused, Refused::Contended),
        }
    });
}
