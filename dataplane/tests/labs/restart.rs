//! Daemons that are killed and started again under sessions that they serve and translate.

use std::time::{Duration, Instant};

use crate::lab::{Lab, Place, Running, v4, v6, wait_until};
use crate::traffic::{echo_script, ping};

/// How often the daemon is killed.
const KILLS: usize = 20;

/// Where node 2 is reached that is no node's address: somewhere outside.
const OUTSIDE: [&str; 2] = ["192.168.51.200", "fd50:1::200"];
/// The service's addresses.
const SERVICE: [&str; 2] = ["10.96.0.7", "fd10:96::7"];

/// A service at node 2, and a way out under node 1's address, in both families.
fn objects() -> String {
    let pods = [v4(2, 1), v6(2, 1)];
    format!(
        r#"
[[service]]
name = "echo"
network = "default"
cluster-ips = ["{}", "{}"]
ports = [
    {{ name = "tcp", port = 70 }},
    {{ name = "udp", port = 71, protocol = "udp" }},
    {{ name = "iperf", port = 72 }},
    {{ name = "iperf6", port = 73 }},
]
[[backends]]
service = "echo"
ports = [
    {{ name = "tcp", port = 7000 }},
    {{ name = "udp", port = 7001 }},
    {{ name = "iperf", port = 5201 }},
    {{ name = "iperf6", port = 5203 }},
]
members = [{{ address = "{}" }}, {{ address = "{}" }}]
[[route]]
network = "default"
prefix = "0.0.0.0/0"
via = {{ uplink = {{ uplink = "uplink" }} }}
[[route]]
network = "default"
prefix = "::/0"
via = {{ uplink = {{ uplink = "uplink" }} }}
[[nat-pool]]
name = "outside"
network = "default"
sources = ["10.244.0.0/16", "fd10:244::/32"]
exclusions = ["10.0.0.0/8", "fd10::/16"]
ports = "50000-50999"
"#,
        SERVICE[0], SERVICE[1], pods[0], pods[1]
    )
}

/// A lab whose node 1 has a service and a way out in its file, and `settings`.
fn lab(settings: &str) -> Lab {
    let lab = Lab::up("--pods 2 --outside --no-daemons");
    let file = lab.file("node1.toml");
    let config = std::fs::read_to_string(&file).expect("the lab wrote it");
    std::fs::write(&file, format!("{config}{settings}{}", objects())).expect("the lab's own folder");
    let [outside4, outside6] = OUTSIDE;
    lab.node(2).run(&format!("ip address add {outside4}/32 dev uplink"));
    lab.node(2).run(&format!("ip address add {outside6}/128 dev uplink nodad"));
    lab.start(1);
    lab.start(2);
    ping(&lab.pod(1, 1), &v4(2, 1));
    lab
}

/// Servers of all that is asked, in a place that has these addresses.
fn serve(place: &Place, addresses: [&str; 2], iperf_port: u16) -> [Running; 5] {
    let script = echo_script();
    let reflect = |address: &str| place.spawn(&format!("python3 {script} reflect {address} 7001"));
    // A server of iperf3 has one client at a time.
    let iperf = |port: u16| place.serve(port, &format!("iperf3 -s -p {port}"));
    [
        place.serve(7000, &format!("python3 {script} serve 7000")),
        reflect(addresses[0]),
        reflect(addresses[1]),
        iperf(iperf_port),
        iperf(iperf_port + 2),
    ]
}

/// Servers behind the service and outside.
fn serve_all(lab: &Lab) -> [[Running; 5]; 2] {
    let (inside, outside) =
        (serve(&lab.pod(2, 1), [&v4(2, 1), &v6(2, 1)], 5201), serve(&lab.node(2), OUTSIDE, 5202));
    [inside, outside]
}

/// Sessions through the service and translation, in both families, that say a line every now and then.
fn talk(pod: &Place) -> Vec<Running> {
    let script = echo_script();
    let places = [SERVICE.map(|address| (address, 70)), OUTSIDE.map(|address| (address, 7000))];
    let places = places.into_iter().flatten();
    places.map(|(address, port)| pod.spawn(&format!("python3 {script} talk {address} {port}"))).collect()
}

/// What came back to a ticker, and its silences in milliseconds.
fn silences(ticker: Running) -> Vec<u64> {
    let report = ticker.end("TERM");
    let numbers: Vec<u64> = report
        .split_whitespace()
        .map(|number| number.parse().unwrap_or_else(|e| panic!("a number ({e}): {report}")))
        .collect();
    assert!(numbers[0] > 100, "{} datagrams came back", numbers[0]);
    numbers[1..].to_vec()
}

#[test]
fn sessions_through_a_service_and_translation_outlive_twenty_kills() {
    let lab = lab("");
    let script = echo_script();
    let _served = serve_all(&lab);
    let pod = lab.pod(1, 1);
    let mut sessions = talk(&pod);
    let places = [(SERVICE[0], 72), (SERVICE[1], 73), (OUTSIDE[0], 5202), (OUTSIDE[1], 5204)];
    sessions.extend(
        places.map(|(address, port)| pod.spawn(&format!("iperf3 -c {address} -p {port} -t 3600 -b 25M"))),
    );
    let tickers = [
        ("service", SERVICE[0], 71),
        ("service, IPv6", SERVICE[1], 71),
        ("translation", OUTSIDE[0], 7001),
        ("translation, IPv6", OUTSIDE[1], 7001),
    ]
    .map(|(what, to, port)| (what, pod.spawn(&format!("python3 {script} tick {to} {port}"))));
    let established = || pod.run("ss -Htn state established").lines().count();
    let ticking = || pod.run("ss -Hun state established").lines().count();
    // iperf3 has a connection for its control besides.
    wait_until("all sessions are there", || (established(), ticking()) == (12, 4));
    let mut down = Vec::new();
    for _ in 0..KILLS {
        let began = Instant::now();
        lab.kill(1);
        lab.start(1);
        down.push(began.elapsed().as_millis());
        // Longer than the senders' retransmission timers have grown meanwhile.
        std::thread::sleep(Duration::from_millis(800));
        sessions.iter_mut().for_each(Running::assert_runs);
    }
    assert_eq!(established(), 12, "the sessions are those of the beginning");
    eprintln!("kill to answer on the control socket, ms: {down:?}");
    for (what, ticker) in tickers {
        let mut gaps = silences(ticker);
        gaps.sort_unstable();
        eprintln!("{what}: silences in ms, sorted: {gaps:?}");
        assert!(gaps.len() >= KILLS, "every kill is felt");
        // A bound for a machine that does other things besides; what it takes on a quiet one is for the reader to see.
        assert!(gaps[gaps.len() - KILLS / 2] < 1000, "{what}: half of the gaps are that long: {gaps:?}");
    }
}

#[test]
fn sessions_outlive_a_stop_in_good_order() {
    let lab = lab("");
    let _served = serve_all(&lab);
    let mut sessions = talk(&lab.pod(1, 1));
    let established = || lab.pod(1, 1).run("ss -Htn state established").lines().count();
    wait_until("all sessions are there", || established() == sessions.len());
    for _ in 0..3 {
        lab.stop(1);
        // The other sides go on sending to ports that the kernel knows nothing of.
        std::thread::sleep(Duration::from_millis(600));
        sessions.iter_mut().for_each(Running::assert_runs);
        lab.start(1);
        ping(&lab.pod(1, 1), &v4(2, 1));
    }
    sessions.iter_mut().for_each(Running::assert_runs);
    assert_eq!(established(), sessions.len());
}

/// A table that is quickly read and written.
const SMALL: &str = "\n[connections]\ncapacity = 65536\n";
/// Words of a table's header, as `penstock_io::shared` lays it out: magic, versions, …, and a checksum of those before it.
const VERSIONS: usize = 1;
const CHECKSUM: usize = 10;
/// Bytes in front of the table itself.
const HEADER: usize = 4096;

/// The checksum of a header: FNV-1a, 64 bits, over all words before it but the magic.
fn checksum(header: &[u64]) -> u64 {
    let bytes = header[VERSIONS..CHECKSUM].iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Changes the header of a table that no daemon has.
fn inscribe(table: &mut [u8], change: impl Fn(&mut [u64])) {
    let (words, _) = table[..HEADER].as_chunks_mut::<8>();
    let mut header: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    change(&mut header);
    words.iter_mut().zip(header).for_each(|(word, new)| *word = new.to_ne_bytes());
}

#[test]
fn a_table_that_cannot_be_read_is_set_aside_and_the_daemon_begins_afresh() {
    let lab = lab(SMALL);
    let _served = serve_all(&lab);
    let table = lab.file("node1.connections");
    let log = || std::fs::read_to_string(lab.file("node1.log")).expect("the daemon's log");
    // What is done to the table, and what the daemon says of it.
    type Deed = fn(&mut Vec<u8>);
    let deeds: [(&str, Deed); 5] = [
        ("it has layout 1.", |table| {
            inscribe(table, |header| {
                header[VERSIONS] += 1;
                header[CHECKSUM] = checksum(header);
            });
        }),
        ("it has layout 2.", |table| inscribe(table, |header| header[VERSIONS] += 1 << 32)),
        ("its header is damaged", |table| inscribe(table, |header| header[2] ^= 1)),
        ("its header is damaged", |table| table.truncate(HEADER + 800)),
        ("it was never finished, or it is another program's file", |table| table[..HEADER].fill(0)),
    ];
    for (said, deed) in deeds {
        // A connection that is there no more with the next daemon, and the daemon before goes on.
        ping(&lab.pod(1, 1), &v4(2, 1));
        lab.kill(1);
        let mut bytes = std::fs::read(&table).expect("the daemon's table");
        deed(&mut bytes);
        std::fs::write(&table, bytes).expect("nobody has the table");
        let before = log().len();
        lab.start(1);
        let news = log().split_off(before);
        let line = news.lines().find(|line| line.contains("begins without any"));
        let line = line.unwrap_or_else(|| panic!("it takes the table: {news}"));
        assert!(line.contains("WARN") && line.contains("was set aside") && line.contains(said), "{line}");
        assert!(table.with_extension("connections.aside").exists(), "it can be looked at");
    }
    all_is_served(&lab);
}

#[test]
fn a_table_full_of_nonsense_does_no_harm() {
    let lab = lab(SMALL);
    let _served = serve_all(&lab);
    all_is_served(&lab);
    lab.kill(1);
    let table = lab.file("node1.connections");
    let mut bytes = std::fs::read(&table).expect("the daemon's table");
    // Xorshift (Marsaglia, 2003): the same nonsense every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in bytes[HEADER..].as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_ne_bytes();
    }
    std::fs::write(&table, bytes).expect("nobody has the table");
    lab.start(1);
    all_is_served(&lab);
}

/// New sessions through the service and translation get answers.
fn all_is_served(lab: &Lab) {
    let pod = lab.pod(1, 1);
    for address in [v4(2, 1), v6(2, 1)] {
        ping(&pod, &address);
    }
    for (address, port) in
        SERVICE.map(|address| (address, 70)).into_iter().chain(OUTSIDE.map(|it| (it, 7000)))
    {
        assert_eq!(pod.run(&format!("python3 {} say {address} {port}", echo_script())), "well\n");
    }
}
