//! Objects survive the way over the socket and the way through a file.

#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

#[path = "roundtrip/stateful.rs"]
mod stateful;

use std::net::IpAddr;

use penstock_api::convert::{keys_from_proto, objects_from_proto};
use penstock_api::file::parse_objects;
use penstock_api::model::*;
use penstock_api::proto;
use penstock_wire::{MacAddr, Vni};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

fn names() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9._/-]{1,333}".prop_map(|text| text.parse().unwrap())
}

fn interfaces() -> impl Strategy<Value = InterfaceName> {
    "[a-zé][a-z0-9.@]{0,12}".prop_map(|text| text.parse().unwrap())
}

fn paths() -> impl Strategy<Value = FilePath> {
    "[ -~é]{1,40}".prop_map(|text| text.parse().unwrap())
}

fn stations() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1_u8..127, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d])),
        (0x2000_u16..0xff00, any::<[u16; 7]>())
            .prop_map(|(a, [b, c, d, e, f, g, h])| IpAddr::from([a, b, c, d, e, f, g, h])),
    ]
}

fn station_lists(least: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    btree_set(stations(), least..4).prop_map(|set| set.into_iter().collect())
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    (stations(), 0_u8..=128).prop_map(|(address, len)| {
        let len = if address.is_ipv4() { len % 33 } else { len };
        Prefix::new(ipnet::IpNet::new(address, len).unwrap().trunc()).unwrap()
    })
}

fn macs() -> impl Strategy<Value = UnicastMac> {
    any::<[u8; 6]>().prop_map(|mut bytes| {
        bytes[0] = bytes[0] & 0xfe | 2;
        UnicastMac::new(MacAddr(bytes)).unwrap()
    })
}

fn mtus() -> impl Strategy<Value = Option<u16>> {
    option::of(1280..=u16::MAX)
}

fn xdp_modes() -> impl Strategy<Value = XdpMode> {
    select(vec![XdpMode::Auto, XdpMode::Native, XdpMode::Generic])
}

fn uplinks() -> impl Strategy<Value = Uplink> {
    let copy = select(vec![CopyMode::Auto, CopyMode::ZeroCopy, CopyMode::Copy]);
    let busy_poll = (1_u32.., 1_u32..).prop_map(|(budget, timeout_us)| BusyPoll { budget, timeout_us });
    let tuning = (option::of(1_u32..), xdp_modes(), copy, option::of(busy_poll), option::of(1_u32..));
    (names(), interfaces(), tuning, station_lists(0)).prop_map(|(name, interface, tuning, addresses)| {
        let (queues, xdp, copy, busy_poll, tx_budget) = tuning;
        Uplink { name, interface, queues, xdp, copy, busy_poll, tx_budget, addresses }
    })
}

fn geneve_options() -> impl Strategy<Value = GeneveOption> {
    let data = (0_usize..=31).prop_flat_map(|words| vec(any::<u8>(), words * 4));
    (any::<u16>(), 0_u8..128, any::<bool>(), data).prop_map(|(class, kind, critical, data)| GeneveOption {
        class,
        kind,
        critical,
        data: OptionData::new(data).unwrap(),
    })
}

fn networks() -> impl Strategy<Value = Network> {
    let encapsulation = select(vec![Encapsulation::Vxlan, Encapsulation::Geneve, Encapsulation::None]);
    let travel = (encapsulation, any::<bool>(), vec(geneve_options(), 0..3), any::<Option<bool>>());
    let range = (btree_set(prefixes(), 0..4), station_lists(1), mtus(), option::of(0_u8..64));
    (names(), 0_u32..1 << 24, travel, range).prop_map(|(name, vni, travel, range)| {
        let (encapsulation, cross_subnet, geneve_options, udp_checksum) = travel;
        let (prefixes, gateways, mtu, dscp) = range;
        Network {
            name,
            vni: Vni::new(vni).unwrap(),
            prefixes: prefixes.into_iter().collect(),
            mtu,
            encapsulation,
            cross_subnet,
            gateways,
            geneve_options,
            udp_checksum,
            dscp,
        }
    })
}

fn sockets() -> impl Strategy<Value = SocketPath> {
    "/[a-z0-9/._-]{1,106}".prop_map(|path| path.parse().unwrap())
}

fn attachments() -> impl Strategy<Value = Attachment> {
    prop_oneof![
        interfaces().prop_map(|interface| Attachment::Veth { interface }),
        interfaces().prop_map(|interface| Attachment::Tap { interface }),
        (paths(), paths())
            .prop_filter("two files", |(receive, transmit)| receive != transmit)
            .prop_map(|(receive, transmit)| Attachment::Pcap { receive, transmit }),
        sockets().prop_map(|socket| Attachment::VhostUser {
            socket,
            role: SocketRole::Client,
            group: None,
            permissions: None
        }),
        (sockets(), option::of("[a-z0-9]{1,8}"), option::of(0_u32..=0o777)).prop_map(
            |(socket, group, permissions)| Attachment::VhostUser {
                socket,
                role: SocketRole::Server,
                group,
                permissions
            }
        ),
    ]
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    let wire = (attachments(), macs(), xdp_modes(), option::of(1_u32..));
    let place = (names(), names(), station_lists(1), mtus());
    (place, wire, option::of(names()), option::of(stateful::limits())).prop_map(
        |((name, network, addresses, mtu), wire, identity, limits)| {
            let (attachment, mac, xdp, queues) = wire;
            Endpoint { name, network, attachment, mac, addresses, mtu, xdp, queues, identity, limits }
        },
    )
}

fn peers() -> impl Strategy<Value = Peer> {
    (names(), stations(), option::of(macs()), option::of(1_u16..))
        .prop_map(|(name, address, mac, port)| Peer { name, address, mac, port })
}

fn routes() -> impl Strategy<Value = Route> {
    (names(), prefixes(), 0..4, names(), option::of(stations())).prop_map(
        |(network, prefix, kind, name, gateway)| {
            let via = match kind {
                0 => RouteTarget::Peer(name),
                1 => RouteTarget::Host,
                2 => RouteTarget::Blackhole,
                _ => RouteTarget::Uplink {
                    uplink: name,
                    gateway: gateway.filter(|gateway| gateway.is_ipv4() == prefix.is_ipv4()),
                },
            };
            Route { network, prefix, via }
        },
    )
}

fn objects() -> impl Strategy<Value = Object> {
    prop_oneof![
        uplinks().prop_map(Object::Uplink),
        networks().prop_map(Object::Network),
        endpoints().prop_map(Object::Endpoint),
        peers().prop_map(Object::Peer),
        routes().prop_map(Object::Route),
        stateful::identities().prop_map(Object::Identity),
        stateful::tiers().prop_map(Object::Tier),
        stateful::policies().prop_map(Object::Policy),
        stateful::services().prop_map(Object::Service),
        stateful::backends().prop_map(Object::Backends),
        stateful::nat_pools().prop_map(Object::NatPool),
        stateful::egress_ips().prop_map(Object::EgressIp),
    ]
}

/// Puts a value of a wrong type in the place of the `n`th value below `value`, if there is one.
fn spoil(value: &mut toml::Value, n: &mut usize) -> bool {
    let below: Vec<&mut toml::Value> = match value {
        toml::Value::Table(table) => table.iter_mut().map(|(_, value)| value).collect(),
        toml::Value::Array(values) => values.iter_mut().collect(),
        _ => Vec::new(),
    };
    for value in below {
        if *n == 0 {
            let wrong = if value.is_bool() { toml::Value::Integer(-1) } else { toml::Value::Boolean(true) };
            *value = wrong;
            return true;
        }
        *n -= 1;
        if spoil(value, n) {
            return true;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_object_survives_the_socket(object in objects()) {
        let bytes = proto::Object::from(&object).encode_to_vec();
        let message = proto::Object::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(objects_from_proto(vec![message]), Ok(vec![object]));
    }

    #[test]
    fn a_key_survives_the_socket(object in objects()) {
        let bytes = proto::Key::from(&object.key()).encode_to_vec();
        let message = proto::Key::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(keys_from_proto(vec![message]), Ok(vec![object.key()]));
    }

    #[test]
    fn an_object_survives_a_file(object in objects()) {
        let tables: Tables = [object.clone()].into_iter().collect();
        let text = toml::to_string(&tables).unwrap();
        prop_assert_eq!(parse_objects(&text, "t.toml"), Ok(vec![object]), "{}", text);
    }

    #[test]
    fn a_value_of_a_wrong_type_is_refused_with_a_mend(object in objects(), which in 0_usize..60) {
        let tables: Tables = [object].into_iter().collect();
        let mut file = toml::Value::try_from(&tables).unwrap();
        let mut n = which + 2;
        // The first two are the list of tables and its one row.
        if spoil(&mut file, &mut n) {
            let text = toml::to_string(&file).unwrap();
            let faults = parse_objects(&text, "t.toml").unwrap_err();
            let said = |text: &str| !text.is_empty() && !text.starts_with("see the example");
            prop_assert!(faults.iter().all(|f| said(&f.object) && said(&f.problem) && said(&f.mend)), "{:?}\n{}", faults, text);
        }
    }

    #[test]
    fn a_damaged_object_is_read_or_refused_with_a_mend(
        object in objects(),
        damages in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = proto::Object::from(&object).encode_to_vec();
        for (place, byte) in damages {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(message) = proto::Object::decode(bytes.as_slice())
            && let Err(faults) = objects_from_proto(vec![message])
        {
            let said = |text: &str| !text.is_empty() && !text.starts_with("see the example");
            prop_assert!(faults.iter().all(|f| said(&f.object) && said(&f.problem) && said(&f.mend)), "{:?}", faults);
        }
    }

    #[test]
    fn any_message_is_read_or_refused_with_a_reason(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(request) = proto::UpsertRequest::decode(bytes.as_slice()) {
            let sent = request.objects.len();
            match objects_from_proto(request.objects) {
                Ok(objects) => prop_assert_eq!(objects.len(), sent),
                Err(faults) => prop_assert!(faults.iter().all(|f| !f.object.is_empty() && !f.problem.is_empty() && !f.mend.is_empty())),
            }
        }
    }
}

#[test]
fn every_fault_of_a_request_is_named_with_its_object_key_and_mend() {
    let message = |object| proto::Object { object: Some(object) };
    let faults = objects_from_proto(vec![
        proto::Object { object: None },
        message(proto::object::Object::Network(proto::Network {
            name: "blue".to_owned(),
            vni: 1 << 24,
            prefixes: vec!["10.0.0.0/8".to_owned(), "10.0.0.1/8".to_owned()],
            mtu: Some(70000),
            encapsulation: 9,
            geneve_options: vec![proto::GeneveOption {
                class: 65536,
                kind: 256,
                data: vec![1],
                critical: false,
            }],
            dscp: Some(256),
            ..Default::default()
        })),
        message(proto::object::Object::Endpoint(proto::Endpoint {
            network: "red blue".to_owned(),
            mac: "ff:ff:ff:ff:ff:ff".to_owned(),
            ..Default::default()
        })),
        message(proto::object::Object::Peer(proto::Peer {
            name: "p".to_owned(),
            address: "192.0.2.1".to_owned(),
            ..Default::default()
        })),
        message(proto::object::Object::Peer(proto::Peer {
            name: "p".to_owned(),
            address: "0.0.0.0".to_owned(),
            ..Default::default()
        })),
    ])
    .unwrap_err();
    let found: Vec<String> = faults.iter().map(|fault| format!("{} {}", fault.object, fault.key)).collect();
    assert_eq!(
        found,
        [
            "object number 1 ",
            "network \"blue\" vni",
            "network \"blue\" prefixes[1]",
            "network \"blue\" mtu",
            "network \"blue\" encapsulation",
            "network \"blue\" geneve-options[0].class",
            "network \"blue\" geneve-options[0].kind",
            "network \"blue\" geneve-options[0].data",
            "network \"blue\" dscp",
            "endpoint number 3 name",
            "endpoint number 3 network",
            "endpoint number 3 attachment",
            "endpoint number 3 mac",
            "peer \"p\" address",
            "peer \"p\" ",
        ]
    );
    assert!(faults.iter().all(|fault| !fault.problem.is_empty() && !fault.mend.is_empty()));
}

#[test]
fn a_network_without_gateways_has_the_usual_ones() {
    let message = proto::Network { name: "n".to_owned(), vni: 1, ..Default::default() };
    let message = proto::Object { object: Some(proto::object::Object::Network(message)) };
    let objects = objects_from_proto(vec![message]).unwrap();
    let [Object::Network(network)] = objects.as_slice() else { panic!("one network, not {objects:?}") };
    assert_eq!(network.gateways, Network::default_gateways());
}
