//! Real programs that talk through a lab, and what they must get.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, Place, Running, number, repository, wait_until};

/// Echoes must come back, all of them. The first may wait for neighbours to be found, so one goes ahead.
pub fn ping(from: &Place, to: &str) {
    reach(from, to);
    let answer = from.run(&format!("ping -c 5 -i 0.05 -W 6 {to}"));
    assert!(answer.contains(" 0% packet loss"), "{answer}");
}

/// Waits until an echo comes back.
pub fn reach(from: &Place, to: &str) {
    wait_until(&format!("an echo from {to}"), || {
        from.attempt(&format!("ping -c 1 -W 1 {to}")).status.success()
    });
}

/// What `ping` reports at its end must be that every echo came back, but for the one that may have been on its way when it
/// was ended.
pub fn assert_unharmed(report: &str) {
    let count = |what: &str| {
        let before = report.split(what).next().filter(|before| before.len() < report.len());
        let word = before.and_then(|before| before.split_whitespace().last());
        word.and_then(|word| word.parse::<u64>().ok())
    };
    let (sent, received) = (count(" packets transmitted"), count(" received"));
    let missing = sent.zip(received).map(|(sent, received)| sent - received);
    assert!(sent > Some(100) && missing <= Some(1), "the flow beside noticed: {report}");
}

/// No echo may come back.
pub fn no_ping(from: &Place, to: &str) {
    let output = from.attempt(&format!("ping -c 3 -i 0.1 -W 1 {to}"));
    assert!(!output.status.success(), "{to} answers: {}", String::from_utf8_lossy(&output.stdout));
}

/// A web server in `at` that holds a file of `bytes` bytes; `from` fetches it from `address` and must get the same.
pub fn fetch(lab: &Lab, from: &Place, at: &Place, address: &str, bytes: usize) {
    let folder = lab.file("www");
    std::fs::create_dir_all(&folder).expect("a folder in the lab's own");
    // Every offset has its own value, so that a segment out of place is seen.
    let content: Vec<u8> = (0..bytes.div_ceil(4) as u32).flat_map(u32::to_le_bytes).take(bytes).collect();
    std::fs::write(folder.join("file"), &content).expect("a file in the lab's own folder");
    let _server =
        at.serve(8080, &format!("python3 -m http.server --bind :: --directory {} 8080", folder.display()));
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let got = folder.join("got");
    from.run(&format!("curl -sS --fail --max-time 60 -o {} http://{host}:8080/file", got.display()));
    assert!(
        std::fs::read(&got).expect("curl wrote it") == content,
        "{bytes} bytes from {address} arrived changed"
    );
}

/// What `iperf3` measured from one pod to another with `options`.
pub fn iperf(from: &Place, at: &Place, address: &str, options: &str) -> Value {
    let server = at.serve(5201, "iperf3 -s -1");
    let answer = from.run(&format!("iperf3 -J -c {address} {options}"));
    let answer: Value = serde_json::from_str(&answer).expect("iperf3 speaks JSON");
    // It ends well also when it failed, and only its answer says so.
    assert!(answer["error"].is_null(), "iperf3 -c {address} {options}: {}", answer["error"]);
    server.finish();
    answer
}

/// Datagrams of `bytes` bytes must all arrive at the receiver's socket; those longer than the MTU travel in fragments.
///
/// What the socket had no room for, while `iperf3` waited for a processor, has arrived: the receiver's kernel says how many.
pub fn datagrams(from: &Place, at: &Place, address: &str, bytes: usize) {
    let before = overflows(at);
    let answer = iperf(from, at, address, &format!("-u -b 10M -l {bytes} -n {}", bytes * 300));
    let sum = &answer["end"]["sum"];
    assert!(number(&sum["packets"]) >= 300, "{sum}");
    let (lost, overflown) = (number(&sum["lost_packets"]), overflows(at) - before);
    // It sees gaps only: what was lost at the end is missing from its count.
    assert!(
        lost <= overflown,
        "{lost} lost, {overflown} of them at the socket: {sum}\n{}",
        at.run("nstat -as")
    );
}

/// Datagrams that sockets of `place` had no room for.
fn overflows(place: &Place) -> u64 {
    let counters = place.run("nstat -asz UdpRcvbufErrors Udp6RcvbufErrors");
    let counts = counters.lines().filter(|line| line.starts_with("Udp"));
    counts
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter_map(|count| count.parse::<u64>().ok())
        .sum()
}

/// A TCP stream must carry something.
pub fn stream(from: &Place, at: &Place, address: &str) {
    let answer = iperf(from, at, address, "-t 1");
    let sum = &answer["end"]["sum_received"];
    assert!(number(&sum["bytes"]) > 1_000_000, "{sum}");
}

/// The kernel of `place` has seen no packet with a wrong checksum.
pub fn assert_checksums_good(place: &Place) {
    let counters = place.run("nstat -asz");
    let bad: Vec<_> = counters
        .lines()
        .filter(|line| line.contains("CsumErrors"))
        .filter(|line| line.split_whitespace().nth(1) != Some("0"))
        .collect();
    assert!(counters.contains("TcpInCsumErrors"), "the kernel counts them: {counters}");
    assert!(bad.is_empty(), "{bad:?}");
}

/// A server that sends back what it gets, for sessions that must not break.
pub fn echo_script() -> String {
    repository().join("dataplane/tests/labs/echo.py").display().to_string()
}

/// The script of SCTP servers and clients.
pub fn sctp_script() -> String {
    repository().join("dataplane/tests/labs/sctp.py").display().to_string()
}

/// A server that sends back by SCTP what it gets, in capitals, in both families.
pub fn serve_sctp(at: &Place, port: u16) -> Running {
    let server = at.spawn(&format!("python3 {} serve {port}", sctp_script()));
    // The kernel lists raw sockets by their protocol: 132.
    let there = |list: &str| at.run(&format!("cat /proc/net/{list}")).contains(":0084 ");
    wait_until("both sockets of the SCTP server are there", || there("raw") && there("raw6"));
    server
}

/// Says a word in an association with a server of [`serve_sctp`], which must answer.
pub fn say_by_sctp(from: &Place, address: &str, port: u16) {
    let said = from.run(&format!("python3 {} say {address} {port} hello", sctp_script()));
    assert_eq!(said.trim(), "HELLO", "{address} port {port}");
}

/// A capture of what passes an interface.
pub struct Capture {
    file: PathBuf,
    tcpdump: Running,
}

impl Capture {
    /// Captures into the lab's file `name` and returns when it has begun.
    pub fn start(lab: &Lab, at: &Place, interface: &str, name: &str) -> Self {
        let file = lab.file(name);
        // Unless told, tcpdump writes as another user, who may not write there; it gathers packets for up to a second and
        // loses those when it is ended; and what it writes it gathers once more.
        let tcpdump = at.spawn(&format!(
            "tcpdump -Z root --immediate-mode -U -B 16384 -i {interface} -w {}",
            file.display()
        ));
        wait_until("the capture has begun", || length(&file) >= 24);
        Self { file, tcpdump }
    }

    /// Ends it when nothing comes any more.
    pub fn end(self) -> PathBuf {
        let mut before = 0;
        while length(&self.file) > before {
            before = length(&self.file);
            std::thread::sleep(Duration::from_millis(200));
        }
        self.tcpdump.end("INT");
        self.file
    }
}

fn length(file: &Path) -> u64 {
    file.metadata().map_or(0, |file| file.len())
}
