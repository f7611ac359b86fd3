//! Many containers: by containerd and runc at the same time, and one after the other against the clock.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::containers::{Container, Runtime, address, plugins};
use crate::lab::{Lab, Place, Running, programs, succeed, wait_until};

/// Containers on each of two nodes.
const CONTAINERS: usize = 25;

/// containerd on a node, with everything of its own in the lab's folder.
struct Containerd<'a> {
    runtime: &'a Runtime<'a>,
    node: Place,
    folder: String,
    _daemon: Running,
}

impl<'a> Containerd<'a> {
    fn start(runtime: &'a Runtime<'a>, node: Place) -> Self {
        let folder = runtime.folder("containerd");
        let (bin, conf, root) = (folder.join("bin"), folder.join("conf"), folder.join("rootfs/bin"));
        for it in [&bin, &conf, &root] {
            std::fs::create_dir_all(it).expect("a folder");
        }
        let folder = folder.display().to_string();
        succeed({
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!(
                "ln -s /usr/lib/cni/* {0}/bin/ && ln -s {1}/penstock-cni {0}/bin/ && cp /bin/busybox {0}/rootfs/bin/ \
                 && ln -s busybox {0}/rootfs/bin/sleep",
                folder,
                programs().display()
            ));
            shell
        });
        let list = json!({
            "cniVersion": "1.0.0", "name": "penstock",
            "plugins": [runtime.config(json!({ "identity": "echoes" }))],
        });
        std::fs::write(conf.join("05-penstock.conflist"), list.to_string()).expect("a configuration");
        let config = format!(
            "version = 2\nroot = '{folder}/root'\nstate = '{folder}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = '{folder}/c.sock'\n"
        );
        std::fs::write(format!("{folder}/config.toml"), config).expect("a configuration");
        let mut daemon = node.spawn(&format!("containerd --config {folder}/config.toml --log-level error"));
        wait_until("containerd answers", || {
            daemon.assert_runs();
            node.attempt(&format!("ctr -a {folder}/c.sock version")).status.success()
        });
        Self { runtime, node, folder, _daemon: daemon }
    }

    /// Starts a container that sleeps; it ends, its network included, when it is killed.
    fn run(&self, name: &str) -> Running {
        let folder = &self.folder;
        // The runtime's usual places are these in the mount namespace of this one command.
        self.node.spawn(&format!(
            "unshare -m sh -c 'mkdir -p /etc/cni/net.d /opt/cni/bin && mount --bind {folder}/conf /etc/cni/net.d && \
             mount --bind {folder}/bin /opt/cni/bin && exec ctr -a {folder}/c.sock run --rm --cni --read-only --rootfs \
             {folder}/rootfs {name} /bin/sleep 600'"
        ))
    }

    fn kill(&self, name: &str) {
        self.node.run(&format!("ctr -a {}/c.sock task kill -s KILL {name}", self.folder));
    }

    fn inside(&self, name: &str, command: &str) -> bool {
        let pids = self.node.run(&format!("ctr -a {}/c.sock task ls", self.folder));
        let line = pids.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("it runs");
        let pid = line.split_whitespace().nth(1).expect("a process number").to_owned();
        self.node.attempt(&format!("nsenter -n -t {pid} {command}")).status.success()
    }
}

const ONLY_ECHOES: &str = r#"
[[identity]]
name = "echoes"
network = "default"

[[tier]]
name = "kubernetes"
order = 100
default = "deny"

[[policy]]
name = "only-echoes"
tier = "kubernetes"
order = 0
network = "default"
subjects = { identities = ["echoes"] }
directions = ["ingress", "egress"]
rules = [
    { name = "in", direction = "ingress", action = "allow", ports = [{ protocol = "icmp" }] },
    { name = "out", direction = "egress", action = "allow", ports = [{ protocol = "icmp" }] },
]
"#;

#[test]
fn fifty_containers_of_containerd_come_and_go_at_the_same_time() {
    let lab = Lab::up("--pods 0 --chunks 65536");
    std::fs::write(lab.file("policy.toml"), ONLY_ECHOES).unwrap();
    for i in [1, 2] {
        lab.node(i).run(&format!("{} apply -f {}", lab.penstock(i), lab.file("policy.toml").display()));
    }
    let runtimes = [1, 2].map(|i| Runtime::start(&lab, i));
    let daemons = [1u8, 2].map(|i| Containerd::start(&runtimes[usize::from(i) - 1], lab.node(i)));
    let from = Instant::now();
    let names: Vec<String> = (0..CONTAINERS).map(|i| format!("c{i}")).collect();
    let mut running = Vec::new();
    for name in &names {
        running.extend(daemons.iter().map(|it| it.run(name)));
    }
    let complete = |runtime: &Runtime<'_>| runtime.given().iter().filter(|it| it["complete"] == true).count();
    let deadline = Instant::now() + Duration::from_secs(120);
    while runtimes.iter().any(|it| complete(it) < CONTAINERS) {
        running.iter_mut().for_each(Running::assert_runs);
        assert!(Instant::now() < deadline, "{} and {}", complete(&runtimes[0]), complete(&runtimes[1]));
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{} containers are attached after {:?}", 2 * CONTAINERS, from.elapsed());
    let of = |runtime: &Runtime<'_>| -> Vec<String> {
        runtime.given().iter().map(|it| it["addresses"][0].as_str().unwrap().to_owned()).collect()
    };
    let mut all: Vec<String> = runtimes.iter().flat_map(of).collect();
    let theirs = of(&runtimes[1]);
    for (name, address) in names.iter().zip(&theirs) {
        assert!(daemons[0].inside(name, &format!("ping -c 2 -W 4 {address}")), "{name} to {address}");
    }
    assert!(!daemons[0].inside("c0", &format!("curl -s -m 1 http://{}/", theirs[0])));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 2 * CONTAINERS);
    for name in &names {
        daemons.iter().for_each(|it| it.kill(name));
    }
    for it in running {
        it.end("CONT");
    }
    for daemon in &daemons {
        daemon.runtime.assert_clean();
    }
}

/// How long ADD takes for each of `count` containers, in order of length.
fn add_times(runtime: &Runtime<'_>, container: &Container, config: &Value, count: usize) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..count)
        .map(|i| {
            let from = Instant::now();
            let result =
                runtime.call("ADD", container, config).unwrap_or_else(|failure| panic!("{i}: {failure}"));
            let took = from.elapsed();
            assert!(!address(&result, false).is_empty());
            runtime.call("DEL", container, config).unwrap();
            took
        })
        .collect();
    times.sort();
    times
}

/// The same for one of Debian's plugins.
fn peer_times(node: &Place, container: &Container, config: &Value, count: usize) -> Vec<Duration> {
    let kind = config["type"].as_str().expect("a type");
    let call = |verb: &str| {
        let from = Instant::now();
        let environment = format!(
            "CNI_COMMAND={verb} CNI_CONTAINERID={} CNI_IFNAME=eth0 CNI_NETNS={} CNI_PATH={}",
            container.id,
            container.path(),
            plugins()
        );
        node.run(&format!("echo '{config}' | {environment} /usr/lib/cni/{kind}"));
        from.elapsed()
    };
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let took = call("ADD");
            call("DEL");
            took
        })
        .collect();
    times.sort();
    times
}

fn say(what: &str, times: &[Duration]) -> (Duration, Duration) {
    let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("ADD by {what:<22} p50 {half:>10.2?}  p99 {most:>10.2?}  ({} containers)", times.len());
    (half, most)
}

/// Few by default, so that every test run sees it; `PENSTOCK_ADDS=500` measures.
#[test]
fn an_attachment_is_quick_beside_bridge_and_ptp() {
    let count = std::env::var("PENSTOCK_ADDS").ok().and_then(|it| it.parse().ok()).unwrap_or(20);
    let lab = Lab::up("--pods 0");
    let runtime = Runtime::start(&lab, 1);
    let container = Container::new(&lab, "c1");
    let ours = add_times(&runtime, &container, &runtime.config(json!({})), count);
    let ipam = json!({
        "type": "host-local", "dataDir": runtime.folder("host-local"), "ranges": [[{ "subnet": "10.9.0.0/16" }]],
    });
    for kind in ["bridge", "ptp"] {
        let config = json!({ "cniVersion": "1.0.0", "name": kind, "type": kind, "ipam": ipam });
        say(&format!("Debian's {kind}"), &peer_times(&lab.node(1), &container, &config, count));
    }
    let (half, most) = say("penstock-cni", &ours);
    // Debug builds on a busy machine are allowed more than what is promised of release builds (25 and 100 ms).
    assert!(half < Duration::from_millis(250) && most < Duration::from_secs(2), "{half:?} {most:?}");
    runtime.assert_clean();
}
