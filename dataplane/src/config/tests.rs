use super::*;
use crate::conntrack::Share;

const GOOD: &str = r#"
[node]
name = "node1"

[workers]
cpus = [0, 1]

[[uplink]]
name = "uplink"
interface = "eth0"

[[network]]
name = "default"
vni = 100
prefixes = ["10.244.0.0/16"]

[[endpoint]]
name = "web"
network = "default"
mac = "02:01:00:00:01:01"
addresses = ["10.244.1.1"]
attachment = { veth = { interface = "p1" } }
"#;

fn said(text: &str) -> Vec<String> {
    let faults = Config::parse(text, "n.toml").expect_err("the text is faulty");
    faults.iter().map(Fault::to_string).collect()
}

fn assert_says(said: &[String], part: &str) {
    assert!(said.iter().any(|line| line.contains(part)), "nothing about {part:?} in {said:#?}");
}

#[test]
fn what_is_left_out_has_a_default() {
    let config = Config::parse(GOOD, "n.toml").unwrap();
    assert_eq!(
        (config.chunks, config.hugepages, config.idle),
        (DEFAULT_CHUNKS, Hugepages::Auto, Idle::Adaptive)
    );
    assert_eq!((config.flows4, config.socket.to_str()), (65536, Some(DEFAULT_SOCKET)));
    assert_eq!((config.cpus.as_slice(), config.objects.len()), ([0, 1].as_slice(), 3));
    assert!(config.host.is_none());
}

#[test]
fn every_example_is_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Config::load(&path).unwrap_or_else(|faults| panic!("{faults:#?}"));
            seen += 1;
        }
    }
    assert!(seen >= 3);
}

#[test]
fn faults_of_every_part_are_said_at_once_with_the_file_and_the_key() {
    let text = GOOD
        .replace("cpus = [0, 1]", "cpus = [1, 1]\nidel = \"poll\"")
        .replace("vni = 100", "vni = 16777216")
        .replace("02:01:00:00:01:01", "03:01:00:00:01:01")
        + "[memory]\nchunks = 7\n[flows]\nipv4 = 0\n[control]\nsocket = \"here\"\n[colours]\n";
    let said = said(&text);
    for part in [
        "n.toml: [workers], `idel`: unknown field",
        "n.toml: network \"default\", `vni`: 16777216",
        "n.toml: endpoint \"web\", `mac`:",
        "n.toml: [memory], `chunks`: 7 chunks",
        "n.toml: [flows], `ipv4`: a cache of 0 flows",
        "n.toml: [control], `socket`: \"here\" is no absolute path",
        "n.toml, `colours`: is nothing that a node has",
    ] {
        assert_says(&said, part);
    }
}

#[test]
fn what_cannot_be_read_hides_nothing_else() {
    let text = GOOD
        .replace("[node]\nname = \"node1\"", "")
        .replace("cpus = [0, 1]", "cpus = [1, 1]\nidel = \"poll\"")
        .replace("vni = 100", "vni = 16777216")
        + r#"
        [[endpoint]]
        name = "api"
        network = "elsewhere"
        mac = "02:01:00:00:01:02"
        addresses = ["10.244.1.1"]
        attachment = { veth = { interface = "p1" } }
        mtu = "large"
        "#;
    let said = said(&text);
    for part in [
        "n.toml, `node`: is missing",
        "n.toml: network \"default\", `vni`: 16777216",
        "n.toml: [workers], `idel`: unknown field",
        "n.toml: [workers], `cpus`: CPU 1 is there twice",
        "n.toml: endpoint \"api\", `mtu`: invalid type",
        "n.toml: endpoint \"api\", `network`: there is no network \"elsewhere\"",
        "`interface`: interface p1 is that of endpoint \"api\" too",
    ] {
        assert_says(&said, part);
    }
    // The network is there, if unreadable; what names it is right.
    assert!(!said.iter().any(|line| line.contains("no network \"default\"")), "{said:#?}");
    // Of the two that share an interface, each is told of the other.
    assert_eq!(said.len(), 8, "{said:#?}");
}

#[test]
fn metrics_are_served_where_the_file_says_and_nowhere_else() {
    assert_eq!(Config::parse(GOOD, "n.toml").unwrap().metrics, None);
    let with = |address: &str| format!("{GOOD}\n[control]\nmetrics = \"{address}\"\n");
    let config = Config::parse(&with("[::1]:9469"), "n.toml").unwrap();
    assert_eq!(config.metrics, Some("[::1]:9469".parse().unwrap()));
    assert_says(&said(&with("127.0.0.1:0")), "[control], `metrics`: port 0 is none");
    assert_says(&said(&with("localhost")), "write an address and a port, as in 127.0.0.1:9469");
}

#[test]
fn what_objects_say_of_each_other_is_checked_as_the_daemon_would() {
    let said = said(&GOOD.replace("network = \"default\"", "network = \"elsewhere\""));
    assert_eq!(said.len(), 1, "{said:#?}");
    assert_says(&said, "n.toml: endpoint \"web\", `network`: there is no network \"elsewhere\"");
}

#[test]
fn a_cpu_is_one_workers_alone() {
    assert_says(&said(&GOOD.replace("[0, 1]", "[1, 0, 1]")), "`cpus`: CPU 1 is there twice");
    assert_says(&said(&GOOD.replace("[0, 1]", "[]")), "`cpus`: is empty");
}

#[test]
fn a_socket_path_is_no_longer_than_the_kernel_takes() {
    let with = |length: usize| format!("{GOOD}\n[control]\nsocket = \"/{}\"\n", "s".repeat(length - 1));
    assert!(Config::parse(&with(107), "n.toml").is_ok());
    assert_says(&said(&with(108)), "has 108 bytes, and a socket's path at most 107");
}

#[test]
fn a_missing_section_is_named_and_what_must_be_in_it() {
    let said = said("");
    assert_says(&said, "n.toml, `node`: is missing; write [node] with name");
    assert_says(&said, "n.toml, `workers`: is missing; write [workers] with cpus");
}

#[test]
fn a_file_that_is_not_there_is_a_fault_that_names_it() {
    let faults = Config::load(Path::new("/no/such/node.toml")).unwrap_err();
    assert!(faults[0].to_string().starts_with("/no/such/node.toml: cannot be read"), "{faults:?}");
}

#[test]
fn settings_that_a_running_daemon_keeps_are_named() {
    let (before, after) = (Config::parse(GOOD, "n").unwrap(), GOOD.replace("[0, 1]", "[0]"));
    let after = Config::parse(&(after + "[memory]\nchunks = 8192\n"), "n").unwrap();
    assert_eq!(before.fixed_differences(&after), ["workers.cpus", "memory.chunks"]);
    assert!(before.fixed_differences(&before).is_empty());
}

#[test]
fn the_stateful_tier_has_defaults_and_every_fault_of_it_is_said() {
    let config = Config::parse(GOOD, "n").unwrap();
    let share = |connections| Share { connections, half_open: (1 << 20) / 10 };
    assert_eq!(config.connections.endpoint_share(), share(1 << 19));
    assert_eq!(config.connections.outside_share(), share(3 << 18));
    assert_eq!(config.connections.region(&config.socket), Path::new("/run/penstock/penstock.connections"));
    assert_eq!(config.services.node_ports, ["30000-32767".parse().unwrap()]);
    assert_eq!(config.services.source_ports, "49152-65535".parse().unwrap());
    let said = said(&format!(
        "{GOOD}
        [connections]
        capacity = 7
        endpoint-percent = 0
        half-open-percent = 101
        region = \"here\"
        pick-up = \"yes\"
        [services]
        node-ports = [\"30000-31000\", \"31000\"]
        node-port-addresses = [\"192.0.2.1/24\"]
        "
    ));
    // What cannot be read makes its section the default, so that its other values are not looked at yet.
    assert_says(&said, "n.toml: [connections], `pick-up`");
    assert_says(&said, "n.toml: [services], `node-port-addresses[0]`: 192.0.2.1/24 has host bits set");
    let said = self::said(&format!(
        "{GOOD}
        [connections]
        capacity = 7
        endpoint-percent = 0
        outside-percent = 0
        half-open-percent = 101
        region = \"here\"
        timeouts-s = {{ udp = 0, tcp-established = 86400 }}
        [services]
        node-ports = [\"30000-31000\", 31000]
        source-ports = \"31000-31999\"
        "
    ));
    for part in [
        "[connections], `capacity`: a table of 7 connections",
        "[connections], `endpoint-percent`: 0",
        "[connections], `outside-percent`: 0",
        "[connections], `half-open-percent`: 101",
        "[connections], `region`: \"here\" is no absolute path",
        "[connections], `timeouts-s.udp`: 0 seconds",
        "[services], `node-ports[1]`: 31000 overlaps 30000-31000",
        "[services], `source-ports`: 31000-31999 overlaps the node ports 30000-31000",
        "[services], `source-ports`: 31000-31999 overlaps the node ports 31000",
    ] {
        assert_says(&said, part);
    }
    assert_eq!(said.len(), 9, "{said:#?}");
}

#[test]
fn a_host_port_may_be_any_but_those_of_translated_connections() {
    let service = |port: u16| {
        format!(
            "{GOOD}
            [[service]]
            name = \"s\"
            network = \"default\"
            ports = [{{ name = \"a\", port = 80, node-port = {port} }}]
            "
        )
    };
    assert_eq!(Config::parse(&service(8080), "n").unwrap().objects.len(), 4);
    assert_says(
        &said(&service(50080)),
        "50080 is none of this node's node ports, 30000-32767, but one of 49152",
    );
    let moved = service(50080) + "[services]\nsource-ports = \"33000-49000\"\n";
    assert_eq!(Config::parse(&moved, "n").unwrap().objects.len(), 4);
}

#[test]
fn the_example_of_the_stateful_tier_shows_every_kind_of_object() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/node-stateful.toml"));
    let config = Config::load(path).unwrap_or_else(|faults| panic!("{faults:#?}"));
    let kinds: std::collections::HashSet<_> = config.objects.iter().map(std::mem::discriminant).collect();
    assert_eq!(kinds.len(), 12);
    assert_eq!(config.services.zone.map(|zone| zone.to_string()), Some("rack-1".to_owned()));
}
