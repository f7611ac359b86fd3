//! What the first packet of a flow meets, in order: zone, gateway, hops, route, link. Pure: tables and a packet's facts in,
//! a verdict out.
//!
//! ```text
//!  zone (anti-spoofing) -> gateway? -> hops left? -> route -> link (neighbour or tunnel) -> length -> verdict
//! ```
//!
//! Connections, services, policy and address translation take their places between zone and link, as section order says,
//! when they come.

use std::net::IpAddr;

use penstock_wire::icmp;
use penstock_wire::parse::{Net, Parsed};
use penstock_wire::reply::{Problem, Unreachable};
use penstock_wire::{icmpv6, proto};

use crate::drop::{Cause, Reason};
use crate::flow::{Action, DeviceId, ZoneId};
use crate::tables::{Network, Snapshot, Target, Zone};

/// What is to become of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Do this, now and with every packet of the flow.
    Install(Action),
    /// Answer it ourselves.
    Answer(Answer),
    /// Drop it, and tell its sender why.
    Refuse(Reason, Problem),
    /// Keep it until a next hop is known.
    Wait(Cause, Option<(DeviceId, IpAddr)>),
    /// Drop it.
    Drop(Reason),
}

/// What the gateway answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An ARP request.
    Arp,
    /// A neighbour solicitation.
    Neighbour,
    /// An echo request.
    Echo,
}

/// Who watches the decision being made.
pub trait Watch {
    /// A stage has decided; `say` gives the decision and its ground.
    fn stage(&mut self, stage: &'static str, say: impl FnOnce() -> (String, String));
}

/// Nobody does.
impl Watch for () {
    #[inline(always)]
    fn stage(&mut self, _stage: &'static str, _say: impl FnOnce() -> (String, String)) {}
}

/// The addresses and the protocol of a packet, whichever the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol.
    pub proto: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port; ICMP's type and code.
    pub dport: u16,
    /// Hops left.
    pub hops: u8,
    /// Length of the IP packet.
    pub len: u16,
}

impl Facts {
    /// The facts of a parsed IP packet; `None` for anything else.
    #[must_use]
    pub fn of(parsed: &Parsed) -> Option<Facts> {
        let len = parsed.end - parsed.l3;
        match parsed.net {
            Net::V4(flow) => Some(Facts {
                src: flow.src.into(),
                dst: flow.dst.into(),
                proto: flow.proto,
                sport: flow.sport,
                dport: flow.dport,
                hops: flow.ttl,
                len,
            }),
            Net::V6(flow) => Some(Facts {
                src: flow.src.into(),
                dst: flow.dst.into(),
                proto: flow.proto,
                sport: flow.sport,
                dport: flow.dport,
                hops: flow.hop_limit,
                len,
            }),
            Net::Arp | Net::Other(_) => None,
        }
    }

    fn icmp_type(&self) -> Option<u8> {
        let is_icmp =
            if self.dst.is_ipv4() { self.proto == proto::ICMP } else { self.proto == proto::ICMPV6 };
        is_icmp.then_some((self.dport >> 8) as u8)
    }

    fn is_echo_request(&self) -> bool {
        let request = if self.dst.is_ipv4() { icmp::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
        self.icmp_type() == Some(request)
    }

    fn is_neighbour_discovery(&self) -> bool {
        // Router solicitation to redirect: RFC 4861 section 4.
        self.dst.is_ipv6() && self.icmp_type().is_some_and(|kind| (133..=137).contains(&kind))
    }
}

/// Decides about a frame that is no IP packet or needs no table: ARP and neighbour discovery.
///
/// `target` is the address that an ARP request or a neighbour solicitation asks for.
#[must_use]
pub fn decide_question(network: &Network, answer: Answer, target: Option<IpAddr>) -> Verdict {
    match target {
        Some(target) if network.is_gateway(target) => Verdict::Answer(answer),
        _ => Verdict::Drop(Cause::ArpNotAnswered.into()),
    }
}

/// Decides about an IP packet that came from `zone`.
#[must_use]
pub fn decide(snapshot: &Snapshot, zone: ZoneId, packet: &Facts, watch: &mut impl Watch) -> Verdict {
    let Some((zone, network)) = network_of(snapshot, zone) else {
        return Verdict::Drop(Cause::UnknownPort.into());
    };
    if let Err(cause) = check_source(snapshot, zone, network, packet) {
        watch.stage("zone", || ("drop".into(), Reason::from(cause).sentence().into()));
        return Verdict::Drop(cause.into());
    }
    watch.stage("zone", || (describe_zone(snapshot, zone), format!("network {}", network.name)));
    if network.is_gateway(packet.dst) {
        return gateway(packet, watch);
    }
    if is_group(packet.dst) {
        watch.stage("route", || ("drop".into(), Reason::from(Cause::Multicast).sentence().into()));
        return Verdict::Drop(Cause::Multicast.into());
    }
    if is_link_local(packet.src) || is_link_local(packet.dst) {
        watch.stage("route", || ("drop".into(), Reason::from(Cause::LinkLocal).sentence().into()));
        return Verdict::Drop(Cause::LinkLocal.into());
    }
    if packet.hops <= 1 {
        watch.stage("hops", || ("refuse".into(), format!("the hop limit is {}", packet.hops)));
        return Verdict::Refuse(Cause::TtlExpired.into(), Problem::HopsExceeded);
    }
    route(snapshot, zone, network, packet, watch)
}

/// Decides about a packet that the dataplane itself made in `network`.
#[must_use]
pub fn decide_own(snapshot: &Snapshot, network: u32, packet: &Facts) -> Verdict {
    let Some(network) = snapshot.networks.get(network as usize) else {
        return Verdict::Drop(Cause::UnknownPort.into());
    };
    match network.route(packet.dst) {
        Some(target) => link(snapshot, target, packet, &mut ()),
        None => Verdict::Drop(Cause::NoRoute.into()),
    }
}

fn network_of(snapshot: &Snapshot, zone: ZoneId) -> Option<(Zone, &Network)> {
    let zone = *snapshot.zones.get(zone.number())?;
    let network = snapshot.networks.get(zone.network() as usize)?;
    Some((zone, network))
}

/// Stage 2: whether the packet may come from where it came from.
fn check_source(snapshot: &Snapshot, zone: Zone, network: &Network, packet: &Facts) -> Result<(), Cause> {
    if is_group(packet.src) || packet.src.is_loopback() || packet.dst.is_loopback() {
        return Err(Cause::SpoofedSource);
    }
    match zone {
        Zone::Endpoint { endpoint, .. } => {
            let endpoint = &snapshot.endpoints[endpoint as usize];
            if endpoint.addresses.contains(&packet.src) {
                return Ok(());
            }
            // A pod speaks to its gateway from its link-local address, and before it has one from none.
            let on_link = is_link_local(packet.src) || packet.src.is_unspecified();
            if on_link && packet.src.is_ipv6() { Ok(()) } else { Err(Cause::SpoofedSource) }
        }
        Zone::Tunnel { peer, .. } => match network.route(packet.src) {
            Some(
                Target::Tunnel { peer: owner, .. }
                | Target::Unreachable { peer: owner }
                | Target::Native { peer: Some(owner), .. },
            ) if *owner == peer => Ok(()),
            _ => Err(Cause::SpoofedTunnelSource),
        },
        Zone::Host { .. } => match network.route(packet.src) {
            Some(Target::Endpoint(_)) => Err(Cause::SpoofedSource),
            _ => Ok(()),
        },
        Zone::Native { .. } => match network.route(packet.src) {
            Some(Target::Endpoint(_) | Target::Host) => Err(Cause::SpoofedSource),
            _ => Ok(()),
        },
    }
}

/// Stage 5, first part: the dataplane itself is meant.
fn gateway(packet: &Facts, watch: &mut impl Watch) -> Verdict {
    if packet.is_echo_request() {
        watch.stage("gateway", || ("answer".into(), "an echo request to the gateway".into()));
        return Verdict::Answer(Answer::Echo);
    }
    let cause = if packet.is_neighbour_discovery() { Cause::ArpNotAnswered } else { Cause::GatewayRefused };
    watch.stage("gateway", || ("drop".into(), Reason::from(cause).sentence().into()));
    Verdict::Drop(cause.into())
}

/// Stage 5: where the network leads the packet.
fn route(
    snapshot: &Snapshot,
    zone: Zone,
    network: &Network,
    packet: &Facts,
    watch: &mut impl Watch,
) -> Verdict {
    let Some(target) = network.route(packet.dst) else {
        watch.stage("route", || {
            ("refuse".into(), format!("no route to {} in network {}", packet.dst, network.name))
        });
        return Verdict::Refuse(Cause::NoRoute.into(), Problem::Unreachable(Unreachable::Network));
    };
    watch.stage("route", || (describe_target(snapshot, target), matching_row(network, packet.dst)));
    let loops = match (zone, target) {
        (
            Zone::Tunnel { peer, .. },
            Target::Tunnel { peer: next, .. } | Target::Native { peer: Some(next), .. },
        ) => peer == *next,
        (Zone::Native { .. }, Target::Native { .. }) | (Zone::Host { .. }, Target::Host) => true,
        _ => false,
    };
    if loops {
        return Verdict::Drop(Cause::RouteLoop.into());
    }
    match link(snapshot, target, packet, watch) {
        Verdict::Install(action) => {
            let partial = match zone {
                Zone::Endpoint { endpoint, .. } => snapshot.endpoints[endpoint as usize].partial_checksums,
                Zone::Tunnel { .. } | Zone::Native { .. } => snapshot.partial_underlay,
                Zone::Host { .. } => false,
            };
            Verdict::Install(action.finishing_checksums(partial))
        }
        other => other,
    }
}

/// Stage 8: how the packet gets to the next station.
fn link(snapshot: &Snapshot, target: &Target, packet: &Facts, watch: &mut impl Watch) -> Verdict {
    match target {
        Target::Endpoint(endpoint) => {
            let endpoint = &snapshot.endpoints[*endpoint as usize];
            watch.stage("link", || {
                (format!("to {}", endpoint.mac), format!("endpoint {}, MTU {}", endpoint.name, endpoint.mtu))
            });
            Verdict::Install(Action::forward(
                endpoint.device,
                endpoint.mac,
                snapshot.router_mac,
                endpoint.mtu,
            ))
        }
        Target::Host => match &snapshot.host {
            Some(host) => {
                watch.stage("link", || (format!("to {}", host.mac), "the host port".into()));
                Verdict::Install(Action::forward(host.device, host.mac, snapshot.router_mac, host.mtu))
            }
            None => Verdict::Drop(Cause::NoHost.into()),
        },
        Target::Tunnel { template: Some(id), peer } => {
            let template = &snapshot.templates[usize::from(id.0)];
            watch.stage("link", || {
                let peer = &snapshot.peers[*peer as usize];
                (
                    format!("tunnel to {}", peer.address),
                    format!("{} bytes of headers, MTU {}", template.header.len(), template.max_len),
                )
            });
            Verdict::Install(Action::encapsulate(template.device, *id, template.max_len))
        }
        Target::Tunnel { template: None, peer } => {
            let path = snapshot.peers[*peer as usize].path.as_ref();
            watch.stage("link", || ("wait".into(), "the underlay's next hop has not answered".into()));
            Verdict::Wait(Cause::PeerUnresolved, path.map(|path| (path.device, path.next_hop)))
        }
        Target::Native { device, next_hop, mtu, .. } => {
            native(snapshot, *device, next_hop.unwrap_or(packet.dst), *mtu, watch)
        }
        Target::Unreachable { peer } => {
            watch.stage("link", || {
                (
                    "refuse".into(),
                    format!("no underlay route to peer {}", snapshot.peers[*peer as usize].name),
                )
            });
            Verdict::Refuse(Cause::PeerUnresolved.into(), Problem::Unreachable(Unreachable::Host))
        }
        Target::Blackhole => Verdict::Drop(Cause::Blackhole.into()),
    }
}

fn native(
    snapshot: &Snapshot,
    device: DeviceId,
    next_hop: IpAddr,
    mtu: u16,
    watch: &mut impl Watch,
) -> Verdict {
    let Some(&crate::tables::Device::Uplink { mac: ours, .. }) = snapshot.devices.get(usize::from(device.0))
    else {
        return Verdict::Drop(Cause::PortGone.into());
    };
    let Some(&theirs) = snapshot.neighbours.get(&(device, next_hop)) else {
        watch.stage("link", || ("wait".into(), format!("{next_hop} has not answered")));
        return Verdict::Wait(Cause::NeighbourUnresolved, Some((device, next_hop)));
    };
    watch.stage("link", || (format!("to {theirs}"), format!("{next_hop} on the underlay, MTU {mtu}")));
    Verdict::Install(Action::forward(device, theirs, ours, mtu))
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// The zone in words.
#[must_use]
pub fn describe_zone(snapshot: &Snapshot, zone: Zone) -> String {
    match zone {
        Zone::Endpoint { endpoint, .. } => snapshot
            .endpoints
            .get(endpoint as usize)
            .map_or("endpoint ?".into(), |e| format!("endpoint {}", e.name)),
        Zone::Host { .. } => "host".into(),
        Zone::Tunnel { peer, .. } => {
            snapshot.peers.get(peer as usize).map_or("peer ?".into(), |peer| format!("peer {}", peer.name))
        }
        Zone::Native { .. } => "uplink".into(),
    }
}

fn describe_target(snapshot: &Snapshot, target: &Target) -> String {
    let peer = |peer: &u32| snapshot.peers[*peer as usize].name.clone();
    match target {
        Target::Endpoint(endpoint) => format!("endpoint {}", snapshot.endpoints[*endpoint as usize].name),
        Target::Tunnel { peer: to, .. } | Target::Unreachable { peer: to } => format!("peer {}", peer(to)),
        Target::Native { peer: Some(to), .. } => format!("peer {} without a tunnel", peer(to)),
        Target::Native { next_hop: Some(next_hop), .. } => format!("uplink through {next_hop}"),
        Target::Native { .. } => "uplink".into(),
        Target::Host => "host".into(),
        Target::Blackhole => "blackhole".into(),
    }
}

fn matching_row(network: &Network, dst: IpAddr) -> String {
    let matching = network.rows.iter().filter(|row| row.prefix.contains(&dst));
    matching.max_by_key(|row| row.prefix.prefix_len()).map_or_else(String::new, |row| {
        format!("{} in network {}{}", row.prefix, network.name, if row.implied { " (implied)" } else { "" })
    })
}

/// A packet that somebody asks about.
pub type Question = Facts;

/// One stage of an explanation: its name, its decision, its ground.
pub type Step = (&'static str, String, String);

impl Watch for Vec<Step> {
    fn stage(&mut self, stage: &'static str, say: impl FnOnce() -> (String, String)) {
        let (decision, ground) = say();
        self.push((stage, decision, ground));
    }
}

/// Where a packet would go, and why: the stages, the verdict in a sentence, and whether it leaves or is answered.
#[must_use]
pub fn explain(snapshot: &Snapshot, from: ZoneId, packet: &Question) -> (Vec<Step>, String, bool) {
    let mut steps = Vec::new();
    let verdict = decide(snapshot, from, packet, &mut steps);
    let (sentence, delivered) = match verdict {
        Verdict::Install(action) if packet.len > action.max_len() => {
            let sentence = format!(
                "too long for the way: {} bytes, and {} fit; the sender is told, or the packet is cut",
                packet.len,
                action.max_len()
            );
            (sentence, false)
        }
        Verdict::Install(_) => ("delivered".into(), true),
        Verdict::Answer(_) => ("answered by the dataplane itself".into(), true),
        Verdict::Refuse(reason, _) => {
            (format!("refused, and the sender is told: {}", reason.sentence()), false)
        }
        Verdict::Wait(cause, _) => (format!("waits: {}", Reason::from(cause).sentence()), false),
        Verdict::Drop(reason) => (format!("dropped: {}", reason.sentence()), false),
    };
    (steps, sentence, delivered)
}
