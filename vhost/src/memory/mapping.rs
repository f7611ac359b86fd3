//! A part of a peer's file, mapped shared with it, and guarded against the file becoming shorter.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use super::MemoryError;
use super::guard::Watch;
use super::words::Words;

/// A shared mapping of a part of a file; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The first byte asked for.
    base: NonNull<u8>,
    /// How many were asked for.
    bytes: usize,
    /// Declared before the pages, so that the watch ends before the unmapping: what is mapped there next is not ours.
    watch: Watch,
    /// The pages that hold them.
    pages: Pages,
}

/// Whole pages, unmapped on drop.
#[derive(Debug)]
struct Pages {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process; the address may be used from any thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives out its address and `Words`, whose accesses are all atomic or copies of raw bytes.
unsafe impl Sync for Mapping {}

/// Why a file could not be mapped.
#[derive(Debug)]
pub(crate) enum MapFault {
    Short { has: u64, needs: u64 },
    FileSystem { kind: u64 },
    System { call: &'static str, source: io::Error },
}

impl MapFault {
    pub(super) fn in_region(self, guest: u64) -> MemoryError {
        match self {
            MapFault::Short { has, needs } => MemoryError::Short { guest, has, needs },
            MapFault::FileSystem { kind } => MemoryError::FileSystem { guest, kind },
            MapFault::System { call, source } => MemoryError::System { guest, call, source },
        }
    }
}

impl From<MapFault> for io::Error {
    fn from(fault: MapFault) -> io::Error {
        match fault {
            MapFault::Short { has, needs } => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file has {has} bytes and should have {needs}"),
            ),
            MapFault::FileSystem { kind } => io::Error::new(
                io::ErrorKind::Unsupported,
                format!("a file system of type {kind:#x}, whose pages may come late or never"),
            ),
            MapFault::System { source, .. } => source,
        }
    }
}

/// File systems whose pages come from memory or from a disk of this machine (`linux/magic.h`): tmpfs (memfds as well),
/// hugetlbfs, ramfs, ext4, XFS, btrfs. On others, FUSE above all, a peer could let a worker wait for a page for ever.
const PROMPT: [u64; 6] = [0x0102_1994, 0x9584_58f6, 0x8584_58f6, 0xef53, 0x5846_5342, 0x9123_683e];

impl Mapping {
    /// Maps `bytes` (not zero) of `file` from `offset` on; their sum fits an `i64`.
    pub(crate) fn of(file: &File, offset: u64, bytes: u64) -> Result<Mapping, MapFault> {
        let failed = |call| move |source| MapFault::System { call, source };
        let about = file.metadata().map_err(failed("fstat"))?;
        let needs = offset + bytes;
        if about.len() < needs {
            return Err(MapFault::Short { has: about.len(), needs });
        }
        let kind = file_system(file).map_err(failed("fstatfs"))?;
        if !PROMPT.contains(&kind) {
            return Err(MapFault::FileSystem { kind });
        }
        // Files of huge pages (hugetlbfs) tell their page's size as block size, and are mapped in whole pages only. A
        // memfd of ordinary pages with transparent huge pages tells theirs too, which does no harm where they are guarded.
        let page = about.blksize().max(4096).next_power_of_two();
        let start = offset - offset % page;
        let Some(length) = needs.checked_next_multiple_of(page).map(|end| end - start) else {
            return Err(MapFault::Short { has: about.len(), needs });
        };
        let (length, lead) = (length as usize, (offset - start) as usize);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping at an address of the kernel's choice touches no memory of ours.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                start as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed("mmap")(io::Error::last_os_error()));
        }
        let base = NonNull::new(mapped.cast::<u8>())
            .ok_or_else(|| failed("mmap")(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let pages = Pages { base, bytes: length };
        // Advice only: a guest's memory has no place in our core dumps.
        // SAFETY: the range is exactly the pages just mapped.
        unsafe { libc::madvise(base.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
        let watch =
            Watch::over(base.as_ptr() as usize, length, page as usize).map_err(failed("sigaction"))?;
        // SAFETY: `lead` is less than a page, and there is at least one.
        let base = unsafe { base.add(lead) };
        Ok(Mapping { base, bytes: bytes as usize, watch, pages })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a page of it went away and was replaced by zeros.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.watch.is_poisoned()
    }

    /// `len` bytes of it from `offset` on.
    ///
    /// # Panics
    /// If that is more than there is.
    pub(crate) fn words(&self, offset: usize, len: usize) -> Words {
        assert!(offset <= self.bytes && self.bytes - offset >= len, "words lie inside their mapping");
        debug_assert!(self.pages.bytes >= self.bytes);
        // SAFETY: inside the mapping (checked above).
        let base = unsafe { self.base.add(offset) };
        // SAFETY: `len` bytes from there on are mapped; whoever holds `Words` holds the `Mapping` too.
        unsafe { Words::new(base, len) }
    }
}

/// The type of the file system that a file lies on.
fn file_system(file: &File) -> io::Result<u64> {
    // SAFETY: `statfs` is plain C data, for which all zeros is a valid value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `about` is exclusively borrowed.
    match unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) } {
        // The numbers have 32 bits; the field's width and sign are the architecture's.
        0 => Ok(about.f_type as u64 & 0xffff_ffff),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping, and its owner is going away.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
