//! What a service asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;
use thiserror::Error;

use super::pool::Family;
use crate::kubernetes::Service;

/// The load balancer class that is ours; services without one are ours as well.
pub const CLASS: &str = "penstock.dev/l2";
/// The annotation that asks for certain addresses, one of a family at most, between commas.
pub const ADDRESSES: &str = "penstock.dev/load-balancer-addresses";
/// The annotation that asks for an address of one pool.
pub const POOL: &str = "penstock.dev/address-pool";
/// The annotation by which services share an address: those that say the same here, and have no port in common, may.
pub const SHARING: &str = "penstock.dev/shared-address";

/// How many families a service wants (`ipFamilyPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stacks {
    /// The first of its families.
    Single,
    /// Both, or one if there is no other.
    PreferDual,
    /// Both, or none.
    RequireDual,
}

/// A service that wants addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Its namespace and name.
    pub service: (String, String),
    /// When it was made, in seconds since 1970: who came first keeps what two hold.
    pub created: i64,
    /// Its labels, by which pools choose.
    pub labels: BTreeMap<String, String>,
    /// The families it is to have addresses of, in its order.
    pub families: Vec<Family>,
    /// How many of them.
    pub stacks: Stacks,
    /// The addresses that it asks for.
    pub wanted: Vec<IpAddr>,
    /// The pool that it asks for.
    pub pool: Option<String>,
    /// What it says to those it would share an address with.
    pub sharing: Option<String>,
    /// Its ports, each with its protocol in capitals.
    pub ports: BTreeSet<(String, u16)>,
    /// The pods behind it if only nodes with such pods may be sent packets (`externalTrafficPolicy: Local`): who shares an
    /// address with it must have the same ones, as one node announces the address for both.
    pub local_to: Option<BTreeMap<String, String>>,
    /// The addresses that it has so far.
    pub holds: Vec<IpAddr>,
}

/// What a service asks for cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unclear {
    /// A word that should be an address.
    #[error("{place}: \"{text}\" is no address: write addresses between commas, as in 192.0.2.7,2001:db8::7")]
    NotAnAddress {
        /// The annotation or field.
        place: &'static str,
        /// What stands there.
        text: String,
    },
    /// Several addresses of a family.
    #[error("{place}: {family} is there twice: a service has one address of a family")]
    Twice {
        /// The annotation or field.
        place: &'static str,
        /// The family.
        family: Family,
    },
}

impl Claim {
    /// What a service claims; none if it is not of the type LoadBalancer, or somebody else's.
    ///
    /// # Errors
    /// [`Unclear`].
    pub fn of(service: &Service) -> Option<Result<Claim, Unclear>> {
        let spec = service.spec.as_ref()?;
        let ours = spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS);
        ours.then(|| Claim::read(service, spec))
    }

    fn read(service: &Service, spec: &ServiceSpec) -> Result<Claim, Unclear> {
        let meta = &service.metadata;
        let annotation = |name| meta.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        let wanted = match annotation(ADDRESSES) {
            Some(text) => addresses(ADDRESSES, &text)?,
            None => addresses("spec.loadBalancerIP", spec.load_balancer_ip.as_deref().unwrap_or_default())?,
        };
        let families = spec.ip_families.iter().flatten().filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
        let mut families: Vec<Family> = families.collect();
        if families.is_empty() {
            // An API server always says which; a manifest may leave it open, and means the cluster's first.
            families.push(Family::V4);
        }
        let stacks = match spec.ip_family_policy.as_deref() {
            Some("RequireDualStack") => Stacks::RequireDual,
            Some("PreferDualStack") => Stacks::PreferDual,
            _ => Stacks::Single,
        };
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((protocol, u16::try_from(port.port).ok()?))
        });
        let ingress =
            service.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
        Ok(Claim {
            service: (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
            created: meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            labels: meta.labels.clone().unwrap_or_default(),
            families,
            stacks,
            wanted,
            pool: annotation(POOL),
            sharing: annotation(SHARING),
            ports: ports.collect(),
            local_to: is_local.then(|| spec.selector.clone().unwrap_or_default()),
            holds: ingress.flatten().filter_map(|it| it.ip.as_deref()?.parse().ok()).collect(),
        })
    }

    /// Whether two services may have one address.
    #[must_use]
    pub fn shares_with(&self, other: &Claim) -> bool {
        self.sharing.is_some()
            && self.sharing == other.sharing
            && self.ports.is_disjoint(&other.ports)
            && self.local_to == other.local_to
    }
}

fn addresses(place: &'static str, text: &str) -> Result<Vec<IpAddr>, Unclear> {
    let mut found: Vec<IpAddr> = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let address: IpAddr =
            word.parse().map_err(|_| Unclear::NotAnAddress { place, text: word.to_owned() })?;
        let family = Family::of(address);
        if found.iter().any(|&other| Family::of(other) == family) {
            return Err(Unclear::Twice { place, family });
        }
        found.push(address);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value, annotations: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": "web", "annotations": annotations },
            "spec": spec,
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "hostname": "elsewhere" }] } },
        }))
        .unwrap()
    }

    #[test]
    fn services_of_another_type_or_class_claim_nothing() {
        for spec in [
            json!({ "type": "ClusterIP" }),
            json!({}),
            json!({ "type": "LoadBalancer", "loadBalancerClass": "example.com/other" }),
        ] {
            assert_eq!(Claim::of(&service(spec, json!({}))), None);
        }
        assert!(
            Claim::of(&service(json!({ "type": "LoadBalancer", "loadBalancerClass": CLASS }), json!({})))
                .is_some()
        );
    }

    #[test]
    fn a_claim_says_what_the_service_says() {
        let spec = json!({
            "type": "LoadBalancer",
            "ipFamilies": ["IPv6", "IPv4"],
            "ipFamilyPolicy": "RequireDualStack",
            "externalTrafficPolicy": "Local",
            "selector": { "app": "web" },
            "ports": [{ "port": 80 }, { "port": 53, "protocol": "UDP" }],
        });
        let annotations = json!({ ADDRESSES: "192.0.2.7, 2001:db8::7", POOL: "outside", SHARING: "one" });
        let claim = Claim::of(&service(spec, annotations)).unwrap().unwrap();
        assert_eq!(claim.families, [Family::V6, Family::V4]);
        assert_eq!(claim.stacks, Stacks::RequireDual);
        assert_eq!(claim.wanted, ["192.0.2.7", "2001:db8::7"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!((claim.pool.as_deref(), claim.sharing.as_deref()), (Some("outside"), Some("one")));
        assert_eq!(claim.ports, BTreeSet::from([("TCP".to_owned(), 80), ("UDP".to_owned(), 53)]));
        assert_eq!(claim.local_to, Some(BTreeMap::from([("app".to_owned(), "web".to_owned())])));
        assert_eq!(claim.holds, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let spec = json!({ "type": "LoadBalancer", "loadBalancerIP": "somewhere" });
        let unclear = Claim::of(&service(spec, json!({}))).unwrap().unwrap_err();
        assert!(
            unclear.to_string().starts_with("spec.loadBalancerIP: \"somewhere\" is no address"),
            "{unclear}"
        );
        let spec = json!({ "type": "LoadBalancer" });
        let twice = Claim::of(&service(spec, json!({ ADDRESSES: "192.0.2.1,192.0.2.2" }))).unwrap();
        assert_eq!(twice, Err(Unclear::Twice { place: ADDRESSES, family: Family::V4 }));
    }
}
