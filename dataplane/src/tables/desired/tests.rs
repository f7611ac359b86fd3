use super::*;
use penstock_api::file::parse_objects;

fn desired() -> Desired {
    let node = Node { name: "node1".parse().unwrap(), mac: None };
    Desired::new(node, None)
}

fn objects(text: &str) -> Vec<Object> {
    parse_objects(text, "test.toml").unwrap()
}

const GOOD: &str = r#"
    [[network]]
    name = "default"
    vni = 100
    prefixes = ["10.1.0.0/16"]
    [[endpoint]]
    name = "web"
    network = "default"
    mac = "02:00:00:00:00:01"
    addresses = ["10.1.0.2"]
    attachment = { veth = { interface = "p1" } }
"#;

#[test]
fn a_faulty_change_leaves_everything_as_it_was() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(GOOD))).unwrap();
    let before: Vec<Object> = desired.objects().cloned().collect();
    let bad = GOOD.replace("\"web\"", "\"api\"");
    let faults = desired.apply(Change::Upsert(objects(&bad))).unwrap_err();
    // The address and the interface are web's.
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(desired.objects().eq(before.iter()));
    assert_eq!(desired.generation(), 1);
    assert!(desired.apply(Change::Delete(vec![Key::Network("default".parse().unwrap())])).is_err());
    assert!(desired.objects().eq(before.iter()));
}

#[test]
fn a_resync_sweeps_what_is_not_listed() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(GOOD))).unwrap();
    let network_only = &GOOD[..GOOD.find("[[endpoint]]").unwrap()];
    desired.apply(Change::Resync(objects(network_only))).unwrap();
    assert_eq!((desired.endpoints().count(), desired.networks().count()), (0, 1));
}

#[test]
fn deleting_what_is_not_there_is_a_fault_that_names_it() {
    let faults = desired().apply(Change::Delete(vec![Key::Peer("node9".parse().unwrap())])).unwrap_err();
    assert!(faults[0].to_string().contains("peer \"node9\""));
}

/// Everything of the stateful tier, in which nothing is wrong.
const STATEFUL: &str = r#"
    [[network]]
    name = "blue"
    vni = 7
    prefixes = ["10.1.0.0/16"]
    [[network]]
    name = "red"
    vni = 8
    [[identity]]
    name = "web"
    network = "blue"
    [[identity]]
    name = "red-web"
    network = "red"
    [[endpoint]]
    name = "web-0"
    network = "blue"
    mac = "02:00:00:00:00:01"
    addresses = ["10.1.0.2"]
    attachment = { veth = { interface = "p1" } }
    identity = "web"
    [[tier]]
    name = "app"
    order = 1
    default = "deny"
    [[policy]]
    name = "p"
    network = "blue"
    tier = "app"
    subjects = { identities = ["web"] }
    directions = ["ingress"]
    [[policy.rules]]
    name = "r"
    direction = "ingress"
    action = "allow"
    peers = [{ identity = "web" }]
    [[service]]
    name = "s"
    network = "blue"
    cluster-ips = ["10.96.0.1"]
    external-ips = ["192.0.2.7"]
    ports = [{ name = "http", port = 80, node-port = 30080 }, { name = "high", port = 50000 }]
    [[backends]]
    service = "s"
    ports = [{ name = "http", port = 8080 }]
    members = [{ address = "10.1.0.2" }]
    [[nat-pool]]
    name = "out"
    network = "blue"
    sources = ["10.1.0.0/16"]
    [[egress-ip]]
    name = "e"
    network = "blue"
    identities = ["web"]
    address = "192.0.2.9"
"#;

/// What is wrong with upserting `text` where [`STATEFUL`] is; nothing of it may stay.
fn refused(text: &str) -> Vec<String> {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(STATEFUL))).unwrap();
    let before: Vec<Object> = desired.objects().cloned().collect();
    let faults = desired.apply(Change::Upsert(objects(text))).unwrap_err();
    assert!(faults.iter().all(|fault| !fault.mend.is_empty()), "{faults:#?}");
    assert!(desired.objects().eq(before.iter()));
    // Had a trace of it stayed in the index, it would be in the way now.
    let again: Vec<Object> = desired.objects().cloned().collect();
    desired.apply(Change::Resync(Vec::new())).unwrap();
    desired.apply(Change::Upsert(again)).unwrap();
    faults.iter().map(Fault::to_string).collect()
}

fn assert_refused(text: &str, part: &str) {
    let said = refused(text);
    assert!(said.iter().any(|line| line.contains(part)), "nothing about {part:?} in {said:#?}");
    assert_eq!(said.len(), 1, "{said:#?}");
}

#[test]
fn what_an_object_names_must_be_there() {
    for (text, part) in [
        (STATEFUL.replace("tier = \"app\"", "tier = \"none\""), "`tier`: there is no tier \"none\""),
        (
            STATEFUL.replace("identity = \"web\"\n    [[tier", "identity = \"who\"\n    [[tier"),
            "endpoint \"web-0\", `identity`: there is no identity \"who\"",
        ),
        (
            STATEFUL.replace("peers = [{ identity = \"web\" }]", "peers = [{ identity = \"who\" }]"),
            "policy \"p\", `rules[0].peers[0].identity`: there is no identity \"who\"",
        ),
        (
            STATEFUL.replace("service = \"s\"", "service = \"t\""),
            "backends \"main\" of service \"t\", `service`: there is no service \"t\"",
        ),
        (
            STATEFUL.replace("identities = [\"web\"]\n    address", "identities = [\"who\"]\n    address"),
            "egress-ip \"e\", `identities`: there is no identity \"who\"",
        ),
    ] {
        assert_refused(&text, part);
    }
}

#[test]
fn an_identity_is_named_within_its_network_only() {
    let text = STATEFUL.replace("peers = [{ identity = \"web\" }]", "peers = [{ identity = \"red-web\" }]");
    assert_refused(&text, "identity \"red-web\" is in network \"red\", not in \"blue\"");
    // The one that is named moves away: those that name it are at fault.
    let moved = "[[identity]]\nname = \"web\"\nnetwork = \"red\"";
    let said = refused(moved);
    assert_eq!(said.len(), 4, "the endpoint, the policy twice and the egress address: {said:#?}");
}

#[test]
fn what_is_still_named_cannot_be_deleted() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(STATEFUL))).unwrap();
    let name = |name: &str| name.parse().unwrap();
    for (key, by) in [
        (Key::Identity(name("web")), "endpoint \"web-0\", `identity`"),
        (Key::Tier(name("app")), "policy \"p\", `tier`"),
        (Key::Service(name("s")), "backends \"main\" of service \"s\", `service`"),
    ] {
        let faults = desired.apply(Change::Delete(vec![key])).unwrap_err();
        assert!(faults.iter().any(|fault| fault.to_string().starts_with(by)), "{faults:#?}");
    }
    let slice = Key::Backends { service: name("s"), slice: name("main") };
    desired.apply(Change::Delete(vec![Key::Service(name("s")), slice])).unwrap();
    assert_eq!((desired.services().count(), desired.backends(&name("s")).count()), (0, 0));
}

#[test]
fn a_pod_may_leave_though_an_egress_address_names_it() {
    let mut desired = desired();
    let by_endpoint =
        STATEFUL.replace("identities = [\"web\"]\n    address", "endpoints = [\"web-0\"]\n    address");
    desired.apply(Change::Upsert(objects(&by_endpoint))).unwrap();
    desired.apply(Change::Delete(vec![Key::Endpoint("web-0".parse().unwrap())])).unwrap();
    assert_eq!((desired.endpoints().count(), desired.egress_ips().count()), (0, 1));
}

#[test]
fn what_only_one_may_have_is_not_given_twice() {
    let service = |rest: &str| format!("[[service]]\nname = \"t\"\nnetwork = \"blue\"\n{rest}");
    for (text, part) in [
        (
            service("cluster-ips = [\"10.96.0.1\"]\nports = [{ name = \"a\", port = 80 }]"),
            "service \"t\", `ports`: tcp port 80 at 10.96.0.1 is that of service \"s\" too",
        ),
        (
            service("cluster-ips = [\"10.96.0.2\"]\nports = [{ name = \"a\", port = 80, node-port = 30080 }]"),
            "service \"t\", `ports`: tcp node port 30080 is that of service \"s\" too",
        ),
        (
            service("cluster-ips = [\"10.96.0.2\"]\nports = [{ name = \"a\", port = 80, node-port = 50001 }]"),
            "`ports`: 50001 is none of this node's node ports, 30000-32767, but one of 49152-65535, source-ports",
        ),
        (
            service("cluster-ips = [\"10.1.0.2\"]\nports = [{ name = \"a\", port = 80 }]"),
            "10.1.0.2 is an address of endpoint \"web-0\" too",
        ),
        (
            "[[nat-pool]]\nname = \"o2\"\nnetwork = \"blue\"\nsources = [\"10.1.0.0/16\"]".to_owned(),
            "nat-pool \"o2\", `sources`: the sources 10.1.0.0/16 leave by nat-pool \"out\" already",
        ),
        (
            "[[nat-pool]]\nname = \"o2\"\nnetwork = \"blue\"\nsources = [\"10.2.0.0/16\"]\nports = \"32000-33000\""
                .to_owned(),
            "nat-pool \"o2\", `ports`: 32000-33000 overlaps the node ports 30000-32767",
        ),
        (
            "[[egress-ip]]\nname = \"f\"\nnetwork = \"blue\"\nidentities = [\"web\"]\naddress = \"192.0.2.8\""
                .to_owned(),
            "egress-ip \"f\", `identities`: identity \"web\" leaves by egress-ip \"e\" already",
        ),
        (
            "[[egress-ip]]\nname = \"f\"\nnetwork = \"blue\"\naddress = \"192.0.2.7\"".to_owned(),
            "egress-ip \"f\", `ports`: 50000 at 192.0.2.7 is a port of service \"s\"",
        ),
        (
            "[[egress-ip]]\nname = \"f\"\nnetwork = \"blue\"\naddress = \"10.1.0.2\"".to_owned(),
            "egress-ip \"f\", `address`: 10.1.0.2 is an address of endpoint \"web-0\"",
        ),
    ] {
        assert_refused(&text, part);
    }
    // A host port is nobody's to translate.
    let host = service("ports = [{ name = \"a\", port = 80, node-port = 8081 }]\n");
    let pool =
        "[[nat-pool]]\nname = \"o2\"\nnetwork = \"blue\"\nsources = [\"10.2.0.0/16\"]\nports = \"8080-8090\"";
    let said = refused(&(host + pool));
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[1].contains("8081 among 8080-8090 is a port of the node for service \"t\""), "{said:#?}");
    assert!(said[0].contains("but one of 8080-8090, nat-pool \"o2\""), "{said:#?}");
    // The other way round: the service comes after the address that endpoints leave under.
    let said = refused(&service("external-ips = [\"192.0.2.9\"]\nports = [{ name = \"a\", port = 60000 }]"));
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(
        said[0].contains("egress-ip \"e\", `ports`: 60000 at 192.0.2.9 is a port of service \"t\""),
        "{said:#?}"
    );
}

#[test]
fn what_may_be_shared_is_not_refused() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(STATEFUL))).unwrap();
    let shared = r#"
        [[service]]
        name = "other-port-and-protocol"
        network = "blue"
        cluster-ips = ["10.96.0.1"]
        ports = [
            { name = "a", port = 81 },
            { name = "b", port = 80, protocol = "udp", node-port = 30080 },
        ]
        [[service]]
        name = "other-network"
        network = "red"
        cluster-ips = ["10.96.0.1", "10.1.0.2"]
        ports = [{ name = "a", port = 80 }]
        [[egress-ip]]
        name = "other-family"
        network = "blue"
        identities = ["web"]
        address = "2001:db8::9"
    "#;
    desired.apply(Change::Upsert(objects(shared))).unwrap();
    assert_eq!((desired.services().count(), desired.egress_ips().count()), (3, 2));
}

#[test]
fn what_one_gives_up_another_may_have_in_the_same_change() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(STATEFUL))).unwrap();
    let swapped = r#"
        [[service]]
        name = "s"
        network = "blue"
        cluster-ips = ["10.96.0.2"]
        ports = [{ name = "http", port = 80 }]
        [[service]]
        name = "t"
        network = "blue"
        cluster-ips = ["10.96.0.1"]
        ports = [{ name = "http", port = 80, node-port = 30080 }]
    "#;
    desired.apply(Change::Upsert(objects(swapped))).unwrap();
}

#[test]
fn each_kind_is_found_among_the_others() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(STATEFUL))).unwrap();
    desired
        .apply(Change::Upsert(objects(
            r#"
            [[uplink]]
            name = "u"
            interface = "eth0"
            [[peer]]
            name = "n2"
            address = "192.0.2.2"
            [[route]]
            network = "blue"
            prefix = "0.0.0.0/0"
            via.peer = "n2"
            [[route]]
            network = "blue"
            prefix = "::/0"
            via.peer = "n2"
            [[backends]]
            service = "s"
            slice = "-"
            ports = []
            "#,
        )))
        .unwrap();
    let counts = [
        desired.uplinks().count(),
        desired.networks().count(),
        desired.identities().count(),
        desired.endpoints().count(),
        desired.peers().count(),
        desired.routes().count(),
        desired.tiers().count(),
        desired.policies().count(),
        desired.services().count(),
        desired.backends(&"s".parse().unwrap()).count(),
        desired.nat_pools().count(),
        desired.egress_ips().count(),
    ];
    assert_eq!(counts, [1, 2, 2, 1, 1, 2, 1, 1, 1, 2, 1, 1]);
    assert_eq!(counts.iter().sum::<usize>(), desired.objects().count());
}

#[test]
fn a_resync_sweeps_the_stateful_tier_too() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(STATEFUL))).unwrap();
    desired.apply(Change::Resync(objects(GOOD))).unwrap();
    assert_eq!(desired.objects().count(), objects(GOOD).len());
}

#[test]
fn a_service_opens_its_network_to_clients_and_not_to_bare_packets_for_pods() {
    let mut desired = desired();
    desired.apply(Change::Upsert(objects(GOOD))).unwrap();
    let seen = |desired: &Desired| {
        let network = desired.networks().next().unwrap();
        (desired.is_native(network), desired.is_reached_bare(network))
    };
    assert_eq!(seen(&desired), (false, false));
    let service = "[[service]]\nname = \"web\"\nnetwork = \"default\"\ncluster-ips = [\"10.96.0.1\"]\n\
                   ports = [{ name = \"http\", port = 80 }]";
    desired.apply(Change::Upsert(objects(service))).unwrap();
    assert_eq!(seen(&desired), (true, false));
    let mut direct = objects(GOOD);
    for object in &mut direct {
        if let Object::Network(network) = object {
            network.encapsulation = Encapsulation::None;
        }
    }
    desired.apply(Change::Upsert(direct)).unwrap();
    assert_eq!(seen(&desired), (true, true));
}
