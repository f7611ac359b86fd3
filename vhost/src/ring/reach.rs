//! What a ring's descriptors can reach: the guest's memory, and the tables of indirect descriptors in it.

use std::ptr::NonNull;
use std::sync::Arc;

use super::batch::{Batch, Buffer, Open, Refusal};
use super::{DESCRIPTOR, INDIRECT, Lie, WRITE};
use crate::log::DirtyLog;
use crate::memory::{GuestMemory, Window};

/// The memory that one ring's descriptors may name.
pub(crate) struct Reach {
    pub(super) memory: Arc<GuestMemory>,
    /// Where buffers are.
    pub(super) buffers: Window,
    /// Where indirect tables are: often in another region than the buffers.
    tables: Window,
    /// Whether indirect descriptors were negotiated.
    indirect: bool,
    /// Where to note what is written.
    pub(super) log: Option<Arc<DirtyLog>>,
}

/// A descriptor's two words, each read once: the address, and length, flags and what else there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawDescriptor {
    pub(crate) address: u64,
    pub(crate) rest: u64,
}

impl RawDescriptor {
    /// The buffer of a split ring's or an indirect table's descriptor, whose flags follow the length ...
    #[inline(always)]
    pub(super) fn split(self) -> (Buffer, u16, u16) {
        let (flags, next) = ((self.rest >> 32) as u16, (self.rest >> 48) as u16);
        (self.buffer(flags), flags, next)
    }

    /// ... and of a packed ring's, whose flags are last: with them and the buffer's id.
    #[inline(always)]
    pub(super) fn packed(self) -> (Buffer, u16, u16) {
        let (id, flags) = ((self.rest >> 32) as u16, (self.rest >> 48) as u16);
        (self.buffer(flags), flags, id)
    }

    #[inline(always)]
    fn buffer(self, flags: u16) -> Buffer {
        Buffer { address: self.address, len: self.rest as u32, writable: flags & WRITE != 0 }
    }
}

/// How the descriptors of an indirect table are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// By their `next` fields, as in the split ring.
    Linked,
    /// One after the other, all of them, as with the packed ring.
    InRow,
}

impl Reach {
    pub(crate) fn new(memory: Arc<GuestMemory>, indirect: bool, log: Option<Arc<DirtyLog>>) -> Reach {
        Reach { memory, buffers: Window::new(), tables: Window::new(), indirect, log }
    }

    /// Notes that `len` bytes at a guest address were written.
    #[inline(always)]
    pub(crate) fn note(&self, address: u64, len: u64) {
        if let Some(log) = &self.log {
            log.note(address, len);
        }
    }

    /// Adds a buffer to a chain.
    pub(super) fn add(&mut self, batch: &mut Batch, open: &mut Open, buffer: Buffer) -> Result<(), Refusal> {
        batch.add(open, &self.memory, &mut self.buffers, buffer)
    }

    /// Adds the buffers of an indirect table to a chain.
    pub(super) fn add_table(
        &mut self,
        batch: &mut Batch,
        open: &mut Open,
        table: Buffer,
        kind: Table,
    ) -> Result<(), Refusal> {
        if !self.indirect {
            return Err(Lie::IndirectRefused.into());
        }
        let bytes = table.len as usize;
        let entries = bytes / DESCRIPTOR;
        // A ring has at most 32768 entries and a chain is no longer than its ring.
        if entries == 0 || !bytes.is_multiple_of(DESCRIPTOR) || entries > 1 << 15 {
            return Err(Lie::IndirectLength(table.len).into());
        }
        let mut index = 0;
        for _ in 0..entries {
            let raw = self.table_entry(table, index)?;
            let (buffer, flags, next) = match kind {
                Table::Linked => raw.split(),
                Table::InRow => {
                    let (buffer, flags, _) = raw.packed();
                    (buffer, flags, index + 1)
                }
            };
            if flags & INDIRECT != 0 {
                return Err(Lie::IndirectInside.into());
            }
            self.add(batch, open, buffer)?;
            let leads_on = match kind {
                Table::Linked => flags & super::NEXT != 0,
                Table::InRow => usize::from(next) < entries,
            };
            if !leads_on {
                return Ok(());
            }
            if usize::from(next) >= entries {
                return Err(Lie::NoDescriptor(next).into());
            }
            index = next;
        }
        Err(Lie::TooLong(entries as u16).into())
    }

    fn table_entry(&mut self, table: Buffer, index: u16) -> Result<RawDescriptor, Lie> {
        let address = table.address.wrapping_add(u64::from(index) * DESCRIPTOR as u64);
        let outside = Lie::Outside { address, len: DESCRIPTOR as u32 };
        let (host, room) = self.tables.find(&self.memory, address).ok_or(outside)?;
        if room < DESCRIPTOR as u64 {
            return Err(outside);
        }
        // SAFETY: as many bytes are mapped there (checked above), for as long as `memory` is held.
        Ok(unsafe { read_descriptor(host) })
    }
}

/// Reads a descriptor that need not be aligned, every byte once.
///
/// # Safety
/// Sixteen bytes from `host` on are mapped.
unsafe fn read_descriptor(host: NonNull<u8>) -> RawDescriptor {
    let mut words = [0u64; 2];
    let whole = host.cast::<u64>();
    if whole.is_aligned() {
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: inside the sixteen bytes.
            let at = unsafe { whole.add(i) };
            // SAFETY: mapped (the caller's word) and aligned (checked above).
            *word = u64::from_le(unsafe { at.read_volatile() });
        }
    } else {
        for i in 0..DESCRIPTOR {
            // SAFETY: inside the sixteen bytes.
            let at = unsafe { host.add(i) };
            // SAFETY: mapped (the caller's word).
            let byte = unsafe { at.read_volatile() };
            words[i / 8] |= u64::from(byte) << (i % 8 * 8);
        }
    }
    RawDescriptor { address: words[0], rest: words[1] }
}
