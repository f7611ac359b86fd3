//! Pods with a volume for userspace networking: what is written to them at a real API server.

use serde_json::{Value, json};

use super::Cluster;
use crate::containers::{Container, Runtime};
use crate::lab::text;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod of node 1 with the volume, mounted by its second container; its unique identifier.
fn add_pod(cluster: &Cluster, name: &str) -> String {
    let mounts = json!([{"name": "shared-dir", "mountPath": "/var/lib/usrsp"}]);
    cluster.server.apply(
        PODS,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "nodeName": "node1", "volumes": [{"name": "shared-dir", "emptyDir": {}}],
                "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i", "volumeMounts": mounts}],
            },
        }),
    );
    text(&cluster.server.get(&format!("{PODS}/{name}"))["metadata"]["uid"])
}

#[test]
fn a_pod_is_told_of_its_sockets_by_annotations_of_the_userspace_plugin() {
    let cluster = Cluster::without_agents("10.244.0.0/16", &[]);
    let runtime = Runtime::start_agent_with(&cluster.lab, 1, &cluster.server.kubeconfig());
    let uid = add_pod(&cluster, "fast");
    let volume = runtime.folder("pods").join(&uid).join("volumes/kubernetes.io~empty-dir/shared-dir");
    std::fs::create_dir_all(&volume).expect("as a kubelet makes it");
    let container = Container::new(&cluster.lab, "c1-long-enough");
    let ipam = json!({"ranges": [[{"subnet": "10.244.64.0/24"}]]});
    let wanted = json!({"interface": "vhost-user", "vhostUser": {"role": "server"}, "ipam": ipam});
    let config = runtime.config(wanted);
    let pod = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=fast;K8S_POD_UID={uid}");
    let call = |verb: &str, ifname: &str| {
        let variables = [("CNI_ARGS", pod.as_str()), ("CNI_IFNAME", ifname)];
        runtime.call_with(verb, &container, &config, &variables).unwrap_or_else(|it| panic!("{ifname}: {it}"))
    };
    let told = || -> (Value, Vec<Value>) {
        let annotations = cluster.server.get(&format!("{PODS}/fast"))["metadata"]["annotations"].clone();
        let listed = text(&annotations["userspace/configuration-data"]);
        (annotations["userspace/mapped-dir"].clone(), serde_json::from_str(&listed).expect("JSON"))
    };
    let results = [call("ADD", "net1"), call("ADD", "net2")];
    let (folder, sockets) = told();
    assert_eq!(folder, "/var/lib/usrsp/", "a reader puts the socket's name right behind");
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    for (socket, (ifname, result)) in sockets.iter().zip(["net1", "net2"].into_iter().zip(&results)) {
        assert_eq!((&socket["containerId"], &socket["ifName"]), (&json!("c1-long-enough"), &json!(ifname)));
        let file = format!("c1-long-enou-{ifname}");
        let described = json!({"mode": "client", "socketfile": file});
        assert_eq!(
            (&socket["config"]["iftype"], &socket["config"]["vhost"]),
            (&json!("vhostuser"), &described)
        );
        assert_eq!(socket["ipResult"]["ips"][0]["address"], result["ips"][0]["address"]);
        assert!(volume.join(format!("configData-{file}.json")).exists());
    }
    // The next sandbox of the pod has other sockets.
    call("DEL", "net1");
    call("DEL", "net2");
    assert_eq!(std::fs::read_dir(&volume).expect("the pod's own").count(), 0);
    let next = Container::new(&cluster.lab, "c2-long-enough");
    let added = runtime.call_with("ADD", &next, &config, &[("CNI_ARGS", &pod), ("CNI_IFNAME", "net1")]);
    added.expect("it is attached");
    let (_, sockets) = told();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    assert_eq!(sockets[0]["containerId"], "c2-long-enough");
    runtime.call_with("DEL", &next, &config, &[("CNI_ARGS", &pod), ("CNI_IFNAME", "net1")]).expect("gone");
    assert_eq!(runtime.given(), [Value::Null; 0]);
}
