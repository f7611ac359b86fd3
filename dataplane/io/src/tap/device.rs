//! Opening a tap: the device, its queues, its address and MTU.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use super::TapPort;
use crate::offload::Abilities;
use crate::region::{CHUNK, HEADROOM};
use crate::virtio_net::HEADER;

/// Where taps come from (`Documentation/networking/tuntap.rst`).
const CLONE_DEVICE: &str = "/dev/net/tun";

/// The smallest MTU that IPv4 allows (RFC 791).
const MIN_MTU: u16 = 68;

/// The largest MTU: a frame with its Ethernet header and one VLAN tag, and a byte that tells a whole frame from a cut one,
/// fit a chunk behind its headroom.
pub const MAX_MTU: u16 = (CHUNK - HEADROOM - 14 - 4 - 1) as u16;

/// The most queues that a tap has (`MAX_TAP_QUEUES`, `drivers/net/tun.c`).
pub const MAX_QUEUES: u32 = 256;

/// A tap to open, in the network namespace of the thread that opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The interface's name: free in the namespace, 1 to 15 bytes.
    pub name: String,
    /// Queues, each of which becomes a port.
    pub queues: u32,
    /// The address of the host's side.
    pub mac: [u8; 6],
    /// Bytes of the largest IP packet.
    pub mtu: u16,
}

/// Why a tap could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The name cannot be an interface's.
    #[error(
        "tap \"{name}\": not a name for an interface; take 1 to 15 bytes without blanks, '/', ':' and '%', not \".\" or \"..\""
    )]
    Name {
        /// The name asked for.
        name: String,
    },
    /// No queue, or more than the kernel gives.
    #[error("tap {name}: {queues} queues; a tap has 1 to {MAX_QUEUES}")]
    Queues {
        /// The tap's name.
        name: String,
        /// Queues asked for.
        queues: u32,
    },
    /// An MTU that is too small for IPv4 or too large for a chunk.
    #[error(
        "tap {name}: MTU {mtu} is not possible; a chunk of packet memory holds frames of MTU {MIN_MTU} to {MAX_MTU}"
    )]
    Mtu {
        /// The tap's name.
        name: String,
        /// The MTU asked for.
        mtu: u16,
    },
    /// An address that no interface can have.
    #[error(
        "tap {name}: a multicast or zero address cannot be an interface's; take one that starts with 02:"
    )]
    Mac {
        /// The tap's name.
        name: String,
    },
    /// The kernel has no taps.
    #[error(
        "tap {name}: no {CLONE_DEVICE} ({source}); load the driver with `modprobe tun`, in a container hand the device in"
    )]
    NoDriver {
        /// The tap's name.
        name: String,
        /// What `open` said.
        #[source]
        source: io::Error,
    },
    /// The process may not.
    #[error(
        "tap {name}: {call} refused ({source}); creating taps takes CAP_NET_ADMIN in the network namespace: run as root or \
         add the capability"
    )]
    Permission {
        /// The tap's name.
        name: String,
        /// The system call.
        call: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Another interface has the name.
    #[error(
        "tap {name}: an interface of this name exists already; choose another name, or see whose it is with `ip -d link show \
         {name}` and remove it (a second daemon?)"
    )]
    Taken {
        /// The tap's name.
        name: String,
        /// What `TUNSETIFF` said.
        #[source]
        source: io::Error,
    },
    /// A system call failed that should not.
    #[error("tap {name}: {call} failed: {source}")]
    System {
        /// The tap's name.
        name: String,
        /// The system call.
        call: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl Tap {
    /// Creates the device, down, and opens all its queues, in order. It lasts as long as one of them is open.
    ///
    /// # Errors
    /// [`OpenError`], with the likely cause and the mend; nothing is left behind.
    pub fn open(&self) -> Result<Vec<TapPort>, OpenError> {
        self.validate()?;
        let ports: Vec<TapPort> =
            (0..self.queues).map(|queue| self.open_queue(queue)).collect::<Result<_, _>>()?;
        let socket = any_socket().map_err(|source| self.failed("socket", source))?;
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = libc::c_int::from(self.mtu);
        ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as libc::Ioctl, &mut request)
            .map_err(|source| self.failed("SIOCSIFMTU", source))?;
        let mut address = [0; 14];
        for (to, from) in address.iter_mut().zip(self.mac) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: address };
        ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR as libc::Ioctl, &mut request)
            .map_err(|source| self.failed("SIOCSIFHWADDR", source))?;
        Ok(ports)
    }

    fn validate(&self) -> Result<(), OpenError> {
        let name = || self.name.clone();
        let bad = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | b'%' | 0 | 0x0b);
        if self.name.is_empty()
            || self.name.len() >= libc::IFNAMSIZ
            || self.name == "."
            || self.name == ".."
            || self.name.bytes().any(bad)
        {
            return Err(OpenError::Name { name: name() });
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(OpenError::Queues { name: name(), queues: self.queues });
        }
        if self.mtu < MIN_MTU || self.mtu > MAX_MTU {
            return Err(OpenError::Mtu { name: name(), mtu: self.mtu });
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(OpenError::Mac { name: name() });
        }
        Ok(())
    }

    fn open_queue(&self, queue: u32) -> Result<TapPort, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(CLONE_DEVICE)
            .map_err(|source| self.no_clone_device(source))?;
        let mut request = self.request();
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        if queue == 0 {
            // The first queue must make the device: without this flag it would join a tap that somebody else has open.
            flags |= libc::IFF_TUN_EXCL;
        }
        // The kernel reads the sixteen bits as they are; IFF_TUN_EXCL is the sign bit.
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request).map_err(|source| self.not_attached(source))?;
        let abilities = self.speak_virtio(&file)?;
        Ok(TapPort::new(file, format!("{}:{queue}", self.name), abilities))
    }

    /// Settles the header in front of each frame, and what the two sides leave each other to do.
    fn speak_virtio(&self, file: &File) -> Result<Abilities, OpenError> {
        let mut header = HEADER as libc::c_int;
        ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &mut header)
            .map_err(|source| self.failed("TUNSETVNETHDRSZ", source))?;
        let mut little_endian = 1;
        ioctl(file.as_raw_fd(), libc::TUNSETVNETLE, &mut little_endian)
            .map_err(|source| self.failed("TUNSETVNETLE", source))?;
        let common = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // Kernels before 6.2 know nothing of the datagrams' kind.
        let all = common | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        if offer(file, all).is_ok() {
            return Ok(Abilities::ALL);
        }
        offer(file, common).map_err(|source| self.failed("TUNSETOFFLOAD", source))?;
        Ok(Abilities::CHAINS.and(Abilities::CHECKSUM).and(Abilities::TCP4).and(Abilities::TCP6))
    }

    fn request(&self) -> libc::ifreq {
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            // The largest member, so that the whole union is zeroed.
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_newname: [0; libc::IFNAMSIZ] },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    fn no_clone_device(&self, source: io::Error) -> OpenError {
        let name = self.name.clone();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => OpenError::NoDriver { name, source },
            Some(libc::EACCES | libc::EPERM) => OpenError::Permission { name, call: "open", source },
            _ => OpenError::System { name, call: "open", source },
        }
    }

    fn not_attached(&self, source: io::Error) -> OpenError {
        let name = self.name.clone();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenError::Permission { name, call: "TUNSETIFF", source },
            Some(libc::EBUSY | libc::EEXIST) => OpenError::Taken { name, source },
            _ => OpenError::System { name, call: "TUNSETIFF", source },
        }
    }

    fn failed(&self, call: &'static str, source: io::Error) -> OpenError {
        OpenError::System { name: self.name.clone(), call, source }
    }
}

/// Says what the kernel may leave to do.
fn offer(file: &File, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value and touches no memory of ours.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket of this thread's network namespace to send interface requests through.
fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: creating a socket touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An ioctl whose argument the kernel reads and may write.
fn ioctl<T>(fd: RawFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the requests of this file take a pointer to the type they are called with here, valid and exclusive.
    let done = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap() -> Tap {
        Tap { name: "penstock0".into(), queues: 1, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }
    }

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "tap%d", "a:1", "nul\0"] {
            let refused = Tap { name: name.into(), ..tap() }.validate();
            assert!(matches!(refused, Err(OpenError::Name { .. })), "{name:?}");
        }
        Tap { name: "fifteen-bytes-x".into(), ..tap() }.validate().unwrap();
    }

    #[test]
    fn what_a_tap_cannot_be_is_refused_before_the_kernel_is_asked() {
        assert!(matches!(Tap { queues: 0, ..tap() }.validate(), Err(OpenError::Queues { .. })));
        assert!(matches!(Tap { queues: 257, ..tap() }.validate(), Err(OpenError::Queues { .. })));
        assert!(matches!(Tap { mtu: 67, ..tap() }.validate(), Err(OpenError::Mtu { .. })));
        assert!(matches!(Tap { mtu: MAX_MTU + 1, ..tap() }.validate(), Err(OpenError::Mtu { .. })));
        assert!(matches!(Tap { mac: [1; 6], ..tap() }.validate(), Err(OpenError::Mac { .. })));
        assert!(matches!(Tap { mac: [0; 6], ..tap() }.validate(), Err(OpenError::Mac { .. })));
        Tap { mtu: MAX_MTU, ..tap() }.validate().unwrap();
    }

    #[test]
    fn the_errors_name_the_tap_and_the_mend() {
        let told = tap().no_clone_device(io::Error::from_raw_os_error(libc::ENOENT)).to_string();
        assert!(told.contains("penstock0") && told.contains("modprobe tun"), "{told}");
        let told = tap().not_attached(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(told.contains("CAP_NET_ADMIN"), "{told}");
        let told = tap().not_attached(io::Error::from_raw_os_error(libc::EBUSY)).to_string();
        assert!(told.contains("ip -d link show penstock0"), "{told}");
    }
}
