//! Who speaks to whom, as one direction of a connection is told from all others.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use penstock_wire::rewrite::Change;
use penstock_wire::{icmp, icmpv6, proto};

/// A network whose addresses mean something of their own: 24 bits, as a VNI.
///
/// Connections outlive the daemon, so the number must be the same after a restart: a VNI is, a place in a list is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(u32);

impl NetworkId {
    /// The network of that number; `None` from 2^24 on.
    #[must_use]
    pub const fn new(number: u32) -> Option<NetworkId> {
        if number < 1 << 24 { Some(NetworkId(number)) } else { None }
    }

    /// The network's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the packet that opened it.
    Original,
    /// The other way.
    Reply,
}

impl Direction {
    /// The other way.
    #[inline]
    #[must_use]
    pub const fn other(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// A random number that tuples are hashed with, so that nobody outside can choose tuples that collide.
#[derive(Clone, Copy, Debug)]
pub struct HashSeed(pub(crate) [u64; 2]);

impl HashSeed {
    /// The seed of those random words, e.g. a shared region's.
    #[must_use]
    pub const fn new(random: [u64; 2]) -> HashSeed {
        HashSeed([random[0] | 1, random[1] | 1])
    }
}

const SRC: usize = 0;
const DST: usize = 2;
const REST: usize = 4;
/// What stands before the address in the lower half of an IPv4-mapped one (RFC 4291 section 2.5.5.2).
const MAPPED: u64 = 0xffff;
/// The upper half of an address that no packet has: a tuple with it stands for any address.
const ANY: u64 = u64::MAX;

/// Network, addresses, protocol and ports of a packet: 40 bytes.
///
/// IPv4 addresses are held as IPv4-mapped ones. Ports are as [`penstock_wire::parse`] gives them: an ICMP echo has its
/// identifier in the source port and its type in the destination port, so that a request is never taken for a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub(crate) words: [u64; 5],
}

impl Tuple {
    /// The tuple of a packet; `None` for what no connection is made of: groups and unspecified addresses, ICMP other
    /// than echo, IPv4-mapped IPv6 addresses (which nobody sends, RFC 4291 section 2.5.5.2), mixed families.
    #[must_use]
    pub fn new(
        network: NetworkId,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        sport: u16,
        dport: u16,
    ) -> Option<Tuple> {
        let dport = if is_icmp(protocol) {
            if !is_echo(src, protocol, dport) {
                return None;
            }
            dport & 0xff00
        } else {
            dport
        };
        Tuple::between(network, src, dst, protocol, sport, dport)
    }

    /// What stands for an ICMP message of which no connection is kept, where it must be spoken of like one: type and code
    /// are in the destination port. `None` for echoes, for all that is not ICMP, and for addresses that [`Tuple::new`]
    /// does not take.
    #[must_use]
    pub fn of_message(
        network: NetworkId,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        dport: u16,
    ) -> Option<Tuple> {
        if !is_icmp(protocol) || is_echo(src, protocol, dport) {
            return None;
        }
        Tuple::between(network, src, dst, protocol, 0, dport)
    }

    fn between(
        network: NetworkId,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        sport: u16,
        dport: u16,
    ) -> Option<Tuple> {
        let speaks = |address: IpAddr| !address.is_unspecified() && !address.is_multicast();
        let mapped = |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        if src.is_ipv4() != dst.is_ipv4() || !speaks(src) || !speaks(dst) || mapped(src) || mapped(dst) {
            return None;
        }
        let rest =
            u64::from(sport) << 48 | u64::from(dport) << 32 | u64::from(network.0) << 8 | u64::from(protocol);
        let (src, dst) = (halves(src), halves(dst));
        Some(Tuple { words: [src[0], src[1], dst[0], dst[1], rest] })
    }

    /// The addresses of an IPv4 tuple in one word; `None` for all others.
    #[inline]
    pub(crate) fn packed(&self) -> Option<u64> {
        let [s0, s1, d0, d1, _] = self.words;
        let is_ipv4 = s0 | d0 == 0 && s1 >> 32 == MAPPED && d1 >> 32 == MAPPED;
        is_ipv4.then_some(s1 << 32 | d1 & 0xffff_ffff)
    }

    /// The IPv4 tuple of a word that [`Tuple::packed`] gave.
    #[inline]
    pub(crate) const fn unpacked(addresses: u64, rest: u64) -> Tuple {
        let mapped = MAPPED << 32;
        Tuple { words: [0, mapped | addresses >> 32, 0, mapped | addresses & 0xffff_ffff, rest] }
    }

    /// The network that the addresses belong to.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        NetworkId((self.words[REST] >> 8) as u32 & 0xff_ffff)
    }

    /// The sender.
    #[must_use]
    pub fn src(&self) -> IpAddr {
        address(self.words[SRC], self.words[SRC + 1])
    }

    /// The receiver.
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        address(self.words[DST], self.words[DST + 1])
    }

    /// The transport protocol.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.words[REST] as u8
    }

    /// The sender's port, or an echo's identifier.
    #[inline]
    #[must_use]
    pub fn sport(&self) -> u16 {
        (self.words[REST] >> 48) as u16
    }

    /// The receiver's port; an echo's type in the upper byte.
    #[inline]
    #[must_use]
    pub fn dport(&self) -> u16 {
        (self.words[REST] >> 32) as u16
    }

    /// Whether this is a request: an ICMP echo reply, which opens no connection, is not.
    #[must_use]
    pub fn may_open(&self) -> bool {
        !is_icmp(self.protocol())
            || matches!((self.dport() >> 8) as u8, icmp::ECHO_REQUEST | icmpv6::ECHO_REQUEST)
    }

    /// Whether the source has a number of its own that can be translated: a port, or an echo's identifier.
    #[must_use]
    pub fn has_source_port(&self) -> bool {
        matches!(self.protocol(), proto::TCP | proto::UDP | proto::SCTP) || is_icmp(self.protocol())
    }

    /// The tuple of an answer.
    #[must_use]
    pub fn inverse(&self) -> Tuple {
        let [s0, s1, d0, d1, rest] = self.words;
        let (sport, dport) = (self.sport(), self.dport());
        let (sport, dport) = match self.protocol() {
            proto::ICMP => (sport, dport ^ u16::from(icmp::ECHO_REQUEST ^ icmp::ECHO_REPLY) << 8),
            proto::ICMPV6 => (sport, dport ^ u16::from(icmpv6::ECHO_REQUEST ^ icmpv6::ECHO_REPLY) << 8),
            _ => (dport, sport),
        };
        let rest = u64::from(sport) << 48 | u64::from(dport) << 32 | rest & 0xffff_ffff;
        Tuple { words: [d0, d1, s0, s1, rest] }
    }

    /// The same with another sender; the port is ignored where there is none. `None` for an address of the other family.
    #[must_use]
    pub fn with_source(mut self, address: IpAddr, port: u16) -> Option<Tuple> {
        if address.is_ipv4() != self.src().is_ipv4() {
            return None;
        }
        [self.words[SRC], self.words[SRC + 1]] = halves(address);
        if self.has_source_port() {
            self.words[REST] = self.words[REST] & !(0xffff << 48) | u64::from(port) << 48;
        }
        Some(self)
    }

    /// The same to another receiver; the port is ignored where there is none. `None` for an address of the other family.
    #[must_use]
    pub fn with_destination(mut self, address: IpAddr, port: u16) -> Option<Tuple> {
        if address.is_ipv4() != self.src().is_ipv4() {
            return None;
        }
        [self.words[DST], self.words[DST + 1]] = halves(address);
        if self.has_source_port() && !is_icmp(self.protocol()) {
            self.words[REST] = self.words[REST] & !(0xffff << 32) | u64::from(port) << 32;
        }
        Some(self)
    }

    /// What a packet that has this tuple gets to have `other` instead; the network is no part of a packet.
    #[must_use]
    pub fn change_to(&self, other: &Tuple) -> Change {
        let unlike = |a: IpAddr, b: IpAddr| (a != b).then_some(b);
        Change {
            src: unlike(self.src(), other.src()),
            dst: unlike(self.dst(), other.dst()),
            sport: (self.sport() != other.sport()).then(|| other.sport()),
            dport: (self.dport() != other.dport()).then(|| other.dport()),
        }
    }

    /// The same in another network.
    #[must_use]
    pub fn in_network(mut self, network: NetworkId) -> Tuple {
        self.words[REST] = self.words[REST] & !0xffff_ff00 | u64::from(network.0) << 8;
        self
    }

    /// What stands for all that this sender says to anybody in `outside`: the key of a binding. No packet has it.
    pub(crate) fn to_anybody(mut self, outside: NetworkId) -> Tuple {
        [self.words[DST], self.words[DST + 1]] = [ANY, u64::from(outside.0)];
        self.words[REST] &= !(0xffff << 32);
        self
    }

    /// The words that tell one sending host from another: network and source address.
    pub(crate) fn host_hash(&self, seed: HashSeed) -> u64 {
        let [s0, s1, ..] = self.words;
        fold(fold(s0 ^ seed.0[0], s1 ^ seed.0[1]) ^ seed.0[0], u64::from(self.network().0) ^ seed.0[1])
    }

    /// The tuple's hash: one multiplication of 64 by 64 bits, folded, for every two words.
    #[inline]
    pub(crate) fn hash(&self, seed: HashSeed) -> u64 {
        let [s0, s1, d0, d1, rest] = self.words;
        let [a, b] = seed.0;
        let src = fold(s0 ^ a, s1 ^ b);
        let dst = fold(d0 ^ b.rotate_left(32), d1 ^ a.rotate_left(32));
        // Once more: a fold is linear in ports that count upwards, so that with some seeds whole runs of connections of
        // two hosts would share a few buckets.
        fold(fold(src ^ dst.rotate_left(29) ^ b, rest ^ a), 0x9e37_79b9_7f4a_7c15)
    }
}

/// One multiplication, its halves folded together.
#[inline(always)]
pub(crate) const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, proto::ICMP | proto::ICMPV6)
}

/// Whether an ICMP message is an echo request or reply, by its type and code and the family that it is sent in.
const fn is_echo(src: IpAddr, protocol: u8, dport: u16) -> bool {
    let kind = (dport >> 8) as u8;
    match protocol {
        proto::ICMP => src.is_ipv4() && icmp::is_echo(kind),
        _ => src.is_ipv6() && icmpv6::is_echo(kind),
    }
}

fn halves(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn address(high: u64, low: u64) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).to_canonical()
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = (self.src(), self.dst());
        let (sport, dport) = (self.sport(), self.dport());
        match self.protocol() {
            proto::ICMP | proto::ICMPV6 => write!(f, "icmp {src} -> {dst} id {sport} type {}", dport >> 8),
            proto::TCP => write!(f, "tcp {src} port {sport} -> {dst} port {dport}"),
            proto::UDP => write!(f, "udp {src} port {sport} -> {dst} port {dport}"),
            proto::SCTP => write!(f, "sctp {src} port {sport} -> {dst} port {dport}"),
            other => write!(f, "protocol {other} {src} -> {dst}"),
        }
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self} in {}]", self.network().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tuple(protocol: u8, sport: u16, dport: u16) -> Tuple {
        Tuple::new(NetworkId(7), ip("10.0.0.1"), ip("10.0.0.2"), protocol, sport, dport).unwrap()
    }

    #[test]
    fn connections_of_two_hosts_spread_over_the_whole_hash_with_every_seed() {
        let random = || crate::flow::Seed::random().words();
        for seed in (0..100).map(|_| random()).chain([[3, 5]]).map(HashSeed::new) {
            for step in [1u16, 2, 15] {
                let mut buckets = vec![0u32; 256];
                for number in 0..4096 {
                    let hash = tuple(proto::UDP, 1024 + number * step, 4000).hash(seed);
                    // As the index does: from the top of the lower half.
                    buckets[(hash as u32 >> 24) as usize] += 1;
                }
                // Sixteen a bucket on average; a fair spread stays far below fifty.
                assert!(
                    buckets.iter().all(|&count| count < 50),
                    "{seed:?} {step}: {:?}",
                    buckets.iter().max()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn a_tuple_keeps_every_field_and_its_inverse_inverts(
            src: u32, dst: u32, network in 0u32..1 << 24, sport: u16, dport: u16
        ) {
            let (src, dst) = (IpAddr::V4((src | 1 << 24 & !(0xe << 28)).into()), IpAddr::V4(dst.into()));
            let network = NetworkId::new(network).unwrap();
            if let Some(tuple) = Tuple::new(network, src, dst, proto::UDP, sport, dport) {
                prop_assert_eq!((tuple.network(), tuple.src(), tuple.dst()), (network, src, dst));
                prop_assert_eq!((tuple.protocol(), tuple.sport(), tuple.dport()), (proto::UDP, sport, dport));
                let back = tuple.inverse();
                prop_assert_eq!((back.src(), back.dst(), back.sport(), back.dport()), (dst, src, dport, sport));
                prop_assert_eq!((back.inverse(), back.network()), (tuple, network));
            }
        }
    }

    #[test]
    fn an_echo_request_of_the_other_side_is_no_reply() {
        let ping = tuple(proto::ICMP, 99, 0x0800);
        let pong = ping.inverse();
        assert_eq!((pong.sport(), pong.dport()), (99, 0));
        assert!(ping.may_open() && !pong.may_open());
        let theirs =
            Tuple::new(NetworkId(7), ip("10.0.0.2"), ip("10.0.0.1"), proto::ICMP, 99, 0x0800).unwrap();
        assert_ne!(theirs, pong);
        let v6 = Tuple::new(NetworkId(0), ip("fd00::1"), ip("fd00::2"), proto::ICMPV6, 5, 0x8000).unwrap();
        assert_eq!(v6.inverse().dport(), 0x8100);
    }

    #[test]
    fn what_no_connection_is_made_of_has_no_tuple() {
        let of = |src, dst, protocol, dport| Tuple::new(NetworkId(0), ip(src), ip(dst), protocol, 1, dport);
        assert!(of("0.0.0.0", "10.0.0.1", proto::UDP, 67).is_none());
        assert!(of("10.0.0.1", "224.0.0.1", proto::UDP, 67).is_none());
        assert!(of("fd00::1", "ff02::1", proto::UDP, 67).is_none());
        assert!(of("::ffff:10.0.0.1", "::ffff:10.0.0.2", proto::UDP, 67).is_none());
        assert!(of("10.0.0.1", "fd00::1", proto::UDP, 67).is_none());
        assert!(of("10.0.0.1", "10.0.0.2", proto::ICMP, 0x0300).is_none());
        assert!(of("10.0.0.1", "10.0.0.2", proto::ICMPV6, 0x8000).is_none());
        let told = |src, dst| Tuple::of_message(NetworkId(0), ip(src), ip(dst), proto::ICMPV6, 0x8b00);
        assert!(told("::ffff:10.0.0.1", "::ffff:10.0.0.2").is_none());
        assert!(told("fd00::1", "ff02::1").is_none());
    }

    proptest! {
        #[test]
        fn every_packet_between_two_hosts_is_of_a_connection_or_a_message(
            v6: bool, protocol: u8, icmp: bool, sport: u16, dport: u16
        ) {
            let [src, dst] = if v6 { ["fd00::1", "fd00::2"] } else { ["10.0.0.1", "10.0.0.2"] }.map(ip);
            let protocol = if icmp { [proto::ICMP, proto::ICMPV6][usize::from(protocol) % 2] } else { protocol };
            let kept = Tuple::new(NetworkId(7), src, dst, protocol, sport, dport);
            let told = Tuple::of_message(NetworkId(7), src, dst, protocol, dport);
            prop_assert_eq!(kept.is_some(), told.is_none());
            if let Some(told) = told {
                prop_assert!(is_icmp(protocol));
                prop_assert_eq!((told.src(), told.dst(), told.sport(), told.dport()), (src, dst, 0, dport));
            }
        }
    }

    #[test]
    fn translation_changes_the_side_it_is_for_and_no_other() {
        let there = tuple(proto::TCP, 40_000, 80);
        let sent = there.with_source(ip("192.0.2.1"), 1024).unwrap();
        assert_eq!(
            (sent.src(), sent.sport(), sent.dst(), sent.dport()),
            (ip("192.0.2.1"), 1024, there.dst(), 80)
        );
        let sent = there.with_destination(ip("10.9.9.9"), 8080).unwrap();
        assert_eq!(
            (sent.dst(), sent.dport(), sent.src(), sent.sport()),
            (ip("10.9.9.9"), 8080, there.src(), 40_000)
        );
        assert!(there.with_source(ip("fd00::1"), 1).is_none());
        let ping = tuple(proto::ICMP, 99, 0x0800).with_source(ip("192.0.2.1"), 7).unwrap();
        assert_eq!((ping.sport(), ping.dport(), ping.inverse().sport()), (7, 0x0800, 7));
        let tunnel = tuple(47, 0, 0).with_source(ip("192.0.2.1"), 7).unwrap();
        assert_eq!((tunnel.sport(), tunnel.src()), (0, ip("192.0.2.1")));
    }

    #[test]
    fn neighbouring_tuples_spread_over_the_whole_hash() {
        let seed = HashSeed::new([0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321]);
        for shift in [0, 20, 40, 52] {
            let mut buckets = vec![0u32; 4096];
            for i in 0..65_536u32 {
                let src = IpAddr::V4((0x0a01_0000 + i / 256).into());
                let tuple =
                    Tuple::new(NetworkId(1), src, ip("10.2.0.1"), 6, 1024 + (i % 256) as u16, 80).unwrap();
                buckets[(tuple.hash(seed) >> shift) as usize % 4096] += 1;
            }
            // Sixteen a bucket on average; a fair spread stays far below fifty.
            assert!(buckets.iter().all(|&count| count < 50), "{shift}: {:?}", buckets.iter().max());
        }
    }
}
