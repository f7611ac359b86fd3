//! A connection table that strangers fill over and over, and those who go on in it.

use penstock_dataplane::drop::Cause;
use penstock_dataplane::testbed::{Datagram, Sizes};

use super::stateful::{A, B, node_of, open, pass, tcp};
use super::{MAC_B, NODE1, POD_A, POD_B, router};

/// Connections that fit.
const CAPACITY: u32 = 4096;
/// Connections that both sides have agreed on.
const ESTABLISHED: u16 = 1024;
/// Connections that come and stay without an answer.
const STRANGERS: u32 = 200_000;
/// Strangers between two looks at an established connection.
const A_LOOK: u32 = 100;

/// The first packet of a connection of its own: two in three are datagrams, the third begins a handshake.
fn stranger(number: u32) -> Vec<u8> {
    let (sport, dport) = (1024 + (number % 60_000) as u16, 7000 + (number / 60_000) as u16);
    if number.is_multiple_of(3) {
        return tcp(POD_B, (B, sport), (A, dport), "S");
    }
    let (dst_mac, src_mac) = (router(NODE1), MAC_B);
    Datagram { dst_mac, src_mac, src: B, ..Datagram::from_pod_a(A, sport, dport) }.frame()
}

#[test]
fn a_flood_of_new_connections_leaves_the_established_ones_alone() {
    let mut node = node_of(Sizes { flows: 4096, chunks: 4096, connections: Some(CAPACITY) });
    let client = |number: u32| (A, 40_000 + (number % u32::from(ESTABLISHED)) as u16);
    let server = (B, 5432);
    (0..ESTABLISHED.into()).for_each(|number| open(&mut node, client(number), server));
    for number in 0..STRANGERS {
        node.deliver(POD_B, &stranger(number));
        if number.is_multiple_of(A_LOOK) {
            node.sent(POD_A);
            let client = client(number / A_LOOK);
            pass(&mut node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
            pass(&mut node, POD_B, &tcp(POD_B, server, client, "A"), POD_A);
        }
    }
    node.sent(POD_A); // The last ones are in their turn.
    let table = &node.tracker.as_ref().unwrap().table;
    let counts = table.counts();
    assert_eq!(node.worker.drops(Cause::ConnectionsFull), 0, "everybody found a place: {counts:?}");
    assert_eq!(counts.created, u64::from(STRANGERS) + u64::from(ESTABLISHED), "{counts:?}");
    assert!(counts.early_dropped >= u64::from(STRANGERS - CAPACITY), "strangers gave way: {counts:?}");
    let mut assured = Vec::with_capacity(CAPACITY as usize);
    table.list(0, &mut assured, |connection| connection.status.is_assured());
    assert_eq!(assured.len(), usize::from(ESTABLISHED), "no established connection was lost");
}
