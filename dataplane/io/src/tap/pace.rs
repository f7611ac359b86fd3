//! How often a quiet queue is asked: an empty read is a system call that a busy worker pays for.

/// Polls skipped at most after an empty read. A busy worker's turn takes a few microseconds, so a first frame waits a few
/// tens of them; a sleeping worker is woken by the descriptor and polls on until the pace lets it through.
const LONGEST: u32 = 16;

/// Lets every poll through while frames come, and one in ever more (up to [`LONGEST`] + 1) while none do.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Polls still to be skipped.
    skip: u32,
    /// Polls that the next empty read skips.
    next: u32,
}

impl Pace {
    /// Whether this poll is to read.
    #[inline]
    pub(super) fn due(&mut self) -> bool {
        if self.skip == 0 {
            return true;
        }
        self.skip -= 1;
        false
    }

    /// A read brought something.
    #[inline]
    pub(super) fn busy(&mut self) {
        self.next = 0;
    }

    /// A read found nothing.
    #[inline]
    pub(super) fn idle(&mut self) {
        self.skip = self.next;
        self.next = (self.next * 2).clamp(1, LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads in `polls` polls, each of them empty.
    fn empty_reads(pace: &mut Pace, polls: usize) -> usize {
        let mut reads = 0;
        for _ in 0..polls {
            if pace.due() {
                pace.idle();
                reads += 1;
            }
        }
        reads
    }

    #[test]
    fn a_quiet_queue_is_read_ever_more_rarely_but_never_forgotten() {
        let mut pace = Pace::default();
        assert_eq!(empty_reads(&mut pace, 8), 4, "reads at polls 1, 2, 4 and 7");
        empty_reads(&mut pace, 100);
        assert_eq!(empty_reads(&mut pace, 1700), 100);
    }

    #[test]
    fn a_frame_brings_the_full_pace_back() {
        let mut pace = Pace::default();
        empty_reads(&mut pace, 100);
        while !pace.due() {}
        pace.busy();
        assert!(pace.due() && pace.due());
        pace.idle();
        assert!(pace.due(), "the end of a burst does not count as quiet yet");
    }
}
