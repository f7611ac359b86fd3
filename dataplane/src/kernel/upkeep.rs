//! Which neighbours the kernel is to be asked about, and when.
//!
//! The kernel resolves a neighbour and checks it again because it sends to it itself. Our packets pass it by, so it must
//! be told of the use: at once for a neighbour that is missing, calmly for one that grew stale.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::KernelView;
use super::view::NeighbourState;

/// Between two questions about a neighbour that does not answer. The kernel itself gives up after three seconds
/// (`mcast_solicit` times `retrans_time_ms`).
const UNANSWERED: Duration = Duration::from_secs(4);

/// Between two questions about a neighbour that is known but stale. The kernel waits five seconds for a hint of life
/// before it asks the neighbour (`delay_first_probe_time`).
const STALE: Duration = Duration::from_secs(10);

/// The neighbours in use, and when the kernel was last asked about each.
#[derive(Debug, Default)]
pub struct Upkeep {
    used: BTreeMap<(u32, IpAddr), Option<Instant>>,
}

impl Upkeep {
    /// Says which neighbours are in use: interface index and address. What was asked about those that stay is kept.
    pub fn set_used(&mut self, used: impl IntoIterator<Item = (u32, IpAddr)>) {
        let mut before = std::mem::take(&mut self.used);
        self.used = used.into_iter().map(|key| (key, before.remove(&key).flatten())).collect();
    }

    /// The neighbours to [probe](super::Kernel::probe) now. To be asked again within a second or two, and whenever the
    /// used ones changed.
    pub fn due(&mut self, view: &KernelView, now: Instant) -> Vec<(u32, IpAddr)> {
        let mut due = Vec::new();
        for (key, asked) in &mut self.used {
            let pause = match view.neighbours.get(key).map(|neighbour| neighbour.state) {
                None | Some(NeighbourState::Incomplete | NeighbourState::Failed) => UNANSWERED,
                Some(NeighbourState::Stale) => STALE,
                // Asking about a permanent entry would make it a mortal one (`__neigh_update`).
                Some(NeighbourState::Reachable | NeighbourState::Probing | NeighbourState::Permanent) => {
                    continue;
                }
            };
            if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= pause) {
                *asked = Some(now);
                due.push(*key);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Neighbour;
    use penstock_wire::MacAddr;

    const KEY: (u32, IpAddr) = (3, IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    fn view(state: NeighbourState) -> KernelView {
        let neighbour = Neighbour { mac: Some(MacAddr([2, 0, 0, 0, 0, 2])), state };
        KernelView { neighbours: [(KEY, neighbour)].into(), ..KernelView::default() }
    }

    /// Questions within a minute when somebody looks every second.
    fn asked_in_a_minute(view: &KernelView) -> usize {
        let (mut upkeep, start) = (Upkeep::default(), Instant::now());
        upkeep.set_used([KEY]);
        (0..60).map(|second| upkeep.due(view, start + Duration::from_secs(second)).len()).sum()
    }

    #[test]
    fn a_missing_neighbour_is_asked_for_at_once_and_again_without_hurry() {
        let mut upkeep = Upkeep::default();
        upkeep.set_used([KEY]);
        assert_eq!(upkeep.due(&KernelView::default(), Instant::now()), [KEY]);
        assert_eq!(upkeep.due(&KernelView::default(), Instant::now()), []);
        assert_eq!(asked_in_a_minute(&KernelView::default()), 15);
        assert_eq!(asked_in_a_minute(&view(NeighbourState::Failed)), 15);
    }

    #[test]
    fn a_stale_neighbour_is_asked_about_calmly() {
        assert_eq!(asked_in_a_minute(&view(NeighbourState::Stale)), 6);
    }

    #[test]
    fn a_neighbour_that_is_sure_is_left_alone() {
        for state in [NeighbourState::Reachable, NeighbourState::Probing, NeighbourState::Permanent] {
            assert_eq!(asked_in_a_minute(&view(state)), 0, "{state:?}");
        }
    }

    #[test]
    fn what_was_asked_is_remembered_while_the_neighbour_stays_in_use() {
        let (mut upkeep, now) = (Upkeep::default(), Instant::now());
        upkeep.set_used([KEY]);
        assert_eq!(upkeep.due(&KernelView::default(), now), [KEY]);
        upkeep.set_used([KEY]);
        assert_eq!(upkeep.due(&KernelView::default(), now), []);
        upkeep.set_used([]);
        upkeep.set_used([KEY]);
        assert_eq!(upkeep.due(&KernelView::default(), now), [KEY]);
    }
}
