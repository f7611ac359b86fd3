//! Direct server return between two nodes and a client outside.

use crate::lab::{Lab, under4, under6};
use crate::services::{WAY_OUT, backend_script, serve};
use crate::stateful::apply;
use crate::traffic::{Capture, fetch, stream};

const BALANCED: [&str; 2] = ["203.0.113.2", "2001:db8::2"];

fn objects() -> String {
    format!(
        r#"{WAY_OUT}
[[service]]
name = "web"
network = "default"
load-balancer-ips = ["{}", "{}"]
ports = [{{ name = "http", port = 8080, node-port = 30080 }}, {{ name = "dns", protocol = "udp", port = 8080, node-port = 30080 }}, {{ name = "iperf", port = 5201 }}]
dsr = true
[[backends]]
service = "web"
ports = [{{ name = "http", port = 8080 }}, {{ name = "dns", port = 8080 }}, {{ name = "iperf", port = 5201 }}]
members = [{{ address = "10.244.2.1", node = "node2" }}, {{ address = "fd10:244:2::1", node = "node2" }}]
"#,
        BALANCED[0], BALANCED[1]
    )
}

#[test]
fn a_remote_backend_answers_clients_outside_past_the_node_that_they_asked() {
    let lab = Lab::up("--pods 1 --encap geneve --outside");
    for i in [1, 2] {
        apply(&lab, i, &objects());
    }
    let (outside, backend) = (lab.outside(), lab.pod(2, 1));
    outside.run(&format!("ip route add {}/32 via {}", BALANCED[0], under4(1)));
    outside.run(&format!("ip -6 route add {}/128 via {}", BALANCED[1], under6(1)));
    let captures = ["n1", "n2"].map(|port| Capture::start(&lab, &lab.under(), port, &format!("{port}.pcap")));
    let server = serve(&backend, "two");
    for (family, client) in [under4(250), under6(250)].into_iter().enumerate() {
        let node = [under4(1), under6(1)][family].clone();
        for (address, port) in [(node.as_str(), 30080), (BALANCED[family], 8080)] {
            for kind in ["ask", "ask-udp"] {
                let said = outside.run(&format!("python3 {} {kind} {address} {port} 10", backend_script()));
                let expected = format!("two {client} ");
                assert!(
                    said.lines().count() == 10 && said.lines().all(|line| line.starts_with(&expected)),
                    "{address}: {said}"
                );
            }
        }
    }
    drop(server);
    fetch(&lab, &outside, &backend, BALANCED[0], 1_000_000);
    fetch(&lab, &outside, &backend, BALANCED[1], 1_000_000);
    let [first, second] = captures.map(Capture::end);
    let answers = |file: &std::path::Path| {
        let answers = "not geneve and (tcp.srcport == 30080 or tcp.srcport == 8080 or udp.srcport == 30080 or udp.srcport == 8080)";
        lab.under()
            .run(&format!("tshark -r {} -Y \"{answers}\" | wc -l", file.display()))
            .trim()
            .parse::<u64>()
            .expect("a number")
    };
    assert_eq!(answers(&first), 0, "no answer passes the node that was asked");
    assert!(answers(&second) > 1000, "they leave from the backend's node");
    // Whatever the client sends fits the tunnel with its option: it is told how long a packet may be.
    stream(&outside, &backend, BALANCED[0]);
    stream(&outside, &backend, BALANCED[1]);
    assert_eq!(lab.drops(2).get("not-served"), None, "{:?}", lab.drops(2));
}
