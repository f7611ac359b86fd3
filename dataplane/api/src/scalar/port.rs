//! Protocols and ports, in the text forms that rules and pools are written in.

use std::fmt;
use std::str::FromStr;

use penstock_wire::proto;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Invalid;

/// An IP protocol: `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(u8);

/// The protocols that have a name of their own here.
const NAMED: [(&str, Protocol); 5] = [
    ("tcp", Protocol::TCP),
    ("udp", Protocol::UDP),
    ("sctp", Protocol::SCTP),
    ("icmp", Protocol::ICMP),
    ("icmpv6", Protocol::ICMPV6),
];

impl Protocol {
    /// TCP, RFC 9293.
    pub const TCP: Self = Self(proto::TCP);
    /// UDP, RFC 768.
    pub const UDP: Self = Self(proto::UDP);
    /// SCTP, RFC 9260.
    pub const SCTP: Self = Self(proto::SCTP);
    /// ICMP, RFC 792.
    pub const ICMP: Self = Self(proto::ICMP);
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: Self = Self(proto::ICMPV6);

    /// The protocol of this number (IANA, "Assigned Internet Protocol Numbers").
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The protocol's number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Whether its packets have ports: TCP, UDP and SCTP.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }

    /// Whether its packets have a type and a code: ICMP and ICMPv6.
    pub fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }
}

/// A number in plain digits: `parse` alone would take a sign as well.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl FromStr for Protocol {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let named = NAMED.iter().find(|(name, _)| *name == text).map(|(_, protocol)| *protocol);
        named.or_else(|| digits(text).map(Self)).ok_or_else(|| Invalid::Protocol(text.to_owned()))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMED.iter().find(|(_, protocol)| protocol == self) {
            Some((name, _)) => f.pad(name),
            None => self.0.fmt(f),
        }
    }
}

/// Ports from the first to the last, both included and none of them 0: `80` or `8000-8999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The dynamic ports (RFC 6335, section 6): 49152 to 65535.
    pub const DYNAMIC: Self = Self { first: 49152, last: u16::MAX };

    /// The ports from `first` to `last`, unless there are none or 0 is among them.
    pub fn new(first: u16, last: u16) -> Result<Self, Invalid> {
        if first == 0 || first > last {
            Err(Invalid::PortOrder { first, last })
        } else {
            Ok(Self { first, last })
        }
    }

    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports these are: 1 to 65535.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Whether `port` is among them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether a port is among both.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (digits(first), digits(last)) {
            (Some(first), Some(last)) => Self::new(first, last),
            _ => Err(Invalid::Ports(text.to_owned())),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Written as text; a plain number is read as well, since that is how most people write a port.
macro_rules! text_or_number_serde {
    ($type:ty, $expecting:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct TextOrNumber;

                impl Visitor<'_> for TextOrNumber {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }
                }

                deserializer.deserialize_any(TextOrNumber)
            }
        }
    };
}

text_or_number_serde!(Protocol, "a protocol's name or number");
text_or_number_serde!(PortRange, "a port, or two with a dash between them");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_written_by_its_name_if_it_has_one() {
        for (text, number) in
            [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("icmpv6", 58), ("47", 47)]
        {
            let protocol: Protocol = text.parse().unwrap();
            assert_eq!((protocol.number(), protocol.to_string().as_str()), (number, text));
        }
        assert_eq!("6".parse(), Ok(Protocol::TCP));
        for bad in ["", "TCP", "256", "-1", "+6", "any"] {
            assert_eq!(bad.parse::<Protocol>(), Err(Invalid::Protocol(bad.to_owned())));
        }
    }

    #[test]
    fn a_range_has_both_of_its_ends() {
        let range: PortRange = "8000-8999".parse().unwrap();
        assert_eq!((range.first(), range.last(), range.count()), (8000, 8999, 1000));
        assert!(range.contains(8000) && range.contains(8999) && !range.contains(9000));
        assert_eq!("80".parse::<PortRange>().unwrap().to_string(), "80");
        assert_eq!(PortRange::new(1, u16::MAX).unwrap().count(), 65535);
        for bad in ["", "-", "80-", "-80", "http", "65536", "+80", "1-2-3"] {
            assert_eq!(bad.parse::<PortRange>(), Err(Invalid::Ports(bad.to_owned())), "{bad}");
        }
        for (bad, first, last) in [("0", 0, 0), ("0-9", 0, 9), ("9-8", 9, 8)] {
            assert_eq!(bad.parse::<PortRange>(), Err(Invalid::PortOrder { first, last }));
        }
    }

    #[test]
    fn ranges_overlap_when_they_share_a_port() {
        let range = |first, last| PortRange::new(first, last).unwrap();
        assert!(range(1, 10).overlaps(range(10, 20)) && range(10, 20).overlaps(range(1, 10)));
        assert!(range(1, 100).overlaps(range(50, 60)));
        assert!(!range(1, 10).overlaps(range(11, 20)));
    }

    #[test]
    fn numbers_may_be_written_plainly_in_a_file() {
        #[derive(Deserialize)]
        struct Row {
            protocol: Protocol,
            port: PortRange,
        }
        let row: Row = toml::from_str("protocol = 47\nport = 80").unwrap();
        assert_eq!((row.protocol, row.port.to_string().as_str()), (Protocol::new(47), "80"));
        assert!(toml::from_str::<Row>("protocol = 256\nport = 80").is_err());
        assert!(toml::from_str::<Row>("protocol = 6\nport = -1").is_err());
    }
}
