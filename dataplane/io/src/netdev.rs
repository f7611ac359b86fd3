//! What the kernel says about a network interface.
//!
//! Everything is asked in the network namespace of the calling thread.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use thiserror::Error;

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const ETHTOOL_GDRVINFO: u32 = 0x3;
/// `ETHTOOL_GCHANNELS` of `linux/ethtool.h`.
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946 as libc::Ioctl;
/// `enum netdev_xdp_act` of `linux/netdev.h`.
const NETDEV_XDP_ACT_BASIC: u64 = 1 << 0;
const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 1 << 3;

/// An interface as the kernel described it when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    /// Its name.
    pub name: String,
    /// Its number in this network namespace.
    pub index: u32,
    /// Its Ethernet address; zeros when it has none.
    pub mac: [u8; 6],
    /// Its MTU in bytes, Ethernet header not included.
    pub mtu: u32,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier (`IFF_RUNNING`).
    pub running: bool,
    /// Its driver (`veth`, `virtio_net`, `mlx5_core`), where it says so.
    pub driver: Option<String>,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// Transmit queues in use.
    pub tx_queues: u32,
    /// What its driver can do with XDP; `None` when the kernel does not tell (before Linux 6.3).
    pub features: Option<XdpFeatures>,
    /// The XDP program on it, if any.
    pub program: Option<AttachedProgram>,
}

/// What a driver can do with XDP, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs programs before a socket buffer is made.
    pub native: bool,
    /// It has zero-copy AF_XDP.
    pub zero_copy: bool,
}

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    /// Its number, as in `bpftool prog`.
    pub id: u32,
    /// Whether the driver runs it, not the kernel's generic hook.
    pub native: bool,
}

/// Why nothing could be learnt about an interface.
#[derive(Debug, Error)]
pub enum NetdevError {
    /// There is none of that name here.
    #[error("interface {name}: there is none of that name in this network namespace; see `ip link`")]
    Missing {
        /// The name.
        name: String,
    },
    /// A name that no interface can have.
    #[error("interface {name:?}: a name has 1 to 15 bytes and neither slash nor space")]
    Name {
        /// The name.
        name: String,
    },
    /// A system call failed that should not.
    #[error("interface {name}: {call} failed: {source}")]
    System {
        /// The name.
        name: String,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Netdev {
    /// Asks the kernel about the interface called `name`.
    ///
    /// # Errors
    /// [`NetdevError`], which names the interface.
    pub fn named(name: &str) -> Result<Netdev, NetdevError> {
        let query = Query::about(name)?;
        let index = query.number(libc::SIOCGIFINDEX as libc::Ioctl, "SIOCGIFINDEX")? as u32;
        let mtu = query.number(libc::SIOCGIFMTU as libc::Ioctl, "SIOCGIFMTU")? as u32;
        let flags = query.flags()?;
        let (rx_queues, tx_queues) = query.channels();
        let (features, program) = query.xdp(index)?;
        Ok(Netdev {
            name: name.to_owned(),
            index,
            mac: query.mac()?,
            mtu,
            up: flags & libc::IFF_UP != 0,
            running: flags & libc::IFF_RUNNING != 0,
            driver: query.driver(),
            rx_queues,
            tx_queues,
            features,
            program,
        })
    }

    /// Whether it is one end of a veth pair.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        self.driver.as_deref() == Some("veth")
    }
}

/// A socket to ask by, and the name to ask about.
struct Query<'a> {
    name: &'a str,
    socket: OwnedFd,
}

/// `struct ethtool_channels` of `linux/ethtool.h`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

impl Query<'_> {
    fn about(name: &str) -> Result<Query<'_>, NetdevError> {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(plain) {
            return Err(NetdevError::Name { name: name.to_owned() });
        }
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            let source = io::Error::last_os_error();
            return Err(NetdevError::System { name: name.to_owned(), call: "socket", source });
        }
        // SAFETY: the kernel just gave us this descriptor.
        Ok(Query { name, socket: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is a name and a union of integers and pointers; zeros are valid for all of them.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    fn ask(
        &self,
        request: &mut libc::ifreq,
        what: libc::Ioctl,
        call: &'static str,
    ) -> Result<(), NetdevError> {
        // SAFETY: every request made here takes an `ifreq`, which lives past the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), what, std::ptr::from_mut(request)) };
        if result >= 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Err(NetdevError::Missing { name: self.name.to_owned() }),
            _ => Err(NetdevError::System { name: self.name.to_owned(), call, source }),
        }
    }

    fn number(&self, what: libc::Ioctl, call: &'static str) -> Result<i32, NetdevError> {
        let mut request = self.request();
        self.ask(&mut request, what, call)?;
        // SAFETY: these requests answer an integer, and the union is otherwise zero.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    fn flags(&self) -> Result<i32, NetdevError> {
        let mut request = self.request();
        self.ask(&mut request, libc::SIOCGIFFLAGS as libc::Ioctl, "SIOCGIFFLAGS")?;
        // SAFETY: this request answers the flags.
        Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    fn mac(&self) -> Result<[u8; 6], NetdevError> {
        let mut request = self.request();
        self.ask(&mut request, libc::SIOCGIFHWADDR as libc::Ioctl, "SIOCGIFHWADDR")?;
        // SAFETY: this request answers a hardware address.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        Ok(std::array::from_fn(|i| address.sa_data[i] as u8))
    }

    /// Sends an ethtool command; `None` when the driver does not know it.
    fn ethtool<T>(&self, command: &mut T) -> Option<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
        self.ask(&mut request, SIOCETHTOOL, "SIOCETHTOOL").ok()
    }

    fn driver(&self) -> Option<String> {
        let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        self.ethtool(&mut info)?;
        let name = CStr::from_bytes_until_nul(&info.driver).ok()?.to_str().ok()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// Receive and transmit queues. A driver that does not tell has one of each.
    fn channels(&self) -> (u32, u32) {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        match self.ethtool(&mut channels) {
            Some(()) => ((channels.rx + channels.combined).max(1), (channels.tx + channels.combined).max(1)),
            None => (1, 1),
        }
    }

    fn xdp(&self, index: u32) -> Result<(Option<XdpFeatures>, Option<AttachedProgram>), NetdevError> {
        let mut answer = libbpf_sys::bpf_xdp_query_opts {
            sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        // SAFETY: the structure says its own size and lives past the call.
        let result = unsafe { libbpf_sys::bpf_xdp_query(index as i32, 0, &raw mut answer) };
        if result < 0 {
            let source = io::Error::from_raw_os_error(-result);
            return Err(NetdevError::System { name: self.name.to_owned(), call: "bpf_xdp_query", source });
        }
        // A kernel without the netdev family leaves the flags zero; every one that has it says XDP_ACT_BASIC or nothing.
        let features = (answer.feature_flags != 0).then_some(XdpFeatures {
            native: answer.feature_flags & NETDEV_XDP_ACT_BASIC != 0,
            zero_copy: answer.feature_flags & NETDEV_XDP_ACT_XSK_ZEROCOPY != 0,
        });
        let program = match (answer.drv_prog_id, answer.skb_prog_id) {
            (0, 0) => None,
            (0, id) => Some(AttachedProgram { id, native: false }),
            (id, _) => Some(AttachedProgram { id, native: true }),
        };
        Ok((features, program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_described() {
        let lo = Netdev::named("lo").unwrap();
        assert_eq!((lo.name.as_str(), lo.index, lo.mac), ("lo", 1, [0; 6]));
        assert!(!lo.is_veth());
        assert_eq!(lo.program, None);
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_in_the_error() {
        let error = Netdev::named("no-such-thing").unwrap_err();
        assert!(matches!(&error, NetdevError::Missing { name } if name == "no-such-thing"), "{error}");
    }

    #[test]
    fn names_that_cannot_be_are_refused_before_the_kernel_is_asked() {
        for name in ["", "a/b", "sixteen-bytes-xx", "with space"] {
            assert!(matches!(Netdev::named(name), Err(NetdevError::Name { .. })), "{name:?}");
        }
    }
}
