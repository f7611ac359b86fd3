//! The life of an SCTP association as the node in the middle sees it, by the first chunk of its packets (RFC 9260).

use super::life::{Invalid, Marks, State, Status, Step};
use super::tuple::Direction;

/// Chunk types, RFC 9260 section 3.2.
mod chunk {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const COOKIE_ECHO: u8 = 10;
    pub(super) const COOKIE_ACK: u8 = 11;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Whether a packet that begins with this chunk must meet the slow path although its flow is known.
#[inline]
#[must_use]
pub const fn leaves_fast_path(chunk: u8) -> bool {
    use chunk::{ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
    matches!(
        chunk,
        INIT | INIT_ACK | ABORT | SHUTDOWN | SHUTDOWN_ACK | COOKIE_ECHO | COOKIE_ACK | SHUTDOWN_COMPLETE
    )
}

/// Whether the sender of this chunk is done with its association.
#[must_use]
pub(super) const fn ends(chunk: u8) -> bool {
    use chunk::{ABORT, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
    matches!(chunk, ABORT | SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE)
}

/// The status of the association that a packet opens.
///
/// # Errors
/// Why it opens none.
pub const fn open(chunk: u8, pick_up: bool) -> Result<Status, Invalid> {
    match chunk {
        chunk::INIT => Ok(Status::of(State::SctpCookieWait)),
        other if pick_up && !leaves_fast_path(other) => {
            Ok(Status::of(State::SctpPickedUp).marked(Marks::PICKED_UP))
        }
        _ => Err(Invalid::NotOpened),
    }
}

/// What a packet that begins with this chunk and goes in `direction` does to an association.
#[must_use]
pub const fn advance(status: Status, direction: Direction, chunk: u8) -> Step {
    let state = match (chunk, status.state, direction) {
        (chunk::INIT, State::SctpClosed, _) => return Step::Reopen,
        (chunk::INIT, State::SctpPickedUp, Direction::Original) => State::SctpCookieWait,
        (chunk::ABORT, _, _) if !status.marks.has(Marks::REPLIED) => return Step::End,
        (chunk::ABORT, _, _) => State::SctpClosed,
        (chunk::COOKIE_ECHO, State::SctpCookieWait, _) => State::SctpCookieEchoed,
        (chunk::COOKIE_ACK, State::SctpCookieEchoed, _) => State::SctpEstablished,
        (chunk::SHUTDOWN, State::SctpEstablished, Direction::Original) => State::SctpShutdownSent,
        (chunk::SHUTDOWN, State::SctpEstablished, Direction::Reply) => State::SctpShutdownReceived,
        (chunk::SHUTDOWN_ACK, State::SctpShutdownSent | State::SctpShutdownReceived, _) => {
            State::SctpShutdownAckSent
        }
        (chunk::SHUTDOWN_COMPLETE, State::SctpShutdownAckSent, _) => State::SctpClosed,
        (chunk::SHUTDOWN_COMPLETE, _, _) => return Step::Invalid(Invalid::OutOfTurn),
        (other, State::SctpPickedUp, Direction::Reply) if !leaves_fast_path(other) => State::SctpEstablished,
        (_, unchanged, _) => unchanged,
    };
    let status = match direction {
        Direction::Original => status.to(state),
        Direction::Reply => status.to(state).marked(Marks::REPLIED),
    };
    let opened = matches!(state, State::SctpEstablished);
    Step::To(if opened { status.marked(Marks::ASSURED) } else { status })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};
    use chunk::*;

    const DATA: u8 = 0;
    const HEARTBEAT: u8 = 4;

    fn run(first: u8, rest: &[(Direction, u8)]) -> Result<Status, Step> {
        let mut status = open(first, true).map_err(Step::Invalid)?;
        for &(direction, chunk) in rest {
            match advance(status, direction, chunk) {
                Step::To(next) => status = next,
                other => return Err(other),
            }
        }
        Ok(status)
    }

    const OPEN: [(Direction, u8); 3] = [(Reply, INIT_ACK), (Original, COOKIE_ECHO), (Reply, COOKIE_ACK)];

    #[test]
    fn the_four_way_handshake_opens_and_assures() {
        assert!(run(INIT, &[]).unwrap().is_half_open());
        assert!(run(INIT, &OPEN[..2]).unwrap().is_half_open());
        let open = run(INIT, &OPEN).unwrap();
        assert_eq!(open.state, State::SctpEstablished);
        assert!(open.is_assured() && open.is_cacheable() && !open.is_half_open());
        assert_eq!(advance(open, Reply, DATA), Step::To(open));
    }

    #[test]
    fn either_side_may_shut_it_down() {
        for (first, second) in [(Original, Reply), (Reply, Original)] {
            let ending = [(first, SHUTDOWN), (second, SHUTDOWN_ACK), (first, SHUTDOWN_COMPLETE)];
            let closed = run(INIT, &[&OPEN[..], &ending[..]].concat()).unwrap();
            assert_eq!(closed.state, State::SctpClosed);
            assert!(!closed.is_cacheable());
            assert_eq!(advance(closed, Original, INIT), Step::Reopen);
        }
    }

    #[test]
    fn an_abort_closes_and_an_unanswered_one_ends_at_once() {
        assert_eq!(run(INIT, &[(Reply, ABORT)]), Err(Step::End));
        let aborted = run(INIT, &[&OPEN[..], &[(Original, ABORT)]].concat()).unwrap();
        assert_eq!(aborted.state, State::SctpClosed);
    }

    #[test]
    fn an_association_is_picked_up_only_if_wanted() {
        assert_eq!(open(HEARTBEAT, false), Err(Invalid::NotOpened));
        assert_eq!(open(SHUTDOWN_ACK, true), Err(Invalid::NotOpened));
        let picked_up = run(HEARTBEAT, &[]).unwrap();
        assert!(!picked_up.is_assured() && !picked_up.is_cacheable());
        assert_eq!(run(HEARTBEAT, &[(Reply, DATA)]).unwrap().state, State::SctpEstablished);
    }
}
