//! The files in `configs/`, and files that are wrong, as `penstockd check` sees them.

use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, Place, programs, repository};

fn check(at: &Place, options: &str, file: &Path) -> (bool, String) {
    let output = at.attempt(&format!(
        "{} check {options}--config {}",
        programs().join("penstockd").display(),
        file.display()
    ));
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
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
#[ignore = "an unreadable object still hides the faults of the other sections"]
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
    for fault in ["bad.toml", "4095", "nosuch0", "elsewhere", "16777216"] {
        assert!(said.contains(fault), "nothing about {fault} in: {said}");
    }
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
