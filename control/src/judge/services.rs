//! Services as destinations: behind an address of one stand pods, and policies judge these.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use penstock_api::model::Protocol;
use serde::Serialize;

use super::explain::Explanation;
use super::{Judge, JudgeError, Party};
use crate::cluster::{Pod, Scoped};
use crate::kubernetes::Service;

/// What decides about packets to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Served {
    /// The service, as `shop/web[Service]`.
    pub service: String,
    /// The port at its addresses.
    pub port: u16,
    /// What decides for each place where it is served.
    pub backends: Vec<Behind>,
}

/// One place where a service is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// The port there, which policies are asked about.
    pub port: u16,
    /// What decides.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// What was asked about: one end, or a service with what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// A packet to one end.
    One(Box<Explanation>),
    /// Packets to a service.
    Service(Served),
}

impl Judge {
    /// Explains what decides about a packet to `to`: what [`Judge::party`] knows, an address of a service, or
    /// `NAMESPACE/NAME[Service]`. Places of services are those of their slices, or the pods that they select when they have
    /// none: there is nobody then who would write slices.
    ///
    /// # Errors
    /// There is no such end, or the service does not serve the port.
    pub fn answer(
        &self,
        from: &str,
        to: &str,
        protocol: u8,
        port: Option<u16>,
    ) -> Result<Answer, JudgeError> {
        let from = self.party(from)?;
        let Some(service) = self.service(to) else {
            return Ok(Answer::One(Box::new(self.explain(&from, &self.party(to)?, protocol, port)?)));
        };
        let key = key_of(service);
        let unserved =
            || JudgeError::Unserved { service: key.to_string(), protocol, port: port.unwrap_or_default() };
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        let mut ports = ports.filter(|it| number_of(it) == protocol && u16::try_from(it.port).ok() == port);
        let (Some(said), Some(port)) = (ports.next(), port) else { return Err(unserved()) };
        let mut backends = Vec::new();
        for (place, port) in self.places_of(&key, service, said) {
            let explanation = self.explain(&from, &place, protocol, Some(port))?;
            backends.push(Behind { port, explanation });
        }
        Ok(Answer::Service(Served { service: format!("{key}[Service]"), port, backends }))
    }

    /// The service that a text means.
    fn service(&self, text: &str) -> Option<&Service> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return self.services.iter().find(|service| addresses(service).contains(&address));
        }
        let name = text.strip_suffix("[Service]")?;
        self.services.iter().find(|service| key_of(service).to_string() == name)
    }

    /// Where a port of a service is served.
    fn places_of(&self, key: &Scoped, service: &Service, port: &ServicePort) -> BTreeSet<(Party, u16)> {
        let mut slices = self.cluster.slices(key).peekable();
        let name = port.name.as_deref().unwrap_or_default();
        if slices.peek().is_some() {
            let served = slices.flat_map(|(_, slice)| {
                let ports = slice.ports.iter().filter(|(of, _)| of == name).map(|(_, port)| *port);
                ports.flat_map(|port| slice.places.iter().map(move |place| (place.address, port)))
            });
            return served.map(|(address, port)| (self.party_at(address), port)).collect();
        }
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return BTreeSet::new() };
        let selected = |pod: &&Pod| {
            pod.key.namespace == key.namespace
                && !pod.finished
                && selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value))
        };
        let pods = self.cluster.pods().values().map(AsRef::as_ref).filter(selected);
        pods.filter_map(|pod| Some((Party::Pod(pod.key.clone()), target(port, pod)?))).collect()
    }
}

fn key_of(service: &Service) -> Scoped {
    let metadata = &service.metadata;
    Scoped::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// The addresses that a service is reached at.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.as_ref();
    let inside =
        spec.into_iter().flat_map(|spec| spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()));
    let outside = spec.into_iter().flat_map(|spec| spec.external_ips.iter().flatten());
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let given = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let given = given.filter_map(|ingress| ingress.ip.as_ref());
    inside.chain(outside).chain(given).filter_map(|text| text.parse().ok()).collect()
}

/// The protocol of a port, TCP when it does not say.
fn number_of(port: &ServicePort) -> u8 {
    match port.protocol.as_deref() {
        Some("UDP") => 17,
        Some("SCTP") => 132,
        _ => 6,
    }
}

/// The port at a pod that a service's port leads to; none if the pod has none of that name.
fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            let protocol = Protocol::new(number_of(port));
            pod.ports_named(name, Some(protocol)).next().map(|port| port.number)
        }
    }
}

/// A line about the service, then what decides for each of its places.
impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backends.len() {
            0 => writeln!(
                f,
                "port {} of {} is served nowhere: its packets are dropped",
                self.port, self.service
            )?,
            1 => writeln!(f, "port {} of {} is served in one place", self.port, self.service)?,
            count => writeln!(f, "port {} of {} is served in {count} places", self.port, self.service)?,
        }
        for backend in &self.backends {
            write!(f, "port {} of {}", backend.port, backend.explanation)?;
        }
        Ok(())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::One(explanation) => explanation.fmt(f),
            Answer::Service(served) => served.fmt(f),
        }
    }
}
