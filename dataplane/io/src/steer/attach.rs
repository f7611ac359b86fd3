//! Attaching by netlink: a program that is attached so stays when its loader dies, unlike one held by a bpf link. A pod's
//! interface stays closed then, and an uplink closed to what the kernel must not answer for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramHandle, libbpf_sys};

use crate::netdev::{AttachedProgram, Netdev};
use crate::steer::error::SteerError;
use crate::steer::program::{MARKER, NAME, Program};
use crate::steer::rules::{Entries, Table};

/// Our own program of an earlier run, found on an interface.
pub(crate) struct Leftover {
    handle: ProgramHandle,
    maps: Vec<MapHandle>,
    pub(crate) native: bool,
}

impl Leftover {
    /// The rules of that run, as far as `program` has maps of the same shape for them.
    pub(crate) fn entries(&self, program: &Program) -> Entries {
        let mut entries = Entries::new();
        for table in Table::ALL {
            let same = |map: &&MapHandle| {
                let ours = program.table(table);
                map.name() == table.name()
                    && (map.key_size(), map.value_size()) == (ours.key_size(), ours.value_size())
            };
            let Some(map) = self.maps.iter().find(same) else { continue };
            // An entry that goes meanwhile, or cannot be read, is no rule.
            let values = map.keys().filter_map(|key| {
                let value = map.lookup(&key, MapFlags::ANY).ok().flatten()?;
                Some(((table, key), value))
            });
            entries.extend(values);
        }
        entries
    }
}

/// Finds out whose program is on the interface: nobody's, ours, or an error.
pub(crate) fn leftover(netdev: &Netdev) -> Result<Option<Leftover>, SteerError> {
    let interface = || netdev.name.clone();
    let Some(AttachedProgram { id, native }) = Netdev::named(&netdev.name)?.program else { return Ok(None) };
    let handle = ProgramHandle::from_prog_id(id)
        .map_err(|source| SteerError::Load { interface: interface(), source })?;
    let maps = maps_of(id);
    // Whichever version loaded it.
    if handle.name() == NAME && maps.iter().any(|map| map.name() == MARKER) {
        return Ok(Some(Leftover { handle, maps, native }));
    }
    let name = handle.name().to_string_lossy().into_owned();
    Err(SteerError::Foreign { interface: interface(), id, name, native })
}

/// The maps that a program uses.
fn maps_of(id: u32) -> Vec<MapHandle> {
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let info = ProgInfoIter::with_query_opts(options).find(|info| info.id == id);
    let ids = info.map(|info| info.map_ids).unwrap_or_default();
    ids.into_iter().filter_map(|map| MapHandle::from_map_id(map).ok()).collect()
}

/// Attaches `program`, in the place of `old` if that is there in the same mode, otherwise only if nothing is there.
pub(crate) fn attach(
    netdev: &Netdev,
    program: &Program,
    native: bool,
    old: Option<&Leftover>,
) -> io::Result<()> {
    let expected = old.filter(|old| old.native == native);
    let (flags, old_fd) = match expected {
        Some(old) => (libbpf_sys::XDP_FLAGS_REPLACE, Some(old.handle.as_fd())),
        None => (libbpf_sys::XDP_FLAGS_UPDATE_IF_NOEXIST, None),
    };
    let options = libbpf_sys::bpf_xdp_attach_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_attach_opts>() as libbpf_sys::size_t,
        old_prog_fd: old_fd.map_or(0, |fd| fd.as_raw_fd()),
        ..Default::default()
    };
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: the structure says its own size and lives past the call; the descriptors are open.
    let result = unsafe {
        libbpf_sys::bpf_xdp_attach(netdev.index as i32, fd, flags | mode(native), &raw const options)
    };
    outcome(result)
}

/// Detaches exactly `program`: if another has taken its place, the kernel refuses.
pub(crate) fn detach(netdev: &Netdev, program: &impl AsFd, native: bool) -> io::Result<()> {
    let options = libbpf_sys::bpf_xdp_attach_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_attach_opts>() as libbpf_sys::size_t,
        old_prog_fd: program.as_fd().as_raw_fd(),
        ..Default::default()
    };
    let flags = libbpf_sys::XDP_FLAGS_REPLACE | mode(native);
    // SAFETY: the structure says its own size and lives past the call; the descriptor is open.
    outcome(unsafe { libbpf_sys::bpf_xdp_detach(netdev.index as i32, flags, &raw const options) })
}

impl AsFd for Leftover {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

fn mode(native: bool) -> u32 {
    if native { libbpf_sys::XDP_FLAGS_DRV_MODE } else { libbpf_sys::XDP_FLAGS_SKB_MODE }
}

fn outcome(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}
