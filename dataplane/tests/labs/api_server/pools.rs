//! Pods attached by CNI and agents at a real API server, with addresses of pools.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::Server;
use super::{Cluster, POLICIES};
use crate::containers::{Container, Runtime, address};
use crate::lab::{Lab, wait_until};
use crate::traffic::{no_ping, ping, reach};

const POOLS: &str = "/apis/penstock.dev/v1alpha1/ippools";
const BLOCKS: &str = "/apis/penstock.dev/v1alpha1/ipblocks";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn pool(server: &Server, name: &str, spec: &Value) {
    server.apply(
        POOLS,
        &json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}),
    );
}

/// Who has which address of pools, as the blocks say: the node of the pod and that of the block.
fn given(server: &Server) -> BTreeMap<String, (String, String)> {
    let listed = server.get(BLOCKS);
    let mut given = BTreeMap::new();
    for block in listed["items"].as_array().expect("a list") {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        for it in block["spec"]["given"].as_array().into_iter().flatten() {
            given.insert(text(&it["address"]), (text(&it["node"]), text(&block["spec"]["node"])));
        }
    }
    given
}

/// A pod of a node, as the scheduler leaves it.
fn add_pod(server: &Server, node: u8, name: &str, labels: &Value, annotations: &Value) {
    server.apply(
        PODS,
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels, "annotations": annotations},
            "spec": {"nodeName": format!("node{node}"), "containers": [{"name": "c", "image": "i"}]},
        }),
    );
}

fn of_pod(name: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}")
}

/// A container of a pod of its name.
struct Attached {
    container: Container,
    result: Value,
}

impl Attached {
    fn four(&self) -> String {
        address(&self.result, false)
    }

    fn six(&self) -> String {
        address(&self.result, true)
    }
}

/// Attaches the container of a pod that is there.
fn add(lab: &Lab, runtime: &Runtime<'_>, name: &str, config: &Value) -> Result<Attached, Value> {
    let container = Container::new(lab, name);
    let result = runtime.call_with("ADD", &container, config, &[("CNI_ARGS", &of_pod(name))])?;
    Ok(Attached { container, result })
}

/// Attaches the container of a pod of the application `web`; the failure, if it is not.
fn attempt(
    lab: &Lab,
    server: &Server,
    runtime: &Runtime<'_>,
    node: u8,
    name: &str,
) -> Result<Attached, Value> {
    add_pod(server, node, name, &json!({"app": "web"}), &json!({}));
    add(lab, runtime, name, &runtime.config(json!({})))
}

fn attach(lab: &Lab, server: &Server, runtime: &Runtime<'_>, node: u8, name: &str) -> Attached {
    attempt(lab, server, runtime, node, name).unwrap_or_else(|failure| panic!("{name}: {failure}"))
}

fn detach(runtime: &Runtime<'_>, attached: &Attached) {
    runtime.call("DEL", &attached.container, &runtime.config(json!({}))).expect("it is detached");
}

/// Two agents, the first of which speaks for all.
fn agents<'a>(lab: &'a Lab, server: &Server) -> [Runtime<'a>; 2] {
    let first = Runtime::start_agent_with(lab, 1, &server.kubeconfig());
    wait_until("the first agent leads", || server.leader().as_deref() == Some("node1"));
    [first, Runtime::start_agent_with(lab, 2, &server.kubeconfig())]
}

/// A pool of seven addresses, of which a node takes four at a time.
fn small() -> Value {
    json!({
        "prefixes": ["10.244.200.0/29", "fd10:244:200::/125"], "blockSizeV4": 30, "blockSizeV6": 126,
        "podSelector": {"matchLabels": {"app": "web"}},
    })
}

fn await_honoured(server: &Server, name: &str, wanted: bool) -> Value {
    wait_until(&format!("the pool {name} says whether it is honoured"), || {
        server.get(&format!("{POOLS}/{name}"))["status"]["honoured"] == wanted
    });
    server.get(&format!("{POOLS}/{name}"))["status"]["message"].clone()
}

#[test]
fn pods_have_addresses_of_pools_and_reach_each_other_across_nodes() {
    let cluster = Cluster::without_agents("10.244.0.0/16", &[]);
    let (lab, server) = (&cluster.lab, &cluster.server);
    let [one, two] = agents(lab, server);
    pool(server, "web", &small());
    pool(
        server,
        "far",
        &json!({"prefixes": ["192.0.2.0/24"], "podSelector": {"matchLabels": {"far": "yes"}}}),
    );
    await_honoured(server, "web", true);
    let why = await_honoured(server, "far", false);
    assert!(why.as_str().is_some_and(|it| it.contains("not inside the prefixes")), "{why}");

    // Each node takes a block; the first one's is full with three, for the pool's own first address is nobody's.
    let mut own: Vec<Attached> = (1..=2).map(|i| attach(lab, server, &one, 1, &format!("a{i}"))).collect();
    // The third one is not selected, and asks for the pool by its name.
    add_pod(server, 1, "a3", &json!({"app": "other"}), &json!({"penstock.dev/ip-pool": "web"}));
    own.push(add(lab, &one, "a3", &one.config(json!({}))).expect("it is attached"));
    let others = attach(lab, server, &two, 2, "b1");
    let addresses: Vec<String> = own.iter().map(Attached::four).collect();
    assert_eq!(addresses, ["10.244.200.1", "10.244.200.2", "10.244.200.3"]);
    assert_eq!((others.four(), others.six()), ("10.244.200.4".to_owned(), "fd10:244:200::4".to_owned()));
    let borrower = attach(lab, server, &one, 1, "a4");
    let of = |pod: &str, block: &str| (pod.to_owned(), block.to_owned());
    assert_eq!(given(server)[&borrower.four()], of("node1", "node2"));
    assert_eq!(given(server)[&borrower.six()], of("node1", "node2"));
    assert_eq!(given(server)[&own[0].four()], of("node1", "node1"));

    // They reach each other within the node and across, those of a borrowed address too.
    for to in [others.four(), others.six()] {
        reach(&borrower.container.place, &to);
        ping(&own[0].container.place, &to);
    }
    for to in [borrower.four(), borrower.six(), own[2].four(), own[2].six()] {
        reach(&others.container.place, &to);
        ping(&own[1].container.place, &to);
    }
    // And nobody speaks under another's address.
    let spoofed = || lab.drops(1).get("spoofed-source").copied().unwrap_or(0);
    let before = spoofed();
    own[0].container.place.run("ip address add 10.244.200.2/32 dev eth0");
    own[0].container.place.attempt(&format!("ping -c 1 -W 0.2 -I 10.244.200.2 {}", others.four()));
    wait_until("what is sent under another's address is dropped", || spoofed() > before);

    // The pool is full with one more; the failure says so, and nothing of it stays.
    let last = json!({"penstock.dev/addresses": "10.244.200.6,fd10:244:200::6"});
    add_pod(server, 2, "b2", &json!({"app": "web"}), &last);
    let last = add(lab, &two, "b2", &two.config(json!({}))).expect("it is attached");
    assert_eq!((last.four(), last.six()), ("10.244.200.6".to_owned(), "fd10:244:200::6".to_owned()));
    let before = given(server);
    let full = attempt(lab, server, &two, 2, "b3").map(|it| it.result).unwrap_err();
    assert_eq!(full["code"], 102, "{full}");
    assert!(full["msg"].as_str().is_some_and(|it| it.contains("pool web")), "{full}");
    assert_eq!(given(server), before);
    // Who is not selected has an address of the node's range.
    add_pod(server, 2, "c1", &json!({"app": "other"}), &json!({}));
    let ips = json!(["10.244.2.77", "fd10:244:2::77"]);
    let config = two.config(json!({"runtimeConfig": {"ips": ips}}));
    let plain = add(lab, &two, "c1", &config).expect("it is attached");
    assert_eq!(json!([plain.four(), plain.six()]), ips);
    detach(&two, &plain);

    let shown = one.given();
    assert!(shown.iter().all(|it| it["pools"] == json!(["web"])), "{shown:?}");
    for runtime in [&one, &two] {
        assert_eq!(runtime.ipam("check"), [Value::Null; 0]);
    }
    for it in own.iter().chain([&borrower]) {
        detach(&one, it);
    }
    for it in [&others, &last] {
        detach(&two, it);
    }
    assert_eq!(server.get(BLOCKS)["items"], json!([]));
    for runtime in [&one, &two] {
        assert_eq!(runtime.given(), [Value::Null; 0]);
    }
}

#[test]
fn whatever_ends_meanwhile_an_address_of_a_pool_is_one_pods_or_nobodys() {
    let mut cluster = Cluster::without_agents("10.244.0.0/16", &[]);
    let (lab, server) = (&cluster.lab, &mut cluster.server);
    let [mut one, mut two] = agents(lab, server);
    pool(server, "web", &small());
    await_honoured(server, "web", true);

    // A pod that no policy lets out has no word before its policy: the address is its own from the beginning.
    let others = attach(lab, server, &two, 2, "b1");
    server.apply(
        POLICIES,
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "shut", "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {"shut": "yes"}}, "policyTypes": ["Ingress", "Egress"]},
        }),
    );
    add_pod(server, 1, "shut", &json!({"app": "web", "shut": "yes"}), &json!({}));
    let shut = Container::new(lab, "shut");
    let config = one.config(json!({}));
    let line = format!(
        "while ! ip -4 route get {0} >/dev/null 2>&1; do :; done; ping -c 3 -i 0.2 -W 1 {0} || :",
        others.four()
    );
    let chatter = shut.place.spawn(&format!("sh -c '{line}'"));
    let args = of_pod("shut");
    let result = one.call_with("ADD", &shut, &config, &[("CNI_ARGS", &args)]).expect("it is attached");
    let said = chatter.finish();
    assert!(said.contains(" 0 received"), "{said}");
    no_ping(&others.container.place, &address(&result, false));
    one.call("DEL", &shut, &config).expect("it is detached");

    // An agent ends in the middle: what was taken is given back, and the pod is attached when it is tried again.
    let before = given(server);
    for point in ["taken", "begun", "live"] {
        one.restart(&format!("--die-at {point}"));
        let failed = attempt(lab, server, &one, 1, &format!("a-{point}")).map(|it| it.result).unwrap_err();
        assert_eq!(failed["code"], 11, "{point}: {failed}");
        assert_ne!(given(server), before, "{point}");
        one.restart("");
        wait_until("what was taken is given back", || given(server) == before);
    }

    // Without the API server nothing is given of pools; who goes, goes.
    add_pod(server, 1, "late", &json!({"app": "web"}), &json!({}));
    let going = attach(lab, server, &one, 1, "going");
    server.kill();
    let failed = add(lab, &one, "late", &config).map(|it| it.result).unwrap_err();
    assert_eq!(failed["code"], 11, "{failed}");
    detach(&one, &going);
    server.restart(lab);
    wait_until("what went is given back", || given(server) == before);

    // A node that is gone for good has nothing any more.
    two.kill();
    for name in ["b1", "node2-pod1", "node2-pod2"] {
        server.delete(PODS, &format!("{name}?gracePeriodSeconds=0"));
    }
    assert!(!given(server).is_empty());
    server.delete("/api/v1/nodes", "node2");
    let from = Instant::now();
    while !given(server).is_empty() {
        assert!(from.elapsed() < Duration::from_secs(60), "node2 still has {:?}", given(server));
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(server.get(BLOCKS)["items"], json!([]));
    println!("given back {:?} after the node was gone", from.elapsed());
}
