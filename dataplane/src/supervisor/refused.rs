//! Changes that are refused: counted, and told to whoever watches when there is no room for them.

use std::sync::Arc;

use penstock_api::Fault;
use penstock_io::Ticks;

use super::device::{self, Owner, Spec};
use super::{Engine, Refusal};
use crate::journal::{Entry, Journal, What};
use crate::mailbox::Events;

/// How many changes were refused, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedChanges {
    /// Something in them was wrong.
    pub faulty: u64,
    /// They were right, and the tables cannot hold them.
    pub too_large: u64,
    /// A device that they asked for could not be opened.
    pub not_opened: u64,
}

/// Counts refused changes, and tells of those that do not fit.
pub(super) struct Refusals {
    counts: RefusedChanges,
    journal: Arc<Journal>,
    /// Entries that the journal had no room for since the last that it had room for.
    lost: u64,
}

impl Refusals {
    /// None yet; `events` has the journal that is written.
    pub(super) fn told_to(events: &Events) -> Refusals {
        Refusals { counts: RefusedChanges::default(), journal: events.journal(), lost: 0 }
    }

    /// Something in a change is wrong.
    pub(super) fn faulty(&mut self, faults: Vec<Fault>) -> Refusal {
        self.counts.faulty += 1;
        Refusal::Faulty(faults)
    }

    /// A change is more than the tables hold: what was there before goes on, and somebody should know.
    pub(super) fn too_large(&mut self, faults: Vec<Fault>) -> Refusal {
        self.counts.too_large += 1;
        let what = What::TooLarge(faults.clone());
        let told = self.journal.write(Entry { at: Ticks::now(), lost: self.lost, what });
        self.lost = if told { 0 } else { self.lost + 1 };
        Refusal::Faulty(faults)
    }

    /// A device cannot be opened.
    pub(super) fn not_opened(&mut self, faults: Vec<Fault>) -> Refusal {
        self.counts.not_opened += 1;
        Refusal::Faulty(faults)
    }
}

impl Engine {
    /// How many changes were refused.
    #[must_use]
    pub fn refused_changes(&self) -> RefusedChanges {
        self.refusals.counts
    }

    /// Why devices that were not asked for before, as `known` has them, are not open.
    pub(super) fn faults_of_new_devices(&self, known: &[(Owner, Spec)]) -> Vec<Fault> {
        let new = device::wanted(&self.desired).into_iter().filter(|wanted| !known.contains(wanted));
        let failed = new.filter_map(|(owner, _)| Some((self.waiting.get(&owner)?, owner)));
        failed
            .map(|(why, owner)| {
                let key = if matches!(owner, Owner::Endpoint(_)) { "attachment" } else { "interface" };
                Fault::new(owner.to_string(), key, why.clone(), "put that right and send the change again")
            })
            .collect()
    }
}
