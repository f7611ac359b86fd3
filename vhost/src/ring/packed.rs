//! The device's side of a packed ring (virtio 1.3, section 2.8).
//!
//! One ring of descriptors serves both directions: the guest writes a descriptor and flips its AVAIL flag, we write over it
//! and flip USED. What a flag means changes each time round, so each side keeps a wrap counter with its position.

use std::sync::atomic::{Ordering, fence};

use super::batch::{Batch, Chain, Refusal};
use super::reach::{RawDescriptor, Reach, Table};
use super::{DESCRIPTOR, INDIRECT, Lie, NEXT, WRITE, passes};
use crate::handover::RingSetup;
use crate::inflight::{PackedRecord, Recorded};
use crate::memory::{GuestMemory, Words};

/// The guest's flag of a descriptor (`VRING_PACKED_DESC_F_AVAIL`) ...
const AVAIL: u16 = 1 << 7;
/// ... and ours (`VRING_PACKED_DESC_F_USED`).
const USED: u16 = 1 << 15;

/// Descriptors in a cache line.
const A_LINE: usize = 64 / DESCRIPTOR;

/// Bytes of an event suppression structure: an offset with its wrap counter, then flags.
const EVENT: usize = 4;
/// Its flags: tell always, never, or of one descriptor (`VRING_PACKED_EVENT_FLAG_*`).
const TELL: u16 = 0;
const TELL_NOT: u16 = 1;
const TELL_OF: u16 = 2;
/// The wrap counter in its offset, and in half a base.
const WRAP: u16 = 1 << 15;

/// A place in the ring and how often it was passed, modulo two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    /// The place `entries` further on; at most one round.
    #[inline(always)]
    fn after(self, entries: u16, size: u16) -> Place {
        let index = u32::from(self.index) + u32::from(entries);
        match index.checked_sub(size.into()) {
            Some(index) => Place { index: index as u16, wrap: !self.wrap },
            None => Place { index: index as u16, wrap: self.wrap },
        }
    }

    /// As it stands in a base or an event: the index, and the wrap counter above it.
    fn word(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    fn of_word(word: u16) -> Place {
        Place { index: word & !WRAP, wrap: word & WRAP != 0 }
    }

    /// The flags by which we say that the descriptor here is used.
    #[inline(always)]
    fn used_flags(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }

    /// Whether a descriptor here with such flags is available.
    #[inline(always)]
    fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == if self.wrap { AVAIL } else { USED }
    }
}

/// The second word of a used descriptor.
#[inline(always)]
fn used_word(flags: u16, id: u16, len: u32) -> u64 {
    let flags = flags | if len > 0 { WRITE } else { 0 };
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

/// A packed ring.
pub(crate) struct PackedRing {
    ring: Words,
    /// What the guest wants to be told.
    driver: Words,
    /// What we want to be told.
    device: Words,
    size: u16,
    next_avail: Place,
    next_used: Place,
    /// Where `next_used` was when the guest was last told, or decided not to be; `None` when nobody knows.
    told: Option<u16>,
    event_idx: bool,
    /// The guest knows in which order chains are used, so that one used descriptor, the last chain's, stands for a batch
    /// ("In-order use of descriptors" in section 2.8): all other lines of the ring stay where the guest has them.
    names_last: bool,
    /// The ring in the dirty log.
    ring_log: Option<u64>,
    record: Option<PackedRecord>,
    /// Chains that were in flight when a former process of ours ended: the last comes next.
    again: Vec<Recorded>,
}

impl PackedRing {
    /// The ring that a session describes.
    pub(crate) fn new(
        setup: &RingSetup,
        memory: &GuestMemory,
        event_idx: bool,
        names_last: bool,
    ) -> Result<PackedRing, Lie> {
        // The largest that the specification allows.
        if setup.size == 0 || setup.size > 1 << 15 {
            return Err(Lie::Size(setup.size));
        }
        let size = setup.size as u16;
        let words =
            |user, len, align, what| memory.words_at_user(user, len, align).ok_or(Lie::Misplaced(what));
        let ring = words(setup.desc, DESCRIPTOR * usize::from(size), 16, "descriptor ring")?;
        let driver = words(setup.avail, EVENT, 4, "driver's event structure")?;
        let device = words(setup.used, EVENT, 4, "device's event structure")?;
        let mut next_avail = Place::of_word(setup.base as u16);
        // Front-ends that know of one half only leave the other zero.
        let mut next_used = match (setup.base >> 16) as u16 {
            0 => next_avail,
            word => Place::of_word(word),
        };
        let (mut record, mut again) = (None, Vec::new());
        if let Some(inflight) = &setup.inflight {
            let flags = |index: u16| ring.load16(usize::from(index) * DESCRIPTOR + 14, Ordering::Acquire);
            let is_available = |index, wrap| Place { index, wrap }.is_available(flags(index));
            let resumed = PackedRecord::resume(inflight, size, next_used.word(), is_available)?;
            next_used = Place::of_word(resumed.used);
            let entries = resumed.again.iter().map(|chain| chain.descriptors.len()).sum::<usize>();
            if entries > usize::from(size) {
                return Err(Lie::Inflight(size));
            }
            next_avail = next_used.after(entries as u16, size);
            again = resumed.again;
            again.reverse();
            record = Some(resumed.record);
        }
        if next_avail.index >= size || next_used.index >= size {
            return Err(Lie::IndexJump(next_avail.index.max(next_used.index)));
        }
        let ring_log = setup.used_log;
        Ok(PackedRing {
            ring,
            driver,
            device,
            size,
            next_avail,
            next_used,
            told: None,
            event_idx,
            names_last,
            ring_log,
            record,
            again,
        })
    }

    /// Where it stands, as `SET_VRING_BASE` takes it.
    pub(crate) fn base(&self) -> u32 {
        u32::from(self.next_avail.word()) | u32::from(self.next_used.word()) << 16
    }

    /// Where it stands, for people.
    pub(crate) fn position(&self) -> u16 {
        self.next_avail.index
    }

    /// Looks at up to `want` chains, as many as a batch holds at most. They stay the guest's until [`PackedRing::give`].
    #[inline(always)]
    pub(crate) fn take(&mut self, reach: &mut Reach, want: usize, batch: &mut Batch) -> Result<(), Lie> {
        batch.clear();
        if !self.again.is_empty() {
            return self.take_again(reach, want, batch);
        }
        let want = want.min(super::batch::CHAINS);
        let mut place = self.next_avail;
        // A guest that turns its flags while we look would have us look at a descriptor twice.
        let mut left = self.size;
        if !self.names_last {
            // All that is wanted will be written over.
            for entry in (0..want).step_by(A_LINE) {
                self.ring.prefetch_to_write((usize::from(place.index) + entry) * DESCRIPTOR);
            }
        }
        loop {
            let most = (want - batch.chains().len()).min(left.into());
            let singles = self.look_at_singles(reach, place, most, batch);
            place = place.after(singles, self.size);
            left -= singles;
            if batch.chains().len() == want || left == 0 {
                return Ok(());
            }
            let rest = self.ring.load64(usize::from(place.index) * DESCRIPTOR + 8, Ordering::Acquire);
            if !place.is_available((rest >> 48) as u16) {
                return Ok(());
            }
            match self.look_along(reach, place, rest, batch) {
                Ok(entries) => {
                    place = place.after(entries, self.size);
                    left = left.checked_sub(entries).ok_or(Lie::TooLong(self.size))?;
                }
                Err(Refusal::Full) => return Ok(()),
                Err(Refusal::Lie(lie)) => return Err(lie),
            }
        }
    }

    /// Adds chains of one buffer where buffers mostly are, as long as they follow each other from `place` on, up to the
    /// ring's end or `most` of them; returns how many they were.
    #[inline(always)]
    fn look_at_singles(&self, reach: &Reach, place: Place, most: usize, batch: &mut Batch) -> u16 {
        let room = usize::from(self.size - place.index).min(most);
        let row = self.ring.row64(usize::from(place.index) * DESCRIPTOR, 2 * room);
        let expected = if place.wrap { AVAIL } else { USED };
        for (looked, [address, rest]) in row.as_chunks().0.iter().enumerate() {
            let rest = u64::from_le(rest.load(Ordering::Acquire));
            if (rest >> 48) as u16 & (AVAIL | USED | NEXT | INDIRECT) != expected {
                return looked as u16;
            }
            if self.names_last && looked % A_LINE == 0 {
                self.ring.prefetch((usize::from(place.index) + looked + 2 * A_LINE) * DESCRIPTOR);
            }
            let address = u64::from_le(address.load(Ordering::Relaxed));
            let (buffer, _, id) = RawDescriptor { address, rest }.packed();
            if !batch.add_single(&reach.buffers, buffer, id) {
                return looked as u16;
            }
        }
        room as u16
    }

    /// Adds the chain that begins at `place` with a descriptor whose second word is `rest`; returns how many entries it has.
    /// They follow each other, and the last one has the buffer's id.
    fn look_along(
        &self,
        reach: &mut Reach,
        place: Place,
        rest: u64,
        batch: &mut Batch,
    ) -> Result<u16, Refusal> {
        let mut open = batch.open();
        let (mut at, mut rest) = (place, rest);
        for entry in 0..self.size {
            let (buffer, flags, id) = self.descriptor(at.index, rest).packed();
            if flags & INDIRECT != 0 {
                if flags & NEXT != 0 || entry > 0 {
                    return Err(Lie::IndirectInside.into());
                }
                reach.add_table(batch, &mut open, buffer, Table::InRow)?;
            } else {
                reach.add(batch, &mut open, buffer)?;
            }
            if flags & NEXT == 0 {
                batch.close(open, id, entry + 1);
                return Ok(entry + 1);
            }
            at = at.after(1, self.size);
            rest = self.ring.load64(usize::from(at.index) * DESCRIPTOR + 8, Ordering::Relaxed);
        }
        Err(Lie::TooLong(self.size).into())
    }

    #[inline(always)]
    fn descriptor(&self, index: u16, rest: u64) -> RawDescriptor {
        RawDescriptor { address: self.ring.load64(usize::from(index) * DESCRIPTOR, Ordering::Relaxed), rest }
    }

    /// What was left in flight comes first: its entries of the ring may be written over already, the record has them.
    #[cold]
    fn take_again(&mut self, reach: &mut Reach, want: usize, batch: &mut Batch) -> Result<(), Lie> {
        for chain in self.again.iter().rev().take(want.min(super::batch::CHAINS)) {
            let mut open = batch.open();
            let mut added = Ok(());
            for &raw in &chain.descriptors {
                let (buffer, flags, _) = raw.packed();
                added = added.and_then(|()| match flags & INDIRECT {
                    0 => reach.add(batch, &mut open, buffer),
                    _ => reach.add_table(batch, &mut open, buffer, Table::InRow),
                });
            }
            match added {
                Ok(()) => batch.close(open, chain.id, chain.descriptors.len() as u16),
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
        let [first, others @ ..] = given else { return };
        let entries = given.iter().map(|chain| usize::from(chain.entries)).sum::<usize>();
        // No more than a round: no descriptor was looked at twice.
        let after = self.next_used.after(entries as u16, self.size);
        if self.record.is_some() {
            self.record_given(given, after);
        }
        if let Some(base) = self.ring_log {
            self.note_used(reach, base, given);
        }
        if self.names_last {
            self.write_used(self.next_used, others.last().unwrap_or(first).id, 0);
        } else {
            // The first comes last: until it is there, the guest looks at none of the others, and their lines are ours.
            let second = self.next_used.after(first.entries, self.size);
            if entries == given.len() {
                self.write_used_in_row(second, others, &lengths[1..]);
            } else {
                let mut place = second;
                for (chain, &len) in others.iter().zip(&lengths[1..]) {
                    self.write_used(place, chain.id, len);
                    place = place.after(chain.entries, self.size);
                }
            }
            self.write_used(self.next_used, first.id, lengths[0]);
        }
        self.next_used = after;
        if let Some(record) = &mut self.record {
            record.end();
        }
        if self.again.is_empty() {
            self.next_avail = self.next_avail.after(entries as u16, self.size);
        } else {
            self.again.truncate(self.again.len() - given.len());
        }
    }

    #[inline(always)]
    fn write_used(&self, place: Place, id: u16, len: u32) {
        let word = used_word(place.used_flags(), id, len);
        self.ring.store64(usize::from(place.index) * DESCRIPTOR + 8, word, Ordering::Release);
    }

    /// The same for chains of one entry each, which follow each other from `place` on.
    #[inline(always)]
    fn write_used_in_row(&self, mut place: Place, chains: &[Chain], lengths: &[u32]) {
        let (mut chains, mut lengths) = (chains, lengths);
        while !chains.is_empty() {
            // As far as the ring's end, the flags are the same.
            let count = chains.len().min(usize::from(self.size - place.index));
            let row = self.ring.row64(usize::from(place.index) * DESCRIPTOR, 2 * count);
            let flags = place.used_flags();
            for ([_, word], (chain, &len)) in row.as_chunks().0.iter().zip(chains.iter().zip(lengths)) {
                word.store(used_word(flags, chain.id, len).to_le(), Ordering::Release);
            }
            (chains, lengths) = (&chains[count..], &lengths[count..]);
            place = place.after(count as u16, self.size);
        }
    }

    /// Records the chains as in flight, and where the ring will stand once they are used.
    #[cold]
    fn record_given(&mut self, given: &[Chain], after: Place) {
        let Some(record) = &mut self.record else { return };
        let mut place = self.next_avail;
        // What is in flight since a former process is in the record as it is.
        let known = self.again.len().min(given.len());
        let fresh = &given[known..];
        // All are taken before one is given: an entry that is free again would be taken for the next chain, and the record
        // would lack the first until the batch is done.
        let mut entries = [0; super::batch::CHAINS];
        for (entry, chain) in entries.iter_mut().zip(fresh) {
            *entry = record.take((0..chain.entries).map(|_| {
                let at = usize::from(place.index) * DESCRIPTOR;
                place = place.after(1, self.size);
                RawDescriptor {
                    address: self.ring.load64(at, Ordering::Relaxed),
                    rest: self.ring.load64(at + 8, Ordering::Relaxed),
                }
            }));
        }
        for chain in self.again.iter().rev().take(known) {
            record.give(chain.entry);
        }
        for &entry in &entries[..fresh.len()] {
            record.give(entry);
        }
        record.begin(after.word());
        // What is recorded must be there before the guest can know.
        fence(Ordering::Release);
    }

    #[cold]
    fn note_used(&self, reach: &Reach, base: u64, given: &[Chain]) {
        let mut place = self.next_used;
        for chain in given {
            let at = usize::from(place.index) * DESCRIPTOR;
            reach.note(base.wrapping_add(at as u64), DESCRIPTOR as u64);
            place = place.after(chain.entries, self.size);
        }
    }

    /// Whether the guest is to be told of what it was given since it was last asked.
    pub(crate) fn is_to_be_told(&mut self) -> bool {
        // What is used must be seen by the guest before what it wants is read, or both may miss the other.
        fence(Ordering::SeqCst);
        let new = self.next_used.index;
        let told = self.told.replace(new);
        let event = self.driver.load32(0, Ordering::Relaxed);
        let (of, flags) = (Place::of_word(event as u16), (event >> 16) as u16 & 3);
        if flags != TELL_OF || !self.event_idx {
            return flags != TELL_NOT;
        }
        let Some(told) = told else { return true };
        // Indices of the last round lie before those of this one.
        let told = if new <= told { told.wrapping_sub(self.size) } else { told };
        let event = if of.wrap == self.next_used.wrap { of.index } else { of.index.wrapping_sub(self.size) };
        passes(event, new, told)
    }

    /// Asks the guest to tell us of chains, or not to bother.
    pub(crate) fn ask_to_be_told(&mut self, wanted: bool) {
        if !wanted {
            self.device.store16(2, TELL_NOT, Ordering::Relaxed);
            return;
        }
        if self.event_idx {
            self.device.store16(0, self.next_avail.word(), Ordering::Relaxed);
            self.device.store16(2, TELL_OF, Ordering::Release);
        } else {
            self.device.store16(2, TELL, Ordering::Relaxed);
        }
        // Before the ring is looked at once more, or both may miss the other.
        fence(Ordering::SeqCst);
    }

    /// Whether there are chains to take.
    pub(crate) fn has_more(&self) -> bool {
        let at = usize::from(self.next_avail.index) * DESCRIPTOR + 14;
        !self.again.is_empty() || self.next_avail.is_available(self.ring.load16(at, Ordering::Acquire))
    }
}
