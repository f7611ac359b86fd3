//! What a pod with limits gets of the wire, as real programs see it.

use serde_json::Value;

use crate::lab::{Lab, v4};
use crate::traffic::{iperf, reach};

/// Gives pod 1 of node 1 limits.
fn limit(lab: &Lab, limits: &str) {
    let objects = lab.node(1).run(&format!("{} objects", lab.penstock(1)));
    let name = "name = \"pod1\"\n";
    let endpoint = objects.split("[[").find(|it| it.starts_with("endpoint]]") && it.contains(name));
    let endpoint =
        endpoint.expect("the pod's endpoint").replace(name, &format!("{name}limits = {{ {limits} }}\n"));
    let file = lab.file("limits.toml");
    std::fs::write(&file, format!("[[{endpoint}")).expect("the lab's own folder");
    lab.ask(1, &format!("apply -f {}", file.display()));
}

/// Megabits a second that arrived.
fn megabits(answer: &Value) -> f64 {
    answer["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e6
}

#[test]
fn a_pods_bandwidth_is_what_it_is_given_in_both_directions() {
    let lab = Lab::up("--pods 1");
    let (pod, other) = (lab.pod(1, 1), lab.pod(2, 1));
    reach(&pod, &v4(2, 1));
    let free = megabits(&iperf(&pod, &other, &v4(2, 1), "-t 2"));
    assert!(free > 100.0, "without limits {free:.1} Mbit/s");
    limit(&lab, "ingress-bits-per-second = 50000000, egress-bits-per-second = 50000000");
    for (way, flag, reason) in [("out", "", "egress-bandwidth"), ("in", "-R", "ingress-bandwidth")] {
        let kept = megabits(&iperf(&pod, &other, &v4(2, 1), &format!("-t 8 -O 1 {flag}")));
        println!("{way}: {kept:.1} Mbit/s of 50, {free:.0} without limits");
        assert!((40.0..=60.0).contains(&kept), "{way}: {kept:.1} Mbit/s of 50");
        assert!(lab.drops(1).get(reason).is_some_and(|&drops| drops > 0), "{:?}", lab.drops(1));
    }
    let warnings = &lab.ask(1, "status")["warnings"];
    assert!(!warnings.to_string().contains("limit"), "{warnings}");
}

/// Sends a datagram from each of 300 ports, no more at once than a quiet pod's queue takes.
const MANY: &str = "import socket, time\nfor i in range(300):\n s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n s.sendto(b\"?\", (\"ADDRESS\", 9))\n if i % 50 == 49: time.sleep(0.02)";

#[test]
fn a_pod_opens_no_more_connections_a_second_than_it_may() {
    let lab = Lab::up("--pods 1");
    reach(&lab.pod(1, 1), &v4(2, 1));
    limit(&lab, "connections-per-second = 20");
    lab.pod(1, 1).run(&format!("python3 -c '{}'", MANY.replace("ADDRESS", &v4(2, 1))));
    let refused = || lab.drops(1).get("endpoint-connection-rate").copied().unwrap_or(0);
    crate::lab::wait_until("the others are refused", || refused() > 200);
    // 20 at once, and what the time brought that Python took.
    assert!((200..=280).contains(&refused()), "{} of 300", refused());
}
