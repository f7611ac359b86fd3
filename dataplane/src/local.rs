//! The pipeline's slow side: deciding about first packets, and all that the dataplane says itself, which is ARP, neighbour
//! advertisements, echo replies, ICMP errors and fragments.

use std::net::IpAddr;

use penstock_io::{Frame, Ticks};
use penstock_wire::arp::Arp;
use penstock_wire::ndp::{self, Neighbour};
use penstock_wire::parse::{Fragment, Net, Parsed, parse};
use penstock_wire::reply::{self, Problem, Unreachable};
use penstock_wire::rewrite::rewrite;
use penstock_wire::{fragment, proto};

use crate::conntrack::fragments::{First, FragmentKey};
use crate::conntrack::{Seconds, related};
use crate::drop::{Cause, Reason};
use crate::flow::{Action, Coarse, DeviceId, Found, Key4, Key6, Tracked, ZoneId};
use crate::mailbox::Event;
use crate::pipeline::{L3, Leaving, Moment, Pipeline};
use crate::slowpath::{self, Answer, Facts, Scene, Verdict, Way};
use crate::tables::{Snapshot, Zone};
use crate::tow;
use crate::waiting::{Guest, Origin};

/// How a frame came in.
#[derive(Clone, Copy)]
struct Arrival {
    zone: ZoneId,
    device: DeviceId,
    /// When: earlier than now, if it has waited.
    since: Ticks,
}

impl Pipeline {
    /// A frame that no current flow covers.
    #[inline(never)]
    pub(crate) fn slow(&mut self, at: Moment<'_>, zone: ZoneId, device: DeviceId, frame: Frame) {
        self.look_into(at, Arrival { zone, device, since: at.now }, frame);
    }

    fn look_into(&mut self, at: Moment<'_>, from: Arrival, frame: Frame) {
        let zone = from.zone;
        let parsed = match parse(frame.bytes()) {
            Ok(parsed) => parsed,
            Err(rule) => return self.tally.drop(rule, frame, &mut self.pool),
        };
        if usize::from(parsed.l3) != L3 {
            return self.tally.drop(Cause::VlanNotExpected, frame, &mut self.pool);
        }
        if let Some(verdict) = question(at.snapshot, zone, frame.bytes(), &parsed) {
            return self.obey(at, from, verdict, &parsed, frame);
        }
        let Some(packet) = Facts::of(&parsed, frame.bytes()) else {
            return self.tally.drop(Cause::NotIp, frame, &mut self.pool);
        };
        if packet.is_icmp_error() && self.tracker.is_some() {
            return self.relate(at, from, &packet, &parsed, frame);
        }
        if let Some((action, leaving)) = self.known_by_now(at, zone, &parsed)
            && !action.is_tracked()
            && packet.hops > 1
            && tow::len_on_link(&frame, leaving.len) <= action.max_len()
        {
            // An earlier packet of this very burst made the flow known.
            if let Err(cause) = self.meter(at, zone, action, tow::weight(&frame, leaving.len)) {
                return self.tally.drop(cause, frame, &mut self.pool);
            }
            return self.carry_out(at.snapshot, action, leaving, frame);
        }
        if let Some((key, now)) = self.fragment_of(at, zone, &parsed, &packet, frame.bytes()) {
            return self.fragment(at, from, (key, now), &packet, &parsed, frame);
        }
        let verdict = self.decide(at, zone, &packet);
        self.obey(at, from, verdict, &parsed, frame);
    }

    fn decide(&self, at: Moment<'_>, zone: ZoneId, packet: &Facts) -> Verdict {
        let tracker = self.tracker.as_ref();
        let scene = Scene { snapshot: at.snapshot, tracker, now: at.now, ledger: Some(&self.ledger) };
        slowpath::decide(scene, zone, packet, &mut ())
    }

    /// A fragment of the packet `key`: the first one says what becomes of the later ones, which wait for it if they must.
    fn fragment(
        &mut self,
        at: Moment<'_>,
        from: Arrival,
        (key, now): (FragmentKey, Seconds),
        packet: &Facts,
        parsed: &Parsed,
        frame: Frame,
    ) {
        // Before anything is remembered of it or waits with it: nobody spoils the packets of others.
        if let Err(cause) = slowpath::check_zone(at.snapshot, from.zone, packet) {
            return self.tally.drop(cause, frame, &mut self.pool);
        }
        if packet.fragment == Fragment::Later {
            let packet = match self.fragments.find(&key, now) {
                Some(First { refused: Some(reason), .. }) => {
                    return self.tally.drop(reason, frame, &mut self.pool);
                }
                Some(First { sport, dport, .. }) => packet.following(sport, dport),
                None => return self.wait(at, from, Cause::FragmentAlone, Some(key), frame),
            };
            let verdict = self.decide(at, from.zone, &packet);
            return self.obey(at, from, verdict, parsed, frame);
        }
        let verdict = self.decide(at, from.zone, packet);
        let Tracked { connection, direction } = match &verdict {
            Verdict::Go(way) => way.tracked,
            _ => Tracked::NONE,
        };
        let refused = match verdict {
            Verdict::Drop(reason) | Verdict::Refuse(reason, _) => Some(reason),
            Verdict::Go(_) | Verdict::Answer(_) | Verdict::Wait(..) => None,
        };
        let is_decided = matches!(verdict, Verdict::Go(_)) || refused.is_some();
        self.obey(at, from, verdict, parsed, frame);
        if is_decided {
            let Facts { sport, dport, .. } = *packet;
            self.fragments.learn(key, First { sport, dport, connection, direction, refused }, now);
            while let Some(guest) = self.waiting.follower(&key) {
                self.readmit(at, guest);
            }
        }
    }

    /// What ties a fragment to the others of its packet, and the table's time; `None` for whole packets, and where nobody
    /// asks for ports.
    fn fragment_of(
        &self,
        at: Moment<'_>,
        zone: ZoneId,
        parsed: &Parsed,
        packet: &Facts,
        frame: &[u8],
    ) -> Option<(FragmentKey, Seconds)> {
        let tracker = self.tracker.as_ref().filter(|_| packet.fragment != Fragment::Whole)?;
        let network = slowpath::place_of(at.snapshot, zone, parsed)?;
        let id = fragment::identification(frame.get(L3..parsed.end.into())?)?;
        let key = FragmentKey { network, src: packet.src, dst: packet.dst, id, protocol: packet.proto };
        Some((key, tracker.seconds(at.now)))
    }

    /// Keeps a packet until something is known that it needs: a next hop, or the first fragment of the packet that it
    /// follows.
    fn wait(
        &mut self,
        at: Moment<'_>,
        from: Arrival,
        cause: Cause,
        follows: Option<FragmentKey>,
        frame: Frame,
    ) {
        let Arrival { zone, device, since } = from;
        let Some(origin) = Origin::of(at.snapshot, zone) else {
            return self.tally.drop(Cause::UnknownPort, frame, &mut self.pool);
        };
        if let Err(frame) = self.waiting.enter(Guest { frame, origin, device, cause, since, follows }) {
            self.tally.drop(Cause::WaitingRoomFull, frame, &mut self.pool);
        }
    }

    fn obey(&mut self, at: Moment<'_>, from: Arrival, verdict: Verdict, parsed: &Parsed, frame: Frame) {
        let zone = from.zone;
        match verdict {
            Verdict::Go(way) => self.go(at, zone, &way, parsed, frame),
            Verdict::Answer(answer) => self.answer(at, from, answer, parsed, frame),
            Verdict::Refuse(reason, problem) => self.refuse(at, zone, reason, problem, parsed, frame),
            Verdict::Wait(cause, wanted) => {
                if let Some((device, next_hop)) = wanted {
                    self.events.tell(Event::NeighbourWanted(device, next_hop));
                }
                self.wait(at, from, cause, None, frame);
            }
            Verdict::Drop(reason) => self.tally.drop(reason, frame, &mut self.pool),
        }
    }

    /// Lets a packet go its way, and remembers the way if it lasts.
    fn go(&mut self, at: Moment<'_>, zone: ZoneId, way: &Way, parsed: &Parsed, mut frame: Frame) {
        let mut leaving = if way.lasts { self.install(at, zone, parsed, way) } else { self.leaving(parsed) };
        leaving.len = tow::len_on_link(&frame, leaving.len);
        // Pieces of a packet that is sent on for a service would each have to say so.
        if leaving.len > way.action.max_len() && (way.asked.is_some() || !may_cut(parsed)) {
            // Its sender is told of the packet as it sent it.
            return self.too_long(at, zone, way.action, leaving, frame);
        }
        if let Err(cause) = self.meter(at, zone, way.action, tow::weight(&frame, leaving.len)) {
            return self.tally.drop(cause, frame, &mut self.pool);
        }
        if let Some(change) = &way.change {
            if way.action.finishes_checksums() {
                crate::offload::finish_checksum(frame.bytes_mut(), parsed);
            }
            if rewrite(frame.bytes_mut(), parsed, change).is_err() {
                return self.tally.drop(Cause::NotTranslatable, frame, &mut self.pool);
            }
        }
        if leaving.len > way.action.max_len() {
            self.too_long(at, zone, way.action, leaving, frame);
        } else if let Some(asked) = &way.asked {
            self.carry_out_served(at.snapshot, way.action, leaving, asked, frame);
        } else {
            self.carry_out(at.snapshot, way.action, leaving, frame);
        }
    }

    /// An ICMP error: it goes to whoever sent the packet that it quotes, as that one knew it.
    #[cold]
    fn relate(&mut self, at: Moment<'_>, from: Arrival, facts: &Facts, parsed: &Parsed, mut frame: Frame) {
        let zone = from.zone;
        let Some(tracker) = &self.tracker else { return self.consume(frame) };
        if let Err(cause) = slowpath::check_zone(at.snapshot, zone, facts) {
            return self.tally.drop(cause, frame, &mut self.pool);
        }
        let packet = L3..usize::from(parsed.end);
        let now = tracker.seconds(at.now);
        let network = slowpath::place_of(at.snapshot, zone, parsed);
        let related = network.and_then(|network| {
            related::relate(&tracker.table, network, &frame.bytes()[packet.clone()], now).ok()
        });
        let Some(related) = related else {
            return self.tally.drop(Cause::Unsolicited, frame, &mut self.pool);
        };
        let (tracker, ledger) = (Some(tracker), Some(&self.ledger));
        let scene = Scene { snapshot: at.snapshot, tracker, now: at.now, ledger };
        if let Err(cause) = slowpath::admit_related(scene, zone, &related, facts) {
            return self.tally.drop(cause, frame, &mut self.pool);
        }
        if !related.is_untouched() && related::translate(&related, &mut frame.bytes_mut()[packet]).is_err() {
            return self.tally.drop(Cause::NotTranslatable, frame, &mut self.pool);
        }
        let facts =
            parse(frame.bytes()).ok().and_then(|parsed| Some((Facts::of(&parsed, frame.bytes())?, parsed)));
        let Some((facts, parsed)) = facts else {
            return self.tally.drop(Cause::NotIp, frame, &mut self.pool);
        };
        match slowpath::decide_related(at.snapshot, zone, related.sent.network(), &facts) {
            // As it is now it would not be known again.
            Verdict::Wait(cause, wanted) => self.forgo(cause, wanted, frame),
            verdict => self.obey(at, from, verdict, &parsed, frame),
        }
    }

    /// The action of a flow that became known since the tags were compared.
    fn known_by_now(&mut self, at: Moment<'_>, zone: ZoneId, parsed: &Parsed) -> Option<(Action, Leaving)> {
        let (coarse, len) = (Coarse::of(at.now), parsed.end - parsed.l3);
        match parsed.net {
            Net::V4(flow) => {
                let key = Key4::new(zone, &flow);
                let Found::Current(index) = self.cache4.look_up(&key, at.epoch) else { return None };
                let entropy = (self.cache4.hash(&key) >> 32) as u32;
                let action = *self.cache4.count(index, len.into(), coarse);
                Some((action, Leaving { len, tos: flow.tos, is_ipv4: true, entropy }))
            }
            Net::V6(flow) => {
                let key = Key6::new(zone, &flow);
                let Found::Current(index) = self.cache6.look_up(&key, at.epoch) else { return None };
                let entropy = (self.cache6.hash(&key) >> 32) as u32;
                let action = *self.cache6.count(index, len.into(), coarse);
                Some((action, Leaving { len, tos: flow.tclass, is_ipv4: false, entropy }))
            }
            Net::Arp | Net::Other(_) => None,
        }
    }

    /// What a packet that is not remembered needs to leave.
    fn leaving(&self, parsed: &Parsed) -> Leaving {
        let len = parsed.end - parsed.l3;
        // The same packets of a flow take the same way through the underlay, whichever cache they are hashed for.
        match parsed.net {
            Net::V4(flow) => {
                let entropy = (self.cache4.hash(&Key4::new(ZoneId::default(), &flow)) >> 32) as u32;
                Leaving { len, tos: flow.tos, is_ipv4: true, entropy }
            }
            Net::V6(flow) => {
                let entropy = (self.cache6.hash(&Key6::new(ZoneId::default(), &flow)) >> 32) as u32;
                Leaving { len, tos: flow.tclass, is_ipv4: false, entropy }
            }
            Net::Arp | Net::Other(_) => Leaving { len, tos: 0, is_ipv4: true, entropy: 0 },
        }
    }

    /// Remembers a flow, and tells what its first packet needs to leave.
    fn install(&mut self, at: Moment<'_>, zone: ZoneId, parsed: &Parsed, way: &Way) -> Leaving {
        let (coarse, len) = (Coarse::of(at.now), parsed.end - parsed.l3);
        match parsed.net {
            Net::V4(flow) => {
                let key = Key4::new(zone, &flow);
                if let Ok(flow) = way.remembered4(&flow)
                    && let Some(index) = self.cache4.install(&key, flow, at.epoch, coarse)
                {
                    self.cache4.count(index, len.into(), coarse);
                }
                let entropy = (self.cache4.hash(&key) >> 32) as u32;
                Leaving { len, tos: flow.tos, is_ipv4: true, entropy }
            }
            Net::V6(flow) => {
                let key = Key6::new(zone, &flow);
                if let Ok(flow) = way.remembered6(&flow)
                    && let Some(index) = self.cache6.install(&key, flow, at.epoch, coarse)
                {
                    self.cache6.count(index, len.into(), coarse);
                }
                let entropy = (self.cache6.hash(&key) >> 32) as u32;
                Leaving { len, tos: flow.tclass, is_ipv4: false, entropy }
            }
            Net::Arp | Net::Other(_) => Leaving { len, tos: 0, is_ipv4: true, entropy: 0 },
        }
    }

    /// A packet that its way is too narrow for: cut it, or tell its sender.
    #[cold]
    pub(crate) fn too_long(
        &mut self,
        at: Moment<'_>,
        zone: ZoneId,
        action: Action,
        leaving: Leaving,
        frame: Frame,
    ) {
        let parsed = match parse(frame.bytes()) {
            Ok(parsed) => parsed,
            Err(rule) => return self.tally.drop(rule, frame, &mut self.pool),
        };
        if may_cut(&parsed) && !action.is_served() {
            if !frame.is_plain() {
                // Its fragments would be those of a stand-in.
                return self.tally.drop(Cause::TooBig, frame, &mut self.pool);
            }
            return self.cut(at, action, leaving, &parsed, frame);
        }
        let problem = Problem::TooBig { mtu: action.max_len() };
        self.refuse(at, zone, Cause::TooBig.into(), problem, &parsed, frame);
    }

    fn cut(&mut self, at: Moment<'_>, action: Action, leaving: Leaving, parsed: &Parsed, mut frame: Frame) {
        if action.finishes_checksums() {
            crate::offload::finish_checksum(frame.bytes_mut(), parsed);
        }
        let packet = L3..usize::from(parsed.end);
        let pieces = match fragment::pieces(&frame.bytes()[packet.clone()], action.max_len()) {
            Ok(pieces) => pieces,
            Err(_) => return self.tally.drop(Cause::TooBig, frame, &mut self.pool),
        };
        for piece in pieces {
            let Some(mut cut) = self.pool.alloc() else {
                self.not_made();
                continue;
            };
            let payload = &frame.bytes()[packet.clone()][piece.payload()];
            let parts = [&frame.bytes()[..L3], piece.header(), payload];
            self.tally.counts.made += 1;
            if cut.grow_tail(parts.iter().map(|part| part.len()).sum()).is_err() {
                self.tally.drop(Cause::TooBig, cut, &mut self.pool);
                continue;
            }
            let mut room = cut.bytes_mut();
            for part in parts {
                let (here, rest) = room.split_at_mut(part.len());
                here.copy_from_slice(part);
                room = rest;
            }
            let len = (cut.len() - L3) as u16;
            self.carry_out(at.snapshot, action, Leaving { len, ..leaving }, cut);
        }
        self.consume(frame);
    }

    /// Drops a packet and tells its sender why, unless the rules or the rate forbid it: for a port without a listener TCP has
    /// a word of its own, for everything else ICMP has one.
    #[cold]
    fn refuse(
        &mut self,
        at: Moment<'_>,
        zone: ZoneId,
        reason: Reason,
        problem: Problem,
        parsed: &Parsed,
        frame: Frame,
    ) {
        if !self.limiter.allow(at.now) {
            self.tally.counts.errors_withheld += 1;
        } else if problem == Problem::Unreachable(Unreachable::Port)
            && protocol_of(parsed) == Some(proto::TCP)
        {
            self.make(at, zone, None, |out| reply::reset(frame.bytes(), parsed, out));
        } else if let Some(from) = error_source(at.snapshot, zone, parsed) {
            self.make(at, zone, None, |out| reply::error(frame.bytes(), parsed, problem, from, out));
        }
        self.tally.drop(reason, frame, &mut self.pool);
    }

    fn answer(&mut self, at: Moment<'_>, from: Arrival, answer: Answer, parsed: &Parsed, frame: Frame) {
        let Arrival { zone, device, .. } = from;
        if matches!(answer, Answer::Echo) && tow::is_stand_in(&frame) {
            // The echo would be of its first chunk.
            return self.tally.drop(Cause::TooBig, frame, &mut self.pool);
        }
        let router = at.snapshot.router_mac;
        let on_link =
            matches!(at.snapshot.zones.get(zone.number()), Some(Zone::Endpoint { .. } | Zone::Host { .. }));
        let back = on_link.then_some(device);
        self.make(at, zone, back, |out| match answer {
            Answer::Arp => reply::arp(frame.bytes(), parsed, router, out),
            Answer::Neighbour => reply::advertisement(frame.bytes(), parsed, router, true, out),
            Answer::Echo => reply::echo(frame.bytes(), parsed, out),
        });
        self.consume(frame);
    }

    /// Makes a frame and sends it: straight back by `back`, or by the network's routes.
    fn make(
        &mut self,
        at: Moment<'_>,
        zone: ZoneId,
        back: Option<DeviceId>,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        let Some(mut made) = self.pool.alloc() else { return self.not_made() };
        let room = made.tailroom();
        let written = if made.grow_tail(room).is_ok() { write(made.bytes_mut()) } else { None };
        // No answer is due to a group, an error, or somebody without an address of his own.
        let Some(len) = written else { return self.pool.free(made) };
        made.truncate(len);
        self.tally.counts.made += 1;
        match back {
            Some(device) => self.outputs.send(device, made, &mut self.pool, &mut self.tally),
            None => self.send_own(at, zone, made),
        }
    }

    /// Counts a frame that would have been made, had there been a free chunk: made and dropped, so that the sum holds.
    pub(crate) fn not_made(&mut self) {
        self.tally.counts.made += 1;
        self.tally.count(Cause::NoChunk);
    }

    /// Sends a packet of our own by the routes of the zone's network.
    fn send_own(&mut self, at: Moment<'_>, zone: ZoneId, frame: Frame) {
        let network = at.snapshot.zones.get(zone.number()).map_or(u32::MAX, |zone| zone.network());
        let facts =
            parse(frame.bytes()).ok().and_then(|parsed| Some((Facts::of(&parsed, frame.bytes())?, parsed)));
        let Some((facts, parsed)) = facts else {
            return self.tally.drop(Cause::NotIp, frame, &mut self.pool);
        };
        let tos = match parsed.net {
            Net::V4(flow) => flow.tos,
            Net::V6(flow) => flow.tclass,
            Net::Arp | Net::Other(_) => 0,
        };
        let entropy = (self.cache4.hash(&Key4::default()) >> 32) as u32;
        let leaving = Leaving { len: facts.len, tos, is_ipv4: facts.dst.is_ipv4(), entropy };
        match slowpath::decide_own(at.snapshot, network, &facts) {
            Verdict::Go(way) if facts.len <= way.action.max_len() => {
                self.carry_out(at.snapshot, way.action, leaving, frame);
            }
            Verdict::Go(_) => self.tally.drop(Cause::TooBig, frame, &mut self.pool),
            Verdict::Drop(reason) | Verdict::Refuse(reason, _) => {
                self.tally.drop(reason, frame, &mut self.pool)
            }
            // Not worth keeping: whoever asked will ask again, and be answered then.
            Verdict::Wait(cause, wanted) => self.forgo(cause, wanted, frame),
            Verdict::Answer(_) => self.tally.drop(Cause::RouteLoop, frame, &mut self.pool),
        }
    }

    /// Drops a packet that waits for a next hop no longer than it takes to ask for it.
    fn forgo(&mut self, cause: Cause, wanted: Option<(DeviceId, IpAddr)>, frame: Frame) {
        if let Some((device, next_hop)) = wanted {
            self.events.tell(Event::NeighbourWanted(device, next_hop));
        }
        self.tally.drop(cause, frame, &mut self.pool);
    }

    /// New tables: those who wait for a next hop may be served now.
    pub(crate) fn call_waiting(&mut self, at: Moment<'_>) {
        self.waiting.call();
        while let Some(guest) = self.waiting.called() {
            self.readmit(at, guest);
        }
    }

    /// Looks again at a packet that has waited.
    fn readmit(&mut self, at: Moment<'_>, guest: Guest) {
        let Guest { frame, origin, device, since, .. } = guest;
        match origin.zone(at.snapshot, device) {
            Some(zone) => self.look_into(at, Arrival { zone, device, since }, frame),
            None => self.tally.drop(Cause::UnknownPort, frame, &mut self.pool),
        }
    }

    /// Looks at the next `budget` of this worker's connections, and forgets those whose time is over.
    pub(crate) fn forget_connections(&mut self, budget: u32, now: penstock_io::Ticks) {
        if let Some(tracker) = &self.tracker {
            tracker.table.sweep(tracker.worker, budget, tracker.seconds(now));
        }
    }

    /// Gives up on those who waited for too long.
    pub(crate) fn dismiss_waiting(&mut self, now: penstock_io::Ticks) {
        while let Some(guest) = self.waiting.give_up(now) {
            self.tally.drop(guest.cause, guest.frame, &mut self.pool);
        }
    }
}

/// Whether a packet may be cut into fragments on its way.
fn may_cut(parsed: &Parsed) -> bool {
    matches!(parsed.net, Net::V4(flow) if !flow.dont_fragment)
}

fn protocol_of(parsed: &Parsed) -> Option<u8> {
    match parsed.net {
        Net::V4(flow) => Some(flow.proto),
        Net::V6(flow) => Some(flow.proto),
        Net::Arp | Net::Other(_) => None,
    }
}

/// ARP and neighbour solicitations, which are about this link and no flow.
fn question(snapshot: &Snapshot, zone: ZoneId, frame: &[u8], parsed: &Parsed) -> Option<Verdict> {
    let network =
        snapshot.zones.get(zone.number()).and_then(|zone| snapshot.networks.get(zone.network() as usize))?;
    let payload = frame.get(parsed.l4.into()..parsed.end.into())?;
    match parsed.net {
        Net::Arp => Some(match Arp::new_checked(payload) {
            Ok(arp) => slowpath::decide_question(network, Answer::Arp, Some(IpAddr::V4(arp.target()))),
            Err(rule) => Verdict::Drop(rule.into()),
        }),
        Net::V6(flow) if flow.proto == proto::ICMPV6 && (flow.dport >> 8) as u8 == ndp::SOLICITATION => {
            Some(match Neighbour::new_checked(payload) {
                Ok(asked) => {
                    slowpath::decide_question(network, Answer::Neighbour, Some(IpAddr::V6(asked.target())))
                }
                Err(rule) => Verdict::Drop(rule.into()),
            })
        }
        _ => None,
    }
}

/// Who an ICMP error comes from: the node's address where the network has one, else the gateway.
fn error_source(snapshot: &Snapshot, zone: ZoneId, parsed: &Parsed) -> Option<IpAddr> {
    let is_ipv4 = matches!(parsed.net, Net::V4(_));
    let index = snapshot.zones.get(zone.number())?.network();
    let network = snapshot.networks.get(index as usize)?;
    let host = snapshot.host.iter().filter(|host| host.network == index).flat_map(|host| &host.addresses);
    host.chain(&network.gateways).find(|address| address.is_ipv4() == is_ipv4).copied()
}
