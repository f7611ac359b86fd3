//! One policy in the words of the dataplane: selectors become identities, names of ports numbers.

use std::collections::BTreeSet;

use penstock_api::model::{
    Name, Policy as Said, PolicyDirection, PortRange, Rule as SaidRule, RuleAction, RulePeer, RulePort,
    Subjects,
};

use super::names;
use super::sets::{Having, People, PortName, SetKey, Sets, User};
use crate::cluster::{Level, Namespaces, Peer, PodPort, PodSelector, Policy, Port, Rule, Selector};

/// The tiers, in their order.
pub(super) const TIERS: [(Level, &str, u32); 3] = [
    (Level::Admin, "Admin", 100),
    (Level::Network, "NetworkPolicy", 200),
    (Level::Baseline, "Baseline", 300),
];

/// The name of a level's tier.
pub(super) fn tier(level: Level) -> Name {
    let name = TIERS.iter().find(|(other, ..)| *other == level).map_or("Baseline", |(_, name, _)| name);
    names::name(name)
}

/// Puts one policy into words, noting which sets and nodes it names.
pub(super) struct Writer<'a> {
    pub(super) user: User,
    pub(super) network: &'a Name,
    pub(super) people: &'a People,
    pub(super) sets: &'a mut Sets,
    /// The sets that it uses.
    pub(super) used: BTreeSet<usize>,
    /// Those of them whose identities it names, and where.
    pub(super) named: BTreeSet<(usize, Option<Name>)>,
    /// The nodes that it names, and where.
    pub(super) nodes: BTreeSet<NodesOn>,
    /// The further network that is written about, if it is not the pods' own.
    pub(super) at: Option<Name>,
}

/// Chosen nodes as peers in the pods' own network or in a further one.
pub(super) type NodesOn = (Option<Name>, Selector);

impl Writer<'_> {
    fn acquire(&mut self, key: SetKey) -> usize {
        let id = self.sets.acquire(key, &self.user, self.people);
        self.used.insert(id);
        id
    }

    fn names_of(&mut self, key: SetKey) -> Vec<Name> {
        let id = self.acquire(key);
        let names = self.sets.get(id).map(|set| set.names(self.at.as_ref())).unwrap_or_default();
        if !names.is_empty() {
            self.named.insert((id, self.at.clone()));
        }
        names
    }

    /// The set of a policy's own pods.
    pub(super) fn subject_key(&self, pods: &PodSelector) -> SetKey {
        SetKey { pods: pods.clone(), having: None, local: self.people.node.is_some() }
    }

    /// What a policy says: in the pods' own network, and the same in every further one in which any of its own pods has an
    /// address. Peers are there who have addresses there; one that has none matches nothing.
    pub(super) fn write(&mut self, policy: &Policy) -> Vec<Said> {
        let mut said = self.write_here(policy);
        let Some(subject) = policy.subject.as_ref().filter(|_| !said.is_empty()) else { return said };
        let key = self.subject_key(subject);
        let own = self.acquire(key);
        for network in self.sets.networks_of(own) {
            self.at = Some(network);
            said.extend(self.write_here(policy));
        }
        self.at = None;
        said
    }

    /// What a policy says in one network. One whose rules for what comes in name ports says it once for each meaning that
    /// the names have among its pods.
    fn write_here(&mut self, policy: &Policy) -> Vec<Said> {
        let Some(subject) = &policy.subject else { return Vec::new() };
        if !policy.ingress && !policy.egress {
            return Vec::new();
        }
        let key = self.subject_key(subject);
        let own = self.acquire(key.clone());
        if self.sets.get(own).is_none_or(|set| set.is_empty()) {
            return Vec::new();
        }
        let ingress = policy.rules.iter().filter(|rule| rule.direction == PolicyDirection::Ingress);
        let names: BTreeSet<PortName> =
            ingress.flat_map(Rule::port_names).map(|(name, protocol)| (name.to_owned(), protocol)).collect();
        if names.is_empty() {
            let subjects = self.names_of(key);
            return vec![self.say(policy, None, subjects, &[])];
        }
        let meaning = |pod: &crate::cluster::Pod| -> Vec<(PortName, Vec<PodPort>)> {
            let ports = |(name, protocol): &PortName| pod.ports_named(name, *protocol).cloned().collect();
            names.iter().map(|name| (name.clone(), ports(name))).collect()
        };
        let meanings: BTreeSet<_> = self.people.members(&key).into_iter().map(|pod| meaning(pod)).collect();
        let mut said = Vec::new();
        for meaning in meanings {
            let class = format!("{meaning:?}");
            let key = SetKey { having: Some(Having::Exactly(meaning.clone())), ..key.clone() };
            let subjects = self.names_of(key);
            // Those who mean it so may all have no address in a further network.
            if !subjects.is_empty() {
                said.push(self.say(policy, Some(&class), subjects, &meaning));
            }
        }
        said
    }

    fn say(
        &mut self,
        policy: &Policy,
        class: Option<&str>,
        subjects: Vec<Name>,
        meaning: &[(PortName, Vec<PodPort>)],
    ) -> Said {
        let mut rules = Vec::new();
        for rule in &policy.rules {
            match rule.direction {
                PolicyDirection::Ingress => self.ingress(rule, meaning, &mut rules),
                PolicyDirection::Egress => self.egress(rule, &mut rules),
            }
        }
        let mut directions = Vec::new();
        directions.extend(policy.ingress.then_some(PolicyDirection::Ingress));
        directions.extend(policy.egress.then_some(PolicyDirection::Egress));
        Said {
            name: names::policy(&self.user.0, class, self.at.as_ref()),
            network: self.at.as_ref().unwrap_or(self.network).clone(),
            tier: tier(policy.level),
            order: policy.order,
            subjects: Subjects::Identities(subjects),
            directions,
            staged: false,
            rules,
        }
    }

    /// The receiving pods are the policy's own, and what they call their ports is known.
    fn ingress(&mut self, rule: &Rule, meaning: &[(PortName, Vec<PodPort>)], rules: &mut Vec<SaidRule>) {
        let Some(peers) = self.peers(rule) else { return };
        let Some(mut ports) = numbers(rule) else {
            rules.push(said(rule, rule.name.clone(), peers, Vec::new()));
            return;
        };
        for (name, protocol) in rule.port_names() {
            let meant = meaning.iter().filter(|((other, of), _)| other == name && *of == protocol);
            ports.extend(meant.flat_map(|(_, ports)| ports).map(port_of));
        }
        ports.dedup();
        if !ports.is_empty() {
            rules.push(said(rule, rule.name.clone(), peers, ports));
        }
    }

    /// The receiving pods are the peers, and each may call another port so.
    fn egress(&mut self, rule: &Rule, rules: &mut Vec<SaidRule>) {
        let Some(peers) = self.peers(rule) else { return };
        let ports = numbers(rule);
        if ports.as_ref().is_none_or(|ports| !ports.is_empty()) {
            rules.push(said(rule, rule.name.clone(), peers, ports.unwrap_or_default()));
        }
        let everybody =
            PodSelector { namespaces: Namespaces::Matching(Selector::default()), pods: Selector::default() };
        let receivers: Vec<&PodSelector> = match &rule.peers {
            None => vec![&everybody],
            Some(peers) => peers
                .iter()
                .filter_map(|peer| if let Peer::Pods(pods) = peer { Some(pods) } else { None })
                .collect(),
        };
        for (name, protocol) in rule.port_names() {
            let mut meanings: BTreeSet<PodPort> = BTreeSet::new();
            for pods in &receivers {
                let all = self.acquire(SetKey { pods: (*pods).clone(), having: None, local: false });
                let has =
                    |port: &&PodPort| port.name == name && protocol.is_none_or(|it| it == port.protocol);
                meanings.extend(
                    self.sets.get(all).into_iter().flat_map(|set| set.ports.keys()).filter(has).cloned(),
                );
            }
            for port in meanings {
                let mut peers = Vec::new();
                for pods in &receivers {
                    let having = Some(Having::Port(port.clone()));
                    let names = self.names_of(SetKey { pods: (*pods).clone(), having, local: false });
                    peers.extend(names.into_iter().map(RulePeer::Identity));
                }
                if peers.is_empty() {
                    // Nobody who calls it so is here, and no peers would be all.
                    continue;
                }
                let called = format!("{}-{}-{}-{}", rule.name, port.name, port.protocol, port.number);
                rules.push(said(rule, called, peers, vec![port_of(&port)]));
            }
        }
    }

    /// The peers in the dataplane's words, where none stands for any; nothing if nobody is meant.
    fn peers(&mut self, rule: &Rule) -> Option<Vec<RulePeer>> {
        let Some(peers) = &rule.peers else { return Some(Vec::new()) };
        let mut said = Vec::new();
        for peer in peers {
            match peer {
                Peer::Pods(pods) => {
                    let names = self.names_of(SetKey { pods: pods.clone(), having: None, local: false });
                    said.extend(names.into_iter().map(RulePeer::Identity));
                }
                Peer::Nodes(selector) => {
                    self.nodes.insert((self.at.clone(), selector.clone()));
                    said.push(RulePeer::Identity(names::nodes(selector, self.at.as_ref())));
                }
                Peer::Block { prefix, except } => {
                    said.push(RulePeer::Prefix { prefix: *prefix, except: except.clone() });
                }
            }
        }
        (!said.is_empty()).then_some(said)
    }
}

/// The ports that a rule gives by number; nothing where every packet matches.
fn numbers(rule: &Rule) -> Option<Vec<RulePort>> {
    let ports = rule.ports.as_ref()?.iter().filter_map(|port| match port {
        Port::Numbers { protocol, ports } => {
            Some(RulePort { protocol: *protocol, port: *ports, icmp_type: None, icmp_code: None })
        }
        Port::Named { .. } => None,
    });
    Some(ports.collect())
}

fn port_of(port: &PodPort) -> RulePort {
    // A rule without a port would mean every port.
    let range = PortRange::new(port.number, port.number).expect("a pod's port is not zero (`cluster::pod`)");
    RulePort { protocol: port.protocol, port: Some(range), icmp_type: None, icmp_code: None }
}

fn said(rule: &Rule, name: String, peers: Vec<RulePeer>, ports: Vec<RulePort>) -> SaidRule {
    SaidRule { name: names::name(&name), direction: rule.direction, action: rule.action, peers, ports }
}

/// Rules that let nothing through.
pub(super) fn deny_everything() -> Vec<SaidRule> {
    let rule = |direction: PolicyDirection| SaidRule {
        name: names::name(&direction.to_string()),
        direction,
        action: RuleAction::Deny,
        peers: Vec::new(),
        ports: Vec::new(),
    };
    vec![rule(PolicyDirection::Ingress), rule(PolicyDirection::Egress)]
}
