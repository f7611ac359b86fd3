//! Backends' numbers on their way back: those of backends that are gone, once no worker and no connection can name them.
//!
//! A table of a million connections is not walked at once on the thread that answers changes: every second a piece of it is,
//! and the marks of all pieces count together. That is sound because the tables of every worker were already without the
//! backend when the first piece began, so nobody can put its number down behind the walk.

use super::Engine;
use crate::snapshot::Epoch;
use crate::tables::service::{BackendId, Marks};

/// Connections that are looked at in one piece: about a millisecond.
const PIECE: u32 = 1 << 16;

/// A walk under way.
pub(super) struct Walk {
    /// The oldest tables that a worker had when it began.
    slowest: Epoch,
    marks: Marks,
    next: u32,
}

impl Engine {
    /// Goes on with the walk, or begins one if numbers wait to come back.
    pub(super) fn reclaim_backends(&mut self) {
        let mut walk = match self.reclaiming.take() {
            Some(walk) => walk,
            None if self.author.directory().has_retired() => {
                // In this order: what is marked below was put down under these tables or newer ones.
                let slowest = self.publisher.slowest();
                let mut marks = Marks::new();
                self.tracker.affinity.mark(&mut marks);
                Walk { slowest, marks, next: 0 }
            }
            None => return,
        };
        let table = &self.tracker.table;
        let end = walk.next.saturating_add(PIECE).min(table.capacity());
        let backends = table.parties(walk.next..end).filter_map(|parties| parties.backend.checked_sub(1));
        backends.filter_map(BackendId::new).for_each(|id| walk.marks.add(id));
        walk.next = end;
        if end < table.capacity() {
            self.reclaiming = Some(walk);
            return;
        }
        let freed = self.author.reclaim(walk.slowest, &walk.marks);
        if freed > 0 {
            tracing::debug!("{freed} numbers of former backends are free again");
        }
    }
}
