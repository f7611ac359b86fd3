//! Segments of one TCP stream that leave one after the other are put together for a port that takes them so: the receiver
//! then handles one packet of up to 64 KiB instead of dozens.

use penstock_io::{Abilities, Burst, Frame, Offload, Partial, SegmentKind, Segments};
use penstock_wire::segment::Headers;
use penstock_wire::{proto, tcp};

use crate::pipeline::L3;

/// The longest IP packet that segments are put together to.
const LONGEST: usize = u16::MAX as usize;

/// A packet that may grow.
struct Open {
    frame: Frame,
    headers: Headers,
    kind: SegmentKind,
    /// Bytes of payload in the first segment: none may have more, and only the last fewer.
    size: usize,
    /// Bytes of payload in all of them.
    gathered: usize,
    /// Whether its receiver is to be given the bytes at once.
    push: bool,
    /// Whether nothing may come behind it any more.
    is_full: bool,
}

/// Puts the segments of a burst together, those that follow each other at once; returns how many frames fewer it has then.
pub(crate) fn join(burst: &mut Burst, takes: Abilities) -> u64 {
    let before = burst.len();
    let mut joined = Burst::new();
    let mut open: Option<Open> = None;
    for frame in burst.drain() {
        let frame = match open.take() {
            None => frame,
            Some(mut growing) => match growing.add(frame) {
                Ok(()) => {
                    open = Some(growing);
                    continue;
                }
                Err(frame) => {
                    keep(&mut joined, growing.close());
                    frame
                }
            },
        };
        match Open::begin(frame, takes) {
            Ok(growing) => open = Some(growing),
            Err(frame) => keep(&mut joined, frame),
        }
    }
    if let Some(growing) = open {
        keep(&mut joined, growing.close());
    }
    *burst = joined;
    (before - burst.len()) as u64
}

/// There are never more frames than there were.
fn keep(burst: &mut Burst, frame: Frame) {
    let kept = burst.push(frame);
    debug_assert!(kept.is_ok());
}

impl Open {
    /// A packet that others may follow; else the frame as it is.
    fn begin(frame: Frame, takes: Abilities) -> Result<Open, Frame> {
        let headers = match Headers::of(frame.bytes()) {
            Ok(headers) if headers.protocol == proto::TCP && frame.is_plain() => headers,
            _ => return Err(frame),
        };
        let (kind, needed) = match headers.is_ipv4 {
            true => (SegmentKind::Tcp4, Abilities::TCP4),
            false => (SegmentKind::Tcp6, Abilities::TCP6),
        };
        let size = frame.len() - headers.payload;
        let flags = frame.bytes()[headers.l4 + tcp::FLAGS_AT];
        if !takes.has(needed.and(Abilities::CHECKSUM)) || size == 0 || flags != tcp::ACK {
            return Err(frame);
        }
        Ok(Open { frame, headers, kind, size, gathered: size, push: false, is_full: false })
    }

    /// Adds the segment that follows; else gives it back.
    fn add(&mut self, mut frame: Frame) -> Result<(), Frame> {
        if self.is_full || !frame.is_plain() {
            return Err(frame);
        }
        let continued = self.headers.continues(self.frame.bytes(), self.gathered, frame.bytes());
        let Some(continued) = continued.filter(|it| {
            let packet = self.headers.payload - L3 + self.gathered + it.payload;
            it.payload <= self.size && packet <= LONGEST
        }) else {
            return Err(frame);
        };
        // From here on nobody looks at their checksums: they must be right, the first's too.
        let is_first = self.gathered == self.size;
        let holds = |frame: &Frame| self.headers.checksum_holds(frame.bytes());
        if !holds(&frame)
            || is_first && !holds(&self.frame)
            || frame.trim_front(self.headers.payload).is_err()
        {
            return Err(frame);
        }
        self.frame.append(frame);
        self.gathered += continued.payload;
        self.push = continued.is_last;
        self.is_full = continued.is_last || continued.payload < self.size;
        Ok(())
    }

    /// The packet as it is now.
    fn close(self) -> Frame {
        let Open { mut frame, headers, kind, size, gathered, push, .. } = self;
        if gathered == size {
            return frame;
        }
        headers.set_packet_len(frame.bytes_mut(), headers.payload - L3 + gathered);
        if push {
            headers.push(frame.bytes_mut());
        }
        headers.leave_checksum(frame.bytes_mut());
        frame.set_offload(Offload {
            checksum: Some(Partial { start: headers.l4 as u16, offset: tcp::CHECKSUM_AT as u16 }),
            segments: Some(Segments { kind, size: size as u16, header_len: headers.payload as u16 }),
        });
        frame
    }
}
