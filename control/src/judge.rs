//! Who may speak to whom, said by the classifier that dataplanes ask, without a dataplane.

mod connectivity;
mod explain;
mod services;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use penstock_api::model::Object as Said;
use penstock_policy::{
    CompileError, Decider, Direction, Packet, PeerId, Peers, Program, Rules, Subject, compile,
};
use serde::Serialize;
use thiserror::Error;

use crate::cluster::{Cluster, Scoped};
use crate::kubernetes::{Object, Pod, Service};
use crate::manifests::{Manifests, Workload};
use crate::translate::{Settings, Translation, translate};

pub use connectivity::{Connection, Ports};
pub use explain::{Explanation, Side};
pub use services::{Answer, Behind, Served};

/// Why a question cannot be answered.
#[derive(Debug, Error)]
pub enum JudgeError {
    /// The policies do not compile: a dataplane would refuse them.
    #[error("the policies do not compile: {0}")]
    Compile(#[from] CompileError),
    /// Neither a pod, a workload nor an address.
    #[error(
        "there is no pod and no workload {0:?}; write NAMESPACE/NAME as `penstock connectivity` prints it, or an address"
    )]
    Unknown(String),
    /// A service without such a port.
    #[error(
        "{service} has no port {port} of protocol {protocol}; name one of those in its spec.ports, with its protocol"
    )]
    Unserved {
        /// The service.
        service: String,
        /// IANA's number.
        protocol: u8,
        /// The port.
        port: u16,
    },
    /// Both ends are addresses outside.
    #[error(
        "both ends are addresses outside of the cluster, of which policies say nothing; name a pod for one of them"
    )]
    Outside,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A pod, by its names or those of its workload.
    Pod(Scoped),
    /// An address that is no pod's.
    Address(IpAddr),
}

/// A pod, or one of those that a workload would make.
#[derive(Debug, Clone)]
struct Place {
    title: String,
    address: IpAddr,
    /// Whether it is on its node's network, where policies do not reach.
    exempt: bool,
    listed: bool,
}

/// What policies say about pods.
#[derive(Debug)]
pub struct Judge {
    rules: Arc<Rules>,
    program: Program,
    peers: Arc<Peers>,
    places: BTreeMap<Scoped, Place>,
    translation: Translation,
    cluster: Cluster,
    services: Vec<Service>,
}

/// How one side of a connection is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ruling {
    /// Whether it may be.
    pub allowed: bool,
    /// What decided; nothing where policies do not reach.
    #[serde(skip)]
    pub decider: Option<Decider>,
}

/// Where pods without an address get one from: IPv6's discard-only prefix (RFC 6666), which no block of a policy names
/// unless it names everything.
const STAND_IN: u128 = 0x0100 << 112;

impl Judge {
    /// Takes manifests, where workloads stand for their pods.
    ///
    /// # Errors
    /// Policies that a dataplane would refuse as well.
    pub fn of_manifests(manifests: &Manifests) -> Result<Judge, JudgeError> {
        let mut cluster = Cluster::new(Settings::network());
        for object in &manifests.objects {
            cluster.apply(object);
        }
        let mut titles: BTreeMap<Scoped, String> = BTreeMap::new();
        for workload in &manifests.workloads {
            let key = scoped(&workload.pod);
            // A workload and a pod may have the same name; the later one then counts by a name that says what it is.
            let key = if titles.contains_key(&key) {
                Scoped::new(&key.namespace, format!("{}[{}]", key.name, workload.kind))
            } else {
                key
            };
            titles.insert(key.clone(), workload.title());
            if workload.kind != "Pod" {
                cluster.apply(&Object::from(named(workload, &key)));
            }
        }
        let services = manifests.objects.iter().filter_map(|object| match object {
            Object::Service(service) => Some((**service).clone()),
            _ => None,
        });
        Judge::new(cluster, &titles, services.collect())
    }

    fn new(
        mut cluster: Cluster,
        titles: &BTreeMap<Scoped, String>,
        services: Vec<Service>,
    ) -> Result<Judge, JudgeError> {
        let mut next = STAND_IN;
        let mut places = BTreeMap::new();
        let pods: Vec<_> = cluster.pods().values().cloned().collect();
        for pod in pods.iter().filter(|pod| !pod.finished) {
            let address = pod.addresses.first().copied().unwrap_or_else(|| {
                next += 1;
                IpAddr::V6(Ipv6Addr::from_bits(next))
            });
            if pod.addresses.is_empty() && !pod.host_network {
                cluster.place(&pod.key, address);
            }
            let title = titles.get(&pod.key).cloned();
            let listed = title.is_some();
            let title = title.unwrap_or_else(|| format!("{}[Pod]", pod.key));
            places.insert(pod.key.clone(), Place { title, address, exempt: pod.host_network, listed });
        }
        let translation = translate(&cluster, Settings::of_all());
        let mut rules = Rules::default();
        for object in translation.desired().values() {
            match &**object {
                Said::Identity(identity) => rules.identities.push(Arc::new(identity.into())),
                Said::Tier(tier) => rules.tiers.push(tier.into()),
                Said::Policy(policy) => rules.policies.push(Arc::new(policy.into())),
                _ => {}
            }
        }
        let network = cluster.network().to_string();
        for (key, place) in places.iter().filter(|(_, place)| !place.exempt) {
            rules.endpoints.push(penstock_policy::Endpoint {
                name: key.to_string(),
                network: network.clone(),
                addresses: match cluster.pods().get(key) {
                    Some(pod) if !pod.addresses.is_empty() => pod.addresses.clone(),
                    _ => vec![place.address],
                },
            });
        }
        let rules = Arc::new(rules);
        let program = compile(&rules, None)?;
        let peers = program.peers(&network).cloned().unwrap_or_default();
        Ok(Judge { rules, program, peers, places, translation, cluster, services })
    }

    /// What of the manifests is not usable or not honoured, a line each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let unusable = self.cluster.problems().iter();
        let unusable = unusable.flat_map(|(key, problems)| problems.iter().map(move |it| it.of(key)));
        unusable.chain(self.translation.refusals().map(|(key, problem)| problem.of(key))).collect()
    }

    /// The end that a text means: `NAMESPACE/NAME`, with or without `[Kind]`, or an address.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn party(&self, text: &str) -> Result<Party, JudgeError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.party_at(address));
        }
        let found = self.places.iter().find(|(key, place)| key.to_string() == text || place.title == text);
        found.map(|(key, _)| Party::Pod(key.clone())).ok_or_else(|| JudgeError::Unknown(text.to_owned()))
    }

    fn party_at(&self, address: IpAddr) -> Party {
        let owner = self.places.iter().find(|(_, place)| place.address == address && !place.exempt);
        owner.map_or(Party::Address(address), |(key, _)| Party::Pod(key.clone()))
    }

    /// The classifier of a pod that policies reach.
    fn subject(&self, party: &Party) -> Option<&Arc<Subject>> {
        match party {
            Party::Pod(key) => self.program.endpoint(&key.to_string()),
            Party::Address(_) => None,
        }
    }

    fn address(&self, party: &Party) -> Option<IpAddr> {
        match party {
            Party::Pod(key) => self.places.get(key).map(|place| place.address),
            Party::Address(address) => Some(*address),
        }
    }

    /// Who a party is to others, by the address that a packet shows.
    fn peer(&self, party: &Party) -> PeerId {
        self.address(party).map_or(PeerId::OUTSIDE, |address| self.peers.look_up(address))
    }

    /// How the side of `own` decides about a packet to or from `other`.
    #[must_use]
    pub fn side(
        &self,
        own: &Party,
        direction: Direction,
        other: &Party,
        protocol: u8,
        key: Option<u16>,
    ) -> Ruling {
        // A pod reaches itself, and where no policy reaches nothing is refused.
        let Some(subject) = self.subject(own).filter(|_| own != other) else {
            return Ruling { allowed: true, decider: None };
        };
        let packet = Packet { peer: self.peer(other), protocol, key };
        let verdict = subject.classify(direction, &packet);
        let answer = subject.answer(direction, verdict);
        Ruling { allowed: answer.allow, decider: Some(answer.decider) }
    }

    /// Whether a packet may go from one party to another: both sides must allow it.
    #[must_use]
    pub fn allows(&self, from: &Party, to: &Party, protocol: u8, key: Option<u16>) -> bool {
        self.side(from, Direction::Egress, to, protocol, key).allowed
            && self.side(to, Direction::Ingress, from, protocol, key).allowed
    }

    /// The policies that select a pod in a direction.
    fn selecting(&self, own: &Party, direction: Direction) -> Vec<String> {
        let Some(subject) = self.subject(own) else { return Vec::new() };
        let named: Vec<&str> = subject.policies().map(|(_, policy)| policy).collect();
        let policies = self.rules.policies.iter().filter(|it| it.directions.contains(direction));
        policies.filter(|it| named.contains(&it.name.as_str())).map(|it| it.name.clone()).collect()
    }
}

fn scoped(pod: &Pod) -> Scoped {
    let metadata = &pod.metadata;
    Scoped::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn named(workload: &Workload, key: &Scoped) -> Pod {
    let mut pod = workload.pod.clone();
    pod.metadata.name = Some(key.name.clone());
    pod
}
