//! Our own resources, `penstock.dev/v1alpha1`, and the one that asks for further interfaces.

#![allow(clippy::duplicated_attributes, reason = "printer columns may well be of one type")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// How packets of a network travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// VXLAN, RFC 7348.
    #[default]
    Vxlan,
    /// Geneve, RFC 8926.
    Geneve,
    /// As they are; the underlay knows the prefixes.
    None,
}

/// An overlay network of pods. The one named `default` is what pods are in that ask for no other.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "Network",
    category = "penstock",
    doc = "An overlay network of pods. The one named default is what pods are in that ask for no other.",
    derive = "PartialEq",
    printcolumn(name = "VNI", type_ = "integer", json_path = ".spec.vni"),
    printcolumn(name = "Encapsulation", type_ = "string", json_path = ".spec.encapsulation"),
    printcolumn(name = "Prefixes", type_ = "string", json_path = ".spec.prefixes"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// The number that tells networks apart on the wire, 1 to 16777215.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: u32,
    /// The addresses that belong to the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::prefixes")]
    pub prefixes: Vec<String>,
    /// The largest IP packet in bytes; what the underlay leaves room for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65_535))]
    pub mtu: Option<u16>,
    /// How packets travel between nodes: vxlan, geneve or none.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Whether nodes of one subnet reach each other's pods without encapsulation.
    #[serde(default)]
    pub cross_subnet: bool,
    /// Whether pods leave the network under their node's address.
    #[serde(default)]
    pub nat_outgoing: bool,
}

/// What a pool's addresses are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PoolUse {
    /// Pods: nodes take blocks of it.
    #[default]
    Pods,
    /// Services of the type LoadBalancer: one address at a time.
    LoadBalancer,
}

/// Addresses that are given out.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "IPPool",
    plural = "ippools",
    category = "penstock",
    status = "IPPoolStatus",
    doc = "Addresses that are given out: blocks of them to nodes for their pods, or single ones to services.",
    derive = "PartialEq",
    printcolumn(name = "Use", type_ = "string", json_path = ".spec.use"),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "Prefixes", type_ = "string", json_path = ".spec.prefixes"),
    printcolumn(name = "Honoured", type_ = "boolean", json_path = ".status.honoured"),
    printcolumn(name = "Disabled", type_ = "boolean", json_path = ".spec.disabled", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolSpec {
    /// What the addresses are for.
    #[serde(default, rename = "use")]
    pub purpose: PoolUse,
    /// The network of the pods; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub network: Option<String>,
    /// The addresses. Those of pods must lie inside their network's prefixes, if it has any, and be neither in a node's pod
    /// CIDRs nor in another pool of the network.
    #[schemars(schema_with = "schema::some_prefixes")]
    pub prefixes: Vec<String>,
    /// The prefix length of the blocks that nodes take of IPv4 prefixes; 26 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 22, max = 32))]
    pub block_size_v4: Option<u8>,
    /// The prefix length of the blocks that nodes take of IPv6 prefixes; 122 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 118, max = 128))]
    pub block_size_v6: Option<u8>,
    /// The nodes that may take blocks, or announce addresses; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: Option<LabelSelector>,
    /// The namespaces whose pods may have an address; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods there that get an address without asking for it by the annotation `penstock.dev/ip-pool`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// The services that may have an address; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub service_selector: Option<LabelSelector>,
    /// Whether nothing more is given out of it.
    #[serde(default)]
    pub disabled: bool,
}

/// Whether a pool's addresses are given out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolStatus {
    /// Whether they are, as far as the pool itself decides that.
    #[serde(default)]
    pub honoured: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Some addresses of a pool, which a node took for its pods. Agents write it, each over the version that it read.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "IPBlock",
    plural = "ipblocks",
    category = "penstock",
    doc = "Some addresses of a pool, which a node took for its pods. Agents write it, each over the version that it read.",
    derive = "PartialEq",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Prefix", type_ = "string", json_path = ".spec.prefix"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network", priority = "1"),
    printcolumn(name = "Given", type_ = "string", json_path = ".spec.given[*].address", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPBlockSpec {
    /// The pool.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// The network of the pods.
    #[schemars(length(min = 1, max = 253))]
    pub network: String,
    /// The addresses.
    #[schemars(schema_with = "schema::prefix")]
    pub prefix: String,
    /// The node that takes from it first, and that the addresses are routed to.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// The addresses that are given.
    // An API server takes a check of each only if it knows how many there may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub given: Vec<GivenAddress>,
    /// The address that was given last: those behind it come next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    pub last: Option<String>,
}

/// An address of a block that is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GivenAddress {
    /// The address.
    #[schemars(schema_with = "schema::address")]
    pub address: String,
    /// The node of the pod, which need not be the block's.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// What of the node has it: network, container and interface.
    #[schemars(length(min = 1, max = 1024))]
    pub holder: String,
}

/// Addresses under which chosen pods leave the cluster.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "EgressIP",
    plural = "egressips",
    category = "penstock",
    status = "EgressIPStatus",
    doc = "Addresses under which chosen pods leave the cluster, by the nodes that the addresses are routed to.",
    derive = "PartialEq",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Honoured", type_ = "boolean", json_path = ".status.honoured"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressIPSpec {
    /// The addresses, at most one of each family.
    #[schemars(schema_with = "schema::addresses")]
    pub addresses: Vec<String>,
    /// The namespaces of the pods; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods there; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// The nodes that the addresses are routed to; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: Option<LabelSelector>,
    /// The destinations that are reached under the pods' own addresses, besides what is in their network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::prefixes")]
    pub exclusions: Vec<String>,
}

/// Whether an egress address is used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressIPStatus {
    /// Whether all of the pods leave under the addresses.
    #[serde(default)]
    pub honoured: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What differs from node to node. Of several that select a node, the one whose name sorts first counts.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "NodeConfig",
    category = "penstock",
    doc = "What differs from node to node. Of several that select a node, the one whose name sorts first counts.",
    derive = "PartialEq",
    printcolumn(name = "Uplink", type_ = "string", json_path = ".spec.uplink"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfigSpec {
    /// The nodes; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: Option<LabelSelector>,
    /// The uplink, by its name in the node's file, by which pods leave the cluster; `uplink` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub uplink: Option<String>,
    /// The addresses at which other nodes send tunnelled packets to this one, at most one of each family; the node's
    /// internal addresses when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::addresses")]
    pub tunnel_addresses: Vec<String>,
    /// The source ports of pods that leave under the node's address, as in 49152-65535, which it is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,5}-[0-9]{1,5}$"))]
    pub nat_ports: Option<String>,
    /// Whether remote backends of services answer clients outside themselves, past the node that was asked.
    #[serde(default)]
    pub direct_server_return: bool,
}

/// A further interface that pods may ask for.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAttachmentDefinitionSpec {
    /// The configuration of the plugins that make the interface, in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

/// The definitions of our own resources, as an API server takes them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![Network::crd(), IPPool::crd(), IPBlock::crd(), EgressIP::crd(), NodeConfig::crd()]
}

/// The same as YAML, each with the name of its file.
///
/// # Errors
/// What the writer of YAML cannot write.
pub fn definitions_yaml() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let all = definitions().into_iter();
    all.map(|definition| {
        Ok((format!("{}.yaml", definition.spec.names.plural), serde_saphyr::to_string(&definition)?))
    })
    .collect()
}
