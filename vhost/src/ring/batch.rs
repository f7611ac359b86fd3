//! What was taken from a ring in one burst: chains of buffers, each checked and found in our address space.

use std::ptr::NonNull;

use super::Lie;
use crate::copy::{prefetch, prefetch_to_write};
use crate::memory::{GuestMemory, Window};

/// Chains in a batch at most: a burst of frames.
pub(crate) const CHAINS: usize = 64;

/// Buffers in a batch at most, and so in a chain: what a guest can make us look at in one burst.
pub(crate) const PIECES: usize = 1024;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Lines of a buffer that are brought near when its descriptor is read: a header and a small packet.
const LINES_AT_ONCE: usize = 2;

/// Lines of a buffer that are brought near at most: 2 KiB, which is what most guests' buffers hold.
const MOST_LINES: usize = 32;

/// The buffers of one chain, and what goes back to the guest with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// The first piece: mostly the only one.
    pub(crate) head: Piece,
    /// The buffers' bytes together; as many as fit.
    pub(crate) bytes: u32,
    /// Where in the batch all of them begin if there are several, and how many there are.
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

impl Chain {
    /// A chain of nothing.
    const EMPTY: Chain = Chain {
        head: Piece { host: NonNull::dangling(), address: 0, len: 0 },
        bytes: 0,
        first: 0,
        pieces: 0,
        id: 0,
        entries: 0,
        some_writable: false,
        all_writable: true,
    };

    /// Whether it is one piece.
    #[inline(always)]
    pub(crate) fn is_single(&self) -> bool {
        self.pieces == 1
    }
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
    /// Where in a buffer of the guest's that which is read begins.
    read_from: usize,
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
        Batch {
            chains: [Chain::EMPTY; CHAINS],
            len: 0,
            pieces: Box::new([nothing; PIECES]),
            used: 0,
            read_from: 0,
        }
    }

    /// From now on what is read begins so many bytes into a buffer.
    pub(crate) fn read_from(&mut self, offset: usize) {
        self.read_from = offset;
    }

    #[inline(always)]
    pub(crate) fn chains(&self) -> &[Chain] {
        &self.chains[..self.len]
    }

    #[inline(always)]
    pub(crate) fn pieces<'a>(&'a self, chain: &'a Chain) -> &'a [Piece] {
        if chain.is_single() {
            return std::slice::from_ref(&chain.head);
        }
        &self.pieces[usize::from(chain.first)..][..usize::from(chain.pieces)]
    }

    /// Brings near the rest of a large packet of `len` bytes, header included, in the first buffer of a chain, if there is
    /// one of that number. It is called for each packet while the one before is copied: a copy alone has the memory wait for
    /// the processor half of the time, and packets of 1500 bytes take half as long again.
    #[inline(always)]
    pub(crate) fn approach(&self, number: usize, len: usize) {
        if len > LINES_AT_ONCE * LINE
            && let Some(Chain { head, all_writable, .. }) = self.chains().get(number)
        {
            fetch_rest(head, *all_writable, len);
        }
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        (self.len, self.used) = (0, 0);
    }

    /// Adds a chain of one buffer in the region that the window shows, the common case; false if the buffer is not such, or
    /// the batch is full.
    #[inline(always)]
    pub(super) fn add_single(&mut self, window: &Window, buffer: Buffer, id: u16) -> bool {
        let Buffer { address, len, writable } = buffer;
        let Some((host, room)) = window.look(address) else { return false };
        if room < u64::from(len) || len == 0 || self.len >= CHAINS {
            return false;
        }
        fetch(host, writable, self.read_from);
        self.chains[self.len] = Chain {
            head: Piece { host, address, len },
            bytes: len,
            first: 0,
            pieces: 1,
            id,
            entries: 1,
            some_writable: writable,
            all_writable: writable,
        };
        self.len += 1;
        true
    }

    /// Begins a chain.
    pub(super) fn open(&mut self) -> Open {
        Open { chain: Chain { first: self.used as u16, ..Chain::EMPTY } }
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
            if chain.pieces == 0 {
                chain.head = *place;
            }
            if chain.pieces < 2 {
                fetch(host, writable, self.read_from);
            }
            chain.pieces += 1;
            chain.bytes = chain.bytes.saturating_add(here as u32);
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

/// Brings near what [`fetch`] left of the first `len` bytes of a piece.
#[inline]
fn fetch_rest(piece: &Piece, write: bool, len: usize) {
    let lines = len.min(piece.len as usize).div_ceil(LINE).min(MOST_LINES);
    for line in LINES_AT_ONCE..lines {
        let address = piece.host.as_ptr().wrapping_add(LINE * line).cast_const();
        if write { prefetch_to_write(address) } else { prefetch(address) }
    }
}

/// Brings near what will be used of a buffer first: a header and a small packet. The header's line is only asked to be
/// shared: what it says is mostly there already.
#[inline(always)]
fn fetch(host: NonNull<u8>, write: bool, read_from: usize) {
    let at = |offset| host.as_ptr().wrapping_add(offset).cast_const();
    if write {
        prefetch(at(0));
        prefetch_to_write(at(LINE));
    } else {
        prefetch(at(read_from));
        prefetch(at(LINE));
    }
}
