//! The objects that the dataplane was told, by key: changed whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use penstock_api::check::check_object;
use penstock_api::model::{
    Attachment, Encapsulation, Endpoint, Fault, Host, Key, Network, Node, Object, Peer, Route, RouteTarget,
    Uplink,
};

/// The configuration as it is wanted.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Who this node is.
    pub node: Node,
    /// The node as a neighbour of its pods.
    pub host: Option<Host>,
    objects: BTreeMap<Key, Object>,
    generation: u64,
}

/// A change of the configuration.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds objects or replaces those of the same keys.
    Upsert(Vec<Object>),
    /// Removes objects.
    Delete(Vec<Key>),
    /// Replaces everything but the uplinks.
    Resync(Vec<Object>),
    /// Replaces everything, node and host included: the file was read again.
    Reload(Node, Option<Host>, Vec<Object>),
}

impl Desired {
    /// A configuration without objects.
    #[must_use]
    pub fn new(node: Node, host: Option<Host>) -> Desired {
        Desired { node, host, objects: BTreeMap::new(), generation: 0 }
    }

    /// A configuration with these objects, whatever [`Desired::faults`] says of it.
    #[must_use]
    pub fn holding(node: Node, host: Option<Host>, objects: Vec<Object>) -> Desired {
        let mut desired = Desired::new(node, host);
        desired.replace_all(objects);
        desired
    }

    /// How often the configuration changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The objects in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// The uplinks.
    pub fn uplinks(&self) -> impl Iterator<Item = &Uplink> {
        self.objects()
            .filter_map(|object| if let Object::Uplink(uplink) = object { Some(uplink) } else { None })
    }

    /// The networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.objects()
            .filter_map(|object| if let Object::Network(network) = object { Some(network) } else { None })
    }

    /// The endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.objects()
            .filter_map(|object| if let Object::Endpoint(endpoint) = object { Some(endpoint) } else { None })
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.objects().filter_map(|object| if let Object::Peer(peer) = object { Some(peer) } else { None })
    }

    /// The routes.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.objects().filter_map(|object| if let Object::Route(route) = object { Some(route) } else { None })
    }

    /// Makes a change, or none of it.
    ///
    /// # Errors
    /// Everything that is wrong with it; the configuration is as it was.
    pub fn apply(&mut self, change: Change) -> Result<(), Vec<Fault>> {
        let before = (self.node.clone(), self.host.clone());
        let undo = match change {
            Change::Upsert(objects) => self.put(objects),
            Change::Delete(keys) => self.remove(keys),
            Change::Resync(objects) => self.replace(objects, |key| matches!(key, Key::Uplink(_))),
            Change::Reload(node, host, objects) => {
                (self.node, self.host) = (node, host);
                Ok(self.replace_all(objects))
            }
        };
        let (undo, faults) = match undo {
            Ok(undo) => {
                let faults = self.faults(&[]);
                (undo, faults)
            }
            Err(faults) => (Vec::new(), faults),
        };
        if faults.is_empty() {
            self.generation += 1;
            return Ok(());
        }
        (self.node, self.host) = before;
        for (key, old) in undo.into_iter().rev() {
            match old {
                Some(object) => self.objects.insert(key, object),
                None => self.objects.remove(&key),
            };
        }
        Err(faults)
    }

    fn put(&mut self, objects: Vec<Object>) -> Result<Undo, Vec<Fault>> {
        Ok(objects
            .into_iter()
            .map(|object| (object.key(), self.objects.insert(object.key(), object)))
            .collect())
    }

    fn remove(&mut self, keys: Vec<Key>) -> Result<Undo, Vec<Fault>> {
        let unknown: Vec<Fault> = keys
            .iter()
            .filter(|key| !self.objects.contains_key(key))
            .map(|key| {
                Fault::new(
                    key.to_string(),
                    "",
                    "there is no such object",
                    "list what there is with `penstock objects`",
                )
            })
            .collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        Ok(keys.into_iter().map(|key| (key.clone(), self.objects.remove(&key))).collect())
    }

    fn replace(&mut self, objects: Vec<Object>, keep: impl Fn(&Key) -> bool) -> Result<Undo, Vec<Fault>> {
        let doomed: Vec<Key> = self.objects.keys().filter(|key| !keep(key)).cloned().collect();
        let mut undo: Undo = doomed.into_iter().map(|key| (key.clone(), self.objects.remove(&key))).collect();
        undo.extend(self.put(objects)?);
        Ok(undo)
    }

    fn replace_all(&mut self, objects: Vec<Object>) -> Undo {
        let old = std::mem::take(&mut self.objects);
        self.objects = objects.into_iter().map(|object| (object.key(), object)).collect();
        let added: Undo =
            self.objects.keys().filter(|key| !old.contains_key(key)).map(|key| (key.clone(), None)).collect();
        old.into_iter().map(|(key, object)| (key, Some(object))).chain(added).collect()
    }

    /// Everything that is wrong with the configuration as a whole. Of the keys in `unread` there are objects too, of which
    /// nothing else is known.
    #[must_use]
    pub fn faults(&self, unread: &[Key]) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.objects().flat_map(check_object).collect();
        self.check_names(unread, &mut faults);
        self.check_identifiers(&mut faults);
        self.check_addresses(&mut faults);
        self.check_native(&mut faults);
        faults
    }

    /// Whatever names another object names one that is there.
    fn check_names(&self, unread: &[Key], faults: &mut Vec<Fault>) {
        let mut need = |by: String, key: &str, wanted: Key| {
            if !self.objects.contains_key(&wanted) && !unread.contains(&wanted) {
                faults.push(Fault::new(
                    by,
                    key,
                    format!("there is no {wanted}"),
                    format!("add the {wanted} or correct the name"),
                ));
            }
        };
        for object in self.objects() {
            let by = object.key().to_string();
            match object {
                Object::Endpoint(endpoint) => need(by, "network", Key::Network(endpoint.network.clone())),
                Object::Route(route) => {
                    need(by.clone(), "network", Key::Network(route.network.clone()));
                    match &route.via {
                        RouteTarget::Peer(peer) => need(by, "via.peer", Key::Peer(peer.clone())),
                        RouteTarget::Uplink { uplink, .. } => {
                            need(by, "via.uplink", Key::Uplink(uplink.clone()))
                        }
                        RouteTarget::Host | RouteTarget::Blackhole => {}
                    }
                }
                Object::Uplink(_) | Object::Network(_) | Object::Peer(_) => {}
            }
        }
        if let Some(host) = &self.host {
            need("host".into(), "network", Key::Network(host.network.clone()));
        }
    }

    /// Network identifiers, peers' addresses and interfaces belong to one object each.
    fn check_identifiers(&self, faults: &mut Vec<Fault>) {
        let mut vnis = HashMap::new();
        for network in self.networks() {
            if let Some(other) = vnis.insert(network.vni, &network.name) {
                let problem = format!("VNI {} is that of network \"{other}\" too", network.vni.get());
                faults.push(Fault::new(
                    Key::Network(network.name.clone()).to_string(),
                    "vni",
                    problem,
                    "give each network its own VNI",
                ));
            }
        }
        let mut peers = HashMap::new();
        for peer in self.peers() {
            if let Some(other) = peers.insert(peer.address, &peer.name) {
                let problem = format!("{} is the address of peer \"{other}\" too", peer.address);
                faults.push(Fault::new(
                    Key::Peer(peer.name.clone()).to_string(),
                    "address",
                    problem,
                    "give each peer its own address",
                ));
            }
        }
        let mut interfaces: HashMap<&str, String> = HashMap::new();
        let host = self.host.iter().map(|host| ("host".to_owned(), host.interface.as_str()));
        let uplinks = self
            .uplinks()
            .map(|uplink| (Key::Uplink(uplink.name.clone()).to_string(), uplink.interface.as_str()));
        let endpoints = self.endpoints().filter_map(|endpoint| {
            let by = Key::Endpoint(endpoint.name.clone()).to_string();
            interface_of(&endpoint.attachment).map(|interface| (by, interface))
        });
        for (by, interface) in host.chain(uplinks).chain(endpoints) {
            if let Some(other) = interfaces.insert(interface, by.clone()) {
                let problem = format!("interface {interface} is that of {other} too");
                faults.push(Fault::new(by, "interface", problem, "an interface serves one object only"));
            }
        }
    }

    /// An address is one endpoint's in its network, and no gateway's.
    fn check_addresses(&self, faults: &mut Vec<Fault>) {
        let mut owners: HashMap<(&str, IpAddr), &str> = HashMap::new();
        let gateways: HashMap<&str, &[IpAddr]> =
            self.networks().map(|network| (network.name.as_str(), network.gateways.as_slice())).collect();
        for endpoint in self.endpoints() {
            let by = || Key::Endpoint(endpoint.name.clone()).to_string();
            let network = endpoint.network.as_str();
            for &address in &endpoint.addresses {
                if let Some(other) = owners.insert((network, address), endpoint.name.as_str()) {
                    let problem = format!("{address} is the address of endpoint \"{other}\" too");
                    faults.push(Fault::new(
                        by(),
                        "addresses",
                        problem,
                        "give each endpoint of a network its own addresses",
                    ));
                }
                if gateways.get(network).is_some_and(|gateways| gateways.contains(&address)) {
                    let problem = format!("{address} is the gateway of network \"{network}\"");
                    faults.push(Fault::new(
                        by(),
                        "addresses",
                        problem,
                        "choose another address, or name the network's gateways",
                    ));
                }
            }
        }
    }

    /// Packets without a tunnel can belong to one network only.
    fn check_native(&self, faults: &mut Vec<Fault>) {
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

    /// Whether a network's packets may travel without a tunnel.
    #[must_use]
    pub fn is_native(&self, network: &Network) -> bool {
        network.encapsulation == Encapsulation::None
            || network.cross_subnet
            || self
                .routes()
                .any(|route| route.network == network.name && matches!(route.via, RouteTarget::Uplink { .. }))
    }
}

/// What a change replaced, in order.
type Undo = Vec<(Key, Option<Object>)>;

/// The interface that an attachment uses, when it uses one.
#[must_use]
pub fn interface_of(attachment: &Attachment) -> Option<&str> {
    match attachment {
        Attachment::Veth { interface } | Attachment::Tap { interface } => Some(interface.as_str()),
        Attachment::Pcap { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_api::file::parse_objects;

    fn desired() -> Desired {
        let node = Node { name: "node1".parse().unwrap(), mac: None };
        Desired::new(node, None)
    }

    fn objects(text: &str) -> Vec<Object> {
        parse_objects(text, "test.toml").unwrap()
    }

    const GOOD: &str = r#"
        [[network]]
        name = "default"
        vni = 100
        prefixes = ["10.1.0.0/16"]
        [[endpoint]]
        name = "web"
        network = "default"
        mac = "02:00:00:00:00:01"
        addresses = ["10.1.0.2"]
        attachment = { veth = { interface = "p1" } }
    "#;

    #[test]
    fn a_faulty_change_leaves_everything_as_it_was() {
        let mut desired = desired();
        desired.apply(Change::Upsert(objects(GOOD))).unwrap();
        let before: Vec<Object> = desired.objects().cloned().collect();
        let bad = GOOD.replace("\"web\"", "\"api\"");
        let faults = desired.apply(Change::Upsert(objects(&bad))).unwrap_err();
        // The address and the interface are web's.
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(desired.objects().eq(before.iter()));
        assert_eq!(desired.generation(), 1);
        assert!(desired.apply(Change::Delete(vec![Key::Network("default".parse().unwrap())])).is_err());
        assert!(desired.objects().eq(before.iter()));
    }

    #[test]
    fn a_resync_sweeps_what_is_not_listed() {
        let mut desired = desired();
        desired.apply(Change::Upsert(objects(GOOD))).unwrap();
        let network_only = &GOOD[..GOOD.find("[[endpoint]]").unwrap()];
        desired.apply(Change::Resync(objects(network_only))).unwrap();
        assert_eq!((desired.endpoints().count(), desired.networks().count()), (0, 1));
    }

    #[test]
    fn deleting_what_is_not_there_is_a_fault_that_names_it() {
        let faults = desired().apply(Change::Delete(vec![Key::Peer("node9".parse().unwrap())])).unwrap_err();
        assert!(faults[0].to_string().contains("peer \"node9\""));
    }
}
