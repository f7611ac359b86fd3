//! What was taken from a ring in one burst: chains of buffers, each checked and found in our address space.

use std::ptr::NonNull;

use super::Lie;
use crate::copy::prefetch;
use crate::memory::{GuestMemory, Window};

/// Chains in a batch at most: a burst of frames.
pub(crate) const CHAINS: usize = 64;

/// Buffers in a batch at most, and so in a chain: what a guest can make us look at in one burst.
pub(crate) const PIECES: usize = 1024;

/// The buffers of one chain: where they begin in the batch, and what goes back to the guest with them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    /// The buffers' bytes together.
    pub(crate) bytes: u64,
    /// Which piece is the first, and how many there are.
    first: u16,
    pieces: u16,
    /// What the guest knows the chain by: the split ring's head, the packed ring's buffer id.
    pub(crate) id: u16,
    /// Entries of the packed ring that it takes.
    pub(crate) entries: u16,
    /// Whether the guest lets us write some of it, and whether all of it.
    pub(crate) some_writable: bool,
    pub(crate) all_writable: bool,
}

/// A buffer of the guest's, or the part of one that lies in one region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Where we see it.
    pub(crate) host: NonNull<u8>,
    /// Where the guest sees it.
    pub(crate) address: u64,
    /// How long it is. A buffer of nothing has no place: `host` means nothing.
    pub(crate) len: u32,
}

/// What is known of a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) writable: bool,
}

/// What was taken in one burst.
pub(crate) struct Batch {
    chains: [Chain; CHAINS],
    len: usize,
    pieces: Box<[Piece; PIECES]>,
    used: usize,
}

// SAFETY: addresses of guest memory may be used from any thread that keeps the memory mapped.
unsafe impl Send for Batch {}

/// A chain that is being taken.
#[derive(Debug)]
pub(super) struct Open {
    chain: Chain,
}

/// Why a buffer could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The batch is full: the chain is for the next one.
    Full,
    /// The ring lies.
    Lie(Lie),
}

impl From<Lie> for Refusal {
    fn from(lie: Lie) -> Refusal {
        Refusal::Lie(lie)
    }
}

impl Batch {
    pub(crate) fn new() -> Batch {
        let nothing = Piece { host: NonNull::dangling(), address: 0, len: 0 };
        Batch { chains: [Chain::default(); CHAINS], len: 0, pieces: Box::new([nothing; PIECES]), used: 0 }
    }

    #[inline(always)]
    pub(crate) fn chains(&self) -> &[Chain] {
        &self.chains[..self.len]
    }

    #[inline(always)]
    pub(crate) fn pieces(&self, chain: &Chain) -> &[Piece] {
        &self.pieces[usize::from(chain.first)..][..usize::from(chain.pieces)]
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        (self.len, self.used) = (0, 0);
    }

    /// Adds a chain of one buffer, the common case.
    #[inline(always)]
    pub(super) fn add_single(
        &mut self,
        memory: &GuestMemory,
        window: &mut Window,
        buffer: Buffer,
        id: u16,
    ) -> Result<(), Refusal> {
        let outside = Lie::Outside { address: buffer.address, len: buffer.len };
        let (host, room) = window.find(memory, buffer.address).ok_or(outside)?;
        if room < u64::from(buffer.len) || buffer.len == 0 || self.used >= PIECES || self.len >= CHAINS {
            let mut open = self.open();
            self.add(&mut open, memory, window, buffer)?;
            self.close(open, id, 1);
            return Ok(());
        }
        fetch(host, buffer.writable);
        self.pieces[self.used] = Piece { host, address: buffer.address, len: buffer.len };
        self.chains[self.len] = Chain {
            bytes: u64::from(buffer.len),
            first: self.used as u16,
            pieces: 1,
            id,
            entries: 1,
            some_writable: buffer.writable,
            all_writable: buffer.writable,
        };
        self.used += 1;
        self.len += 1;
        Ok(())
    }

    /// Begins a chain.
    pub(super) fn open(&mut self) -> Open {
        Open { chain: Chain { first: self.used as u16, all_writable: true, ..Chain::default() } }
    }

    /// Adds a buffer to a chain.
    pub(super) fn add(
        &mut self,
        open: &mut Open,
        memory: &GuestMemory,
        window: &mut Window,
        buffer: Buffer,
    ) -> Result<(), Refusal> {
        let Buffer { mut address, len, writable } = buffer;
        let outside = Lie::Outside { address, len };
        let mut left = u64::from(len);
        let chain = &mut open.chain;
        chain.some_writable |= writable;
        chain.all_writable &= writable;
        // Regions that follow each other in the guest need not follow each other here. Buffers of nothing are kept as well: a
        // guest may have many.
        loop {
            let (host, room) = match left {
                0 => (NonNull::dangling(), 0),
                _ => window.find(memory, address).ok_or(outside)?,
            };
            let here = room.min(left);
            let Some(place) = self.pieces.get_mut(usize::from(chain.first) + usize::from(chain.pieces))
            else {
                // A chain that alone is too long will not fit the next batch either.
                return Err(if chain.first == 0 {
                    Lie::TooLong(PIECES as u16).into()
                } else {
                    Refusal::Full
                });
            };
            *place = Piece { host, address, len: here as u32 };
            if chain.pieces < 2 {
                fetch(host, writable);
            }
            chain.pieces += 1;
            chain.bytes += here;
            left -= here;
            address = address.wrapping_add(here);
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// Ends a chain: it is in the batch.
    pub(super) fn close(&mut self, open: Open, id: u16, entries: u16) {
        debug_assert!(self.len < CHAINS, "as many chains as were asked for");
        self.used += usize::from(open.chain.pieces);
        self.chains[self.len] = Chain { id, entries, ..open.chain };
        self.len += 1;
    }
}

/// Brings a buffer's first two lines near: a header and a small packet.
#[inline(always)]
fn fetch(host: NonNull<u8>, write: bool) {
    let (first, second) = (host.as_ptr().cast_const(), host.as_ptr().wrapping_add(64).cast_const());
    if write {
        crate::copy::prefetch_to_write(first);
        crate::copy::prefetch_to_write(second);
    } else {
        prefetch(first);
        prefetch(second);
    }
}
