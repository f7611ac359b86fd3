//! What ends connections and what only looks like it, packet by packet.

use penstock_dataplane::conntrack::State;
use penstock_dataplane::testbed::Testbed;

use super::stateful::{A, B, node, open, pass, tcp};
use super::{MAC_A, MAC_B, NODE1, POD_A, POD_B, router};

/// Chunk types of RFC 9260 section 3.2.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// Ticks after which known flows tell their connection that they go on.
const PERIOD: u64 = 1 << 31;

/// An IPv4 packet of some protocol from a pod to its gateway; `more` and `offset` as fragments have them.
fn packet(from: u16, protocol: u8, payload: &[u8], more: bool, offset: u16) -> Vec<u8> {
    let (mac, src, dst) = if from == POD_A { (MAC_A, A, B) } else { (MAC_B, B, A) };
    let more: u16 = if more { 1 << 13 } else { 0 };
    let part = more + offset / 8;
    let length = (20 + payload.len() as u16).to_be_bytes();
    let header = [&[0x45, 0][..], &length, &[0, 9], &part.to_be_bytes(), &[64, protocol, 0, 0], &src, &dst];
    let mut frame = [&router(NODE1).0[..], &mac.0, &[8, 0], &header.concat(), payload].concat();
    super::mend_ipv4(&mut frame);
    frame
}

/// A packet of the association that pod `b` opens to pod `a`.
fn sctp(from: u16, chunks: &[u8]) -> Vec<u8> {
    let [b, a] = [5000u16, 6000].map(u16::to_be_bytes);
    let ports = if from == POD_B { [b, a] } else { [a, b] };
    let mut segment = [ports.concat(), vec![0; 8]].concat();
    chunks.iter().for_each(|&kind| segment.extend([kind, 0, 0, 8, 1, 2, 3, 4]));
    let crc = penstock_wire::crc32c::crc32c(&segment).to_le_bytes();
    segment[8..12].copy_from_slice(&crc);
    packet(from, 132, &segment, false, 0)
}

fn says(node: &mut Testbed, from: u16, chunks: &[u8]) {
    let to = if from == POD_A { POD_B } else { POD_A };
    assert_eq!(node.through(from, &sctp(from, chunks), to).len(), 1, "{chunks:?} passes");
}

fn states(node: &Testbed) -> Vec<State> {
    let mut found = Vec::with_capacity(16);
    node.tracker.as_ref().unwrap().table.list(0, &mut found, |_| true);
    found.iter().map(|connection| connection.status.state).collect()
}

fn associated() -> Testbed {
    let mut node = node();
    says(&mut node, POD_B, &[INIT]);
    says(&mut node, POD_A, &[INIT_ACK]);
    says(&mut node, POD_B, &[COOKIE_ECHO, DATA]);
    says(&mut node, POD_A, &[COOKIE_ACK, SACK]);
    for _ in 0..3 {
        says(&mut node, POD_B, &[DATA]);
        says(&mut node, POD_A, &[SACK, DATA]);
    }
    assert_eq!(states(&node), [State::SctpEstablished]);
    assert!(node.worker.counts().hits >= 2, "an open association takes the fast path");
    node
}

#[test]
fn a_shutdown_behind_an_acknowledgement_leaves_the_fast_path_and_is_heard() {
    let mut node = associated();
    says(&mut node, POD_B, &[SACK, SHUTDOWN]);
    assert_eq!(states(&node), [State::SctpShutdownSent]);
}

#[test]
fn an_association_goes_on_after_an_abort_that_neither_side_sent() {
    let mut node = associated();
    says(&mut node, POD_B, &[ABORT]);
    assert_eq!(states(&node), [State::SctpClosed]);
    node.turn_after(PERIOD);
    says(&mut node, POD_B, &[DATA]);
    assert_eq!(states(&node), [State::SctpClosed]);
    says(&mut node, POD_A, &[SACK]);
    assert_eq!(states(&node), [State::SctpEstablished]);
}

#[test]
fn a_connection_of_known_flows_goes_on_after_a_reset_that_neither_side_sent() {
    let mut node = node();
    let (client, server) = ((A, 40000), (B, 5432));
    open(&mut node, client, server);
    let goes_on = |node: &mut Testbed| {
        pass(node, POD_B, &tcp(POD_B, server, client, "A"), POD_A);
        pass(node, POD_A, &tcp(POD_A, client, server, "A"), POD_B);
    };
    (0..3).for_each(|_| goes_on(&mut node));
    assert!(node.worker.counts().hits >= 4);
    pass(&mut node, POD_A, &tcp(POD_A, client, server, "R"), POD_B);
    assert_eq!(states(&node), [State::Close]);
    node.turn_after(PERIOD);
    goes_on(&mut node);
    assert_eq!(states(&node), [State::Established]);
}

#[test]
fn what_a_later_fragment_carries_is_not_taken_for_flags() {
    let mut node = node();
    open(&mut node, (A, 40000), (B, 5432));
    let whole = tcp(POD_A, (A, 40000), (B, 5432), "A");
    // The segment that the helper makes, and more of it in a second fragment, full of what would be resets.
    let first = [&whole[34..], &[0; 3]].concat();
    let (fits, _) = first.split_at(first.len() / 8 * 8);
    let first = packet(POD_A, 6, fits, true, 0);
    let later = packet(POD_A, 6, &[0x04; 24], false, fits.len() as u16);
    assert_eq!(node.through(POD_A, &first, POD_B).len(), 1);
    assert_eq!(node.through(POD_A, &later, POD_B).len(), 1);
    assert_eq!(states(&node), [State::Established]);
    pass(&mut node, POD_A, &whole, POD_B);
}
