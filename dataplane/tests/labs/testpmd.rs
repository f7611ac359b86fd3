//! DPDK's testpmd as an accelerated pod, with every kind of ring, towards every kind of neighbour.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use penstock_wire::MacAddr;

use crate::lab::{Lab, Place, number, v4, wait_until};
use crate::stateful::apply;
use crate::vhost::{FENCED, vhost4};

/// DPDK's testpmd with a virtio-user port.
pub struct Testpmd(Child);

impl Testpmd {
    fn start(lab: &Lab, i: u8, j: u8, device: &str, mode: &str) -> Testpmd {
        let socket = lab.file(&format!("node{i}-vhost{j}.sock"));
        Testpmd::at(&socket, &format!("{i}-{j}"), &format!("mac=02:03:00:00:0{i}:0{j},{device}"), mode)
    }

    /// With a socket, by a name that no other at the same time has.
    pub fn at(socket: &Path, name: &str, device: &str, mode: &str) -> Testpmd {
        let mut command = Command::new("dpdk-testpmd");
        command.args(["--in-memory", "--no-pci", "--single-file-segments", "--no-telemetry", "-m", "128"]);
        command.args([
            "-l",
            "0,1",
            "--main-lcore",
            "0",
            "--file-prefix",
            &format!("penstock{}-{name}", std::process::id()),
        ]);
        command.arg(format!("--vdev=net_virtio_user0,path={},queue_size=256,{device}", socket.display()));
        command.args(["--", "--auto-start", "--total-num-mbufs=16384"]).args(mode.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Testpmd(command.spawn().expect("dpdk-testpmd, which scripts/setup installs"))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // One that has ended is not killed, and that is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn testpmd_sends_across_the_overlay_and_policy_stops_it() {
    for device in ["packed_vq=0", "packed_vq=1"] {
        let lab = Lab::up("--pods 1 --vhost 1");
        let gateway = MacAddr::from_underlay([192, 168, 51, 1].into());
        let _receiver = Testpmd::start(&lab, 2, 1, device, "--forward-mode=rxonly");
        let mode = format!(
            "--forward-mode=txonly --eth-peer=0,{gateway} --tx-ip={},{} --txpkts=64 --burst=8",
            vhost4(1, 1),
            vhost4(2, 1)
        );
        let _sender = Testpmd::start(&lab, 1, 1, device, &mode);
        let arrived = || number(&lab.port(2, "vhost1")[0]["tx_packets"]);
        wait_until("ten thousand packets have arrived", || arrived() > 10_000);
        let drops = lab.drops(1);
        let bad = ["wrong-source-mac", "spoofed-source", "not-for-us"].map(|reason| drops.get(reason));
        assert_eq!(bad, [None; 3], "{drops:?}");
        apply(&lab, 1, FENCED);
        wait_until("the fence holds", || lab.drops(1).get("egress-policy").is_some_and(|it| *it > 1000));
        // The node that refuses is asked: what it sent before may wait for the other to find time. Its ports' counters are
        // some tenths of a second old, so that they must tell of the fence before they are compared.
        let left = || number(&lab.port(1, "uplink")[0]["tx_packets"]);
        let refused = || number(&lab.port(1, "vhost1")[0]["rx_packets"]).saturating_sub(left());
        let stale = refused();
        wait_until("the ports' counters tell of the fence", || refused() > stale + 50_000);
        let before = left();
        wait_until("and the fence goes on to hold", || refused() > stale + 250_000);
        assert_eq!(left(), before);
    }
}

/// testpmd's pod may send datagrams to port 9 of one pod of each kind, and nothing else to anybody.
const ADMITTED: &str = r#"
[[identity]]
name = "accelerated"
network = "default"
prefixes = ["10.244.1.101/32"]
[[identity]]
name = "admitted"
network = "default"
prefixes = ["10.244.1.102/32", "10.244.1.1/32", "10.244.2.101/32"]
[[tier]]
name = "application"
order = 1
default = "deny"
[[policy]]
name = "discard"
network = "default"
tier = "application"
subjects = { identities = ["accelerated"] }
directions = ["egress"]
[[policy.rules]]
name = "discard"
direction = "egress"
action = "allow"
peers = [{ identity = "admitted" }]
ports = [{ protocol = "udp", port = 9 }]
"#;

/// Frames that the interface of a pod received.
fn received(pod: &Place) -> u64 {
    pod.run("cat /sys/class/net/eth0/statistics/rx_packets").trim().parse().expect("a number")
}

/// Starts testpmd of this kind as vhost endpoint 1 of node 1, lets it send to `address`, and waits for `enough`.
fn send_until(lab: &Lab, device: &str, pairs: u16, address: &str, enough: impl FnMut() -> bool) {
    let gateway = MacAddr::from_underlay([192, 168, 51, 1].into());
    let mode = format!(
        "--forward-mode=txonly --eth-peer=0,{gateway} --tx-ip={},{address} --txpkts=64 --burst=8 --txq={pairs} --rxq={pairs}",
        vhost4(1, 1)
    );
    let _sender = Testpmd::start(lab, 1, 1, device, &mode);
    wait_until(&format!("{device} with {pairs} pairs reaches {address}"), enough);
}

#[test]
fn testpmd_with_every_kind_of_ring_reaches_whom_policy_lets_it() {
    const ENOUGH: u64 = 2000;
    let lab = Lab::up("--pods 1 --vhost 2 --vhost-queues 2");
    apply(&lab, 1, ADMITTED);
    let sent =
        |i: u8, name: &str| lab.port(i, name).iter().map(|row| number(&row["tx_packets"])).sum::<u64>();
    for kind in [
        "packed_vq=0,mrg_rxbuf=0",
        "packed_vq=0,mrg_rxbuf=1",
        "packed_vq=1,mrg_rxbuf=0",
        "packed_vq=1,mrg_rxbuf=1",
    ] {
        for pairs in [1, 2] {
            let device = format!("{kind},queues={pairs}");
            let queues = format!("--forward-mode=rxonly --rxq={pairs} --txq={pairs}");
            for (node, number) in [(1, 2), (2, 1)] {
                let _receiver = Testpmd::start(&lab, node, number, &device, &queues);
                let name = format!("vhost{number}");
                let before = sent(node, &name);
                send_until(&lab, &device, pairs, &vhost4(node, number), || {
                    sent(node, &name) > before + ENOUGH
                });
            }
            let (near, far) = (lab.pod(1, 1), lab.pod(2, 1));
            let before = received(&near);
            send_until(&lab, &device, pairs, &v4(1, 1), || received(&near) > before + ENOUGH);
            let (before, denied) =
                (received(&far), || lab.drops(1).get("egress-policy").copied().unwrap_or(0));
            let denied_before = denied();
            send_until(&lab, &device, pairs, &v4(2, 1), || denied() > denied_before + ENOUGH);
            // The kernel of the pod has neighbours to ask at most.
            assert!(received(&far) < before + 100, "{device}: packets that policy denies arrived");
        }
    }
    lab.await_all_frames(1);
    lab.await_all_frames(2);
}
