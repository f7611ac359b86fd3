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
use penstock_wire::{MacAddr, ethernet};

use crate::capture::Captures;
use crate::conntrack::HashSeed;
use crate::conntrack::fragments::FragmentTable;
use crate::drop::Cause;
use crate::flow::{Action, Cache, Coarse, DeviceId, Found, Key4, Key6, Seed, ZoneId};
use crate::hits::{self, Stop};
use crate::ledger::Ledger;
use crate::limiter::Limiter;
use crate::mailbox::{Event, Events};
use crate::outputs::Outputs;
use crate::recognise::{Lane, Lanes, Stations, What, from_endpoint, is_for_router, recognise, stranger};
use crate::snapshot::Epoch;
use crate::tables::{Device, Snapshot};
use crate::tally::Tally;
use crate::tow;
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
            lanes: Box::default(),
        })
    }

    /// Takes a burst that came from `device` through every stage.
    pub(crate) fn process(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        if self.captures.any() {
            self.captures.look(device, false, burst.frames(), &mut self.pool, at.now);
        }
        if burst.frames().iter().all(Frame::is_plain) {
            self.process_plain(at, device, burst);
        } else {
            self.process_mixed(at, device, burst);
        }
    }

    /// The stages, for frames that are each a packet in a chunk.
    #[inline(always)]
    pub(crate) fn process_plain(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        self.lanes.any_v6 = false;
        self.classify(at, device, burst.frames_mut());
        match_tags(&mut self.lanes, &self.cache4, &self.cache6, burst.len());
        self.act(at, device, burst);
    }

    /// The stages for a frame that stands for more than it says.
    pub(crate) fn process_one(&mut self, at: Moment<'_>, device: DeviceId, mut frame: Frame) {
        self.lanes.any_v6 = false;
        self.classify(at, device, std::slice::from_mut(&mut frame));
        match_tags(&mut self.lanes, &self.cache4, &self.cache6, 1);
        self.lanes.each[0].len = tow::len_on_link(&frame, self.lanes.each[0].len);
        self.act_apart(at, device, 0, frame);
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
                for (lane, frame) in frames.iter_mut().enumerate().take(BURST) {
                    self.lanes.each[lane].zone = zone;
                    self.lanes.each[lane].what =
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
                self.lanes.each.iter_mut().for_each(|lane| lane.what = What::Drop);
                self.lanes.reason.fill(Cause::UnknownPort.into());
            }
        }
    }

    /// First stage, for frames from an uplink.
    #[inline(never)]
    fn arrivals(&mut self, at: Moment<'_>, mac: MacAddr, native: Option<ZoneId>, frames: &mut [Frame]) {
        for (lane, frame) in frames.iter_mut().enumerate().take(BURST) {
            self.lanes.each[lane].what = self.arrive(at, lane, mac, native, frame);
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
        let (zone, is_inner) = match self.unwrapper.unwrap(at.snapshot, at.epoch, frame) {
            Ok(Arrived::Tunnel(zone)) if is_for_router(at.snapshot, frame) => (zone, true),
            Ok(Arrived::Served(zone, served_as)) if is_for_router(at.snapshot, frame) => {
                match self.admit(at, zone, &served_as, frame) {
                    Ok(()) => (zone, true),
                    Err(reason) => return self.lanes.refuse(lane, reason),
                }
            }
            Ok(Arrived::Tunnel(_) | Arrived::Served(..)) => {
                return self.lanes.refuse(lane, Cause::WrongInnerMac);
            }
            Ok(Arrived::Bare) => match native {
                Some(zone) if frame.bytes().first_chunk() == Some(&mac.0) => (zone, false),
                _ => return self.lanes.refuse(lane, Cause::NotForUs),
            },
            Ok(Arrived::PathMtu(peer, mtu)) => {
                self.events.tell(Event::PathMtu(peer, mtu));
                return What::Consume;
            }
            Err(reason) => return self.lanes.refuse(lane, reason),
        };
        if is_inner
            && !frame.is_plain()
            && let Err(rule) = tow::couple_anew(frame, &mut self.pool)
        {
            return self.lanes.refuse(lane, rule);
        }
        recognise(&mut self.lanes, &self.cache4, &self.cache6, lane, zone, frame)
    }

    /// Third stage: the known flows' actions, and the slow path for the rest, in the order of arrival.
    fn act(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        let mut lane = 0;
        while !burst.is_empty() {
            let lanes = &mut self.lanes.each[lane..][..burst.len()];
            let (hits, stop) = hits::run(lanes, &mut self.cache4, at, burst.frames_mut());
            let lanes = &self.lanes.each[lane..][..hits];
            self.outputs.send_run(lanes.iter().map(|lane| lane.exit), burst, &mut self.pool, &mut self.tally);
            self.tally.counts.hits += hits as u64;
            lane += hits;
            if let Some(stop) = stop
                && let Some(frame) = burst.pop()
            {
                match stop {
                    Stop::Apart => self.act_apart(at, device, lane, frame),
                    Stop::Drop(cause) => {
                        self.tally.counts.hits += 1;
                        self.tally.drop(cause, frame, &mut self.pool);
                    }
                }
                lane += 1;
            }
        }
    }

    /// What the packet in a lane needs to leave.
    #[inline(always)]
    pub(crate) fn leaving_of(&self, lane: usize) -> Leaving {
        self.lanes.each[lane].leaving()
    }

    /// Where the packet in a lane came from.
    #[inline(always)]
    pub(crate) fn zone_of(&self, lane: usize) -> ZoneId {
        self.lanes.each[lane].zone
    }

    /// The key of the IPv4 packet in a lane.
    #[inline(always)]
    pub(crate) fn key4_of(&self, lane: usize) -> &Key4 {
        &self.lanes.each[lane].key4
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
            self.too_long(at, self.lanes.each[lane].zone, action, leaving, frame);
        } else {
            self.carry_out(at.snapshot, action, leaving, frame);
        }
    }

    /// A frame that is no plain hit: of a flow that is not known, was decided under older tables or has spilled from its
    /// bucket, or of no flow at all.
    #[inline(never)]
    fn act_apart(&mut self, at: Moment<'_>, device: DeviceId, lane: usize, frame: Frame) {
        let Lane { key4, hash, candidate, zone, len, what, .. } = self.lanes.each[lane];
        let (len, coarse) = (len.into(), Coarse::of(at.now));
        let found = match what {
            What::V4 => self.cache4.find(&key4, hash, candidate, at.epoch),
            What::V6 => self.cache6.find(&self.lanes.key6[lane], hash, candidate, at.epoch),
            What::Slow | What::Drop | What::Consume => return self.act_unkeyed(at, device, lane, frame),
        };
        match found {
            Found::Current(index) => {
                let is_ipv4 = what == What::V4;
                let action = if is_ipv4 { self.cache4.action(index) } else { self.cache6.action(index) };
                if !action.is_plain() {
                    return self.act_tracked(at, device, lane, index, frame);
                }
                self.tally.counts.hits += 1;
                let action = if is_ipv4 {
                    *self.cache4.count(index, len, coarse)
                } else {
                    *self.cache6.count(index, len, coarse)
                };
                return self.dispatch(at, lane, action, frame);
            }
            Found::Stale(_) => self.tally.counts.stale += 1,
            Found::Absent => self.tally.counts.misses += 1,
        }
        self.slow(at, zone, device, frame);
    }

    /// A frame that no flow is looked up for.
    fn act_unkeyed(&mut self, at: Moment<'_>, device: DeviceId, lane: usize, frame: Frame) {
        self.tally.counts.slow_only += 1;
        match self.lanes.each[lane].what {
            What::Drop => self.tally.drop(self.lanes.reason[lane], frame, &mut self.pool),
            What::Consume => self.consume(frame),
            What::V4 | What::V6 | What::Slow => self.slow(at, self.lanes.each[lane].zone, device, frame),
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
        if !frame.is_plain() {
            return self.carry_out_train(snapshot, action, leaving, frame);
        }
        frame.truncate(L3 + usize::from(leaving.len));
        match hits::rewrite(snapshot, &action, leaving, &mut frame) {
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

/// Second stage: which slot may hold each flow; the slot is on its way.
#[inline(never)]
fn match_tags(lanes: &mut Lanes, cache4: &Cache<Key4>, cache6: &Cache<Key6>, count: usize) {
    let count = count.min(BURST);
    // Of a frame that is no IPv4 packet the lane has an old hash, which does no harm: cheaper than to ask each.
    for lane in &mut lanes.each[..count] {
        lane.candidate = cache4.candidate(lane.hash);
    }
    if lanes.any_v6 {
        for lane in lanes.each[..count].iter_mut().filter(|lane| lane.what == What::V6) {
            lane.candidate = cache6.candidate(lane.hash);
        }
    }
}

impl Lane {
    /// What the packet needs to leave.
    #[inline(always)]
    pub(crate) fn leaving(&self) -> Leaving {
        let entropy = (self.hash >> 32) as u32;
        Leaving { len: self.len, tos: self.tos, is_ipv4: self.what == What::V4, entropy }
    }
}
