//! Later fragments follow the first: a small table, one per worker, of what first fragments said.
//!
//! Only the first fragment of a packet has its ports. What it told, and which connection it belongs to, is kept for the
//! later ones; those that come before it are the caller's to hold, within bounds. Nothing is allocated after the start,
//! and a flood of fragments displaces entries, never more.

use std::net::IpAddr;

use super::entry::ConnectionRef;
use super::life::Seconds;
use super::tuple::{Direction, HashSeed, NetworkId, Tuple, fold};
use crate::drop::Reason;

/// Entries that one packet's may be in.
const WAYS: usize = 4;
/// How long later fragments may take: the kernel's `ipfrag_time` and `ip6frag_time` (30 seconds by default).
pub const TIMEOUT: u32 = 30;

/// What the fragments of one packet have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The network that its addresses belong to.
    pub network: NetworkId,
    /// The sender.
    pub src: IpAddr,
    /// The receiver.
    pub dst: IpAddr,
    /// The identification: 16 bits for IPv4, 32 for IPv6.
    pub id: u32,
    /// The transport protocol.
    pub protocol: u8,
}

/// What the first fragment said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// The sender's port.
    pub sport: u16,
    /// The receiver's port.
    pub dport: u16,
    /// The connection, [`ConnectionRef::NONE`] if it has none.
    pub connection: ConnectionRef,
    /// Which way of it.
    pub direction: Direction,
    /// Why it was dropped, if it was: the packet will never be whole.
    pub refused: Option<Reason>,
}

impl First {
    /// The tuple that a later fragment of the packet `key` belongs to.
    #[must_use]
    pub fn tuple(&self, key: &FragmentKey) -> Option<Tuple> {
        Tuple::new(key.network, key.src, key.dst, key.protocol, self.sport, self.dport)
    }
}

#[derive(Clone, Copy)]
struct Row {
    key: FragmentKey,
    first: First,
    deadline: Seconds,
}

/// What first fragments said, for later ones.
pub struct FragmentTable {
    rows: Box<[[Option<Row>; WAYS]]>,
    seed: HashSeed,
    displaced: u64,
}

impl FragmentTable {
    /// A table for at least `packets` packets at a time, rounded up to a power of two.
    #[must_use]
    pub fn with_capacity(packets: usize, seed: HashSeed) -> FragmentTable {
        let sets = packets.div_ceil(WAYS).next_power_of_two();
        FragmentTable { rows: vec![[None; WAYS]; sets].into(), seed, displaced: 0 }
    }

    /// Remembers what the first fragment of a packet said.
    pub fn learn(&mut self, key: FragmentKey, first: First, now: Seconds) {
        let set = self.set(&key);
        let rows = &mut self.rows[set];
        let row = Row { key, first, deadline: now.after(TIMEOUT) };
        let known = rows.iter().position(|row| row.is_some_and(|row| row.key == key));
        let free = || rows.iter().position(|row| row.is_none_or(|row| row.deadline <= now));
        let oldest = || {
            let left = |way: &usize| rows[*way].map(|row| row.deadline);
            (0..WAYS).min_by_key(left).unwrap_or(0)
        };
        let way = known.or_else(free).unwrap_or_else(|| {
            self.displaced += 1;
            oldest()
        });
        self.rows[set][way] = Some(row);
    }

    /// What the first fragment of a packet said, if it came and not too long ago.
    #[must_use]
    pub fn find(&self, key: &FragmentKey, now: Seconds) -> Option<First> {
        let row = self.rows[self.set(key)].iter().flatten().find(|row| row.key == *key)?;
        (row.deadline > now).then_some(row.first)
    }

    /// Packets that were forgotten before their time because others came.
    #[must_use]
    pub fn displaced(&self) -> u64 {
        self.displaced
    }

    fn set(&self, key: &FragmentKey) -> usize {
        let words = |address: IpAddr| match address {
            IpAddr::V4(v4) => [0, u64::from(v4.to_bits())],
            IpAddr::V6(v6) => [(v6.to_bits() >> 64) as u64, v6.to_bits() as u64],
        };
        let ([s0, s1], [d0, d1], [a, b]) = (words(key.src), words(key.dst), self.seed.0);
        let rest = u64::from(key.id) << 32 | u64::from(key.network.number()) << 8 | u64::from(key.protocol);
        let pair =
            fold(s0 ^ a, s1 ^ b) ^ fold(d0 ^ b.rotate_left(32), d1 ^ a.rotate_left(32)).rotate_left(29);
        fold(pair ^ b, rest ^ a) as usize & (self.rows.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SEED: HashSeed = HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);

    fn key(number: u32) -> FragmentKey {
        FragmentKey {
            network: NetworkId::default(),
            src: IpAddr::V4([10, 0, 0, 1].into()),
            dst: IpAddr::V4([10, 0, 0, 2].into()),
            id: number,
            protocol: 17,
        }
    }

    fn first(port: u16) -> First {
        let (connection, direction) = (ConnectionRef::NONE, Direction::Original);
        First { sport: port, dport: 53, connection, direction, refused: None }
    }

    #[test]
    fn a_later_fragment_finds_the_ports_of_the_first_until_its_time_is_over() {
        let mut table = FragmentTable::with_capacity(64, SEED);
        table.learn(key(7), first(1000), Seconds(10));
        assert_eq!(table.find(&key(7), Seconds(39)), Some(first(1000)));
        assert_eq!(table.find(&key(7), Seconds(40)), None);
        assert_eq!(table.find(&FragmentKey { protocol: 6, ..key(7) }, Seconds(10)), None);
        let tuple = first(1000).tuple(&key(7)).unwrap();
        assert_eq!((tuple.sport(), tuple.dport(), tuple.protocol()), (1000, 53, 17));
    }

    #[test]
    fn an_identification_that_is_used_again_has_the_ports_of_its_newest_packet() {
        let mut table = FragmentTable::with_capacity(64, SEED);
        table.learn(key(7), first(1000), Seconds(10));
        table.learn(key(7), first(2000), Seconds(11));
        assert_eq!(table.find(&key(7), Seconds(12)), Some(first(2000)));
    }

    #[test]
    fn a_flood_displaces_the_oldest_and_is_counted() {
        let mut table = FragmentTable::with_capacity(64, SEED);
        (0..1000).for_each(|n| table.learn(key(n), first(n as u16), Seconds(n)));
        assert_eq!(table.find(&key(999), Seconds(999)), Some(first(999)));
        let mut table = FragmentTable::with_capacity(64, SEED);
        (0..1000).for_each(|n| table.learn(key(n), first(n as u16), Seconds(5)));
        assert_eq!(table.displaced(), 1000 - 64);
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_learnt_last(steps in prop::collection::vec((0u32..200, 0u16..9, 1u32..3), 1..400)) {
            let mut table = FragmentTable::with_capacity(64, SEED);
            let (mut model, mut now) = (HashMap::new(), Seconds(1));
            for (id, port, pause) in steps {
                now = now.after(pause);
                table.learn(key(id), first(port), now);
                model.insert(id, (first(port), now.after(TIMEOUT)));
                for (id, (first, deadline)) in &model {
                    // It may have been displaced, but what is found is never another packet's and never too old.
                    if let Some(found) = table.find(&key(*id), now) {
                        prop_assert_eq!((found, now < *deadline), (*first, true));
                    }
                }
                prop_assert_eq!(table.find(&key(id), now), Some(first(port)));
            }
        }
    }
}
