//! A guest as plain as can be: memory of its own, and the driver's side of both kinds of ring, for tests, benches and the
//! fuzz target.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::handover::RingSetup;
use crate::memory::{GuestMemory, Mapping, MemoryError, RegionSetup, Words};

/// Where the guest sees its memory.
pub const GUEST: u64 = 0x1_0000_0000;
/// Where its front-end sees it.
pub const USER: u64 = 0x7f00_0000_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Memory of a guest's, as the guest itself has it.
#[derive(Debug)]
pub struct Arena {
    file: File,
    words: Words,
    bytes: u64,
    _mapping: Mapping,
}

impl Arena {
    /// Makes `bytes` of zeros.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(bytes: u64) -> io::Result<Arena> {
        // SAFETY: the name is a C string that lives through the call.
        let fd = unsafe { libc::memfd_create(c"penstock-guest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, which nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes)?;
        let mapping = Mapping::of(&file, 0, bytes)?;
        Ok(Arena { words: mapping.words(0, mapping.bytes()), file, bytes, _mapping: mapping })
    }

    /// The file behind it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It as one region, for a front-end to tell.
    ///
    /// # Errors
    /// The kernel's.
    pub fn region(&self) -> io::Result<RegionSetup> {
        let file = self.file.try_clone()?;
        Ok(RegionSetup { guest: GUEST, user: USER, bytes: self.bytes, offset: 0, file })
    }

    /// It as a device maps it.
    ///
    /// # Errors
    /// As [`GuestMemory::map`].
    pub fn memory(&self) -> Result<Arc<GuestMemory>, MemoryError> {
        let region =
            self.region().map_err(|source| MemoryError::System { guest: GUEST, call: "dup", source })?;
        Ok(Arc::new(GuestMemory::map([region])?))
    }

    /// Writes bytes at an offset.
    ///
    /// # Panics
    /// Past the end, as all of these.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.words.store8(offset as usize + i, *byte, Relaxed);
        }
    }

    /// Reads bytes at an offset.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        (0..len).map(|i| self.words.load8(offset as usize + i, Relaxed)).collect()
    }

    fn descriptor(&self, offset: u64, address: u64, rest: u64) {
        self.words.store64(offset as usize, address, Relaxed);
        self.words.store64(offset as usize + 8, rest, Relaxed);
    }
}

/// Where a ring's parts are in an arena.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Entries.
    pub size: u16,
    /// The descriptor table or ring.
    pub desc: u64,
    /// The available ring or driver area.
    pub avail: u64,
    /// The used ring or device area.
    pub used: u64,
}

impl Layout {
    /// A ring at `offset`, its parts one after the other.
    #[must_use]
    pub fn at(offset: u64, size: u16) -> Layout {
        let avail = offset + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(64);
        Layout { size, desc: offset, avail, used }
    }

    /// The first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        (self.used + 6 + 8 * u64::from(self.size)).next_multiple_of(64)
    }

    /// It as a session tells it, enabled, without bells.
    #[must_use]
    pub fn setup(&self, base: u32) -> RingSetup {
        RingSetup {
            size: self.size.into(),
            desc: USER + self.desc,
            avail: USER + self.avail,
            used: USER + self.used,
            used_log: None,
            base,
            kick: None,
            call: None,
            enabled: true,
            inflight: None,
        }
    }
}

/// A buffer that the driver offers: where it is in the arena, how long, and whether the device may write it.
pub type Offer = (u64, u32, bool);

/// How the buffers of a chain are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// By descriptors of the ring itself.
    Direct,
    /// By a table at this offset.
    Indirect(u64),
}

/// The driver's side of a ring of either kind.
pub trait Driver {
    /// Offers a chain; `None` when there are no descriptors left, else what the device will return it by.
    fn offer(&mut self, arena: &Arena, buffers: &[Offer], told: Told) -> Option<u16>;

    /// The oldest chain that the device returned and that was not asked for yet, and how much it says to have written.
    fn collect(&mut self, arena: &Arena) -> Option<(u16, u32)>;

    /// The base of a ring that begins where this one does.
    fn base(&self) -> u32;
}

/// The driver's side of a split ring.
#[derive(Debug)]
pub struct SplitDriver {
    layout: Layout,
    avail: u16,
    used: u16,
    free: Vec<u16>,
    /// The descriptors of each chain, by its head.
    chains: Vec<Vec<u16>>,
}

impl SplitDriver {
    /// One whose indices begin at `start`.
    #[must_use]
    pub fn new(arena: &Arena, layout: Layout, start: u16) -> SplitDriver {
        arena.words.store16(layout.avail as usize + 2, start, Relaxed);
        arena.words.store16(layout.used as usize + 2, start, Relaxed);
        let free = (0..layout.size).rev().collect();
        SplitDriver { layout, avail: start, used: start, free, chains: vec![Vec::new(); layout.size.into()] }
    }

    /// Asks for a notification when the chain `ahead` of the next one is returned (with `EVENT_IDX`).
    pub fn ask(&self, arena: &Arena, ahead: u16) {
        let at = self.layout.avail + 4 + 2 * u64::from(self.layout.size);
        arena.words.store16(at as usize, self.used.wrapping_add(ahead), Relaxed);
    }

    /// Where the device wants to be notified (with `EVENT_IDX`).
    #[must_use]
    pub fn asked(&self, arena: &Arena) -> u16 {
        let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
        arena.words.load16(at as usize, Relaxed)
    }
}

impl Driver for SplitDriver {
    fn offer(&mut self, arena: &Arena, buffers: &[Offer], told: Told) -> Option<u16> {
        let needs = if told == Told::Direct { buffers.len() } else { 1 };
        if self.free.len() < needs || needs == 0 {
            return None;
        }
        let taken = self.free.split_off(self.free.len() - needs);
        let head = taken[0];
        let table = self.layout.desc;
        match told {
            Told::Direct => link(arena, |i| table + 16 * u64::from(taken[i]), |i| taken[i], buffers),
            Told::Indirect(at) => {
                link(arena, |i| at + 16 * i as u64, |i| i as u16, buffers);
                let len = 16 * buffers.len() as u64;
                arena.descriptor(
                    table + 16 * u64::from(head),
                    GUEST.wrapping_add(at),
                    len | u64::from(INDIRECT) << 32,
                );
            }
        }
        self.chains[usize::from(head)] = taken;
        let at = self.layout.avail as usize;
        arena.words.store16(at + 4 + 2 * usize::from(self.avail % self.layout.size), head, Relaxed);
        self.avail = self.avail.wrapping_add(1);
        arena.words.store16(at + 2, self.avail, Release);
        Some(head)
    }

    fn collect(&mut self, arena: &Arena) -> Option<(u16, u32)> {
        let at = self.layout.used as usize;
        if arena.words.load16(at + 2, Acquire) == self.used {
            return None;
        }
        let entry = at + 4 + 8 * usize::from(self.used % self.layout.size);
        let head = arena.words.load32(entry, Relaxed) as u16;
        self.used = self.used.wrapping_add(1);
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, arena.words.load32(entry + 4, Relaxed)))
    }

    fn base(&self) -> u32 {
        self.avail.into()
    }
}

/// Writes a chain of split descriptors: the `i`th at `place(i)`, known to the one before as `index(i)`.
fn link(arena: &Arena, place: impl Fn(usize) -> u64, index: impl Fn(usize) -> u16, buffers: &[Offer]) {
    for (i, &(offset, len, write)) in buffers.iter().enumerate() {
        let last = i + 1 == buffers.len();
        let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
        let next = if last { 0 } else { index(i + 1) };
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        arena.descriptor(place(i), GUEST.wrapping_add(offset), rest);
    }
}

/// The driver's side of a packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    layout: Layout,
    avail: (u16, bool),
    used: (u16, bool),
    /// Entries of the ring that nobody uses.
    room: u16,
    ids: Vec<u16>,
    /// The entries that each chain takes, by its id.
    entries: Vec<u16>,
}

impl PackedDriver {
    /// One that begins at entry `start`, in a round with wrap counter `wrap`.
    #[must_use]
    pub fn new(arena: &Arena, layout: Layout, start: u16, wrap: bool) -> PackedDriver {
        for entry in 0..layout.size {
            // As if each had been used: those in front of `start` in this round, the others in the one before.
            let round = if entry < start { wrap } else { !wrap };
            let flags = if round { AVAIL | USED } else { 0 };
            arena.descriptor(layout.desc + 16 * u64::from(entry), 0, u64::from(flags) << 48);
        }
        let place = (start, wrap);
        let ids = (0..layout.size).rev().collect();
        let entries = vec![0; layout.size.into()];
        PackedDriver { layout, avail: place, used: place, room: layout.size, ids, entries }
    }

    fn step(&self, place: (u16, bool), entries: u16) -> (u16, bool) {
        let index = place.0 + entries;
        if index >= self.layout.size { (index - self.layout.size, !place.1) } else { (index, place.1) }
    }

    fn entry(&self, index: u16) -> u64 {
        self.layout.desc + 16 * u64::from(index)
    }
}

impl Driver for PackedDriver {
    fn offer(&mut self, arena: &Arena, buffers: &[Offer], told: Told) -> Option<u16> {
        let needs = if told == Told::Direct { buffers.len() as u16 } else { 1 };
        if self.room < needs || needs == 0 {
            return None;
        }
        let id = self.ids.pop()?;
        let rest = |len: u32, flags: u16, (_, wrap): (u16, bool)| {
            let flags = flags | if wrap { AVAIL } else { USED };
            u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
        };
        let mut writes = Vec::new();
        let mut place = self.avail;
        match told {
            Told::Direct => {
                for (i, &(offset, len, write)) in buffers.iter().enumerate() {
                    let last = i + 1 == buffers.len();
                    let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
                    writes.push((self.entry(place.0), GUEST.wrapping_add(offset), rest(len, flags, place)));
                    place = self.step(place, 1);
                }
            }
            Told::Indirect(at) => {
                for (i, &(offset, len, write)) in buffers.iter().enumerate() {
                    let flags = if write { WRITE } else { 0 };
                    let rest = u64::from(len) | u64::from(flags) << 48;
                    arena.descriptor(at + 16 * i as u64, GUEST.wrapping_add(offset), rest);
                }
                let len = 16 * buffers.len() as u32;
                writes.push((self.entry(place.0), GUEST + at, rest(len, INDIRECT, place)));
                place = self.step(place, 1);
            }
        }
        // The first descriptor makes the others available too, so it is written last.
        for &(entry, address, rest) in writes.iter().rev() {
            arena.words.store64(entry as usize, address, Relaxed);
            arena.words.store64(entry as usize + 8, rest, Release);
        }
        self.entries[usize::from(id)] = needs;
        self.room -= needs;
        self.avail = place;
        Some(id)
    }

    fn collect(&mut self, arena: &Arena) -> Option<(u16, u32)> {
        let rest = arena.words.load64(self.entry(self.used.0) as usize + 8, Acquire);
        let flags = (rest >> 48) as u16 & (AVAIL | USED);
        if flags != if self.used.1 { AVAIL | USED } else { 0 } {
            return None;
        }
        let id = (rest >> 32) as u16;
        let entries = std::mem::take(&mut self.entries[usize::from(id)]);
        self.used = self.step(self.used, entries);
        self.room += entries;
        self.ids.push(id);
        Some((id, rest as u32))
    }

    fn base(&self) -> u32 {
        let word = u32::from(self.avail.0) | u32::from(self.avail.1) << 15;
        word | word << 16
    }
}
