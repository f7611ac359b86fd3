//! The pipeline's third stage for packets of a known flow that needs more than its action: limits are asked, the
//! connection hears of it now and then, and addresses are rewritten.

use penstock_io::Frame;
use penstock_wire::rewrite::Rewrite4;
use penstock_wire::{ipv4, ipv6, proto, tcp};

use crate::conntrack::life::leaves_fast_path;
use crate::conntrack::{Chunks, Packet};
use crate::drop::Cause;
use crate::flow::cache::Hit;
use crate::flow::{Action, Coarse, DeviceId, Key, Key4, ZoneId};
use crate::pipeline::{L3, Moment, Pipeline};
use crate::served::asked_by;
use crate::tow;

/// Offset of the next header in an IPv6 header (RFC 8200 section 3).
const V6_NEXT_HEADER_AT: usize = 6;

impl Pipeline {
    /// A packet of the flow in slot `index`.
    #[inline]
    pub(crate) fn act_tracked(
        &mut self,
        at: Moment<'_>,
        device: DeviceId,
        lane: usize,
        index: usize,
        mut frame: Frame,
    ) {
        let (zone, leaving, coarse) = (self.zone_of(lane), self.leaving_of(lane), Coarse::of(at.now));
        let (action, tracked, is_new_period, protocol) = if leaving.is_ipv4 {
            let (cache, key) = (&self.cache4, self.key4_of(lane));
            (*cache.action(index), cache.tracked(index), cache.is_new_period(index, coarse), key.protocol())
        } else {
            let (cache, key) = (&self.cache6, self.key6_of(lane));
            (*cache.action(index), cache.tracked(index), cache.is_new_period(index, coarse), key.protocol())
        };
        if !action.is_tracked() {
            return self.act_metered(at, device, lane, index, action, frame);
        }
        let l4 = transport_at(frame.bytes(), leaving.is_ipv4, protocol);
        let lives = match (&self.tracker, l4) {
            (Some(tracker), Some(l4)) => {
                leaving.len <= action.max_len()
                    && !changes_its_connection(frame.bytes(), l4, protocol)
                    && (!is_new_period
                        || tracker.table.keep_alive(
                            tracker.worker,
                            tracked.connection,
                            tracked.direction,
                            &tracker.settings,
                            tracker.seconds(at.now),
                        ))
            }
            _ => false,
        };
        let Some(l4) = l4.filter(|_| lives) else {
            // Its connection begins, ends or is gone, or its sender must be told something.
            self.tally.counts.stale += 1;
            return self.slow(at, zone, device, frame);
        };
        self.tally.counts.hits += 1;
        if let Err(cause) = self.meter(at, zone, action, tow::weight(&frame, leaving.len)) {
            return self.tally.drop(cause, frame, &mut self.pool);
        }
        let asked = if action.is_served() { asked_by(frame.bytes(), L3, l4, leaving.is_ipv4) } else { None };
        if action.rewrites() {
            if action.finishes_checksums() {
                crate::hits::finish_checksum(frame.bytes_mut());
            }
            let end = L3 + usize::from(leaving.len);
            // The headers are there: the packet was parsed, and its transport header looked at.
            let done = if leaving.is_ipv4 {
                self.cache4.rewrite(index).apply(frame.bytes_mut(), L3, l4, end)
            } else {
                self.cache6.rewrite(index).apply(frame.bytes_mut(), L3, l4, end)
            };
            if !done {
                return self.tally.drop(Cause::NotTranslatable, frame, &mut self.pool);
            }
        }
        let (_, bytes) = tow::weight(&frame, leaving.len);
        if leaving.is_ipv4 {
            self.cache4.count(index, bytes as usize, coarse);
        } else {
            self.cache6.count(index, bytes as usize, coarse);
        }
        match asked {
            None => self.carry_out(at.snapshot, action, leaving, frame),
            Some(asked) => self.carry_out_served(at.snapshot, action, leaving, &asked, frame),
        }
    }

    /// A packet of a flow that no connection is kept of, from or to an endpoint with limits.
    fn act_metered(
        &mut self,
        at: Moment<'_>,
        device: DeviceId,
        lane: usize,
        index: usize,
        action: Action,
        frame: Frame,
    ) {
        let (zone, leaving, coarse) = (self.zone_of(lane), self.leaving_of(lane), Coarse::of(at.now));
        if leaving.len > action.max_len() {
            // Its sender must be told, or it must be cut.
            self.tally.counts.stale += 1;
            return self.slow(at, zone, device, frame);
        }
        self.tally.counts.hits += 1;
        if let Err(cause) = self.meter(at, zone, action, tow::weight(&frame, leaving.len)) {
            return self.tally.drop(cause, frame, &mut self.pool);
        }
        let (_, bytes) = tow::weight(&frame, leaving.len);
        if leaving.is_ipv4 {
            self.cache4.count(index, bytes as usize, coarse);
        } else {
            self.cache6.count(index, bytes as usize, coarse);
        }
        self.carry_out(at.snapshot, action, leaving, frame);
    }

    /// Lets packets of a weight ([`tow::weight`]) pass the limits of the endpoints that they come from and go to.
    #[inline]
    pub(crate) fn meter(
        &self,
        at: Moment<'_>,
        zone: ZoneId,
        action: Action,
        weight: (u32, u32),
    ) -> Result<(), Cause> {
        if !action.is_metered() {
            return Ok(());
        }
        let zone = at.snapshot.zones.get(zone.number()).copied();
        self.ledger.admit(at.snapshot, zone, action.out(), weight, at.now)
    }
}

/// Whether a packet of a known flow goes its way unheard: it meets no limit, begins and ends no connection, and the flow's
/// own heard of it within this period.
#[inline(always)]
pub(crate) fn passes(hit: &Hit<'_, Key4>, key: &Key4, frame: &[u8], now: Coarse) -> bool {
    let protocol = key.protocol();
    let changes = |l4| changes_its_connection(frame, l4, protocol);
    hit.action().is_quiet()
        && !hit.is_new_period(now)
        && transport_at(frame, true, protocol).is_some_and(|l4| !changes(l4))
}

/// Gives an IPv4 packet of `len` bytes other addresses and ports.
///
/// # Errors
/// When its headers are not what the flow's are.
#[inline]
pub(crate) fn translate(
    action: &Action,
    rewrite: &Rewrite4,
    len: u16,
    frame: &mut Frame,
) -> Result<(), Cause> {
    if action.finishes_checksums() {
        crate::hits::finish_checksum(frame.bytes_mut());
    }
    let l4 = transport_at(frame.bytes(), true, 0).ok_or(Cause::NotTranslatable)?;
    let done = rewrite.apply(frame.bytes_mut(), L3, l4, L3 + usize::from(len));
    if done { Ok(()) } else { Err(Cause::NotTranslatable) }
}

/// Where the transport header of a whole packet begins; `None` behind IPv6 extension headers, which the slow path walks.
#[inline(always)]
fn transport_at(frame: &[u8], is_ipv4: bool, protocol: u8) -> Option<usize> {
    let first = *frame.get(L3)?;
    if is_ipv4 {
        return Some(L3 + usize::from(first & 0xf) * ipv4::WORD);
    }
    (*frame.get(L3 + V6_NEXT_HEADER_AT)? == protocol).then_some(L3 + ipv6::HEADER_LEN)
}

/// Whether a packet may begin, end or reset its connection.
#[inline(always)]
fn changes_its_connection(frame: &[u8], l4: usize, protocol: u8) -> bool {
    let packet = match protocol {
        proto::TCP => frame.get(l4 + tcp::FLAGS_AT).map(|&flags| Packet::Tcp(flags)),
        proto::SCTP => frame.get(l4..).and_then(Chunks::of).map(Packet::Sctp),
        _ => return false,
    };
    packet.is_none_or(leaves_fast_path)
}
