//! Names of what has none in Kubernetes: the same in every run, and fit to be read.

use std::net::IpAddr;

use penstock_api::model::Name;

use super::sets::SetKey;
use crate::cluster::{Namespaces, Selector};
use crate::kubernetes::Key;

/// The most characters of a selector that stand in a name.
const READABLE: usize = 60;

/// FNV-1a of 64 bits (draft-eastlake-fnv): small, and the same everywhere.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A number that spreads addresses evenly in its low bits.
pub(super) fn hash_of_address(address: IpAddr) -> u64 {
    let hash = match address {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    };
    hash ^ hash >> 32
}

fn readable(selector: &Selector) -> String {
    if selector.is_everything() {
        return "all".to_owned();
    }
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '.' };
    selector.to_string().chars().take(READABLE).map(allowed).collect()
}

/// `pods/shop/app.web/9f86d081884c7d65`: namespaces, pods, and a number for what this does not say.
pub(super) fn set(key: &SetKey) -> String {
    let namespaces = match &key.pods.namespaces {
        Namespaces::One(name) => name.clone(),
        Namespaces::Matching(selector) => format!("_{}", readable(selector)),
    };
    let kind = if key.local { "local" } else { "pods" };
    let number = hash(format!("{key:?}").as_bytes());
    format!("{kind}/{namespaces}/{}/{number:016x}", readable(&key.pods.pods))
}

/// `nodes/role.edge/9f86d081884c7d65`.
pub(super) fn nodes(selector: &Selector, further: Option<&Name>) -> Name {
    let plain = format!("nodes/{}/{:016x}", readable(selector), hash(format!("{selector:?}").as_bytes()));
    name(&on(&plain, further))
}

/// What is called `plain` in the pods' own network, in that one or in a further one: `shop/web/on/blue`. No name that
/// Kubernetes has in it gives another one so.
pub(super) fn on(plain: &str, further: Option<&Name>) -> String {
    further.map_or_else(|| plain.to_owned(), |network| format!("{plain}/on/{network}"))
}

/// The name of one of `shards` identities of a set.
pub(super) fn shard(set: &str, shard: usize, shards: usize) -> Name {
    if shards == 1 { name(set) } else { name(&format!("{set}/{}-{shards}", shard + 1)) }
}

/// The name of a policy: `shop/web` for that of a namespace, `ClusterNetworkPolicy/web` for others; `class` tells those
/// apart that one policy becomes, `further` those of further networks.
pub(super) fn policy(key: &Key, class: Option<&str>, further: Option<&Name>) -> Name {
    let place = if key.namespace.is_empty() { key.kind.as_str() } else { &key.namespace };
    let class = class.map(|class| format!("/{:08x}", hash(class.as_bytes()) as u32)).unwrap_or_default();
    name(&on(&format!("{place}/{}{class}", key.name), further))
}

/// `text` as a name: what a name cannot hold stands as `-`, and of a long one the end as a number.
pub(super) fn name(text: &str) -> Name {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._/-".contains(c) { c } else { '-' };
    let mut plain: String = text.chars().map(allowed).collect();
    if plain.len() > Name::MAX_LEN {
        plain.truncate(Name::MAX_LEN - 17);
        plain = format!("{plain}.{:016x}", hash(text.as_bytes()));
    }
    if plain.is_empty() {
        plain.push('-');
    }
    plain.parse().expect("the characters and the length of a name")
}
