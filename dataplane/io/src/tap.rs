//! Taps: a network device whose other end is the host's own stack, one port per queue.
//!
//! Every frame read from or written to `/dev/net/tun` is a system call by nature, so this adapter is the exception to
//! "no system call in `rx_burst` and `tx_burst`": it makes them where the frames are wanted, a bounded number a call. A
//! stash filled in `settle` would only hide them, and would leave frames behind when a worker goes to sleep on
//! [`Port::readiness`]. The device belongs to the process: when that ends, by whatever signal, the device goes with it.

mod device;
mod pace;
mod vnet;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub use device::{MAX_MTU, MAX_QUEUES, OpenError, Tap};

use crate::burst::Burst;
use crate::frame::Frame;
use crate::pool::FramePool;
use crate::port::{Port, PortCounters, PortFault};
use pace::Pace;
use vnet::{FrameError, HEADER};

/// Frames read in one `rx_burst` at most: a chatty host must not keep its worker from the other ports.
const READS: usize = 32;

/// One queue of a tap.
pub struct TapPort {
    file: File,
    name: String,
    pace: Pace,
    counters: PortCounters,
    /// What a read or write failed with since the last `settle`, which reports it.
    failed: Option<(&'static str, io::Error)>,
}

/// What one read brought.
enum Read {
    /// A frame, its virtio header taken off.
    Frame(Frame),
    /// Something that is no use, counted.
    Refused,
    /// Nothing was there, or the device is broken.
    Nothing,
}

impl TapPort {
    fn new(file: File, name: String) -> TapPort {
        TapPort { file, name, pace: Pace::default(), counters: PortCounters::default(), failed: None }
    }

    fn receive(&mut self, pool: &mut FramePool) -> Read {
        let Some(mut frame) = pool.alloc() else { return self.discard() };
        // The header goes in front, so that the packet itself starts where every received packet does.
        let room = frame.tailroom();
        let whole = frame.grow_front(HEADER).is_ok() && frame.grow_tail(room).is_ok();
        debug_assert!(whole, "a fresh frame has headroom for the virtio header and the tail it said");
        let read = read(&self.file, frame.bytes_mut());
        let Some(length) = self.length_of(read) else {
            pool.free(frame);
            return Read::Nothing;
        };
        // The kernel cuts what does not fit without a word, so a read that fills the room to the brim is not trusted.
        let cut = length == frame.len();
        frame.truncate(length);
        if cut || accept(&mut frame).is_err() {
            self.counters.rx_invalid += 1;
            pool.free(frame);
            return Read::Refused;
        }
        self.counters.rx_packets += 1;
        self.counters.rx_bytes += frame.len() as u64;
        Read::Frame(frame)
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

/// Takes the virtio header off and finishes what it asks for.
fn accept(frame: &mut Frame) -> Result<(), FrameError> {
    let header = *frame.bytes().first_chunk::<HEADER>().ok_or(FrameError::Short)?;
    frame.trim_front(HEADER).map_err(|_| FrameError::Short)?;
    vnet::finish(&header, frame.bytes_mut())
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
            match write(&self.file, frame.bytes()) {
                Ok(()) => {
                    self.counters.tx_packets += 1;
                    self.counters.tx_bytes += frame.len() as u64;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // Shorter than an Ethernet header (`tun_get_user`).
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

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn wake(&mut self) {
        self.pace = Pace::default();
    }

    fn close(self, _pool: &mut FramePool) {}
}

fn read(file: &File, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`, which is exclusively borrowed.
    let read = unsafe { libc::read(file.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes a virtio header that asks for nothing, then the frame: two pieces, so that no headroom is needed.
fn write(file: &File, frame: &[u8]) -> io::Result<()> {
    static PLAIN: [u8; HEADER] = [0; HEADER];
    let pieces = [PLAIN.as_slice(), frame]
        .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
    // SAFETY: both pieces live through the call, which only reads them.
    let written = unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
