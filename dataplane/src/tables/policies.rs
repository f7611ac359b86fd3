//! Policies of the configuration, compiled: what an endpoint may send and receive.
//!
//! ```text
//!  Desired -> penstock_policy::Rules -> Program -> per endpoint: Subject          shared with the snapshot before
//!                                            \---> per network: Lpm of PeerIds    where nothing changed
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_api::{Fault, model};
use penstock_policy as policy;
use penstock_policy::{CompileError, PeerId, Peers, Program, Subject};

use super::desired::Desired;
use super::lpm::{LeftAligned, Lpm, key_of};

/// Every policy of the node, compiled.
#[derive(Debug, Default)]
pub struct Policies {
    program: Program,
    epoch: u32,
    peers: HashMap<String, Arc<PeerTable>>,
}

/// Who an address of a network is, to its policies.
#[derive(Debug)]
pub struct PeerTable {
    peers: Arc<Peers>,
    v4: Lpm,
    v6: Lpm,
}

impl PeerTable {
    fn new(peers: Arc<Peers>) -> PeerTable {
        let of_family = |ipv4: bool| {
            let rows = peers.prefixes().filter(move |(prefix, _)| prefix.addr().is_ipv4() == ipv4);
            Lpm::build(rows.map(|(prefix, peer)| (LeftAligned::from(prefix), peer.get())))
        };
        let (v4, v6) = (of_family(true), of_family(false));
        PeerTable { peers, v4, v6 }
    }

    /// The peer that an address is.
    #[inline]
    #[must_use]
    pub fn look_up(&self, address: IpAddr) -> PeerId {
        let table = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        match table.look_up(key_of(address)) {
            Lpm::NONE => PeerId::OUTSIDE,
            number => PeerId::new(number),
        }
    }

    /// The identities that an address is in.
    #[must_use]
    pub fn identities(&self, address: IpAddr) -> Vec<&str> {
        self.peers.identities(self.look_up(address))
    }
}

impl Policies {
    /// Compiles the policies; what did not change since `before` is taken over.
    ///
    /// # Errors
    /// What is wrong with them, e.g. that the tables of an endpoint would not fit; nothing is compiled then.
    pub fn compile(desired: &Desired, before: Option<&Policies>) -> Result<Policies, Vec<Fault>> {
        let old = before.map(|before| &before.program);
        let rules = Arc::new(rules_of(desired, old.map(|old| &**old.rules())));
        let program = policy::compile(&rules, old).map_err(faults)?;
        let names = desired.networks().map(|network| network.name.as_str());
        let peers = names.filter_map(|name| {
            let peers = program.peers(name)?;
            let known = before.and_then(|before| before.peers.get(name));
            let kept = known.filter(|known| Arc::ptr_eq(&known.peers, peers)).cloned();
            Some((name.to_owned(), kept.unwrap_or_else(|| Arc::new(PeerTable::new(Arc::clone(peers))))))
        });
        let peers: HashMap<_, _> = peers.collect();
        let epoch = match before {
            Some(before) if before.is_same(&program, &peers) => before.epoch,
            // Zero is never an epoch: it stands for decisions of another life of the daemon.
            Some(before) => before.epoch.wrapping_add(1).max(1),
            None => 1,
        };
        Ok(Policies { program, epoch, peers })
    }

    /// Whether every endpoint is decided about as before.
    fn is_same(&self, program: &Program, peers: &HashMap<String, Arc<PeerTable>>) -> bool {
        let same_table = |(name, table): (&String, &Arc<PeerTable>)| {
            self.peers.get(name).is_some_and(|old| Arc::ptr_eq(old, table))
        };
        let endpoints = &program.rules().endpoints;
        let same_subject = |endpoint: &policy::Endpoint| {
            let [old, new] = [&self.program, program].map(|program| program.endpoint(&endpoint.name));
            old.map(|subject| subject.revision()) == new.map(|subject| subject.revision())
        };
        self.peers.len() == peers.len() && peers.iter().all(same_table) && endpoints.iter().all(same_subject)
    }

    /// Counts the changes of what policies decide; never zero. A decision of another epoch is made again.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The program of an endpoint.
    #[must_use]
    pub fn subject(&self, endpoint: &str) -> Option<&Arc<Subject>> {
        self.program.endpoint(endpoint)
    }

    /// The peers of a network.
    #[must_use]
    pub fn peers(&self, network: &str) -> Option<&Arc<PeerTable>> {
        self.peers.get(network)
    }
}

/// The configuration in the words of the policy engine; objects that `before` has as well are shared with it.
fn rules_of(desired: &Desired, before: Option<&policy::Rules>) -> policy::Rules {
    let mut members: HashMap<&str, Vec<IpAddr>> = HashMap::new();
    for endpoint in desired.endpoints() {
        if let Some(identity) = &endpoint.identity {
            members.entry(identity.as_str()).or_default().extend(&endpoint.addresses);
        }
    }
    let known: HashMap<_, _> =
        before.iter().flat_map(|rules| &rules.identities).map(|it| (it.name.as_str(), it)).collect();
    let identities = desired.identities().map(|identity| {
        let listed = identity.prefixes.iter().map(|prefix| prefix.net());
        let members = members.get(identity.name.as_str()).into_iter().flatten();
        let new = policy::Identity {
            name: identity.name.to_string(),
            network: identity.network.to_string(),
            prefixes: listed.chain(members.map(|&address| address.into())).collect(),
        };
        shared(known.get(identity.name.as_str()).copied(), new)
    });
    let identities = identities.collect();
    let known: HashMap<_, _> =
        before.iter().flat_map(|rules| &rules.policies).map(|it| (it.name.as_str(), it)).collect();
    let policies = desired.policies().map(|it| shared(known.get(it.name.as_str()).copied(), policy_of(it)));
    policy::Rules {
        identities,
        policies: policies.collect(),
        tiers: desired.tiers().map(tier_of).collect(),
        endpoints: desired.endpoints().map(endpoint_of).collect(),
    }
}

/// The one that is known already, if it is the same.
fn shared<T: PartialEq>(known: Option<&Arc<T>>, new: T) -> Arc<T> {
    known.filter(|known| ***known == new).cloned().unwrap_or_else(|| Arc::new(new))
}

fn endpoint_of(endpoint: &model::Endpoint) -> policy::Endpoint {
    policy::Endpoint {
        name: endpoint.name.to_string(),
        network: endpoint.network.to_string(),
        addresses: endpoint.addresses.clone(),
    }
}

fn tier_of(tier: &model::Tier) -> policy::Tier {
    let default = match tier.default {
        model::TierDefault::Pass => policy::TierDefault::Pass,
        model::TierDefault::Deny => policy::TierDefault::Deny,
    };
    policy::Tier { name: tier.name.to_string(), order: tier.order, default }
}

fn policy_of(object: &model::Policy) -> policy::Policy {
    use model::PolicyDirection::{Egress, Ingress};
    policy::Policy {
        name: object.name.to_string(),
        network: object.network.to_string(),
        tier: object.tier.to_string(),
        order: object.order,
        subjects: match &object.subjects {
            model::Subjects::All => policy::Subjects::All,
            model::Subjects::Identities(names) => {
                policy::Subjects::Identities(names.iter().map(ToString::to_string).collect())
            }
        },
        directions: policy::Directions {
            ingress: object.directions.contains(&Ingress),
            egress: object.directions.contains(&Egress),
        },
        rules: object.rules.iter().map(rule_of).collect(),
        staged: object.staged,
    }
}

fn rule_of(rule: &model::Rule) -> policy::Rule {
    policy::Rule {
        name: rule.name.to_string(),
        direction: match rule.direction {
            model::PolicyDirection::Ingress => policy::Direction::Ingress,
            model::PolicyDirection::Egress => policy::Direction::Egress,
        },
        action: match rule.action {
            model::RuleAction::Allow => policy::Action::Allow,
            model::RuleAction::Deny => policy::Action::Deny,
            model::RuleAction::Pass => policy::Action::Pass,
            model::RuleAction::Log => policy::Action::Log,
        },
        peers: rule.peers.iter().map(peer_of).collect(),
        ports: rule.ports.iter().map(port_of).collect(),
    }
}

fn peer_of(peer: &model::RulePeer) -> policy::Peer {
    match peer {
        model::RulePeer::Identity(name) => policy::Peer::Identity(name.to_string()),
        model::RulePeer::Prefix { prefix, except } => policy::Peer::Prefix {
            prefix: prefix.net(),
            except: except.iter().map(|hole| hole.net()).collect(),
        },
    }
}

fn port_of(port: &model::RulePort) -> policy::PortMatch {
    policy::PortMatch {
        protocol: policy::Protocol::Number(port.protocol.number()),
        ports: port.port.map(|range| range.first()..=range.last()),
        icmp_type: port.icmp_type,
        icmp_code: port.icmp_code,
    }
}

/// The engine's faults say the problem and, behind a semicolon, the mend.
fn faults(error: CompileError) -> Vec<Fault> {
    let fault = |fault: &policy::Fault| {
        let text = fault.to_string();
        let (problem, mend) = text.split_once("; ").unwrap_or((&text, "put the rule right"));
        Fault::new("policies", "", problem.to_owned(), mend)
    };
    error.faults.iter().map(fault).collect()
}
