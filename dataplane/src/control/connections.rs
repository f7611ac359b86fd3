//! The connection table as it is listed: rows with the names that configuration gives to numbers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use penstock_api::proto;
use penstock_api::query::ConnectionQuery;
use penstock_io::Ticks;

use super::stateful::{BackendKey, Connections, ServiceCounters};
use crate::conntrack::{Connection, Direction, Seconds, Tuple};
use crate::slowpath::facts::state_name;
use crate::supervisor::Engine;
use crate::tables::service::BackendId;
use crate::tables::{Network, Snapshot, Target};
use crate::tracker::Tracker;

/// Rows of one piece of a listing.
const PIECE: usize = 512;

/// The connection table, and the tables that tell what its addresses are.
pub struct ConnectionTable {
    tracker: Tracker,
    snapshot: Arc<Mutex<Arc<Snapshot>>>,
}

impl ConnectionTable {
    /// The table of an engine; `None` if it keeps no connections.
    #[must_use]
    pub fn of(engine: &Engine) -> Option<Arc<ConnectionTable>> {
        let tracker = engine.tracker()?.clone();
        Some(Arc::new(ConnectionTable { tracker, snapshot: engine.published() }))
    }
}

impl Connections for ConnectionTable {
    fn piece(&self, query: &ConnectionQuery, place: u64) -> (Vec<proto::Connection>, Option<u64>) {
        let snapshot = Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner));
        let now = self.tracker.seconds(Ticks::now());
        let mut found = Vec::with_capacity(PIECE);
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        let next = self.tracker.table.list(place, &mut found, |connection| {
            connection.deadline > now && is_wanted(query, &Named::of(&snapshot, connection), connection)
        });
        let rows = found.iter().map(|it| row(&Named::of(&snapshot, it), it, now, &self.tracker));
        (rows.collect(), next.map(u64::from))
    }
}

impl ServiceCounters for ConnectionTable {
    fn connections(&self) -> HashMap<BackendKey, u64> {
        let snapshot = Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner));
        let now = self.tracker.seconds(Ticks::now());
        let counts = RefCell::new(HashMap::<u32, u64>::new());
        // None is kept, so one piece is all.
        self.tracker.table.list(0, &mut Vec::with_capacity(1), |connection| {
            if let Some(number) = connection.parties.backend.checked_sub(1)
                && connection.deadline > now
            {
                *counts.borrow_mut().entry(number).or_default() += 1;
            }
            false
        });
        let key = |(number, count)| {
            let (port, backend) = snapshot.services.backend(BackendId::new(number)?)?;
            let service = port.service().to_owned();
            let (protocol, port) = port.port();
            let backend = (backend.address, backend.port);
            Some((BackendKey { service, protocol: protocol.number(), port, backend }, count))
        };
        counts.into_inner().into_iter().filter_map(key).collect()
    }
}

/// What a connection's addresses are called.
struct Named<'a> {
    network: Option<&'a Network>,
    source: Option<&'a str>,
    destination: Option<&'a str>,
    service: Option<&'a str>,
    nat: Option<&'a str>,
}

impl<'a> Named<'a> {
    fn of(snapshot: &'a Snapshot, connection: &Connection) -> Named<'a> {
        let sent = connection.leaves_as(Direction::Original);
        let network =
            snapshot.network(connection.original.network()).or_else(|| snapshot.network(sent.network()));
        let endpoint = |address: IpAddr| match network?.route(address)? {
            Target::Endpoint(endpoint) => Some(snapshot.endpoints[*endpoint as usize].name.as_str()),
            _ => None,
        };
        let backend = connection.parties.backend.checked_sub(1).and_then(BackendId::new);
        let service = backend.and_then(|id| snapshot.services.backend(id)).map(|(port, _)| port.service());
        let (outside, port) = (connection.reply.dst(), connection.reply.dport());
        let ways = network.filter(|_| connection.translates_source()).map(|it| &it.masquerades);
        let nat = ways.into_iter().flatten().find(|way| way.covers(outside, port));
        Named {
            network,
            source: endpoint(connection.original.src()),
            destination: endpoint(sent.dst()),
            service,
            nat: nat.map(|way| way.name.as_str()),
        }
    }
}

fn is_wanted(query: &ConnectionQuery, named: &Named<'_>, connection: &Connection) -> bool {
    let tuples = [&connection.original, &connection.reply];
    let mut ends = tuples.iter().flat_map(|tuple| [tuple.src(), tuple.dst()]);
    let mut ports = tuples.iter().flat_map(|tuple| [tuple.sport(), tuple.dport()]);
    let is = |wanted: &Option<penstock_api::model::Name>, name: Option<&str>| {
        wanted.as_ref().is_none_or(|wanted| name == Some(wanted.as_str()))
    };
    is(&query.network, named.network.map(|network| network.name.as_str()))
        && query.address.is_none_or(|prefix| ends.any(|end| prefix.contains(&end)))
        && query.port.is_none_or(|port| ports.any(|it| it == port))
        && query.protocol.is_none_or(|it| it.number() == connection.original.protocol())
        && (is(&query.endpoint, named.source) || is(&query.endpoint, named.destination))
        && is(&query.service, named.service)
}

fn row(named: &Named<'_>, connection: &Connection, now: Seconds, tracker: &Tracker) -> proto::Connection {
    let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let left = connection.deadline.0.saturating_sub(now.0);
    let whole = tracker.settings.timeouts.of(connection.status);
    proto::Connection {
        network: text(named.network.map(|network| network.name.as_str())),
        protocol: connection.original.protocol().into(),
        state: state_name(connection.status.state),
        original: Some(tuple(&connection.original)),
        reply: Some(tuple(&connection.reply)),
        source_endpoint: text(named.source),
        destination_endpoint: text(named.destination),
        service: text(named.service),
        nat: text(named.nat),
        assured: connection.status.is_assured(),
        idle_ms: u64::from(whole.saturating_sub(left)) * 1000,
        expires_ms: u64::from(left) * 1000,
    }
}

fn tuple(tuple: &Tuple) -> proto::Tuple {
    proto::Tuple {
        source: tuple.src().to_string(),
        source_port: tuple.sport().into(),
        destination: tuple.dst().to_string(),
        destination_port: tuple.dport().into(),
    }
}
