//! Pods of a cluster: attached by the CNI plugin and the agent together, policed as the cluster says.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::containers::{Container, Runtime, address};
use crate::lab::{Lab, under4, v4, v6, wait_until};
use crate::traffic::{no_ping, ping};

/// A folder of manifests that describes the lab.
pub struct Folder(PathBuf);

impl Folder {
    /// Two nodes and the network that they are in; the second is no agent's, so the network is as its file has it.
    pub fn of(lab: &Lab) -> Self {
        let folder = Self(lab.file("manifests"));
        std::fs::create_dir(&folder.0).expect("the lab's own folder");
        for i in 1..=2 {
            let node = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("node{i}") },
                "spec": { "podCIDRs": [format!("10.244.{i}.0/24"), format!("{}/64", v6(i, 0))] },
                "status": { "addresses": [{ "type": "InternalIP", "address": under4(i) }] },
            });
            folder.write(&format!("node{i}.json"), &node);
        }
        let spec = json!({ "vni": 100, "prefixes": ["10.244.0.0/16", "fd10:244::/32"] });
        let network = json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "Network", "metadata": { "name": "default" }, "spec": spec,
        });
        folder.write("network.json", &network);
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file at once, as an editor does.
    pub fn write(&self, name: &str, value: &Value) {
        let new = self.0.join(format!(".{name}"));
        std::fs::write(&new, value.to_string()).expect("the lab's own folder");
        std::fs::rename(new, self.0.join(name)).expect("the lab's own folder");
    }

    /// A pod of node 1 as it is before it has an address.
    pub fn pod(&self, name: &str, app: &str, annotations: Value) {
        let metadata = json!({
            "name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "labels": { "app": app },
            "annotations": annotations,
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": { "nodeName": "node1", "containers": [] }, "status": { "phase": "Pending" },
        });
        self.write(&format!("pod-{name}.json"), &pod);
    }
}

impl Folder {
    /// A pod as it is known to all, with the addresses that kubelet has told.
    pub fn pod_at(&self, name: &str, app: &str, node: usize, addresses: &[String]) {
        let ips: Vec<Value> = addresses.iter().map(|it| json!({ "ip": it })).collect();
        let metadata = json!({
            "name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "labels": { "app": app },
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": { "nodeName": format!("node{node}"), "containers": [] },
            "status": { "phase": "Running", "podIPs": ips },
        });
        self.write(&format!("pod-{name}.json"), &pod);
    }
}

/// What kubelet says of a pod when its container is attached.
pub fn of_pod(name: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=uid-of-{name}"
    )
}

fn closed() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "closed", "namespace": "default" },
        "spec": { "podSelector": { "matchLabels": { "app": "closed" } }, "policyTypes": ["Ingress", "Egress"] },
    })
}

#[test]
fn a_clusters_pod_is_policed_before_it_can_say_anything() {
    let lab = Lab::up("--pods 1");
    let folder = Folder::of(&lab);
    folder.write("policy.json", &closed());
    let runtime = Runtime::start_agent(&lab, 1, folder.path().to_owned());
    let config = runtime.config(json!({}));
    for round in 0..2 {
        let name = format!("closed-{round}");
        let container = Container::new(&lab, &name);
        // From the moment that the interface is there it tries to get a word out.
        let line = format!(
            "while ! ip -4 route get {0} >/dev/null 2>&1; do :; done; ping -c 3 -i 0.2 -W 1 {0} || :",
            v4(2, 1)
        );
        let chatter = container.place.spawn(&format!("sh -c '{line}'"));
        // The runtime may be quicker than the watch.
        let plugin = std::thread::scope(|scope| {
            let args = of_pod(&name);
            let (runtime, container, config) = (&runtime, &container, &config);
            let plugin =
                scope.spawn(move || runtime.call_with("ADD", container, config, &[("CNI_ARGS", &args)]));
            if round % 2 == 1 {
                std::thread::sleep(std::time::Duration::from_millis(300));
                assert!(!plugin.is_finished(), "a pod that nobody knows is attached");
            }
            folder.pod(&name, "closed", json!({}));
            plugin.join().expect("no panic")
        });
        let result = plugin.expect("a pod that is known is attached");
        let said = chatter.finish();
        assert!(said.contains(" 0 received"), "{said}");
        no_ping(&lab.pod(2, 1), &address(&result, false));
        runtime.call("DEL", &container, &config).expect("it is detached");
    }
    // The same pod without the policy: it was the policy.
    std::fs::remove_file(folder.path().join("policy.json")).expect("just written");
    let container = Container::new(&lab, "opened");
    let args = of_pod("closed-0");
    runtime.call_with("ADD", &container, &config, &[("CNI_ARGS", &args)]).expect("it is attached");
    wait_until("the policy is gone", || {
        container.place.attempt(&format!("ping -c 1 -W 0.2 {}", v4(2, 1))).status.success()
    });
    runtime.call("DEL", &container, &config).expect("it is detached");
    lab.await_endpoints(1, 1);
    assert_eq!(runtime.given(), [Value::Null; 0]);
}

#[test]
fn packets_go_on_while_the_agent_and_after_the_dataplane_starts_anew() {
    let lab = Lab::up("--pods 1");
    let folder = Folder::of(&lab);
    folder.write("policy.json", &closed());
    folder.pod("open", "open", json!({}));
    folder.pod("closed", "closed", json!({}));
    let mut runtime = Runtime::start_agent(&lab, 1, folder.path().to_owned());
    let config = runtime.config(json!({}));
    let (open, shut) = (Container::new(&lab, "open"), Container::new(&lab, "closed"));
    let mut results = Vec::new();
    for container in [&open, &shut] {
        let args = of_pod(&container.id);
        let added = runtime.call_with("ADD", container, &config, &[("CNI_ARGS", &args)]);
        results.push(added.expect("it is attached"));
    }
    for six in [false, true] {
        ping(&open.place, &if six { v6(2, 1) } else { v4(2, 1) });
        ping(&lab.pod(2, 1), &address(&results[0], six));
        no_ping(&lab.pod(2, 1), &address(&results[1], six));
    }
    let echoes = open.place.spawn(&format!("ping -i 0.02 -c 100 -W 1 {}", v4(2, 1)));
    runtime.kill();
    runtime.restart("");
    wait_until("the agent has told its dataplane everything", || {
        lab.node(1).attempt("curl -sf http://127.0.0.1:9470/readyz").status.success()
    });
    let said = echoes.finish();
    assert!(said.contains(" 0% packet loss"), "{said}");
    no_ping(&lab.pod(2, 1), &address(&results[1], false));
    let check = runtime.config(json!({ "prevResult": results[0] }));
    runtime.call("CHECK", &open, &check).expect("it is as it was attached");
    lab.kill(1);
    lab.start(1);
    wait_until("the pod is there again", || {
        open.place.attempt(&format!("ping -c 1 -W 0.5 {}", v4(2, 1))).status.success()
    });
    no_ping(&lab.pod(2, 1), &address(&results[1], false));
    runtime.call("CHECK", &open, &check).expect("it is as it was attached");
    // Detached while the dataplane is away: nothing of it comes back with the dataplane.
    lab.kill(1);
    runtime.call("DEL", &shut, &config).expect("it is detached");
    lab.start(1);
    runtime.call("DEL", &open, &config).expect("it is detached");
    lab.await_endpoints(1, 1);
    assert_eq!(runtime.given(), [Value::Null; 0]);
}

#[test]
fn wherever_an_agent_ends_its_cluster_sees_one_pod() {
    let lab = Lab::up("--pods 0");
    let folder = Folder::of(&lab);
    folder.pod("c1", "open", json!({}));
    let mut runtime = Runtime::start_agent(&lab, 1, folder.path().to_owned());
    let container = Container::new(&lab, "c1");
    let config = runtime.config(json!({}));
    let args = of_pod("c1");
    let add = |runtime: &Runtime<'_>| runtime.call_with("ADD", &container, &config, &[("CNI_ARGS", &args)]);
    for point in ["linked", "live", "configured"] {
        runtime.restart(&format!("--die-at {point}"));
        assert_eq!(add(&runtime).unwrap_err()["code"], 11, "{point}");
        runtime.restart("");
        // What was begun is undone, also when nobody comes again.
        lab.await_endpoints(1, 0);
        add(&runtime).unwrap_or_else(|failure| panic!("{point}: {failure}"));
        assert_eq!(runtime.given().len(), 1, "{point}");
        ping(&container.place, &v4(1, 254));
        runtime.call("DEL", &container, &config).expect("it is detached");
        runtime.assert_clean();
    }
}
