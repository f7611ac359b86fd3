//! A real API server in a lab: what is applied there is what pods' packets meet on two nodes, each with an agent.

mod crowd;
mod multus;
mod pools;
mod server;
mod shared_dir;

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chart::NAMESPACE;
use crate::lab::{Lab, Running, programs, under4, v4, v6, wait_until};
use crate::traffic::{no_ping, ping, reach};
use server::Server;

/// From an answer of the API server to what packets meet, in debug builds on a busy machine.
const BOUND: Duration = Duration::from_secs(2);

/// Two nodes with a pod each whose dataplanes know of nothing but these and the uplink, their agents, and an API server.
struct Cluster {
    agents: Vec<Option<Running>>,
    server: Server,
    lab: Lab,
}

impl Cluster {
    fn up() -> Cluster {
        Cluster::with(&[])
    }

    /// One that serves further definitions.
    fn with(definitions: &[Value]) -> Cluster {
        let mut cluster = Cluster::without_agents("10.244.0.0/16", definitions);
        for i in 1..=2 {
            cluster.start_agent(i);
        }
        cluster
    }

    /// One whose nodes have no agents yet, with pods in an IPv4 prefix.
    fn without_agents(prefix: &str, definitions: &[Value]) -> Cluster {
        let lab = Lab::up("--pods 2 --no-daemons");
        for i in 1..=2 {
            // Other nodes and the ways to them are for the agents to say.
            let file = lab.file(&format!("node{i}.toml"));
            let text = std::fs::read_to_string(&file).expect("the lab wrote it");
            let end = text.find("[[peer]]").expect("the other node is a peer");
            std::fs::write(&file, &text[..end]).expect("the lab's own folder");
            lab.start(i);
        }
        let server = Server::start(&lab);
        // Agents have no more leave than the chart gives them.
        server.install_chart(&[
            "uplink.interface=uplink",
            &format!("network.prefixes={{{prefix},fd10:244::/32}}"),
            "network.natOutgoing=false",
        ]);
        for definition in definitions {
            server.apply("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition);
            server.await_definition(definition["metadata"]["name"].as_str().expect("a name"));
        }
        let cluster = Cluster { agents: vec![None, None], server, lab };
        for i in 1..=2 {
            cluster.add_node(i);
        }
        cluster
    }

    fn add_node(&self, i: u8) {
        let name = format!("node{i}");
        let cidrs = [format!("10.244.{i}.0/24"), format!("fd10:244:{i}::/64")];
        self.server.apply(
            "/api/v1/nodes",
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}),
        );
        let addresses = json!([{"type": "InternalIP", "address": under4(i)}]);
        self.server.apply_status(
            "/api/v1/nodes",
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}}),
        );
        for j in 1..=2 {
            self.add_pod(i, j, &json!({"node": name, "pod": format!("pod{j}")}));
        }
    }

    /// Pod `j` of node `i` as kubelet would write it.
    fn add_pod(&self, i: u8, j: u8, labels: &Value) {
        self.add_pod_to("default", i, j, labels);
    }

    fn add_pod_to(&self, namespace: &str, i: u8, j: u8, labels: &Value) {
        let pods = &format!("/api/v1/namespaces/{namespace}/pods");
        let name = format!("node{i}-pod{j}");
        self.server.apply(
            pods,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": format!("node{i}"), "containers": [{"name": "c", "image": "i"}]},
            }),
        );
        let status = json!({
            "phase": "Running", "podIP": v4(i, j), "podIPs": [{"ip": v4(i, j)}, {"ip": v6(i, j)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        self.server.apply_status(
            pods,
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "status": status}),
        );
    }

    fn start_agent(&mut self, i: u8) {
        self.start_agent_with(i, "");
    }

    fn start_agent_with(&mut self, i: u8, flags: &str) {
        let lab = &self.lab;
        let line = format!(
            "{} --node node{i} --kubeconfig {} --socket {} --namespace {NAMESPACE} --listen 127.0.0.1:9470 --log-format json {flags}",
            programs().join("penstock-agent").display(),
            self.server.kubeconfig().display(),
            lab.file(&format!("node{i}.sock")).display(),
        );
        let log = lab.file(&format!("agent{i}.log"));
        let agent = lab.node(i).spawn(&format!("sh -c 'exec {line} 2>>{}'", log.display()));
        self.agents[usize::from(i) - 1] = Some(agent);
        wait_until(&format!("the agent of node{i} is ready"), || self.asks(i, "readyz").status.success());
    }

    fn asks(&self, i: u8, path: &str) -> Output {
        self.lab.node(i).attempt(&format!("curl -sSf -m 2 http://127.0.0.1:9470/{path}"))
    }

    /// The value of a metric of the agent of node `i`.
    fn metric(&self, i: u8, name: &str) -> f64 {
        let text = String::from_utf8(self.asks(i, "metrics").stdout).expect("text");
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }

    /// Waits until an echo from pod 1 of node 1 to an address comes back, or does not. How long that took.
    fn until(&self, to: &str, answers: bool) -> Duration {
        let from = Instant::now();
        wait_until(&format!("{to} {}", if answers { "answers" } else { "is silent" }), || {
            let asked = self.lab.pod(1, 1).attempt(&format!("ping -c 1 -W 0.2 {to}"));
            asked.status.success() == answers
        });
        from.elapsed()
    }
}

impl Cluster {
    /// There are addresses for load balancers, and nodes are as they must be to answer for them.
    fn offer_addresses(&self) {
        for i in 1..=2 {
            // Without it the kernel answers for no address but its own, as an agent's log would say.
            self.lab
                .node(i)
                .run("sysctl -qw net.ipv4.conf.uplink.forwarding=1 net.ipv6.conf.uplink.forwarding=1");
            let ready = json!([{"type": "Ready", "status": "True"}]);
            self.server.apply_status(
                "/api/v1/nodes",
                &json!({
                    "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{i}")},
                    "status": {"conditions": ready, "addresses": [{"type": "InternalIP", "address": under4(i)}]},
                }),
            );
        }
        self.server.apply(
            "/apis/penstock.dev/v1alpha1/ippools",
            &json!({
                "apiVersion": "penstock.dev/v1alpha1", "kind": "IPPool", "metadata": {"name": "outside"},
                "spec": {"use": "LoadBalancer", "prefixes": ["192.168.51.128/30", "fd50:1::80/126"]},
            }),
        );
    }

    /// The first address that a load balancer has been given.
    fn address_of(&self, service: &str) -> Option<String> {
        let service = self.server.get(&format!("{SERVICES}/{service}"));
        service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    }

    /// A service of port 80 in both families, of which pod 1 of node 2 serves port 7000.
    fn serve(&self, name: &str, address: &str, kind: &str) {
        let six = format!("fd10:96::{}", address.rsplit('.').next().expect("an IPv4 address"));
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        let spec = json!({
            "type": kind, "clusterIPs": [address, six], "clusterIP": address,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "echo", "port": 80, "targetPort": 7000}],
        });
        self.server.apply(
            SERVICES,
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}),
        );
        for (family, address) in [("IPv4", v4(2, 1)), ("IPv6", v6(2, 1))] {
            self.server.apply(
                slices,
                &json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                    "metadata": {
                        "name": format!("{name}-{}", family.to_lowercase()), "namespace": "default",
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "ports": [{"name": "echo", "port": 7000, "protocol": "TCP"}],
                    "endpoints": [{"addresses": [address], "nodeName": "node2", "conditions": {"ready": true}}],
                }),
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for i in 1..=2 {
                let log =
                    std::fs::read_to_string(self.lab.file(&format!("agent{i}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!("--- agent {i}: the end of its log");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
            self.server.testify();
        }
    }
}

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

/// Pod 1 of node 2 takes nothing but what `from` selects.
fn policy(from: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"node": "node2", "pod": "pod1"}},
            "policyTypes": ["Ingress"],
            "ingress": from,
        },
    })
}

#[test]
fn packets_follow_what_is_applied_over_restarts_of_everybody() {
    let mut cluster = Cluster::up();
    // Nodes are peers, and their pods are reached.
    for to in [v4(2, 1), v6(2, 1)] {
        reach(&cluster.lab.pod(1, 1), &to);
        ping(&cluster.lab.pod(1, 1), &to);
    }

    // The scheduler is told that the nodes have a network.
    for i in 1..=2 {
        wait_until("the node says that its network is there", || {
            let node = cluster.server.get(&format!("/api/v1/nodes/node{i}"));
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|it| it["type"] == "NetworkUnavailable" && it["status"] == "False")
        });
    }

    // A policy closes a pod; labels open it again.
    cluster.server.apply(POLICIES, &policy(&json!([])));
    let closed = cluster.until(&v4(2, 1), false);
    no_ping(&cluster.lab.pod(1, 1), &v6(2, 1));
    let friend = json!([{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]);
    cluster.server.apply(POLICIES, &policy(&friend));
    no_ping(&cluster.lab.pod(1, 1), &v4(2, 1));
    cluster.add_pod(1, 1, &json!({"node": "node1", "pod": "pod1", "friend": "yes"}));
    let opened = cluster.until(&v4(2, 1), true);
    no_ping(&cluster.lab.pod(1, 2), &v4(2, 1));
    assert!(closed < BOUND && opened < BOUND, "closed after {closed:?}, open after {opened:?}");

    // The API server is away, killed: nothing that flows changes, and agents stay.
    cluster.server.kill();
    ping(&cluster.lab.pod(1, 1), &v4(2, 1));
    no_ping(&cluster.lab.pod(1, 2), &v4(2, 1));
    // A dataplane that restarts meanwhile gets everything from its agent.
    cluster.lab.kill(2);
    cluster.lab.start(2);
    reach(&cluster.lab.pod(1, 1), &v4(2, 1));
    no_ping(&cluster.lab.pod(1, 2), &v4(2, 1));
    cluster.server.restart(&cluster.lab);
    cluster.server.delete(POLICIES, "closed");
    wait_until("the policy is gone", || {
        cluster.lab.pod(1, 2).attempt(&format!("ping -c 1 -W 0.2 {}", v4(2, 1))).status.success()
    });

    // An agent that restarts finds everything in place.
    let before = cluster.lab.ask(1, "status")["generation"].clone();
    cluster.agents[0].take().expect("started").end("TERM");
    ping(&cluster.lab.pod(1, 1), &v4(2, 1));
    cluster.start_agent(1);
    assert_eq!(cluster.lab.ask(1, "status")["generation"], before, "what was in place was sent again");
    println!("closed after {closed:?}, open after {opened:?}");
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

/// The definition of cluster network policies, as much as agents need of it.
fn cluster_network_policies() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "clusternetworkpolicies.policy.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a lab"},
        },
        "spec": {
            "group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {"kind": "ClusterNetworkPolicy", "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy", "listKind": "ClusterNetworkPolicyList"},
            "versions": [{
                "name": "v1alpha2", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
            }],
        },
    })
}

/// The notes of the agents' events about an object.
fn notes(cluster: &Cluster, kind: &str, name: &str) -> Vec<String> {
    let events = cluster.server.get("/apis/events.k8s.io/v1/events");
    let events = events["items"].as_array().cloned().unwrap_or_default();
    let about = |it: &&Value| it["regarding"]["kind"] == kind && it["regarding"]["name"] == name;
    events.iter().filter(about).filter_map(|it| it["note"].as_str().map(str::to_owned)).collect()
}

#[test]
fn the_cluster_is_told_what_is_honoured_and_what_is_not() {
    let cluster = Cluster::with(&[cluster_network_policies()]);
    let policies = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    let policy = |name: &str, peer: &Value| {
        let subject = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}});
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": 5, "subject": subject, "egress": [{"action": "Accept", "to": [peer]}]},
        })
    };
    cluster.server.apply(policies, &policy("sound", &json!({"networks": ["192.0.2.0/24"]})));
    cluster.server.apply(policies, &policy("odd", &json!({"domainNames": ["example.org"]})));
    let accepted = |name: &str| {
        let said = cluster.server.get(&format!("{policies}/{name}"));
        let conditions = said["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|it| it["type"] == "PenstockAccepted")
    };
    wait_until("both policies have a condition", || accepted("sound").is_some() && accepted("odd").is_some());
    assert_eq!(accepted("sound").expect("just seen")["status"], "True");
    let odd = accepted("odd").expect("just seen");
    assert_eq!((&odd["status"], &odd["reason"]), (&json!("False"), &json!("NotHonoured")));
    assert!(odd["message"].as_str().is_some_and(|it| it.contains("domainNames")), "{odd}");
    wait_until("an event says so, too", || {
        notes(&cluster, "ClusterNetworkPolicy", "odd").iter().any(|note| note.contains("domainNames"))
    });
    assert_eq!(notes(&cluster, "ClusterNetworkPolicy", "sound"), Vec::<String>::new());

    // An address that no node has is no way out; the resource says so itself.
    let egress = "/apis/penstock.dev/v1alpha1/egressips";
    cluster.server.apply(
        egress,
        &json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "EgressIP", "metadata": {"name": "out"},
            "spec": {"addresses": ["192.0.2.77"], "podSelector": {"matchLabels": {"pod": "pod1"}}},
        }),
    );
    wait_until("the egress address has a status", || {
        cluster.server.get(&format!("{egress}/out"))["status"]["honoured"].is_boolean()
    });

    // One of the agents speaks for all, and goes on doing so.
    let lease = || {
        cluster
            .server
            .get(&format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/penstock-agent"))
    };
    let first = lease();
    assert!(["node1", "node2"].iter().any(|node| first["spec"]["holderIdentity"] == **node), "{first}");
    wait_until("the lease is renewed", || lease()["spec"]["renewTime"] != first["spec"]["renewTime"]);
    assert_eq!(lease()["spec"]["holderIdentity"], first["spec"]["holderIdentity"]);

    // The dataplane's end is the network's end, as the scheduler sees it.
    cluster.lab.kill(2);
    let network = |wanted: &str| {
        let node = cluster.server.get("/api/v1/nodes/node2");
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|it| it["type"] == "NetworkUnavailable" && it["status"] == wanted)
    };
    wait_until("the node has no network", || network("True"));
    cluster.lab.start(2);
    wait_until("the node has a network again", || network("False"));
}

#[test]
fn load_balancers_have_addresses_that_answer() {
    let cluster = Cluster::up();
    cluster.offer_addresses();
    cluster.serve("echo", "10.96.0.81", "LoadBalancer");
    wait_until("the service has an address", || cluster.address_of("echo").is_some());
    let address = cluster.address_of("echo").expect("just seen");
    assert!(address.starts_with("192.168.51.1"), "{address}");
    let _server = cluster.lab.pod(2, 1).serve(7000, "python3 -m http.server --bind :: 7000");
    // Whoever is on the subnet finds the node that was elected.
    cluster.lab.under().run("ip address replace 192.168.51.201/24 dev br1");
    wait_until(&format!("{address} is served"), || {
        let asked = cluster.lab.under().attempt(&format!("curl -sSf -m 2 -o /dev/null http://{address}/"));
        asked.status.success()
    });
    // The nodes themselves are led to it by their host ports.
    for i in 1..=2 {
        cluster.lab.node(i).run(&format!("curl -sSf -m 2 -o /dev/null http://{address}/"));
    }
    // What the service does not want any more is free again.
    cluster.server.delete(SERVICES, "echo");
    wait_until(&format!("nobody answers for {address}"), || {
        cluster.lab.under().run("ip neigh flush dev br1");
        let asked = cluster.lab.under().attempt(&format!("curl -sSf -m 1 -o /dev/null http://{address}/"));
        !asked.status.success()
    });
}

#[test]
fn another_agent_gives_addresses_when_the_one_that_did_has_ended() {
    let mut cluster = Cluster::up();
    cluster.offer_addresses();
    cluster.serve("first", "10.96.0.81", "LoadBalancer");
    wait_until("the service has an address", || cluster.address_of("first").is_some());
    let leader = cluster.server.leader().expect("somebody gave it");
    let i: usize = leader.strip_prefix("node").and_then(|it| it.parse().ok()).expect("one of the nodes");
    // As at a loss of power: it gives nothing back.
    cluster.agents[i - 1].take().expect("started").end("KILL");
    cluster.serve("second", "10.96.0.82", "LoadBalancer");
    let (from, other) = (Instant::now(), format!("node{}", 3 - i));
    while cluster.server.leader().as_ref() != Some(&other) {
        // It lasts 15 s, and is looked at every 3.
        assert!(from.elapsed() < Duration::from_secs(15 + 6 + 15), "nobody leads");
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until("the second service has an address", || cluster.address_of("second").is_some());
    assert_ne!(cluster.address_of("first"), cluster.address_of("second"));
}

#[test]
fn what_was_compacted_while_an_agent_was_cut_off_is_listed_anew() {
    let mut cluster = Cluster::up();
    cluster.server.apply(POLICIES, &policy(&json!([])));
    cluster.until(&v4(2, 1), false);
    let lists = "penstock_agent_watch_lists_total{kind=\"NetworkPolicy\"}";
    let before = cluster.metric(2, lists);
    // Node 2 cannot speak to the API server; what ends the watches still comes in.
    let cut = format!("route {{}} prohibit {}/32", cluster.server.address());
    cluster.lab.node(2).run(&format!("ip {}", cut.replace("{}", "add")));
    cluster.server.kill();
    cluster.server.restart(&cluster.lab);
    cluster.server.delete(POLICIES, "closed");
    for i in 0..20 {
        cluster.add_pod(1, 2, &json!({"node": "node1", "pod": "pod2", "round": i.to_string()}));
    }
    cluster.server.compact(&cluster.lab);
    // A server that begins after the compaction has no memory of what was before.
    cluster.server.kill();
    cluster.server.restart(&cluster.lab);
    no_ping(&cluster.lab.pod(1, 1), &v4(2, 1));
    cluster.lab.node(2).run(&format!("ip {}", cut.replace("{}", "del")));
    cluster.until(&v4(2, 1), true);
    assert!(cluster.metric(2, lists) > before, "there was no new list");
}

#[test]
fn services_of_the_cluster_lead_to_their_pods() {
    let cluster = Cluster::up();
    cluster.serve("echo", "10.96.0.80", "ClusterIP");
    let _server = cluster.lab.pod(2, 1).serve(7000, "python3 -m http.server --bind :: 7000");
    for address in ["10.96.0.80", "[fd10:96::80]"] {
        wait_until(&format!("{address} is served"), || {
            let asked =
                cluster.lab.pod(1, 1).attempt(&format!("curl -gsSf -m 2 -o /dev/null http://{address}/"));
            asked.status.success()
        });
    }
}
