//! What must hold within a service, a slice of backends, a NAT pool or an egress address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Faults;
use crate::model::{Affinity, Backends, EgressIp, NatPool, Service, ServiceProtocol, TrafficPolicy};

/// The longest affinity in seconds: a day, as Kubernetes allows it (`ClientIPConfig.timeoutSeconds`).
pub const MAX_AFFINITY: u32 = 86400;

pub(super) fn check_service(service: &Service, faults: &mut Faults) {
    for (key, addresses) in [
        ("cluster-ips", &service.cluster_ips),
        ("external-ips", &service.external_ips),
        ("load-balancer-ips", &service.load_balancer_ips),
    ] {
        faults.stations(key, addresses);
    }
    let mut seen = BTreeSet::new();
    let in_lists = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips]
        .map(|list| list.iter().copied().collect::<BTreeSet<IpAddr>>());
    for address in in_lists.into_iter().flatten().filter(|address| !seen.insert(*address)) {
        let problem = format!("{address} is an address of the service in two ways");
        faults.say("", problem, "keep it as one of cluster-ips, external-ips and load-balancer-ips");
    }
    let has_node_port = service.ports.iter().any(|port| port.node_port.is_some());
    if service.addresses().next().is_none() && !has_node_port {
        faults.say(
            "",
            "has neither an address nor a node port, so that nobody could reach it",
            "give it cluster-ips, external-ips, load-balancer-ips or node ports, or take it out",
        );
    }
    check_ports(service, faults);
    if let Some(Affinity::ClientIp { timeout_s }) = service.affinity
        && !(1..=MAX_AFFINITY).contains(&timeout_s)
    {
        faults.add("affinity.client-ip.timeout-s", format!("{timeout_s} seconds cannot be"));
    }
    faults.distinct("source-ranges", &service.source_ranges);
}

fn check_ports(service: &Service, faults: &mut Faults) {
    if service.ports.is_empty() {
        faults.say("ports", "is empty, so that nobody could reach it", "name at least one port");
    }
    let (mut names, mut ports, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    if let Some(port) = service.health_check_node_port {
        faults.positive("health-check-node-port", Some(port.into()));
        if service.external_policy != TrafficPolicy::Local {
            faults.say(
                "health-check-node-port",
                "only says something where external-policy is \"local\"",
                "set external-policy to \"local\", or take the key out",
            );
        }
        node_ports.insert((ServiceProtocol::Tcp, port));
    }
    for (i, port) in service.ports.iter().enumerate() {
        let key = format!("ports[{i}]");
        faults.positive(&format!("{key}.port"), Some(port.port.into()));
        faults.positive(&format!("{key}.node-port"), port.node_port.map(u32::from));
        if !names.insert(&port.name) {
            let problem = format!("{:?} is the name of an earlier port too", port.name.as_str());
            faults.say(&format!("{key}.name"), problem, "give each port of a service a name of its own");
        }
        if !ports.insert((port.protocol, port.port)) {
            let problem = format!("{} is an earlier port of the same protocol too", port.port);
            faults.say(&format!("{key}.port"), problem, "give each port of a service its own number");
        }
        if let Some(node_port) = port.node_port
            && !node_ports.insert((port.protocol, node_port))
        {
            let problem = format!("{node_port} is taken by the service itself already");
            faults.say(&format!("{key}.node-port"), problem, "give each port of a service its own node port");
        }
    }
}

pub(super) fn check_backends(backends: &Backends, faults: &mut Faults) {
    if backends.ports.is_empty() && !backends.members.is_empty() {
        faults.say(
            "ports",
            "is empty, so that nobody could reach the members",
            "name the port at which they serve for each port of the service",
        );
    }
    let mut names = BTreeSet::new();
    for (i, port) in backends.ports.iter().enumerate() {
        faults.positive(&format!("ports[{i}].port"), Some(port.port.into()));
        if !names.insert(&port.name) {
            let problem = format!("{:?} is the name of an earlier port too", port.name.as_str());
            faults.say(&format!("ports[{i}].name"), problem, "name each port of the service once");
        }
    }
    if backends.members.len() > Backends::MAX_MEMBERS {
        let problem = format!("{} are too many for one slice", backends.members.len());
        let mend = format!("make slices of at most {} members", Backends::MAX_MEMBERS);
        faults.say("members", problem, mend);
    }
    let mut addresses = BTreeSet::new();
    for (i, member) in backends.members.iter().enumerate() {
        let key = format!("members[{i}].address");
        faults.station(&key, member.address);
        if !addresses.insert(member.address) {
            faults.say(&key, format!("{} is there twice", member.address), "keep it once");
        }
        faults.positive(&format!("members[{i}].weight"), Some(member.weight.into()));
    }
}

pub(super) fn check_nat_pool(pool: &NatPool, faults: &mut Faults) {
    if pool.sources.is_empty() {
        faults.say(
            "sources",
            "is empty, so that nothing would be translated",
            "name the prefixes of the pods that leave under the pool's addresses",
        );
    }
    faults.distinct("sources", &pool.sources);
    faults.distinct("exclusions", &pool.exclusions);
    faults.stations("addresses", &pool.addresses);
    for ipv4 in [true, false] {
        let lacks = !pool.addresses.is_empty() && !pool.addresses.iter().any(|it| it.is_ipv4() == ipv4);
        if lacks && let Some(source) = pool.sources.iter().find(|source| source.is_ipv4() == ipv4) {
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            faults.say(
                "addresses",
                format!("holds no {family} address, so that {source} could not leave"),
                format!("add an {family} address, or take the {family} sources out"),
            );
        }
    }
}

pub(super) fn check_egress_ip(egress: &EgressIp, faults: &mut Faults) {
    faults.distinct("identities", &egress.identities);
    faults.distinct("endpoints", &egress.endpoints);
    faults.distinct("exclusions", &egress.exclusions);
    faults.station("address", egress.address);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;
    use crate::check::tests::keys;
    use crate::model::{Backend, Object};

    #[test]
    fn every_fault_of_a_service_is_named() {
        let found = keys(
            r#"
            [[service]]
            name = "unreachable"
            network = "n"
            ports = [{ name = "a", port = 80 }]

            [[service]]
            name = "portless"
            network = "n"
            cluster-ips = ["10.0.0.1"]
            ports = []

            [[service]]
            name = "s"
            network = "n"
            cluster-ips = ["10.0.0.1", "127.0.0.1"]
            external-ips = ["10.0.0.1"]
            ports = [
                { name = "a", port = 0, node-port = 30000 },
                { name = "a", port = 80, node-port = 30000 },
                { name = "c", port = 80, node-port = 30001 },
                { name = "d", port = 80, protocol = "udp", node-port = 30001 },
            ]
            affinity = { client-ip = { timeout-s = 86401 } }
            health-check-node-port = 30001
            source-ranges = ["10.0.0.0/8", "10.0.0.0/8"]

            [[backends]]
            service = "s"
            ports = []
            members = [{ address = "10.1.0.1" }]

            [[backends]]
            service = "s"
            slice = "b"
            ports = [{ name = "a", port = 0 }, { name = "a", port = 1 }]
            members = [{ address = "0.0.0.0" }, { address = "10.1.0.1", weight = 0 }, { address = "10.1.0.1" }]
            "#,
        );
        assert_eq!(
            found,
            [
                "service \"unreachable\" ",
                "service \"portless\" ports",
                "service \"s\" cluster-ips[1]",
                "service \"s\" ",
                "service \"s\" health-check-node-port",
                "service \"s\" ports[0].port",
                "service \"s\" ports[1].name",
                "service \"s\" ports[1].node-port",
                "service \"s\" ports[2].port",
                "service \"s\" ports[2].node-port",
                "service \"s\" affinity.client-ip.timeout-s",
                "service \"s\" source-ranges[1]",
                "backends \"main\" of service \"s\" ports",
                "backends \"b\" of service \"s\" ports[0].port",
                "backends \"b\" of service \"s\" ports[1].name",
                "backends \"b\" of service \"s\" members[0].address",
                "backends \"b\" of service \"s\" members[1].weight",
                "backends \"b\" of service \"s\" members[2].address",
            ]
        );
    }

    #[test]
    fn every_fault_of_a_nat_object_is_named() {
        let found = keys(
            r#"
            [[nat-pool]]
            name = "empty"
            network = "n"
            sources = []

            [[nat-pool]]
            name = "p"
            network = "n"
            sources = ["10.0.0.0/8", "10.0.0.0/8", "fd00::/64"]
            exclusions = ["10.0.0.0/8", "10.0.0.0/8"]
            addresses = ["192.0.2.1", "224.0.0.1"]

            [[egress-ip]]
            name = "e"
            network = "n"
            identities = ["a", "a"]
            endpoints = ["b", "b"]
            address = "0.0.0.0"
            "#,
        );
        assert_eq!(
            found,
            [
                "nat-pool \"empty\" sources",
                "nat-pool \"p\" sources[1]",
                "nat-pool \"p\" exclusions[1]",
                "nat-pool \"p\" addresses[1]",
                "nat-pool \"p\" addresses",
                "egress-ip \"e\" identities[1]",
                "egress-ip \"e\" endpoints[1]",
                "egress-ip \"e\" address",
            ]
        );
    }

    #[test]
    fn a_slice_has_an_end() {
        let member = |i: u32| Backend {
            address: std::net::Ipv4Addr::from_bits(0x0a00_0001 + i).into(),
            state: Default::default(),
            node: None,
            zone: None,
            for_zones: Vec::new(),
            weight: 1,
        };
        let slice = |members: u32| Backends {
            service: "s".parse().unwrap(),
            slice: Backends::default_slice(),
            ports: vec![crate::model::BackendPort { name: "a".parse().unwrap(), port: 1 }],
            members: (0..members).map(member).collect(),
        };
        let most = Backends::MAX_MEMBERS as u32;
        assert_eq!(check(&[Object::Backends(slice(most))]), []);
        assert_eq!(check(&[Object::Backends(slice(most + 1))])[0].key, "members");
    }
}
