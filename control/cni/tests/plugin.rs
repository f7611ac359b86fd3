//! The plugin as a runtime meets it: a process with an environment, standard input and standard output.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::{Answer, Done, Request};
use penstock_cni::result::{AddResult, Interface, IpConfig};
use serde_json::Value;

fn call(verb: &str, config: &str) -> Output {
    call_beside(verb, config, Path::new("/nonexistent"))
}

/// Calls the plugin where other plugins are in a folder.
fn call_beside(verb: &str, config: &str, others: &Path) -> Output {
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_penstock-cni"));
    plugin.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
    plugin.env("CNI_NETNS", "/run/netns/c1").env("CNI_PATH", others);
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
fn versions_are_told_without_an_agent() {
    let quickest = (0..20).map(|_| {
        let from = Instant::now();
        let output = call("VERSION", r#"{"cniVersion":"1.1.0"}"#);
        let took = from.elapsed();
        assert_eq!(said(&output)["supportedVersions"].as_array().unwrap().len(), 5);
        took
    });
    let quickest = quickest.min().unwrap();
    // Nothing else but the machine decides how long that is.
    println!("penstock-cni VERSION: {quickest:?}");
}

#[test]
fn the_program_is_small() {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("penstock-cni");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(env!("CARGO_BIN_EXE_penstock-cni"));
    assert!(strip.status().expect("strip, of binutils, runs").success());
    let bytes = std::fs::metadata(&stripped).unwrap().len();
    println!("penstock-cni, stripped: {bytes} bytes");
    assert!(bytes < 3_000_000, "{bytes} bytes");
}

/// A plugin that gives an address, and writes down what it is called for and with.
const GIVER: &str = r#"#!/bin/sh
cat >"$0.$CNI_COMMAND.json"
echo "$CNI_COMMAND $CNI_CONTAINERID/$CNI_IFNAME" >>"$0.log"
if [ "$CNI_COMMAND" = ADD ]; then
  echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.7.0.9/24","gateway":"10.7.0.1"}],"dns":{}}'
fi
"#;

#[test]
fn any_plugin_gives_addresses_and_takes_back_what_it_gave() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let giver = folder.path().join("giver");
    std::fs::write(&giver, GIVER).unwrap();
    std::fs::set_permissions(&giver, std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = || std::fs::read_to_string(folder.path().join("giver.log")).unwrap_or_default();
    let socket = folder.path().join("s");
    let config = format!(
        r#"{{"cniVersion":"1.1.0","name":"n","socket":"{}","ipam":{{"type":"giver","pool":"theirs"}}}}"#,
        socket.display()
    );
    let with_agent = |verb: &str, config: &str, answer: fn(Request) -> Answer| {
        let _ = std::fs::remove_file(&socket);
        let agent = agent(&socket, answer);
        let output = call_beside(verb, config, folder.path());
        agent.join().unwrap();
        output
    };
    let added = with_agent("ADD", &config, |request| {
        let Request::Add(attach) = request else { panic!("{request:?}") };
        assert!(attach.raw.contains("theirs"));
        let given = attach.delegated.expect("what the giver gave");
        assert_eq!(given.ips[0].address.to_string(), "10.7.0.9/24");
        Ok(Done { result: Some(given), ..Done::default() })
    });
    assert!(added.status.success(), "{added:?}");
    assert_eq!(said(&added)["ips"][0]["gateway"], "10.7.0.1");
    // It has the whole configuration, with keys that only it knows.
    let handed: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("giver.ADD.json")).unwrap()).unwrap();
    assert_eq!(handed["ipam"]["pool"], "theirs");

    // What was given for nothing is taken back at once.
    let failed = with_agent("ADD", &config, |_| Err(Failure::new(Code::Plumbing, "no room")));
    assert_eq!(said(&failed)["msg"], "no room");
    assert_eq!(log(), "ADD c1/eth0\nADD c1/eth0\nDEL c1/eth0\n");

    // The runtime has lost the configuration, and the agent has it.
    let cut = format!(r#"{{"name":"n","socket":"{}"}}"#, socket.display());
    let deleted = with_agent("DEL", &cut, |request| {
        assert!(matches!(request, Request::Del(_)), "{request:?}");
        let raw = r#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"giver","pool":"kept"}}"#;
        Ok(Done { delegated: vec![raw.to_owned()], ..Done::default() })
    });
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(log().ends_with("DEL c1/eth0\nDEL c1/eth0\n"), "{}", log());
    assert!(std::fs::read_to_string(folder.path().join("giver.DEL.json")).unwrap().contains("kept"));

    let unknown = call_beside("ADD", &config.replace("giver", "nobody"), folder.path());
    assert!(said(&unknown)["msg"].as_str().unwrap().contains("no such plugin is in CNI_PATH"), "{unknown:?}");
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
