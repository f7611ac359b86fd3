//! Ethernet addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An Ethernet address (EUI-48), in the order it travels.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All stations of the link.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// No station: what ARP requests carry for the address they ask for.
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// Whether the group bit is set: multicast or broadcast.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether one station can own this address: neither a group nor all zeros.
    #[inline]
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != MacAddr::ZERO
    }

    /// The overlay router address that a node has unless told otherwise, derived from its underlay address so that
    /// every node knows every other's without asking.
    ///
    /// `02:70` (locally administered, unicast) and the four bytes of the IPv4 address, or the 32-bit FNV-1a hash of
    /// the IPv6 address.
    pub fn from_underlay(address: IpAddr) -> MacAddr {
        let [a, b, c, d] = match address.to_canonical() {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => fnv1a(&v6.octets()).to_be_bytes(),
        };
        MacAddr([0x02, 0x70, a, b, c, d])
    }
}

/// FNV-1a, 32 bits (Fowler, Noll, Vo; RFC 9923). Nodes must agree on it for ever: it is part of the wire protocol.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address: write six hexadecimal bytes with colons, such as 02:00:5e:10:00:01")]
pub struct BadMac(String);

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<MacAddr, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddr(mac)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_round() {
        let mac: MacAddr = "02:00:5E:10:00:01".parse().unwrap();
        assert_eq!(mac, MacAddr([0x02, 0, 0x5e, 0x10, 0, 1]));
        assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
    }

    #[test]
    fn text_that_is_no_address_is_refused_by_name() {
        for text in [
            "",
            "02",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02-00-5e-10-00-01",
            "+2:00:5e:10:00:01",
        ] {
            let error = text.parse::<MacAddr>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn router_address_is_local_unicast_and_tells_underlay_addresses_apart() {
        let v4 = MacAddr::from_underlay("192.0.2.7".parse().unwrap());
        assert_eq!(v4.to_string(), "02:70:c0:00:02:07");
        assert_eq!(v4, MacAddr::from_underlay("::ffff:192.0.2.7".parse().unwrap()));
        let v6 = MacAddr::from_underlay("2001:db8::1".parse().unwrap());
        assert_eq!(v6.0[..2], [0x02, 0x70]);
        assert_ne!(v6, MacAddr::from_underlay("2001:db8::2".parse().unwrap()));
        assert!(v4.is_unicast() && v6.is_unicast());
    }

    #[test]
    fn hash_of_ipv6_is_fnv1a() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn groups_are_told_from_stations() {
        assert!(MacAddr::BROADCAST.is_multicast());
        assert!(MacAddr([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(!MacAddr::ZERO.is_multicast() && !MacAddr::ZERO.is_unicast());
    }
}
