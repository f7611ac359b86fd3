//! Checksums against the text of RFC 1071, word by word.

mod common;

use common::slow_sum;
use penstock_wire::checksum::{self, Sum, update16, update32};
use proptest::prelude::*;

/// One's complement has two zeros; sums that differ only in which one they show are the same number.
fn same(left: u16, right: u16) -> bool {
    left % 0xffff == right % 0xffff
}

proptest! {
    #[test]
    fn sum_is_that_of_the_rfc(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert_eq!(checksum::sum(&bytes).fold(), slow_sum(&bytes));
    }

    #[test]
    fn parts_of_even_length_add_up(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        let (left, right) = bytes.split_at(cut.index(bytes.len() + 1) & !1);
        prop_assert_eq!(checksum::sum(left).add_bytes(right).fold(), slow_sum(&bytes));
    }

    #[test]
    fn words_add_like_their_bytes(words in prop::collection::vec(any::<u32>(), 0..100)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let sum = words.iter().fold(Sum::ZERO, |sum, word| sum.add32(*word));
        prop_assert_eq!(sum.fold(), slow_sum(&bytes));
    }

    #[test]
    fn a_change_of_one_word_gives_the_full_checksum(words in prop::collection::vec(any::<u16>(), 1..40), at in any::<prop::sample::Index>(), new in any::<u16>()) {
        let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let at = at.index(words.len());
        let before = checksum::sum(&bytes(&words)).finish();
        let mut changed = words.clone();
        changed[at] = new;
        let after = checksum::sum(&bytes(&changed));
        prop_assert!(same(update16(before, words[at], new), after.finish()));
        // What a receiver asks of it: it adds up, whichever zero it shows.
        prop_assert!(after.add16(update16(before, words[at], new)).is_valid() || changed.iter().all(|word| *word == 0));
    }

    #[test]
    fn a_change_of_two_words_gives_the_full_checksum(front in any::<[u8; 4]>(), old in any::<u32>(), new in any::<u32>()) {
        let full = |words: u32| checksum::sum(&[front, words.to_be_bytes()].concat()).finish();
        prop_assert!(same(update32(full(old), old, new), full(new)));
    }

    #[test]
    fn a_header_with_its_checksum_is_valid_and_one_bit_makes_it_not(mut header in any::<[u8; 20]>(), bit in 0..160usize) {
        header[0] |= 0x40;
        header[10..12].fill(0);
        let sum = checksum::sum(&header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        prop_assert!(checksum::verify(&header) && checksum::verify_ipv4_header(&header));
        header[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!checksum::verify(&header) && !checksum::verify_ipv4_header(&header));
    }
}

#[test]
fn example_of_rfc_1071_holds() {
    assert_eq!(checksum::sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
}

#[test]
fn every_short_length_and_the_worst_bytes_sum_right() {
    for fill in [0x00, 0xff, 0x80, 0x7f] {
        for length in 0..300 {
            let bytes = vec![fill; length];
            assert_eq!(checksum::sum(&bytes).fold(), slow_sum(&bytes), "{length} bytes of {fill:#x}");
        }
    }
    let jumbo = vec![0xff; 65535];
    assert_eq!(checksum::sum(&jumbo).fold(), slow_sum(&jumbo));
}

#[test]
fn pseudo_headers_are_those_of_the_rfcs() {
    let (v4_src, v4_dst) = ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap());
    let bytes = [192, 0, 2, 1, 198, 51, 100, 7, 0, 17, 0x12, 0x34];
    assert_eq!(checksum::pseudo_v4(v4_src, v4_dst, 17, 0x1234).fold(), slow_sum(&bytes));

    let (src, dst): (std::net::Ipv6Addr, std::net::Ipv6Addr) =
        ("2001:db8::1".parse().unwrap(), "2001:db8:ffff::2".parse().unwrap());
    let bytes = [&src.octets()[..], &dst.octets(), &[0, 1, 0x12, 0x34, 0, 0, 0, 58]].concat();
    assert_eq!(checksum::pseudo_v6(src, dst, 58, 0x1_1234).fold(), slow_sum(&bytes));
}
