//! The ways out: addresses of chosen endpoints, mappings that hold for every destination, packets in fragments.

use crate::lab::{Lab, under4, under6, v4, v6, wait_until};
use crate::services::{WAY_OUT, backend_script, serve};
use crate::stateful::apply;
use crate::traffic::{echo_script, ping};

const EGRESS: [&str; 2] = ["203.0.113.77", "2001:db8::77"];

/// Pod 1 leaves under an address of its own, everybody else under the node's.
fn egress() -> String {
    let mut text = WAY_OUT.to_owned();
    for (family, address) in EGRESS.into_iter().enumerate() {
        text += &format!(
            r#"
[[egress-ip]]
name = "chosen{family}"
network = "default"
endpoints = ["pod1"]
exclusions = ["10.0.0.0/8", "fd10::/16"]
address = "{address}"
"#
        );
    }
    text + r#"
[[nat-pool]]
name = "rest"
network = "default"
sources = ["10.244.0.0/16", "fd10:244::/32"]
exclusions = ["10.0.0.0/8", "fd10::/16"]
ports = "50000-50999"
"#
}

/// Whom `place` is seen as by a server outside at `address`.
fn seen_as(place: &crate::lab::Place, address: &str) -> String {
    let said = place.run(&format!("python3 {} ask {address} 8080 1", backend_script()));
    said.split_whitespace().nth(1).expect("the client's address").to_owned()
}

#[test]
fn chosen_endpoints_leave_under_their_address_and_others_under_the_nodes() {
    let lab = Lab::up("--pods 2 --outside");
    apply(&lab, 1, &egress());
    let outside = lab.outside();
    outside.run(&format!("ip route add {}/32 via {}", EGRESS[0], under4(1)));
    outside.run(&format!("ip -6 route add {}/128 via {}", EGRESS[1], under6(1)));
    let _server = serve(&outside, "outside");
    for (family, (there, node)) in
        [(under4(250), under4(1)), (under6(250), under6(1))].into_iter().enumerate()
    {
        ping(&lab.pod(1, 1), &there);
        assert_eq!(seen_as(&lab.pod(1, 1), &there), EGRESS[family]);
        assert_eq!(seen_as(&lab.pod(1, 2), &there), node);
        // A port that nobody listens on: the error comes back to who asked.
        let asked = lab.pod(1, 1).attempt(&format!("python3 {} ask-udp {there} 9 1", backend_script()));
        assert!(String::from_utf8_lossy(&asked.stderr).contains("ConnectionRefusedError"), "{asked:?}");
    }
    // What is excluded is reached as it is.
    let _inside = serve(&lab.pod(2, 1), "inside");
    for (there, own) in [(v4(2, 1), v4(1, 1)), (v6(2, 1), v6(1, 1))] {
        assert_eq!(seen_as(&lab.pod(1, 1), &there), own);
    }
    // It belongs to the pod: with the object gone, the pod leaves like everybody else.
    lab.ask(1, "delete egress-ip chosen0");
    assert_eq!(seen_as(&lab.pod(1, 1), &under4(250)), under4(1));
}

#[test]
fn an_endpoint_independent_pool_shows_every_destination_the_same_port() {
    let lab = Lab::up("--pods 1 --outside");
    let pool = |independent: bool| {
        format!(
            "{WAY_OUT}\n[[nat-pool]]\nname = \"out\"\nnetwork = \"default\"\nsources = [\"10.244.0.0/16\"]\n\
             exclusions = [\"10.0.0.0/8\"]\nports = \"50000-50999\"\nendpoint-independent = {independent}\n"
        )
    };
    let outside = lab.outside();
    outside.run(&format!("ip address add {}/24 dev eth0", under4(251)));
    let _server = serve(&outside, "outside");
    let ports = |sport: u16| -> Vec<u16> {
        let (one, two) = (under4(250), under4(251));
        let said =
            lab.pod(1, 1).run(&format!("python3 {} bound {sport} {one} 8080 {two} 8080", backend_script()));
        said.lines()
            .map(|line| line.split_whitespace().nth(2).expect("a port").parse().expect("a number"))
            .collect()
    };
    apply(&lab, 1, &pool(true));
    ping(&lab.pod(1, 1), &under4(250));
    ping(&lab.pod(1, 1), &under4(251));
    for sport in 7001..7011 {
        let seen = ports(sport);
        assert!(seen.len() == 2 && seen[0] == seen[1], "{seen:?}");
    }
    // Without it, a mapping is a destination's own.
    apply(&lab, 1, &pool(false));
    assert!((7101..7121).any(|sport| ports(sport)[0] != ports(sport)[1]), "twenty sources, and all alike");
}

#[test]
fn fragments_come_back_to_translated_senders() {
    let lab = Lab::up("--pods 1 --outside");
    apply(&lab, 1, &egress().replace("endpoints = [\"pod1\"]", "endpoints = [\"nobody\"]"));
    let script = echo_script();
    let _server = lab.outside().serve(7000, &format!("python3 {script} serve 7000"));
    for there in [under4(250), under6(250)] {
        wait_until("an echo comes back", || {
            lab.pod(1, 1).attempt(&format!("ping -c 1 -W 1 {there}")).status.success()
        });
        // Three fragments each way at an MTU of 1500.
        let answer = lab.pod(1, 1).run(&format!("ping -c 10 -i 0.05 -W 2 -s 4000 {there}"));
        assert!(answer.contains(" 0% packet loss"), "{answer}");
    }
    let later = lab.node(1).run("nstat -asz IpReasmReqds Ip6ReasmReqds");
    let counts: Vec<&str> = later
        .lines()
        .filter(|line| line.contains("Reasm"))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(counts, ["0", "0"], "the node's kernel saw none of them: {later}");
}
