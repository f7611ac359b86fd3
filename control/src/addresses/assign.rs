//! Who gets which address: a pure function of pools and claims, so that any agent would say the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::core::SelectorExt;
use thiserror::Error;

use super::claim::{Claim, Stacks};
use super::pool::{Family, Pool};

/// A service, by its namespace and name.
pub type ServiceName = (String, String);

/// Who has what.
#[derive(Debug, Default, PartialEq)]
pub struct Assignment {
    /// The addresses of each service that has any, in the order of its families.
    pub given: BTreeMap<ServiceName, Vec<IpAddr>>,
    /// Why a service lacks an address of a family that it is to have.
    pub refused: BTreeMap<ServiceName, Refusal>,
}

/// Why a service gets no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nobody made a pool for services.
    #[error("there is no pool for services: create an IPPool with use: LoadBalancer")]
    NoPool,
    /// The pool that it asks for does not exist, or is for pods.
    #[error("there is no pool \"{0}\" for services: create an IPPool of that name with use: LoadBalancer")]
    UnknownPool(String),
    /// No pool that it may use has addresses of the family.
    #[error(
        "no pool that the service may use has {0} addresses: look at serviceSelector, disabled and prefixes of the pools"
    )]
    NoPoolFor(Family),
    /// All are given.
    #[error("the pools that the service may use have no {0} address left: add prefixes, or share an address")]
    Full(Family),
    /// What it asks for is in no pool that it may use.
    #[error("{0} is in no pool that the service may use: ask for another address, or add it to a pool")]
    NotInAPool(IpAddr),
    /// What it asks for is somebody else's.
    #[error("{address} is {}/{}'s: ask for another address, or let both say the same in the annotation {} with no port in common", .by.0, .by.1, super::claim::SHARING)]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceName,
    },
    /// It wants both families, asks for certain addresses, and for none of this family.
    #[error("the service asks for certain addresses but for no {0} address: add one, or ask for one family")]
    NotAskedFor(Family),
}

/// Gives addresses: whoever has one that is still right keeps it, older services first; then the others get what they ask
/// for, or the lowest that is free.
#[must_use]
pub fn assign(pools: &[Pool], claims: &[Claim]) -> Assignment {
    let mut claims: Vec<&Claim> = claims.iter().collect();
    claims.sort_by(|a, b| (a.created, &a.service).cmp(&(b.created, &b.service)));
    let mut pools: Vec<&Pool> = pools.iter().collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let mut desk = Desk { pools, taken: BTreeMap::new(), given: BTreeMap::new() };
    for claim in &claims {
        desk.keep(claim);
    }
    // What a service that cannot have both families gives back is there for the others: they are asked once more.
    let mut given_back = BTreeMap::new();
    let refused = loop {
        let (mut refused, before) = (BTreeMap::new(), given_back.len());
        for claim in claims
            .iter()
            .filter(|claim| !given_back.contains_key(&claim.service))
            .copied()
            .collect::<Vec<_>>()
        {
            let Err(refusal) = desk.fill(claim) else { continue };
            let to = if claim.stacks == Stacks::RequireDual { &mut given_back } else { &mut refused };
            to.insert(claim.service.clone(), refusal);
        }
        if given_back.len() == before {
            refused.append(&mut given_back);
            break refused;
        }
    };
    let Desk { given, .. } = desk;
    let in_order = |claim: &&Claim| {
        let given = given.get(&claim.service)?;
        let of = |family: Family| given.iter().copied().find(move |&address| Family::of(address) == family);
        let ordered: Vec<IpAddr> = wishes(claim).filter_map(|(family, _)| of(family)).collect();
        (!ordered.is_empty()).then(|| (claim.service.clone(), ordered))
    };
    Assignment { given: claims.iter().filter_map(in_order).collect(), refused }
}

/// The families that a service wants, and whether it can do without.
fn wishes(claim: &Claim) -> impl Iterator<Item = (Family, bool)> + '_ {
    let count = if claim.stacks == Stacks::Single { 1 } else { 2 };
    let first = claim.families.first().copied();
    claim
        .families
        .iter()
        .take(count)
        .map(move |&family| (family, claim.stacks == Stacks::RequireDual || Some(family) == first))
}

/// Where addresses are given out.
struct Desk<'a> {
    pools: Vec<&'a Pool>,
    /// Who has each address: several services if they share it.
    taken: BTreeMap<IpAddr, Vec<&'a Claim>>,
    given: BTreeMap<ServiceName, Vec<IpAddr>>,
}

impl<'a> Desk<'a> {
    /// The pools that a service may use, those included out of which nothing more is given.
    fn pools_of(&self, claim: &Claim) -> impl Iterator<Item = &'a Pool> + '_ {
        let (wanted, labels) = (claim.pool.clone(), claim.labels.clone());
        self.pools
            .iter()
            .copied()
            .filter(move |pool| wanted.as_ref().is_none_or(|name| *name == pool.name))
            .filter(move |pool| pool.services.matches(&labels))
    }

    /// Leaves a service what it has, as far as it may have it.
    fn keep(&mut self, claim: &'a Claim) {
        for (family, _) in wishes(claim) {
            let right = claim.holds.iter().copied().find(|&address| {
                Family::of(address) == family
                    && (claim.wanted.is_empty() || claim.wanted.contains(&address))
                    && self.pools_of(claim).any(|pool| pool.contains(address))
                    && self.owner_in_the_way(claim, address).is_none()
            });
            if let Some(address) = right {
                self.give(claim, address);
            }
        }
    }

    /// Gives a service what it lacks.
    fn fill(&mut self, claim: &'a Claim) -> Result<(), Refusal> {
        let mut outcome = Ok(());
        for (family, is_needed) in wishes(claim) {
            let has = self.given.get(&claim.service).into_iter().flatten();
            if has.copied().any(|address| Family::of(address) == family) {
                continue;
            }
            match self.find(claim, family) {
                Ok(address) => self.give(claim, address),
                Err(refusal) if is_needed => outcome = outcome.and(Err(refusal)),
                // It prefers both families, and there is one.
                Err(_) => {}
            }
        }
        if outcome.is_err() && claim.stacks == Stacks::RequireDual {
            self.take_back(claim);
        }
        outcome
    }

    fn find(&self, claim: &Claim, family: Family) -> Result<IpAddr, Refusal> {
        if self.pools.is_empty() {
            return Err(Refusal::NoPool);
        }
        if let Some(name) = &claim.pool
            && !self.pools.iter().any(|pool| pool.name == *name)
        {
            return Err(Refusal::UnknownPool(name.clone()));
        }
        if !claim.wanted.is_empty() {
            let wanted = claim.wanted.iter().copied().find(|&address| Family::of(address) == family);
            return self.check(claim, wanted.ok_or(Refusal::NotAskedFor(family))?);
        }
        let open = || self.pools_of(claim).filter(|pool| !pool.disabled);
        let of_family = |address: &IpAddr| Family::of(*address) == family;
        // Next to those that it would share with, before an address of its own.
        let shared = self.taken.iter().find(|(address, owners)| {
            of_family(address)
                && owners.iter().all(|owner| owner.shares_with(claim))
                && open().any(|pool| pool.contains(**address))
        });
        if let Some((&address, _)) = shared {
            return Ok(address);
        }
        let mut spans =
            open().flat_map(|pool| &pool.spans).filter(|span| of_family(&span.first())).peekable();
        if spans.peek().is_none() {
            return Err(Refusal::NoPoolFor(family));
        }
        spans.find_map(|span| span.lowest_free(&self.taken)).ok_or(Refusal::Full(family))
    }

    /// Whether a service may have the address that it asks for.
    fn check(&self, claim: &Claim, address: IpAddr) -> Result<IpAddr, Refusal> {
        if !self.pools_of(claim).any(|pool| !pool.disabled && pool.contains(address)) {
            return Err(Refusal::NotInAPool(address));
        }
        match self.owner_in_the_way(claim, address) {
            Some(owner) => Err(Refusal::Taken { address, by: owner.service.clone() }),
            None => Ok(address),
        }
    }

    fn owner_in_the_way(&self, claim: &Claim, address: IpAddr) -> Option<&'a Claim> {
        let mut owners = self.taken.get(&address)?.iter();
        owners.find(|owner| !owner.shares_with(claim)).copied()
    }

    fn give(&mut self, claim: &'a Claim, address: IpAddr) {
        self.taken.entry(address).or_default().push(claim);
        self.given.entry(claim.service.clone()).or_default().push(address);
    }

    fn take_back(&mut self, claim: &Claim) {
        for address in self.given.remove(&claim.service).into_iter().flatten() {
            if let Some(owners) = self.taken.get_mut(&address) {
                owners.retain(|owner| owner.service != claim.service);
                if owners.is_empty() {
                    self.taken.remove(&address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
