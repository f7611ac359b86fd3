//! Guests that lie: the ring stops with a reason, the port stays, and nothing outside the guest's memory changes.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Device, HEADER, MERGEABLE, PACKED, PLAIN, packet};
use penstock_vhost::features::{OFFERED, RING_PACKED};
use penstock_vhost::fuzzing::TARGETS;
use penstock_vhost::naive::{Arena, Driver, GUEST, Layout, PackedDriver, SplitDriver, Told};
use penstock_vhost::{GuestMemory, Lie, PairSetup, Side};
use proptest::prelude::*;

const BYTES: u64 = 1 << 18;
const SIZE: u16 = 16;

fn split() -> (Arena, Layout, SplitDriver) {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let driver = SplitDriver::new(&arena, layout, 0);
    (arena, layout, driver)
}

/// Writes descriptor `index` of a split table or a packed ring as it stands.
fn describe(arena: &Arena, table: u64, index: u16, address: u64, len: u32, flags: u16, last: u16) {
    let at = table + 16 * u64::from(index);
    arena.write(at, &address.to_le_bytes());
    arena.write(at + 8, &len.to_le_bytes());
    arena.write(at + 12, &flags.to_le_bytes());
    arena.write(at + 14, &last.to_le_bytes());
}

/// Offers descriptor 0 as a chain and looks what the device makes of it.
fn lie_of(arena: &Arena, layout: &Layout, features: u64) -> Lie {
    arena.write(layout.avail + 2, &1u16.to_le_bytes());
    let mut device = Device::serving(arena, features, Some(layout.setup(0)), None);
    assert_eq!(device.receive().len(), 0);
    let fault = device.switch.fault().expect("the ring lied");
    assert_eq!(fault.side, Side::Rx);
    // It stays stopped, says so once, and the port can be closed.
    assert_eq!(device.receive().len(), 0);
    assert_eq!(device.switch.fault(), None);
    assert_eq!(device.switch.faults(), 1);
    device.close();
    fault.what
}

#[test]
fn a_chain_that_is_a_loop_stops_the_ring() {
    let (arena, layout, _) = split();
    describe(&arena, layout.desc, 0, GUEST + 8192, 64, 1, 1);
    describe(&arena, layout.desc, 1, GUEST + 8192, 64, 1, 0);
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::TooLong(SIZE));
}

#[test]
fn a_chain_of_empty_buffers_that_is_a_loop_stops_the_ring() {
    let (arena, layout, _) = split();
    describe(&arena, layout.desc, 0, GUEST, 0, 1, 0);
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::TooLong(SIZE));
}

#[test]
fn a_burst_looks_at_so_many_descriptors_and_no_more() {
    // Every head is that of one long chain of empty buffers.
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, 1024);
    for index in 0..1024 {
        describe(&arena, layout.desc, index, GUEST, 0, u16::from(index % 512 != 511), index + 1);
        arena.write(layout.avail + 4 + 2 * u64::from(index), &[0, 0]);
    }
    arena.write(layout.avail + 2, &64u16.to_le_bytes());
    let mut device = Device::serving(&arena, PLAIN, Some(layout.setup(0)), None);
    for burst in 1..=4 {
        device.receive();
        assert_eq!(penstock_io::Port::counters(&device.port).rx_invalid, 2 * burst);
    }
    device.close();
}

#[test]
fn a_buffer_past_the_regions_end_stops_the_ring() {
    for (address, len) in [
        (GUEST + BYTES, 64),
        (GUEST + BYTES - 63, 64),
        (GUEST - 1, 64),
        (u64::MAX, 64),
        (u64::MAX - 63, 64),
        (GUEST, u32::MAX),
        (0, 64),
    ] {
        let (arena, layout, _) = split();
        describe(&arena, layout.desc, 0, address, len, 0, 0);
        assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::Outside { address, len });
        describe(&arena, layout.desc, 0, GUEST + 8192, 64, 1, 1);
        describe(&arena, layout.desc, 1, address, len, 0, 0);
        assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::Outside { address, len });
    }
}

#[test]
fn descriptors_that_are_not_there_stop_the_ring() {
    let (arena, layout, _) = split();
    arena.write(layout.avail + 4, &SIZE.to_le_bytes());
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::NoDescriptor(SIZE));
    arena.write(layout.avail + 4, &[0, 0]);
    describe(&arena, layout.desc, 0, GUEST, 64, 1, 0xffff);
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::NoDescriptor(0xffff));
}

#[test]
fn an_index_that_jumps_stops_the_ring() {
    for index in [SIZE + 1, 0x8000, 0xffff] {
        let (arena, layout, _) = split();
        arena.write(layout.avail + 2, &index.to_le_bytes());
        let mut device = Device::serving(&arena, PLAIN, Some(layout.setup(0)), Some(layout.setup(0)));
        assert_eq!(device.receive().len(), 0);
        assert_eq!(device.switch.fault().unwrap().what, Lie::IndexJump(index));
        assert_eq!(device.send(&[packet(0, 64)]), 0);
        assert_eq!(device.switch.fault().unwrap().side, Side::Tx);
        device.close();
    }
}

#[test]
fn indirect_tables_that_cannot_be_stop_the_ring() {
    let table = GUEST + 4096;
    let cases = [
        (table, 0, 4, Lie::IndirectLength(0)),
        (table, 17, 4, Lie::IndirectLength(17)),
        (table, 16 << 16, 4, Lie::IndirectLength(16 << 16)),
        (GUEST + BYTES - 8, 16, 4, Lie::Outside { address: GUEST + BYTES - 8, len: 16 }),
        (table, 16, 4 | 1, Lie::IndirectInside),
    ];
    for (address, len, flags, lie) in cases {
        let (arena, layout, _) = split();
        describe(&arena, layout.desc, 0, address, len, flags, 0);
        assert_eq!(lie_of(&arena, &layout, PLAIN), lie);
    }
    let (arena, layout, _) = split();
    describe(&arena, layout.desc, 0, table, 32, 4, 0);
    describe(&arena, 4096, 0, GUEST + 8192, 64, 4, 0);
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::IndirectInside);
    describe(&arena, 4096, 0, GUEST + 8192, 64, 1, 2);
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::NoDescriptor(2));
    describe(&arena, 4096, 0, GUEST + 8192, 64, 1, 0);
    assert_eq!(lie_of(&arena, &layout, PLAIN), Lie::TooLong(2));
    assert_eq!(lie_of(&arena, &layout, 1 << 32), Lie::IndirectRefused);
}

#[test]
fn a_packed_chain_without_end_stops_the_ring() {
    let arena = Arena::new(BYTES).unwrap();
    let layout = Layout::at(0, SIZE);
    let driver = PackedDriver::new(&arena, layout, 0, true);
    for index in 0..SIZE {
        describe(&arena, layout.desc, index, GUEST + 8192, 64, 0, 1 | 1 << 7);
    }
    let mut device = Device::serving(&arena, PACKED, Some(layout.setup(driver.base())), None);
    assert_eq!(device.receive().len(), 0);
    assert_eq!(device.switch.fault().unwrap().what, Lie::TooLong(SIZE));
    device.close();
}

#[test]
fn a_buffer_that_may_not_be_written_is_not() {
    for flags in [0u16, 1] {
        let (arena, layout, _) = split();
        describe(&arena, layout.desc, 0, GUEST + 8192, 2048, flags, 1);
        describe(&arena, layout.desc, 1, GUEST + 16384, 2048, 2, 0);
        arena.write(layout.avail + 2, &1u16.to_le_bytes());
        let mut device = Device::serving(&arena, MERGEABLE, None, Some(layout.setup(0)));
        assert_eq!(device.send(&[packet(1, 64)]), 0);
        assert_eq!(device.switch.fault().unwrap().what, Lie::ReadOnly);
        assert!(arena.read(8192, 4096).iter().all(|&byte| byte == 0));
        device.close();
    }
}

#[test]
fn packets_that_are_none_are_counted_and_their_buffers_returned() {
    let (arena, layout, mut driver) = split();
    let mut offer = |len: u32, write: bool, header: [u8; HEADER]| {
        arena.write(8192, &header);
        driver.offer(&arena, &[(8192, len, write)], Told::Direct).unwrap();
        let mut device =
            Device::serving(&arena, OFFERED & !RING_PACKED, Some(layout.setup(driver.base() - 1)), None);
        let got = device.receive().len();
        let invalid = penstock_io::Port::counters(&device.port).rx_invalid;
        assert!(driver.collect(&arena).is_some());
        assert_eq!(device.switch.fault(), None);
        device.close();
        (got as u64, invalid)
    };
    let plain = [0; HEADER];
    let ordered = |flags: u8, gso: u8, start: u16, offset: u16| {
        let mut header = plain;
        (header[0], header[1]) = (flags, gso);
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    };
    assert_eq!(offer(HEADER as u32 + 60, false, plain), (1, 0));
    assert_eq!(offer(HEADER as u32 + 13, false, plain), (0, 1), "shorter than an Ethernet header");
    assert_eq!(offer(HEADER as u32 - 1, false, plain), (0, 1), "shorter than its own header");
    assert_eq!(offer(0, false, plain), (0, 1), "empty");
    assert_eq!(offer(200_000, false, plain), (0, 1), "longer than any packet");
    assert_eq!(offer(HEADER as u32 + 60, true, plain), (0, 1), "to be written");
    assert_eq!(offer(HEADER as u32 + 60, false, ordered(1, 0, 34, 6)), (1, 0));
    assert_eq!(offer(HEADER as u32 + 60, false, ordered(1, 0, 60, 0)), (0, 1), "a checksum past the end");
    assert_eq!(offer(HEADER as u32 + 60, false, ordered(1, 0, 0xffff, 0xffff)), (0, 1), "far past it");
    assert_eq!(offer(HEADER as u32 + 60, false, ordered(0, 0x7f, 0, 0)), (0, 1), "segments of no known kind");
}

#[test]
fn rings_outside_the_memory_are_refused() {
    let (arena, layout, _) = split();
    let good = layout.setup(0);
    let refused = |setup, features| {
        let device = Device::serving(&arena, features, Some(setup), None);
        let lie = device.switch.fault().map(|fault| fault.what);
        device.close();
        lie
    };
    assert_eq!(refused(good.clone(), PLAIN), None);
    for size in [0, 3, 1 << 16, u32::MAX] {
        let setup = penstock_vhost::RingSetup { size, ..good.clone() };
        assert_eq!(refused(setup, PLAIN), Some(Lie::Size(size)));
    }
    for address in [0, good.desc + BYTES - 16, good.desc + 8, u64::MAX] {
        let setup = penstock_vhost::RingSetup { desc: address, ..good.clone() };
        assert!(matches!(refused(setup.clone(), PLAIN), Some(Lie::Misplaced(_))), "{address:#x}");
        assert!(matches!(refused(setup, PACKED), Some(Lie::Misplaced(_))), "{address:#x}");
    }
    for address in [0, good.desc + BYTES - 2, good.used + 1, u64::MAX] {
        let setup = penstock_vhost::RingSetup { avail: address, ..good.clone() };
        assert!(matches!(refused(setup, PLAIN), Some(Lie::Misplaced(_))), "{address:#x}");
        let setup = penstock_vhost::RingSetup { used: address, ..good.clone() };
        assert!(matches!(refused(setup, PLAIN), Some(Lie::Misplaced(_))), "{address:#x}");
    }
    let setup = penstock_vhost::RingSetup { base: 16 | 1 << 15, ..good };
    assert_eq!(refused(setup, PACKED), Some(Lie::IndexJump(16)));
}

#[test]
fn a_truncated_file_stops_the_rings_and_nothing_else() {
    let (arena, layout, mut driver) = split();
    let (other, far, mut neighbour) = split();
    let setup = layout.setup(driver.base());
    let mut device = Device::serving(&arena, PLAIN, Some(setup.clone()), Some(setup));
    let mut well = Device::serving(&other, PLAIN, Some(far.setup(neighbour.base())), None);
    driver.offer(&arena, &[(65536, 100, false)], Told::Direct).unwrap();
    neighbour.offer(&other, &[(65536, 100, false)], Told::Direct).unwrap();
    arena.file().set_len(0).unwrap();
    // Reading the ring faults; what is found there instead is zeros.
    assert_eq!(device.receive().len(), 0);
    device.settle();
    assert_eq!(device.switch.fault().unwrap().what, Lie::MemoryGone);
    assert_eq!(device.switch.faults(), 2, "both rings stop");
    assert_eq!(well.receive().len(), 1);
    well.settle();
    assert_eq!(well.switch.fault(), None);
    device.close();
    well.close();
}

#[test]
fn a_packet_in_a_truncated_part_stops_the_rings() {
    let (arena, layout, mut driver) = split();
    let mut device = Device::serving(&arena, PLAIN, Some(layout.setup(driver.base())), None);
    driver.offer(&arena, &[(65536, 100, false)], Told::Direct).unwrap();
    arena.file().set_len(65536).unwrap();
    device.receive();
    device.settle();
    assert_eq!(device.switch.fault().unwrap().what, Lie::MemoryGone);
    device.close();
}

#[test]
fn memory_changed_under_a_ring_is_read_once() {
    // A guest that changes its descriptors and headers as fast as it can, while the device looks at them.
    for features in [PLAIN, PACKED] {
        let arena = Arc::new(Arena::new(BYTES).unwrap());
        let layout = Layout::at(0, SIZE);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let guest = {
            let (arena, stop) = (Arc::clone(&arena), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut number = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let (index, kind) = ((number >> 33) % 16, (number >> 40) % 7);
                    let flags = [0u16, 1, 4, 0x80, 0x8080, 0x81, 0x84][(number >> 50) as usize % 7];
                    let len = if kind == 3 { (number >> 20) as u32 } else { 100 };
                    describe(
                        &arena,
                        layout.desc,
                        index as u16,
                        GUEST + 8192 + (number >> 45),
                        len,
                        flags,
                        flags,
                    );
                    arena.write(layout.avail + 2, &((number >> 60) as u16).to_le_bytes());
                    arena.write(8192 + (number >> 45) % 100_000, &[number as u8]);
                }
            })
        };
        let mut device = Device::new();
        for _ in 0..3000 {
            let rings = [Some(layout.setup(0)), Some(layout.setup(0))];
            let [rx, tx] = rings;
            device.start(PairSetup { memory: arena.memory().unwrap(), features, rx, tx, log: None });
            device.receive();
            device.send(&[packet(1, 60), packet(2, 1500)]);
            device.settle();
            let _ = device.switch.fault();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        guest.join().unwrap();
        device.close();
    }
}

#[test]
fn a_guest_that_turns_its_flags_under_our_eyes_gets_us_round_its_ring_no_more_than_once() {
    const FEW: u16 = 4;
    const AVAIL: u16 = 1 << 7;
    const USED: u16 = 1 << 15;
    let arena = Arc::new(Arena::new(BYTES).unwrap());
    let layout = Layout::at(0, FEW);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let guest = {
        let (arena, stop) = (Arc::clone(&arena), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for flags in [AVAIL, USED] {
                    (0..FEW).for_each(|index| {
                        describe(&arena, layout.desc, index, GUEST + 8192, 100, index, flags);
                    });
                }
            }
        })
    };
    let mut device = Device::serving(&arena, PACKED, Some(layout.setup(0x8000_8000)), None);
    for _ in 0..20_000 {
        assert!(device.receive().len() <= usize::from(FEW));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    guest.join().unwrap();
    device.close();
}

#[test]
fn memory_is_let_go_before_a_stop_returns() {
    let (arena, layout, mut driver) = split();
    let mut device = Device::new();
    let memory = arena.memory().unwrap();
    let rx = Some(layout.setup(driver.base()));
    device.start(PairSetup { memory: Arc::clone(&memory), features: PLAIN, rx, tx: None, log: None });
    assert!(device.switch.is_served() && Arc::strong_count(&memory) > 1);
    driver.offer(&arena, &[(65536, 100, false)], Told::Direct).unwrap();
    assert_eq!(device.receive().len(), 1);
    let waited = device.switch.stop(Duration::from_millis(10));
    assert!(waited.unwrap_err().to_string().contains("pod"), "a worker that does nothing is named");
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| device.switch.stop(Duration::from_secs(10)));
        while device.switch.is_served() {
            penstock_io::Port::settle(&mut device.port, &mut device.pool).unwrap();
        }
        assert_eq!(stopped.join().unwrap().unwrap().rx, Some(1));
    });
    assert_eq!(Arc::strong_count(&memory), 1);
    device.close();
}

#[test]
fn overlapping_and_endless_regions_are_refused() {
    let arena = Arena::new(BYTES).unwrap();
    let region = |guest: u64, user: u64, bytes: u64, offset: u64| penstock_vhost::RegionSetup {
        guest,
        user,
        bytes,
        offset,
        file: arena.file().try_clone().unwrap(),
    };
    assert!(GuestMemory::map([region(0, 0, 4096, 0), region(4096, 4096, 4096, 4096)]).is_ok());
    assert!(GuestMemory::map([region(0, 0, 4096, 0), region(4095, 1 << 40, 4096, 4096)]).is_err());
    assert!(GuestMemory::map([region(0, 0, 4096, 0), region(1 << 40, 4095, 4096, 4096)]).is_err());
    for (guest, user, bytes, offset) in [
        (0, 0, 0, 0),
        (u64::MAX, 0, 4096, 0),
        (0, u64::MAX, 4096, 0),
        (0, 0, 4096, u64::MAX),
        (0, 0, BYTES, 1),
    ] {
        assert!(GuestMemory::map([region(guest, user, bytes, offset)]).is_err());
    }
    let memory = GuestMemory::map([region(0, 0, 4096, 0)]).unwrap();
    assert!(memory.without(0, 0, 8192).is_err());
    assert_eq!(memory.without(0, 0, 4096).unwrap().regions(), 0);
}

fn run_all(bytes: &[u8]) {
    TARGETS.iter().for_each(|(_, target)| target(bytes));
}

/// Steps that mostly make sense: the ring, the kind of step, and what it takes.
fn script() -> impl Strategy<Value = Vec<u8>> {
    let step = (0u8..2, prop_oneof![2 => 0u8..10, 3 => 2u8..9], prop::collection::vec(any::<u8>(), 0..14));
    (any::<u8>(), prop::collection::vec(step, 0..40)).prop_map(|(choice, steps)| {
        let steps = steps.into_iter().flat_map(|(ring, kind, rest)| [vec![ring, kind], rest].concat());
        std::iter::once(choice).chain(steps).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        run_all(&bytes);
    }

    #[test]
    fn structured_bytes_do_no_harm(bytes in script()) {
        run_all(&bytes);
    }
}

fn fuzz_folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

#[test]
fn inputs_that_once_crashed_a_target_do_no_more() {
    for folder in fs::read_dir(fuzz_folder().join("crashes")).unwrap().flatten() {
        if !folder.file_type().unwrap().is_dir() {
            continue;
        }
        let name = folder.file_name().into_string().unwrap();
        let target = TARGETS.iter().find(|(known, _)| *known == name);
        let (_, target) = target.unwrap_or_else(|| panic!("fuzz/crashes/{name} is no target's folder"));
        for input in fs::read_dir(folder.path()).unwrap().flatten() {
            println!("{}", input.path().display());
            target(&fs::read(input.path()).unwrap());
        }
    }
}

#[test]
fn every_target_has_its_program() {
    let programs: BTreeSet<String> = fs::read_dir(fuzz_folder().join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(programs, targets);
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for name in targets {
        let program = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("fuzzing::{name}(")), "{name}.rs runs its own target");
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml lists {name}");
    }
}
