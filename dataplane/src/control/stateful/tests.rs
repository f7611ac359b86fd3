use std::time::Duration;

use futures::StreamExt;
use penstock_api::file::parse_objects;
use penstock_api::model::Node;
use penstock_api::proto::dataplane_server::Dataplane;
use penstock_api::query::EventKind;
use tokio::sync::mpsc;
use tonic::{Code, Request};

use super::*;
use crate::tables::desired::Change;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn desired() -> Desired {
    let mut desired = Desired::new(Node { name: name("node1"), mac: None }, None);
    let text = r#"
        [[network]]
        name = "blue"
        vni = 7
        [[identity]]
        name = "web"
        network = "blue"
        [[tier]]
        name = "last"
        order = 9
        default = "pass"
        [[tier]]
        name = "first"
        order = 1
        default = "deny"
        [[policy]]
        name = "b"
        network = "blue"
        tier = "first"
        order = 2
        subjects = "all"
        directions = ["egress"]
        staged = true
        [[policy]]
        name = "a"
        network = "blue"
        tier = "first"
        order = 2
        subjects = { identities = ["web"] }
        directions = ["ingress"]
        rules = [{ name = "r", direction = "ingress", action = "allow", ports = [{ protocol = "tcp", port = 80 }] }]
        [[service]]
        name = "s"
        network = "blue"
        cluster-ips = ["10.96.0.1"]
        ports = [{ name = "http", port = 80 }, { name = "dns", port = 53, protocol = "udp" }]
        [[backends]]
        service = "s"
        slice = "1"
        ports = [{ name = "http", port = 8080 }]
        members = [{ address = "10.1.0.1", state = "terminating" }, { address = "10.1.0.2" }]
        [[backends]]
        service = "s"
        slice = "2"
        ports = [{ name = "http", port = 9090 }, { name = "dns", port = 53 }]
        members = [{ address = "10.1.0.3", weight = 3, zone = "z" }]
    "#;
    desired.apply(Change::Upsert(parse_objects(text, "t.toml").unwrap())).unwrap();
    desired
}

fn counts() -> RuleTotals {
    RuleTotals::of(&[("a", "r", 17)], &[("first", 3, 5)])
}

/// Each backend has as many connections as its port's number.
fn connected() -> Connected {
    let key = |address: &str, backend, protocol, port| BackendKey {
        service: "s".into(),
        protocol,
        port,
        backend: (address.parse().unwrap(), backend),
    };
    let backends = [("10.1.0.1", 8080, 6, 80), ("10.1.0.3", 9090, 6, 80), ("10.1.0.3", 53, 17, 53)];
    backends.map(|(address, it, protocol, port)| (key(address, it, protocol, port), u64::from(it))).into()
}

#[test]
fn policies_are_listed_as_packets_meet_them() {
    let all = policy_list(&desired(), &PolicyQuery::default(), &counts());
    let tiers: Vec<_> = all
        .tiers
        .iter()
        .map(|tier| (tier.name.as_str(), tier.default_hits, tier.staged_default_hits))
        .collect();
    assert_eq!(tiers, [("first", 3, 5), ("last", 0, 0)]);
    let first: Vec<&str> = all.tiers[0].policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(first, ["a", "b"]);
    let a = &all.tiers[0].policies[0];
    assert_eq!((a.subjects.as_slice(), a.selects_all), (&["web".to_owned()][..], false));
    let rule = &a.rules[0];
    assert_eq!((rule.action.as_str(), rule.ports[0].as_str(), rule.hits), ("allow", "tcp 80", Some(17)));
    assert!(all.tiers[0].policies[1].selects_all);
}

#[test]
fn who_asks_for_some_policies_gets_no_others() {
    let staged = policy_list(&desired(), &PolicyQuery { staged: true, ..Default::default() }, &counts());
    assert_eq!((staged.tiers.len(), staged.tiers[0].policies.len()), (1, 1));
    let last =
        policy_list(&desired(), &PolicyQuery { tier: Some(name("last")), ..Default::default() }, &counts());
    assert_eq!((last.tiers.len(), last.tiers[0].policies.len()), (1, 0));
    let none =
        policy_list(&desired(), &PolicyQuery { network: Some(name("x")), ..Default::default() }, &counts());
    assert!(none.tiers.is_empty());
}

#[test]
fn a_services_port_has_the_backends_of_every_slice_that_serves_it() {
    let list = service_list(&desired(), &ServiceQuery::default(), &connected());
    let [http, dns] = list.services[0].ports.as_slice() else { panic!("two ports") };
    let said: Vec<(&str, u32, &str, u64)> = http
        .backends
        .iter()
        .map(|it| (it.address.as_str(), it.port, it.state.as_str(), it.connections))
        .collect();
    assert_eq!(
        said,
        [
            ("10.1.0.1", 8080, "terminating", 8080),
            ("10.1.0.2", 8080, "ready", 0),
            ("10.1.0.3", 9090, "ready", 9090)
        ]
    );
    assert_eq!((dns.backends.len(), dns.protocol, dns.backends[0].connections), (1, 17, 53));
    let none =
        service_list(&desired(), &ServiceQuery { service: Some(name("x")), network: None }, &connected());
    assert!(none.services.is_empty());
}

/// 100 connections in pieces of 7, every second piece empty.
struct Hundred;

impl Connections for Hundred {
    fn piece(&self, _: &ConnectionQuery, place: u64) -> (Vec<proto::Connection>, Option<u64>) {
        let next = (place + 7 < 200).then_some(place + 7);
        if place % 2 == 1 {
            return (Vec::new(), next);
        }
        let piece = (place..(place + 7).min(200)).filter(|number| number % 2 == 0);
        let connection = |number| proto::Connection { idle_ms: number, ..Default::default() };
        (piece.map(connection).collect(), next)
    }
}

fn service(sources: Sources) -> Service {
    let (engine, _) = mpsc::channel(1);
    Service::new(engine).with_sources(sources)
}

#[tokio::test]
async fn connections_are_listed_piece_by_piece_up_to_the_limit() {
    let service = service(Sources { connections: Some(Arc::new(Hundred)), ..Default::default() });
    let count = async |limit| {
        let query = ConnectionQuery { limit, ..Default::default() };
        let stream = connections(&service, query).unwrap_or_else(|status| panic!("{status}"));
        stream.collect::<Vec<_>>().await.len()
    };
    let all = count(None).await;
    assert!(all > 40, "{all}");
    assert_eq!((count(Some(10)).await, count(Some(0)).await), (10, 0));
    assert_eq!(count(Some(1000)).await, all);
}

fn event(network: &str) -> proto::Event {
    proto::Event {
        network: network.to_owned(),
        detail: Some(proto::event::Detail::Rule(proto::RuleEvent::default())),
        ..Default::default()
    }
}

#[tokio::test]
async fn who_watches_is_told_what_was_asked_for_and_what_was_lost() {
    let (sender, _) = broadcast::channel(4);
    let service = service(Sources { events: Some(sender.clone()), ..Default::default() });
    let order = EventOrder {
        kinds: vec![EventKind::Rule],
        network: Some(name("blue")),
        count: Some(2),
        ..Default::default()
    };
    let mut watch = events(&service, order).unwrap_or_else(|status| panic!("{status}"));
    for network in ["blue", "blue", "red", "red", "red", "blue", "blue"] {
        sender.send(event(network)).unwrap();
    }
    // Four fit: the three oldest are gone, two that were kept are not asked for.
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!((told.network.as_str(), told.lost), ("blue", 3));
    assert_eq!(watch.next().await.unwrap().unwrap().lost, 0);
    assert!(watch.next().await.is_none(), "two were asked for");
}

#[tokio::test]
async fn watching_ends_when_its_time_is_up() {
    let (sender, _) = broadcast::channel(4);
    let service = service(Sources { events: Some(sender.clone()), ..Default::default() });
    let order = EventOrder { duration: Some(Duration::from_millis(200)), ..Default::default() };
    let mut watch = events(&service, order).unwrap_or_else(|status| panic!("{status}"));
    sender.send(event("blue")).unwrap();
    assert!(watch.next().await.is_some());
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn what_has_no_source_is_not_pretended() {
    let service = service(Sources::default());
    let codes = [
        service.list_connections(Request::new(proto::ConnectionsRequest::default())).await.err(),
        service.list_policies(Request::new(proto::PoliciesRequest::default())).await.err(),
        service.list_services(Request::new(proto::ServicesRequest::default())).await.err(),
        service.watch_events(Request::new(proto::EventsRequest::default())).await.err(),
    ]
    .map(|status| status.map(|status| (status.code(), status.message().is_empty())));
    assert_eq!(codes, [Some((Code::Unimplemented, false)); 4]);
}
