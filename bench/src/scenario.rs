//! A node in memory for each kind of path: one busy port replays flows in a random order, what is sent is discarded.

use std::net::IpAddr;

use penstock_dataplane::stats::Counts;
use penstock_dataplane::testbed::{self, FIRST_ENDPOINT, Testbed, UPLINK, UPLINK_MAC};
use penstock_io::mem::MemPort;
use penstock_io::{BURST, Burst, FramePool, Hugepages, Port, Region, Ticks};
use penstock_wire::encap::{DscpMode, EncapTemplate, OuterAddresses, OuterPath};
use penstock_wire::{MacAddr, Vni, ethernet, vxlan};

use crate::traffic::{Conversation, shuffled, udp_flows};

/// The MAC address of the pod that sends.
pub const POD: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// The node's tunnel endpoint.
pub const NODE: [u8; 4] = [192, 168, 1, 1];
/// The peer's tunnel endpoint.
pub const PEER: [u8; 4] = [192, 168, 1, 2];
/// The network's identifier.
pub const VNI: u32 = 100;

/// What `mac` forwarding writes: new addresses of both stations.
const STATIONS: [u8; 12] = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];

const OBJECTS: &str = r#"
    [[network]]
    name = "default"
    vni = 100
    prefixes = ["10.1.0.0/16"]
    [[endpoint]]
    name = "a"
    network = "default"
    mac = "02:00:00:00:00:01"
    addresses = ["10.1.1.1"]
    attachment = { tap = { interface = "pa" } }
    [[endpoint]]
    name = "b"
    network = "default"
    mac = "02:00:00:00:00:02"
    addresses = ["10.1.1.2"]
    attachment = { tap = { interface = "pb" } }
    [[peer]]
    name = "node2"
    address = "192.168.1.2"
    [[route]]
    network = "default"
    prefix = "10.1.2.0/24"
    via = { peer = "node2" }
"#;

/// What the packets of a run meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From pod to pod: flow hit, one hop less, new MAC addresses.
    Forward,
    /// From a pod to another node: flow hit, one hop less, a VXLAN header.
    Encap,
    /// From another node to a pod: VXLAN header off, flow hit, one hop less, new MAC addresses.
    Decap,
}

impl Path {
    /// Every path.
    pub const ALL: [Path; 3] = [Path::Forward, Path::Encap, Path::Decap];

    /// The path's name in reports and filters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Path::Forward => "l3-forward",
            Path::Encap => "vxlan-encap",
            Path::Decap => "vxlan-decap",
        }
    }

    /// The device whose port is busy.
    const fn device(self) -> u16 {
        match self {
            Path::Forward | Path::Encap => FIRST_ENDPOINT,
            Path::Decap => UPLINK,
        }
    }
}

/// The frames of `flows` flows of a path, as they arrive; 64 bytes with the check sequence before any tunnel.
#[must_use]
pub fn frames(path: Path, flows: u32) -> Vec<Vec<u8>> {
    let (src, dst) = match path {
        Path::Forward => ([10, 1, 1, 1], [10, 1, 1, 2]),
        Path::Encap => ([10, 1, 1, 1], [10, 1, 2, 1]),
        Path::Decap => ([10, 1, 2, 1], [10, 1, 1, 1]),
    };
    let inner = udp_flows(Conversation { dst_mac: router(), src_mac: POD, src, dst, frame_len: 60 }, flows);
    if path == Path::Decap { inner.iter().map(|frame| from_peer(frame)).collect() } else { inner }
}

/// The node's overlay router.
fn router() -> MacAddr {
    MacAddr::from_underlay(IpAddr::V4(NODE.into()))
}

/// The underlay path from the peer to the node.
#[must_use]
pub fn path_from_peer() -> OuterPath {
    OuterPath {
        src_mac: POD,
        dst_mac: UPLINK_MAC,
        addresses: OuterAddresses::V4 { src: PEER.into(), dst: NODE.into() },
        dst_port: vxlan::PORT,
        ttl: 64,
        dscp: DscpMode::Copy,
        udp_checksum: false,
        inner_src_mac: POD,
        inner_dst_mac: router(),
    }
}

/// The network's identifier as templates take it.
///
/// # Panics
/// Never: it is a small number.
#[must_use]
pub fn vni() -> Vni {
    Vni::new(VNI).expect("24 bits")
}

/// A frame in the tunnel from the peer to the node.
fn from_peer(frame: &[u8]) -> Vec<u8> {
    let template = EncapTemplate::vxlan(&path_from_peer(), vni());
    let packet = &frame[ethernet::HEADER_LEN..];
    let mut wire = vec![0; template.len()];
    let entropy = u32::from_be_bytes([frame[34], frame[35], frame[36], frame[37]]);
    template.write(&mut wire, packet, packet.len() as u16, 0, ethernet::IPV4, entropy);
    wire.extend_from_slice(packet);
    wire
}

/// A node with every flow of a path in its cache already.
pub struct Running {
    node: Testbed,
    known: Counts,
}

impl Running {
    /// Makes the node and shows it every flow.
    #[must_use]
    pub fn new(path: Path, flows: u32) -> Running {
        let capacity = flows.max(1024) as usize * 2;
        let mut node = testbed::node_with(OBJECTS, &[IpAddr::V4(NODE.into())], capacity, 4096);
        let frames = frames(path, flows);
        for device in [UPLINK, FIRST_ENDPOINT, FIRST_ENDPOINT + 1] {
            node.open(device, MemPort::discard());
        }
        node.open(path.device(), MemPort::replay(&frames, shuffled(flows)));
        for _ in 0..3 * frames.len() / BURST + 10 {
            node.worker.turn(Ticks::now());
        }
        let known = node.worker.counts();
        Running { node, known }
    }

    /// One turn of the worker, which takes a whole burst through; the time stands still.
    #[inline]
    pub fn turn(&mut self, now: Ticks) {
        self.node.worker.turn(now);
    }

    /// Checks that what ran since the start was what is to be measured.
    ///
    /// # Panics
    /// When packets were dropped, or more than one in a hundred was not of a known flow.
    pub fn check(&self) {
        let counts = self.node.worker.counts();
        let received = counts.rx - self.known.rx;
        assert!(received > 0, "nothing was received");
        assert_eq!(counts.dropped, self.known.dropped, "a run that drops measures something else");
        assert_eq!(counts.tx - self.known.tx, received, "everything received is sent");
        let hits = counts.hits - self.known.hits;
        assert!(hits * 100 >= received * 99, "{hits} of {received} packets were of a known flow");
    }
}

/// Two ports without a worker: what is received leaves with other MAC addresses. No flow is looked up: this is what the
/// ports and the packet memory cost, and the work of testpmd's `mac`.
pub struct PortToPort {
    from: MemPort,
    to: MemPort,
    pool: FramePool,
    burst: Burst,
}

impl PortToPort {
    /// Replays the frames of [`Path::Forward`].
    ///
    /// # Panics
    /// Without memory for packets.
    #[must_use]
    pub fn new(flows: u32) -> PortToPort {
        let region = Region::map(4096, Hugepages::Auto).expect("memory for packets");
        PortToPort {
            from: MemPort::replay(&frames(Path::Forward, flows), shuffled(flows)),
            to: MemPort::discard(),
            pool: FramePool::new(region),
            burst: Burst::new(),
        }
    }

    /// Takes a burst from one port to the other.
    #[inline(never)]
    pub fn turn(&mut self) {
        self.from.rx_burst(&mut self.pool, &mut self.burst);
        for frame in self.burst.frames_mut() {
            if let Some(stations) = frame.bytes_mut().first_chunk_mut() {
                *stations = STATIONS;
            }
        }
        self.to.tx_burst(&mut self.pool, &mut self.burst);
    }

    /// Packets sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.to.counters().tx_packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_alone_send_what_they_receive() {
        let mut ports = PortToPort::new(100);
        (0..10).for_each(|_| ports.turn());
        assert_eq!(ports.sent(), 10 * BURST as u64);
    }

    #[test]
    fn every_path_forwards_every_packet_by_its_flow() {
        for path in Path::ALL {
            let mut running = Running::new(path, 1000);
            for _ in 0..100 {
                running.turn(Ticks::now());
            }
            running.check();
        }
    }
}
