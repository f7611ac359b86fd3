//! Why packets are dropped: every reason has a number, a name and a sentence, from one list.

use penstock_wire::Malformed;

/// Makes the enum, its list, its names and its sentences from one table, so that they cannot drift.
macro_rules! reasons {
    ($($variant:ident, $name:literal, $sentence:literal;)*) => {
        /// Why a packet was dropped, malformed ones aside.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Cause {
            $(#[doc = $sentence] $variant,)*
        }

        impl Cause {
            const ALL: &[Cause] = &[$(Cause::$variant),*];

            const fn name(self) -> &'static str {
                match self { $(Cause::$variant => $name,)* }
            }

            const fn sentence(self) -> &'static str {
                match self { $(Cause::$variant => $sentence,)* }
            }
        }
    };
}

reasons! {
    WrongSourceMac, "wrong-source-mac", "a pod sent from a MAC address that is not its own";
    SpoofedSource, "spoofed-source", "a pod sent from an IP address that is not its own";
    SpoofedTunnelSource, "spoofed-tunnel-source", "a peer sent from an inner address that is not routed to it";
    Martian, "martian", "the packet is from or for an IPv4-mapped IPv6 address, which nobody has on a wire";
    NotForUs, "not-for-us", "the frame is for another MAC address";
    VlanNotExpected, "vlan-not-expected", "the frame has a VLAN tag, which this port does not carry";
    NotIp, "not-ip", "the frame carries neither IP nor ARP";
    ArpNotAnswered, "arp-not-answered", "an ARP message or a neighbour solicitation was for no gateway of the network";
    Multicast, "multicast", "the packet is for a multicast or broadcast address; a network has no broadcast domain";
    LinkLocal, "link-local", "the packet is from or for a link-local address other than the gateway";
    GatewayRefused, "gateway-refused", "the gateway speaks nothing but ARP, neighbour discovery and echo";
    UnknownPort, "unknown-port", "the frame came from a port that the tables do not know (yet)";
    UnknownVni, "unknown-vni", "a tunnel packet carries a network identifier that this node has no network for";
    UnknownPeer, "unknown-peer", "a tunnel packet came from an address that is no peer";
    NotOurTunnel, "not-our-tunnel", "a tunnel packet is for an address that is no local tunnel endpoint";
    WrongTunnelKind, "wrong-tunnel-kind", "a tunnel packet came by VXLAN for a Geneve network, or the other way round";
    WrongInnerMac, "wrong-inner-mac", "a tunnel packet's inner frame is not for this node's overlay MAC address";
    CongestionNotCarried, "congestion-not-carried", "the tunnel packet was marked congested and its inner packet speaks no ECN (RFC 6040)";
    NoRoute, "no-route", "no route to the destination";
    Blackhole, "blackhole", "the route is a blackhole";
    RouteLoop, "route-loop", "the route leads back to where the packet came from";
    PeerUnresolved, "peer-unresolved", "the peer's next hop has not answered; the packet waited and was given up";
    NeighbourUnresolved, "neighbour-unresolved", "the next hop has not answered; the packet waited and was given up";
    NoHost, "no-host", "the packet is for the node itself, which has no host port in this network";
    TtlExpired, "ttl-expired", "the packet's hop limit ran out here";
    TooBig, "too-big", "the packet is larger than the way ahead carries, and may not be cut";
    NoHeadroom, "no-headroom", "no room in front of the packet for the tunnel header";
    NoChunk, "no-chunk", "no free chunk of packet memory for an answer or a fragment";
    WaitingRoomFull, "waiting-room-full", "too many packets wait for a next hop or for the fragment before them";
    ConnectionNonsense, "connection-nonsense", "the packet's flags or chunks are such as no sane sender combines";
    ConnectionNotOpened, "connection-not-opened", "the packet belongs to a connection whose beginning was not seen, and picking up is off";
    ConnectionOutOfTurn, "connection-out-of-turn", "the packet does not follow on what was seen of its connection";
    Unsolicited, "unsolicited", "the packet answers a question that nobody asked";
    ConnectionContended, "connection-contended", "several workers were about the same connection at once";
    ConnectionsFull, "connections-full", "the connection table is full of connections in use";
    EndpointConnections, "endpoint-connections", "the endpoint has as many connections as it may have";
    EndpointHalfOpen, "endpoint-half-open", "the endpoint has as many half-open connections as it may have";
    OutsideConnections, "outside-connections", "those beyond this node have as many connections here as they may have together";
    OutsideHalfOpen, "outside-half-open", "those beyond this node have as many half-open connections here as they may have together";
    EndpointConnectionRate, "endpoint-connection-rate", "the endpoint has more new connections a second than it may have";
    EgressBandwidth, "egress-bandwidth", "the sender sends more bits a second than it may";
    IngressBandwidth, "ingress-bandwidth", "the receiver is sent more bits a second than it may receive";
    EgressPacketRate, "egress-packet-rate", "the sender sends more packets a second than it may";
    IngressPacketRate, "ingress-packet-rate", "the receiver is sent more packets a second than it may receive";
    EgressPolicy, "egress-policy", "the sender's policies refuse the packet";
    IngressPolicy, "ingress-policy", "the receiver's policies refuse the packet";
    NoBackend, "no-backend", "the service has no backend that is ready";
    NoLocalBackend, "no-local-backend", "the service is served by backends of this node only, and there is none";
    SourceNotServed, "source-not-served", "the client is in none of the service's source ranges";
    NotServed, "not-served", "another node sent the packet on for a service that has no such backend here";
    NoNatAddress, "no-nat-address", "the node has no address that could stand in for the sender's";
    FragmentAlone, "fragment-alone", "the packet's first fragment, which has its ports, did not come in time";
    NotTranslatable, "not-translatable", "the packet cannot be given other addresses: it is malformed, an SCTP fragment, or ICMP other than echo";
    NatExhausted, "nat-exhausted", "no address and port outside is free for this connection";
    WorkerPanicked, "worker-panicked", "the worker that had the packet in its hands panicked; see the log";
    TxRingFull, "tx-ring-full", "the port's transmit ring was full";
    MailboxFull, "mailbox-full", "the worker that owns the port has too many frames waiting";
    PortGone, "port-gone", "the port was removed while the packet was on its way";
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The packet breaks a rule of the wire format.
    Malformed(Malformed),
    /// The packet was sound.
    Refused(Cause),
}

impl From<Malformed> for Reason {
    fn from(rule: Malformed) -> Reason {
        Reason::Malformed(rule)
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Reason {
        Reason::Refused(cause)
    }
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = Malformed::ALL.len() + Cause::ALL.len();

    /// Every reason, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Reason> {
        let malformed = Malformed::ALL.iter().map(|&rule| Reason::Malformed(rule));
        malformed.chain(Cause::ALL.iter().map(|&cause| Reason::Refused(cause)))
    }

    /// The reason's number, below [`Reason::COUNT`].
    #[inline]
    #[must_use]
    pub const fn number(self) -> usize {
        match self {
            Reason::Malformed(rule) => rule as usize,
            Reason::Refused(cause) => Malformed::ALL.len() + cause as usize,
        }
    }

    /// The counter's name, in kebab case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Malformed(rule) => rule.name(),
            Reason::Refused(cause) => cause.name(),
        }
    }

    /// The sentence for the operator.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Reason::Malformed(rule) => rule.sentence(),
            Reason::Refused(cause) => cause.sentence(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn reasons_are_numbered_without_gaps_and_named_apart() {
        let names: HashSet<_> = Reason::all().map(Reason::name).collect();
        assert_eq!(names.len(), Reason::COUNT);
        assert!(Reason::all().map(Reason::number).eq(0..Reason::COUNT));
        assert!(Reason::all().all(|reason| reason.sentence().len() > 10));
    }
}
