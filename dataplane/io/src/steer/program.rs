//! The steering program: compiled by the build script, loaded for one interface.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramHandle};

use crate::steer::Role;
use crate::steer::rules::Table;

/// What libbpf-cargo generates from `bpf/steer.bpf.c`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
#[allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::missing_safety_doc
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}

/// The program's name in the kernel.
pub(crate) const NAME: &str = "penstock_steer";
/// The map by which a program is known as ours, whichever version loaded it.
pub(crate) const MARKER: &str = "penstock_xsks";

/// What libbpf would print goes to the log: errors that matter come back as values besides.
fn log(level: libbpf_rs::PrintLevel, text: String) {
    match level {
        libbpf_rs::PrintLevel::Warn => tracing::debug!("libbpf: {}", text.trim_end()),
        _ => tracing::trace!("libbpf: {}", text.trim_end()),
    }
}

/// A loaded program and its maps. Attaching it is another matter.
pub(crate) struct Program {
    handle: ProgramHandle,
    xsks: MapHandle,
    tables: [MapHandle; Table::ALL.len()],
}

impl Program {
    /// Loads the program for a role, for an interface of `queues` receive queues. `vlan` is the tag whose frames an
    /// uplink looks into; 0 leaves tagged frames to the kernel.
    pub(crate) fn load(role: Role, vlan: u16, queues: u32) -> libbpf_rs::Result<Program> {
        libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Info, log)));
        let mut object = MaybeUninit::uninit();
        let mut open = skeleton::SteerSkelBuilder::default().open(&mut object)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.role = match role {
                Role::Uplink => 0,
                Role::Pod => 1,
            };
            constants.vlan = vlan;
        }
        open.maps.penstock_xsks.set_max_entries(queues.max(1))?;
        let loaded = open.load()?;
        let maps = &loaded.maps;
        Ok(Program {
            handle: ProgramHandle::try_from(&loaded.progs.penstock_steer)?,
            xsks: MapHandle::try_from(&maps.penstock_xsks)?,
            tables: [
                MapHandle::try_from(&maps.endpoints)?,
                MapHandle::try_from(&maps.tunnel_ports)?,
                MapHandle::try_from(&maps.prefixes4)?,
                MapHandle::try_from(&maps.prefixes6)?,
                MapHandle::try_from(&maps.node_ports)?,
                MapHandle::try_from(&maps.snat_ports)?,
            ],
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.handle.id()
    }

    /// The map of one kind of rule.
    pub(crate) fn table(&self, table: Table) -> &MapHandle {
        &self.tables[table as usize]
    }

    /// Sends what the program takes on `queue` to an AF_XDP socket.
    pub(crate) fn bind(&self, queue: u32, socket: BorrowedFd<'_>) -> libbpf_rs::Result<()> {
        use std::os::fd::AsRawFd;
        self.xsks.update(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
    }

    /// Sends it there no more. A queue without a socket is fine.
    pub(crate) fn unbind(&self, queue: u32) -> libbpf_rs::Result<()> {
        match self.xsks.delete(&queue.to_ne_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Queues that the program can serve.
    pub(crate) fn queues(&self) -> u32 {
        self.xsks.max_entries()
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
