//! Guest memory: the regions that a front-end shares with us, mapped, and the way from its addresses to ours.
//!
//! Guest memory is never behind `&` or `&mut`: the guest may change any byte at any time. Ring words are read once through
//! `Words`, packets are copied through raw pointers, and what was read is checked before it is used.

mod guard;
mod mapping;
mod words;

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

pub(crate) use guard::Alarm;
pub(crate) use mapping::Mapping;
pub(crate) use words::Words;

/// Regions that one peer may share: what we answer to `GET_MAX_MEM_SLOTS`.
pub const MAX_REGIONS: usize = 64;

/// One region of a front-end's memory, as it is told to us (`SET_MEM_TABLE`, `ADD_MEM_REG` of the vhost-user protocol).
#[derive(Debug)]
pub struct RegionSetup {
    /// Where the guest sees it: descriptors hold such addresses.
    pub guest: u64,
    /// Where the front-end sees it: ring addresses are such addresses.
    pub user: u64,
    /// How long it is.
    pub bytes: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// The memory.
    pub file: File,
}

/// Why memory cannot be shared.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// No bytes, or a range that does not fit 64 bits.
    #[error(
        "region of {bytes:#x} bytes at guest address {guest:#x}: not a range of memory; the front-end is broken"
    )]
    Range {
        /// Where the guest sees it.
        guest: u64,
        /// How long it is said to be.
        bytes: u64,
    },
    /// Two regions claim the same addresses.
    #[error("the regions at guest addresses {first:#x} and {second:#x} overlap; the front-end is broken")]
    Overlap {
        /// The one region's guest address.
        first: u64,
        /// The other's.
        second: u64,
    },
    /// More regions than we keep.
    #[error("more than {MAX_REGIONS} regions of memory; start the guest with fewer memory devices")]
    TooMany,
    /// No such region, or no more of it than that.
    #[error("no region at guest address {guest:#x} of {bytes:#x} bytes to take away")]
    Unknown {
        /// The guest address that was named.
        guest: u64,
        /// The length that was named.
        bytes: u64,
    },
    /// The file ends before the region does.
    #[error(
        "the file of the region at guest address {guest:#x} has {has:#x} bytes and should have {needs:#x}; the guest's \
         memory must be shared (QEMU: share=on)"
    )]
    Short {
        /// Where the guest sees it.
        guest: u64,
        /// The file's length.
        has: u64,
        /// What the region needs.
        needs: u64,
    },
    /// The file lies on a file system that may let a page wait for somebody else.
    #[error(
        "the file of the region at guest address {guest:#x} lies on a file system of type {kind:#x}, whose pages may come late \
         or never; take a memfd, or a file on hugetlbfs or tmpfs"
    )]
    FileSystem {
        /// Where the guest sees it.
        guest: u64,
        /// The type (`linux/magic.h`).
        kind: u64,
    },
    /// A system call failed.
    #[error("region at guest address {guest:#x}: {call} failed: {source}")]
    System {
        /// Where the guest sees it.
        guest: u64,
        /// The system call.
        call: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// A mapped region.
#[derive(Clone, Debug)]
struct Mapped {
    guest: u64,
    user: u64,
    bytes: u64,
    mapping: Arc<Mapping>,
}

/// All the memory that one peer shares. A change makes a new one, which has the mappings that stay in common with it.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Mapped>,
}

impl GuestMemory {
    /// Maps the regions of a whole table.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays mapped.
    pub fn map(regions: impl IntoIterator<Item = RegionSetup>) -> Result<GuestMemory, MemoryError> {
        regions.into_iter().try_fold(GuestMemory::default(), |memory, region| memory.with(region))
    }

    /// The same memory and one region more.
    ///
    /// # Errors
    /// [`MemoryError`]; this memory stays as it is.
    pub fn with(&self, region: RegionSetup) -> Result<GuestMemory, MemoryError> {
        let RegionSetup { guest, user, bytes, offset, file } = region;
        if bytes == 0
            || guest.checked_add(bytes).is_none()
            || user.checked_add(bytes).is_none()
            || offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(MemoryError::Range { guest, bytes });
        }
        if self.regions.len() == MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let meets = |a: u64, a_bytes: u64, b: u64| a < b + bytes && b < a + a_bytes;
        for other in &self.regions {
            if meets(other.guest, other.bytes, guest) || meets(other.user, other.bytes, user) {
                return Err(MemoryError::Overlap { first: other.guest, second: guest });
            }
        }
        let mapping = Mapping::of(&file, offset, bytes).map_err(|fault| fault.in_region(guest))?;
        let mut regions = self.regions.clone();
        regions.push(Mapped { guest, user, bytes, mapping: Arc::new(mapping) });
        Ok(GuestMemory { regions })
    }

    /// The same memory without the region at these addresses.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`]; this memory stays as it is.
    pub fn without(&self, guest: u64, user: u64, bytes: u64) -> Result<GuestMemory, MemoryError> {
        let named = |region: &Mapped| (region.guest, region.user, region.bytes) == (guest, user, bytes);
        let mut regions = self.regions.clone();
        let place = regions.iter().position(named).ok_or(MemoryError::Unknown { guest, bytes })?;
        regions.remove(place);
        Ok(GuestMemory { regions })
    }

    /// How many regions there are.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Bytes of all regions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Whether a part of it went away behind our back (a truncated file): what is read there since is zeros.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_poisoned())
    }

    /// The guest address of a front-end address, if it is in a region.
    #[must_use]
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        let region = self.regions.iter().find(|region| user.wrapping_sub(region.user) < region.bytes)?;
        Some(region.guest + (user - region.user))
    }

    /// `len` bytes at a front-end address, for a ring: all in one region, aligned to `align` bytes.
    pub(crate) fn words_at_user(&self, user: u64, len: usize, align: usize) -> Option<Words> {
        let region = self.regions.iter().find(|region| user.wrapping_sub(region.user) < region.bytes)?;
        let offset = user - region.user;
        if region.bytes - offset < len as u64 {
            return None;
        }
        let words = region.mapping.words(offset as usize, len);
        (words.base().as_ptr() as usize).is_multiple_of(align).then_some(words)
    }
}

/// A ring's own way into the memory: the region that it used last, tried first.
///
/// It keeps that region's address after its `GuestMemory` is gone, so it must be thrown away together with it.
#[derive(Debug)]
pub(crate) struct Window {
    guest: u64,
    bytes: u64,
    host: NonNull<u8>,
}

// SAFETY: the address may be used from any thread; what is behind it is shared with a guest anyway.
unsafe impl Send for Window {}

impl Window {
    /// One that has looked nowhere yet.
    pub(crate) fn new() -> Window {
        Window { guest: 0, bytes: 0, host: NonNull::dangling() }
    }

    /// Where guest address `address` is, and how many bytes of its region follow from there on: at least one. `None` when
    /// it is outside all regions.
    #[inline(always)]
    pub(crate) fn find(&mut self, memory: &GuestMemory, address: u64) -> Option<(NonNull<u8>, u64)> {
        if let Some(found) = self.look(address) {
            return Some(found);
        }
        self.move_to(memory, address)?;
        self.look(address)
    }

    /// The same in the last region alone.
    #[inline(always)]
    pub(crate) fn look(&self, address: u64) -> Option<(NonNull<u8>, u64)> {
        let offset = address.wrapping_sub(self.guest);
        if offset >= self.bytes {
            return None;
        }
        // SAFETY: `offset` is less than the bytes of the mapping that begins at `host` (checked above).
        let host = unsafe { self.host.add(offset as usize) };
        Some((host, self.bytes - offset))
    }

    #[cold]
    fn move_to(&mut self, memory: &GuestMemory, address: u64) -> Option<()> {
        let region =
            memory.regions.iter().find(|region| address.wrapping_sub(region.guest) < region.bytes)?;
        *self = Window { guest: region.guest, bytes: region.bytes, host: region.mapping.base() };
        Some(())
    }
}
