//! Nodes in memory whose packets are all of connections: policed and sent through a tunnel, or translated.

use penstock_dataplane::flow::DeviceId;
use penstock_dataplane::testbed::{
    self, Datagram, FIRST_ENDPOINT, NEXT_HOP_MAC, NODE, POD_B, REMOTE_POD, Sizes, Testbed, UPLINK,
};
use penstock_io::{BURST, Ticks};

use crate::scenario::Running;
use crate::traffic::{FIRST_PORT, PORTS, udp_flows};
use crate::windows::{Costs, costs};

/// The gateway of the world outside.
const GATEWAY: [u8; 4] = [192, 168, 1, 254];
/// A host outside the cluster.
const OUTSIDE: [u8; 4] = [203, 0, 113, 9];
/// A service's address.
const SERVICE: [u8; 4] = [10, 96, 0, 1];
/// The service's backends listen this much higher than it is asked.
const BACKEND_OFFSET: u16 = 1000;
/// Rules of the pod's policy that other packets would match.
const OTHER_RULES: u32 = 100;
/// The service's ports: one for each block of [`PORTS`] flows of the largest run.
const SERVICE_PORTS: u16 = (1_000_000 / PORTS) as u16 + 1;

/// What becomes of the packets of a run; all are of UDP connections of pod `a`, whose policy was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// To another node, behind a VXLAN header.
    Policed,
    /// Out of the cluster, under the node's address.
    SourceNat,
    /// By a service's address to its backend, the other pod.
    Service,
}

impl Work {
    /// Every kind.
    pub const ALL: [Work; 3] = [Work::Policed, Work::SourceNat, Work::Service];

    /// The name in reports and filters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Work::Policed => "ct-policy-vxlan",
            Work::SourceNat => "ct-snat",
            Work::Service => "ct-service-dnat",
        }
    }

    /// The frames of `flows` connections as pod `a` sends them, 64 bytes with the check sequence. Those that are to be
    /// translated have a checksum to mend.
    #[must_use]
    pub fn frames(self, flows: u32) -> Vec<Vec<u8>> {
        let dst = match self {
            Work::Policed => REMOTE_POD,
            Work::SourceNat => OUTSIDE,
            Work::Service => SERVICE,
        };
        let first = Datagram { has_checksum: self != Work::Policed, ..Datagram::from_pod_a(dst, 0, 0) };
        udp_flows(first, flows)
    }

    /// A node with room for that many connections in both directions.
    #[must_use]
    pub fn node(self, connections: u32) -> Testbed {
        let flows = connections.max(1024) as usize * 2;
        self.node_of(Sizes { flows, chunks: 4096, connections: Some(connections.max(1024)) })
    }

    /// A node of these sizes.
    #[must_use]
    pub fn node_of(self, sizes: Sizes) -> Testbed {
        let objects = testbed::two_pods("tap") + &policies() + &service() + WAY_OUT;
        let mut node = testbed::node_of(&objects, &[NODE.into()], sizes);
        node.underlay.neighbours.insert((DeviceId(UPLINK), GATEWAY.into()), NEXT_HOP_MAC);
        node.publish();
        node
    }

    /// The node and its packets, all of them of known connections.
    #[must_use]
    pub fn running(self, connections: u32) -> Running {
        let mut running = Running::over(self.node(connections), FIRST_ENDPOINT, &self.frames(connections));
        running.learn();
        running
    }

    /// What the first packets of `connections` connections cost, all together: nothing is known of any of them.
    ///
    /// # Panics
    /// When one of them opens no connection.
    #[must_use]
    pub fn first_packets(self, connections: u32) -> Costs {
        let turns = u64::from(connections) / BURST as u64;
        let mut running = Running::over(self.node(connections), FIRST_ENDPOINT, &self.frames(connections));
        // Ports are opened by a turn of their own; its burst is not measured.
        running.turn(Ticks::now());
        let costs =
            costs(turns - turns % crate::windows::WINDOW - crate::windows::WINDOW, |now| running.turn(now));
        let (before, after) = running.since_known();
        assert_eq!(after.dropped, before.dropped, "dropped: {:?}", running.drops());
        assert_eq!(after.misses - before.misses, after.rx - before.rx, "every packet is a first one");
        costs
    }
}

/// Policy of pod `a`: rules that its packets do not match, and the ones that let them go.
fn policies() -> String {
    let other = |number: u32| {
        format!(
            r#"
            [[policy.rules]]
            name = "other{number}"
            direction = "egress"
            action = "{}"
            peers = [{{ prefix = "172.16.{number}.0/24" }}]
            ports = [{{ protocol = "tcp", port = {} }}]
            "#,
            if number.is_multiple_of(3) { "deny" } else { "allow" },
            8000 + number
        )
    };
    let rules: String = (0..OTHER_RULES).map(other).collect();
    format!(
        r#"
        [[identity]]
        name = "client"
        network = "default"
        prefixes = ["10.1.1.1/32"]
        [[tier]]
        name = "application"
        order = 1
        default = "deny"
        [[policy]]
        name = "client"
        network = "default"
        tier = "application"
        subjects = {{ identities = ["client"] }}
        directions = ["ingress", "egress"]
        {rules}
        [[policy.rules]]
        name = "cluster"
        direction = "egress"
        action = "allow"
        peers = [{{ prefix = "10.1.0.0/16" }}]
        ports = [{{ protocol = "udp", port = "4000-6000" }}]
        [[policy.rules]]
        name = "outside"
        direction = "egress"
        action = "allow"
        peers = [{{ prefix = "203.0.113.0/24" }}]
        ports = [{{ protocol = "udp" }}]
    "#
    )
}

/// A service with a port for each block of flows, answered by pod `b`.
fn service() -> String {
    let ports = |offset: u16| -> String {
        let port = |number: u16| {
            let protocol = if offset == 0 { r#", protocol = "udp""# } else { "" };
            format!(r#"{{ name = "p{number}", port = {}{protocol} }},"#, FIRST_PORT + number + offset)
        };
        (0..SERVICE_PORTS).map(port).collect()
    };
    let [asked, answered] = [ports(0), ports(BACKEND_OFFSET)];
    let backend = std::net::Ipv4Addr::from(POD_B);
    let address = std::net::Ipv4Addr::from(SERVICE);
    format!(
        r#"
        [[service]]
        name = "echo"
        network = "default"
        cluster-ips = ["{address}"]
        ports = [{asked}]
        [[backends]]
        service = "echo"
        ports = [{answered}]
        members = [{{ address = "{backend}" }}]
    "#
    )
}

/// A pod leaves by one address, with more ports than it asks a destination from ([`PORTS`]).
const WAY_OUT: &str = r#"
    [[route]]
    network = "default"
    prefix = "0.0.0.0/0"
    via = { uplink = { uplink = "wire", gateway = "192.168.1.254" } }
    [[nat-pool]]
    name = "outside"
    network = "default"
    sources = ["10.1.0.0/16"]
    exclusions = ["10.0.0.0/8"]
    addresses = ["198.51.100.1"]
    ports = "32768-65535"
"#;

/// Packets of a node whose connection table is full and stays so: each packet opens a connection, and an older one gives
/// way.
///
/// # Panics
/// When packets are dropped.
#[must_use]
pub fn churning(connections: u32, frames: u32) -> Running {
    let sizes = Sizes { flows: connections as usize, chunks: 4096, connections: Some(connections) };
    let mut running =
        Running::over(Work::Policed.node_of(sizes), FIRST_ENDPOINT, &Work::Policed.frames(frames));
    running.learn();
    running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_opened_once_and_then_known() {
        for work in Work::ALL {
            let mut running = work.running(2000);
            (0..100).for_each(|_| running.turn(Ticks::now()));
            running.check();
            let counts = running.node().tracker.as_ref().map(|tracker| tracker.table.counts());
            assert_eq!(counts.map(|counts| (counts.created, counts.live)), Some((2000, 2000)), "{work:?}");
        }
    }

    #[test]
    fn first_packets_are_all_first_ones() {
        assert!(Work::SourceNat.first_packets(8192).least > 0);
    }

    /// The address of the pool.
    const POOL: [u8; 4] = [198, 51, 100, 1];

    #[test]
    fn what_is_sent_is_translated() {
        use penstock_wire::parse::{Net, parse};
        let ends = |frame: &[u8]| {
            let parsed = parse(frame).expect("a sound frame");
            let Net::V4(flow) = parsed.net else { panic!("no IPv4 packet") };
            let datagram = &frame[parsed.l4.into()..parsed.end.into()];
            let sum =
                penstock_wire::checksum::pseudo_v4(flow.src, flow.dst, flow.proto, datagram.len() as u16);
            assert!(sum.add_bytes(datagram).is_valid(), "the checksum is mended");
            (flow.src.octets(), flow.dst.octets(), flow.dport)
        };
        for (work, to, expected) in [
            (Work::SourceNat, UPLINK, (POOL, OUTSIDE, FIRST_PORT)),
            (Work::Service, FIRST_ENDPOINT + 1, (testbed::POD_A, POD_B, FIRST_PORT + BACKEND_OFFSET)),
        ] {
            let mut node = work.node(1024);
            for _ in 0..2 {
                let sent = node.through(FIRST_ENDPOINT, &work.frames(1)[0], to);
                assert_eq!(
                    sent.iter().map(|frame| ends(frame)).collect::<Vec<_>>(),
                    std::slice::from_ref(&expected),
                    "{work:?}"
                );
            }
        }
    }
}
