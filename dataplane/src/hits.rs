//! The pipeline's third stage for what most packets are: IPv4, of a known flow, no longer than its way carries, of no
//! interest to its connection.

use penstock_io::Frame;
use penstock_wire::parse::parse;
use penstock_wire::{ethernet, ipv4, ipv6};

use crate::drop::Cause;
use crate::flow::cache::Hit;
use crate::flow::{Action, Cache, Coarse, Key4, Verb};
use crate::offload;
use crate::pipeline::{L3, Leaving, Moment};
use crate::recognise::{Lane, What};
use crate::snapshot::Epoch;
use crate::stateful;
use crate::tables::Snapshot;

/// Why a run of plain hits stopped before the burst's end.
pub(crate) enum Stop {
    /// The next frame wants another look.
    Apart,
    /// The next frame was a hit, but cannot leave.
    Drop(Cause),
}

/// Makes frames what they are to be on their way out and notes their exits, up to the first that is no plain hit; returns
/// how many there were before it. Lanes and frames belong together, one by one.
///
/// A function of its own, without `Pipeline`, and with the frames where they lie: nothing of it need be in memory for the
/// sake of the rare rest.
#[inline(never)]
pub(crate) fn run(
    lanes: &mut [Lane],
    cache: &mut Cache<Key4>,
    at: Moment<'_>,
    frames: &mut [Frame],
) -> (usize, Option<Stop>) {
    let coarse = Coarse::of(at.now);
    for (done, (lane, frame)) in lanes.iter_mut().zip(frames).enumerate() {
        let Some(mut hit) = simple_hit(lane, frame, cache, at.epoch, coarse) else {
            return (done, Some(Stop::Apart));
        };
        hit.count(lane.len.into(), coarse);
        if hit.action().rewrites()
            && let Err(cause) = stateful::translate(hit.action(), &hit.rewrite(), lane.len, frame)
        {
            return (done, Some(Stop::Drop(cause)));
        }
        if let Err(cause) = rewrite(at.snapshot, hit.action(), lane.leaving(), frame) {
            return (done, Some(Stop::Drop(cause)));
        }
        lane.exit = hit.action().out();
    }
    (lanes.len(), None)
}

/// The flow that the packet in a lane is a hit of, if its action is all that the packet needs.
#[inline(always)]
fn simple_hit<'a>(
    lane: &Lane,
    frame: &Frame,
    cache: &'a mut Cache<Key4>,
    epoch: Epoch,
    now: Coarse,
) -> Option<Hit<'a, Key4>> {
    if lane.what != What::V4 {
        return None;
    }
    let hit = cache.hit(&lane.key4, lane.candidate, epoch)?;
    let fits = lane.len <= hit.action().max_len();
    let passes = || hit.action().is_plain() || stateful::passes(&hit, &lane.key4, frame.bytes(), now);
    (fits && passes()).then_some(hit)
}

/// Makes a packet, which ends where its IP packet ends, what it is to be on its next link.
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
    match action.verb() {
        Verb::Forward => {
            let link = snapshot.links.get(usize::from(action.link().0)).ok_or(Cause::PortGone)?;
            let bytes = frame.bytes_mut();
            take_hop(bytes, leaving.is_ipv4);
            if let Some(stations) = bytes.first_chunk_mut() {
                *stations = link.stations;
            }
        }
        Verb::Encapsulate => {
            take_hop(frame.bytes_mut(), leaving.is_ipv4);
            let template = snapshot.templates.get(usize::from(action.template().0));
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
fn take_hop(bytes: &mut [u8], is_ipv4: bool) {
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
