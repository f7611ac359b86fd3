//! What tells one flow from another: where it came in, and its addresses, protocol and ports.

use std::net::Ipv4Addr;

use penstock_wire::parse::{Fragment, V4Flow, V6Flow};
use penstock_wire::rewrite::{OneEnd4, Rewrite4, Rewrite6};

/// Where packets come from, as flows tell them apart: one endpoint, the host, one peer in one network, or the underlay.
///
/// 23 bits: with the fragment bit and the protocol it fills one word of a flow key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId(u32);

impl ZoneId {
    /// Zones that a node can tell apart.
    pub const LIMIT: u32 = 1 << 23;

    /// The zone of that number; `None` from [`ZoneId::LIMIT`] on.
    #[must_use]
    pub const fn new(number: u32) -> Option<ZoneId> {
        if number < ZoneId::LIMIT { Some(ZoneId(number)) } else { None }
    }

    /// The zone's number.
    #[inline]
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    #[inline(always)]
    const fn word(self, fragment: Fragment, protocol: u8) -> u32 {
        let fragment = !matches!(fragment, Fragment::Whole) as u32;
        self.0 << 9 | fragment << 8 | protocol as u32
    }
}

/// A random number that keys are hashed with, so that nobody outside can choose keys that collide.
#[derive(Clone, Copy)]
pub struct Seed([u64; 2]);

impl Seed {
    /// A seed from the system's randomness.
    #[must_use]
    pub fn random() -> Seed {
        use std::hash::{BuildHasher, RandomState};
        let draw = || RandomState::new().hash_one(0u8);
        Seed([draw() | 1, draw() | 1])
    }

    /// The seed as two words.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        self.0
    }
}

/// A key of the flow cache.
pub trait Key: Copy + Eq {
    /// Other addresses and ports for packets of this family.
    type Rewrite: Copy + Default + zerocopy::FromZeros;

    /// What of most of them fits beside a flow's action.
    type Near: Copy + zerocopy::FromZeros;

    /// Makes a rewrite of this flow's packets fit beside its action; `None` if it does not.
    fn fold(&self, rewrite: &Self::Rewrite) -> Option<Self::Near>;

    /// What [`Key::fold`] was given.
    fn unfold(&self, near: &Self::Near) -> Self::Rewrite;

    /// The transport protocol.
    fn protocol(&self) -> u8;

    /// The key's hash: multiplications of 64 by 64 bits, folded: one per 16 bytes of key, and one that mixes.
    fn hash(&self, seed: Seed) -> u64;
}

/// The key of an IPv4 flow: 16 bytes.
///
/// Fragments other than whole packets share one flow per protocol and pair of addresses, without ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Key4 {
    /// Source and destination as they stand in a header.
    addresses: u64,
    rest: u64,
}

/// The key of an IPv6 flow: 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Key6 {
    src: [u64; 2],
    dst: [u64; 2],
    rest: u64,
}

#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Spreads what one fold leaves regular. A fold is linear in a key that counts upwards (addresses of one subnet, say), so
/// that with some seeds whole runs of keys would share a few buckets.
#[inline(always)]
const fn mix(folded: u64) -> u64 {
    fold(folded, 0x9e37_79b9_7f4a_7c15)
}

#[inline(always)]
fn ports(fragment: Fragment, sport: u16, dport: u16) -> u32 {
    if fragment == Fragment::Whole { u32::from(sport) << 16 | u32::from(dport) } else { 0 }
}

impl Key4 {
    /// The key of a packet that came from `zone`.
    #[inline(always)]
    #[must_use]
    pub fn new(zone: ZoneId, flow: &V4Flow) -> Key4 {
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&flow.src.octets());
        addresses[4..].copy_from_slice(&flow.dst.octets());
        let word = zone.word(flow.fragment, flow.proto);
        Key4 {
            addresses: u64::from_ne_bytes(addresses),
            rest: u64::from(word) << 32 | u64::from(ports(flow.fragment, flow.sport, flow.dport)),
        }
    }

    /// What the key stands for.
    #[must_use]
    pub fn describe(&self) -> Described {
        let flow = self.flow();
        Described::from_rest(flow.src.into(), flow.dst.into(), self.rest)
    }

    /// The flow, as far as its packets are rewritten by it.
    #[inline(always)]
    fn flow(&self) -> V4Flow {
        let [s0, s1, s2, s3, d0, d1, d2, d3] = self.addresses.to_ne_bytes();
        V4Flow {
            src: Ipv4Addr::new(s0, s1, s2, s3),
            dst: Ipv4Addr::new(d0, d1, d2, d3),
            proto: self.protocol(),
            sport: (self.rest >> 16) as u16,
            dport: self.rest as u16,
            tos: 0,
            ttl: 0,
            dont_fragment: false,
            fragment: Fragment::Whole,
            options: false,
        }
    }
}

impl Key for Key4 {
    type Rewrite = Rewrite4;
    type Near = OneEnd4;

    fn fold(&self, rewrite: &Rewrite4) -> Option<OneEnd4> {
        OneEnd4::of(&self.flow(), rewrite)
    }

    #[inline(always)]
    fn unfold(&self, near: &OneEnd4) -> Rewrite4 {
        // It was made of this flow.
        near.whole(&self.flow()).unwrap_or_default()
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        (self.rest >> 32) as u8
    }

    #[inline(always)]
    fn hash(&self, seed: Seed) -> u64 {
        mix(fold(self.addresses ^ seed.0[0], self.rest ^ seed.0[1]))
    }
}

impl Key6 {
    /// The key of a packet that came from `zone`.
    #[inline(always)]
    #[must_use]
    pub fn new(zone: ZoneId, flow: &V6Flow) -> Key6 {
        let halves = |bits: u128| [(bits >> 64) as u64, bits as u64];
        let word = zone.word(flow.fragment, flow.proto);
        Key6 {
            src: halves(flow.src.to_bits()),
            dst: halves(flow.dst.to_bits()),
            rest: u64::from(word) << 32 | u64::from(ports(flow.fragment, flow.sport, flow.dport)),
        }
    }

    /// What the key stands for.
    #[must_use]
    pub fn describe(&self) -> Described {
        let whole =
            |[high, low]: [u64; 2]| std::net::Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
        Described::from_rest(whole(self.src).into(), whole(self.dst).into(), self.rest)
    }
}

impl Key for Key6 {
    type Rewrite = Rewrite6;
    type Near = Rewrite6;

    fn fold(&self, rewrite: &Rewrite6) -> Option<Rewrite6> {
        Some(*rewrite)
    }

    #[inline(always)]
    fn unfold(&self, near: &Rewrite6) -> Rewrite6 {
        *near
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        (self.rest >> 32) as u8
    }

    #[inline(always)]
    fn hash(&self, seed: Seed) -> u64 {
        let addresses = fold(self.src[0] ^ self.dst[0] ^ seed.0[0], self.src[1] ^ seed.0[1]);
        let whole = fold(addresses ^ self.dst[1].rotate_left(29), self.rest ^ seed.0[1]);
        mix(whole ^ fold(self.dst[0] ^ seed.0[1], self.dst[1] ^ seed.0[0]))
    }
}

/// A flow key in words for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Where the flow comes in.
    pub zone: ZoneId,
    /// Source address.
    pub src: std::net::IpAddr,
    /// Destination address.
    pub dst: std::net::IpAddr,
    /// Transport protocol.
    pub proto: u8,
    /// Source port; for ICMP echo the identifier.
    pub sport: u16,
    /// Destination port; for ICMP type and code.
    pub dport: u16,
    /// Whether this is the flow of a pair's fragments.
    pub fragments: bool,
}

impl Described {
    fn from_rest(src: std::net::IpAddr, dst: std::net::IpAddr, rest: u64) -> Described {
        Described {
            zone: ZoneId((rest >> 41) as u32),
            src,
            dst,
            proto: (rest >> 32) as u8,
            sport: (rest >> 16) as u16,
            dport: rest as u16,
            fragments: rest >> 40 & 1 == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn v4(src: u32, dst: u32, proto: u8, sport: u16, dport: u16, fragment: Fragment) -> V4Flow {
        let (src, dst) = (Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst));
        V4Flow {
            src,
            dst,
            proto,
            sport,
            dport,
            tos: 0,
            ttl: 64,
            dont_fragment: false,
            fragment,
            options: false,
        }
    }

    proptest! {
        #[test]
        fn a_key_tells_every_field_apart(zone in 0..ZoneId::LIMIT, src: u32, dst: u32, proto: u8, sport: u16, dport: u16) {
            let zone = ZoneId::new(zone).unwrap();
            let told = Key4::new(zone, &v4(src, dst, proto, sport, dport, Fragment::Whole)).describe();
            let expected = Described {
                zone, src: Ipv4Addr::from_bits(src).into(), dst: Ipv4Addr::from_bits(dst).into(),
                proto, sport, dport, fragments: false,
            };
            prop_assert_eq!(told, expected);
        }

        #[test]
        fn an_ipv6_key_tells_every_field_apart(zone in 0..ZoneId::LIMIT, src: u128, dst: u128, proto: u8, sport: u16, dport: u16) {
            let zone = ZoneId::new(zone).unwrap();
            let flow = V6Flow {
                src: Ipv6Addr::from_bits(src), dst: Ipv6Addr::from_bits(dst), proto, sport, dport, tclass: 0,
                hop_limit: 64, flow_label: 0, fragment: Fragment::Whole, extensions: false,
            };
            let told = Key6::new(zone, &flow).describe();
            prop_assert_eq!((told.zone, told.src, told.dst), (zone, flow.src.into(), flow.dst.into()));
            prop_assert_eq!((told.proto, told.sport, told.dport), (proto, sport, dport));
        }
    }

    #[test]
    fn fragments_of_a_pair_are_one_flow_whatever_their_ports() {
        let zone = ZoneId::new(1).unwrap();
        let first = Key4::new(zone, &v4(1, 2, 17, 1000, 53, Fragment::First));
        assert_eq!(first, Key4::new(zone, &v4(1, 2, 17, 0, 0, Fragment::Later)));
        assert_ne!(first, Key4::new(zone, &v4(1, 2, 17, 0, 0, Fragment::Whole)));
    }

    #[test]
    fn neighbouring_keys_spread_over_the_whole_hash_with_every_seed() {
        let zone = ZoneId::new(3).unwrap();
        for _ in 0..100 {
            let seed = Seed::random();
            for step in [1, 1 << 8, 1 << 16] {
                let mut buckets = vec![0u32; 256];
                for i in 0..4096u32 {
                    let flow = v4(
                        0x0a01_0000_u32.wrapping_add(i * step),
                        0x0a02_0000,
                        17,
                        1024,
                        53,
                        Fragment::Whole,
                    );
                    buckets[Key4::new(zone, &flow).hash(seed) as usize % 256] += 1;
                }
                // Sixteen a bucket on average; a fair spread stays far below fifty.
                assert!(buckets.iter().all(|&count| count < 50), "{step}: {:?}", buckets.iter().max());
            }
        }
    }
}
