//! The policies of the network policy working group: `policy.networking.k8s.io`, v1alpha2 and what came before it.
//!
//! What a peer may hold grows from version to version. Whoever meets a peer of a kind that it does not know must fail
//! closed, so unknown fields of peers are kept to be seen.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which of the two tiers around network policies a policy stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Before network policies.
    Admin,
    /// Behind network policies, for what none of them selects.
    Baseline,
}

/// Who may speak to whom in the whole cluster.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "policy.networking.k8s.io",
    version = "v1alpha2",
    kind = "ClusterNetworkPolicy",
    plural = "clusternetworkpolicies",
    shortname = "cnp",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkPolicySpec {
    /// Its tier.
    pub tier: Tier,
    /// Its place there: 0 to 1000, lower comes first.
    pub priority: i32,
    /// Whom it is for.
    pub subject: Subject,
    /// Rules for what comes in, first match first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterRule>,
    /// Rules for what goes out, first match first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterRule>,
}

/// The pods that a policy is for: one of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// All pods of these namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Chosen pods of chosen namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelection>,
}

/// Chosen pods of chosen namespaces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSelection {
    /// The namespaces; all if it selects nothing in particular.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
    /// The pods there; all if it selects nothing in particular.
    #[serde(default)]
    pub pod_selector: LabelSelector,
}

/// One rule of a cluster network policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRule {
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// The other ends, for what comes in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<ClusterPeer>,
    /// The other ends, for what goes out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ClusterPeer>,
    /// Protocols and ports; everything when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// The other end: exactly one field is set, or the version of the API is one that is not known here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPeer {
    /// All pods of these namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Chosen pods of chosen namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelection>,
    /// Nodes by their labels; only for what goes out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Blocks of addresses, inside and outside of the cluster; only for what goes out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Names of DNS; only for what goes out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
    /// What else stands there.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A protocol, and which of it: exactly one field is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<DestinationPorts>,
    /// UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<DestinationPorts>,
    /// SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sctp: Option<DestinationPorts>,
    /// A port that the pod at the receiving end has by this name, of whatever protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
    /// What else stands there.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// Ports of one protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationPorts {
    /// Where it goes to; every port when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<DestinationPort>,
}

/// A port or a range of them: exactly one field is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationPort {
    /// One port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// Several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<PortSpan>,
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortSpan {
    /// The first.
    pub start: i32,
    /// The last.
    pub end: i32,
}

/// What came before cluster network policies of the tier Admin.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "policy.networking.k8s.io",
    version = "v1alpha1",
    kind = "AdminNetworkPolicy",
    plural = "adminnetworkpolicies",
    shortname = "anp",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct AdminNetworkPolicySpec {
    /// Its place in the tier: 0 to 1000, lower comes first.
    pub priority: i32,
    /// Whom it is for.
    pub subject: Subject,
    /// Rules for what comes in, first match first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminRule>,
    /// Rules for what goes out, first match first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminRule>,
}

/// What came before cluster network policies of the tier Baseline; there is one, named `default`.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "policy.networking.k8s.io",
    version = "v1alpha1",
    kind = "BaselineAdminNetworkPolicy",
    plural = "baselineadminnetworkpolicies",
    shortname = "banp",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct BaselineAdminNetworkPolicySpec {
    /// Whom it is for.
    pub subject: Subject,
    /// Rules for what comes in, first match first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminRule>,
    /// Rules for what goes out, first match first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminRule>,
}

/// One rule of an admin network policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminRule {
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Allow`, `Deny` or, not in the baseline, `Pass`.
    pub action: String,
    /// The other ends, for what comes in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<AdminPeer>,
    /// The other ends, for what goes out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<AdminPeer>,
    /// Ports; everything when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<AdminPort>>,
}

/// The other end. It did not change from one version to the next.
pub type AdminPeer = ClusterPeer;

/// A port, several, or a name: exactly one field is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminPort {
    /// One port of a protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_number: Option<PortNumber>,
    /// Several ports of a protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_range: Option<ProtocolSpan>,
    /// A port that the pod at the receiving end has by this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_port: Option<String>,
    /// What else stands there.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// A protocol with a port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortNumber {
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port.
    pub port: i32,
}

/// A protocol with ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolSpan {
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The first port.
    pub start: i32,
    /// The last.
    pub end: i32,
}
