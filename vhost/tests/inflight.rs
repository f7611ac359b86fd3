//! After a crash no descriptor is lost and none is returned twice: what the record of descriptors in flight is worth.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::{Device, HEADER, PACKED, PLAIN, packet};
use penstock_vhost::inflight::{Inflight, InflightQueue};
use penstock_vhost::naive::{Arena, Driver, Layout, PackedDriver, SplitDriver, Told};
use penstock_vhost::{Lie, RingSetup};
use proptest::prelude::*;

const BYTES: u64 = 1 << 18;
const SIZE: u16 = 16;

/// A record for one queue, and its file to write to as a former process did.
fn record(packed: bool) -> (InflightQueue, File) {
    let (inflight, file) = Inflight::create(1, SIZE, packed).unwrap();
    (inflight.queue(0).unwrap(), file)
}

fn put<const N: usize>(file: &File, at: u64, bytes: [u8; N]) {
    file.write_all_at(&bytes, at).unwrap();
}

fn byte(file: &File, at: u64) -> u8 {
    let mut bytes = [0];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes[0]
}

fn half(file: &File, at: u64) -> u16 {
    u16::from_le_bytes([byte(file, at), byte(file, at + 1)])
}

/// Offers a packet of its own number.
fn offer(arena: &Arena, driver: &mut dyn Driver, number: u64) -> u16 {
    let at = 65536 + number * 256;
    arena.write(at, &[&[0; HEADER][..], &packet(number, 60)].concat());
    driver.offer(arena, &[(at, 72, false)], Told::Direct).unwrap()
}

/// Entry `head` of a split record.
fn split_entry(head: u16) -> u64 {
    16 + 16 * u64::from(head)
}

#[test]
fn split_chains_in_flight_come_again_in_their_order() {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let mut driver = SplitDriver::new(&arena, layout, 0xfffe);
    let heads: Vec<u16> = (0..5).map(|number| offer(&arena, &mut driver, number)).collect();
    let (queue, file) = record(false);
    put(&file, 8, 1u16.to_le_bytes());
    put(&file, 14, 0xfffeu16.to_le_bytes());
    // The former process took the first three and died.
    for (counter, head) in [(9u64, heads[2]), (7, heads[0]), (8, heads[1])] {
        put(&file, split_entry(head), [1]);
        put(&file, split_entry(head) + 8, counter.to_le_bytes());
    }
    let setup = RingSetup { inflight: Some(queue), ..layout.setup(0xfffe) };
    let mut device = Device::serving(&arena, PLAIN, Some(setup), None);
    let mut got = device.receive();
    got.extend(device.receive());
    assert_eq!(got, (0..5).map(|number| packet(number, 60)).collect::<Vec<_>>());
    let returned: Vec<u16> = std::iter::from_fn(|| driver.collect(&arena)).map(|(head, _)| head).collect();
    assert_eq!(returned, heads);
    assert!(heads.iter().all(|&head| byte(&file, split_entry(head)) == 0));
    assert_eq!(half(&file, 14), 3);
    device.close();
}

#[test]
fn split_chains_that_reached_the_guest_do_not_come_again() {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let mut driver = SplitDriver::new(&arena, layout, 0);
    let heads: Vec<u16> = (0..4).map(|number| offer(&arena, &mut driver, number)).collect();
    let (queue, file) = record(false);
    put(&file, 8, 1u16.to_le_bytes());
    // A batch of two was published, and the process died before it could say so.
    put(&file, 12, heads[1].to_le_bytes());
    put(&file, split_entry(heads[1]) + 6, heads[0].to_le_bytes());
    for head in [heads[0], heads[1]] {
        put(&file, split_entry(head), [1]);
    }
    for (entry, head) in [(0, heads[0]), (1, heads[1])] {
        arena.write(layout.used + 4 + 8 * entry, &u32::from(head).to_le_bytes());
    }
    arena.write(layout.used + 2, &2u16.to_le_bytes());
    let setup = RingSetup { inflight: Some(queue), ..layout.setup(2) };
    let mut device = Device::serving(&arena, PLAIN, Some(setup), None);
    assert_eq!(device.receive(), [packet(2, 60), packet(3, 60)]);
    let returned: Vec<u16> = std::iter::from_fn(|| driver.collect(&arena)).map(|(head, _)| head).collect();
    assert_eq!(returned, heads);
    device.close();
}

/// Entry `entry` of a packed record.
fn packed_entry(entry: u16) -> u64 {
    32 + 32 * u64::from(entry)
}

/// A packed record as a process leaves it that noted the ring's first three chains and died, `published` says when.
fn packed_crash(published: bool) {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let mut driver = PackedDriver::new(&arena, layout, 14, true);
    let ids: Vec<u16> = (0..5).map(|number| offer(&arena, &mut driver, number)).collect();
    let (queue, file) = record(true);
    for entry in 0..SIZE {
        put(&file, packed_entry(entry) + 2, (entry + 1).to_le_bytes());
    }
    put(&file, 8, 1u16.to_le_bytes());
    // Three entries taken: free and old free at 3. Then given: free at the last of them, old free still at 3.
    put(&file, 12, 2u16.to_le_bytes());
    put(&file, 14, 3u16.to_le_bytes());
    put(&file, 16, 1u16.to_le_bytes());
    put(&file, 18, 14u16.to_le_bytes());
    put(&file, 20, [0, 1]);
    for (entry, place) in [(0u16, 14u64), (1, 15), (2, 0)] {
        let at = packed_entry(entry);
        let descriptor = arena.read(layout.desc + 16 * place, 16);
        put(&file, at, [1]);
        put(&file, at + 4, entry.to_le_bytes());
        put(&file, at + 6, 1u16.to_le_bytes());
        put(&file, at + 8, (u64::from(entry) + 40).to_le_bytes());
        file.write_all_at(&descriptor[12..16], at + 16).unwrap();
        file.write_all_at(&descriptor[8..12], at + 20).unwrap();
        file.write_all_at(&descriptor[..8], at + 24).unwrap();
    }
    // The lists as giving them back leaves them: each in front of what was free before.
    for (entry, next) in [(0u16, 3u16), (1, 0), (2, 1)] {
        put(&file, packed_entry(entry) + 2, next.to_le_bytes());
    }
    // All of the batch but its first descriptor was written over already, or all of it.
    let used = |wrap: bool| if wrap { 0x8080u16 } else { 0 };
    for (place, number, wrap) in [(15u64, 1, true), (0, 2, false), (14, 0, true)] {
        if place == 14 && !published {
            continue;
        }
        arena.write(layout.desc + 16 * place + 8, &0u32.to_le_bytes());
        arena.write(layout.desc + 16 * place + 12, &ids[number].to_le_bytes());
        arena.write(layout.desc + 16 * place + 14, &used(wrap).to_le_bytes());
    }
    // The front-end knows nothing of where the ring stood.
    let setup = RingSetup { inflight: Some(queue), ..layout.setup(14 | 1 << 15) };
    let mut device = Device::serving(&arena, PACKED, Some(setup), None);
    let mut got = device.receive();
    got.extend(device.receive());
    let first = if published { 3 } else { 0 };
    assert_eq!(
        got,
        (first..5).map(|number| packet(number, 60)).collect::<Vec<_>>(),
        "published: {published}"
    );
    let returned: Vec<u16> = std::iter::from_fn(|| driver.collect(&arena)).map(|(id, _)| id).collect();
    assert_eq!(returned, ids, "published: {published}");
    assert!((0..SIZE).all(|entry| byte(&file, packed_entry(entry)) == 0));
    assert_eq!((half(&file, 16), half(&file, 18), byte(&file, 20), byte(&file, 21)), (3, 3, 0, 0));
    device.close();
}

#[test]
fn packed_chains_in_flight_come_again_although_their_descriptors_were_written_over() {
    packed_crash(false);
}

#[test]
fn packed_chains_that_reached_the_guest_do_not_come_again() {
    packed_crash(true);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn between_bursts_nothing_is_in_flight_and_another_process_goes_on(
        packed in any::<bool>(),
        rounds in prop::collection::vec((0u64..6, 1usize..4, any::<bool>()), 1..30),
    ) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, SIZE);
        let mut driver: Box<dyn Driver> = if packed {
            Box::new(PackedDriver::new(&arena, layout, 5, false))
        } else {
            Box::new(SplitDriver::new(&arena, layout, 0xfff0))
        };
        let (queue, file) = record(packed);
        let start = |base| {
            let setup = RingSetup { inflight: Some(queue.clone()), ..layout.setup(base) };
            Device::serving(&arena, if packed { PACKED } else { PLAIN }, Some(setup), None)
        };
        let first = driver.base();
        let mut device = start(first);
        for (chains, buffers, restart) in rounds {
            let mut expected = Vec::new();
            for number in 0..chains {
                let at = 65536 + number * 1024;
                let whole = [&[0; HEADER][..], &packet(number, 100)].concat();
                arena.write(at, &whole);
                let parts: Vec<_> = (0..buffers).map(|i| {
                    let len = if i + 1 == buffers { 112 - 20 * i } else { 20 };
                    (at + 20 * i as u64, len as u32, false)
                }).collect();
                if driver.offer(&arena, &parts, Told::Direct).is_some() {
                    expected.push(packet(number, 100));
                }
            }
            prop_assert_eq!(device.receive(), expected.clone());
            prop_assert_eq!(std::iter::from_fn(|| driver.collect(&arena)).count(), expected.len());
            let (head, entry) = if packed { (32, 32) } else { (16, 16) };
            prop_assert!((0..u64::from(SIZE)).all(|i| byte(&file, head + entry * i) == 0));
            if restart {
                device.close();
                // A split ring's base is its used index, a packed one's is in the record alone.
                device = start(if packed { first } else { driver.base() });
                prop_assert_eq!(device.switch.fault(), None);
            }
        }
        device.close();
    }

    #[test]
    fn a_record_that_makes_no_sense_does_no_harm(packed in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 600)) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, SIZE);
        let mut driver: Box<dyn Driver> = if packed {
            Box::new(PackedDriver::new(&arena, layout, 0, true))
        } else {
            Box::new(SplitDriver::new(&arena, layout, 0))
        };
        let (queue, file) = record(packed);
        // Small numbers, so that some of it does make sense.
        let bytes: Vec<u8> = bytes.iter().map(|byte| byte % 18).collect();
        file.write_all_at(&bytes[..file.metadata().unwrap().len().min(600) as usize], 0).unwrap();
        for number in 0..4 {
            offer(&arena, &mut *driver, number);
        }
        let setup = RingSetup { inflight: Some(queue), ..layout.setup(driver.base()) };
        let mut device = Device::serving(&arena, if packed { PACKED } else { PLAIN }, Some(setup), None);
        for _ in 0..6 {
            device.receive();
        }
        device.close();
    }
}

#[test]
fn a_record_of_the_other_kind_is_refused() {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    for (features, packed) in [(PLAIN, true), (PACKED, false)] {
        let setup = RingSetup { inflight: Some(record(packed).0), ..layout.setup(0) };
        let device = Device::serving(&arena, features, Some(setup), None);
        assert!(matches!(device.switch.fault().unwrap().what, Lie::Misplaced(_)));
        device.close();
    }
    assert_eq!(Inflight::bytes(2, 16, false), 2 * 320);
    assert_eq!(Inflight::bytes(2, 16, true), 2 * 576);
    assert!(Inflight::create(0, 16, true).is_err());
}
