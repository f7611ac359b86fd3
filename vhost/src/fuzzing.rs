//! What the fuzz targets do with their bytes: play a guest that obeys nothing, and hold the port to what must be true.
//!
//! The programs under `fuzz/` only call these functions, and `tests/hostile.rs` runs them on random, structured and
//! once-crashing inputs, so an ordinary test run exercises each.

use std::sync::{Arc, OnceLock};

use penstock_io::{Burst, FramePool, Hugepages, Offload, Partial, Port, Region, SegmentKind, Segments};

use crate::features::{EVENT_IDX, INDIRECT_DESC, LOG_ALL, MRG_RXBUF, OFFERED, RING_PACKED};
use crate::inflight::Inflight;
use crate::log::DirtyLog;
use crate::memory::{GuestMemory, RegionSetup};
use crate::naive::{Arena, GUEST, Layout, USER};
pub use crate::session::fuzzing::session;
use crate::{PairSetup, Switch, VhostPort, handover};

/// A target: its name, which is that of its program, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[("rings", rings), ("session", session)];

/// Bytes of a file in front of the memory that is shared.
const FRONT: u64 = 4096;
/// Bytes that are shared: no whole number of pages, so that one byte past the end is seen.
const SHARED: u64 = 40_000;
/// The file with what follows.
const WHOLE: u64 = 49_152;
/// What is in the bytes that are not shared.
const UNTOUCHED: u8 = 0xa5;
/// Entries of the rings.
const SIZE: u16 = 16;

/// The bytes of an input, one after the other; zeros when they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u64 {
        (0..4).fold(0, |long, _| long << 16 | u64::from(self.word()))
    }
}

/// A guest that obeys nothing.
struct Hostile {
    arena: Arena,
    features: u64,
    rings: [Layout; 2],
    switch: Switch,
    port: VhostPort,
    pool: FramePool,
    burst: Burst,
    inflight: Option<Inflight>,
    log: Option<Arc<DirtyLog>>,
}

impl Hostile {
    fn new(choice: u8) -> Option<Hostile> {
        static REGION: OnceLock<Option<&'static Region>> = OnceLock::new();
        let region = (*REGION.get_or_init(|| Region::map(4096, Hugepages::Off).ok()))?;
        let optional = [RING_PACKED, MRG_RXBUF, EVENT_IDX, INDIRECT_DESC, LOG_ALL];
        let left_out = optional.iter().enumerate().filter(|(bit, _)| choice & 1 << bit == 0);
        let features = left_out.fold(OFFERED, |features, (_, feature)| features & !feature);
        let arena = Arena::new(WHOLE).ok()?;
        arena.write(0, &[UNTOUCHED; FRONT as usize]);
        arena.write(FRONT + SHARED, &[UNTOUCHED; (WHOLE - FRONT - SHARED) as usize]);
        let log = Arena::new(64).ok()?;
        let log = DirtyLog::map(log.file(), 0, 64).ok().map(Arc::new);
        let packed = features & RING_PACKED != 0;
        let inflight =
            if choice & 0x20 != 0 { Some(Inflight::create(2, SIZE, packed).ok()?.0) } else { None };
        let (switch, intake) = handover("hostile").ok()?;
        let port = VhostPort::new(intake).ok()?;
        let rings = [Layout::at(0, SIZE), Layout::at(2048, SIZE)];
        let (pool, burst) = (FramePool::new(region), Burst::new());
        Some(Hostile { arena, features, rings, switch, port, pool, burst, inflight, log })
    }

    /// Starts, or starts again, with rings that may be anywhere.
    fn start(&mut self, bases: [u32; 2], astray: u64) {
        let Ok(file) = self.arena.file().try_clone() else { return };
        let region = RegionSetup { guest: GUEST, user: USER, bytes: SHARED, offset: FRONT, file };
        // A file that was truncated cannot be mapped again.
        let Ok(memory) = GuestMemory::map([region]) else { return };
        let mut setups = [0, 1].map(|i| self.rings[i].setup(bases[i]));
        for (i, setup) in setups.iter_mut().enumerate() {
            setup.inflight = self.inflight.as_ref().and_then(|inflight| inflight.queue(i as u16));
            setup.used_log = Some(astray);
        }
        if astray & 7 == 1 {
            setups[0].desc = setups[0].desc.wrapping_add(astray >> 3);
        }
        let [rx, tx] = setups.map(Some);
        let (memory, log) = (Arc::new(memory), self.log.clone());
        self.switch.start(PairSetup { memory, features: self.features, rx, tx, log });
    }

    /// Does one thing.
    fn act(&mut self, script: &mut Script<'_>) {
        let ring = self.rings[usize::from(script.byte() & 1)];
        match script.byte() % 10 {
            0 => self.write(script.word().into(), &script.byte().to_le_bytes()),
            1 => self.write(script.word().into(), &script.long().to_le_bytes()),
            2 | 3 => {
                let (index, place) = (u64::from(script.byte()), script.word());
                let address = if place & 1 == 0 { GUEST + u64::from(place) } else { script.long() };
                let rest = script.long() & 0x80ff_ffff_0000_1fff;
                self.write(ring.desc + 16 * (index % 64), &address.to_le_bytes());
                self.write(ring.desc + 16 * (index % 64) + 8, &rest.to_le_bytes());
            }
            4 => {
                let (entry, head) = (u64::from(script.byte() % 16), u16::from(script.byte() % 20));
                self.write(ring.avail + 4 + 2 * entry, &head.to_le_bytes());
            }
            5 => self.write(ring.avail + 2, &u16::from(script.byte()).to_le_bytes()),
            6 => {
                self.port.rx_burst(&mut self.pool, &mut self.burst);
                self.pool.free_burst(&mut self.burst);
            }
            7 => self.send(usize::from(script.byte() % 80), script.word().into(), script.byte()),
            8 => {
                // Never an error: a ring that lies is the session's business.
                assert!(self.port.settle(&mut self.pool).is_ok());
                self.port.is_restless();
                self.port.wake();
            }
            _ => {
                let bases = [script.word(), script.word()].map(u32::from);
                self.start(bases, script.long());
                if script.byte() & 0x1f == 1 {
                    let _ = self.arena.file().set_len(FRONT + 1);
                }
            }
        }
    }

    /// Writes to what is shared, if that is there.
    fn write(&self, offset: u64, bytes: &[u8]) {
        if offset + bytes.len() as u64 <= SHARED {
            self.arena.write(FRONT + offset, bytes);
        }
    }

    fn send(&mut self, frames: usize, len: usize, work: u8) {
        let checksum = (work & 1 != 0).then_some(Partial { start: 34, offset: 16 });
        let kind = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][usize::from(work / 4 % 3)];
        let segments = (work & 2 != 0).then_some(Segments { kind, size: 1448, header_len: 54 });
        for number in 0..frames.min(self.burst.room()) {
            // Few long ones: it is their ends that matter.
            let len = if number % 16 == 0 { len } else { len % 1780 };
            let Some(mut frame) = self.pool.alloc_chain(&[1; 1 << 16][..(len + 14).min(1 << 16)]) else {
                break;
            };
            frame.set_offload(Offload { checksum, segments });
            if let Err(frame) = self.burst.push(frame) {
                self.pool.free(frame);
            }
        }
        self.port.tx_burst(&mut self.pool, &mut self.burst);
        self.pool.free_burst(&mut self.burst);
    }

    fn end(mut self) {
        // Where the file is as long as it was, what was not shared is as it was.
        if self.arena.file().metadata().is_ok_and(|about| about.len() == WHOLE) {
            let behind = (WHOLE - FRONT - SHARED) as usize;
            assert!(self.arena.read(0, FRONT as usize).iter().all(|&byte| byte == UNTOUCHED));
            assert!(self.arena.read(FRONT + SHARED, behind).iter().all(|&byte| byte == UNTOUCHED));
        }
        self.port.close(&mut self.pool);
    }
}

/// Lets a hostile guest do what the bytes say to a port of each kind.
pub fn rings(bytes: &[u8]) {
    let mut script = Script(bytes);
    let Some(mut guest) = Hostile::new(script.byte()) else { return };
    guest.start([0, 0], 0);
    let _ = guest.port.settle(&mut guest.pool);
    while !script.0.is_empty() {
        guest.act(&mut script);
    }
    guest.end();
}
