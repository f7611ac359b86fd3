//! Many containers, attached one after the other, against the clock.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::containers::{Container, Runtime, address, plugins};
use crate::lab::{Lab, Place, programs};

/// As many stay attached as kubelets have pods unless told otherwise (`maxPods`); half of them if they are few.
const STANDING: usize = 110;

/// How long ADD takes for each of the containers, in order of length, while so many of those before stay. The plugin is
/// started on the node without anything between, as a runtime does.
fn add_times(node: &Place, containers: &[Container], config: &Value, folder: &Path) -> Vec<Duration> {
    let plugin = folder.join(config["type"].as_str().expect("a type"));
    let config = config.to_string();
    let call = |verb: &str, container: &Container| {
        let from = Instant::now();
        let mut child = Command::new(&plugin)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", container.path())
            .env("CNI_PATH", plugins())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin is there");
        child.stdin.take().expect("a pipe").write_all(config.as_bytes()).expect("the plugin reads");
        let output = child.wait_with_output().expect("wait");
        let took = from.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{verb} {}: {said}", container.id);
        if verb == "ADD" {
            assert!(!address(&serde_json::from_str(&said).expect("JSON"), false).is_empty(), "{said}");
        }
        took
    };
    let mut times = std::thread::scope(|scope| {
        let on_node = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{}", node.namespace())).expect("the node");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root enters a namespace");
            let (mut times, standing) = (Vec::new(), STANDING.min(containers.len() / 2));
            for (at, container) in containers.iter().enumerate() {
                times.push(call("ADD", container));
                if at >= standing {
                    call("DEL", &containers[at - standing]);
                }
            }
            for container in &containers[containers.len() - standing..] {
                call("DEL", container);
            }
            times
        });
        on_node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
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
    // What daemons have unless told otherwise.
    let lab = Lab::up("--pods 0 --chunks 32768");
    let runtime = Runtime::start(&lab, 1);
    let containers: Vec<Container> =
        (0..count).map(|number| Container::new(&lab, &format!("c{number}"))).collect();
    let ranges = json!([[{ "subnet": "10.244.64.0/18" }], [{ "subnet": "fd10:244:64::/64" }]]);
    let ours = runtime.config(json!({ "ipam": { "ranges": ranges } }));
    let ours = add_times(&lab.node(1), &containers, &ours, programs());
    let ipam = json!({
        "type": "host-local", "dataDir": runtime.folder("host-local"), "ranges": [[{ "subnet": "10.9.0.0/16" }]],
    });
    for kind in ["bridge", "ptp"] {
        let config = json!({ "cniVersion": "1.0.0", "name": kind, "type": kind, "ipam": ipam });
        let theirs = add_times(&lab.node(1), &containers, &config, Path::new("/usr/lib/cni"));
        say(&format!("Debian's {kind}"), &theirs);
    }
    let (half, most) = say("penstock-cni", &ours);
    // Debug builds on a busy machine are allowed more than what is promised of release builds (25 and 100 ms).
    assert!(half < Duration::from_millis(250) && most < Duration::from_secs(2), "{half:?} {most:?}");
    runtime.assert_clean();
}
