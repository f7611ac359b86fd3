//! Taps: a network device whose other end is the host's own stack, one port per queue.
//!
//! Every frame read from or written to `/dev/net/tun` is a system call by nature, so this adapter is the exception to
//! "no system call in `rx_burst` and `tx_burst`": it makes them where the frames are wanted, a bounded number a call. A
//! stash filled in `settle` would only hide them, and would leave frames behind when a worker goes to sleep on
//! [`Port::readiness`]. The device belongs to the process: when that ends, by whatever signal, the device goes with it.

mod device;
mod pace;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub use device::{MAX_MTU, MAX_QUEUES, OpenError, Tap};

use crate::burst::Burst;
use crate::frame::Frame;
use crate::offload::Abilities;
use crate::pool::FramePool;
use crate::port::{Port, PortCounters, PortFault};
use crate::region::{CHUNK, HEADROOM, Region};
use crate::virtio_net::{self, HEADER};
use pace::Pace;

/// Frames read in one `rx_burst` at most: a chatty host must not keep its worker from the other ports.
const READS: usize = 32;

/// Pieces that a frame is written in at most, its header one of them. A packet that was put together has one a segment; the
/// kernel takes 1024 (`UIO_MAXIOV`, `linux/uio.h`).
const MOST_PIECES: usize = 129;

/// Chunks that a frame is read into: enough for the longest, an IP packet of 65 535 bytes and its Ethernet header.
const LANDING: usize = (u16::MAX as usize + 14).div_ceil(CHUNK - HEADROOM) + 1;

/// One queue of a tap.
pub struct TapPort {
    file: File,
    /// Empty frames that the next one is read into.
    landing: Vec<Frame>,
    /// Where these are from.
    region: Option<&'static Region>,
    abilities: Abilities,
    name: String,
    pace: Pace,
    counters: PortCounters,
    /// What a read or write failed with since the last `settle`, which reports it.
    failed: Option<(&'static str, io::Error)>,
}

/// What one read brought.
enum Read {
    /// A frame, with what its virtio header asks for.
    Frame(Frame),
    /// Something that is no use, counted.
    Refused,
    /// Nothing was there, or the device is broken.
    Nothing,
}

impl TapPort {
    fn new(file: File, name: String, abilities: Abilities) -> TapPort {
        let landing = Vec::with_capacity(LANDING);
        TapPort {
            file,
            landing,
            region: None,
            abilities,
            name,
            pace: Pace::default(),
            counters: PortCounters::default(),
            failed: None,
        }
    }

    fn receive(&mut self, pool: &mut FramePool) -> Read {
        self.region = Some(pool.region());
        while self.landing.len() < LANDING
            && let Some(frame) = pool.alloc()
        {
            self.landing.push(frame);
        }
        if self.landing.is_empty() {
            return self.discard();
        }
        let mut header = [0; HEADER];
        let read = scatter(&self.file, &mut header, &mut self.landing);
        let Some(length) = self.length_of(read) else { return Read::Nothing };
        let room: usize = self.landing.iter().map(Frame::tailroom).sum();
        // The kernel cuts what does not fit without a word, so a read that fills the room to the brim is not trusted.
        let asked = virtio_net::read(&header).ok().filter(|_| length > HEADER && length - HEADER < room);
        let Some(asked) = asked else {
            self.counters.rx_invalid += 1;
            return Read::Refused;
        };
        let Some(mut frame) = self.take(length - HEADER) else { return Read::Refused };
        frame.set_offload(asked);
        self.counters.rx_packets += 1;
        self.counters.rx_bytes += (length - HEADER) as u64;
        Read::Frame(frame)
    }

    /// The frame of `length` bytes that was read into the landing.
    fn take(&mut self, length: usize) -> Option<Frame> {
        let mut left = length;
        let used = self.landing.iter().scan(length, |left, frame| {
            let is_used = *left > 0;
            *left = left.saturating_sub(frame.tailroom());
            is_used.then_some(())
        });
        let used = used.count();
        let mut pieces = self.landing.drain(..used).map(|mut piece| {
            let here = left.min(piece.tailroom());
            left -= here;
            let fits = piece.grow_tail(here);
            debug_assert!(fits.is_ok());
            piece
        });
        let mut frame = pieces.next()?;
        pieces.for_each(|piece| frame.append(piece));
        Some(frame)
    }

    /// Takes one frame off the kernel's queue that there is no chunk for, as a device with an empty ring would.
    #[cold]
    fn discard(&mut self) -> Read {
        let read = read(&self.file, &mut [0; HEADER]);
        if self.length_of(read).is_none() {
            return Read::Nothing;
        }
        self.counters.rx_no_chunk += 1;
        Read::Refused
    }

    /// Sorts out what a read said: a length, or `None` with the pace and the fault noted.
    fn length_of(&mut self, read: io::Result<usize>) -> Option<usize> {
        match read {
            Ok(length) => {
                self.pace.busy();
                Some(length)
            }
            Err(error) => {
                self.pace.idle();
                if error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(("read", error));
                }
                None
            }
        }
    }
}

impl Port for TapPort {
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        if !self.pace.due() {
            return 0;
        }
        let mut got = 0;
        for _ in 0..READS.min(into.room()) {
            match self.receive(pool) {
                Read::Frame(frame) => match into.push(frame) {
                    Ok(()) => got += 1,
                    Err(frame) => pool.free(frame),
                },
                Read::Refused => {}
                Read::Nothing => break,
            }
        }
        got
    }

    /// As [`Port::tx_burst`]. A device that is not up takes nothing.
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let mut taken = 0;
        while let Some(frame) = frames.frames().first() {
            match gather(&self.file, frame) {
                Ok(()) => {
                    self.counters.tx_packets += 1;
                    self.counters.tx_bytes += frame.total_len() as u64;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // Shorter than an Ethernet header, or work that makes no sense (`tun_get_user`).
                    Some(libc::EINVAL) => self.counters.tx_invalid += 1,
                    // EIO: the device is down for now.
                    Some(libc::EAGAIN | libc::EIO | libc::ENOMEM | libc::ENOBUFS) => break,
                    _ => {
                        self.failed = Some(("write", error));
                        break;
                    }
                },
            }
            taken += 1;
            if let Some(frame) = frames.pop() {
                pool.free(frame);
            }
        }
        taken
    }

    fn settle(&mut self, _pool: &mut FramePool) -> Result<(), PortFault> {
        let Some((call, source)) = self.failed.take() else { return Ok(()) };
        let port = self.name.clone();
        // A queue whose device was deleted under it answers EBADFD to everything (`tun_get`).
        Err(match source.raw_os_error() {
            Some(libc::EBADFD | libc::ENODEV) => PortFault::Gone { port, source },
            _ => PortFault::System { port, call, source },
        })
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn with_kernel(&self) -> (u32, u32) {
        (self.landing.len() as u32, 0)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn wake(&mut self) {
        self.pace = Pace::default();
    }

    fn close(mut self, pool: &mut FramePool) {
        self.landing.drain(..).for_each(|frame| pool.free(frame));
    }
}

fn read(file: &File, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`, which is exclusively borrowed.
    let read = unsafe { libc::read(file.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

impl Drop for TapPort {
    /// A port that is dropped instead of closed (by a panic) gives its chunks to the region.
    fn drop(&mut self) {
        if let Some(region) = self.region {
            let mut pool = FramePool::new(region);
            self.landing.drain(..).for_each(|frame| pool.free(frame));
        }
    }
}

/// Reads a virtio header, and a frame into the room of as many empty ones as it needs.
fn scatter(file: &File, header: &mut [u8; HEADER], into: &mut [Frame]) -> io::Result<usize> {
    const NONE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [NONE; 1 + LANDING];
    pieces[0] = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER };
    let count = 1 + into.len().min(LANDING);
    for (piece, frame) in pieces[1..].iter_mut().zip(into) {
        *piece = libc::iovec { iov_base: frame.head().as_ptr().cast(), iov_len: frame.tailroom() };
    }
    // SAFETY: the kernel writes to the header and to the room of frames, all of them exclusively borrowed; `tailroom` bytes
    // from `head` on lie in a frame's own chunk.
    let read = unsafe { libc::readv(file.as_raw_fd(), pieces.as_ptr(), count as libc::c_int) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes a virtio header that says what is left to do, then the frame's chunks.
fn gather(file: &File, frame: &Frame) -> io::Result<()> {
    let header = virtio_net::write(frame.offload(), 1);
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [empty; MOST_PIECES];
    let mut count = 0;
    for (piece, bytes) in pieces.iter_mut().zip(std::iter::once(&header[..]).chain(frame.pieces())) {
        *piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        count += 1;
    }
    // SAFETY: all pieces live through the call, which only reads them.
    let written = unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), count) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
