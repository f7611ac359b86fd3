//! What the stateful tier is asked: connections, policies, services and events.
//!
//! Each answer is made of what is configured and of what a [`Sources`] knows. Where a source is missing, the call is
//! answered with UNIMPLEMENTED: a counter that nobody counts must not read as 0.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::stream;
use penstock_api::model::{
    Affinity, Name, Policy, PolicyDirection, Rule, RuleAction, Service as ServiceObject, ServicePort,
    Subjects, Tier,
};
use penstock_api::proto;
use penstock_api::query::{ConnectionQuery, EventOrder, PolicyQuery, ServiceQuery};
use tokio::sync::broadcast;
use tonic::Status;

use super::{Answers, ConnectionTable, Service};
use crate::supervisor::Engine;
use crate::tables::desired::Desired;
use crate::tables::rule_counts::{RuleBooks, RuleTotals};

/// Where the stateful tier's own knowledge comes from; each part is there or not.
#[derive(Clone, Default)]
pub struct Sources {
    /// The connection table.
    pub connections: Option<Arc<dyn Connections>>,
    /// The counters of rules.
    pub rules: Option<RuleBooks>,
    /// The counters of services.
    pub services: Option<Arc<dyn ServiceCounters>>,
    /// What rules log and what runs out, already limited in rate.
    pub events: Option<broadcast::Sender<proto::Event>>,
}

/// The connection table, read in pieces so that no listing holds up the control thread.
pub trait Connections: Send + Sync {
    /// Connections from `place` on that `query` asks for, its limit aside, and the place to go on from; `None` at the
    /// end. A piece may be empty. The first place is 0.
    fn piece(&self, query: &ConnectionQuery, place: u64) -> (Vec<proto::Connection>, Option<u64>);
}

/// What goes through services.
pub trait ServiceCounters: Send + Sync {
    /// How many connections each backend has now; one that has none need not be there. May take a while.
    fn connections(&self) -> HashMap<BackendKey, u64>;
}

/// A backend of a service's port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// The service.
    pub service: String,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port at the service's addresses.
    pub port: u16,
    /// The backend's address and port.
    pub backend: (IpAddr, u16),
}

impl Sources {
    /// What an engine knows. Starts to tell its workers' events.
    #[must_use]
    pub fn of(engine: &Engine) -> Sources {
        let table = ConnectionTable::of(engine);
        Sources {
            connections: table.clone().map(|table| table as Arc<dyn Connections>),
            rules: Some(engine.rule_books().clone()),
            services: table.map(|table| table as Arc<dyn ServiceCounters>),
            events: Some(super::events::start(engine)),
        }
    }
}

/// The source, or the answer that there is none.
fn wired<T: Clone>(source: &Option<T>, what: &str) -> Result<T, Status> {
    source.clone().ok_or_else(|| Status::unimplemented(format!("this daemon does not {what} yet")))
}

// ---- Connections -----------------------------------------------------------------------------------------------

pub(super) fn connections(
    service: &Service,
    query: ConnectionQuery,
) -> Result<Answers<proto::Connection>, Status> {
    let table = wired(&service.sources.connections, "track connections")?;
    let left = query.limit.map_or(u64::MAX, u64::from);
    let listing = Listing { table, query, place: Some(0), ready: Vec::new().into_iter(), left };
    Ok(Box::pin(stream::unfold(listing, |mut listing| async move {
        listing.next().await.map(|connection| (Ok(connection), listing))
    })))
}

/// A listing on its way.
struct Listing {
    table: Arc<dyn Connections>,
    query: ConnectionQuery,
    place: Option<u64>,
    ready: std::vec::IntoIter<proto::Connection>,
    left: u64,
}

impl Listing {
    async fn next(&mut self) -> Option<proto::Connection> {
        self.left = self.left.checked_sub(1)?;
        loop {
            if let Some(connection) = self.ready.next() {
                return Some(connection);
            }
            let (piece, place) = self.table.piece(&self.query, self.place?);
            (self.ready, self.place) = (piece.into_iter(), place);
            // A million connections of which few are wanted: let others have the thread between pieces.
            tokio::task::yield_now().await;
        }
    }
}

// ---- Policies --------------------------------------------------------------------------------------------------

pub(super) async fn policies(service: &Service, query: PolicyQuery) -> Result<proto::PolicyList, Status> {
    let counted = wired(&service.sources.rules, "count what policies decide")?;
    let counts = aside(move || counted.totals()).await?;
    service.look(move |engine: &Engine| policy_list(engine.desired(), &query, &counts)).await
}

/// The policies as packets meet them.
fn policy_list(desired: &Desired, query: &PolicyQuery, counts: &RuleTotals) -> proto::PolicyList {
    let wanted = |wanted: &Option<Name>, name: &Name| wanted.as_ref().is_none_or(|wanted| wanted == name);
    let mut tiers: Vec<&Tier> = desired.tiers().filter(|tier| wanted(&query.tier, &tier.name)).collect();
    tiers.sort_by_key(|tier| (tier.order, &tier.name));
    let mut policies: Vec<&Policy> = desired
        .policies()
        .filter(|it| wanted(&query.network, &it.network) && wanted(&query.policy, &it.name))
        .filter(|it| it.staged || !query.staged)
        .collect();
    policies.sort_by_key(|policy| (policy.order, &policy.name));
    let narrowed = query.network.is_some() || query.policy.is_some() || query.staged;
    let rows = tiers.into_iter().map(|tier| proto::TierRow {
        name: tier.name.to_string(),
        order: tier.order,
        default: tier.default.to_string(),
        default_hits: counts.tier_end(tier.name.as_str()).0,
        staged_default_hits: counts.tier_end(tier.name.as_str()).1,
        policies: policies
            .iter()
            .filter(|policy| policy.tier == tier.name)
            .map(|policy| policy_row(policy, counts))
            .collect(),
    });
    // A tier without a policy still is a tier, but not an answer to who asked for some policies.
    proto::PolicyList { tiers: rows.filter(|row| !narrowed || !row.policies.is_empty()).collect() }
}

fn policy_row(policy: &Policy, counts: &RuleTotals) -> proto::PolicyRow {
    let subjects = match &policy.subjects {
        Subjects::All => Vec::new(),
        Subjects::Identities(names) => names.iter().map(Name::to_string).collect(),
    };
    let rule = |rule: &Rule| proto::RuleRow {
        name: rule.name.to_string(),
        direction: rule.direction.to_string(),
        action: rule.action.to_string(),
        peers: rule.peers.iter().map(ToString::to_string).collect(),
        ports: rule.ports.iter().map(ToString::to_string).collect(),
        // One that passes decides nothing, so nobody counts it.
        hits: (rule.action != RuleAction::Pass)
            .then(|| counts.rule(policy.name.as_str(), rule.name.as_str())),
    };
    proto::PolicyRow {
        name: policy.name.to_string(),
        network: policy.network.to_string(),
        order: policy.order,
        staged: policy.staged,
        selects_all: policy.subjects == Subjects::All,
        subjects,
        directions: policy.directions.iter().map(PolicyDirection::to_string).collect(),
        rules: policy.rules.iter().map(rule).collect(),
    }
}

/// Does what takes a while on another thread: the control thread has its own to do.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(format!("counting ended early: {error}")))
}

// ---- Services --------------------------------------------------------------------------------------------------

pub(super) async fn services(service: &Service, query: ServiceQuery) -> Result<proto::ServiceList, Status> {
    let counters = wired(&service.sources.services, "count the connections of services")?;
    let counts = aside(move || counters.connections()).await?;
    service.look(move |engine: &Engine| service_list(engine.desired(), &query, &counts)).await
}

/// Connections by backend.
type Connected = HashMap<BackendKey, u64>;

fn service_list(desired: &Desired, query: &ServiceQuery, counts: &Connected) -> proto::ServiceList {
    let wanted = |wanted: &Option<Name>, name: &Name| wanted.as_ref().is_none_or(|wanted| wanted == name);
    let services = desired
        .services()
        .filter(|it| wanted(&query.network, &it.network) && wanted(&query.service, &it.name));
    proto::ServiceList { services: services.map(|it| service_row(desired, it, counts)).collect() }
}

fn service_row(desired: &Desired, service: &ServiceObject, counts: &Connected) -> proto::ServiceRow {
    let texts = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect();
    proto::ServiceRow {
        name: service.name.to_string(),
        network: service.network.to_string(),
        cluster_ips: texts(&service.cluster_ips),
        external_ips: texts(&service.external_ips),
        load_balancer_ips: texts(&service.load_balancer_ips),
        affinity_s: service.affinity.map(|Affinity::ClientIp { timeout_s }| timeout_s),
        internal_policy: service.internal_policy.to_string(),
        external_policy: service.external_policy.to_string(),
        topology: service.topology.to_string(),
        dsr: service.dsr,
        ports: service.ports.iter().map(|port| port_row(desired, service, port, counts)).collect(),
    }
}

fn port_row(
    desired: &Desired,
    service: &ServiceObject,
    port: &ServicePort,
    counts: &Connected,
) -> proto::ServicePortRow {
    let protocol = penstock_api::model::Protocol::from(port.protocol).number();
    let mut backends = Vec::new();
    for slice in desired.backends(&service.name) {
        let Some(target) = slice.ports.iter().find(|it| it.name == port.name) else { continue };
        backends.extend(slice.members.iter().map(|member| {
            let key = BackendKey {
                service: service.name.to_string(),
                protocol,
                port: port.port,
                backend: (member.address, target.port),
            };
            proto::BackendRow {
                slice: slice.slice.to_string(),
                address: member.address.to_string(),
                port: target.port.into(),
                state: member.state.to_string(),
                node: member.node.as_ref().map(Name::to_string).unwrap_or_default(),
                zone: member.zone.as_ref().map(Name::to_string).unwrap_or_default(),
                weight: member.weight.into(),
                connections: counts.get(&key).copied().unwrap_or_default(),
            }
        }));
    }
    proto::ServicePortRow {
        name: port.name.to_string(),
        protocol: protocol.into(),
        port: port.port.into(),
        node_port: port.node_port.map(u32::from),
        backends,
    }
}

// ---- Events ----------------------------------------------------------------------------------------------------

pub(super) fn events(service: &Service, order: EventOrder) -> Result<Answers<proto::Event>, Status> {
    let events = wired(&service.sources.events, "tell events")?;
    let until = order.duration.map(|duration| Instant::now() + duration);
    let left = order.count.unwrap_or(u64::MAX);
    let watch = Watch { events: events.subscribe(), order, until, left, lost: 0 };
    Ok(Box::pin(stream::unfold(watch, |mut watch| async move {
        watch.next().await.map(|event| (Ok(event), watch))
    })))
}

/// Somebody who watches events.
struct Watch {
    events: broadcast::Receiver<proto::Event>,
    order: EventOrder,
    until: Option<Instant>,
    left: u64,
    /// Events that were not told since the last that was. Who they were for is not known any more.
    lost: u64,
}

impl Watch {
    /// The next event that is asked for, or `None` when time is up, enough came or the daemon drains.
    async fn next(&mut self) -> Option<proto::Event> {
        self.left = self.left.checked_sub(1)?;
        let until = self.until;
        let time_is_up = async {
            match until {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.next_wanted() => event,
            () = time_is_up => None,
        }
    }

    async fn next_wanted(&mut self) -> Option<proto::Event> {
        loop {
            match self.events.recv().await {
                Ok(event) => {
                    self.lost = self.lost.saturating_add(event.lost);
                    if self.order.wants(&event) {
                        return Some(proto::Event { lost: std::mem::take(&mut self.lost), ..event });
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    self.lost = self.lost.saturating_add(missed);
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests;
