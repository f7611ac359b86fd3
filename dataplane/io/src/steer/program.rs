//! The steering program: compiled by the build script, loaded for one uplink, or once for all pods' interfaces.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

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

/// Queues that all pods' interfaces of a network namespace have together at most.
const POD_QUEUES: u32 = 16384;

/// A loaded program and its maps, for one uplink or for all pods' interfaces of a network namespace.
struct Loaded {
    handle: ProgramHandle,
    xsks: MapHandle,
    pods: MapHandle,
    tables: [MapHandle; Table::ALL.len()],
    /// The runs of sockets that are free, by their first; only pods share them.
    free: Mutex<BTreeMap<u32, u32>>,
}

impl Loaded {
    fn new(role: Role, vlan: u16, queues: u32) -> libbpf_rs::Result<Self> {
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
        Ok(Self {
            handle: ProgramHandle::try_from(&loaded.progs.penstock_steer)?,
            xsks: MapHandle::try_from(&maps.penstock_xsks)?,
            pods: MapHandle::try_from(&maps.pods)?,
            tables: [
                MapHandle::try_from(&maps.endpoints)?,
                MapHandle::try_from(&maps.tunnel_ports)?,
                MapHandle::try_from(&maps.prefixes4)?,
                MapHandle::try_from(&maps.prefixes6)?,
                MapHandle::try_from(&maps.node_ports)?,
                MapHandle::try_from(&maps.snat_ports)?,
            ],
            free: Mutex::new(BTreeMap::from([(0, queues.max(1))])),
        })
    }

    /// The one that serves the pods of this thread's network namespace, in which alone interfaces' numbers are their own. It
    /// stays when the last pod goes: the next one waits for an attachment only.
    fn of_pods() -> libbpf_rs::Result<Arc<Self>> {
        static LOADED: Mutex<BTreeMap<u64, Arc<Loaded>>> = Mutex::new(BTreeMap::new());
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(libbpf_rs::Error::from)?.ino();
        let mut known = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = known.get(&namespace) {
            return Ok(Arc::clone(loaded));
        }
        let loaded = Arc::new(Self::new(Role::Pod, 0, POD_QUEUES)?);
        known.insert(namespace, Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Takes a run of sockets, the first that is long enough.
    fn take(&self, queues: u32) -> libbpf_rs::Result<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let found =
            free.iter().find(|(_, length)| **length >= queues).map(|(first, length)| (*first, *length));
        let (first, length) = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        free.remove(&first);
        if length > queues {
            free.insert(first + queues, length - queues);
        }
        Ok(first)
    }

    /// Takes a run back, and joins it with those beside it.
    fn give_back(&self, first: u32, queues: u32) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut first, mut length) = (first, queues);
        if let Some(behind) = free.remove(&(first + length)) {
            length += behind;
        }
        if let Some((&before, &so_many)) = free.range(..first).next_back()
            && before + so_many == first
        {
            (first, length) = (before, so_many + length);
        }
        free.insert(first, length);
    }
}

/// The program as it serves one interface. Attaching it is another matter.
pub(crate) struct Program {
    loaded: Arc<Loaded>,
    /// The first of the interface's sockets, and how many there are.
    first: u32,
    queues: u32,
    /// The pod's interface.
    pod: Option<u32>,
}

impl Program {
    /// Loads the program for a role, for the interface number `index` with `queues` receive queues. `vlan` is the tag whose
    /// frames an uplink looks into; 0 leaves tagged frames to the kernel.
    pub(crate) fn load(role: Role, vlan: u16, index: u32, queues: u32) -> libbpf_rs::Result<Program> {
        let queues = queues.max(1);
        if role == Role::Uplink {
            let loaded = Arc::new(Loaded::new(role, vlan, queues)?);
            return Ok(Program { loaded, first: 0, queues, pod: None });
        }
        let loaded = Loaded::of_pods()?;
        let first = loaded.take(queues)?;
        let program = Program { loaded, first, queues, pod: Some(index) };
        program.loaded.pods.update(&index.to_ne_bytes(), &program.place(), MapFlags::ANY)?;
        Ok(program)
    }

    pub(crate) fn id(&self) -> u32 {
        self.loaded.handle.id()
    }

    /// The map of one kind of rule.
    pub(crate) fn table(&self, table: Table) -> &MapHandle {
        &self.loaded.tables[table as usize]
    }

    fn slot(&self, queue: u32) -> libbpf_rs::Result<[u8; 4]> {
        // As the kernel says of a map's index.
        let slot = (queue < self.queues).then(|| (self.first + queue).to_ne_bytes());
        Ok(slot.ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?)
    }

    /// Sends what the program takes on `queue` to an AF_XDP socket.
    pub(crate) fn bind(&self, queue: u32, socket: BorrowedFd<'_>) -> libbpf_rs::Result<()> {
        use std::os::fd::AsRawFd;
        self.loaded.xsks.update(&self.slot(queue)?, &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
    }

    /// Sends it there no more. A queue without a socket is fine.
    pub(crate) fn unbind(&self, queue: u32) -> libbpf_rs::Result<()> {
        match self.loaded.xsks.delete(&self.slot(queue)?) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether nobody has taken the interface over since. The program alone does not tell: pods share it.
    pub(crate) fn serves(&self) -> bool {
        let Some(pod) = self.pod else { return true };
        let found = self.loaded.pods.lookup(&pod.to_ne_bytes(), MapFlags::ANY);
        matches!(found, Ok(Some(place)) if place == self.place())
    }

    /// As the program reads it.
    fn place(&self) -> Vec<u8> {
        [self.first.to_ne_bytes(), self.queues.to_ne_bytes()].concat()
    }

    /// Queues that the program can serve.
    pub(crate) fn queues(&self) -> u32 {
        self.queues
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Some(pod) = self.pod else { return };
        // Whoever took the interface over has a place of its own there.
        if self.serves() {
            // What would be left leads to no socket.
            let _ = self.loaded.pods.delete(&pod.to_ne_bytes());
        }
        for queue in 0..self.queues {
            let _ = self.unbind(queue);
        }
        self.loaded.give_back(self.first, self.queues);
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.loaded.handle.as_fd()
    }
}
