//! Steering: which packets of an interface the kernel hands to our sockets.
//!
//! The program is `bpf/steer.bpf.c`. What it does when nobody listens is the point of it: an uplink passes what is the
//! kernel's and tunnels to the kernel and drops what belongs to connections that the kernel knows nothing of; a pod's
//! interface drops everything.

mod attach;
mod error;
mod program;
mod rules;

use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapFlags};

pub use error::SteerError;
pub use rules::{NodePort, SnatRange, SteerRules, TUNNEL_PORTS};

use crate::netdev::Netdev;
use attach::Leftover;
use program::{MARKER, Program};
use rules::{Entries, Table};

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Shared with the kernel: only what [`SteerRules`] name is taken.
    Uplink,
    /// A pod's: everything is taken, and dropped when nobody listens.
    Pod,
}

/// Where the program is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Where it carries more on that kind of interface, else where it can.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic hook.
    Generic,
}

/// Where the program runs, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteerMode {
    /// Whether the driver runs it.
    pub native: bool,
    /// Why.
    pub because: String,
}

impl std::fmt::Display for SteerMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", mode_name(self.native), self.because)
    }
}

/// The steering program on one interface. Dropping it leaves the program attached: use [`Steer::detach`].
pub struct Steer {
    netdev: Netdev,
    role: Role,
    program: Program,
    mode: SteerMode,
    entries: Entries,
}

impl Steer {
    /// Loads the program and attaches it, in the network namespace of the calling thread. Our own program of an earlier
    /// run is replaced, in one step where the mode stays the same, and what it took is taken until
    /// [`Steer::set_rules`] says otherwise: at no moment does the kernel meet a connection that is not its own. Frames
    /// with a VLAN tag are left to the kernel.
    ///
    /// # Errors
    /// [`SteerError::Foreign`] when somebody else's program is there, else which mode failed and why.
    pub fn attach(netdev: &Netdev, role: Role, mode: XdpMode) -> Result<Steer, SteerError> {
        Steer::attach_vlan(netdev, role, mode, 0)
    }

    /// As [`Steer::attach`], for an uplink whose tunnels and pods are on the VLAN `vlan` (1 to 4094; 0 for none).
    ///
    /// # Errors
    /// As [`Steer::attach`].
    pub fn attach_vlan(netdev: &Netdev, role: Role, mode: XdpMode, vlan: u16) -> Result<Steer, SteerError> {
        let interface = || netdev.name.clone();
        if vlan > 4094 {
            return Err(SteerError::Rule {
                interface: interface(),
                rule: format!("{vlan} is no VLAN: 1 to 4094"),
            });
        }
        let program = Program::load(role, vlan, netdev.index, netdev.rx_queues)
            .map_err(|source| SteerError::Load { interface: interface(), source })?;
        let leftover = attach::leftover(netdev)?;
        let mut entries = Entries::new();
        if let Some(old) = &leftover {
            apply(&program, &mut entries, &old.entries(&program))
                .map_err(|(at, source)| map_error(netdev, at.0.name(), Hex(&at.1), source))?;
        }
        let mode = attach_best(netdev, mode, &program, leftover.as_ref())?;
        if leftover.is_some() {
            tracing::info!(
                interface = netdev.name,
                "the steering program of an earlier run was replaced, its {} rules kept for now",
                entries.len()
            );
        }
        Ok(Steer { netdev: netdev.clone(), role, program, mode, entries })
    }

    /// The interface.
    #[must_use]
    pub fn netdev(&self) -> &Netdev {
        &self.netdev
    }

    /// What the interface is to us.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where the program runs, and why there.
    #[must_use]
    pub fn mode(&self) -> &SteerMode {
        &self.mode
    }

    /// The program's number, as in `bpftool prog`.
    #[must_use]
    pub fn program_id(&self) -> u32 {
        self.program.id()
    }

    /// Queues that the program can serve: those the interface had when it was attached.
    #[must_use]
    pub fn queues(&self) -> u32 {
        self.program.queues()
    }

    /// Sends what is taken on `queue` to an AF_XDP socket that is bound to that queue (an `XskPort`).
    ///
    /// # Errors
    /// [`SteerError::Map`] when there is no such queue or it is no AF_XDP socket.
    pub fn bind(&self, queue: u32, socket: &impl AsFd) -> Result<(), SteerError> {
        self.program
            .bind(queue, socket.as_fd())
            .map_err(|source| map_error(&self.netdev, MARKER, queue, source))
    }

    /// Sends what is taken on `queue` nowhere: an uplink passes tunnels to the kernel, everything else is dropped. A
    /// socket that closes is taken out by the kernel itself.
    ///
    /// # Errors
    /// [`SteerError::Map`] when there is no such queue.
    pub fn unbind(&self, queue: u32) -> Result<(), SteerError> {
        self.program.unbind(queue).map_err(|source| map_error(&self.netdev, MARKER, queue, source))
    }

    /// Sets what an uplink takes. What is new is added before what is gone is removed, and what stays is not touched, so
    /// at no moment is a packet missed that the old and the new rules both take.
    ///
    /// # Errors
    /// [`SteerError::Rule`] before anything is changed; [`SteerError::Map`] when a map is full, what was written until
    /// then being kept.
    pub fn set_rules(&mut self, rules: &SteerRules) -> Result<(), SteerError> {
        let wanted = self.entries_of(rules)?;
        self.apply(&wanted)
    }

    /// As [`Steer::set_rules`], but what is taken now, by an earlier run's rules say, is taken on.
    ///
    /// # Errors
    /// As [`Steer::set_rules`].
    pub fn add_rules(&mut self, rules: &SteerRules) -> Result<(), SteerError> {
        let mut wanted = self.entries.clone();
        wanted.extend(self.entries_of(rules)?);
        self.apply(&wanted)
    }

    fn entries_of(&self, rules: &SteerRules) -> Result<Entries, SteerError> {
        rules.entries().map_err(|rule| SteerError::Rule { interface: self.netdev.name.clone(), rule })
    }

    fn apply(&mut self, wanted: &Entries) -> Result<(), SteerError> {
        apply(&self.program, &mut self.entries, wanted)
            .map_err(|(at, source)| map_error(&self.netdev, at.0.name(), Hex(&at.1), source))
    }

    /// Takes the program off the interface; with `keep_closed` it stays, without a socket: what is no tunnel's and no
    /// business of the kernel's is dropped until a program is attached again.
    ///
    /// # Errors
    /// [`SteerError::System`], also when another program has taken the place of ours, which then stays.
    pub fn detach(self, keep_closed: bool) -> Result<(), SteerError> {
        if keep_closed {
            return (0..self.queues()).try_for_each(|queue| self.unbind(queue));
        }
        let detached = if self.program.serves() {
            attach::detach(&self.netdev, &self.program, self.mode.native)
        } else {
            // As the kernel says of a program that is not the expected one.
            Err(std::io::Error::from_raw_os_error(libc::EEXIST))
        };
        match detached {
            // The interface went first, and the program with it.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            outcome => outcome.map_err(|source| {
                let interface = self.netdev.name.clone();
                SteerError::System { interface, call: "detaching XDP", source }
            }),
        }
    }
}

fn map_error(
    netdev: &Netdev,
    map: &'static str,
    entry: impl ToString,
    source: libbpf_rs::Error,
) -> SteerError {
    SteerError::Map { interface: netdev.name.clone(), map, entry: entry.to_string(), source }
}

/// Whether [`Steer::attach`] would find no program on the interface but, at most, one of our own.
///
/// # Errors
/// [`SteerError::Foreign`] when somebody else's program is there; [`SteerError::Load`] when the kernel does not tell, which
/// takes CAP_SYS_ADMIN.
pub fn check_vacant(netdev: &Netdev) -> Result<(), SteerError> {
    attach::leftover(netdev).map(drop)
}

/// Brings the maps from `present` to `wanted`, which `present` follows step by step.
fn apply(
    program: &Program,
    present: &mut Entries,
    wanted: &Entries,
) -> Result<(), ((Table, Vec<u8>), libbpf_rs::Error)> {
    for (at, value) in wanted {
        if present.get(at) != Some(value) {
            program.table(at.0).update(&at.1, value, MapFlags::ANY).map_err(|source| (at.clone(), source))?;
            present.insert(at.clone(), value.clone());
        }
    }
    let gone: Vec<_> = present.keys().filter(|at| !wanted.contains_key(*at)).cloned().collect();
    for at in gone {
        program.table(at.0).delete(&at.1).map_err(|source| (at.clone(), source))?;
        present.remove(&at);
    }
    Ok(())
}

/// The modes to try, best first, each with why.
fn candidates(netdev: &Netdev, mode: XdpMode) -> Vec<(bool, &'static str)> {
    match mode {
        XdpMode::Native => vec![(true, "as configured")],
        XdpMode::Generic => vec![(false, "as configured")],
        // Frames on a veth come from socket buffers; its native mode makes a copy of each first.
        XdpMode::Auto if netdev.is_veth() => {
            vec![(false, "carries more on a veth"), (true, "generic failed")]
        }
        XdpMode::Auto if netdev.features.is_some_and(|features| !features.native) => {
            vec![(false, "the driver has no native XDP")]
        }
        XdpMode::Auto => vec![(true, "the driver has it"), (false, "native failed")],
    }
}

fn attach_best(
    netdev: &Netdev,
    mode: XdpMode,
    program: &Program,
    mut leftover: Option<&Leftover>,
) -> Result<SteerMode, SteerError> {
    let mut tried = Vec::new();
    for (native, why) in candidates(netdev, mode) {
        if let Some(old) = leftover.filter(|old| old.native != native) {
            // The kernel does not run both modes at once, so this cannot be one step.
            tracing::warn!(
                interface = netdev.name,
                "the earlier program ran in {} mode: taken off first",
                mode_name(old.native)
            );
            attach::detach(netdev, old, old.native).map_err(|source| SteerError::System {
                interface: netdev.name.clone(),
                call: "detaching XDP",
                source,
            })?;
            leftover = None;
        }
        match attach::attach(netdev, program, native, leftover) {
            Ok(()) => {
                let because = if tried.is_empty() { why.to_owned() } else { tried.join("; ") };
                if !tried.is_empty() {
                    tracing::warn!(
                        interface = netdev.name,
                        "XDP runs in {} mode: {because}",
                        mode_name(native)
                    );
                }
                return Ok(SteerMode { native, because });
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ERANGE) => tried.push(format!(
                    "{} mode refuses the MTU of {} ({error})",
                    mode_name(native),
                    netdev.mtu
                )),
                Some(libc::EOPNOTSUPP | libc::EINVAL) => {
                    tried.push(format!("{} mode is refused ({error})", mode_name(native)));
                }
                // Somebody was quicker: say who.
                Some(libc::EBUSY | libc::EEXIST) => {
                    attach::leftover(netdev)?;
                    return Err(system(netdev, error));
                }
                _ => return Err(system(netdev, error)),
            },
        }
    }
    Err(SteerError::NoMode { interface: netdev.name.clone(), tried: tried.join("; ") })
}

fn system(netdev: &Netdev, source: std::io::Error) -> SteerError {
    SteerError::System { interface: netdev.name.clone(), call: "attaching XDP", source }
}

fn mode_name(native: bool) -> &'static str {
    if native { "native" } else { "generic" }
}

/// What `ip link` calls a program's place; its plain `xdp` means the driver's alone where there is one.
#[must_use]
pub fn ip_name(native: bool) -> &'static str {
    if native { "xdpdrv" } else { "xdpgeneric" }
}

/// A map's key, for an error.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests;
