//! Which of the devices that are free are best taken together: near each other, and spread over what they share.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::pool::Device;

/// Chooses `size` devices of those that are `available`, among them all that `must` be. What is no device is left out, and
/// where there are too few, all there are is chosen.
pub fn preferred(devices: &[Device], available: &[String], must: &[String], size: usize) -> Vec<String> {
    let position: BTreeMap<&str, usize> =
        devices.iter().enumerate().map(|(at, device)| (device.id.as_str(), at)).collect();
    let known = |ids: &[String]| -> BTreeSet<usize> {
        ids.iter().filter_map(|id| position.get(id.as_str()).copied()).collect()
    };
    let must = known(must);
    let mut free = known(available);
    let free_of_group =
        |free: &BTreeSet<usize>, group: &str| free.iter().filter(|&&at| devices[at].group == group).count();
    let mut chosen: Vec<usize> = must.iter().copied().collect();
    free.retain(|at| !must.contains(at));
    let home = home(devices, &chosen, &free);
    while chosen.len() < size {
        let next = free.iter().copied().min_by_key(|&at| {
            let device = &devices[at];
            let is_away = !device.nodes.is_empty() && device.nodes.is_disjoint(&home);
            let taken = chosen.iter().filter(|&&it| devices[it].group == device.group).count();
            (is_away, taken, Reverse(free_of_group(&free, &device.group)), at)
        });
        let Some(next) = next else { break };
        free.remove(&next);
        chosen.push(next);
    }
    chosen.iter().map(|&at| devices[at].id.clone()).collect()
}

/// The NUMA nodes to stay at: those of what is chosen already, else the one with the most devices that are free.
fn home(devices: &[Device], chosen: &[usize], free: &BTreeSet<usize>) -> BTreeSet<u32> {
    let nodes: BTreeSet<u32> = chosen.iter().flat_map(|&at| devices[at].nodes.iter().copied()).collect();
    if !nodes.is_empty() {
        return nodes;
    }
    let mut free_at: BTreeMap<u32, usize> = BTreeMap::new();
    for node in free.iter().flat_map(|&at| &devices[at].nodes) {
        *free_at.entry(*node).or_default() += 1;
    }
    free_at
        .into_iter()
        .max_by_key(|&(node, count)| (count, Reverse(node)))
        .map(|(node, _)| node)
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(id: &str, node: u32, group: &str) -> Device {
        let (id, group) = (id.to_owned(), group.to_owned());
        Device { id, is_healthy: true, nodes: BTreeSet::from([node]), group }
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn devices_come_from_one_node_and_from_several_cards() {
        let devices = [
            device("a0", 0, "a"),
            device("a1", 0, "a"),
            device("b0", 1, "b"),
            device("b1", 1, "b"),
            device("c0", 1, "c"),
        ];
        let all: Vec<String> = devices.iter().map(|it| it.id.clone()).collect();
        assert_eq!(preferred(&devices, &all, &[], 2), ["b0", "c0"]);
        assert_eq!(preferred(&devices, &all, &[], 3), ["b0", "c0", "b1"]);
        // Whom an initial container has stays, and the others come near it.
        assert_eq!(preferred(&devices, &all, &ids(&["a1"]), 2), ["a1", "a0"]);
        // The card with the most functions left is taken from first.
        assert_eq!(preferred(&devices, &ids(&["c0", "b1", "b0"]), &[], 1), ["b0"]);
    }

    proptest! {
        #[test]
        fn what_is_preferred_is_free_whole_and_has_what_it_must(
            kinds in prop::collection::vec((0u32..3, 0u32..3), 1..12),
            free in any::<u16>(),
            must in any::<u16>(),
            size in 0usize..14,
        ) {
            let devices: Vec<Device> = kinds.iter().enumerate()
                .map(|(at, (node, group))| device(&format!("d{at}"), *node, &group.to_string()))
                .collect();
            let among = |mask: u16| -> Vec<String> {
                (0..devices.len()).filter(|at| mask >> at & 1 == 1).map(|at| devices[at].id.clone()).collect()
            };
            let available = among(free);
            let must = among(must & free);
            let chosen = preferred(&devices, &available, &must, size);
            let unique: BTreeSet<&String> = chosen.iter().collect();
            prop_assert_eq!(unique.len(), chosen.len());
            prop_assert!(chosen.iter().all(|id| available.contains(id)));
            prop_assert!(must.iter().all(|id| chosen.contains(id)));
            prop_assert_eq!(chosen.len(), size.max(must.len()).min(available.len()));
        }
    }
}
