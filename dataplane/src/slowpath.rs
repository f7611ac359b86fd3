//! What the first packet of a flow meets, in order. Pure but for the connections it opens and takes on: tables, connections
//! and a packet's facts in, a verdict out.
//!
//! ```text
//!  zone (anti-spoofing) -> gateway? -> hops left? -> connection --known------------------> route -> link -> verdict
//!                                                       | new                                ^
//!                                                       v                                    |
//!                                                    service -> route -> policy -> source address (open)
//! ```
//!
//! ICMP other than echo has no connection: a message is judged by its own type and code, an error passes with the
//! connection that it is about.
//!
//! * [`decide`] has the stages up to the connection, `tracked` the rest for packets that connections are kept of,
//! * `shares` counts new connections against whoever has them,
//! * `served` is for packets that another node sends on for a service,
//! * `source` says who may send what from where,
//! * `link` leads to the next station, `words` explains it all to people.

pub mod facts;
mod link;
mod served;
mod shares;
mod source;
mod tracked;
mod words;

use std::net::IpAddr;

use penstock_io::Ticks;
use penstock_wire::dsr::ServedAs;
use penstock_wire::icmp;
use penstock_wire::parse::{Fragment, Net, Parsed, V4Flow, V6Flow};
use penstock_wire::reply::{Problem, Unreachable};
use penstock_wire::rewrite::{CannotRewrite, Change, Rewrite4, Rewrite6};
use penstock_wire::{icmpv6, proto, sctp, tcp};

use crate::conntrack::related::Related;
use crate::conntrack::{Chunks, NetworkId, Packet, Tuple};
use crate::drop::{Cause, Reason};
use crate::flow::{Action, DeviceId, Remembered, Tracked, ZoneId};
use crate::ledger::{Ledger, is_metered};
use crate::tables::{Network, Snapshot, Target, Zone};
use crate::tracker::Tracker;

pub use served::admit;
pub use words::{Question, Step, describe_zone, explain};

use facts::Fact;
use link::link;
use source::{check_source, is_group, is_link_local};
pub(crate) use words::describe_tuple;
use words::{describe_target, matching_row};

/// What is decided by.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The tables.
    pub snapshot: &'a Snapshot,
    /// The connections; `None` where none are kept.
    pub tracker: Option<&'a Tracker>,
    /// The time.
    pub now: Ticks,
    /// What is written down; `None` if somebody only asks: then no connection is opened or changed either.
    pub ledger: Option<&'a Ledger>,
}

/// How a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// What every packet of its flow gets.
    pub action: Action,
    /// Other addresses and ports, if it gets any.
    pub change: Option<Change>,
    /// Its connection.
    pub tracked: Tracked,
    /// Whether the packets of its flow that follow go the same way without being asked.
    pub lasts: bool,
    /// What its sender asked for, where the receiver's node is to answer in that name.
    pub asked: Option<ServedAs>,
}

impl Scene<'_> {
    /// Whether somebody only asks.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.ledger.is_none()
    }
}

impl Way {
    /// The way of every packet of a flow that no connection is kept of.
    #[must_use]
    pub fn of(action: Action) -> Way {
        Way { action, change: None, tracked: Tracked::NONE, lasts: true, asked: None }
    }

    /// What an IPv4 flow is remembered with.
    ///
    /// # Errors
    /// When its packets cannot be given other addresses.
    pub fn remembered4(&self, flow: &V4Flow) -> Result<Remembered<Rewrite4>, CannotRewrite> {
        let rewrite = self.change.map(|change| Rewrite4::new(flow, &change)).transpose()?;
        Ok(Remembered { action: self.action, tracked: self.tracked, rewrite })
    }

    /// As [`Way::remembered4`], for an IPv6 flow.
    ///
    /// # Errors
    /// As [`Way::remembered4`].
    pub fn remembered6(&self, flow: &V6Flow) -> Result<Remembered<Rewrite6>, CannotRewrite> {
        let rewrite = self.change.map(|change| Rewrite6::new(flow, &change)).transpose()?;
        Ok(Remembered { action: self.action, tracked: self.tracked, rewrite })
    }
}

/// What is to become of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Let it go on.
    Go(Way),
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

    /// What that stage decided, part by part.
    fn fact(&mut self, fact: impl FnOnce() -> Fact);
}

/// Nobody does.
impl Watch for () {
    #[inline(always)]
    fn stage(&mut self, _stage: &'static str, _say: impl FnOnce() -> (String, String)) {}

    #[inline(always)]
    fn fact(&mut self, _fact: impl FnOnce() -> Fact) {}
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
    /// What of it a connection's life depends on.
    pub life: Packet,
    /// Whether it is a whole packet.
    pub fragment: Fragment,
}

impl Facts {
    /// The facts of an IP packet that `frame` was parsed to be; `None` for anything else.
    #[must_use]
    pub fn of(parsed: &Parsed, frame: &[u8]) -> Option<Facts> {
        let len = parsed.end - parsed.l3;
        let payload = frame.get(parsed.l4.into()..parsed.end.into()).unwrap_or_default();
        // A later fragment begins with anything but a header.
        match parsed.net {
            Net::V4(flow) => Some(Facts {
                src: flow.src.into(),
                dst: flow.dst.into(),
                proto: flow.proto,
                sport: flow.sport,
                dport: flow.dport,
                hops: flow.ttl,
                len,
                life: life_of(flow.proto, flow.dport, told(flow.fragment, payload)),
                fragment: flow.fragment,
            }),
            Net::V6(flow) => Some(Facts {
                src: flow.src.into(),
                dst: flow.dst.into(),
                proto: flow.proto,
                sport: flow.sport,
                dport: flow.dport,
                hops: flow.hop_limit,
                len,
                life: life_of(flow.proto, flow.dport, told(flow.fragment, payload)),
                fragment: flow.fragment,
            }),
            Net::Arp | Net::Other(_) => None,
        }
    }

    /// The facts of a later fragment of the packet whose first one had these ports.
    #[must_use]
    pub(crate) fn following(self, sport: u16, dport: u16) -> Facts {
        Facts { sport, dport, life: life_of(self.proto, dport, &[]), ..self }
    }

    fn icmp_type(&self) -> Option<u8> {
        let is_icmp =
            if self.dst.is_ipv4() { self.proto == proto::ICMP } else { self.proto == proto::ICMPV6 };
        is_icmp.then_some((self.dport >> 8) as u8)
    }

    /// Whether it tells of a packet that did not get through: destination unreachable, packet too big, time exceeded,
    /// parameter problem, the obsolete source quench (RFC 792, RFC 4443 section 2.1).
    pub(crate) fn is_icmp_error(&self) -> bool {
        let errors: &[u8] = if self.dst.is_ipv4() { &[3, 4, 11, 12] } else { &[1, 2, 3, 4] };
        self.icmp_type().is_some_and(|kind| errors.contains(&kind))
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

/// The transport header and what follows it: a later fragment begins with something else.
fn told(fragment: Fragment, payload: &[u8]) -> &[u8] {
    if fragment == Fragment::Later { &[] } else { payload }
}

/// What of a packet its connection's life depends on; the flags of a later fragment are not seen and change nothing.
fn life_of(protocol: u8, dport: u16, payload: &[u8]) -> Packet {
    match protocol {
        proto::TCP => Packet::Tcp(payload.get(tcp::FLAGS_AT).copied().unwrap_or(tcp::ACK)),
        proto::SCTP => Packet::Sctp(Chunks::of(payload).unwrap_or(Chunks::only(sctp::DATA))),
        proto::UDP => Packet::Udp,
        proto::ICMP => Packet::Echo { request: (dport >> 8) as u8 == icmp::ECHO_REQUEST },
        proto::ICMPV6 => Packet::Echo { request: (dport >> 8) as u8 == icmpv6::ECHO_REQUEST },
        _ => Packet::Other,
    }
}

/// A packet of `protocol` that opens a connection.
#[must_use]
pub fn first_of(protocol: u8) -> Packet {
    match protocol {
        proto::TCP => Packet::Tcp(tcp::SYN),
        proto::SCTP => Packet::Sctp(Chunks::only(sctp::INIT)),
        proto::UDP => Packet::Udp,
        proto::ICMP | proto::ICMPV6 => Packet::Echo { request: true },
        _ => Packet::Other,
    }
}

/// What policies look at beside addresses and protocol, of the packet as it goes on: the destination port, type and
/// code of ICMP, nothing of what has neither.
fn key_of(sent: &Tuple) -> Option<u16> {
    match sent.protocol() {
        proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6 => Some(sent.dport()),
        _ => None,
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
pub fn decide(scene: Scene<'_>, zone: ZoneId, packet: &Facts, watch: &mut impl Watch) -> Verdict {
    let snapshot = scene.snapshot;
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
    let Some(tracker) = scene.tracker else { return route(snapshot, zone, network, packet, watch) };
    if packet.is_icmp_error() {
        // Packets do not get here: whoever asks shows no packet that the error would quote.
        watch.stage("connection", || {
            ("drop".into(), "an error passes with what it quotes, or not at all".into())
        });
        return Verdict::Drop(Cause::Unsolicited.into());
    }
    let Some(id) = place(snapshot, zone, network, packet.dst) else {
        return Verdict::Drop(Cause::UnknownPort.into());
    };
    let Facts { src, dst, proto, sport, dport, .. } = *packet;
    let mut stages = tracked::Stages { scene, tracker, zone, network, packet, watch };
    if let Some(tuple) = Tuple::new(id, src, dst, proto, sport, dport) {
        stages.run(tuple)
    } else if let Some(message) = Tuple::of_message(id, src, dst, proto, dport) {
        stages.pass(message)
    } else {
        Verdict::Drop(Cause::Martian.into())
    }
}

/// The network that a packet's connection is kept in.
#[must_use]
pub fn place_of(snapshot: &Snapshot, zone: ZoneId, parsed: &Parsed) -> Option<NetworkId> {
    let (zone, network) = network_of(snapshot, zone)?;
    let dst = match parsed.net {
        Net::V4(flow) => IpAddr::V4(flow.dst),
        Net::V6(flow) => IpAddr::V6(flow.dst),
        Net::Arp | Net::Other(_) => return None,
    };
    place(snapshot, zone, network, dst)
}

fn place(snapshot: &Snapshot, zone: Zone, network: &Network, dst: IpAddr) -> Option<NetworkId> {
    // What comes from outside to an address of ours belongs to no network yet.
    let is_outside = matches!(zone, Zone::Native { .. }) && snapshot.is_own_address(dst);
    if is_outside { Some(NetworkId::default()) } else { NetworkId::new(network.vni.get()) }
}

/// Whether a packet may come from `zone`, which is for [`decide`] to say of most: for those of which it is not asked at once.
///
/// # Errors
/// Why the packet is to be dropped.
pub fn check_zone(snapshot: &Snapshot, zone: ZoneId, packet: &Facts) -> Result<(), Cause> {
    let (zone, network) = network_of(snapshot, zone).ok_or(Cause::UnknownPort)?;
    if packet.is_icmp_error() {
        source::check_error_source(snapshot, zone, network, packet)
    } else {
        check_source(snapshot, zone, network, packet)
    }
}

/// Whether an ICMP error that came from `zone`, as it came, may be about a connection: the packet that it quotes went where
/// it came from, and policies let the connection pass.
///
/// # Errors
/// Why the error is to be dropped.
pub fn admit_related(scene: Scene<'_>, zone: ZoneId, related: &Related, packet: &Facts) -> Result<(), Cause> {
    let tracker = scene.tracker.ok_or(Cause::Unsolicited)?;
    let (zone, network) = network_of(scene.snapshot, zone).ok_or(Cause::UnknownPort)?;
    // What left the cluster went by the routes of the network that it was in.
    let home = scene.snapshot.network(related.sent.network()).unwrap_or(network);
    source::check_quoted(scene.snapshot, zone, home, packet.src, related.quoted.dst())?;
    tracked::Stages { scene, tracker, zone, network, packet, watch: &mut () }.allows(related.connection)
}

/// Decides about an ICMP error, as it goes on, that was admitted to a connection of `home`.
#[must_use]
pub fn decide_related(snapshot: &Snapshot, zone: ZoneId, home: NetworkId, packet: &Facts) -> Verdict {
    let Some((from, network)) = network_of(snapshot, zone) else {
        return Verdict::Drop(Cause::UnknownPort.into());
    };
    if packet.hops <= 1 {
        return Verdict::Drop(Cause::TtlExpired.into());
    }
    let Some(target) = snapshot.network(home).unwrap_or(network).route(packet.dst) else {
        return Verdict::Drop(Cause::NoRoute.into());
    };
    let verdict = link(snapshot, target, packet, &mut ());
    seen_from(snapshot, from, verdict, |way| Way { lasts: false, ..way })
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
    watch.fact(|| facts::route(network, packet.dst));
    if loops(zone, target) {
        return Verdict::Drop(Cause::RouteLoop.into());
    }
    let verdict = link(snapshot, target, packet, watch);
    tell_tunnel(snapshot, network, target, watch);
    seen_from(snapshot, zone, verdict, |way| way)
}

/// Tells which tunnel a packet goes into, if it does.
fn tell_tunnel(snapshot: &Snapshot, network: &Network, target: &Target, watch: &mut impl Watch) {
    if let Target::Tunnel { peer, template: Some(_) } = target {
        watch.fact(|| facts::tunnel(snapshot, network, *peer));
    }
}

/// Whether a packet would go back to where it came from.
fn loops(zone: Zone, target: &Target) -> bool {
    match (zone, target) {
        (
            Zone::Tunnel { peer, .. },
            Target::Tunnel { peer: next, .. } | Target::Native { peer: Some(next), .. },
        ) => peer == *next,
        // The peer took an endpoint that is not here for one of ours.
        (Zone::Served { .. }, target) => !matches!(target, Target::Endpoint(_)),
        (Zone::Native { .. }, Target::Native { .. }) | (Zone::Host { .. }, Target::Host) => true,
        _ => false,
    }
}

/// Adds to a way what follows from where the packet came from, and what `complete` knows.
fn seen_from(
    snapshot: &Snapshot,
    zone: Zone,
    verdict: Verdict,
    complete: impl FnOnce(Way) -> Way,
) -> Verdict {
    let Verdict::Go(way) = verdict else { return verdict };
    let partial = match zone {
        Zone::Endpoint { endpoint, .. } => snapshot.endpoints[endpoint as usize].partial_checksums,
        Zone::Tunnel { .. } | Zone::Served { .. } | Zone::Native { .. } => snapshot.partial_underlay,
        Zone::Host { .. } => false,
    };
    let is_metered = is_metered(snapshot, zone, way.action.out());
    Verdict::Go(complete(Way { action: way.action.finishing_checksums(partial).metering(is_metered), ..way }))
}
