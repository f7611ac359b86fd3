//! Real container runtimes: their pods are attached by the plugin that they call, and by the agent behind it.

mod containerd;
mod cri;

use serde_json::json;

use crate::attach_agent::Folder;
use crate::containers::Runtime;
use crate::lab::{Lab, Place, wait_until};
use containerd::Containerd;
use cri::Pod;

/// Pods of each node.
const PODS: usize = 25;

fn asks(from: &Pod, to: &Pod) -> bool {
    let mut ping = std::process::Command::new("nsenter");
    ping.arg(format!("--net={}", from.namespace)).args(["ping", "-c", "1", "-W", "1", &to.addresses[0]]);
    ping.output().expect("nsenter").status.success()
}

/// The names of network namespaces that runtimes make.
fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").expect("labs have namespaces");
    let names = entries.map(|it| it.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("cni-")).collect();
    names.sort();
    names
}

#[test]
fn fifty_pods_of_containerd_come_at_once_reach_each_other_as_policies_say_and_leave_nothing() {
    let before = namespaces();
    let lab = Lab::up("--pods 0");
    let folder = Folder::of(&lab);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "shut", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "shut" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "friend" } } }] }],
        },
    });
    folder.write("policy.json", &policy);
    let agents: Vec<Runtime<'_>> =
        (1..=2).map(|node| Runtime::start_agent(&lab, node, folder.path().to_owned())).collect();
    let mut runtimes: Vec<Containerd> = (1u8..)
        .zip(&agents)
        .map(|(node, agent)| Containerd::start(&lab, node, &agent.config(json!({}))))
        .collect();
    // Of each node's pods the first is shut to all but the second.
    let app = |i: usize| ["shut", "friend", "other"][i.min(2)];
    let names =
        |node: usize| -> Vec<String> { (0..PODS).map(|i| format!("node{node}-{}-{i}", app(i))).collect() };
    let tell = |node: usize, pods: &[Pod]| {
        for (i, name) in names(node).iter().enumerate() {
            folder.pod_at(name, app(i), node, pods.get(i).map_or(&[], |pod| &pod.addresses));
        }
    };
    (1..=2).for_each(|node| tell(node, &[]));
    let pods: Vec<Vec<Pod>> = std::thread::scope(|scope| {
        let started: Vec<_> = (1..)
            .zip(&mut runtimes)
            .map(|(node, runtime)| {
                let names = names(node);
                scope.spawn(move || runtime.run(&names))
            })
            .collect();
        started.into_iter().map(|it| it.join().expect("pods start")).collect()
    });
    // Before anybody knows who is who, the shut ones are shut.
    assert!(!asks(&pods[1][2], &pods[0][0]), "a shut pod answers a stranger");
    // As kubelet tells the addresses.
    (1..=2).for_each(|node| tell(node, &pods[node - 1]));
    wait_until("a friend of the shut pod on the other node reaches it", || asks(&pods[0][1], &pods[1][0]));
    for i in 1..PODS {
        let (near, far) = (&pods[0][i], &pods[1][i]);
        assert!(asks(near, far) && asks(far, near), "pod {i} and its like on the other node");
        assert!(asks(near, &pods[0][(i % (PODS - 1)) + 1]), "pod {i} and its neighbour");
    }
    for shut in [&pods[0][0], &pods[1][0]] {
        assert!(!asks(&pods[0][2], shut) && !asks(&pods[1][2], shut), "a shut pod answers a stranger");
    }
    for (runtime, agent) in runtimes.iter_mut().zip(&agents) {
        assert_eq!(agent.given().len(), PODS);
        runtime.remove_all();
        agent.assert_clean();
    }
    assert_eq!(namespaces(), before);
    let veths = |place: &Place| place.run("ip -o link show type veth | wc -l").trim().to_owned();
    assert_eq!([veths(&lab.node(1)), veths(&lab.node(2))], ["1", "1"], "only the uplinks are left");
}
