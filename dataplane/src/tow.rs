//! Frames that are more than a packet in a chunk: packets of several chunks, and packets whose sender left work to a device,
//! be it a checksum or the cutting into segments.
//!
//! ```text
//!  frame -> couple: its headers say no more than the first chunk, or the first segment, holds
//!        -> the pipeline, which sees a packet like any other
//!        -> uncouple: it is itself again -> kept as it is | finished | cut into segments, as the port that it leaves by can
//! ```
//!
//! So what such a frame is decided and translated by is its first packet, and the rest follows in tow: no other room knows
//! of it. One frame is up to 64 KiB, so what this costs is little beside what it saves.

use penstock_io::{Abilities, Burst, Frame, FramePool, Offload, Partial, SegmentKind, Segments};
use penstock_wire::checksum::Sum;
use penstock_wire::segment::{Headers, Part, sum_behind};
use penstock_wire::{Malformed, proto, udp};

use crate::drop::Cause;
use crate::flow::{Action, DeviceId, Verb};
use crate::hits;
use crate::pipeline::{L3, Leaving, Moment, Pipeline};
use crate::tables::Snapshot;

/// The least payload of a TCP segment that is cut here: `TCP_MIN_SND_MSS` of `net/tcp.h`. A sender of shorter ones would
/// have us make thousands of packets of one.
const SHORTEST_SEGMENT: u16 = 48;
/// The most datagrams that one UDP packet becomes: `UDP_MAX_SEGMENTS` of `linux/udp.h`.
const MOST_DATAGRAMS: usize = 128;

/// What the headers of a coupled frame said before, kept in its note.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tow {
    /// Bytes of the first chunk that the stand-in leaves out.
    hidden: u16,
    /// The length of the IP packet.
    packet_len: u16,
    /// The length in a UDP header; zero where there is none, or where it was left alone.
    datagram_len: u16,
}

impl Tow {
    fn of(frame: &Frame) -> Tow {
        let [a, b, c, d, e, f, _, _] = frame.note().to_le_bytes();
        let [hidden, packet_len, datagram_len] = [[a, b], [c, d], [e, f]].map(u16::from_le_bytes);
        Tow { hidden, packet_len, datagram_len }
    }

    fn note(self) -> u64 {
        u64::from(self.hidden) | u64::from(self.packet_len) << 16 | u64::from(self.datagram_len) << 32
    }
}

/// Makes a frame that is not plain its own stand-in.
///
/// # Errors
/// When its headers, or what its sender wants done to it, make no sense.
fn couple(frame: &mut Frame, pool: &mut FramePool) -> Result<(), Malformed> {
    let headers = Headers::of(frame.bytes())?;
    let packet_len = headers.packet_len(frame.bytes());
    let whole = L3 + packet_len;
    if whole > frame.total_len() || whole < headers.payload {
        return Err(Malformed::BadTotalLength);
    }
    pool.cut(frame, whole);
    let left = checked(frame.offload(), &headers, whole)?;
    frame.set_offload(left);
    let mut stands = match left.segments {
        Some(Segments { size, .. }) => frame.len().min(headers.payload + usize::from(size)),
        None => frame.len(),
    };
    let mut tow = Tow { packet_len: packet_len as u16, ..Tow::default() };
    if stands < whole {
        // Of a fragment that is not the last a multiple of eight bytes is left.
        stands -= (stands - headers.l4) % 8;
        if stands < headers.payload {
            return Err(Malformed::Truncated);
        }
        tow.hidden = (frame.len() - stands) as u16;
        frame.truncate(stands);
        headers.set_packet_len(frame.bytes_mut(), stands - L3);
        if headers.protocol == proto::UDP && !headers.is_fragment {
            tow.datagram_len = headers.datagram_len(frame.bytes());
            let most = (stands - headers.l4) as u16;
            headers.set_datagram_len(frame.bytes_mut(), tow.datagram_len.min(most));
        }
    }
    frame.set_note(tow.note());
    Ok(())
}

/// What is left to do, once it was seen to be possible: the sender's word is not taken for where headers lie.
fn checked(left: Offload, headers: &Headers, whole: usize) -> Result<Offload, Malformed> {
    let payload = whole - headers.payload;
    let checksum = match (left.checksum, headers.checksum_at()) {
        (None, _) => None,
        (Some(Partial { start, offset }), Some(at))
            if usize::from(start) == headers.l4 && usize::from(start) + usize::from(offset) == at =>
        {
            left.checksum
        }
        (Some(_), _) => return Err(Malformed::BadChecksum),
    };
    let Some(Segments { kind, size, .. }) = left.segments else {
        return Ok(Offload { checksum, segments: None });
    };
    let (is_ipv4, protocol) = (headers.is_ipv4, headers.protocol);
    let fits = match kind {
        SegmentKind::Tcp4 => is_ipv4 && protocol == proto::TCP && size >= SHORTEST_SEGMENT,
        SegmentKind::Tcp6 => !is_ipv4 && protocol == proto::TCP && size >= SHORTEST_SEGMENT,
        SegmentKind::Udp => {
            protocol == proto::UDP && size > 0 && payload.div_ceil(usize::from(size)) <= MOST_DATAGRAMS
        }
    };
    if !fits || headers.is_fragment || checksum.is_none() || payload == 0 {
        return Err(Malformed::BadSegmentLength);
    }
    if payload <= usize::from(size) && kind != SegmentKind::Udp {
        // One segment: there is nothing to cut.
        return Ok(Offload { checksum, segments: None });
    }
    let header_len = headers.payload as u16;
    Ok(Offload { checksum, segments: Some(Segments { kind, size, header_len }) })
}

/// Makes a stand-in the frame that it stands for; tells where its headers lie.
fn uncouple(frame: &mut Frame) -> Result<Headers, Malformed> {
    let tow = Tow::of(frame);
    // The bytes lie where they lay: nobody writes behind a packet's end.
    frame.grow_tail(tow.hidden.into()).map_err(|_| Malformed::Truncated)?;
    let headers = Headers::of(frame.bytes())?;
    headers.set_packet_len(frame.bytes_mut(), tow.packet_len.into());
    if tow.datagram_len != 0 {
        headers.set_datagram_len(frame.bytes_mut(), tow.datagram_len);
    }
    if frame.offload().checksum.is_some() {
        // Addresses may have changed, and the stand-in's checksum meant nothing.
        headers.leave_checksum(frame.bytes_mut());
    }
    Ok(headers)
}

/// Lets what was in a tunnel stand for itself, once the tunnel's headers are off.
///
/// # Errors
/// As of a frame that comes in so.
pub(crate) fn couple_anew(frame: &mut Frame, pool: &mut FramePool) -> Result<(), Malformed> {
    let hidden = Tow::of(frame).hidden;
    frame.grow_tail(hidden.into()).map_err(|_| Malformed::Truncated)?;
    couple(frame, pool)
}

/// The bytes of the IP packet that must fit the way ahead: of one that is to be cut those of a segment, as the stand-in
/// has them, else all of them.
#[inline]
pub(crate) fn len_on_link(frame: &Frame, stands: u16) -> u16 {
    if frame.is_plain() || frame.offload().segments.is_some() { stands } else { Tow::of(frame).packet_len }
}

/// Whether a frame says less than it is.
pub(crate) fn is_stand_in(frame: &Frame) -> bool {
    !frame.is_plain() && Tow::of(frame).packet_len as usize + L3 != frame.len()
}

/// What a frame counts for: packets, and bytes of them, Ethernet's not included.
#[inline]
pub(crate) fn weight(frame: &Frame, len: u16) -> (u32, u32) {
    if frame.is_plain() { (1, len.into()) } else { weight_of_train(frame) }
}

#[cold]
fn weight_of_train(frame: &Frame) -> (u32, u32) {
    let packet_len = u32::from(Tow::of(frame).packet_len);
    match frame.offload().segments {
        None => (1, packet_len),
        Some(Segments { size, header_len, .. }) => {
            let header = u32::from(header_len) - L3 as u32;
            let payload = packet_len.saturating_sub(header);
            let packets = payload.div_ceil(size.into()).max(1);
            (packets, payload + packets * header)
        }
    }
}

impl Pipeline {
    /// A burst with frames that are not plain among the others, in order.
    #[cold]
    #[inline(never)]
    pub(crate) fn process_mixed(&mut self, at: Moment<'_>, device: DeviceId, burst: &mut Burst) {
        let mut plain = Burst::new();
        while let Some(mut frame) = burst.pop() {
            if frame.is_plain() {
                // As many fit as there were in the burst.
                if let Err(frame) = plain.push(frame) {
                    self.tally.drop(Cause::TxRingFull, frame, &mut self.pool);
                }
                continue;
            }
            self.process_plain(at, device, &mut plain);
            match couple(&mut frame, &mut self.pool) {
                Ok(()) => self.process_one(at, device, frame),
                Err(rule) => self.tally.drop(rule, frame, &mut self.pool),
            }
        }
        self.process_plain(at, device, &mut plain);
    }

    /// Sends a frame that is not plain, coupled, on its way.
    #[cold]
    #[inline(never)]
    pub(crate) fn carry_out_train(
        &mut self,
        snapshot: &Snapshot,
        action: Action,
        leaving: Leaving,
        mut frame: Frame,
    ) {
        let Ok(headers) = uncouple(&mut frame) else {
            return self.tally.drop(Cause::NotTranslatable, frame, &mut self.pool);
        };
        let action = action.with_checksums_finished();
        let takes = self.outputs.abilities(action.out());
        let takes = match action.verb() {
            Verb::Forward => takes,
            // Nobody looks for such work behind a tunnel's headers.
            Verb::Encapsulate => Abilities::CHAINS.when(takes.has(Abilities::CHAINS)),
        };
        let left = frame.offload();
        if takes.has(Abilities::needed_for(left, frame.is_chain())) {
            return self.carry_out_finished(snapshot, action, leaving, frame);
        }
        if let Some(segments) = left.segments {
            return self.cut_up(snapshot, action, leaving, &headers, segments, frame);
        }
        if left.checksum.is_some() {
            let behind = sum_behind(frame.len() - headers.l4, frame.pieces().skip(1));
            headers.finish_checksum(frame.bytes_mut(), behind);
            frame.set_offload(Offload::NONE);
        }
        if frame.is_chain() && !takes.has(Abilities::CHAINS) {
            return self.tally.drop(Cause::TooBig, frame, &mut self.pool);
        }
        self.carry_out_finished(snapshot, action, leaving, frame);
    }

    /// Sends a packet, in one chunk or in several, that its port takes as it is.
    fn carry_out_finished(
        &mut self,
        snapshot: &Snapshot,
        action: Action,
        leaving: Leaving,
        mut frame: Frame,
    ) {
        let len = (frame.total_len() - L3) as u16;
        let inner = frame.len() - L3;
        let done = hits::rewrite(snapshot, &action, Leaving { len, ..leaving }, &mut frame);
        match done {
            Ok(()) => {
                if frame.is_chain() && action.verb() == Verb::Encapsulate {
                    complete_tunnel_checksum(&mut frame, inner);
                }
                self.outputs.send(action.out(), frame, &mut self.pool, &mut self.tally);
            }
            Err(cause) => self.tally.drop(cause, frame, &mut self.pool),
        }
    }

    /// Cuts a packet into segments, each a frame of its own, and sends them.
    fn cut_up(
        &mut self,
        snapshot: &Snapshot,
        action: Action,
        leaving: Leaving,
        headers: &Headers,
        segments: Segments,
        frame: Frame,
    ) {
        let (header, first) = frame.bytes().split_at(headers.payload);
        let mut payload = Payload { here: first, rest: frame.pieces() };
        payload.rest.next();
        let size = usize::from(segments.size);
        let total = frame.total_len() - headers.payload;
        for (index, offset) in (0..total).step_by(size).enumerate() {
            let Some(mut segment) = self.pool.alloc() else {
                self.not_made();
                continue;
            };
            self.tally.counts.made += 1;
            let len = size.min(total - offset);
            let fits = segment.fill_from(header).is_ok() && segment.grow_tail(len).is_ok();
            if !fits || !payload.read(&mut segment.bytes_mut()[headers.payload..]) {
                self.tally.drop(Cause::TooBig, segment, &mut self.pool);
                continue;
            }
            let part = Part { index: index as u16, offset: offset as u32, is_last: offset + len == total };
            headers.cut(segment.bytes_mut(), part);
            let len = (segment.len() - L3) as u16;
            match hits::rewrite(snapshot, &action, Leaving { len, ..leaving }, &mut segment) {
                Ok(()) => self.outputs.send(action.out(), segment, &mut self.pool, &mut self.tally),
                Err(cause) => self.tally.drop(cause, segment, &mut self.pool),
            }
        }
        self.consume(frame);
    }
}

/// A packet's payload, read from one chunk after the other.
struct Payload<'a> {
    here: &'a [u8],
    rest: penstock_io::chain::Pieces<'a>,
}

impl Payload<'_> {
    /// Fills `out` with what comes next; false if there is less.
    fn read(&mut self, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            if self.here.is_empty() {
                match self.rest.next() {
                    Some(piece) => self.here = piece,
                    None => return false,
                }
            }
            let count = out.len().min(self.here.len());
            let (now, later) = self.here.split_at(count);
            let (room, beyond) = out.split_at_mut(count);
            room.copy_from_slice(now);
            (self.here, out) = (later, beyond);
        }
        true
    }
}

/// Adds the chunks behind the first to the UDP checksum of the tunnel that the packet was put into, if there is one: what
/// wrote it saw the `inner` bytes of the packet in the first.
fn complete_tunnel_checksum(frame: &mut Frame, inner: usize) {
    let behind = sum_behind(inner, frame.pieces().skip(1));
    let Ok(outer) = Headers::of(frame.bytes()) else { return };
    let Some(at) = outer.checksum_at() else { return };
    let field = &mut frame.bytes_mut()[at..at + 2];
    let written = u16::from_be_bytes([field[0], field[1]]);
    if written != 0 {
        let sum = Sum::ZERO.add16(!written).add(behind).finish();
        field.copy_from_slice(&udp::checksum_or_ones(sum).to_be_bytes());
    }
}
