//! The rules of a configuration, kept in step with it: only objects that changed are put into the engine's words anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_api::model::{self, Key, Name, Object};
use penstock_policy::{Endpoint, Identity, Policy, Rules, Shared, Tier};

use crate::tables::desired::{Desired, Mark};

/// The addresses that endpoints of the node bring to their identities.
type Members = BTreeMap<Name, Vec<IpAddr>>;

/// Rules and the moment of the configuration that they follow from. Identities and policies are sorted by network and
/// name, so that the engine finds what changed at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Followed {
    pub(super) rules: Arc<Rules>,
    members: Members,
    seen: Mark,
}

impl Followed {
    /// The rules of `desired` now. What did not change is shared with these; if nothing did, all of it is.
    pub(super) fn next(&self, desired: &Desired) -> Followed {
        let seen = desired.mark();
        let Some(changed) = desired.changed_since(self.seen) else {
            let members = members_of(desired);
            return Followed { rules: Arc::new(self.all(desired, &members)), members, seen };
        };
        let mut changes = Changes::default();
        changed.for_each(|key| changes.note(key));
        if changes.is_empty() {
            return Followed { seen, ..self.clone() };
        }
        let members = if changes.endpoints { members_of(desired) } else { self.members.clone() };
        for name in self.members.keys().chain(members.keys()) {
            if self.members.get(name) != members.get(name) {
                changes.identities.push(name);
            }
        }
        let mut rules = Rules::clone(&self.rules);
        for name in changes.identities {
            let new = match desired.get(&Key::Identity(name.clone())) {
                Some(Object::Identity(identity)) => Some(identity_of(identity, members.get(name))),
                _ => None,
            };
            put(&mut rules.identities, name.as_str(), new);
        }
        for name in changes.policies {
            let new = match desired.get(&Key::Policy(name.clone())) {
                Some(Object::Policy(policy)) => Some(Policy::from(policy)),
                _ => None,
            };
            put(&mut rules.policies, name.as_str(), new);
        }
        if changes.tiers {
            rules.tiers = desired.tiers().map(Tier::from).collect();
        }
        if changes.endpoints {
            rules.endpoints = desired.endpoints().map(Endpoint::from).collect();
        }
        Followed { rules: Arc::new(rules), members, seen }
    }

    /// The rules of everything in `desired`.
    fn all(&self, desired: &Desired, members: &Members) -> Rules {
        let identity =
            |it: &model::Identity| shared(&self.rules.identities, identity_of(it, members.get(&it.name)));
        let mut identities: Vec<_> = desired.identities().map(identity).collect();
        let mut policies: Vec<_> =
            desired.policies().map(|it| shared(&self.rules.policies, Policy::from(it))).collect();
        identities.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        policies.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        Rules {
            identities: identities.into(),
            policies: policies.into(),
            tiers: desired.tiers().map(Tier::from).collect(),
            endpoints: desired.endpoints().map(Endpoint::from).collect(),
        }
    }
}

/// What of a change matters to policies.
#[derive(Default)]
struct Changes<'a> {
    identities: Vec<&'a Name>,
    policies: Vec<&'a Name>,
    tiers: bool,
    endpoints: bool,
}

impl<'a> Changes<'a> {
    fn note(&mut self, key: &'a Key) {
        match key {
            Key::Identity(name) => self.identities.push(name),
            Key::Policy(name) => self.policies.push(name),
            Key::Tier(_) => self.tiers = true,
            Key::Endpoint(_) => self.endpoints = true,
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.policies.is_empty() && !self.tiers && !self.endpoints
    }
}

/// An identity with what it lists and the addresses of its endpoints on this node.
fn identity_of(identity: &model::Identity, members: Option<&Vec<IpAddr>>) -> Identity {
    let mut said = Identity::from(identity);
    said.prefixes.extend(members.into_iter().flatten().map(|&address| IpNet::from(address)));
    said
}

fn members_of(desired: &Desired) -> Members {
    let mut members = Members::new();
    for endpoint in desired.endpoints() {
        if let Some(identity) = &endpoint.identity {
            members.entry(identity.clone()).or_default().extend(&endpoint.addresses);
        }
    }
    members
}

/// An object of a network; its name is its own in all networks.
trait Keyed: PartialEq {
    /// Its network and its name.
    fn key(&self) -> (&str, &str);
}

impl Keyed for Identity {
    fn key(&self) -> (&str, &str) {
        (&self.network, &self.name)
    }
}

impl Keyed for Policy {
    fn key(&self) -> (&str, &str) {
        (&self.network, &self.name)
    }
}

/// Where the object of a name is in a sorted list, in whichever network.
fn find<T: Keyed>(list: &[Arc<T>], name: &str) -> Option<usize> {
    let mut start = 0;
    while let Some(first) = list.get(start) {
        let (network, _) = first.key();
        let end = start + list[start..].partition_point(|it| it.key().0 == network);
        match list[start..end].binary_search_by(|it| it.key().1.cmp(name)) {
            Ok(at) => return Some(start + at),
            Err(_) => start = end,
        }
    }
    None
}

/// Puts an object in the place of the one of its name, or nothing. One that is as it was stays.
fn put<T: Keyed>(list: &mut Shared<T>, name: &str, new: Option<T>) {
    let old = find(list, name);
    if let (Some(at), Some(new)) = (old, &new)
        && *list[at] == *new
    {
        return;
    }
    if old.is_none() && new.is_none() {
        return;
    }
    if let Some(at) = old {
        list.remove(at);
    }
    if let Some(new) = new {
        let at = list.partition_point(|it| it.key() < new.key());
        list.insert(at, Arc::new(new));
    }
}

/// The one of a sorted list, if it is the same.
fn shared<T: Keyed>(known: &[Arc<T>], new: T) -> Arc<T> {
    let at = known.binary_search_by(|it| it.key().cmp(&new.key())).ok();
    at.map(|at| &known[at]).filter(|known| ***known == new).cloned().unwrap_or_else(|| Arc::new(new))
}

#[cfg(test)]
mod tests {
    use penstock_api::file::parse_objects;
    use penstock_api::model::Node;

    use super::*;
    use crate::tables::desired::Change;

    fn objects(text: &str) -> Vec<Object> {
        parse_objects(text, "test").unwrap()
    }

    fn policy(name: &str, network: &str, subjects: &str) -> String {
        format!(
            "[[policy]]\nname = \"{name}\"\nnetwork = \"{network}\"\ntier = \"t\"\ndirections = [\"ingress\"]\n\
             subjects = {{ identities = [{subjects}] }}\n"
        )
    }

    fn endpoint(name: &str, address: &str, identity: &str) -> String {
        format!(
            "[[endpoint]]\nname = \"{name}\"\nnetwork = \"a\"\nmac = \"02:00:00:00:00:{:02x}\"\n\
             addresses = [\"{address}\"]\nidentity = \"{identity}\"\nattachment = {{ tap = {{ interface = \"{name}\" }} }}\n",
            name.len()
        )
    }

    fn desired() -> Desired {
        let mut desired = Desired::new(Node { name: "n".parse().unwrap(), mac: None }, None);
        let networks = ["a", "b"].iter().enumerate().map(|(at, name)| {
            format!(
                "[[network]]\nname = \"{name}\"\nvni = {}\nprefixes = [\"10.{at}.0.0/16\"]\n\
                 [[identity]]\nname = \"of-{name}\"\nnetwork = \"{name}\"\n",
                at + 1
            )
        });
        let tier = "[[tier]]\nname = \"t\"\norder = 1\ndefault = \"deny\"\n";
        let text = networks.collect::<String>()
            + tier
            + &policy("p1", "a", "\"of-a\"")
            + &policy("p0", "b", "\"of-b\"");
        desired.apply(Change::Upsert(objects(&text))).unwrap();
        desired
    }

    /// Applies a change and follows it; the step must come to what a look at everything comes to.
    fn follow(followed: &Followed, desired: &mut Desired, change: Change) -> Followed {
        desired.apply(change).unwrap();
        let next = followed.next(desired);
        assert_eq!(next.rules, Followed::default().next(desired).rules);
        next
    }

    #[test]
    fn every_step_comes_to_what_a_look_at_everything_comes_to() {
        let mut desired = desired();
        let mut followed = Followed::default().next(&desired);
        let upsert = |text: &str| Change::Upsert(objects(text));
        let delete = |key: Key| Change::Delete(vec![key]);
        for change in [
            upsert(&policy("p2", "a", "\"of-a\"")),
            upsert(&policy("p1", "b", "\"of-b\"")),
            upsert(&endpoint("e", "10.0.0.1", "of-a")),
            upsert(&endpoint("ee", "10.0.0.2", "of-a")),
            upsert(&endpoint("e", "10.0.0.3", "of-a")),
            upsert("[[identity]]\nname = \"more\"\nnetwork = \"a\"\nprefixes = [\"10.0.1.0/24\"]\n"),
            delete(Key::Policy("p2".parse().unwrap())),
            delete(Key::Endpoint("e".parse().unwrap())),
            delete(Key::Identity("more".parse().unwrap())),
            upsert("[[tier]]\nname = \"t\"\norder = 2\ndefault = \"deny\"\n"),
        ] {
            followed = follow(&followed, &mut desired, change);
        }
        assert_eq!(
            followed.rules.policies.iter().map(|it| it.key()).collect::<Vec<_>>(),
            [("b", "p0"), ("b", "p1")]
        );
    }

    #[test]
    fn what_did_not_change_is_shared() {
        let mut desired = desired();
        let before = Followed::default().next(&desired);
        let after = follow(&before, &mut desired, Change::Upsert(objects(&policy("p1", "a", ""))));
        assert!(!Arc::ptr_eq(&before.rules.policies[0], &after.rules.policies[0]));
        assert!(Arc::ptr_eq(&before.rules.policies[1], &after.rules.policies[1]));
        let route = "[[route]]\nnetwork = \"a\"\nprefix = \"10.9.0.0/16\"\nvia = \"blackhole\"\n";
        let same = follow(&after, &mut desired, Change::Upsert(objects(route)));
        assert!(Arc::ptr_eq(&after.rules, &same.rules));
    }
}
