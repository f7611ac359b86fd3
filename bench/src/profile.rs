//! What a trial is of: the path its packets take, how large and how many they are, what they meet.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the packets of a trial meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// The ports alone: new MAC addresses, no look-up
    Forward,
    /// From pod to pod by a known flow: one hop less, new MAC addresses
    L3,
    /// From a pod to another node by a known flow: a VXLAN header in front
    VxlanEncap,
    /// From another node to a pod by a known flow: the VXLAN header off
    VxlanDecap,
    /// From a pod to another node by a known flow: a Geneve header in front
    GeneveEncap,
    /// From pod to pod by a known connection under policy
    Stateful,
    /// From a pod to another node by a known connection under policy, in VXLAN
    StatefulVxlan,
    /// Out of the cluster by a known connection under policy, with a translated source
    Snat,
    /// By a service's address to its backend, by a known connection under policy
    Service,
    /// First packets of connections: policy is asked, a connection is made, an older one gives way
    PolicyFirst,
}

impl Path {
    /// The name in reports and on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether its packets are of connections.
    #[must_use]
    pub const fn is_stateful(self) -> bool {
        matches!(self, Path::Stateful | Path::StatefulVxlan | Path::Snat | Path::Service | Path::PolicyFirst)
    }
}

/// Which ports the packets come and go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// Memory: the worker alone, no kernel and no other process
    Memory,
    /// AF_XDP sockets on veths, sent to by AF_XDP on another CPU (root)
    Veth,
    /// Taps, sent to by AF_XDP on another CPU (root)
    Tap,
    /// vhost-user, with a DPDK testpmd as the guest on another CPU (root)
    Vhost,
}

impl Ports {
    /// The name in reports and on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Frame sizes, check sequence included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Size {
    /// All of one size.
    Bytes(u16),
    /// Seven of 64, four of 594 and one of 1518 bytes ("simple IMIX", RFC 6985 names such mixes).
    Imix,
}

impl Size {
    /// The sizes, each as often as it comes in a round of the mix.
    #[must_use]
    pub fn mix(self) -> Vec<u16> {
        match self {
            Size::Bytes(size) => vec![size],
            Size::Imix => [vec![64; 7], vec![594; 4], vec![1518]].concat(),
        }
    }
}

/// Why a word of a profile is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WordError {
    /// No size.
    #[error("`{0}` is no frame size: write 64 to 1518, the bytes with the check sequence, or imix")]
    Size(String),
    /// No count.
    #[error("`{0}` is no count: write a number, or one in thousands or millions, as 1k, 100k, 1M")]
    Count(String),
}

impl FromStr for Size {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Size, WordError> {
        match word.parse() {
            _ if word == "imix" => Ok(Size::Imix),
            Ok(bytes) if (64..=1518).contains(&bytes) => Ok(Size::Bytes(bytes)),
            _ => Err(WordError::Size(word.to_owned())),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => write!(out, "{bytes}"),
            Size::Imix => out.write_str("imix"),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl TryFrom<String> for Size {
    type Error = WordError;

    fn try_from(word: String) -> Result<Size, WordError> {
        word.parse()
    }
}

/// A count as people write it: `1k` is a thousand, `1M` a million.
///
/// # Errors
/// When it is none.
pub fn count(word: &str) -> Result<u32, WordError> {
    let (digits, times) = match word.strip_suffix(['k', 'K', 'M']) {
        Some(digits) if word.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000),
        None => (word, 1),
    };
    let number = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(times));
    number.ok_or_else(|| WordError::Count(word.to_owned()))
}

/// A count as people read it.
#[must_use]
pub fn counted(count: u32) -> String {
    match count {
        count if count >= 1_000_000 && count % 1_000_000 == 0 => format!("{} M", count / 1_000_000),
        count if count >= 1_000 && count % 1_000 == 0 => format!("{} k", count / 1_000),
        count => count.to_string(),
    }
}

/// Which flows come how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Popularity {
    /// All equally often, in a random order
    Uniform,
    /// The n-th most popular 1/n times as often as the first
    Zipf,
}

/// What the packets carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Segment {
    /// UDP datagrams
    Udp,
    /// TCP segments that ask to open a connection
    TcpSyn,
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Profile {
    /// What the packets meet.
    pub path: Path,
    /// Which ports they come and go by.
    pub ports: Ports,
    /// How large they are.
    pub size: Size,
    /// How many flows they are of.
    pub flows: u32,
    /// Rules of the sender's policy that they do not match.
    pub rules: u32,
    /// Workers, each with a node of its own.
    pub workers: u16,
    /// Whether they are IPv6.
    pub ipv6: bool,
    /// What they carry.
    pub segment: Segment,
    /// Which flows come how often.
    pub popularity: Popularity,
    /// What the order of flows and sizes is drawn by.
    pub seed: u64,
}

impl Profile {
    /// In a line.
    #[must_use]
    pub fn title(&self) -> String {
        let size = match self.size {
            Size::Bytes(bytes) => format!("{bytes} B"),
            Size::Imix => "IMIX".to_owned(),
        };
        let mut title = format!("{}, {size}, {} flows", self.path.name(), counted(self.flows));
        if self.ports != Ports::Memory {
            title += &format!(" on {}", self.ports.name());
        }
        if self.path.is_stateful() {
            title += &format!(", {} rules", counted(self.rules));
        }
        if self.ipv6 {
            title += ", IPv6";
        }
        if self.workers > 1 {
            title += &format!(", {} workers", self.workers);
        }
        title
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_people_write_them() {
        assert_eq!(["7", "1k", "100k", "1M"].map(count), [Ok(7), Ok(1_000), Ok(100_000), Ok(1_000_000)]);
        for word in ["", "k", "1.5k", "-1", "5000M"] {
            assert_eq!(count(word), Err(WordError::Count(word.into())));
        }
        assert_eq!([7, 1_000, 1_500, 2_000_000].map(counted), ["7", "1 k", "1500", "2 M"]);
    }

    #[test]
    fn sizes_are_read_and_written() {
        for word in ["64", "1518", "imix"] {
            assert_eq!(word.parse::<Size>().map(|size| size.to_string()), Ok(word.to_owned()));
        }
        assert!(["63", "1519", "mix", ""].iter().all(|word| word.parse::<Size>().is_err()));
        let bytes: u32 = Size::Imix.mix().into_iter().map(u32::from).sum();
        assert_eq!(bytes / 12, 361);
    }
}
