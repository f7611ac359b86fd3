//! Which chunks the kernel holds for one port: a bit for each chunk of the region.

use crate::region::Region;

/// A set of chunks.
pub(crate) struct Held {
    words: Box<[u64]>,
    count: u32,
}

impl Held {
    /// The empty set of a region's chunks.
    pub(crate) fn none(region: &Region) -> Held {
        Held { words: vec![0; (region.chunks() as usize).div_ceil(64)].into(), count: 0 }
    }

    /// Chunks in the set.
    #[inline(always)]
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The kernel takes `chunk`, one of the region's that it did not have.
    #[inline(always)]
    pub(crate) fn take(&mut self, chunk: u32) {
        let bit = 1 << (chunk % 64);
        let word = &mut self.words[chunk as usize / 64];
        debug_assert!(*word & bit == 0, "chunk {chunk} goes to the kernel a second time");
        *word |= bit;
        self.count += 1;
    }

    /// The kernel says that it gives `chunk` up; false when it did not have it, or when there is no such chunk.
    #[inline(always)]
    pub(crate) fn give_up(&mut self, chunk: u64) -> bool {
        let bit = 1 << (chunk % 64);
        let index = usize::try_from(chunk / 64).unwrap_or(usize::MAX);
        match self.words.get_mut(index) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Empties the set.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(u32)) {
        for (index, word) in self.words.iter_mut().enumerate() {
            while *word != 0 {
                each(index as u32 * 64 + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hugepages;

    #[test]
    fn a_chunk_is_given_up_once_and_only_if_it_was_taken() {
        let region = Region::map(1024, Hugepages::Off).unwrap();
        let mut held = Held::none(region);
        held.take(0);
        held.take(1023);
        assert!(!held.give_up(1));
        assert!(!held.give_up(1 << 40));
        assert!(!held.give_up(u64::MAX));
        assert!(held.give_up(1023) && !held.give_up(1023));
        assert_eq!(held.count(), 1);
        let mut left = Vec::new();
        held.drain(|chunk| left.push(chunk));
        assert_eq!((left, held.count()), (vec![0], 0));
    }
}
