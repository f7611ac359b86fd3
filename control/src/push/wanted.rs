//! What the dataplane is to hold, and which keys have changed since it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use penstock_api::Fault;
use penstock_api::model::{Key, Object};
use tokio::sync::{Notify, watch};

/// A moment in the history of what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(u64);

/// Objects that the dataplane would not take, with everything that it says about each.
pub type Refused = BTreeMap<Key, Vec<Fault>>;

/// How far the dataplane has followed.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Everything wanted up to here is live on every worker, or refused.
    pub settled: Ticket,
    /// The dataplane's generation then.
    pub generation: u64,
    /// Whether the dataplane is there.
    pub connected: bool,
    /// How often it came.
    pub sessions: u64,
    /// What of it is refused.
    pub refused: Arc<Refused>,
}

/// What the dataplane is to hold. Clones are the same.
///
/// There is one entry for each key whatever comes in: a dataplane that is away or slow makes nothing grow.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Arc<Object>>,
    /// The keys of which the dataplane may not hold what is wanted.
    dirty: BTreeSet<Key>,
    /// When the first of these changed.
    since: Option<Instant>,
    ticket: Ticket,
}

/// What is to be sent next.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Objects to add or replace, in the order in which they may be created.
    pub(super) upserts: Vec<Arc<Object>>,
    /// Keys to remove, if the dataplane has them.
    pub(super) deletes: Vec<Key>,
    /// What is wanted now is what was wanted then, once this is sent.
    pub(super) ticket: Ticket,
    /// When the first change in it was made.
    pub(super) since: Option<Instant>,
}

impl Wanted {
    /// Makes changes, all of which go out together: an object for each key, or nothing. What is wanted already in just
    /// this form costs nothing. `since` is when their cause was seen.
    pub fn change(
        &self,
        since: Instant,
        changes: impl IntoIterator<Item = (Key, Option<Arc<Object>>)>,
    ) -> Ticket {
        let mut state = self.lock();
        let mut any = false;
        for (key, object) in changes {
            let same = match (&object, state.objects.get(&key)) {
                (None, None) => true,
                (Some(new), Some(old)) => Arc::ptr_eq(new, old) || new == old,
                _ => false,
            };
            if same {
                continue;
            }
            match object {
                Some(object) => state.objects.insert(key.clone(), object),
                None => state.objects.remove(&key),
            };
            state.dirty.insert(key);
            any = true;
        }
        if any {
            state.since.get_or_insert(since);
            state.ticket.0 += 1;
            self.inner.changed.notify_one();
        }
        state.ticket
    }

    /// Changes everything whose key `is_meant` to just `objects`.
    pub fn replace(
        &self,
        objects: impl IntoIterator<Item = Arc<Object>>,
        is_meant: impl Fn(&Key) -> bool,
    ) -> Ticket {
        let new: BTreeMap<Key, Arc<Object>> = objects.into_iter().map(|it| (it.key(), it)).collect();
        let gone: Vec<Key> = {
            let state = self.lock();
            state.objects.keys().filter(|key| is_meant(key) && !new.contains_key(key)).cloned().collect()
        };
        let gone = gone.into_iter().map(|key| (key, None));
        self.change(Instant::now(), gone.chain(new.into_iter().map(|(key, object)| (key, Some(object)))))
    }

    /// The object that is wanted for a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.lock().objects.get(key).cloned()
    }

    /// How many objects are wanted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().objects.len()
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().objects.is_empty()
    }

    /// How many keys wait to be sent.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.lock().dirty.len()
    }

    /// How far the dataplane is, now and whenever that changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.inner.progress.subscribe()
    }

    /// Waits until what was wanted at `ticket` is live on every worker, but for what is refused. Ends by itself only when
    /// that is so: the caller knows how long it has.
    pub async fn settled(&self, ticket: Ticket) -> Progress {
        let mut progress = self.progress();
        // The sender lives as long as `self`.
        let settled = progress.wait_for(|it| it.connected && it.settled >= ticket).await;
        match settled.map(|progress| progress.clone()) {
            Ok(progress) => progress,
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until something is to be sent.
    pub(super) async fn changed(&self) {
        loop {
            let changed = self.inner.changed.notified();
            if !self.lock().dirty.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Takes everything that waits to be sent.
    pub(super) fn take(&self) -> Batch {
        let mut state = self.lock();
        let dirty = std::mem::take(&mut state.dirty);
        let mut batch = Batch { ticket: state.ticket, since: state.since.take(), ..Batch::default() };
        for key in dirty {
            match state.objects.get(&key) {
                Some(object) => batch.upserts.push(Arc::clone(object)),
                None => batch.deletes.push(key),
            }
        }
        batch
    }

    /// Puts keys back among those that wait: they were not sent after all, or are to be tried again.
    pub(super) fn put_back(&self, keys: impl IntoIterator<Item = Key>, since: Option<Instant>) {
        let mut state = self.lock();
        state.dirty.extend(keys);
        state.since = match (state.since, since) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        if !state.dirty.is_empty() {
            self.inner.changed.notify_one();
        }
    }

    /// Marks what has to change at a dataplane that holds `held`: all that differs goes out with the next batch.
    /// What it holds besides goes too where it `is_ours`.
    pub(super) fn compare(&self, held: &[Object], is_ours: impl Fn(&Object) -> bool) {
        let mut state = self.lock();
        let state = &mut *state;
        let held: BTreeMap<Key, &Object> = held.iter().map(|it| (it.key(), it)).collect();
        state.dirty.clear();
        let differs = |(key, object): &(&Key, &Arc<Object>)| held.get(key) != Some(&&***object);
        state.dirty.extend(state.objects.iter().filter(differs).map(|(key, _)| key.clone()));
        let swept = held.iter().filter(|(key, object)| !state.objects.contains_key(key) && is_ours(object));
        state.dirty.extend(swept.map(|(key, _)| key.clone()));
    }

    /// Tells everybody who waits how far the dataplane is.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Progress)) {
        self.inner.progress.send_modify(change);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves it half done.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, last: u8) -> Arc<Object> {
        let file = format!("[[peer]]\nname = \"{name}\"\naddress = \"192.0.2.{last}\"\n");
        let objects = penstock_api::file::parse_objects(&file, "test").expect("a sound file");
        Arc::new(objects.into_iter().next().expect("one object"))
    }

    fn set(wanted: &Wanted, object: &Arc<Object>) -> Ticket {
        wanted.change(Instant::now(), [(object.key(), Some(Arc::clone(object)))])
    }

    #[test]
    fn what_is_wanted_already_costs_nothing() {
        let wanted = Wanted::default();
        let first = set(&wanted, &peer("a", 1));
        assert_eq!(wanted.take().upserts.len(), 1);
        assert_eq!(set(&wanted, &peer("a", 1)), first);
        assert_eq!(wanted.pending(), 0);
        assert!(set(&wanted, &peer("a", 2)) > first);
        assert_eq!(wanted.pending(), 1);
    }

    #[test]
    fn changes_of_one_key_become_one() {
        let wanted = Wanted::default();
        for last in 1..100 {
            set(&wanted, &peer("a", last));
        }
        let batch = wanted.take();
        assert_eq!(batch.upserts, [peer("a", 99)]);
        wanted.change(Instant::now(), [(peer("a", 1).key(), None)]);
        let batch = wanted.take();
        assert_eq!((batch.upserts.len(), batch.deletes), (0, vec![peer("a", 1).key()]));
    }

    #[test]
    fn what_could_not_be_sent_goes_out_as_it_is_wanted_by_then() {
        let wanted = Wanted::default();
        set(&wanted, &peer("a", 1));
        set(&wanted, &peer("b", 2));
        let batch = wanted.take();
        set(&wanted, &peer("a", 3));
        wanted.put_back(batch.upserts.iter().map(|it| it.key()), batch.since);
        let again = wanted.take();
        assert_eq!(again.upserts, [peer("a", 3), peer("b", 2)]);
        assert_eq!(again.since, batch.since);
    }

    #[test]
    fn a_comparison_finds_what_differs_and_sweeps_only_what_is_ours() {
        let wanted = Wanted::default();
        wanted.replace([peer("same", 1), peer("new", 2), peer("changed", 3)], |_| true);
        wanted.take();
        let held = [peer("same", 1), peer("changed", 4), peer("old", 5), peer("theirs", 6)];
        let held: Vec<Object> = held.iter().map(|it| Object::clone(it)).collect();
        wanted.compare(&held, |object| *object != *peer("theirs", 6));
        let batch = wanted.take();
        assert_eq!(batch.upserts, [peer("changed", 3), peer("new", 2)]);
        assert_eq!(batch.deletes, [peer("old", 5).key()]);
    }
}
