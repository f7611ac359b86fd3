//! The pipeline's first stage: what each frame of a burst is, and the key and hash of its flow.

use penstock_io::{BURST, Frame};
use penstock_wire::parse::{Net, PLAIN_IPV4, Parsed, V4Flow, V6Flow, parse_any, plain, plain_ipv4};
use penstock_wire::{MacAddr, ethernet};

use crate::drop::{Cause, Reason};
use crate::flow::{Cache, Candidate, DeviceId, Key4, Key6, ZoneId};
use crate::pipeline::L3;
use crate::tables::Snapshot;

/// What classification made of a frame.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum What {
    /// An IPv4 packet with a key.
    V4,
    /// An IPv6 packet with a key.
    V6,
    /// Something that no flow is made of: ARP, neighbour discovery, a packet out of hops.
    #[default]
    Slow,
    /// Not to be forwarded at all; [`Lanes::reason`] says why.
    Drop,
    /// A message for the dataplane itself, already understood.
    Consume,
}

/// What is known of one frame, stage by stage: together, so that a stage needs one address for all of it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lane {
    /// The IPv4 flow's key.
    pub(crate) key4: Key4,
    /// The hash of the key.
    pub(crate) hash: u64,
    /// The slot that may hold the flow.
    pub(crate) candidate: Candidate,
    /// Where the frame came from.
    pub(crate) zone: ZoneId,
    /// Bytes of the IP packet.
    pub(crate) len: u16,
    /// Type of service or traffic class.
    pub(crate) tos: u8,
    /// What the frame is.
    pub(crate) what: What,
    /// The device that the frame leaves by.
    pub(crate) exit: DeviceId,
}

/// A burst's working memory: a lane for each frame, and apart from it what few frames have.
pub(crate) struct Lanes {
    pub(crate) each: [Lane; BURST],
    pub(crate) key6: [Key6; BURST],
    pub(crate) reason: [Reason; BURST],
    /// Whether some frame of the burst is an IPv6 packet.
    pub(crate) any_v6: bool,
}

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes {
            each: [Lane::default(); BURST],
            key6: [Key6::default(); BURST],
            reason: [Reason::Refused(Cause::UnknownPort); BURST],
            any_v6: false,
        }
    }
}

/// The two stations that speak on an endpoint's link.
#[derive(Clone, Copy)]
pub(crate) struct Stations {
    pub(crate) router: MacAddr,
    pub(crate) endpoint: MacAddr,
}

/// Recognises frames from an endpoint.
///
/// A function of its own, called once a burst: as parameters the lanes and the caches are known not to overlap, so what
/// does not change stays in registers.
#[inline(never)]
pub(crate) fn from_endpoint(
    lanes: &mut Lanes,
    cache4: &Cache<Key4>,
    cache6: &Cache<Key6>,
    zone: ZoneId,
    stations: Stations,
    frames: &mut [Frame],
) {
    let usual = UsualStart::new(stations);
    for (lane, frame) in frames.iter_mut().enumerate().take(BURST) {
        let plain = if usual.begins(frame.bytes()) { plain_ipv4(frame.bytes()) } else { None };
        lanes.each[lane].what = match plain {
            Some(Parsed { end, net: Net::V4(flow), .. }) => {
                lanes.expect_v4(cache4, lane, zone, end, &flow, frame)
            }
            _ => unusual(lanes, cache4, cache6, lane, zone, stations, frame),
        };
    }
}

/// How plain IPv4 frames from an endpoint to its gateway begin: both stations, the type, and IPv4's first byte; all of
/// it is looked at in two comparisons.
#[derive(Clone, Copy)]
struct UsualStart {
    first: u64,
    /// All but the last byte, the type of service.
    second: u64,
}

impl UsualStart {
    fn new(stations: Stations) -> UsualStart {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&stations.router.0);
        bytes[6..12].copy_from_slice(&stations.endpoint.0);
        bytes[12..14].copy_from_slice(&ethernet::IPV4.to_be_bytes());
        bytes[14] = PLAIN_IPV4;
        let [first, second] = halves(&bytes);
        UsualStart { first, second }
    }

    /// Whether a frame begins so.
    #[inline(always)]
    fn begins(self, frame: &[u8]) -> bool {
        let Some(start) = frame.first_chunk() else { return false };
        let [first, second] = halves(start);
        // Without the lowest byte, as the type of service is.
        first == self.first && (second ^ self.second) >> 8 == 0
    }
}

#[inline(always)]
fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_be_bytes(*bytes);
    [(whole >> 64) as u64, whole as u64]
}

/// A frame from an endpoint that is not the usual one.
#[inline(never)]
fn unusual(
    lanes: &mut Lanes,
    cache4: &Cache<Key4>,
    cache6: &Cache<Key6>,
    lane: usize,
    zone: ZoneId,
    stations: Stations,
    frame: &mut Frame,
) -> What {
    let (to, from) = (stations.router.0, stations.endpoint.0);
    if frame.bytes().starts_with(&to) && frame.bytes()[to.len()..].starts_with(&from) {
        recognise_any(lanes, cache4, cache6, lane, zone, frame)
    } else {
        lanes.each[lane].zone = zone;
        stranger(lanes, lane, frame, stations.router, Some(stations.endpoint))
    }
}

/// Parses a frame whose zone is known and makes its key.
#[inline(always)]
pub(crate) fn recognise(
    lanes: &mut Lanes,
    cache4: &Cache<Key4>,
    cache6: &Cache<Key6>,
    lane: usize,
    zone: ZoneId,
    frame: &mut Frame,
) -> What {
    match plain(frame.bytes()) {
        Some(Parsed { end, net: Net::V4(flow), .. }) => {
            lanes.expect_v4(cache4, lane, zone, end, &flow, frame)
        }
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
    frame: &mut Frame,
) -> What {
    lanes.each[lane].zone = zone;
    let parsed = match parse_any(frame.bytes()) {
        Ok(parsed) => parsed,
        Err(rule) => return lanes.refuse(lane, rule),
    };
    if usize::from(parsed.l3) != L3 {
        return lanes.refuse(lane, Cause::VlanNotExpected);
    }
    match parsed.net {
        Net::V4(flow) => lanes.expect_v4(cache4, lane, zone, parsed.end, &flow, frame),
        Net::V6(flow) => lanes.expect_v6(cache6, lane, zone, parsed.end, &flow, frame),
        Net::Arp => What::Slow,
        Net::Other(_) => lanes.refuse(lane, Cause::NotIp),
    }
}

impl Lanes {
    /// Notes why a frame is to be dropped.
    #[inline]
    pub(crate) fn refuse(&mut self, lane: usize, reason: impl Into<Reason>) -> What {
        self.reason[lane] = reason.into();
        What::Drop
    }

    /// Notes an IPv4 packet that ends at `end` in its frame, and cuts off what lies beyond.
    #[inline(always)]
    fn expect_v4(
        &mut self,
        cache: &Cache<Key4>,
        lane: usize,
        zone: ZoneId,
        end: u16,
        flow: &V4Flow,
        frame: &mut Frame,
    ) -> What {
        let key4 = Key4::new(zone, flow);
        let hash = cache.hash(&key4);
        cache.touch(hash);
        frame.truncate(end.into());
        let lane = &mut self.each[lane];
        (lane.key4, lane.hash, lane.zone) = (key4, hash, zone);
        (lane.len, lane.tos) = (end - L3 as u16, flow.tos);
        if flow.ttl > 1 { What::V4 } else { What::Slow }
    }

    /// Notes an IPv6 packet that ends at `end` in its frame, and cuts off what lies beyond.
    #[inline(always)]
    fn expect_v6(
        &mut self,
        cache: &Cache<Key6>,
        lane: usize,
        zone: ZoneId,
        end: u16,
        flow: &V6Flow,
        frame: &mut Frame,
    ) -> What {
        let key6 = Key6::new(zone, flow);
        let hash = cache.hash(&key6);
        cache.touch(hash);
        frame.truncate(end.into());
        (self.key6[lane], self.any_v6) = (key6, true);
        let lane = &mut self.each[lane];
        (lane.hash, lane.zone) = (hash, zone);
        (lane.len, lane.tos) = (end - L3 as u16, flow.tclass);
        if flow.hop_limit > 1 { What::V6 } else { What::Slow }
    }
}

/// Whether an inner frame is for this node's router, by the address that it has or by one that peers derive.
#[inline]
pub(crate) fn is_for_router(snapshot: &Snapshot, frame: &Frame) -> bool {
    let Some(&station) = frame.bytes().first_chunk::<6>() else { return false };
    let derived =
        || snapshot.underlay_addresses.iter().any(|&address| MacAddr::from_underlay(address).0 == station);
    station == snapshot.router_mac.0 || derived()
}

/// A frame that is not simply from the pod to its gateway: a question to all, or one that has no business here.
#[cold]
pub(crate) fn stranger(
    lanes: &mut Lanes,
    lane: usize,
    frame: &Frame,
    router: MacAddr,
    source: Option<MacAddr>,
) -> What {
    let Some(stations) = frame.bytes().first_chunk::<12>() else {
        return lanes.refuse(lane, penstock_wire::Malformed::Truncated);
    };
    if source.is_some_and(|source| stations[6..] != source.0) {
        return lanes.refuse(lane, Cause::WrongSourceMac);
    }
    let to_all = stations[0] & 1 == 1;
    if to_all || stations[..6] == router.0 { What::Slow } else { lanes.refuse(lane, Cause::NotForUs) }
}
