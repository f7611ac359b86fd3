//! What Kubernetes tells: the objects of its API and of ours that decide what a dataplane does.

mod object;
mod policies;
mod resources;
mod schema;

pub use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::api::networking::v1::NetworkPolicy;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub use object::{Key, Kind, Object};
pub use policies::{
    AdminNetworkPolicy, AdminNetworkPolicySpec, AdminPeer, AdminPort, AdminRule, BaselineAdminNetworkPolicy,
    BaselineAdminNetworkPolicySpec, ClusterNetworkPolicy, ClusterNetworkPolicySpec, ClusterPeer,
    ClusterProtocol, ClusterRule, DestinationPort, DestinationPorts, PodSelection, PortNumber, PortSpan,
    ProtocolSpan, Subject, Tier,
};
/// An overlay network of pods, as `kubectl get networks.penstock.dev` shows it.
pub use resources::Network;
pub use resources::{
    EgressIP, EgressIPSpec, EgressIPStatus, Encapsulation, GivenAddress, IPBlock, IPBlockSpec, IPPool,
    IPPoolSpec, IPPoolStatus, NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec, NetworkSpec,
    NodeConfig, NodeConfigSpec, PoolUse, definitions, definitions_yaml,
};
