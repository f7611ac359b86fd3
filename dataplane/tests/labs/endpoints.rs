//! Endpoints that are no veths: taps, and capture files.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use penstock_io::pcap::{Reader, Writer};

use crate::changes::resync;
use crate::frames::{echo, ethernet, ipv4};
use crate::lab::{Lab, number, v4, wait_until};
use crate::traffic::{assert_checksums_good, fetch, ping, stream};

const TAP: &str = r#"
[[endpoint]]
name = "machine"
network = "default"
mac = "02:01:00:00:01:32"
addresses = ["10.244.1.50", "fd10:244:1::32"]
attachment = { tap = { interface = "t1" } }
"#;

#[test]
fn a_tap_carries_what_a_machine_says() {
    let lab = Lab::up("--pods 1");
    resync(&lab, TAP);
    // The node plays the machine: the tap's own addresses are sent from through the tap.
    let machine = lab.node(1);
    machine.run(
        "ip address add 10.244.1.50/32 dev t1 && ip address add fd10:244:1::32/128 dev t1 nodad \
         && ip rule add from 10.244.1.50 table 50 && ip route add default via 169.254.1.1 dev t1 onlink table 50 \
         && ip -6 rule add from fd10:244:1::32 table 50 && ip -6 route add default via fe80::1 dev t1 table 50",
    );
    for address in ["10.244.1.50", "fd10:244:1::32"] {
        for pod in [lab.pod(1, 1), lab.pod(2, 1)] {
            ping(&pod, address);
            stream(&pod, &machine, address);
            fetch(&lab, &pod, &machine, address, 2_000_000);
            assert_checksums_good(&pod);
        }
    }
    assert_checksums_good(&machine);
    let port = &lab.port(1, "machine")[0];
    assert_eq!(
        (&port["kind"], &port["interface"], &port["state"]),
        (&"tap".into(), &"t1".into(), &"up".into())
    );
    for counter in ["rx_packets", "tx_packets"] {
        assert!(number(&port[counter]) > 4000, "{port}");
    }
}

const MAC: [u8; 6] = [2, 1, 0, 0, 1, 0x3c];
const RECORDING: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 60);
/// More than one burst, and no more than a quiet pod has room for while the worker sleeps: 128 frames.
const ECHOES: u16 = 100;

/// Writes a capture file in which the endpoint asks each of `pods` for echoes, in turn.
fn record(file: &Path, pods: &[Ipv4Addr]) {
    // Derived from 192.168.51.1; `MacAddr::from_underlay` documents how.
    let router = [2, 0x70, 192, 168, 51, 1];
    let mut writer = Writer::new(Vec::new()).expect("memory takes all");
    for sequence in 0..ECHOES {
        for &pod in pods {
            let frame = ethernet(router, MAC, 0x0800, &ipv4(RECORDING, pod, 1, &echo(7, sequence)));
            writer.write(Duration::ZERO, &frame, frame.len() as u32).expect("memory takes all");
        }
    }
    std::fs::write(file, writer.into_inner()).expect("the lab's own folder");
}

/// The sequence numbers of the echo replies in a file, in the order in which they came, and who sent them.
fn replies(file: &Path) -> Vec<(Ipv4Addr, u16)> {
    let bytes = std::fs::read(file).unwrap_or_default();
    let Ok(reader) = Reader::new(&bytes) else { return Vec::new() };
    // The last frame may still be on its way into the file.
    let frames = reader.map_while(Result::ok).map(|record| record.bytes);
    let replies = frames.filter(|frame| frame.len() >= 42 && frame[23] == 1 && frame[34] == 0);
    replies
        .map(|frame| {
            assert_eq!(frame[..6], MAC);
            assert_eq!(frame[30..34], RECORDING.octets());
            let from: [u8; 4] = frame[26..30].try_into().expect("four bytes");
            (from.into(), u16::from_be_bytes([frame[40], frame[41]]))
        })
        .collect()
}

#[test]
fn capture_files_are_replayed_and_answered() {
    let lab = Lab::up("--pods 1");
    ping(&lab.pod(1, 1), &v4(2, 1));
    let (receive, transmit) = (lab.file("in.pcap"), lab.file("out.pcap"));
    let pods = [Ipv4Addr::new(10, 244, 1, 1), Ipv4Addr::new(10, 244, 2, 1)];
    record(&receive, &pods);
    resync(
        &lab,
        &format!(
            "[[endpoint]]\nname = \"recording\"\nnetwork = \"default\"\nmac = \"02:01:00:00:01:3c\"\naddresses = [\"{RECORDING}\"]\n\
             attachment.pcap = {{ receive = \"{}\", transmit = \"{}\" }}\n",
            receive.display(),
            transmit.display()
        ),
    );
    let all = pods.len() * usize::from(ECHOES);
    wait_until("every echo of the file is answered into the other", || replies(&transmit).len() >= all);
    let replies = replies(&transmit);
    for pod in pods {
        let of_pod = replies.iter().filter(|(from, _)| *from == pod).map(|(_, sequence)| *sequence);
        assert!(of_pod.eq(0..ECHOES), "each once and in order from {pod}");
    }
    // Ports' counters are shown ten times a second.
    wait_until("the port has counted them", || {
        let port = &lab.port(1, "recording")[0];
        (number(&port["rx_packets"]), number(&port["tx_packets"])) == (all as u64, all as u64)
    });
    let port = &lab.port(1, "recording")[0];
    assert_eq!(
        (&port["kind"], &port["state"], &port["rx_drops"]),
        (&"pcap".into(), &"up".into(), &0.into()),
        "{port}"
    );
}
