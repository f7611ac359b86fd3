//! Cluster network policies and what came before them (network-policy-api v0.2 and v0.1).
//!
//! "Fail closed" means there: an accepting rule with something unknown in it matches no traffic, a denying or passing
//! one is taken for a rule that denies everything.

use penstock_api::model::{PolicyDirection, PortRange, Protocol, RuleAction};

use super::{Level, Namespaces, Peer, PodSelector, Policy, Port, Rule, port_range};
use crate::cluster::pod::protocol_of;
use crate::cluster::problem::Complaints;
use crate::cluster::selector::Selector;
use crate::kubernetes::{
    AdminNetworkPolicySpec, AdminPort, AdminRule, BaselineAdminNetworkPolicySpec, ClusterNetworkPolicySpec,
    ClusterPeer, ClusterProtocol, ClusterRule, DestinationPorts, PodSelection, Subject, Tier,
};

/// The lowest place in a tier.
const LAST: i32 = 1000;

/// What a cluster network policy says.
pub(in crate::cluster) fn cluster_policy(
    spec: &ClusterNetworkPolicySpec,
    complaints: &mut Complaints,
) -> Policy {
    let level = match spec.tier {
        Tier::Admin => Level::Admin,
        Tier::Baseline => Level::Baseline,
    };
    let mut reader = Reader { complaints, allow: "Accept", passes: true };
    let rules = reader.cluster_rules(&spec.ingress, &spec.egress);
    reader.policy(level, spec.priority, &spec.subject, rules)
}

/// What an admin network policy says.
pub(in crate::cluster) fn admin_policy(spec: &AdminNetworkPolicySpec, complaints: &mut Complaints) -> Policy {
    let mut reader = Reader { complaints, allow: "Allow", passes: true };
    let rules = reader.admin_rules(&spec.ingress, &spec.egress);
    reader.policy(Level::Admin, spec.priority, &spec.subject, rules)
}

/// What the baseline admin network policy says.
pub(in crate::cluster) fn baseline_policy(
    spec: &BaselineAdminNetworkPolicySpec,
    complaints: &mut Complaints,
) -> Policy {
    let mut reader = Reader { complaints, allow: "Allow", passes: false };
    let rules = reader.admin_rules(&spec.ingress, &spec.egress);
    // Behind every cluster network policy of the tier.
    reader.policy(Level::Baseline, LAST, &spec.subject, rules)
}

/// What of a rule is the same in all versions.
struct Outline<'a> {
    direction: PolicyDirection,
    place: usize,
    name: Option<&'a str>,
    action: &'a str,
    peers: &'a [ClusterPeer],
    field: String,
}

/// Reads one policy.
struct Reader<'a> {
    complaints: &'a mut Complaints,
    /// What accepting is called.
    allow: &'static str,
    /// Whether there is a next tier to pass to.
    passes: bool,
}

impl Reader<'_> {
    fn policy(&mut self, level: Level, priority: i32, subject: &Subject, rules: Vec<Rule>) -> Policy {
        if !(0..=LAST).contains(&priority) {
            let problem = format!("{priority} is none and is taken for the nearest");
            self.complaints.say("spec.priority", problem, "choose a number from 0 to 1000");
        }
        Policy {
            level,
            order: 1 + priority.clamp(0, LAST).unsigned_abs(),
            subject: self.subject(subject),
            ingress: rules.iter().any(|rule| rule.direction == PolicyDirection::Ingress),
            egress: rules.iter().any(|rule| rule.direction == PolicyDirection::Egress),
            rules,
        }
    }

    fn subject(&mut self, subject: &Subject) -> Option<PodSelector> {
        match (&subject.namespaces, &subject.pods) {
            (Some(namespaces), None) => {
                let namespaces = self.complaints.selector("spec.subject.namespaces", Some(namespaces))?;
                Some(PodSelector { namespaces: Namespaces::Matching(namespaces), pods: Selector::default() })
            }
            (None, Some(pods)) => self.pods("spec.subject.pods", pods),
            _ => {
                let problem =
                    "names not exactly one of namespaces and pods, so that the policy is for nobody";
                self.complaints.say("spec.subject", problem, "write one of the two");
                None
            }
        }
    }

    fn pods(&mut self, field: &str, pods: &PodSelection) -> Option<PodSelector> {
        let namespaces = format!("{field}.namespaceSelector");
        let namespaces = self.complaints.selector(&namespaces, Some(&pods.namespace_selector))?;
        let pods = self.complaints.selector(&format!("{field}.podSelector"), Some(&pods.pod_selector))?;
        Some(PodSelector { namespaces: Namespaces::Matching(namespaces), pods })
    }

    fn cluster_rules(&mut self, ingress: &[ClusterRule], egress: &[ClusterRule]) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (direction, side, written) in sides(ingress, egress) {
            for (place, rule) in written.iter().enumerate() {
                let peers = if side == "from" { &rule.from } else { &rule.to };
                let name = rule.name.as_deref();
                let outline = Outline::new(direction, place, name, &rule.action, peers);
                let protocols = rule.protocols.as_deref().filter(|protocols| !protocols.is_empty());
                let ports = protocols.map(|protocols| self.protocols(&outline.field, protocols));
                rules.push(self.rule(&outline, side, ports));
            }
        }
        rules
    }

    fn admin_rules(&mut self, ingress: &[AdminRule], egress: &[AdminRule]) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (direction, side, written) in sides(ingress, egress) {
            for (place, rule) in written.iter().enumerate() {
                let peers = if side == "from" { &rule.from } else { &rule.to };
                let name = rule.name.as_deref();
                let outline = Outline::new(direction, place, name, &rule.action, peers);
                let ports = rule.ports.as_deref().filter(|ports| !ports.is_empty());
                let ports = ports.map(|ports| self.ports(&outline.field, ports));
                rules.push(self.rule(&outline, side, ports));
            }
        }
        rules
    }

    /// `ports` is none where every packet matches, and none within where a port is not understood.
    fn rule(&mut self, outline: &Outline<'_>, side: &str, ports: Option<Option<Vec<Port>>>) -> Rule {
        let action = match outline.action {
            action if action == self.allow => RuleAction::Allow,
            "Pass" if self.passes => RuleAction::Pass,
            "Deny" => RuleAction::Deny,
            other => {
                let problem = format!("{other:?} is no action, so that the rule denies");
                let mend = format!("write {}, Deny{}", self.allow, if self.passes { " or Pass" } else { "" });
                self.complaints.say(format!("{}.action", outline.field), problem, &mend);
                RuleAction::Deny
            }
        };
        let field = format!("{}.{side}", outline.field);
        if outline.peers.is_empty() {
            self.complaints.say(&field, "names nobody", "name at least one peer");
        }
        let places = outline.peers.iter().enumerate();
        let mut peers = Some(Vec::new());
        for (i, peer) in places {
            let read = self.peer(&format!("{field}[{i}]"), peer, outline.direction, action);
            peers = peers.zip(read).map(|(mut peers, more): (Vec<Peer>, Vec<Peer>)| {
                peers.extend(more);
                peers
            });
        }
        let understood = peers.is_some() && !matches!(ports, Some(None)) && !outline.peers.is_empty();
        let rule = Rule {
            name: outline.rule_name(),
            direction: outline.direction,
            action,
            peers,
            ports: ports.flatten(),
        };
        match action {
            _ if understood => rule,
            RuleAction::Allow => Rule { peers: Some(Vec::new()), ..rule },
            _ => Rule { action: RuleAction::Deny, peers: None, ports: None, ..rule },
        }
    }

    /// The peers that one written peer stands for; none where it is not understood.
    fn peer(
        &mut self,
        field: &str,
        peer: &ClusterPeer,
        direction: PolicyDirection,
        action: RuleAction,
    ) -> Option<Vec<Peer>> {
        let closes = if action == RuleAction::Allow { "matches nothing" } else { "denies everything" };
        if let Some(unknown) = peer.unknown.keys().next() {
            let problem = format!("{unknown:?} is not known here, so that the rule {closes}");
            self.complaints.say(field, problem, "leave it out, or use a version that knows it");
            return None;
        }
        match (&peer.namespaces, &peer.pods, &peer.nodes, &peer.networks, &peer.domain_names) {
            (Some(namespaces), None, None, None, None) => {
                let namespaces =
                    self.complaints.selector(&format!("{field}.namespaces"), Some(namespaces))?;
                let namespaces = Namespaces::Matching(namespaces);
                Some(vec![Peer::Pods(PodSelector { namespaces, pods: Selector::default() })])
            }
            (None, Some(pods), None, None, None) => {
                Some(vec![Peer::Pods(self.pods(&format!("{field}.pods"), pods)?)])
            }
            (None, None, Some(nodes), None, None) if direction == PolicyDirection::Egress => {
                Some(vec![Peer::Nodes(self.complaints.selector(&format!("{field}.nodes"), Some(nodes))?)])
            }
            (None, None, None, Some(networks), None) if direction == PolicyDirection::Egress => {
                let mut blocks = Vec::new();
                for (i, text) in networks.iter().enumerate() {
                    let prefix = self.complaints.prefix(&format!("{field}.networks[{i}]"), text)?;
                    blocks.push(Peer::Block { prefix, except: Vec::new() });
                }
                Some(blocks)
            }
            (None, None, None, None, Some(_)) if direction == PolicyDirection::Egress => {
                let problem = format!("domain names are not honoured, so that the rule {closes}");
                self.complaints.say(format!("{field}.domainNames"), problem, "name networks in their place");
                None
            }
            _ => {
                let problem =
                    format!("names not exactly one kind of peer for {direction}, so that the rule {closes}");
                self.complaints.say(
                    field,
                    problem,
                    "write one of namespaces and pods, or for egress networks and nodes",
                );
                None
            }
        }
    }

    /// None where one of the protocols is not understood.
    fn protocols(&mut self, field: &str, protocols: &[ClusterProtocol]) -> Option<Vec<Port>> {
        let mut ports = Vec::new();
        for (i, written) in protocols.iter().enumerate() {
            let ClusterProtocol { tcp, udp, sctp, destination_named_port, unknown } = written;
            let of = |protocol, ports: &DestinationPorts| destination(protocol, ports);
            let port = match (tcp, udp, sctp, destination_named_port) {
                _ if !unknown.is_empty() => None,
                (Some(tcp), None, None, None) => of(Protocol::TCP, tcp),
                (None, Some(udp), None, None) => of(Protocol::UDP, udp),
                (None, None, Some(sctp), None) => of(Protocol::SCTP, sctp),
                (None, None, None, Some(name)) => Some(Port::Named { name: name.clone(), protocol: None }),
                _ => None,
            };
            ports.push(self.understood(&format!("{field}.protocols[{i}]"), port)?);
        }
        Some(ports)
    }

    /// None where one of the ports is not understood.
    fn ports(&mut self, field: &str, written: &[AdminPort]) -> Option<Vec<Port>> {
        let mut ports = Vec::new();
        for (i, port) in written.iter().enumerate() {
            let numbers = |protocol: Option<&str>, first, last| {
                let ports = Some(port_range(first, last)?);
                Some(Port::Numbers { protocol: protocol_of(protocol)?, ports })
            };
            let port = match (&port.port_number, &port.port_range, &port.named_port) {
                _ if !port.unknown.is_empty() => None,
                (Some(it), None, None) => numbers(it.protocol.as_deref(), it.port, it.port),
                (None, Some(it), None) => numbers(it.protocol.as_deref(), it.start, it.end),
                (None, None, Some(name)) => Some(Port::Named { name: name.clone(), protocol: None }),
                _ => None,
            };
            ports.push(self.understood(&format!("{field}.ports[{i}]"), port)?);
        }
        Some(ports)
    }

    fn understood(&mut self, field: &str, port: Option<Port>) -> Option<Port> {
        if port.is_none() {
            let problem = "is no port that is understood here, so that the rule fails closed";
            self.complaints.say(
                field,
                problem,
                "write a protocol with a port, a range from a lower to a higher one, or a name",
            );
        }
        port
    }
}

fn destination(protocol: Protocol, written: &DestinationPorts) -> Option<Port> {
    let Some(port) = &written.destination_port else {
        return Some(Port::Numbers { protocol, ports: None });
    };
    let ports: PortRange = match (port.number, &port.range) {
        (Some(number), None) => port_range(number, number)?,
        (None, Some(range)) => port_range(range.start, range.end)?,
        _ => return None,
    };
    Some(Port::Numbers { protocol, ports: Some(ports) })
}

/// The rules of both directions, with the field that names their peers.
fn sides<'a, R>(ingress: &'a [R], egress: &'a [R]) -> [(PolicyDirection, &'static str, &'a [R]); 2] {
    [(PolicyDirection::Ingress, "from", ingress), (PolicyDirection::Egress, "to", egress)]
}

impl<'a> Outline<'a> {
    fn new(
        direction: PolicyDirection,
        place: usize,
        name: Option<&'a str>,
        action: &'a str,
        peers: &'a [ClusterPeer],
    ) -> Outline<'a> {
        Outline { direction, place, name, action, peers, field: format!("spec.{direction}[{place}]") }
    }

    /// Its place, which tells it from the others, and what its author calls it.
    fn rule_name(&self) -> String {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = self.name.unwrap_or_default().chars().take(100).map(allowed).collect();
        let dash = if name.is_empty() { "" } else { "-" };
        format!("{}-{}{dash}{name}", self.direction, self.place + 1)
    }
}
