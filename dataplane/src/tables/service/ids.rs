//! Numbers for backends: a backend keeps its number while it exists, and nobody else gets it while anything still holds it.
//!
//! ```text
//!  take -> in use -> retire -> published(epoch) -> [no worker has older tables, nothing holds it] -> reclaim -> free
//!                       ^                                                                             |
//!                       +-- take, when the same backend comes back before that: it has its old number +
//! ```
//!
//! Connections and affinity hold bare numbers and count no references. Instead the control thread, now and then, walks
//! what holds numbers, marks them, and [reclaims](super::Directory::reclaim) those that were retired and not marked. A worker can
//! put down a number only while it works with tables that have it, so a number counts as unmarked only if it was
//! retired by tables that every worker already had when the marking began.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::snapshot::Epoch;

/// The number of a backend of a service port: 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(u32);

impl BackendId {
    /// How many numbers there are: a connection keeps them in 24 bits, with two values beside them, for no backend and for
    /// one of the daemon before.
    pub const LIMIT: u32 = (1 << 24) - 2;

    /// The backend of that number; `None` from [`BackendId::LIMIT`] on.
    #[inline]
    #[must_use]
    pub const fn new(number: u32) -> Option<BackendId> {
        if number < BackendId::LIMIT { Some(BackendId(number)) } else { None }
    }

    /// The number.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What a number stands for: a backend of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// Which service port: see [`super::port::ServicePort::key`].
    pub(super) service_port: u64,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// Numbers that something holds.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    words: Vec<u64>,
}

impl Marks {
    /// No number is held yet.
    #[must_use]
    pub fn new() -> Marks {
        Marks::default()
    }

    /// This one is.
    pub fn add(&mut self, id: BackendId) {
        let (word, bit) = (id.0 as usize / 64, id.0 % 64);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << bit;
    }

    /// Whether this one is.
    #[must_use]
    pub fn has(&self, id: BackendId) -> bool {
        self.words.get(id.0 as usize / 64).is_some_and(|word| word >> (id.0 % 64) & 1 == 1)
    }
}

/// A number whose backend is gone.
#[derive(Clone, Copy, Debug)]
struct Retired {
    id: BackendId,
    /// The first published tables without it; `None` until they are published.
    since: Option<Epoch>,
}

/// Gives numbers out and takes them back.
#[derive(Clone, Debug, Default)]
pub(super) struct Ids {
    next: u32,
    free: Vec<BackendId>,
    retired: HashMap<Identity, Retired>,
}

impl Ids {
    /// A number for a backend: its old one, if it has been away and nobody has got that.
    pub(super) fn take(&mut self, identity: &Identity) -> Option<BackendId> {
        if let Some(retired) = self.retired.remove(identity) {
            return Some(retired.id);
        }
        self.free.pop().or_else(|| {
            let id = BackendId::new(self.next)?;
            self.next += 1;
            Some(id)
        })
    }

    /// A backend is gone.
    pub(super) fn retire(&mut self, identity: Identity, id: BackendId) {
        self.retired.insert(identity, Retired { id, since: None });
    }

    /// Whether numbers wait to be free.
    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// How many numbers can be given out yet.
    pub(super) fn left(&self) -> usize {
        self.free.len() + (BackendId::LIMIT - self.next) as usize
    }

    /// Tables without the backends retired so far were published as `epoch`.
    pub(super) fn published(&mut self, epoch: Epoch) {
        for retired in self.retired.values_mut() {
            retired.since.get_or_insert(epoch);
        }
    }

    /// Frees retired numbers that are not marked; every worker had the tables of `slowest` when the marking began.
    pub(super) fn reclaim(&mut self, slowest: Epoch, marks: &Marks) -> usize {
        let before = self.free.len();
        self.retired.retain(|_, Retired { id, since }| {
            let is_held = since.is_none_or(|since| since > slowest) || marks.has(*id);
            if !is_held {
                self.free.push(*id);
            }
            is_held
        });
        self.free.len() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(port: u16) -> Identity {
        Identity { service_port: 1, address: [10, 0, 0, 1].into(), port }
    }

    #[test]
    fn a_number_is_free_only_when_no_worker_and_no_holder_can_name_it() {
        let mut ids = Ids::default();
        let [a, b] = [identity(1), identity(2)].map(|identity| ids.take(&identity).unwrap());
        ids.retire(identity(1), a);
        ids.retire(identity(2), b);
        let nothing = Marks::new();
        assert_eq!(ids.reclaim(Epoch(9), &nothing), 0, "not published yet");
        ids.published(Epoch(5));
        assert_eq!(ids.reclaim(Epoch(4), &nothing), 0, "a worker still has the old tables");
        let mut marks = Marks::new();
        marks.add(b);
        assert_eq!(ids.reclaim(Epoch(5), &marks), 1);
        assert_eq!(ids.take(&identity(3)), Some(a));
        assert_eq!(ids.take(&identity(4)), BackendId::new(2), "b is still held");
    }

    #[test]
    fn a_backend_that_comes_back_in_time_has_its_old_number() {
        let mut ids = Ids::default();
        let id = ids.take(&identity(1)).unwrap();
        ids.retire(identity(1), id);
        ids.published(Epoch(2));
        assert_eq!(ids.take(&identity(1)), Some(id));
        assert_eq!(ids.reclaim(Epoch(3), &Marks::new()), 0);
        assert_ne!(ids.take(&identity(2)), Some(id));
    }

    #[test]
    fn numbers_beyond_24_bits_are_refused() {
        assert_eq!(BackendId::new(BackendId::LIMIT), None);
        let mut ids = Ids { next: BackendId::LIMIT - 1, ..Ids::default() };
        assert!(ids.take(&identity(1)).is_some() && ids.take(&identity(2)).is_none());
        assert_eq!(ids.left(), 0);
    }
}
