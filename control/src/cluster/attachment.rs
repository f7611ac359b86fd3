//! Further interfaces of pods: which network a definition leads to, and what Multus says of who got which addresses there.
//!
//! Both are the Network Plumbing Working Group's (its multi-network specification, 1.3): the configuration in a
//! `NetworkAttachmentDefinition`, and the annotation that whoever attaches a pod writes to it.
//!
//! Policies take that annotation's word for which addresses their peers have, so it is worth as much as the pods' labels,
//! which the same people may write; what a pod may send from is its own node's matter, and nobody's word. In the pods' own
//! network what kubelet says comes first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod as WrittenPod;
use penstock_api::model::Name;
use serde::Deserialize;

use super::pod::Scoped;
use super::problem::Complaints;
use crate::install::PLUGIN;
use crate::kubernetes::NetworkAttachmentDefinitionSpec;

/// The annotation with a pod's interfaces, one entry each.
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// A CNI configuration, or a list of them.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    network: Option<String>,
    #[serde(default)]
    plugins: Vec<Configuration>,
}

/// The dataplane's network that a definition attaches pods to, `home` where it names none; none if it is not our plugin
/// that does. Of a definition without a configuration nothing is known: that is a file on each node.
pub(super) fn network(
    spec: &NetworkAttachmentDefinitionSpec,
    home: &Name,
    complaints: &mut Complaints,
) -> Option<Name> {
    let text = spec.config.as_deref().filter(|text| !text.trim().is_empty())?;
    let configuration: Configuration = match serde_json::from_str(text) {
        Ok(configuration) => configuration,
        Err(error) => {
            let problem = format!("is no CNI configuration ({error}), so that nobody is attached by it");
            complaints.say("spec.config", problem, "write JSON with a type, or with plugins");
            return None;
        }
    };
    let all = std::iter::once(&configuration).chain(&configuration.plugins);
    let ours = all.into_iter().find(|it| it.kind == PLUGIN)?;
    let Some(name) = ours.network.as_deref().filter(|name| !name.is_empty()) else {
        return Some(home.clone());
    };
    let parsed = name.parse::<Name>();
    if let Err(invalid) = &parsed {
        let problem = format!("the network {name:?} cannot be ({invalid}), so that nobody is attached to it");
        complaints.say("spec.config", problem, "name a Network, or none for the cluster's own");
    }
    parsed.ok()
}

/// One interface of a pod.
#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    ips: Vec<String>,
}

/// The addresses that a pod got by definitions, by definition, as the annotation of whoever attached it has them. One that
/// cannot be read says nothing.
pub(super) fn statuses(written: &WrittenPod, namespace: &str) -> Vec<(Scoped, Vec<IpAddr>)> {
    let Some(text) = written.metadata.annotations.as_ref().and_then(|it| it.get(STATUS)) else {
        return Vec::new();
    };
    let interfaces: Vec<Interface> = serde_json::from_str(text).unwrap_or_default();
    let mut found: BTreeMap<Scoped, Vec<IpAddr>> = BTreeMap::new();
    for interface in interfaces {
        let (namespace, name) = interface.name.split_once('/').unwrap_or((namespace, &interface.name));
        let addresses =
            interface.ips.iter().filter_map(|text| text.split('/').next()?.parse::<IpAddr>().ok());
        found.entry(Scoped::new(namespace, name)).or_default().extend(addresses);
    }
    let mut found: Vec<(Scoped, Vec<IpAddr>)> = found.into_iter().collect();
    for (_, addresses) in &mut found {
        addresses.sort_unstable();
        addresses.dedup();
    }
    found.retain(|(_, addresses)| !addresses.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads_to(config: &str) -> (Option<String>, usize) {
        let mut complaints = Complaints::default();
        let spec = NetworkAttachmentDefinitionSpec { config: Some(config.to_owned()) };
        let home = "default".parse().unwrap();
        let found = network(&spec, &home, &mut complaints);
        (found.map(|it| it.to_string()), complaints.found.len())
    }

    #[test]
    fn a_definition_leads_to_the_network_that_our_plugin_is_told() {
        let named = |text: &str| (Some(text.to_owned()), 0);
        assert_eq!(leads_to(r#"{"type":"penstock-cni","network":"fast"}"#), named("fast"));
        assert_eq!(leads_to(r#"{"type":"penstock-cni"}"#), named("default"));
        let chain = r#"{"plugins":[{"type":"penstock-cni","network":"fast"},{"type":"sbr"}]}"#;
        assert_eq!(leads_to(chain), named("fast"));
        assert_eq!(leads_to(r#"{"type":"macvlan","network":"fast"}"#), (None, 0));
        assert_eq!(leads_to(" "), (None, 0));
        assert_eq!(leads_to("{"), (None, 1));
        assert_eq!(leads_to(r#"{"type":"penstock-cni","network":"no name"}"#), (None, 1));
    }

    #[test]
    fn a_pods_interfaces_are_read_by_definition() {
        let mut pod = WrittenPod::default();
        let said = |pod: &WrittenPod| statuses(pod, "shop");
        assert_eq!(said(&pod), []);
        let text = r#"[{"name":"penstock","interface":"eth0","ips":["10.1.0.1"],"default":true},
            {"name":"telco/fast","interface":"net1","ips":["fd00::7","10.9.0.7"]},
            {"name":"near","interface":"net2","ips":["10.8.0.7/24","odd"]},{"name":"telco/none"}]"#;
        pod.metadata.annotations = Some([(STATUS.to_owned(), text.to_owned())].into());
        let expected = [("shop/near", vec!["10.8.0.7"]), ("shop/penstock", vec!["10.1.0.1"])];
        let found = said(&pod);
        for (name, addresses) in expected.into_iter().chain([("telco/fast", vec!["10.9.0.7", "fd00::7"])]) {
            let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
            assert!(
                found.iter().any(|it| it.0.to_string() == name && it.1 == addresses),
                "{name}: {found:?}"
            );
        }
        assert_eq!(found.len(), 3);
        pod.metadata.annotations = Some([(STATUS.to_owned(), "[{".to_owned())].into());
        assert_eq!(said(&pod), []);
    }
}
