//! Both kinds of ring beside a naive model: every chain comes back once, in order, and holds what it should.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use std::collections::VecDeque;

use common::{Device, HEADER, LONGEST, MERGEABLE, PACKED, PLAIN, packet};
use penstock_vhost::features::MRG_RXBUF;
use penstock_vhost::naive::{Arena, Driver, Layout, Offer, PackedDriver, SplitDriver, Told};
use proptest::prelude::*;

const BYTES: u64 = 1 << 20;
const BUFFERS: u64 = 1 << 17;
/// Room for a chain's buffers and table.
const SLOT: u64 = 8192;

/// A ring of either kind, from its driver's side.
fn driver(arena: &Arena, layout: Layout, packed: bool, start: u16) -> Box<dyn Driver> {
    if packed {
        Box::new(PackedDriver::new(arena, layout, start % layout.size, start & 1 == 0))
    } else {
        Box::new(SplitDriver::new(arena, layout, start))
    }
}

/// What a guest does in one round: chains with the lengths of their buffers, and whether each is told by a table.
type Round = Vec<(Vec<u32>, bool)>;

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let lengths = prop::collection::vec(prop_oneof![1 => 0u32..20, 3 => 20u32..600], 1..6);
    prop::collection::vec(prop::collection::vec((lengths, any::<bool>()), 0..14), 1..12)
}

/// Sizes of packed rings need not be powers of two.
fn kinds() -> impl Strategy<Value = (bool, u16, u16)> {
    prop_oneof![
        (Just(false), prop_oneof![Just(16u16), Just(64)], any::<u16>()),
        (Just(false), Just(16), Just(u16::MAX)),
        (Just(true), 5u16..70, any::<u16>()),
    ]
}

fn slot(number: usize) -> u64 {
    BUFFERS + (number as u64 % ((BYTES - BUFFERS) / SLOT)) * SLOT
}

fn buffers(slot: u64, lengths: &[u32], write: bool) -> Vec<Offer> {
    let mut at = slot + 16 * 8;
    lengths
        .iter()
        .map(|&len| {
            at += u64::from(len);
            (at - u64::from(len), len, write)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_the_guest_sends_is_received_once_and_in_order((packed, size, start) in kinds(), rounds in rounds()) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, size);
        let mut driver = driver(&arena, layout, packed, start);
        let features = if packed { PACKED } else { PLAIN };
        let mut device = Device::serving(&arena, features, Some(layout.setup(driver.base())), None);
        let (mut number, mut invalid) = (0, 0);
        for round in rounds {
            let (mut expected, mut ids) = (Vec::new(), Vec::new());
            for (lengths, indirect) in round {
                let (slot, total) = (slot(number), lengths.iter().sum::<u32>() as usize);
                let told = if indirect { Told::Indirect(slot) } else { Told::Direct };
                let whole = [&[0; HEADER][..], &packet(number as u64, total.saturating_sub(HEADER))].concat();
                arena.write(slot + 16 * 8, &whole[..total.min(whole.len())]);
                let Some(id) = driver.offer(&arena, &buffers(slot, &lengths, false), told) else { continue };
                ids.push(id);
                number += 1;
                if (HEADER + 14..=HEADER + LONGEST).contains(&total) {
                    expected.push(whole[HEADER..].to_vec());
                } else {
                    invalid += 1;
                }
            }
            prop_assert_eq!(device.receive(), expected);
            prop_assert_eq!(device.receive(), Vec::<Vec<u8>>::new());
            let returned: Vec<_> = std::iter::from_fn(|| driver.collect(&arena)).collect();
            prop_assert_eq!(returned, ids.into_iter().map(|id| (id, 0)).collect::<Vec<_>>());
        }
        let counters = penstock_io::Port::counters(&device.port);
        prop_assert_eq!((counters.rx_packets, counters.rx_invalid), (number as u64 - invalid, invalid));
        prop_assert_eq!(device.switch.fault(), None);
        device.close();
    }

    #[test]
    fn what_is_sent_reaches_the_guest_once_and_in_order(
        (packed, size, start) in kinds(),
        mergeable in any::<bool>(),
        rounds in rounds(),
        lengths in prop::collection::vec(prop_oneof![14usize..1700, 14usize..6000], 64),
    ) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, size);
        let mut driver = driver(&arena, layout, packed, start);
        let features = if packed { PACKED } else { PLAIN } | if mergeable { MRG_RXBUF } else { 0 };
        let mut device = Device::serving(&arena, features, None, Some(layout.setup(driver.base())));
        let mut offered: VecDeque<(u16, Vec<Offer>)> = VecDeque::new();
        let (mut number, mut sent) = (0, 0usize);
        for round in rounds {
            for (lengths, indirect) in round {
                let slot = slot(number);
                let told = if indirect { Told::Indirect(slot) } else { Told::Direct };
                let offers = buffers(slot, &lengths, true);
                if let Some(id) = driver.offer(&arena, &offers, told) {
                    offered.push_back((id, offers));
                    number += 1;
                }
            }
            let packets: Vec<Vec<u8>> = (0..5).map(|i| packet((sent + i) as u64, lengths[(sent + i) % 64])).collect();
            // The model: the first packets that find room, those left out that fit no buffer.
            let (mut expected, mut taken) = (Vec::new(), 0);
            for packet in &packets {
                let needs = HEADER + packet.len();
                let rooms: Vec<usize> = offered.iter()
                    .map(|(_, offers)| offers.iter().map(|offer| offer.1 as usize).sum())
                    .collect();
                let count = (1..=rooms.len()).find(|&count| rooms[..count].iter().sum::<usize>() >= needs);
                let count = match (mergeable, count, rooms.first()) {
                    (true, Some(count), _) => count,
                    (false, Some(1), _) => 1,
                    (false, _, Some(_)) => 0,
                    _ => break,
                };
                taken += 1;
                if count == 0 {
                    continue;
                }
                let mut header = [0; HEADER];
                header[10] = count as u8;
                let mut left = [&header[..], packet].concat();
                for (id, offers) in offered.drain(..count) {
                    let room = offers.iter().map(|offer| offer.1 as usize).sum::<usize>();
                    let later = left.split_off(room.min(left.len()));
                    expected.push((id, offers, std::mem::replace(&mut left, later)));
                }
            }
            prop_assert_eq!(device.send(&packets), taken);
            sent += taken;
            for (id, offers, bytes) in expected {
                prop_assert_eq!(driver.collect(&arena), Some((id, bytes.len() as u32)));
                let there: Vec<u8> = offers.iter().flat_map(|&(at, len, _)| arena.read(at, len as usize)).collect();
                prop_assert_eq!(&there[..bytes.len()], &bytes[..]);
            }
            prop_assert_eq!(driver.collect(&arena), None);
        }
        prop_assert_eq!(device.switch.fault(), None);
        device.close();
    }
}

#[test]
fn a_super_long_run_wraps_all_indices() {
    for packed in [false, true] {
        let arena = Arena::new(BYTES).unwrap();
        let (rx, tx) = (Layout::at(0, 32), Layout::at(32768, 32));
        let mut sends = driver(&arena, rx, packed, u16::MAX);
        let mut receives = driver(&arena, tx, packed, u16::MAX);
        let features = if packed { PACKED } else { MERGEABLE };
        let (rx, tx) = (rx.setup(sends.base()), tx.setup(receives.base()));
        let mut device = Device::serving(&arena, features, Some(rx), Some(tx));
        for round in 0..5000u64 {
            for number in 0..17 {
                let at = slot(number);
                arena.write(at + HEADER as u64, &round.to_le_bytes());
                sends.offer(&arena, &[(at, 80, false)], Told::Direct).unwrap();
                receives.offer(&arena, &[(slot(number + 20), 1600, true)], Told::Direct).unwrap();
            }
            let packets = device.receive();
            assert_eq!(packets.len(), 17);
            assert!(packets.iter().all(|packet| packet[..8] == round.to_le_bytes() && packet.len() == 68));
            assert_eq!(device.send(&packets), 17);
            device.settle();
            for number in 0..17 {
                assert_eq!(sends.collect(&arena).unwrap().1, 0);
                assert_eq!(receives.collect(&arena).unwrap().1, 80);
                assert_eq!(arena.read(slot(number + 20) + HEADER as u64, 8), round.to_le_bytes());
            }
        }
        device.close();
    }
}
