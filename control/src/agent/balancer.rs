//! Addresses of services of the type LoadBalancer, as the agents of a cluster care for them: the one that leads gives them
//! out, and each announces those that it is elected for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::core::SelectorExt;
use penstock_api::client::Client;
use penstock_api::model::Object as Said;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::addresses::assign::ServiceName;
use crate::addresses::{Announcer, Assignment, Claim, Pool, assign, elected};
use crate::kubernetes::{EndpointSlice, Key, Kind, Node, Object, Service};

/// How often those on the link are told again where the addresses are.
const REPEAT: Duration = Duration::from_secs(30);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// The label of nodes that load balancers leave out (Kubernetes' well-known labels).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The label of a slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What decides who has which address, and who announces it.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pools: BTreeMap<String, Pool>,
    claims: BTreeMap<ServiceName, Claim>,
    /// The labels of the nodes that may announce addresses.
    nodes: BTreeMap<String, Arc<BTreeMap<String, String>>>,
    /// The nodes with ready endpoints, by slice.
    serving: BTreeMap<ServiceName, BTreeMap<String, BTreeSet<String>>>,
    slices: BTreeMap<ServiceName, ServiceName>,
}

impl Plan {
    /// Takes the last word about an object. Whether it matters here.
    pub(super) fn apply(&mut self, object: &Object) -> bool {
        match object {
            Object::Service(service) => self.set_claim(object.key(), service),
            Object::IPPool(resource) => {
                let name = object.key().name;
                match Pool::of(resource) {
                    Ok(Some(pool)) => {
                        self.pools.insert(name, pool);
                        true
                    }
                    Ok(None) => self.pools.remove(&name).is_some(),
                    Err(error) => {
                        tracing::error!("IPPool {name}: {error}; no address is given out of it");
                        self.pools.remove(&name).is_some()
                    }
                }
            }
            Object::Node(node) => self.set_node(object.key().name, node),
            Object::EndpointSlice(slice) => self.set_slice(object.key(), slice),
            _ => false,
        }
    }

    /// Forgets an object. Whether it mattered here.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let scoped = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => self.claims.remove(&scoped).is_some(),
            Kind::IPPool => self.pools.remove(&key.name).is_some(),
            Kind::Node => self.nodes.remove(&key.name).is_some(),
            Kind::EndpointSlice => {
                let Some(service) = self.slices.remove(&scoped) else { return false };
                let slices = self.serving.get_mut(&service);
                slices.is_some_and(|slices| slices.remove(&key.name).is_some())
            }
            _ => false,
        }
    }

    fn set_claim(&mut self, key: Key, service: &Service) -> bool {
        let name = (key.namespace.clone(), key.name.clone());
        match Claim::of(service) {
            Some(Ok(claim)) => {
                let same = self.claims.get(&name) == Some(&claim);
                self.claims.insert(name, claim);
                !same
            }
            Some(Err(unclear)) => {
                tracing::error!("{key}: {unclear}; it gets no address");
                self.claims.remove(&name).is_some()
            }
            None => self.claims.remove(&name).is_some(),
        }
    }

    fn set_node(&mut self, name: String, node: &Node) -> bool {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
        if !ready || labels.contains_key(EXCLUDED) {
            return self.nodes.remove(&name).is_some();
        }
        let same = self.nodes.get(&name).is_some_and(|known| **known == labels);
        self.nodes.insert(name, Arc::new(labels));
        !same
    }

    fn set_slice(&mut self, key: Key, slice: &EndpointSlice) -> bool {
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { return false };
        let service = (key.namespace.clone(), service.clone());
        let ready = |it: &&k8s_openapi::api::discovery::v1::Endpoint| {
            it.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        };
        let nodes: BTreeSet<String> = slice
            .endpoints
            .iter()
            .flatten()
            .filter(ready)
            .filter_map(|endpoint| endpoint.node_name.clone())
            .collect();
        self.slices.insert((key.namespace, key.name.clone()), service.clone());
        let matters = self.claims.get(&service).is_some_and(|claim| claim.local_to.is_some());
        let before = self.serving.entry(service).or_default().insert(key.name, nodes.clone());
        matters && before.as_ref() != Some(&nodes)
    }

    /// Who is to have which address.
    fn assignment(&self) -> Assignment {
        let pools: Vec<Pool> = self.pools.values().cloned().collect();
        let claims: Vec<Claim> = self.claims.values().cloned().collect();
        assign(&pools, &claims)
    }

    /// The addresses in use that `node` announces.
    fn announced_by(&self, node: &str) -> BTreeSet<IpAddr> {
        let mut addresses = BTreeSet::new();
        for (service, claim) in &self.claims {
            for address in &claim.holds {
                let Some(pool) = self.pools.values().find(|pool| pool.contains(*address)) else { continue };
                let serves = |name: &str| {
                    let slices = self.serving.get(service);
                    slices.is_some_and(|slices| slices.values().any(|nodes| nodes.contains(name)))
                };
                let nodes = self.nodes.iter().filter(|(_, labels)| pool.nodes.matches(labels));
                let nodes = nodes.map(|(name, _)| name.as_str());
                let nodes = nodes.filter(|name| claim.local_to.is_none() || serves(name));
                if elected(*address, nodes) == Some(node) {
                    addresses.insert(*address);
                }
            }
        }
        addresses
    }
}

/// Gives addresses out while it leads, and announces those that its node is elected for.
pub(super) struct Balancer {
    pub(super) client: kube::Client,
    pub(super) node: String,
    pub(super) plan: watch::Receiver<Option<Plan>>,
    pub(super) leading: watch::Receiver<bool>,
    /// Where the dataplane says which interface is its uplink.
    pub(super) socket: PathBuf,
}

impl Balancer {
    /// Goes on until it is dropped.
    pub(super) async fn run(mut self) {
        let mut announcer = None;
        let mut told: BTreeSet<String> = BTreeSet::new();
        loop {
            let Some(plan) = self.plan.borrow_and_update().clone() else {
                if self.plan.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let mut faults = BTreeSet::new();
            if *self.leading.borrow_and_update() {
                self.give(&plan, &mut faults).await;
            }
            let failed = self.announce(&plan, &mut announcer, &mut faults).await;
            // Said once, not with every attempt.
            faults.difference(&told).for_each(|fault| tracing::error!("{fault}"));
            told = faults;
            tokio::select! {
                changed = self.plan.changed() => if changed.is_err() { return },
                changed = self.leading.changed() => if changed.is_err() { return },
                () = sleep(if failed { AGAIN } else { REPEAT }) => {}
            }
        }
    }

    /// Writes into services' status what they have.
    async fn give(&self, plan: &Plan, faults: &mut BTreeSet<String>) {
        let assignment = plan.assignment();
        for ((namespace, name), refusal) in &assignment.refused {
            faults.insert(format!("Service {namespace}/{name}: {refusal}"));
        }
        for (service, claim) in &plan.claims {
            let given = assignment.given.get(service).cloned().unwrap_or_default();
            if given == claim.holds {
                continue;
            }
            let (namespace, name) = service;
            let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
            let ingress: Vec<_> =
                given.iter().map(|address| json!({"ip": address, "ipMode": "VIP"})).collect();
            let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
            match services.patch_status(name, &PatchParams::default(), &status).await {
                Ok(_) => tracing::info!("Service {namespace}/{name} has {given:?}"),
                // It went meanwhile.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    faults.insert(format!("Service {namespace}/{name} is not told its addresses: {error}"));
                }
            }
        }
    }

    /// Announces what is to be announced. Whether something failed.
    async fn announce(
        &self,
        plan: &Plan,
        announcer: &mut Option<Announcer>,
        faults: &mut BTreeSet<String>,
    ) -> bool {
        let wanted = plan.announced_by(&self.node);
        if announcer.is_none() && (!wanted.is_empty() || !plan.pools.is_empty()) {
            *announcer = self.announcer(faults).await;
        }
        let Some(announcer) = announcer else { return !wanted.is_empty() };
        let outcome = announcer.announce(&wanted).await.and_then(|()| announcer.repeat());
        if let Err(error) = &outcome {
            faults.insert(error.to_string());
        }
        outcome.is_err()
    }

    /// One on the interface of the dataplane's uplink.
    async fn announcer(&self, faults: &mut BTreeSet<String>) -> Option<Announcer> {
        let mut fail = |what: String| {
            faults.insert(format!("no address is announced: {what}"));
            None
        };
        let objects = match Client::connect(&self.socket).await {
            Ok(mut client) => client.objects().await,
            Err(error) => Err(error),
        };
        let objects = match objects {
            Ok(objects) => objects,
            Err(error) => return fail(error.to_string()),
        };
        let uplink = objects.iter().find_map(|object| match object {
            Said::Uplink(uplink) => Some(uplink.interface.to_string()),
            _ => None,
        });
        let Some(uplink) = uplink else { return fail("the dataplane has no uplink".to_owned()) };
        let (connection, handle, _) = match rtnetlink::new_connection() {
            Ok(connection) => connection,
            Err(error) => return fail(error.to_string()),
        };
        tokio::spawn(connection);
        match Announcer::on(handle, &uplink).await {
            Ok(announcer) => Some(announcer),
            Err(error) => fail(error.to_string()),
        }
    }
}
