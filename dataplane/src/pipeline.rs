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

use std::sync::Arc;

use penstock_io::{BURST, Burst, Frame, FramePool, Ticks, TicksPerSecond};
use penstock_wire::parse::{Net, parse};
use penstock_wire::{MacAddr, ethernet, ipv4, ipv6};

use crate::capture::Captures;
use crate::drop::{Cause, Reason};
use crate::flow::{Action, Cache, Candidate, Coarse, DeviceId, Found, Key4, Key6, Seed, Verb, ZoneId};
use crate::limiter::Limiter;
use crate::mailbox::{Event, Events};
use crate::offload;
use crate::outputs::Outputs;
use crate::snapshot::Epoch;
use crate::tables::{Device, Snapshot};
use crate::tally::Tally;
use crate::unwrap::{Arrived, Unwrapper};
use crate::waiting::WaitingRoom;

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
#[derive(Clone, Copy)]
enum What {
    /// An IPv4 packet with a key.
    V4,
    /// An IPv6 packet with a key.
    V6,
    /// Something that no flow is made of: ARP, neighbour discovery, a packet out of hops.
    Slow,
    /// Not to be forwarded at all.
    Drop(Reason),
    /// A message for the dataplane itself, already understood.
    Consume,
}

/// A burst's working memory, stage by stage.
struct Lanes {
    what: [What; BURST],
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
            events,
            unwrapper: Unwrapper::default(),
            lanes: Box::new(Lanes {
                what: [What::Slow; BURST],
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
        self.classify(at, device, burst);
        self.match_tags(burst.len());
        self.act(at, device, burst);
    }

    /// First stage: where each frame came from, what it is, its key and hash; the bucket's tags are on their way.
    #[inline(always)]
    fn classify(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        let role = at.snapshot.devices.get(usize::from(device.0)).copied().unwrap_or_default();
        for (lane, frame) in burst.frames_mut().iter_mut().enumerate() {
            let what = match role {
                Device::Endpoint { zone, mac } => {
                    if stations_are(frame, at.snapshot.router_mac, mac) {
                        self.recognise(lane, zone, frame)
                    } else {
                        self.lanes.zone[lane] = zone;
                        stranger(frame, at.snapshot.router_mac, Some(mac))
                    }
                }
                Device::Host { zone } => {
                    self.lanes.zone[lane] = zone;
                    match stranger(frame, at.snapshot.router_mac, None) {
                        What::Slow => self.recognise(lane, zone, frame),
                        other => other,
                    }
                }
                Device::Uplink { mac, native, .. } => self.arrive(at, lane, mac, native, frame),
                Device::Unused => What::Drop(Cause::UnknownPort.into()),
            };
            self.lanes.what[lane] = what;
        }
    }

    /// A frame from an uplink: out of its tunnel, if it is in one.
    #[inline]
    fn arrive(
        &mut self,
        at: Moment<'_>,
        lane: usize,
        mac: MacAddr,
        native: Option<ZoneId>,
        frame: &mut Frame,
    ) -> What {
        match self.unwrapper.unwrap(at.snapshot, at.epoch, frame) {
            Ok(Arrived::Tunnel(zone)) if is_for_router(at.snapshot, frame) => {
                self.recognise(lane, zone, frame)
            }
            Ok(Arrived::Tunnel(_)) => What::Drop(Cause::WrongInnerMac.into()),
            Ok(Arrived::Bare) => match native {
                Some(zone) if frame.bytes().first_chunk() == Some(&mac.0) => {
                    self.recognise(lane, zone, frame)
                }
                _ => What::Drop(Cause::NotForUs.into()),
            },
            Ok(Arrived::PathMtu(peer, mtu)) => {
                self.events.tell(Event::PathMtu(peer, mtu));
                What::Consume
            }
            Err(reason) => What::Drop(reason),
        }
    }

    /// Parses a frame whose zone is known and makes its key.
    #[inline(always)]
    fn recognise(&mut self, lane: usize, zone: ZoneId, frame: &Frame) -> What {
        let lanes = &mut *self.lanes;
        lanes.zone[lane] = zone;
        let parsed = match parse(frame.bytes()) {
            Ok(parsed) => parsed,
            Err(rule) => return What::Drop(rule.into()),
        };
        if usize::from(parsed.l3) != L3 {
            return What::Drop(Cause::VlanNotExpected.into());
        }
        lanes.len[lane] = parsed.end - L3 as u16;
        match parsed.net {
            Net::V4(flow) => {
                let key = Key4::new(zone, &flow);
                let hash = self.cache4.hash(&key);
                self.cache4.touch(hash);
                (lanes.key4[lane], lanes.hash[lane], lanes.tos[lane]) = (key, hash, flow.tos);
                if flow.ttl > 1 { What::V4 } else { What::Slow }
            }
            Net::V6(flow) => {
                let key = Key6::new(zone, &flow);
                let hash = self.cache6.hash(&key);
                self.cache6.touch(hash);
                (lanes.key6[lane], lanes.hash[lane], lanes.tos[lane]) = (key, hash, flow.tclass);
                if flow.hop_limit > 1 { What::V6 } else { What::Slow }
            }
            Net::Arp => What::Slow,
            Net::Other(_) => What::Drop(Cause::NotIp.into()),
        }
    }

    /// Second stage: which slot may hold each flow; the slot is on its way.
    #[inline(always)]
    fn match_tags(&mut self, count: usize) {
        let lanes = &mut *self.lanes;
        for lane in 0..count.min(BURST) {
            lanes.candidate[lane] = match lanes.what[lane] {
                What::V4 => self.cache4.candidate(lanes.hash[lane]),
                What::V6 => self.cache6.candidate(lanes.hash[lane]),
                What::Slow | What::Drop(_) | What::Consume => continue,
            };
        }
    }

    /// Third stage: the known flows' actions, and the slow path for the rest, in the order of arrival.
    #[inline(always)]
    fn act(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        let coarse = Coarse::of(at.now);
        for lane in 0..BURST {
            let Some(frame) = burst.pop() else { break };
            let lanes = &*self.lanes;
            let (hash, len, tos) = (lanes.hash[lane], lanes.len[lane], lanes.tos[lane]);
            let (found, is_ipv4) = match lanes.what[lane] {
                What::V4 => {
                    (self.cache4.find(&lanes.key4[lane], hash, lanes.candidate[lane], at.epoch), true)
                }
                What::V6 => {
                    (self.cache6.find(&lanes.key6[lane], hash, lanes.candidate[lane], at.epoch), false)
                }
                What::Slow => {
                    self.tally.counts.slow_only += 1;
                    self.slow(at, self.lanes.zone[lane], device, frame);
                    continue;
                }
                What::Drop(reason) => {
                    self.tally.counts.slow_only += 1;
                    self.tally.drop(reason, frame, &mut self.pool);
                    continue;
                }
                What::Consume => {
                    self.tally.counts.slow_only += 1;
                    self.consume(frame);
                    continue;
                }
            };
            let index = match found {
                Found::Current(index) => {
                    self.tally.counts.hits += 1;
                    index
                }
                Found::Stale(_) => {
                    self.tally.counts.stale += 1;
                    self.slow(at, self.lanes.zone[lane], device, frame);
                    continue;
                }
                Found::Absent => {
                    self.tally.counts.misses += 1;
                    self.slow(at, self.lanes.zone[lane], device, frame);
                    continue;
                }
            };
            let action = if is_ipv4 {
                *self.cache4.count(index, len.into(), coarse)
            } else {
                *self.cache6.count(index, len.into(), coarse)
            };
            let leaving = Leaving { len, tos, is_ipv4, entropy: (hash >> 32) as u32 };
            if len > action.max_len() {
                self.too_long(at, self.lanes.zone[lane], action, leaving, frame);
            } else {
                self.carry_out(at.snapshot, action, leaving, frame);
            }
        }
    }

    /// Does with a packet what its flow's action says, and sends it.
    #[inline(always)]
    pub(crate) fn carry_out(
        &mut self,
        snapshot: &Snapshot,
        action: Action,
        leaving: Leaving,
        mut frame: Frame,
    ) {
        if action.finishes_checksums() {
            finish_checksum(&mut frame);
        }
        frame.truncate(L3 + usize::from(leaving.len));
        take_hop(&mut frame, leaving.is_ipv4);
        match action.verb() {
            Verb::Forward => {
                if let Some(stations) = frame.bytes_mut().first_chunk_mut() {
                    *stations = action.macs;
                }
            }
            Verb::Encapsulate => {
                let Some(template) = snapshot.templates.get(usize::from(action.template)) else {
                    return self.tally.drop(Cause::PeerUnresolved, frame, &mut self.pool);
                };
                let headers = template.header.len();
                if frame.grow_front(headers - L3).is_err() {
                    return self.tally.drop(Cause::NoHeadroom, frame, &mut self.pool);
                }
                let Some((head, packet)) = frame.bytes_mut().split_at_mut_checked(headers) else {
                    return self.tally.drop(Cause::NoHeadroom, frame, &mut self.pool);
                };
                let ethertype = if leaving.is_ipv4 { ethernet::IPV4 } else { ethernet::IPV6 };
                template.header.write(head, packet, leaving.len, leaving.tos, ethertype, leaving.entropy);
            }
        }
        self.outputs.send(action.out(), frame, &mut self.pool, &mut self.tally);
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

/// Whether a frame goes from one station to another, and no other two.
#[inline(always)]
fn stations_are(frame: &Frame, dst: MacAddr, src: MacAddr) -> bool {
    frame.bytes().first_chunk::<12>().is_some_and(|stations| stations[..6] == dst.0 && stations[6..] == src.0)
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
fn stranger(frame: &Frame, router: MacAddr, source: Option<MacAddr>) -> What {
    let Some(stations) = frame.bytes().first_chunk::<12>() else {
        return What::Drop(penstock_wire::Malformed::Truncated.into());
    };
    if source.is_some_and(|source| stations[6..] != source.0) {
        return What::Drop(Cause::WrongSourceMac.into());
    }
    let to_all = stations[0] & 1 == 1;
    if to_all || stations[..6] == router.0 { What::Slow } else { What::Drop(Cause::NotForUs.into()) }
}

#[cold]
fn finish_checksum(frame: &mut Frame) {
    if let Ok(parsed) = parse(frame.bytes()) {
        offload::finish_checksum(frame.bytes_mut(), &parsed);
    }
}

/// One hop less; the headers were all seen when the frame was parsed.
#[inline(always)]
fn take_hop(frame: &mut Frame, is_ipv4: bool) {
    let packet = &mut frame.bytes_mut()[L3..];
    if is_ipv4 {
        if let Some(header) = packet.first_chunk_mut::<{ ipv4::HEADER_LEN }>() {
            ipv4::decrement_ttl(header);
        }
    } else if let Some(header) = packet.first_chunk_mut::<{ ipv6::HEADER_LEN }>() {
        ipv6::decrement_hop_limit(header);
    }
}
