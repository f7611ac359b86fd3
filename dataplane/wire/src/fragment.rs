//! Cutting IPv4 packets to fit a link (RFC 791 section 3.2).
//!
//! The pieces are described, not copied: each has its header, and says which bytes of the packet come behind it.

use crate::bytes::put16;
use crate::ipv4::{self, Ipv4};
use crate::ipv6::Ipv6;
use crate::{Malformed, checksum};
use std::ops::Range;

/// Why a packet is not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotFragment {
    /// Its sender forbids it: answer "fragmentation needed".
    #[error("the packet may not be fragmented")]
    Forbidden,
    /// Not even eight bytes fit behind its header.
    #[error("eight bytes do not fit behind a header of {header_len} bytes in an MTU of {mtu}")]
    MtuTooSmall {
        /// Bytes of the header.
        header_len: usize,
        /// Bytes that fit the link.
        mtu: u16,
    },
    /// It breaks a rule.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// One piece of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    header: [u8; ipv4::MAX_HEADER_LEN],
    header_len: usize,
    payload: Range<usize>,
}

impl Piece {
    /// The piece's own header: 20 to 60 bytes, checksum included.
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
    }

    /// Which bytes of the packet come behind it, counted from the packet's first byte.
    pub fn payload(&self) -> Range<usize> {
        self.payload.clone()
    }
}

/// Header bytes to copy from, checksum and fragment fields not yet right.
#[derive(Clone, Copy, Debug)]
struct Model {
    bytes: [u8; ipv4::MAX_HEADER_LEN],
    len: usize,
}

/// The pieces of a packet, in order.
#[derive(Clone, Debug)]
pub struct Pieces {
    first: Model,
    later: Model,
    /// What is not yet cut, counted from the packet's first byte.
    rest: Range<usize>,
    /// Where `rest` belongs in the original payload, in bytes.
    offset: usize,
    /// Whether fragments behind the last piece follow.
    more: bool,
    mtu: usize,
    is_first: bool,
}

/// Cuts `packet` into pieces of at most `mtu` bytes; one that fits comes back whole, as one piece.
///
/// A packet that is a fragment itself is cut further: offsets go on from its own, and its last piece says "more
/// fragments" if it did. Options are copied into later pieces as their copied flag says.
pub fn pieces(packet: &[u8], mtu: u16) -> Result<Pieces, CannotFragment> {
    let view = Ipv4::new_checked(packet)?;
    let payload_len = view.payload().len();
    let aligned = !view.more_fragments() || payload_len.is_multiple_of(8);
    if !aligned || view.fragment_offset() + payload_len > usize::from(u16::MAX) {
        return Err(Malformed::BadFragment.into());
    }
    let header_len = view.header_len();
    let fits = usize::from(view.total_len()) <= usize::from(mtu);
    if view.dont_fragment() && !fits {
        return Err(CannotFragment::Forbidden);
    }
    if !fits && header_len + 8 > usize::from(mtu) {
        return Err(CannotFragment::MtuTooSmall { header_len, mtu });
    }
    let mut first = Model { bytes: [0; ipv4::MAX_HEADER_LEN], len: header_len };
    first.bytes[..header_len].copy_from_slice(&packet[..header_len]);
    Ok(Pieces {
        first,
        later: later_model(&view, &first)?,
        rest: header_len..header_len + payload_len,
        offset: view.fragment_offset(),
        more: view.more_fragments(),
        mtu: mtu.into(),
        is_first: true,
    })
}

/// The header of every piece but the first: only the options that are copied, padded to whole words.
fn later_model(view: &Ipv4<'_>, first: &Model) -> Result<Model, Malformed> {
    let mut later = Model { bytes: [0; ipv4::MAX_HEADER_LEN], len: ipv4::HEADER_LEN };
    later.bytes[..ipv4::HEADER_LEN].copy_from_slice(&first.bytes[..ipv4::HEADER_LEN]);
    for option in view.options() {
        let option = option?;
        if option.is_copied() {
            later.bytes[later.len..][..option.bytes.len()].copy_from_slice(option.bytes);
            later.len += option.bytes.len();
        }
    }
    // The bytes that pad are zero already: end of options.
    later.len = later.len.next_multiple_of(4);
    later.bytes[0] = 0x40 | (later.len / 4) as u8;
    Ok(later)
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.rest.is_empty() && !self.is_first {
            return None;
        }
        let model = if self.is_first { self.first } else { self.later };
        self.is_first = false;
        // Never zero: `pieces` has seen that eight bytes fit behind the first header, and no later one is longer.
        let room = (self.mtu - model.len) & !7;
        let fits = self.rest.len() <= self.mtu - model.len;
        let taken = if fits { self.rest.len() } else { room };
        let payload = self.rest.start..self.rest.start + taken;
        self.rest.start = payload.end;

        let Model { bytes: mut header, len: header_len } = model;
        let flags = u16::from_be_bytes([header[6], header[7]]) & ipv4::DONT_FRAGMENT;
        let more = if self.more || !fits { ipv4::MORE_FRAGMENTS } else { 0 };
        put16(&mut header, ipv4::TOTAL_LEN_AT, (header_len + taken) as u16);
        put16(&mut header, 6, flags | more | (self.offset / 8) as u16);
        put16(&mut header, ipv4::CHECKSUM_AT, 0);
        let checksum = checksum::sum(&header[..header_len]).finish();
        put16(&mut header, ipv4::CHECKSUM_AT, checksum);
        self.offset += taken;
        Some(Piece { header, header_len, payload })
    }
}

/// What ties the fragments of the IP packet at the start of `packet` together: 16 bits for IPv4 (RFC 791 section 3.1), 32 for
/// IPv6 (RFC 8200 section 4.5). `None` if it is no sound header, or an IPv6 packet that is not fragmented.
#[must_use]
pub fn identification(packet: &[u8]) -> Option<u32> {
    if packet.first()? >> 4 == 4 {
        return Some(Ipv4::new_checked(packet).ok()?.identification().into());
    }
    let view = Ipv6::new_checked(packet).ok()?;
    let header = view.extensions().find_map(|extension| extension.ok()?.fragment())?;
    Some(header.identification)
}
