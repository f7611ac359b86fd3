//! The settings of the stateful tier: `[connections]` and `[services]`.

use std::path::{Path, PathBuf};

use penstock_api::model::{Name, NatPool, PortRange, Prefix};
use serde::Deserialize;

use crate::conntrack::Share;
use crate::tables::desired::Desired;

/// Connections that the table holds when the file names none: with their share of the index about 128 MiB.
const DEFAULT_CAPACITY: u32 = 1 << 20;
/// The fewest connections that a node can do anything with.
const MIN_CAPACITY: u32 = 1024;
/// The most: an entry is named by 24 bits, and two of the names mean something else.
const MAX_CAPACITY: u32 = (1 << 24) - 2;
/// The longest that a quiet connection may be remembered in seconds: a year, so that a slip of the finger is seen.
const MAX_TIMEOUT: u32 = 365 * 86400;

/// `[connections]`: what is remembered of conversations, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Connections {
    /// Connections that the table holds.
    pub capacity: u32,
    /// Of these, what one endpoint's may take, in percent, whoever opened them. An endpoint's own `max-connections` counts
    /// before it.
    pub endpoint_percent: u32,
    /// Of these, what connections may take that are opened from beyond this node, all together, in percent: the rest is for
    /// the node and its endpoints.
    pub outside_percent: u32,
    /// Of these, what connections may take whose handshake is not done, in percent: those of one endpoint, and those that
    /// are opened from beyond this node.
    pub half_open_percent: u32,
    /// Whether TCP and SCTP connections whose beginning was not seen are taken up (the kernel's
    /// `nf_conntrack_tcp_loose`).
    pub pick_up: bool,
    /// The file that holds the table, so that it outlives the daemon; beside the control socket when absent.
    region: Option<PathBuf>,
    /// How long quiet connections are remembered.
    pub timeouts_s: Timeouts,
}

impl Default for Connections {
    fn default() -> Connections {
        Connections {
            capacity: DEFAULT_CAPACITY,
            endpoint_percent: 50,
            outside_percent: 75,
            half_open_percent: 10,
            pick_up: true,
            region: None,
            timeouts_s: Timeouts::default(),
        }
    }
}

impl Connections {
    /// The file that holds the table. Two daemons cannot have one socket, so beside it they do not meet either.
    #[must_use]
    pub fn region(&self, socket: &Path) -> PathBuf {
        self.region.clone().unwrap_or_else(|| socket.with_extension("connections"))
    }

    /// What one endpoint may have.
    #[must_use]
    pub fn endpoint_share(&self) -> Share {
        self.share_of(self.endpoint_percent)
    }

    /// What those beyond this node may have opened, all together.
    #[must_use]
    pub fn outside_share(&self) -> Share {
        self.share_of(self.outside_percent)
    }

    fn share_of(&self, percent: u32) -> Share {
        let of_capacity = |percent: u32| (u64::from(self.capacity) * u64::from(percent) / 100).max(1) as u32;
        Share { connections: of_capacity(percent), half_open: of_capacity(self.half_open_percent) }
    }

    /// Tells `add` every key at fault, with the problem and the mend.
    pub(super) fn check(&self, add: &mut impl FnMut(&str, String, &str)) {
        if !(MIN_CAPACITY..=MAX_CAPACITY).contains(&self.capacity) {
            let mend = format!("choose {MIN_CAPACITY} to {MAX_CAPACITY} connections");
            add("capacity", format!("a table of {} connections cannot be", self.capacity), &mend);
        }
        for (key, percent) in [
            ("endpoint-percent", self.endpoint_percent),
            ("outside-percent", self.outside_percent),
            ("half-open-percent", self.half_open_percent),
        ] {
            if !(1..=100).contains(&percent) {
                add(key, format!("{percent} is no part of a hundred"), "choose 1 to 100 percent");
            }
        }
        if let Some(region) = self.region.as_deref().filter(|region| !region.is_absolute()) {
            let problem = format!("{:?} is no absolute path", region.display().to_string());
            add("region", problem, "begin it with a slash: the daemon may start in any folder");
        }
        for (key, seconds) in self.timeouts_s.all() {
            if !(1..=MAX_TIMEOUT).contains(&seconds) {
                let mend = format!("choose 1 to {MAX_TIMEOUT} seconds");
                add(&format!("timeouts-s.{key}"), format!("{seconds} seconds cannot be"), &mend);
            }
        }
    }
}

/// Timeouts and their keys, from one list.
macro_rules! timeouts {
    ($($(#[$doc:meta])* $field:ident $key:literal = $seconds:expr;)+) => {
        /// How long a quiet connection is remembered, in seconds, by what it is in the middle of. The defaults are the
        /// kernel's (Documentation/networking/nf_conntrack-sysctl.rst, net/netfilter/nf_conntrack_proto_sctp.c).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Timeouts {
            $($(#[$doc])* pub $field: u32,)+
        }

        impl Default for Timeouts {
            fn default() -> Timeouts {
                Timeouts { $($field: $seconds,)+ }
            }
        }

        impl Timeouts {
            /// Every timeout by its key.
            fn all(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$(($key, self.$field),)+].into_iter()
            }
        }
    };
}

timeouts! {
    /// A SYN without an answer.
    tcp_syn_sent "tcp-syn-sent" = 120;
    /// An answered SYN.
    tcp_syn_received "tcp-syn-received" = 60;
    /// An open connection.
    tcp_established "tcp-established" = 432_000;
    /// One end is done.
    tcp_fin_wait "tcp-fin-wait" = 120;
    /// The other end knows.
    tcp_close_wait "tcp-close-wait" = 60;
    /// Both ends are done, and the last word is not acknowledged.
    tcp_last_ack "tcp-last-ack" = 30;
    /// Closed in order.
    tcp_time_wait "tcp-time-wait" = 120;
    /// Reset.
    tcp_close "tcp-close" = 10;
    /// Taken up in the middle, and nobody has answered.
    tcp_unacknowledged "tcp-unacknowledged" = 300;
    /// Datagrams one way, or a single answer.
    udp "udp" = 30;
    /// Datagrams both ways for a while.
    udp_stream "udp-stream" = 120;
    /// ICMP and ICMPv6 echoes.
    icmp "icmp" = 30;
    /// An association that was aborted.
    sctp_closed "sctp-closed" = 10;
    /// An INIT without an answer.
    sctp_cookie_wait "sctp-cookie-wait" = 3;
    /// A cookie on its way back.
    sctp_cookie_echoed "sctp-cookie-echoed" = 3;
    /// An open association.
    sctp_established "sctp-established" = 210;
    /// An association that is being closed.
    sctp_shutdown "sctp-shutdown" = 3;
    /// Taken up in the middle, and nobody has answered.
    sctp_picked_up "sctp-picked-up" = 30;
    /// Any other protocol.
    other "other" = 600;
    /// An endpoint-independent binding without a connection (RFC 4787, REQ-5).
    binding "binding" = 300;
}

/// `[services]`: where this node stands, and which of its ports may be services'.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Services {
    /// The ports that services may have at the node's addresses.
    pub node_ports: Vec<PortRange>,
    /// The addresses at which node ports answer; those of the uplinks when empty.
    pub node_port_addresses: Vec<Prefix>,
    /// The ports by which the node stands in for clients whose answers must come back through it. As soon as there is a
    /// service, they are taken from the kernel at the uplinks' addresses.
    pub source_ports: PortRange,
    /// The zone that the node is in, for services that prefer backends of their clients' zone.
    pub zone: Option<Name>,
}

impl Default for Services {
    fn default() -> Services {
        Services {
            node_ports: vec![Desired::default_node_ports()],
            node_port_addresses: Vec::new(),
            source_ports: NatPool::default_ports(),
            zone: None,
        }
    }
}

impl Services {
    /// Tells `add` every key at fault, with the problem and the mend.
    pub(super) fn check(&self, add: &mut impl FnMut(&str, String, &str)) {
        for (i, range) in self.node_ports.iter().enumerate() {
            if let Some(earlier) = self.node_ports[..i].iter().find(|earlier| earlier.overlaps(*range)) {
                let problem = format!("{range} overlaps {earlier}");
                add(&format!("node-ports[{i}]"), problem, "give ranges that have no port in common");
            }
            // A packet to a node port would be taken for an answer.
            if range.overlaps(self.source_ports) {
                let problem = format!("{} overlaps the node ports {range}", self.source_ports);
                add("source-ports", problem, "choose ports that are no node ports");
            }
        }
    }
}
