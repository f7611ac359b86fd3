//! How long a change takes to be known and translated in a cluster of 30,000 pods and 30,000 policies.
//!
//! `cargo bench -p penstock-control --bench translation`; with `--test`, as `cargo test` runs it, in small.

use std::time::{Duration, Instant};

use penstock_control::cluster::{Change, Cluster};
use penstock_control::kubernetes::{NetworkPolicy, Node, Object, Pod};
use penstock_control::translate::{Settings, Translation};
use serde_json::json;

/// The cluster's measures.
struct Size {
    namespaces: usize,
    pods: usize,
    policies: usize,
    nodes: usize,
    events: usize,
}

fn object<T: serde::de::DeserializeOwned + Into<Object>>(value: serde_json::Value) -> Object {
    serde_json::from_value::<T>(value).expect("an object of its kind").into()
}

fn node(number: usize) -> Object {
    object::<Node>(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node{number}") },
        "spec": { "podCIDRs": [format!("10.{}.{}.0/24", 1 + number / 256, number % 256)] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.168.{}.{}", number / 250, 1 + number % 250) }] },
    }))
}

fn pod(size: &Size, number: usize, round: usize) -> Object {
    let node = number % size.nodes;
    let (namespace, host) = (number % size.namespaces, 1 + number / size.nodes);
    object::<Pod>(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": format!("team{namespace}"), "name": format!("app-{number}"),
            "labels": { "app": format!("app{}", (number / size.namespaces + round) % 20), "tier": "web" },
        },
        "spec": { "nodeName": format!("node{node}"), "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIP": format!("10.{}.{}.{host}", 1 + node / 256, node % 256) },
    }))
}

fn policy(size: &Size, number: usize, round: usize) -> Object {
    let namespace = number % size.namespaces;
    let app = number / size.namespaces % 20;
    let peer = match number % 5 {
        0 => json!({ "namespaceSelector": {} }),
        1 => {
            json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": format!("team{}", (namespace + 1) % size.namespaces) } } })
        }
        2 => json!({ "ipBlock": { "cidr": format!("172.{}.0.0/16", number % 250) } }),
        _ => json!({ "podSelector": { "matchLabels": { "app": format!("app{}", (app + 1) % 20) } } }),
    };
    object::<NetworkPolicy>(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": format!("team{namespace}"), "name": format!("policy-{number}") },
        "spec": {
            "podSelector": { "matchLabels": { "app": format!("app{app}") } },
            "ingress": [{ "from": [peer], "ports": [{ "port": 8000 + round }, { "port": "http" }] }],
        },
    }))
}

fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn report(what: &str, mut times: Vec<Duration>, told: usize) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what:<28} p50 {:>9.1?}  p99 {:>9.1?}  worst {:>9.1?}  {:.1} objects told each",
        at(0.5),
        at(0.99),
        at(1.0),
        told as f64 / times.len() as f64
    );
}

fn main() {
    let small = std::env::args().any(|word| word == "--test");
    let size = if small {
        Size { namespaces: 10, pods: 300, policies: 300, nodes: 5, events: 20 }
    } else {
        Size { namespaces: 300, pods: 30_000, policies: 30_000, nodes: 300, events: 1000 }
    };
    let mut cluster = Cluster::new(Settings::network());
    let mut translation = Translation::new(Settings::of_node("node0"));
    let mut change = Change::default();
    let from = Instant::now();
    let all = (0..size.nodes).map(node);
    let all = all.chain((0..size.pods).map(|number| pod(&size, number, 0)));
    for object in all.chain((0..size.policies).map(|number| policy(&size, number, 0))) {
        change.merge(cluster.apply(&object));
    }
    let known = from.elapsed();
    let from = Instant::now();
    let delta = translation.follow(&cluster, &change);
    println!(
        "{} pods, {} policies: known after {known:.1?}, translated in {:.1?}: {} objects; {} MiB",
        size.pods,
        size.policies,
        from.elapsed(),
        delta.upserts.len(),
        memory_mib()
    );
    let mut events = |what: &str, make: &dyn Fn(usize) -> Object| {
        let (mut times, mut told) = (Vec::new(), 0);
        for event in 0..size.events {
            let object = make(event);
            let from = Instant::now();
            let change = cluster.apply(&object);
            told += translation.follow(&cluster, &change).upserts.len();
            times.push(from.elapsed());
        }
        report(what, times, told);
    };
    let far = |event: usize| 1 + event * 7 % (size.pods - 1);
    let near = |event: usize| event * size.nodes % size.pods;
    events("a pod's labels change", &|event| pod(&size, far(event), 1 + event));
    events("a local pod's labels change", &|event| pod(&size, near(event), 1 + event));
    events("a policy changes", &|event| policy(&size, event * 7 % size.policies, 1 + event));
    events("a local pod's policy changes", &|event| {
        policy(&size, (event % size.policies.div_ceil(size.namespaces)) * size.namespaces, 1 + event)
    });
}
