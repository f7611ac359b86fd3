//! Whether the configuration still makes sense where a change touched it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use penstock_api::check::check_object;
use penstock_api::model::{
    EgressIp, Endpoint, Fault, Key, Name, NatPool, Network, Object, PortRange, Service,
};

use super::bonds::{Claim, claims, needs, network_of};
use super::{Desired, Replaced};

impl Desired {
    /// Everything that is wrong where a change touched the configuration; `replaced` says where that is.
    pub(super) fn judge(&self, replaced: &Replaced) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, old) in replaced {
            match self.get(key) {
                Some(object) => {
                    self.judge_object(key, object, &mut faults);
                    let moved = old.as_ref().is_some_and(|old| network_of(old) != network_of(object));
                    if moved {
                        self.judge_those_that_name(key, &mut faults);
                    }
                }
                None => self.judge_those_that_name(key, &mut faults),
            }
        }
        self.judge_host(&mut faults);
        let touches_ways = |key: &Key| matches!(key, Key::Network(_) | Key::Route { .. });
        if replaced.iter().any(|(key, _)| touches_ways(key)) {
            self.judge_native(&mut faults);
        }
        // What is wrong between two objects is found from either side.
        let mut seen = BTreeSet::new();
        faults.retain(|fault| seen.insert(fault.clone()));
        faults
    }

    fn judge_object(&self, key: &Key, object: &Object, faults: &mut Vec<Fault>) {
        faults.extend(check_object(object));
        self.judge_names(key, object, faults);
        self.judge_claims(key, object, faults);
        match object {
            Object::Network(network) => self.judge_gateways(network, faults),
            Object::Endpoint(endpoint) => self.judge_endpoint(key, endpoint, faults),
            Object::Service(service) => self.judge_service(key, service, faults),
            Object::NatPool(pool) => self.judge_pool(key, pool, faults),
            Object::EgressIp(egress) => self.judge_egress(key, egress, faults),
            _ => {}
        }
    }

    fn judge_those_that_name(&self, key: &Key, faults: &mut Vec<Fault>) {
        for by in self.bonds.needing(key) {
            if let Some(object) = self.get(by) {
                self.judge_names(by, object, faults);
            }
        }
    }

    /// Whatever an object names is there, and in the object's own network if it is in one.
    fn judge_names(&self, key: &Key, object: &Object, faults: &mut Vec<Fault>) {
        for need in needs(object) {
            let Some(wanted) = self.get(&need.wanted) else {
                if self.unread.contains(&need.wanted) {
                    continue;
                }
                faults.push(missing(key.to_string(), &need.at, &need.wanted));
                continue;
            };
            if let (Some(own), Some(other)) = (network_of(object), network_of(wanted))
                && own != other
            {
                faults.push(Fault::new(
                    key.to_string(),
                    need.at,
                    format!("{} is in network \"{other}\", not in \"{own}\"", need.wanted),
                    format!("name one of network \"{own}\""),
                ));
            }
        }
    }

    /// Whatever an object has for itself alone is nobody else's.
    fn judge_claims(&self, key: &Key, object: &Object, faults: &mut Vec<Fault>) {
        for (at, claim) in claims(object) {
            for other in self.bonds.claiming(&claim).filter(|other| *other != key) {
                let (problem, mend) = clash(&claim, other);
                faults.push(Fault::new(key.to_string(), at, problem, mend));
            }
        }
    }

    fn judge_host(&self, faults: &mut Vec<Fault>) {
        let Some(host) = &self.host else { return };
        let network = Key::Network(host.network.clone());
        if self.get(&network).is_none() && !self.unread.contains(&network) {
            faults.push(missing("host".into(), "network", &network));
        }
        let interface = Claim::Interface(host.interface.to_string());
        for other in self.bonds.claiming(&interface) {
            let (problem, mend) = clash(&interface, other);
            faults.push(Fault::new("host", "interface", problem, mend));
        }
    }

    fn judge_gateways(&self, network: &Network, faults: &mut Vec<Fault>) {
        for gateway in &network.gateways {
            let claim = Claim::EndpointAddress(network.name.clone(), *gateway);
            faults.extend(self.bonds.claiming(&claim).map(|by| gateway_taken(by, *gateway, &network.name)));
        }
    }

    fn judge_endpoint(&self, key: &Key, endpoint: &Endpoint, faults: &mut Vec<Fault>) {
        let network = self.get(&Key::Network(endpoint.network.clone()));
        for address in &endpoint.addresses {
            if let Some(Object::Network(network)) = network
                && network.gateways.contains(address)
            {
                faults.push(gateway_taken(key, *address, &network.name));
            }
            if let Some((_, service)) = self.bonds.frontends(&endpoint.network, *address).next() {
                let problem = format!("{address} is an address of {service} too");
                let mend = "choose another address for one of the two";
                faults.push(Fault::new(key.to_string(), "addresses", problem, mend));
            }
        }
    }

    fn judge_service(&self, key: &Key, service: &Service, faults: &mut Vec<Fault>) {
        for address in service.addresses() {
            let claim = Claim::EndpointAddress(service.network.clone(), address);
            for endpoint in self.bonds.claiming(&claim) {
                let problem = format!("{address} is an address of {endpoint} too");
                let mend = "choose another address for one of the two";
                faults.push(Fault::new(key.to_string(), "", problem, mend));
            }
        }
        let node_ports = service.ports.iter().filter_map(|port| port.node_port);
        let node_ports = node_ports.map(|port| ("ports", port));
        let health = service.health_check_node_port.map(|port| ("health-check-node-port", port));
        for (at, port) in node_ports.chain(health) {
            if self.node_ports.iter().any(|range| range.contains(port)) {
                continue;
            }
            // A host port may be any: only answers to translated connections must not be taken for requests.
            let own = ("source-ports of the [services] in the node's file".to_owned(), self.source_ports);
            let pools = self.nat_objects().map(|(it, _, ports)| (it.1.to_string(), ports));
            if let Some((who, ports)) = std::iter::once(own).chain(pools).find(|(_, it)| it.contains(port)) {
                let ranges: Vec<String> = self.node_ports.iter().map(PortRange::to_string).collect();
                let problem = format!(
                    "{port} is none of this node's node ports, {}, but one of {ports}, {who}",
                    ranges.join(", ")
                );
                let mend = "choose another port, or extend node-ports in the [services] of the node's file";
                faults.push(Fault::new(key.to_string(), at, problem, mend));
            }
        }
        for (nat, addresses, ports) in self.nat_objects().filter(|(it, ..)| it.0 == service.network) {
            for address in addresses.iter().copied() {
                self.judge_nat_ports(&nat.1, &service.network, address, ports, faults);
            }
        }
    }

    /// Every NAT pool and egress address: network and key, addresses, ports.
    fn nat_objects(&self) -> impl Iterator<Item = ((Name, Key), &[IpAddr], PortRange)> {
        let pools = self.nat_pools().map(|pool| {
            let key = Key::NatPool(pool.name.clone());
            ((pool.network.clone(), key), pool.addresses.as_slice(), pool.ports)
        });
        let egresses = self.egress_ips().map(|egress| {
            let key = Key::EgressIp(egress.name.clone());
            ((egress.network.clone(), key), std::slice::from_ref(&egress.address), egress.ports)
        });
        pools.chain(egresses)
    }

    fn judge_pool(&self, key: &Key, pool: &NatPool, faults: &mut Vec<Fault>) {
        self.judge_node_ports(key, pool.ports, faults);
        for address in &pool.addresses {
            self.judge_nat_ports(key, &pool.network, *address, pool.ports, faults);
        }
    }

    fn judge_egress(&self, key: &Key, egress: &EgressIp, faults: &mut Vec<Fault>) {
        self.judge_node_ports(key, egress.ports, faults);
        self.judge_nat_ports(key, &egress.network, egress.address, egress.ports, faults);
        let claim = Claim::EndpointAddress(egress.network.clone(), egress.address);
        for endpoint in self.bonds.claiming(&claim) {
            let problem = format!("{} is an address of {endpoint}", egress.address);
            let mend = "choose an address that is routed to this node and no endpoint's";
            faults.push(Fault::new(key.to_string(), "address", problem, mend));
        }
    }

    /// A packet to a node port must not be taken for an answer to a translated connection.
    fn judge_node_ports(&self, key: &Key, ports: PortRange, faults: &mut Vec<Fault>) {
        for taken in self.node_ports.iter().filter(|range| range.overlaps(ports)) {
            let problem = format!("{ports} overlaps the node ports {taken}");
            let mend = "choose ports that are no node ports, or change node-ports in the node's file";
            faults.push(Fault::new(key.to_string(), "ports", problem, mend));
        }
        for service in self.services() {
            let own = service.ports.iter().filter_map(|port| port.node_port);
            for port in own.chain(service.health_check_node_port).filter(|port| ports.contains(*port)) {
                let problem =
                    format!("{port} among {ports} is a port of the node for service \"{}\"", service.name);
                let mend = "choose ports that no service has at the node's addresses";
                faults.push(Fault::new(key.to_string(), "ports", problem, mend));
            }
        }
    }

    /// A packet to a service's port must not be taken for an answer to a translated connection.
    fn judge_nat_ports(
        &self,
        key: &Key,
        network: &Name,
        address: IpAddr,
        ports: PortRange,
        faults: &mut Vec<Fault>,
    ) {
        let taken = self.bonds.frontends(network, address).filter(|(port, _)| ports.contains(*port));
        for (port, service) in taken {
            let problem = format!("{port} at {address} is a port of {service}");
            let mend = "choose ports that the service does not have at this address";
            faults.push(Fault::new(key.to_string(), "ports", problem, mend));
        }
    }

    /// Packets without a tunnel can belong to one network only.
    fn judge_native(&self, faults: &mut Vec<Fault>) {
        let native: Vec<&Network> = self.networks().filter(|network| self.is_native(network)).collect();
        if let [first, others @ ..] = native.as_slice() {
            for other in others {
                faults.push(Fault::new(
                    Key::Network(other.name.clone()).to_string(),
                    "encapsulation",
                    format!("packets without a tunnel belong to network \"{}\" already", first.name),
                    "let one network only use encapsulation = \"none\", cross-subnet or routes via an uplink",
                ));
            }
        }
    }
}

fn missing(by: String, at: &str, wanted: &Key) -> Fault {
    Fault::new(by, at, format!("there is no {wanted}"), format!("add the {wanted} or correct the name"))
}

fn gateway_taken(by: &Key, address: IpAddr, network: &Name) -> Fault {
    let problem = format!("{address} is the gateway of network \"{network}\"");
    Fault::new(by.to_string(), "addresses", problem, "choose another address, or name the network's gateways")
}

/// What is wrong when `other` has a claim too, and what puts it right.
fn clash(claim: &Claim, other: &Key) -> (String, &'static str) {
    match claim {
        Claim::Vni(vni) => (format!("VNI {vni} is that of {other} too"), "give each network its own VNI"),
        Claim::PeerAddress(address) => {
            (format!("{address} is the address of {other} too"), "give each peer its own address")
        }
        Claim::Interface(interface) => {
            (format!("interface {interface} is that of {other} too"), "an interface serves one object only")
        }
        Claim::Socket(socket) => {
            (format!("socket {socket} is that of {other} too"), "a socket serves one object only")
        }
        Claim::EndpointAddress(_, address) => (
            format!("{address} is the address of {other} too"),
            "give each endpoint of a network its own addresses",
        ),
        Claim::Frontend(_, address, port, protocol) => {
            let protocol = penstock_api::model::Protocol::from(*protocol);
            (
                format!("{protocol} port {port} at {address} is that of {other} too"),
                "give one of the two another address or port",
            )
        }
        Claim::NodePort(port, protocol) => {
            let protocol = penstock_api::model::Protocol::from(*protocol);
            (
                format!("{protocol} node port {port} is that of {other} too"),
                "give each service its own node ports",
            )
        }
        Claim::NatSource(_, prefix) => {
            (format!("the sources {prefix} leave by {other} already"), "let one pool only have each prefix")
        }
        Claim::Egress(who, _) => (
            format!("{who} leaves by {other} already"),
            "let one egress-ip only of each address family name it",
        ),
    }
}
