//! Ports of the node that become the dataplane's: what its kernel and its programs know of that.

use crate::lab::{Lab, under4, v4, wait_until};
use crate::services::WAY_OUT;
use crate::stateful::apply;
use crate::traffic::ping;

/// Two pools at the node's own address, with ports between them that are nobody's.
const POOLS: &str = r#"
[[nat-pool]]
name = "one"
network = "default"
sources = ["10.244.1.0/24"]
exclusions = ["10.0.0.0/8"]
ports = "50000-50099"
[[nat-pool]]
name = "two"
network = "default"
sources = ["10.244.0.0/16"]
exclusions = ["10.0.0.0/8"]
ports = "52000-52099"
"#;

/// The ports that the kernel of node 1 gives to nobody.
fn reserved(lab: &Lab) -> String {
    lab.node(1).run("cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim().to_owned()
}

fn log(lab: &Lab) -> String {
    std::fs::read_to_string(lab.file("node1.log")).expect("the daemon's log")
}

#[test]
fn ports_are_taken_range_by_range_and_given_back() {
    let lab = Lab::up("--pods 1");
    ping(&lab.pod(1, 1), &v4(2, 1));
    // What a daemon before took is not waited for once everything is told.
    let objects = lab.node(1).run(&format!("{} objects", lab.penstock(1)));
    std::fs::write(lab.file("everything.toml"), objects).expect("the lab's own folder");
    let everything = format!("resync -f {}", lab.file("everything.toml").display());
    lab.ask(1, &everything);
    lab.node(1).run("echo 8080 > /proc/sys/net/ipv4/ip_local_reserved_ports");
    let _between = lab.node(1).serve(51000, "python3 -m http.server 51000");
    let _inside = lab.node(1).serve(52050, "python3 -m http.server 52050");
    let answers = |port: u16| {
        let asked = lab.node(2).attempt(&format!("curl -sS -o /dev/null -m 1 http://{}:{port}/", under4(1)));
        asked.status.success()
    };
    assert!(answers(51000) && answers(52050), "nobody has taken anything yet");
    let warnings = || lab.ask(1, "status")["warnings"].to_string();
    assert!(!warnings().contains("listens"), "{}", warnings());

    apply(&lab, 1, &(WAY_OUT.to_owned() + POOLS));
    assert_eq!(reserved(&lab), "8080,50000-50099,52000-52099");
    assert!(answers(51000), "a port between two ranges stays the program's");
    assert!(!answers(52050), "a port of a pool does not");
    let warning = "a program of this node listens on tcp 0.0.0.0:52050";
    wait_until("the program's user is told", || warnings().contains(warning));
    assert!(log(&lab).contains(warning) && !warnings().contains("51000"), "{}", warnings());
    // One that begins to listen later is found out as well.
    let late = lab.node(1).serve(50010, "python3 -m http.server 50010");
    wait_until("it is told of the other", || warnings().contains("0.0.0.0:50010"));
    drop(late);
    wait_until("and that it ended", || !warnings().contains("0.0.0.0:50010"));

    // With its pool, a range goes back.
    lab.ask(1, "delete nat-pool two");
    wait_until("the kernel has it back", || reserved(&lab) == "8080,50000-50099");
    assert!(answers(52050) && !warnings().contains("listens"), "{}", warnings());

    // A stop in good order keeps what connections go on with.
    lab.stop(1);
    assert_eq!(reserved(&lab), "8080,50000-50099");
    // The next daemon is told of no pool. It waits for somebody who may still tell, and gives the ports back then.
    lab.start(1);
    assert_eq!(reserved(&lab), "8080,50000-50099");
    lab.ask(1, &everything);
    assert_eq!(reserved(&lab), "8080");
    lab.stop(1);
    assert_eq!(reserved(&lab), "8080");
}

#[test]
fn the_ports_that_stand_in_for_clients_are_the_files() {
    let lab = Lab::up("--pods 1 --no-daemons");
    let file = lab.file("node1.toml");
    let config = std::fs::read_to_string(&file).expect("the lab wrote it");
    let config = config.replace("[control]\n", "[services]\nsource-ports = \"40000-40999\"\n[control]\n");
    std::fs::write(&file, config).expect("the lab's own folder");
    lab.start(1);
    assert_eq!(reserved(&lab), "");
    let service = "[[service]]\nname = \"s\"\nnetwork = \"default\"\ncluster-ips = [\"10.96.0.1\"]\n\
                   ports = [{ name = \"a\", port = 80 }]\n";
    apply(&lab, 1, service);
    assert_eq!(reserved(&lab), "40000-40999");
}
