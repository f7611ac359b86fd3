//! A node without an API server: its agent follows a directory of manifests, and packets follow the agent.

use serde_json::json;

use crate::lab::{Lab, programs, under4, v4, wait_until};
use crate::traffic::{no_ping, ping};

#[test]
fn packets_follow_a_directory_of_manifests() {
    let lab = Lab::up("--pods 2");
    let folder = lab.file("manifests");
    std::fs::create_dir(&folder).expect("the lab's own folder");
    let write =
        |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("the lab's own folder");
    let mut objects = Vec::new();
    for i in 1..=2 {
        let node = format!("node{i}");
        objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
            "spec": {"podCIDRs": [format!("10.244.{i}.0/24"), format!("fd10:244:{i}::/64")]},
            "status": {"addresses": [{"type": "InternalIP", "address": under4(i)}]},
        }));
        for j in 1..=2 {
            objects.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{node}-pod{j}"), "namespace": "default", "labels": {"node": node, "pod": format!("pod{j}")}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "podIP": v4(i, j), "podIPs": [{"ip": v4(i, j)}]},
            }));
        }
    }
    write("cluster.json", &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string());
    let agent = |i: u8| {
        lab.node(i).spawn(&format!(
            "{} --node node{i} --manifests {} --socket {} --listen 127.0.0.1:9470",
            programs().join("penstock-agent").display(),
            folder.display(),
            lab.file(&format!("node{i}.sock")).display()
        ))
    };
    let mut agents = [agent(1), agent(2)];
    for i in 1..=2 {
        wait_until("the agent has told its dataplane everything", || {
            lab.node(i).attempt("curl -sf http://127.0.0.1:9470/readyz").status.success()
        });
    }
    ping(&lab.pod(1, 1), &v4(2, 1));
    let closed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: default}\n\
                  spec: {podSelector: {matchLabels: {node: node2}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {pod: pod2}}}]}]}\n";
    write("policy.yaml", closed);
    let answers =
        |from: u8| lab.pod(1, from).attempt(&format!("ping -c 1 -W 0.2 {}", v4(2, 1))).status.success();
    wait_until("pod 2 only reaches the closed pod", || !answers(1) && answers(2));
    // What cannot be read changes nothing, and a file that goes takes its objects with it.
    write("policy.yaml", "kind: [");
    no_ping(&lab.pod(1, 1), &v4(2, 1));
    agents.iter_mut().for_each(crate::lab::Running::assert_runs);
    std::fs::remove_file(folder.join("policy.yaml")).expect("just written");
    wait_until("the policy is gone", || answers(1));
}
