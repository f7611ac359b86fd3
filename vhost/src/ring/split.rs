//! The device's side of a split ring (virtio 1.3, section 2.7).
//!
//! The guest puts heads of chains into the available ring, we put them into the used ring in the same order. Indices run
//! freely over 16 bits. Both of ours are kept here and published once per burst, and the guest's is read again only when
//! what is known of it is used up.

use std::sync::atomic::{Ordering, fence};

use super::batch::{Batch, Refusal};
use super::reach::{RawDescriptor, Reach, Table};
use super::{DESCRIPTOR, INDIRECT, Lie, NEXT, passes};
use crate::handover::RingSetup;
use crate::inflight::SplitRecord;
use crate::memory::{GuestMemory, Words};

/// Where the index and the entries of the available and the used ring begin (`struct vring_avail`, `struct vring_used`).
const INDEX: usize = 2;
const ENTRIES: usize = 4;
/// Bytes of an entry of the used ring: head and length.
const USED: usize = 8;
/// The guest wants no notifications (`VRING_AVAIL_F_NO_INTERRUPT`).
const NO_INTERRUPT: u16 = 1;
/// We want none (`VRING_USED_F_NO_NOTIFY`).
const NO_NOTIFY: u16 = 1;

/// A split ring.
pub(crate) struct SplitRing {
    desc: Words,
    avail: Words,
    used: Words,
    size: u16,
    /// The next entry of the available ring to take.
    next_avail: u16,
    /// The guest's index, as last read.
    seen_avail: u16,
    /// The next entry of the used ring to fill.
    next_used: u16,
    /// Where `next_used` was when the guest was last told, or decided not to be; `None` when nobody knows.
    told: Option<u16>,
    event_idx: bool,
    /// The guest knows in which order chains are used, so that one used entry, the last chain's in the first one's place,
    /// stands for a batch ("In-order use of descriptors" in section 2.7).
    names_last: bool,
    /// The used ring in the dirty log.
    used_log: Option<u64>,
    record: Option<SplitRecord>,
    /// Heads that were in flight when a former process of ours ended: the last comes next.
    again: Vec<u16>,
}

impl SplitRing {
    /// The ring that a session describes.
    pub(crate) fn new(
        setup: &RingSetup,
        memory: &GuestMemory,
        event_idx: bool,
        names_last: bool,
    ) -> Result<SplitRing, Lie> {
        // The largest that the specification allows.
        if !setup.size.is_power_of_two() || setup.size > 1 << 15 {
            return Err(Lie::Size(setup.size));
        }
        let size = setup.size as usize;
        // Each ring has a word behind its entries, by which it asks for notifications.
        let words =
            |user, len, align, what| memory.words_at_user(user, len, align).ok_or(Lie::Misplaced(what));
        let desc = words(setup.desc, DESCRIPTOR * size, 16, "descriptor table")?;
        let avail = words(setup.avail, ENTRIES + 2 * size + 2, 2, "available ring")?;
        let used = words(setup.used, ENTRIES + USED * size + 2, 4, "used ring")?;
        let next_used = used.load16(INDEX, Ordering::Acquire);
        let mut next_avail = setup.base as u16;
        let mut again = Vec::new();
        let mut record = None;
        if let Some(inflight) = &setup.inflight {
            let (kept, heads) = SplitRecord::resume(inflight, setup.size as u16, next_used)?;
            if !heads.is_empty() {
                next_avail = next_used.wrapping_add(heads.len() as u16);
            }
            again = heads;
            again.reverse();
            record = Some(kept);
        }
        Ok(SplitRing {
            desc,
            avail,
            used,
            size: setup.size as u16,
            next_avail,
            seen_avail: next_avail,
            next_used,
            told: None,
            event_idx,
            names_last,
            used_log: setup.used_log,
            record,
            again,
        })
    }

    /// Where it stands, as `SET_VRING_BASE` takes it.
    pub(crate) fn base(&self) -> u32 {
        self.next_avail.into()
    }

    /// Where it stands, for people.
    pub(crate) fn position(&self) -> u16 {
        self.next_avail
    }

    /// Looks at up to `want` chains, as many as a batch holds at most. They stay the guest's until [`SplitRing::give`].
    #[inline(always)]
    pub(crate) fn take(&mut self, reach: &mut Reach, want: usize, batch: &mut Batch) -> Result<(), Lie> {
        batch.clear();
        if !self.again.is_empty() {
            return self.take_again(reach, want, batch);
        }
        let ready = self.ready(want)?;
        let mut heads = [0; super::batch::CHAINS];
        let heads = &mut heads[..ready.min(want).min(super::batch::CHAINS)];
        for (i, head) in heads.iter_mut().enumerate() {
            *head = self.avail.load16(self.avail_entry(i), Ordering::Relaxed);
            self.desc.prefetch(usize::from(*head & (self.size - 1)) * DESCRIPTOR);
        }
        for &head in heads.iter() {
            match self.look(reach, head, batch) {
                Ok(()) => {}
                Err(Refusal::Full) => break,
                Err(Refusal::Lie(lie)) => return Err(lie),
            }
        }
        Ok(())
    }

    /// Chains that the guest has for us, asked for again when fewer than `want` are known of.
    #[inline(always)]
    fn ready(&mut self, want: usize) -> Result<usize, Lie> {
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        if usize::from(known) >= want {
            return Ok(known.into());
        }
        self.seen_avail = self.avail.load16(INDEX, Ordering::Acquire);
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        if known > self.size {
            return Err(Lie::IndexJump(self.seen_avail));
        }
        Ok(known.into())
    }

    /// Adds the chain that begins with descriptor `head`.
    #[inline(always)]
    fn look(&self, reach: &mut Reach, head: u16, batch: &mut Batch) -> Result<(), Refusal> {
        let (buffer, flags, _) = self.descriptor(head)?.split();
        if flags & (NEXT | INDIRECT) == 0 && batch.add_single(&reach.buffers, buffer, head) {
            return Ok(());
        }
        self.look_along(reach, head, batch)
    }

    /// The same for any chain.
    fn look_along(&self, reach: &mut Reach, head: u16, batch: &mut Batch) -> Result<(), Refusal> {
        let mut open = batch.open();
        let mut at = head;
        for _ in 0..self.size {
            let (buffer, flags, next) = self.descriptor(at)?.split();
            if flags & INDIRECT != 0 {
                if flags & NEXT != 0 {
                    return Err(Lie::IndirectInside.into());
                }
                reach.add_table(batch, &mut open, buffer, Table::Linked)?;
            } else {
                reach.add(batch, &mut open, buffer)?;
            }
            if flags & NEXT == 0 {
                batch.close(open, head, 1);
                return Ok(());
            }
            at = next;
        }
        Err(Lie::TooLong(self.size).into())
    }

    #[inline(always)]
    fn descriptor(&self, index: u16) -> Result<RawDescriptor, Lie> {
        if index >= self.size {
            return Err(Lie::NoDescriptor(index));
        }
        let at = usize::from(index) * DESCRIPTOR;
        Ok(RawDescriptor {
            address: self.desc.load64(at, Ordering::Relaxed),
            rest: self.desc.load64(at + 8, Ordering::Relaxed),
        })
    }

    /// What was left in flight comes first, and is in no available ring any more.
    #[cold]
    fn take_again(&mut self, reach: &mut Reach, want: usize, batch: &mut Batch) -> Result<(), Lie> {
        for &head in self.again.iter().rev().take(want.min(super::batch::CHAINS)) {
            match self.look(reach, head, batch) {
                Ok(()) => {}
                Err(Refusal::Full) => break,
                Err(Refusal::Lie(lie)) => return Err(lie),
            }
        }
        Ok(())
    }

    /// Gives the first chains of a batch back to the guest, as many as there are `lengths`: bytes written to each.
    #[inline(always)]
    pub(crate) fn give(&mut self, reach: &Reach, batch: &Batch, lengths: &[u32]) {
        let given = &batch.chains()[..lengths.len()];
        let Some(last) = given.last() else { return };
        if self.names_last {
            self.write_used(0, last.id, 0);
        } else {
            for (i, (chain, &len)) in given.iter().zip(lengths).enumerate() {
                self.write_used(i, chain.id, len);
            }
        }
        if let Some(base) = self.used_log {
            self.note_used(reach, base, given.len());
        }
        let next = self.next_used.wrapping_add(given.len() as u16);
        if let Some(record) = &mut self.record {
            record.begin(given.iter().map(|chain| chain.id));
            // What is recorded must be there before the guest can know.
            fence(Ordering::Release);
        }
        self.used.store16(INDEX, next, Ordering::Release);
        self.next_used = next;
        if let Some(record) = &mut self.record {
            record.end(given.iter().map(|chain| chain.id), next);
        }
        if self.again.is_empty() {
            self.next_avail = self.next_avail.wrapping_add(given.len() as u16);
        } else {
            self.again.truncate(self.again.len() - given.len());
        }
    }

    #[inline(always)]
    fn write_used(&self, ahead: usize, id: u16, len: u32) {
        let at = self.used_entry(ahead);
        self.used.store32(at, id.into(), Ordering::Relaxed);
        self.used.store32(at + 4, len, Ordering::Relaxed);
    }

    #[cold]
    fn note_used(&self, reach: &Reach, base: u64, given: usize) {
        for i in 0..given {
            reach.note(base.wrapping_add(self.used_entry(i) as u64), USED as u64);
        }
        reach.note(base, ENTRIES as u64);
    }

    /// Whether the guest is to be told of what it was given since it was last asked.
    pub(crate) fn is_to_be_told(&mut self) -> bool {
        // The used index must be seen by the guest before what it wants is read, or both may miss the other.
        fence(Ordering::SeqCst);
        let told = self.told.replace(self.next_used);
        if !self.event_idx {
            return self.avail.load16(0, Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let event = self.avail.load16(ENTRIES + 2 * usize::from(self.size), Ordering::Relaxed);
        told.is_none_or(|told| passes(event, self.next_used, told))
    }

    /// Asks the guest to tell us of chains, or not to bother.
    pub(crate) fn ask_to_be_told(&mut self, wanted: bool) {
        if self.event_idx {
            // There is no way to say "never"; an index that was passed already comes again after 65536 chains.
            if wanted {
                let at = ENTRIES + USED * usize::from(self.size);
                self.used.store16(at, self.next_avail, Ordering::Relaxed);
            }
        } else {
            self.used.store16(0, if wanted { 0 } else { NO_NOTIFY }, Ordering::Relaxed);
        }
        if wanted {
            // Before the available index is looked at once more, or both may miss the other.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether there are chains to take.
    pub(crate) fn has_more(&self) -> bool {
        !self.again.is_empty() || self.avail.load16(INDEX, Ordering::Acquire) != self.next_avail
    }

    #[inline(always)]
    fn avail_entry(&self, ahead: usize) -> usize {
        let index = self.next_avail.wrapping_add(ahead as u16) & (self.size - 1);
        ENTRIES + 2 * usize::from(index)
    }

    #[inline(always)]
    fn used_entry(&self, ahead: usize) -> usize {
        let index = self.next_used.wrapping_add(ahead as u16) & (self.size - 1);
        ENTRIES + USED * usize::from(index)
    }
}
