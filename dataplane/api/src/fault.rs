//! What is wrong with a configuration, and what puts it right.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong with one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Fault {
    /// What it is about: `endpoint "web"`, or a file.
    pub object: String,
    /// The key within the object; empty when it is the object as a whole.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What puts it right.
    pub mend: String,
}

impl Fault {
    /// A fault of `key` in `object`.
    pub fn new(
        object: impl Into<String>,
        key: impl Into<String>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { object: object.into(), key: key.into(), problem: problem.into(), mend: mend.into() }
    }
}

/// One line: ``endpoint "web", `mac`: 01:00:00:00:00:01 is a multicast address; write a unicast one``.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if !self.key.is_empty() {
            write!(f, ", `{}`", self.key)?;
        }
        write!(f, ": {}", self.problem)?;
        if !self.mend.is_empty() {
            write!(f, "; {}", self.mend)?;
        }
        Ok(())
    }
}

/// What puts a bad value of `key` right, wherever the value came from.
///
/// The file and the socket read their keys differently but give the same advice, from this one list.
pub(crate) fn mend(key: &str) -> &'static str {
    // A key inside a list or a table, as in `addresses[1]` or `via.uplink.gateway`, is named by its last part.
    let leaf = key.rsplit('.').next().unwrap_or(key);
    let leaf = leaf.split('[').next().unwrap_or(leaf);
    match leaf {
        _ if key.contains("ports[") && leaf != "ports" => mend_port(leaf),
        "name" | "network" | "uplink" | "peer" | "identity" | "tier" | "service" | "slice" | "identities"
        | "endpoint" | "endpoints" | "node" | "zone" | "for-zones" => {
            "use 1 to 333 of the characters A-Z a-z 0-9 . _ / -"
        }
        "interface" => "write the name of a network interface, as `ip link` shows it",
        "socket" => "write an absolute path of at most 107 bytes, as in /run/penstock/web.sock",
        "role" => "choose \"client\" or \"server\"",
        "group" => "write the name or the number of a group of this machine, or leave the key out",
        "permissions" => "write them as in 0o660, or leave the key out",
        "mac" => "write a unicast MAC address, as in 02:00:00:00:00:01",
        "source" | "destination" | "address" | "addresses" | "gateway" | "gateways" | "cluster-ips"
        | "external-ips" | "load-balancer-ips" => "write an address, as in 10.1.0.7 or fd00::7",
        "prefix" | "prefixes" | "except" | "sources" | "exclusions" | "source-ranges" => {
            "write a prefix without host bits, as in 10.1.0.0/16 or fd00:1::/64"
        }
        "vni" => "choose a number from 1 to 16777215",
        "mtu" => "choose 576 to 65535 bytes, at least 1280 where IPv6 is spoken",
        "encapsulation" => "choose \"vxlan\", \"geneve\" or \"none\"",
        "xdp" => "choose \"auto\", \"native\" or \"generic\"",
        "copy" => "choose \"auto\", \"zero-copy\" or \"copy\"",
        "queues" => "choose at least 1, or leave the key out for every queue of the device",
        "tx-budget" => "choose at least 1, or leave the key out for the kernel's default",
        "budget" | "timeout-us" => "choose at least 1, or leave busy-poll out",
        "dscp" => "choose a number from 0 to 63, or leave the key out to copy the packet's own",
        "port" => "choose a UDP port from 1 to 65535, or leave the key out for the encapsulation's own",
        "source-port" | "destination-port" => "choose a port from 0 to 65535",
        "protocol" => "choose an IP protocol from 0 to 255",
        "length" => "choose the length of an IP packet, up to 65535 bytes",
        "metrics" => "write an address and a port, as in 127.0.0.1:9469 or [::1]:9469",
        "ttl" => "choose a TTL or hop limit from 0 to 255",
        "from" => "name an endpoint, the host, a peer with a network, or the uplink",
        "kinds" => "choose rule and exhaustion, or leave it out for both",
        "filter" => "write, for example: tcp port 80 and not host 10.1.0.7",
        "snaplen" => "choose at least 1 byte, or leave it out for whole frames",
        "class" => "choose an option class from 0 to 65535",
        "kind" => "choose 0 to 127; the critical bit has a key of its own",
        "data" => "write up to 124 bytes, a multiple of 4, as hexadecimal digits",
        "geneve-options" => "give each option its class, kind, critical and data",
        "receive" | "transmit" => "write the path of a capture file",
        "attachment" | "veth" | "tap" | "vhost-user" | "pcap" => {
            "choose one of veth = { interface }, tap = { interface }, vhost-user = { socket } and pcap = { receive, \
             transmit }"
        }
        "via" => {
            "choose one of { peer = NAME }, \"host\", { uplink = { uplink, gateway } } and \"blackhole\""
        }
        "cross-subnet" | "udp-checksum" | "critical" | "staged" | "dsr" | "endpoint-independent" => {
            "choose true or false"
        }
        "order" => "choose a number from 0 to 4294967295; lower comes first",
        "default" => "choose \"pass\" or \"deny\"",
        "subjects" => "choose \"all\" or { identities = [NAME, ...] }",
        "direction" | "directions" => "choose \"ingress\" or \"egress\"",
        "action" => "choose \"allow\", \"deny\", \"pass\" or \"log\"",
        "rules" => "give each rule its name, direction and action; peers and ports narrow it",
        "peers" => "write { identity = NAME } or { prefix = PREFIX, except = [PREFIX, ...] }",
        "ports" => {
            "write ports as in 80 or 49152-65535, or a list of tables where each port has a name or protocol"
        }
        "health-check-node-port" => "choose a TCP port from 1 to 65535, or leave the key out",
        "internal-policy" | "external-policy" => "choose \"cluster\" or \"local\"",
        "topology" => "choose \"none\", \"zone\" or \"node\"",
        "affinity" | "client-ip" => "write { client-ip = { timeout-s = SECONDS } }, or leave the key out",
        "timeout-s" => "choose 1 to 86400 seconds",
        "members" => "give each member its address; state, node, zone, for-zones and weight are optional",
        "state" => "choose \"ready\", \"terminating\" or \"not-ready\"",
        "weight" => "choose 1 to 65535, or leave the key out for 1",
        "limits" => "name limits such as { egress-bits-per-second = 1000000000, max-connections = 10000 }",
        "ingress-bits-per-second"
        | "egress-bits-per-second"
        | "burst-bytes"
        | "packets-per-second"
        | "connections-per-second"
        | "max-connections" => "choose 1 to 9007199254740991, or leave the key out for no limit",
        "busy-poll" => "write { budget = PACKETS, timeout-us = MICROSECONDS }",
        _ => "see the example configurations for what the object may hold",
    }
}

/// What puts a bad value of `leaf` right within one of an object's ports.
fn mend_port(leaf: &str) -> &'static str {
    match leaf {
        "protocol" => "choose tcp, udp or sctp; a rule may also name icmp, icmpv6 or a number from 0 to 255",
        "port" => "choose a port from 1 to 65535; a rule may also name a range, as in \"8000-8999\"",
        "node-port" => "choose a port from 1 to 65535, or leave the key out",
        "icmp-type" | "icmp-code" => "choose a number from 0 to 255, or leave the key out for all",
        "name" => "use 1 to 333 of the characters A-Z a-z 0-9 . _ / -",
        _ => "see the example configurations for what a port may hold",
    }
}
