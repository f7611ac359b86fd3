//! Ranges of addresses with the meaning that the plugin `host-local` gives them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use penstock_cni::config::Range;
use thiserror::Error;

/// Why ranges cannot be given addresses from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RangeFault {
    /// A prefix that leaves no address beside its first and last.
    #[error("{0} has no addresses to give; take a prefix of /30 or /126 at the longest")]
    TooSmall(IpNet),
    /// Bits are set behind the prefix.
    #[error("{given} has host bits set; {} is the prefix", given.trunc())]
    HostBits {
        /// As it was given.
        given: IpNet,
    },
    /// An address that is not in its prefix.
    #[error("{what} {address} is not an address of {subnet} that can be given")]
    Outside {
        /// Which of a range's addresses.
        what: &'static str,
        /// The address.
        address: IpAddr,
        /// The prefix.
        subnet: IpNet,
    },
    /// A range that ends before it starts.
    #[error("rangeEnd {last} comes before rangeStart {first}")]
    Order {
        /// The first address.
        first: IpAddr,
        /// The last address.
        last: IpAddr,
    },
    /// Ranges of IPv4 and IPv6 in one list, which gives one address.
    #[error(
        "{0} and {1} are in one list of ranges, which gives one address; put the families into lists of their own"
    )]
    Mixed(IpNet, IpNet),
    /// Two ranges that share addresses.
    #[error("the ranges in {0} and {1} share addresses")]
    Overlap(IpNet, IpNet),
    /// A list without a range.
    #[error(
        "a list of ranges is empty, so that nothing could be given from it; name a range, or take the list out"
    )]
    Empty,
}

/// Addresses in a row, of which all but the gateway are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    subnet: IpNet,
    first: u128,
    last: u128,
    gateway: IpAddr,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl Span {
    /// The addresses of a range: neither the first of its prefix nor, of IPv4, the last, which is for broadcasts.
    ///
    /// # Errors
    /// [`RangeFault`].
    pub fn new(range: &Range) -> Result<Self, RangeFault> {
        let subnet = range.subnet;
        if subnet.addr() != subnet.network() {
            return Err(RangeFault::HostBits { given: subnet });
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(RangeFault::TooSmall(subnet));
        }
        let lowest = number(subnet.network()) + 1;
        let highest = number(subnet.broadcast()) - u128::from(subnet.addr().is_ipv4());
        let within = |what, address: IpAddr| {
            let is_in = subnet.contains(&address) && (lowest..=highest).contains(&number(address));
            if is_in { Ok(number(address)) } else { Err(RangeFault::Outside { what, address, subnet }) }
        };
        let first = range.range_start.map_or(Ok(lowest), |it| within("rangeStart", it))?;
        let last = range.range_end.map_or(Ok(highest), |it| within("rangeEnd", it))?;
        if last < first {
            let of = |it| address_of(it, subnet);
            return Err(RangeFault::Order { first: of(first), last: of(last) });
        }
        if let Some(address) = range.gateway
            && address.is_ipv4() != subnet.addr().is_ipv4()
        {
            return Err(RangeFault::Outside { what: "gateway", address, subnet });
        }
        let gateway = range.gateway.unwrap_or_else(|| address_of(lowest, subnet));
        Ok(Self { subnet, first, last, gateway })
    }

    /// The prefix.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The gateway.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether the address is one that can be given.
    pub fn gives(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address)
            && (self.first..=self.last).contains(&number(address))
            && address != self.gateway
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    fn is_ipv4(&self) -> bool {
        self.subnet.addr().is_ipv4()
    }

    /// How many addresses there are, the gateway not counted.
    fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
            - u128::from((self.first..=self.last).contains(&number(self.gateway)))
    }
}

fn address_of(number: u128, like: IpNet) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if like.addr().is_ipv4() => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// Ranges of one family that together give one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Span>);

impl RangeSet {
    /// A checked list of ranges.
    ///
    /// # Errors
    /// [`RangeFault`].
    pub fn new(ranges: &[Range]) -> Result<Self, RangeFault> {
        let spans = ranges.iter().map(Span::new).collect::<Result<Vec<Span>, _>>()?;
        let Some(first) = spans.first() else { return Err(RangeFault::Empty) };
        if let Some(other) = spans.iter().find(|span| span.is_ipv4() != first.is_ipv4()) {
            return Err(RangeFault::Mixed(first.subnet, other.subnet));
        }
        for (i, span) in spans.iter().enumerate() {
            if let Some(other) = spans[..i].iter().find(|other| other.overlaps(span)) {
                return Err(RangeFault::Overlap(other.subnet, span.subnet));
            }
        }
        Ok(Self(spans))
    }

    /// Checked lists of ranges, which share no address.
    ///
    /// # Errors
    /// [`RangeFault`].
    pub fn all(lists: &[Vec<Range>]) -> Result<Vec<Self>, RangeFault> {
        let sets = lists.iter().map(|list| Self::new(list)).collect::<Result<Vec<Self>, _>>()?;
        for (i, set) in sets.iter().enumerate() {
            for (other, span) in
                sets[..i].iter().flat_map(|it| &it.0).flat_map(|a| set.0.iter().map(move |b| (a, b)))
            {
                if other.overlaps(span) {
                    return Err(RangeFault::Overlap(other.subnet, span.subnet));
                }
            }
        }
        Ok(sets)
    }

    /// The ranges.
    pub fn spans(&self) -> impl Iterator<Item = &Span> {
        self.0.iter()
    }

    /// The range that gives the address, if one does.
    pub fn span_of(&self, address: IpAddr) -> Option<&Span> {
        self.0.iter().find(|span| span.gives(address))
    }

    /// How many addresses it gives.
    pub fn size(&self) -> u128 {
        self.0.iter().fold(0, |sum: u128, span| sum.saturating_add(span.size()))
    }

    /// The next free address after `last`, from the beginning again at the end: what was given back just now is given
    /// again as late as possible.
    pub fn next(&self, last: Option<IpAddr>, is_free: impl Fn(IpAddr) -> bool) -> Option<(&Span, IpAddr)> {
        let place = last.and_then(|last| {
            let place = self.0.iter().position(|span| {
                span.subnet.contains(&last) && (span.first..=span.last).contains(&number(last))
            })?;
            Some((place, number(last)))
        });
        let (place, after) = place.unwrap_or((0, self.0.first()?.first.wrapping_sub(1)));
        let begun = &self.0[place];
        let rest = (begun, after.wrapping_add(1), begun.last);
        let others =
            self.0[place + 1..].iter().chain(&self.0[..place]).map(|span| (span, span.first, span.last));
        let turned = (begun, begun.first, after);
        let pieces = std::iter::once(rest).chain(others).chain([turned]);
        pieces
            .filter(|(_, from, to)| from <= to)
            .flat_map(|(span, from, to)| (from..=to).map(move |it| (span, address_of(it, span.subnet))))
            .find(|(span, address)| *address != span.gateway && is_free(*address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn range(text: &str) -> Range {
        serde_json::from_str(text).unwrap()
    }

    fn set(texts: &[&str]) -> RangeSet {
        RangeSet::new(&texts.iter().map(|it| range(it)).collect::<Vec<_>>()).unwrap()
    }

    /// Everything that a set gives, in order.
    fn everything(set: &RangeSet) -> Vec<String> {
        let mut given = BTreeSet::new();
        let mut last = None;
        std::iter::from_fn(|| {
            let (_, address) = set.next(last, |it| !given.contains(&it))?;
            given.insert(address);
            last = Some(address);
            Some(address.to_string())
        })
        .collect()
    }

    #[test]
    fn neither_network_nor_broadcast_nor_gateway_is_given() {
        let four = set(&[r#"{"subnet":"10.1.0.0/29"}"#]);
        assert_eq!(everything(&four), ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(four.size(), 5);
        let six = set(&[r#"{"subnet":"fd00::/126"}"#]);
        assert_eq!(everything(&six), ["fd00::2", "fd00::3"]);
        let other = set(&[r#"{"subnet":"10.1.0.0/30","gateway":"10.1.0.2"}"#]);
        assert_eq!(everything(&other), ["10.1.0.1"]);
    }

    #[test]
    fn several_ranges_are_one_after_the_other() {
        let set = set(&[
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.10","rangeEnd":"10.1.0.11"}"#,
            r#"{"subnet":"10.2.0.0/30"}"#,
        ]);
        assert_eq!(everything(&set), ["10.1.0.10", "10.1.0.11", "10.2.0.2"]);
    }

    #[test]
    fn the_address_after_the_last_one_comes_next_even_when_an_earlier_one_is_free() {
        let set = set(&[r#"{"subnet":"10.1.0.0/29"}"#]);
        let next = |last: &str| set.next(Some(last.parse().unwrap()), |_| true).unwrap().1.to_string();
        assert_eq!(next("10.1.0.3"), "10.1.0.4");
        assert_eq!(next("10.1.0.6"), "10.1.0.2");
        assert_eq!(next("10.9.9.9"), "10.1.0.2");
        assert_eq!(set.next(Some("10.1.0.4".parse().unwrap()), |_| false), None);
    }

    #[test]
    fn a_fault_says_what_is_wrong() {
        let fault = |text: &str| RangeSet::new(&[range(text)]).unwrap_err();
        assert!(matches!(fault(r#"{"subnet":"10.0.0.0/31"}"#), RangeFault::TooSmall(_)));
        assert!(matches!(fault(r#"{"subnet":"10.0.0.1/24"}"#), RangeFault::HostBits { .. }));
        let outside = r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}"#;
        assert!(matches!(fault(outside), RangeFault::Outside { what: "rangeStart", .. }));
        let broadcast = r#"{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.255"}"#;
        assert!(matches!(fault(broadcast), RangeFault::Outside { what: "rangeEnd", .. }));
        let order = r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}"#;
        assert!(matches!(fault(order), RangeFault::Order { .. }));
        let (a, b) = (range(r#"{"subnet":"10.0.0.0/24"}"#), range(r#"{"subnet":"fd00::/64"}"#));
        assert!(matches!(RangeSet::new(&[a.clone(), b]), Err(RangeFault::Mixed(..))));
        assert!(matches!(RangeSet::all(&[vec![a.clone()], vec![a]]), Err(RangeFault::Overlap(..))));
        assert_eq!(RangeSet::new(&[]), Err(RangeFault::Empty));
    }
}
