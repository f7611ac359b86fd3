//! Packets that are cut are what their sender would have sent in smaller ones, and joining undoes cutting.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use etherparse::{PacketBuilder, SlicedPacket};
use penstock_wire::parse::parse;
use penstock_wire::segment::{Headers, Part, sum_behind};
use proptest::prelude::*;

const ETHERNET: usize = 14;

fn packet(is_ipv4: bool, is_tcp: bool, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut out = Vec::new();
    let written = match (is_ipv4, is_tcp) {
        (true, true) => builder
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 80, 0xffff_ff00, 512)
            .ack(7)
            .psh()
            .write(&mut out, payload),
        (false, true) => {
            builder.ipv6([1; 16], [2; 16], 64).tcp(1000, 80, 5, 512).ack(7).write(&mut out, payload)
        }
        (true, false) => {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000, 80).write(&mut out, payload)
        }
        (false, false) => builder.ipv6([1; 16], [2; 16], 64).udp(1000, 80).write(&mut out, payload),
    };
    written.unwrap();
    if is_ipv4 {
        // Nothing that may be cut by routers is put together: where each began would be lost.
        let headers = Headers::of(&out).unwrap();
        assert_eq!(headers.packet_len(&out), out.len() - ETHERNET);
    }
    out
}

/// Its segments of `size` bytes of payload each.
fn cut(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let headers = Headers::of(packet).unwrap();
    let (head, payload) = packet.split_at(headers.payload);
    let parts: Vec<&[u8]> = payload.chunks(size).collect();
    let count = parts.len();
    let segment = |(index, part): (usize, &&[u8])| {
        let mut frame = [head, part].concat();
        let offset = (index * size) as u32;
        headers.cut(&mut frame, Part { index: index as u16, offset, is_last: index + 1 == count });
        frame
    };
    parts.iter().enumerate().map(segment).collect()
}

/// The transport payload, once every checksum of the frame was found right.
fn verified(frame: &[u8]) -> Vec<u8> {
    let parsed = parse(frame).expect("a sound packet");
    assert_eq!(usize::from(parsed.end), frame.len());
    let headers = Headers::of(frame).unwrap();
    assert!(headers.checksum_holds(frame), "{frame:02x?}");
    SlicedPacket::from_ethernet(frame).expect("etherparse takes it too");
    frame[headers.payload..].to_vec()
}

proptest! {
    #[test]
    fn segments_are_sound_and_carry_the_payload_in_order(
        is_ipv4: bool, is_tcp: bool, payload in prop::collection::vec(any::<u8>(), 1..4000), size in 1usize..1500,
    ) {
        let whole = packet(is_ipv4, is_tcp, &payload);
        let segments = cut(&whole, size);
        prop_assert_eq!(segments.len(), payload.len().div_ceil(size));
        let carried: Vec<u8> = segments.iter().flat_map(|segment| verified(segment)).collect();
        prop_assert_eq!(carried, payload);
        if is_tcp {
            let sequence = |frame: &[u8]| {
                let at = Headers::of(frame).unwrap().l4 + 4;
                u32::from_be_bytes(frame[at..at + 4].try_into().unwrap())
            };
            for (index, segment) in segments.iter().enumerate() {
                let expected = sequence(&whole).wrapping_add((index * size) as u32);
                prop_assert_eq!(sequence(segment), expected);
            }
        }
    }

    #[test]
    fn a_checksum_over_pieces_of_any_length_is_that_of_the_whole(
        is_ipv4: bool, is_tcp: bool, payload in prop::collection::vec(any::<u8>(), 1..3000),
        at in prop::collection::vec(0usize..3000, 0..5),
    ) {
        let whole = packet(is_ipv4, is_tcp, &payload);
        let headers = Headers::of(&whole).unwrap();
        let mut ends: Vec<usize> = at.iter().map(|at| headers.payload + at % payload.len()).collect();
        ends.push(whole.len());
        ends.sort_unstable();
        let mut first = whole[..ends[0]].to_vec();
        let behind: Vec<&[u8]> = ends.windows(2).map(|ends| &whole[ends[0]..ends[1]]).collect();
        headers.leave_checksum(&mut first);
        let sum = sum_behind(first.len() - headers.l4, behind.into_iter());
        headers.finish_checksum(&mut first, sum);
        prop_assert_eq!(&first[..], &whole[..first.len()]);
    }

    #[test]
    fn what_was_cut_goes_on_where_the_last_one_ended(
        payload in prop::collection::vec(any::<u8>(), 2..4000), size in 1usize..1500,
    ) {
        let segments = cut(&packet(false, true, &payload), size);
        let first = &segments[0];
        let headers = Headers::of(first).unwrap();
        let mut gathered = first.len() - headers.payload;
        for next in &segments[1..] {
            let continued = headers.continues(first, gathered, next).expect("it follows");
            prop_assert_eq!(continued.payload, next.len() - headers.payload);
            // Twice the same does not.
            gathered += continued.payload;
            prop_assert_eq!(headers.continues(first, gathered, next), None);
        }
    }

    #[test]
    fn no_bytes_make_it_fall(frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..3) {
        let mut frame = frame;
        if frame.len() > 14 && kind > 0 {
            let ethertype: u16 = if kind == 1 { 0x0800 } else { 0x86dd };
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            frame[14] = if kind == 1 { 0x45 } else { 0x60 };
        }
        if let Ok(headers) = Headers::of(&frame) {
            prop_assert!(headers.payload <= frame.len() && headers.l4 <= headers.payload);
            let _ = headers.continues(&frame.clone(), 10, &frame);
            headers.set_packet_len(&mut frame, 100);
            headers.leave_checksum(&mut frame);
        }
    }
}

#[test]
fn flags_are_said_by_the_first_or_the_last_segment() {
    let mut whole = packet(true, true, &[7; 3000]);
    let headers = Headers::of(&whole).unwrap();
    // CWR, ACK, PSH, FIN.
    whole[headers.l4 + 13] = 0x99;
    let flags: Vec<u8> = cut(&whole, 1000).iter().map(|segment| segment[headers.l4 + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
}

#[test]
fn a_segment_that_says_something_else_is_not_joined() {
    let segments = cut(&packet(false, true, &[7; 3000]), 1000);
    let headers = Headers::of(&segments[0]).unwrap();
    let with = |at: usize, value: u8| {
        let mut next = segments[1].clone();
        next[at] ^= value;
        headers.continues(&segments[0], 1000, &next)
    };
    let l4 = headers.l4;
    assert!(with(0, 0).is_some());
    // Its station, traffic class, hop limit, address, port, acknowledgement, a FIN, the window.
    for at in [0, 15, 21, 30, l4, l4 + 11, l4 + 14] {
        assert_eq!(with(at, 1), None, "byte {at}");
    }
    assert_eq!(with(l4 + 13, 1), None);
    assert!(with(l4 + 13, 8).expect("data that is pushed").is_last);
}
