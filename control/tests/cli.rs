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
        (
            vec!["connections"],
            vec![
                "10.1.0.7:40000  10.96.0.80:80    10.1.2.9:8080  -                shop/web  -",
                "10.1.0.7:5353   198.51.100.1:53  -              192.0.2.1:50000  -         outside",
            ],
        ),
        (
            vec!["policy"],
            vec![
                "application  shop/database              shop/database  from-web  ingress    allow   shop/web  tcp 5432, udp  12.3 k",
                "application  trial (staged)             shop/database  none      ingress    deny    shop/web  tcp 5432, udp       7",
                "application  (end of the tier)          -              -         -          deny    -         -                   3",
                "application  (end of the tier, staged)  -              -         -          deny    -         -                   8",
            ],
        ),
        (
            vec!["services"],
            vec![
                "shop/web  blue     http tcp 80  10.96.0.80, 203.0.113.80      30080         2      1            7  affinity 3 h 0 min, external local, prefers its zone",
            ],
        ),
        (
            vec!["services", "--backends"],
            vec!["shop/web  http  10.1.2.9:8080   ready        node-b  -", "[fd00::9]:8080  terminating"],
        ),
        (
            vec!["events"],
            vec![
                "22:13:20.000000000 blue shop/database-0: rule \"others\" of policy \"shop/database\" matched\n",
                "22:13:21.000000000 nat-pool \"outside\" has no port left (2 lost before)\n",
            ],
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
    assert_eq!(explained["steps"][1]["fact"]["Route"]["prefix"], "10.1.2.0/24");
    assert_eq!(json(&["policy"])[0]["policies"][0]["rules"][0]["hits"], 12_345);
    assert_eq!(json(&["policy", "--staged"])[0]["policies"][0]["name"], "trial");
    assert_eq!(json(&["services"])[0]["ports"][0]["backends"][1]["state"], "terminating");
    let lines = |words: &[&str]| -> Vec<Value> {
        daemon.text(words).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(lines(&["connections", "--json"])[1]["reply"]["destination"], "192.0.2.1");
    let events = lines(&["events", "--json"]);
    assert_eq!(events[0]["detail"]["Rule"]["rule"]["policy"], "shop/database");
    assert_eq!(events[1]["detail"]["Exhaustion"]["refused"], 9);
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
fn the_stateful_tier_is_asked_as_the_flags_say() {
    let daemon = Daemon::start();
    let words =
        ["connections", "--network", "blue", "--address", "10.1.0.0/16", "--port", "80", "--protocol"];
    let more = ["tcp", "--endpoint", "web", "--service", "shop/web", "--limit", "1"];
    let output = daemon.run(&words.iter().chain(&more).copied().collect::<Vec<_>>());
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).contains("these are the first 1 connections"));
    {
        let queries = daemon.told.connection_queries.lock().unwrap();
        assert_eq!(queries[0].address, "10.1.0.0/16".parse().ok());
        assert_eq!(queries[0].protocol.map(|protocol| protocol.number()), Some(6));
        assert_eq!((queries[0].port, queries[0].limit), (Some(80), Some(1)));
    }
    daemon.text(&["policy", "shop/database", "--network", "blue", "--tier", "admin", "--staged"]);
    {
        let queries = daemon.told.policy_queries.lock().unwrap();
        assert_eq!(queries[0].policy.as_ref().map(|name| name.as_str()), Some("shop/database"));
        assert_eq!((queries[0].tier.is_some(), queries[0].staged), (true, true));
    }
    daemon.text(&["services", "shop/web", "--network", "blue"]);
    assert!(daemon.told.service_queries.lock().unwrap()[0].service.is_some());
    let told =
        daemon.text(&["events", "--kind", "rule", "--count", "5", "--duration", "9", "--network", "blue"]);
    assert_eq!(told.lines().count(), 1, "{told}");
    let orders = daemon.told.event_orders.lock().unwrap();
    assert_eq!((orders[0].count, orders[0].duration), (Some(5), Some(Duration::from_secs(9))));
}

#[test]
fn what_the_daemon_cannot_serve_yet_is_said_in_its_words() {
    let output = Daemon::start().run(&["policy", "--tier", "unserved"]);
    assert_eq!(
        (code(&output), stderr(&output).as_str()),
        (1, "penstock: this daemon does not count what policies decide yet\n")
    );
}

#[test]
fn watching_events_ends_when_its_reader_goes_even_without_one() {
    let daemon = Daemon::start();
    let mut child =
        daemon.command(&["events", "--endpoint", "silent"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take().unwrap());
    assert!(wait(&mut child).success());
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
fn the_example_of_the_stateful_tier_can_be_applied_but_for_its_settings() {
    let daemon = Daemon::start();
    let example =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/node-stateful.toml"))
            .unwrap();
    let objects = Scratch::new("stateful.toml", &example[example.find("[[uplink]]").unwrap()..]);
    let said = daemon.text(&["apply", "-f", objects.path()]);
    assert!(said.contains("objects applied"), "{said}");
    let shown = daemon.text(&["objects"]);
    let again = Scratch::new("stateful-again.toml", &shown);
    daemon.text(&["resync", "-f", again.path()]);
    assert_eq!(daemon.text(&["objects"]), shown);
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
    for (kind, name, key) in [
        ("identity", "web", "identity \"web\""),
        ("tier", "admin", "tier \"admin\""),
        ("policy", "shop/db", "policy \"shop/db\""),
        ("service", "shop/web", "service \"shop/web\""),
        ("backends", "shop/web:main", "backends \"main\" of service \"shop/web\""),
        ("nat-pool", "outside", "nat-pool \"outside\""),
        ("egress-ip", "partner", "egress-ip \"partner\""),
    ] {
        daemon.text(&["delete", kind, name]);
        assert_eq!(daemon.told.deleted.lock().unwrap()[0].to_string(), key);
    }
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
