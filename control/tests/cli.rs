//! Every command of the real binary against a pretended daemon on a real socket.

#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, datagram};
use penstock_api::query::Source;
use serde_json::Value;

const OBJECTS: &str = r#"
    [[network]]
    name = "blue"
    vni = 100
    prefixes = ["10.1.0.0/16"]

    [[peer]]
    name = "node-b"
    address = "192.0.2.2"
"#;

/// A file that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("penstock-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits, but not for ever: a command that hangs is a failed test.
fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("the command did not end");
}

#[test]
fn every_reading_command_prints_a_table() {
    for (words, expected) in [
        (
            vec!["status"],
            vec!["node           node-a", "generation 12, live on every worker", "warning: uplink"],
        ),
        (vec!["ports"], vec!["ID  PORT", " 1  web", "native copy", "1.50 k  93.8 KiB"]),
        (
            vec!["workers"],
            vec!["running  42 %          58", "worker 0 last panicked with: index out of bounds"],
        ),
        (vec!["flows"], vec!["[fd00::7]:5353  [fd00::9]:53  vxlan to node-b  u0    12.3 k  977 KiB  40 ms"]),
        (
            vec!["drops"],
            vec!["PACKETS  REASON       MEANING", "     17  unknown-vni  what unknown-vni means"],
        ),
        (vec!["drops", "--all"], vec!["      0  spoofed-source"]),
        (vec!["routes"], vec!["blue     10.1.0.7/32  endpoint web  implied"]),
        (
            vec!["peers"],
            vec!["node-b  192.0.2.2  yes        -         02:00:00:00:00:02  eth0       1500        1400"],
        ),
    ] {
        // A daemon each, since its counters grow with every look.
        let text = Daemon::start().text(&words);
        for line in expected {
            assert!(text.contains(line), "{words:?} lacks {line:?}:\n{text}");
        }
    }
}

#[test]
fn every_reading_command_prints_json() {
    let daemon = Daemon::start();
    let json = |words: &[&str]| -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&daemon.text(&words)).unwrap()
    };
    assert_eq!(json(&["status"])["generation"], 12);
    assert_eq!(json(&["ports"])[1]["name"], "db");
    assert_eq!(json(&["ports"])[0]["kernel"]["rx_ring_full"], 5);
    assert_eq!(json(&["workers"])[0]["lookups"]["slow_only"], 90);
    assert_eq!(json(&["drops"])[0]["reason"], "unknown-vni");
    assert_eq!(json(&["routes", "--network", "red"])[0]["target"], "peer node-b");
    assert_eq!(json(&["peers"])[0]["learnt_mtu"], 1400);
    assert_eq!(json(&["objects"]), serde_json::json!({}));
    let explained = json(&["explain", "--from", "web", "--to", "10.1.0.1", "--protocol", "icmp"]);
    assert_eq!(explained["steps"][1]["stage"], "route");
    let flows = daemon.text(&["flows", "--json"]);
    let workers: Vec<Value> =
        flows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["worker"].clone()).collect();
    assert_eq!(workers, [0, 1, 2]);
}

#[test]
fn flows_are_asked_for_as_the_flags_say() {
    let daemon = Daemon::start();
    let output =
        daemon.run(&["flows", "--network", "blue", "--address", "10.1.0.7", "--port", "53", "--limit", "2"]);
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).contains("these are the first 2 flows"));
    assert!(stderr(&daemon.run(&["flows", "--limit", "0"])).is_empty());
    let queries = daemon.told.flow_queries.lock().unwrap();
    assert_eq!(queries[0].address, "10.1.0.7/32".parse().ok());
    assert_eq!((queries[0].port, queries[0].limit), (Some(53), Some(2)));
    assert_eq!(queries[1].limit, None);
}

#[test]
fn what_is_applied_is_shown_and_can_be_applied_again() {
    let daemon = Daemon::start();
    let file = Scratch::new("apply.toml", OBJECTS);
    let said = daemon.text(&["apply", "-f", file.path()]);
    assert_eq!(said, "2 objects applied; generation 8 is live on every worker after 420 us\n");
    let objects = daemon.text(&["objects"]);
    assert!(objects.contains("[[network]]\nname = \"blue\"\nvni = 100\n"), "{objects}");

    let mut resync = daemon
        .command(&["resync", "-f", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    resync.stdin.take().unwrap().write_all(objects.as_bytes()).unwrap();
    let answer: Value = serde_json::from_slice(&resync.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(answer, serde_json::json!({ "generation": 8, "took_us": 420 }));
    assert_eq!(daemon.text(&["objects"]), objects);
}

#[test]
fn objects_are_deleted_by_kind_and_name() {
    let daemon = Daemon::start();
    let said = daemon.text(&["delete", "route", "blue:10.1.2.0/24", "blue:fd00:1::/64"]);
    assert_eq!(said, "2 objects deleted; generation 9 is live on every worker after 3.0 ms\n");
    let keys: Vec<String> = daemon.told.deleted.lock().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(keys, ["route 10.1.2.0/24 in network \"blue\"", "route fd00:1::/64 in network \"blue\""]);
    assert_eq!(code(&daemon.run(&["delete", "route", "blue"])), 2);
    assert_eq!(code(&daemon.run(&["delete", "planet", "earth"])), 2);
}

#[test]
fn a_refusal_names_its_faults_and_exits_with_1() {
    let daemon = Daemon::start();
    let file = Scratch::new("refused.toml", "[[peer]]\nname = 'forbidden'\naddress = '192.0.2.9'\n");
    let output = daemon.run(&["apply", "-f", file.path()]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stderr(&output),
        "penstock: nothing was applied:\n  peer \"forbidden\", `address`: is taken; choose another\n"
    );
    let output = daemon.run(&["apply", "-f", file.path(), "--json"]);
    assert_eq!(code(&output), 1);
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(said["faults"][0]["mend"], "choose another");
}

#[test]
fn a_file_with_mistakes_is_not_sent_and_all_of_them_are_named() {
    let daemon = Daemon::start();
    let file = Scratch::new("bad.toml", "[[peer]]\nname = 'a b'\nport = 0\n[[network]]\nname = 'n'\n");
    let output = daemon.run(&["apply", "-f", file.path()]);
    assert_eq!(code(&output), 2);
    let said = stderr(&output);
    for part in [
        "nothing was sent",
        "peer \"a b\", `address`: is missing",
        "`name`: \"a b\" is no name",
        "`vni`: is missing",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(daemon.told.objects.lock().unwrap().is_empty());
    assert_eq!(code(&daemon.run(&["apply", "-f", "/nonexistent.toml"])), 1);
}

#[test]
fn an_explanation_shows_the_stages_and_the_verdict() {
    let daemon = Daemon::start();
    let text = daemon.text(&[
        "explain",
        "--from",
        "peer:node-b/blue",
        "--source",
        "10.1.2.9",
        "--to",
        "10.1.0.7",
        "--protocol",
        "udp",
        "--port",
        "53",
        "--ttl",
        "2",
    ]);
    let expected = "STAGE  DECISION      WHY\n\
                    zone   endpoint web  why endpoint web\n\
                    route  peer node-b   why peer node-b\n\
                    delivered: leaves by u0 in VXLAN\n";
    assert_eq!(text, expected);
    let questions = daemon.told.questions.lock().unwrap();
    assert!(matches!(&questions[0].from, Source::Tunnel { peer, .. } if peer.as_str() == "node-b"));
    assert_eq!((questions[0].protocol, questions[0].destination_port, questions[0].ttl), (17, 53, 2));
}

#[test]
fn a_capture_is_told_line_by_line() {
    let daemon = Daemon::start();
    let text = daemon.text(&["capture", "--port", "web", "--filter", "udp port 53"]);
    assert_eq!(
        text,
        "22:13:20.000000000 web rx 10.1.0.7:5353 > 10.2.0.9:53 udp, 32 bytes\n\
         22:13:20.000000001 web rx 10.1.0.7:5353 > 10.2.0.9:53 udp, 32 bytes\n"
    );
    assert_eq!(daemon.text(&["capture", "--port", "web", "--filter", "tcp"]), "");
    let json = daemon.text(&["capture", "--port", "web", "--count", "1", "--json"]);
    let frame: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&frame["direction"], &frame["length"]), (&Value::from("rx"), &Value::from(46)));
}

#[test]
fn a_capture_file_holds_the_frames() {
    let daemon = Daemon::start();
    let file = Scratch::new("w.pcap", "what was there before");
    let output =
        daemon.run(&["capture", "--port", "web", "--count", "3", "--snaplen", "20", "-w", file.path()]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, "penstock: 3 frames captured, 0 lost\n"));
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes.len(), 24 + 3 * (16 + 20));
    assert_eq!(bytes[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
    assert_eq!(bytes[40..60], datagram()[..20]);

    let piped = daemon.run(&["capture", "--port", "web", "--count", "3", "--snaplen", "20", "-w", "-"]);
    assert_eq!(piped.stdout, bytes);
}

#[test]
fn a_capture_that_is_refused_leaves_the_file_alone() {
    let daemon = Daemon::start();
    let file = Scratch::new("kept.pcap", "precious");
    let output = daemon.run(&["capture", "--port", "nowhere", "-w", file.path()]);
    assert_eq!(
        (code(&output), stderr(&output).as_str()),
        (1, "penstock: there is no port \"nowhere\"; see `penstock ports`\n")
    );
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "precious");
    let output = daemon.run(&["capture", "--port", "web", "--filter", "port http"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("at character 6: \"http\" where a port"), "{}", stderr(&output));
}

#[test]
fn an_interrupted_capture_ends_well_with_a_whole_file() {
    let daemon = Daemon::start();
    let file = Scratch::new("silent.pcap", "");
    let mut child = daemon
        .command(&["capture", "--port", "silent", "-w", file.path()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The header is written before the first frame, and the signals are watched by then or soon after.
    let end = Instant::now() + Duration::from_secs(10);
    while std::fs::metadata(file.path()).unwrap().len() < 24 {
        assert!(Instant::now() < end, "no header");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert!(wait(&mut child).success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "penstock: 0 frames captured, 0 lost\n");
}

#[test]
fn a_capture_ends_when_its_reader_goes_even_without_a_frame() {
    let daemon = Daemon::start();
    let mut child = daemon
        .command(&["capture", "--port", "silent", "-w", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut header = [0; 24];
    stdout.read_exact(&mut header).unwrap();
    assert_eq!(header[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
    drop(stdout);
    assert!(wait(&mut child).success());
}

#[test]
fn a_closed_pipe_is_no_error() {
    let daemon = Daemon::start();
    let mut child = daemon
        .command(&["capture", "--port", "web", "--count", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    assert!(wait(&mut child).success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn watching_prints_rates_until_the_reader_goes() {
    let daemon = Daemon::start();
    for (command, field) in
        [("status", "rx_pps"), ("ports", "rx_pps"), ("workers", "rx_pps"), ("drops", "per_second")]
    {
        let mut child =
            daemon.command(&[command, "--watch", "0.1", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let row: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let row = if row.is_array() { &row[0] } else { &row };
        assert!(row[field].as_f64().unwrap() > 0.0, "{command}: {row}");
        drop(lines);
        assert!(wait(&mut child).success(), "{command}");
    }
    let mut child = daemon.command(&["ports", "--watch", "0.1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.next().unwrap().unwrap().starts_with("ID  PORT  QUEUE  STATE"));
    assert!(lines.next().unwrap().unwrap().contains("pps"));
    drop(lines);
    assert!(wait(&mut child).success());
}

#[test]
fn without_a_daemon_the_cause_and_the_mend_are_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(["--socket", "/nonexistent/penstock.sock", "status"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("is penstockd running?"), "{}", stderr(&output));
}

#[test]
fn usage_mistakes_exit_with_2() {
    let daemon = Daemon::start();
    for words in [
        vec!["dance"],
        vec!["status", "--watch", "0"],
        vec!["flows", "--address", "web"],
        vec!["explain", "--from", "web", "--to", "10.0.0.1", "--protocol", "tcp"],
        vec!["capture"],
        vec!["capture", "--port", "web", "-w", "-", "--json"],
    ] {
        assert_eq!(code(&daemon.run(&words)), 2, "{words:?}");
    }
    assert_eq!(code(&daemon.run(&["capture", "--help"])), 0);
}
