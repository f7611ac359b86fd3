//! Pods on two nodes talk through two daemons.

use std::process::Command;

use crate::lab::{HOST, Lab, v4, v6};
use crate::traffic::{Capture, assert_checksums_good, datagrams, fetch, no_ping, ping, reach, stream};

/// What pods and nodes do to each other all day, in both families.
fn everybody_talks(flags: &str) {
    let lab = Lab::up(flags);
    let (here, near, far) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    for (near_address, far_address) in [(v4(1, 2), v4(2, 1)), (v6(1, 2), v6(2, 1))] {
        ping(&here, &near_address);
        ping(&here, &far_address);
        stream(&here, &near, &near_address);
        stream(&here, &far, &far_address);
        datagrams(&here, &far, &far_address, 1200);
        fetch(&lab, &here, &far, &far_address, 4_000_000);
    }
    // The other direction opens its own flows.
    fetch(&lab, &far, &here, &v4(1, 1), 1_000_000);
    fetch(&lab, &far, &here, &v6(1, 1), 1_000_000);
    for place in [here, near, far, lab.node(1), lab.node(2)] {
        assert_checksums_good(&place);
    }
}

#[test]
fn vxlan_over_ipv4_carries_everything() {
    everybody_talks("--encap vxlan");
}

#[test]
fn vxlan_over_ipv6_carries_everything() {
    everybody_talks("--encap vxlan --ipv6");
}

#[test]
fn geneve_over_ipv4_carries_everything() {
    everybody_talks("--encap geneve");
}

#[test]
fn geneve_over_ipv6_carries_everything() {
    everybody_talks("--encap geneve --ipv6");
}

#[test]
fn a_routed_underlay_carries_everything() {
    everybody_talks("--encap vxlan --routed");
}

#[test]
fn what_pods_leave_to_the_device_is_done() {
    everybody_talks("--pod-offload");
}

#[test]
fn workers_share_the_queues_of_an_uplink() {
    everybody_talks("--queues 2 --workers 2");
}

#[test]
fn a_node_and_its_pods_reach_each_other() {
    let lab = Lab::up("--pods 1");
    for (pod, node) in [(v4(1, 1), v4(1, HOST)), (v6(1, 1), v6(1, HOST))] {
        ping(&lab.node(1), &pod);
        ping(&lab.pod(1, 1), &node);
        fetch(&lab, &lab.node(1), &lab.pod(1, 1), &pod, 1_000_000);
        fetch(&lab, &lab.pod(1, 1), &lab.node(1), &node, 1_000_000);
    }
}

#[test]
fn a_node_reaches_the_pods_and_the_host_of_another_node() {
    let lab = Lab::up("--pods 1");
    for (pod, node) in [(v4(2, 1), v4(2, HOST)), (v6(2, 1), v6(2, HOST))] {
        fetch(&lab, &lab.node(1), &lab.pod(2, 1), &pod, 1_000_000);
        fetch(&lab, &lab.pod(1, 1), &lab.node(2), &node, 1_000_000);
        ping(&lab.node(1), &node);
    }
}

#[test]
fn the_gateway_answers_pings() {
    let lab = Lab::up("--pods 1");
    ping(&lab.pod(1, 1), "169.254.1.1");
    ping(&lab.pod(1, 1), "fe80::1%eth0");
}

#[test]
fn networks_keep_the_same_addresses_apart() {
    let lab = Lab::up("--pods 2 --blue 1");
    ping(&lab.pod(1, 1), &v4(2, 1));
    ping(&lab.blue(1, 1), &v4(2, 1));
    for (from, at) in [(lab.pod(1, 1), lab.pod(2, 1)), (lab.blue(1, 1), lab.blue(2, 1))] {
        fetch(&lab, &from, &at, &v4(2, 1), 500_000);
        fetch(&lab, &from, &at, &v6(2, 1), 500_000);
    }
    // Only the default network has a second pod on node 2; blue must not find it.
    reach(&lab.pod(1, 1), &v4(2, 2));
    no_ping(&lab.blue(1, 1), &v4(2, 2));
    no_ping(&lab.blue(1, 1), &v6(2, 2));
}

#[test]
fn peers_of_the_same_subnet_are_spoken_to_without_a_tunnel() {
    let lab = Lab::up("--nodes 3 --pods 1 --cross-subnet");
    let capture = Capture::start(&lab, &lab.under(), "n1", "n1.pcap");
    for pod in [v4(2, 1), v4(3, 1)] {
        ping(&lab.pod(1, 1), &pod);
    }
    let file = capture.end();
    let count = |filter: &str| {
        let mut read = Command::new("tcpdump");
        read.arg("-nr").arg(&file).arg(filter);
        crate::lab::succeed(read).lines().count()
    };
    // Six echoes to each, at least, and their answers.
    let (near, far) = (v4(2, 1), v4(3, 1));
    assert!(count(&format!("icmp and host {near}")) >= 12, "the neighbour gets pods' packets as they are");
    assert_eq!(count("udp port 4789 and host 192.168.51.2"), 0, "the neighbour gets no tunnel");
    assert!(count("udp port 4789 and host 192.168.52.3") >= 12, "the node behind the router gets the tunnel");
    assert_eq!(count(&format!("icmp and host {far}")), 0, "the router does not know the pods");
}
