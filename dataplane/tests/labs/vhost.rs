//! Pods attached by vhost-user: policed, connected and counted like any other.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use penstock_vhost::driver::PodConfig;
use penstock_vhost::features as bits;

use crate::accelerated::Accelerated;
use crate::lab::{Lab, Place, Running, number, text, v4, wait_until};
use crate::machine::Machine;
use crate::stateful::apply;
use crate::traffic::{assert_checksums_good, iperf};

/// Bytes that a web server holds for a pod to fetch.
const BYTES: usize = 3_000_000;

/// What vhost endpoint `j` of node `i` has for an address.
pub fn vhost4(i: u8, j: u8) -> String {
    format!("10.244.{i}.{}", 100 + j)
}

/// The file's content: every offset has its own value.
fn content() -> Vec<u8> {
    (0..BYTES.div_ceil(4) as u32).flat_map(u32::to_le_bytes).take(BYTES).collect()
}

/// A web server at a place, with a file of [`content`].
fn server(lab: &Lab, at: &Place) -> Running {
    let folder = lab.file("www");
    std::fs::create_dir_all(&folder).expect("a folder in the lab's own");
    std::fs::write(folder.join("file"), content()).expect("a file in the lab's own folder");
    at.serve(8080, &format!("python3 -m http.server --bind :: --directory {} 8080", folder.display()))
}

/// Fetches the file and compares; `act` may disturb meanwhile.
fn fetch(pod: &mut Accelerated, from: &str, act: impl FnMut(&mut Accelerated, usize)) {
    let handle = pod.connect(from, 8080, Duration::from_secs(20)).expect("the server answers");
    let answer = pod.ask(handle, b"GET /file HTTP/1.0\r\n\r\n", act);
    let head = answer.windows(4).position(|it| it == b"\r\n\r\n").expect("a head") + 4;
    assert!(answer[head..] == content(), "{} bytes, not what was sent", answer.len() - head);
}

fn state(lab: &Lab, i: u8, name: &str) -> String {
    text(&lab.port(i, name)[0]["state"])
}

#[test]
fn an_accelerated_pod_reaches_pods_of_its_node_and_of_others() {
    let packed = bits::RING_PACKED | bits::VERSION_1 | bits::PROTOCOL_FEATURES | bits::MRG_RXBUF;
    for (features, offload) in [(PodConfig::default().features, ""), (packed, "--pod-offload")] {
        let lab = Lab::up(&format!("--pods 1 --vhost 1 {offload}"));
        assert!(state(&lab, 1, "vhost1").starts_with("down: nobody"), "{}", state(&lab, 1, "vhost1"));
        let socket = lab.file("node1-vhost1.sock");
        let config = PodConfig { features, mtu: 1450, ..PodConfig::default() };
        let mut pod = Accelerated::at(&socket, 1, 1, config);
        wait_until("it is up", || state(&lab, 1, "vhost1") == "up");
        for i in [1, 2] {
            let place = lab.pod(i, 1);
            let _server = server(&lab, &place);
            fetch(&mut pod, &v4(i, 1), |_, _| {});
        }
        let row = &lab.port(1, "vhost1")[0];
        assert_eq!((text(&row["kind"]), text(&row["copy"])), ("vhost-user".into(), "server".into()));
        assert_eq!(text(&row["interface"]), socket.display().to_string());
        wait_until("all is counted", || number(&lab.port(1, "vhost1")[0]["tx_bytes"]) > 2 * BYTES as u64);
    }
}

/// Whoever it is, an accelerated pod may open TCP to port 8080 of pod 1 of its node only.
pub const FENCED: &str = r#"
[[identity]]
name = "accelerated"
network = "default"
prefixes = ["10.244.1.101/32"]
[[identity]]
name = "web"
network = "default"
prefixes = ["10.244.1.1/32"]
[[tier]]
name = "application"
order = 1
default = "deny"
[[policy]]
name = "fence"
network = "default"
tier = "application"
subjects = { identities = ["accelerated"] }
directions = ["egress"]
[[policy.rules]]
name = "web"
direction = "egress"
action = "allow"
peers = [{ identity = "web" }]
ports = [{ protocol = "tcp", port = 8080 }]
"#;

#[test]
fn policy_holds_for_an_accelerated_pod() {
    let lab = Lab::up("--pods 1 --vhost 1");
    apply(&lab, 1, FENCED);
    let mut pod = Accelerated::at(&lab.file("node1-vhost1.sock"), 1, 1, PodConfig::default());
    let (near, far) = (lab.pod(1, 1), lab.pod(2, 1));
    let (_near, _far) = (server(&lab, &near), server(&lab, &far));
    fetch(&mut pod, &v4(1, 1), |_, _| {});
    assert!(pod.connect(&v4(2, 1), 8080, Duration::from_secs(2)).is_none(), "the fence has a hole");
    assert!(lab.drops(1)["egress-policy"] > 0, "{:?}", lab.drops(1));
    // A service is a way to the same pod.
    apply(
        &lab,
        1,
        r#"
        [[service]]
        name = "web"
        network = "default"
        cluster-ips = ["10.96.0.1"]
        ports = [{ name = "http", port = 8080 }]
        [[backends]]
        service = "web"
        ports = [{ name = "http", port = 8080 }]
        members = [{ address = "10.244.1.1" }]
        "#,
    );
    fetch(&mut pod, "10.96.0.1", |_, _| {});
}

#[test]
fn a_session_of_an_accelerated_pod_outlives_its_daemon() {
    let lab = Lab::up("--pods 1 --vhost 1 --vhost-role client --no-daemons");
    let path = lab.file("node1-vhost1.sock");
    let listener = UnixListener::bind(&path).expect("the lab's own folder");
    lab.start(1);
    lab.start(2);
    let config = PodConfig { mtu: 1450, ..PodConfig::default() };
    let mut pod = Accelerated::serving(&listener, 1, 1, config);
    let far = lab.pod(2, 1);
    let _server = server(&lab, &far);
    let mut kills = 0;
    fetch(&mut pod, &v4(2, 1), |pod, so_far| {
        if so_far > (kills + 1) * BYTES / 4 && kills < 3 {
            kills += 1;
            lab.kill(1);
            lab.start(1);
            let stream = penstock_vhost::driver::answer(&listener, Duration::from_secs(20));
            pod.pod.attach(stream.expect("the daemon connects again")).expect("and takes the rings up");
        }
    });
    assert_eq!(kills, 3);
    lab.await_all_frames(1);
}

/// What the machine does in each of its lives: an echo, a download, an upload; and the sums of both.
fn errands(target: &str) -> String {
    format!(
        "ping -c 3 -W 5 {target} && echo machine: echoes
echo \"machine: fetched $(wget -q -O - http://{target}:8080/file | md5sum)\"
wget -q -O /file http://{target}:8080/file
nc {target} 8081 < /file && echo machine: sent
echo machine: done"
    )
}

/// Takes connections one after the other, and says the sum of what each brought.
const SINK: &str = r#"
import hashlib, socket
server = socket.create_server(("0.0.0.0", 8081))
while True:
    connection, _ = server.accept()
    sum = hashlib.md5()
    while True:
        piece = connection.recv(65536)
        if not piece: break
        sum.update(piece)
    connection.close()
    open("SUMS", "a").write(sum.hexdigest() + "\n")
"#;

#[test]
fn a_virtual_machine_talks_across_the_overlay_reboots_and_outlives_the_daemon() {
    let lab = Lab::up("--pods 1 --vhost 1 --vhost-role client");
    let far = lab.pod(2, 1);
    let _server = server(&lab, &far);
    let sums = lab.file("sums");
    let script = lab.file("sink.py");
    std::fs::write(&script, SINK.replace("SUMS", &sums.display().to_string())).expect("the lab's own folder");
    let _sink = far.serve(8081, &format!("python3 {}", script.display()));
    let machine = Machine::start(&lab, 1, 1, &errands(&v4(2, 1)));
    machine.await_word("machine: done", 1);
    // In its second life the daemon is killed while it fetches.
    machine.await_word("machine: echoes", 2);
    lab.kill(1);
    lab.start(1);
    machine.await_word("machine: done", 2);
    let (said, sum) =
        (machine.said(), lab.pod(2, 1).run(&format!("md5sum < {}", lab.file("www/file").display())));
    let sum = sum.split_whitespace().next().expect("a sum");
    assert_eq!(said.matches(&format!("machine: fetched {sum}")).count(), 2, "{said}");
    assert_eq!(said.matches("machine: sent").count(), 2, "{said}");
    wait_until("both uploads are counted", || {
        std::fs::read_to_string(&sums).is_ok_and(|text| text.lines().filter(|line| *line == sum).count() == 2)
    });
    assert_checksums_good(&lab.pod(2, 1));
}

/// Bytes that one virtual machine sends to another.
const STREAM: u64 = 100 << 20;

/// Bits a second that arrive at vhost endpoint 2 of node 1 while that machine fetches, and bytes a frame.
fn rate_at(lab: &Lab, sink: &Machine) -> (f64, u64) {
    let mut counts = Vec::new();
    sink.await_word_while("machine: fetched", 1, || {
        let row = &lab.port(1, "vhost2")[0];
        counts.push((Instant::now(), number(&row["tx_bytes"]), number(&row["tx_packets"])));
    });
    // The beginning and the end do not count: a machine that starts, a window that grows.
    let middle = |&&(_, bytes, _): &&(_, u64, _)| (STREAM / 10..STREAM / 10 * 9).contains(&bytes);
    let (begin, end) = (counts.iter().find(middle), counts.iter().rfind(middle));
    let (&(begin, bytes, frames), &(end, all_bytes, all_frames)) = begin.zip(end).expect("it was watched");
    let bytes = all_bytes - bytes;
    (bytes as f64 * 8.0 / (end - begin).as_secs_f64(), bytes / (all_frames - frames).max(1))
}

#[test]
fn two_virtual_machines_stream_to_each_other_in_frames_longer_than_the_mtu() {
    let lab = Lab::up("--pods 2 --vhost 2 --vhost-role client --pod-offload --workers 2");
    let workers = ["vhost1", "vhost2"].map(|name| number(&lab.port(1, name)[0]["worker"]));
    assert_ne!(workers[0], workers[1], "their frames go from worker to worker");
    // Its web server hands the file to the kernel in large pieces.
    let serve = format!("dd if=/dev/zero of=/file bs=1M count={} && httpd -f -p 8080 -h /", STREAM >> 20);
    let source = Machine::start(&lab, 1, 1, &serve);
    let fetch = format!(
        "until wget -q -O /dev/null http://{}:8080/file; do sleep 1; done; echo machine: fetched; sleep 60",
        vhost4(1, 1)
    );
    let sink = Machine::start(&lab, 1, 2, &fetch);
    let (machines, frame) = rate_at(&lab, &sink);
    drop((source, sink));
    let pods = iperf(&lab.pod(1, 1), &lab.pod(1, 2), &v4(1, 2), "-t 2");
    let pods = pods["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate");
    println!(
        "TCP: {:.2} Gbit/s between emulated machines, {frame} bytes a frame; {:.2} Gbit/s between veth pods",
        machines / 1e9,
        pods / 1e9
    );
    assert!(frame > 3 * 1450, "frames were cut: {frame} bytes each");
}
