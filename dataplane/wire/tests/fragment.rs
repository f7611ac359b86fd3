//! Pieces put together again by a naive receiver.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use penstock_wire::fragment::{CannotFragment, pieces};
use penstock_wire::ipv4::{self, Ipv4};
use penstock_wire::{Malformed, checksum};
use proptest::prelude::*;

/// A packet with these options (padded to whole words), fragment word and payload.
fn packet(options: &[u8], word: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0xbe, 0xef, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2];
    header.extend(options);
    header.resize(header.len().next_multiple_of(4), 0);
    header[0] = 0x40 | (header.len() / 4) as u8;
    let total = (header.len() + payload.len()) as u16;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[6..8].copy_from_slice(&word.to_be_bytes());
    let sum = checksum::sum(&header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], payload].concat()
}

/// Every piece as a packet of its own.
fn cut(packet: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    pieces(packet, mtu).unwrap().map(|piece| [piece.header(), &packet[piece.payload()]].concat()).collect()
}

fn options_of(packet: &[u8]) -> Vec<Vec<u8>> {
    Ipv4::new_checked(packet).unwrap().options().map(|option| option.unwrap().bytes.to_vec()).collect()
}

/// Options of which some are copied (the high bit of the kind) and some are not, at most 40 bytes.
fn any_options() -> impl Strategy<Value = Vec<u8>> {
    let option = (2..=255u8, prop::collection::vec(any::<u8>(), 0..6)).prop_map(|(kind, data)| {
        let mut option = vec![kind, data.len() as u8 + 2];
        option.extend(data);
        option
    });
    let nop = Just(vec![ipv4::OPTION_NOP]);
    prop::collection::vec(prop_oneof![4 => option, 1 => nop], 0..5).prop_map(|options| options.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn pieces_make_the_packet_again(options in any_options(), payload in prop::collection::vec(any::<u8>(), 0..3000), mtu in 68..1600u16, narrower in 68..1600u16) {
        let original = packet(&options, 0, &payload);
        // Twice, as by two routers: pieces of pieces are pieces.
        let parts: Vec<Vec<u8>> = cut(&original, mtu).iter().flat_map(|part| cut(part, narrower)).collect();
        let (count, all, copied) = (parts.len(), options_of(&original), copied_of(&original));
        let mut together: Vec<u8> = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let view = Ipv4::new_checked(part).unwrap();
            prop_assert!(part.len() <= usize::from(mtu.min(narrower)));
            prop_assert_eq!(part.len(), usize::from(view.total_len()));
            prop_assert_eq!((view.identification(), view.ttl(), view.protocol()), (0xbeef, 64, 17));
            prop_assert_eq!(view.fragment_offset(), together.len());
            prop_assert_eq!(view.more_fragments(), at + 1 < count);
            let expected = if at == 0 { &all } else { &copied };
            prop_assert_eq!(&options_of(part), expected);
            together.extend(view.payload());
        }
        prop_assert_eq!(together, payload);
    }

    #[test]
    fn a_fragment_is_cut_further_at_its_own_offset(words in 1..200usize, offset in 0..1000u16, more in any::<bool>(), mtu in 68..600u16) {
        let payload: Vec<u8> = (0..words * 8).map(|at| at as u8).collect();
        let word = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
        let mut expected = usize::from(offset) * 8;
        let parts = cut(&packet(&[], word, &payload), mtu);
        for (at, part) in parts.iter().enumerate() {
            let view = Ipv4::new_checked(part).unwrap();
            prop_assert_eq!(view.fragment_offset(), expected);
            prop_assert_eq!(view.more_fragments(), more || at + 1 < parts.len());
            expected += view.payload().len();
        }
        prop_assert_eq!(expected, usize::from(offset) * 8 + payload.len());
    }
}

fn copied_of(packet: &[u8]) -> Vec<Vec<u8>> {
    options_of(packet).into_iter().filter(|option| option[0] & 0x80 != 0).collect()
}

#[test]
fn a_packet_that_fits_comes_back_as_it_was() {
    for word in [0, ipv4::DONT_FRAGMENT] {
        let whole = packet(&[7, 3, 4], word, &[9; 100]);
        assert_eq!(cut(&whole, whole.len() as u16), std::slice::from_ref(&whole));
    }
    assert_eq!(cut(&packet(&[], 0, &[]), 68).len(), 1);
}

#[test]
fn what_may_not_be_cut_is_refused() {
    let refused = |packet: &[u8], mtu| pieces(packet, mtu).err();
    let forbidden = packet(&[], ipv4::DONT_FRAGMENT, &[0; 100]);
    assert_eq!(refused(&forbidden, 119), Some(CannotFragment::Forbidden));
    let wide = packet(&[ipv4::OPTION_NOP; 40], 0, &[0; 100]);
    assert_eq!(refused(&wide, 67), Some(CannotFragment::MtuTooSmall { header_len: 60, mtu: 67 }));
    assert!(pieces(&wide, 68).is_ok());
    let lying = packet(&[7, 200], 0, &[0; 100]);
    assert_eq!(refused(&lying, 68), Some(Malformed::BadOption.into()));
    let odd = packet(&[], ipv4::MORE_FRAGMENTS, &[0; 101]);
    assert_eq!(refused(&odd, 68), Some(Malformed::BadFragment.into()));
    let far = packet(&[], ipv4::FRAGMENT_OFFSET, &[0; 101]);
    assert_eq!(refused(&far, 68), Some(Malformed::BadFragment.into()));
    assert_eq!(refused(&forbidden[..50], 68), Some(Malformed::BadTotalLength.into()));
}
