//! Every pair of ends that can speak, with the ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use penstock_policy::{Direction, Ground, Packet, PeerId};
use serde::Serialize;

use super::{Judge, Party};
use crate::cluster::Scoped;

/// The protocols that have ports, by their names, in the order in which they are printed.
const PROTOCOLS: [(&str, u8); 3] = [("SCTP", 132), ("TCP", 6), ("UDP", 17)];

/// The ports by which one end reaches another: for each of SCTP, TCP and UDP ranges that are sorted and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ports([Vec<(u16, u16)>; 3]);

impl Ports {
    fn is_nothing(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    fn is_everything(&self) -> bool {
        self.0.iter().all(|ranges| *ranges == [(1, u16::MAX)])
    }
}

/// `TCP 80,8080-8090,UDP 53`, or `All Connections`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("All Connections");
        }
        let mut parts = Vec::new();
        for ((name, _), ranges) in PROTOCOLS.iter().zip(&self.0).filter(|(_, ranges)| !ranges.is_empty()) {
            let ranges: Vec<String> = ranges
                .iter()
                .map(
                    |(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") },
                )
                .collect();
            parts.push(format!("{name} {}", ranges.join(",")));
        }
        f.write_str(&parts.join(","))
    }
}

/// One pair of ends that can speak. Its order is that of its lines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Connection {
    /// Where it comes from: `shop/web[Deployment]`, or `0.0.0.0-255.255.255.255[External]`.
    pub src: String,
    /// Where it goes to.
    pub dst: String,
    /// By which ports.
    pub conn: String,
}

/// `shop/web[Deployment] => shop/db[StatefulSet] : TCP 5432`
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} => {} : {}", self.src, self.dst, self.conn)
    }
}

/// Addresses outside from the first to the last.
type Span = (IpAddr, IpAddr);

impl Judge {
    /// Every pair of ends that can speak, sorted: workloads with each other, and with addresses outside. Ends reach
    /// themselves, which is not told.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let mut found = BTreeSet::new();
        let listed: Vec<(&Scoped, &str)> = self
            .places
            .iter()
            .filter(|(_, place)| place.listed)
            .map(|(key, place)| (key, place.title.as_str()))
            .collect();
        let outside = self.outside();
        for (key, title) in &listed {
            let own = Party::Pod((*key).clone());
            for (other, other_title) in listed.iter().filter(|(other, _)| other != key) {
                let ports = self.ports(&own, &Party::Pod((*other).clone()));
                if !ports.is_nothing() {
                    found.insert(Connection {
                        src: (*title).to_owned(),
                        dst: (*other_title).to_owned(),
                        conn: ports.to_string(),
                    });
                }
            }
            for direction in Direction::BOTH {
                for (span, ports) in self.spans(&own, direction, &outside) {
                    let external = format!("{}-{}[External]", span.0, span.1);
                    let (src, dst) = match direction {
                        Direction::Egress => ((*title).to_owned(), external),
                        Direction::Ingress => (external, (*title).to_owned()),
                    };
                    found.insert(Connection { src, dst, conn: ports.to_string() });
                }
            }
        }
        found.into_iter().collect()
    }

    /// The ports by which `from` reaches `to`.
    #[must_use]
    pub fn ports(&self, from: &Party, to: &Party) -> Ports {
        let steps = self.steps(&[(from, Direction::Egress), (to, Direction::Ingress)]);
        ports_of(&steps, |protocol, port| self.allows(from, to, protocol, Some(port)))
    }

    /// The ports at which the answer may change, by protocol.
    fn steps(&self, sides: &[(&Party, Direction)]) -> [BTreeSet<u16>; 3] {
        let mut steps = [(); 3].map(|()| BTreeSet::from([1]));
        for (party, direction) in sides {
            let Some(subject) = self.subject(party) else { continue };
            for ground in subject.grounds(*direction) {
                let Ground::Rule { rule, .. } = ground else { continue };
                for port in &rule.ports {
                    let place = PROTOCOLS.iter().position(|(_, number)| *number == port.protocol.number());
                    if let (Some(place), Some(ports)) = (place, &port.ports) {
                        steps[place].insert(*ports.start());
                        steps[place].extend(ports.end().checked_add(1));
                    }
                }
            }
        }
        steps
    }

    /// The addresses outside, cut where any policy may tell them apart. Of IPv6 only if a policy speaks of it.
    fn outside(&self) -> Vec<(Span, PeerId)> {
        let own: BTreeSet<IpAddr> = self.places.values().map(|place| place.address).collect();
        let mut cuts: [BTreeSet<u128>; 2] = [BTreeSet::from([0]), BTreeSet::new()];
        for (prefix, _) in self.peers.prefixes() {
            let (first, last) = (prefix.network(), prefix.broadcast());
            let stand_in = first == last && own.contains(&first) && first.is_ipv6();
            if stand_in {
                continue;
            }
            let family = &mut cuts[usize::from(first.is_ipv6())];
            family.insert(number(first));
            family.extend(number(last).checked_add(1).filter(|next| *next <= greatest(first)));
        }
        if !cuts[1].is_empty() {
            cuts[1].insert(0);
        }
        let mut spans = Vec::new();
        for (family, cuts) in cuts.iter().enumerate() {
            let is_v6 = family == 1;
            let end = if is_v6 { u128::MAX } else { u128::from(u32::MAX) };
            let ends = cuts.iter().skip(1).map(|next| next - 1).chain([end]);
            for (first, last) in cuts.iter().zip(ends) {
                let (first, last) = (address(*first, is_v6), address(last, is_v6));
                if first == last && own.contains(&first) {
                    continue;
                }
                spans.push(((first, last), self.peers.look_up(first)));
            }
        }
        spans
    }

    /// What a pod may say to addresses outside, or hear from them, in as few spans as there can be.
    fn spans(&self, own: &Party, direction: Direction, outside: &[(Span, PeerId)]) -> Vec<(Span, Ports)> {
        let steps = self.steps(&[(own, direction)]);
        let mut known: BTreeMap<PeerId, Ports> = BTreeMap::new();
        let mut spans: Vec<(Span, Ports)> = Vec::new();
        for ((first, last), peer) in outside {
            let ports = known.entry(*peer).or_insert_with(|| {
                ports_of(&steps, |protocol, port| {
                    let packet = Packet { peer: *peer, protocol, key: Some(port) };
                    self.subject(own).is_none_or(|subject| subject.classify(direction, &packet).allow)
                })
            });
            match spans.last_mut() {
                Some((span, before)) if before == ports && touches(span.1, *first) => span.1 = *last,
                _ => spans.push(((*first, *last), ports.clone())),
            }
        }
        spans.retain(|(_, ports)| !ports.is_nothing());
        spans
    }
}

fn ports_of(steps: &[BTreeSet<u16>; 3], allows: impl Fn(u8, u16) -> bool) -> Ports {
    let mut ports = Ports::default();
    for (((_, protocol), steps), ranges) in PROTOCOLS.iter().zip(steps).zip(&mut ports.0) {
        let ends = steps.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
        for (first, last) in steps.iter().copied().zip(ends).filter(|(first, _)| allows(*protocol, *first)) {
            match ranges.last_mut() {
                Some((_, before)) if *before + 1 == first => *before = last,
                _ => ranges.push((first, last)),
            }
        }
    }
    ports
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, is_v6: bool) -> IpAddr {
    if is_v6 { Ipv6Addr::from_bits(number).into() } else { Ipv4Addr::from_bits(number as u32).into() }
}

/// The last address of a family as a number.
fn greatest(of: IpAddr) -> u128 {
    if of.is_ipv6() { u128::MAX } else { u32::MAX.into() }
}

fn touches(last: IpAddr, first: IpAddr) -> bool {
    last.is_ipv4() == first.is_ipv4() && number(last).checked_add(1) == Some(number(first))
}
