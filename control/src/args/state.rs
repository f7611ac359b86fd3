//! The flags of the commands that look at the stateful tier.

use std::time::Duration;

use clap::{Args, ValueEnum};
use penstock_api::model::{self, Name};
use penstock_api::query::{
    ConnectionQuery, EventKind, EventOrder, PolicyQuery, ServiceQuery, address_or_net,
};

use super::{address, seconds};

#[derive(Debug, Args)]
pub(crate) struct Connections {
    /// Only this network
    #[arg(long, value_name = "NAME")]
    network: Option<Name>,
    /// Only connections with this address or prefix at an end, before or after translation
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Option<String>,
    /// Only connections with this port at an end, before or after translation
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<model::Protocol>,
    /// Only connections of this local endpoint
    #[arg(long, value_name = "NAME")]
    endpoint: Option<Name>,
    /// Only connections through this service
    #[arg(long, value_name = "NAME")]
    service: Option<Name>,
    /// At most so many connections; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
}

impl Connections {
    pub(crate) fn query(self) -> ConnectionQuery {
        ConnectionQuery {
            network: self.network,
            address: self.address.as_deref().and_then(address_or_net),
            port: self.port,
            protocol: self.protocol,
            endpoint: self.endpoint,
            service: self.service,
            limit: Some(self.limit).filter(|limit| *limit != 0),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Policies {
    /// Only this policy
    #[arg(value_name = "NAME")]
    policy: Option<Name>,
    /// Only this network
    #[arg(long, value_name = "NAME")]
    network: Option<Name>,
    /// Only this tier
    #[arg(long, value_name = "NAME")]
    tier: Option<Name>,
    /// Only staged policies, which count what they would have decided
    #[arg(long)]
    staged: bool,
}

impl Policies {
    pub(crate) fn query(self) -> PolicyQuery {
        PolicyQuery { network: self.network, tier: self.tier, policy: self.policy, staged: self.staged }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Services {
    /// Only this service
    #[arg(value_name = "NAME")]
    service: Option<Name>,
    /// Only this network
    #[arg(long, value_name = "NAME")]
    network: Option<Name>,
    /// A line for every backend; JSON always has them
    #[arg(long)]
    pub(crate) backends: bool,
}

impl Services {
    pub(crate) fn query(self) -> ServiceQuery {
        ServiceQuery { network: self.network, service: self.service }
    }
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A rule that logs matched
    Rule,
    /// Something ran out: connections, ports of a NAT pool, a limit
    Exhaustion,
    /// A change of the configuration was refused because it does not fit
    Refusal,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only this kind; may be given more than once
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<Kind>,
    /// Only this network
    #[arg(long, value_name = "NAME")]
    network: Option<Name>,
    /// Only events of this local endpoint
    #[arg(long, value_name = "NAME")]
    endpoint: Option<Name>,
    /// Stop after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
}

impl Events {
    pub(crate) fn order(self) -> EventOrder {
        let kind = |kind: Kind| match kind {
            Kind::Rule => EventKind::Rule,
            Kind::Exhaustion => EventKind::Exhaustion,
            Kind::Refusal => EventKind::Refusal,
        };
        EventOrder {
            kinds: self.kinds.into_iter().map(kind).collect(),
            network: self.network,
            endpoint: self.endpoint,
            count: self.count,
            duration: self.duration,
        }
    }
}
