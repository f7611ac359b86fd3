//! AF_XDP ports and steering on real veths, each test in a network namespace of its own. Needs root.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libbpf_rs::libbpf_sys;
use penstock_io::steer::{Role, Steer, SteerError, SteerRules, TUNNEL_PORTS, XdpMode};
use penstock_io::xsk::{CopyMode, Transfer};
use penstock_io::{
    Abilities, Burst, FramePool, Hugepages, Netdev, NetdevError, Port, PortFault, Region, XskConfig,
    XskError, XskPort,
};

/// IEEE 802 "local experimental" EtherType: nothing else in the namespace sends it.
const MARK: [u8; 2] = [0x88, 0xb5];

/// One test at a time: they count the descriptors of the process.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves this thread to a new network namespace, which goes with the last that is in it.
fn new_namespace() {
    // SAFETY: moves this thread alone; no memory is touched.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(moved, 0, "labs need root: {}", std::io::Error::last_os_error());
}

fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let _alone = alone();
    let ended = std::thread::spawn(|| {
        new_namespace();
        test();
    })
    .join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

#[track_caller]
fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A veth pair, up, without IPv6 chatter.
fn veth(name: &str, peer: &str) {
    ip(&format!("link add {name} type veth peer name {peer}"));
    for end in [name, peer] {
        ip(&format!("link set dev {end} addrgenmode none"));
        ip(&format!("link set dev {end} up promisc on"));
    }
}

fn netdev(name: &str) -> Netdev {
    Netdev::named(name).expect("the interface is there")
}

fn pool(chunks: u32) -> FramePool {
    FramePool::new(Region::map(chunks, Hugepages::Off).expect("there is memory"))
}

fn small() -> XskConfig {
    XskConfig {
        rx_ring: 256,
        tx_ring: 256,
        fill_level: 256,
        fill_at_first: 256,
        pace: Duration::ZERO,
        ..XskConfig::default()
    }
}

fn open(name: &str, mode: XdpMode, pool: &mut FramePool) -> (Steer, XskPort) {
    let netdev = netdev(name);
    let steer = Steer::attach(&netdev, Role::Pod, mode).expect("the program attaches");
    let port = XskPort::open(&netdev, 0, &small(), pool).expect("the port opens");
    steer.bind(0, &port).expect("the map takes the socket");
    (steer, port)
}

#[track_caller]
fn assert_all_free(pool: &FramePool) {
    #[cfg(debug_assertions)]
    assert_eq!(pool.region().census().free, pool.region().chunks());
    assert_eq!(pool.region().strays(), 0);
}

/// A packet socket on one interface: the far end of a veth.
struct Wire(OwnedFd);

impl Wire {
    fn on(name: &str) -> Wire {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a system call without pointers.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just gave us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: zeros are a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = netdev(name).index as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the kernel reads `len` bytes of `address`, which it has.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Wire(fd)
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: the kernel reads the frame, which lives past the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }

    /// The next marked frame that another sent, if one is there already.
    fn try_receive(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 16384];
            // SAFETY: zeros are a valid `sockaddr_ll`.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut len = size_of::<libc::sockaddr_ll>() as u32;
            let (fd, buffer) = (self.0.as_raw_fd(), frame.as_mut_ptr().cast());
            let from_at = (&raw mut from).cast();
            // SAFETY: the kernel writes at most 16384 bytes to the frame and `len` to the address.
            let got = unsafe { libc::recvfrom(fd, buffer, 16384, libc::MSG_DONTWAIT, from_at, &raw mut len) };
            if got < 0 {
                return None;
            }
            frame.truncate(got as usize);
            if from.sll_pkttype != libc::PACKET_OUTGOING && frame.get(12..14) == Some(&MARK) {
                return Some(frame);
            }
        }
    }
}

/// A marked frame of `len` bytes with a number.
fn marked(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(MARK);
    frame.extend(number.to_be_bytes());
    frame.resize(len, number as u8);
    frame
}

/// Moves frames from one port to another until `done` or 10 s have passed.
fn forward(from: &mut XskPort, to: &mut XskPort, pool: &mut FramePool, mut done: impl FnMut() -> bool) {
    let (start, mut burst) = (Instant::now(), Burst::new());
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "the frames did not arrive within 10 s");
        from.rx_burst(pool, &mut burst);
        to.tx_burst(pool, &mut burst);
        pool.free_burst(&mut burst);
        from.settle(pool).expect("the port is fine");
        to.settle(pool).expect("the port is fine");
    }
}

/// Sends numbered frames into `near` and sees every one of them come out of `far`, byte for byte and in order.
fn pump(near: &Wire, far: &Wire, from: &mut XskPort, to: &mut XskPort, pool: &mut FramePool) {
    const FRAMES: u32 = 2000;
    let len = |number: u32| 18 + (number as usize * 7) % 1480;
    let (mut sent, mut seen) = (0, 0);
    forward(from, to, pool, || {
        while let Some(frame) = far.try_receive() {
            assert_eq!(frame, marked(seen, len(seen)));
            seen += 1;
        }
        // Fewer under way than any queue on the way holds.
        if sent < FRAMES && sent - seen < 100 {
            near.send(&marked(sent, len(sent)));
            sent += 1;
        }
        seen == FRAMES
    });
}

fn forwards_both_ways(mode: XdpMode) {
    veth("left", "a");
    veth("right", "b");
    let (a, b, mut pool) = (Wire::on("a"), Wire::on("b"), pool(2048));
    let (left_steer, mut left) = open("left", mode, &mut pool);
    let (right_steer, mut right) = open("right", mode, &mut pool);
    assert_eq!(left_steer.mode().native, mode == XdpMode::Native);
    assert_eq!(left.transfer(), Transfer::Copy);
    pump(&a, &b, &mut left, &mut right, &mut pool);
    pump(&b, &a, &mut right, &mut left, &mut pool);
    assert_eq!((left.counters().rx_packets, left.counters().tx_packets), (2000, 2000));
    assert_eq!(left.statistics().expect("the socket is open").rx_dropped, 0);
    left_steer.detach(false).expect("ours is attached");
    right_steer.detach(false).expect("ours is attached");
    assert_eq!(netdev("left").program, None);
    left.close(&mut pool);
    right.close(&mut pool);
    assert_all_free(&pool);
}

#[test]
fn frames_cross_between_veths_both_ways_in_generic_mode() {
    in_namespace(|| forwards_both_ways(XdpMode::Generic));
}

#[test]
fn frames_cross_between_veths_both_ways_in_native_mode() {
    in_namespace(|| forwards_both_ways(XdpMode::Native));
}

#[test]
fn a_veth_runs_generic_and_copies_and_says_why() {
    in_namespace(|| {
        veth("left", "a");
        let mut pool = pool(1024);
        let (steer, port) = open("left", XdpMode::Auto, &mut pool);
        assert_eq!(steer.mode().to_string(), "generic (carries more on a veth)");
        assert_eq!(port.copies_because(), Some("the driver has no zero-copy"));
        let left = netdev("left");
        assert!(left.is_veth() && left.up && left.features.is_some_and(|features| features.native));
        assert_eq!(
            left.program.map(|program| (program.id, program.native)),
            Some((steer.program_id(), false))
        );
        let config = XskConfig { copy: CopyMode::ZeroCopy, ..small() };
        port.close(&mut pool);
        let error = XskPort::open(&left, 0, &config, &mut pool).err().expect("a veth has no zero-copy");
        assert!(matches!(error, XskError::NoZeroCopy { .. }), "{error}");
        assert_all_free(&pool);
    });
}

#[test]
fn one_memory_serves_sockets_of_two_namespaces_without_copying() {
    in_namespace(|| {
        let mut pool = pool(2048);
        veth("left", "a");
        let a = Wire::on("a");
        let (_left_steer, mut left) = open("left", XdpMode::Auto, &mut pool);
        new_namespace();
        veth("right", "b");
        let b = Wire::on("b");
        let (_right_steer, mut right) = open("right", XdpMode::Auto, &mut pool);
        a.send(&marked(7, 100));
        let (mut burst, start) = (Burst::new(), Instant::now());
        while left.rx_burst(&mut pool, &mut burst) == 0 {
            assert!(start.elapsed() < Duration::from_secs(5));
        }
        let before = (left.with_kernel(), right.with_kernel());
        assert_eq!(before, ((255, 0), (256, 0)));
        assert_eq!(right.tx_burst(&mut pool, &mut burst), 1);
        assert_eq!(
            (left.with_kernel(), right.with_kernel()),
            ((255, 0), (256, 1)),
            "the same chunk, no other"
        );
        right.settle(&mut pool).expect("the port is fine");
        while start.elapsed() < Duration::from_secs(5) {
            if let Some(frame) = b.try_receive() {
                assert_eq!(frame, marked(7, 100));
                left.close(&mut pool);
                right.close(&mut pool);
                return assert_all_free(&pool);
            }
        }
        panic!("the frame did not arrive");
    });
}

#[test]
fn the_memory_stays_shared_when_the_socket_that_registered_it_closes() {
    in_namespace(|| {
        let mut pool = pool(2048);
        for (name, peer) in [("one", "p1"), ("two", "p2"), ("three", "p3")] {
            veth(name, peer);
        }
        let (_, first) = open("one", XdpMode::Auto, &mut pool);
        let (_, second) = open("two", XdpMode::Auto, &mut pool);
        first.close(&mut pool);
        let (_, third) = open("three", XdpMode::Auto, &mut pool);
        // A removed interface unbinds its socket, which can lend no more although it is open.
        ip("link del two");
        let (_, again) = open("one", XdpMode::Auto, &mut pool);
        for port in [second, third, again] {
            port.close(&mut pool);
        }
        let (_, anew) = open("one", XdpMode::Auto, &mut pool);
        anew.close(&mut pool);
        assert_all_free(&pool);
    });
}

#[test]
fn a_removed_interface_is_a_fault_and_every_chunk_comes_back() {
    in_namespace(|| {
        veth("left", "a");
        let mut pool = pool(1024);
        let (_steer, mut port) = open("left", XdpMode::Auto, &mut pool);
        ip("link del left");
        let mut burst = Burst::new();
        let mut frame = pool.alloc().expect("there are chunks");
        frame.fill_from(&marked(1, 60)).expect("it fits");
        burst.push(frame).expect("there is room");
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
        let fault = port.settle(&mut pool).expect_err("nobody is there to send");
        assert!(matches!(fault, PortFault::Gone { .. }), "{fault}");
        assert_eq!(port.with_kernel(), (256, 1));
        port.close(&mut pool);
        assert_all_free(&pool);
    });
}

#[test]
fn a_close_under_traffic_returns_every_chunk_and_a_hundred_leave_no_descriptor() {
    in_namespace(|| {
        veth("left", "a");
        let (a, mut pool) = (Wire::on("a"), pool(1024));
        let descriptors = || std::fs::read_dir("/proc/self/fd").expect("proc is mounted").count();
        // The program for pods' interfaces stays once it is loaded.
        let (_, first) = open("left", XdpMode::Auto, &mut pool);
        first.close(&mut pool);
        let before = descriptors();
        for cycle in 0..100 {
            let (steer, mut port) = open("left", XdpMode::Auto, &mut pool);
            (0..20).for_each(|number| a.send(&marked(number, 60)));
            let mut burst = Burst::new();
            port.rx_burst(&mut pool, &mut burst);
            port.tx_burst(&mut pool, &mut burst);
            pool.free_burst(&mut burst);
            if cycle % 2 == 0 {
                port.settle(&mut pool).expect("the port is fine");
            }
            steer.detach(cycle % 3 == 0).expect("ours is attached");
            port.close(&mut pool);
            assert_all_free(&pool);
        }
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn a_queue_that_is_taken_is_named_after_a_bounded_wait() {
    in_namespace(|| {
        veth("left", "a");
        let mut pool = pool(1024);
        let (_steer, port) = open("left", XdpMode::Auto, &mut pool);
        let error = XskPort::open(&netdev("left"), 0, &small(), &mut pool).err().expect("the queue is taken");
        assert!(matches!(&error, XskError::QueueBusy { port, .. } if port == "left:0"), "{error}");
        let error = XskPort::open(&netdev("left"), 1, &small(), &mut pool).err().expect("there is one queue");
        assert!(matches!(error, XskError::NoSuchQueue { queues: 1, .. }), "{error}");
        let greedy = XskConfig { fill_level: 4096, fill_at_first: 4096, ..small() };
        let error =
            XskPort::open(&netdev("left"), 0, &greedy, &mut pool).err().expect("there are 1024 chunks");
        assert!(matches!(error, XskError::NoChunks { wanted: 4096, .. }), "{error}");
        port.close(&mut pool);
        assert_all_free(&pool);
    });
}

/// Loads and attaches a program that is not ours; it stays attached without its descriptor.
fn attach_foreign(name: &str) -> u32 {
    // r0 = XDP_PASS; exit
    let code = [
        libbpf_sys::bpf_insn { code: 0xb7, imm: 2, ..Default::default() },
        libbpf_sys::bpf_insn { code: 0x95, ..Default::default() },
    ];
    let (title, licence) = (c"penstock_steer", c"Apache-2.0");
    let kind = libbpf_sys::BPF_PROG_TYPE_XDP;
    let (title, licence) = (title.as_ptr(), licence.as_ptr());
    // SAFETY: the names and the code live past the call; no options are given.
    let fd =
        unsafe { libbpf_sys::bpf_prog_load(kind, title, licence, code.as_ptr(), 2, std::ptr::null_mut()) };
    assert!(fd >= 0, "loading a program wants root");
    // SAFETY: the kernel just gave us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (index, flags) = (netdev(name).index as i32, libbpf_sys::XDP_FLAGS_SKB_MODE);
    // SAFETY: the descriptor is open; no options are given.
    let attached = unsafe { libbpf_sys::bpf_xdp_attach(index, fd.as_raw_fd(), flags, std::ptr::null()) };
    assert_eq!(attached, 0);
    netdev(name).program.expect("it is attached").id
}

#[test]
fn the_program_of_somebody_else_stays_and_is_named_even_if_it_borrows_our_name() {
    in_namespace(|| {
        veth("left", "a");
        let id = attach_foreign("left");
        for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            let error = Steer::attach(&netdev("left"), Role::Pod, mode).err().expect("it is somebody else's");
            assert!(matches!(&error, SteerError::Foreign { id: found, .. } if *found == id), "{error}");
        }
        assert_eq!(netdev("left").program.map(|program| program.id), Some(id));
    });
}

#[test]
fn a_detach_leaves_the_program_that_took_our_place() {
    in_namespace(|| {
        veth("left", "a");
        let first = Steer::attach(&netdev("left"), Role::Pod, XdpMode::Auto).expect("nothing is there");
        let second = Steer::attach(&netdev("left"), Role::Pod, XdpMode::Auto).expect("ours is replaced");
        assert!(first.detach(false).is_err());
        assert_eq!(netdev("left").program.map(|program| program.id), Some(second.program_id()));
        let third = Steer::attach(&netdev("left"), Role::Pod, XdpMode::Native).expect("the mode may change");
        assert!(third.mode().native);
        third.detach(false).expect("ours is attached");
        assert_eq!(netdev("left").program, None);
    });
}

/// Not a test by itself: the process that another test kills.
#[test]
#[ignore = "run by a_killed_process_leaves_a_pod_closed_and_an_uplink_open"]
fn child_that_holds_interfaces() {
    if std::env::var_os("PENSTOCK_CHILD").is_none() {
        return;
    }
    let mut pool = pool(1024);
    let (_pod, _pod_port) = open("pod", XdpMode::Auto, &mut pool);
    let uplink = netdev("uplink");
    let mut steer = Steer::attach(&uplink, Role::Uplink, XdpMode::Auto).expect("nothing is there");
    let prefixes = vec![("0.0.0.0".parse().expect("an address"), 0)];
    let rules = SteerRules { prefixes, tunnel_ports: TUNNEL_PORTS.to_vec(), ..SteerRules::default() };
    steer.set_rules(&rules).expect("the maps take the rules");
    let port = XskPort::open(&uplink, 0, &small(), &mut pool).expect("the port opens");
    steer.bind(0, &port).expect("the map takes the socket");
    println!("\nholding");
    std::thread::sleep(Duration::from_secs(60));
}

/// Whether what `from` sends arrives at the kernel's side of the interface that `at` listens on.
fn arrives(from: &Wire, at: &Wire, frame: &[u8]) -> bool {
    while at.try_receive().is_some() {}
    from.send(frame);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        if at.try_receive().is_some() {
            return true;
        }
    }
    false
}

#[test]
fn a_killed_process_leaves_a_pod_closed_and_an_uplink_open_and_the_next_one_takes_over() {
    in_namespace(|| {
        veth("pod", "a");
        veth("uplink", "b");
        let (a, b) = (Wire::on("a"), Wire::on("b"));
        let (pod, uplink) = (Wire::on("pod"), Wire::on("uplink"));
        assert!(arrives(&a, &pod, &marked(1, 60)), "an interface without a program is open");
        let mut child = Command::new(std::env::current_exe().expect("tests have a path"))
            .args(["--exact", "--ignored", "--nocapture", "child_that_holds_interfaces"])
            .env("PENSTOCK_CHILD", "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line == "holding"));
        let seen = (arrives(&a, &pod, &marked(2, 60)), arrives(&b, &uplink, &marked(3, 60)));
        child.kill().expect("the child runs");
        child.wait().expect("the child ends");
        assert!(ready, "the child did not come up");
        assert_eq!(seen, (false, true), "the pod is taken whole, the uplink only what is ours");
        assert!(!arrives(&a, &pod, &marked(4, 60)), "the pod stays closed");
        assert!(arrives(&b, &uplink, &marked(5, 60)), "the uplink stays open");
        let left = netdev("pod").program.expect("the program stays").id;
        let mut pool = pool(1024);
        let (steer, port) = open("pod", XdpMode::Auto, &mut pool);
        assert_ne!(steer.program_id(), left);
        assert_eq!(netdev("pod").program.map(|program| program.id), Some(steer.program_id()));
        steer.detach(true).expect("it stays, closed");
        assert!(!arrives(&a, &pod, &marked(6, 60)), "a pod that is kept closed drops");
        let steer = Steer::attach(&netdev("pod"), Role::Pod, XdpMode::Auto).expect("ours is replaced");
        steer.detach(false).expect("ours is attached");
        assert!(arrives(&a, &pod, &marked(7, 60)), "an interface without a program is open");
        port.close(&mut pool);
        assert_all_free(&pool);
    });
}

#[test]
fn frames_that_do_not_fit_a_chunk_come_in_several_in_both_modes() {
    for mode in [XdpMode::Generic, XdpMode::Native] {
        in_namespace(move || {
            veth("left", "a");
            ip("link set dev left mtu 9000");
            ip("link set dev a mtu 9000");
            let (a, mut pool) = (Wire::on("a"), pool(1024));
            let (steer, mut port) = open("left", mode, &mut pool);
            assert_eq!(steer.mode().native, mode == XdpMode::Native);
            assert!(port.abilities().has(Abilities::CHAINS));
            for (number, len) in [60, 1792, 1793, 3000, 9014].into_iter().enumerate() {
                let (sent, mut burst, start) = (marked(number as u32, len), Burst::new(), Instant::now());
                a.send(&sent);
                while port.rx_burst(&mut pool, &mut burst) == 0 {
                    assert!(start.elapsed() < Duration::from_secs(5), "{len} bytes");
                }
                assert_eq!(burst.frames()[0].to_vec(), sent);
                // And back to who sent it.
                assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
                port.settle(&mut pool).expect("the interface is there");
                let answer = loop {
                    if let Some(answer) = a.try_receive() {
                        break answer;
                    }
                    assert!(start.elapsed() < Duration::from_secs(5), "{len} bytes come back");
                };
                assert!(answer == sent, "{len} bytes come back as they were");
            }
            port.close(&mut pool);
            assert_all_free(&pool);
        });
    }
}

#[test]
fn an_interface_of_another_namespace_is_not_found() {
    in_namespace(|| {
        veth("left", "a");
        new_namespace();
        assert!(matches!(Netdev::named("left"), Err(NetdevError::Missing { .. })));
    });
}
