//! Which policies select which endpoints of the node.
//!
//! A cluster has many more policies and pods than a node has endpoints, so a selection follows the one before: as long as
//! the same endpoints are in the same identities, only policies that changed are looked at.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::check::changed;
use crate::rules::{Endpoint, Identity, Policy, Rules, Subjects};

/// By network and identity: the places of the endpoints that have an address in it. Identities of nobody here are left
/// out.
type Members = HashMap<String, HashMap<String, Vec<usize>>>;

/// The selection of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    members: Members,
    /// By endpoint: the policies that select it, in no order.
    pub(crate) policies: Vec<Vec<Arc<Policy>>>,
}

impl Selection {
    /// The selection of `rules`, with the rules before and theirs.
    pub(crate) fn new(rules: &Rules, previous: Option<(&Rules, &Selection)>) -> Selection {
        let nothing = Rules::default();
        let (old_rules, mut selection) = match previous {
            Some((old, selection)) if old.endpoints == rules.endpoints => (old, selection.clone()),
            _ => (
                &nothing,
                Selection { policies: vec![Vec::new(); rules.endpoints.len()], ..Selection::default() },
            ),
        };
        if selection.follow(rules, &old_rules.identities) {
            selection.policies.iter_mut().for_each(Vec::clear);
            selection.add(&rules.endpoints, &rules.policies);
        } else {
            let (fresh, gone) = changed(&rules.policies, &old_rules.policies);
            let gone: HashSet<*const Policy> = gone.iter().map(Arc::as_ptr).collect();
            if !gone.is_empty() {
                for policies in &mut selection.policies {
                    policies.retain(|policy| !gone.contains(&Arc::as_ptr(policy)));
                }
            }
            selection.add(&rules.endpoints, &rules.policies[fresh]);
        }
        selection
    }

    /// Takes over the identities that changed; whether that put an endpoint into one or took it out.
    fn follow(&mut self, rules: &Rules, before: &[Arc<Identity>]) -> bool {
        let (fresh, gone) = changed(&rules.identities, before);
        if fresh.is_empty() && gone.is_empty() {
            return false;
        }
        let old = self.members.clone();
        for identity in gone {
            if let Some(network) = self.members.get_mut(&identity.network) {
                network.remove(&identity.name);
            }
        }
        let locals = Locals::new(&rules.endpoints);
        for identity in &rules.identities[fresh] {
            let members = locals.members(identity);
            if !members.is_empty() {
                let network = self.members.entry(identity.network.clone()).or_default();
                network.insert(identity.name.clone(), members);
            }
        }
        old != self.members
    }

    /// Adds `policies` to the endpoints that they select.
    fn add(&mut self, endpoints: &[Endpoint], policies: &[Arc<Policy>]) {
        for policy in policies {
            match &policy.subjects {
                Subjects::All => {
                    let all = endpoints.iter().zip(&mut self.policies);
                    all.filter(|(endpoint, _)| endpoint.network == policy.network)
                        .for_each(|(_, selected)| selected.push(policy.clone()));
                }
                Subjects::Identities(names) => {
                    let Some(network) = self.members.get(&policy.network) else { continue };
                    for &endpoint in names.iter().filter_map(|name| network.get(name)).flatten() {
                        let selected = &mut self.policies[endpoint];
                        // It may be in several of the identities.
                        if selected.last().is_none_or(|last| !Arc::ptr_eq(last, policy)) {
                            selected.push(policy.clone());
                        }
                    }
                }
            }
        }
    }
}

/// The endpoints by address.
struct Locals<'a> {
    endpoints: &'a [Endpoint],
    by_address: HashMap<IpAddr, Vec<usize>>,
}

impl<'a> Locals<'a> {
    fn new(endpoints: &'a [Endpoint]) -> Locals<'a> {
        let mut by_address: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (place, endpoint) in endpoints.iter().enumerate() {
            for address in &endpoint.addresses {
                by_address.entry(*address).or_default().push(place);
            }
        }
        Locals { endpoints, by_address }
    }

    /// The places of the endpoints in an identity, sorted.
    fn members(&self, identity: &Identity) -> Vec<usize> {
        let mut members: Vec<usize> =
            identity.prefixes.iter().flat_map(|prefix| self.within(prefix)).collect();
        members.retain(|place| self.endpoints[*place].network == identity.network);
        members.sort_unstable();
        members.dedup();
        members
    }

    fn within(&self, prefix: &IpNet) -> Vec<usize> {
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return self.by_address.get(&prefix.addr()).cloned().unwrap_or_default();
        }
        let has_one = |endpoint: &Endpoint| endpoint.addresses.iter().any(|address| prefix.contains(address));
        (0..self.endpoints.len()).filter(|place| has_one(&self.endpoints[*place])).collect()
    }
}
