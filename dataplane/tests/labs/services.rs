//! Services as clients inside, on the node and outside meet them, with real programs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Place, Running, repository, text, under4, under6, v4, v6, wait_until};
use crate::stateful::apply;
use crate::traffic::{sctp_script, serve_sctp};

/// The addresses of the service of [`web`]: inside, outside, a load balancer's.
const INSIDE: [&str; 2] = ["10.96.0.1", "fd10:96::1"];
const EXTERNAL: [&str; 2] = ["203.0.113.1", "2001:db8::1"];
const BALANCED: [&str; 2] = ["203.0.113.2", "2001:db8::2"];

/// Where whoever is outside has its addresses.
const CLIENT: u8 = 250;

/// A way out for both families: clients outside are answered by it.
pub const WAY_OUT: &str = r#"
[[route]]
network = "default"
prefix = "0.0.0.0/0"
via = { uplink = { uplink = "uplink" } }
[[route]]
network = "default"
prefix = "::/0"
via = { uplink = { uplink = "uplink" } }
"#;

/// A service at all kinds of addresses with `more` keys.
fn web(more: &str) -> String {
    let list = |addresses: [&str; 2]| format!("[\"{}\", \"{}\"]", addresses[0], addresses[1]);
    format!(
        r#"
[[service]]
name = "web"
network = "default"
cluster-ips = {}
external-ips = {}
load-balancer-ips = {}
ports = [{{ name = "http", port = 80, node-port = 30080 }}, {{ name = "dns", protocol = "udp", port = 53, node-port = 30053 }}]
{more}
"#,
        list(INSIDE),
        list(EXTERNAL),
        list(BALANCED)
    )
}

/// A backend: node, pod, state.
type Member<'a> = (u8, u8, &'a str);

fn backends(members: &[Member<'_>]) -> String {
    let member = |address: String, node: u8, state: &str| {
        format!("{{ address = \"{address}\", node = \"node{node}\", state = \"{state}\" }}")
    };
    let members: Vec<String> = members
        .iter()
        .flat_map(|&(i, j, state)| [member(v4(i, j), i, state), member(v6(i, j), i, state)])
        .collect();
    format!(
        r#"
[[backends]]
service = "web"
ports = [{{ name = "http", port = 8080 }}, {{ name = "dns", port = 8080 }}]
members = [{}]
"#,
        members.join(", ")
    )
}

/// Takes the service from node `i`.
fn forget(lab: &Lab, i: u8) {
    lab.ask(i, "delete backends web:main");
    lab.ask(i, "delete service web");
}

/// The script of backends and clients.
pub fn backend_script() -> String {
    repository().join("dataplane/tests/labs/backend.py").display().to_string()
}

/// A backend that calls itself `name`, on port 8080.
pub fn serve(place: &Place, name: &str) -> Running {
    place.serve(8080, &format!("python3 {} serve {name} 8080", backend_script()))
}

/// Who answers `count` new connections to a place, and as whom they know the client.
fn ask(from: &Place, address: &str, port: u16, count: u32) -> Vec<(String, String)> {
    answers(&from.run(&format!("python3 {} ask {address} {port} {count}", backend_script())))
}

fn ask_udp(from: &Place, address: &str, port: u16, count: u32) -> Vec<(String, String)> {
    answers(&from.run(&format!("python3 {} ask-udp {address} {port} {count}", backend_script())))
}

fn answers(text: &str) -> Vec<(String, String)> {
    let answer = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().expect("a name"), words.next().expect("an address"))
    };
    text.lines().map(answer).collect()
}

/// How many of the answers each backend gave.
fn census(answers: &[(String, String)]) -> BTreeMap<&str, usize> {
    let mut census = BTreeMap::new();
    answers.iter().for_each(|(name, _)| *census.entry(name.as_str()).or_default() += 1);
    census
}

/// Routes the service's addresses outside to node 1, as a router in front of the cluster does.
fn route_to_node(lab: &Lab, i: u8) {
    let outside = lab.outside();
    for [by_v4, by_v6] in [EXTERNAL, BALANCED] {
        outside.run(&format!("ip route replace {by_v4}/32 via {}", under4(i)));
        outside.run(&format!("ip -6 route replace {by_v6}/128 via {}", under6(i)));
    }
}

/// All places at which clients outside reach node 1, by family: (address, TCP port, UDP port).
fn places_outside() -> [[(String, u16, u16); 3]; 2] {
    let of = |family: usize, node: String| {
        [(node, 30080, 30053), (EXTERNAL[family].into(), 80, 53), (BALANCED[family].into(), 80, 53)]
    };
    [of(0, under4(1)), of(1, under6(1))]
}

#[test]
fn clients_outside_reach_backends_of_every_node() {
    let lab = Lab::up("--pods 1 --outside");
    let (_one, _two) = (serve(&lab.pod(1, 1), "one"), serve(&lab.pod(2, 1), "two"));
    apply(&lab, 1, &(WAY_OUT.to_owned() + &web("") + &backends(&[(1, 1, "ready"), (2, 1, "ready")])));
    route_to_node(&lab, 1);
    for (family, places) in places_outside().iter().enumerate() {
        let (client, node) = [(under4(CLIENT), v4(1, 254)), (under6(CLIENT), v6(1, 254))][family].clone();
        for (address, port, udp_port) in places {
            for answers in
                [ask(&lab.outside(), address, *port, 20), ask_udp(&lab.outside(), address, *udp_port, 20)]
            {
                let census = census(&answers);
                assert!(census["one"] > 2 && census["two"] > 2, "{address}: {answers:?}");
                // The local backend knows the client; the remote one the node, which its answers must pass.
                for (name, seen) in &answers {
                    assert_eq!(seen, if name == "one" { &client } else { &node }, "{address}: {name}");
                }
            }
        }
    }
}

#[test]
fn local_traffic_keeps_the_clients_address_and_stays_on_the_node() {
    let lab = Lab::up("--pods 1 --outside");
    let (_one, _two) = (serve(&lab.pod(1, 1), "one"), serve(&lab.pod(2, 1), "two"));
    let local = "external-policy = \"local\"\nhealth-check-node-port = 30999\n";
    let objects = WAY_OUT.to_owned() + &web(local) + &backends(&[(1, 1, "ready"), (2, 1, "ready")]);
    apply(&lab, 1, &objects);
    route_to_node(&lab, 1);
    for (family, places) in places_outside().iter().enumerate() {
        let client = [under4(CLIENT), under6(CLIENT)][family].clone();
        for (address, port, _) in places {
            for answer in ask(&lab.outside(), address, *port, 10) {
                assert_eq!(answer, ("one".to_owned(), client.clone()), "{address}");
            }
        }
    }
    // Inside the cluster the policy does not hold.
    let census_inside = ask(&lab.pod(1, 1), INSIDE[0], 80, 20);
    assert_eq!(census(&census_inside).len(), 2, "{census_inside:?}");
    let health = |i: u8| {
        let check = format!("curl -s -o /dev/null -w %{{http_code}} http://{}:30999/healthz", under4(i));
        lab.outside().attempt(&check).stdout
    };
    wait_until("the health check port answers", || health(1) == b"200");
    assert_eq!(
        lab.outside().run(&format!("curl -gs http://[{}]:30999/", under6(1))).trim(),
        r#"{"localEndpoints":1,"service":"web"}"#
    );
    // A node without a backend drops: whoever sent the client here should try another node.
    apply(&lab, 2, &(WAY_OUT.to_owned() + &web(local) + &backends(&[(1, 1, "ready")])));
    wait_until("the other node says that it has none", || health(2) == b"503");
    let asked = lab.outside().attempt(&format!("curl -sSm 1 http://{}:30080/", under4(2)));
    assert_eq!(asked.status.code(), Some(28), "timed out: {asked:?}");
    assert!(lab.drops(2)["no-local-backend"] > 0);
    // The port goes with its service.
    forget(&lab, 2);
    wait_until("nobody answers any more", || {
        lab.outside().attempt(&format!("curl -sm 1 http://{}:30999/", under4(2))).status.code() == Some(7)
    });
}

#[test]
fn what_nobody_serves_is_refused_at_once() {
    let lab = Lab::up("--pods 1 --outside");
    apply(&lab, 1, &(WAY_OUT.to_owned() + &web("") + &backends(&[])));
    route_to_node(&lab, 1);
    let refused = |place: &Place, address: &str, port: u16| {
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let began = Instant::now();
        let asked = place.attempt(&format!("curl -gsSm 5 http://{address}:{port}/"));
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(
            said.contains("Connection refused") || said.contains("Couldn't connect"),
            "{address}: {said}"
        );
        assert_eq!(asked.status.code(), Some(7), "{address}: {said}");
        // One try: a SYN that is sent again is so after a second.
        assert!(began.elapsed() < Duration::from_millis(900), "{address}: {:?}", began.elapsed());
    };
    for (family, places) in places_outside().iter().enumerate() {
        // The first packet of all waits for its client's Ethernet address.
        lab.outside().attempt(&format!(
            "curl -gsm 2 http://{}:30080/",
            [under4(1), format!("[{}]", under6(1))][family]
        ));
        places.iter().for_each(|(address, port, _)| refused(&lab.outside(), address, *port));
        refused(&lab.pod(1, 1), INSIDE[family], 80);
        refused(&lab.node(1), INSIDE[family], 80);
        let asked =
            lab.pod(1, 1).attempt(&format!("python3 {} ask-udp {} 53 1", backend_script(), INSIDE[family]));
        assert!(String::from_utf8_lossy(&asked.stderr).contains("ConnectionRefusedError"), "{asked:?}");
    }
}

/// Sessions of [`talk`]: backend, answers, whether it is whole.
fn sessions(said: &str) -> Vec<(String, u64, bool)> {
    let session = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[0].to_owned(), words[1].parse().expect("a number"), words[2] == "whole")
    };
    said.lines().filter(|line| *line != "connected").map(session).collect()
}

#[test]
fn a_backend_that_leaves_takes_nothing_but_its_own_with_it() {
    let lab = Lab::up("--pods 3");
    let places = [(1, 2, "one"), (2, 1, "two"), (2, 2, "three")];
    let [_one, two, _three] = places.map(|(i, j, name)| serve(&lab.pod(i, j), name));
    let with = |state_of_two| web("") + &backends(&[(1, 2, "ready"), (2, 1, state_of_two), (2, 2, "ready")]);
    apply(&lab, 1, &with("ready"));
    let client = lab.pod(1, 1);
    for address in INSIDE {
        let answers = ask(&client, address, 80, 60);
        assert!(
            census(&answers).values().all(|&count| count > 8) && census(&answers).len() == 3,
            "{answers:?}"
        );
    }
    let talk = |from: &Place| from.spawn(&format!("python3 {} talk {} 80 30", backend_script(), INSIDE[0]));
    let mut talking = talk(&client);
    let established = |place: &Place| place.run("ss -Htn state established \"sport = 8080\"").lines().count();
    let all = || places.iter().map(|&(i, j, _)| established(&lab.pod(i, j))).sum::<usize>();
    wait_until("thirty sessions are open", || all() == 30);
    let of_two = established(&lab.pod(2, 1));
    assert!(of_two > 3, "{of_two} sessions with the second backend");

    // It is on its way out: it keeps its sessions and gets no new ones.
    apply(&lab, 1, &with("terminating"));
    let answers = ask(&client, INSIDE[0], 80, 40);
    assert!(!census(&answers).contains_key("two") && census(&answers).len() == 2, "{answers:?}");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((all(), established(&lab.pod(2, 1))), (30, of_two));
    // It is not in the list any more, and still nobody is cut off.
    apply(&lab, 1, &(web("") + &backends(&[(1, 2, "ready"), (2, 2, "ready")])));
    std::thread::sleep(Duration::from_millis(500));
    talking.assert_runs();
    assert_eq!(all(), 30);
    // Its process ends: its own sessions end with it, and no others.
    drop(two);
    std::thread::sleep(Duration::from_millis(500));
    let ended = sessions(&talking.end("TERM"));
    for (name, answers, whole) in &ended {
        assert_eq!(*whole, name != "two", "{ended:?}");
        assert!(*answers > 10, "{ended:?}");
    }
    assert_eq!(ended.iter().filter(|(name, ..)| name == "two").count(), of_two);
}

#[test]
fn a_client_meets_its_backend_again_as_long_as_that_serves() {
    let lab = Lab::up("--pods 3");
    let _servers =
        [(1, 2, "one"), (2, 1, "two"), (2, 2, "three")].map(|(i, j, name)| serve(&lab.pod(i, j), name));
    let affine = web("affinity.client-ip.timeout-s = 600");
    let all = [(1, 2, "ready"), (2, 1, "ready"), (2, 2, "ready")];
    apply(&lab, 1, &(affine.clone() + &backends(&all)));
    for address in INSIDE {
        let answers = ask(&lab.pod(1, 1), address, 80, 20);
        assert_eq!(census(&answers).len(), 1, "{answers:?}");
    }
    let met = ask(&lab.pod(1, 1), INSIDE[0], 80, 1)[0].0.clone();
    let at = ["one", "two", "three"].iter().position(|name| *name == met).expect("one of the three");
    let others: Vec<Member<'_>> =
        all.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, it)| *it).collect();
    apply(&lab, 1, &(affine.clone() + &backends(&others)));
    let answers = ask(&lab.pod(1, 1), INSIDE[0], 80, 20);
    assert!(
        census(&answers).len() == 1 && !census(&answers).contains_key(met.as_str()),
        "{met}: {answers:?}"
    );
    let next = answers[0].0.clone();
    // The first comes back, and the client stays where it is now.
    apply(&lab, 1, &(affine + &backends(&all)));
    assert_eq!(
        census(&ask(&lab.pod(1, 1), INSIDE[0], 80, 20)).keys().copied().collect::<Vec<_>>(),
        [next.as_str()]
    );
}

#[test]
fn a_client_that_was_quiet_for_long_is_served_as_if_it_were_new() {
    let lab = Lab::up("--pods 3");
    let _servers =
        [(1, 2, "one"), (2, 1, "two"), (2, 2, "three")].map(|(i, j, name)| serve(&lab.pod(i, j), name));
    let affine = web("affinity.client-ip.timeout-s = 3");
    let all = [(1, 2, "ready"), (2, 1, "ready"), (2, 2, "ready")];
    let meet = || INSIDE.map(|address| ask(&lab.pod(1, 1), address, 80, 1)[0].0.clone());
    // A new client's backend follows from its address. With that one gone for a moment, it stays where it went meanwhile.
    apply(&lab, 1, &(affine.clone() + &backends(&all)));
    let chosen = meet();
    let others: Vec<Member<'_>> = ["one", "two", "three"]
        .into_iter()
        .zip(all)
        .filter(|(name, _)| !chosen.iter().any(|it| it == name))
        .map(|(_, member)| member)
        .collect();
    apply(&lab, 1, &(affine.clone() + &backends(&others)));
    let next = meet();
    apply(&lab, 1, &(affine + &backends(&all)));
    assert_eq!(meet(), next);
    assert!(next.iter().zip(&chosen).all(|(next, chosen)| next != chosen), "{next:?} after {chosen:?}");
    wait_until("the client is forgotten", || {
        // Every question begins the time anew, which is counted in steps of about half a second.
        std::thread::sleep(Duration::from_millis(4200));
        meet() == chosen
    });
}

#[test]
fn backends_of_the_clients_zone_are_preferred_while_they_serve() {
    let lab = Lab::up("--pods 3 --no-daemons");
    let file = lab.file("node1.toml");
    let config = std::fs::read_to_string(&file).expect("the lab wrote it");
    let config = config.replace("[control]\n", "[services]\nzone = \"rack-1\"\n[control]\n");
    std::fs::write(&file, config).expect("the lab's own folder");
    lab.start(1);
    lab.start(2);
    let _servers =
        [(1, 2, "one"), (2, 1, "two"), (2, 2, "three")].map(|(i, j, name)| serve(&lab.pod(i, j), name));
    // Two's node is in the zone of the client's, one's and three's are not.
    let members = |state_of_two| {
        let all = backends(&[(1, 2, "ready"), (2, 1, state_of_two), (2, 2, "ready")]);
        let mut zones = ["rack-2", "rack-2", "rack-1", "rack-1", "rack-3", "rack-3"].into_iter();
        let parts: Vec<&str> = all.split(" state = ").collect();
        let with =
            |part: &&str| format!("{part} zone = \"{}\", state = ", zones.next().expect("six members"));
        let (last, others) = parts.split_last().expect("six members");
        others.iter().map(with).collect::<String>() + last
    };
    let preferring = |preference: &str| web(&format!("topology = \"{preference}\""));
    for (preference, state_of_two, names) in [
        ("zone", "ready", &["two"][..]),
        ("node", "ready", &["one"]),
        ("zone", "terminating", &["one", "three"]),
        ("none", "ready", &["one", "three", "two"]),
    ] {
        apply(&lab, 1, &(preferring(preference) + &members(state_of_two)));
        for address in INSIDE {
            let answers = ask(&lab.pod(1, 1), address, 80, 30);
            let met: Vec<&str> = census(&answers).into_keys().collect();
            assert_eq!(met, names, "{preference}, two is {state_of_two}, {address}");
        }
    }
}

#[test]
fn load_balancers_addresses_answer_those_in_the_source_ranges_only() {
    let lab = Lab::up("--pods 1 --outside");
    let _one = serve(&lab.pod(1, 1), "one");
    let ranges = format!("source-ranges = [\"{}/32\", \"{}/128\"]", under4(CLIENT), under6(CLIENT));
    apply(&lab, 1, &(WAY_OUT.to_owned() + &web(&ranges) + &backends(&[(1, 1, "ready")])));
    route_to_node(&lab, 1);
    let outside = lab.outside();
    let others = [under4(CLIENT - 1), under6(CLIENT - 1)];
    outside.run(&format!("ip address add {}/24 dev eth0", others[0]));
    outside.run(&format!("ip -6 address add {}/64 dev eth0 nodad", others[1]));
    let ask_as = |source: &str, address: &str, port: u16| {
        outside.attempt(&format!("python3 {} ask-as {source} {address} {port}", backend_script()))
    };
    for (family, other) in others.iter().enumerate() {
        let client = [under4(CLIENT), under6(CLIENT)][family].clone();
        let balanced = BALANCED[family];
        let answer = ask_as(&client, balanced, 80);
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(said.starts_with(&format!("one {client} ")), "{balanced}: {answer:?}");
        let dropped = || lab.drops(1).get("source-not-served").copied().unwrap_or(0);
        let before = dropped();
        let refused = ask_as(other, balanced, 80);
        assert!(!refused.status.success(), "{other} is in no range: {refused:?}");
        wait_until("it was dropped for that", || dropped() > before);
        // The service's other addresses and its node port answer everybody.
        for (address, port) in
            [(EXTERNAL[family].to_owned(), 80), ([under4(1), under6(1)][family].clone(), 30080)]
        {
            let answer = ask_as(other, &address, port);
            let said = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(said.starts_with(&format!("one {other} ")), "{address}: {answer:?}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let lab = Lab::up("--pods 1");
    let _one = serve(&lab.pod(1, 1), "one");
    apply(&lab, 1, &(web("") + &backends(&[(1, 1, "ready")])));
    for (address, node) in INSIDE.into_iter().zip([v4(1, 254), v6(1, 254)]) {
        for answer in
            ask(&lab.pod(1, 1), address, 80, 5).into_iter().chain(ask_udp(&lab.pod(1, 1), address, 53, 5))
        {
            assert_eq!(answer, ("one".to_owned(), node.clone()), "the pod must not see its own address");
        }
    }
}

#[test]
fn the_nodes_own_programs_reach_services() {
    let lab = Lab::up("--pods 1");
    let (_one, _two) = (serve(&lab.pod(1, 1), "one"), serve(&lab.pod(2, 1), "two"));
    apply(&lab, 1, &(web("") + &backends(&[(1, 1, "ready"), (2, 1, "ready")])));
    for address in INSIDE {
        let answers = ask(&lab.node(1), address, 80, 20);
        assert_eq!(census(&answers).len(), 2, "{answers:?}");
        let answers = ask_udp(&lab.node(1), address, 53, 20);
        assert_eq!(census(&answers).len(), 2, "{answers:?}");
    }
    assert!(lab.node(1).run("ip route show proto 112").contains("10.96.0.1"));
    forget(&lab, 1);
    assert!(
        !lab.node(1).run("ip route show proto 112").contains("10.96.0.1"),
        "the route goes with the service"
    );
}

#[test]
fn sctp_goes_through_services_with_its_checksum_right() {
    let lab = Lab::up("--pods 2 --outside");
    let script = sctp_script();
    let _servers = [(1, 2), (2, 1)].map(|(i, j)| serve_sctp(&lab.pod(i, j), 5000));
    let service = |members: &[Member<'_>]| {
        let text = web("") + &backends(members);
        let text = text.replace(
            "{ name = \"http\", port = 80, node-port = 30080 }",
            "{ name = \"http\", protocol = \"sctp\", port = 80, node-port = 30080 }",
        );
        WAY_OUT.to_owned()
            + &text.replace("{ name = \"http\", port = 8080 }", "{ name = \"http\", port = 5000 }")
    };
    for backend in [(1, 2, "ready"), (2, 1, "ready")] {
        apply(&lab, 1, &service(&[backend]));
        for (i, address) in INSIDE.into_iter().enumerate() {
            let word = format!("hello{i}");
            assert_eq!(
                lab.pod(1, 1).run(&format!("python3 {script} say {address} 80 {word}")).trim(),
                word.to_uppercase()
            );
        }
        for address in [under4(1), under6(1)] {
            assert_eq!(lab.outside().run(&format!("python3 {script} say {address} 30080 out")).trim(), "OUT");
        }
    }
    let listed = lab.node(1).run(&format!("{} --json connections --protocol sctp", lab.penstock(1)));
    let rows: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).expect("a row of JSON")).collect();
    assert!(rows.iter().any(|row| text(&row["service"]) == "web"), "{listed}");
}
