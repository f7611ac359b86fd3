//! The port as a whole: what wakes whom, what is handed over, what is noted, and how packets lie in memory.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use common::{Device, HEADER, MERGEABLE, PACKED, PLAIN, bell, packet};
use penstock_io::{Abilities, Offload, Partial, Port, SegmentKind, Segments};
use penstock_vhost::features::{EVENT_IDX, IN_ORDER, LOG_ALL, MRG_RXBUF, OFFERED, RING_PACKED};
use penstock_vhost::log::DirtyLog;
use penstock_vhost::naive::{Arena, Driver, GUEST, Layout, Offer, PackedDriver, SplitDriver, Told, USER};
use penstock_vhost::{Bases, GuestMemory, PairSetup, RegionSetup, RingSetup, handover};
use proptest::prelude::*;

const BYTES: u64 = 1 << 18;
const SIZE: u16 = 16;
const BUFFER: u64 = 65536;

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

fn word(arena: &Arena, at: u64) -> u16 {
    u16::from_le_bytes(arena.read(at, 2).try_into().unwrap())
}

fn split() -> (Arena, Layout, SplitDriver) {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let driver = SplitDriver::new(&arena, layout, 0);
    (arena, layout, driver)
}

fn packed() -> (Arena, Layout, PackedDriver) {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let driver = PackedDriver::new(&arena, layout, 3, true);
    (arena, layout, driver)
}

const ONE: &[Offer] = &[(BUFFER, 100, false)];

#[test]
fn a_guest_is_told_when_it_wants_to_be() {
    let (arena, layout, mut driver) = split();
    let (call, rung) = bell();
    let setup = RingSetup { call: Some(call), ..layout.setup(0) };
    let mut device = Device::serving(&arena, PLAIN, Some(setup), None);
    assert!(rung.read().is_ok(), "once when it begins, whatever was before");
    let mut told = |no_interrupt: u16| {
        arena.write(layout.avail, &no_interrupt.to_le_bytes());
        driver.offer(&arena, ONE, Told::Direct).unwrap();
        assert_eq!(device.receive().len(), 1);
        assert!(rung.read().is_err(), "not before the turn ends");
        device.settle();
        rung.read().is_ok()
    };
    assert!(told(0));
    assert!(!told(1));
    device.settle();
    assert!(rung.read().is_err(), "nothing was returned since");
    assert_eq!(device.port.counters().kicks, 2);
    device.close();
}

#[test]
fn a_bell_that_is_full_and_blocks_stalls_neither_the_worker_nor_the_session() {
    let (arena, layout, mut driver) = split();
    let (call, rung) = bell();
    // SAFETY: sets the flags that both ends share; no memory is touched.
    assert_eq!(unsafe { libc::fcntl(rung.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    let mut device =
        Device::serving(&arena, PLAIN, Some(RingSetup { call: Some(call), ..layout.setup(0) }), None);
    rung.write(u64::MAX - 2).unwrap();
    for _ in 0..20 {
        driver.offer(&arena, ONE, Told::Direct).unwrap();
        assert_eq!(device.receive().len(), 1);
        device.settle();
        while driver.collect(&arena).is_some() {}
    }
    assert!(rung.read().unwrap() >= u64::MAX - 1);
    device.close();
}

#[test]
fn a_polling_port_asks_for_no_notifications_and_a_sleeping_one_does() {
    let (arena, layout, mut driver) = split();
    let (kick, rope) = bell();
    let setup = RingSetup { kick: Some(kick), ..layout.setup(0) };
    let mut device = Device::serving(&arena, PLAIN, Some(setup), None);
    assert_eq!(word(&arena, layout.used), 1);
    assert!(!device.port.is_restless());
    assert_eq!(word(&arena, layout.used), 0);
    assert!(!is_readable(device.port.readiness().unwrap()));
    rope.write(1).unwrap();
    assert!(is_readable(device.port.readiness().unwrap()));
    device.port.wake();
    assert_eq!(word(&arena, layout.used), 1);
    assert!(!is_readable(device.port.readiness().unwrap()), "the bell is quiet again");
    driver.offer(&arena, ONE, Told::Direct).unwrap();
    assert!(device.port.is_restless(), "a packet came before the bell was hung up");
    device.port.wake();
    device.close();
}

#[test]
fn a_guest_that_knows_the_order_is_given_the_last_chain_of_a_burst_alone() {
    let (arena, layout, mut driver) = split();
    let mut device = Device::serving(&arena, PLAIN | IN_ORDER, Some(layout.setup(0)), None);
    let offered: Vec<u16> = (0..3).map(|_| driver.offer(&arena, ONE, Told::Direct).unwrap()).collect();
    assert_eq!(device.receive().len(), 3);
    let named = |entry: u64| word(&arena, layout.used + 4 + 8 * entry);
    assert_eq!((word(&arena, layout.used + 2), named(0)), (3, offered[2]));
    assert_eq!((named(1), named(2)), (0, 0), "their lines stay the guest's");
    device.close();

    let (arena, layout, mut driver) = packed();
    let setup = layout.setup(driver.base());
    let mut device = Device::serving(&arena, PACKED | IN_ORDER, Some(setup), None);
    let at = |entry: u64| layout.desc + 16 * (3 + entry);
    let offered: Vec<u16> = (0..3).map(|_| driver.offer(&arena, ONE, Told::Direct).unwrap()).collect();
    let before = arena.read(at(1), 32);
    assert_eq!(device.receive().len(), 3);
    assert_eq!(word(&arena, at(0) + 12), offered[2]);
    assert_eq!(arena.read(at(1), 32), before, "their lines stay the guest's");
    device.close();
}

#[test]
fn with_event_indices_the_guest_is_asked_for_the_next_chain() {
    let (arena, layout, mut driver) = split();
    let (kick, _rope) = bell();
    let setup = RingSetup { kick: Some(kick), ..layout.setup(0) };
    let mut device = Device::serving(&arena, PLAIN | EVENT_IDX, Some(setup), None);
    for _ in 0..5 {
        driver.offer(&arena, ONE, Told::Direct).unwrap();
    }
    device.receive();
    assert_eq!(driver.asked(&arena), 0);
    assert!(!device.port.is_restless());
    assert_eq!(driver.asked(&arena), 5);
    device.close();
}

#[test]
fn without_a_bell_the_worker_must_look_itself() {
    let (arena, layout, _) = split();
    let mut device = Device::serving(&arena, PLAIN, Some(layout.setup(0)), None);
    assert!(device.port.is_restless());
    device.close();
    let disabled = RingSetup { enabled: false, ..layout.setup(0) };
    let mut device = Device::serving(&arena, PLAIN, Some(disabled), None);
    assert!(!device.port.is_restless(), "nothing flows");
    device.close();
}

#[test]
fn a_packed_ring_asks_by_its_event_structure() {
    for (features, flags, offset) in [(PACKED, 0, 0), (PACKED | EVENT_IDX, 2, 5 | 1 << 15)] {
        let (arena, layout, mut driver) = packed();
        let (kick, _rope) = bell();
        let setup = RingSetup { kick: Some(kick), ..layout.setup(driver.base()) };
        let mut device = Device::serving(&arena, features, Some(setup), None);
        assert_eq!(word(&arena, layout.used + 2), 1);
        driver.offer(&arena, ONE, Told::Direct).unwrap();
        driver.offer(&arena, ONE, Told::Direct).unwrap();
        assert_eq!(device.receive().len(), 2);
        assert!(!device.port.is_restless());
        assert_eq!((word(&arena, layout.used + 2), word(&arena, layout.used)), (flags, offset));
        device.port.wake();
        assert_eq!(word(&arena, layout.used + 2), 1);
        driver.offer(&arena, ONE, Told::Direct).unwrap();
        assert!(device.port.is_restless());
        device.close();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_packed_ring_tells_of_the_descriptor_that_was_asked_for(
        size in 4u16..20,
        rounds in prop::collection::vec((1usize..4, 1u16..4, 0u16..40, 0u16..4), 1..40),
    ) {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, size);
        let mut driver = PackedDriver::new(&arena, layout, 0, true);
        let (call, rung) = bell();
        let setup = RingSetup { call: Some(call), ..layout.setup(driver.base()) };
        let mut device = Device::serving(&arena, PACKED | EVENT_IDX, Some(setup), None);
        rung.read().unwrap();
        // Places counted without end; the wrap counter is one in even rounds.
        let (mut place, mut known) = (0u32, false);
        for (chains, buffers, ahead, flags) in rounds {
            // The place that the guest asks for lies within a round of where the ring stands, as a driver's does.
            let asked = place + u32::from(ahead % size);
            let round = asked / u32::from(size);
            let offset = (asked % u32::from(size)) as u16 | if round % 2 == 0 { 1 << 15 } else { 0 };
            arena.write(layout.avail, &offset.to_le_bytes());
            arena.write(layout.avail + 2, &flags.to_le_bytes());
            let before = place;
            for _ in 0..chains {
                let offers = vec![(BUFFER, 40, false); buffers.into()];
                if driver.offer(&arena, &offers, Told::Direct).is_some() {
                    place += u32::from(buffers);
                }
            }
            device.receive();
            while driver.collect(&arena).is_some() {}
            device.settle();
            let wanted = match flags {
                1 => false,
                2 => !known || (before..place).contains(&asked),
                _ => true,
            };
            prop_assert_eq!(rung.read().is_ok(), place > before && wanted);
            known |= place > before;
        }
        device.close();
    }
}

#[test]
fn a_pair_that_was_never_taken_is_given_back_as_it_was() {
    let (arena, layout, _) = split();
    let (switch, intake) = handover("pod").unwrap();
    let memory = arena.memory().unwrap();
    let (rx, tx) = (Some(layout.setup(7)), None);
    switch.start(PairSetup { memory: Arc::clone(&memory), features: PLAIN, rx, tx, log: None });
    assert_eq!(switch.stop(Duration::ZERO).unwrap(), Bases { rx: Some(7), tx: None });
    assert_eq!(Arc::strong_count(&memory), 1);
    assert!(!switch.is_closed());
    drop(intake);
    assert!(switch.is_closed());
    assert!(switch.stop(Duration::ZERO).is_ok());
}

#[test]
fn the_worker_is_woken_by_the_session_and_the_session_by_a_fault() {
    let (arena, layout, _) = split();
    let mut device = Device::new();
    assert!(!is_readable(device.port.readiness().unwrap()));
    let (memory, rx) = (arena.memory().unwrap(), Some(layout.setup(0)));
    device.switch.start(PairSetup { memory, features: PLAIN, rx, tx: None, log: None });
    assert!(is_readable(device.port.readiness().unwrap()) && device.port.is_restless());
    device.settle();
    assert!(!is_readable(device.port.readiness().unwrap()));
    assert!(!is_readable(device.switch.reports()));
    arena.write(layout.avail + 2, &[0xff, 0xff]);
    device.receive();
    assert!(is_readable(device.switch.reports()));
    assert!(device.switch.fault().unwrap().to_string().contains("jumped"));
    assert!(!is_readable(device.switch.reports()));
    device.close();
}

#[test]
fn a_pair_goes_on_where_it_stopped() {
    for features in [PLAIN, PACKED] {
        let arena = Arena::new(BYTES).unwrap();
        let layout = Layout::at(0, SIZE);
        let mut driver: Box<dyn Driver> = if features == PACKED {
            Box::new(PackedDriver::new(&arena, layout, 0, true))
        } else {
            Box::new(SplitDriver::new(&arena, layout, 0))
        };
        let mut base = driver.base();
        let mut device = Device::new();
        for round in 0..50 {
            let (memory, rx) = (arena.memory().unwrap(), Some(layout.setup(base)));
            device.start(PairSetup { memory, features, rx, tx: None, log: None });
            for _ in 0..round % 7 {
                driver.offer(&arena, ONE, Told::Direct).unwrap();
            }
            assert_eq!(device.receive().len(), round % 7);
            assert_eq!(std::iter::from_fn(|| driver.collect(&arena)).count(), round % 7);
            let switch = &device.switch;
            base = std::thread::scope(|scope| {
                let stopped = scope.spawn(|| switch.stop(Duration::from_secs(10)).unwrap());
                while switch.is_served() {
                    device.port.settle(&mut device.pool).unwrap();
                }
                stopped.join().unwrap().rx.unwrap()
            });
            assert_eq!(base, driver.base());
        }
        device.close();
    }
}

#[test]
fn what_is_written_is_noted_in_the_dirty_log_and_nothing_else() {
    for features in [MERGEABLE, PACKED | MRG_RXBUF] {
        let arena = Arena::new(BYTES).unwrap();
        let (rx, tx) = (Layout::at(0, SIZE), Layout::at(16384, SIZE));
        let driver = |layout| -> Box<dyn Driver> {
            if features & PACKED == PACKED {
                Box::new(PackedDriver::new(&arena, layout, 0, true))
            } else {
                Box::new(SplitDriver::new(&arena, layout, 0))
            }
        };
        let (mut sends, mut receives) = (driver(rx), driver(tx));
        let log = Arena::new(4096).unwrap();
        let pages = |log: &Arena| -> BTreeSet<u64> {
            let bytes = log.read(0, 4096);
            (0..4096 * 8).filter(|page| bytes[*page as usize / 8] & 1 << (page % 8) != 0).collect()
        };
        // The log begins at guest address zero, so the guest's memory lies low here; the used rings are told apart by
        // addresses below it.
        let shifted = |layout: &Layout, at: u64, base| RingSetup { used_log: Some(at), ..layout.setup(base) };
        let region = RegionSetup { guest: 0x10_0000, ..arena.region().unwrap() };
        let pair = PairSetup {
            memory: Arc::new(GuestMemory::map([region]).unwrap()),
            features: features | LOG_ALL,
            rx: Some(shifted(&rx, 0x8000, sends.base())),
            tx: Some(shifted(&tx, 0x9000, receives.base())),
            log: Some(Arc::new(DirtyLog::map(log.file(), 0, 4096).unwrap())),
        };
        let mut device = Device::new();
        device.start(pair);
        // Guest addresses of the naive driver begin elsewhere.
        let here = |offset: u64| offset.wrapping_add(0x10_0000).wrapping_sub(GUEST);
        sends.offer(&arena, &[(here(BUFFER), 100, false)], Told::Direct).unwrap();
        assert_eq!(device.receive().len(), 1);
        assert_eq!(pages(&log), BTreeSet::from([0x8]));
        receives.offer(&arena, &[(here(BUFFER + 4096 - 40), 80, true)], Told::Direct).unwrap();
        receives.offer(&arena, &[(here(BUFFER + 16384), 8192, true)], Told::Direct).unwrap();
        assert_eq!(device.send(&[packet(1, 100)]), 1);
        assert_eq!(pages(&log), BTreeSet::from([0x8, 0x9, 0x110, 0x111, 0x114]));
        device.close();
    }
}

#[test]
fn a_buffer_may_lie_across_regions_that_follow_each_other() {
    let file = Arena::new(BYTES).unwrap();
    let region = |guest: u64, offset: u64, bytes: u64| {
        let file = file.file().try_clone().unwrap();
        RegionSetup { guest, user: USER + guest - GUEST, bytes, offset, file }
    };
    // The second part of the guest's memory lies in front of the first in the file.
    let half = BYTES / 2;
    let memory = GuestMemory::map([region(GUEST, half, half), region(GUEST + half, 0, half)]).unwrap();
    let arena = Arena::new(BYTES).unwrap();
    let (rx, tx) = (Layout::at(0, SIZE), Layout::at(4096, SIZE));
    let (mut sends, mut receives) = (SplitDriver::new(&arena, rx, 0), SplitDriver::new(&arena, tx, 0));
    sends.offer(&arena, &[(half - 50, 312, false)], Told::Direct).unwrap();
    receives.offer(&arena, &[(half - 2048 - 5, 2048, true)], Told::Direct).unwrap();
    receives.offer(&arena, &[(half - 5, 2048, true)], Told::Direct).unwrap();
    let frame = packet(9, 300);
    arena.write(half - 50 + HEADER as u64, &frame);
    file.file().write_at(&arena.read(0, half as usize), half).unwrap();
    file.file().write_at(&arena.read(half, half as usize), 0).unwrap();
    let mut device = Device::new();
    let (rx, tx) = (Some(rx.setup(0)), Some(tx.setup(0)));
    device.start(PairSetup { memory: Arc::new(memory), features: PLAIN, rx, tx, log: None });
    assert_eq!(device.receive(), std::slice::from_ref(&frame));
    assert_eq!(device.send(&[packet(1, 64), frame.clone()]), 2);
    let whole = [file.read(half, half as usize), file.read(0, half as usize)].concat();
    assert_eq!(&whole[half as usize - 5 + HEADER..][..300], frame);
    device.close();
}

#[test]
fn a_legacy_device_has_a_short_header() {
    let (arena, layout, mut driver) = split();
    driver.offer(&arena, &[(BUFFER, 10, false), (BUFFER + 64, 60, false)], Told::Direct).unwrap();
    let mut device = Device::serving(&arena, 0, Some(layout.setup(0)), None);
    arena.write(BUFFER + 64, &packet(3, 60));
    assert_eq!(device.receive(), [packet(3, 60)]);
    device.close();
    let (arena, layout, mut driver) = split();
    driver.offer(&arena, &[(BUFFER, 2000, true)], Told::Direct).unwrap();
    let mut device = Device::serving(&arena, 0, None, Some(layout.setup(0)));
    assert_eq!(device.send(&[packet(3, 60)]), 1);
    assert_eq!(driver.collect(&arena).unwrap().1, 70);
    assert_eq!(arena.read(BUFFER, 71), [&[0; 10][..], &packet(3, 60), &[0]].concat());
    device.close();
}

/// What a guest agrees to that takes and leaves everything.
const ABLE: u64 = OFFERED & !RING_PACKED;

fn unfinished(size: u16) -> Offload {
    let checksum = Some(Partial { start: 34, offset: 16 });
    Offload { checksum, segments: Some(Segments { kind: SegmentKind::Tcp4, size, header_len: 54 }) }
}

#[test]
fn what_a_guest_leaves_to_do_stays_with_the_frame() {
    let (arena, layout, mut driver) = split();
    let super_frame = packet(5, 40_000);
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    arena.write(BUFFER, &[&header[..], &super_frame].concat());
    let parts = [(BUFFER, 12, false), (BUFFER + 12, 20_001, false), (BUFFER + 20_013, 19_999, false)];
    driver.offer(&arena, &parts, Told::Direct).unwrap();
    let mut device = Device::serving(&arena, ABLE, Some(layout.setup(0)), None);
    assert_eq!(device.port.rx_burst(&mut device.pool, &mut device.burst), 1);
    let frame = &device.burst.frames()[0];
    assert_eq!((frame.offload(), frame.is_chain()), (unfinished(1448), true));
    assert_eq!(frame.to_vec(), super_frame);
    assert_eq!(device.port.counters().rx_bytes, 40_000);
    device.pool.free_burst(&mut device.burst);
    device.close();
}

#[test]
fn what_is_left_to_do_reaches_a_guest_that_takes_it_and_no_other() {
    for (features, taken) in [(ABLE, true), (MERGEABLE, false)] {
        let (arena, layout, mut driver) = split();
        for number in 0..12 {
            driver.offer(&arena, &[(BUFFER + 4096 * number, 4096, true)], Told::Direct).unwrap();
        }
        let mut device = Device::serving(&arena, features, None, Some(layout.setup(0)));
        assert_eq!(device.port.abilities(), if taken { Abilities::ALL } else { Abilities::CHAINS });
        let super_frame = packet(6, 30_000);
        let mut frame = device.pool.alloc_chain(&super_frame).unwrap();
        frame.set_offload(unfinished(1448));
        device.burst.push(frame).unwrap();
        assert_eq!(device.port.tx_burst(&mut device.pool, &mut device.burst), 1);
        let counters = device.port.counters();
        assert_eq!((counters.tx_packets, counters.tx_invalid), if taken { (1, 0) } else { (0, 1) });
        let lengths: Vec<u32> = std::iter::from_fn(|| driver.collect(&arena)).map(|(_, len)| len).collect();
        if taken {
            assert_eq!(lengths, [4096, 4096, 4096, 4096, 4096, 4096, 4096, 30_012 - 7 * 4096]);
            let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 8, 0];
            assert_eq!(arena.read(BUFFER, 30_012), [&header[..], &super_frame].concat());
        } else {
            assert!(lengths.is_empty());
        }
        device.close();
    }
}

#[test]
fn long_packets_end_a_burst_before_it_is_full() {
    let (arena, layout, mut driver) = split();
    for _ in 0..12 {
        driver.offer(&arena, &[(BUFFER, 65_000, false)], Told::Direct).unwrap();
    }
    let mut device = Device::serving(&arena, PLAIN, Some(layout.setup(0)), None);
    assert_eq!(device.receive().len(), 5);
    assert_eq!(device.receive().len(), 5);
    assert_eq!(device.receive().len(), 2);
    device.close();
}

#[test]
fn without_chunks_packets_stay_with_the_guest() {
    let (arena, layout, mut driver) = split();
    for _ in 0..4 {
        driver.offer(&arena, ONE, Told::Direct).unwrap();
    }
    let mut device = Device::serving(&arena, PLAIN, Some(layout.setup(0)), None);
    let held: Vec<_> = std::iter::from_fn(|| device.pool.alloc()).collect();
    assert_eq!(device.receive().len(), 0);
    assert_eq!(device.port.counters().rx_no_chunk, 4);
    assert_eq!(driver.collect(&arena), None);
    held.into_iter().for_each(|frame| device.pool.free(frame));
    assert_eq!(device.receive().len(), 4);
    device.close();
}

#[test]
fn a_disabled_ring_takes_nothing() {
    let (arena, layout, mut driver) = split();
    driver.offer(&arena, &[(BUFFER, 2000, true)], Told::Direct).unwrap();
    let disabled = RingSetup { enabled: false, ..layout.setup(0) };
    let mut device = Device::serving(&arena, PLAIN, Some(disabled.clone()), Some(disabled));
    assert_eq!(device.send(&[packet(1, 60)]), 0);
    assert_eq!(device.receive().len(), 0);
    assert_eq!(driver.collect(&arena), None);
    device.close();
}
