//! The kernel's side of the node: its links, addresses, neighbours and routes, followed and asked over netlink.
//!
//! ```text
//!  multicast groups --> watch --> view (pure) --> changes --> tables
//!  a tunnel's peer  --> resolve::path_to --> (interface, next hop) --> view.neighbour --> template
//!                                                      ^ missing or stale: upkeep (pure) --> resolve::probe
//!  the host port    --> host::prepare_host
//!  uplinks' routers --> ways (the main table)
//! ```
//!
//! Everything runs on the caller's tokio runtime, which needs I/O and time enabled, and in the network namespace of the
//! thread that opens the sockets.

mod decode;
pub mod host;
mod listeners;
mod ports;
mod requests;
pub mod resolve;
mod sysctl;
pub mod upkeep;
pub mod view;
pub mod watch;
mod ways;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use host::{GATEWAY_V4, GATEWAY_V6, HostPort};
pub use listeners::{ListeningPort, listening_ports};
pub use ports::{PortSet, PortsKept};
pub use resolve::{Path, Unreachable};
pub use upkeep::Upkeep;
pub use view::{Change, KernelView, Link, Neighbour, NeighbourState};
pub use watch::Watcher;
pub use ways::Way;

use requests::Requests;

/// A way to ask the kernel. Cheap to clone; its socket closes with the last clone.
#[derive(Clone, Debug)]
pub struct Kernel {
    requests: Requests,
}

impl Kernel {
    /// Opens a netlink socket, served by a task of the current runtime.
    ///
    /// # Errors
    /// [`KernelError::Open`].
    pub fn open() -> Result<Kernel, KernelError> {
        Ok(Kernel { requests: Requests::open()? })
    }
}

/// Why the kernel did not do or tell what was asked.
#[derive(Debug, Error)]
pub enum KernelError {
    /// No netlink socket.
    #[error(
        "cannot open a route netlink socket: {source}; a seccomp filter or a service's RestrictAddressFamilies must allow \
         AF_NETLINK"
    )]
    Open {
        /// What the system call said.
        #[source]
        source: io::Error,
    },
    /// The kernel answered with an error.
    #[error("{call} for {object} failed: {source}; {}", mend(source))]
    Request {
        /// The netlink request, e.g. `RTM_NEWADDR`.
        call: &'static str,
        /// What it was about, e.g. `10.0.0.1/32 on penstock0`.
        object: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no such interface in this network namespace.
    #[error(
        "there is no interface {interface} in this network namespace; see `ip link`, and mind the name and the namespace"
    )]
    NoInterface {
        /// The name asked for.
        interface: String,
    },
    /// A kernel setting could not be read or written.
    #[error("{interface}: cannot set {} to {value}: {source}; /proc/sys must be writable: run as root, in a container \
             with the host's network and a writable /proc/sys (privileged)", path.display())]
    Sysctl {
        /// The interface it was for.
        interface: String,
        /// The file.
        path: PathBuf,
        /// What it was to say.
        value: &'static str,
        /// What reading or writing said.
        #[source]
        source: io::Error,
    },
    /// IPv6 was asked of an interface whose MTU is too small for it.
    #[error(
        "{interface}: MTU {mtu} is too small for IPv6, which needs 1280 (RFC 8200); raise it, or leave IPv6 out"
    )]
    MtuBelowIpv6 {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
    },
}

/// What a person would do about an error number of a route netlink request (`errno.h`, Linux numbers).
fn mend(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(1 | 13) => "it takes CAP_NET_ADMIN in the network namespace: run as root or add the capability",
        Some(17) => {
            "somebody else's is there already: see `ip route` and `ip address`, and remove or change one of the two"
        }
        Some(19) => "the interface is gone: see `ip link`",
        Some(22) => {
            "the kernel finds the request inconsistent: see whether addresses and gateways fit with `ip address`"
        }
        Some(95) => "the kernel was built without this: IPv6, or the kind of route",
        Some(99) => "the source address is not one of this node's: see `ip address`",
        Some(100) => "the interface is down: `ip link set … up`",
        Some(101 | 113) => "the gateway cannot be reached: see `ip route get`",
        Some(105) => "the kernel is short of memory for its tables: see net.ipv4.neigh.default.gc_thresh3",
        _ => "see `ip monitor` and the kernel's log for what it refused",
    }
}
