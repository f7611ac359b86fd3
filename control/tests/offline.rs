//! The commands that ask no daemon, as programs: what manifests mean, and the definitions of our resources.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::process::{Command, Output};

use serde_json::{Value, json};

const SHOP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { namespace: shop, name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec: { containers: [{ name: c, image: i }] }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { namespace: shop, name: db }
spec:
  selector: { matchLabels: { app: db } }
  serviceName: db
  template:
    metadata: { labels: { app: db } }
    spec: { containers: [{ name: c, image: i, ports: [{ name: sql, containerPort: 5432 }] }] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { namespace: shop, name: db }
spec:
  podSelector: { matchLabels: { app: db } }
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{ podSelector: { matchLabels: { app: web } } }]
      ports: [{ port: 5432 }, { protocol: UDP, port: 100, endPort: 200 }]
---
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: db }
spec:
  clusterIP: 10.96.0.7
  selector: { app: db }
  ports: [{ name: sql, port: 80, targetPort: sql }, { name: raw, port: 81 }]
";

fn penstock(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_penstock")).args(words).output().unwrap()
}

fn said(words: &[&str]) -> String {
    let output = penstock(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with a file of manifests.
fn folder(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.yaml"), text).unwrap();
    folder
}

#[test]
fn connectivity_prints_a_line_for_each_pair_that_can_speak() {
    let folder = folder(SHOP);
    let path = folder.path().to_str().unwrap();
    let everybody = "0.0.0.0-255.255.255.255[External]";
    let lines = [
        format!("{everybody} => shop/web[Deployment] : All Connections"),
        "shop/web[Deployment] => ".to_owned() + everybody + " : All Connections",
        "shop/web[Deployment] => shop/db[StatefulSet] : TCP 5432,UDP 100-200".to_owned(),
    ];
    let text = said(&["connectivity", "--manifests", path]);
    assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    let list: Value = serde_json::from_str(&said(&["--json", "connectivity", "--manifests", path])).unwrap();
    let last =
        json!({"src": "shop/web[Deployment]", "dst": "shop/db[StatefulSet]", "conn": "TCP 5432,UDP 100-200"});
    assert_eq!((list.as_array().unwrap().len(), &list[2]), (3, &last));
}

#[test]
fn explain_names_the_policy_and_the_rule_on_each_side() {
    let folder = folder(SHOP);
    let path = folder.path().to_str().unwrap();
    let ask = |words: &[&str]| {
        let words: Vec<&str> = ["explain", "--manifests", path, "--protocol", "TCP"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        said(&words)
    };
    let text = ask(&["--from", "shop/web", "--to", "shop/db", "--port", "5432"]);
    assert!(text.starts_with("shop/web[Deployment] => shop/db[StatefulSet]: allowed\n"), "{text}");
    assert!(text.contains("shop/db"), "{text}");
    let text = ask(&["--from", "shop/web", "--to", "shop/db", "--port", "80"]);
    assert!(text.contains("denied") && text.contains("selected by shop/db"), "{text}");
    let side: Value =
        serde_json::from_str(&ask(&["--from", "shop/db", "--to", "192.0.2.1", "--port", "80", "--json"]))
            .unwrap();
    assert_eq!((&side["allowed"], &side["egress"]["allowed"]), (&json!(false), &json!(false)));
    assert_eq!(side["egress"]["selected_by"], json!(["shop/db"]));
}

#[test]
fn policies_judge_the_pods_behind_a_service() {
    let folder = folder(SHOP);
    let path = folder.path().to_str().unwrap();
    let ask = |words: &[&str]| {
        let start = ["explain", "--manifests", path, "--protocol", "TCP", "--from", "shop/web"];
        penstock(&start.into_iter().chain(words.iter().copied()).collect::<Vec<_>>())
    };
    for to in ["10.96.0.7", "shop/db[Service]"] {
        let output = ask(&["--to", to, "--port", "80"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = "port 80 of shop/db[Service] is served in one place\n\
                     port 5432 of shop/web[Deployment] => shop/db[StatefulSet]: allowed\n";
        assert!(text.starts_with(lines), "{text}");
    }
    // No target port is the same port, which the policy does not let in.
    let output = ask(&["--to", "10.96.0.7", "--port", "81", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["service"], &answer["port"]), (&json!("shop/db[Service]"), &json!(81)));
    assert_eq!(
        (&answer["backends"][0]["port"], &answer["backends"][0]["allowed"]),
        (&json!(81), &json!(false))
    );
    let output = ask(&["--to", "10.96.0.7", "--port", "82"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("shop/db has no port 82"), "{said}");
}

#[test]
fn what_is_wrong_with_manifests_is_told_with_its_place() {
    let folder = folder("apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: { containers: 3 }\n");
    let path = folder.path().to_str().unwrap();
    let output = penstock(&["connectivity", "--manifests", path]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(said.contains("shop.yaml") && said.contains("is no Pod"), "{said}");
    let output = penstock(&[
        "explain",
        "--manifests",
        "/nonexistent",
        "--from",
        "a/b",
        "--to",
        "a/c",
        "--protocol",
        "icmp",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("/nonexistent"), "{said}");
}

#[test]
fn definitions_are_what_kubectl_takes() {
    let text = said(&["crds"]);
    assert_eq!(text.matches("kind: CustomResourceDefinition").count(), 5);
    let list: Value = serde_json::from_str(&said(&["--json", "crds"])).unwrap();
    let names: Vec<&str> =
        list.as_array().unwrap().iter().filter_map(|it| it["metadata"]["name"].as_str()).collect();
    assert_eq!(names.len(), 5);
    assert!(names.contains(&"networks.penstock.dev"), "{names:?}");
}
