//! The plugin as a runtime meets it: a process with an environment, standard input and standard output.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use penstock_cni::protocol::{Answer, Done, Request};
use penstock_cni::result::{AddResult, Interface, IpConfig};
use serde_json::Value;

fn call(verb: &str, config: &str) -> Output {
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_penstock-cni"));
    plugin.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
    plugin.env("CNI_NETNS", "/run/netns/c1").env("CNI_PATH", "/nonexistent");
    let mut child = plugin
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the plugin starts");
    // One that fails early does not read.
    let _ = child.stdin.take().expect("a pipe").write_all(config.as_bytes());
    child.wait_with_output().expect("the plugin ends")
}

fn said(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// An agent that answers one request with what `answer` makes of it.
fn agent(socket: &Path, answer: impl Fn(Request) -> Answer + Send + 'static) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a plugin");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("a stream")).read_line(&mut line).expect("a line");
        let answer = answer(serde_json::from_str(&line).expect("a request"));
        writeln!(stream, "{}", serde_json::to_string(&answer).expect("an answer")).expect("written");
    })
}

#[test]
fn nothing_but_the_result_is_said_in_the_version_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let socket = folder.path().join(version);
        let agent = agent(&socket, |request| {
            let Request::Add(attach) = request else { panic!("{request:?}") };
            assert_eq!(attach.id.to_string(), "c1/eth0");
            let interface = Interface {
                name: "eth0".into(),
                mtu: Some(1450),
                sandbox: Some("n".into()),
                ..Interface::default()
            };
            let ip = IpConfig { address: "10.0.0.2/32".parse().unwrap(), gateway: None, interface: Some(0) };
            let result = AddResult { interfaces: vec![interface], ips: vec![ip], ..AddResult::default() };
            Ok(Done { result: Some(result), ..Done::default() })
        });
        let config = format!(
            r#"{{"cniVersion":"{version}","name":"n","type":"penstock-cni","socket":"{}"}}"#,
            socket.display()
        );
        let output = call("ADD", &config);
        agent.join().unwrap();
        assert!(output.status.success(), "{version}: {output:?}");
        assert_eq!(said(&output)["cniVersion"], version);
        assert_eq!(said(&output)["interfaces"][0].get("mtu").is_some(), version == "1.1.0", "{version}");
        assert!(output.stderr.is_empty(), "{version}: {output:?}");
    }
}

#[test]
fn an_agent_that_ends_in_the_middle_means_try_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = std::thread::spawn(move || drop(listener.accept()));
    let config = format!(r#"{{"cniVersion":"1.1.0","name":"n","socket":"{}"}}"#, socket.display());
    let output = call("ADD", &config);
    agent.join().unwrap();
    assert!(!output.status.success());
    assert_eq!(said(&output)["code"], 11);
}

#[test]
fn versions_are_told_in_a_moment() {
    let quickest = (0..20).map(|_| {
        let from = Instant::now();
        let output = call("VERSION", r#"{"cniVersion":"1.1.0"}"#);
        let took = from.elapsed();
        assert_eq!(said(&output)["supportedVersions"].as_array().unwrap().len(), 5);
        took
    });
    let quickest = quickest.min().unwrap();
    println!("penstock-cni VERSION: {quickest:?}");
    assert!(quickest < Duration::from_millis(5), "{quickest:?}");
}

#[test]
fn what_makes_no_sense_gives_an_error_object() {
    for (verb, config, code) in [
        ("ADD", "", 6),
        ("ADD", "{", 6),
        ("ADD", r#"{"cniVersion":"9.0.0","name":"n"}"#, 1),
        ("ADD", r#"{"cniVersion":"1.1.0","name":"/"}"#, 7),
        ("JUMP", "{}", 4),
        ("CHECK", r#"{"cniVersion":"1.1.0","name":"n"}"#, 7),
    ] {
        let output = call(verb, config);
        assert!(!output.status.success(), "{verb} {config}");
        assert_eq!(said(&output)["code"], code, "{verb} {config}");
        assert!(said(&output)["cniVersion"].is_string());
    }
}
