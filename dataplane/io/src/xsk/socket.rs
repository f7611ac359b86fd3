//! One AF_XDP socket: its options, its rings and its bind, each system call translated where it is made.
//!
//! Constants and structures are those of `linux/if_xdp.h`, through the `libc` crate where it has them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::pages::Mapping;
use crate::region::{CHUNK, Region};
use crate::xsk::error::XskError;
use crate::xsk::ring::{Consumer, Desc, Producer};
use crate::xsk::umem::Lenders;
use crate::xsk::umem::Mode;
use crate::xsk::{BusyPoll, Transfer, XdpStatistics};

/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`, Linux 6.17: descriptors that one `sendto` takes in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// `SO_PREFER_BUSY_POLL` of `asm-generic/socket.h`.
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
/// `SO_BUSY_POLL` of `asm-generic/socket.h`: microseconds.
const SO_BUSY_POLL: libc::c_int = 46;
/// `SO_BUSY_POLL_BUDGET` of `asm-generic/socket.h`: packets.
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// The four rings of a socket.
pub(crate) struct Rings {
    pub(crate) fill: Producer<u64>,
    pub(crate) completion: Consumer<u64>,
    pub(crate) rx: Consumer<Desc>,
    pub(crate) tx: Producer<Desc>,
}

/// Slots of each ring, all powers of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSizes {
    pub(crate) fill: u32,
    pub(crate) completion: u32,
    pub(crate) rx: u32,
    pub(crate) tx: u32,
}

/// An AF_XDP socket. Closing it ends everything that the kernel does with its chunks.
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub(crate) fn new(port: &str) -> Result<Socket, XskError> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(XskError::from_call(port, "socket(AF_XDP)", 0, io::Error::last_os_error()));
        }
        // SAFETY: the kernel just gave us this descriptor.
        Ok(Socket { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Registers the region as this socket's UMEM: [`CHUNK`]-byte aligned chunks without headroom beyond the kernel's own.
    pub(crate) fn register(&self, port: &str, region: &Region) -> Result<(), XskError> {
        let umem = libc::xdp_umem_reg {
            addr: region.base().as_ptr() as u64,
            len: region.bytes() as u64,
            chunk_size: CHUNK as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        self.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)
            .map_err(|source| XskError::from_call(port, "XDP_UMEM_REG", region.bytes(), source))
    }

    /// Makes the four rings and maps them.
    pub(crate) fn rings(&self, port: &str, sizes: RingSizes) -> Result<Rings, XskError> {
        let make = |option, call, size: u32| {
            self.set(libc::SOL_XDP, option, &size)
                .map_err(|source| XskError::from_call(port, call, size as usize * size_of::<Desc>(), source))
        };
        make(libc::XDP_UMEM_FILL_RING, "XDP_UMEM_FILL_RING", sizes.fill)?;
        make(libc::XDP_UMEM_COMPLETION_RING, "XDP_UMEM_COMPLETION_RING", sizes.completion)?;
        make(libc::XDP_RX_RING, "XDP_RX_RING", sizes.rx)?;
        make(libc::XDP_TX_RING, "XDP_TX_RING", sizes.tx)?;
        let at: libc::xdp_mmap_offsets = self
            .get(libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)
            .map_err(|source| XskError::from_call(port, "XDP_MMAP_OFFSETS", 0, source))?;
        let map = |offsets: &libc::xdp_ring_offset, slots: u32, slot: usize, page: libc::off_t| {
            let bytes = offsets.desc as usize + slots as usize * slot;
            Mapping::of_ring(self.fd.as_fd(), bytes, page)
                .map(Arc::new)
                .map_err(|source| XskError::from_call(port, "mmap of a ring", bytes, source))
        };
        let (word, desc) = (size_of::<u64>(), size_of::<Desc>());
        let fill = map(&at.fr, sizes.fill, word, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t)?;
        let completion =
            map(&at.cr, sizes.completion, word, libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t)?;
        let rx = map(&at.rx, sizes.rx, desc, libc::XDP_PGOFF_RX_RING)?;
        let tx = map(&at.tx, sizes.tx, desc, libc::XDP_PGOFF_TX_RING)?;
        let misplaced = || XskError::System {
            port: port.to_owned(),
            call: "XDP_MMAP_OFFSETS",
            source: io::Error::from(io::ErrorKind::InvalidData),
        };
        Ok(Rings {
            fill: Producer::over(fill, &at.fr, sizes.fill).ok_or_else(misplaced)?,
            completion: Consumer::over(completion, &at.cr, sizes.completion).ok_or_else(misplaced)?,
            rx: Consumer::over(rx, &at.rx, sizes.rx).ok_or_else(misplaced)?,
            tx: Producer::over(tx, &at.tx, sizes.tx).ok_or_else(misplaced)?,
        })
    }

    /// Binds to a queue, with the UMEM registered on this socket or with that of the bound socket `lender`.
    pub(crate) fn bind(&self, index: u32, queue: u32, wanted: Mode, lender: Option<RawFd>) -> io::Result<()> {
        let mode = match wanted.transfer {
            Transfer::ZeroCopy => libc::XDP_ZEROCOPY,
            Transfer::Copy => libc::XDP_COPY,
        };
        let chains = if wanted.chains { libc::XDP_USE_SG } else { 0 };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: if lender.is_some() {
                libc::XDP_SHARED_UMEM
            } else {
                mode | chains | libc::XDP_USE_NEED_WAKEUP
            },
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: lender.unwrap_or(0) as u32,
        };
        let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of `address`, which it has.
        check(unsafe { libc::bind(self.raw(), (&raw const address).cast(), len) })
    }

    /// Descriptors that one wake-up sends in copy mode; the kernel's default is 32.
    pub(crate) fn limit_transmit(&self, budget: u32) -> io::Result<()> {
        self.set(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget)
    }

    /// Bytes of socket buffers that packets under way may take.
    pub(crate) fn send_buffer(&self, bytes: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
    }

    /// Lets our own system calls run the device's receive work.
    pub(crate) fn busy_poll(&self, busy: BusyPoll) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &1u32)?;
        self.set(libc::SOL_SOCKET, SO_BUSY_POLL, &busy.timeout_us)?;
        self.set(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &busy.budget)
    }

    /// `XDP_STATISTICS`.
    pub(crate) fn statistics(&self) -> io::Result<XdpStatistics> {
        let raw: libc::xdp_statistics = self.get(libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(XdpStatistics {
            rx_dropped: raw.rx_dropped,
            rx_invalid: raw.rx_invalid_descs,
            tx_invalid: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            fill_ring_empty: raw.rx_fill_ring_empty_descs,
            tx_ring_empty: raw.tx_ring_empty_descs,
        })
    }

    /// `XDP_OPTIONS`: how packets really get between the device and the chunks.
    pub(crate) fn transfer(&self) -> io::Result<Transfer> {
        let raw: libc::xdp_options = self.get(libc::SOL_XDP, libc::XDP_OPTIONS)?;
        Ok(if raw.flags & libc::XDP_OPTIONS_ZEROCOPY != 0 { Transfer::ZeroCopy } else { Transfer::Copy })
    }

    /// Has the kernel look at the transmit ring.
    #[inline]
    pub(crate) fn wake_transmit(&self) -> io::Result<()> {
        // SAFETY: an empty message without an address: nothing is read.
        let sent =
            unsafe { libc::sendto(self.raw(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
        check(sent as libc::c_int)
    }

    /// Has the kernel look at the fill ring.
    #[inline]
    pub(crate) fn wake_receive(&self) -> io::Result<()> {
        let (buffer, address, len) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: no buffer and no address: nothing is written.
        let got = unsafe { libc::recvfrom(self.raw(), buffer, 0, libc::MSG_DONTWAIT, address, len) };
        check(got as libc::c_int)
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn set<T: Plain>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of `value`, which it has.
        check(unsafe { libc::setsockopt(self.raw(), level, option, std::ptr::from_ref(value).cast(), len) })
    }

    fn get<T: Plain>(&self, level: libc::c_int, option: libc::c_int) -> io::Result<T> {
        let mut value = MaybeUninit::<T>::zeroed();
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `value`, which has them.
        check(unsafe {
            libc::getsockopt(self.raw(), level, option, value.as_mut_ptr().cast(), &raw mut len)
        })?;
        // SAFETY: a `Plain` value is valid whatever its bytes; what the kernel did not write is zero.
        Ok(unsafe { value.assume_init() })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Off the list before the descriptor closes, so that no bind names a number that is somebody else's by then.
        Lenders::lock().remove(self.raw());
    }
}

/// Structures that are valid whatever their bytes are.
///
/// # Safety
/// Only integers and structures of integers.
unsafe trait Plain {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_options {}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
