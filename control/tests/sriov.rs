//! Functions of a card handed to containers: interfaces move by the kernel's hands, between namespaces that the test makes;
//! that they are functions is said by a pretended `/sys`, and their card is a map. Takes root, for the namespaces.

#![allow(clippy::unwrap_used, reason = "all of it is a test's")]

#[path = "agent/dataplane.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is the agent's own tests', which ask more of it")]
mod dataplane;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use nix::sched::{CloneFlags, setns};
use penstock_api::model::{Key, Name, Object};
use penstock_cni::config::Config;
use penstock_cni::environment::AttachmentId;
use penstock_cni::failure::Code;
use penstock_cni::protocol::{Answer, Attach, Detach, Request, ask};
use penstock_control::agent::{Attaching, Options, Source};
use penstock_control::attach::{
    Attacher, Cards, Dataplane, DataplaneError, FaultPoints, FunctionState, Functions, LinkError,
    NetworkFacts, NoPods, PortState, Setting, Settings,
};
use penstock_control::push;
use penstock_control::sysfs::Sysfs;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// The address of the function.
const ADDRESS: &str = "0000:3b:02.1";

/// The dataplane has no part in it, and is not there.
struct Nowhere;

impl Dataplane for Nowhere {
    async fn network(&self, name: &str) -> Result<NetworkFacts, DataplaneError> {
        Err(DataplaneError::NoNetwork(name.to_owned()))
    }

    async fn put(&self, objects: Vec<Object>) -> Result<(), DataplaneError> {
        panic!("{objects:?}")
    }

    async fn remove(&self, keys: Vec<Key>) -> Result<(), DataplaneError> {
        panic!("{keys:?}")
    }

    async fn inspect(&self, endpoint: &Name, _: &[Object]) -> Result<(Vec<PortState>, bool), DataplaneError> {
        panic!("{endpoint}")
    }
}

/// A card that is a map, and may refuse what begins with a word.
#[derive(Debug, Default)]
struct Card {
    functions: Mutex<BTreeMap<u32, FunctionState>>,
    refuses: Mutex<Option<&'static str>>,
}

impl Cards for Card {
    fn state<'a>(&'a self, card: &'a str, number: u32) -> BoxFuture<'a, Result<FunctionState, LinkError>> {
        assert_eq!(card, "card0");
        Box::pin(async move { Ok(self.functions.lock().unwrap()[&number].clone()) })
    }

    fn set<'a>(
        &'a self,
        card: &'a str,
        number: u32,
        setting: Setting,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        let refused = self.refuses.lock().unwrap().filter(|word| setting.to_string().starts_with(word));
        Box::pin(async move {
            if refused.is_some() {
                return Err(LinkError::NoFunction { card: card.to_owned(), number });
            }
            self.functions.lock().unwrap().get_mut(&number).unwrap().apply(setting);
            Ok(())
        })
    }
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ip(line: &str) -> String {
    let words: Vec<&str> = std::iter::once("ip").chain(line.split_whitespace()).collect();
    run(&words)
}

/// A node with a function whose card leads to a peer, and a namespace for a container.
struct Node {
    word: String,
    folder: tempfile::TempDir,
    card: Arc<Card>,
}

impl Node {
    fn new(word: &str) -> Self {
        let word = format!("ps-{word}-{}", std::process::id());
        let node = Self { word, folder: tempfile::tempdir().unwrap(), card: Arc::default() };
        let (here, pod, peer) = (node.name("node"), node.name("pod"), node.name("peer"));
        for line in [
            format!("netns add {here}"),
            format!("netns add {pod}"),
            format!("netns add {peer}"),
            format!("-n {here} link add card0v1 mtu 1600 type veth peer name wire netns {peer}"),
            format!("-n {peer} addr add 192.0.2.1/24 dev wire"),
            format!("-n {peer} link set wire up"),
        ] {
            ip(&line);
        }
        node.pretend();
        let state = FunctionState {
            vlan: 7,
            spoof_check: Some(true),
            trust: Some(false),
            ..FunctionState::default()
        };
        node.card.functions.lock().unwrap().insert(1, state);
        node
    }

    /// Writes what the kernel would say of a card with one function.
    fn pretend(&self) {
        let devices = self.sysfs().join("bus/pci/devices");
        let (card, function) = (devices.join("0000:3b:00.0"), devices.join(ADDRESS));
        fs::create_dir_all(card.join("net/card0")).unwrap();
        fs::create_dir_all(function.join("net/card0v1")).unwrap();
        symlink(format!("../{ADDRESS}"), card.join("virtfn1")).unwrap();
        symlink("../0000:3b:00.0", function.join("physfn")).unwrap();
    }

    fn sysfs(&self) -> PathBuf {
        self.folder.path().join("sys")
    }

    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.word)
    }

    fn state(&self) -> FunctionState {
        self.card.functions.lock().unwrap()[&1].clone()
    }

    fn attacher(&self) -> Attacher<Nowhere, NoPods> {
        let folder = self.folder.path();
        let settings = Settings {
            records: folder.join("records"),
            sockets: folder.join("sockets"),
            devices: folder.join("devices"),
            kubelet_pods: folder.join("pods"),
            network: "default".to_owned(),
            ranges: Vec::new(),
            reserved: Vec::new(),
            functions: Functions { sysfs: Sysfs::at(&self.sysfs()), cards: self.card.clone() },
            faults: FaultPoints::default(),
        };
        Attacher::open(settings, Nowhere, NoPods).unwrap()
    }

    fn config(&self, more: Value) -> Config {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "fast", "interface": "sriov", "mtu": 1550,
            "sriov": { "vlan": 100, "vlanQos": 3, "trust": "on", "spoofCheck": "off" },
            "ipam": { "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.9", "routes": [{ "dst": "198.51.100.0/24" }] },
            "runtimeConfig": {
                "deviceID": ADDRESS, "mac": "02:00:00:00:00:77", "bandwidth": { "egressRate": 20_000_000 },
                "CNIDeviceInfoFile": self.folder.path().join("info/device.json"),
            },
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::read(config.to_string().as_bytes()).unwrap()
    }

    fn attach(&self, container: &str, config: Config) -> Attach {
        Attach {
            id: AttachmentId::new(container.to_owned(), "net1".to_owned()).unwrap(),
            netns: Path::new("/run/netns").join(self.name("pod")),
            args: BTreeMap::new(),
            config,
            delegated: None,
            raw: String::new(),
        }
    }

    /// Does something in the node's namespace, on a thread that does nothing else.
    fn within<F: Future>(&self, act: impl FnOnce() -> F + Send) -> F::Output
    where
        F::Output: Send,
    {
        let namespace = File::open(Path::new("/run/netns").join(self.name("node"))).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(act())
            });
            thread.join().unwrap()
        })
    }

    fn ask(&self, attacher: &Attacher<Nowhere, NoPods>, request: Request) -> Answer {
        self.within(move || attacher.answer(request))
    }

    /// The interface is on the node again, and all of it is as it was.
    fn assert_as_before(&self, before: &(FunctionState, String)) {
        assert_eq!((&self.state(), &self.link()), (&before.0, &before.1));
        assert!(!self.folder.path().join("info/device.json").exists());
    }

    /// What the kernel says of the function's interface on the node.
    fn link(&self) -> String {
        let shown = ip(&format!("-n {} -o link show card0v1", self.name("node")));
        let words: Vec<&str> = shown.split_whitespace().collect();
        let after = |word: &str| words[words.iter().position(|it| *it == word).unwrap() + 1].to_owned();
        format!("{} {}", after("mtu"), after("link/ether"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for place in ["node", "pod", "peer"] {
            // Some may be gone with a test's own doing.
            let _ = Command::new("ip").args(["netns", "del", &self.name(place)]).output();
        }
    }
}

fn detach(container: &str) -> Request {
    let id = AttachmentId::new(container.to_owned(), "net1".to_owned()).unwrap();
    Request::Del(Detach { id, network: "fast".to_owned() })
}

#[test]
fn a_container_has_a_function_as_its_network_wants_it_until_it_ends() {
    let node = Node::new("whole");
    let before = (node.state(), node.link());
    let attacher = node.attacher();
    let attach = node.attach("c1", node.config(json!({})));
    let done = node.ask(&attacher, Request::Add(Box::new(attach.clone()))).unwrap();
    let result = done.result.unwrap();
    assert_eq!(result.interfaces.len(), 1);
    assert_eq!(result.interfaces[0].pci_id.as_deref(), Some(ADDRESS));
    assert_eq!(result.interfaces[0].mtu, Some(1550));
    assert_eq!(result.ips[0].address.to_string(), "192.0.2.9/24");
    let wanted = FunctionState {
        mac: [2, 0, 0, 0, 0, 0x77],
        vlan: 100,
        qos: 3,
        trust: Some(true),
        spoof_check: Some(false),
        min_rate: 0,
        max_rate: 20,
    };
    assert_eq!(node.state(), wanted);
    let pod = node.name("pod");
    let shown = ip(&format!("-n {pod} addr show net1"));
    for word in ["mtu 1550", "02:00:00:00:00:77", "192.0.2.9/24"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(ip(&format!("-n {pod} route")).contains("198.51.100.0/24 via 192.0.2.1 dev net1"));
    run(&["ip", "netns", "exec", &pod, "ping", "-c1", "-W2", "192.0.2.1"]);
    let info: Value =
        serde_json::from_slice(&fs::read(node.folder.path().join("info/device.json")).unwrap()).unwrap();
    assert_eq!(info["pci"]["pci-address"], ADDRESS);

    // What was tampered with is found.
    let check = |attacher| node.ask(attacher, Request::Check(Box::new(attach.clone())));
    check(&attacher).unwrap();
    node.card.functions.lock().unwrap().get_mut(&1).unwrap().vlan = 5;
    let differs = check(&attacher).unwrap_err();
    assert!(differs.msg.contains("card0 has not, for its function 1: VLAN 100"), "{differs}");

    // By another agent, from the record alone, and as often as one likes.
    drop(attacher);
    let attacher = node.attacher();
    for _ in 0..2 {
        node.ask(&attacher, detach("c1")).unwrap();
        node.assert_as_before(&before);
    }
}

#[test]
fn a_function_that_cannot_be_set_is_as_it_was() {
    for refused in ["VLAN 100", "address 02", "trust", "spoof", "rate 0 to 20"] {
        let node = Node::new("refused");
        let before = (node.state(), node.link());
        let attacher = node.attacher();
        *node.card.refuses.lock().unwrap() = Some(refused);
        let attach = node.attach("c1", node.config(json!({})));
        let failure = node.ask(&attacher, Request::Add(Box::new(attach.clone()))).unwrap_err();
        assert_eq!(failure.code, Code::Plumbing);
        assert!(failure.msg.contains(refused), "{failure}");
        node.assert_as_before(&before);
        // Nor when the container has an interface of that name already.
        *node.card.refuses.lock().unwrap() = None;
        let pod = node.name("pod");
        ip(&format!("-n {pod} link add net1 type veth peer name net2"));
        let failure = node.ask(&attacher, Request::Add(Box::new(attach.clone()))).unwrap_err();
        assert_eq!(failure.code, Code::Exists, "{failure}");
        node.assert_as_before(&before);
        ip(&format!("-n {pod} link del net1"));
        node.ask(&attacher, Request::Add(Box::new(attach))).unwrap();
    }
}

#[test]
fn a_function_is_one_containers_at_a_time() {
    let node = Node::new("one");
    let attacher = node.attacher();
    let config = node.config(json!({}));
    node.ask(&attacher, Request::Add(Box::new(node.attach("c1", config.clone())))).unwrap();
    let failure = node.ask(&attacher, Request::Add(Box::new(node.attach("c2", config.clone())))).unwrap_err();
    assert_eq!(failure.code, Code::TryAgainLater);
    assert!(failure.msg.contains("c1/net1"), "{failure}");
    node.ask(&attacher, detach("c1")).unwrap();
    node.ask(&attacher, Request::Add(Box::new(node.attach("c2", config)))).unwrap();
}

#[test]
fn a_function_whose_namespace_has_ended_gets_its_name_and_its_settings_back() {
    let node = Node::new("ended");
    let before = (node.state(), node.link());
    let attacher = node.attacher();
    node.ask(&attacher, Request::Add(Box::new(node.attach("c1", node.config(json!({})))))).unwrap();
    // What the kernel does with a card's interfaces when their namespace ends, and with no others.
    let (here, pod) = (node.name("node"), node.name("pod"));
    ip(&format!("-n {pod} link set net1 netns {here}"));
    ip(&format!("netns del {pod}"));
    let net = node.sysfs().join("bus/pci/devices").join(ADDRESS).join("net");
    fs::rename(net.join("card0v1"), net.join("net1")).unwrap();
    node.ask(&attacher, detach("c1")).unwrap();
    node.assert_as_before(&before);
}

#[test]
fn what_cannot_be_a_function_is_said_with_its_mend() {
    let node = Node::new("wrong");
    let attacher = node.attacher();
    let asked = |more: Value| json!({ "runtimeConfig": more });
    for (more, code, words) in [
        (asked(json!({})), Code::Config, "no deviceID"),
        (asked(json!({ "deviceID": "../x" })), Code::Config, "no PCI address"),
        (asked(json!({ "deviceID": "0000:3b:02.5" })), Code::Config, "sriov_numvfs"),
        (
            asked(json!({ "deviceID": ADDRESS, "portMappings": [{ "hostPort": 80, "containerPort": 80 }] })),
            Code::UnsupportedField,
            "portMappings",
        ),
        (
            asked(json!({ "deviceID": ADDRESS, "bandwidth": { "ingressRate": 1000 } })),
            Code::UnsupportedField,
            "ingressRate",
        ),
        (json!({ "ipam": { "addresses": ["192.0.2.5"] } }), Code::Config, "no ranges"),
    ] {
        let attach = node.attach("c1", node.config(more));
        let failure = node.ask(&attacher, Request::Add(Box::new(attach))).unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.msg.contains(words), "{words}: {failure}");
    }
    assert!(node.ask(&attacher, Request::Show).unwrap().given.is_empty());
}

#[test]
fn a_function_that_a_program_drives_has_an_interface_that_stands_for_it() {
    let node = Node::new("program");
    let before = node.state();
    let attacher = node.attacher();
    let function = node.sysfs().join("bus/pci/devices").join(ADDRESS);
    fs::remove_dir(function.join("net/card0v1")).unwrap();
    let attach = node.attach("c1", node.config(json!({})));
    // Without such a driver it is somewhere else.
    let failure = node.ask(&attacher, Request::Add(Box::new(attach.clone()))).unwrap_err();
    assert!(failure.msg.contains("still in another container"), "{failure}");
    symlink("../../../bus/pci/drivers/vfio-pci", function.join("driver")).unwrap();
    let done = node.ask(&attacher, Request::Add(Box::new(attach.clone()))).unwrap();
    assert_eq!(done.result.unwrap().interfaces[0].pci_id.as_deref(), Some(ADDRESS));
    let shown = ip(&format!("-n {} addr show net1", node.name("pod")));
    assert!(shown.contains("02:00:00:00:00:77") && shown.contains("192.0.2.9/24"), "{shown}");
    assert_eq!(node.state().vlan, 100);
    node.ask(&attacher, Request::Check(Box::new(attach))).unwrap();
    node.ask(&attacher, detach("c1")).unwrap();
    assert_eq!(node.state(), before);
    assert!(!ip(&format!("-n {} -o link", node.name("pod"))).contains("net1"));
}

/// The whole agent of the node, with manifests in the place of an API server and a pretended dataplane, until it is dropped.
struct Agent {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(node: &Node) -> Self {
        let folder = node.folder.path().to_owned();
        let functions = Functions { sysfs: Sysfs::at(&node.sysfs()), cards: node.card.clone() };
        let namespace = File::open(Path::new("/run/netns").join(node.name("node"))).unwrap();
        let socket = folder.join("cni.sock");
        let attaching = Attaching {
            socket: socket.clone(),
            records: folder.join("records"),
            sockets: folder.join("sockets"),
            devices: folder.join("devices"),
            kubelet_pods: folder.join("pods"),
            reserved: Vec::new(),
            functions,
            faults: FaultPoints::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let dataplane = dataplane::Pretended::start(&folder.join("dataplane.sock"), Vec::new());
                let options = Options {
                    node: "a".parse().unwrap(),
                    source: Source::Manifests(folder.join("manifests")),
                    dataplane: push::Dataplane { socket: dataplane.socket.clone(), attached: None },
                    namespace: "kube-system".to_owned(),
                    listen: None,
                    attaching: Some(attaching),
                    devices: None,
                };
                tokio::select! {
                    ended = penstock_control::agent::run(options) => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let from = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(from.elapsed() < Duration::from_secs(20) && !thread.is_finished(), "nobody answers");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { socket, stop: Some(stop), thread: Some(thread) }
    }

    fn ask(&self, request: &Request) -> Answer {
        ask(&self.socket, Duration::from_secs(20), request)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Whoever ended by itself has said why.
        let _ = self.stop.take().unwrap().send(());
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn an_agent_hands_a_function_to_the_pod_whose_annotation_asks_for_one() {
    let node = Node::new("agent");
    let before = (node.state(), node.link());
    let manifests = node.folder.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let annotations = json!({ "penstock.dev/interface.net1": "sriov" });
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Node", "metadata": { "name": "a" }, "spec": { "podCIDRs": ["10.244.1.0/24"] } },
        {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "fast", "namespace": "shop", "annotations": annotations },
            "spec": { "nodeName": "a", "containers": [] },
        },
    ] });
    fs::write(manifests.join("all.json"), objects.to_string()).unwrap();
    let agent = Agent::start(&node);
    let mut attach = node.attach("c1", node.config(json!({ "interface": null })));
    let pod = [("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_NAME", "fast")];
    attach.args = pod.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let done = agent.ask(&Request::Add(Box::new(attach.clone()))).unwrap();
    let result = done.result.unwrap();
    assert_eq!(result.interfaces[0].pci_id.as_deref(), Some(ADDRESS));
    assert_eq!((node.state().vlan, node.state().trust), (100, Some(true)));
    run(&["ip", "netns", "exec", &node.name("pod"), "ping", "-c1", "-W2", "192.0.2.1"]);
    let given = agent.ask(&Request::Show).unwrap().given;
    assert_eq!((given.len(), given[0].pod.as_deref()), (1, Some("shop/fast")));
    agent.ask(&Request::Check(Box::new(attach))).unwrap();

    // The next agent knows of it, and gives the node its function back.
    drop(agent);
    fs::remove_file(node.folder.path().join("dataplane.sock")).unwrap();
    let agent = Agent::start(&node);
    agent.ask(&detach("c1")).unwrap();
    node.assert_as_before(&before);
    assert_eq!(agent.ask(&Request::Show).unwrap().given, []);
}
