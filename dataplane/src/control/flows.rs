//! The flows in the workers' caches, asked for in pieces so that no worker is held up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;
use futures::stream;
use penstock_api::proto;
use penstock_api::query::FlowQuery;
use penstock_io::TicksPerSecond;
use tonic::Status;

use super::{Answers, Service};
use crate::flow::cache::Row;
use crate::flow::key::Described;
use crate::flow::{Coarse, DeviceId, Verb};
use crate::mailbox::{Command, FlowListing};
use crate::slowpath::describe_zone;
use crate::supervisor::Engine;
use crate::tables::Snapshot;

/// Rows of each family that a worker lists in one turn.
const PIECE: usize = 512;
/// How long a worker may take for a piece.
const PATIENCE: Duration = Duration::from_secs(2);
/// Ticks of the coarse clock's unit, as a power of two: flow::Coarse counts units of 2^24 ticks.
const COARSE_SHIFT: u32 = 24;

/// A listing on its way.
struct Listing {
    service: Service,
    query: FlowQuery,
    /// The worker that is asked, by its place.
    worker: usize,
    next: Option<FlowListing>,
    ready: VecDeque<proto::Flow>,
    sent: u32,
}

/// What a piece is put into words with.
struct Words {
    snapshot: Arc<Snapshot>,
    ports: Vec<(DeviceId, String)>,
    rate: TicksPerSecond,
    worker: u32,
}

pub(super) fn list(service: Service, query: FlowQuery) -> Answers<proto::Flow> {
    let listing = Listing {
        service,
        query,
        worker: 0,
        next: Some(FlowListing::new(PIECE)),
        ready: VecDeque::new(),
        sent: 0,
    };
    Box::pin(stream::try_unfold(listing, |mut listing| async move {
        Ok(listing.next_flow().await?.map(|flow| (flow, listing)))
    }))
}

impl Listing {
    async fn next_flow(&mut self) -> Result<Option<proto::Flow>, Status> {
        if self.query.limit.is_some_and(|limit| self.sent >= limit) {
            return Ok(None);
        }
        while self.ready.is_empty() {
            if !self.next_piece().await? {
                return Ok(None);
            }
        }
        self.sent += 1;
        Ok(self.ready.pop_front())
    }

    /// Asks a worker for its next piece; tells whether there was somebody to ask.
    async fn next_piece(&mut self) -> Result<bool, Status> {
        let Some(listing) = self.next.take() else { return Ok(false) };
        let worker = self.worker;
        let (reply, piece) = bounded(1);
        let ask = move |engine: &Engine| {
            let handle = engine.workers().get(worker)?;
            handle.tell(Command::ListFlows(listing, reply));
            Some(u32::from(handle.id))
        };
        let Some(id) = self.service.look(ask).await? else { return Ok(false) };
        let Some(listing) = crate::supervisor::answer(&piece, PATIENCE).await else {
            return Err(Status::deadline_exceeded(format!(
                "worker {id} does not answer; see `penstock workers`"
            )));
        };
        let words = self.service.look(move |engine| Words::of(engine, id)).await?;
        let rows4 = listing.rows4.iter().map(|row| words.flow(row, row.key.describe(), listing.now));
        let rows6 = listing.rows6.iter().map(|row| words.flow(row, row.key.describe(), listing.now));
        let query = &self.query;
        self.ready.extend(
            rows4
                .chain(rows6)
                .filter(|(flow, described)| matches(query, flow, described))
                .map(|(flow, _)| flow),
        );
        if listing.next4.is_some() || listing.next6.is_some() {
            self.next = Some(listing);
        } else {
            self.worker += 1;
            self.next = Some(FlowListing::new(PIECE));
        }
        Ok(true)
    }
}

fn matches(query: &FlowQuery, flow: &proto::Flow, described: &Described) -> bool {
    query.network.as_ref().is_none_or(|network| network.as_str() == flow.network)
        && query.address.is_none_or(|net| net.contains(&described.src) || net.contains(&described.dst))
        && query.port.is_none_or(|port| port == described.sport || port == described.dport)
}

impl Words {
    fn of(engine: &Engine, worker: u32) -> Words {
        let ports = engine.devices().iter().map(|(owner, device)| (device.id, owner.port_name().to_owned()));
        Words { snapshot: engine.snapshot(), ports: ports.collect(), rate: engine.rate(), worker }
    }

    fn flow<K>(&self, row: &Row<K>, key: Described, now: Coarse) -> (proto::Flow, Described) {
        let zone = self.snapshot.zones.get(key.zone.number());
        let network = zone.and_then(|zone| self.snapshot.networks.get(zone.network() as usize));
        let out = row.action.out();
        let out_port = self.ports.iter().find(|(id, _)| *id == out).map(|(_, name)| name.clone());
        let action = match row.action.verb() {
            Verb::Forward => "forward".to_owned(),
            Verb::Encapsulate => {
                let template = self.snapshot.templates.get(usize::from(row.action.template().0));
                let room = template.map(|it| format!(" ({} bytes in front)", it.header.len()));
                format!("encapsulate{}", room.unwrap_or_default())
            }
        };
        let idle = self.rate.duration(u64::from(now.since(row.seen)) << COARSE_SHIFT);
        let flow = proto::Flow {
            worker: self.worker,
            network: network.map(|it| it.name.clone()).unwrap_or_default(),
            zone: zone.map(|zone| describe_zone(&self.snapshot, *zone)).unwrap_or_default(),
            source: key.src.to_string(),
            destination: key.dst.to_string(),
            protocol: key.proto.into(),
            source_port: key.sport.into(),
            destination_port: key.dport.into(),
            action: if key.fragments { format!("{action}, fragments") } else { action },
            out_port: out_port.unwrap_or_default(),
            packets: row.packets,
            bytes: row.bytes,
            idle_ms: idle.as_millis() as u64,
            stale: row.stale,
        };
        (flow, key)
    }
}
