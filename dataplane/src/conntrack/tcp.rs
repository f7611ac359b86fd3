//! The life of a TCP connection as the node in the middle sees it, as a pure function of flags.
//!
//! ```text
//!  SYN -> SynSent --SYN-ACK--> SynReceived --ACK--> Established --FIN--> FinWait --ACK--> CloseWait
//!            |SYN back            ^                     ^  |RST             |FIN            |FIN
//!            v                    |             both go |  v                v               v
//!         SynSent2 ---SYN-ACK-----+             on    Close <----RST---- LastAck --ACK--> TimeWait --SYN--> reopened
//! ```
//!
//! Sequence numbers are not kept: packets of an open connection take the fast path, which would have to tell of every
//! one. A reset is therefore believed at once, but not for good: a receiver that took it for real answers what comes
//! after with another reset, so when both sides go on with acknowledgements, the reset was not theirs and the connection
//! is open again. A forged reset thus costs a live connection the fast path for a round trip, not its translation.

use penstock_wire::tcp::{ACK, FIN, RST, SYN};

use super::life::{Invalid, Marks, State, Status, Step};
use super::tuple::Direction;

/// What a segment is, by its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Syn,
    SynAck,
    Fin,
    Ack,
    Rst,
}

impl Segment {
    /// `None` for combinations that no sane sender makes: no flag at all, FIN without ACK, SYN with FIN or RST.
    const fn of(flags: u8) -> Option<Segment> {
        let ack = flags & ACK != 0;
        match flags & (SYN | FIN | RST) {
            0 if ack => Some(Segment::Ack),
            SYN if ack => Some(Segment::SynAck),
            SYN => Some(Segment::Syn),
            FIN if ack => Some(Segment::Fin),
            RST => Some(Segment::Rst),
            _ => None,
        }
    }
}

/// Whether a segment with these flags must meet the slow path although its flow is known.
#[inline]
#[must_use]
pub const fn leaves_fast_path(flags: u8) -> bool {
    flags & (SYN | FIN | RST) != 0
}

/// The status of the connection that a segment opens: a SYN does, and an acknowledgement if conversations are picked up.
///
/// # Errors
/// Why it opens none.
pub const fn open(flags: u8, pick_up: bool) -> Result<Status, Invalid> {
    match Segment::of(flags) {
        Some(Segment::Syn) => Ok(Status::of(State::SynSent)),
        Some(Segment::Ack) if pick_up => Ok(Status::of(State::Established)),
        Some(_) => Err(Invalid::NotOpened),
        None => Err(Invalid::Nonsense),
    }
}

/// What a segment that goes in `direction` does to a connection.
#[must_use]
pub const fn advance(status: Status, direction: Direction, flags: u8) -> Step {
    let Some(segment) = Segment::of(flags) else { return Step::Invalid(Invalid::Nonsense) };
    let step = match segment {
        Segment::Syn => on_syn(status, direction),
        Segment::SynAck => on_syn_ack(status, direction),
        Segment::Fin => on_fin(status, direction),
        Segment::Ack => on_ack(status, direction),
        Segment::Rst => on_reset(status),
    };
    match (step, direction) {
        (Step::To(next), Direction::Reply) => Step::To(next.marked(Marks::REPLIED)),
        (step, _) => step,
    }
}

const fn on_syn(status: Status, direction: Direction) -> Step {
    match (status.state, direction) {
        (State::TimeWait | State::Close, _) => Step::Reopen,
        (State::SynSent, Direction::Reply) => Step::To(status.to(State::SynSent2)),
        (State::SynSent | State::SynSent2, _) => Step::To(status),
        // A client that forgot the connection: the server answers with an acknowledgement, the client with a reset.
        (_, Direction::Original) => Step::Ignore,
        (_, Direction::Reply) => Step::Invalid(Invalid::OutOfTurn),
    }
}

const fn on_syn_ack(status: Status, direction: Direction) -> Step {
    match (status.state, direction) {
        (State::SynSent, Direction::Reply) | (State::SynSent2 | State::SynReceived, _) => {
            Step::To(status.to(State::SynReceived))
        }
        (State::Close, _) => unreset(status, direction),
        (_, Direction::Reply) => Step::Ignore,
        (_, Direction::Original) => Step::Invalid(Invalid::OutOfTurn),
    }
}

const fn on_fin(status: Status, direction: Direction) -> Step {
    let (own, other) = match direction {
        Direction::Original => (Marks::FIN_ORIGINAL, Marks::FIN_REPLY),
        Direction::Reply => (Marks::FIN_REPLY, Marks::FIN_ORIGINAL),
    };
    let finished = status.marked(own);
    match status.state {
        State::SynSent | State::SynSent2 => Step::Invalid(Invalid::OutOfTurn),
        State::SynReceived | State::Established => Step::To(finished.to(State::FinWait)),
        State::FinWait | State::CloseWait if status.marks.has(other) => Step::To(finished.to(State::LastAck)),
        _ => Step::To(status),
    }
}

const fn on_ack(status: Status, direction: Direction) -> Step {
    match (status.state, direction) {
        (State::SynSent | State::SynSent2, Direction::Original) => Step::Invalid(Invalid::OutOfTurn),
        // A server that still has an older connection of that tuple.
        (State::SynSent | State::SynSent2, Direction::Reply) => Step::Ignore,
        (State::SynReceived, Direction::Original) => {
            Step::To(status.to(State::Established).marked(Marks::ASSURED))
        }
        (State::Established, Direction::Reply) => Step::To(status.marked(Marks::ASSURED)),
        (State::FinWait, Direction::Reply) if status.marks.has(Marks::FIN_ORIGINAL) => {
            Step::To(status.to(State::CloseWait))
        }
        (State::FinWait, Direction::Original) if status.marks.has(Marks::FIN_REPLY) => {
            Step::To(status.to(State::CloseWait))
        }
        (State::LastAck, _) => Step::To(status.to(State::TimeWait)),
        (State::Close, _) => unreset(status, direction),
        _ => Step::To(status),
    }
}

/// A reset: the end at once if nobody ever answered, else a short wait in which it may turn out to be forged.
const fn on_reset(status: Status) -> Step {
    if status.marks.has(Marks::REPLIED) { Step::To(status.to(State::Close)) } else { Step::End }
}

/// One side goes on after a reset; when both do, it was not theirs.
const fn unreset(status: Status, direction: Direction) -> Step {
    let closing = status.marks.has(Marks::FIN_ORIGINAL) || status.marks.has(Marks::FIN_REPLY);
    if closing {
        return Step::To(status);
    }
    const BOTH: Marks = Marks::UNRESET_ORIGINAL.with(Marks::UNRESET_REPLY);
    let status = status.marked(match direction {
        Direction::Original => Marks::UNRESET_ORIGINAL,
        Direction::Reply => Marks::UNRESET_REPLY,
    });
    if status.marks.has(BOTH) {
        // Both want it.
        Step::To(status.without(BOTH).marked(Marks::ASSURED).to(State::Established))
    } else {
        Step::To(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};
    use penstock_wire::tcp::PSH;

    /// Takes segments in turn and gives the status behind the last, or the first step that is none.
    fn run(segments: &[(Direction, u8)]) -> Result<Status, Step> {
        let mut status = open(segments[0].1, true).map_err(Step::Invalid)?;
        for &(direction, flags) in &segments[1..] {
            match advance(status, direction, flags) {
                Step::To(next) => status = next,
                Step::Ignore => {}
                other => return Err(other),
            }
        }
        Ok(status)
    }

    const HANDSHAKE: [(Direction, u8); 3] = [(Original, SYN), (Reply, SYN | ACK), (Original, ACK)];

    fn established() -> Status {
        run(&HANDSHAKE).unwrap()
    }

    fn states(from: Status, segments: &[(Direction, u8)]) -> Vec<State> {
        let mut status = from;
        let step = |&(direction, flags): &(Direction, u8)| {
            if let Step::To(next) = advance(status, direction, flags) {
                status = next;
            }
            status.state
        };
        segments.iter().map(step).collect()
    }

    #[test]
    fn a_handshake_opens_and_assures() {
        let opening = run(&HANDSHAKE[..1]).unwrap();
        assert!(opening.is_half_open() && !opening.is_cacheable() && !opening.is_assured());
        let answered = run(&HANDSHAKE[..2]).unwrap();
        assert_eq!(answered.state, State::SynReceived);
        assert!(answered.is_half_open() && !answered.is_cacheable() && !answered.is_assured());
        let open = established();
        assert_eq!(open.state, State::Established);
        assert!(open.is_assured() && open.is_cacheable() && !open.is_half_open());
    }

    #[test]
    fn an_orderly_end_goes_through_every_state() {
        let segments =
            [(Original, FIN | ACK), (Reply, ACK), (Reply, PSH | ACK), (Reply, FIN | ACK), (Original, ACK)];
        let expected = [State::FinWait, State::CloseWait, State::CloseWait, State::LastAck, State::TimeWait];
        assert_eq!(states(established(), &segments), expected);
        let mirrored = segments.map(|(direction, flags)| (direction.other(), flags));
        assert_eq!(states(established(), &mirrored), expected);
    }

    #[test]
    fn a_repeated_fin_is_not_the_other_sides() {
        let segments = [(Original, FIN | ACK), (Original, FIN | ACK), (Original, ACK), (Reply, FIN | ACK)];
        let expected = [State::FinWait, State::FinWait, State::FinWait, State::LastAck];
        assert_eq!(states(established(), &segments), expected);
    }

    #[test]
    fn both_sides_may_open_at_once() {
        let crossing = run(&[(Original, SYN), (Reply, SYN)]).unwrap();
        assert_eq!(crossing.state, State::SynSent2);
        assert!(crossing.is_half_open());
        let open =
            [(Original, SYN), (Reply, SYN), (Original, SYN | ACK), (Reply, SYN | ACK), (Original, ACK)];
        assert_eq!(run(&open).unwrap().state, State::Established);
    }

    #[test]
    fn a_tuple_in_time_wait_or_reset_is_opened_anew_by_either_side() {
        let over = Status::of(State::TimeWait);
        assert_eq!(advance(over, Original, SYN), Step::Reopen);
        assert_eq!(advance(over, Reply, SYN), Step::Reopen);
        assert_eq!(advance(Status::of(State::Close), Original, SYN), Step::Reopen);
    }

    #[test]
    fn a_syn_in_an_open_connection_passes_and_changes_nothing() {
        assert_eq!(advance(established(), Original, SYN), Step::Ignore);
        assert_eq!(advance(established(), Reply, SYN), Step::Invalid(Invalid::OutOfTurn));
    }

    #[test]
    fn a_refused_connection_ends_at_once() {
        assert_eq!(run(&[(Original, SYN), (Reply, RST | ACK)]), Err(Step::End));
    }

    #[test]
    fn a_reset_that_both_sides_outlive_was_forged() {
        let forged = [(Original, RST), (Original, ACK), (Original, ACK), (Reply, ACK)];
        let expected = [State::Close, State::Close, State::Close, State::Established];
        assert_eq!(states(established(), &forged), expected);
        let revived = run(&[&HANDSHAKE[..], &forged[..]].concat()).unwrap();
        assert_eq!(revived, established());
    }

    #[test]
    fn a_real_reset_is_not_undone_by_what_was_on_its_way() {
        let real = [(Reply, RST), (Original, PSH | ACK), (Reply, RST), (Original, PSH | ACK), (Reply, RST)];
        assert_eq!(states(established(), &real), [State::Close; 5]);
        let closing = [(Original, FIN | ACK), (Reply, RST | ACK), (Original, ACK), (Reply, ACK)];
        assert_eq!(states(established(), &closing)[3], State::Close);
    }

    #[test]
    fn a_conversation_is_picked_up_only_if_wanted_and_assured_only_when_answered() {
        assert_eq!(open(ACK, false), Err(Invalid::NotOpened));
        let picked_up = open(PSH | ACK, true).unwrap();
        assert_eq!(picked_up.state, State::Established);
        assert!(!picked_up.is_assured() && !picked_up.is_cacheable());
        let Step::To(answered) = advance(picked_up, Reply, ACK) else { panic!("not advanced") };
        assert!(answered.is_assured() && answered.is_cacheable());
    }

    #[test]
    fn nonsense_opens_and_moves_nothing() {
        for flags in [0, FIN, SYN | FIN, SYN | RST, FIN | RST | ACK, SYN | FIN | ACK, PSH] {
            assert_eq!(open(flags, true), Err(Invalid::Nonsense), "{flags:#x}");
            assert_eq!(
                advance(established(), Original, flags),
                Step::Invalid(Invalid::Nonsense),
                "{flags:#x}"
            );
        }
        for flags in [SYN | ACK, FIN | ACK, RST, RST | ACK] {
            assert_eq!(open(flags, true), Err(Invalid::NotOpened), "{flags:#x}");
        }
    }

    #[test]
    fn only_segments_that_move_the_state_of_an_open_connection_leave_the_fast_path() {
        for flags in 0..=0x3f {
            let moves = [Original, Reply].iter().any(|&direction| {
                !matches!(advance(established(), direction, flags), Step::To(next) if next == established())
            });
            // What is nonsense beyond these flags is the slow path's to find when it meets it.
            let plain = Segment::of(flags) == Some(Segment::Ack);
            assert_eq!(moves, !plain, "{flags:#x}");
            assert!(leaves_fast_path(flags) || plain || flags & (SYN | FIN | RST | ACK) == 0, "{flags:#x}");
        }
    }
}
