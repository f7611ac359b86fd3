//! What is wrong is dropped, counted under the right reason, and costs nobody else anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::frames::{ethernet, geneve, ipv4, ipv6, seal, trafgen, udp, vxlan};
use crate::lab::{HOST, Lab, Place, v4, wait_until};
use crate::traffic::{iperf, ping};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const UDP: u8 = 17;
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

/// How often each frame is sent.
const TIMES: u64 = 50;
/// What kernels in pods say by themselves and no overlay carries.
const AMBIENT: [&str; 3] = ["multicast", "link-local", "arp-not-answered"];

/// A frame and the reason that it must be dropped for.
type Case = (&'static str, Vec<u8>);

fn address4(i: u8, j: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, i, j)
}

fn address6(i: u16, j: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, 0x244, i, 0, 0, 0, 0, j)
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<_> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect(text)).collect();
    bytes.try_into().expect(text)
}

/// Sends each case by itself; the counters must show it and nothing else.
fn each_is_counted(lab: &Lab, from: &Place, interface: &str, cases: &[Case]) {
    let file = lab.file("frames.cfg");
    for (number, (reason, frame)) in cases.iter().enumerate() {
        std::fs::write(&file, trafgen(std::slice::from_ref(frame))).expect("the lab's own folder");
        let before = lab.drops(1);
        from.run(&format!(
            "trafgen --no-sock-mem --notouch-irq -P 1 -n {TIMES} -t 100us -i {} -o {interface}",
            file.display()
        ));
        let risen = || -> BTreeMap<String, u64> {
            let now = lab.drops(1).into_iter();
            let risen =
                now.map(|(reason, n)| (reason.clone(), n - before.get(&reason).copied().unwrap_or(0)));
            risen
                .filter(|(name, n)| *n > 0 && (name == reason || !AMBIENT.contains(&name.as_str())))
                .collect()
        };
        wait_until(&format!("case {number} is counted as {reason}, not only {:?}", risen()), || {
            risen().get(*reason).is_some_and(|n| *n >= TIMES)
        });
        assert_eq!(risen(), BTreeMap::from([(reason.to_string(), TIMES)]), "case {number}");
    }
}

/// A copy of `bytes` with the bytes at `at` replaced.
fn with(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    copy[at..at + patch.len()].copy_from_slice(patch);
    copy
}

/// The same in an IPv4 header, whose checksum is then right again.
fn with_sealed(packet: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
    let mut copy = with(packet, at, patch);
    seal(&mut copy);
    copy
}

/// IPv4 packets that break a rule of the wire format, between these two.
fn broken_ipv4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<Case> {
    let good = ipv4(from, to, UDP, &udp(1000, 2000, &[7; 32]));
    let tcp = ipv4(from, to, TCP, &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 2, 0, 0, 0, 0, 0, 0]);
    vec![
        ("truncated", good[..10].to_vec()),
        ("bad-version", with_sealed(&good, 0, &[0x55])),
        ("bad-header-length", with_sealed(&good, 0, &[0x44])),
        ("bad-total-length", with_sealed(&good, 2, &[0, 200])),
        ("bad-total-length", with_sealed(&good, 2, &[0, 19])),
        ("bad-checksum", with(&good, 10, &[0xde, 0xad])),
        ("bad-segment-length", with(&good, 24, &[0, 99])),
        ("bad-segment-length", with(&good, 24, &[0, 7])),
        ("bad-header-length", tcp),
        ("truncated", ipv4(from, to, UDP, &[0, 1, 0, 2])),
        // A first fragment that ends inside TCP's header, and a later one that would overwrite its flags.
        ("tiny-fragment", with_sealed(&ipv4(from, to, TCP, &[0; 8]), 6, &[0x20, 0])),
        ("tiny-fragment", with_sealed(&ipv4(from, to, TCP, &[0; 16]), 6, &[0, 1])),
        ("bad-fragment", with_sealed(&good, 6, &[0x1f, 0xff])),
    ]
}

/// IPv6 packets that break a rule of the wire format, between these two.
fn broken_ipv6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<Case> {
    let good = ipv6(from, to, UDP, &udp(1000, 2000, &[7; 32]));
    // Eight bytes each: what comes next, no further length, and padding.
    let extension = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = [extension(DESTINATION_OPTIONS); 40].concat();
    vec![
        ("truncated", good[..30].to_vec()),
        ("bad-version", with(&good, 0, &[0x50])),
        ("bad-total-length", with(&good, 4, &[1, 0])),
        ("too-many-extensions", ipv6(from, to, DESTINATION_OPTIONS, &chain)),
        (
            "bad-extension",
            ipv6(from, to, HOP_BY_HOP, &[extension(HOP_BY_HOP), extension(HOP_BY_HOP)].concat()),
        ),
        ("truncated", ipv6(from, to, DESTINATION_OPTIONS, &[UDP, 200, 1, 4, 0, 0, 0, 0])),
        ("bad-segment-length", with(&good, 44, &[0, 99])),
    ]
}

/// A lab whose pod has spoken, so that its gateway's MAC address is known.
fn spoken() -> (Lab, [u8; 6]) {
    let lab = Lab::up("--pods 2");
    ping(&lab.pod(1, 1), &v4(2, 1));
    let gateway =
        lab.pod(1, 1).run("ip neighbour show 169.254.1.1 | sed 's/.*lladdr \\([0-9a-f:]*\\).*/\\1/'");
    (lab, mac(&gateway))
}

const POD: [u8; 6] = [2, 1, 0, 0, 1, 1];

fn from_pods(gateway: [u8; 6]) -> Vec<Case> {
    let frame4 = |packet: &[u8]| ethernet(gateway, POD, IPV4, packet);
    let frame6 = |packet: &[u8]| ethernet(gateway, POD, IPV6, packet);
    let (here4, there4) = (address4(1, 1), address4(2, 1));
    let (here6, there6) = (address6(1, 1), address6(2, 1));
    let payload = udp(1000, 2000, &[7; 32]);
    let good = ipv4(here4, there4, UDP, &payload);
    let mut cases: Vec<Case> =
        broken_ipv4(here4, there4).into_iter().map(|(reason, packet)| (reason, frame4(&packet))).collect();
    cases.extend(broken_ipv6(here6, there6).into_iter().map(|(reason, packet)| (reason, frame6(&packet))));
    cases.extend([
        ("spoofed-source", frame4(&ipv4(address4(1, 2), there4, UDP, &payload))),
        ("spoofed-source", frame6(&ipv6(address6(1, 2), there6, UDP, &payload))),
        ("wrong-source-mac", ethernet(gateway, [2, 1, 0, 0, 1, 2], IPV4, &good)),
        ("not-for-us", ethernet([2, 9, 9, 9, 9, 9], POD, IPV4, &good)),
        ("vlan-not-expected", ethernet(gateway, POD, VLAN, &[&[0, 7, 8, 0][..], &good].concat())),
        ("not-ip", ethernet(gateway, POD, 0x88b5, &[0; 46])),
        ("no-route", frame4(&ipv4(here4, Ipv4Addr::new(198, 51, 100, 1), UDP, &payload))),
        ("ttl-expired", frame4(&with_sealed(&good, 8, &[1]))),
    ]);
    cases
}

#[test]
fn wrong_frames_of_a_pod_are_dropped_by_reason() {
    let (lab, gateway) = spoken();
    each_is_counted(&lab, &lab.pod(1, 1), "eth0", &from_pods(gateway));
    ping(&lab.pod(1, 1), &v4(2, 1));
}

/// The underlay as node 2 would send on it, without node 2.
struct Wire {
    node1: [u8; 6],
    router1: [u8; 6],
}

impl Wire {
    fn to(lab: &Lab) -> Self {
        let node1 = mac(&lab.node(1).run("cat /sys/class/net/uplink/address"));
        // Derived from 192.168.51.1; `MacAddr::from_underlay` documents how.
        Self { node1, router1: [2, 0x70, 192, 168, 51, 1] }
    }

    fn tunnel_from(&self, from: Ipv4Addr, port: u16, inside: &[u8]) -> Vec<u8> {
        let outer = ipv4(from, Ipv4Addr::new(192, 168, 51, 1), UDP, &udp(50000, port, inside));
        ethernet(self.node1, [2, 0, 0, 0, 0, 2], IPV4, &outer)
    }

    fn vxlan(&self, vni: u32, inner: &[u8]) -> Vec<u8> {
        self.tunnel_from(Ipv4Addr::new(192, 168, 51, 2), 4789, &vxlan(vni, inner))
    }

    fn inner(&self, kind: u16, packet: &[u8]) -> Vec<u8> {
        ethernet(self.router1, [2, 0x70, 192, 168, 51, 2], kind, packet)
    }

    fn cases(&self) -> Vec<Case> {
        let (there4, here4) = (address4(2, 1), address4(1, 1));
        let payload = udp(1000, 2000, &[7; 32]);
        let good = self.inner(IPV4, &ipv4(there4, here4, UDP, &payload));
        let sound = self.vxlan(100, &good);
        let mut cases: Vec<Case> = vec![
            ("unknown-vni", self.vxlan(101, &good)),
            ("unknown-peer", self.tunnel_from(Ipv4Addr::new(192, 168, 51, 77), 4789, &vxlan(100, &good))),
            (
                "bad-tunnel-flags",
                self.tunnel_from(Ipv4Addr::new(192, 168, 51, 2), 4789, &with(&vxlan(100, &good), 0, &[0])),
            ),
            ("truncated", self.vxlan(100, &good[..9])),
            ("bad-segment-length", with(&sound, 14 + 20 + 4, &[0x20, 0])),
            ("wrong-inner-mac", self.vxlan(100, &with(&good, 0, &[2, 9, 9, 9, 9, 9]))),
            (
                "spoofed-tunnel-source",
                self.vxlan(100, &self.inner(IPV4, &ipv4(address4(1, 2), here4, UDP, &payload))),
            ),
            (
                "spoofed-tunnel-source",
                self.vxlan(100, &self.inner(IPV4, &ipv4(address4(7, 1), here4, UDP, &payload))),
            ),
            ("not-ip", self.vxlan(100, &self.inner(0x88b5, &[0; 46]))),
            ("no-route", self.vxlan(100, &self.inner(IPV4, &ipv4(there4, address4(1, 99), UDP, &payload)))),
            ("route-loop", self.vxlan(100, &self.inner(IPV4, &ipv4(there4, address4(2, 99), UDP, &payload)))),
        ];
        let wrap = |kind, (reason, packet): Case| (reason, self.vxlan(100, &self.inner(kind, &packet)));
        cases.extend(broken_ipv4(there4, here4).into_iter().map(|case| wrap(IPV4, case)));
        cases.extend(broken_ipv6(address6(2, 1), address6(1, 1)).into_iter().map(|case| wrap(IPV6, case)));
        cases
    }
}

#[test]
fn wrong_frames_of_the_underlay_are_dropped_by_reason() {
    let (lab, _) = spoken();
    each_is_counted(&lab, &lab.under(), "n1", &Wire::to(&lab).cases());
    ping(&lab.pod(1, 1), &v4(2, 1));
    ping(&lab.pod(1, 1), &v4(2, HOST));
}

#[test]
fn geneve_that_may_not_be_delivered_is_dropped_by_reason() {
    let lab = Lab::up("--pods 1 --encap geneve");
    ping(&lab.pod(1, 1), &v4(2, 1));
    let wire = Wire::to(&lab);
    let good = wire.inner(IPV4, &ipv4(address4(2, 1), address4(1, 1), UDP, &udp(1000, 2000, &[7; 32])));
    let send = |inside: &[u8]| wire.tunnel_from(Ipv4Addr::new(192, 168, 51, 2), 6081, inside);
    let sound = geneve(100, &[], &good);
    let cases = [
        ("unknown-critical-option", send(&geneve(100, &[0xff, 1, 0x81, 1, 0, 0, 0, 0], &good))),
        ("bad-option", send(&geneve(100, &[0xff, 1, 1, 31, 0, 0, 0, 0], &good))),
        ("oam-packet", send(&with(&sound, 1, &[0x80]))),
        ("bad-version", send(&with(&sound, 0, &[0x40]))),
        ("not-ethernet", send(&with(&sound, 2, &[8, 0]))),
        ("unknown-vni", send(&geneve(7, &[], &good))),
    ];
    each_is_counted(&lab, &lab.under(), "n1", &cases);
}

/// What of a steady flow between the second pods is lost, in percent, in the best of three rounds.
///
/// A machine of few cores has moments in which a worker or the receiver does not run: then the pod's fill ring runs out
/// or the receiver's socket buffer overflows, with a flood and without one. That is in one round and not in another; what
/// the dataplane does to the flow is in every round.
fn least_loss(lab: &Lab) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        let answer = iperf(&lab.pod(1, 2), &lab.pod(2, 2), &v4(2, 2), "-u -b 20M -l 1200 -t 4");
        least = least.min(answer["end"]["sum"]["lost_percent"].as_f64().expect("iperf3 counts them"));
        if least < 0.5 {
            break;
        }
    }
    least
}

#[test]
fn the_good_flow_beside_is_unharmed() {
    let (lab, gateway) = spoken();
    let (from_pods, from_wire) = (from_pods(gateway), Wire::to(&lab).cases());
    let wrong: BTreeSet<&str> = from_pods.iter().chain(&from_wire).map(|(reason, _)| *reason).collect();
    let alone = least_loss(&lab);
    assert!(alone < 0.5, "the machine does not carry the flow by itself: {alone} % lost");
    let before = lab.drops(1);
    let flood = |place: &Place, cases: Vec<Case>, interface: &str| {
        let file = lab.file(&format!("{interface}.cfg"));
        let frames: Vec<_> = cases.into_iter().map(|(_, frame)| frame).collect();
        std::fs::write(&file, trafgen(&frames)).expect("the lab's own folder");
        let file = file.display();
        // Evenly, some thousands a second. Given a rate instead, trafgen sends a second's frames in one go: that overflows
        // the kernel's own queue, which all veths of a CPU share (net.core.netdev_max_backlog, 1000 frames), and good
        // frames are lost there before the dataplane could see them.
        place.spawn(&format!("trafgen --no-sock-mem --notouch-irq -P 1 -t 100us -i {file} -o {interface}"))
    };
    let _pods = flood(&lab.pod(1, 1), from_pods, "eth0");
    let _wire = flood(&lab.under(), from_wire, "n1");
    let beside = least_loss(&lab);
    assert!(beside < 0.5, "beside a flood of wrong frames: {beside} % lost");
    let risen: BTreeMap<String, u64> = lab
        .drops(1)
        .into_iter()
        .map(|(reason, n)| (reason.clone(), n - before.get(&reason).copied().unwrap_or(0)))
        .filter(|(_, n)| *n > 0)
        .collect();
    assert!(risen.values().sum::<u64>() > 10_000, "the flood came: {risen:?}");
    // Nothing is dropped for want of a chunk, a slot or a seat, which would be the good frames' loss too.
    let foreign = |reason: &&String| !wrong.contains(reason.as_str()) && !AMBIENT.contains(&reason.as_str());
    assert_eq!(risen.keys().filter(foreign).count(), 0, "{risen:?}");
}
