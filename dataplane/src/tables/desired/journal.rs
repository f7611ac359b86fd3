//! What changed lately, so that whoever keeps in step with the configuration need not look at all of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_api::model::Key;

/// Changes that are remembered; whoever missed more looks at everything.
const REMEMBERED: usize = 8192;

/// The keys of the objects that changed last.
#[derive(Debug)]
pub(super) struct Journal {
    /// Which configuration's it is: a copy goes ways of its own.
    lineage: u64,
    /// Changes so far.
    count: u64,
    /// The last of them.
    recent: VecDeque<Key>,
}

/// A moment in the life of one configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Zero: of none.
    lineage: u64,
    count: u64,
}

impl Default for Journal {
    fn default() -> Journal {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Journal { lineage: NEXT.fetch_add(1, Ordering::Relaxed), count: 0, recent: VecDeque::new() }
    }
}

impl Clone for Journal {
    /// A new journal: marks of the old one mean nothing to it.
    fn clone(&self) -> Journal {
        Journal::default()
    }
}

impl Journal {
    /// Notes that an object came, went or changed.
    pub(super) fn note(&mut self, key: &Key) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(key.clone());
        self.count += 1;
    }

    /// Notes that anything may have changed.
    pub(super) fn note_all(&mut self) {
        self.recent.clear();
        self.count += 1;
    }

    /// Now.
    pub(super) fn mark(&self) -> Mark {
        Mark { lineage: self.lineage, count: self.count }
    }

    /// The objects that changed since a moment, some more than once; `None` if that is too long ago, or was not here.
    pub(super) fn since(&self, mark: Mark) -> Option<impl Iterator<Item = &Key>> {
        let missed = usize::try_from(self.count.checked_sub(mark.count)?).ok()?;
        let first = self.recent.len().checked_sub(missed)?;
        (self.lineage == mark.lineage).then(|| self.recent.range(first..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Key::Policy(format!("p{number}").parse().unwrap())
    }

    #[test]
    fn a_reader_is_told_what_it_missed_and_no_more() {
        let mut journal = Journal::default();
        journal.note(&key(0));
        let mark = journal.mark();
        assert_eq!(journal.since(mark).unwrap().count(), 0);
        journal.note(&key(1));
        journal.note(&key(2));
        assert!(journal.since(mark).unwrap().eq([&key(1), &key(2)]));
    }

    #[test]
    fn who_missed_too_much_or_read_another_journal_must_look_at_everything() {
        let mut journal = Journal::default();
        let (start, copy) = (journal.mark(), journal.clone());
        assert!(copy.since(start).is_none() && journal.since(Mark::default()).is_none());
        (0..REMEMBERED).for_each(|number| journal.note(&key(number)));
        assert!(journal.since(start).is_some());
        journal.note(&key(REMEMBERED));
        assert!(journal.since(start).is_none());
        let mark = journal.mark();
        journal.note_all();
        assert!(journal.since(mark).is_none() && journal.since(journal.mark()).is_some());
    }
}
