//! Packets between a guest's buffers and our frames: the header, the copy, and packets spread over several buffers.

use std::ptr::NonNull;

use penstock_io::{Abilities, CHUNK, Frame, FramePool, HEADROOM, Offload, virtio_net};

use crate::copy::copy;
use crate::features;
use crate::header::{self, Malformed};
use crate::ring::{Batch, Chain, Lie, Piece, Reach};

/// The shortest packet: an Ethernet header.
const SHORTEST: usize = 14;
/// The longest packet: Ethernet, a VLAN tag, and the longest that IP knows (RFC 791).
pub(crate) const LONGEST: usize = 14 + 4 + 65535;
/// The longest that fits one chunk behind its headroom.
const IN_CHUNK: usize = CHUNK - HEADROOM;

/// How packets lie in the guest's buffers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Format {
    features: u64,
    /// Bytes of the header in front of each.
    header: usize,
    /// Whether the header may say anything: a guest that was granted nothing to leave undone has nothing to say, and the
    /// cache line stays with it.
    speaks: bool,
    /// Whether one may be spread over several of the guest's buffers.
    mergeable: bool,
    /// What the guest takes beyond finished packets of one chunk.
    pub(crate) abilities: Abilities,
}

impl Format {
    /// As both sides agreed.
    pub(crate) fn new(features: u64) -> Format {
        let mergeable = features & features::MRG_RXBUF != 0;
        let abilities = header::abilities(features);
        let speaks = features & header::LEAVE != 0;
        Format { features, header: header::length(features), speaks, mergeable, abilities }
    }

    /// Bytes of the header in front of each packet.
    pub(crate) fn header(&self) -> usize {
        self.header
    }

    /// Where in a buffer of the guest's that which we read begins.
    pub(crate) fn read_from(&self) -> usize {
        if self.speaks { 0 } else { self.header }
    }
}

/// Why a packet was not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreceived {
    /// There is no free chunk for it.
    NoChunk,
    /// It is too short, too long, or its header asks for what cannot be.
    Malformed,
}

impl From<Malformed> for Unreceived {
    fn from(_: Malformed) -> Unreceived {
        Unreceived::Malformed
    }
}

/// Why a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// There are not enough buffers in the batch.
    NoRoom,
    /// It fits no buffer that the guest has for it, or has work left to do that the guest does not do.
    Unable,
    /// The ring lies.
    Lie(Lie),
}

/// Copies a packet out of the guest's buffers.
#[inline(always)]
pub(crate) fn receive(
    pool: &mut FramePool,
    format: &Format,
    pieces: &[Piece],
    chain: &Chain,
) -> Result<Frame, Unreceived> {
    let len = (chain.bytes as usize).checked_sub(format.header).ok_or(Unreceived::Malformed)?;
    if !(SHORTEST..=LONGEST).contains(&len) || chain.some_writable {
        return Err(Unreceived::Malformed);
    }
    let left = match pieces.first() {
        _ if !format.speaks => Ok(Offload::NONE),
        Some(first) if first.len as usize >= header::LONG => {
            // SAFETY: that many bytes are mapped (the condition above).
            unsafe { read_header(first.host, format, len) }
        }
        _ => gather_header(pieces, format, len),
    }?;
    let mut frame = match pieces {
        [piece] if len <= IN_CHUNK => {
            let mut frame = pool.alloc_for(len).ok_or(Unreceived::NoChunk)?;
            let fits = frame.grow_tail(len);
            debug_assert!(fits.is_ok(), "a fresh frame has the room that was asked for");
            let to = NonNull::from(frame.bytes_mut()).cast::<u8>();
            // SAFETY: the piece is `header + len` bytes long, so this is inside it.
            let from = unsafe { piece.host.add(format.header) };
            // SAFETY: as many bytes are there, and the frame was made that long.
            unsafe { copy(from, to, len) };
            frame
        }
        _ => gather(pool, pieces, format.header, len)?,
    };
    if left != Offload::NONE {
        frame.set_offload(left);
    }
    Ok(frame)
}

/// # Safety
/// As many bytes as the format's header has are mapped at `host`.
#[inline(always)]
unsafe fn read_header(host: NonNull<u8>, format: &Format, len: usize) -> Result<Offload, Malformed> {
    // SAFETY: mapped (the caller's word); bytes need no alignment.
    let first = unsafe { host.cast::<[u8; 8]>().read_volatile() };
    // SAFETY: the header has ten bytes at least.
    let rest = unsafe { host.add(8) };
    // SAFETY: as above.
    let offset = unsafe { rest.cast::<[u8; 2]>().read_volatile() };
    header::left_to_do(u64::from_le_bytes(first), u16::from_le_bytes(offset), format.features, len)
}

/// The same for a header that is spread over buffers, or alone in one.
#[inline(never)]
fn gather_header(pieces: &[Piece], format: &Format, len: usize) -> Result<Offload, Malformed> {
    let mut bytes = [0u8; header::LONG];
    let to = NonNull::from(&mut bytes).cast();
    // SAFETY: no header is longer than the array.
    unsafe { Reading::of(pieces).copy(to, format.header) };
    // SAFETY: the array has as many bytes as any header.
    unsafe { read_header(to, format, len) }
}

/// The packet of `len` bytes that begins `skip` bytes into the pieces, in as many chunks as it needs.
#[inline(never)]
fn gather(pool: &mut FramePool, pieces: &[Piece], skip: usize, len: usize) -> Result<Frame, Unreceived> {
    let mut reading = Reading::of(pieces);
    reading.skip(skip);
    let mut whole = part(pool.alloc_for(len), &mut reading, len)?;
    let mut left = len - whole.len();
    while left > 0 {
        match part(pool.alloc(), &mut reading, left) {
            Ok(next) => {
                left -= next.len();
                whole.append(next);
            }
            Err(lack) => {
                pool.free(whole);
                return Err(lack);
            }
        }
    }
    Ok(whole)
}

/// Fills a fresh frame with as much of a packet's last `left` bytes as it holds.
fn part(fresh: Option<Frame>, reading: &mut Reading<'_>, left: usize) -> Result<Frame, Unreceived> {
    let mut frame = fresh.ok_or(Unreceived::NoChunk)?;
    let here = left.min(frame.tailroom());
    let fits = frame.grow_tail(here);
    debug_assert!(fits.is_ok(), "no more than its tailroom");
    let to = NonNull::from(frame.bytes_mut()).cast();
    // SAFETY: the frame was made that long.
    unsafe { reading.copy(to, here) };
    Ok(frame)
}

/// A place in a chain's buffers, on the way through them.
struct Reading<'a> {
    pieces: std::slice::Iter<'a, Piece>,
    /// What is left of the piece that was come to.
    at: NonNull<u8>,
    left: usize,
}

impl<'a> Reading<'a> {
    fn of(pieces: &'a [Piece]) -> Reading<'a> {
        Reading { pieces: pieces.iter(), at: NonNull::dangling(), left: 0 }
    }

    /// Goes on by up to `len` bytes inside one piece; returns where they begin, and how many they are. None at the end.
    fn advance(&mut self, len: usize) -> Option<(NonNull<u8>, usize)> {
        while self.left == 0 {
            let piece = self.pieces.next()?;
            (self.at, self.left) = (piece.host, piece.len as usize);
        }
        let (at, here) = (self.at, self.left.min(len));
        // SAFETY: `here` is at most what is left of the piece.
        self.at = unsafe { at.add(here) };
        self.left -= here;
        Some((at, here))
    }

    fn skip(&mut self, mut len: usize) {
        while len > 0
            && let Some((_, here)) = self.advance(len)
        {
            len -= here;
        }
    }

    /// Copies the next `len` bytes; fewer when the pieces end before.
    ///
    /// # Safety
    /// `len` bytes at `to` are exclusively ours.
    unsafe fn copy(&mut self, mut to: NonNull<u8>, mut len: usize) {
        while len > 0
            && let Some((from, here)) = self.advance(len)
        {
            // SAFETY: `here` bytes are in the piece, and at most `len` of them at `to`.
            unsafe { copy(from, to, here) };
            // SAFETY: as above.
            to = unsafe { to.add(here) };
            len -= here;
        }
    }
}

/// Copies a packet into the guest's buffers from chain `first` of the batch on, noting in `lengths`, one for each chain that
/// is left, what was written to each; returns how many chains it took.
#[inline(always)]
pub(crate) fn send(
    frame: &Frame,
    format: &Format,
    batch: &Batch,
    first: usize,
    lengths: &mut [u32],
    reach: &Reach,
) -> Result<usize, Unsent> {
    let chains = &batch.chains()[first..];
    let Some(chain) = chains.first() else { return Err(Unsent::NoRoom) };
    if !frame.is_plain() {
        return spread(frame, format, batch, chains, lengths, reach);
    }
    let needs = format.header + frame.len();
    let piece = &chain.head;
    if (chain.bytes as usize) < needs || !chain.is_single() || !chain.all_writable {
        return spread(frame, format, batch, chains, lengths, reach);
    }
    let header = virtio_net::plain(1);
    let from = NonNull::from(frame.bytes()).cast();
    // SAFETY: the piece has room for header and packet (checked above).
    let to = unsafe { piece.host.add(format.header) };
    if format.header == header::LONG {
        // SAFETY: as above.
        unsafe { write_header(piece.host, header) };
    } else {
        // SAFETY: as above, for the shorter one.
        unsafe { copy(NonNull::from(&header).cast(), piece.host, format.header) };
    }
    // SAFETY: as above.
    unsafe { copy(from, to, frame.len()) };
    lengths[0] = needs as u32;
    reach.note(piece.address, needs as u64);
    Ok(1)
}

/// Writes a header, unless it stands there already, as it mostly does, from the packet before: then the line stays shared
/// with the guest.
///
/// # Safety
/// As many bytes are mapped at `host`, and the guest's.
#[inline(always)]
unsafe fn write_header(host: NonNull<u8>, header: [u8; header::LONG]) {
    let place = host.cast::<[u32; 3]>();
    let [a, b, c] = std::array::from_fn(|word| {
        // SAFETY: one of the header's three words.
        let word = unsafe { place.cast::<u32>().add(word) };
        // SAFETY: mapped (the caller's word); an unaligned read, of which the guest may make any mixture.
        unsafe { word.read_unaligned() }
    });
    let wanted: [u32; 3] =
        std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| header[4 * word + byte])));
    if (a ^ wanted[0]) | (b ^ wanted[1]) | (c ^ wanted[2]) != 0 {
        // SAFETY: as above.
        unsafe { place.write_unaligned(wanted) };
    }
}

/// The same for a packet that takes several buffers or lies in several chunks, and for one with work left to do.
#[inline(never)]
fn spread(
    frame: &Frame,
    format: &Format,
    batch: &Batch,
    chains: &[Chain],
    lengths: &mut [u32],
    reach: &Reach,
) -> Result<usize, Unsent> {
    let left = frame.offload();
    if !format.abilities.has(Abilities::needed_for(left, frame.is_chain())) {
        return Err(Unsent::Unable);
    }
    let needs = (format.header + frame.total_len()) as u64;
    let (mut room, mut count) = (0, 0);
    while room < needs {
        let Some(chain) = chains.get(count) else {
            // A whole batch of empty buffers would never do.
            let hopeless = chains.len() == crate::ring::CHAINS;
            return Err(if hopeless { Unsent::Unable } else { Unsent::NoRoom });
        };
        if !chain.all_writable {
            return Err(Unsent::Lie(Lie::ReadOnly));
        }
        room += u64::from(chain.bytes);
        count += 1;
        if room < needs && !format.mergeable {
            return Err(Unsent::Unable);
        }
    }
    let header = virtio_net::write(left, count as u16);
    let mut bytes = &header[..format.header];
    let mut pieces = frame.pieces();
    for (chain, length) in chains[..count].iter().zip(lengths) {
        *length = 0;
        for piece in batch.pieces(chain) {
            let written = fill(piece, &mut bytes, &mut pieces);
            reach.note(piece.address, written.into());
            *length += written;
        }
    }
    Ok(count)
}

/// Fills a buffer with what is left of `bytes`, then with the slices that follow; returns how many bytes it took.
fn fill<'a>(piece: &Piece, bytes: &mut &'a [u8], next: &mut impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut at = 0;
    while at < piece.len {
        if bytes.is_empty() {
            let Some(slice) = next.next() else { break };
            *bytes = slice;
            continue;
        }
        let (now, later) = bytes.split_at(bytes.len().min((piece.len - at) as usize));
        // SAFETY: `at` is less than the piece's length.
        let to = unsafe { piece.host.add(at as usize) };
        // SAFETY: `now` is no longer than what is left of the piece.
        unsafe { copy(NonNull::from(now).cast(), to, now.len()) };
        at += now.len() as u32;
        *bytes = later;
    }
    at
}
