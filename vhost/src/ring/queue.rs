//! One queue of a pair as its worker holds it: a ring of either kind, what it can reach, and the bells on both ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::packed::PackedRing;
use super::split::SplitRing;
use super::{Batch, Lie, Reach, RingFault, Side};
use crate::bell::Doorbell;
use crate::features;
use crate::handover::{PairSetup, RingSetup};

/// A ring of either kind.
enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// A queue in service.
pub(crate) struct Queue {
    ring: Ring,
    reach: Reach,
    side: Side,
    kick: Option<Arc<Doorbell>>,
    call: Option<Arc<Doorbell>>,
    /// Whether packets flow: the front-end enabled it and it has not lied.
    flows: bool,
    /// Whether chains were given back that the guest was not asked about yet.
    untold: bool,
    /// Whether the guest is to be told whatever it asks for: it may be waiting since before we came.
    begins: bool,
}

/// Calls a ring's method, whichever kind it is.
macro_rules! either {
    ($ring:expr, $name:ident => $call:expr) => {
        match $ring {
            Ring::Split($name) => $call,
            Ring::Packed($name) => $call,
        }
    };
}

impl Queue {
    /// Puts a ring of a pair in service.
    pub(crate) fn new(pair: &PairSetup, setup: &RingSetup, side: Side) -> Result<Queue, RingFault> {
        let has = |feature| pair.features & feature != 0;
        let event_idx = has(features::EVENT_IDX);
        // Only for what the guest sends: of a chain that is not named it would not learn how much was written.
        let names_last = has(features::IN_ORDER) && side == Side::Rx;
        let ring = if has(features::RING_PACKED) {
            PackedRing::new(setup, &pair.memory, event_idx, names_last).map(Ring::Packed)
        } else {
            SplitRing::new(setup, &pair.memory, event_idx, names_last).map(Ring::Split)
        };
        let ring = ring.map_err(|what| RingFault { side, what, index: setup.base as u16 })?;
        let log = pair.log.clone().filter(|_| has(features::LOG_ALL));
        let reach = Reach::new(Arc::clone(&pair.memory), has(features::INDIRECT_DESC), log);
        let (kick, call) = (setup.kick.clone(), setup.call.clone());
        let flows = setup.enabled;
        let mut queue = Queue { ring, reach, side, kick, call, flows, untold: true, begins: true };
        queue.ask_to_be_told(false);
        Ok(queue)
    }

    /// Whether packets flow.
    #[inline(always)]
    pub(crate) fn flows(&self) -> bool {
        self.flows
    }

    /// Stops it for good: it lied.
    #[cold]
    pub(crate) fn stop(&mut self, what: Lie) -> RingFault {
        self.flows = false;
        RingFault { side: self.side, what, index: either!(&self.ring, ring => ring.position()) }
    }

    /// Where it stands, as `GET_VRING_BASE` tells it.
    pub(crate) fn base(&self) -> u32 {
        either!(&self.ring, ring => ring.base())
    }

    /// By what the guest wakes us.
    pub(crate) fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_deref().map(AsFd::as_fd)
    }

    /// Looks at up to `want` chains. They stay the guest's until they are given back: what is not is met again.
    #[inline(always)]
    pub(crate) fn take(&mut self, want: usize, batch: &mut Batch) -> Result<(), Lie> {
        either!(&mut self.ring, ring => ring.take(&mut self.reach, want, batch))
    }

    /// Gives the first chains of a batch back to the guest, as many as there are `lengths`: bytes written to each.
    #[inline(always)]
    pub(crate) fn give(&mut self, batch: &Batch, lengths: &[u32]) {
        self.untold |= !lengths.is_empty();
        either!(&mut self.ring, ring => ring.give(&self.reach, batch, lengths));
    }

    /// What the queue can reach.
    #[inline(always)]
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Wants the guest told of what it was given back, if it asks for that; whether the session is to be woken for it.
    #[inline(always)]
    pub(crate) fn tell(&mut self) -> bool {
        std::mem::take(&mut self.untold) && self.tell_if_wanted()
    }

    fn tell_if_wanted(&mut self) -> bool {
        let begins = std::mem::take(&mut self.begins);
        let wanted = begins || either!(&mut self.ring, ring => ring.is_to_be_told());
        wanted && self.call.as_ref().is_some_and(|call| call.want())
    }

    /// Asks the guest to wake us for more chains, or not to bother.
    pub(crate) fn ask_to_be_told(&mut self, wanted: bool) {
        either!(&mut self.ring, ring => ring.ask_to_be_told(wanted));
        if let Some(kick) = &self.kick
            && !wanted
        {
            kick.quiet();
        }
    }

    /// Whether there are chains to take.
    pub(crate) fn has_more(&self) -> bool {
        self.flows && either!(&self.ring, ring => ring.has_more())
    }
}
