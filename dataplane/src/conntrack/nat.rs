//! Source ports of a pool: the address and port that a connection leaves by.
//!
//! ```text
//!  keep the source port? -> the worker's own slice of the ports, from a point that the tuple's hash gives -> any port
//!        free = no connection has the reply tuple                   a few runs of consecutive ports         last tries
//! ```
//!
//! The table is the only register of ports: a port is free for a destination when nobody has the tuple that the answers
//! would have, and [`Table::create`] takes both tuples or none. So one external port serves many destinations, two
//! workers can never hand out the same mapping, and after a restart nothing needs to be put together. Slices only keep
//! workers from trying the same ports.
//!
//! With endpoint-independent mapping (RFC 4787 section 4.1) an internal address and port has a [binding](State::Binding)
//! in the same table, which takes its external address and port for all destinations, and lives as long as a connection
//! uses it. The mapping alone is independent of the endpoint: what comes in is filtered by address and port (RFC 4787
//! section 5), since only a connection's answers are let in.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use thiserror::Error;

use super::census::Count;
use super::entry::{Decision, Parties};
use super::life::{Marks, Seconds, Settings, State, Status};
use super::shares::Limits;
use super::table::{Opening, Refused, Table, WorkerId};
use super::tuple::{Direction, HashSeed, NetworkId, Tuple, fold};

/// Ports that are tried before a connection is refused.
const TRIES: u32 = 128;
/// Consecutive ports of one run; each run begins at a point of its own.
const RUN: u32 = 16;
/// Runs within the worker's own slice; the rest go over all ports of the pool.
const OWN_RUNS: u32 = 6;

/// Which connections share an external address and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Those to different destinations may (address- and port-dependent mapping): most connections for the ports.
    #[default]
    PerConnection,
    /// All of one internal address and port, and no others (endpoint-independent mapping): what peer-to-peer needs.
    EndpointIndependent,
}

/// What is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// No addresses.
    #[error("the pool has no addresses: give it at least one external address")]
    NoAddress,
    /// An address that cannot be a source.
    #[error("{0} cannot be an external address: it is unspecified, a group, loopback or IPv4-mapped")]
    Address(IpAddr),
    /// Named twice.
    #[error("{0} is in the pool twice")]
    Twice(IpAddr),
    /// No ports.
    #[error("the pool's ports {first} to {last} are none, or begin with port 0")]
    Ports {
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
}

/// External addresses and ports that connections leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    v4: Box<[IpAddr]>,
    v6: Box<[IpAddr]>,
    first: u16,
    ports: u32,
    mapping: Mapping,
    paired: bool,
}

impl Pool {
    /// A pool of these external addresses, of either family, and ports; ICMP echo identifiers are taken from the same
    /// range. Two pools must not share an address and a port.
    ///
    /// # Errors
    /// What is wrong with the addresses or the ports.
    pub fn new(addresses: &[IpAddr], ports: RangeInclusive<u16>) -> Result<Pool, PoolError> {
        let (first, last) = (*ports.start(), *ports.end());
        if addresses.is_empty() {
            return Err(PoolError::NoAddress);
        }
        if first == 0 || first > last {
            return Err(PoolError::Ports { first, last });
        }
        for (at, address) in addresses.iter().enumerate() {
            let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            if address.is_unspecified() || address.is_multicast() || address.is_loopback() || mapped {
                return Err(PoolError::Address(*address));
            }
            if addresses[..at].contains(address) {
                return Err(PoolError::Twice(*address));
            }
        }
        let of = |is_ipv4: bool| addresses.iter().copied().filter(|a| a.is_ipv4() == is_ipv4).collect();
        Ok(Pool {
            v4: of(true),
            v6: of(false),
            first,
            ports: u32::from(last - first) + 1,
            mapping: Mapping::default(),
            paired: false,
        })
    }

    /// The same pool with another mapping.
    #[must_use]
    pub fn mapping(self, mapping: Mapping) -> Pool {
        Pool { mapping, ..self }
    }

    /// The same pool, whether all connections of an internal host leave by the same address ("paired", RFC 4787 REQ-2);
    /// the choice lasts over restarts as long as the addresses and the table's seed do.
    #[must_use]
    pub fn paired(self, paired: bool) -> Pool {
        Pool { paired, ..self }
    }

    /// The addresses of a family.
    #[must_use]
    pub fn addresses(&self, is_ipv4: bool) -> &[IpAddr] {
        if is_ipv4 { &self.v4 } else { &self.v6 }
    }

    /// Pairs of an address and a port of a family: connections of one protocol to one place outside that fit.
    #[must_use]
    pub fn size(&self, is_ipv4: bool) -> u64 {
        self.addresses(is_ipv4).len() as u64 * u64::from(self.ports)
    }

    /// Whether a packet from outside to this address and port is for a connection of this pool.
    #[must_use]
    pub fn covers(&self, address: IpAddr, port: u16) -> bool {
        let addresses = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        addresses.contains(&address) && self.has_port(port)
    }

    /// The slice of ports that a worker tries first, as offset and length.
    fn slice(&self, worker: u16, workers: u16) -> (u32, u32) {
        let (worker, workers) = (u32::from(worker), u32::from(workers.max(1)));
        let edge = |number: u32| self.ports * number / workers;
        let (start, end) = (edge(worker % workers), edge(worker % workers + 1));
        // More workers than ports: they share.
        if start == end { (0, self.ports) } else { (start, end - start) }
    }

    const fn has_port(&self, port: u16) -> bool {
        (port.wrapping_sub(self.first) as u32) < self.ports
    }

    /// The `attempt`th address and port that a packet may leave by: a pure function. `None` if that attempt has none.
    fn candidate(
        &self,
        sent: &Tuple,
        seed: HashSeed,
        slice: (u32, u32),
        attempt: u32,
    ) -> Option<(IpAddr, u16)> {
        let addresses = if sent.src().is_ipv4() { &self.v4 } else { &self.v6 };
        let count = addresses.len() as u64;
        if count == 0 {
            return None;
        }
        let (host, flow) = (sent.host_hash(seed), sent.hash(seed));
        let base = if self.paired { host } else { flow } >> 16;
        let address = |step: u32| {
            let step = if self.paired { 0 } else { u64::from(step) };
            addresses[((base % count + step) % count) as usize]
        };
        if !sent.has_source_port() {
            let is_new = attempt == 0 || !self.paired && u64::from(attempt) < count;
            return is_new.then(|| (address(attempt), 0));
        }
        let Some(attempt) = attempt.checked_sub(1) else {
            return self.has_port(sent.sport()).then(|| (address(0), sent.sport()));
        };
        let (run, step) = (attempt / RUN, attempt % RUN);
        let (start, length) = if run < OWN_RUNS { slice } else { (0, self.ports) };
        let begin = fold(flow ^ u64::from(run), seed.0[0]) as u32 % length;
        Some((address(run), self.first + (start + (begin + step) % length) as u16))
    }
}

/// Creates a connection that leaves by an address and port of `pool`; `opening.forwarded` is the packet as it would leave
/// without that, in the network outside.
///
/// # Errors
/// [`Refused::Exhausted`] when all tries met mappings of others; else as [`Table::create`]. Each is counted.
pub fn open(
    table: &Table,
    worker: WorkerId,
    opening: &Opening,
    pool: &Pool,
    limits: Limits,
    settings: &Settings,
    now: Seconds,
) -> Result<super::ConnectionRef, Refused> {
    match pool.mapping {
        Mapping::PerConnection => open_free(table, worker, opening, pool, limits, settings, now),
        Mapping::EndpointIndependent => open_bound(table, worker, opening, pool, limits, settings, now),
    }
}

fn open_free(
    table: &Table,
    worker: WorkerId,
    opening: &Opening,
    pool: &Pool,
    limits: Limits,
    settings: &Settings,
    now: Seconds,
) -> Result<super::ConnectionRef, Refused> {
    let mut candidates = candidates(table, worker, opening, pool);
    let mut near = [None; RUN as usize];
    // The first mostly is free. Each that is not makes it likelier that the next is not either, so ever more are brought
    // near together: when ports run out, waiting for memory is what costs.
    let mut ahead = 1;
    loop {
        let mut count = 0;
        for (place, sent) in near.iter_mut().zip(candidates.by_ref().take(ahead)) {
            table.touch(&sent.inverse());
            (*place, count) = (Some(sent), count + 1);
        }
        if count == 0 {
            break;
        }
        if count > 1 {
            near[..count].iter().flatten().for_each(|sent| table.touch_entries(&sent.inverse()));
        }
        for sent in near[..count].iter().flatten() {
            // A look first: it is cheaper than an attempt.
            if table.find(&sent.inverse(), now).is_some() {
                continue;
            }
            let opening = Opening { forwarded: *sent, ..*opening };
            match table.create(worker, &opening, limits, settings, now) {
                Err(Refused::Taken { ours: Direction::Reply, .. }) => {}
                decided => return decided,
            }
        }
        ahead = (ahead * 4).min(RUN as usize);
    }
    table.lanes.lane(worker).note(Count::Exhausted);
    Err(Refused::Exhausted)
}

/// The same packets from some other ports of their sender's, those that every program may have: tried in turn by a
/// connection whose answers would be taken for another's.
pub fn from_other_ports(sent: Tuple) -> impl Iterator<Item = Tuple> {
    /// Ports below are for privileged programs (RFC 6335 section 6).
    const FIRST: u32 = 1024;
    /// Prime to the number of ports, and far enough for clients that count upwards.
    const STRIDE: u32 = 4099;
    const TRIES: u32 = 32;
    let port = move |step: u32| FIRST + (u32::from(sent.sport()) + step * STRIDE) % (0x1_0000 - FIRST);
    let tries = if sent.has_source_port() { TRIES } else { 0 };
    (1..=tries).filter_map(move |step| sent.with_source(sent.src(), port(step) as u16))
}

fn open_bound(
    table: &Table,
    worker: WorkerId,
    opening: &Opening,
    pool: &Pool,
    limits: Limits,
    settings: &Settings,
    now: Seconds,
) -> Result<super::ConnectionRef, Refused> {
    let key = opening.original.to_anybody(opening.forwarded.network());
    if let Some(bound) = use_binding(table, worker, opening, &key, limits, settings, now) {
        return bound;
    }
    for sent in candidates(table, worker, opening, pool) {
        let binding = Opening {
            original: key,
            forwarded: sent.to_anybody(NetworkId::default()),
            status: Status::of(State::Binding),
            parties: Parties::default(),
            decision: Decision::default(),
        };
        match table.create(worker, &binding, Limits::NONE, settings, now) {
            // Its own, or the one that another worker made that instant.
            Ok(_) | Err(Refused::Taken { ours: Direction::Original, .. }) => {
                if let Some(bound) = use_binding(table, worker, opening, &key, limits, settings, now) {
                    return bound;
                }
            }
            Err(Refused::Taken { ours: Direction::Reply, .. }) => {}
            Err(refused) => return Err(refused),
        }
    }
    table.lanes.lane(worker).note(Count::Exhausted);
    Err(Refused::Exhausted)
}

/// Creates a connection by the binding of its internal address and port, if there is one.
fn use_binding(
    table: &Table,
    worker: WorkerId,
    opening: &Opening,
    key: &Tuple,
    limits: Limits,
    settings: &Settings,
    now: Seconds,
) -> Option<Result<super::ConnectionRef, Refused>> {
    let outside = match table.hold_binding(key, settings, now) {
        Ok(held) => held?.inverse(),
        Err(refused) => {
            table.lanes.lane(worker).note(Count::Contended);
            return Some(Err(refused));
        }
    };
    let forwarded = opening.forwarded.with_source(outside.src(), outside.sport())?;
    let opening = Opening { forwarded, status: opening.status.marked(Marks::BOUND), ..*opening };
    let created = table.create(worker, &opening, limits, settings, now);
    if created.is_err() {
        table.let_go_of_binding(key);
    }
    Some(created)
}

/// The packet with each source that it may be given, in the order in which they are tried.
fn candidates<'a>(
    table: &'a Table,
    worker: WorkerId,
    opening: &'a Opening,
    pool: &'a Pool,
) -> impl Iterator<Item = Tuple> + 'a {
    let slice = pool.slice(worker.0, table.lanes.count() as u16);
    (0..=TRIES).filter_map(move |attempt| {
        let (address, port) = pool.candidate(&opening.forwarded, table.seed, slice, attempt)?;
        opening.forwarded.with_source(address, port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tuple(sport: u16) -> Tuple {
        Tuple::new(NetworkId::default(), ip("10.0.0.1"), ip("192.0.2.9"), 17, sport, 53).unwrap()
    }

    const SEED: HashSeed = HashSeed::new([0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321]);

    #[test]
    fn a_pool_of_nonsense_is_refused_by_name() {
        let pool = |addresses: &[&str], ports| {
            Pool::new(&addresses.iter().map(|text| ip(text)).collect::<Vec<_>>(), ports)
        };
        assert_eq!(pool(&[], 1..=2), Err(PoolError::NoAddress));
        assert_eq!(pool(&["224.0.0.1"], 1..=2), Err(PoolError::Address(ip("224.0.0.1"))));
        assert_eq!(pool(&["10.0.0.1", "10.0.0.1"], 1..=2), Err(PoolError::Twice(ip("10.0.0.1"))));
        assert_eq!(pool(&["10.0.0.1"], 0..=2), Err(PoolError::Ports { first: 0, last: 2 }));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = pool(&["10.0.0.1"], 9..=2);
        assert_eq!(reversed, Err(PoolError::Ports { first: 9, last: 2 }));
    }

    #[test]
    fn workers_slices_cover_all_ports_and_none_twice() {
        for (first, last, workers) in [(1024u16, 65_535u16, 7u16), (40_000, 40_002, 2), (1, 65_535, 64)] {
            let pool = Pool::new(&[ip("192.0.2.1")], first..=last).unwrap();
            let mut next = 0;
            for worker in 0..workers {
                let (start, length) = pool.slice(worker, workers);
                assert_eq!(start, next);
                next += length;
            }
            assert_eq!(next, u32::from(last - first) + 1);
        }
    }

    #[test]
    fn every_candidate_is_of_the_pool_and_the_source_port_comes_first() {
        let pool =
            Pool::new(&[ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")], 40_000..=40_099).unwrap();
        for sport in [40_007, 1_000] {
            let sent = tuple(sport);
            let all: Vec<_> =
                (0..=TRIES).filter_map(|n| pool.candidate(&sent, SEED, pool.slice(1, 4), n)).collect();
            assert!(all.iter().all(|&(address, port)| address.is_ipv4() && pool.covers(address, port)));
            assert_eq!(all[0].1 == sport, sport == 40_007);
            let own = &all[all.len() - TRIES as usize..][..(OWN_RUNS * RUN) as usize];
            assert!(own.iter().all(|&(_, port)| (40_025..40_050).contains(&port)));
        }
    }

    #[test]
    fn a_paired_host_leaves_by_one_address_and_hosts_spread_over_all() {
        let addresses: Vec<IpAddr> = (1..=4).map(|n| IpAddr::V4([192, 0, 2, n].into())).collect();
        let pool = Pool::new(&addresses, 1024..=65_535).unwrap().paired(true);
        let mut used = std::collections::HashSet::new();
        for host in 1..65u8 {
            let leaves_by = |sport| {
                let src = IpAddr::V4([10, 0, 0, host].into());
                let sent = Tuple::new(NetworkId::default(), src, ip("198.51.100.1"), 6, sport, 80).unwrap();
                let candidates = (0..TRIES).filter_map(|n| pool.candidate(&sent, SEED, pool.slice(0, 1), n));
                candidates.map(|(address, _)| address).collect::<Vec<_>>()
            };
            let first = leaves_by(2000)[0];
            assert!(leaves_by(3000).iter().chain(&leaves_by(2000)).all(|&address| address == first));
            used.insert(first);
        }
        assert_eq!(used.len(), 4);
    }
}
