//! The frame: an exclusive token for one chunk of packet memory and the packet in it.

use std::marker::PhantomData;
use std::ptr::NonNull;

use thiserror::Error;

use crate::chain::ANNEX;
use crate::region::{CHUNK, Region};

/// The exclusive right to one chunk, and where its packet lies in it; to the chunks behind it, too, where a packet needs
/// several ([`Frame::append`]). All that is said here of the packet's bytes is said of those in the first chunk.
///
/// A frame is neither `Copy` nor `Clone`: handing it to a ring, a pool or another worker consumes it. One that is dropped
/// all the same (by a panic) finds its way back to its region and is counted there; a debug build stops, because that is
/// a bug in the code that dropped it.
#[must_use]
pub struct Frame {
    head: NonNull<u8>,
    len: u32,
    /// Whether the chunk holds more about the packet than its bytes (`chain`).
    more: bool,
    owns: PhantomData<[u8]>,
}

const _: () = assert!(size_of::<Frame>() == 16);

/// More bytes were to be put in front of a packet than its chunk has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no headroom left in the chunk")]
pub struct NoHeadroom;

/// More bytes were to be put behind a packet than its chunk has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no tailroom left in the chunk")]
pub struct NoTailroom;

/// More bytes were to be taken off a packet than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the packet is shorter than what is to be taken off")]
pub struct TooShort;

// SAFETY: a frame owns its chunk; the bytes go where the token goes.
unsafe impl Send for Frame {}
// SAFETY: a shared frame only gives out `&[u8]`.
unsafe impl Sync for Frame {}

impl Frame {
    /// # Safety
    /// `head..head + len` lies in one chunk of a region, and this is the only token for that chunk.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(head: NonNull<u8>, len: u32) -> Frame {
        Frame { head, len, more: false, owns: PhantomData }
    }

    /// Consumes the token without giving the chunk back: somebody else (a ring, a pool) holds it from here on. Of a chain
    /// it is the first chunk's token alone: the others are to be taken off before.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> NonNull<u8> {
        let head = self.head;
        std::mem::forget(self);
        head
    }

    /// Whether the packet is all there is to it: in one chunk, nothing left to do.
    #[inline(always)]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.more
    }

    /// Says that the chunk's annex is in use.
    pub(crate) fn mark(&mut self) {
        self.more = true;
    }

    /// The packet's first byte.
    #[inline(always)]
    pub(crate) fn head(&self) -> NonNull<u8> {
        self.head
    }

    /// Bytes of the packet.
    #[inline(always)]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in its chunk the packet begins.
    #[inline(always)]
    pub(crate) fn offset(&self) -> usize {
        self.head.as_ptr() as usize % CHUNK
    }

    /// Bytes free in front of the packet.
    #[inline(always)]
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.offset() - ANNEX
    }

    /// Bytes free behind the packet.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        CHUNK - self.offset() - self.len()
    }

    /// The packet.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `head..head + len` lies in the chunk that this token owns (`from_raw` and every change of the two).
        unsafe { std::slice::from_raw_parts(self.head.as_ptr(), self.len()) }
    }

    /// The packet, to change.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.head.as_ptr(), self.len()) }
    }

    /// The first `N` bytes from the packet's start, *whatever the packet's length*: what lies past it is old memory of the
    /// chunk. `None` only when the chunk ends before. Lets a parser load a fixed-size window and check lengths after.
    #[inline(always)]
    pub fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        if self.offset() + N > CHUNK {
            return None;
        }
        // SAFETY: `head..head + N` lies in this token's chunk (checked above), which is mapped memory.
        Some(unsafe { &*self.head.as_ptr().cast::<[u8; N]>() })
    }

    /// As [`Frame::window`], to change.
    #[inline(always)]
    pub fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        if self.offset() + N > CHUNK {
            return None;
        }
        // SAFETY: as in `window`; `&mut self` makes the borrow exclusive.
        Some(unsafe { &mut *self.head.as_ptr().cast::<[u8; N]>() })
    }

    /// Puts `n` bytes in front of the packet; they hold old memory until written.
    ///
    /// # Errors
    /// [`NoHeadroom`]; the frame is as it was.
    #[inline(always)]
    pub fn grow_front(&mut self, n: usize) -> Result<(), NoHeadroom> {
        if n > self.headroom() {
            return Err(NoHeadroom);
        }
        // SAFETY: `n` bytes in front of `head` are still in the same chunk.
        self.head = unsafe { self.head.sub(n) };
        self.len += n as u32;
        Ok(())
    }

    /// Takes `n` bytes off the packet's front.
    ///
    /// # Errors
    /// [`TooShort`] unless at least one byte stays; the frame is as it was.
    #[inline(always)]
    pub fn trim_front(&mut self, n: usize) -> Result<(), TooShort> {
        // A packet of no bytes at the chunk's very end would have its head in the next chunk: at least one byte stays.
        if n >= self.len() {
            return Err(TooShort);
        }
        // SAFETY: `head + n` is still inside the packet.
        self.head = unsafe { self.head.add(n) };
        self.len -= n as u32;
        Ok(())
    }

    /// Cuts the packet to its first `len` bytes; a longer `len` changes nothing.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u32);
    }

    /// Puts `n` bytes behind the packet; they hold old memory until written.
    ///
    /// # Errors
    /// [`NoTailroom`]; the frame is as it was.
    #[inline]
    pub fn grow_tail(&mut self, n: usize) -> Result<(), NoTailroom> {
        if n > self.tailroom() {
            return Err(NoTailroom);
        }
        self.len += n as u32;
        Ok(())
    }

    /// Replaces the packet by `bytes`, starting at the same place in the chunk.
    ///
    /// # Errors
    /// [`NoTailroom`]; the frame is as it was.
    #[inline]
    pub fn fill_from(&mut self, bytes: &[u8]) -> Result<(), NoTailroom> {
        if bytes.len() > CHUNK - self.offset() {
            return Err(NoTailroom);
        }
        self.len = bytes.len() as u32;
        self.bytes_mut().copy_from_slice(bytes);
        Ok(())
    }
}

impl Frame {
    /// Replaces the packet by the first `len` bytes of `lines`, copied whole: no length to look at, no call.
    ///
    /// # Errors
    /// [`NoTailroom`]; the frame is as it was. Whole lines must fit.
    #[inline(always)]
    pub(crate) fn fill_from_lines<const N: usize>(
        &mut self,
        lines: &[[u8; LINE]; N],
        len: usize,
    ) -> Result<(), NoTailroom> {
        if self.offset() + N * LINE > CHUNK {
            return Err(NoTailroom);
        }
        // SAFETY: as many bytes from `head` on lie in this token's chunk (checked above).
        unsafe { self.head.cast::<[[u8; LINE]; N]>().write(*lines) };
        self.len = len.min(N * LINE) as u32;
        Ok(())
    }
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

impl Drop for Frame {
    #[cold]
    fn drop(&mut self) {
        while let Some(piece) = self.take_piece() {
            Region::stray(piece.into_raw());
        }
        Region::stray(self.head);
        #[cfg(debug_assertions)]
        if !std::thread::panicking() {
            panic!("a frame was dropped instead of freed or sent");
        }
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("len", &self.len).field("headroom", &self.headroom()).finish()
    }
}
