//! What an operator does to a running daemon by its control interface: resync, and captures.

use std::time::Instant;

use crate::lab::{Lab, PATIENCE, number, v4};
use crate::traffic::{assert_unharmed, no_ping, ping};

/// The objects in node 1's file, in the form that the control interface takes: without settings and uplinks.
fn objects(lab: &Lab) -> String {
    let file = std::fs::read_to_string(lab.file("node1.toml")).expect("the lab wrote it");
    let at = file.find("[[network]]").expect("the networks come first of what a resync may change");
    file[at..].to_owned()
}

/// Makes node 1's objects what its file says and `more`; returns the generation that is live then.
pub fn resync(lab: &Lab, more: &str) -> u64 {
    replace(lab, &format!("{}\n{more}", objects(lab)))
}

fn replace(lab: &Lab, objects: &str) -> u64 {
    let file = lab.file("resync.toml");
    std::fs::write(&file, objects).expect("the lab's own folder");
    number(&lab.ask(1, &format!("resync -f {}", file.display()))["generation"])
}

#[test]
fn a_resync_takes_away_what_it_does_not_list_and_nothing_else() {
    let lab = Lab::up("--pods 2");
    let all = objects(&lab);
    let second = all.find("[[endpoint]]\nname = \"pod2\"").expect("the lab's second pod");
    let after = all[second + 1..].find("\n[[").expect("peers follow the endpoints") + second + 1;
    let without = format!("{}{}", &all[..second], &all[after..]);
    ping(&lab.pod(1, 1), &v4(2, 1));
    ping(&lab.pod(2, 1), &v4(1, 2));
    let flow = lab.pod(1, 1).spawn(&format!("ping -q -i 0.005 {}", v4(2, 1)));
    let mut generation = number(&lab.ask(1, "status")["generation"]);
    for _ in 0..3 {
        // Both answer when the change is live on every worker.
        let gone = replace(&lab, &without);
        assert!(lab.port(1, "pod2").is_empty());
        no_ping(&lab.pod(2, 1), &v4(1, 2));
        let back = replace(&lab, &all);
        assert_eq!(lab.port(1, "pod2")[0]["state"], "up");
        ping(&lab.pod(2, 1), &v4(1, 2));
        assert!(generation < gone && gone < back, "{generation} < {gone} < {back}");
        generation = back;
    }
    let report = flow.end("INT");
    assert_unharmed(&report);
}

#[test]
fn a_resync_with_faults_changes_nothing_and_names_them_all() {
    let lab = Lab::up("--pods 1");
    let before = number(&lab.ask(1, "status")["generation"]);
    let wrong = objects(&lab)
        .replace("network = \"default\"\nmac", "network = \"elsewhere\"\nmac")
        .replace("via = { peer = \"node2\" }", "via = { peer = \"node9\" }");
    let file = lab.file("wrong.toml");
    std::fs::write(&file, wrong).expect("the lab's own folder");
    let answer = lab.node(1).attempt(&format!("{} resync -f {}", lab.penstock(1), file.display()));
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(!answer.status.success(), "{said}");
    assert!(said.contains("elsewhere") && said.contains("node9"), "{said}");
    assert_eq!(number(&lab.ask(1, "status")["generation"]), before);
    ping(&lab.pod(1, 1), &v4(2, 1));
}

/// What tshark reads of a capture that is piped into it: the values of `fields`, a line a frame.
fn piped_into_tshark(lab: &Lab, capture: &str, fields: &str) -> Vec<String> {
    let line = format!("{} capture {capture} -w - | tshark -n -r - -T fields {fields}", lab.penstock(1));
    lab.node(1).run(&line).lines().map(str::to_owned).collect()
}

#[test]
fn a_capture_is_piped_into_tshark() {
    let lab = Lab::up("--pods 1");
    ping(&lab.pod(1, 1), &v4(2, 1));
    let _flow = lab.pod(1, 1).spawn(&format!("ping -q -i 0.02 {}", v4(2, 1)));
    let inside = "-e icmp.type -e icmp.checksum.status";
    let tunnel = piped_into_tshark(
        &lab,
        "--port uplink --count 40 --filter \"vni 100 and inner (icmp)\"",
        &format!("-e vxlan.vni {inside}"),
    );
    let plain = piped_into_tshark(&lab, "--port pod1 --count 40 --filter \"icmp\"", inside);
    for (frames, prefix) in [(tunnel, "100\t"), (plain, "")] {
        // Requests and replies, each with a good checksum (1).
        let of_type = |kind: u8| frames.iter().filter(|line| **line == format!("{prefix}{kind}\t1")).count();
        assert_eq!(of_type(8) + of_type(0), 40, "{frames:?}");
        assert!(of_type(8) >= 15 && of_type(0) >= 15, "{frames:?}");
    }
}

#[test]
fn a_capture_ends_when_nobody_reads_it_any_more() {
    let lab = Lab::up("--pods 1");
    ping(&lab.pod(1, 1), &v4(2, 1));
    // Nothing matches, so no frame would show that the reader is gone.
    let from = Instant::now();
    let read = lab.node(1).run(&format!(
        "{} capture --port pod1 --filter \"udp port 9\" -w - | head -c 24 | wc -c",
        lab.penstock(1)
    ));
    assert_eq!(read.trim(), "24", "the file's header");
    assert!(from.elapsed() < PATIENCE, "{:?}", from.elapsed());
}
