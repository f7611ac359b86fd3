//! Taps against the kernel's own stack, each test in a network namespace of its own. Needs root.

#![expect(clippy::unwrap_used, reason = "a lab that cannot be built ends its test")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use penstock_io::tap::{MAX_MTU, OpenError, Tap, TapPort};
use penstock_io::{Burst, Census, FramePool, Hugepages, Port, PortFault, Region};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0xee];

/// One test at a time: they count the descriptors of the process.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `test` on a thread in a new network namespace, which goes when the thread ends.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let _alone = alone();
    let ended = std::thread::spawn(|| {
        // SAFETY: moves this thread alone to a new network namespace; no memory is touched.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(moved, 0, "labs need root: {}", std::io::Error::last_os_error());
        test();
    })
    .join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn link(name: &str) -> String {
    String::from_utf8(Command::new("ip").args(["-d", "link", "show", name]).output().unwrap().stdout).unwrap()
}

fn tap(queues: u32) -> Tap {
    Tap { name: "lab0".into(), queues, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }
}

fn pool() -> FramePool {
    FramePool::new(Region::map(1024, Hugepages::Off).unwrap())
}

/// A tap with 10.77.0.1/24 on the kernel's side and no IPv6 chatter.
fn tap_with_address(queues: u32) -> Vec<TapPort> {
    let ports = tap(queues).open().unwrap();
    ip("link set lab0 addrgenmode none");
    ip("address add 10.77.0.1/24 dev lab0");
    ip("link set lab0 up");
    ports
}

/// What 10.77.0.2 answers to ARP requests and echo requests, made in place of the request.
fn answer(frame: &mut [u8]) -> bool {
    let is_arp_request = frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1];
    let is_echo = frame.len() >= 42 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 8;
    if is_arp_request {
        let (sender, target): ([u8; 10], [u8; 4]) =
            (frame[22..32].try_into().unwrap(), frame[38..42].try_into().unwrap());
        frame[21] = 2;
        frame[22..28].copy_from_slice(&OURS);
        frame[28..32].copy_from_slice(&target);
        frame[32..42].copy_from_slice(&sender);
    } else if is_echo {
        let addresses: [u8; 8] = frame[26..34].try_into().unwrap();
        frame[26..30].copy_from_slice(&addresses[4..]);
        frame[30..34].copy_from_slice(&addresses[..4]);
        frame[34] = 0;
        // Type 8 became 0, so the sum falls by 0x0800 and its complement grows by as much (RFC 1624).
        let (sum, carry) = u16::from_be_bytes([frame[36], frame[37]]).overflowing_add(0x0800);
        frame[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    } else {
        return false;
    }
    frame.copy_within(6..12, 0);
    frame[6..12].copy_from_slice(&OURS);
    true
}

/// Receives, answers and sends on every port until `child` ends; returns whether it succeeded.
fn serve(ports: &mut [TapPort], pool: &mut FramePool, mut child: Child) -> bool {
    let (start, mut burst, mut out) = (Instant::now(), Burst::new(), Burst::new());
    loop {
        for port in &mut *ports {
            port.rx_burst(pool, &mut burst);
            while let Some(mut frame) = burst.pop() {
                if answer(frame.bytes_mut()) { out.push(frame).unwrap() } else { pool.free(frame) }
            }
            port.tx_burst(pool, &mut out);
            assert!(out.is_empty(), "the tap refused a frame");
            port.settle(pool).unwrap();
        }
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the child takes too long");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn ping(arguments: &str) -> Child {
    Command::new("ping").args(arguments.split(' ')).arg("10.77.0.2").stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn the_kernel_pings_what_answers_behind_the_tap() {
    in_namespace(|| {
        let (mut ports, mut pool) = (tap_with_address(1), pool());
        assert!(serve(&mut ports, &mut pool, ping("-c 5 -i 0.05 -W 2")));
        let counters = ports[0].counters();
        assert!(counters.rx_packets >= 6 && counters.tx_packets >= 6, "{counters:?}");
        assert_eq!((counters.rx_invalid, counters.rx_no_chunk), (0, 0));
        assert!(counters.rx_bytes >= 5 * 98 + 42, "{counters:?}");
        // Full size and every checksum left to the device: the kernel finishes them, as no offload was negotiated.
        assert!(serve(&mut ports, &mut pool, ping("-c 2 -i 0.05 -W 2 -s 1472 -M do")));
        ports.into_iter().for_each(|port| port.close(&mut pool));
        let region = pool.region();
        drop(pool);
        assert_eq!(region.census(), Census { free: 1024, ..Census::default() });
    });
}

#[test]
fn the_device_has_what_was_asked_for_and_goes_with_its_last_queue() {
    in_namespace(|| {
        let mut ports = Tap { mtu: MAX_MTU, ..tap(2) }.open().unwrap();
        let shown = link("lab0");
        assert!(
            shown.contains(&format!("mtu {MAX_MTU} ")) && shown.contains("link/ether 02:00:00:00:00:01"),
            "{shown}"
        );
        assert!(
            shown.contains("multi_queue") && shown.contains("vnet_hdr") && shown.contains("persist off"),
            "{shown}"
        );
        assert!(!shown.contains("LOWER_UP"), "a tap comes down: {shown}");
        ports.pop();
        assert!(!link("lab0").is_empty());
        ports.pop();
        assert!(link("lab0").is_empty());
    });
}

#[test]
fn two_queues_share_the_flows_and_both_can_send() {
    in_namespace(|| {
        let (mut ports, mut pool, mut burst) = (tap_with_address(2), pool(), Burst::new());
        ip("neighbor add 10.77.0.2 lladdr 02:00:00:00:00:ee dev lab0");
        // All open at once, so that no two of them are given the same port.
        let senders: Vec<_> = (0..64).map(|_| UdpSocket::bind("10.77.0.1:0").unwrap()).collect();
        for sender in &senders {
            sender.send_to(b"hey", "10.77.0.2:9").unwrap();
        }
        let mut flows = [HashSet::new(), HashSet::new()];
        for _ in 0..200 {
            for (port, flows) in ports.iter_mut().zip(&mut flows) {
                port.rx_burst(&mut pool, &mut burst);
                while let Some(frame) = burst.pop() {
                    flows.insert(frame.bytes()[34..36].to_vec());
                    pool.free(frame);
                }
            }
        }
        assert_eq!(flows[0].len() + flows[1].len(), 64);
        assert!(!flows[0].is_empty() && !flows[1].is_empty(), "one queue got every flow");

        let heard = UdpSocket::bind("10.77.0.1:4000").unwrap();
        heard.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        for (queue, port) in ports.iter_mut().enumerate() {
            let mut frame = pool.alloc().unwrap();
            frame.fill_from(&datagram_to_4000(queue as u8)).unwrap();
            burst.push(frame).unwrap();
            assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
            let mut text = [0; 8];
            assert_eq!(heard.recv(&mut text).unwrap(), 1);
            assert_eq!(text[0], queue as u8);
        }
    });
}

/// One byte from 10.77.0.2:4000 to 10.77.0.1:4000 without UDP checksum.
fn datagram_to_4000(byte: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1];
    frame.extend(OURS);
    frame.extend([8, 0, 0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1]);
    let sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend([0x0f, 0xa0, 0x0f, 0xa0, 0, 9, 0, 0, byte]);
    frame
}

fn poll(port: &mut TapPort, times: usize, pool: &mut FramePool, into: &mut Burst) {
    for _ in 0..times {
        port.rx_burst(pool, into);
    }
}

#[test]
fn a_frame_too_long_for_a_chunk_comes_in_several() {
    in_namespace(|| {
        let (mut ports, mut pool, mut burst) = (tap_with_address(1), pool(), Burst::new());
        ip("neighbor add 10.77.0.2 lladdr 02:00:00:00:00:ee dev lab0");
        // Somebody raises the MTU behind our back.
        ip("link set lab0 mtu 9000");
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        // 42 bytes of headers: the longest frame that fits a chunk, one byte more, and a jumbo.
        let longest = usize::from(MAX_MTU) + 19 - 42;
        for length in [longest, longest + 1, 8000] {
            let payload: Vec<u8> = (0..length).map(|i| (i / 3) as u8).collect();
            socket.send_to(&payload, "10.77.0.2:9").unwrap();
        }
        poll(&mut ports[0], 100, &mut pool, &mut burst);
        let shapes: Vec<_> = burst.frames().iter().map(|it| (it.total_len(), it.pieces().count())).collect();
        assert_eq!(shapes, [(longest + 42, 1), (longest + 43, 2), (8042, 5)]);
        let jumbo = burst.frames()[2].to_vec();
        assert!(jumbo[42..].iter().enumerate().all(|(i, &byte)| byte == (i / 3) as u8));
        assert_eq!((ports[0].counters().rx_packets, ports[0].counters().rx_invalid), (3, 0));
        // What the kernel hands over it takes back.
        while let Some(mut frame) = burst.pop() {
            frame.bytes_mut()[..12].rotate_left(6);
            let mut out = Burst::new();
            out.push(frame).unwrap();
            assert_eq!(ports[0].tx_burst(&mut pool, &mut out), 1);
        }
        assert_eq!((ports[0].counters().tx_packets, ports[0].counters().tx_invalid), (3, 0));
        ports.into_iter().for_each(|port| port.close(&mut pool));
        assert_eq!(pool.region().census().user, 0);
    });
}

#[test]
fn a_tcp_stream_of_the_kernel_comes_in_packets_of_many_segments_and_goes_back_so() {
    in_namespace(|| {
        let (mut ports, mut pool) = (tap_with_address(1), pool());
        ip("neighbor add 10.77.0.2 lladdr 02:00:00:00:00:ee dev lab0");
        let server = TcpListener::bind("10.77.0.1:4000").unwrap();
        // Addresses and stations change places on the way: the kernel speaks with itself.
        let sender = std::thread::spawn(|| {
            let mut stream = TcpStream::connect("10.77.0.2:4000").unwrap();
            stream.write_all(&vec![7; 1_000_000]).unwrap();
        });
        let receiver = std::thread::spawn(move || {
            let (mut stream, mut got) = (server.accept().unwrap().0, Vec::new());
            stream.read_to_end(&mut got).unwrap();
            got
        });
        let (start, mut burst, mut longest) = (Instant::now(), Burst::new(), 0);
        while !receiver.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(20), "the stream takes too long");
            ports[0].rx_burst(&mut pool, &mut burst);
            for frame in burst.frames_mut() {
                longest = longest.max(frame.total_len());
                reflect(frame.bytes_mut());
            }
            ports[0].tx_burst(&mut pool, &mut burst);
            pool.free_burst(&mut burst);
            ports[0].settle(&mut pool).unwrap();
        }
        sender.join().unwrap();
        assert!(receiver.join().unwrap() == vec![7; 1_000_000]);
        assert!(longest > 10_000, "the longest packet had {longest} bytes");
        assert_eq!((ports[0].counters().rx_invalid, ports[0].counters().tx_invalid), (0, 0));
    });
}

/// Sends an IPv4 frame of 10.77.0.1's to 10.77.0.2 back as one of 10.77.0.2's; sums do not mind.
fn reflect(frame: &mut [u8]) {
    frame[..12].rotate_left(6);
    if frame[12..14] == [8, 0] {
        frame[26..34].rotate_left(4);
    }
}

#[test]
fn a_frame_without_a_chunk_is_dropped_and_counted_once() {
    in_namespace(|| {
        let (mut ports, mut pool, mut burst) = (tap_with_address(1), pool(), Burst::new());
        ip("neighbor add 10.77.0.2 lladdr 02:00:00:00:00:ee dev lab0");
        let held: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        UdpSocket::bind("10.77.0.1:0").unwrap().send_to(b"hey", "10.77.0.2:9").unwrap();
        poll(&mut ports[0], 100, &mut pool, &mut burst);
        assert!(burst.is_empty());
        assert_eq!(ports[0].counters().rx_no_chunk, 1);
        held.into_iter().for_each(|frame| pool.free(frame));
    });
}

#[test]
fn a_down_device_refuses_frames_and_a_deleted_one_is_gone() {
    in_namespace(|| {
        let (mut port, mut pool, mut burst) = (tap_with_address(1).remove(0), pool(), Burst::new());
        ip("link set lab0 down");
        let mut frame = pool.alloc().unwrap();
        frame.fill_from(&datagram_to_4000(0)).unwrap();
        burst.push(frame).unwrap();
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 0);
        assert_eq!(burst.len(), 1);
        port.settle(&mut pool).unwrap();
        ip("link set lab0 up");
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);

        ip("link delete lab0");
        poll(&mut port, 20, &mut pool, &mut burst);
        let fault = port.settle(&mut pool).unwrap_err();
        assert!(matches!(fault, PortFault::Gone { .. }), "{fault}");
        assert!(fault.to_string().contains("lab0:0"), "{fault}");
    });
}

#[test]
fn a_runt_is_discarded_and_counted_and_holds_nobody_up() {
    in_namespace(|| {
        let (mut port, mut pool, mut burst) = (tap_with_address(1).remove(0), pool(), Burst::new());
        for bytes in [&[2; 13][..], &datagram_to_4000(0)] {
            let mut frame = pool.alloc().unwrap();
            frame.fill_from(bytes).unwrap();
            burst.push(frame).unwrap();
        }
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 2);
        assert_eq!((port.counters().tx_invalid, port.counters().tx_packets), (1, 1));
        port.settle(&mut pool).unwrap();
    });
}

#[test]
fn a_name_that_is_taken_is_said_even_if_the_other_is_a_tap_of_many_queues() {
    in_namespace(|| {
        let _ports = tap(1).open().unwrap();
        let refused = tap(1).open().err().unwrap();
        assert!(matches!(refused, OpenError::Taken { .. }), "{refused}");
        ip("link add other0 type veth peer name other1");
        let refused = Tap { name: "other0".into(), ..tap(1) }.open().err().unwrap();
        assert!(matches!(refused, OpenError::Taken { .. }), "{refused}");
    });
}

#[test]
fn the_descriptor_says_when_a_frame_waits() {
    in_namespace(|| {
        let (mut ports, mut pool, mut burst) = (tap_with_address(1), pool(), Burst::new());
        ip("neighbor add 10.77.0.2 lladdr 02:00:00:00:00:ee dev lab0");
        // Whatever the kernel said when the link came up.
        while ready(&ports[0]) {
            ports[0].rx_burst(&mut pool, &mut burst);
            pool.free_burst(&mut burst);
        }
        UdpSocket::bind("10.77.0.1:0").unwrap().send_to(b"hey", "10.77.0.2:9").unwrap();
        assert!(ready(&ports[0]));
        while burst.is_empty() {
            ports[0].rx_burst(&mut pool, &mut burst);
        }
        pool.free_burst(&mut burst);
        assert!(!ready(&ports[0]));
    });
}

/// Whether the port's descriptor becomes readable within 50 ms.
fn ready(port: &TapPort) -> bool {
    use std::os::fd::AsRawFd;
    let fd = port.readiness().unwrap().as_raw_fd();
    let mut asked = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid `pollfd`.
    unsafe { libc::poll(&raw mut asked, 1, 50) == 1 }
}

#[test]
fn a_hundred_lives_leave_no_descriptor_and_no_interface() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    in_namespace(move || {
        let before = descriptors();
        for _ in 0..100 {
            drop(tap(3).open().unwrap());
            let taken = tap(3).open().unwrap();
            assert!(tap(1).open().is_err());
            drop(taken);
        }
        assert_eq!(descriptors(), before);
        assert!(link("lab0").is_empty());
    });
}
