//! Many containers, one after the other, against the clock.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::containers::{Container, Runtime, address, plugins};
use crate::lab::{Lab, Place};

/// How long ADD takes for each of `count` containers, in order of length.
fn add_times(runtime: &Runtime<'_>, container: &Container, config: &Value, count: usize) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..count)
        .map(|i| {
            let from = Instant::now();
            let result =
                runtime.call("ADD", container, config).unwrap_or_else(|failure| panic!("{i}: {failure}"));
            let took = from.elapsed();
            assert!(!address(&result, false).is_empty());
            runtime.call("DEL", container, config).expect("a container that is attached is detached");
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
