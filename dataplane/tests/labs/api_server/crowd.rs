//! A large cluster at a real API server: how soon what changes there is live, and what following it costs the agent.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::Cluster;
use super::server::Server;
use crate::lab::{repository, wait_until};

/// Fewer than these, and it is no large cluster; `PENSTOCK_CROWD=30000` is what agents are promised for.
const FEW: u64 = 1000;
/// Changes of each kind.
const ROUNDS: u64 = 300;

/// Runs `crowd.py` with a task. What it prints.
fn crowd(task: &Value) -> Value {
    let mut python = Command::new("python3");
    python.arg(repository().join("dataplane/tests/labs/api_server/crowd.py"));
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    child.stdin.take().expect("piped").write_all(task.to_string().as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it was started");
    assert!(output.status.success(), "crowd.py: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn task(cluster: &Cluster, count: u64) -> Value {
    let server = &cluster.server;
    json!({
        "server": format!("https://{}:6443", server.address()), "authority": server.certificate(), "token": Server::ADMIN,
        "place": cluster.lab.under().namespace(), "pods": count, "policies": count, "rounds": ROUNDS, "agent": null,
    })
}

/// The least bound that so many changes were live within.
fn quantile(change: &Value, share: f64) -> f64 {
    let within = change["within_ms"].as_array().expect("a list");
    let bound = within.iter().find(|it| it[1].as_f64().is_some_and(|there| there >= share));
    bound.map_or(f64::INFINITY, |it| it[0].as_f64().expect("a bound"))
}

#[test]
#[ignore = "takes minutes, and its figures say something only of a release build on a quiet machine"]
fn what_changes_in_a_large_cluster_is_live_soon() {
    let count = std::env::var("PENSTOCK_CROWD").ok().and_then(|it| it.parse().ok()).unwrap_or(FEW);
    let mut cluster = Cluster::without_agents("10.0.0.0/8", &[]);
    // Agents begin with all of it there.
    let filled = crowd(&task(&cluster, count));
    println!("{count} pods and {count} policies written in {} s", filled["filled_s"]);
    // The addresses of this node's pods are the newer pods': those of two of the crowd's applications.
    for j in 1..=2 {
        cluster.add_pod_to("team0", 1, j, &json!({"app": format!("app{j}"), "tier": "web"}));
    }
    cluster.start_agent(1);
    let mut measured = task(&cluster, count);
    let process = cluster.agents[0].as_ref().expect("just started").process();
    measured["agent"] = json!({
        "place": cluster.lab.node(1).namespace(), "metrics": "http://127.0.0.1:9470/metrics", "process": process,
    });
    let measured = crowd(&measured);
    println!("idle: {} of a CPU; {} MB resident", measured["idle_cpu"], measured["resident_mb"]);
    for (what, change) in measured["changes"].as_object().expect("by what changes") {
        println!(
            "{what}: {} changes, live after {} ms on average, within {} ms (p50), {} ms (p99); translated in {} ms; {}",
            change["count"],
            change["mean_ms"],
            quantile(change, 0.5),
            quantile(change, 0.99),
            change["translated_ms"],
            change["within_ms"],
        );
        assert!(change["count"].as_u64() >= Some(ROUNDS), "{what}: changes were lost: {change}");
    }
    wait_until("the node stays ready", || cluster.asks(1, "readyz").status.success());
}
