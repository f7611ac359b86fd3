//! The small values that objects are made of; each type rejects what it must never hold.

mod port;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use penstock_wire::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

pub use port::{PortRange, Protocol};

/// Why a text is not the value that it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A name of the wrong length or with a character that is not allowed.
    #[error("{0:?} is no name: 1 to 333 of the characters A-Z a-z 0-9 . _ / - are")]
    Name(String),
    /// What the kernel would not take as an interface's name.
    #[error("{0:?} is no interface name: 1 to 15 bytes without space, `/` or `:` are, `.` and `..` are not")]
    InterfaceName(String),
    /// Not `address/length`.
    #[error("{0:?} is no prefix")]
    Prefix(String),
    /// A prefix with bits set behind its length.
    #[error("{given} has host bits set; {} is the prefix", given.trunc())]
    HostBits {
        /// The prefix as it was given.
        given: IpNet,
    },
    /// Not six bytes in hexadecimal.
    #[error("{0:?} is no MAC address")]
    Mac(String),
    /// A group's address, or none at all.
    #[error("{0} is no unicast MAC address")]
    NotUnicast(MacAddr),
    /// Not a path.
    #[error("an empty path names no file")]
    EmptyPath,
    /// Not a path from the root.
    #[error("{0:?} is no absolute path of a socket")]
    NoSocketPath(String),
    /// Longer than a socket's path can be.
    #[error("the path has {0} bytes and a socket's at most 107")]
    LongSocketPath(usize),
    /// Not hexadecimal digits in pairs.
    #[error("{0:?} is not written in pairs of hexadecimal digits")]
    Hex(String),
    /// A length that a Geneve option cannot have (RFC 8926, section 3.5).
    #[error("{0} bytes are no length of a Geneve option: 0 to 124, a multiple of 4, are")]
    OptionLength(usize),
    /// Neither a protocol's name nor its number.
    #[error("{0:?} is no protocol: tcp, udp, sctp, icmp, icmpv6 and the numbers 0 to 255 are")]
    Protocol(String),
    /// Neither a port nor a range of ports.
    #[error("{0:?} is neither a port nor a range of ports")]
    Ports(String),
    /// A range without a port in it, or with the port 0.
    #[error(
        "{first} to {last} is no range of ports: it starts at 1 or later and does not end before it starts"
    )]
    PortOrder {
        /// The first port as it was given.
        first: u16,
        /// The last port as it was given.
        last: u16,
    },
}

/// The text form is the serde form.
macro_rules! text_serde {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// The name of an object: 1 to 333 of `A-Z a-z 0-9 . _ / -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The longest name in bytes: room for `namespace/name/interface` in Kubernetes, where a namespace is a label of
    /// up to 63 and a name a subdomain of up to 253 (RFC 1123, as the API reference of Kubernetes takes it).
    pub const MAX_LEN: usize = 63 + 1 + 253 + 1 + InterfaceName::MAX_LEN;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(Name);

/// The name of a network interface, as the kernel allows it (`dev_valid_name` in `net/core/dev.c`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The longest name in bytes: `IFNAMSIZ` of `linux/if.h` without the closing zero.
    pub const MAX_LEN: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |c: char| c != '/' && c != ':' && c != '\0' && !c.is_whitespace();
        if (1..=Self::MAX_LEN).contains(&text.len())
            && text != "."
            && text != ".."
            && text.chars().all(allowed)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::InterfaceName(text.to_owned()))
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(InterfaceName);

/// A prefix with no bits set behind its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

impl Prefix {
    /// The prefix `net`, unless it has host bits.
    pub fn new(net: IpNet) -> Result<Self, Invalid> {
        if net.addr() == net.network() { Ok(Self(net)) } else { Err(Invalid::HostBits { given: net }) }
    }

    /// The prefix that holds just `address`: a /32 or a /128.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }

    /// The prefix for arithmetic.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether it is an IPv4 prefix.
    pub fn is_ipv4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }
}

impl FromStr for Prefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text.parse().map_err(|_| Invalid::Prefix(text.to_owned()))?)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_serde!(Prefix);

/// The MAC address of one station: not a group's, not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnicastMac(MacAddr);

impl UnicastMac {
    /// The address `mac`, unless it is multicast, broadcast or zero.
    pub fn new(mac: MacAddr) -> Result<Self, Invalid> {
        if mac.is_multicast() || mac == MacAddr::ZERO { Err(Invalid::NotUnicast(mac)) } else { Ok(Self(mac)) }
    }

    /// The plain address.
    pub fn get(self) -> MacAddr {
        self.0
    }
}

impl FromStr for UnicastMac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text.parse().map_err(|_| Invalid::Mac(text.to_owned()))?)
    }
}

impl fmt::Display for UnicastMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_serde!(UnicastMac);

/// The path of a file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(String);

impl FilePath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for FilePath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl FromStr for FilePath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() { Err(Invalid::EmptyPath) } else { Ok(Self(text.to_owned())) }
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(FilePath);

/// The path of a unix socket: absolute, and short enough for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketPath(String);

impl SocketPath {
    /// The longest path in bytes: `sun_path` (`linux/un.h`) has 108, the last of them zero.
    pub const MAX_LEN: usize = 107;

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for SocketPath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl FromStr for SocketPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if !text.starts_with('/') || text.contains('\0') {
            Err(Invalid::NoSocketPath(text.to_owned()))
        } else if text.len() > Self::MAX_LEN {
            Err(Invalid::LongSocketPath(text.len()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(SocketPath);

/// The value of a Geneve option; written as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OptionData(Vec<u8>);

impl OptionData {
    /// The longest value in bytes: 31 words of 4 (RFC 8926, section 3.5).
    pub const MAX_LEN: usize = 124;

    /// The value `bytes`, unless its length is none that an option can have.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Invalid> {
        if bytes.len() <= Self::MAX_LEN && bytes.len().is_multiple_of(4) {
            Ok(Self(bytes))
        } else {
            Err(Invalid::OptionLength(bytes.len()))
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for OptionData {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::Hex(text.to_owned());
        let digit = |b: &u8| (*b as char).to_digit(16).map(|d| d as u8);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return Err(bad());
        }
        let bytes: Option<Vec<u8>> =
            pairs.iter().map(|[hi, lo]| Some(digit(hi)? << 4 | digit(lo)?)).collect();
        Self::new(bytes.ok_or_else(bad)?)
    }
}

impl fmt::Display for OptionData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

text_serde!(OptionData);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_333_plain_characters() {
        for good in ["a", "default/web-0", "node_b.example", &"x".repeat(333)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "two words", "a:b", "naïve", "a\n", &"x".repeat(334)] {
            assert_eq!(bad.parse::<Name>(), Err(Invalid::Name(bad.to_owned())));
        }
    }

    #[test]
    fn an_interface_name_is_what_the_kernel_takes() {
        for good in ["lo", "eth0.100", "vethabcdefghijk"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteencharacter"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_with_host_bits_is_refused_and_the_right_one_named() {
        assert!("10.1.0.0/16".parse::<Prefix>().is_ok());
        assert!("fd00::/64".parse::<Prefix>().is_ok());
        let said = "10.1.0.7/16".parse::<Prefix>().unwrap_err().to_string();
        assert_eq!(said, "10.1.0.7/16 has host bits set; 10.1.0.0/16 is the prefix");
        assert!("10.1.0.0".parse::<Prefix>().is_err());
        assert!("10.1.0.0/33".parse::<Prefix>().is_err());
    }

    #[test]
    fn a_station_has_a_unicast_mac() {
        assert!("02:00:00:00:00:01".parse::<UnicastMac>().is_ok());
        for bad in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00", ""] {
            assert!(bad.parse::<UnicastMac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn option_data_is_whole_words_in_hexadecimal() {
        assert_eq!("0aFf0001".parse::<OptionData>().unwrap().as_bytes(), [0x0a, 0xff, 0, 1]);
        assert_eq!("0aff0001".parse::<OptionData>().unwrap().to_string(), "0aff0001");
        assert!("".parse::<OptionData>().is_ok());
        assert_eq!("0a".parse::<OptionData>(), Err(Invalid::OptionLength(1)));
        assert_eq!("00".repeat(128).parse::<OptionData>(), Err(Invalid::OptionLength(128)));
        for bad in ["0", "zz", "é0"] {
            assert_eq!(bad.parse::<OptionData>(), Err(Invalid::Hex(bad.to_owned())));
        }
    }
}
