//! What an operator sees of a running daemon, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::lab::{Lab, number, programs, succeed, text, v4, wait_until};
use crate::traffic::ping;

/// A thread of another process that is stopped while this lives, as a debugger stops one; the others go on.
struct Held(Pid);

impl Held {
    fn thread(process: u32, name: &str) -> Held {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
        let thread = threads
            .map(|entry| entry.expect("an entry").path())
            .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|it| it.trim() == name))
            .unwrap_or_else(|| panic!("process {process} has a thread {name}"));
        let id = thread.file_name().and_then(|id| id.to_str()).expect("a thread's number");
        let thread = Pid::from_raw(id.parse().expect("a thread's number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("labs run as root");
        ptrace::interrupt(thread).expect("it was just seized");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Held(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A thread that has ended meanwhile is no longer there to be let go.
        let _ = ptrace::detach(self.0, None);
    }
}

fn signal(process: u32, name: &str) {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{name}")).arg(process.to_string());
    succeed(kill);
}

/// Whether every thread of a process has ended, be it that its parent has not asked for it yet. The first one may be gone
/// while another still holds the sockets.
fn has_ended(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    let is_dead = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
    threads <= 1 && stat.map_or(true, is_dead)
}

/// The workers' states by their numbers.
fn states(lab: &Lab) -> BTreeMap<u64, String> {
    let workers = lab.ask(1, "workers");
    let rows = workers.as_array().expect("a list of workers").iter();
    rows.map(|row| (number(&row["id"]), text(&row["state"]))).collect()
}

fn log(lab: &Lab) -> String {
    std::fs::read_to_string(lab.file("node1.log")).expect("the daemon's log")
}

#[test]
fn a_stalled_worker_is_named_and_so_is_its_return() {
    let lab = Lab::up("--nodes 1 --pods 2 --workers 2");
    let held = Held::thread(lab.daemon(1), "worker-1");
    wait_until("worker 1 is stalled", || states(&lab)[&1] == "stalled");
    assert_ne!(states(&lab)[&0], "stalled");
    let status = lab.ask(1, "status");
    assert_eq!(number(&status["slowest_worker"]), 1, "{status}");
    assert!(status["warnings"].to_string().contains("worker 1 takes no turns"), "{status}");
    assert!(log(&lab).contains("worker 1 is stalled"), "{}", log(&lab));
    drop(held);
    wait_until("worker 1 turns", || states(&lab)[&1] != "stalled");
    assert!(log(&lab).contains("worker 1 turns again"), "{}", log(&lab));
    ping(&lab.pod(1, 1), &v4(1, 2));
}

#[test]
fn a_drain_is_seen_and_a_second_signal_ends_it_at_once() {
    let lab = Lab::up("--nodes 1 --pods 1 --workers 2");
    let pid = lab.daemon(1);
    // With it the drain takes seconds, of which the second signal must leave nothing.
    let held = Held::thread(pid, "worker-1");
    signal(pid, "TERM");
    wait_until("worker 1 is draining", || states(&lab)[&1] == "draining");
    let began = Instant::now();
    signal(pid, "INT");
    // The thread that we hold is ours to bury.
    waitpid(held.0, Some(WaitPidFlag::__WALL)).expect("it ends");
    wait_until("the daemon is gone", || has_ended(pid));
    assert!(began.elapsed() < Duration::from_millis(500), "it took {:?}", began.elapsed());
    assert!(log(&lab).contains("ended at once"), "{}", log(&lab));
    assert!(!log(&lab).contains("drained"), "{}", log(&lab));
    // What it left behind stands in nobody's way.
    lab.start(1);
    wait_until("the pod's port is up", || lab.port(1, "pod1").iter().any(|port| port["state"] == "up"));
}

#[test]
fn a_drain_under_load_is_over_at_once() {
    let lab = Lab::up("--pods 2");
    ping(&lab.pod(1, 1), &v4(2, 1));
    let _flood = lab.pod(1, 1).spawn(&format!("ping -q -f {}", v4(2, 1)));
    let _near = lab.node(1).spawn(&format!("ping -q -i 0.002 {}", v4(1, 2)));
    std::thread::sleep(Duration::from_millis(300));
    let (pid, began) = (lab.daemon(1), Instant::now());
    signal(pid, "TERM");
    wait_until("the daemon is gone", || has_ended(pid));
    assert!(began.elapsed() < Duration::from_millis(1000), "it took {:?}", began.elapsed());
    assert!(log(&lab).contains("drained"), "{}", log(&lab));
}

#[test]
fn metrics_are_served_where_the_file_says_and_nowhere_else() {
    let lab = Lab::up("--pods 1 --no-daemons");
    let file = lab.file("node1.toml");
    let plain = std::fs::read_to_string(&file).expect("the lab wrote it");
    let with = plain.replace("[control]\n", "[control]\nmetrics = \"127.0.0.1:9469\"\n");
    std::fs::write(&file, &with).expect("the lab's own file");
    lab.start(1);
    lab.start(2);
    assert_eq!(lab.node(2).run("ss -Hltn"), "", "node 2 was told of no metrics");
    ping(&lab.pod(1, 1), &v4(2, 1));

    let answer = lab.node(1).run("curl -sSi --fail --max-time 10 http://127.0.0.1:9469/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    let before = scraped(body);
    assert_eq!(before[r#"penstock_port_up{port="pod1",role="endpoint",queue="0"}"#], 1.0);
    assert_eq!(before[r#"penstock_peer_reachable{peer="node2"}"#], 1.0);
    for _ in 0..10 {
        ping(&lab.pod(1, 1), &v4(2, 1));
    }
    // Ports' counters are a tenth of a second old at most.
    std::thread::sleep(Duration::from_millis(200));
    let after = scraped(&lab.node(1).run("curl -sS --fail --max-time 10 http://127.0.0.1:9469/metrics"));
    let grew = |series: &str| after[series] - before[series];
    assert!(grew(r#"penstock_port_received_packets_total{port="pod1",role="endpoint",queue="0"}"#) >= 10.0);
    assert!(grew(r#"penstock_port_sent_packets_total{port="uplink",role="uplink",queue="0"}"#) >= 10.0);
    assert!(grew(r#"penstock_flow_cache_lookups_total{worker="0",class="hit"}"#) > 0.0);
    let shrunk = before.iter().filter(|(series, value)| {
        series.contains("_total") && after.get(*series).is_none_or(|now| now < value)
    });
    assert_eq!(shrunk.count(), 0, "counters only grow");

    let refused = lab.node(1).run("curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:9469/");
    assert_eq!(refused, "404");
    // A second daemon is told who stands in its way before it touches anything.
    let other = lab.file("other.toml");
    let apart = with.replace("node1.sock", "other.sock");
    std::fs::write(&other, apart).expect("the lab's own file");
    let second =
        lab.node(1).attempt(&format!("{}/penstockd run --config {}", programs().display(), other.display()));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("cannot listen on 127.0.0.1:9469"), "{said}");
    ping(&lab.pod(1, 1), &v4(2, 1));
}

/// The samples of a text in Prometheus' format, read strictly: a family's help and kind come first and once, its samples
/// stand together, and no series comes twice.
pub fn scraped(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'), "the last line ends");
    let (mut families, mut samples) = (BTreeSet::new(), BTreeMap::new());
    let mut lines = text.lines();
    let mut family = String::new();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').expect("a name and a sentence").0.to_owned();
            assert!(is_name(&family), "{line}");
            assert!(families.insert(family.clone()), "{family} comes twice");
            let kind = lines.next().expect("a kind follows the help");
            let kinds = ["counter", "gauge"].map(|kind| format!("# TYPE {family} {kind}"));
            assert!(kinds.iter().any(|it| it == kind), "{kind}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert_eq!(name, family, "{line}");
        check_labels(labels);
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
    }
    samples
}

fn is_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `port="a",queue="0"}`: names, quoted values whose quotes and backslashes are escaped, and the end.
fn check_labels(labels: &str) {
    let mut rest = labels;
    while rest != "}" {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {rest}"));
        assert!(is_name(name), "{labels}");
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.unwrap_or_else(|| panic!("a value without an end: {labels}"));
        rest = value[end + 1..].strip_prefix(',').unwrap_or(&value[end + 1..]);
    }
}
