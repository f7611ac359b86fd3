//! What few frames have beside their packet's first chunk: further chunks, and work left to a device.
//!
//! It is kept in the first line of the chunk itself, which no packet reaches (`ANNEX`), so a frame stays two words and
//! who has no use for it does not pay for it.

use std::ptr::NonNull;

use crate::frame::Frame;
use crate::offload::Offload;
use crate::pool::FramePool;
use crate::region::{CHUNK, HEADROOM};

/// Bytes at a chunk's beginning that are kept free of packets.
pub(crate) const ANNEX: usize = 64;

/// What lies in a chunk's first line, once its frame or its chain says so.
#[repr(align(64))]
pub(crate) struct Annex {
    /// The next chunk's part of the packet.
    next: Option<Link>,
    /// In the first chunk of a chain: the annex of its last.
    last: Option<NonNull<Annex>>,
    /// In the first chunk of a chain: bytes of the packet in all the others.
    behind: u32,
    /// In the first chunk of a chain: what is left to do.
    offload: Offload,
    /// In the first chunk of a chain: whatever its holder wants to remember.
    note: u64,
}

const _: () = assert!(size_of::<Annex>() == ANNEX);

#[derive(Clone, Copy)]
struct Link {
    head: NonNull<u8>,
    len: u32,
}

impl Annex {
    const EMPTY: Annex = Annex { next: None, last: None, behind: 0, offload: Offload::NONE, note: 0 };
}

/// Where the annex of the chunk lies that `head` is in.
fn place(head: NonNull<u8>) -> NonNull<Annex> {
    head.map_addr(|address| {
        // A region begins at a page, and its chunks are a power of two long.
        std::num::NonZeroUsize::new(address.get() & !(CHUNK - 1)).unwrap_or(address)
    })
    .cast()
}

impl Frame {
    /// The annex, if there is one.
    fn annex(&self) -> Option<&Annex> {
        if self.is_plain() {
            return None;
        }
        // SAFETY: the frame owns its chunk, whose first line holds an annex since the mark was set (`annex_mut`), and no
        // packet is written there (`headroom`).
        Some(unsafe { place(self.head()).as_ref() })
    }

    /// The annex, made if there was none.
    fn annex_mut(&mut self) -> &mut Annex {
        let mut place = place(self.head());
        if self.is_plain() {
            // SAFETY: the first line of a chunk that the frame owns: mapped, aligned, and nobody else's.
            unsafe { place.write(Annex::EMPTY) };
            self.mark();
        }
        // SAFETY: as in `annex`; `&mut self` makes the borrow exclusive.
        unsafe { place.as_mut() }
    }

    /// What is left to do to the packet.
    #[inline]
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.annex().map_or(Offload::NONE, |annex| annex.offload)
    }

    /// Says what is left to do to the packet.
    pub fn set_offload(&mut self, left: Offload) {
        if left != Offload::NONE || !self.is_plain() {
            self.annex_mut().offload = left;
        }
    }

    /// What [`Frame::set_note`] was given last; zero before.
    #[must_use]
    pub fn note(&self) -> u64 {
        self.annex().map_or(0, |annex| annex.note)
    }

    /// Remembers a word of its holder's.
    pub fn set_note(&mut self, note: u64) {
        self.annex_mut().note = note;
    }

    /// Whether the packet lies in several chunks.
    #[must_use]
    pub fn is_chain(&self) -> bool {
        self.annex().is_some_and(|annex| annex.next.is_some())
    }

    /// Bytes of the packet in all its chunks.
    #[must_use]
    pub fn total_len(&self) -> usize {
        self.len() + self.annex().map_or(0, |annex| annex.behind as usize)
    }

    /// Adds the packet of another frame at the end of this one's. What was left to do to that one is forgotten.
    pub fn append(&mut self, mut piece: Frame) {
        let (head, len) = (piece.head(), piece.len() as u32);
        let Annex { last, behind, .. } = *piece.annex_mut();
        let last = last.unwrap_or(place(head));
        let _ = piece.into_raw();
        let own = NonNull::from_mut(self.annex_mut());
        // SAFETY: the annex of a chunk that this frame owns, made above.
        let mut end = unsafe { own.as_ref() }.last.unwrap_or(own);
        // SAFETY: the chain's last chunk is this frame's, and its annex was made when it was added, or just now.
        unsafe { end.as_mut() }.next = Some(Link { head, len });
        let annex = self.annex_mut();
        annex.behind += len + behind;
        annex.last = Some(last);
    }

    /// Takes the second chunk out of the chain, as a frame of its own.
    pub fn take_piece(&mut self) -> Option<Frame> {
        if !self.is_chain() {
            return None;
        }
        let annex = self.annex_mut();
        let Link { head, len } = annex.next?;
        // SAFETY: a chunk of the chain has an annex, made when it was added.
        annex.next = unsafe { place(head).as_ref() }.next;
        annex.behind -= len;
        if annex.next.is_none() {
            annex.last = None;
        }
        // SAFETY: the chain owned the chunk and has given it up; its packet lay at `head`.
        Some(unsafe { Frame::from_raw(head, len) })
    }

    /// Takes all but the first chunk off, as a frame of its own.
    pub fn take_rest(&mut self) -> Option<Frame> {
        let last = self.annex().and_then(|annex| annex.last);
        let behind = self.total_len() - self.len();
        let next = self.take_piece()?;
        let Some(following) = self.annex_mut().next.take() else { return Some(next) };
        (self.annex_mut().behind, self.annex_mut().last) = (0, None);
        let mut rest = next;
        let behind = (behind - rest.len()) as u32;
        *rest.annex_mut() = Annex { next: Some(following), last, behind, ..Annex::EMPTY };
        Some(rest)
    }

    /// The packet's parts, chunk by chunk.
    #[must_use]
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { first: Some(self.bytes()), next: self.annex().and_then(|annex| annex.next), of: self }
    }

    /// The whole packet, copied together: for tests and captures.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces().flatten().copied().collect()
    }
}

/// The parts of a packet, see [`Frame::pieces`].
#[derive(Clone)]
pub struct Pieces<'a> {
    first: Option<&'a [u8]>,
    next: Option<Link>,
    of: &'a Frame,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let Link { head, len } = self.next?;
        debug_assert!(self.of.is_chain());
        // SAFETY: a chunk of the chain, which the frame owns and lends for `'a`, has an annex.
        self.next = unsafe { place(head).as_ref() }.next;
        // SAFETY: its part of the packet lies in that chunk (it was a frame's when it was added).
        Some(unsafe { std::slice::from_raw_parts(head.as_ptr(), len as usize) })
    }
}

impl FramePool {
    /// A frame of these bytes, in as many chunks as they need; `None` when there are too few.
    pub fn alloc_chain(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc_for(bytes.len())?;
        let (now, later) = bytes.split_at(bytes.len().min(frame.tailroom()));
        let filled = frame.fill_from(now);
        debug_assert!(filled.is_ok());
        for part in later.chunks(CHUNK - HEADROOM) {
            let Some(mut piece) = self.alloc() else {
                self.free(frame);
                return None;
            };
            let filled = piece.fill_from(part);
            debug_assert!(filled.is_ok());
            frame.append(piece);
        }
        Some(frame)
    }

    /// Cuts a packet to its first `len` bytes, and takes back the chunks that then hold none of it. A longer `len` changes
    /// nothing.
    pub fn cut(&mut self, frame: &mut Frame, len: usize) {
        if frame.total_len() <= len {
            return;
        }
        let mut left = len.saturating_sub(frame.len());
        let mut rest = frame.take_rest();
        frame.truncate(len);
        while let Some(mut piece) = rest {
            rest = piece.take_rest();
            if left == 0 {
                self.free(piece);
                continue;
            }
            piece.truncate(left);
            left -= piece.len();
            frame.append(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{Partial, SegmentKind, Segments};
    use crate::region::{Census, Hugepages, Region};

    fn pool() -> FramePool {
        FramePool::new(Region::map(1024, Hugepages::Off).unwrap())
    }

    fn frame(pool: &mut FramePool, bytes: &[u8]) -> Frame {
        let mut frame = pool.alloc().unwrap();
        frame.fill_from(bytes).unwrap();
        frame
    }

    #[test]
    fn a_chain_is_its_pieces_in_order_and_goes_home_as_one() {
        let mut pool = pool();
        let mut first = frame(&mut pool, b"one ");
        assert!(first.is_plain() && !first.is_chain());
        first.append(frame(&mut pool, b"two "));
        let mut rest = frame(&mut pool, b"three ");
        rest.append(frame(&mut pool, b"four"));
        first.append(rest);
        first.append(frame(&mut pool, b"."));
        assert_eq!(first.to_vec(), b"one two three four.");
        assert_eq!((first.len(), first.total_len(), first.pieces().count()), (4, 19, 5));
        // What is put in front of it leaves the rest alone.
        first.grow_front(100).unwrap();
        first.trim_front(100).unwrap();
        let second = first.take_piece().unwrap();
        assert_eq!((second.bytes(), second.is_plain()), (&b"two "[..], true));
        assert_eq!(first.to_vec(), b"one three four.");
        pool.free(second);
        pool.free(first);
        let region = pool.region();
        assert_eq!(region.census(), Census { free: 1024, ..Census::default() });
    }

    #[test]
    fn a_chain_whose_last_piece_is_taken_can_grow_again() {
        let mut pool = pool();
        let mut first = frame(&mut pool, b"a");
        first.append(frame(&mut pool, b"b"));
        let piece = first.take_piece().unwrap();
        assert!(first.take_piece().is_none() && !first.is_chain());
        first.append(piece);
        first.append(frame(&mut pool, b"c"));
        assert_eq!(first.to_vec(), b"abc");
        pool.free(first);
    }

    #[test]
    fn the_rest_of_a_chain_is_a_chain_that_can_grow() {
        let mut pool = pool();
        let mut first = frame(&mut pool, b"a");
        assert!(first.take_rest().is_none());
        for piece in [b"bc", b"de", b"fg"] {
            first.append(frame(&mut pool, piece));
        }
        let mut rest = first.take_rest().unwrap();
        assert_eq!((first.to_vec(), first.total_len(), first.is_chain()), (b"a".to_vec(), 1, false));
        assert_eq!((rest.to_vec(), rest.total_len()), (b"bcdefg".to_vec(), 6));
        rest.append(frame(&mut pool, b"h"));
        first.append(rest);
        assert_eq!((first.to_vec(), first.total_len()), (b"abcdefgh".to_vec(), 8));
        pool.free(first);
        assert_eq!(pool.region().census().user, 0);
    }

    #[test]
    fn a_chain_is_cut_anywhere() {
        let mut pool = pool();
        for len in 0..12 {
            let mut chain = frame(&mut pool, b"abc");
            chain.append(frame(&mut pool, b"defg"));
            chain.append(frame(&mut pool, b"hi"));
            pool.cut(&mut chain, len);
            assert_eq!(chain.to_vec(), b"abcdefghi"[..len.min(9)]);
            assert_eq!(chain.total_len(), len.min(9));
            pool.free(chain);
        }
        assert_eq!(pool.region().census().user, 0);
    }

    #[test]
    fn what_is_left_to_do_stays_with_the_frame_until_it_is_freed() {
        let mut pool = pool();
        let mut sent = frame(&mut pool, b"packet");
        sent.set_offload(Offload::NONE);
        assert!(sent.is_plain());
        let left = Offload {
            checksum: Some(Partial { start: 34, offset: 16 }),
            segments: Some(Segments { kind: SegmentKind::Tcp4, size: 1448, header_len: 66 }),
        };
        sent.set_offload(left);
        assert_eq!((sent.offload(), sent.is_plain()), (left, false));
        pool.free(sent);
        let again = pool.alloc().unwrap();
        assert_eq!((again.offload(), again.is_plain()), (Offload::NONE, true));
        pool.free(again);
    }

    #[test]
    fn a_chain_lost_to_a_panic_comes_back_whole() {
        let mut pool = pool();
        let mut chain = frame(&mut pool, b"abc");
        chain.append(frame(&mut pool, b"defg"));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = chain;
            panic!("a worker fell over");
        }));
        assert!(caught.is_err());
        assert_eq!((pool.region().strays(), pool.region().census().user), (2, 0));
    }
}
