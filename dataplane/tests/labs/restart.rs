//! Daemons that are killed and started again under sessions that they serve and translate.

use std::time::{Duration, Instant};

use crate::lab::{Lab, Place, Running, v4, wait_until};
use crate::traffic::{echo_script, ping};

/// How often the daemon is killed.
const KILLS: usize = 20;

/// Where node 2 is reached that is no node's address: somewhere outside.
const OUTSIDE: &str = "192.168.51.200";

/// A service at node 2, and a way out under node 1's address.
fn objects() -> String {
    let pod = v4(2, 1);
    format!(
        r#"
[[service]]
name = "echo"
network = "default"
cluster-ips = ["10.96.0.7"]
ports = [
    {{ name = "tcp", port = 70 }},
    {{ name = "udp", port = 71, protocol = "udp" }},
    {{ name = "iperf", port = 72 }},
]
[[backends]]
service = "echo"
ports = [
    {{ name = "tcp", port = 7000 }},
    {{ name = "udp", port = 7001 }},
    {{ name = "iperf", port = 5201 }},
]
members = [{{ address = "{pod}" }}]
[[route]]
network = "default"
prefix = "0.0.0.0/0"
via = {{ uplink = {{ uplink = "uplink" }} }}
[[nat-pool]]
name = "outside"
network = "default"
sources = ["10.244.0.0/16"]
exclusions = ["10.0.0.0/8"]
ports = "50000-50999"
"#
    )
}

/// A lab whose node 1 has a service and a way out in its file.
fn lab() -> Lab {
    let lab = Lab::up("--pods 2 --no-daemons");
    let file = lab.file("node1.toml");
    let config = std::fs::read_to_string(&file).expect("the lab wrote it");
    std::fs::write(&file, config + &objects()).expect("the lab's own folder");
    lab.node(2).run(&format!("ip address add {OUTSIDE}/32 dev uplink"));
    lab.start(1);
    lab.start(2);
    ping(&lab.pod(1, 1), &v4(2, 1));
    lab
}

/// Servers of all that is asked, in a place.
fn serve(place: &Place, address: &str, iperf_port: u16) -> [Running; 3] {
    let script = echo_script();
    [
        place.serve(7000, &format!("python3 {script} serve 7000")),
        place.spawn(&format!("python3 {script} reflect {address} 7001")),
        place.serve(iperf_port, &format!("iperf3 -s -p {iperf_port}")),
    ]
}

/// What came back to a ticker, and its silences in milliseconds.
fn silences(ticker: Running) -> Vec<u64> {
    let report = ticker.end("TERM");
    let numbers: Vec<u64> = report
        .split_whitespace()
        .map(|number| number.parse().unwrap_or_else(|e| panic!("a number ({e}): {report}")))
        .collect();
    assert!(numbers[0] > 100, "{} datagrams came back", numbers[0]);
    numbers[1..].to_vec()
}

#[test]
fn sessions_through_a_service_and_translation_outlive_twenty_kills() {
    let lab = lab();
    let script = echo_script();
    let _served = serve(&lab.pod(2, 1), &v4(2, 1), 5201);
    let _outside = serve(&lab.node(2), OUTSIDE, 5202);
    let pod = lab.pod(1, 1);
    let seconds = 3600;
    let mut sessions = [
        pod.spawn(&format!("python3 {script} talk 10.96.0.7 70")),
        pod.spawn(&format!("python3 {script} talk {OUTSIDE} 7000")),
        pod.spawn(&format!("iperf3 -c 10.96.0.7 -p 72 -t {seconds} -b 50M")),
        pod.spawn(&format!("iperf3 -c {OUTSIDE} -p 5202 -t {seconds} -b 50M")),
    ];
    let tickers = [("service", "10.96.0.7 71"), ("translation", &format!("{OUTSIDE} 7001"))]
        .map(|(what, to)| (what, pod.spawn(&format!("python3 {script} tick {to}"))));
    let established = || pod.run("ss -Htn state established").lines().count();
    let ticking = || pod.run("ss -Hun state established").lines().count();
    wait_until("all sessions are there", || (established(), ticking()) == (6, 2));
    let mut down = Vec::new();
    for _ in 0..KILLS {
        let began = Instant::now();
        lab.kill(1);
        lab.start(1);
        down.push(began.elapsed().as_millis());
        // Longer than the senders' retransmission timers have grown meanwhile.
        std::thread::sleep(Duration::from_millis(800));
        sessions.iter_mut().for_each(Running::assert_runs);
    }
    assert_eq!(established(), 6, "the sessions are those of the beginning");
    eprintln!("kill to answer on the control socket, ms: {down:?}");
    for (what, ticker) in tickers {
        let mut gaps = silences(ticker);
        gaps.sort_unstable();
        eprintln!("{what}: silences in ms, sorted: {gaps:?}");
        assert!(gaps.len() >= KILLS, "every kill is felt");
        // A bound for a machine that does other things besides; what it takes on a quiet one is for the reader to see.
        assert!(gaps[gaps.len() - KILLS / 2] < 1000, "{what}: half of the gaps are that long: {gaps:?}");
    }
}

#[test]
fn sessions_outlive_a_stop_in_good_order() {
    let lab = lab();
    let script = echo_script();
    let _served = serve(&lab.pod(2, 1), &v4(2, 1), 5201);
    let _outside = serve(&lab.node(2), OUTSIDE, 5202);
    let mut sessions = [
        lab.pod(1, 1).spawn(&format!("python3 {script} talk 10.96.0.7 70")),
        lab.pod(1, 1).spawn(&format!("python3 {script} talk {OUTSIDE} 7000")),
    ];
    wait_until("both sessions are there", || {
        lab.pod(1, 1).run("ss -Htn state established").lines().count() == 2
    });
    for _ in 0..3 {
        lab.stop(1);
        // The other sides go on sending to ports that the kernel knows nothing of.
        std::thread::sleep(Duration::from_millis(600));
        sessions.iter_mut().for_each(Running::assert_runs);
        lab.start(1);
        ping(&lab.pod(1, 1), &v4(2, 1));
    }
    sessions.iter_mut().for_each(Running::assert_runs);
    assert_eq!(lab.pod(1, 1).run("ss -Htn state established").lines().count(), 2);
}
