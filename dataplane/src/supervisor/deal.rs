//! Which worker a port queue goes to: the one with the fewest.

/// How many port queues each worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deal {
    load: Vec<u32>,
}

impl Deal {
    /// Nobody has any.
    pub(super) fn among(workers: usize) -> Deal {
        Deal { load: vec![0; workers] }
    }

    /// The worker for the next queue. The queues of one device, taken one after the other, go round.
    pub(super) fn take(&mut self) -> usize {
        let least = self.load.iter().copied().enumerate().min_by_key(|&(_, load)| load);
        let worker = least.map_or(0, |(worker, _)| worker);
        self.load[worker] += 1;
        worker
    }

    /// A worker's queue is closed.
    pub(super) fn give_back(&mut self, worker: usize) {
        self.load[worker] = self.load[worker].saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_go_round_and_to_whoever_has_the_fewest() {
        let mut deal = Deal::among(3);
        let first: Vec<usize> = (0..6).map(|_| deal.take()).collect();
        assert_eq!(first, [0, 1, 2, 0, 1, 2]);
        deal.give_back(1);
        deal.give_back(1);
        assert_eq!((deal.take(), deal.take(), deal.take()), (1, 1, 0));
    }
}
