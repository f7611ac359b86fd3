//! The record of descriptors in flight, which outlives us: after a crash none is lost and none is returned twice.
//!
//! `VHOST_USER_GET_INFLIGHT_FD` and `VHOST_USER_SET_INFLIGHT_FD` of the vhost-user specification, "Inflight I/O tracking".

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use crate::memory::{Mapping, Words};

mod packed;
mod split;

pub(crate) use packed::{PackedRecord, Recorded};
pub(crate) use split::SplitRecord;

/// The layout's version, in a region that was begun (`version` of either kind of region).
const VERSION: u16 = 1;

/// Bytes of a split queue's region in front of its entries (`QueueRegionSplit`).
const SPLIT_HEAD: usize = 16;
/// Bytes of a split queue's entry (`DescStateSplit`).
const SPLIT_ENTRY: usize = 16;
/// Bytes of a packed queue's region in front of its entries (`QueueRegionPacked`).
const PACKED_HEAD: usize = 32;
/// Bytes of a packed queue's entry (`DescStatePacked`).
const PACKED_ENTRY: usize = 32;
/// A queue's region begins on such a boundary.
const ALIGN: usize = 64;

/// The record of all queues of a device, shared with the front-end.
#[derive(Clone, Debug)]
pub struct Inflight {
    mapping: Arc<Mapping>,
    queues: u16,
    size: u16,
    packed: bool,
}

/// The record of one queue.
#[derive(Clone, Debug)]
pub struct InflightQueue {
    pub(crate) words: Words,
    pub(crate) size: u16,
    pub(crate) packed: bool,
    /// What `words` lies in.
    _mapping: Arc<Mapping>,
}

impl Inflight {
    /// Makes an empty record for `queues` queues of `size` entries; returns it and its file, for the front-end to keep.
    ///
    /// # Errors
    /// The kernel's, or `InvalidInput` without queues or entries.
    pub fn create(queues: u16, size: u16, packed: bool) -> io::Result<(Inflight, File)> {
        // SAFETY: the name is a C string that lives through the call.
        let fd = unsafe { libc::memfd_create(c"penstock-inflight".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, which nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(Inflight::bytes(queues, size, packed))?;
        debug_assert!(file.as_raw_fd() >= 0);
        let inflight = Inflight::map(&file, 0, queues, size, packed)?;
        Ok((inflight, file))
    }

    /// Maps a record that a front-end kept.
    ///
    /// # Errors
    /// The kernel's, `InvalidInput` without queues or entries, `UnexpectedEof` if the file is too short.
    pub fn map(file: &File, offset: u64, queues: u16, size: u16, packed: bool) -> io::Result<Inflight> {
        let bytes = Inflight::bytes(queues, size, packed);
        let past = offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64);
        if queues == 0 || size == 0 || past || !offset.is_multiple_of(ALIGN as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapping = Arc::new(Mapping::of(file, offset, bytes)?);
        Ok(Inflight { mapping, queues, size, packed })
    }

    /// Bytes of such a record: what `GET_INFLIGHT_FD` answers as `mmap_size`.
    #[must_use]
    pub fn bytes(queues: u16, size: u16, packed: bool) -> u64 {
        (Inflight::stride(size, packed) * usize::from(queues)) as u64
    }

    /// The record of queue `index`, if there is one.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<InflightQueue> {
        if index >= self.queues {
            return None;
        }
        let stride = Inflight::stride(self.size, self.packed);
        let words = self.mapping.words(usize::from(index) * stride, stride);
        Some(InflightQueue {
            words,
            size: self.size,
            packed: self.packed,
            _mapping: Arc::clone(&self.mapping),
        })
    }

    fn stride(size: u16, packed: bool) -> usize {
        let (head, entry) = if packed { (PACKED_HEAD, PACKED_ENTRY) } else { (SPLIT_HEAD, SPLIT_ENTRY) };
        (head + entry * usize::from(size)).next_multiple_of(ALIGN)
    }
}
