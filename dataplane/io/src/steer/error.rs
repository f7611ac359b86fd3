//! Why packets could not be steered, with the mend.

use std::io;

use thiserror::Error;

use crate::netdev::NetdevError;
use crate::steer::ip_name;

/// Why packets could not be steered.
#[derive(Debug, Error)]
pub enum SteerError {
    /// The kernel did not take the program or a map of it.
    #[error(
        "{interface}: the steering program was not loaded: {source}; it wants CAP_BPF, CAP_NET_ADMIN and \
         CONFIG_BPF_SYSCALL (run as root or grant them; in a container also allow the bpf call in its seccomp profile)"
    )]
    Load {
        /// The interface.
        interface: String,
        /// What libbpf said.
        #[source]
        source: libbpf_rs::Error,
    },
    /// Somebody else's program is attached.
    #[error(
        "{interface}: program {id} ({name}) is attached and is not ours, so it stays; see `bpftool prog show id {id}` and \
         remove it with `ip link set dev {interface} {} off` if nobody needs it",
        ip_name(*.native)
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The program's number.
        id: u32,
        /// The program's name.
        name: String,
        /// Whether the driver runs it, not the kernel's generic hook.
        native: bool,
    },
    /// No mode that was tried works on the interface.
    #[error("{interface}: XDP cannot be attached: {tried}; lower the MTU or set xdp = \"auto\"")]
    NoMode {
        /// The interface.
        interface: String,
        /// Each mode and what the kernel said.
        tried: String,
    },
    /// A netlink or bpf call failed that should not.
    #[error("{interface}: {call} failed: {source}")]
    System {
        /// The interface.
        interface: String,
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map did not take an entry.
    #[error("{interface}: the steering program's map {map} did not take {entry}: {source}")]
    Map {
        /// The interface.
        interface: String,
        /// The map.
        map: &'static str,
        /// The entry.
        entry: String,
        /// What libbpf said.
        #[source]
        source: libbpf_rs::Error,
    },
    /// A rule that cannot be.
    #[error("{interface}: {rule}")]
    Rule {
        /// The interface.
        interface: String,
        /// What is wrong with it.
        rule: String,
    },
    /// The interface could not be asked.
    #[error(transparent)]
    Netdev(#[from] NetdevError),
}
