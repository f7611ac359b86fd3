//! Tunnel headers made once and stamped in front of packets.
//!
//! ```text
//!  Ethernet | IPv4 or IPv6 | UDP | VXLAN or Geneve + options | inner Ethernet | inner IP packet ...
//!  <------------------------- len() -------------------------------------->
//!             <----------------------- overhead() ------------------------>
//! ```
//!
//! Everything but a few fields is the same for every packet to a peer. [`EncapTemplate::write`] copies the headers and
//! patches the rest: type of service, two lengths, the entropy (source port, and flow label over IPv6), the inner
//! Ethernet type and the checksums, whose constant part was summed when the template was made.

use crate::bytes::{put, put16};
use crate::checksum::{self, Sum};
use crate::dsr::ServedAs;
use crate::geneve::{self, GeneveOption, OPTION_HEADER_LEN, OptionsTooLong};
use crate::{MacAddr, Vni, ecn, ethernet, ipv4, ipv6, proto, udp, vxlan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the longest header that a template holds.
pub const MAX_LEN: usize = 128;
/// Source ports that the entropy is spread over: the dynamic ports, as RFC 7348 section 5 recommends.
pub const ENTROPY_PORTS: std::ops::RangeInclusive<u16> = 0xc000..=0xffff;
/// Bytes of the headers over an IPv4 underlay with no Geneve options: one cache line.
const V4_LEN: usize = 64;

/// Offset of the outer IP header.
const L3: usize = ethernet::HEADER_LEN;
/// Offset of UDP over IPv4.
const V4_L4: usize = L3 + ipv4::HEADER_LEN;
/// Offset of UDP over IPv6.
const V6_L4: usize = L3 + ipv6::HEADER_LEN;

/// How the outer DSCP is chosen; ECN is always copied (RFC 6040, normal mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DscpMode {
    /// That of the inner packet (RFC 2983, uniform model).
    Copy,
    /// Always this one, 0 to 63 (RFC 2983, pipe model); higher bits are ignored.
    Fixed(u8),
}

/// The two ends of an underlay path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OuterAddresses {
    /// An IPv4 underlay.
    V4 {
        /// Our tunnel endpoint.
        src: Ipv4Addr,
        /// The peer's.
        dst: Ipv4Addr,
    },
    /// An IPv6 underlay.
    V6 {
        /// Our tunnel endpoint.
        src: Ipv6Addr,
        /// The peer's.
        dst: Ipv6Addr,
    },
}

impl OuterAddresses {
    /// The two addresses, if they are of one family.
    pub const fn new(src: IpAddr, dst: IpAddr) -> Option<OuterAddresses> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Some(OuterAddresses::V4 { src, dst }),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Some(OuterAddresses::V6 { src, dst }),
            _ => None,
        }
    }
}

/// What a template is made from, apart from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OuterPath {
    /// Our station on the underlay link.
    pub src_mac: MacAddr,
    /// The next hop's station.
    pub dst_mac: MacAddr,
    /// The tunnel endpoints.
    pub addresses: OuterAddresses,
    /// The peer's UDP port: see [`vxlan::PORT`] and [`geneve::PORT`].
    pub dst_port: u16,
    /// Hops of the underlay.
    pub ttl: u8,
    /// How the outer DSCP is chosen.
    pub dscp: DscpMode,
    /// Whether UDP carries a checksum of everything inside. Without it IPv6 needs a peer that agrees (RFC 6935).
    pub udp_checksum: bool,
    /// The station that inner frames come from: our overlay router.
    pub inner_src_mac: MacAddr,
    /// The station that inner frames go to: the peer's overlay router.
    pub inner_dst_mac: MacAddr,
}

/// The headers of a tunnel to one peer in one network, but for what differs from packet to packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct EncapTemplate {
    bytes: [u8; MAX_LEN],
    /// The folded sum of the outer IPv4 header with type of service, length and checksum zero.
    ip_sum: u16,
    /// The folded sum of pseudo header, UDP, tunnel and inner Ethernet headers with lengths, source port and inner
    /// type zero.
    udp_sum: u16,
    len: u8,
    /// What the outer type of service has whatever is inside.
    tos_fixed: u8,
    /// Which bits of the inner type of service it copies.
    tos_copied: u8,
    is_ipv4: bool,
    udp_checksum: bool,
}

impl EncapTemplate {
    /// A VXLAN tunnel.
    pub fn vxlan(path: &OuterPath, vni: Vni) -> EncapTemplate {
        EncapTemplate::build(path, &vxlan::Repr { vni }.emit())
    }

    /// A Geneve tunnel; the options and all headers must fit [`MAX_LEN`] bytes: 64 bytes of options over IPv4, 44
    /// over IPv6.
    pub fn geneve(
        path: &OuterPath,
        vni: Vni,
        options: &[GeneveOption],
    ) -> Result<EncapTemplate, OptionsTooLong> {
        let bare = match path.addresses {
            OuterAddresses::V4 { .. } => V4_LEN,
            OuterAddresses::V6 { .. } => V4_LEN + ipv6::HEADER_LEN - ipv4::HEADER_LEN,
        };
        let header = geneve::Repr { vni, options }.emit(MAX_LEN - bare)?;
        Ok(EncapTemplate::build(path, &header))
    }

    /// Lays the headers out; the caller has seen that they fit.
    fn build(path: &OuterPath, tunnel: &[u8]) -> EncapTemplate {
        let mut headers = Vec::with_capacity(MAX_LEN);
        let (ethertype, is_ipv4) = match path.addresses {
            OuterAddresses::V4 { .. } => (ethernet::IPV4, true),
            OuterAddresses::V6 { .. } => (ethernet::IPV6, false),
        };
        headers.extend(ethernet::Repr { dst: path.dst_mac, src: path.src_mac, ethertype }.emit());
        let (pseudo, ip_sum) = match path.addresses {
            OuterAddresses::V4 { src, dst } => {
                let mut ip = ipv4::Repr {
                    src,
                    dst,
                    protocol: proto::UDP,
                    tos: 0,
                    ttl: path.ttl,
                    dont_fragment: true,
                    payload_len: 0,
                }
                .emit();
                put16(&mut ip, ipv4::TOTAL_LEN_AT, 0);
                put16(&mut ip, ipv4::CHECKSUM_AT, 0);
                headers.extend(ip);
                (checksum::pseudo_v4(src, dst, proto::UDP, 0), checksum::sum(&ip))
            }
            OuterAddresses::V6 { src, dst } => {
                let ip = ipv6::Repr {
                    src,
                    dst,
                    next_header: proto::UDP,
                    traffic_class: 0,
                    flow_label: 0,
                    hop_limit: path.ttl,
                    payload_len: 0,
                };
                headers.extend(ip.emit());
                (checksum::pseudo_v6(src, dst, proto::UDP, 0), Sum::ZERO)
            }
        };
        let l4 = headers.len();
        let mut udp = udp::Repr { src_port: 0, dst_port: path.dst_port, payload_len: 0 }.emit();
        put16(&mut udp, udp::LEN_AT, 0);
        headers.extend(udp);
        headers.extend(tunnel);
        headers
            .extend(ethernet::Repr { dst: path.inner_dst_mac, src: path.inner_src_mac, ethertype: 0 }.emit());

        let mut bytes = [0; MAX_LEN];
        bytes[..headers.len()].copy_from_slice(&headers);
        let (tos_fixed, tos_copied) = match path.dscp {
            DscpMode::Copy => (0, 0xff),
            DscpMode::Fixed(dscp) => (dscp << 2, ecn::MASK),
        };
        EncapTemplate {
            bytes,
            ip_sum: ip_sum.fold(),
            udp_sum: pseudo.add_bytes(&headers[l4..]).fold(),
            len: headers.len() as u8,
            tos_fixed,
            tos_copied,
            is_ipv4,
            udp_checksum: path.udp_checksum,
        }
    }

    /// Bytes in front of the inner IP packet.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "a template is never empty")]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Bytes from the outer IP header to the inner Ethernet header: what the underlay's MTU must hold beyond the
    /// inner IP packet. 50 for VXLAN over IPv4, 70 over IPv6.
    #[inline]
    pub const fn overhead(&self) -> usize {
        self.len() - ethernet::HEADER_LEN
    }

    /// Writes the headers into `head`, the [`len`](Self::len) bytes that end where the inner IP packet begins.
    ///
    /// `inner_len` is the length of that packet, `inner_tos` its type of service or traffic class and
    /// `inner_ethertype` its Ethernet type; `inner_l3` is the packet itself, read only for a UDP checksum (an empty
    /// slice does otherwise). `entropy` is a hash of the inner flow. The caller keeps `inner_len` within the path's
    /// MTU, so that no outer length overflows.
    ///
    /// # Panics
    ///
    /// If `head` has another length than the template.
    #[inline(always)]
    pub fn write(
        &self,
        head: &mut [u8],
        inner_l3: &[u8],
        inner_len: u16,
        inner_tos: u8,
        inner_ethertype: u16,
        entropy: u32,
    ) {
        let stamp = Stamp {
            len: inner_len,
            tos: self.tos_fixed | inner_tos & self.tos_copied,
            ethertype: inner_ethertype,
            entropy,
        };
        assert_eq!(head.len(), self.len(), "the room for tunnel headers has the template's length");
        if let Ok(head) = <&mut [u8; V4_LEN]>::try_from(&mut *head) {
            // The common tunnel, over IPv4 without options: one line, every offset a constant.
            put(head, 0, self.first_line());
            self.stamp_v4(head, stamp);
            put16(head, V4_LEN - 2, inner_ethertype);
        } else {
            self.write_long(head, stamp);
        }
        if self.udp_checksum {
            self.stamp_udp_checksum(head, inner_l3, stamp);
        }
    }

    /// Writes an address and port into the [`ServedAs`] option of a header that [`EncapTemplate::write`] has just written;
    /// false, and nothing done, unless the template ends with [`ServedAs::blank`] of the address's family.
    pub fn stamp_served_as(&self, head: &mut [u8], served_as: &ServedAs) -> bool {
        let option = served_as.emit();
        let option = &option[..served_as.option_len()];
        let end = self.len() - ethernet::HEADER_LEN;
        let (kind, data) = option.split_at(OPTION_HEADER_LEN);
        let at = end - data.len();
        if head.len() != self.len() || self.bytes[at - OPTION_HEADER_LEN..at] != *kind {
            return false;
        }
        head[at..end].copy_from_slice(data);
        if self.udp_checksum {
            // The template's own address and port are zero, and stand at an even offset.
            let l4 = if self.is_ipv4 { V4_L4 } else { V6_L4 };
            let field = &mut head[l4 + udp::CHECKSUM_AT..][..2];
            let old = !u16::from_be_bytes([field[0], field[1]]);
            let sum = checksum::sum(data).add16(old).finish();
            field.copy_from_slice(&udp::checksum_or_ones(sum).to_be_bytes());
        }
        true
    }

    #[inline(always)]
    fn first_line(&self) -> [u8; V4_LEN] {
        crate::bytes::array(&self.bytes, 0)
    }

    /// Headers with options or over IPv6.
    ///
    /// They are 65 to 128 bytes long, so two copies of 64 bytes that overlap cover them: cheaper than one copy of a
    /// length that the compiler does not know.
    #[inline(always)]
    fn write_long(&self, head: &mut [u8], stamp: Stamp) {
        let template = &self.bytes[..self.len()];
        let (Some(back), Some(from)) = (head.last_chunk_mut::<V4_LEN>(), template.last_chunk()) else {
            unreachable!("no tunnel header is shorter than {V4_LEN} bytes");
        };
        *back = *from;
        put16(back, V4_LEN - 2, stamp.ethertype);
        let Some(front) = head.first_chunk_mut::<V4_LEN>() else {
            unreachable!("no tunnel header is shorter than {V4_LEN} bytes");
        };
        *front = self.first_line();
        if self.is_ipv4 {
            self.stamp_v4(front, stamp);
        } else {
            self.stamp_v6(front, stamp);
        }
    }

    /// Sums everything behind the outer IP header.
    #[inline(never)]
    fn stamp_udp_checksum(&self, head: &mut [u8], inner_l3: &[u8], stamp: Stamp) {
        let l4 = if self.is_ipv4 { V4_L4 } else { V6_L4 };
        let length = self.udp_len(l4, stamp.len);
        // The length counts twice, in the pseudo header and in UDP's own.
        let sum = checksum::sum(inner_l3)
            .add16(self.udp_sum)
            .add16(length)
            .add16(length)
            .add16(stamp.source_port())
            .add16(stamp.ethertype);
        let field = &mut head[l4 + udp::CHECKSUM_AT..][..2];
        field.copy_from_slice(&udp::checksum_or_ones(sum.finish()).to_be_bytes());
    }

    /// Patches the outer IPv4 and UDP headers.
    #[inline(always)]
    fn stamp_v4(&self, head: &mut [u8; V4_LEN], stamp: Stamp) {
        let total_len = (self.overhead() as u16).wrapping_add(stamp.len);
        let checksum = Sum::ZERO.add16(self.ip_sum).add16(stamp.tos.into()).add16(total_len).finish();
        head[L3 + ipv4::TOS_AT] = stamp.tos;
        put16(head, L3 + ipv4::TOTAL_LEN_AT, total_len);
        put16(head, L3 + ipv4::CHECKSUM_AT, checksum);
        put16(head, V4_L4, stamp.source_port());
        put16(head, V4_L4 + udp::LEN_AT, self.udp_len(V4_L4, stamp.len));
    }

    /// Patches the outer IPv6 and UDP headers.
    #[inline(always)]
    fn stamp_v6(&self, head: &mut [u8; V4_LEN], stamp: Stamp) {
        let udp_len = self.udp_len(V6_L4, stamp.len);
        put(head, L3, ipv6::first_word(stamp.tos, stamp.flow_label()).to_be_bytes());
        put16(head, L3 + ipv6::PAYLOAD_LEN_AT, udp_len);
        put16(head, V6_L4, stamp.source_port());
        put16(head, V6_L4 + udp::LEN_AT, udp_len);
    }

    #[inline(always)]
    fn udp_len(&self, l4: usize, inner_len: u16) -> u16 {
        (self.len() as u16).wrapping_sub(l4 as u16).wrapping_add(inner_len)
    }
}

/// What differs from packet to packet.
#[derive(Clone, Copy)]
struct Stamp {
    /// Bytes of the inner IP packet.
    len: u16,
    /// The outer type of service.
    tos: u8,
    /// The inner Ethernet type.
    ethertype: u16,
    entropy: u32,
}

impl Stamp {
    /// Both halves of the hash count, in case one is poor.
    #[inline(always)]
    fn source_port(self) -> u16 {
        (self.entropy ^ self.entropy >> 16) as u16 | *ENTROPY_PORTS.start()
    }

    /// The flow label that RFC 6438 wants of tunnels; never zero, which would mean "none".
    #[inline(always)]
    fn flow_label(self) -> u32 {
        self.entropy & 0xf_ffff | 1
    }
}
