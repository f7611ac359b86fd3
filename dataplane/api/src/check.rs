//! What must hold within one object beyond what its types say, and that no key is given twice.
//!
//! Whether objects fit each other (a route's peer exists, an address lies in its network) is the engine's to say,
//! since only it knows all of them.

mod policy;
mod service;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use crate::fault::{Fault, mend};
use crate::model::{
    Attachment, Endpoint, Limits, Network, Object, Peer, Route, RouteTarget, SocketRole, Uplink,
    repeated_keys,
};

pub use service::MAX_AFFINITY;

/// The smallest MTU that IPv4 hosts must cope with in bytes (RFC 791, section 3.1).
pub const MIN_MTU_IPV4: u16 = 576;
/// The smallest MTU of a link that carries IPv6 in bytes (RFC 8200, section 5).
pub const MIN_MTU_IPV6: u16 = 1280;
/// The largest DSCP: six bits (RFC 2474).
pub const MAX_DSCP: u8 = 63;
/// The largest type of a Geneve option without its critical bit (RFC 8926, section 3.5).
pub const MAX_OPTION_KIND: u8 = 127;
/// The highest limit: integers up to here survive every reader of JSON (RFC 8259, section 6).
pub const MAX_LIMIT: u64 = (1 << 53) - 1;
/// The longest IP packet of Ethernet in bytes (RFC 894): what a burst must hold where no MTU says otherwise.
const ETHERNET_MTU: u16 = 1500;

/// Every fault of `objects`, each looked at on its own, and every key that occurs twice.
pub fn check(objects: &[Object]) -> Vec<Fault> {
    let mut faults: Vec<Fault> = objects.iter().flat_map(check_object).collect();
    for key in repeated_keys(objects) {
        faults.push(Fault::new(key.to_string(), "", "is given twice", "keep one of the two"));
    }
    faults
}

/// Every fault within `object`.
pub fn check_object(object: &Object) -> Vec<Fault> {
    let mut faults = Faults { object: object.key().to_string(), found: Vec::new() };
    match object {
        Object::Uplink(uplink) => check_uplink(uplink, &mut faults),
        Object::Network(network) => check_network(network, &mut faults),
        Object::Endpoint(endpoint) => check_endpoint(endpoint, &mut faults),
        Object::Peer(peer) => check_peer(peer, &mut faults),
        Object::Route(route) => check_route(route, &mut faults),
        Object::Identity(identity) => policy::check_identity(identity, &mut faults),
        // A tier's types say all that must hold.
        Object::Tier(_) => {}
        Object::Policy(policy) => policy::check_policy(policy, &mut faults),
        Object::Service(service) => service::check_service(service, &mut faults),
        Object::Backends(backends) => service::check_backends(backends, &mut faults),
        Object::NatPool(pool) => service::check_nat_pool(pool, &mut faults),
        Object::EgressIp(egress) => service::check_egress_ip(egress, &mut faults),
    }
    faults.found
}

struct Faults {
    object: String,
    found: Vec<Fault>,
}

impl Faults {
    fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.found.push(Fault::new(&self.object, key, problem, mend(key)));
    }

    /// A fault whose mend is not the key's usual one.
    fn say(&mut self, key: &str, problem: impl Into<String>, mend: impl Into<String>) {
        self.found.push(Fault::new(&self.object, key, problem, mend));
    }

    /// No value may be there twice.
    fn distinct<T: Ord + Display>(&mut self, key: &str, values: &[T]) {
        let mut seen = BTreeSet::new();
        for (i, value) in values.iter().enumerate().filter(|(_, value)| !seen.insert(*value)) {
            self.say(&format!("{key}[{i}]"), format!("{value} is there twice"), "keep it once");
        }
    }

    fn positive(&mut self, key: &str, value: Option<u32>) {
        if value == Some(0) {
            self.add(key, "is 0");
        }
    }

    fn mtu(&mut self, mtu: Option<u16>, speaks_ipv6: bool) {
        let least = if speaks_ipv6 { MIN_MTU_IPV6 } else { MIN_MTU_IPV4 };
        if let Some(mtu) = mtu.filter(|mtu| *mtu < least) {
            let family = if speaks_ipv6 { "IPv6" } else { "IPv4" };
            self.add("mtu", format!("{mtu} bytes are below the {least} that {family} needs"));
        }
    }

    /// Each address must be one station's, and none may be there twice.
    fn stations(&mut self, key: &str, addresses: &[IpAddr]) {
        let mut seen = BTreeSet::new();
        for (i, address) in addresses.iter().enumerate() {
            self.station(&format!("{key}[{i}]"), *address);
            if !seen.insert(address) {
                let key = format!("{key}[{i}]");
                self.found.push(Fault::new(
                    &self.object,
                    key,
                    format!("{address} is there twice"),
                    "keep it once",
                ));
            }
        }
    }

    fn station(&mut self, key: &str, address: IpAddr) {
        if let Some(what) = not_a_station(address) {
            self.add(key, format!("{address} is {what}"));
        }
    }
}

/// What `address` is if it cannot be one station's address on a network.
fn not_a_station(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else {
        match address {
            IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
            // Packets of such an address are IPv4 packets, so it would never match one.
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 clothes"),
            _ => None,
        }
    }
}

fn check_uplink(uplink: &Uplink, faults: &mut Faults) {
    faults.positive("queues", uplink.queues);
    faults.positive("tx-budget", uplink.tx_budget);
    if let Some(busy_poll) = uplink.busy_poll {
        faults.positive("busy-poll.budget", Some(busy_poll.budget));
        faults.positive("busy-poll.timeout-us", Some(busy_poll.timeout_us));
    }
    faults.stations("addresses", &uplink.addresses);
}

fn check_network(network: &Network, faults: &mut Faults) {
    if network.vni.get() == 0 {
        faults.add("vni", "is 0, which stands for what is outside of all networks");
    }
    faults.mtu(network.mtu, network.prefixes.iter().any(|prefix| !prefix.is_ipv4()));
    if network.gateways.is_empty() {
        faults.found.push(Fault::new(
            &faults.object,
            "gateways",
            "is empty, so that pods would have no gateway",
            "leave the key out for 169.254.1.1 and fe80::1, or name one",
        ));
    }
    faults.stations("gateways", &network.gateways);
    for (i, option) in network.geneve_options.iter().enumerate().filter(|(_, o)| o.kind > MAX_OPTION_KIND) {
        faults.add(&format!("geneve-options[{i}].kind"), format!("{} does not fit in 7 bits", option.kind));
    }
    if let Some(dscp) = network.dscp.filter(|dscp| *dscp > MAX_DSCP) {
        faults.add("dscp", format!("{dscp} does not fit in 6 bits"));
    }
    let distinct: BTreeSet<_> = network.prefixes.iter().collect();
    if distinct.len() < network.prefixes.len() {
        faults.found.push(Fault::new(
            &faults.object,
            "prefixes",
            "holds a prefix twice",
            "keep each prefix once",
        ));
    }
}

fn check_endpoint(endpoint: &Endpoint, faults: &mut Faults) {
    if endpoint.addresses.is_empty() {
        faults.found.push(Fault::new(
            &faults.object,
            "addresses",
            "is empty, so that nothing could be sent from or to it",
            "name at least one address",
        ));
    }
    faults.stations("addresses", &endpoint.addresses);
    faults.mtu(endpoint.mtu, endpoint.addresses.iter().any(IpAddr::is_ipv6));
    faults.positive("queues", endpoint.queues);
    if let Some(limits) = &endpoint.limits {
        check_limits(limits, endpoint.mtu, faults);
    }
    check_attachment(&endpoint.attachment, faults);
}

fn check_attachment(attachment: &Attachment, faults: &mut Faults) {
    let mut found = |key: &str, problem: String, mend: &'static str| {
        faults.found.push(Fault::new(&faults.object, key, problem, mend));
    };
    match attachment {
        Attachment::Pcap { receive, transmit } if receive == transmit => found(
            "attachment.pcap",
            format!("receives from and transmits to the same file {receive}"),
            "name two files",
        ),
        Attachment::VhostUser { role, group, permissions, .. } => {
            if *role == SocketRole::Client && (group.is_some() || permissions.is_some()) {
                found(
                    "attachment.vhost-user",
                    "has a group or permissions for a socket that somebody else serves".to_owned(),
                    "take them out, or set role = \"server\"",
                );
            }
            if let Some(permissions) = permissions.filter(|it| *it > 0o777) {
                found(
                    "attachment.vhost-user.permissions",
                    format!("{permissions:#o} are no permissions"),
                    "write them in octal, 0o000 to 0o777, e.g. 0o660",
                );
            }
        }
        Attachment::Veth { .. } | Attachment::Tap { .. } | Attachment::Pcap { .. } => {}
    }
}

/// Rates that nothing could pass under, or that no number in an answer could carry.
fn check_limits(limits: &Limits, mtu: Option<u16>, faults: &mut Faults) {
    let rates = [
        ("ingress-bits-per-second", limits.ingress_bits_per_second),
        ("egress-bits-per-second", limits.egress_bits_per_second),
        ("burst-bytes", limits.burst_bytes),
        ("packets-per-second", limits.packets_per_second.map(u64::from)),
        ("connections-per-second", limits.connections_per_second.map(u64::from)),
        ("max-connections", limits.max_connections.map(u64::from)),
    ];
    for (key, limit) in rates {
        if let Some(limit) = limit.filter(|limit| !(1..=MAX_LIMIT).contains(limit)) {
            faults.add(&format!("limits.{key}"), format!("{limit} cannot be a limit"));
        }
    }
    let Some(burst) = limits.burst_bytes else { return };
    let packet = mtu.unwrap_or(ETHERNET_MTU);
    if (1..u64::from(packet)).contains(&burst) {
        let problem =
            format!("{burst} bytes do not hold one packet of {packet}, so that it could never pass");
        faults.say(
            "limits.burst-bytes",
            problem,
            "choose a few packets' worth at least, or leave the key out",
        );
    }
    if limits.ingress_bits_per_second.is_none() && limits.egress_bits_per_second.is_none() {
        let mend = "set ingress-bits-per-second or egress-bits-per-second, or take the burst out";
        faults.say("limits.burst-bytes", "a burst is nothing without a rate of bits", mend);
    }
}

fn check_peer(peer: &Peer, faults: &mut Faults) {
    faults.station("address", peer.address);
    faults.positive("port", peer.port.map(u32::from));
}

fn check_route(route: &Route, faults: &mut Faults) {
    if let RouteTarget::Uplink { gateway: Some(gateway), .. } = route.via {
        faults.station("via.uplink.gateway", gateway);
        if gateway.is_ipv6() && route.prefix.is_ipv4() || gateway.is_ipv4() && !route.prefix.is_ipv4() {
            faults.found.push(Fault::new(
                &faults.object,
                "via.uplink.gateway",
                format!("{gateway} is of the other address family than {}", route.prefix),
                "name a gateway of the prefix's own family",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tables;

    /// Every fault's object and key; each must have a mend of its own.
    pub(super) fn keys(text: &str) -> Vec<String> {
        let (objects, faults) = crate::file::read_objects(text, "t.toml").expect("TOML");
        assert_eq!(faults, [], "the file itself is sound");
        let faults = check(&objects);
        let has_mend = |fault: &Fault| !fault.mend.is_empty() && !fault.mend.starts_with("see the example");
        assert!(faults.iter().all(has_mend), "{faults:#?}");
        faults.into_iter().map(|fault| format!("{} {}", fault.object, fault.key)).collect()
    }

    #[test]
    fn every_fault_of_every_object_is_named() {
        let found = keys(
            r#"
            [[uplink]]
            name = "u"
            interface = "eth0"
            queues = 0
            tx-budget = 0
            busy-poll = { budget = 0, timeout-us = 0 }
            addresses = ["0.0.0.0"]

            [[network]]
            name = "n"
            vni = 7
            mtu = 1200
            prefixes = ["fd00::/64", "fd00::/64"]
            gateways = ["224.0.0.1"]
            geneve-options = [{ class = 1, kind = 1 }, { class = 1, kind = 128 }]
            dscp = 64

            [[endpoint]]
            name = "e"
            network = "n"
            attachment.pcap = { receive = "a.pcap", transmit = "a.pcap" }
            mac = "02:00:00:00:00:01"
            addresses = ["10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1"]
            mtu = 1200
            queues = 0
            limits.ingress-bits-per-second = 0
            limits.burst-bytes = 1100

            [[endpoint]]
            name = "l"
            network = "n"
            attachment.tap.interface = "l"
            mac = "02:00:00:00:00:01"
            addresses = ["10.0.0.2"]
            limits = { burst-bytes = 9007199254740992, max-connections = 0 }

            [[peer]]
            name = "p"
            address = "127.0.0.1"
            port = 0

            [[route]]
            network = "n"
            prefix = "10.0.0.0/8"
            via.uplink = { uplink = "u", gateway = "fe80::1" }
            "#,
        );
        assert_eq!(
            found,
            [
                "uplink \"u\" queues",
                "uplink \"u\" tx-budget",
                "uplink \"u\" busy-poll.budget",
                "uplink \"u\" busy-poll.timeout-us",
                "uplink \"u\" addresses[0]",
                "network \"n\" mtu",
                "network \"n\" gateways[0]",
                "network \"n\" geneve-options[1].kind",
                "network \"n\" dscp",
                "network \"n\" prefixes",
                "endpoint \"e\" addresses[1]",
                "endpoint \"e\" addresses[2]",
                "endpoint \"e\" mtu",
                "endpoint \"e\" queues",
                "endpoint \"e\" limits.ingress-bits-per-second",
                "endpoint \"e\" limits.burst-bytes",
                "endpoint \"e\" attachment.pcap",
                "endpoint \"l\" limits.burst-bytes",
                "endpoint \"l\" limits.max-connections",
                "endpoint \"l\" limits.burst-bytes",
                "peer \"p\" address",
                "peer \"p\" port",
                "route 10.0.0.0/8 in network \"n\" via.uplink.gateway",
            ]
        );
    }

    #[test]
    fn no_network_has_the_number_of_what_is_outside() {
        let numbered = |vni: u32| keys(&format!("[[network]]\nname = \"n\"\nvni = {vni}\n"));
        assert_eq!(numbered(0), ["network \"n\" vni"]);
        assert_eq!(numbered(1), [""; 0]);
    }

    #[test]
    fn a_key_given_twice_is_a_fault_once() {
        let peer = Peer { name: "p".parse().unwrap(), address: [10, 0, 0, 1].into(), mac: None, port: None };
        let objects =
            Tables { peer: vec![peer.clone(), peer.clone(), peer], ..Tables::default() }.into_objects();
        let faults = check(&objects);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].object, "peer \"p\"");
    }
}
