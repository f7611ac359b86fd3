//! The parser's answers, and the evaluator held to a naive one that never sees the bytes.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|why| panic!("{text:?}: {why}"))
}

/// A packet in words, from which both the bytes and the naive answers are made.
#[derive(Debug, Clone)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    carries: Carries,
}

#[derive(Debug, Clone)]
enum Carries {
    Ports { protocol: u8, source: u16, destination: u16 },
    Echo,
    Tunnel { geneve: bool, vni: u32, frame: Box<Frame> },
}

#[derive(Debug, Clone)]
enum Frame {
    Ip(Packet),
    Arp,
    Runt,
}

fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        match self {
            Frame::Runt => bytes.extend([8, 0, 0x45]),
            Frame::Arp => {
                bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                bytes.extend([0; 20]);
            }
            Frame::Ip(packet) => packet.append_to(&mut bytes),
        }
        bytes
    }
}

impl Packet {
    fn protocol(&self) -> u8 {
        match self.carries {
            Carries::Ports { protocol, .. } => protocol,
            Carries::Echo if self.source.is_ipv4() => 1,
            Carries::Echo => 58,
            Carries::Tunnel { .. } => 17,
        }
    }

    fn ports(&self) -> Option<(u16, u16)> {
        match self.carries {
            Carries::Ports { source, destination, .. } => Some((source, destination)),
            Carries::Echo => None,
            Carries::Tunnel { geneve, .. } => Some((50000, if geneve { 6081 } else { 4789 })),
        }
    }

    fn payload(&self) -> Vec<u8> {
        let Some((source, destination)) = self.ports() else {
            let request = if self.source.is_ipv4() { 8 } else { 128 };
            return vec![request, 0, 0, 0, 0, 7, 0, 1];
        };
        let mut payload = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let mut inside = Vec::new();
        if let Carries::Tunnel { geneve, vni, frame } = &self.carries {
            inside.extend(if *geneve { [0, 0, 0x65, 0x58] } else { [8, 0, 0, 0] });
            inside.extend((vni << 8).to_be_bytes());
            inside.extend(frame.bytes());
        }
        match self.protocol() {
            6 => payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0, 64, 0, 0, 0, 0]),
            17 => {
                payload.extend((8 + inside.len() as u16).to_be_bytes());
                payload.extend([0, 0]);
            }
            _ => payload.extend([0; 8]),
        }
        payload.extend(inside);
        payload
    }

    fn append_to(&self, bytes: &mut Vec<u8>) {
        let payload = self.payload();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + payload.len() as u16).to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, self.protocol(), 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let checksum = ones_complement(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                bytes.extend([8, 0]);
                bytes.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend((payload.len() as u16).to_be_bytes());
                bytes.extend([self.protocol(), 64]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => unreachable!("a packet has one family"),
        }
        bytes.extend(payload);
    }
}

fn udp(source: &str, destination: &str, sport: u16, dport: u16) -> Frame {
    Frame::Ip(Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        carries: Carries::Ports { protocol: 17, source: sport, destination: dport },
    })
}

fn in_tunnel(vni: u32, frame: Frame) -> Frame {
    Frame::Ip(Packet {
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        carries: Carries::Tunnel { geneve: false, vni, frame: Box::new(frame) },
    })
}

#[test]
fn the_naive_frames_are_sound() {
    for frame in [udp("10.0.0.1", "10.0.0.2", 1, 2), udp("fd00::1", "fd00::2", 1, 2), Frame::Arp] {
        penstock_wire::parse::parse(&frame.bytes()).unwrap();
    }
    penstock_wire::parse::parse(&Frame::Runt.bytes()).unwrap_err();
}

#[test]
fn terms_say_what_they_say_elsewhere() {
    let frame = udp("10.1.0.7", "10.2.0.9", 5353, 53).bytes();
    for yes in [
        "",
        "  ",
        "udp",
        "proto udp",
        "proto 17",
        "ip",
        "host 10.1.0.7",
        "host 10.2.0.9",
        "src host 10.1.0.7",
        "src 10.1.0.7",
        "ip src 10.1.0.7",
        "dst net 10.2.0.0/16",
        "net 10.0.0.0/8",
        "port 53",
        "dst port 53",
        "udp src port 5353",
        "udp port 53 and not host 10.1.0.8",
        "tcp or udp",
        "!tcp&&udp || arp".replace("&&", " && ").as_str(),
        "not(tcp or arp)",
        "tcp and arp or udp",
    ] {
        assert!(filter(yes).matches(&frame), "{yes:?}");
    }
    for no in [
        "tcp",
        "arp",
        "ip6",
        "icmp",
        "src host 10.2.0.9",
        "dst 10.1.0.7",
        "tcp port 53",
        "src port 53",
        "vni 7",
        "inner (udp)",
        "net 10.3.0.0/16",
        "not udp",
        "udp and (tcp or arp)",
    ] {
        assert!(!filter(no).matches(&frame), "{no:?}");
    }
}

#[test]
fn inner_looks_into_the_tunnel_and_only_there() {
    let frame = in_tunnel(7, udp("fd00::1", "fd00::2", 1, 53)).bytes();
    for yes in ["vni 7", "inner (ip6 and udp port 53)", "ip and port 4789", "vni 7 and inner(not ip)"] {
        assert!(filter(yes).matches(&frame), "{yes:?}");
    }
    for no in ["vni 8", "port 53", "inner (vni 7)", "inner (port 4789)", "ip6"] {
        assert!(!filter(no).matches(&frame), "{no:?}");
    }
}

#[test]
fn a_mistake_is_named_with_its_place() {
    let said = |text: &str| text.parse::<Filter>().unwrap_err().to_string();
    assert_eq!(said("port http"), "at character 6: \"http\" where a port: 0 to 65535 should stand");
    assert_eq!(said("host"), "at character 5: the end where an address, such as 10.1.0.7 should stand");
    assert_eq!(said("(tcp"), "at character 5: the end where `)`, `and` or `or` should stand");
    assert_eq!(said("tcp udp"), "at character 5: \"udp\" where `and`, `or` or the end should stand");
    assert!(said("net 10.1.0.7/16").starts_with("at character 5: \"10.1.0.7/16\" where a prefix without"));
    assert!(said("tcp or").starts_with("at character 7: the end where a term"));
    assert!(said("é").starts_with("at character 1: \"é\" where a term"));
    for bad in
        ["ip host fd00::1", "tcp host 10.0.0.1", "ip port 1", "vni 16777216", "proto 256", "inner tcp", ")"]
    {
        assert!(bad.parse::<Filter>().is_err(), "{bad:?}");
    }
}

#[test]
fn nesting_and_length_are_bounded() {
    let nested = |depth: usize| format!("{}tcp{}", "(".repeat(depth), ")".repeat(depth));
    assert!(nested(MAX_DEPTH).parse::<Filter>().is_ok());
    assert!(matches!(nested(MAX_DEPTH + 1).parse::<Filter>(), Err(FilterError::TooDeep { .. })));
    assert!(matches!("not ".repeat(1000).parse::<Filter>(), Err(FilterError::TooDeep { .. })));
    assert_eq!(" ".repeat(MAX_LEN + 1).parse::<Filter>(), Err(FilterError::TooLong { len: MAX_LEN + 1 }));
}

#[test]
fn nothing_holds_for_a_malformed_frame_but_the_opposite_does() {
    let frame = Frame::Runt.bytes();
    assert!(filter("").matches(&frame));
    assert!(!filter("ip").matches(&frame));
    assert!(filter("not ip").matches(&frame));
}

/// An expression written and answered without the crate's own types.
#[derive(Debug, Clone)]
enum Naive {
    Word(&'static str),
    Host(&'static str, IpAddr),
    Net(&'static str, IpNet),
    Port(&'static str, &'static str, u16),
    Proto(u8),
    Vni(u32),
    Not(Box<Naive>),
    And(Box<Naive>, Box<Naive>),
    Or(Box<Naive>, Box<Naive>),
    Inner(Box<Naive>),
}

impl Naive {
    fn text(&self) -> String {
        match self {
            Naive::Word(word) => (*word).to_owned(),
            Naive::Host(side, address) => format!("{side} host {address}"),
            Naive::Net(side, net) => format!("{side} net {net}"),
            Naive::Port(protocol, side, port) => format!("{protocol} {side} port {port}"),
            Naive::Proto(number) => format!("proto {number}"),
            Naive::Vni(vni) => format!("vni {vni}"),
            Naive::Not(a) => format!("not ({})", a.text()),
            Naive::And(a, b) => format!("({}) and ({})", a.text(), b.text()),
            Naive::Or(a, b) => format!("({}) or ({})", a.text(), b.text()),
            Naive::Inner(a) => format!("inner ({})", a.text()),
        }
    }

    fn holds(&self, frame: &Frame) -> bool {
        match self {
            Naive::Not(a) => return !a.holds(frame),
            Naive::And(a, b) => return a.holds(frame) & b.holds(frame),
            Naive::Or(a, b) => return a.holds(frame) | b.holds(frame),
            Naive::Word("arp") => return matches!(frame, Frame::Arp),
            _ => {}
        }
        let Frame::Ip(packet) = frame else { return false };
        let either = |side: &str, source: bool, destination: bool| match side {
            "src" => source,
            "dst" => destination,
            _ => source || destination,
        };
        let v4 = packet.source.is_ipv4();
        match self {
            Naive::Word(word) => match (*word, packet.protocol()) {
                ("ip", _) => v4,
                ("ip6", _) => !v4,
                ("tcp", 6) | ("udp", 17) | ("sctp", 132) => true,
                ("icmp", 1) => v4,
                ("icmp6", 58) => !v4,
                _ => false,
            },
            Naive::Host(side, address) => {
                either(side, packet.source == *address, packet.destination == *address)
            }
            Naive::Net(side, net) => {
                either(side, net.contains(&packet.source), net.contains(&packet.destination))
            }
            Naive::Port(protocol, side, port) => {
                let narrowed = match *protocol {
                    "tcp" => packet.protocol() == 6,
                    "udp" => packet.protocol() == 17,
                    "sctp" => packet.protocol() == 132,
                    _ => true,
                };
                packet.ports().is_some_and(|(s, d)| narrowed && either(side, s == *port, d == *port))
            }
            Naive::Proto(number) => packet.protocol() == *number,
            Naive::Vni(asked) => matches!(packet.carries, Carries::Tunnel { vni, .. } if vni == *asked),
            Naive::Inner(a) => match &packet.carries {
                // Less than an Ethernet header in the tunnel is malformed, which only a negation holds for.
                Carries::Tunnel { frame, .. } => a.holds(frame),
                _ => false,
            },
            Naive::Not(_) | Naive::And(..) | Naive::Or(..) => unreachable!("answered above"),
        }
    }
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(vec!["10.0.0.1", "10.0.1.1", "172.16.0.1", "fd00::1", "fd00:1::1"])
        .prop_map(|text| text.parse().unwrap())
}

fn naive() -> impl Strategy<Value = Naive> {
    let side = || prop::sample::select(vec!["", "src", "dst"]);
    let leaf = prop_oneof![
        prop::sample::select(vec!["arp", "ip", "ip6", "tcp", "udp", "sctp", "icmp", "icmp6"])
            .prop_map(Naive::Word),
        (side(), addresses()).prop_map(|(side, address)| Naive::Host(side, address)),
        (side(), addresses(), 0_u8..=32)
            .prop_map(|(side, address, len)| Naive::Net(side, IpNet::new(address, len).unwrap().trunc())),
        (prop::sample::select(vec!["", "tcp", "udp", "sctp"]), side(), 1_u16..4)
            .prop_map(|(protocol, side, port)| Naive::Port(protocol, side, port)),
        prop::sample::select(vec![1_u8, 6, 17, 58, 132]).prop_map(Naive::Proto),
        (1_u32..4).prop_map(Naive::Vni),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| Naive::Not(Box::new(a))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Naive::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Naive::Or(Box::new(a), Box::new(b))),
            inner.prop_map(|a| Naive::Inner(Box::new(a))),
        ]
    })
}

fn frames() -> impl Strategy<Value = Frame> {
    let ends = || {
        (addresses(), addresses())
            .prop_filter("one family", |(source, destination)| source.is_ipv4() == destination.is_ipv4())
    };
    let carries = prop_oneof![
        Just(Carries::Echo),
        (prop::sample::select(vec![6_u8, 17, 132]), 1_u16..4, 1_u16..4)
            .prop_map(|(protocol, source, destination)| Carries::Ports { protocol, source, destination }),
    ];
    let plain = (ends(), carries)
        .prop_map(|((source, destination), carries)| Frame::Ip(Packet { source, destination, carries }));
    let leaf = prop_oneof![6 => plain, 1 => Just(Frame::Arp), 1 => Just(Frame::Runt)];
    leaf.prop_recursive(2, 3, 1, move |frame| {
        (ends(), any::<bool>(), 1_u32..4, frame).prop_map(|((source, destination), geneve, vni, frame)| {
            let carries = Carries::Tunnel { geneve, vni, frame: Box::new(frame) };
            Frame::Ip(Packet { source, destination, carries })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_answers_as_the_naive_one(naive in naive(), frame in frames()) {
        let text = naive.text();
        prop_assert_eq!(filter(&text).matches(&frame.bytes()), naive.holds(&frame), "{}", text);
    }

    #[test]
    fn any_bytes_are_answered(naive in naive(), mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        filter(&naive.text()).matches(&bytes);
        if bytes.len() > 14 {
            bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
            filter(&naive.text()).matches(&bytes);
        }
    }

    #[test]
    fn a_frame_with_spoilt_bytes_is_answered(
        naive in naive(), frame in frames(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = frame.bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        filter(&naive.text()).matches(&bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9 ()!./:é]{0,40}") {
        if let Ok(filter) = text.parse::<Filter>() {
            prop_assert_eq!(filter.to_string().parse::<Filter>(), Ok(filter));
        }
    }
}
