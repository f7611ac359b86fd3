//! Pools: the addresses that services may be given.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector};
use thiserror::Error;

use crate::kubernetes::{IPPool, PoolUse};

/// One of the two families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// As Kubernetes spells it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Addresses from the first to the last, both included, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    first: IpAddr,
    last: IpAddr,
}

impl Span {
    /// All addresses of a prefix, its first and last among them: services do not care what a subnet calls them.
    #[must_use]
    pub fn of(prefix: IpNet) -> Span {
        Span { first: prefix.network(), last: prefix.broadcast() }
    }

    /// Its lowest address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == Family::of(self.first) && self.first <= address && address <= self.last
    }

    /// The lowest address that is not among the keys of `taken`.
    #[must_use]
    pub fn lowest_free<T>(&self, taken: &BTreeMap<IpAddr, T>) -> Option<IpAddr> {
        let mut free = self.first;
        for &address in taken.range(self.first..=self.last).map(|(address, _)| address) {
            if address > free {
                return Some(free);
            }
            if address == self.last {
                return None;
            }
            free = after(address)?;
        }
        Some(free)
    }
}

/// The next address; none behind the last of the family.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// A pool as far as services are concerned.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its addresses, in the order in which they are given out.
    pub spans: Vec<Span>,
    /// The services that may have one.
    pub services: Selector,
    /// The nodes that may announce them.
    pub nodes: Selector,
    /// Whether nothing more is given out of it. What was given stays.
    pub disabled: bool,
}

/// A pool that cannot be used.
#[derive(Debug, Error)]
pub enum BadPool {
    /// A word that should be a prefix.
    #[error("spec.prefixes: \"{0}\" is no prefix: write it as in 192.0.2.0/28 or 2001:db8::/64")]
    Prefix(String),
    /// A selector that says what cannot be.
    #[error("spec.{field}: {source}")]
    Selector {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: ParseExpressionError,
    },
}

impl Pool {
    /// The pool of a resource; none if it is for pods.
    ///
    /// # Errors
    /// [`BadPool`]: the schema keeps such resources out where there is an API server.
    pub fn of(resource: &IPPool) -> Result<Option<Pool>, BadPool> {
        let spec = &resource.spec;
        if spec.purpose != PoolUse::LoadBalancer {
            return Ok(None);
        }
        let prefixes = spec.prefixes.iter().map(|text| {
            let prefix: IpNet = text.parse().map_err(|_| BadPool::Prefix(text.clone()))?;
            Ok(Span::of(prefix))
        });
        let selector = |field, selector: &Option<LabelSelector>| {
            let selector = selector.clone().unwrap_or_default();
            Selector::try_from(selector).map_err(|source| BadPool::Selector { field, source })
        };
        Ok(Some(Pool {
            name: resource.metadata.name.clone().unwrap_or_default(),
            spans: prefixes.collect::<Result<_, BadPool>>()?,
            services: selector("serviceSelector", &spec.service_selector)?,
            nodes: selector("nodeSelector", &spec.node_selector)?,
            disabled: spec.disabled,
        }))
    }

    /// Whether the address is one of the pool's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.spans.iter().any(|span| span.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(prefix: &str) -> Span {
        Span::of(prefix.parse().unwrap())
    }

    fn taken(addresses: &[&str]) -> BTreeMap<IpAddr, ()> {
        addresses.iter().map(|text| (text.parse().unwrap(), ())).collect()
    }

    #[test]
    fn a_span_ends_with_its_family() {
        let last = span("255.255.255.255/32");
        assert_eq!(last.lowest_free(&taken(&[])), Some("255.255.255.255".parse().unwrap()));
        assert_eq!(last.lowest_free(&taken(&["255.255.255.255"])), None);
        let last = span("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128");
        assert_eq!(last.lowest_free(&taken(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"])), None);
        assert!(!span("0.0.0.0/0").contains("::".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn the_lowest_free_address_is_what_a_walk_finds(
            length in 26u8..=32,
            gone in proptest::collection::btree_set(0u32..80, 0..70),
        ) {
            let first = u32::from_be_bytes([192, 0, 2, 0]);
            let span = Span::of(IpNet::new(Ipv4Addr::from_bits(first).into(), length).unwrap());
            let address = |offset: u32| IpAddr::from(Ipv4Addr::from_bits(first + offset));
            let taken: BTreeMap<IpAddr, ()> = gone.iter().map(|&offset| (address(offset), ())).collect();
            let walked = (0..1u32 << (32 - length)).find(|offset| !gone.contains(offset)).map(address);
            prop_assert_eq!(span.lowest_free(&taken), walked);
        }
    }
}
