//! The stages that a burst passes, in order.
//!
//! ```text
//!  burst -> classify: zone, parse, hash, prefetch tags -> match tags, prefetch slots -> compare, act -> outputs
//!                                                                                          | miss
//!                                                                                          v
//!                                                                              slowpath -> install, act
//! ```
//!
//! Each stage runs over the whole burst, so that its memory accesses overlap; the last one takes frames in the order in
//! which they came, known or not, so that no packet overtakes another of its flow.

use std::iter::Enumerate;
use std::sync::Arc;

use penstock_io::burst::Drain;
use penstock_io::{BURST, Burst, Frame, FramePool, Ticks, TicksPerSecond};
use penstock_wire::parse::{Net, Parsed, V4Flow, V6Flow, parse, parse_any, plain};
use penstock_wire::{MacAddr, ethernet, ipv4, ipv6};

use crate::capture::Captures;
use crate::conntrack::HashSeed;
use crate::conntrack::fragments::FragmentTable;
use crate::drop::{Cause, Reason};
use crate::flow::{Action, Cache, Candidate, Coarse, DeviceId, Found, Key4, Key6, Seed, Verb, ZoneId};
use crate::ledger::Ledger;
use crate::limiter::Limiter;
use crate::mailbox::{Event, Events};
use crate::offload;
use crate::outputs::Outputs;
use crate::snapshot::Epoch;
use crate::stateful;
use crate::tables::{Device, Snapshot};
use crate::tally::Tally;
use crate::tracker::Tracker;
use crate::unwrap::{Arrived, Unwrapper};
use crate::waiting::WaitingRoom;

/// Fragmented packets whose first fragment is remembered at a time.
const FRAGMENTED_PACKETS: usize = 4096;

/// Offset of the IP header in every frame that the pipeline forwards: tags and tunnels are off by then.
pub(crate) const L3: usize = ethernet::HEADER_LEN;

/// The tables and the time of a turn.
#[derive(Clone, Copy)]
pub(crate) struct Moment<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) epoch: Epoch,
    pub(crate) now: Ticks,
}

/// What classification made of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// An IPv4 packet with a key.
    V4,
    /// An IPv6 packet with a key.
    V6,
    /// Something that no flow is made of: ARP, neighbour discovery, a packet out of hops.
    Slow,
    /// Not to be forwarded at all; its lane has the reason.
    Drop,
    /// A message for the dataplane itself, already understood.
    Consume,
}

/// A burst's working memory, stage by stage.
struct Lanes {
    what: [What; BURST],
    reason: [Reason; BURST],
    zone: [ZoneId; BURST],
    key4: [Key4; BURST],
    key6: [Key6; BURST],
    hash: [u64; BURST],
    candidate: [Candidate; BURST],
    /// Bytes of the IP packet.
    len: [u16; BURST],
    tos: [u8; BURST],
}

/// What a packet on its way out needs besides its action.
#[derive(Clone, Copy)]
pub(crate) struct Leaving {
    /// Bytes of the IP packet.
    pub(crate) len: u16,
    /// Type of service or traffic class.
    pub(crate) tos: u8,
    pub(crate) is_ipv4: bool,
    /// A hash of the flow.
    pub(crate) entropy: u32,
}

/// Everything that a worker needs between receiving and sending.
pub(crate) struct Pipeline {
    pub(crate) pool: FramePool,
    pub(crate) cache4: Cache<Key4>,
    pub(crate) cache6: Cache<Key6>,
    pub(crate) outputs: Outputs,
    pub(crate) tally: Tally,
    pub(crate) captures: Captures,
    pub(crate) waiting: WaitingRoom,
    pub(crate) limiter: Limiter,
    pub(crate) events: Arc<Events>,
    /// The connections; `None` where none are kept.
    pub(crate) tracker: Option<Tracker>,
    /// What it writes down while it decides.
    pub(crate) ledger: Ledger,
    /// What first fragments said, for the later ones.
    pub(crate) fragments: FragmentTable,
    unwrapper: Unwrapper,
    lanes: Box<Lanes>,
}

impl Pipeline {
    pub(crate) fn new(
        worker: u16,
        pool: FramePool,
        flows: (usize, usize),
        rate: TicksPerSecond,
        events: Arc<Events>,
        tracker: Option<Tracker>,
    ) -> std::io::Result<Pipeline> {
        Ok(Pipeline {
            pool,
            cache4: Cache::with_capacity(flows.0, Seed::random())?,
            cache6: Cache::with_capacity(flows.1, Seed::random())?,
            outputs: Outputs::default(),
            tally: Tally::default(),
            captures: Captures::new(worker),
            waiting: WaitingRoom::new(rate),
            limiter: Limiter::new(rate, 1000, 50),
            tracker,
            ledger: Ledger::new(worker, events.journal(), rate),
            events,
            fragments: FragmentTable::with_capacity(
                FRAGMENTED_PACKETS,
                HashSeed::new(Seed::random().words()),
            ),
            unwrapper: Unwrapper::default(),
            lanes: Box::new(Lanes {
                what: [What::Slow; BURST],
                reason: [Reason::Refused(Cause::UnknownPort); BURST],
                zone: [ZoneId::default(); BURST],
                key4: [Key4::default(); BURST],
                key6: [Key6::default(); BURST],
                hash: [0; BURST],
                candidate: [Candidate::default(); BURST],
                len: [0; BURST],
                tos: [0; BURST],
            }),
        })
    }

    /// Takes a burst that came from `device` through every stage.
    pub(crate) fn process(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        if self.captures.any() {
            self.captures.look(device, false, burst.frames(), &mut self.pool, at.now);
        }
        self.classify(at, device, burst.frames_mut());
        match_tags(&mut self.lanes, &self.cache4, &self.cache6, burst.len());
        self.act(at, device, burst);
    }

    /// First stage: where each frame came from, what it is, its key and hash; the bucket's tags are on their way.
    fn classify(&mut self, at: Moment<'_>, device: DeviceId, frames: &mut [Frame]) {
        let role = at.snapshot.devices.get(usize::from(device.0)).copied().unwrap_or_default();
        match role {
            Device::Endpoint { zone, mac } => {
                let stations = Stations { router: at.snapshot.router_mac, endpoint: mac };
                from_endpoint(&mut self.lanes, &self.cache4, &self.cache6, zone, stations, frames);
            }
            Device::Host { zone } => {
                for (lane, frame) in frames.iter().enumerate().take(BURST) {
                    self.lanes.zone[lane] = zone;
                    self.lanes.what[lane] =
                        match stranger(&mut self.lanes, lane, frame, at.snapshot.router_mac, None) {
                            What::Slow => {
                                recognise(&mut self.lanes, &self.cache4, &self.cache6, lane, zone, frame)
                            }
                            other => other,
                        }
                }
            }
            Device::Uplink { mac, native, .. } => self.arrivals(at, mac, native, frames),
            Device::Unused => {
                self.lanes.what.fill(What::Drop);
                self.lanes.reason.fill(Cause::UnknownPort.into());
            }
        }
    }

    /// First stage, for frames from an uplink.
    #[inline(never)]
    fn arrivals(&mut self, at: Moment<'_>, mac: MacAddr, native: Option<ZoneId>, frames: &mut [Frame]) {
        for (lane, frame) in frames.iter_mut().enumerate().take(BURST) {
            self.lanes.what[lane] = self.arrive(at, lane, mac, native, frame);
        }
    }

    /// A frame from an uplink: out of its tunnel, if it is in one.
    #[inline(always)]
    fn arrive(
        &mut self,
        at: Moment<'_>,
        lane: usize,
        mac: MacAddr,
        native: Option<ZoneId>,
        frame: &mut Frame,
    ) -> What {
        let zone = match self.unwrapper.unwrap(at.snapshot, at.epoch, frame) {
            Ok(Arrived::Tunnel(zone)) if is_for_router(at.snapshot, frame) => zone,
            Ok(Arrived::Served(zone, served_as)) if is_for_router(at.snapshot, frame) => {
                match self.admit(at, zone, &served_as, frame) {
                    Ok(()) => zone,
                    Err(reason) => return self.lanes.refuse(lane, reason),
                }
            }
            Ok(Arrived::Tunnel(_) | Arrived::Served(..)) => {
                return self.lanes.refuse(lane, Cause::WrongInnerMac);
            }
            Ok(Arrived::Bare) => match native {
                Some(zone) if frame.bytes().first_chunk() == Some(&mac.0) => zone,
                _ => return self.lanes.refuse(lane, Cause::NotForUs),
            },
            Ok(Arrived::PathMtu(peer, mtu)) => {
                self.events.tell(Event::PathMtu(peer, mtu));
                return What::Consume;
            }
            Err(reason) => return self.lanes.refuse(lane, reason),
        };
        recognise(&mut self.lanes, &self.cache4, &self.cache6, lane, zone, frame)
    }

    /// Third stage: the known flows' actions, and the slow path for the rest, in the order of arrival.
    fn act(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        let mut frames = burst.drain().enumerate();
        loop {
            let (hits, stop) = run_hits(&self.lanes, &mut self.cache4, &mut self.outputs, at, &mut frames);
            self.tally.counts.hits += hits;
            match stop {
                Some(Stop::Apart(lane, frame)) => self.act_apart(at, device, lane, frame),
                Some(Stop::Drop(cause, frame)) => self.tally.drop(cause, frame, &mut self.pool),
                None => break,
            }
        }
    }

    /// What the packet in a lane needs to leave.
    #[inline(always)]
    pub(crate) fn leaving_of(&self, lane: usize) -> Leaving {
        let lanes = &*self.lanes;
        Leaving {
            len: lanes.len[lane],
            tos: lanes.tos[lane],
            is_ipv4: lanes.what[lane] == What::V4,
            entropy: (lanes.hash[lane] >> 32) as u32,
        }
    }

    /// Where the packet in a lane came from.
    #[inline(always)]
    pub(crate) fn zone_of(&self, lane: usize) -> ZoneId {
        self.lanes.zone[lane]
    }

    /// The key of the IPv4 packet in a lane.
    #[inline(always)]
    pub(crate) fn key4_of(&self, lane: usize) -> &Key4 {
        &self.lanes.key4[lane]
    }

    /// The key of the IPv6 packet in a lane.
    #[inline(always)]
    pub(crate) fn key6_of(&self, lane: usize) -> &Key6 {
        &self.lanes.key6[lane]
    }

    /// Sends a packet of a known flow on its way, which was counted.
    fn dispatch(&mut self, at: Moment<'_>, lane: usize, action: Action, frame: Frame) {
        let leaving = self.leaving_of(lane);
        if leaving.len > action.max_len() {
            self.too_long(at, self.lanes.zone[lane], action, leaving, frame);
        } else {
            self.carry_out(at.snapshot, action, leaving, frame);
        }
    }

    /// A frame that is no plain hit: of a flow that is not known, was decided under older tables or has spilled from its
    /// bucket, or of no flow at all.
    #[inline(never)]
    fn act_apart(&mut self, at: Moment<'_>, device: DeviceId, lane: usize, frame: Frame) {
        let (lanes, coarse) = (&*self.lanes, Coarse::of(at.now));
        let (hash, candidate, len) = (lanes.hash[lane], lanes.candidate[lane], lanes.len[lane].into());
        let found = match lanes.what[lane] {
            What::V4 => self.cache4.find(&lanes.key4[lane], hash, candidate, at.epoch),
            What::V6 => self.cache6.find(&lanes.key6[lane], hash, candidate, at.epoch),
            What::Slow | What::Drop | What::Consume => return self.act_unkeyed(at, device, lane, frame),
        };
        match found {
            Found::Current(index) => {
                let is_ipv4 = lanes.what[lane] == What::V4;
                let action = if is_ipv4 { self.cache4.action(index) } else { self.cache6.action(index) };
                if !action.is_plain() {
                    return self.act_tracked(at, device, lane, index, frame);
                }
                self.tally.counts.hits += 1;
                let action = if lanes.what[lane] == What::V4 {
                    *self.cache4.count(index, len, coarse)
                } else {
                    *self.cache6.count(index, len, coarse)
                };
                return self.dispatch(at, lane, action, frame);
            }
            Found::Stale(_) => self.tally.counts.stale += 1,
            Found::Absent => self.tally.counts.misses += 1,
        }
        self.slow(at, self.lanes.zone[lane], device, frame);
    }

    /// A frame that no flow is looked up for.
    fn act_unkeyed(&mut self, at: Moment<'_>, device: DeviceId, lane: usize, frame: Frame) {
        self.tally.counts.slow_only += 1;
        match self.lanes.what[lane] {
            What::Drop => self.tally.drop(self.lanes.reason[lane], frame, &mut self.pool),
            What::Consume => self.consume(frame),
            What::V4 | What::V6 | What::Slow => self.slow(at, self.lanes.zone[lane], device, frame),
        }
    }

    /// Does with a packet what its flow's action says, and sends it.
    pub(crate) fn carry_out(
        &mut self,
        snapshot: &Snapshot,
        action: Action,
        leaving: Leaving,
        mut frame: Frame,
    ) {
        match rewrite(snapshot, &action, leaving, &mut frame) {
            Ok(()) => self.outputs.send(action.out(), frame, &mut self.pool, &mut self.tally),
            Err(cause) => self.tally.drop(cause, frame, &mut self.pool),
        }
    }

    /// Hands over what is to leave.
    #[inline]
    pub(crate) fn flush(&mut self, slots: &mut crate::worker::Slots, now: Ticks) {
        self.outputs.flush(slots, &mut self.pool, &mut self.tally, &mut self.captures, now);
    }

    /// Takes back a frame that was for the dataplane itself.
    pub(crate) fn consume(&mut self, frame: Frame) {
        self.tally.counts.consumed += 1;
        self.pool.free(frame);
    }
}

/// The two stations that speak on an endpoint's link.
#[derive(Clone, Copy)]
struct Stations {
    router: MacAddr,
    endpoint: MacAddr,
}

/// First stage, for frames from an endpoint.
///
/// A function of its own, called once a burst: as parameters the lanes and the caches are known not to overlap, so what
/// does not change stays in registers.
#[inline(never)]
fn from_endpoint(
    lanes: &mut Lanes,
    cache4: &Cache<Key4>,
    cache6: &Cache<Key6>,
    zone: ZoneId,
    stations: Stations,
    frames: &[Frame],
) {
    let mut usual = [0; 12];
    usual[..6].copy_from_slice(&stations.router.0);
    usual[6..].copy_from_slice(&stations.endpoint.0);
    for (lane, frame) in frames.iter().enumerate().take(BURST) {
        lanes.what[lane] = if frame.bytes().first_chunk() == Some(&usual) {
            recognise(lanes, cache4, cache6, lane, zone, frame)
        } else {
            lanes.zone[lane] = zone;
            stranger(lanes, lane, frame, stations.router, Some(stations.endpoint))
        };
    }
}

/// Parses a frame whose zone is known and makes its key.
#[inline(always)]
fn recognise(
    lanes: &mut Lanes,
    cache4: &Cache<Key4>,
    cache6: &Cache<Key6>,
    lane: usize,
    zone: ZoneId,
    frame: &Frame,
) -> What {
    match plain(frame.bytes()) {
        Some(Parsed { end, net: Net::V4(flow), .. }) => lanes.expect_v4(cache4, lane, zone, end, &flow),
        _ => recognise_any(lanes, cache4, cache6, lane, zone, frame),
    }
}

/// The same, for all but the common kind of frame.
#[inline(never)]
fn recognise_any(
    lanes: &mut Lanes,
    cache4: &Cache<Key4>,
    cache6: &Cache<Key6>,
    lane: usize,
    zone: ZoneId,
    frame: &Frame,
) -> What {
    lanes.zone[lane] = zone;
    let parsed = match parse_any(frame.bytes()) {
        Ok(parsed) => parsed,
        Err(rule) => return lanes.refuse(lane, rule),
    };
    if usize::from(parsed.l3) != L3 {
        return lanes.refuse(lane, Cause::VlanNotExpected);
    }
    match parsed.net {
        Net::V4(flow) => lanes.expect_v4(cache4, lane, zone, parsed.end, &flow),
        Net::V6(flow) => lanes.expect_v6(cache6, lane, zone, parsed.end, &flow),
        Net::Arp => What::Slow,
        Net::Other(_) => lanes.refuse(lane, Cause::NotIp),
    }
}

impl Lanes {
    /// Notes why a frame is to be dropped.
    #[inline]
    fn refuse(&mut self, lane: usize, reason: impl Into<Reason>) -> What {
        self.reason[lane] = reason.into();
        What::Drop
    }

    /// Notes an IPv4 packet that ends at `end` in its frame.
    #[inline(always)]
    fn expect_v4(&mut self, cache: &Cache<Key4>, lane: usize, zone: ZoneId, end: u16, flow: &V4Flow) -> What {
        let key = Key4::new(zone, flow);
        let hash = cache.hash(&key);
        cache.touch(hash);
        (self.zone[lane], self.key4[lane], self.hash[lane]) = (zone, key, hash);
        (self.len[lane], self.tos[lane]) = (end - L3 as u16, flow.tos);
        if flow.ttl > 1 { What::V4 } else { What::Slow }
    }

    /// Notes an IPv6 packet that ends at `end` in its frame.
    #[inline(always)]
    fn expect_v6(&mut self, cache: &Cache<Key6>, lane: usize, zone: ZoneId, end: u16, flow: &V6Flow) -> What {
        let key = Key6::new(zone, flow);
        let hash = cache.hash(&key);
        cache.touch(hash);
        (self.zone[lane], self.key6[lane], self.hash[lane]) = (zone, key, hash);
        (self.len[lane], self.tos[lane]) = (end - L3 as u16, flow.tclass);
        if flow.hop_limit > 1 { What::V6 } else { What::Slow }
    }
}

/// Second stage: which slot may hold each flow; the slot is on its way.
#[inline(never)]
fn match_tags(lanes: &mut Lanes, cache4: &Cache<Key4>, cache6: &Cache<Key6>, count: usize) {
    for lane in 0..count.min(BURST) {
        lanes.candidate[lane] = match lanes.what[lane] {
            What::V4 => cache4.candidate(lanes.hash[lane]),
            What::V6 => cache6.candidate(lanes.hash[lane]),
            What::Slow | What::Drop | What::Consume => continue,
        };
    }
}

/// Whether an inner frame is for this node's router, by the address that it has or by one that peers derive.
#[inline]
fn is_for_router(snapshot: &Snapshot, frame: &Frame) -> bool {
    let Some(&station) = frame.bytes().first_chunk::<6>() else { return false };
    let derived =
        || snapshot.underlay_addresses.iter().any(|&address| MacAddr::from_underlay(address).0 == station);
    station == snapshot.router_mac.0 || derived()
}

/// A frame that is not simply from the pod to its gateway: a question to all, or one that has no business here.
#[cold]
fn stranger(lanes: &mut Lanes, lane: usize, frame: &Frame, router: MacAddr, source: Option<MacAddr>) -> What {
    let Some(stations) = frame.bytes().first_chunk::<12>() else {
        return lanes.refuse(lane, penstock_wire::Malformed::Truncated);
    };
    if source.is_some_and(|source| stations[6..] != source.0) {
        return lanes.refuse(lane, Cause::WrongSourceMac);
    }
    let to_all = stations[0] & 1 == 1;
    if to_all || stations[..6] == router.0 { What::Slow } else { lanes.refuse(lane, Cause::NotForUs) }
}

/// Why the run of hits stopped.
enum Stop {
    /// The frame of this lane wants another look.
    Apart(usize, Frame),
    /// A frame cannot leave.
    Drop(Cause, Frame),
}

/// Third stage, for what most packets are: IPv4, of a known flow, no longer than its way carries, of no interest to its
/// connection. Ends with the frames, or at the first that is anything else. Gives the number of hits as well.
///
/// A function of its own, without `Pipeline`, so that nothing of it need be spilled for the sake of the rare rest.
#[inline(never)]
fn run_hits(
    lanes: &Lanes,
    cache: &mut Cache<Key4>,
    outputs: &mut Outputs,
    at: Moment<'_>,
    frames: &mut Enumerate<Drain<'_>>,
) -> (u64, Option<Stop>) {
    let (epoch, coarse, mut hits) = (at.epoch, Coarse::of(at.now), 0);
    for (lane, mut frame) in frames {
        let len = lanes.len[lane];
        if lanes.what[lane] != What::V4 {
            return (hits, Some(Stop::Apart(lane, frame)));
        }
        let Some(mut hit) = cache.hit(&lanes.key4[lane], lanes.candidate[lane], epoch) else {
            return (hits, Some(Stop::Apart(lane, frame)));
        };
        if len > hit.action().max_len()
            || !hit.action().is_plain() && !stateful::passes(&hit, &lanes.key4[lane], frame.bytes(), coarse)
        {
            return (hits, Some(Stop::Apart(lane, frame)));
        }
        hit.count(len.into(), coarse);
        hits += 1;
        if hit.action().rewrites()
            && let Err(cause) = stateful::translate(hit.action(), hit.rewrite(), len, &mut frame)
        {
            return (hits, Some(Stop::Drop(cause, frame)));
        }
        let entropy = (lanes.hash[lane] >> 32) as u32;
        let leaving = Leaving { len, tos: lanes.tos[lane], is_ipv4: true, entropy };
        if let Err(cause) = rewrite(at.snapshot, hit.action(), leaving, &mut frame) {
            return (hits, Some(Stop::Drop(cause, frame)));
        }
        if let Err((cause, frame)) = outputs.queue(hit.action().out(), frame) {
            return (hits, Some(Stop::Drop(cause, frame)));
        }
    }
    (hits, None)
}

/// Makes a packet what it is to be on its next link.
#[inline(always)]
pub(crate) fn rewrite(
    snapshot: &Snapshot,
    action: &Action,
    leaving: Leaving,
    frame: &mut Frame,
) -> Result<(), Cause> {
    if action.finishes_checksums() {
        finish_checksum(frame.bytes_mut());
    }
    frame.truncate(L3 + usize::from(leaving.len));
    take_hop(frame, leaving.is_ipv4);
    match action.verb() {
        Verb::Forward => {
            if let Some(stations) = frame.bytes_mut().first_chunk_mut() {
                *stations = action.macs;
            }
        }
        Verb::Encapsulate => {
            let template = snapshot.templates.get(usize::from(action.template));
            let header = &template.ok_or(Cause::PeerUnresolved)?.header;
            frame.grow_front(header.len() - L3).map_err(|_| Cause::NoHeadroom)?;
            let split = frame.bytes_mut().split_at_mut_checked(header.len());
            let (head, packet) = split.ok_or(Cause::NoHeadroom)?;
            let ethertype = if leaving.is_ipv4 { ethernet::IPV4 } else { ethernet::IPV6 };
            header.write(head, packet, leaving.len, leaving.tos, ethertype, leaving.entropy);
        }
    }
    Ok(())
}

#[cold]
pub(crate) fn finish_checksum(frame: &mut [u8]) {
    if let Ok(parsed) = parse(frame) {
        offload::finish_checksum(frame, &parsed);
    }
}

/// One hop less; the headers were all seen when the frame was parsed.
#[inline(always)]
fn take_hop(frame: &mut Frame, is_ipv4: bool) {
    let bytes = frame.bytes_mut();
    if is_ipv4 {
        if let Some(head) = bytes.first_chunk_mut::<{ L3 + ipv4::HEADER_LEN }>()
            && let Some(header) = head.last_chunk_mut()
        {
            ipv4::decrement_ttl(header);
        }
    } else if let Some(head) = bytes.first_chunk_mut::<{ L3 + ipv6::HEADER_LEN }>()
        && let Some(header) = head.last_chunk_mut()
    {
        ipv6::decrement_hop_limit(header);
    }
}
