//! Packets that do not fit: path MTUs are told, learnt and obeyed.

use crate::lab::{Lab, Place, number, v4, v6, wait_until};
use crate::traffic::{assert_checksums_good, datagrams, fetch, ping};

const MEGABYTES: usize = 6_000_000;

/// Several MB of TCP each way and datagrams in fragments, in both families.
fn bulk_passes(lab: &Lab) {
    let (here, far) = (lab.pod(1, 1), lab.pod(2, 1));
    for (here_address, far_address) in [(v4(1, 1), v4(2, 1)), (v6(1, 1), v6(2, 1))] {
        ping(&here, &far_address);
        fetch(lab, &here, &far, &far_address, MEGABYTES);
        fetch(lab, &far, &here, &here_address, MEGABYTES);
        datagrams(&here, &far, &far_address, 4000);
        datagrams(&far, &here, &here_address, 4000);
    }
}

#[test]
fn bulk_passes_pods_with_an_mtu_of_1450() {
    bulk_passes(&Lab::up("--pods 1 --pod-mtu 1450"));
}

#[test]
fn bulk_passes_an_underlay_with_an_mtu_of_1450() {
    bulk_passes(&Lab::up("--pods 1 --mtu 1450"));
}

/// What a packet of `length` bytes that may not be cut earns its sender: word of how many bytes fit. The pod must not know
/// yet, or its own kernel would refuse.
pub fn is_told(from: &Place, to: &str, length: u16, fits: u16) {
    let (headers, words) = if to.contains(':') {
        (48, format!("Packet too big: mtu={fits}"))
    } else {
        (28, format!("Frag needed and DF set (mtu = {fits})"))
    };
    let answer = from.attempt(&format!("ping -c 2 -i 0.2 -W 1 -M do -s {} {to}", length - headers));
    let said = String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned();
    assert!(said.contains(&words), "{length} bytes to {to}: {said}");
}

/// Tells both pods, in both families. Until then a datagram may be lost, and its sender learns of it as of an error.
fn both_are_told(lab: &Lab, length: u16, fits: u16) {
    let (here, far) = (lab.pod(1, 1), lab.pod(2, 1));
    for (here_address, far_address) in [(v4(1, 1), v4(2, 1)), (v6(1, 1), v6(2, 1))] {
        is_told(&here, &far_address, length, fits);
        is_told(&far, &here_address, length, fits);
    }
}

#[test]
fn a_pod_that_sends_too_much_is_told_what_fits() {
    let lab = Lab::up("--pods 1 --pod-mtu 1500");
    // The way is found first: who asks for a neighbour is told nothing else.
    ping(&lab.pod(1, 1), &v4(2, 1));
    both_are_told(&lab, 1500, 1450);
    bulk_passes(&lab);
}

/// Whether `pod` knows of a path MTU to `to`.
fn knows(pod: &Place, to: &str) -> bool {
    pod.run(&format!("ip route get {to}")).contains(" mtu ")
}

/// Makes the pods forget what they were told.
fn forget(lab: &Lab) {
    for (pod, other) in [(lab.pod(1, 1), 2), (lab.pod(2, 1), 1)] {
        pod.run("ip route flush cache && ip -6 route flush cache");
        assert!(!knows(&pod, &v4(other, 1)) && !knows(&pod, &v6(other, 1)), "a pod still knows");
    }
}

/// Nobody knows that the middle link carries no more than 1400 bytes. The first tunnel packets that are longer are lost,
/// which TCP makes good; each is answered by the router before that link, and from then on nothing is lost: `fits` bytes
/// of a pod's packet fit, longer ones are cut or refused with word of that.
fn the_middle_link_is_learnt(flags: &str, fits: u16) {
    let lab = Lab::up(&format!("--pods 1 --middle-mtu 1400 {flags}"));
    let (here, far) = (lab.pod(1, 1), lab.pod(2, 1));
    for (here_address, far_address) in [(v4(1, 1), v4(2, 1)), (v6(1, 1), v6(2, 1))] {
        ping(&here, &far_address);
        fetch(&lab, &here, &far, &far_address, MEGABYTES);
        // A pod that was told asks for short segments too, and the other node would send nothing that it learns from.
        forget(&lab);
        fetch(&lab, &far, &here, &here_address, MEGABYTES);
        forget(&lab);
    }
    for node in [1, 2] {
        let peer = || lab.ask(node, "peers")[0].clone();
        wait_until("both nodes know the path's MTU", || peer()["learnt_mtu"].as_u64() == Some(1400));
        assert_eq!(number(&peer()["mtu"]), 1500, "what the uplink carries is another matter");
    }
    // The pods' own MTU is what tunnels leave of 1500: who knows no more cuts there, and the nodes cut the fragments again.
    let pod_mtu = fits + 100;
    let echoes = here.run(&format!("ping -c 20 -i 0.05 -W 2 -M dont -s 4000 {}", v4(2, 1)));
    assert!(echoes.contains(" 0% packet loss"), "{echoes}");
    assert!(!knows(&here, &v4(2, 1)) && !knows(&far, &v4(1, 1)), "their fragments were as long as their MTU");
    both_are_told(&lab, pod_mtu, fits);
    bulk_passes(&lab);
}

#[test]
fn a_narrow_middle_link_is_learnt() {
    the_middle_link_is_learnt("--encap vxlan", 1350);
}

#[test]
fn a_narrow_middle_link_is_learnt_over_ipv6() {
    the_middle_link_is_learnt("--encap geneve --ipv6", 1330);
}

#[test]
fn jumbo_frames_pass_a_jumbo_underlay() {
    let lab = Lab::up("--pods 1 --mtu 9000 --workers 2");
    bulk_passes(&lab);
    let (here, far) = (lab.pod(1, 1), lab.pod(2, 1));
    for size in [1800, 2500, 5000, 8900] {
        let echoes = here.run(&format!("ping -c 3 -i 0.1 -W 6 -M do -s {size} {}", v4(2, 1)));
        assert!(echoes.contains(" 0% packet loss"), "{echoes}");
        let echoes = far.run(&format!("ping -c 3 -i 0.1 -W 6 -M do -s {} {}", size - 20, v6(1, 1)));
        assert!(echoes.contains(" 0% packet loss"), "{echoes}");
    }
    for place in [here, far] {
        assert_checksums_good(&place);
    }
}
