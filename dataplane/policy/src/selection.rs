//! Which policies select which endpoints of the node.
//!
//! A cluster has many more policies and pods than a node has endpoints, so a selection follows the one before: as long as
//! the same endpoints are in the same identities, only policies that changed are looked at. When they are in others, all
//! policies must be asked whom they select: their answers stand as hashes in one array, since the policies themselves
//! lie all over the memory.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use crate::check::changed;
use crate::hash::{NumberMap, NumberSet, hash_of};
use crate::rules::{Endpoint, Identity, Policy, Rules, Subjects};

/// By network and identity: the places of the endpoints that have an address in it. Identities of nobody here are left
/// out.
type Members = HashMap<String, HashMap<String, Vec<usize>>>;

/// The selection of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    members: Members,
    wanted: Wanted,
    /// By endpoint: the policies that select it, in no order.
    pub(crate) policies: Vec<Vec<Arc<Policy>>>,
}

impl Selection {
    /// The selection of `rules`, with the rules before and theirs.
    pub(crate) fn new(rules: &Rules, previous: Option<(&Rules, &Selection)>) -> Selection {
        let nothing = (&Rules::default(), &Selection::default());
        let (old_rules, old) = previous.unwrap_or(nothing);
        let wanted = old.wanted.follow(&rules.policies, &old_rules.policies);
        let same_endpoints = old_rules.endpoints == rules.endpoints;
        let members = if same_endpoints {
            old.members_now(rules, &old_rules.identities)
        } else {
            Selection::default().members_now(rules, &[])
        };
        if same_endpoints && members == old.members {
            let mut selection = Selection { members, wanted, policies: old.policies.clone() };
            let (fresh, gone) = changed(&rules.policies, &old_rules.policies);
            selection.remove(gone);
            selection.add(&rules.endpoints, &rules.policies[fresh]);
            return selection;
        }
        let mut selection = Selection { members, wanted, policies: vec![Vec::new(); rules.endpoints.len()] };
        let asked = selection.asked(&rules.endpoints);
        let places = selection.wanted.places(&asked);
        selection.add(&rules.endpoints, places.into_iter().map(|place| &rules.policies[place]));
        selection
    }

    /// The members of identities that these were the members of before.
    fn members_now(&self, rules: &Rules, before: &[Arc<Identity>]) -> Members {
        let (fresh, gone) = changed(&rules.identities, before);
        let mut members = self.members.clone();
        for identity in gone {
            if let Some(network) = members.get_mut(&identity.network) {
                network.remove(&identity.name);
            }
        }
        let locals = Locals::new(&rules.endpoints);
        for identity in &rules.identities[fresh] {
            let here = locals.members(identity);
            if !here.is_empty() {
                members.entry(identity.network.clone()).or_default().insert(identity.name.clone(), here);
            }
        }
        members
    }

    /// The subjects by which a policy may select some endpoint, as [`Wanted`] hashes them.
    fn asked(&self, endpoints: &[Endpoint]) -> NumberSet<u64> {
        let everyone = endpoints.iter().map(|endpoint| hash_of(&(&*endpoint.network, EVERYONE)));
        let members = self.members.iter().flat_map(|(network, identities)| {
            identities.keys().map(move |name| hash_of(&(&**network, Some(&**name))))
        });
        everyone.chain(members).collect()
    }

    fn remove(&mut self, gone: &[Arc<Policy>]) {
        if gone.is_empty() {
            return;
        }
        let gone: HashSet<*const Policy> = gone.iter().map(Arc::as_ptr).collect();
        for policies in &mut self.policies {
            policies.retain(|policy| !gone.contains(&Arc::as_ptr(policy)));
        }
    }

    /// Adds `policies` to the endpoints that they select.
    fn add<'a>(&mut self, endpoints: &[Endpoint], policies: impl IntoIterator<Item = &'a Arc<Policy>>) {
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

/// In the place of a name: every endpoint of the network.
const EVERYONE: Option<&str> = None;

/// Whom policies select, as hashes of networks and names. Equal hashes of different names do no harm: who is found by
/// them is asked again.
#[derive(Clone, Debug, Default)]
struct Wanted {
    /// By policy: where its hashes end; they begin where those of the policy before end.
    ends: Vec<u32>,
    hashes: Vec<u64>,
}

impl Wanted {
    /// The same of the policies of now, where these are of those `before`.
    fn follow(&self, now: &[Arc<Policy>], before: &[Arc<Policy>]) -> Wanted {
        let (fresh, gone) = changed(now, before);
        let tail = fresh.start + gone.len()..before.len();
        let mut wanted =
            Wanted { ends: Vec::with_capacity(now.len()), hashes: Vec::with_capacity(now.len()) };
        wanted.extend(self, 0..fresh.start);
        for policy in &now[fresh] {
            match &policy.subjects {
                Subjects::All => wanted.hashes.push(hash_of(&(&*policy.network, EVERYONE))),
                Subjects::Identities(names) => {
                    let hashes = names.iter().map(|name| hash_of(&(&*policy.network, Some(&**name))));
                    wanted.hashes.extend(hashes);
                }
            }
            wanted.ends.push(wanted.hashes.len() as u32);
        }
        wanted.extend(self, tail);
        wanted
    }

    /// Where the hashes of a policy begin.
    fn start(&self, place: usize) -> u32 {
        place.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Takes over those of the policies at `places` of `other`.
    fn extend(&mut self, other: &Wanted, places: Range<usize>) {
        let (from, to) = (other.start(places.start), other.start(places.end));
        let shift = self.hashes.len() as u32;
        self.hashes.extend_from_slice(&other.hashes[from as usize..to as usize]);
        self.ends.extend(other.ends[places].iter().map(|end| end - from + shift));
    }

    /// The places of policies that select by one of these hashes.
    fn places(&self, asked: &NumberSet<u64>) -> Vec<usize> {
        let selects = |place: &usize| {
            let hashes = self.start(*place) as usize..self.ends[*place] as usize;
            self.hashes[hashes].iter().any(|hash| asked.contains(hash))
        };
        (0..self.ends.len()).filter(selects).collect()
    }
}

/// The endpoints by address.
struct Locals<'a> {
    endpoints: &'a [Endpoint],
    by_address: NumberMap<u128, Vec<usize>>,
}

impl<'a> Locals<'a> {
    fn new(endpoints: &'a [Endpoint]) -> Locals<'a> {
        let mut by_address: NumberMap<u128, Vec<usize>> = NumberMap::default();
        for (place, endpoint) in endpoints.iter().enumerate() {
            for address in &endpoint.addresses {
                by_address.entry(number_of(*address)).or_default().push(place);
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
            return self.by_address.get(&number_of(prefix.addr())).cloned().unwrap_or_default();
        }
        let has_one = |endpoint: &Endpoint| endpoint.addresses.iter().any(|address| prefix.contains(address));
        (0..self.endpoints.len()).filter(|place| has_one(&self.endpoints[*place])).collect()
    }
}

/// An address as a number; families stay apart, since IPv4 addresses take the place of mapped ones, which no packet has.
fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
