//! Another's eye on what leaves the uplink: tshark finds nothing malformed and no bad checksum.

use std::process::Command;

use crate::lab::{Lab, succeed, v4, v6};
use crate::traffic::{Capture, datagrams, fetch, ping};

/// What tshark calls wrong. 0 is "bad" in its checksum fields; 8388608 is its expert severity "error".
const WRONG: &str = "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0 || tcp.checksum.status == 0 \
                     || icmp.checksum.status == 0 || icmpv6.checksum.status == 0 || _ws.expert.severity == 8388608";

fn tshark(file: &str, filter: &str) -> String {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r", file, "-Y", filter]);
    for check in ["ip.check_checksum", "udp.check_checksum", "tcp.check_checksum"] {
        tshark.args(["-o", &format!("{check}:TRUE")]);
    }
    succeed(tshark)
}

fn nothing_is_wrong(flags: &str, tunnel: &str) {
    let lab = Lab::up(&format!("--pods 1 {flags}"));
    let capture = Capture::start(&lab, &lab.under(), "n1", "n1.pcap");
    let (here, far) = (lab.pod(1, 1), lab.pod(2, 1));
    for (here_address, far_address) in [(v4(1, 1), v4(2, 1)), (v6(1, 1), v6(2, 1))] {
        ping(&here, &far_address);
        fetch(&lab, &here, &far, &far_address, 300_000);
        fetch(&lab, &far, &here, &here_address, 300_000);
        datagrams(&here, &far, &far_address, 3000);
    }
    let file = capture.end().display().to_string();
    let seen = tshark(&file, tunnel).lines().count();
    assert!(seen > 500, "{seen} frames of {tunnel}");
    for inside in ["icmp", "icmpv6.type == 128", "tcp", "udp.port == 5201"] {
        assert!(!tshark(&file, &format!("{tunnel} && {inside}")).is_empty(), "no {inside} in {tunnel}");
    }
    let wrong = tshark(&file, WRONG);
    assert!(
        wrong.is_empty(),
        "{} of {seen}, for example:\n{}",
        wrong.lines().count(),
        wrong.lines().next().unwrap_or("")
    );
}

#[test]
fn vxlan_over_ipv4_is_well_formed() {
    nothing_is_wrong("--encap vxlan", "vxlan");
}

#[test]
fn vxlan_over_ipv6_is_well_formed() {
    nothing_is_wrong("--encap vxlan --ipv6", "vxlan");
}

#[test]
fn geneve_over_ipv4_is_well_formed() {
    nothing_is_wrong("--encap geneve", "geneve");
}

#[test]
fn geneve_over_ipv6_is_well_formed() {
    nothing_is_wrong("--encap geneve --ipv6", "geneve");
}

#[test]
fn checksums_left_to_the_device_never_leave_the_node_unfinished() {
    nothing_is_wrong("--encap vxlan --pod-offload", "vxlan");
}
