//! From the messages of the socket to the model and back; every fault of a request is found at once.

mod attachment;
mod policy;
mod service;

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use penstock_wire::Vni;

use crate::check::check;
use crate::fault::{Fault, mend};
use crate::model::{
    BusyPoll, CopyMode, Encapsulation, Endpoint, GeneveOption, Key, Limits, Network, Object, OptionData,
    Peer, PortRange, Prefix, Route, RouteTarget, Uplink, XdpMode,
};
use crate::proto;

/// The objects of a request, or everything that is wrong with them: values that are none, what [`check`] finds
/// within an object, and keys that are given twice.
pub fn objects_from_proto(messages: Vec<proto::Object>) -> Result<Vec<Object>, Vec<Fault>> {
    let mut faults = Vec::new();
    let objects: Vec<Object> = messages
        .into_iter()
        .enumerate()
        .filter_map(|(i, message)| object_from_proto(i, message, &mut faults))
        .collect();
    faults.extend(check(&objects));
    if faults.is_empty() { Ok(objects) } else { Err(faults) }
}

/// The keys of a request, or everything that is wrong with them.
pub fn keys_from_proto(messages: Vec<proto::Key>) -> Result<Vec<Key>, Vec<Fault>> {
    let mut faults = Vec::new();
    let keys: Vec<Key> = messages
        .into_iter()
        .enumerate()
        .filter_map(|(i, message)| key_from_proto(i, message, &mut faults))
        .collect();
    if faults.is_empty() { Ok(keys) } else { Err(faults) }
}

/// Reads the values of one message and notes what is wrong with each.
///
/// Every method answers `None` for a bad value after noting it, so that the values after it are still looked at.
pub(crate) struct Reader<'f> {
    object: String,
    faults: &'f mut Vec<Fault>,
}

impl<'f> Reader<'f> {
    pub(crate) fn new(object: impl Into<String>, faults: &'f mut Vec<Fault>) -> Self {
        Self { object: object.into(), faults }
    }

    pub(crate) fn fault(&mut self, key: &str, problem: impl Display) {
        self.faults.push(Fault::new(&self.object, key, problem.to_string(), mend(key)));
    }

    pub(crate) fn text<T: FromStr<Err: Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        text.parse().map_err(|why| self.fault(key, why)).ok()
    }

    pub(crate) fn address(&mut self, key: &str, text: &str) -> Option<IpAddr> {
        text.parse().map_err(|_| self.fault(key, format_args!("{text:?} is no IP address"))).ok()
    }

    /// An absent value is fine, a bad one is not.
    pub(crate) fn optional<T, U>(
        &mut self,
        value: Option<T>,
        read: impl FnOnce(&mut Self, T) -> Option<U>,
    ) -> Option<Option<U>> {
        match value {
            None => Some(None),
            Some(value) => read(self, value).map(Some),
        }
    }

    /// An empty text is an absent value.
    pub(crate) fn unless_empty<U>(
        &mut self,
        text: &str,
        read: impl FnOnce(&mut Self, &str) -> Option<U>,
    ) -> Option<Option<U>> {
        self.optional(Some(text).filter(|text| !text.is_empty()), read)
    }

    /// All of the values, or none if one is bad; the key of each is `key[i]`.
    fn list<T, U>(
        &mut self,
        key: &str,
        values: Vec<T>,
        mut read: impl FnMut(&mut Self, &str, T) -> Option<U>,
    ) -> Option<Vec<U>> {
        let read: Vec<Option<U>> = values
            .into_iter()
            .enumerate()
            .map(|(i, value)| read(self, &format!("{key}[{i}]"), value))
            .collect();
        read.into_iter().collect()
    }

    fn addresses(&mut self, key: &str, texts: Vec<String>) -> Option<Vec<IpAddr>> {
        self.list(key, texts, |reader, key, text| reader.address(key, &text))
    }

    fn texts<T: FromStr<Err: Display>>(&mut self, key: &str, texts: Vec<String>) -> Option<Vec<T>> {
        self.list(key, texts, |reader, key, text| reader.text(key, &text))
    }

    fn ports(&mut self, key: &str, m: proto::PortRange) -> Option<PortRange> {
        let (first, last) = (self.number(key, m.first), self.number(key, m.last));
        PortRange::new(first?, last?).map_err(|why| self.fault(key, why)).ok()
    }

    pub(crate) fn number<T: TryFrom<u32>>(&mut self, key: &str, number: u32) -> Option<T> {
        T::try_from(number)
            .map_err(|_| {
                self.fault(key, format_args!("{number} does not fit in {} bits", 8 * size_of::<T>()))
            })
            .ok()
    }

    fn vni(&mut self, number: u32) -> Option<Vni> {
        let vni = Vni::new(number);
        if vni.is_none() {
            self.fault("vni", format_args!("{number} does not fit in 24 bits"));
        }
        vni
    }

    pub(crate) fn enumeration<T: TryFrom<i32>>(&mut self, key: &str, number: i32) -> Option<T> {
        T::try_from(number).map_err(|_| self.fault(key, format_args!("{number} is none of its values"))).ok()
    }

    pub(crate) fn present<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.fault(key, "is missing");
        }
        value
    }
}

/// How a message is called whose own key may be bad: ``endpoint "web"``, or ``endpoint number 3`` without a name.
fn called(kind: &str, i: usize, name: &str) -> String {
    if name.is_empty() { format!("{kind} number {}", i + 1) } else { format!("{kind} {name:?}") }
}

fn object_from_proto(i: usize, message: proto::Object, faults: &mut Vec<Fault>) -> Option<Object> {
    use proto::object::Object as Message;
    let Some(message) = message.object else {
        faults.push(Fault::new(
            called("object", i, ""),
            "",
            "is of no kind that this daemon knows",
            "send one of the objects of its own version, or bring the daemon up to date",
        ));
        return None;
    };
    let object = match &message {
        Message::Uplink(m) => called("uplink", i, &m.name),
        Message::Network(m) => called("network", i, &m.name),
        Message::Endpoint(m) => called("endpoint", i, &m.name),
        Message::Peer(m) => called("peer", i, &m.name),
        Message::Route(m) => format!("route {} in network {:?}", m.prefix, m.network),
        Message::Identity(m) => called("identity", i, &m.name),
        Message::Tier(m) => called("tier", i, &m.name),
        Message::Policy(m) => called("policy", i, &m.name),
        Message::Service(m) => called("service", i, &m.name),
        Message::Backends(m) => format!("backends {:?} of service {:?}", m.slice, m.service),
        Message::NatPool(m) => called("nat-pool", i, &m.name),
        Message::EgressIp(m) => called("egress-ip", i, &m.name),
    };
    let reader = &mut Reader::new(object, faults);
    match message {
        Message::Uplink(m) => uplink_from_proto(m, reader).map(Object::Uplink),
        Message::Network(m) => network_from_proto(m, reader).map(Object::Network),
        Message::Endpoint(m) => endpoint_from_proto(m, reader).map(Object::Endpoint),
        Message::Peer(m) => peer_from_proto(m, reader).map(Object::Peer),
        Message::Route(m) => route_from_proto(m, reader).map(Object::Route),
        Message::Identity(m) => policy::identity_from_proto(m, reader).map(Object::Identity),
        Message::Tier(m) => policy::tier_from_proto(m, reader).map(Object::Tier),
        Message::Policy(m) => policy::policy_from_proto(m, reader).map(Object::Policy),
        Message::Service(m) => service::service_from_proto(m, reader).map(Object::Service),
        Message::Backends(m) => service::backends_from_proto(m, reader).map(Object::Backends),
        Message::NatPool(m) => service::nat_pool_from_proto(m, reader).map(Object::NatPool),
        Message::EgressIp(m) => service::egress_ip_from_proto(m, reader).map(Object::EgressIp),
    }
}

fn uplink_from_proto(m: proto::Uplink, reader: &mut Reader) -> Option<Uplink> {
    let name = reader.text("name", &m.name);
    let interface = reader.text("interface", &m.interface);
    let xdp = reader.enumeration("xdp", m.xdp).map(xdp_from_proto);
    let copy = reader.enumeration("copy", m.copy).map(copy_from_proto);
    let addresses = reader.addresses("addresses", m.addresses);
    Some(Uplink {
        name: name?,
        interface: interface?,
        queues: m.queues,
        xdp: xdp?,
        copy: copy?,
        busy_poll: m.busy_poll.map(|b| BusyPoll { budget: b.budget, timeout_us: b.timeout_us }),
        tx_budget: m.tx_budget,
        addresses: addresses?,
    })
}

fn network_from_proto(m: proto::Network, reader: &mut Reader) -> Option<Network> {
    let name = reader.text("name", &m.name);
    let vni = reader.vni(m.vni);
    let prefixes = reader.texts::<Prefix>("prefixes", m.prefixes);
    let mtu = reader.optional(m.mtu, |reader, mtu| reader.number("mtu", mtu));
    let encapsulation = reader.enumeration("encapsulation", m.encapsulation).map(encapsulation_from_proto);
    let gateways = match m.gateways {
        none if none.is_empty() => Some(Network::default_gateways()),
        gateways => reader.addresses("gateways", gateways),
    };
    let geneve_options = reader.list("geneve-options", m.geneve_options, option_from_proto);
    let dscp = reader.optional(m.dscp, |reader, dscp| reader.number("dscp", dscp));
    Some(Network {
        name: name?,
        vni: vni?,
        prefixes: prefixes?,
        mtu: mtu?,
        encapsulation: encapsulation?,
        cross_subnet: m.cross_subnet,
        gateways: gateways?,
        geneve_options: geneve_options?,
        udp_checksum: m.udp_checksum,
        dscp: dscp?,
    })
}

fn option_from_proto(reader: &mut Reader, key: &str, m: proto::GeneveOption) -> Option<GeneveOption> {
    let class = reader.number(&format!("{key}.class"), m.class);
    let kind = reader.number(&format!("{key}.kind"), m.kind);
    let data = OptionData::new(m.data).map_err(|why| reader.fault(&format!("{key}.data"), why)).ok();
    Some(GeneveOption { class: class?, kind: kind?, critical: m.critical, data: data? })
}

fn endpoint_from_proto(m: proto::Endpoint, reader: &mut Reader) -> Option<Endpoint> {
    let name = reader.text("name", &m.name);
    let network = reader.text("network", &m.network);
    let attachment = attachment::from_proto(m.attachment, reader);
    let mac = reader.text("mac", &m.mac);
    let addresses = reader.addresses("addresses", m.addresses);
    let mtu = reader.optional(m.mtu, |reader, mtu| reader.number("mtu", mtu));
    let xdp = reader.enumeration("xdp", m.xdp).map(xdp_from_proto);
    let identity = reader.optional(m.identity, |reader, name| reader.text("identity", &name));
    Some(Endpoint {
        name: name?,
        network: network?,
        attachment: attachment?,
        mac: mac?,
        addresses: addresses?,
        mtu: mtu?,
        xdp: xdp?,
        queues: m.queues,
        identity: identity?,
        limits: m.limits.map(Limits::from),
    })
}

impl From<proto::Limits> for Limits {
    fn from(m: proto::Limits) -> Self {
        Self {
            ingress_bits_per_second: m.ingress_bits_per_second,
            egress_bits_per_second: m.egress_bits_per_second,
            burst_bytes: m.burst_bytes,
            packets_per_second: m.packets_per_second,
            connections_per_second: m.connections_per_second,
            max_connections: m.max_connections,
        }
    }
}

fn peer_from_proto(m: proto::Peer, reader: &mut Reader) -> Option<Peer> {
    let name = reader.text("name", &m.name);
    let address = reader.address("address", &m.address);
    let mac = reader.optional(m.mac, |reader, mac| reader.text("mac", &mac));
    let port = reader.optional(m.port, |reader, port| reader.number("port", port));
    Some(Peer { name: name?, address: address?, mac: mac?, port: port? })
}

fn route_from_proto(m: proto::Route, reader: &mut Reader) -> Option<Route> {
    use proto::route_target::Target;
    let network = reader.text("network", &m.network);
    let prefix = reader.text("prefix", &m.prefix);
    let via = match reader.present("via", m.via.and_then(|via| via.target)) {
        None => None,
        Some(Target::Peer(peer)) => reader.text("via.peer", &peer).map(RouteTarget::Peer),
        Some(Target::Host(_)) => Some(RouteTarget::Host),
        Some(Target::Blackhole(_)) => Some(RouteTarget::Blackhole),
        Some(Target::Uplink(m)) => {
            let uplink = reader.text("via.uplink.uplink", &m.uplink);
            let gateway =
                reader.optional(m.gateway, |reader, gateway| reader.address("via.uplink.gateway", &gateway));
            uplink.zip(gateway).map(|(uplink, gateway)| RouteTarget::Uplink { uplink, gateway })
        }
    };
    Some(Route { network: network?, prefix: prefix?, via: via? })
}

fn key_from_proto(i: usize, message: proto::Key, faults: &mut Vec<Fault>) -> Option<Key> {
    use proto::key::Key as Message;
    let reader = &mut Reader::new(called("key", i, ""), faults);
    match reader.present("", message.key)? {
        Message::Uplink(name) => reader.text("name", &name).map(Key::Uplink),
        Message::Network(name) => reader.text("name", &name).map(Key::Network),
        Message::Endpoint(name) => reader.text("name", &name).map(Key::Endpoint),
        Message::Peer(name) => reader.text("name", &name).map(Key::Peer),
        Message::Route(m) => {
            let network = reader.text("network", &m.network);
            let prefix = reader.text("prefix", &m.prefix);
            Some(Key::Route { network: network?, prefix: prefix? })
        }
        Message::Identity(name) => reader.text("name", &name).map(Key::Identity),
        Message::Tier(name) => reader.text("name", &name).map(Key::Tier),
        Message::Policy(name) => reader.text("name", &name).map(Key::Policy),
        Message::Service(name) => reader.text("name", &name).map(Key::Service),
        Message::Backends(m) => {
            let service = reader.text("service", &m.service);
            let slice = reader.text("slice", &m.slice);
            Some(Key::Backends { service: service?, slice: slice? })
        }
        Message::NatPool(name) => reader.text("name", &name).map(Key::NatPool),
        Message::EgressIp(name) => reader.text("name", &name).map(Key::EgressIp),
    }
}

fn xdp_from_proto(mode: proto::XdpMode) -> XdpMode {
    match mode {
        proto::XdpMode::Auto => XdpMode::Auto,
        proto::XdpMode::Native => XdpMode::Native,
        proto::XdpMode::Generic => XdpMode::Generic,
    }
}

fn copy_from_proto(mode: proto::CopyMode) -> CopyMode {
    match mode {
        proto::CopyMode::Auto => CopyMode::Auto,
        proto::CopyMode::ZeroCopy => CopyMode::ZeroCopy,
        proto::CopyMode::Copy => CopyMode::Copy,
    }
}

fn encapsulation_from_proto(encapsulation: proto::Encapsulation) -> Encapsulation {
    match encapsulation {
        proto::Encapsulation::Vxlan => Encapsulation::Vxlan,
        proto::Encapsulation::Geneve => Encapsulation::Geneve,
        proto::Encapsulation::None => Encapsulation::None,
    }
}

impl From<XdpMode> for proto::XdpMode {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Auto => Self::Auto,
            XdpMode::Native => Self::Native,
            XdpMode::Generic => Self::Generic,
        }
    }
}

impl From<CopyMode> for proto::CopyMode {
    fn from(mode: CopyMode) -> Self {
        match mode {
            CopyMode::Auto => Self::Auto,
            CopyMode::ZeroCopy => Self::ZeroCopy,
            CopyMode::Copy => Self::Copy,
        }
    }
}

impl From<Encapsulation> for proto::Encapsulation {
    fn from(encapsulation: Encapsulation) -> Self {
        match encapsulation {
            Encapsulation::Vxlan => Self::Vxlan,
            Encapsulation::Geneve => Self::Geneve,
            Encapsulation::None => Self::None,
        }
    }
}

impl From<PortRange> for proto::PortRange {
    fn from(ports: PortRange) -> Self {
        Self { first: ports.first().into(), last: ports.last().into() }
    }
}

fn texts<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

impl From<&Object> for proto::Object {
    fn from(object: &Object) -> Self {
        use proto::object::Object as Message;
        let object = match object {
            Object::Uplink(uplink) => Message::Uplink(uplink.into()),
            Object::Network(network) => Message::Network(network.into()),
            Object::Endpoint(endpoint) => Message::Endpoint(endpoint.into()),
            Object::Peer(peer) => Message::Peer(peer.into()),
            Object::Route(route) => Message::Route(route.into()),
            Object::Identity(identity) => Message::Identity(identity.into()),
            Object::Tier(tier) => Message::Tier(tier.into()),
            Object::Policy(policy) => Message::Policy(policy.into()),
            Object::Service(service) => Message::Service(service.into()),
            Object::Backends(backends) => Message::Backends(backends.into()),
            Object::NatPool(pool) => Message::NatPool(pool.into()),
            Object::EgressIp(egress) => Message::EgressIp(egress.into()),
        };
        Self { object: Some(object) }
    }
}

impl From<&Uplink> for proto::Uplink {
    fn from(uplink: &Uplink) -> Self {
        Self {
            name: uplink.name.to_string(),
            interface: uplink.interface.to_string(),
            queues: uplink.queues,
            xdp: proto::XdpMode::from(uplink.xdp).into(),
            copy: proto::CopyMode::from(uplink.copy).into(),
            busy_poll: uplink
                .busy_poll
                .map(|b| proto::BusyPoll { budget: b.budget, timeout_us: b.timeout_us }),
            tx_budget: uplink.tx_budget,
            addresses: texts(&uplink.addresses),
        }
    }
}

impl From<&Network> for proto::Network {
    fn from(network: &Network) -> Self {
        Self {
            name: network.name.to_string(),
            vni: network.vni.get(),
            prefixes: texts(&network.prefixes),
            mtu: network.mtu.map(u32::from),
            encapsulation: proto::Encapsulation::from(network.encapsulation).into(),
            cross_subnet: network.cross_subnet,
            gateways: texts(&network.gateways),
            geneve_options: network.geneve_options.iter().map(proto::GeneveOption::from).collect(),
            udp_checksum: network.udp_checksum,
            dscp: network.dscp.map(u32::from),
        }
    }
}

impl From<&GeneveOption> for proto::GeneveOption {
    fn from(option: &GeneveOption) -> Self {
        Self {
            class: option.class.into(),
            kind: option.kind.into(),
            critical: option.critical,
            data: option.data.as_bytes().to_vec(),
        }
    }
}

impl From<&Endpoint> for proto::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            name: endpoint.name.to_string(),
            network: endpoint.network.to_string(),
            attachment: Some((&endpoint.attachment).into()),
            mac: endpoint.mac.to_string(),
            addresses: texts(&endpoint.addresses),
            mtu: endpoint.mtu.map(u32::from),
            xdp: proto::XdpMode::from(endpoint.xdp).into(),
            queues: endpoint.queues,
            identity: endpoint.identity.as_ref().map(ToString::to_string),
            limits: endpoint.limits.map(proto::Limits::from),
        }
    }
}

impl From<Limits> for proto::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            ingress_bits_per_second: limits.ingress_bits_per_second,
            egress_bits_per_second: limits.egress_bits_per_second,
            burst_bytes: limits.burst_bytes,
            packets_per_second: limits.packets_per_second,
            connections_per_second: limits.connections_per_second,
            max_connections: limits.max_connections,
        }
    }
}

impl From<&Peer> for proto::Peer {
    fn from(peer: &Peer) -> Self {
        Self {
            name: peer.name.to_string(),
            address: peer.address.to_string(),
            mac: peer.mac.map(|mac| mac.to_string()),
            port: peer.port.map(u32::from),
        }
    }
}

impl From<&Route> for proto::Route {
    fn from(route: &Route) -> Self {
        use proto::route_target::Target;
        let target = match &route.via {
            RouteTarget::Peer(peer) => Target::Peer(peer.to_string()),
            RouteTarget::Host => Target::Host(proto::Empty {}),
            RouteTarget::Blackhole => Target::Blackhole(proto::Empty {}),
            RouteTarget::Uplink { uplink, gateway } => Target::Uplink(proto::UplinkTarget {
                uplink: uplink.to_string(),
                gateway: gateway.map(|gateway| gateway.to_string()),
            }),
        };
        Self {
            network: route.network.to_string(),
            prefix: route.prefix.to_string(),
            via: Some(proto::RouteTarget { target: Some(target) }),
        }
    }
}

impl From<&Key> for proto::Key {
    fn from(key: &Key) -> Self {
        use proto::key::Key as Message;
        let key = match key {
            Key::Uplink(name) => Message::Uplink(name.to_string()),
            Key::Network(name) => Message::Network(name.to_string()),
            Key::Endpoint(name) => Message::Endpoint(name.to_string()),
            Key::Peer(name) => Message::Peer(name.to_string()),
            Key::Route { network, prefix } => {
                Message::Route(proto::RouteKey { network: network.to_string(), prefix: prefix.to_string() })
            }
            Key::Identity(name) => Message::Identity(name.to_string()),
            Key::Tier(name) => Message::Tier(name.to_string()),
            Key::Policy(name) => Message::Policy(name.to_string()),
            Key::Service(name) => Message::Service(name.to_string()),
            Key::Backends { service, slice } => Message::Backends(proto::BackendsKey {
                service: service.to_string(),
                slice: slice.to_string(),
            }),
            Key::NatPool(name) => Message::NatPool(name.to_string()),
            Key::EgressIp(name) => Message::EgressIp(name.to_string()),
        };
        Self { key: Some(key) }
    }
}

impl From<Fault> for proto::Fault {
    fn from(fault: Fault) -> Self {
        Self { object: fault.object, key: fault.key, problem: fault.problem, mend: fault.mend }
    }
}

impl From<proto::Fault> for Fault {
    fn from(fault: proto::Fault) -> Self {
        Self { object: fault.object, key: fault.key, problem: fault.problem, mend: fault.mend }
    }
}

impl proto::Applied {
    /// The answer to a change that is live on every worker as `generation`, `took` after it was asked for.
    pub fn live(generation: u64, took: Duration) -> Self {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self { generation, took_us, faults: Vec::new() }
    }

    /// The answer to a change of which nothing was applied; `generation` is the one that stays.
    pub fn refused(generation: u64, faults: Vec<Fault>) -> Self {
        Self { generation, took_us: 0, faults: faults.into_iter().map(proto::Fault::from).collect() }
    }
}
