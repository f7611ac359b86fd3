//! Real programs between pods under policies: what the rules allow goes through as if there were none, nothing else does.

use crate::lab::{Lab, Place, v4, v6, wait_until};
use crate::stateful::apply;
use crate::traffic::{
    assert_checksums_good, datagrams, fetch, reach, say_by_sctp, sctp_script, serve_sctp, stream,
};

/// Pod 1 of node 1 takes echoes, a web server's port, iperf3's by TCP and UDP and one port by SCTP from everybody, and sends
/// only answers; `sctp` is the port by SCTP.
fn guarded(sctp: u16) -> String {
    let rule = |name: &str, ports: &str| {
        format!(
            "[[policy.rules]]\nname = \"{name}\"\ndirection = \"ingress\"\naction = \"allow\"\nports = [{ports}]\n"
        )
    };
    let server = "\n[[identity]]\nname = \"server\"\nnetwork = \"default\"\n\
        prefixes = [\"10.244.1.1/32\", \"fd10:244:1::1/128\"]\n\
        [[tier]]\nname = \"application\"\norder = 1\ndefault = \"deny\"\n\
        [[policy]]\nname = \"server\"\nnetwork = \"default\"\ntier = \"application\"\n\
        subjects = { identities = [\"server\"] }\ndirections = [\"ingress\", \"egress\"]\n";
    server.to_owned()
        + &rule("echo", r#"{ protocol = "icmp", icmp-type = 8 }, { protocol = "icmpv6", icmp-type = 128 }"#)
        + &rule("web", r#"{ protocol = "tcp", port = 8080 }"#)
        + &rule("iperf", r#"{ protocol = "tcp", port = 5201 }, { protocol = "udp", port = 5201 }"#)
        + &rule("sctp", &format!(r#"{{ protocol = "sctp", port = {sctp} }}"#))
}

/// Packets that the pod's rules refused, both ways.
fn refused(lab: &Lab) -> [u64; 2] {
    let drops = lab.drops(1);
    ["ingress-policy", "egress-policy"].map(|reason| drops.get(reason).copied().unwrap_or(0))
}

/// A program that must get no answer, for its packets are refused on the way in (0) or out (1).
fn is_refused(lab: &Lab, from: &Place, line: &str, way: usize) {
    let before = refused(lab)[way];
    let mut asking = from.spawn(line);
    wait_until(&format!("{line} is refused"), || refused(lab)[way] > before);
    asking.assert_runs();
}

#[test]
fn web_bulk_and_sctp_traffic_pass_where_rules_allow_them_and_nowhere_else() {
    let lab = Lab::up("--pods 2");
    let server = lab.pod(1, 1);
    let script = sctp_script();
    let _servers = [serve_sctp(&server, 5000), serve_sctp(&server, 5001)];
    let _elsewhere = server.serve(8081, "python3 -m http.server --bind :: 8081");
    let _client = lab.pod(2, 1).serve(8080, "python3 -m http.server --bind :: 8080");
    apply(&lab, 1, &guarded(5000));
    for (address, outside) in [(v4(1, 1), v4(2, 1)), (v6(1, 1), format!("[{}]", v6(2, 1)))] {
        let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        for from in [lab.pod(1, 2), lab.pod(2, 1)] {
            reach(&from, &address);
            fetch(&lab, &from, &server, &address, 1_000_000);
            say_by_sctp(&from, &address, 5000);
            is_refused(&lab, &from, &format!("curl -gsS http://{host}:8081/"), 0);
            is_refused(&lab, &from, &format!("python3 {script} say {address} 5001 hello"), 0);
        }
        stream(&lab.pod(2, 1), &server, &address);
        datagrams(&lab.pod(2, 1), &server, &address, 1000);
        is_refused(&lab, &server, &format!("curl -gsS http://{outside}:8080/"), 1);
    }
    // The rule moves to the other port, and so do associations.
    apply(&lab, 1, &guarded(5001));
    say_by_sctp(&lab.pod(2, 1), &v4(1, 1), 5001);
    is_refused(&lab, &lab.pod(2, 1), &format!("python3 {script} say {} 5000 hello", v4(1, 1)), 0);
    for place in [lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1)] {
        assert_checksums_good(&place);
    }
}
