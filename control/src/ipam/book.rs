//! Who has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::RangeSet;

/// Why no address could be given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IpamFault {
    /// Everything is given.
    #[error(
        "all {size} addresses of {subnets} are given; widen the ranges, or see with `penstock ipam show` who has them"
    )]
    Exhausted {
        /// How many there are.
        size: u128,
        /// The prefixes.
        subnets: String,
    },
    /// The address that was asked for is somebody else's.
    #[error("{address} was asked for and is given to {holder} already")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// The address that was asked for is in none of the ranges.
    #[error("{0} was asked for and is in none of the ranges; ask for another one, or widen the ranges")]
    Outside(IpAddr),
    /// Two addresses were asked for where the ranges give one.
    #[error("{0} and {1} were asked for, and one list of ranges gives one address")]
    Twice(IpAddr, IpAddr),
    /// There is nothing to give from.
    #[error("no ranges are configured for this network; name some under `ipam`, or give the node a pod CIDR")]
    NoRanges,
}

/// Addresses that are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Each gives one address.
    pub ranges: &'a [RangeSet],
    /// What must be among them.
    pub requested: &'a [IpAddr],
    /// What is taken when it is free.
    pub preferred: &'a [IpAddr],
    /// Addresses that are nobody's to have: gateways, the node's own.
    pub reserved: &'a [IpAddr],
}

/// An address that was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Granted {
    /// The address with the length of its range's prefix.
    pub address: IpNet,
    /// The range's gateway.
    pub gateway: Option<IpAddr>,
    /// The pool that it is of; none when it is of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// The given addresses of several spaces, in each of which an address is given once.
#[derive(Debug, Clone, Default)]
pub struct Book {
    given: BTreeMap<String, BTreeMap<IpAddr, String>>,
    last: BTreeMap<(String, IpNet), IpAddr>,
}

impl Book {
    /// Gives one address of each set of ranges to `holder`, or none at all.
    ///
    /// # Errors
    /// [`IpamFault`].
    pub fn take(
        &mut self,
        space: &str,
        holder: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Granted>, IpamFault> {
        if wanted.ranges.is_empty() {
            return Err(IpamFault::NoRanges);
        }
        let given = self.given.entry(space.to_owned()).or_default();
        if let Some(address) =
            wanted.requested.iter().find(|it| wanted.ranges.iter().all(|set| set.span_of(**it).is_none()))
        {
            return Err(IpamFault::Outside(*address));
        }
        let mut granted = Vec::new();
        for set in wanted.ranges {
            let of_set = |list: &[IpAddr]| -> Vec<IpAddr> {
                list.iter().copied().filter(|it| set.span_of(*it).is_some()).collect()
            };
            let is_free = |it: IpAddr| !given.contains_key(&it) && !wanted.reserved.contains(&it);
            let chosen = match of_set(wanted.requested)[..] {
                [one, other, ..] if one != other => return Err(IpamFault::Twice(one, other)),
                [address, ..] if !is_free(address) => {
                    let holder = given.get(&address).cloned().unwrap_or_else(|| "the node".to_owned());
                    return Err(IpamFault::Taken { address, holder });
                }
                [address, ..] => set.span_of(address).map(|span| (span, address)),
                [] => {
                    let preferred = of_set(wanted.preferred).into_iter().find(|it| is_free(*it));
                    let before = set.spans().filter_map(|it| self.last.get(&(space.to_owned(), it.subnet())));
                    preferred
                        .and_then(|address| Some((set.span_of(address)?, address)))
                        .or_else(|| set.next(before.last().copied(), is_free))
                }
            };
            let Some((span, address)) = chosen else {
                let subnets: BTreeSet<String> = set.spans().map(|it| it.subnet().to_string()).collect();
                let subnets = subnets.into_iter().collect::<Vec<_>>().join(", ");
                return Err(IpamFault::Exhausted { size: set.size(), subnets });
            };
            granted.push((set, span, address));
        }
        let mut addresses = Vec::new();
        for (set, span, address) in granted {
            given.insert(address, holder.to_owned());
            for other in set.spans() {
                self.last.remove(&(space.to_owned(), other.subnet()));
            }
            self.last.insert((space.to_owned(), span.subnet()), address);
            let length = span.subnet().prefix_len();
            let with_length = IpNet::new(address, length).unwrap_or_else(|_| address.into());
            addresses.push(Granted { address: with_length, gateway: Some(span.gateway()), pool: None });
        }
        Ok(addresses)
    }

    /// Notes an address that is given already, e.g. as the ledger has it. False when it is another's.
    pub fn note(&mut self, space: &str, holder: &str, address: IpAddr) -> bool {
        let given = self.given.entry(space.to_owned()).or_default();
        given.entry(address).or_insert_with(|| holder.to_owned()) == holder
    }

    /// Takes an address back from its holder; that of another is left alone.
    pub fn give_back(&mut self, space: &str, holder: &str, address: IpAddr) {
        if let Some(given) = self.given.get_mut(space)
            && given.get(&address).is_some_and(|it| it == holder)
        {
            given.remove(&address);
        }
    }

    /// Who has an address.
    pub fn holder(&self, space: &str, address: IpAddr) -> Option<&str> {
        self.given.get(space)?.get(&address).map(String::as_str)
    }

    /// Whether each of the sets has an address left.
    pub fn has_room(&self, space: &str, ranges: &[RangeSet], reserved: &[IpAddr]) -> bool {
        let given = self.given.get(space);
        let is_free =
            |it: IpAddr| !given.is_some_and(|given| given.contains_key(&it)) && !reserved.contains(&it);
        ranges.iter().all(|set| set.next(None, is_free).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(texts: &[&str]) -> Vec<RangeSet> {
        let lists: Vec<_> = texts
            .iter()
            .map(|it| vec![serde_json::from_str(&format!(r#"{{"subnet":"{it}"}}"#)).unwrap()])
            .collect();
        RangeSet::all(&lists).unwrap()
    }

    fn wanted(ranges: &[RangeSet]) -> Wanted<'_> {
        Wanted { ranges, requested: &[], preferred: &[], reserved: &[] }
    }

    #[test]
    fn both_families_are_given_or_neither() {
        let ranges = ranges(&["10.0.0.0/29", "fd00::/126"]);
        let mut book = Book::default();
        for holder in ["a", "b"] {
            assert_eq!(book.take("n", holder, &wanted(&ranges)).unwrap().len(), 2);
        }
        // IPv6 has two addresses, so the third holder gets no IPv4 address either.
        let fault = book.take("n", "c", &wanted(&ranges)).unwrap_err();
        assert!(matches!(fault, IpamFault::Exhausted { size: 2, .. }), "{fault}");
        assert!(!book.has_room("n", &ranges, &[]));
        assert_eq!(book.holder("n", "10.0.0.4".parse().unwrap()), None);
        book.take("other", "c", &wanted(&ranges)).unwrap();
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_or_it_is_said_who_has_it() {
        let ranges = ranges(&["10.0.0.0/24"]);
        let mut book = Book::default();
        let five = ["10.0.0.5".parse().unwrap()];
        let asked = Wanted { requested: &five, ..wanted(&ranges) };
        assert_eq!(book.take("n", "a", &asked).unwrap()[0].address.to_string(), "10.0.0.5/24");
        let taken = book.take("n", "b", &asked).unwrap_err();
        assert_eq!(taken.to_string(), "10.0.0.5 was asked for and is given to a already");
        let outside = Wanted { requested: &["10.9.0.1".parse().unwrap()], ..wanted(&ranges) };
        assert!(matches!(book.take("n", "b", &outside), Err(IpamFault::Outside(_))));
        book.give_back("n", "somebody else", five[0]);
        assert_eq!(book.holder("n", five[0]), Some("a"));
        book.give_back("n", "a", five[0]);
        book.take("n", "b", &asked).unwrap();
    }

    #[test]
    fn what_is_reserved_is_not_given_and_what_is_preferred_is_when_it_is_free() {
        let ranges = ranges(&["10.0.0.0/24"]);
        let mut book = Book::default();
        let (two, nine) = (["10.0.0.2".parse().unwrap()], ["10.0.0.9".parse().unwrap()]);
        let asked = Wanted { reserved: &two, ..wanted(&ranges) };
        assert_eq!(book.take("n", "a", &asked).unwrap()[0].address.to_string(), "10.0.0.3/24");
        let sticky = Wanted { preferred: &nine, ..wanted(&ranges) };
        assert_eq!(book.take("n", "b", &sticky).unwrap()[0].address.to_string(), "10.0.0.9/24");
        assert_eq!(book.take("n", "c", &sticky).unwrap()[0].address.to_string(), "10.0.0.10/24");
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_none_is_lost(
            steps in proptest::collection::vec((any::<bool>(), 0..12usize), 0..80)
        ) {
            let ranges = ranges(&["10.0.0.0/28", "10.1.0.0/28"]);
            let mut book = Book::default();
            let mut model: BTreeMap<usize, Vec<IpAddr>> = BTreeMap::new();
            for (add, who) in steps {
                let holder = who.to_string();
                if !add {
                    for address in model.remove(&who).unwrap_or_default() {
                        book.give_back("n", &holder, address);
                    }
                } else if !model.contains_key(&who) {
                    let granted = book.take("n", &holder, &wanted(&ranges)).unwrap();
                    let addresses: Vec<IpAddr> = granted.iter().map(|it| it.address.addr()).collect();
                    for others in model.values() {
                        prop_assert!(addresses.iter().all(|it| !others.contains(it)));
                    }
                    model.insert(who, addresses);
                }
                for (who, addresses) in &model {
                    for address in addresses {
                        let holder = who.to_string();
                        prop_assert_eq!(book.holder("n", *address), Some(holder.as_str()));
                    }
                }
            }
            // Thirteen addresses are given of each range: what was given back can be given again.
            let left = 13 - model.len();
            for i in 0..left {
                book.take("n", &format!("rest{i}"), &wanted(&ranges)).unwrap();
            }
            prop_assert!(book.take("n", "one more", &wanted(&ranges)).is_err());
        }
    }
}
