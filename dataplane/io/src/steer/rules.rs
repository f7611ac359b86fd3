//! What an uplink takes, and how it is written into the maps of the steering program.
//!
//! The layouts are those of the structures in `bpf/steer.bpf.c`.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is taken from the kernel on an uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteerRules {
    /// The node's own addresses that tunnels end at.
    pub tunnel_endpoints: Vec<IpAddr>,
    /// UDP ports that tunnels are received on; empty: none.
    pub tunnel_ports: Vec<u16>,
    /// Destinations taken whatever the packet is: the pods' and the services' prefixes, as address and length.
    pub prefixes: Vec<(IpAddr, u8)>,
    /// Ports of the node's own addresses at which services are offered.
    pub node_ports: Vec<NodePort>,
    /// Ports of the node's own addresses that connections are translated to; ranges of one address may overlap.
    pub snat_ranges: Vec<SnatRange>,
}

/// The ports tunnels are received on unless configured: VXLAN (RFC 7348) and Geneve (RFC 8926).
pub const TUNNEL_PORTS: [u16; 2] = [4789, 6081];

/// A port at which the node offers a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePort {
    /// One of the node's own addresses.
    pub address: IpAddr,
    /// The IP protocol: TCP (6), UDP (17) or SCTP (132).
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// The ports, and ICMP echo identifiers, that connections leave the node with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatRange {
    /// One of the node's own addresses.
    pub address: IpAddr,
    /// The first port.
    pub first: u16,
    /// The last port, included.
    pub last: u16,
}

/// The maps that hold the rules, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Endpoints,
    TunnelPorts,
    Prefixes4,
    Prefixes6,
    NodePorts,
    SnatPorts,
}

impl Table {
    pub(crate) const ALL: [Table; 6] = [
        Table::Endpoints,
        Table::TunnelPorts,
        Table::Prefixes4,
        Table::Prefixes6,
        Table::NodePorts,
        Table::SnatPorts,
    ];

    /// The map's name in the program.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Endpoints => "endpoints",
            Table::TunnelPorts => "tunnel_ports",
            Table::Prefixes4 => "prefixes4",
            Table::Prefixes6 => "prefixes6",
            Table::NodePorts => "node_ports",
            Table::SnatPorts => "snat_ports",
        }
    }
}

/// Every entry of every map: what must be there.
pub(crate) type Entries = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// Bits of an address as the program has it.
const ADDRESS_BITS: u32 = 128;
/// The value of an entry that says no more than that it is there.
const PRESENT: [u8; 1] = [1];

impl SteerRules {
    /// Whether there are ports of the node's own addresses that the kernel would answer for if nobody took them.
    #[must_use]
    pub fn have_ports(&self) -> bool {
        !self.node_ports.is_empty() || !self.snat_ranges.is_empty()
    }

    /// The map entries that these rules come to.
    ///
    /// # Errors
    /// A sentence about the first rule that cannot be.
    pub(crate) fn entries(&self) -> Result<Entries, String> {
        let mut entries = Entries::new();
        for address in &self.tunnel_endpoints {
            entries.insert((Table::Endpoints, mapped(*address).to_vec()), PRESENT.to_vec());
        }
        for port in &self.tunnel_ports {
            entries.insert((Table::TunnelPorts, port.to_be_bytes().to_vec()), PRESENT.to_vec());
        }
        for (address, bits) in &self.prefixes {
            entries.insert(prefix(*address, *bits)?, PRESENT.to_vec());
        }
        for at in &self.node_ports {
            let mut key = mapped(at.address).to_vec();
            key.extend([at.protocol, 0]);
            key.extend(at.port.to_be_bytes());
            entries.insert((Table::NodePorts, key), PRESENT.to_vec());
        }
        for range in &self.snat_ranges {
            let SnatRange { address, first, last } = *range;
            if first > last {
                return Err(format!("the SNAT ports {first} to {last} of {address} are no range"));
            }
            for (port, bits) in port_prefixes(first, last) {
                let mut key = (ADDRESS_BITS + bits).to_ne_bytes().to_vec();
                key.extend(mapped(address));
                key.extend(port.to_be_bytes());
                key.extend([0; 2]);
                entries.insert((Table::SnatPorts, key), PRESENT.to_vec());
            }
        }
        Ok(entries)
    }
}

/// The ports from `first` to `last` as the fewest prefixes that hold just these: each by its first port and its length.
fn port_prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    let (mut next, last) = (u32::from(first), u32::from(last));
    std::iter::from_fn(move || {
        let left = (last + 1).checked_sub(next).filter(|left| *left > 0)?;
        // As many as begin with the bits of the next port, and as are left.
        let free = next.trailing_zeros().min(left.ilog2()).min(u16::BITS);
        let port = next as u16;
        next += 1 << free;
        Some((port, u16::BITS - free))
    })
}

/// An address as the program's `struct address` has it.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// A prefix as the kernel's longest-prefix trie wants its keys: the length in host byte order, then the address.
fn prefix(address: IpAddr, bits: u8) -> Result<(Table, Vec<u8>), String> {
    let (table, octets) = match address {
        IpAddr::V4(address) => (Table::Prefixes4, address.octets().to_vec()),
        IpAddr::V6(address) => (Table::Prefixes6, address.octets().to_vec()),
    };
    if usize::from(bits) > octets.len() * 8 {
        return Err(format!(
            "{address}/{bits} is no prefix: an address of that kind has {} bits",
            octets.len() * 8
        ));
    }
    // Two ways to write one prefix must be one key, or taking the one away would take the other's entry.
    let masked = octets.iter().enumerate().map(|(i, octet)| {
        let kept = usize::from(bits).saturating_sub(i * 8).min(8) as u32;
        octet & !(0xffu32 >> kept) as u8
    });
    Ok((table, u32::from(bits).to_ne_bytes().into_iter().chain(masked).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_with_host_bits_is_the_prefix_without_them() {
        let with = prefix("10.1.2.3".parse().unwrap(), 20).unwrap();
        let without = prefix("10.1.0.0".parse().unwrap(), 20).unwrap();
        assert_eq!(with, without);
        assert_eq!(with.1[4..], [10, 1, 0, 0]);
        assert_eq!(prefix("255.255.255.255".parse().unwrap(), 0).unwrap().1, [0; 8]);
        assert_eq!(prefix("1.2.3.4".parse().unwrap(), 32).unwrap().1[4..], [1, 2, 3, 4]);
    }

    #[test]
    fn a_prefix_longer_than_its_address_is_refused() {
        assert!(prefix("10.0.0.0".parse().unwrap(), 33).unwrap_err().contains("10.0.0.0/33"));
        assert!(prefix("fd00::".parse().unwrap(), 129).is_err());
    }

    #[test]
    fn prefixes_of_ports_hold_their_range_and_nothing_else() {
        for (first, last) in [
            (0, 0),
            (0, u16::MAX),
            (1, u16::MAX),
            (80, 80),
            (49152, u16::MAX),
            (50000, 50999),
            (7, 8),
            (1, 65534),
        ] {
            let prefixes: Vec<_> = port_prefixes(first, last).collect();
            assert!(prefixes.len() <= 30, "{first} to {last}: {prefixes:?}");
            let mut next = u32::from(first);
            for (port, bits) in prefixes {
                let count = 1u32 << (16 - bits);
                assert_eq!((u32::from(port), u32::from(port) % count), (next, 0), "{first} to {last}");
                next += count;
            }
            assert_eq!(next, u32::from(last) + 1, "{first} to {last}");
        }
    }

    #[test]
    fn an_address_may_have_several_ranges_of_snat_ports() {
        let range = |first, last| SnatRange { address: "192.0.2.1".parse().unwrap(), first, last };
        let rules = |snat_ranges| SteerRules { snat_ranges, ..SteerRules::default() };
        assert_eq!(rules(vec![range(2, 3), range(8, 11), range(2, 3)]).entries().unwrap().len(), 2);
        assert!(rules(vec![range(9, 8)]).entries().unwrap_err().contains("192.0.2.1"));
    }

    #[test]
    fn rules_become_one_entry_each() {
        let rules = SteerRules {
            tunnel_endpoints: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            tunnel_ports: TUNNEL_PORTS.to_vec(),
            prefixes: vec![("10.0.0.0".parse().unwrap(), 8), ("fd00::".parse().unwrap(), 8)],
            node_ports: vec![NodePort { address: "192.0.2.1".parse().unwrap(), protocol: 6, port: 30000 }],
            snat_ranges: vec![],
        };
        let entries = rules.entries().unwrap();
        assert_eq!(entries.len(), 7);
        assert!(entries.contains_key(&(Table::TunnelPorts, vec![0x12, 0xb5])));
    }
}
