//! Connections, policies, services and translation between real programs on real interfaces.

use crate::lab::{Lab, number, text, v4, v6, wait_until};
use crate::traffic::{echo_script, fetch, no_ping, ping};

/// Adds objects to node `i`'s, or replaces those of their names; answers when they are live.
pub fn apply(lab: &Lab, i: u8, objects: &str) {
    let file = lab.file(&format!("apply{i}.toml"));
    std::fs::write(&file, objects).expect("the lab's own folder");
    lab.ask(i, &format!("apply -f {}", file.display()));
}

/// Whoever is not pod 2 of node 1 may not open anything to pod 1 of node 1 but TCP to port 7000.
const CLOSED: &str = r#"
[[identity]]
name = "friend"
network = "default"
prefixes = ["10.244.1.2/32", "fd10:244:1::2/128"]
[[identity]]
name = "server"
network = "default"
prefixes = ["10.244.1.1/32", "fd10:244:1::1/128"]
[[tier]]
name = "application"
order = 1
default = "deny"
[[policy]]
name = "server"
network = "default"
tier = "application"
subjects = { identities = ["server"] }
directions = ["ingress"]
[[policy.rules]]
name = "friend"
direction = "ingress"
action = "allow"
peers = [{ identity = "friend" }]
[[policy.rules]]
name = "port"
direction = "ingress"
action = "allow"
ports = [{ protocol = "tcp", port = 7000 }]
"#;

#[test]
fn policies_close_a_pod_but_for_what_they_allow() {
    let lab = Lab::up("--pods 2");
    apply(&lab, 1, CLOSED);
    for (server, friend) in [(v4(1, 1), v4(1, 2)), (v6(1, 1), v6(1, 2))] {
        ping(&lab.pod(1, 2), &server);
        // Answers of what the pod itself asks pass; the node's probes always do.
        ping(&lab.pod(1, 1), &friend);
        ping(&lab.node(1), &server);
        no_ping(&lab.pod(2, 1), &server);
    }
    ping(&lab.pod(1, 1), &v4(2, 1));
    assert!(lab.drops(1)["ingress-policy"] > 0, "{:?}", lab.drops(1));
    let script = echo_script();
    let _open = lab.pod(1, 1).serve(7000, &format!("python3 {script} serve 7000"));
    let mut session = lab.pod(2, 1).spawn(&format!("python3 {script} talk {} 7000", v4(1, 1)));
    wait_until("the session is there", || {
        !lab.pod(1, 1).run("ss -Htn state established 'sport = 7000'").is_empty()
    });
    session.assert_runs();
    let listed = lab.node(1).run(&format!("{} --json connections --port 7000", lab.penstock(1)));
    let rows: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).expect("a row of JSON")).collect();
    assert_eq!(rows.len(), 1, "{listed}");
    assert_eq!(
        (text(&rows[0]["state"]), text(&rows[0]["destination_endpoint"])),
        ("established".into(), "pod1".into())
    );
}

#[test]
fn a_policy_change_stops_an_open_session_and_lets_it_go_on() {
    let lab = Lab::up("--pods 1");
    apply(&lab, 1, CLOSED);
    let script = echo_script();
    let _server = lab.pod(1, 1).serve(7000, &format!("python3 {script} serve 7000"));
    let mut session = lab.pod(2, 1).spawn(&format!("python3 {script} talk {} 7000", v4(1, 1)));
    let heard = || number(&lab.port(1, "pod1")[0]["tx_packets"]);
    let goes_on = || {
        let before = heard();
        wait_until("the session goes on", || heard() > before + 20);
    };
    goes_on();
    apply(&lab, 1, &CLOSED.replace("port = 7000", "port = 7001"));
    let refused = || lab.drops(1).get("ingress-policy").copied().unwrap_or(0);
    // Its sender tries again after ever longer pauses, so the ports' counters are up to date at the second look.
    wait_until("its packets are refused", || refused() > 2);
    let stopped = heard();
    let tried = refused();
    wait_until("and refused again", || refused() > tried);
    assert_eq!(heard(), stopped, "nothing of the session arrives");
    apply(&lab, 1, CLOSED);
    goes_on();
    session.assert_runs();
}

/// A service of two backends, one on each node.
fn service() -> String {
    format!(
        r#"
[[service]]
name = "web"
network = "default"
cluster-ips = ["10.96.0.1", "fd10:96::1"]
ports = [{{ name = "http", port = 80 }}]
[[backends]]
service = "web"
ports = [{{ name = "http", port = 8080 }}]
members = [{{ address = "{}" }}, {{ address = "{}" }}, {{ address = "{}" }}, {{ address = "{}" }}]
"#,
        v4(1, 2),
        v4(2, 1),
        v6(1, 2),
        v6(2, 1)
    )
}

#[test]
fn a_service_is_served_by_all_of_its_backends() {
    let lab = Lab::up("--pods 2");
    apply(&lab, 1, &service());
    let page = |name: &str| format!("mkdir -p {0} && echo {name} > {0}/index.html", lab.file(name).display());
    let serve = |place: &crate::lab::Place, name: &str| {
        place.run(&page(name));
        let folder = lab.file(name);
        place.serve(8080, &format!("python3 -m http.server --bind :: --directory {} 8080", folder.display()))
    };
    let _one = serve(&lab.pod(1, 2), "one");
    let _two = serve(&lab.pod(2, 1), "two");
    for address in ["10.96.0.1", "[fd10:96::1]"] {
        let answers: Vec<String> =
            (0..30).map(|_| lab.pod(1, 1).run(&format!("curl -gsSm 5 http://{address}/"))).collect();
        for name in ["one", "two"] {
            let count = answers.iter().filter(|answer| answer.trim() == name).count();
            assert!(count > 3, "{name} answered {count} of 30: {answers:?}");
        }
    }
    // The last backend takes everything once the other is gone.
    let without = service().replace(&format!("{{ address = \"{}\" }}, ", v4(1, 2)), "");
    apply(&lab, 1, &without);
    for _ in 0..10 {
        assert_eq!(lab.pod(1, 1).run("curl -gsSm 5 http://10.96.0.1/").trim(), "two");
    }
    let none = without.split("[[backends]]").next().expect("the service itself").to_owned()
        + "[[backends]]\nservice = \"web\"\nports = [{ name = \"http\", port = 8080 }]\nmembers = []\n";
    apply(&lab, 1, &none);
    let began = std::time::Instant::now();
    let refused = lab.pod(1, 1).attempt("curl -gsSm 5 http://10.96.0.1/");
    assert!(!refused.status.success());
    assert!(began.elapsed().as_secs() < 4, "refused at once: {refused:?}");
}

/// Pods of node 1 leave under the node's own address.
const LEAVING: &str = r#"
[[route]]
network = "default"
prefix = "0.0.0.0/0"
via = { uplink = { uplink = "uplink" } }
[[nat-pool]]
name = "outside"
network = "default"
sources = ["10.244.0.0/16"]
exclusions = ["10.0.0.0/8"]
ports = "50000-50999"
"#;

#[test]
fn a_pod_speaks_to_the_outside_under_the_nodes_address() {
    let lab = Lab::up("--pods 1");
    apply(&lab, 1, LEAVING);
    // Of node 2's addresses the dataplane knows one, which it reaches by the tunnel; this one is somewhere outside.
    let outside = "192.168.51.200";
    lab.node(2).run(&format!("ip address add {outside}/32 dev uplink"));
    fetch(&lab, &lab.pod(1, 1), &lab.node(2), outside, 1_000_000);
    let script = echo_script();
    let _server = lab.node(2).serve(7000, &format!("python3 {script} serve 7000"));
    let mut session = lab.pod(1, 1).spawn(&format!("python3 {script} talk {outside} 7000"));
    wait_until("the session comes from a port of the pool at the node's address", || {
        let peers = lab.node(2).run("ss -Htn state established 'sport = 7000'");
        peers.lines().any(|line| {
            line.split_whitespace().last().and_then(|peer| peer.rsplit_once(':')).is_some_and(
                |(address, port)| {
                    address.contains("192.168.51.1")
                        && port.parse().is_ok_and(|port: u16| (50000..=50999).contains(&port))
                },
            )
        })
    });
    // A port that nobody listens on: the ICMP error comes back to who asked, about the packet that it sent.
    let ask = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); \
         s.connect((\"{outside}\", 9)); s.send(b\"?\"); s.recv(1)"
    );
    let refused = lab.pod(1, 1).attempt(&format!("python3 -c '{ask}'"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ConnectionRefusedError"), "{refused:?}");
    session.assert_runs();
}
