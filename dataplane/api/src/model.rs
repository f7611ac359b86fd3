//! The objects that configure a dataplane, as they stand in a TOML file and as the engine takes them.

/// Gives an enum without values its word of the file as text too.
macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self {
                    $(Self::$variant => $word,)+
                })
            }
        }
    };
}

mod object;
mod policy;
mod service;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use penstock_wire::Vni;
use serde::{Deserialize, Serialize};

pub use crate::fault::Fault;
pub use crate::scalar::{
    FilePath, InterfaceName, Invalid, Name, OptionData, PortRange, Prefix, Protocol, SocketPath, UnicastMac,
};
pub use object::{Key, Object, Tables, repeated_keys};
pub use policy::{
    Identity, Policy, PolicyDirection, Rule, RuleAction, RulePeer, RulePort, Subjects, Tier, TierDefault,
};
pub use service::{
    Affinity, Backend, BackendPort, BackendState, Backends, EgressIp, NatPool, Service, ServicePort,
    ServiceProtocol, TopologyPreference, TrafficPolicy,
};

/// How XDP is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Whichever of native and generic carries more on that kind of interface.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's stack, which every driver allows.
    Generic,
}

/// Whether an AF_XDP socket shares its memory with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// Zero-copy where the driver can, else copy.
    #[default]
    Auto,
    /// Zero-copy, or the port fails.
    ZeroCopy,
    /// Always copy.
    Copy,
}

/// Busy polling of an AF_XDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BusyPoll {
    /// Packets a poll may take (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
    /// Microseconds that a poll may spin (`SO_BUSY_POLL`).
    pub timeout_us: u32,
}

/// An interface of the node that carries the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Uplink {
    /// The uplink's key.
    pub name: Name,
    /// The network interface.
    pub interface: InterfaceName,
    /// How many receive queues to serve; every queue of the device when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u32>,
    /// How XDP is attached.
    #[serde(default)]
    pub xdp: XdpMode,
    /// Whether the device writes straight into our memory.
    #[serde(default)]
    pub copy: CopyMode,
    /// Busy polling; off when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_poll: Option<BusyPoll>,
    /// Packets that one transmit call may take (`XDP_MAX_TX_SKB_BUDGET`); the kernel's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_budget: Option<u32>,
    /// The tunnel endpoint addresses; those of the interface when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// How packets of a network travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    /// VXLAN, RFC 7348.
    #[default]
    Vxlan,
    /// Geneve, RFC 8926.
    Geneve,
    /// As they are; the underlay knows the prefixes.
    None,
}

/// An option in the Geneve header of what a network sends (RFC 8926, section 3.5).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GeneveOption {
    /// The option class.
    pub class: u16,
    /// The type without its critical bit, 0 to 127.
    pub kind: u8,
    /// Whether a receiver that does not know the option must drop the packet.
    #[serde(default)]
    pub critical: bool,
    /// The value.
    #[serde(default)]
    pub data: OptionData,
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Network {
    /// The network's key.
    pub name: Name,
    /// The virtual network identifier.
    #[serde(with = "vni_as_number")]
    pub vni: Vni,
    /// The addresses that belong to the network.
    #[serde(default)]
    pub prefixes: Vec<Prefix>,
    /// The largest IP packet in bytes; what the underlay leaves room for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How packets travel between nodes.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Whether peers in the uplink's own subnet are sent to without encapsulation.
    #[serde(default)]
    pub cross_subnet: bool,
    /// The addresses that the dataplane answers for as the gateway.
    #[serde(default = "Network::default_gateways")]
    pub gateways: Vec<IpAddr>,
    /// Options that every Geneve header carries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub geneve_options: Vec<GeneveOption>,
    /// Whether the outer UDP checksum is filled in; over IPv6 only when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_checksum: Option<bool>,
    /// The outer DSCP, 0 to 63; copied from the inner packet when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
}

impl Network {
    /// The gateways of a network that names none: 169.254.1.1 and fe80::1.
    pub fn default_gateways() -> Vec<IpAddr> {
        vec![
            IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
            IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        ]
    }
}

/// How an endpoint is wired to the dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Attachment {
    /// A veth whose other end is the pod's.
    Veth {
        /// The end of the pair in the node's namespace.
        interface: InterfaceName,
    },
    /// A tap device.
    Tap {
        /// The tap's name; created when there is none.
        interface: InterfaceName,
    },
    /// Capture files in place of a device.
    Pcap {
        /// The file that packets are read from.
        receive: FilePath,
        /// The file that packets are written to.
        transmit: FilePath,
    },
    /// A vhost-user device: a virtual machine's, or an application's that speaks virtio-user.
    VhostUser {
        /// The socket that the two ends meet at.
        socket: SocketPath,
        /// Which end of it is ours.
        #[serde(default)]
        role: SocketRole,
        /// The group that a socket which we serve belongs to, by name or number; this process's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
        /// The permissions of a socket that we serve, e.g. 0o660, which is also what they are when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        permissions: Option<u32>,
    },
}

/// Which end of a vhost-user socket is the dataplane's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketRole {
    /// The application or QEMU serves the socket; the dataplane connects, and connects again.
    #[default]
    Client,
    /// The dataplane serves the socket.
    Server,
}

/// What an endpoint may use at most; what is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limits {
    /// Bits a second to the endpoint, Ethernet headers included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_bits_per_second: Option<u64>,
    /// Bits a second from the endpoint, Ethernet headers included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_bits_per_second: Option<u64>,
    /// Bytes that may pass at once after a pause, each way; a second's worth when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<u64>,
    /// Packets a second, each way; a second's worth may pass at once after a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<u32>,
    /// New connections a second, whoever opens them; a second's worth may be opened at once after a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<u32>,
    /// Connections at one time, whoever opened them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// A pod's or a VM's attachment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Endpoint {
    /// The endpoint's key.
    pub name: Name,
    /// The network that it is in.
    pub network: Name,
    /// How it is wired.
    pub attachment: Attachment,
    /// The pod's own MAC address.
    pub mac: UnicastMac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The largest IP packet that it may send in bytes; the network's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How XDP is attached to a veth.
    #[serde(default)]
    pub xdp: XdpMode,
    /// How many receive queues to serve; every queue of the device when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u32>,
    /// The identity that its addresses belong to; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Name>,
    /// What it may use at most; everything when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Peer {
    /// The peer's key.
    pub name: Name,
    /// Its tunnel endpoint address on the underlay.
    pub address: IpAddr,
    /// Its router's MAC address in the overlay; [`MacAddr::from_underlay`] of the address when absent.
    ///
    /// [`MacAddr::from_underlay`]: penstock_wire::MacAddr::from_underlay
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<UnicastMac>,
    /// The UDP port that it listens on; the encapsulation's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RouteTarget {
    /// To the peer of this name, encapsulated as the network says.
    Peer(Name),
    /// To the node itself.
    Host,
    /// Out of an uplink, without encapsulation.
    Uplink {
        /// The uplink's name.
        uplink: Name,
        /// The next hop; asked from the kernel when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
    },
    /// Nowhere: dropped and counted.
    Blackhole,
}

/// A route in a network. The addresses of local endpoints need none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Route {
    /// The network's name.
    pub network: Name,
    /// The destination.
    pub prefix: Prefix,
    /// Where it leads.
    pub via: RouteTarget,
}

/// The node itself as a neighbour of its pods. Comes from the daemon's file only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Host {
    /// The tap that is made in the node's namespace.
    #[serde(default = "Host::default_interface")]
    pub interface: InterfaceName,
    /// The network that the node takes part in.
    pub network: Name,
    /// The node's addresses there; those of its uplinks if it is told none.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// The tap's name when the file gives none: `penstock0`.
    pub fn default_interface() -> InterfaceName {
        "penstock0".parse().expect("a valid interface name")
    }
}

/// Who this node is. Comes from the daemon's file only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Node {
    /// The node's name.
    pub name: Name,
    /// The router's MAC address in the overlay; derived from the underlay address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<UnicastMac>,
}

/// A VNI is written as a plain number.
mod vni_as_number {
    use penstock_wire::Vni;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(vni: &Vni, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(vni.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vni, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Vni::new(number).ok_or_else(|| de::Error::custom(format!("{number} does not fit in 24 bits")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file calls a value.
    fn in_a_file(value: impl Serialize) -> String {
        match toml::Value::try_from(value).unwrap() {
            toml::Value::String(word) => word,
            other => panic!("{other} is no word"),
        }
    }

    #[test]
    fn a_word_is_the_same_in_a_file_and_in_an_answer() {
        macro_rules! same {
            ($($value:expr),+ $(,)?) => { $(assert_eq!(in_a_file($value), $value.to_string());)+ };
        }
        same!(TierDefault::Pass, TierDefault::Deny, PolicyDirection::Ingress, PolicyDirection::Egress);
        same!(RuleAction::Allow, RuleAction::Deny, RuleAction::Pass, RuleAction::Log);
        same!(TrafficPolicy::Cluster, TrafficPolicy::Local);
        same!(TopologyPreference::None, TopologyPreference::Zone, TopologyPreference::Node);
        same!(BackendState::Ready, BackendState::Terminating, BackendState::NotReady);
    }

    #[test]
    fn peers_and_ports_of_rules_are_said_as_people_say_them() {
        let said = |text: &str| {
            let rule: Rule =
                toml::from_str(&format!("name = 'r'\ndirection = 'ingress'\naction = 'allow'\n{text}"))
                    .unwrap();
            let peers = rule.peers.iter().map(ToString::to_string);
            peers.chain(rule.ports.iter().map(ToString::to_string)).collect::<Vec<_>>()
        };
        assert_eq!(said("peers = [{ identity = 'web' }]"), ["web"]);
        assert_eq!(
            said("peers = [{ prefix = '10.0.0.0/8', except = ['10.1.0.0/16', '10.2.0.0/16'] }]"),
            ["10.0.0.0/8 except 10.1.0.0/16, 10.2.0.0/16"]
        );
        assert_eq!(
            said("ports = [{ protocol = 'tcp', port = 80 }, { protocol = 'udp' }, { protocol = 47 }]"),
            ["tcp 80", "udp", "47"]
        );
        assert_eq!(
            said("ports = [{ protocol = 'icmp', icmp-type = 3, icmp-code = 4 }]"),
            ["icmp type 3 code 4"]
        );
    }
}
