//! The program itself, run as its users run it, for as short a time as gives figures.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

fn bench(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-bench"));
    command.args(line.split_whitespace()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Runs a command that succeeds and answers in JSON.
fn json(line: &str) -> Value {
    let output = bench(&format!("{line} --json -"));
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A file of this test alone, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("penstock-bench-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn frames_of_a_run_add_up() {
    let run = json("run stateful-vxlan --size 64,512 --flows 1k --rules 10 --duration 0.05");
    let trials = run["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 2);
    for trial in trials {
        let outcome = &trial["outcome"];
        assert_eq!(outcome["offered"], outcome["received"], "{outcome}");
        assert!(outcome["received"].as_u64().unwrap() > 1000, "{outcome}");
        assert!(outcome["lost"].as_object().unwrap().is_empty(), "{outcome}");
    }
    assert!(run["machine"]["calibration"]["ticks-per-second"].as_f64().unwrap() > 1e8);
}

/// Namespaces that a run of this process number made and left.
fn namespaces_of(pid: u32) -> Vec<String> {
    let list = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let mark = format!("penstock-bench-{pid}-");
    String::from_utf8(list.stdout)
        .unwrap()
        .lines()
        .filter(|it| it.starts_with(&mark))
        .map(str::to_owned)
        .collect()
}

#[test]
fn frames_on_ports_of_the_machine_add_up() {
    for line in ["run forward --ports tap", "run l3 --ports veth", "run vxlan-decap --ports tap --size imix"]
    {
        let run = json(&format!("{line} --duration 0.2 --rate 20000"));
        let outcome = &run["trials"][0]["outcome"];
        let lost: u64 = outcome["lost"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        let [offered, received] = ["offered", "received"].map(|it| outcome[it].as_u64().unwrap());
        assert!(received > 100 && offered == received + lost, "{line}: {outcome}");
        assert!(outcome["cycles"].as_f64().unwrap() > 0.0, "{line}: {outcome}");
    }
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-bench"));
    let line = "run l3 --ports veth --duration 300";
    let mut run = command.args(line.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = run.id();
    while namespaces_of(pid).len() < 3 {
        assert_eq!(run.try_wait().unwrap(), None, "it goes on until it is interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert_eq!(namespaces_of(pid), Vec::<String>::new());
}

#[test]
fn what_a_full_ring_misses_is_lost_by_name() {
    let run = json("run l3 --rate 900000000 --duration 0.05");
    let outcome = &run["trials"][0]["outcome"];
    let [offered, received, missed] =
        [&outcome["offered"], &outcome["received"], &outcome["lost"]["receive-ring-full"]]
            .map(|count| count.as_u64().unwrap());
    assert!(missed > 0 && offered == received + missed, "{outcome}");
}

#[test]
fn a_figure_below_its_threshold_is_an_exit_status() {
    let output = bench("run l3 --duration 0.02 --threshold 100000");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("below the threshold"), "{}", said(&output));
    assert!(bench("run l3 --duration 0.02 --threshold 0.001").status.success());
}

#[test]
fn a_search_finds_bounds_that_are_close() {
    let search = json("search l3 --trial 0.02 --width 0.1");
    let found = search["searches"][0]["found"].as_array().unwrap();
    assert_eq!(found.len(), 2);
    for found in found {
        let [lower, upper] = ["lower", "upper"].map(|end| found[end].as_f64());
        let lower = lower.unwrap();
        assert!(upper.is_none_or(|upper| lower < upper && (upper - lower) / upper <= 0.1), "{found}");
    }
}

#[test]
fn results_become_a_page_and_tables() {
    let scratch = Scratch::new("report");
    let [results, page, tables] = ["latency.json", "page.html", "tables.md"].map(|name| scratch.file(name));
    let output = bench(&format!("latency vxlan-encap --rate 20000 --duration 0.1 --json {results}"));
    assert!(output.status.success(), "{}", said(&output));
    let output = bench(&format!("report {results} --html {page} --markdown {tables}"));
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("http"), "the page draws and needs no network");
    assert!(std::fs::read_to_string(tables).unwrap().contains("vxlan-encap, 64 B, 1 k flows"));
}

#[test]
fn changes_become_live_while_packets_go_by() {
    let control = json("control --policies 0,50 --endpoints 1k --changes 4");
    let changes = control["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 4);
    for changed in changes {
        assert!(changed["p50-ms"].as_f64().unwrap() > 0.0 && changed["lost"] == 0, "{changed}");
    }
}

#[test]
fn rows_are_listed_by_peer_and_by_name() {
    let rows = |flags: &str| {
        let output = bench(&format!("compare --list {flags}"));
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    let [testpmd, ovs, kernel] =
        ["testpmd", "ovs-dpdk", "kernel"].map(|peer| rows(&format!("--peer {peer}")));
    assert_eq!(rows(""), testpmd + ovs + kernel);
    assert_eq!(rows("--only vhost-stateful"), 6);
}

#[test]
fn bad_words_are_refused_with_what_is_right() {
    for (line, expected) in [
        ("run l3 --size 9000", "64 to 1518"),
        ("run l3 --flows many", "1k, 100k, 1M"),
        ("run l3 --duration 0", "--duration is 0"),
        ("run l3 --size 1518 --flows 10M --duration 0.1", "fewer --flows"),
        ("run l3 --ports veth --workers 2", "only --ports memory takes --workers above 1"),
        ("run l3 --workers 64", "ask for fewer --workers"),
        ("micro --prefixes 3M", "1 to 1 M"),
        ("compare --rounds 0", "1 to 1 k"),
        ("search l3 --goal x", "PDR:0.005"),
        ("report /nowhere.json", "/nowhere.json"),
        ("compare --only nothing", "memory-l3-1"),
        ("instructions --file /dev/null --record", "a value is required"),
    ] {
        let output = bench(line);
        assert!(!output.status.success() && said(&output).contains(expected), "{line}: {}", said(&output));
    }
}
