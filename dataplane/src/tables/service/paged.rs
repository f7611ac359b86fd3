//! Tables in pages that are copied when they are written: a snapshot shares all but the touched pages with the one before.
//!
//! An update of one entry copies one page and the list of pages, whatever the size of the table.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::hash::Hash;

/// What a [`PagedMap`] is keyed by.
pub(super) trait Key: Copy + Eq {
    /// Adds the key to a hash.
    fn add_to(&self, hash: Hash) -> Hash;
}

/// An entry or a free place.
type Place<K, V> = Option<(K, V)>;

/// A hash map in pages. A look-up reads the list of pages and, mostly, one place of one page.
#[derive(Clone, Debug)]
pub(super) struct PagedMap<K, V> {
    /// A power of two of pages; each is an open-addressed table of a power of two of places, at most 3/4 full.
    pages: Vec<Arc<[Place<K, V>]>>,
    len: usize,
    /// Drawn at random: who may choose keys cannot choose such as collide.
    seed: u64,
}

/// Entries a page, on average, that make the map double its pages.
const FULL_PAGE: usize = 64;
/// Places of an empty page.
const LEAST_PLACES: usize = 8;

impl<K: Key, V: Clone> Default for PagedMap<K, V> {
    fn default() -> Self {
        PagedMap { pages: vec![page(LEAST_PLACES)], len: 0, seed: RandomState::new().hash_one(0u8) }
    }
}

fn page<K: Clone, V: Clone>(places: usize) -> Arc<[Place<K, V>]> {
    vec![None; places].into()
}

impl<K: Key, V: Clone> PagedMap<K, V> {
    #[inline]
    fn hash(&self, key: &K) -> u64 {
        key.add_to(Hash::new(self.seed)).finish()
    }

    #[inline]
    fn page_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.pages.len() - 1)
    }

    /// The value of a key.
    #[inline]
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let hash = self.hash(key);
        let page = &self.pages[self.page_of(hash)];
        let (_, found) = find(page, key, hash);
        found
    }

    /// Sets the value of a key.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.len >= self.pages.len() * FULL_PAGE {
            self.double();
        }
        let hash = self.hash(&key);
        let at = self.page_of(hash);
        let (place, found) = find(&self.pages[at], &key, hash);
        if found.is_none() {
            self.len += 1;
        }
        if let Some(place) = place
            && (found.is_some() || has_room(&self.pages[at]))
        {
            Arc::make_mut(&mut self.pages[at])[place] = Some((key, value));
            return;
        }
        let entries: Vec<_> = self.pages[at].iter().flatten().cloned().chain([(key, value)]).collect();
        self.pages[at] = self.filled(self.pages[at].len() * 2, entries);
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, key: &K) {
        let hash = self.hash(key);
        let at = self.page_of(hash);
        if find(&self.pages[at], key, hash).1.is_none() {
            return;
        }
        self.len -= 1;
        let rest: Vec<_> =
            self.pages[at].iter().flatten().filter(|(other, _)| other != key).cloned().collect();
        // A page that emptied is made smaller, with room to grow again.
        let places = (rest.len() * 2).next_power_of_two().max(LEAST_PLACES);
        self.pages[at] = self.filled(places, rest);
    }

    /// A page of `places` places with these entries.
    fn filled(&self, places: usize, entries: Vec<(K, V)>) -> Arc<[Place<K, V>]> {
        let mut page = vec![None; places];
        for (key, value) in entries {
            let mut place = self.hash(&key) as usize & (places - 1);
            while page[place].is_some() {
                place = (place + 1) & (places - 1);
            }
            page[place] = Some((key, value));
        }
        page.into()
    }

    fn double(&mut self) {
        let count = self.pages.len() * 2;
        let mut parts: Vec<Vec<(K, V)>> = vec![Vec::new(); count];
        for (key, value) in self.pages.iter().flat_map(|page| page.iter().flatten()) {
            parts[(self.hash(key) >> 32) as usize & (count - 1)].push((*key, value.clone()));
        }
        let pages = parts.into_iter().map(|part| {
            let places = (part.len() * 2).next_power_of_two().max(LEAST_PLACES);
            self.filled(places, part)
        });
        self.pages = pages.collect();
    }

    /// The entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pages.iter().flat_map(|page| page.iter().flatten()).map(|(key, value)| (key, value))
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// The place of a key, or the free place where it would go; and its value.
#[inline]
fn find<'a, K: Eq, V>(page: &'a [Place<K, V>], key: &K, hash: u64) -> (Option<usize>, Option<&'a V>) {
    let mask = page.len() - 1;
    for step in 0..page.len() {
        let place = (hash as usize + step) & mask;
        match &page[place] {
            Some((other, value)) if other == key => return (Some(place), Some(value)),
            Some(_) => {}
            None => return (Some(place), None),
        }
    }
    (None, None)
}

fn has_room<K, V>(page: &[Place<K, V>]) -> bool {
    page.iter().flatten().count() < page.len() * 3 / 4
}

/// A vector of optional values in pages, indexed by number.
#[derive(Clone, Debug)]
pub(super) struct PagedVec<T> {
    pages: Vec<Arc<[Option<T>]>>,
}

/// Values a page.
const VALUES: usize = 256;

impl<T> Default for PagedVec<T> {
    fn default() -> Self {
        PagedVec { pages: Vec::new() }
    }
}

impl<T: Clone> PagedVec<T> {
    /// The value at a number.
    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<&T> {
        self.pages.get(at / VALUES)?[at % VALUES].as_ref()
    }

    /// Sets or clears the value at a number.
    pub(super) fn set(&mut self, at: usize, value: Option<T>) {
        while self.pages.len() <= at / VALUES {
            self.pages.push(vec![None; VALUES].into());
        }
        Arc::make_mut(&mut self.pages[at / VALUES])[at % VALUES] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    impl Key for u32 {
        fn add_to(&self, hash: Hash) -> Hash {
            hash.word(u64::from(*self))
        }
    }

    proptest! {
        #[test]
        fn a_paged_map_is_a_map_and_earlier_copies_stay(
            steps in prop::collection::vec((0..400u32, any::<Option<u16>>()), 0..1500), copied_at in 0..1500usize,
        ) {
            let (mut map, mut model) = (PagedMap::default(), HashMap::new());
            let mut copy = (map.clone(), model.clone());
            for (at, (key, value)) in steps.into_iter().enumerate() {
                if at == copied_at {
                    copy = (map.clone(), model.clone());
                }
                match value {
                    Some(value) => { map.insert(key, value); model.insert(key, value); }
                    None => { map.remove(&key); model.remove(&key); }
                }
            }
            for (map, model) in [(map, model), copy] {
                prop_assert_eq!(map.len(), model.len());
                for key in 0..400 {
                    prop_assert_eq!(map.get(&key), model.get(&key));
                }
                prop_assert_eq!(map.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(), model);
            }
        }
    }

    #[test]
    fn an_update_shares_every_page_but_one() {
        let mut map = PagedMap::default();
        for key in 0..10_000u32 {
            map.insert(key, key);
        }
        let before = map.clone();
        map.insert(77, 0);
        let shared = before.pages.iter().zip(&map.pages).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!((shared, before.get(&77)), (before.pages.len() - 1, Some(&77)));
    }

    #[test]
    fn a_paged_vector_holds_what_was_set_and_nothing_else() {
        let mut vector = PagedVec::default();
        vector.set(1000, Some('a'));
        let before = vector.clone();
        vector.set(1000, None);
        assert_eq!(
            (before.get(1000), vector.get(1000), vector.get(999), vector.get(9999)),
            (Some(&'a'), None, None, None)
        );
    }
}
