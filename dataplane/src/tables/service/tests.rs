//! The directory and its tables against a naive reading of the specifications, and the claims one by one.

use super::*;
use penstock_io::TicksPerSecond;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::snapshot::Epoch;

const RATE: TicksPerSecond = TicksPerSecond(2_500_000_000);
const NODE: [u8; 4] = [192, 168, 0, 1];
const VIP: [u8; 4] = [10, 96, 0, 1];
const LB: [u8; 4] = [203, 0, 113, 1];
const CLIENT: [u8; 4] = [198, 51, 100, 7];

fn directory() -> Directory {
    Directory::new(Node { addresses: vec![NODE.into()], zone: Some("a".into()) }, RATE)
}

fn backend(number: u8) -> BackendSpec {
    BackendSpec {
        address: [10, 1, 0, number].into(),
        port: 8080,
        is_local: false,
        zone: None,
        state: BackendState::Ready,
        weight: 1,
    }
}

fn local(number: u8) -> BackendSpec {
    BackendSpec { is_local: true, ..backend(number) }
}

fn terminating(spec: BackendSpec) -> BackendSpec {
    BackendSpec { state: BackendState::Terminating, ..spec }
}

fn port(backends: Vec<BackendSpec>) -> PortSpec {
    PortSpec { protocol: Protocol::Tcp, port: 80, node_port: Some(30_080), backends }
}

fn service(name: &str, backends: Vec<BackendSpec>) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        network: Vni::MAX,
        cluster_ips: vec![VIP.into()],
        external_ips: vec![],
        load_balancer_ips: vec![LB.into()],
        ports: vec![port(backends)],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        topology: Topology::Anywhere,
        is_direct: false,
        health_check_port: None,
        source_ranges: vec![],
    }
}

fn query(origin: Origin, src: [u8; 4], dst: [u8; 4], dport: u16) -> Query {
    let (src, dst) = (src.into(), dst.into());
    Query { network: Vni::MAX, origin, src, sport: 4000, dst, dport, protocol: Protocol::Tcp }
}

fn from_pod() -> Query {
    query(Origin::Endpoint, [10, 1, 0, 200], VIP, 80)
}

fn from_outside() -> Query {
    query(Origin::Outside, CLIENT, LB, 80)
}

fn tables(spec: ServiceSpec) -> Arc<Services> {
    let mut directory = directory();
    directory.upsert(spec).expect("a sound service");
    directory.tables()
}

fn ask(tables: &Services, query: Query) -> Answer {
    tables.decide(&query, &Affinity::with_capacity(64), Ticks(1 << 40))
}

/// Everybody who answers some of a thousand connections.
fn answering(tables: &Services, query: Query) -> HashSet<IpAddr> {
    let connections = (0..1000).map(|sport| ask(tables, Query { sport, ..query }));
    connections
        .map(|answer| match answer {
            Answer::Backend(chosen) => chosen.address,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn chosen(tables: &Services, query: Query) -> Chosen {
    match ask(tables, query) {
        Answer::Backend(chosen) => chosen,
        other => panic!("{other:?}"),
    }
}

fn set(numbers: &[u8]) -> HashSet<IpAddr> {
    numbers.iter().map(|number| IpAddr::from([10, 1, 0, *number])).collect()
}

#[test]
fn every_frontend_leads_to_every_backend_and_others_to_none() {
    let tables = tables(service("web", vec![backend(1), backend(2), local(3)]));
    for query in [from_pod(), from_outside(), query(Origin::Outside, CLIENT, NODE, 30_080)] {
        assert_eq!(answering(&tables, query), set(&[1, 2, 3]));
    }
    assert_eq!(chosen(&tables, query(Origin::Outside, CLIENT, NODE, 30_080)).kind, FrontendKind::NodePort);
    let udp = Query { protocol: Protocol::Udp, ..from_pod() };
    let no_port = Answer::Reject(RejectCause::NoSuchPort);
    assert_eq!((ask(&tables, udp), ask(&tables, Query { dport: 81, ..from_pod() })), (no_port, no_port));
    let elsewhere = Query { network: Vni::new(1).unwrap(), ..from_pod() };
    for query in [
        elsewhere,
        query(Origin::Outside, CLIENT, LB, 81),
        query(Origin::Outside, CLIENT, [192, 168, 0, 2], 30_080),
        query(Origin::Outside, CLIENT, NODE, 80),
    ] {
        assert_eq!(ask(&tables, query), Answer::NotAService);
    }
}

#[test]
fn terminating_backends_get_new_connections_only_when_no_other_is_ready() {
    let some = tables(service("web", vec![terminating(backend(1)), backend(2)]));
    assert_eq!(answering(&some, from_pod()), set(&[2]));
    let all = tables(service("web", vec![terminating(backend(1)), terminating(backend(2))]));
    assert_eq!(answering(&all, from_pod()), set(&[1, 2]));
    let local_only = ServiceSpec {
        external_policy: TrafficPolicy::Local,
        ..service("web", vec![terminating(local(1)), backend(2)])
    };
    assert_eq!(answering(&tables(local_only), from_outside()), set(&[1]));
}

#[test]
fn without_backends_a_connection_is_refused_and_without_local_ones_dropped() {
    let none = ServiceSpec { internal_policy: TrafficPolicy::Local, ..service("web", vec![]) };
    let none = tables(none);
    let refused = Answer::Reject(RejectCause::NoBackend);
    assert_eq!((ask(&none, from_pod()), ask(&none, from_outside())), (refused, refused));
    let remote = |internal_policy, external_policy| {
        tables(ServiceSpec { internal_policy, external_policy, ..service("web", vec![backend(1)]) })
    };
    let dropped = Answer::Drop(DropCause::NoLocalBackend);
    let internal = remote(TrafficPolicy::Local, TrafficPolicy::Cluster);
    assert_eq!(ask(&internal, from_pod()), dropped);
    assert_eq!(answering(&internal, from_outside()), set(&[1]));
    let external = remote(TrafficPolicy::Cluster, TrafficPolicy::Local);
    assert_eq!(ask(&external, from_outside()), dropped);
    assert_eq!(answering(&external, from_pod()), set(&[1]));
    // Who asks the outside address from inside may use every backend.
    let inside = Query { origin: Origin::Endpoint, ..from_outside() };
    assert_eq!(answering(&external, inside), set(&[1]));
}

#[test]
fn a_backend_of_no_weight_or_of_the_other_family_gets_nothing() {
    let idle = BackendSpec { weight: 0, ..backend(1) };
    let v6 = BackendSpec { address: "2001:db8::1".parse().unwrap(), ..backend(3) };
    let tables = tables(service("web", vec![idle, backend(2), v6]));
    assert_eq!(answering(&tables, from_pod()), set(&[2]));
}

#[test]
fn near_backends_are_preferred_while_one_is_ready() {
    let zoned = |number, zone: &str| BackendSpec { zone: Some(zone.into()), ..backend(number) };
    let of = |topology, backends| tables(ServiceSpec { topology, ..service("web", backends) });
    let all = vec![local(1), zoned(2, "a"), zoned(3, "b")];
    assert_eq!(answering(&of(Topology::SameNode, all.clone()), from_pod()), set(&[1]));
    assert_eq!(answering(&of(Topology::SameZone, all.clone()), from_pod()), set(&[2]));
    assert_eq!(answering(&of(Topology::Anywhere, all), from_pod()), set(&[1, 2, 3]));
    let far = vec![terminating(local(1)), zoned(2, "a"), zoned(3, "b")];
    assert_eq!(answering(&of(Topology::SameNode, far), from_pod()), set(&[2]));
    assert_eq!(answering(&of(Topology::SameNode, vec![zoned(3, "b")]), from_pod()), set(&[3]));
}

#[test]
fn another_zone_of_the_node_prefers_other_backends() {
    let mut directory = directory();
    let zoned = |number, zone: &str| BackendSpec { zone: Some(zone.into()), ..backend(number) };
    let spec = service("web", vec![zoned(1, "a"), zoned(2, "b")]);
    directory.upsert(ServiceSpec { topology: Topology::SameZone, ..spec }).unwrap();
    let before = directory.tables();
    directory.set_node(Node { addresses: vec![[192, 168, 0, 9].into()], zone: Some("b".into()) });
    assert_eq!(answering(&before, from_pod()), set(&[1]));
    assert_eq!(answering(&directory.tables(), from_pod()), set(&[2]));
    let node_port = |node| ask(&directory.tables(), query(Origin::Outside, CLIENT, node, 30_080));
    assert_eq!(node_port(NODE), Answer::NotAService);
    assert!(matches!(node_port([192, 168, 0, 9]), Answer::Backend(_)));
}

#[test]
fn the_source_is_replaced_where_answers_would_miss_this_node() {
    let of = |spec: BackendSpec, is_direct, query| {
        let chosen = chosen(&tables(ServiceSpec { is_direct, ..service("web", vec![spec]) }), query);
        (chosen.source, chosen.is_direct)
    };
    let as_origin = |origin| Query { origin, ..from_outside() };
    assert_eq!(of(backend(1), false, from_outside()), (SourceNat::Node, false));
    assert_eq!(of(local(1), false, from_outside()), (SourceNat::Keep, false));
    assert_eq!(of(backend(1), false, from_pod()), (SourceNat::Keep, false));
    assert_eq!(of(backend(1), false, as_origin(Origin::Node)), (SourceNat::Node, false));
    assert_eq!(of(backend(1), false, as_origin(Origin::Cluster)), (SourceNat::Node, false));
    assert_eq!(of(backend(1), true, from_outside()), (SourceNat::Keep, true));
    assert_eq!(of(local(1), true, from_outside()), (SourceNat::Keep, false));
    assert_eq!(of(backend(1), true, from_pod()), (SourceNat::Keep, false));
    let itself = Query { src: [10, 1, 0, 1].into(), ..from_pod() };
    assert_eq!(of(local(1), false, itself), (SourceNat::Hairpin, false));
}

#[test]
fn source_ranges_close_the_load_balancers_addresses_only() {
    let ranges = vec!["198.51.100.0/24".parse().unwrap()];
    let tables = tables(ServiceSpec { source_ranges: ranges, ..service("web", vec![backend(1)]) });
    let stranger = Query { src: [203, 0, 113, 99].into(), ..from_outside() };
    assert_eq!(ask(&tables, stranger), Answer::Drop(DropCause::SourceNotAllowed));
    assert_eq!(answering(&tables, from_outside()), set(&[1]));
    let at_node = Query { dst: NODE.into(), dport: 30_080, ..stranger };
    assert_eq!(answering(&tables, at_node), set(&[1]));
}

#[test]
fn a_client_keeps_its_backend_until_that_is_gone_or_the_client_has_been() {
    let affinity = Affinity::with_capacity(1024);
    let mut directory = directory();
    let of = |backends| ServiceSpec { affinity: Some(Duration::from_secs(60)), ..service("web", backends) };
    directory.upsert(of((1..=9).map(backend).collect())).unwrap();
    let met = |directory: &Directory, sport, seconds: u64| {
        let query = Query { sport, ..from_outside() };
        match directory.tables().decide(&query, &affinity, Ticks(seconds * RATE.0)) {
            Answer::Backend(chosen) => chosen.address,
            other => panic!("{other:?}"),
        }
    };
    let first = met(&directory, 1, 1000);
    assert!((2..100).all(|sport| met(&directory, sport, 1001) == first));
    // Others coming and going changes nothing for this client, whatever the table says by now.
    let rest: Vec<_> =
        (1..=9).map(backend).filter(|one| one.address == first).chain((20..60).map(backend)).collect();
    directory.upsert(of(rest.clone())).unwrap();
    assert_eq!(met(&directory, 5, 1002), first);
    // Its own backend leaving does.
    let without: Vec<_> =
        rest.iter().cloned().map(|one| if one.address == first { terminating(one) } else { one }).collect();
    directory.upsert(of(without)).unwrap();
    let second = met(&directory, 6, 1003);
    assert_ne!(second, first);
    assert_eq!(met(&directory, 7, 1004), second);
}

#[test]
fn a_backend_keeps_its_number_while_it_exists_and_nobody_gets_it_while_it_is_held() {
    let mut directory = directory();
    let number_of = |directory: &Directory, last: u8| {
        let (_, ports) = directory.get("web").unwrap();
        let found = ports[0].backends().iter().find(|one| one.address == IpAddr::from([10, 1, 0, last]));
        found.map(|one| one.id)
    };
    directory.upsert(service("web", vec![backend(1), backend(2)])).unwrap();
    let [first, second] = [1, 2].map(|last| number_of(&directory, last).unwrap());
    let tables = directory.tables();
    assert_eq!(
        tables.backend(first).map(|(port, one)| (port.service(), one.address)),
        Some(("web", [10, 1, 0, 1].into()))
    );
    directory.upsert(service("web", vec![backend(9), backend(2), backend(3)])).unwrap();
    assert_eq!(number_of(&directory, 2), Some(second));
    assert!(directory.tables().backend(first).is_none() && tables.backend(first).is_some());
    directory.published(Epoch(2));
    let mut held = Marks::new();
    held.add(first);
    assert_eq!(directory.reclaim(Epoch(2), &held), 0);
    assert_eq!(directory.reclaim(Epoch(2), &Marks::new()), 1);
    directory.upsert(service("web", vec![backend(2), backend(3), backend(4), backend(9)])).unwrap();
    assert_eq!(number_of(&directory, 4), Some(first));
    assert!(directory.remove("web") && !directory.remove("web"));
    assert!(directory.tables().is_empty() && directory.tables().backend(second).is_none());
}

#[test]
fn a_change_touches_its_own_service_port_only() {
    let mut directory = directory();
    let two = |backends: Vec<BackendSpec>| {
        let second = PortSpec { port: 443, node_port: None, ..port(vec![backend(1)]) };
        ServiceSpec { ports: vec![port(backends), second], ..service("web", vec![]) }
    };
    directory.upsert(two(vec![backend(1)])).unwrap();
    let before = directory.get("web").unwrap().1.to_vec();
    assert_eq!(directory.upsert(two(vec![backend(1)])), Ok(false));
    assert_eq!(directory.upsert(two(vec![backend(2)])), Ok(true));
    let after = directory.get("web").unwrap().1;
    assert!(!Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
}

#[test]
fn the_first_by_name_has_a_contested_frontend_and_the_next_takes_over() {
    let mut directory = directory();
    let holder = |directory: &Directory| {
        directory.tables().find(&from_outside()).map(|(port, _)| port.service().to_owned())
    };
    for name in ["b", "c", "a"] {
        directory.upsert(service(name, vec![backend(1)])).unwrap();
    }
    assert_eq!(holder(&directory).as_deref(), Some("a"));
    let mut contested: Vec<_> = directory.contested().map(|one| (one.holder, one.others)).collect();
    contested.dedup();
    assert_eq!(contested, [("a".to_owned(), vec!["b".to_owned(), "c".to_owned()])]);
    directory.remove("a");
    assert_eq!(holder(&directory).as_deref(), Some("b"));
    directory.upsert(ServiceSpec { load_balancer_ips: vec![], ..service("b", vec![backend(1)]) }).unwrap();
    assert_eq!(holder(&directory).as_deref(), Some("c"));
    directory.remove("c");
    assert_eq!((holder(&directory), directory.contested().count()), (None, 0));
    assert!(directory.tables().is_cluster_ip(Vni::MAX, VIP.into()));
    assert!(directory.resync(vec![]).is_empty() && directory.tables().is_empty());
    assert!(!directory.tables().is_cluster_ip(Vni::MAX, VIP.into()));
}

#[test]
fn faults_are_named_and_the_old_service_goes_on() {
    let mut directory = directory();
    directory.upsert(service("web", vec![backend(1)])).unwrap();
    let mut refused = |ports: Vec<PortSpec>| {
        directory.upsert(ServiceSpec { ports, ..service("web", vec![]) }).unwrap_err().to_string()
    };
    assert!(refused(vec![PortSpec { port: 0, ..port(vec![]) }]).contains("port 0"));
    assert!(refused(vec![port(vec![]), port(vec![])]).contains("Tcp port 80 is listed twice"));
    assert!(refused(vec![port(vec![backend(1), local(1)])]).contains("10.1.0.1 port 8080"));
    assert_eq!(answering(&directory.tables(), from_pod()), set(&[1]));
}

#[test]
fn load_balancers_are_told_of_ready_local_backends() {
    let mut directory = directory();
    let backends = vec![local(1), local(2), terminating(local(3)), backend(4)];
    let spec = ServiceSpec { health_check_port: Some(31_000), ..service("web", backends) };
    directory.upsert(spec.clone()).unwrap();
    assert_eq!(directory.health_checks().count(), 0, "every node serves a Cluster service");
    directory.upsert(ServiceSpec { external_policy: TrafficPolicy::Local, ..spec }).unwrap();
    let check = HealthCheck { port: 31_000, service: "web", local_ready: 2 };
    assert_eq!(directory.health_checks().collect::<Vec<_>>(), [check]);
}

/// Who may answer, read off the specifications one after the other.
fn naive(services: &BTreeMap<String, ServiceSpec>, query: &Query) -> Result<HashSet<(IpAddr, u16)>, Answer> {
    for spec in services.values() {
        for port in spec.ports.iter().filter(|port| port.protocol == query.protocol) {
            let at = |addresses: &[IpAddr]| {
                addresses.contains(&query.dst) && port.port == query.dport && spec.network == query.network
            };
            let at_node = query.dst == IpAddr::from(NODE) && port.node_port == Some(query.dport);
            let is_internal = at(&spec.cluster_ips);
            if !(is_internal || at_node || at(&spec.load_balancer_ips)) {
                continue;
            }
            let policy = match query.origin {
                _ if is_internal => spec.internal_policy,
                Origin::Outside => spec.external_policy,
                _ => TrafficPolicy::Cluster,
            };
            let alive: Vec<_> = port.backends.iter().filter(|one| one.weight > 0).collect();
            let may: Vec<_> =
                alive.iter().filter(|one| policy == TrafficPolicy::Cluster || one.is_local).collect();
            let ready: Vec<_> = may.iter().filter(|one| one.state == BackendState::Ready).collect();
            let used = if ready.is_empty() { may.iter().collect() } else { ready };
            return match (alive.is_empty(), used.is_empty()) {
                (true, _) => Err(Answer::Reject(RejectCause::NoBackend)),
                (_, true) => Err(Answer::Drop(DropCause::NoLocalBackend)),
                _ => Ok(used.iter().map(|one| (one.address, one.port)).collect()),
            };
        }
    }
    let owned =
        services.values().any(|one| one.network == query.network && one.cluster_ips.contains(&query.dst));
    Err(if owned { Answer::Reject(RejectCause::NoSuchPort) } else { Answer::NotAService })
}

prop_compose! {
    fn any_backend()(number in 1..30u8, is_local: bool, leaves: bool, weight in 0..3u32) -> BackendSpec {
        let state = if leaves { BackendState::Terminating } else { BackendState::Ready };
        BackendSpec { is_local, state, weight, ..backend(number) }
    }
}

fn policy(is_local: bool) -> TrafficPolicy {
    if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

prop_compose! {
    fn any_service()(
        name in 0..5u8, backends in prop::collection::vec(any_backend(), 0..6), internal: bool, external: bool,
        vip in 0..4u8, balanced: bool, node_port in prop::option::of(30_000..30_003u16), sticky: bool,
    ) -> ServiceSpec {
        let mut backends = backends;
        let mut seen = HashSet::new();
        backends.retain(|one| seen.insert(one.address));
        ServiceSpec {
            cluster_ips: vec![[10, 96, 0, vip].into()],
            load_balancer_ips: if balanced { vec![LB.into()] } else { vec![] },
            ports: vec![PortSpec { node_port, ..port(backends) }],
            internal_policy: policy(internal),
            external_policy: policy(external),
            affinity: sticky.then_some(Duration::from_secs(10)),
            ..service(&format!("s{name}"), vec![])
        }
    }
}

proptest! {
    #[test]
    fn answers_are_those_of_a_naive_reading_after_any_history(
        history in prop::collection::vec((any_service(), any::<bool>()), 1..25),
    ) {
        let (mut directory, mut model) = (directory(), BTreeMap::new());
        let affinity = Affinity::with_capacity(256);
        let mut numbers: HashMap<BackendId, (String, IpAddr)> = HashMap::new();
        for (step, (spec, removes)) in history.into_iter().enumerate() {
            if removes {
                prop_assert_eq!(directory.remove(&spec.name), model.remove(&spec.name).is_some());
            } else {
                directory.upsert(spec.clone()).unwrap();
                model.insert(spec.name.clone(), spec);
            }
            let tables = directory.tables();
            for origin in [Origin::Endpoint, Origin::Outside] {
                let vips = (0..5).map(|last| ([10, 96, 0, last], 80));
                let nodes = (30_000..30_004).map(|port| (NODE, port));
                for (dst, dport) in vips.chain(nodes).chain([(LB, 80), (LB, 81)]) {
                    let query = Query { sport: step as u16, ..query(origin, CLIENT, dst, dport) };
                    let answer = tables.decide(&query, &affinity, Ticks(step as u64 * RATE.0));
                    match (answer, naive(&model, &query)) {
                        (Answer::Backend(chosen), Ok(expected)) => {
                            prop_assert!(expected.contains(&(chosen.address, chosen.port)), "{:?}", chosen);
                            // A number means one backend of one service as long as nothing is reclaimed.
                            let (port, one) = tables.backend(chosen.backend).unwrap();
                            let meaning = (port.service().to_owned(), one.address);
                            prop_assert_eq!(numbers.entry(chosen.backend).or_insert_with(|| meaning.clone()), &meaning);
                        }
                        (answer, Err(expected)) => prop_assert_eq!(answer, expected),
                        (answer, expected) => prop_assert!(false, "{:?} for {:?}", answer, expected),
                    }
                }
            }
        }
    }
}
