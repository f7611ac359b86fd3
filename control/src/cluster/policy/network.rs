//! Network policies, `networking.k8s.io/v1`, as the Kubernetes API reference describes them.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use penstock_api::model::{PolicyDirection, PortRange, RuleAction};

use super::{Level, Namespaces, Peer, PodSelector, Policy, Port, Rule, port_number, port_range};
use crate::cluster::pod::protocol_of;
use crate::cluster::problem::Complaints;

/// What `written`, a policy of `namespace`, says.
pub(in crate::cluster) fn network_policy(
    namespace: &str,
    written: &NetworkPolicy,
    complaints: &mut Complaints,
) -> Policy {
    let nothing = NetworkPolicySpec::default();
    let spec = written.spec.as_ref().unwrap_or(&nothing);
    let (ingress, egress) = directions(spec, complaints);
    let subject = complaints.selector("spec.podSelector", spec.pod_selector.as_ref());
    let mut rules = Vec::new();
    if ingress {
        for (i, rule) in spec.ingress.iter().flatten().enumerate() {
            let mut reader = Reader { namespace, field: format!("spec.ingress[{i}]"), complaints };
            rules.push(reader.rule(
                PolicyDirection::Ingress,
                i,
                "from",
                rule.from.as_ref(),
                rule.ports.as_ref(),
            ));
        }
    }
    if egress {
        for (i, rule) in spec.egress.iter().flatten().enumerate() {
            let mut reader = Reader { namespace, field: format!("spec.egress[{i}]"), complaints };
            rules.push(reader.rule(PolicyDirection::Egress, i, "to", rule.to.as_ref(), rule.ports.as_ref()));
        }
    }
    Policy {
        level: Level::Network,
        order: 0,
        subject: subject.map(|pods| PodSelector { namespaces: Namespaces::One(namespace.to_owned()), pods }),
        ingress,
        egress,
        rules,
    }
}

/// Ingress always unless the types say otherwise; egress if there is such a section.
fn directions(spec: &NetworkPolicySpec, complaints: &mut Complaints) -> (bool, bool) {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    }
    for (i, other) in types.iter().enumerate().filter(|(_, it)| !matches!(it.as_str(), "Ingress" | "Egress"))
    {
        let field = format!("spec.policyTypes[{i}]");
        complaints.say(field, format!("{other:?} is no type and says nothing"), "write Ingress or Egress");
    }
    (types.iter().any(|it| it == "Ingress"), types.iter().any(|it| it == "Egress"))
}

/// Reads one rule.
struct Reader<'a> {
    namespace: &'a str,
    field: String,
    complaints: &'a mut Complaints,
}

impl Reader<'_> {
    fn rule(
        &mut self,
        direction: PolicyDirection,
        place: usize,
        side: &str,
        peers: Option<&Vec<NetworkPolicyPeer>>,
        ports: Option<&Vec<NetworkPolicyPort>>,
    ) -> Rule {
        let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| {
            let places = peers.iter().enumerate();
            places.filter_map(|(i, peer)| self.peer(&format!("{}.{side}[{i}]", self.field), peer)).collect()
        });
        let ports = ports.filter(|ports| !ports.is_empty()).map(|ports| {
            let places = ports.iter().enumerate();
            places.filter_map(|(i, port)| self.port(&format!("{}.ports[{i}]", self.field), port)).collect()
        });
        Rule {
            name: format!("{direction}-{}", place + 1),
            direction,
            action: RuleAction::Allow,
            peers,
            ports,
        }
    }

    fn peer(&mut self, field: &str, peer: &NetworkPolicyPeer) -> Option<Peer> {
        let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            Some(_) if selects => {
                let problem = "names both addresses and pods, so that it matches nothing";
                self.complaints.say(field, problem, "make two peers of it");
                None
            }
            Some(block) => self.block(field, block),
            None if selects => {
                let pods =
                    self.complaints.selector(&format!("{field}.podSelector"), peer.pod_selector.as_ref())?;
                let namespaces = match &peer.namespace_selector {
                    None => Namespaces::One(self.namespace.to_owned()),
                    written => {
                        let field = format!("{field}.namespaceSelector");
                        Namespaces::Matching(self.complaints.selector(&field, written.as_ref())?)
                    }
                };
                Some(Peer::Pods(PodSelector { namespaces, pods }))
            }
            None => {
                let problem = "names no peer that is known here, so that it matches nothing";
                self.complaints.say(field, problem, "write a podSelector, a namespaceSelector or an ipBlock");
                None
            }
        }
    }

    fn block(&mut self, field: &str, block: &IPBlock) -> Option<Peer> {
        let prefix = self.complaints.prefix(&format!("{field}.ipBlock.cidr"), &block.cidr)?;
        let mut except = Vec::new();
        for (i, text) in block.except.iter().flatten().enumerate() {
            let field = format!("{field}.ipBlock.except[{i}]");
            // A hole that cannot be read may be anywhere.
            let hole = self.complaints.prefix(&field, text)?;
            if hole.net().contains(&prefix.net()) {
                let problem = "covers the whole block, so that nothing of it matches";
                self.complaints.say(field, problem, "write a part of the block");
                return None;
            }
            if prefix.net().contains(&hole.net()) {
                except.push(hole);
            } else {
                let problem = format!("{hole} does not lie in {prefix} and says nothing");
                self.complaints.say(field, problem, "write a part of the block, or take it out");
            }
        }
        except.sort_unstable();
        except.dedup();
        Some(Peer::Block { prefix, except })
    }

    fn port(&mut self, field: &str, port: &NetworkPolicyPort) -> Option<Port> {
        let Some(protocol) = protocol_of(port.protocol.as_deref()) else {
            let problem = format!("{:?} is no protocol with ports, so that nothing matches", port.protocol);
            self.complaints.say(format!("{field}.protocol"), problem, "write TCP, UDP or SCTP");
            return None;
        };
        let range = |first, last| port_range(first, last).map(Some);
        let ports: Option<Option<PortRange>> = match (&port.port, port.end_port) {
            (None, None) => Some(None),
            (Some(IntOrString::Int(number)), last) => range(*number, last.unwrap_or(*number)),
            (Some(IntOrString::String(text)), last) => match text.parse::<i32>().ok().and_then(port_number) {
                Some(number) => range(number.into(), last.unwrap_or(number.into())),
                None if last.is_none() && !text.is_empty() => {
                    return Some(Port::Named { name: text.clone(), protocol: Some(protocol) });
                }
                None => None,
            },
            (None, Some(_)) => None,
        };
        if ports.is_none() {
            let problem = "is no port and no range of ports, so that nothing matches";
            let mend =
                "write a port from 1 to 65535, with an endPort that is not less, or a name without endPort";
            self.complaints.say(field, problem, mend);
        }
        ports.map(|ports| Port::Numbers { protocol, ports })
    }
}
