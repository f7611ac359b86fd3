//! Packets between a guest's buffers and our frames: the header, the copy, and packets spread over several buffers.

use std::ptr::NonNull;

use penstock_io::{CHUNK, Frame, FramePool, HEADROOM};

use crate::copy::copy;
use crate::features;
use crate::header::{self, Malformed, Order};
use crate::ring::{Batch, Chain, Lie, Piece, Reach};

/// The shortest packet: an Ethernet header.
const SHORTEST: usize = 14;
/// The longest packet: one that fits a chunk behind its headroom.
const LONGEST: usize = CHUNK - HEADROOM;

/// How packets lie in the guest's buffers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Format {
    features: u64,
    /// Bytes of the header in front of each.
    header: usize,
    /// Whether one may be spread over several of the guest's buffers.
    mergeable: bool,
}

impl Format {
    /// As both sides agreed.
    pub(crate) fn new(features: u64) -> Format {
        let mergeable = features & features::MRG_RXBUF != 0;
        Format { features, header: header::length(features), mergeable }
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
    /// It fits no buffer that the guest has for it.
    TooLong,
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
    let len = chain.bytes.checked_sub(format.header as u64).ok_or(Unreceived::Malformed)? as usize;
    if !(SHORTEST..=LONGEST).contains(&len) || chain.some_writable {
        return Err(Unreceived::Malformed);
    }
    let order = match pieces.first() {
        Some(first) if first.len as usize >= header::LONG => {
            // SAFETY: that many bytes are mapped (the condition above).
            unsafe { read_order(first.host, format) }
        }
        _ => gathered_order(pieces, format),
    }?;
    let mut frame = pool.alloc_for(len).ok_or(Unreceived::NoChunk)?;
    let fits = frame.grow_tail(len);
    debug_assert!(fits.is_ok(), "a fresh frame has the room that was asked for");
    let to = NonNull::from(frame.bytes_mut()).cast::<u8>();
    if let [piece] = pieces {
        // SAFETY: the piece is `header + len` bytes long, so this is inside it.
        let from = unsafe { piece.host.add(format.header) };
        // SAFETY: as many bytes are there, and the frame was made that long.
        unsafe { copy(from, to, len) };
    } else {
        // SAFETY: the frame is `len` bytes long.
        unsafe { gather(pieces, format.header, to, len) };
    }
    if let Order::Checksum { start, offset } = order
        && header::finish_checksum(frame.bytes_mut(), start.into(), offset.into()).is_err()
    {
        pool.free(frame);
        return Err(Unreceived::Malformed);
    }
    Ok(frame)
}

/// # Safety
/// As many bytes as the format's header has are mapped at `host`.
#[inline(always)]
unsafe fn read_order(host: NonNull<u8>, format: &Format) -> Result<Order, Malformed> {
    // SAFETY: mapped (the caller's word); bytes need no alignment.
    let first = unsafe { host.cast::<[u8; 8]>().read_volatile() };
    // SAFETY: the header has ten bytes at least.
    let rest = unsafe { host.add(8) };
    // SAFETY: as above.
    let offset = unsafe { rest.cast::<[u8; 2]>().read_volatile() };
    header::order(u64::from_le_bytes(first), u16::from_le_bytes(offset), format.features)
}

/// The same for a header that is spread over buffers.
#[cold]
fn gathered_order(pieces: &[Piece], format: &Format) -> Result<Order, Malformed> {
    let mut bytes = [0u8; header::LONG];
    let to = NonNull::from(&mut bytes).cast();
    // SAFETY: no header is longer than the array.
    unsafe { gather(pieces, 0, to, format.header) };
    // SAFETY: the array has as many bytes as any header.
    unsafe { read_order(to, format) }
}

/// Copies `len` bytes from the pieces, from byte `skip` on; fewer when the pieces end before.
///
/// # Safety
/// `len` bytes at `to` are exclusively ours.
unsafe fn gather(pieces: &[Piece], mut skip: usize, mut to: NonNull<u8>, mut len: usize) {
    for piece in pieces {
        let here = (piece.len as usize).saturating_sub(skip).min(len);
        if here > 0 {
            // SAFETY: `skip` is less than the piece's length.
            let from = unsafe { piece.host.add(skip) };
            // SAFETY: `here` bytes are left in the piece, and `len` at `to`.
            unsafe { copy(from, to, here) };
            // SAFETY: `here` is at most `len`.
            to = unsafe { to.add(here) };
            len -= here;
        }
        skip = skip.saturating_sub(piece.len as usize);
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
    let needs = format.header + frame.len();
    if chain.bytes < needs as u64 || batch.pieces(chain).len() != 1 || !chain.all_writable {
        return spread(frame, format, batch, chains, lengths, reach);
    }
    let piece = &batch.pieces(chain)[0];
    let header = header::plain(1);
    let from = NonNull::from(frame.bytes()).cast();
    // SAFETY: the piece has room for header and packet (checked above).
    let to = unsafe { piece.host.add(format.header) };
    if format.header == header::LONG {
        // SAFETY: as above; bytes need no alignment.
        unsafe { piece.host.cast::<[u8; header::LONG]>().write(header) };
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

/// The same for a packet that takes several buffers, or a chain of several.
#[inline(never)]
fn spread(
    frame: &Frame,
    format: &Format,
    batch: &Batch,
    chains: &[Chain],
    lengths: &mut [u32],
    reach: &Reach,
) -> Result<usize, Unsent> {
    let needs = (format.header + frame.len()) as u64;
    let (mut room, mut count) = (0, 0);
    while room < needs {
        let Some(chain) = chains.get(count) else {
            // A whole batch of empty buffers would never do.
            let hopeless = chains.len() == crate::ring::CHAINS;
            return Err(if hopeless { Unsent::TooLong } else { Unsent::NoRoom });
        };
        if !chain.all_writable {
            return Err(Unsent::Lie(Lie::ReadOnly));
        }
        room += chain.bytes;
        count += 1;
        if room < needs && !format.mergeable {
            return Err(Unsent::TooLong);
        }
    }
    let header = header::plain(count as u16);
    let mut left = [&header[..format.header], frame.bytes()].into_iter();
    let mut bytes: &[u8] = &[];
    for (chain, length) in chains[..count].iter().zip(lengths) {
        *length = 0;
        for piece in batch.pieces(chain) {
            let written = fill(piece, &mut bytes, &mut left);
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
