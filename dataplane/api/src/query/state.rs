//! What may be asked of the stateful tier: which connections, policies and services, and which events.

use std::time::Duration;

use ipnet::IpNet;

use super::{address_or_net, read_all};
use crate::convert::Reader;
use crate::fault::Fault;
use crate::model::{Name, Protocol};
use crate::proto;

/// Which connections to list; what is absent does not narrow the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionQuery {
    /// Only this network.
    pub network: Option<Name>,
    /// Only connections with an address in here at an end, before or after translation.
    pub address: Option<IpNet>,
    /// Only connections with this port at an end, before or after translation.
    pub port: Option<u16>,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only connections of this local endpoint.
    pub endpoint: Option<Name>,
    /// Only connections through this service.
    pub service: Option<Name>,
    /// At most so many connections.
    pub limit: Option<u32>,
}

/// Which policies to list; what is absent does not narrow the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyQuery {
    /// Only this network.
    pub network: Option<Name>,
    /// Only this tier.
    pub tier: Option<Name>,
    /// Only this policy.
    pub policy: Option<Name>,
    /// Only staged policies.
    pub staged: bool,
}

/// Which services to list; what is absent does not narrow the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceQuery {
    /// Only this network.
    pub network: Option<Name>,
    /// Only this service.
    pub service: Option<Name>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A rule that logs matched.
    Rule,
    /// Something ran out: connections, ports of a NAT pool, a limit.
    Exhaustion,
    /// A change of the configuration was refused because it does not fit.
    Refusal,
}

/// Which events to watch; what is absent does not narrow the choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventOrder {
    /// Only these kinds; all when empty.
    pub kinds: Vec<EventKind>,
    /// Only this network.
    pub network: Option<Name>,
    /// Only events of this local endpoint.
    pub endpoint: Option<Name>,
    /// Stop after so many events.
    pub count: Option<u64>,
    /// Stop after so long.
    pub duration: Option<Duration>,
}

impl EventOrder {
    /// Whether it asks for `event`.
    pub fn wants(&self, event: &proto::Event) -> bool {
        let kind = match event.detail {
            Some(proto::event::Detail::Rule(_)) => Some(EventKind::Rule),
            Some(proto::event::Detail::Exhaustion(_)) => Some(EventKind::Exhaustion),
            Some(proto::event::Detail::Refusal(_)) => Some(EventKind::Refusal),
            None => None,
        };
        let names = |name: &Option<Name>, it: &str| name.as_ref().is_none_or(|name| name.as_str() == it);
        (self.kinds.is_empty() || kind.is_some_and(|kind| self.kinds.contains(&kind)))
            && names(&self.network, &event.network)
            && names(&self.endpoint, &event.endpoint)
    }
}

/// A name, absent where the text is empty.
fn name(reader: &mut Reader<'_>, key: &str, text: &str) -> Option<Option<Name>> {
    reader.unless_empty(text, |reader, text| reader.text(key, text))
}

fn said(name: &Option<Name>) -> String {
    name.as_ref().map(Name::to_string).unwrap_or_default()
}

impl TryFrom<proto::ConnectionsRequest> for ConnectionQuery {
    type Error = Vec<Fault>;

    fn try_from(m: proto::ConnectionsRequest) -> Result<Self, Vec<Fault>> {
        read_all("connections request", |reader| {
            let network = name(reader, "network", &m.network);
            let address = reader.unless_empty(&m.address, |reader, text| {
                let net = address_or_net(text);
                if net.is_none() {
                    reader.fault("address", format_args!("{text:?} is neither an address nor a prefix"));
                }
                net
            });
            let port = reader.optional(m.port, |reader, port| reader.number("port", port));
            let protocol = reader.optional(m.protocol, |reader, number| reader.number("protocol", number));
            let endpoint = name(reader, "endpoint", &m.endpoint);
            let service = name(reader, "service", &m.service);
            Some(Self {
                network: network?,
                address: address?,
                port: port?,
                protocol: protocol?.map(Protocol::new),
                endpoint: endpoint?,
                service: service?,
                limit: m.limit,
            })
        })
    }
}

impl From<&ConnectionQuery> for proto::ConnectionsRequest {
    fn from(query: &ConnectionQuery) -> Self {
        Self {
            network: said(&query.network),
            address: query.address.map(|net| net.to_string()).unwrap_or_default(),
            port: query.port.map(u32::from),
            protocol: query.protocol.map(|protocol| protocol.number().into()),
            endpoint: said(&query.endpoint),
            service: said(&query.service),
            limit: query.limit,
        }
    }
}

impl TryFrom<proto::PoliciesRequest> for PolicyQuery {
    type Error = Vec<Fault>;

    fn try_from(m: proto::PoliciesRequest) -> Result<Self, Vec<Fault>> {
        read_all("policies request", |reader| {
            let network = name(reader, "network", &m.network);
            let tier = name(reader, "tier", &m.tier);
            let policy = name(reader, "policy", &m.policy);
            Some(Self { network: network?, tier: tier?, policy: policy?, staged: m.staged })
        })
    }
}

impl From<&PolicyQuery> for proto::PoliciesRequest {
    fn from(query: &PolicyQuery) -> Self {
        Self {
            network: said(&query.network),
            tier: said(&query.tier),
            policy: said(&query.policy),
            staged: query.staged,
        }
    }
}

impl TryFrom<proto::ServicesRequest> for ServiceQuery {
    type Error = Vec<Fault>;

    fn try_from(m: proto::ServicesRequest) -> Result<Self, Vec<Fault>> {
        read_all("services request", |reader| {
            let network = name(reader, "network", &m.network);
            let service = name(reader, "service", &m.service);
            Some(Self { network: network?, service: service? })
        })
    }
}

impl From<&ServiceQuery> for proto::ServicesRequest {
    fn from(query: &ServiceQuery) -> Self {
        Self { network: said(&query.network), service: said(&query.service) }
    }
}

impl TryFrom<proto::EventsRequest> for EventOrder {
    type Error = Vec<Fault>;

    fn try_from(m: proto::EventsRequest) -> Result<Self, Vec<Fault>> {
        read_all("events request", |reader| {
            let kinds: Vec<Option<EventKind>> = m
                .kinds
                .iter()
                .map(|kind| match reader.enumeration("kinds", *kind)? {
                    proto::EventKind::Rule => Some(EventKind::Rule),
                    proto::EventKind::Exhaustion => Some(EventKind::Exhaustion),
                    proto::EventKind::Refusal => Some(EventKind::Refusal),
                })
                .collect();
            let network = name(reader, "network", &m.network);
            let endpoint = name(reader, "endpoint", &m.endpoint);
            Some(Self {
                kinds: kinds.into_iter().collect::<Option<_>>()?,
                network: network?,
                endpoint: endpoint?,
                count: m.count,
                duration: m.duration_ms.map(Duration::from_millis),
            })
        })
    }
}

impl From<&EventOrder> for proto::EventsRequest {
    fn from(order: &EventOrder) -> Self {
        let kind = |kind: &EventKind| match kind {
            EventKind::Rule => proto::EventKind::Rule.into(),
            EventKind::Exhaustion => proto::EventKind::Exhaustion.into(),
            EventKind::Refusal => proto::EventKind::Refusal.into(),
        };
        Self {
            kinds: order.kinds.iter().map(kind).collect(),
            network: said(&order.network),
            endpoint: said(&order.endpoint),
            count: order.count,
            duration_ms: order.duration.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Option<Name> {
        Some(name.parse().unwrap())
    }

    #[test]
    fn questions_about_the_stateful_tier_go_round() {
        let connections = ConnectionQuery {
            network: named("blue"),
            address: address_or_net("10.1.0.0/16"),
            port: Some(53),
            protocol: Some(Protocol::UDP),
            endpoint: named("web"),
            service: named("dns"),
            limit: Some(10),
        };
        for query in [connections, ConnectionQuery::default()] {
            assert_eq!(ConnectionQuery::try_from(proto::ConnectionsRequest::from(&query)), Ok(query));
        }
        let policies =
            PolicyQuery { network: named("blue"), tier: named("t"), policy: named("p"), staged: true };
        for query in [policies, PolicyQuery::default()] {
            assert_eq!(PolicyQuery::try_from(proto::PoliciesRequest::from(&query)), Ok(query));
        }
        let services = ServiceQuery { network: named("blue"), service: named("dns") };
        for query in [services, ServiceQuery::default()] {
            assert_eq!(ServiceQuery::try_from(proto::ServicesRequest::from(&query)), Ok(query));
        }
        let events = EventOrder {
            kinds: vec![EventKind::Exhaustion, EventKind::Rule, EventKind::Refusal],
            network: named("blue"),
            endpoint: named("web"),
            count: Some(3),
            duration: Some(Duration::from_secs(2)),
        };
        for order in [events, EventOrder::default()] {
            assert_eq!(EventOrder::try_from(proto::EventsRequest::from(&order)), Ok(order));
        }
    }

    #[test]
    fn all_faults_of_a_question_about_connections_are_found() {
        let asked = proto::ConnectionsRequest {
            network: "two words".to_owned(),
            address: "web".to_owned(),
            port: Some(65536),
            protocol: Some(256),
            endpoint: "a:b".to_owned(),
            service: "?".to_owned(),
            limit: None,
        };
        let faults = ConnectionQuery::try_from(asked).unwrap_err();
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["network", "address", "port", "protocol", "endpoint", "service"]);
        assert!(faults.iter().all(|fault| !fault.mend.starts_with("see the example")), "{faults:?}");
        let events = proto::EventsRequest { kinds: vec![0, 9], ..Default::default() };
        assert_eq!(EventOrder::try_from(events).unwrap_err()[0].key, "kinds");
    }

    #[test]
    fn an_order_wants_what_it_names() {
        let event = proto::Event {
            network: "blue".to_owned(),
            endpoint: "web".to_owned(),
            detail: Some(proto::event::Detail::Rule(proto::RuleEvent::default())),
            ..Default::default()
        };
        let all = EventOrder::default();
        assert!(all.wants(&event) && all.wants(&proto::Event::default()));
        assert!(EventOrder { kinds: vec![EventKind::Rule], ..all.clone() }.wants(&event));
        assert!(!EventOrder { kinds: vec![EventKind::Exhaustion], ..all.clone() }.wants(&event));
        assert!(EventOrder { network: named("blue"), endpoint: named("web"), ..all.clone() }.wants(&event));
        assert!(!EventOrder { endpoint: named("db"), ..all }.wants(&event));
    }
}
