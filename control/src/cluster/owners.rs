//! Whose an address is when several pods say that it is theirs.
//!
//! Addresses are used again, and the last word about the pod that had one before may come late. The pod that is attached
//! here has it, else one of which kubelet says so (others say it in an annotation), else the one that was created last; of
//! two of one second the one whose name sorts last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use penstock_api::model::Name;

use super::pod::Scoped;

/// A pod's right to an address: the greatest has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    attached: bool,
    by_kubelet: bool,
    created: i64,
    pod: Scoped,
}

/// What a pod claims in one network.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// By its status, which its kubelet writes.
    pub(super) by_kubelet: Vec<IpAddr>,
    /// By its annotations.
    pub(super) annotated: Vec<IpAddr>,
    /// When it was created, in seconds since 1970.
    pub(super) created: i64,
}

/// What pods claim in one network.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Most addresses have one claimant.
    claimants: HashMap<IpAddr, Vec<Right>>,
    /// What a pod that is known claims, and since when it is there.
    told: HashMap<Scoped, Claim>,
    /// What endpoints of this node claim for their pods.
    attached: HashMap<Scoped, BTreeMap<Name, Vec<IpAddr>>>,
    /// What each pod claims as it stands in `claimants`.
    entered: HashMap<Scoped, Vec<(IpAddr, Right)>>,
    unsettled: BTreeSet<Scoped>,
}

impl Owners {
    /// Takes what a pod claims; nothing any more if it is gone, over, or on its node's network.
    pub(super) fn claim(&mut self, key: &Scoped, claim: Option<Claim>) {
        match claim {
            Some(claim) => self.told.insert(key.clone(), claim),
            None => self.told.remove(key),
        };
        self.enter(key);
    }

    /// Whether an endpoint claims anything for a pod.
    pub(super) fn is_attached(&self, pod: &Scoped) -> bool {
        self.attached.contains_key(pod)
    }

    /// Whether nobody claims anything.
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty() && self.attached.is_empty() && self.unsettled.is_empty()
    }

    /// Takes what an endpoint claims for its pod.
    pub(super) fn attach(&mut self, pod: &Scoped, endpoint: &Name, addresses: Vec<IpAddr>) {
        let endpoints = self.attached.entry(pod.clone()).or_default();
        if addresses.is_empty() {
            endpoints.remove(endpoint);
        } else {
            endpoints.insert(endpoint.clone(), addresses);
        }
        if endpoints.is_empty() {
            self.attached.remove(pod);
        }
        self.enter(pod);
    }

    fn enter(&mut self, key: &Scoped) {
        self.unsettled.insert(key.clone());
        for (address, right) in self.entered.remove(key).unwrap_or_default() {
            if let Some(rights) = self.claimants.get_mut(&address) {
                rights.retain(|other| *other != right);
                self.unsettled.extend(rights.iter().map(|right| right.pod.clone()));
                if rights.is_empty() {
                    self.claimants.remove(&address);
                }
            }
        }
        // Of a pod that is not known, or over, an endpoint says nothing.
        let Some(told) = self.told.get(key) else { return };
        let attached: BTreeSet<IpAddr> =
            self.attached.get(key).into_iter().flat_map(BTreeMap::values).flatten().copied().collect();
        let said = told.by_kubelet.iter().chain(&told.annotated);
        let addresses: BTreeSet<IpAddr> = said.chain(&attached).copied().collect();
        let mut entered = Vec::new();
        for address in addresses {
            let right = Right {
                attached: attached.contains(&address),
                by_kubelet: told.by_kubelet.contains(&address),
                created: told.created,
                pod: key.clone(),
            };
            let rights = self.claimants.entry(address).or_default();
            self.unsettled.extend(rights.iter().map(|right| right.pod.clone()));
            rights.push(right.clone());
            entered.push((address, right));
        }
        self.entered.insert(key.clone(), entered);
    }

    /// The pods whose addresses may have changed, `key` among them.
    pub(super) fn take_unsettled(&mut self, key: &Scoped) -> BTreeSet<Scoped> {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.insert(key.clone());
        unsettled
    }

    /// The addresses that are a pod's own, sorted.
    pub(super) fn owned(&self, key: &Scoped) -> Vec<IpAddr> {
        let entered = self.entered.get(key).into_iter().flatten();
        let is_owner = |address: &IpAddr| {
            let rights = self.claimants.get(address);
            rights.and_then(|rights| rights.iter().max()).is_some_and(|right| right.pod == *key)
        };
        entered.map(|(address, _)| *address).filter(is_owner).collect()
    }
}
