//! What services and translated connections have beside the pods' own: counted when one of them changes, since every
//! publication asks for it and only few change it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::model::{Key, Name, Protocol, ServicePort};

use super::Desired;

/// The addresses and ports at which a node answers for more than its pods.
#[derive(Clone, Debug, Default)]
pub struct Exposed {
    /// Addresses outside the cluster that services and connections have, other than the uplinks'.
    pub outside: Arc<HashSet<IpAddr>>,
    /// The node ports of services: protocol and port.
    pub node_ports: Vec<(u8, u16)>,
    /// The services' cluster and load-balancer addresses, by network; of each network that has services.
    pub served: BTreeMap<Name, BTreeSet<IpAddr>>,
    /// The networks with a service whose backends are to answer clients outside past the client's node.
    pub direct: BTreeSet<Name>,
}

impl Exposed {
    /// Whether an object counts here.
    #[must_use]
    pub fn follows_from(key: &Key) -> bool {
        matches!(key, Key::Service(_) | Key::NatPool(_) | Key::EgressIp(_))
    }

    pub(super) fn of(desired: &Desired) -> Exposed {
        let mut exposed = Exposed::default();
        let mut outside: HashSet<IpAddr> = HashSet::new();
        for service in desired.services() {
            outside.extend(service.external_ips.iter().chain(&service.load_balancer_ips));
            let node_port = |it: &ServicePort| Some((Protocol::from(it.protocol).number(), it.node_port?));
            exposed.node_ports.extend(service.ports.iter().filter_map(node_port));
            if service.dsr {
                exposed.direct.insert(service.network.clone());
            }
            let served = exposed.served.entry(service.network.clone()).or_default();
            served.extend(service.cluster_ips.iter().chain(&service.load_balancer_ips));
        }
        outside.extend(desired.nat_pools().flat_map(|pool| &pool.addresses));
        outside.extend(desired.egress_ips().map(|it| it.address));
        exposed.outside = Arc::new(outside);
        exposed
    }
}
