//! ICMP errors: each passes to the sender of the packet that it quotes, if whoever sends it has had that packet.

use penstock_api::model::Object;
use penstock_dataplane::drop::Cause;
use penstock_dataplane::tables::desired::Change;
use penstock_dataplane::testbed::{Testbed, UPLINK};
use penstock_wire::parse::{Net, parse};
use penstock_wire::{MacAddr, icmp, icmpv6};

use super::stateful::{A, B, OUTSIDE, node, open, refused, tcp};
use super::{
    MAC_A, MAC_B, NEXT_HOP_MAC, NODE1, NODE2, POD_A, POD_B, UPLINK_MAC, icmp_of, router, udp4, udp6, v6,
};

const REMOTE: [u8; 4] = [10, 1, 2, 1];
const REMOTE_NEIGHBOUR: [u8; 4] = [10, 1, 2, 7];
const GATEWAY: [u8; 4] = [169, 254, 1, 1];
const ROUTER: [u8; 4] = [198, 51, 100, 1];

/// "Too big" from `src` to `dst` about the packet `quoted`.
fn error((to, from): (MacAddr, MacAddr), src: [u8; 4], dst: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let header =
        icmp::Repr { kind: icmp::UNREACHABLE, code: icmp::FRAGMENTATION_NEEDED, rest: [0, 0, 5, 0x78] };
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(from.0, to.0).ipv4(src, dst, 64);
    let message = [&header.emit(quoted)[..], quoted].concat();
    builder.write(&mut frame, etherparse::ip_number::ICMP, &message).unwrap();
    frame
}

/// The frame `inner` in the peer's tunnel to us.
fn in_tunnel(inner: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(NEXT_HOP_MAC.0, UPLINK_MAC.0);
    let mut frame = Vec::new();
    let vxlan = [8, 0, 0, 0, 0, 0, 100, 0];
    builder.ipv4(NODE2, NODE1, 64).udp(50_000, 4789).write(&mut frame, &[&vxlan, inner].concat()).unwrap();
    frame
}

/// From whom an error comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Via {
    PodB,
    Tunnel,
    Uplink,
}

/// By which way an error comes, and from which address.
type Sender = (Via, [u8; 4]);

fn send(node: &mut Testbed, via: Via, src: [u8; 4], dst: [u8; 4], quoted: &[u8]) -> Vec<Vec<u8>> {
    let inner = |from| error((router(NODE1), from), src, dst, quoted);
    match via {
        Via::PodB => node.through(POD_B, &inner(MAC_B), POD_A),
        Via::Tunnel => node.through(UPLINK, &in_tunnel(&inner(router(NODE2))), POD_A),
        Via::Uplink => node.through(UPLINK, &error((UPLINK_MAC, NEXT_HOP_MAC), src, dst, quoted), POD_A),
    }
}

/// A node on which pod a speaks with pod b, with a pod of the peer, and with somebody outside; and its packets, as they
/// left.
fn talkative() -> (Testbed, [Vec<u8>; 3]) {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    open(&mut node, client, server);
    let to_b = node.through(POD_A, &tcp(POD_A, client, server, "A"), POD_B).remove(0);
    let to_remote = node.through(POD_A, &udp4(MAC_A, A, REMOTE, 64, 10), UPLINK).remove(0);
    let outside = node.through(POD_A, &udp4(MAC_A, A, OUTSIDE, 64, 10), UPLINK).remove(0);
    (node, [to_b[14..].to_vec(), to_remote[64..].to_vec(), outside[14..].to_vec()])
}

#[test]
fn an_error_passes_if_its_sender_has_had_the_packet_that_it_quotes_and_from_nobody_else() {
    use Via::{PodB, Tunnel, Uplink};
    let (mut node, [to_b, to_remote, outside]) = talkative();
    let cases: [(&[u8], [u8; 4], &[Sender]); 3] = [
        (&to_b, A, &[(PodB, B)]),
        // The pod itself, its node, and its node's router where that has no other address.
        (&to_remote, A, &[(Tunnel, REMOTE), (Tunnel, REMOTE_NEIGHBOUR), (Tunnel, NODE2), (Tunnel, GATEWAY)]),
        // Whoever is on the way; the peer's node may be.
        (&outside, NODE1, &[(Uplink, OUTSIDE), (Uplink, ROUTER), (Uplink, NODE2)]),
    ];
    for (quoted, dst, passing) in cases {
        for via in [PodB, Tunnel, Uplink] {
            for src in [A, B, REMOTE, REMOTE_NEIGHBOUR, NODE1, NODE2, GATEWAY, ROUTER, OUTSIDE] {
                // What leaves a pod for the node's address is about nothing of the pod's network.
                let expected = usize::from(passing.contains(&(via, src)));
                let sent = send(&mut node, via, src, dst, quoted);
                assert_eq!(sent.len(), expected, "{via:?} {src:?} to {dst:?} about {quoted:?}");
            }
        }
    }
}

#[test]
fn a_pod_that_forges_an_error_is_caught_by_name() {
    let (mut node, [to_b, to_remote, _]) = talkative();
    let stations = (router(NODE1), MAC_B);
    // From an address that is not its own, and about a packet that was not for it.
    refused(&mut node, POD_B, &error(stations, ROUTER, A, &to_b), Cause::SpoofedSource);
    refused(&mut node, POD_B, &error(stations, REMOTE, A, &to_remote), Cause::SpoofedSource);
    refused(&mut node, POD_B, &error(stations, B, A, &to_remote), Cause::SpoofedSource);
    let by_tunnel = |src| in_tunnel(&error((router(NODE1), router(NODE2)), src, A, &to_b));
    refused(&mut node, UPLINK, &by_tunnel(REMOTE), Cause::SpoofedTunnelSource);
    refused(&mut node, UPLINK, &by_tunnel(B), Cause::SpoofedTunnelSource);
    let bare = error((UPLINK_MAC, NEXT_HOP_MAC), ROUTER, A, &to_remote);
    refused(&mut node, UPLINK, &bare, Cause::SpoofedSource);
    // An honest one about nothing is unsolicited, as ever.
    let mut other = to_b.clone();
    other[20..22].copy_from_slice(&1u16.to_be_bytes());
    refused(&mut node, POD_B, &error(stations, B, A, &other), Cause::Unsolicited);
}

#[test]
fn an_error_about_a_translated_packet_is_about_the_packet_as_it_was_sent() {
    let (mut node, [_, _, outside]) = talkative();
    let sent = send(&mut node, Via::Uplink, ROUTER, NODE1, &outside);
    assert_eq!(icmp_of(&sent[0]), (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED));
    let Net::V4(flow) = parse(&sent[0]).unwrap().net else { panic!("no IPv4 packet") };
    assert_eq!((flow.src.octets(), flow.dst.octets()), (ROUTER, A));
    // Behind Ethernet, IP and ICMP: the quoted packet's addresses and ports.
    let quoted = &sent[0][14 + 20 + 8..];
    assert_eq!((&quoted[12..16], &quoted[16..20]), (&A[..], &OUTSIDE[..]));
    assert_eq!(quoted[20..22], 1000u16.to_be_bytes());
}

#[test]
fn an_error_about_a_connection_that_policy_has_cut_is_cut_with_it() {
    let (mut node, [to_b, ..]) = talkative();
    assert_eq!(send(&mut node, Via::PodB, B, A, &to_b).len(), 1);
    let allow = node.desired.policies().next().unwrap().clone();
    let mut deny = allow.clone();
    deny.rules.clear();
    node.desired.apply(Change::Upsert(vec![Object::Policy(deny)])).unwrap();
    node.publish();
    refused(&mut node, POD_B, &error((router(NODE1), MAC_B), B, A, &to_b), Cause::IngressPolicy);
    node.desired.apply(Change::Upsert(vec![Object::Policy(allow)])).unwrap();
    node.publish();
    assert_eq!(send(&mut node, Via::PodB, B, A, &to_b).len(), 1);
}

#[test]
fn an_ipv6_error_is_from_an_address_of_its_sender_too() {
    let mut node = node();
    let (a, b) = (v6("fd00:1:1::1"), v6("fd00:1:1::2"));
    let mut question = udp6(MAC_A, b, a, 64, 10);
    question[6..12].copy_from_slice(&MAC_B.0);
    let quoted = node.through(POD_B, &question, POD_A).remove(0)[14..].to_vec();
    let from = |src: std::net::Ipv6Addr| {
        let header = icmpv6::Repr { kind: icmpv6::TOO_BIG, code: 0, rest: [0, 0, 5, 0x78] };
        let message = [&header.emit(src, b, &quoted)[..], &quoted].concat();
        let mut frame = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2(MAC_A.0, router(NODE1).0);
        let builder = builder.ipv6(src.octets(), b.octets(), 64);
        builder.write(&mut frame, etherparse::ip_number::IPV6_ICMP, &message).unwrap();
        frame
    };
    assert_eq!(icmp_of(&node.through(POD_A, &from(a), POD_B)[0]), (icmpv6::TOO_BIG, 0));
    for forged in ["fe80::2", "fe80::1", "fd00:1:2::1", "2001:db8::1"] {
        refused(&mut node, POD_A, &from(v6(forged)), Cause::SpoofedSource);
    }
}
