//! Whether tables that are kept are made anew when they must be.

use penstock_api::model::{Key, Object};

use super::Layout;
use crate::tables::desired::{Change, Desired};
use crate::testbed::{self, NODE, Sizes};

/// An object of every kind that tables are made of, beside the testbed's own.
const OBJECTS: &str = r#"
    [[network]]
    name = "n"
    vni = 9
    prefixes = ["10.9.0.0/16"]
    [[peer]]
    name = "other"
    address = "192.0.2.77"
    [[route]]
    network = "n"
    prefix = "10.9.7.0/24"
    via = { peer = "other" }
    [[route]]
    network = "n"
    prefix = "0.0.0.0/0"
    via = { uplink = { uplink = "wire" } }
    [[identity]]
    name = "web"
    network = "n"
    prefixes = ["10.9.8.1/32"]
    [[endpoint]]
    name = "pod"
    network = "n"
    mac = "02:00:00:00:09:01"
    addresses = ["10.9.0.1"]
    identity = "web"
    attachment = { tap = { interface = "t9" } }
    [[tier]]
    name = "tier"
    order = 1
    default = "deny"
    [[policy]]
    name = "policy"
    network = "n"
    tier = "tier"
    subjects = { identities = ["web"] }
    directions = ["ingress"]
    [[service]]
    name = "service"
    network = "n"
    cluster-ips = ["10.96.0.9"]
    external-ips = ["198.51.100.9"]
    ports = [{ name = "a", port = 80, node-port = 30080 }]
    [[backends]]
    service = "service"
    ports = [{ name = "a", port = 80 }]
    members = [{ address = "10.9.0.1" }]
    [[nat-pool]]
    name = "pool"
    network = "n"
    sources = ["10.9.0.0/16"]
    addresses = ["198.51.100.10"]
    [[egress-ip]]
    name = "egress"
    network = "n"
    identities = ["web"]
    address = "198.51.100.11"
"#;

#[test]
fn a_layout_is_another_only_after_changes_that_it_is_known_to_follow_from() {
    let sizes = Sizes { flows: 64, chunks: 64, connections: None };
    let node = testbed::node_of(OBJECTS, &[NODE.into()], sizes);
    let (mut desired, underlay) = (node.desired, node.underlay);
    // Hashed tables are said in any order, and some have seeds of their own.
    let picture = |desired: &Desired| {
        let said = format!("{:#?}", Layout::of(desired, &underlay, None));
        let mut lines: Vec<String> =
            said.lines().filter(|it| !it.contains("seed")).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let (mut before, mut gone, mut without_effect) = (picture(&desired), Vec::new(), 0);
    let mut step = |desired: &mut Desired, key: &Key, change: Change| {
        let follows = |desired: &Desired| Layout::follows_from(desired, key);
        let followed = follows(desired);
        if desired.apply(change).is_err() {
            return false;
        }
        let now = picture(desired);
        assert!(now == before || followed || follows(desired), "{key} changes the layout");
        without_effect += usize::from(now == before);
        before = now;
        true
    };
    // What others name goes after them, and comes before them.
    loop {
        let all: Vec<Object> = desired.objects().cloned().collect();
        let goes = |object: &&Object| {
            let key = object.key();
            step(&mut desired, &key, Change::Delete(vec![key.clone()]))
        };
        let Some(object) = all.iter().find(goes) else { break };
        gone.push(object.clone());
    }
    let left: Vec<Key> = desired.objects().map(Object::key).collect();
    assert_eq!(left, [Key::Network("n".parse().unwrap())], "the host's own");
    let total = gone.len();
    for object in gone.into_iter().rev() {
        let key = object.key();
        assert!(step(&mut desired, &key, Change::Upsert(vec![object])), "{key}");
    }
    assert!(without_effect < total, "the picture shows too little");
}
