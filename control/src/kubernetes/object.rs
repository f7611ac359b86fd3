//! An object of any kind that is watched, and its key.

use std::fmt;

use kube::Resource;

use super::{
    AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, EgressIP, EndpointSlice, IPBlock,
    IPPool, Namespace, Network, NetworkAttachmentDefinition, NetworkPolicy, Node, NodeConfig, Pod, Service,
};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident),+ $(,)?) => {
        /// What an object is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind,)+];

            /// The word for it in a manifest.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Kind::$kind => stringify!($kind),)+
                }
            }
        }

        /// One object as its author or Kubernetes wrote it.
        #[derive(Debug, Clone)]
        pub enum Object {
            $($(#[$doc])* $kind(Box<$kind>),)+
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Object {
                Object::$kind(Box::new(object))
            }
        })+

        impl Object {
            /// Its key.
            #[must_use]
            pub fn key(&self) -> Key {
                match self {
                    $(Object::$kind(object) => {
                        let meta = object.meta();
                        Key {
                            kind: Kind::$kind,
                            namespace: meta.namespace.clone().unwrap_or_default(),
                            name: meta.name.clone().unwrap_or_default(),
                        }
                    })+
                }
            }
        }
    };
}

kinds! {
    /// A machine of the cluster.
    Node,
    /// A room for names, whose labels policies select.
    Namespace,
    /// Containers with addresses of their own.
    Pod,
    /// Who may speak to the pods of a namespace, `networking.k8s.io/v1`.
    NetworkPolicy,
    /// Who may speak to whom in the whole cluster, `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
    /// What came before cluster network policies of the tier Admin, `policy.networking.k8s.io/v1alpha1`.
    AdminNetworkPolicy,
    /// What came before cluster network policies of the tier Baseline, `policy.networking.k8s.io/v1alpha1`.
    BaselineAdminNetworkPolicy,
    /// Addresses and ports behind which pods stand.
    Service,
    /// Some of the places where a service is served.
    EndpointSlice,
    /// A further interface that pods may ask for, `k8s.cni.cncf.io/v1`.
    NetworkAttachmentDefinition,
    /// An overlay network, `penstock.dev/v1alpha1`.
    Network,
    /// Addresses that are given out, `penstock.dev/v1alpha1`.
    IPPool,
    /// Addresses of a pool that a node took, `penstock.dev/v1alpha1`.
    IPBlock,
    /// An address under which chosen pods leave, `penstock.dev/v1alpha1`.
    EgressIP,
    /// What differs from node to node, `penstock.dev/v1alpha1`.
    NodeConfig,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which object it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Its namespace; empty for what is in none.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl Key {
    /// The key of an object; its namespace is empty if it is in none.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// `Pod shop/web-0`, or `Node a`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
