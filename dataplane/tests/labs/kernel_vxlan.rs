//! The kernel's own VXLAN device as another node: it runs nothing of ours and learns nothing.

use crate::lab::{HOST, Lab, v4, v6};
use crate::traffic::{assert_checksums_good, datagrams, fetch, ping, stream};

/// Makes node 3 an endpoint by the kernel's means. It has one address, as if it were a pod.
fn kernel_endpoint(lab: &Lab, local: &str, remotes: [&str; 2], mtu: u16) {
    let node = lab.node(3);
    let zero = if local.contains(':') { "udp6zerocsumrx" } else { "noudpcsum" };
    node.run(&format!(
        "ip link add vx address 02:70:00:00:00:03 mtu {mtu} type vxlan id 100 local {local} dstport 4789 nolearning {zero} \
         && ip link set vx up && ip address add {}/32 dev vx && ip address add {}/128 dev vx nodad",
        v4(3, 1),
        v6(3, 1)
    ));
    for (i, remote) in (1..).zip(remotes) {
        let mac = format!("02:70:00:00:00:0{i}");
        node.run(&format!(
            "bridge fdb append {mac} dev vx dst {remote} \
             && ip neighbour add {gate4} lladdr {mac} dev vx && ip neighbour add {gate6} lladdr {mac} dev vx \
             && ip route add 10.244.{i}.0/24 via {gate4} dev vx onlink src {own4} \
             && ip route add fd10:244:{i}::/64 via {gate6} dev vx onlink src {own6}",
            gate4 = v4(i, HOST),
            gate6 = v6(i, HOST),
            own4 = v4(3, 1),
            own6 = v6(3, 1),
        ));
    }
}

fn both_directions(lab: &Lab) {
    let (pod, kernel) = (lab.pod(1, 1), lab.node(3));
    for (pod_address, kernel_address) in [(v4(1, 1), v4(3, 1)), (v6(1, 1), v6(3, 1))] {
        ping(&pod, &kernel_address);
        ping(&kernel, &pod_address);
        stream(&pod, &kernel, &kernel_address);
        stream(&kernel, &pod, &pod_address);
        datagrams(&pod, &kernel, &kernel_address, 1200);
        datagrams(&kernel, &pod, &pod_address, 4000);
        fetch(lab, &pod, &kernel, &kernel_address, 2_000_000);
        fetch(lab, &kernel, &pod, &pod_address, 2_000_000);
    }
    ping(&lab.pod(2, 1), &v4(3, 1));
    assert_checksums_good(&pod);
    assert_checksums_good(&kernel);
}

#[test]
fn the_kernels_vxlan_device_is_a_peer() {
    let lab = Lab::up("--pods 1 --foreign 1");
    kernel_endpoint(&lab, "192.168.51.3", ["192.168.51.1", "192.168.51.2"], 1450);
    both_directions(&lab);
}

#[test]
fn the_kernels_vxlan_device_is_a_peer_over_ipv6() {
    let lab = Lab::up("--pods 1 --foreign 1 --ipv6");
    kernel_endpoint(&lab, "fd50:1::3", ["fd50:1::1", "fd50:1::2"], 1430);
    both_directions(&lab);
}
