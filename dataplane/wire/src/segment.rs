//! Packets that are several: TCP and UDP packets longer than any link, which are cut where they leave for one, and packets
//! of one flow that are put together for a receiver who takes them so.
//!
//! A frame here begins with Ethernet without tags, and its IP header has no extensions if it is to be cut.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, Sum};
use crate::{Malformed, ethernet, ipv4, ipv6, proto, tcp, udp};

/// Offset of the IP header.
const L3: usize = ethernet::HEADER_LEN;
/// Offset of the protocol in an IPv4 header (RFC 791 section 3.1).
const V4_PROTOCOL_AT: usize = 9;
/// Offset of the header checksum in an IPv4 header.
const V4_CHECKSUM_AT: usize = 10;
/// Offset of the identification in an IPv4 header.
const V4_ID_AT: usize = 4;
/// Offset of the flags and the fragment offset in an IPv4 header.
const V4_FRAGMENT_AT: usize = 6;
/// Offset of the next header in an IPv6 header (RFC 8200 section 3).
const V6_NEXT_AT: usize = 6;
/// Offset of the sequence number in a TCP header (RFC 9293 section 3.1).
const TCP_SEQUENCE_AT: usize = 4;
/// Congestion window reduced (RFC 3168): said once, by the first segment.
const CWR: u8 = 0x80;

/// Where the headers of a frame lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Whether it is IPv4, else IPv6.
    pub is_ipv4: bool,
    /// The protocol behind the IP header.
    pub protocol: u8,
    /// Whether the packet is a fragment of another (seen for IPv4; IPv6 says so in an extension header).
    pub is_fragment: bool,
    /// Offset of what is behind the IP header.
    pub l4: usize,
    /// Offset of what is behind TCP's or UDP's header; `l4` for other protocols and for fragments.
    pub payload: usize,
}

impl Headers {
    /// The headers of a frame, of which the first bytes do.
    ///
    /// # Errors
    /// [`Malformed`] when it is not IP or ends before its headers do.
    pub fn of(frame: &[u8]) -> Result<Headers, Malformed> {
        let ethertype = frame.get(ethernet::TYPE_AT..L3).ok_or(Malformed::Truncated)?;
        let packet = &frame[L3..];
        let headers = match u16::from_be_bytes([ethertype[0], ethertype[1]]) {
            ethernet::IPV4 => {
                let header: &[u8; ipv4::HEADER_LEN] = packet.first_chunk().ok_or(Malformed::Truncated)?;
                let len = usize::from(header[0] & 0xf) * ipv4::WORD;
                if header[0] >> 4 != 4 {
                    return Err(Malformed::BadVersion);
                }
                if len < ipv4::HEADER_LEN || len > packet.len() {
                    return Err(Malformed::BadHeaderLength);
                }
                let word = u16::from_be_bytes([header[V4_FRAGMENT_AT], header[V4_FRAGMENT_AT + 1]]);
                let is_fragment = word & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) != 0;
                let protocol = header[V4_PROTOCOL_AT];
                Headers { is_ipv4: true, protocol, is_fragment, l4: L3 + len, payload: L3 + len }
            }
            ethernet::IPV6 => {
                let header: &[u8; ipv6::HEADER_LEN] = packet.first_chunk().ok_or(Malformed::Truncated)?;
                if header[0] >> 4 != 6 {
                    return Err(Malformed::BadVersion);
                }
                let l4 = L3 + ipv6::HEADER_LEN;
                let protocol = header[V6_NEXT_AT];
                Headers { is_ipv4: false, protocol, is_fragment: false, l4, payload: l4 }
            }
            _ => return Err(Malformed::BadVersion),
        };
        Ok(Headers { payload: headers.payload_of(frame)?, ..headers })
    }

    fn payload_of(&self, frame: &[u8]) -> Result<usize, Malformed> {
        let segment = &frame[self.l4..];
        let len = match self.protocol {
            _ if self.is_fragment => 0,
            proto::TCP => match segment.get(tcp::OFFSET_AT) {
                Some(offset) if usize::from(offset >> 4) * 4 >= tcp::HEADER_LEN => {
                    usize::from(offset >> 4) * 4
                }
                Some(_) => return Err(Malformed::BadHeaderLength),
                None => return Err(Malformed::Truncated),
            },
            proto::UDP => udp::HEADER_LEN,
            _ => 0,
        };
        if len > segment.len() { Err(Malformed::Truncated) } else { Ok(self.l4 + len) }
    }

    /// Where the transport checksum stands, if the packet has one that a device may be left to finish.
    #[must_use]
    pub fn checksum_at(&self) -> Option<usize> {
        match self.protocol {
            _ if self.is_fragment => None,
            proto::TCP => Some(self.l4 + tcp::CHECKSUM_AT),
            proto::UDP => Some(self.l4 + udp::CHECKSUM_AT),
            _ => None,
        }
    }

    /// The length of the IP packet, as its header says it.
    #[must_use]
    pub fn packet_len(&self, frame: &[u8]) -> usize {
        if self.is_ipv4 {
            usize::from(get16(frame, L3 + ipv4::TOTAL_LEN_AT))
        } else {
            ipv6::HEADER_LEN + usize::from(get16(frame, L3 + ipv6::PAYLOAD_LEN_AT))
        }
    }

    /// Lets the IP header say another length, at most 65 535 bytes, and an IPv4 header's checksum agree.
    pub fn set_packet_len(&self, frame: &mut [u8], len: usize) {
        if self.is_ipv4 {
            change_v4(frame, ipv4::TOTAL_LEN_AT, len as u16);
        } else {
            put16(frame, L3 + ipv6::PAYLOAD_LEN_AT, (len - ipv6::HEADER_LEN) as u16);
        }
    }

    /// The length that a UDP header says, its own eight bytes included.
    #[must_use]
    pub fn datagram_len(&self, frame: &[u8]) -> u16 {
        get16(frame, self.l4 + udp::LEN_AT)
    }

    /// Lets a UDP header say another length.
    pub fn set_datagram_len(&self, frame: &mut [u8], len: u16) {
        put16(frame, self.l4 + udp::LEN_AT, len);
    }

    /// The sum of the pseudo header of a segment of `len` bytes (RFC 9293 section 3.1, RFC 8200 section 8.1).
    #[must_use]
    pub fn pseudo(&self, frame: &[u8], len: usize) -> Sum {
        if self.is_ipv4 {
            let [src, dst] = [12, 16].map(|at| Ipv4Addr::from(bytes::<4>(frame, L3 + at)));
            checksum::pseudo_v4(src, dst, self.protocol, len as u16)
        } else {
            let [src, dst] = [8, 24].map(|at| Ipv6Addr::from(bytes::<16>(frame, L3 + at)));
            checksum::pseudo_v6(src, dst, self.protocol, len as u32)
        }
    }

    /// Leaves a packet's checksum to whoever sends it: the field holds the pseudo header's sum alone.
    pub fn leave_checksum(&self, frame: &mut [u8]) {
        let Some(at) = self.checksum_at() else { return };
        let len = self.packet_len(frame) + L3 - self.l4;
        let pseudo = self.pseudo(frame, len).fold();
        put16(frame, at, pseudo);
    }

    /// Finishes the checksum of a packet of which `frame` is the beginning, and `behind` the sum of the rest
    /// ([`sum_behind`]).
    pub fn finish_checksum(&self, frame: &mut [u8], behind: Sum) {
        let Some(at) = self.checksum_at() else { return };
        put16(frame, at, 0);
        let len = self.packet_len(frame) + L3 - self.l4;
        let checksum = self.pseudo(frame, len).add(checksum::sum(&frame[self.l4..])).add(behind).finish();
        put16(
            frame,
            at,
            if self.protocol == proto::UDP { udp::checksum_or_ones(checksum) } else { checksum },
        );
    }

    /// Makes a frame, the headers of a packet with part of its payload behind them, the packet that it is on its own.
    pub fn cut(&self, frame: &mut [u8], part: Part) {
        self.set_packet_len(frame, frame.len() - L3);
        if self.is_ipv4 {
            let id = get16(frame, L3 + V4_ID_AT).wrapping_add(part.index);
            change_v4(frame, V4_ID_AT, id);
        }
        match self.protocol {
            proto::TCP => {
                let at = self.l4 + TCP_SEQUENCE_AT;
                let sequence = u32::from_be_bytes(bytes(frame, at)).wrapping_add(part.offset);
                frame[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
                let flags = &mut frame[self.l4 + tcp::FLAGS_AT];
                if !part.is_last {
                    *flags &= !(tcp::FIN | tcp::PSH);
                }
                if part.index > 0 {
                    *flags &= !CWR;
                }
            }
            _ => self.set_datagram_len(frame, (frame.len() - self.l4) as u16),
        }
        self.finish_checksum(frame, Sum::ZERO);
    }

    /// How the frame `next` goes on where a packet ends whose headers are in `first`: the payload that it adds, if both are
    /// whole and sound segments of one TCP connection that say the same, and nothing that must be heard at once.
    ///
    /// `gathered` is the payload of the packet so far; the frames are as long as their packets.
    #[must_use]
    pub fn continues(&self, first: &[u8], gathered: usize, next: &[u8]) -> Option<Continued> {
        let other = Headers::of(next).ok().filter(|other| other == self && self.protocol == proto::TCP)?;
        let same = |range: std::ops::Range<usize>| first.get(range.clone()) == next.get(range);
        // Ethernet, and of IP all but lengths, identification and checksum.
        let same_ip = if self.is_ipv4 {
            same(0..L3 + ipv4::TOTAL_LEN_AT)
                && same(L3 + V4_FRAGMENT_AT..L3 + V4_CHECKSUM_AT)
                && same(L3 + V4_CHECKSUM_AT + 2..self.l4)
                && !self.is_fragment
                && get16(first, L3 + V4_FRAGMENT_AT) & ipv4::DONT_FRAGMENT != 0
        } else {
            same(0..L3 + ipv6::PAYLOAD_LEN_AT) && same(L3 + V6_NEXT_AT..self.l4)
        };
        let [was, is] = [first, next].map(|frame| frame[self.l4 + tcp::FLAGS_AT]);
        let sequence = |frame: &[u8]| u32::from_be_bytes(bytes(frame, self.l4 + TCP_SEQUENCE_AT));
        // Ports; the acknowledgement and the header's length; the window; the urgent pointer and the options.
        let same_tcp = same(self.l4..self.l4 + TCP_SEQUENCE_AT)
            && same(self.l4 + TCP_SEQUENCE_AT + 4..self.l4 + tcp::FLAGS_AT)
            && same(self.l4 + tcp::FLAGS_AT + 1..self.l4 + tcp::CHECKSUM_AT)
            && same(self.l4 + tcp::CHECKSUM_AT + 2..self.payload);
        let follows = sequence(next) == sequence(first).wrapping_add(gathered as u32);
        let payload = next.len().checked_sub(other.payload)?;
        let is_whole = self.packet_len(next) + L3 == next.len();
        let plain = was == tcp::ACK && is & !tcp::PSH == tcp::ACK;
        if !(same_ip && same_tcp && follows && plain && is_whole && payload > 0) {
            return None;
        }
        Some(Continued { payload, is_last: is & tcp::PSH != 0 })
    }

    /// Whether the transport checksum of a whole packet in one frame is right.
    #[must_use]
    pub fn checksum_holds(&self, frame: &[u8]) -> bool {
        self.pseudo(frame, frame.len() - self.l4).add(checksum::sum(&frame[self.l4..])).is_valid()
    }

    /// Takes over from a packet's last segment that its receiver is to be given the bytes at once.
    pub fn push(&self, frame: &mut [u8]) {
        frame[self.l4 + tcp::FLAGS_AT] |= tcp::PSH;
    }
}

/// A segment that goes on where a packet ends, see [`Headers::continues`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continued {
    /// Bytes of payload.
    pub payload: usize,
    /// Whether nothing may be put behind it.
    pub is_last: bool,
}

/// Which part of a packet's payload a segment carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The segment's number, from zero.
    pub index: u16,
    /// Bytes of payload in the segments before it.
    pub offset: u32,
    /// Whether it is the last.
    pub is_last: bool,
}

/// The sum of the rest of a packet, in pieces of any length, behind the `before` bytes that are summed apart.
pub fn sum_behind<'a>(before: usize, pieces: impl Iterator<Item = &'a [u8]>) -> Sum {
    let mut is_odd = before % 2 == 1;
    pieces.fold(Sum::ZERO, |sum, piece| {
        let own = checksum::sum(piece);
        // Of bytes that begin in the middle of a word the sum has its halves exchanged (RFC 1071 section 2B).
        let own = if is_odd { Sum::ZERO.add16(own.fold().swap_bytes()) } else { own };
        is_odd ^= piece.len() % 2 == 1;
        sum.add(own)
    })
}

/// Changes a word of an option-free or other IPv4 header, and its checksum with it (RFC 1624).
fn change_v4(frame: &mut [u8], at: usize, value: u16) {
    let old = get16(frame, L3 + at);
    put16(frame, L3 + at, value);
    let checksum = !get16(frame, L3 + V4_CHECKSUM_AT);
    let sum = Sum::ZERO.add16(checksum).add16(!old).add16(value);
    put16(frame, L3 + V4_CHECKSUM_AT, sum.finish());
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&frame[at..at + N]);
    out
}

fn get16(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes(frame, at))
}

fn put16(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
