//! A node in memory for each kind of path: one busy port replays flows in a random order, what is sent is discarded.

use std::net::IpAddr;

use penstock_dataplane::drop::Reason;
use penstock_dataplane::stats::Counts;
use penstock_dataplane::testbed::{
    self, Datagram, FIRST_ENDPOINT, NODE, PEER, POD_A, POD_A_MAC, POD_B, REMOTE_POD, Testbed, UPLINK,
    UPLINK_MAC,
};
use penstock_io::mem::MemPort;
use penstock_io::{BURST, Burst, FramePool, Hugepages, Port, Region, Ticks};
use penstock_wire::encap::{DscpMode, EncapTemplate, OuterAddresses, OuterPath};
use penstock_wire::{MacAddr, Vni, ethernet, vxlan};

use crate::traffic::{shuffled, udp_flows};

/// The network's identifier.
pub const VNI: u32 = 100;

/// What `mac` forwarding writes: new addresses of both stations.
const STATIONS: [u8; 12] = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];

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
    let dst = match path {
        Path::Forward => POD_B,
        Path::Encap => REMOTE_POD,
        Path::Decap => return from_peer(flows),
    };
    udp_flows(Datagram::from_pod_a(dst, 0, 0), flows)
}

/// The frames of flows from the peer's pod to pod `a`, in their tunnel.
fn from_peer(flows: u32) -> Vec<Vec<u8>> {
    let inner = Datagram { src: REMOTE_POD, ..Datagram::from_pod_a(POD_A, 0, 0) };
    udp_flows(inner, flows).iter().map(|frame| tunnelled(frame)).collect()
}

/// The node's overlay router.
fn router() -> MacAddr {
    MacAddr::from_underlay(IpAddr::V4(NODE.into()))
}

/// The underlay path from the peer to the node.
#[must_use]
pub fn path_from_peer() -> OuterPath {
    OuterPath {
        src_mac: POD_A_MAC,
        dst_mac: UPLINK_MAC,
        addresses: OuterAddresses::V4 { src: PEER.into(), dst: NODE.into() },
        dst_port: vxlan::PORT,
        ttl: 64,
        dscp: DscpMode::Copy,
        udp_checksum: false,
        inner_src_mac: POD_A_MAC,
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
pub(crate) fn tunnelled(frame: &[u8]) -> Vec<u8> {
    let template = EncapTemplate::vxlan(&path_from_peer(), vni());
    let (head, packet) = frame.split_at(ethernet::HEADER_LEN);
    let ethertype = u16::from_be_bytes([head[12], head[13]]);
    let ports = if ethertype == ethernet::IPV4 { 20 } else { 40 };
    let mut wire = vec![0; template.len()];
    let entropy = packet[ports..ports + 4].iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
    template.write(&mut wire, packet, packet.len() as u16, 0, ethertype, entropy);
    wire.extend_from_slice(packet);
    wire
}

/// A node and frames that come to it over and over.
pub struct Running {
    node: Testbed,
    known: Counts,
    /// Frames until the first comes again.
    frames: usize,
}

impl Running {
    /// Makes the node of a path and shows it every flow.
    #[must_use]
    pub fn new(path: Path, flows: u32) -> Running {
        let capacity = flows.max(1024) as usize * 2;
        // On taps: what a veth brings may need its checksum finished first.
        let node = testbed::node_with(&testbed::two_pods("tap"), &[NODE.into()], capacity, 4096);
        let mut running = Running::over(node, path.device(), &frames(path, flows));
        running.learn();
        running
    }

    /// Lets `frames` come to a device of a node, in a random order, again and again. What is sent is discarded.
    #[must_use]
    pub fn over(node: Testbed, device: u16, frames: &[Vec<u8>]) -> Running {
        for other in [UPLINK, FIRST_ENDPOINT, FIRST_ENDPOINT + 1] {
            node.open(other, MemPort::discard());
        }
        node.open(device, MemPort::replay(frames, shuffled(frames.len() as u32)));
        let known = node.worker.counts();
        Running { node, known, frames: frames.len() }
    }

    /// Shows the node every flow.
    pub fn learn(&mut self) {
        for _ in 0..3 * self.frames / BURST + 10 {
            self.node.worker.turn(Ticks::now());
        }
        self.known = self.node.worker.counts();
    }

    /// What the worker has counted since it knows the flows.
    #[must_use]
    pub fn since_known(&self) -> (Counts, Counts) {
        (self.known, self.node.worker.counts())
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Testbed {
        &self.node
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
        assert_eq!(counts.dropped, self.known.dropped, "dropped, of all time: {:?}", self.drops());
        assert_eq!(counts.tx - self.known.tx, received, "everything received is sent");
        let hits = counts.hits - self.known.hits;
        assert!(hits * 100 >= received * 99, "{hits} of {received} packets were of a known flow");
    }
}

impl Running {
    /// How many packets were dropped for which reasons.
    #[must_use]
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let drops = Reason::all().map(|reason| (reason.name(), self.node.worker.drops(reason)));
        drops.filter(|(_, count)| *count > 0).collect()
    }
}

/// Two ports without a worker: what is received leaves with other MAC addresses. No flow is looked up: this is what the
/// ports and the packet memory cost, and the work of testpmd's `mac`.
pub struct PortToPort {
    from: MemPort,
    to: MemPort,
    pool: FramePool,
    burst: Burst,
    turns: u64,
}

impl PortToPort {
    /// Replays the frames of [`Path::Forward`].
    ///
    /// # Panics
    /// Without memory for packets.
    #[must_use]
    pub fn new(flows: u32) -> PortToPort {
        PortToPort::replaying(&frames(Path::Forward, flows), shuffled(flows))
    }

    /// Replays frames in an order.
    ///
    /// # Panics
    /// Without memory for packets.
    #[must_use]
    pub fn replaying(frames: &[Vec<u8>], order: Vec<u32>) -> PortToPort {
        let region = Region::map(4096, Hugepages::Auto).expect("memory for packets");
        PortToPort {
            from: MemPort::replay(frames, order),
            to: MemPort::discard(),
            pool: FramePool::new(region),
            burst: Burst::new(),
            turns: 0,
        }
    }

    /// The port that frames come from.
    pub(crate) fn busy_port(&mut self) -> &mut MemPort {
        &mut self.from
    }

    /// Bursts taken.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Takes a burst from one port to the other.
    #[inline(never)]
    pub fn turn(&mut self) {
        let received = self.from.rx_burst(&mut self.pool, &mut self.burst);
        self.turns += u64::from(received > 0);
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
