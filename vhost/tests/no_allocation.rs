//! A burst allocates nothing, whatever the guest's buffers look like.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout as Bytes, System};
use std::cell::Cell;

use common::{Device, MERGEABLE, PACKED};
use penstock_io::Port;
use penstock_vhost::features::MRG_RXBUF;
use penstock_vhost::naive::{Arena, Driver, Layout, PackedDriver, SplitDriver, Told};

thread_local! {
    /// Allocations of this thread: other tests' threads do not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's, which keeps the contract; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Bytes) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's word about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Bytes) {
        // SAFETY: the caller's word about `pointer` and `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn bursts_allocate_nothing() {
    for features in [MERGEABLE, PACKED | MRG_RXBUF] {
        let arena = Arena::new(1 << 20).unwrap();
        let layouts = [Layout::at(0, 64), Layout::at(8192, 64)];
        let mut drivers = layouts.map(|layout| -> Box<dyn Driver> {
            if features & PACKED == PACKED {
                Box::new(PackedDriver::new(&arena, layout, 0, true))
            } else {
                Box::new(SplitDriver::new(&arena, layout, 0))
            }
        });
        let [rx, tx] = [0, 1].map(|i| Some(layouts[i].setup(drivers[i].base())));
        let mut device = Device::serving(&arena, features, rx, tx);
        let (mut forwarded, mut allocated) = (0, 0);
        for round in 0..200u64 {
            for number in 0..16 {
                let at = 65536 + number * 16384;
                let sent = [(at, 6, false), (at + 64, 94 + round as u32, false)];
                let told = if number % 3 == 0 { Told::Indirect(at + 8192) } else { Told::Direct };
                drivers[0].offer(&arena, &sent, told);
                drivers[1].offer(&arena, &[(at + 1024, 150, true), (at + 2048, 60, true)], Told::Direct);
            }
            let before = ALLOCATIONS.with(Cell::get);
            device.port.rx_burst(&mut device.pool, &mut device.burst);
            forwarded += device.port.tx_burst(&mut device.pool, &mut device.burst);
            device.pool.free_burst(&mut device.burst);
            device.port.settle(&mut device.pool).unwrap();
            if round > 0 {
                allocated += ALLOCATIONS.with(Cell::get) - before;
            }
            for driver in &mut drivers {
                while driver.collect(&arena).is_some() {}
            }
        }
        assert_eq!(allocated, 0);
        assert!(forwarded > 1000, "{forwarded}");
        device.close();
    }
}
