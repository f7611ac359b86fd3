//! Multus, called as a runtime calls it: pods with a second, accelerated interface, policed there as on the first.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use penstock_wire::MacAddr;
use serde_json::{Value, json};

use super::{Cluster, POLICIES};
use crate::containers::Container;
use crate::lab::{PATIENCE, number, programs, succeed, text, v4, v6, wait_until};
use crate::testpmd::Testpmd;
use crate::traffic::{ping, reach};

/// Where `scripts/setup --api-server` puts Multus.
const MULTUS: &str = "/var/cache/penstock/kubernetes/multus";
/// Where interfaces' devices are described (device information specification of the Network Plumbing Working Group).
const DEVICES: &str = "/run/k8s.cni.cncf.io/devinfo/cni";
/// The device that the kubelet gave each of the pods.
const DEVICE: &str = "vhost-user-0";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// The definition of attachment definitions, as the Network Plumbing Working Group has it.
fn attachment_definitions() -> Value {
    let spec = json!({"type": "object", "properties": {"config": {"type": "string"}}});
    let plain = |kind: &str| json!({"type": kind});
    let properties = json!({
        "apiVersion": plain("string"), "kind": plain("string"), "metadata": plain("object"), "spec": spec,
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io", "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions", "singular": "network-attachment-definition",
                "kind": "NetworkAttachmentDefinition", "shortNames": ["net-attach-def"],
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
            }],
        },
    })
}

/// Our plugin among others, with the capabilities that `penstock install-cni` writes.
fn plugin(more: Value) -> Value {
    let mut plugin = json!({
        "type": "penstock-cni", "socket": "/var/lib/penstock/cni.sock",
        "capabilities": {"CNIDeviceInfoFile": true, "deviceID": true, "ips": true, "mac": true},
    });
    let more = more.as_object().cloned().unwrap_or_default();
    plugin.as_object_mut().expect("an object").extend(more);
    plugin
}

/// What Multus may do, as its own manifests have it; a further network; and the definition that leads there.
fn prepare(cluster: &Cluster) {
    let server = &cluster.server;
    let all = ["get", "list", "update", "watch"];
    let rules = json!([
        {"apiGroups": ["k8s.cni.cncf.io"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": all},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    let rbac = "rbac.authorization.k8s.io";
    server.apply(
        &format!("/apis/{rbac}/v1/clusterroles"),
        &json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "multus"}, "rules": rules}),
    );
    server.apply(
        &format!("/apis/{rbac}/v1/clusterrolebindings"),
        &json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "multus"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "multus"},
            "subjects": [{"kind": "ServiceAccount", "name": "multus", "namespace": "kube-system"}],
        }),
    );
    server.apply(
        "/apis/penstock.dev/v1alpha1/networks",
        &json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "Network", "metadata": {"name": "fast"},
            "spec": {"vni": 200, "prefixes": ["10.200.0.0/16", "fd10:200::/32"]},
        }),
    );
    let ranges = json!([[{"subnet": "10.200.0.0/16"}], [{"subnet": "fd10:200::/32"}]]);
    let fast = json!({"network": "fast", "interface": "vhost-user", "ipam": {"ranges": ranges}});
    let list = json!({"cniVersion": "1.1.0", "name": "fast", "plugins": [plugin(fast)]});
    server.apply(
        "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions",
        &json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {
                "name": "fast", "namespace": "default",
                "annotations": {"k8s.v1.cni.cncf.io/resourceName": "penstock.dev/vhost-user"},
            },
            "spec": {"config": list.to_string()},
        }),
    );
}

/// A node with what a runtime and a kubelet have there.
struct Node<'a> {
    cluster: &'a Cluster,
    i: u8,
}

/// The folder that stands for a file system's part on node `i`.
fn folder(cluster: &Cluster, i: u8, name: &str) -> PathBuf {
    cluster.lab.file(&format!("node{i}-{name}"))
}

/// Starts the agent of a node anew, as one that attaches pods.
fn attach_by_agent(cluster: &mut Cluster, i: u8) {
    cluster.agents[usize::from(i) - 1].take().expect("started").end("TERM");
    let var = folder(cluster, i, "var-lib");
    for name in ["penstock", "kubelet/device-plugins"] {
        std::fs::create_dir_all(var.join(name)).expect("the lab's own folder");
    }
    let folder = |name: &str| folder(cluster, i, name).display().to_string();
    let reserved: Vec<String> = [1, 2, 254].into_iter().flat_map(|j| [v4(i, j), v6(i, j)]).collect();
    let flags = format!(
        "--cni-socket {} --records {} --sockets {} --devices {} --kubelet-pods {} --reserve {}",
        var.join("penstock/cni.sock").display(),
        folder("records"),
        folder("sockets"),
        folder("devices"),
        folder("pods"),
        reserved.join(" --reserve "),
    );
    cluster.start_agent_with(i, &flags);
}

/// A pod that exists on the API server, and its container.
struct Pod {
    name: String,
    node: u8,
    fast: [String; 2],
    container: Container,
}

impl Pod {
    /// Adds it as a scheduler and a kubelet that admits it would.
    fn add(cluster: &Cluster, name: &str, node: u8, app: &str) -> Pod {
        // Device descriptions of all labs are in one folder.
        let container = Container::new(&cluster.lab, &format!("{name}-{}", std::process::id()));
        let fast = [format!("10.200.{node}.7"), format!("fd10:200:{node}::7")];
        let pod = Pod { name: name.to_owned(), node, fast, container };
        pod.apply(cluster, app);
        let uid = text(&pod.get(cluster)["metadata"]["uid"]);
        // What the kubelet keeps of devices that its plugins gave.
        let entry = json!({
            "PodUID": uid, "ContainerName": "c", "ResourceName": "penstock.dev/vhost-user",
            "DeviceIDs": {"-1": [DEVICE]}, "AllocResp": "",
        });
        let kept = json!({"Data": {"PodDeviceEntries": [entry], "RegisteredDevices": {}}, "Checksum": 0});
        let file =
            folder(cluster, node, "var-lib").join("kubelet/device-plugins/kubelet_internal_checkpoint");
        std::fs::write(file, kept.to_string()).expect("the lab's own folder");
        std::fs::create_dir_all(folder(cluster, node, "devices").join(DEVICE)).expect("the lab's own folder");
        pod
    }

    fn apply(&self, cluster: &Cluster, app: &str) {
        let ips = [format!("{}/16", self.fast[0]), format!("{}/32", self.fast[1])];
        let wanted = json!([{"name": "fast", "interface": "net1", "ips": ips}]);
        let resources = json!({"limits": {"penstock.dev/vhost-user": "1"}});
        cluster.server.apply(
            PODS,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": self.name, "namespace": "default", "labels": {"app": app},
                    // The latter is about the first interface alone.
                    "annotations": {
                        "k8s.v1.cni.cncf.io/networks": wanted.to_string(), "penstock.dev/interface": "veth",
                    },
                },
                "spec": {
                    "nodeName": format!("node{}", self.node),
                    "containers": [{"name": "c", "image": "i", "resources": resources}],
                },
            }),
        );
    }

    fn get(&self, cluster: &Cluster) -> Value {
        cluster.server.get(&format!("{PODS}/{}", self.name))
    }

    /// What Multus wrote to it, an interface each.
    fn status(&self, cluster: &Cluster) -> Vec<Value> {
        let status = text(&self.get(cluster)["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"]);
        serde_json::from_str(&status).unwrap_or_else(|e| panic!("no JSON ({e}): {status}"))
    }

    fn device_file(&self) -> PathBuf {
        Path::new(DEVICES).join(format!("default-fast-{}_net1", self.container.id))
    }
}

impl Node<'_> {
    /// Calls Multus for a pod; what it answers.
    fn call(&self, verb: &str, pod: &Pod) -> Result<Value, String> {
        assert!(
            Path::new(MULTUS).exists(),
            "no {MULTUS}, which takes Go: scripts/setup --api-server builds it"
        );
        let uid = text(&pod.get(self.cluster)["metadata"]["uid"]);
        let home = json!({"cniVersion": "1.1.0", "name": "penstock", "plugins": [plugin(json!({}))]});
        let config = json!({
            "cniVersion": "1.1.0", "name": "multus-cni-network", "type": "multus",
            "kubeconfig": self.cluster.server.kubeconfig_of_multus(), "delegates": [home],
            "logFile": folder(self.cluster, self.i, "multus.log"), "logLevel": "verbose",
        });
        let mut multus = Command::new("ip");
        multus.args(["netns", "exec", self.cluster.lab.node(self.i).namespace(), "timeout"]);
        multus.arg(PATIENCE.as_secs().to_string()).args(["sh", "-c"]);
        // Of its own: what runtimes and kubelets keep lies at paths that are no matter of configuration.
        let var = folder(self.cluster, self.i, "var-lib");
        multus.arg(format!("mount --bind {} /var/lib && exec {MULTUS}", var.display()));
        multus.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.container.id).env("CNI_IFNAME", "eth0");
        multus.env("CNI_NETNS", pod.container.path()).env("CNI_PATH", programs());
        multus.env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={uid}",
                pod.name, pod.container.id
            ),
        );
        let child = multus.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("ip netns exec");
        child.stdin.take().expect("a pipe").write_all(config.to_string().as_bytes()).expect("Multus reads");
        let output = child.wait_with_output().expect("wait");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(if said.is_empty() { Value::Null } else { serde_json::from_str(&said).expect("JSON") })
    }

    /// What the agent has given.
    fn given(&self) -> Vec<Value> {
        let mut ipam = Command::new(programs().join("penstock"));
        let socket = folder(self.cluster, self.i, "var-lib").join("penstock/cni.sock");
        ipam.args(["--json", "ipam", "--cni-socket"]).arg(socket).arg("show");
        let answer: Value = serde_json::from_str(&succeed(ipam)).expect("JSON");
        answer.as_array().expect("a list").clone()
    }

    /// The packets that went to a pod by its second interface.
    fn arrived(&self, pod: &Pod) -> u64 {
        let ports = self.cluster.lab.ask(self.i, "ports");
        let rows = ports.as_array().expect("a list of ports").iter();
        let endpoint = format!("default/{}/net1", pod.name);
        rows.filter(|row| row["endpoint"] == *endpoint).map(|row| number(&row["tx_packets"])).sum()
    }
}

/// Attaches a pod, and looks at what is said of it. The socket and the address of its second interface.
fn attach(node: &Node<'_>, pod: &Pod) -> (PathBuf, String) {
    let result = node.call("ADD", pod).unwrap_or_else(|said| panic!("{}: {said}", pod.name));
    let status = pod.status(node.cluster);
    let of = |name: &str| {
        let found = status.iter().find(|it| it["interface"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {status:?}"))
    };
    let (eth0, net1) = (of("eth0"), of("net1"));
    assert_eq!((&eth0["name"], &eth0["default"]), (&json!("penstock"), &json!(true)));
    let ips = result["ips"].as_array().expect("addresses").iter();
    let ips: Vec<Value> = ips.map(|it| json!(text(&it["address"]).split('/').next())).collect();
    assert_eq!(eth0["ips"], json!(ips));
    assert_eq!((&net1["name"], &net1["default"]), (&json!("default/fast"), &Value::Null));
    assert_eq!(net1["ips"], json!(pod.fast));
    // The application serves the socket, in the folder that was mounted for it.
    let device = &net1["device-info"];
    assert_eq!((&device["type"], &device["version"]), (&json!("vhost-user"), &json!("1.1.0")));
    assert_eq!(device["vhost-user"]["mode"], "server");
    let socket = PathBuf::from(text(&device["vhost-user"]["path"]));
    assert_eq!(socket.parent(), Some(folder(node.cluster, node.i, "devices").join(DEVICE).as_path()));
    let described = std::fs::read(pod.device_file()).expect("the device is described");
    let described: Value = serde_json::from_slice(&described).expect("JSON");
    assert_eq!(described["vhost-user"], device["vhost-user"]);
    // Who looks into the pod sees an interface with these addresses.
    let shown = pod.container.place.run("ip address show net1");
    assert!(pod.fast.iter().all(|it| shown.contains(it.as_str())), "{shown}");
    // As its kubelet tells.
    let listed: Vec<Value> = ips.iter().map(|it| json!({"ip": it})).collect();
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"phase": "Running", "podIP": ips[0], "podIPs": listed, "conditions": conditions});
    node.cluster.server.apply_status(
        PODS,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": "default"}, "status": status}),
    );
    (socket, text(&net1["mac"]))
}

/// A policy for the pods of an `app`, in one direction: what `ingress` says may come in, and nothing may go out.
fn guard(name: &str, app: &str, direction: &str, ingress: &Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": [direction]});
    if direction == "Ingress" {
        spec["ingress"] = ingress.clone();
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

#[test]
fn pods_of_multus_have_a_second_interface_that_is_accelerated_and_policed() {
    let mut cluster = Cluster::with(&[attachment_definitions()]);
    prepare(&cluster);
    for i in 1..=2 {
        attach_by_agent(&mut cluster, i);
    }
    let cluster = &cluster;
    let friends = json!([{
        "from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"protocol": "UDP", "port": 9}],
    }]);
    cluster.server.apply(POLICIES, &guard("guard", "rx", "Ingress", &friends));
    let nodes = [Node { cluster, i: 1 }, Node { cluster, i: 2 }];
    for i in 1..=2 {
        wait_until("the further network is there", || {
            let objects = cluster.lab.ask(i, "objects");
            objects["network"].as_array().is_some_and(|all| all.iter().any(|it| it["name"] == "fast"))
        });
    }
    let (tx, rx) = (Pod::add(cluster, "tx", 1, "stranger"), Pod::add(cluster, "rx", 2, "rx"));
    let (tx_socket, tx_mac) = attach(&nodes[0], &tx);
    let (rx_socket, rx_mac) = attach(&nodes[1], &rx);
    // The first interface is as any pod's.
    reach(&tx.container.place, &v4(2, 1));
    for to in [v4(2, 1), v6(2, 1)] {
        ping(&tx.container.place, &to);
    }

    let device = |mac: &str| format!("mac={mac},server=1,packed_vq=0");
    let receiver = Testpmd::at(&rx_socket, "multus-rx", &device(&rx_mac), "--forward-mode=rxonly");
    let gateway = MacAddr::from_underlay([192, 168, 51, 1].into());
    let mode = format!(
        "--forward-mode=txonly --eth-peer=0,{gateway} --tx-ip={},{} --txpkts=64 --burst=8",
        tx.fast[0], rx.fast[0]
    );
    let sender = Testpmd::at(&tx_socket, "multus-tx", &device(&tx_mac), &mode);
    let refused = |i: u8, reason: &str| cluster.lab.drops(i).get(reason).copied().unwrap_or(0);
    let arrived = || nodes[1].arrived(&rx);
    // A stranger's packets come to the other node, and no further.
    wait_until("the receiver's policy refuses a stranger", || refused(2, "ingress-policy") > 1000);
    assert_eq!(arrived(), 0);
    // A friend's are let in, by the address that its node's Multus told.
    tx.apply(cluster, "friend");
    wait_until("a friend's packets arrive", || arrived() > 10_000);
    // What goes out is policed where it does.
    cluster.server.apply(POLICIES, &guard("mute", "friend", "Egress", &Value::Null));
    wait_until("the sender's policy holds", || refused(1, "egress-policy") > 1000);
    drop((sender, receiver));

    for (node, pod) in nodes.iter().zip([&tx, &rx]) {
        assert_eq!(node.given().len(), 2);
        for _ in 0..2 {
            node.call("DEL", pod).unwrap_or_else(|said| panic!("{}: {said}", pod.name));
        }
        assert_eq!(node.given(), [Value::Null; 0]);
        assert!(!pod.device_file().exists(), "{} is described still", pod.name);
        pod.container.place.run("! ip link show eth0 && ! ip link show net1");
        // The folder is the device's.
        let left = std::fs::read_dir(folder(cluster, node.i, "devices").join(DEVICE)).unwrap().count();
        assert_eq!(left, 0, "files in the device's folder");
        let links = cluster.lab.node(node.i).run("ip -o link");
        assert!(!links.contains(": ps"), "{links}");
        cluster.lab.await_endpoints(node.i, 2);
    }
}
