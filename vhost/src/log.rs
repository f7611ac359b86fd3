//! The dirty log: a bit for each page of the guest that we wrote, for a migration to copy it again.
//!
//! `VHOST_USER_SET_LOG_BASE` of the vhost-user specification: bit `n % 8` of byte `n / 8` is page `n`, by guest physical
//! address; bits are set atomically, because the front-end reads and clears them meanwhile.

use std::fs::File;
use std::io;

use crate::memory::{Mapping, Words};

/// Bytes that one bit stands for (`VHOST_LOG_PAGE`, vhost-user specification).
pub const PAGE: u64 = 4096;

/// A front-end's log, shared with it.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Words,
    bytes: u64,
    /// What `bits` lies in.
    _mapping: Mapping,
}

impl DirtyLog {
    /// Maps `bytes` of a log's `file` from `offset` on.
    ///
    /// # Errors
    /// The kernel's, or `InvalidInput`/`UnexpectedEof` for a range that the file does not have.
    pub fn map(file: &File, offset: u64, bytes: u64) -> io::Result<DirtyLog> {
        if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapping = Mapping::of(file, offset, bytes)?;
        Ok(DirtyLog { bits: mapping.words(0, mapping.bytes()), bytes, _mapping: mapping })
    }

    /// Notes that `len` bytes at guest address `address` were written. Pages past the log's end are not noted: the front-end
    /// sized it for its memory.
    pub fn note(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|more| address.checked_add(more)) else { return };
        for page in address / PAGE..=last / PAGE {
            if page / 8 >= self.bytes {
                return;
            }
            self.bits.set_bits((page / 8) as usize, 1 << (page % 8));
        }
    }
}
