//! The CNI plugin among others: called by cnitool, before and behind the plugins of the CNI project.

use serde_json::{Value, json};

use crate::containers::{Container, Runtime, address, plugins};
use crate::lab::{Lab, Place, under4, v4, v6, wait_until};
use crate::services::{WAY_OUT, backend_script, serve};
use crate::stateful::apply;
use crate::traffic::ping;

/// Where `scripts/setup` builds it.
const CNITOOL: &str = "/var/cache/penstock/go/cnitool";

/// Runs cnitool for the network `name` whose configuration is in the lab's folder.
fn cnitool(runtime: &Runtime<'_>, node: &Place, verb: &str, name: &str, container: &Container) -> Value {
    let folder = runtime.folder("net.d");
    let said = node.run(&format!(
        "CNI_PATH={} NETCONFPATH={} {CNITOOL} {verb} {name} {}",
        plugins(),
        folder.display(),
        container.path()
    ));
    if said.is_empty() { Value::Null } else { serde_json::from_str(&said).expect("cnitool prints JSON") }
}

/// Writes the configuration of a network.
fn configure(runtime: &Runtime<'_>, name: &str, version: &str, plugins: &Value) {
    let folder = runtime.folder("net.d");
    std::fs::create_dir_all(&folder).expect("a folder");
    let list = json!({ "cniVersion": version, "name": name, "plugins": plugins });
    std::fs::write(folder.join(format!("{name}.conflist")), list.to_string()).expect("a configuration");
}

#[test]
fn cnitool_takes_each_mode_through_each_version() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let node = lab.node(1);
    for (i, version) in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
        for mode in ["veth", "vhost-user", "tap"] {
            let container = Container::new(&lab, &format!("{mode}{i}"));
            let plugin = runtime.config(json!({ "interface": mode }));
            configure(&runtime, "penstock", version, &json!([plugin]));
            let result = cnitool(&runtime, &node, "add", "penstock", &container);
            assert_eq!(result["cniVersion"], version);
            if mode != "vhost-user" {
                ping(&container.place, &v4(2, 1));
            }
            if version >= "0.4.0" {
                cnitool(&runtime, &node, "check", "penstock", &container);
            }
            if version == "1.1.0" {
                cnitool(&runtime, &node, "status", "penstock", &container);
                cnitool(&runtime, &node, "gc", "penstock", &container);
            } else {
                cnitool(&runtime, &node, "del", "penstock", &container);
            }
            container.place.run("! ip link show eth0");
            assert_eq!(runtime.given().len(), 0, "{version} {mode}");
        }
    }
}

#[test]
fn plugins_behind_ours_find_what_they_need() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let node = lab.node(1);
    let container = Container::new(&lab, "c1");
    let plugins = json!([
        runtime.config(json!({})),
        { "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_notify": "1" } },
        { "type": "bandwidth", "ingressRate": 1_000_000_000, "ingressBurst": 1_000_000_000,
          "egressRate": 1_000_000_000, "egressBurst": 1_000_000_000 },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ]);
    configure(&runtime, "chain", "1.0.0", &plugins);
    let result = cnitool(&runtime, &node, "add", "chain", &container);
    ping(&container.place, &v4(2, 1));
    lab.pod(2, 1).run(&format!("ping -c 2 -W 2 {}", address(&result, false)));
    assert_eq!(container.place.run("cat /proc/sys/net/ipv4/conf/eth0/arp_notify").trim(), "1");
    cnitool(&runtime, &node, "check", "chain", &container);
    cnitool(&runtime, &node, "del", "chain", &container);
    assert_eq!(runtime.given().len(), 0);
}

#[test]
fn routes_by_source_are_made_from_ours() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let node = lab.node(1);
    let container = Container::new(&lab, "c1");
    configure(&runtime, "sourced", "1.0.0", &json!([runtime.config(json!({})), { "type": "sbr" }]));
    let result = cnitool(&runtime, &node, "add", "sourced", &container);
    let ours = address(&result, false);
    let rules = container.place.run("ip rule");
    assert!(rules.contains(&format!("from {ours} lookup 100")), "{rules}");
    let table = container.place.run("ip route show table 100");
    assert!(table.contains("default via 169.254.1.1 dev eth0"), "{table}");
    // Whoever says where it comes from is routed by that; `sbr` leaves nothing in the main table.
    container.place.run(&format!("ping -c 2 -W 2 -I {ours} {}", v4(2, 1)));
    lab.pod(2, 1).run(&format!("ping -c 2 -W 2 {ours}"));
    cnitool(&runtime, &node, "check", "sourced", &container);
    cnitool(&runtime, &node, "del", "sourced", &container);
    assert_eq!(runtime.given().len(), 0);
}

#[test]
fn host_local_gives_addresses_in_our_place() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let node = lab.node(1);
    let container = Container::new(&lab, "c1");
    let kept = runtime.folder("host-local");
    let ipam = json!({
        "type": "host-local", "dataDir": kept,
        "ranges": [[{ "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.77" }]],
    });
    configure(&runtime, "other", "1.0.0", &json!([runtime.config(json!({ "ipam": ipam }))]));
    let result = cnitool(&runtime, &node, "add", "other", &container);
    assert_eq!(address(&result, false), "10.244.1.77");
    assert!(kept.join("other/10.244.1.77").exists());
    ping(&container.place, &v4(2, 1));
    cnitool(&runtime, &node, "check", "other", &container);
    // The runtime lost the configuration: what host-local needs for its DEL is in our record.
    let id = runtime.given()[0]["id"]["containerID"].as_str().unwrap().to_owned();
    let lost = json!({ "name": "other", "socket": runtime.socket() });
    runtime.call_with("DEL", &container, &lost, &[("CNI_CONTAINERID", &id)]).unwrap();
    assert!(!kept.join("other/10.244.1.77").exists());
    cnitool(&runtime, &node, "del", "other", &container);
}

#[test]
fn a_plugin_that_keeps_nothing_gives_addresses_in_our_place() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let node = lab.node(1);
    let container = Container::new(&lab, "c1");
    let ipam = json!({
        "type": "static", "addresses": [{ "address": "10.244.1.88/24" }, { "address": "fd10:244:1::88/64" }],
    });
    configure(&runtime, "fixed", "1.0.0", &json!([runtime.config(json!({ "ipam": ipam }))]));
    let result = cnitool(&runtime, &node, "add", "fixed", &container);
    assert_eq!(
        (address(&result, false).as_str(), address(&result, true).as_str()),
        ("10.244.1.88", "fd10:244:1::88")
    );
    ping(&container.place, &v4(2, 1));
    ping(&container.place, &v6(2, 1));
    cnitool(&runtime, &node, "check", "fixed", &container);
    cnitool(&runtime, &node, "del", "fixed", &container);
    assert_eq!(runtime.given(), [Value::Null; 0]);
}

#[test]
fn our_addresses_are_given_under_another_plugin() {
    let lab = Lab::up("--pods 0");
    let runtime = Runtime::start(&lab, 1);
    let node = lab.node(1);
    let container = Container::new(&lab, "c1");
    let ipam = json!({
        "type": "penstock-cni", "ranges": [[{ "subnet": "10.9.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let ptp = json!({ "type": "ptp", "socket": runtime.socket(), "ipam": ipam });
    configure(&runtime, "point", "1.0.0", &json!([ptp]));
    let result = cnitool(&runtime, &node, "add", "point", &container);
    assert_eq!(result["ips"][0]["address"], "10.9.0.2/24");
    assert_eq!(runtime.given()[0]["holder"], "lease");
    container.place.run("ping -c 1 -W 2 10.9.0.1");
    cnitool(&runtime, &node, "check", "point", &container);
    cnitool(&runtime, &node, "del", "point", &container);
    assert_eq!(runtime.given().len(), 0);
}

#[test]
fn any_port_of_the_node_may_lead_to_a_container() {
    let lab = Lab::up("--pods 1 --outside");
    let runtime = Runtime::start(&lab, 1);
    apply(&lab, 1, WAY_OUT);
    let container = Container::new(&lab, "c1");
    let mapping = json!([{ "hostPort": 8081, "containerPort": 8080, "protocol": "tcp" }]);
    let config = runtime.config(json!({ "runtimeConfig": { "portMappings": mapping } }));
    runtime.call("ADD", &container, &config).expect("it is attached");
    let _server = serve(&container.place, "inside");
    let line = format!("python3 {} ask {} 8081 1", backend_script(), under4(1));
    wait_until("the host port leads to the container", || {
        String::from_utf8_lossy(&lab.outside().attempt(&line).stdout).starts_with("inside ")
    });
    // Answers to translated connections come there.
    let taken = json!([{ "hostPort": 50081, "containerPort": 8080, "protocol": "tcp" }]);
    let other = Container::new(&lab, "c2");
    let config = runtime.config(json!({ "runtimeConfig": { "portMappings": taken } }));
    let refused = runtime.call("ADD", &other, &config).expect_err("it is no port for that");
    assert!(refused["msg"].as_str().expect("a sentence").contains("50081 is none of"), "{refused}");
    assert_eq!(runtime.given().len(), 1);
}
