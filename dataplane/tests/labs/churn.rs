//! Connections that come faster than they go: the table is full all the time, and who was there before must live on.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::frames::{ethernet, ipv4, trafgen, udp};
use crate::lab::{Lab, text, v4, wait_until};
use crate::operations::scraped;
use crate::traffic::{echo_script, ping};

/// Connections that the node has room for.
const CAPACITY: u32 = 4096;
/// Connections that are to be thrown out for others while the session lives.
const THROWN_OUT: f64 = 50.0 * CAPACITY as f64;
/// The most frames that are sent: some seconds' worth.
const FRAMES: u32 = 5_000_000;

/// A small table that one pod may fill, in which nothing that was lost is taken up again.
fn lab() -> Lab {
    let lab = Lab::up("--pods 3 --no-daemons");
    let read = |node: &str| std::fs::read_to_string(lab.file(node)).expect("the lab wrote it");
    let cpus = |config: &str| {
        config.lines().find(|line| line.starts_with("cpus = ")).expect("the workers' CPUs").to_owned()
    };
    let (own, others) = (read("node1.toml"), read("node2.toml"));
    // trafgen sends from the first CPU, so the worker that it keeps busy had better be on another.
    let config = own.replace(&cpus(&own), &cpus(&others)).replace(
        "[control]\n",
        &format!(
            "[connections]\ncapacity = {CAPACITY}\nendpoint-percent = 100\nhalf-open-percent = 100\npick-up = false\n\
             [control]\nmetrics = \"127.0.0.1:9469\"\n"
        ),
    );
    std::fs::write(lab.file("node1.toml"), config).expect("the lab's own folder");
    lab.start(1);
    lab.start(2);
    lab
}

/// A datagram from pod 1 to pod 2 whose ports are drawn anew for every copy: a new connection each, 2^32 of them.
fn datagram(lab: &Lab) -> String {
    let gateway: [u8; 6] = {
        let said = lab.pod(1, 1).run("ip -json neighbour show 169.254.1.1");
        let rows: serde_json::Value = serde_json::from_str(&said).expect("ip speaks JSON");
        let bytes = text(&rows[0]["lladdr"]);
        let bytes: Vec<u8> =
            bytes.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal digits")).collect();
        bytes.try_into().expect("six bytes")
    };
    let address = |pod: u8| v4(1, pod).parse().expect("an address");
    let packet = ipv4(address(1), address(2), 17, &udp(1, 2, b"churn"));
    let frame = ethernet(gateway, [2, 1, 0, 0, 1, 1], 0x0800, &packet);
    let ports = "0x00, 0x01, 0x00, 0x02, ";
    let text = trafgen(&[frame]);
    assert_eq!(text.matches(ports).count(), 1, "the ports stand in one place: {text}");
    text.replace(ports, "drnd(4), ")
}

#[test]
fn a_session_outlives_connections_that_come_faster_than_they_go() {
    let lab = lab();
    let script = echo_script();
    let _server = lab.pod(2, 1).serve(7000, &format!("python3 {script} serve 7000"));
    ping(&lab.pod(1, 1), &v4(1, 2));
    let session = lab.pod(1, 3).spawn(&format!("python3 {script} talk {} 7000", v4(2, 1)));
    let established = || {
        let listed = lab.node(1).run(&format!("{} --json connections --port 7000", lab.penstock(1)));
        let rows = listed.lines().map(|line| serde_json::from_str(line).expect("a row of JSON"));
        let rows: Vec<serde_json::Value> =
            rows.filter(|row: &serde_json::Value| row["state"] == "established").collect();
        rows.len()
    };
    wait_until("the session is there", || established() == 1);
    let file = lab.file("churn.cfg");
    std::fs::write(&file, datagram(&lab)).expect("the lab's own folder");
    let counters = || -> BTreeMap<String, f64> {
        scraped(&lab.node(1).run("curl -sS --fail --max-time 10 http://127.0.0.1:9469/metrics"))
    };
    const OPENED: &str = "penstock_connections_opened_total";
    const THROWN: &str = r#"penstock_connections_forgotten_total{why="dropped_early"}"#;
    let _flood = lab.pod(1, 1).spawn(&format!(
        "timeout 30 trafgen --no-sock-mem --notouch-irq -P 1 -n {FRAMES} -i {} -o eth0",
        file.display()
    ));
    wait_until("the table is full", || counters()[THROWN] > 0.0);
    let (began, before) = (Instant::now(), counters());
    let mut after = before.clone();
    wait_until("connections come and go", || {
        after = counters();
        after[THROWN] - before[THROWN] >= THROWN_OUT
    });
    let rate = (after[OPENED] - before[OPENED]) / began.elapsed().as_secs_f64();
    println!(
        "{rate:.0} new connections a second; {} dropped early, {} refused, {} of {CAPACITY} there",
        after[THROWN],
        after[r#"penstock_connections_refused_total{why="table_full"}"#],
        after["penstock_connections"]
    );
    assert!(after["penstock_connections"] >= 0.9 * f64::from(CAPACITY), "the table is full: {after:?}");
    assert_eq!(established(), 1, "nobody dropped the session's");
    // It goes on while they come: every line came back, or it would have broken.
    let heard = || lab.pod(1, 3).run("nstat -asz TcpInSegs");
    let then = heard();
    wait_until("the session is answered", || heard() != then);
    let said = session.end("TERM");
    let lines: u64 = said
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("the session broke: {said}"));
    assert!(lines > 0, "{said}");
    println!("the session: lines and the longest silence in ms: {}", said.lines().last().unwrap_or_default());
}
