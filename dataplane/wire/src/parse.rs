//! From Ethernet to ports in one pass: what a worker asks of every packet.
//!
//! ```text
//!  frame -> [plain: Ethernet + IPv4 without options or fragments + TCP or UDP] -> Parsed
//!             | anything else
//!             v
//!           VLAN tags -> IPv4 | IPv6 -> extension headers -> fragment -> ports -> Parsed
//! ```
//!
//! The plain path reads one fixed window at constant offsets; a property test holds it to the general path.
//! A packet that breaks a rule which a receiver's kernel would enforce is refused here, whoever it is for.

use crate::bytes::{array, be16, be32};
use crate::{Malformed, checksum, ethernet, icmp, icmpv6, ipv4, ipv6, proto, sctp, tcp, udp, vlan};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where the parts of a packet begin and end, and who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Offset of the header behind Ethernet and its tags.
    pub l3: u16,
    /// Offset of the transport header, or of what a later fragment carries; `l3` for what is not IP.
    pub l4: u16,
    /// Offset just past the IP packet; Ethernet padding lies beyond. The frame's length for what is not IP.
    pub end: u16,
    /// The outermost VLAN, 1 to 4095; 0 for no tag or one that carries a priority only (`l3` tells them apart).
    pub vlan: u16,
    /// What the frame carries.
    pub net: Net,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// An IPv4 packet.
    V4(V4Flow),
    /// An IPv6 packet.
    V6(V6Flow),
    /// An ARP message, not looked into.
    Arp,
    /// Some other Ethernet type, or a length below 0x0600 (IEEE 802.3), or a third VLAN tag.
    Other(u16),
}

/// Who speaks to whom in an IPv4 packet.
///
/// Ports: those of TCP, UDP and SCTP. ICMP has its type and code in `dport`, and the identifier of an echo in `sport`.
/// Zero for other protocols and for later fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4Flow {
    /// The sender.
    pub src: Ipv4Addr,
    /// The receiver.
    pub dst: Ipv4Addr,
    /// The transport protocol, see [`proto`].
    pub proto: u8,
    /// The sender's port.
    pub sport: u16,
    /// The receiver's port.
    pub dport: u16,
    /// DSCP and ECN.
    pub tos: u8,
    /// Hops left.
    pub ttl: u8,
    /// Whether routers must not fragment.
    pub dont_fragment: bool,
    /// Which part of a packet this is.
    pub fragment: Fragment,
    /// Whether the header has options.
    pub options: bool,
}

/// Who speaks to whom in an IPv6 packet; ports as in [`V4Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6Flow {
    /// The sender.
    pub src: Ipv6Addr,
    /// The receiver.
    pub dst: Ipv6Addr,
    /// The transport protocol behind the extension headers, see [`proto`].
    pub proto: u8,
    /// The sender's port.
    pub sport: u16,
    /// The receiver's port.
    pub dport: u16,
    /// DSCP and ECN.
    pub tclass: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// The flow label, 20 bits.
    pub flow_label: u32,
    /// Which part of a packet this is.
    pub fragment: Fragment,
    /// Whether there are extension headers.
    pub extensions: bool,
}

/// Which part of a packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later fragment: it has no ports.
    Later,
}

/// The least bytes of a plain frame: Ethernet, IPv4 and UDP, or as much of TCP.
const PLAIN_LEN: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;
/// Offset of IPv4 in a plain frame.
const PLAIN_L3: usize = ethernet::HEADER_LEN;
/// Offset of the transport header in a plain frame.
const PLAIN_L4: usize = PLAIN_L3 + ipv4::HEADER_LEN;
/// Offset of TCP's header length in a plain frame.
const PLAIN_TCP_OFFSET: usize = PLAIN_L4 + tcp::OFFSET_AT;

/// Parses a frame from its Ethernet header on.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Parsed, Malformed> {
    match plain(frame) {
        Some(parsed) => Ok(parsed),
        None => parse_any(frame),
    }
}

/// The common case, or `None` for all else, sound or not.
///
/// A caller that takes the two cases apart itself keeps the common one in registers.
#[inline(always)]
pub fn plain(frame: &[u8]) -> Option<Parsed> {
    let start: &[u8; PLAIN_L3 + 1] = frame.first_chunk()?;
    let is_ipv4 = be16(start, ethernet::TYPE_AT) == ethernet::IPV4 && start[PLAIN_L3] == PLAIN_IPV4;
    if is_ipv4 { plain_ipv4(frame) } else { None }
}

/// The first byte of a plain packet: IPv4 with a header of twenty bytes.
pub const PLAIN_IPV4: u8 = 0x45;

/// As [`plain`], of a frame whose Ethernet type the caller has seen to be IPv4's, and the byte behind it [`PLAIN_IPV4`].
#[inline(always)]
pub fn plain_ipv4(frame: &[u8]) -> Option<Parsed> {
    let window: &[u8; PLAIN_LEN] = frame.first_chunk()?;
    let fragment_word = be16(window, PLAIN_L3 + 6);
    let is_whole = fragment_word & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) == 0;
    let end = PLAIN_L3 + usize::from(be16(window, PLAIN_L3 + ipv4::TOTAL_LEN_AT));
    let fits = end <= frame.len() && frame.len() <= usize::from(u16::MAX);
    let header: &[u8; ipv4::HEADER_LEN] = window[PLAIN_L3..].first_chunk()?;
    if !(is_whole & fits) || !checksum::verify_ipv4_header(header) {
        return None;
    }
    let protocol = header[9];
    let is_sound = if protocol == proto::UDP {
        let length = usize::from(be16(window, PLAIN_L4 + udp::LEN_AT));
        length >= udp::HEADER_LEN && PLAIN_L4 + length <= end
    } else if protocol == proto::TCP {
        let header_len = usize::from(*frame.get(PLAIN_TCP_OFFSET)? >> 4) * 4;
        header_len >= tcp::HEADER_LEN && PLAIN_L4 + header_len <= end
    } else {
        false
    };
    if !is_sound {
        return None;
    }
    let flow = V4Flow {
        src: Ipv4Addr::from_bits(be32(header, 12)),
        dst: Ipv4Addr::from_bits(be32(header, 16)),
        proto: protocol,
        sport: be16(window, PLAIN_L4),
        dport: be16(window, PLAIN_L4 + 2),
        tos: header[ipv4::TOS_AT],
        ttl: header[ipv4::TTL_AT],
        dont_fragment: fragment_word & ipv4::DONT_FRAGMENT != 0,
        fragment: Fragment::Whole,
        options: false,
    };
    Some(Parsed { l3: PLAIN_L3 as u16, l4: PLAIN_L4 as u16, end: end as u16, vlan: 0, net: Net::V4(flow) })
}

/// Any frame, and what to ask for one that is not [`plain`]: tags, options, fragments, IPv6, and whatever is broken.
#[inline(never)]
pub fn parse_any(frame: &[u8]) -> Result<Parsed, Malformed> {
    let header: &[u8; ethernet::HEADER_LEN] = frame.first_chunk().ok_or(Malformed::Truncated)?;
    let mut ethertype = be16(header, ethernet::TYPE_AT);
    let mut l3 = ethernet::HEADER_LEN;
    let mut vlan = 0;
    for level in 0..2 {
        if ethertype != ethernet::VLAN && ethertype != ethernet::SERVICE_VLAN {
            break;
        }
        let tag = vlan::Vlan::new_checked(&frame[l3..])?;
        if level == 0 {
            vlan = tag.id();
        }
        ethertype = tag.ethertype();
        l3 += vlan::HEADER_LEN;
    }
    Ok(Parsed { vlan, ..Walk { bytes: frame, l3, quoted: false }.net(ethertype)? })
}

/// Parses a packet that begins with the header which `ethertype` names; offsets count from there.
pub fn parse_l3(ethertype: u16, packet: &[u8]) -> Result<Parsed, Malformed> {
    Walk { bytes: packet, l3: 0, quoted: false }.net(ethertype)
}

/// Parses the beginning of a packet, as an ICMP error quotes it.
///
/// A quotation may end anywhere behind the ports, and routers have changed its header on the way, so neither its
/// length fields nor its checksum are held against it; `end` is where the packet or the quotation ends, whichever is
/// nearer.
pub fn parse_quoted(ethertype: u16, packet: &[u8]) -> Result<Parsed, Malformed> {
    Walk { bytes: packet, l3: 0, quoted: true }.net(ethertype)
}

/// A packet on its way through the general parser.
#[derive(Clone, Copy)]
struct Walk<'a> {
    bytes: &'a [u8],
    l3: usize,
    /// Whether this is the beginning of a packet only.
    quoted: bool,
}

impl Walk<'_> {
    fn net(self, ethertype: u16) -> Result<Parsed, Malformed> {
        let end = u16::try_from(self.bytes.len()).map_err(|_| Malformed::FrameTooLong)?;
        match ethertype {
            ethernet::IPV4 => self.v4(),
            ethernet::IPV6 => self.v6(),
            ethernet::ARP => Ok(Parsed { end, ..self.found(self.l3, end.into(), Net::Arp) }),
            other => Ok(Parsed { end, ..self.found(self.l3, end.into(), Net::Other(other)) }),
        }
    }

    /// The offsets fit because `net` has seen that the frame's length does.
    fn found(self, l4: usize, end: usize, net: Net) -> Parsed {
        Parsed { l3: self.l3 as u16, l4: l4 as u16, end: end as u16, vlan: 0, net }
    }

    fn v4(self) -> Result<Parsed, Malformed> {
        let packet = &self.bytes[self.l3..];
        let header: &[u8; ipv4::HEADER_LEN] = packet.first_chunk().ok_or(Malformed::Truncated)?;
        if header[0] >> 4 != 4 {
            return Err(Malformed::BadVersion);
        }
        let header_len = usize::from(header[0] & 0xf) * 4;
        if header_len < ipv4::HEADER_LEN {
            return Err(Malformed::BadHeaderLength);
        }
        let total_len = usize::from(be16(header, ipv4::TOTAL_LEN_AT));
        if total_len < header_len {
            return Err(Malformed::BadTotalLength);
        }
        let packet = self.clip(packet, total_len)?;
        let (header_bytes, payload) = packet.split_at_checked(header_len).ok_or(Malformed::Truncated)?;
        if !self.quoted && !checksum::verify(header_bytes) {
            return Err(Malformed::BadChecksum);
        }
        let word = be16(header, 6);
        let part = Part {
            offset: usize::from(word & ipv4::FRAGMENT_OFFSET) * 8,
            more: word & ipv4::MORE_FRAGMENTS != 0,
            len: total_len - header_len,
        };
        let protocol = header[9];
        let fragment = part.check()?;
        if fragment == Fragment::Later && protocol == proto::TCP && part.offset == 8 {
            // RFC 3128: it would overwrite the flags of the first fragment.
            return Err(Malformed::TinyFragment);
        }
        let (sport, dport) = self.ports(protocol, payload, fragment)?;
        let flow = V4Flow {
            src: Ipv4Addr::from_bits(be32(header, 12)),
            dst: Ipv4Addr::from_bits(be32(header, 16)),
            proto: protocol,
            sport,
            dport,
            tos: header[ipv4::TOS_AT],
            ttl: header[ipv4::TTL_AT],
            dont_fragment: word & ipv4::DONT_FRAGMENT != 0,
            fragment,
            options: header_len > ipv4::HEADER_LEN,
        };
        Ok(self.found(self.l3 + header_len, self.l3 + packet.len(), Net::V4(flow)))
    }

    fn v6(self) -> Result<Parsed, Malformed> {
        let packet = &self.bytes[self.l3..];
        let header: &[u8; ipv6::HEADER_LEN] = packet.first_chunk().ok_or(Malformed::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(Malformed::BadVersion);
        }
        let payload_len = usize::from(be16(header, ipv6::PAYLOAD_LEN_AT));
        let packet = self.clip(packet, ipv6::HEADER_LEN + payload_len)?;

        let mut walk = ipv6::Extensions::new(header[6], &packet[ipv6::HEADER_LEN..]);
        let mut fragment = Fragment::Whole;
        while let Some(extension) = walk.next() {
            let extension = extension.map_err(|rule| match (rule, fragment) {
                // RFC 7112: the first fragment has the whole chain.
                (Malformed::Truncated, Fragment::First) => Malformed::TinyFragment,
                (rule, _) => rule,
            })?;
            if let Some(ipv6::FragmentHeader { offset, more, .. }) = extension.fragment() {
                if fragment != Fragment::Whole {
                    // A fragment in a fragment: nothing sends that.
                    return Err(Malformed::BadExtension);
                }
                let behind = packet.len() - walk.rest().len() - ipv6::HEADER_LEN;
                fragment = Part { offset, more, len: payload_len - behind }.check()?;
            }
        }
        let protocol = walk.next_header();
        let (sport, dport) = self.ports(protocol, walk.rest(), fragment)?;
        let first_word = be32(header, 0);
        let flow = V6Flow {
            src: Ipv6Addr::from(array::<40, 16>(header, 8)),
            dst: Ipv6Addr::from(array::<40, 16>(header, 24)),
            proto: protocol,
            sport,
            dport,
            tclass: (first_word >> 20) as u8,
            hop_limit: header[ipv6::HOP_LIMIT_AT],
            flow_label: first_word & 0xf_ffff,
            fragment,
            extensions: walk.rest().len() < packet.len() - ipv6::HEADER_LEN,
        };
        let l4 = self.l3 + packet.len() - walk.rest().len();
        Ok(self.found(l4, self.l3 + packet.len(), Net::V6(flow)))
    }

    /// The `length` bytes that the IP header claims; of a quotation what there is of them.
    fn clip(self, packet: &[u8], length: usize) -> Result<&[u8], Malformed> {
        match packet.get(..length) {
            Some(whole) => Ok(whole),
            None if self.quoted => Ok(packet),
            None => Err(Malformed::BadTotalLength),
        }
    }

    /// The ports in `segment`, once its header is sound.
    fn ports(self, protocol: u8, segment: &[u8], fragment: Fragment) -> Result<(u16, u16), Malformed> {
        if fragment == Fragment::Later {
            return Ok((0, 0));
        }
        // ICMP quotes at least eight bytes of the transport header (RFC 792).
        let least = match protocol {
            proto::TCP if !self.quoted => tcp::HEADER_LEN,
            proto::SCTP if !self.quoted => sctp::HEADER_LEN,
            proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6 => 8,
            _ => return Ok((0, 0)),
        };
        let window: &[u8; 8] = match segment.first_chunk() {
            Some(window) if segment.len() >= least => window,
            _ if fragment == Fragment::First => return Err(Malformed::TinyFragment),
            _ => return Err(Malformed::Truncated),
        };
        let whole = !self.quoted && fragment == Fragment::Whole;
        match protocol {
            proto::UDP => {
                let length = usize::from(be16(window, udp::LEN_AT));
                if length < udp::HEADER_LEN || whole && length > segment.len() {
                    return Err(Malformed::BadSegmentLength);
                }
            }
            proto::TCP if !self.quoted => {
                let header_len = usize::from(segment[tcp::OFFSET_AT] >> 4) * 4;
                if header_len < tcp::HEADER_LEN || whole && header_len > segment.len() {
                    return Err(Malformed::BadHeaderLength);
                }
            }
            proto::ICMP => return Ok(icmp_ports(window, icmp::is_echo(window[0]))),
            proto::ICMPV6 => return Ok(icmp_ports(window, icmpv6::is_echo(window[0]))),
            _ => {}
        }
        Ok((be16(window, 0), be16(window, 2)))
    }
}

/// An echo's identifier (else 0), and type and code.
fn icmp_ports(window: &[u8; 8], is_echo: bool) -> (u16, u16) {
    (if is_echo { be16(window, 4) } else { 0 }, be16(window, 0))
}

/// Where a part of a packet belongs, in bytes.
struct Part {
    offset: usize,
    more: bool,
    len: usize,
}

impl Part {
    fn check(&self) -> Result<Fragment, Malformed> {
        if self.offset + self.len > usize::from(u16::MAX)
            || self.more && (self.len == 0 || !self.len.is_multiple_of(8))
        {
            return Err(Malformed::BadFragment);
        }
        Ok(match (self.offset, self.more) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        })
    }
}
