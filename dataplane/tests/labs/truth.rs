//! What policies mean, by packets: the tables by which the agent's crate judges its classifier, row by row on a node that an
//! agent drives.

#[path = "../../../control/tests/truth/rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use penstock_wire::MacAddr;
use serde_json::{Value, json};

use crate::lab::{Lab, programs, repository, under4, wait_until};
use rows::{Row, Table};

/// The pods of all tables and whoever else has an address in their ranges, in the order of the lab's pods.
const PODS: [(&str, &str); 11] = [
    ("x/a", "10.0.1.10"),
    ("x/b", "10.0.1.11"),
    ("x/c", "10.0.2.12"),
    ("y/a", "10.0.1.20"),
    ("y/b", "10.0.1.21"),
    ("y/c", "10.0.2.22"),
    ("z/a", "10.0.1.30"),
    ("z/b", "10.0.1.31"),
    ("z/c", "10.0.2.32"),
    ("y/new", "10.0.1.77"),
    ("y/over", "10.0.1.99"),
];
/// The nodes of the tables, and which node of the lab stands for each.
const NODES: [(&str, u8); 2] = [("192.0.2.1", 2), ("192.0.2.2", 3)];
/// A pod on its node's own network.
const HOST: (&str, &str) = ("x/host", "192.0.2.1");

/// The node that all of them are on: a third one, so that those of the tables are other nodes to each pod.
const NODE: &str = r#"{
    "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node3"},
    "spec": {"podCIDRs": ["10.0.3.0/24", "fd10:244:1::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "ADDRESS"}]}
}"#;

/// The network that all of them are in. Who is outside knows the way to pods.
const NETWORK: &str = r#"{
    "apiVersion": "penstock.dev/v1alpha1", "kind": "Network", "metadata": {"name": "default"},
    "spec": {"vni": 100, "prefixes": ["10.0.0.0/16", "fd10:244::/32"], "natOutgoing": false}
}"#;

/// A table without policies.
const NOTHING: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: empty}\n";

/// The address that a row means.
fn address(party: &str) -> &str {
    PODS.iter().chain([&HOST]).find(|(name, _)| *name == party).map_or(party, |(_, address)| address)
}

/// The same with the lab's addresses in the place of those of the tables' nodes.
fn in_lab(text: &str) -> String {
    NODES.iter().fold(text.to_owned(), |text, (address, i)| text.replace(address, &under4(*i)))
}

/// A node of the tables: one that knows no more than the kernel's tunnels.
fn build_node(lab: &Lab, i: u8) {
    let [ours, theirs] = [1, i].map(|i| MacAddr::from_underlay([192, 168, 51, i].into()));
    let (node, peer) = (under4(i), under4(1));
    lab.node(i).run(&format!(
        "ip link add vx address {theirs} mtu 1450 type vxlan id 100 local {node} dstport 4789 nolearning noudpcsum \
         && ip link set vx up && bridge fdb append {ours} dev vx dst {peer} \
         && ip neighbour add 10.0.3.254 lladdr {ours} dev vx \
         && ip route add 10.0.0.0/16 via 10.0.3.254 dev vx onlink src {node}"
    ));
}

/// A node with all pods, the other nodes, and everybody else outside.
fn build(outsiders: &[&str]) -> Lab {
    let lab = Lab::up("--nodes 1 --foreign 2 --pods 11 --outside --no-daemons");
    let file = lab.file("node1.toml");
    let mut text = std::fs::read_to_string(&file).expect("the lab wrote it");
    // Other nodes and the ways to them are for the agent to say.
    text.truncate(text.find("[[peer]]").expect("the other nodes are peers"));
    text = text.replace("10.244.0.0/16", "10.0.0.0/16").replace("\"10.244.1.254\"", "\"10.0.3.254\"");
    for (j, (_, address)) in (1_u8..).zip(PODS) {
        text = text.replace(&format!("\"10.244.1.{j}\""), &format!("\"{address}\""));
        lab.pod(1, j)
            .run(&format!("ip address add {address}/32 dev eth0 && ip address del 10.244.1.{j}/32 dev eth0"));
    }
    std::fs::write(&file, text).expect("the lab's own folder");
    let mut lines = vec![
        format!("ip route add 10.0.0.0/16 via {}", under4(1)),
        "ip route add fd10:244::/32 via fd50:1::1".to_owned(),
    ];
    for address in outsiders {
        let bits = if address.contains(':') { 128 } else { 32 };
        lines.push(format!("ip address add {address}/{bits} dev lo"));
    }
    lab.outside().run(&lines.join(" && "));
    lab.node(1)
        .run(&format!("ip route add default via {} && ip route add default via fd50:1::fa", under4(250)));
    NODES.iter().for_each(|(_, i)| build_node(&lab, *i));
    lab.start(1);
    lab.await_endpoints(1, PODS.len());
    lab
}

/// Tries all rows at once. Which came through.
fn attempt(lab: &Lab, rows: &[Row], places: &BTreeMap<String, String>) -> Vec<bool> {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "from": in_lab(address(&row.from)), "to": in_lab(address(&row.to)), "protocol": row.protocol,
                "key": row.key, "allowed": row.allowed,
            })
        })
        .collect();
    let mut python = Command::new("python3");
    python
        .arg(repository().join("dataplane/tests/labs/truth.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = python.spawn().expect("python3");
    let task = json!({"places": places, "rows": rows}).to_string();
    child.stdin.take().expect("piped").write_all(task.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it was started");
    assert!(output.status.success(), "truth.py in {}: {}", lab.file("").display(), output.status);
    serde_json::from_slice(&output.stdout).expect("a list of what came through")
}

/// Has an agent tell the dataplane a table, tries it, and says which rows are otherwise.
fn judge(lab: &Lab, table: &Table, cluster: &str, places: &BTreeMap<String, String>) -> Vec<String> {
    let name = table.file.file_stem().expect("a table has a name").to_string_lossy().into_owned();
    let folder = lab.file(&name);
    std::fs::create_dir(&folder).expect("the lab's own folder");
    for (file, text) in [
        ("cluster.yaml", cluster),
        ("table.yaml", table.text.as_str()),
        ("node.json", &NODE.replace("ADDRESS", &under4(1))),
        ("network.json", NETWORK),
    ] {
        // An agent says what policies mean to the pods of its own node.
        let text = in_lab(text)
            .replace("nodeName: node1", "nodeName: node3")
            .replace("nodeName: node2", "nodeName: node3");
        std::fs::write(folder.join(file), text).expect("the lab's own folder");
    }
    // A new agent for each table is ready when all of it is live, and what the one before wanted is gone.
    let agent = lab.node(1).spawn(&format!(
        "{} --node node3 --manifests {} --socket {} --listen 127.0.0.1:9470",
        programs().join("penstock-agent").display(),
        folder.display(),
        lab.file("node1.sock").display()
    ));
    wait_until(&format!("{name} is live"), || {
        lab.node(1).attempt("curl -sf http://127.0.0.1:9470/readyz").status.success()
    });
    let came = attempt(lab, &table.rows, places);
    agent.end("TERM");
    let wrong = table.rows.iter().zip(came).filter(|(row, came)| row.allowed != *came);
    wrong.map(|(row, _)| format!("{name}: {}", row.line)).collect()
}

#[test]
fn every_row_of_every_table_holds_for_packets() {
    let folder = repository().join("control/tests/truth");
    let (_, cluster) = rows::cluster(Path::new(&folder));
    let tables = rows::tables(&folder);
    let parties = tables.iter().flat_map(|table| &table.rows).flat_map(|row| [&row.from, &row.to]);
    let mut outsiders: Vec<&str> = parties.map(|party| address(party)).collect();
    outsiders.sort_unstable();
    outsiders.dedup();
    outsiders.retain(|address| PODS.iter().all(|(_, pod)| pod != address));
    outsiders.retain(|address| NODES.iter().all(|(node, _)| node != address));
    let lab = build(&outsiders);
    let mut places = BTreeMap::new();
    for (j, (_, address)) in (1_u8..).zip(PODS) {
        places.insert(address.to_owned(), lab.pod(1, j).namespace().to_owned());
    }
    for (_, i) in NODES {
        places.insert(under4(i), lab.node(i).namespace().to_owned());
    }
    for address in outsiders {
        places.insert(address.to_owned(), lab.outside().namespace().to_owned());
    }
    // Without a policy everything comes through, so that what does not is not for want of a listener.
    let rows = tables.iter().flat_map(|table| &table.rows).map(|row| Row { allowed: true, ..row.clone() });
    let open = Table { file: "open.yaml".into(), text: NOTHING.to_owned(), rows: rows.collect() };
    let wrong = judge(&lab, &open, &cluster, &places);
    assert!(
        wrong.is_empty(),
        "{} rows without policies do not come through:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let wrong: Vec<String> = tables.iter().flat_map(|table| judge(&lab, table, &cluster, &places)).collect();
    assert!(wrong.is_empty(), "{} rows are otherwise:\n{}", wrong.len(), wrong.join("\n"));
}
