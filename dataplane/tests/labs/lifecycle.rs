//! Daemons come and go, ports come and go, and nothing that was there before notices or is left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::lab::{Lab, Place, number, text, v4, v6, wait_until};
use crate::traffic::{assert_unharmed, echo_script, ping};

/// The node's interfaces, and whether there is an XDP program on each.
fn interfaces(node: &Place) -> BTreeMap<String, bool> {
    let links: serde_json::Value = serde_json::from_str(&node.run("ip -j -d link")).expect("ip speaks JSON");
    let rows = links.as_array().expect("a list").iter();
    rows.map(|link| (text(&link["ifname"]), link["xdp"].is_object())).collect()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs").count()
}

fn hang_up(pid: u32) {
    let mut kill = std::process::Command::new("kill");
    kill.args(["-HUP", &pid.to_string()]);
    crate::lab::succeed(kill);
}

#[test]
fn a_kernel_session_on_the_uplink_survives_start_stop_and_kill() {
    let lab = Lab::up("--pods 1 --no-daemons");
    let script = echo_script();
    let _server = lab.node(1).serve(7000, &format!("python3 {script} serve 7000"));
    let mut session = lab.node(2).spawn(&format!("python3 {script} talk 192.168.51.1 7000"));
    wait_until("the session is there", || {
        !lab.node(1).run("ss -Htn state established 'sport = 7000'").is_empty()
    });
    for round in 0..3 {
        lab.start(1);
        session.assert_runs();
        if round == 1 {
            lab.kill(1)
        } else {
            lab.stop(1)
        }
        session.assert_runs();
    }
    lab.start(1);
    std::thread::sleep(Duration::from_millis(500));
    session.assert_runs();
    let report = session.end("TERM");
    let numbers: Vec<u64> =
        report.lines().last().expect("a report").split(' ').map(|n| n.parse().expect(&report)).collect();
    assert!(numbers[0] > 50, "{} lines came back", numbers[0]);
    assert!(numbers[1] < 1000, "silent for {} ms", numbers[1]);
}

#[test]
fn a_hundred_starts_and_stops_leave_nothing() {
    let lab = Lab::up("--pods 2 --no-daemons");
    let mut expected = interfaces(&lab.node(1));
    expected.extend([("p1".to_owned(), true), ("p2".to_owned(), true)]);
    lab.start(2);
    // Somebody always talks: frames are in every ring when the daemon goes.
    let _talk = lab.pod(1, 1).spawn(&format!("ping -q -i 0.002 {}", v4(2, 1)));
    let _near = lab.pod(1, 1).spawn(&format!("ping -q -i 0.002 {}", v6(1, 2)));
    let mut open = None;
    for round in 1..=100 {
        lab.start(1);
        lab.await_all_frames(1);
        if round % 10 == 0 {
            ping(&lab.pod(1, 2), &v4(2, 1));
        }
        let now = descriptors(lab.daemon(1));
        let first = *open.get_or_insert(now);
        assert!(now.abs_diff(first) <= 2, "{first} descriptors at the first start, {now} at start {round}");
        if round % 7 == 0 { lab.kill(1) } else { lab.stop(1) }
    }
    // The last end is in good order, whatever a kill left before it. Pods stay behind closed doors: their interfaces keep
    // the program, which drops what it has no socket for.
    lab.start(1);
    lab.stop(1);
    wait_until("only the lab's own interfaces are left, with programs on the pods' alone", || {
        interfaces(&lab.node(1)) == expected
    });
}

/// One more pod: its interface lies beside `eth0` of node 1's pod 2.
const EXTRA: &str = r#"
[[endpoint]]
name = "extra"
network = "default"
mac = "02:01:00:00:01:4d"
addresses = ["10.244.1.77", "fd10:244:1::4d"]
attachment = { veth = { interface = "x1" } }
"#;

fn plug(lab: &Lab) {
    let pod = lab.pod(1, 2);
    lab.node(1).run(&format!(
        "ip link add x1 mtu 1450 type veth peer name eth1 netns {} mtu 1450 address 02:01:00:00:01:4d && ip link set x1 up",
        pod.namespace()
    ));
    // What the pod sends from the new interface's address leaves by it or not at all: by eth0 it would be spoofed. Only the
    // route by the interface goes with it.
    pod.run(
        "ethtool -K eth1 tx off >/dev/null && ip link set eth1 up && ip address add 10.244.1.77/32 dev eth1 \
         && ip route add default via 169.254.1.1 dev eth1 onlink table 77 \
         && ip route replace unreachable default metric 1000 table 77 \
         && (ip rule show | grep -q 10.244.1.77 || ip rule add from 10.244.1.77 table 77)",
    );
}

#[test]
fn ports_come_and_go_under_traffic() {
    let lab = Lab::up("--pods 2");
    let file = lab.file("node1.toml");
    let plain = std::fs::read_to_string(&file).expect("the lab wrote it");
    let pid = lab.daemon(1);
    ping(&lab.pod(1, 1), &v4(2, 1));
    let flow = lab.pod(1, 1).spawn(&format!("ping -q -i 0.005 {}", v4(2, 1)));
    let open = descriptors(pid);
    for round in 0..20 {
        plug(&lab);
        std::fs::write(&file, format!("{plain}{EXTRA}")).expect("the lab's own file");
        hang_up(pid);
        wait_until("the port is up", || lab.port(1, "extra").iter().any(|port| port["state"] == "up"));
        let _busy = lab.pod(1, 2).spawn(&format!("ping -q -I 10.244.1.77 -i 0.002 {}", v4(1, 1)));
        ping(&lab.pod(1, 1), "10.244.1.77");
        // Half of the times the cable is pulled before anybody says that the port goes.
        if round % 2 == 1 {
            lab.node(1).run("ip link delete x1");
        }
        std::fs::write(&file, &plain).expect("the lab's own file");
        hang_up(pid);
        wait_until("the port is gone", || lab.port(1, "extra").is_empty());
        if round % 2 == 0 {
            lab.node(1).run("ip link delete x1");
        }
    }
    let report = flow.end("INT");
    assert_unharmed(&report);
    lab.await_all_frames(1);
    wait_until("as many descriptors as before", || descriptors(pid) <= open);
}

#[test]
fn a_wrong_file_changes_nothing_when_it_is_read_again() {
    let lab = Lab::up("--pods 1");
    let file = lab.file("node1.toml");
    let plain = std::fs::read_to_string(&file).expect("the lab wrote it");
    let generation = || number(&lab.ask(1, "status")["generation"]);
    let before = generation();
    std::fs::write(&file, plain.replace("vni = 100", "vni = 16777216")).expect("the lab's own file");
    hang_up(lab.daemon(1));
    wait_until("the log names the fault", || {
        std::fs::read_to_string(lab.file("node1.log")).is_ok_and(|log| log.contains("16777216"))
    });
    ping(&lab.pod(1, 1), &v4(2, 1));
    assert_eq!(generation(), before);
}

#[test]
fn a_restarted_daemon_carries_on_where_it_was() {
    let lab = Lab::up("--pods 1");
    let script = echo_script();
    let _server = lab.pod(2, 1).serve(7000, &format!("python3 {script} serve 7000"));
    let mut session = lab.pod(1, 1).spawn(&format!("python3 {script} talk {} 7000", v4(2, 1)));
    wait_until("the session is there", || {
        !lab.pod(2, 1).run("ss -Htn state established 'sport = 7000'").is_empty()
    });
    for end in [Lab::stop, Lab::kill] {
        end(&lab, 1);
        session.assert_runs();
        lab.start(1);
        ping(&lab.pod(1, 1), &v4(2, 1));
    }
    session.assert_runs();
}

#[test]
fn an_idle_daemon_costs_under_two_percent_of_a_core() {
    let lab = Lab::up("--pods 1");
    ping(&lab.pod(1, 1), &v4(2, 1));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", lab.daemon(1))).expect("the daemon runs");
        // User and system time are fields 14 and 15 of the line, the program's name in brackets being the second.
        let after_name = stat.rsplit_once(')').expect("proc(5)").1.split_whitespace().collect::<Vec<_>>();
        after_name[11].parse::<u64>().expect("ticks") + after_name[12].parse::<u64>().expect("ticks")
    };
    std::thread::sleep(Duration::from_secs(1));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(10));
    let used = ticks() - before;
    // A tick is 10 ms (USER_HZ is 100 on every architecture we run on).
    assert!(used < 20, "{used} ticks of 10 ms in 10 s");
}
