//! The Helm chart: rendered, and its file for the nodes' daemons as a daemon reads it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::lab::{programs, repository, succeed, text};

/// Where `scripts/setup --tests` puts what renders the chart.
const RENDERER: &str = "/var/cache/penstock/go/chart";
/// Where the chart puts what it does not put on the whole cluster.
pub const NAMESPACE: &str = "penstock-system";

/// The chart's objects, with values in the place of its own.
pub fn render_chart(values: &[&str]) -> Vec<Value> {
    assert!(Path::new(RENDERER).exists(), "no {RENDERER}, which takes Go: scripts/setup --tests builds it");
    let mut chart = Command::new(RENDERER);
    chart.arg(repository().join("configs/kubernetes/chart")).args(["penstock", NAMESPACE]).args(values);
    serde_json::from_str(&succeed(chart)).expect("a list of objects")
}

/// The file, for a node of this name.
fn node_file(values: &[&str]) -> String {
    let objects = render_chart(values);
    let file = objects.iter().map(|it| &it["data"]["node.toml"]).find(|it| it.is_string());
    text(file.expect("a ConfigMap has it")).replace("NODE_NAME", "node1")
}

#[test]
fn daemons_take_the_file_that_the_chart_writes() {
    let own: &[&str] = &[];
    let others = [
        "uplink.interface=ens3",
        "network.encapsulation=geneve",
        "network.crossSubnet=true",
        "dataplane.cpus={1}",
        "dataplane.idle=poll",
        "dataplane.metrics=",
    ];
    for values in [own, &others] {
        let mut check = Command::new(programs().join("penstockd"));
        check.args(["check", "--file-only", "--config", "/dev/stdin"]).stdin(Stdio::piped());
        let mut check = check.stderr(Stdio::piped()).spawn().expect("penstockd");
        let file = node_file(values);
        check.stdin.take().expect("a pipe").write_all(file.as_bytes()).expect("it reads");
        let output = check.wait_with_output().expect("wait");
        assert!(output.status.success(), "{file}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
