//! Frames in, verdicts out: the program runs in the kernel by `BPF_PROG_TEST_RUN`, without an interface.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::libbpf_sys;

use super::*;
use crate::xsk::socket::Socket;

const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const NODE: &str = "192.0.2.1";
const NODE6: &str = "2001:db8::1";
const OTHER: &str = "192.0.2.99";
const OTHER6: &str = "2001:db8::99";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    Kernel,
    Dropped,
}

fn run(program: &Program, frame: &[u8]) -> Verdict {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: the structure says its own size, and the frame lives past the call.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &raw mut options) };
    assert_eq!(result, 0, "BPF_PROG_TEST_RUN wants root and a frame of at least 14 bytes");
    match options.retval {
        4 => Verdict::Taken,
        2 => Verdict::Kernel,
        1 => Verdict::Dropped,
        other => panic!("verdict {other}"),
    }
}

fn ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

fn tagged(vlan: u16, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut inner = vlan.to_be_bytes().to_vec();
    inner.extend(ethertype.to_be_bytes());
    inner.extend(packet);
    ethernet(0x8100, &inner)
}

/// An IPv4 packet; `options` bytes of options, `fragment` the flags-and-offset field.
fn ipv4_with(src: &str, dst: &str, protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options;
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(src.parse::<std::net::Ipv4Addr>().unwrap().octets());
    packet.extend(dst.parse::<std::net::Ipv4Addr>().unwrap().octets());
    packet.extend(std::iter::repeat_n(1, options));
    packet.extend(payload);
    packet
}

fn ipv4(src: &str, dst: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(src, dst, protocol, 0, 0x4000, payload)
}

fn ipv6(src: &str, dst: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(src.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(dst.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

fn ports(source: u16, dest: u16) -> Vec<u8> {
    let mut bytes = source.to_be_bytes().to_vec();
    bytes.extend(dest.to_be_bytes());
    bytes.extend([0, 8, 0, 0, 9, 9, 9, 9]);
    bytes
}

fn icmp(kind: u8, code: u8, id: u16, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([5, 120]);
    bytes.extend(quoted);
    bytes
}

fn rules() -> SteerRules {
    SteerRules {
        tunnel_endpoints: vec![NODE.parse().unwrap(), NODE6.parse().unwrap()],
        tunnel_ports: TUNNEL_PORTS.to_vec(),
        prefixes: vec![("10.244.0.0".parse().unwrap(), 16), ("fd00:1::".parse().unwrap(), 32)],
        node_ports: vec![
            NodePort { address: NODE.parse().unwrap(), protocol: TCP, port: 30080 },
            NodePort { address: NODE6.parse().unwrap(), protocol: UDP, port: 30053 },
        ],
        snat_ranges: [(40000, 49999), (52001, 52003)]
            .map(|(first, last)| SnatRange { address: NODE.parse().unwrap(), first, last })
            .to_vec(),
    }
}

/// A program with the rules of [`rules`] and an AF_XDP socket on its only queue.
fn program(role: Role, vlan: u16) -> (Program, Socket) {
    let program = Program::load(role, vlan, 1, 1).expect("loading the program wants root");
    let socket = Socket::new("test").unwrap();
    program.bind(0, socket.as_fd()).unwrap();
    apply(&program, &mut Entries::new(), &rules().entries().unwrap()).unwrap();
    (program, socket)
}

fn vxlan4() -> Vec<u8> {
    ipv4(OTHER, NODE, UDP, &ports(50000, 4789))
}

#[test]
fn an_uplink_takes_what_is_ours_and_nothing_else() {
    let sent4 = ipv4(NODE, OTHER, UDP, &ports(50000, 4789));
    let sent6 = ipv6(NODE6, OTHER6, UDP, &ports(50000, 6081));
    let later = ipv4_with(NODE, OTHER, UDP, 0, 1, &ports(50000, 4789));
    let v4 = |packet: &[u8]| ethernet(IPV4, packet);
    let v6 = |packet: &[u8]| ethernet(IPV6, packet);
    use Verdict::{Kernel, Taken};
    let left4 = |port: u16| ipv4(NODE, OTHER, TCP, &ports(port, 443));
    let left6 = ipv6(NODE6, OTHER6, UDP, &ports(30053, 443));
    let table = [
        ("VXLAN", v4(&vxlan4()), Taken),
        ("Geneve over IPv6", v6(&ipv6(OTHER6, NODE6, UDP, &ports(1, 6081))), Taken),
        ("VXLAN behind IPv4 options", v4(&ipv4_with(OTHER, NODE, UDP, 8, 0, &ports(1, 4789))), Taken),
        ("a tunnel port on another address", v4(&ipv4(OTHER, "192.0.2.2", UDP, &ports(1, 4789))), Kernel),
        ("another port on our address", v4(&ipv4(OTHER, NODE, UDP, &ports(4789, 53))), Kernel),
        ("TCP on a tunnel port", v4(&ipv4(OTHER, NODE, TCP, &ports(1, 4789))), Kernel),
        ("ssh", v4(&ipv4(OTHER, NODE, TCP, &ports(50000, 22))), Kernel),
        ("ssh over IPv6", v6(&ipv6(OTHER6, NODE6, TCP, &ports(50000, 22))), Kernel),
        (
            "the first fragment of a tunnel packet",
            v4(&ipv4_with(OTHER, NODE, UDP, 0, 0x2000, &ports(1, 4789))),
            Kernel,
        ),
        (
            "a later fragment that looks like one",
            v4(&ipv4_with(OTHER, NODE, UDP, 0, 185, &ports(1, 4789))),
            Kernel,
        ),
        ("an IPv6 fragment of a tunnel packet", v6(&ipv6(OTHER6, NODE6, 44, &ports(1, 6081))), Kernel),
        ("TCP to a pod", v4(&ipv4(OTHER, "10.244.3.4", TCP, &ports(1, 22))), Taken),
        ("a fragment to a pod", v4(&ipv4_with(OTHER, "10.244.3.4", UDP, 0, 185, &[0; 8])), Taken),
        ("an unknown protocol to a pod over IPv6", v6(&ipv6(OTHER6, "fd00:1::7", 99, &[])), Taken),
        ("an address beside the pods'", v4(&ipv4(OTHER, "10.245.0.1", TCP, &ports(1, 22))), Kernel),
        ("an IPv6 address beside the pods'", v6(&ipv6(OTHER6, "fd00:2::7", TCP, &ports(1, 22))), Kernel),
        ("a node port", v4(&ipv4(OTHER, NODE, TCP, &ports(1, 30080))), Taken),
        ("a node port over IPv6", v6(&ipv6(OTHER6, NODE6, UDP, &ports(1, 30053))), Taken),
        ("a node port of the other protocol", v4(&ipv4(OTHER, NODE, UDP, &ports(1, 30080))), Kernel),
        ("the first SNAT port", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 40000))), Taken),
        ("the last SNAT port", v4(&ipv4(OTHER, NODE, UDP, &ports(80, 49999))), Taken),
        ("a port below the SNAT range", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 39999))), Kernel),
        ("a port above the SNAT range", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 50000))), Kernel),
        ("a port between two SNAT ranges", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 52000))), Kernel),
        ("the first port of the second SNAT range", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 52001))), Taken),
        ("the last port of the second SNAT range", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 52003))), Taken),
        ("a port above the second SNAT range", v4(&ipv4(OTHER, NODE, TCP, &ports(80, 52004))), Kernel),
        ("a SNAT port at another address", v4(&ipv4(OTHER, "192.0.2.2", TCP, &ports(80, 40000))), Kernel),
        ("the answer to a translated ping", v4(&ipv4(OTHER, NODE, ICMP, &icmp(0, 0, 40001, &[]))), Taken),
        ("the answer to the node's own ping", v4(&ipv4(OTHER, NODE, ICMP, &icmp(0, 0, 7, &[]))), Kernel),
        ("a ping", v4(&ipv4(OTHER, NODE, ICMP, &icmp(8, 0, 40001, &[]))), Kernel),
        ("frag needed about our tunnel", v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 4, 0, &sent4))), Taken),
        ("unreachable about our tunnel", v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 1, 0, &sent4))), Kernel),
        (
            "frag needed about another's tunnel",
            v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 4, 0, &vxlan4()))),
            Kernel,
        ),
        ("frag needed about a later fragment", v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 4, 0, &later))), Kernel),
        (
            "frag needed about the node's DNS",
            v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 4, 0, &ipv4(NODE, OTHER, UDP, &ports(4789, 53))))),
            Kernel,
        ),
        ("frag needed cut short", v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 4, 0, &sent4[..22]))), Kernel),
        (
            "unreachable about a translated packet",
            v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 3, 0, &left4(40001)))),
            Taken,
        ),
        (
            "time exceeded about a translated packet",
            v4(&ipv4(OTHER, NODE, ICMP, &icmp(11, 0, 0, &left4(40001)))),
            Taken,
        ),
        (
            "unreachable about the kernel's own packet",
            v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 3, 0, &left4(39999)))),
            Kernel,
        ),
        (
            "unreachable about a service's answer",
            v4(&ipv4(OTHER, NODE, ICMP, &icmp(3, 3, 0, &left4(30080)))),
            Taken,
        ),
        (
            "unreachable about a service's answer over IPv6",
            v6(&ipv6(OTHER6, NODE6, ICMPV6, &icmp(1, 4, 0, &left6))),
            Taken,
        ),
        ("packet too big about our tunnel", v6(&ipv6(OTHER6, NODE6, ICMPV6, &icmp(2, 0, 0, &sent6))), Taken),
        ("packet too big cut short", v6(&ipv6(OTHER6, NODE6, ICMPV6, &icmp(2, 0, 0, &sent6[..42]))), Kernel),
        ("a neighbour solicitation", v6(&ipv6(OTHER6, NODE6, ICMPV6, &icmp(135, 0, 0, &[0; 16]))), Kernel),
        ("ARP", ethernet(0x0806, &[0; 28]), Kernel),
        ("a frame with a VLAN tag", tagged(7, IPV4, &vxlan4()), Kernel),
        ("an Ethernet header alone", ethernet(IPV4, &[]), Kernel),
        ("an IPv4 header cut short", v4(&vxlan4()[..19]), Kernel),
        ("ports cut short", v4(&vxlan4()[..23]), Kernel),
        ("an IPv4 header of four words", v4(&[&[0x44], &vxlan4()[1..]].concat()), Kernel),
        ("IPv6 that says it is IPv4", v4(&ipv6(OTHER6, NODE6, UDP, &ports(1, 4789))), Kernel),
    ];
    let (program, _socket) = program(Role::Uplink, 0);
    for (what, frame, expected) in table {
        assert_eq!(run(&program, &frame), expected, "{what}");
    }
}

#[test]
fn a_connection_that_the_kernel_has_stays_the_kernels_though_its_port_is_taken() {
    for address in ["127.0.0.1", "::1"] {
        let own: std::net::IpAddr = address.parse().unwrap();
        let listener = std::net::TcpListener::bind((own, 0)).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let [near, far] = [client.local_addr().unwrap().port(), listener.local_addr().unwrap().port()];
        let program = Program::load(Role::Uplink, 0, 1, 1).expect("loading the program wants root");
        let socket = Socket::new("test").unwrap();
        program.bind(0, socket.as_fd()).unwrap();
        let taken = SteerRules {
            snat_ranges: [near, far].map(|port| SnatRange { address: own, first: port, last: port }).to_vec(),
            ..SteerRules::default()
        };
        apply(&program, &mut Entries::new(), &taken.entries().unwrap()).unwrap();
        let verdict = |source: u16, dest: u16, protocol: u8| {
            let packet = ports(source, dest);
            run(
                &program,
                &match own {
                    std::net::IpAddr::V4(_) => ethernet(IPV4, &ipv4(address, address, protocol, &packet)),
                    std::net::IpAddr::V6(_) => ethernet(IPV6, &ipv6(address, address, protocol, &packet)),
                },
            )
        };
        assert_eq!(verdict(far, near, TCP), Verdict::Kernel, "{address}: to the one who opened it");
        assert_eq!(verdict(near, far, TCP), Verdict::Kernel, "{address}: to the other end");
        assert_eq!(verdict(1, near, TCP), Verdict::Taken, "{address}: another connection");
        assert_eq!(verdict(1, far, TCP), Verdict::Taken, "{address}: who listens has no connection yet");
        assert_eq!(verdict(far, near, UDP), Verdict::Taken, "{address}: another protocol");
    }
}

/// A fragment of an IPv6 packet: offset in units of eight bytes, whether more follow, the packet's identification.
fn fragment6(src: &str, dst: &str, next: u8, offset: u16, more: bool, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![next, 0];
    body.extend((offset << 3 | u16::from(more)).to_be_bytes());
    body.extend(id.to_be_bytes());
    body.extend(payload);
    ipv6(src, dst, 44, &body)
}

#[test]
fn later_fragments_go_where_the_first_went() {
    let (program, _socket) = program(Role::Uplink, 0);
    let go4 = |src: &str, protocol: u8, offset: u16, payload: &[u8]| {
        let more = if offset == 0 { 0x2000 } else { 0 };
        run(&program, &ethernet(IPV4, &ipv4_with(src, NODE, protocol, 0, offset | more, payload)))
    };
    use Verdict::{Kernel, Taken};
    assert_eq!(go4(OTHER, UDP, 185, &[0; 8]), Kernel, "nobody has seen its first fragment");
    assert_eq!(go4(OTHER, UDP, 0, &ports(80, 40000)), Taken, "to a translated connection");
    assert_eq!(go4(OTHER, UDP, 185, &[0; 8]), Taken);
    assert_eq!(go4(OTHER, TCP, 185, &[0; 8]), Kernel, "of another protocol");
    assert_eq!(go4("192.0.2.98", UDP, 185, &[0; 8]), Kernel, "of another sender");
    assert_eq!(go4(OTHER, TCP, 0, &ports(80, 30080)), Taken, "to a node port");
    assert_eq!(go4(OTHER, TCP, 185, &[0; 8]), Taken);
    assert_eq!(go4(OTHER, ICMP, 0, &icmp(8, 0, 40001, &[])), Kernel, "a ping of the node");
    assert_eq!(go4(OTHER, ICMP, 185, &[0; 8]), Kernel);
    assert_eq!(go4(OTHER, ICMP, 0, &icmp(0, 0, 40001, &[])), Taken, "the answer to a translated ping");
    assert_eq!(go4(OTHER, ICMP, 185, &[0; 8]), Taken);

    let go6 = |id: u32, offset: u16, more: bool, payload: &[u8]| {
        run(&program, &ethernet(IPV6, &fragment6(OTHER6, NODE6, UDP, offset, more, id, payload)))
    };
    assert_eq!(go6(7, 185, false, &[0; 8]), Kernel);
    assert_eq!(go6(7, 0, true, &ports(1, 30053)), Taken);
    assert_eq!(go6(7, 185, false, &[0; 8]), Taken);
    assert_eq!(go6(8, 185, false, &[0; 8]), Kernel, "of another packet");
    assert_eq!(go6(9, 0, false, &ports(1, 30053)), Kernel, "no fragment but for its header");
    assert_eq!(go6(9, 0, true, &ports(1, 30053)[..3]), Kernel, "ports cut short");
}

#[test]
fn an_uplink_without_a_socket_is_closed_to_connections_alone() {
    let (program, _socket) = program(Role::Uplink, 0);
    program.unbind(0).unwrap();
    program.unbind(0).expect("unbinding twice is fine");
    let sent = ipv4(NODE, OTHER, TCP, &ports(40001, 443));
    let tunnelled = ipv4(NODE, OTHER, UDP, &ports(50000, 4789));
    let to = |dst, port| ipv4(OTHER, dst, TCP, &ports(443, port));
    let table = [
        ("a tunnel's packet", vxlan4(), Verdict::Kernel),
        (
            "frag needed about our tunnel",
            ipv4(OTHER, NODE, ICMP, &icmp(3, 4, 0, &tunnelled)),
            Verdict::Kernel,
        ),
        ("ssh", to(NODE, 22), Verdict::Kernel),
        ("the answer to a translated packet", to(NODE, 40001), Verdict::Dropped),
        ("a client of a node port", to(NODE, 30080), Verdict::Dropped),
        ("a packet to a pod", to("10.244.3.4", 22), Verdict::Dropped),
        (
            "the answer to a translated ping",
            ipv4(OTHER, NODE, ICMP, &icmp(0, 0, 40001, &[])),
            Verdict::Dropped,
        ),
        (
            "an error about a translated packet",
            ipv4(OTHER, NODE, ICMP, &icmp(3, 3, 0, &sent)),
            Verdict::Dropped,
        ),
    ];
    for (what, packet, expected) in table {
        assert_eq!(run(&program, &ethernet(IPV4, &packet)), expected, "{what}");
    }
}

#[test]
fn an_uplink_whose_socket_closed_is_one_without() {
    let (program, socket) = program(Role::Uplink, 0);
    assert_eq!(run(&program, &ethernet(IPV4, &vxlan4())), Verdict::Taken);
    drop(socket);
    assert_eq!(run(&program, &ethernet(IPV4, &vxlan4())), Verdict::Kernel);
}

#[test]
fn a_pod_is_taken_whole_and_closed_without_a_socket() {
    let (program, _socket) = program(Role::Pod, 0);
    let frames =
        [ethernet(IPV4, &vxlan4()), ethernet(0x0806, &[0; 28]), ethernet(0x88cc, &[]), tagged(7, IPV4, &[1])];
    for frame in &frames {
        assert_eq!(run(&program, frame), Verdict::Taken);
    }
    program.unbind(0).unwrap();
    for frame in &frames {
        assert_eq!(run(&program, frame), Verdict::Dropped);
    }
}

#[test]
fn pods_share_a_program_and_no_sockets() {
    // Programs are tried out as if by the interface 1.
    let frame = ethernet(IPV4, &vxlan4());
    let (one, other) =
        (Program::load(Role::Pod, 0, 1, 1).unwrap(), Program::load(Role::Pod, 0, 2, 2).unwrap());
    assert_eq!(one.id(), other.id());
    let socket = Socket::new("test").unwrap();
    other.bind(0, socket.as_fd()).unwrap();
    other.bind(1, socket.as_fd()).unwrap();
    assert!(one.bind(1, socket.as_fd()).is_err(), "it has one queue");
    assert_eq!(run(&one, &frame), Verdict::Dropped);
    one.bind(0, socket.as_fd()).unwrap();
    assert_eq!(run(&one, &frame), Verdict::Taken);
    // What comes next on the interface has sockets of its own.
    let next = Program::load(Role::Pod, 0, 1, 4).unwrap();
    assert!(next.serves() && !one.serves());
    assert_eq!(run(&next, &frame), Verdict::Dropped);
    next.bind(0, socket.as_fd()).unwrap();
    drop(one);
    assert_eq!(run(&next, &frame), Verdict::Taken);
    drop(next);
    assert_eq!(run(&other, &frame), Verdict::Dropped);
}

#[test]
fn only_the_configured_vlan_is_looked_into() {
    let (program, _socket) = program(Role::Uplink, 7);
    assert_eq!(run(&program, &tagged(7, IPV4, &vxlan4())), Verdict::Taken);
    assert_eq!(
        run(&program, &tagged(0xe007, IPV4, &vxlan4())),
        Verdict::Taken,
        "priority bits do not matter"
    );
    assert_eq!(run(&program, &tagged(8, IPV4, &vxlan4())), Verdict::Kernel);
    assert_eq!(run(&program, &tagged(7, IPV4, &vxlan4()[..19])), Verdict::Kernel);
    assert_eq!(run(&program, &ethernet(0x8100, &[0, 7, 8])), Verdict::Kernel);
}

#[test]
fn changed_rules_add_and_remove_only_what_changed() {
    let (program, _socket) = program(Role::Uplink, 0);
    let mut present = rules().entries().unwrap();
    let mut next = rules();
    next.tunnel_ports = vec![4789, 8472];
    next.prefixes[0].1 = 24;
    next.snat_ranges[0].first = 45000;
    let wanted = next.entries().unwrap();
    apply(&program, &mut present, &wanted).unwrap();
    assert_eq!(present, wanted);
    let verdict =
        |dst, protocol, port| run(&program, &ethernet(IPV4, &ipv4(OTHER, dst, protocol, &ports(1, port))));
    assert_eq!(verdict(NODE, UDP, 4789), Verdict::Taken);
    assert_eq!(verdict(NODE, UDP, 8472), Verdict::Taken);
    assert_eq!(verdict(NODE, UDP, 6081), Verdict::Kernel);
    assert_eq!(verdict("10.244.0.9", TCP, 80), Verdict::Taken);
    assert_eq!(verdict("10.244.1.9", TCP, 80), Verdict::Kernel);
    assert_eq!(verdict(NODE, TCP, 44999), Verdict::Kernel);
    assert_eq!(verdict(NODE, TCP, 45000), Verdict::Taken);
    apply(&program, &mut present, &Entries::new()).unwrap();
    assert_eq!(verdict(NODE, UDP, 4789), Verdict::Kernel);
    assert!(present.is_empty());
}

#[test]
fn a_rule_that_a_map_has_no_room_for_is_named() {
    let (program, _socket) = program(Role::Uplink, 0);
    let many = SteerRules { tunnel_ports: (1..=100).collect(), ..SteerRules::default() };
    let mut present = rules().entries().unwrap();
    let (at, _) = apply(&program, &mut present, &many.entries().unwrap()).unwrap_err();
    assert_eq!(at.0, Table::TunnelPorts);
    assert!(present.len() > rules().entries().unwrap().len(), "what was written is remembered");
}
