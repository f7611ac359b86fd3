//! Which node announces an address: each agent finds it by itself, and all find the same.

use std::net::IpAddr;

/// The node of `candidates` that announces `address`: that whose name and the address together have the highest hash
/// (rendezvous hashing), so that a node that comes or goes moves none but its own addresses.
pub fn elected<'a>(address: IpAddr, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().max_by_key(|node| (weight(node, address), *node))
}

/// FNV-1a of 64 bits (RFC 9923) with a final mix: agents of different versions must agree on it for ever.
fn weight(node: &str, address: IpAddr) -> u64 {
    let mut octets = [0; 16];
    let octets = match address {
        IpAddr::V4(v4) => {
            octets[..4].copy_from_slice(&v4.octets());
            &octets[..4]
        }
        IpAddr::V6(v6) => {
            octets = v6.octets();
            &octets[..]
        }
    };
    let bytes = node.bytes().chain([0]).chain(octets.iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // Neighbouring addresses differ in their last byte, which FNV alone hardly carries to the high bits.
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    const NODES: [&str; 4] = ["node-a", "node-b", "node-c", "node-d"];

    fn addresses() -> impl Iterator<Item = IpAddr> {
        (0..1000u32).map(|offset| Ipv4Addr::from_bits(0xc000_0200 + offset).into())
    }

    #[test]
    fn addresses_are_spread_over_the_nodes() {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for address in addresses() {
            *counts.entry(elected(address, NODES).unwrap()).or_default() += 1;
        }
        assert!(counts.values().all(|count| (180..320).contains(count)) && counts.len() == 4, "{counts:?}");
    }

    #[test]
    fn a_node_that_goes_moves_only_its_own_addresses() {
        for address in addresses() {
            let before = elected(address, NODES).unwrap();
            let after = elected(address, NODES.into_iter().filter(|node| *node != "node-b")).unwrap();
            assert!(before == after || before == "node-b");
        }
    }

    #[test]
    fn the_order_of_the_candidates_means_nothing_and_nobody_is_elected_of_none() {
        for address in addresses() {
            assert_eq!(elected(address, NODES), elected(address, NODES.into_iter().rev()));
        }
        assert_eq!(elected("192.0.2.1".parse().unwrap(), []), None);
    }
}
