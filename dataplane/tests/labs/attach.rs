//! Containers attached by the CNI plugin.

use std::path::Path;

use serde_json::{Value, json};

use crate::containers::{Container, Runtime, address};
use crate::lab::{Lab, number, v4, v6, wait_until};
use crate::traffic::ping;

#[test]
fn a_container_is_attached_checked_and_detached() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let (first, second) = (Container::new(&lab, "c1"), Container::new(&lab, "c2"));
    let config = runtime.config(json!({}));
    let result = runtime.call("ADD", &first, &config).unwrap();
    assert_eq!(result["interfaces"][1]["sandbox"], first.path());
    assert_eq!(result["interfaces"][1]["mtu"], 1450);
    let other = runtime.call("ADD", &second, &config).unwrap();
    for six in [false, true] {
        let (ours, theirs) = (address(&result, six), address(&other, six));
        assert_ne!(ours, theirs);
        // To each other, to and from another node's pod, and from the node.
        ping(&first.place, &theirs);
        ping(&second.place, &ours);
        ping(&first.place, &if six { v6(2, 1) } else { v4(2, 1) });
        ping(&lab.pod(2, 1), &ours);
        ping(&lab.node(1), &ours);
    }
    let with_result = runtime.config(json!({ "prevResult": result }));
    assert_eq!(runtime.call("CHECK", &first, &with_result).unwrap(), Value::Null);
    // Nobody is attached twice, and a second attempt breaks nothing.
    assert_eq!(runtime.call("ADD", &first, &config).unwrap_err()["code"], 103);
    assert_eq!(runtime.call("CHECK", &first, &with_result).unwrap(), Value::Null);
    first.place.run("ip address flush dev eth0");
    let differs = runtime.call("CHECK", &first, &with_result).unwrap_err();
    assert!(differs["msg"].as_str().unwrap().contains("lost its address"), "{differs}");
    assert_eq!(runtime.given().len(), 2);
    // From our own records, with a configuration that was cut short and no namespace.
    let truncated = json!({ "name": "penstock", "mtu": "cut", "socket": runtime.socket() });
    for _ in 0..2 {
        runtime.call_with("DEL", &first, &truncated, &[("CNI_NETNS", "")]).unwrap();
    }
    let gone = runtime.call("CHECK", &first, &with_result).unwrap_err();
    assert_eq!(gone["code"], 3);
    // What the runtime does not list is collected; without its list, nothing is.
    runtime.call("GC", &second, &config).unwrap();
    assert_eq!(runtime.given().len(), 1);
    let keep = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    runtime.call("GC", &second, &runtime.config(json!({ "cni.dev/valid-attachments": keep }))).unwrap();
    assert_eq!(runtime.given().len(), 1);
    runtime.call("STATUS", &second, &config).unwrap();
    runtime.call("GC", &second, &runtime.config(json!({ "cni.dev/valid-attachments": [] }))).unwrap();
    second.place.run("! ip link show eth0");
    lab.await_endpoints(1, 1);
}

#[test]
fn a_tap_is_the_containers_own_and_comes_back_with_the_daemon() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let container = Container::new(&lab, "c1");
    let result = runtime.call("ADD", &container, &runtime.config(json!({ "interface": "tap" }))).unwrap();
    for to in [v4(2, 1), v6(2, 1)] {
        ping(&container.place, &to);
    }
    lab.pod(2, 1).run(&format!("ping -c 2 -W 2 {}", address(&result, false)));
    assert_eq!(lab.node(1).run("ip -o link | grep -c ': ps' || :").trim(), "0");
    lab.kill(1);
    lab.start(1);
    wait_until("the tap is the container's again", || {
        container.place.attempt(&format!("ping -c 1 -W 1 {}", v4(2, 1))).status.success()
    });
    let check = runtime.config(json!({ "interface": "tap", "prevResult": result }));
    runtime.call("CHECK", &container, &check).unwrap();
    runtime.call("DEL", &container, &check).unwrap();
    container.place.run("! ip link show eth0");
}

#[test]
fn an_accelerated_container_has_a_socket_a_placeholder_and_a_description() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let container = Container::new(&lab, "c1-long-enough");
    let description = runtime.folder("info").join("device.json");
    let config = runtime.config(json!({
        "interface": "vhost-user", "vhostUser": { "role": "server" },
        "runtimeConfig": { "CNIDeviceInfoFile": description, "mac": "02:00:00:00:00:77" },
    }));
    let result = runtime.call("ADD", &container, &config).unwrap();
    let socket = result["interfaces"][0]["socketPath"].as_str().unwrap();
    assert!(socket.ends_with("/c1-long-enou-eth0"), "{socket}");
    let described: Value = serde_json::from_slice(&std::fs::read(&description).unwrap()).unwrap();
    assert_eq!(described["vhost-user"], json!({ "mode": "client", "path": socket }));
    let folder = Path::new(socket).parent().unwrap();
    assert_eq!(std::fs::read_link(folder.join("eth0")).unwrap(), Path::new("c1-long-enou-eth0"));
    wait_until("the socket is served", || {
        std::os::unix::net::UnixStream::connect(folder.join("eth0")).is_ok()
    });
    let shown = container.place.run("ip address show eth0");
    assert!(shown.contains(&address(&result, false)) && shown.contains("02:00:00:00:00:77"), "{shown}");
    let mut with_result = config.clone();
    with_result["prevResult"] = result.clone();
    runtime.call("CHECK", &container, &with_result).unwrap();
    runtime.call("DEL", &container, &config).unwrap();
    assert!(!folder.exists() && !description.exists());
    container.place.run("! ip link show eth0");
}

#[test]
fn wherever_the_agent_ends_a_retry_gives_one_address_one_interface_and_one_port() {
    let lab = Lab::up("--pods 0");
    let mut runtime = Runtime::start(&lab, 1);
    let container = Container::new(&lab, "c1");
    let config = runtime.config(json!({}));
    for point in ["begun", "linked", "live", "configured", "complete"] {
        runtime.restart(&format!("--die-at {point}"));
        let failed = runtime.call("ADD", &container, &config).unwrap_err();
        assert_eq!(failed["code"], 11, "{point}: {failed}");
        runtime.restart("");
        if point == "complete" {
            // The runtime does not know that it went well; its DEL comes first.
            runtime.call("DEL", &container, &config).unwrap();
        }
        runtime.call("ADD", &container, &config).unwrap_or_else(|failure| panic!("{point}: {failure}"));
        assert_eq!(runtime.given().len(), 1, "{point}");
        assert_eq!(lab.node(1).run("ip -o link | grep -c ': ps'").trim(), "1", "{point}");
        lab.await_endpoints(1, 1);
        ping(&container.place, &v4(1, 254));
        runtime.call("DEL", &container, &config).unwrap();
    }
    for point in ["unplugged", "unlinked"] {
        runtime.call("ADD", &container, &config).unwrap();
        runtime.restart(&format!("--die-at {point}"));
        runtime.call("DEL", &container, &config).unwrap_err();
        runtime.restart("");
        runtime.call("DEL", &container, &config).unwrap();
        runtime.assert_clean();
    }
}

#[test]
fn a_container_is_policed_before_it_can_say_anything() {
    let lab = Lab::up("--pods 1");
    let runtime = Runtime::start(&lab, 1);
    let policy = r#"
[[identity]]
name = "closed"
network = "default"

[[tier]]
name = "kubernetes"
order = 100
default = "deny"

[[policy]]
name = "nothing-out"
tier = "kubernetes"
order = 0
network = "default"
subjects = { identities = ["closed"] }
directions = ["egress"]
rules = []
"#;
    std::fs::write(lab.file("policy.toml"), policy).unwrap();
    lab.node(1).run(&format!("{} apply -f {}", lab.penstock(1), lab.file("policy.toml").display()));
    for round in 0..5 {
        let container = Container::new(&lab, &format!("c{round}"));
        // From the moment that the interface is there it tries to get a word out.
        let line = format!(
            "while ! ip -4 route get {0} >/dev/null 2>&1; do :; done; ping -c 3 -i 0.2 -W 1 {0} || :",
            v4(2, 1)
        );
        let chatter = container.place.spawn(&format!("sh -c '{line}'"));
        let config = runtime.config(json!({ "identity": "closed" }));
        runtime.call("ADD", &container, &config).unwrap();
        let said = chatter.finish();
        assert!(said.contains(" 0 received"), "{said}");
        runtime.call("DEL", &container, &config).unwrap();
    }
    assert!(number(&lab.ask(1, "status")["generation"]) > 5);
}
