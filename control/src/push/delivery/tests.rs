//! Batches against a dataplane that is a map with a few rules.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use penstock_api::client::Live;
use penstock_api::file::parse_objects;
use penstock_api::model::Subjects;
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;

/// Objects by key; what is named must be there, and a node port is one service's.
#[derive(Debug, Clone, Default)]
struct Map {
    objects: BTreeMap<Key, Object>,
    generation: u64,
    calls: usize,
    /// Whether it cannot be asked.
    lost: bool,
}

fn needs(object: &Object) -> Vec<Key> {
    match object {
        Object::Policy(policy) => {
            let mut needs = vec![Key::Tier(policy.tier.clone())];
            if let Subjects::Identities(names) = &policy.subjects {
                needs.extend(names.iter().cloned().map(Key::Identity));
            }
            needs
        }
        Object::Backends(backends) => vec![Key::Service(backends.service.clone())],
        _ => Vec::new(),
    }
}

fn node_port(object: &Object) -> Option<u16> {
    match object {
        Object::Service(service) => service.ports[0].node_port,
        _ => None,
    }
}

impl Map {
    fn judge(&self, objects: &BTreeMap<Key, Object>) -> Vec<Fault> {
        let fault = |key: &Key, what: String| Fault::new(key.to_string(), "", what, "");
        let mut faults = Vec::new();
        for (key, object) in objects {
            for need in needs(object).iter().filter(|need| !objects.contains_key(need)) {
                faults.push(fault(key, format!("there is no {need}")));
            }
            let port = node_port(object);
            if port.is_some() {
                let others = objects.iter().filter(|(other, it)| *other != key && node_port(it) == port);
                faults.extend(others.map(|(other, _)| fault(key, format!("{port:?} is that of {other}"))));
            }
        }
        faults
    }

    fn change(&mut self, new: BTreeMap<Key, Object>) -> Result<Live, ClientError> {
        self.calls += 1;
        if self.lost {
            return Err(ClientError::Slow { call: "upsert" });
        }
        let faults = self.judge(&new);
        if !faults.is_empty() {
            return Err(ClientError::Refused(faults));
        }
        self.objects = new;
        self.generation += 1;
        Ok(Live { generation: self.generation, took: Duration::ZERO })
    }
}

impl Sink for Map {
    async fn upsert(&mut self, objects: &[Arc<Object>]) -> Result<Live, ClientError> {
        let mut new = self.objects.clone();
        new.extend(objects.iter().map(|it| (it.key(), Object::clone(it))));
        self.change(new)
    }

    async fn delete(&mut self, keys: &[Key]) -> Result<Live, ClientError> {
        let mut new = self.objects.clone();
        for key in keys {
            assert!(new.remove(key).is_some(), "{key} was not there");
        }
        self.change(new)
    }
}

fn send(map: &mut Map, upserts: Vec<Object>, deletes: Vec<Key>) -> Delivered {
    let mut held = map.objects.keys().cloned().collect();
    let upserts = upserts.into_iter().map(Arc::new).collect();
    let done = deliver(map, upserts, deletes, &mut held).now_or_never().expect("a map never waits");
    assert!(held.iter().eq(map.objects.keys()));
    done.expect("the map is there")
}

fn objects(text: &str) -> Vec<Object> {
    parse_objects(text, "test").expect("a sound file")
}

fn service(name: &str, node_port: u16) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nnetwork = \"n\"\ncluster-ips = [\"10.96.0.1\"]\nports = [{{ name = \"p\", port = 80, node-port = {node_port} }}]\n"
    )
}

fn policy(name: &str, tier: &str, identity: &str, action: &str) -> String {
    format!(
        "[[policy]]\nname = \"{name}\"\nnetwork = \"n\"\ntier = \"{tier}\"\nsubjects = {{ identities = [\"{identity}\"] }}\ndirections = [\"ingress\"]\n\
         [[policy.rules]]\nname = \"r\"\ndirection = \"ingress\"\naction = \"{action}\"\n"
    )
}

const BASE: &str =
    "[[identity]]\nname = \"i\"\nnetwork = \"n\"\n[[tier]]\nname = \"t\"\norder = 1\ndefault = \"pass\"\n";

#[test]
fn what_is_sound_goes_out_in_one_call_each_way() {
    let mut map = Map::default();
    let first = objects(&(BASE.to_owned() + &policy("p", "t", "i", "allow")));
    let keys: Vec<Key> = first.iter().map(Object::key).collect();
    assert_eq!(send(&mut map, first, Vec::new()).upserted, 3);
    assert_eq!(map.calls, 1);
    let done = send(&mut map, objects(&service("s", 30000)), keys);
    assert_eq!((done.upserted, done.deleted, map.calls), (1, 3, 3));
    assert_eq!(done.generation, Some(3));
}

#[test]
fn a_port_changes_hands_whoever_goes_first() {
    let mut map = Map::default();
    send(&mut map, objects(&service("old", 30000)), Vec::new());
    let gone = vec![objects(&service("old", 30000))[0].key()];
    let done = send(&mut map, objects(&service("new", 30000)), gone);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    assert_eq!(map.objects.keys().map(ToString::to_string).collect::<Vec<_>>(), ["service \"new\""]);
}

#[test]
fn the_rest_goes_out_without_what_is_refused() {
    let mut map = Map::default();
    let text = BASE.to_owned() + &policy("bad", "t", "nobody", "allow") + &policy("good", "t", "i", "allow");
    let done = send(&mut map, objects(&text), Vec::new());
    assert_eq!(done.refused.keys().map(ToString::to_string).collect::<Vec<_>>(), ["policy \"bad\""]);
    let faults: Vec<String> = done.refused.values().flatten().map(ToString::to_string).collect();
    assert_eq!(faults, ["policy \"bad\": there is no identity \"nobody\""]);
    assert_eq!(map.objects.len(), 3);
}

#[test]
fn what_is_still_needed_stays_and_is_told() {
    let mut map = Map::default();
    send(&mut map, objects(&(BASE.to_owned() + &policy("p", "t", "i", "allow"))), Vec::new());
    send(&mut map, objects(&service("s", 30000)), Vec::new());
    let all: Vec<Key> = map.objects.keys().filter(|key| !matches!(key, Key::Policy(_))).cloned().collect();
    let done = send(&mut map, Vec::new(), all);
    assert_eq!(done.deleted, 1);
    assert_eq!(
        done.refused.keys().map(ToString::to_string).collect::<Vec<_>>(),
        ["identity \"i\"", "tier \"t\""]
    );
}

#[test]
fn a_policy_that_is_refused_leaves_nobody_more_open() {
    let open = objects(&policy("p", "t", "i", "allow"));
    let Some(Object::Policy(it)) = closed(&open[0]) else { panic!("a policy stays one") };
    assert!(it.rules.is_empty() && it.directions == [PolicyDirection::Ingress]);
    let shut = objects(&policy("p", "t", "i", "deny"));
    let Some(Object::Policy(it)) = closed(&shut[0]) else { panic!("a policy stays one") };
    assert_eq!(it.rules[0].action, RuleAction::Deny);
    assert!(it.rules[0].peers.is_empty() && it.rules[0].ports.is_empty());
}

#[test]
fn a_dataplane_that_cannot_be_asked_is_an_error() {
    let mut map = Map { lost: true, ..Map::default() };
    let upserts = objects(BASE).into_iter().map(Arc::new).collect();
    let done = deliver(&mut map, upserts, Vec::new(), &mut BTreeSet::new()).now_or_never();
    assert!(matches!(done, Some(Err(ClientError::Slow { .. }))));
}

/// A state that may be wanted: a small number for each of a few things, 0 when it is not.
fn state() -> impl Strategy<Value = BTreeMap<u8, u8>> {
    btree_map(0_u8..12, 0_u8..4, 0..12)
}

fn wanted(state: &BTreeMap<u8, u8>) -> Vec<Object> {
    let text: String = state
        .iter()
        .map(|(slot, choice)| match slot {
            0..2 => format!("[[tier]]\nname = \"t{slot}\"\norder = {choice}\ndefault = \"pass\"\n"),
            2..5 => format!(
                "[[identity]]\nname = \"i{}\"\nnetwork = \"n\"\nprefixes = [\"10.0.{choice}.0/24\"]\n",
                slot - 2
            ),
            5..9 => policy(
                &format!("p{slot}"),
                &format!("t{}", choice % 2),
                &format!("i{}", (slot + choice) % 3),
                "allow",
            ),
            _ => service(&format!("s{slot}"), 30000 + u16::from(*choice)),
        })
        .collect();
    objects(&text)
}

proptest! {
    /// Whatever is wanted one after the other: what the dataplane holds at the end is what is wanted last, but for what it
    /// would not take by itself, and but for what that still needs.
    #[test]
    fn a_dataplane_follows_whatever_is_wanted(states in prop::collection::vec(state(), 1..6)) {
        let mut map = Map::default();
        for state in &states {
            let want: BTreeMap<Key, Object> = wanted(state).into_iter().map(|it| (it.key(), it)).collect();
            let changed = want.iter().filter(|(key, it)| map.objects.get(key) != Some(it));
            let changed: Vec<Object> = changed.map(|(_, it)| it.clone()).collect();
            let gone = map.objects.keys().filter(|key| !want.contains_key(key)).cloned().collect();
            let done = send(&mut map, changed, gone);
            for (key, object) in &want {
                if done.refused.contains_key(key) {
                    let mut alone = map.objects.clone();
                    alone.insert(key.clone(), object.clone());
                    prop_assert!(!map.judge(&alone).is_empty(), "{key} would be taken");
                } else {
                    prop_assert_eq!(map.objects.get(key), Some(object));
                }
            }
            for key in map.objects.keys().filter(|key| !want.contains_key(key)) {
                prop_assert!(done.refused.contains_key(key), "{key} was left without a word");
            }
        }
    }
}
