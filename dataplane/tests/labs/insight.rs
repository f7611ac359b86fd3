//! What an operator is told: which rules decide, what they log, who serves, where a packet would go.

use serde_json::Value;

use crate::lab::{Lab, number, text, v4, wait_until};
use crate::operations::scraped;
use crate::traffic::{no_ping, ping};

/// Pod 1 of node 1 takes echoes from pod 2 and port 7000 from everybody; what else comes is logged, then denied by the tier's
/// end. A staged policy would deny port 7000. A service of two backends; a way out of two ports.
const TOLD: &str = r#"
[[identity]]
name = "friend"
network = "default"
prefixes = ["10.244.1.2/32"]
[[identity]]
name = "server"
network = "default"
prefixes = ["10.244.1.1/32"]
[[tier]]
name = "application"
order = 1
default = "deny"
[[policy]]
name = "server"
network = "default"
tier = "application"
order = 2
subjects = { identities = ["server"] }
directions = ["ingress"]
[[policy.rules]]
name = "friend"
direction = "ingress"
action = "allow"
peers = [{ identity = "friend" }]
[[policy.rules]]
name = "port"
direction = "ingress"
action = "allow"
ports = [{ protocol = "tcp", port = 7000 }]
[[policy.rules]]
name = "others"
direction = "ingress"
action = "log"
[[policy]]
name = "trial"
network = "default"
tier = "application"
order = 1
subjects = { identities = ["server"] }
directions = ["ingress"]
staged = true
[[policy.rules]]
name = "no-port"
direction = "ingress"
action = "deny"
ports = [{ protocol = "tcp", port = 7000 }]
[[service]]
name = "web"
network = "default"
cluster-ips = ["10.96.0.1"]
ports = [{ name = "http", port = 80 }]
[[backends]]
service = "web"
ports = [{ name = "http", port = 7000 }]
members = [{ address = "10.244.2.1", node = "node2" }]
[[route]]
network = "default"
prefix = "0.0.0.0/0"
via = { uplink = { uplink = "uplink" } }
[[nat-pool]]
name = "outside"
network = "default"
sources = ["10.244.0.0/16"]
exclusions = ["10.0.0.0/8"]
ports = "50000-50001"
"#;

fn lab() -> Lab {
    let lab = Lab::up("--pods 2");
    let file = lab.file("told.toml");
    std::fs::write(&file, TOLD).expect("the lab's own folder");
    lab.ask(1, &format!("apply -f {}", file.display()));
    lab
}

/// The row of a rule.
fn rule(lab: &Lab, policy: &str, rule: &str) -> Value {
    let tiers = lab.ask(1, "policy");
    let policies = tiers
        .as_array()
        .expect("tiers")
        .iter()
        .flat_map(|tier| tier["policies"].as_array().expect("policies"));
    let policy = policies.into_iter().find(|it| it["name"] == policy).expect("the policy");
    let rules = policy["rules"].as_array().expect("rules");
    rules.iter().find(|it| it["name"] == rule).expect("the rule").clone()
}

/// A program that opens so many connections to a port, one after the other, and closes them.
fn connect(address: &str, port: u16, times: u32) -> String {
    let program = format!(
        "import socket\nfor _ in range({times}):\n socket.create_connection((\"{address}\", {port}), 3).close()"
    );
    format!("python3 -c '{program}'")
}

#[test]
fn rules_are_counted_staged_ones_too_and_what_is_logged_is_told() {
    let lab = lab();
    let events = format!("{} --json events --kind rule --count 2 --duration 20", lab.penstock(1));
    let watch = lab.node(1).spawn(&events);
    // Whoever comes late is not told what was before.
    std::thread::sleep(std::time::Duration::from_millis(500));
    ping(&lab.pod(1, 2), &v4(1, 1));
    let _server = lab.pod(1, 1).serve(7000, "python3 -m http.server 7000");
    lab.pod(2, 1).run(&connect(&v4(1, 1), 7000, 5));
    no_ping(&lab.pod(2, 1), &v4(1, 1));
    wait_until("the rules have counted", || number(&rule(&lab, "server", "others")["hits"]) >= 3);
    assert_eq!(number(&rule(&lab, "server", "port")["hits"]), 5);
    assert_eq!(number(&rule(&lab, "trial", "no-port")["hits"]), 5, "the staged rule would have decided");
    assert!(number(&rule(&lab, "server", "friend")["hits"]) >= 1);
    let tier = &lab.ask(1, "policy")[0];
    assert!(number(&tier["default_hits"]) >= 3, "{tier}");
    let told = watch.finish();
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let event = &events[0];
    assert_eq!((text(&event["network"]), text(&event["endpoint"])), ("default".into(), "pod1".into()));
    let detail = &event["detail"]["Rule"];
    assert_eq!(
        (text(&detail["rule"]["policy"]), text(&detail["rule"]["rule"]), text(&detail["verdict"])),
        ("server".into(), "others".into(), "deny".into())
    );
    assert_eq!(text(&detail["decided_by"]["tier"]), "application");
    assert_eq!(text(&detail["packet"]["source"]), v4(2, 1));
    let printed = lab.node(1).run(&format!("{} policy", lab.penstock(1)));
    println!("{printed}\n{}", text(&event["sentence"]));
}

#[test]
fn a_pool_without_ports_is_told_while_it_lasts() {
    let lab = lab();
    let watch = lab
        .node(1)
        .spawn(&format!("{} --json events --kind exhaustion --count 1 --duration 20", lab.penstock(1)));
    std::thread::sleep(std::time::Duration::from_millis(500));
    let many = "import socket\nfor _ in range(20):\n s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n s.sendto(b\"?\", (\"192.168.51.200\", 9))";
    lab.pod(1, 2).run(&format!("python3 -c '{many}'"));
    let event: Value = serde_json::from_str(watch.finish().trim()).expect("an event");
    let detail = &event["detail"]["Exhaustion"];
    assert_eq!(
        (text(&detail["what"]), text(&detail["object"])),
        ("ports".into(), "nat-pool \"outside\"".into())
    );
    assert_eq!(number(&detail["capacity"]), 2);
    assert!(lab.drops(1)["nat-exhausted"] > 0);
    println!("{}", text(&event["sentence"]));
}

#[test]
fn a_service_is_listed_with_the_connections_of_its_backends() {
    let lab = lab();
    let script = crate::traffic::echo_script();
    let _server = lab.pod(2, 1).serve(7000, &format!("python3 {script} serve 7000"));
    let _session = lab.pod(1, 2).spawn(&format!("python3 {script} talk 10.96.0.1 80"));
    let row = || lab.ask(1, "services")[0]["ports"][0]["backends"][0].clone();
    wait_until("the connection is counted", || number(&row()["connections"]) == 1);
    let row = row();
    assert_eq!(
        (text(&row["address"]), number(&row["port"]), text(&row["state"]), text(&row["node"])),
        (v4(2, 1), 7000, "ready".into(), "node2".into())
    );
    println!("{}", lab.node(1).run(&format!("{} services --backends", lab.penstock(1))));
}

/// The facts of an explanation by their kind.
fn facts(lab: &Lab, question: &str) -> Vec<(String, Value)> {
    let answer = lab.ask(1, &format!("explain {question}"));
    let steps = answer["steps"].as_array().expect("steps");
    let facts = steps.iter().filter_map(|step| step["fact"].as_object()).flatten();
    facts.map(|(kind, fact)| (kind.clone(), fact.clone())).collect()
}

fn fact(facts: &[(String, Value)], kind: &str) -> Value {
    facts.iter().find(|(it, _)| it == kind).unwrap_or_else(|| panic!("no {kind} in {facts:?}")).1.clone()
}

#[test]
fn an_explanation_names_service_backend_route_rule_pool_and_tunnel() {
    let lab = lab();
    ping(&lab.pod(1, 2), &v4(2, 1));
    let through = facts(&lab, "--from pod2 --to 10.96.0.1 --protocol tcp --port 80");
    assert_eq!(text(&fact(&through, "Connection")["state"]), "new");
    let service = fact(&through, "Service");
    assert_eq!((text(&service["service"]), text(&service["port"])), ("web".into(), "http".into()));
    assert_eq!((text(&service["backend"]), number(&service["backend_port"])), (v4(2, 1), 7000));
    assert_eq!(text(&fact(&through, "Route")["prefix"]), "10.244.2.0/24");
    assert_eq!(text(&fact(&through, "Tunnel")["peer"]), "node2");
    let out = facts(&lab, "--from pod2 --to 192.168.51.200 --protocol udp --port 9");
    assert_eq!(text(&fact(&out, "Nat")["object"]), "nat-pool \"outside\"");
    assert!(text(&fact(&out, "Nat")["address"]).starts_with("192.168.51."), "{out:?}");
    let tunnel = format!("--from peer:node2/default --source {} --to {}", v4(2, 1), v4(1, 1));
    let denied = facts(&lab, &format!("{tunnel} --protocol tcp --port 22"));
    let rules: Vec<Value> =
        denied.into_iter().filter(|(kind, _)| kind == "Rule").map(|(_, fact)| fact).collect();
    assert_eq!((text(&rules[0]["rule"]), text(&rules[0]["action"])), ("others".into(), "log".into()));
    assert_eq!((text(&rules[1]["tier"]), text(&rules[1]["action"])), ("application".into(), "deny".into()));
    let allowed = facts(&lab, &format!("{tunnel} --protocol tcp --port 7000"));
    let rules: Vec<Value> =
        allowed.into_iter().filter(|(kind, _)| kind == "Rule").map(|(_, fact)| fact).collect();
    assert_eq!((text(&rules[0]["rule"]), rules[0]["staged"].as_bool()), ("no-port".into(), Some(true)));
    assert_eq!((text(&rules[1]["policy"]), text(&rules[1]["rule"])), ("server".into(), "port".into()));
    println!(
        "{}",
        lab.node(1).run(&format!("{} explain {tunnel} --protocol tcp --port 7000", lab.penstock(1)))
    );
}

#[test]
fn a_change_that_does_not_fit_is_told_and_counted_and_what_was_there_goes_on() {
    let lab = Lab::up("--pods 1 --no-daemons");
    let file = lab.file("node1.toml");
    let config = std::fs::read_to_string(&file).expect("the lab wrote it");
    let config = config.replace("[control]\n", "[control]\nmetrics = \"127.0.0.1:9469\"\n");
    std::fs::write(&file, config).expect("the lab's own folder");
    lab.start(1);
    lab.start(2);
    ping(&lab.pod(1, 1), &v4(2, 1));
    let refused = || {
        let scraped = scraped(&lab.node(1).run("curl -sS --fail http://127.0.0.1:9469/metrics"));
        ["does_not_fit", "faulty"]
            .map(|reason| scraped[&format!("penstock_refused_changes_total{{reason=\"{reason}\"}}")])
    };
    assert_eq!(refused(), [0.0, 0.0]);
    let before = number(&lab.ask(1, "status")["generation"]);
    let events = format!("{} --json events --kind refusal --count 1 --duration 20", lab.penstock(1));
    let watch = lab.node(1).spawn(&events);
    // Whoever comes late is not told what was before.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let apply = |objects: &str| {
        let file = lab.file("refused.toml");
        std::fs::write(&file, objects).expect("the lab's own folder");
        let said = lab.node(1).attempt(&format!("{} apply -f {}", lab.penstock(1), file.display()));
        assert!(!said.status.success(), "it was taken: {said:?}");
        String::from_utf8_lossy(&said.stderr).into_owned()
    };
    // More options than a header has room for beside IPv6 addresses; each alone is right.
    let option = format!("{{ class = 0xFF01, kind = 1, data = \"{}\" }}", "2a".repeat(48));
    let network = format!(
        "[[network]]\nname = \"wide\"\nvni = 300\nencapsulation = \"geneve\"\ngeneve-options = [{option}]\n\
         [[peer]]\nname = \"node9\"\naddress = \"fd50:1::9\"\n"
    );
    let said = apply(&network);
    assert!(said.contains("the options do not fit the tunnel header"), "{said}");
    let event: Value = serde_json::from_str(watch.finish().trim()).expect("an event");
    assert!(text(&event["sentence"]).contains("a change does not fit and was refused"), "{event}");
    let faults = &event["detail"]["Refusal"]["faults"];
    assert!(text(&faults[0]).contains("network \"wide\", `geneve-options`"), "{event}");
    assert_eq!(refused(), [1.0, 0.0]);
    // What is simply wrong is counted apart.
    apply("[[route]]\nnetwork = \"nowhere\"\nprefix = \"10.9.0.0/16\"\nvia = \"blackhole\"\n");
    assert_eq!(refused(), [1.0, 1.0]);
    assert_eq!(number(&lab.ask(1, "status")["generation"]), before);
    ping(&lab.pod(1, 1), &v4(2, 1));
}
