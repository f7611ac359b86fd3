//! Why an AF_XDP socket could not be opened, with the likely gate and the mend.

use std::io;

use thiserror::Error;

/// Why an AF_XDP socket could not be opened.
#[derive(Debug, Error)]
pub enum XskError {
    /// The process may not.
    #[error(
        "{port}: {call} is not permitted; AF_XDP wants CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF (run as root or grant them; in a container also allow the bpf and socket calls in its seccomp profile)"
    )]
    NotPermitted {
        /// The port's name, `interface:queue`.
        port: String,
        /// The system call or option.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel has no AF_XDP.
    #[error(
        "{port}: this kernel has no AF_XDP sockets; it wants CONFIG_XDP_SOCKETS=y and version 5.11 or later"
    )]
    NoAfXdp {
        /// The port's name.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The memory may not be locked, or there is none.
    #[error(
        "{port}: {call} found no memory it may lock for {mib} MiB of packet memory; raise the limit (`ulimit -l unlimited`, LimitMEMLOCK=infinity), grant CAP_IPC_LOCK, or ask for fewer chunks"
    )]
    Memlock {
        /// The port's name.
        port: String,
        /// The system call or option.
        call: &'static str,
        /// MiB to be locked.
        mib: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The queue does not exist.
    #[error(
        "{port}: the interface has {queues} receive queues, numbered from 0; ask for fewer queues or make more with `ethtool -L`"
    )]
    NoSuchQueue {
        /// The port's name.
        port: String,
        /// Queues it has.
        queues: u32,
    },
    /// Somebody else has an AF_XDP socket on the queue.
    #[error(
        "{port}: another AF_XDP socket holds this queue, still after {waited_ms} ms; stop the program that holds it (`bpftool net`, `ss --xdp`)"
    )]
    QueueBusy {
        /// The port's name.
        port: String,
        /// How long was waited, in milliseconds.
        waited_ms: u128,
    },
    /// Zero-copy was asked for by name and cannot be had.
    #[error("{port}: zero-copy was asked for, but {why}; set copy = \"auto\" or \"copy\"")]
    NoZeroCopy {
        /// The port's name.
        port: String,
        /// What stands in the way.
        why: String,
    },
    /// The interface is gone or in another network namespace.
    #[error("{port}: no such interface in this network namespace")]
    NoDevice {
        /// The port's name.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the combination.
    #[error(
        "{port}: bind refused the interface's settings; likely its MTU of {mtu} does not fit chunks of {chunk} bytes in this mode, or the queue is in use in another mode; lower the MTU or set copy = \"copy\""
    )]
    Refused {
        /// The port's name.
        port: String,
        /// The interface's MTU in bytes.
        mtu: u32,
        /// Bytes of a chunk.
        chunk: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There are too few free chunks for the fill ring.
    #[error(
        "{port}: {got} free chunks for a fill level of {wanted}; map more packet memory or lower the fill level"
    )]
    NoChunks {
        /// The port's name.
        port: String,
        /// Chunks wanted.
        wanted: u32,
        /// Chunks there were.
        got: u32,
    },
    /// A setting that cannot be.
    #[error("{port}: {key} = {value}: {rule}")]
    Setting {
        /// The port's name.
        port: String,
        /// The setting.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// A system call failed that should not.
    #[error("{port}: {call} failed: {source}")]
    System {
        /// The port's name.
        port: String,
        /// The system call or option.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl XskError {
    /// Translates the errno that `call` left, for everything that is alike at every call.
    pub(crate) fn from_call(port: &str, call: &'static str, locked: usize, source: io::Error) -> XskError {
        let port = port.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => XskError::NotPermitted { port, call, source },
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ENOPROTOOPT) => {
                XskError::NoAfXdp { port, source }
            }
            Some(libc::ENOMEM | libc::ENOBUFS) => XskError::Memlock { port, call, mib: locked >> 20, source },
            Some(libc::ENODEV) => XskError::NoDevice { port, source },
            _ => XskError::System { port, call, source },
        }
    }
}
