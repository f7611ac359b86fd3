//! The files in `configs/`, and files that are wrong, as `penstockd check` sees them.

use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, Place, programs, repository, wait_until};

/// Runs the daemon to its end: whether that was a success, and what it said.
fn penstockd(at: &Place, arguments: &str) -> (bool, String) {
    let output = at.attempt(&format!("{} {arguments}", programs().join("penstockd").display()));
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn check(at: &Place, options: &str, file: &Path) -> (bool, String) {
    penstockd(at, &format!("check {options}--config {}", file.display()))
}

/// A place that has the interfaces the examples name.
fn host_with_interfaces(lab: &Lab) -> Place {
    let node = lab.node(1);
    node.run(
        "ip link add eth0 type veth peer name x0 && ip link add ens1f0 numrxqueues 2 numtxqueues 2 type veth peer name x1 \
         && ip link add b1 type veth peer name x2 && ip address add 192.0.2.1/24 dev eth0 \
         && ip address add 2001:db8::1/64 dev eth0 nodad && ip address add 192.0.2.9/24 dev ens1f0 \
         && ip link set x0 up && ip link set x1 up && ip link set x2 up \
         && ip link set eth0 mtu 1500 up && ip link set ens1f0 mtu 9000 up && ip link set b1 up",
    );
    node
}

#[test]
fn every_example_is_understood() {
    let lab = Lab::up("--nodes 1 --pods 1 --no-daemons");
    let node = host_with_interfaces(&lab);
    let mut seen = 0;
    for entry in std::fs::read_dir(repository().join("configs")).expect("configs/") {
        let file = entry.expect("an entry").path();
        if file.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let (fine, said) = check(&node, "--file-only ", &file);
        assert!(fine, "{}: {said}", file.display());
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
}

#[test]
fn every_fault_is_named_at_once_with_its_mend() {
    let lab = Lab::up("--nodes 1 --pods 1 --no-daemons");
    let good = std::fs::read_to_string(lab.file("node1.toml")).expect("the lab wrote it");
    let bad = good
        .replace("cpus = [0]", "cpus = [4095]")
        .replace("cpus = [1]", "cpus = [4095]")
        .replace("interface = \"uplink\"", "interface = \"nosuch0\"")
        .replace("network = \"default\"\nmac", "network = \"elsewhere\"\nmac")
        .replace("vni = 100", "vni = 16777216");
    let file = lab.file("bad.toml");
    std::fs::write(&file, &bad).expect("the lab's own folder");
    let (fine, said) = check(&lab.node(1), "", &file);
    assert!(!fine, "{said}");
    for fault in [
        "`cpus`: there is no CPU 4095; this machine has",
        "`interface`: there is no interface nosuch0 in this network namespace; name one",
        "`network`: there is no network \"elsewhere\"; add the network",
        "network \"default\", `vni`: 16777216 does not fit in 24 bits; choose",
    ] {
        assert!(said.contains(fault), "nothing about {fault} in: {said}");
    }
    // A network that cannot be read is not missing.
    assert!(!said.contains("there is no network \"default\""), "{said}");
    // The daemon says the same and does not start.
    let (runs, logged) = penstockd(&lab.node(1), &format!("run --config {}", file.display()));
    assert!(!runs);
    for fault in ["4095", "nosuch0", "elsewhere", "16777216"] {
        assert!(logged.contains(fault), "nothing about {fault} in: {logged}");
    }
}

/// A program of somebody else: it passes everything.
const STRANGER: &str = r#"
__attribute__((section("xdp"), used)) int stranger(void *frame) { return 2; }
__attribute__((section("license"), used)) char granted[] = "GPL";
"#;

#[test]
fn somebody_elses_xdp_program_is_named_with_its_mend_and_never_replaced() {
    let lab = Lab::up("--nodes 1 --pods 2 --no-daemons");
    let node = lab.node(1);
    let (source, object) = (lab.file("stranger.c"), lab.file("stranger.o"));
    std::fs::write(&source, STRANGER).expect("the lab's own folder");
    let (source, object) = (source.display(), object.display());
    node.run(&format!("clang -O2 -target bpf -c {source} -o {object}"));
    let attach = |interface: &str| {
        node.run(&format!("ip link set dev {interface} xdpgeneric obj {object} sec xdp"));
    };
    let runs_it =
        |interface: &str| node.run(&format!("ip -d link show {interface}")).contains("name stranger");

    attach("uplink");
    let file = lab.file("node1.toml");
    let (fine, said) = check(&node, "", &file);
    assert!(!fine, "{said}");
    assert!(said.contains("uplink \"uplink\", `interface`: uplink runs XDP program"), "{said}");
    assert!(said.contains("(stranger)") && said.contains("ip link set dev uplink xdpgeneric off"), "{said}");
    let (runs, logged) = penstockd(&node, &format!("run --config {}", file.display()));
    assert!(!runs && logged.contains("(stranger)"), "{logged}");
    assert!(runs_it("uplink"));
    // What it says is what helps.
    node.run("ip link set dev uplink xdpgeneric off");

    attach("p1");
    let (fine, said) = check(&node, "", &file);
    assert!(fine, "one pod does not keep the node from starting: {said}");
    assert!(said.contains("note: ") && said.contains("p1 runs XDP program"), "{said}");
    lab.start(1);
    let state = |pod: &str| lab.port(1, pod)[0]["state"].to_string();
    assert!(state("pod1").contains("stranger") && state("pod2") == "\"up\"", "{}", state("pod1"));
    assert!(runs_it("p1"));
    node.run("ip link set dev p1 xdpgeneric off");
    wait_until("the pod's port is up", || state("pod1") == "\"up\"");
}

#[test]
fn a_daemon_that_is_not_there_is_said_plainly() {
    let output = Command::new(programs().join("penstock"))
        .args(["--socket", "/run/penstock-no-such.sock", "status"])
        .output()
        .expect("penstock runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/run/penstock-no-such.sock"), "{said}");
}
