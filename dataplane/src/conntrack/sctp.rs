//! The life of an SCTP association as the node in the middle sees it, by the chunks of its packets (RFC 9260).
//!
//! Verification tags are not kept, so a chunk that ends an association may be forged. It is believed at once, but not for
//! good: who took an ABORT or a SHUTDOWN for real does not go on with data, acknowledgements and heartbeats alone, so when
//! both sides do, it was not theirs and the association is open again. TCP's resets are treated in the same way.

use penstock_wire::sctp::HEADER_LEN;

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

/// The chunks that move an association, in the order in which those of one packet are heard: the end last.
const CONTROL: [u8; 8] = {
    use chunk::{ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
    [INIT, INIT_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, ABORT]
};
/// Chunks that stand alone in their packet (RFC 9260 section 6.10).
const ALONE: u16 = 1 << chunk::INIT | 1 << chunk::INIT_ACK | 1 << chunk::SHUTDOWN_COMPLETE;
/// Bytes of a chunk's header: type, flags, length (RFC 9260 section 3.2).
const CHUNK_HEADER: usize = 4;
/// Stands for every type that is not told apart.
const OTHER: u8 = 15;

/// The types of the chunks of one packet, a bit each; those that move no association count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks(u16);

impl Chunks {
    /// Of a packet with one chunk.
    #[inline]
    #[must_use]
    pub const fn only(chunk: u8) -> Chunks {
        Chunks(1 << if chunk < OTHER { chunk } else { OTHER })
    }

    /// Of the packet that `segment` begins with, an SCTP header at its front; what is behind the packet's end must not look
    /// like a chunk. `None` if there is none.
    #[inline]
    #[must_use]
    pub fn of(segment: &[u8]) -> Option<Chunks> {
        let (mut seen, mut at) = (0, HEADER_LEN);
        while let Some(&[kind, _, high, low]) = segment.get(at..).and_then(|rest| rest.first_chunk()) {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length < CHUNK_HEADER {
                break;
            }
            seen |= Chunks::only(kind).0;
            // Each begins on a multiple of four bytes.
            at += length.next_multiple_of(4);
        }
        (seen != 0).then_some(Chunks(seen))
    }

    /// These and those of another packet.
    #[must_use]
    pub const fn with(self, other: Chunks) -> Chunks {
        Chunks(self.0 | other.0)
    }

    const fn has(self, chunk: u8) -> bool {
        self.0 & 1 << chunk != 0
    }

    /// Whether one of them stands beside others that must be alone.
    const fn is_nonsense(self) -> bool {
        self.0 & ALONE != 0 && !self.0.is_power_of_two()
    }
}

/// Whether a packet with these chunks must meet the slow path although its flow is known.
#[inline]
#[must_use]
pub const fn leaves_fast_path(chunks: Chunks) -> bool {
    use chunk::{ABORT, COOKIE_ACK, COOKIE_ECHO, SHUTDOWN, SHUTDOWN_ACK};
    const MOVING: u16 =
        ALONE | 1 << ABORT | 1 << SHUTDOWN | 1 << SHUTDOWN_ACK | 1 << COOKIE_ECHO | 1 << COOKIE_ACK;
    chunks.0 & MOVING != 0
}

/// Whether their sender begins an association.
#[must_use]
pub(super) const fn begins(chunks: Chunks) -> bool {
    chunks.has(chunk::INIT)
}

/// Whether their sender is done with its association.
#[must_use]
pub(super) const fn ends(chunks: Chunks) -> bool {
    use chunk::{ABORT, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
    chunks.has(ABORT) || chunks.has(SHUTDOWN) || chunks.has(SHUTDOWN_ACK) || chunks.has(SHUTDOWN_COMPLETE)
}

/// The status of the association that a packet opens.
///
/// # Errors
/// Why it opens none.
pub const fn open(chunks: Chunks, pick_up: bool) -> Result<Status, Invalid> {
    if chunks.is_nonsense() {
        return Err(Invalid::Nonsense);
    }
    if begins(chunks) {
        return Ok(Status::of(State::SctpCookieWait));
    }
    if pick_up && !leaves_fast_path(chunks) {
        return Ok(Status::of(State::SctpPickedUp));
    }
    Err(Invalid::NotOpened)
}

/// What a packet with these chunks that goes in `direction` does to an association.
#[must_use]
pub fn advance(status: Status, direction: Direction, chunks: Chunks) -> Step {
    if chunks.is_nonsense() {
        return Step::Invalid(Invalid::Nonsense);
    }
    let mut next = if leaves_fast_path(chunks) { status } else { goes_on(status, direction) };
    for chunk in CONTROL.into_iter().filter(|chunk| chunks.has(*chunk)) {
        match on_control(next, direction, chunk) {
            Step::To(status) => next = status,
            other => return other,
        }
    }
    if direction == Direction::Reply {
        next = next.marked(Marks::REPLIED);
    }
    Step::To(if next.state == State::SctpEstablished { next.marked(Marks::ASSURED) } else { next })
}

/// A chunk that moves an association.
const fn on_control(status: Status, direction: Direction, chunk: u8) -> Step {
    let state = match (chunk, status.state, direction) {
        (chunk::INIT, State::SctpClosed, _) | (chunk::INIT, State::SctpPickedUp, Direction::Original) => {
            return Step::Reopen;
        }
        (chunk::ABORT, _, _) if !status.marks.has(Marks::REPLIED) => return Step::End,
        (chunk::ABORT, _, _) => State::SctpClosed,
        (chunk::COOKIE_ECHO, State::SctpCookieWait, _) => State::SctpCookieEchoed,
        (chunk::COOKIE_ACK, State::SctpCookieEchoed, _) => State::SctpEstablished,
        (chunk::SHUTDOWN, State::SctpEstablished, Direction::Original) => State::SctpShutdownSent,
        (chunk::SHUTDOWN, State::SctpEstablished, Direction::Reply) => State::SctpShutdownReceived,
        // Of an open one too: who acknowledges has heard a SHUTDOWN, be it that we took it for forged.
        (
            chunk::SHUTDOWN_ACK,
            State::SctpEstablished | State::SctpShutdownSent | State::SctpShutdownReceived,
            _,
        ) => State::SctpShutdownAckSent,
        (chunk::SHUTDOWN_COMPLETE, State::SctpShutdownAckSent, _) => State::SctpClosed,
        (chunk::SHUTDOWN_COMPLETE, _, _) => return Step::Invalid(Invalid::OutOfTurn),
        (_, unchanged, _) => unchanged,
    };
    Step::To(status.without(GOES_ON).to(state))
}

const GOES_ON: Marks = Marks::UNRESET_ORIGINAL.with(Marks::UNRESET_REPLY);

/// A packet of nothing but data, acknowledgements, heartbeats and the like.
const fn goes_on(status: Status, direction: Direction) -> Status {
    use State::{SctpClosed, SctpShutdownAckSent, SctpShutdownReceived, SctpShutdownSent};
    match (status.state, direction) {
        (State::SctpPickedUp, Direction::Reply) => status.to(State::SctpEstablished),
        (SctpShutdownSent | SctpShutdownReceived | SctpShutdownAckSent | SctpClosed, _) => {
            let status = status.marked(match direction {
                Direction::Original => Marks::UNRESET_ORIGINAL,
                Direction::Reply => Marks::UNRESET_REPLY,
            });
            let both = status.marks.has(GOES_ON);
            if both { status.without(GOES_ON).to(State::SctpEstablished) } else { status }
        }
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};
    use chunk::*;

    const DATA: u8 = 0;
    const SACK: u8 = 3;
    const HEARTBEAT: u8 = 4;
    const FORWARD_TSN: u8 = 192;

    fn open(chunk: u8, pick_up: bool) -> Result<Status, Invalid> {
        super::open(Chunks::only(chunk), pick_up)
    }

    fn advance(status: Status, direction: Direction, chunk: u8) -> Step {
        super::advance(status, direction, Chunks::only(chunk))
    }

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

    /// A packet of these chunks, each with so many bytes behind its header.
    fn packet(chunks: &[(u8, usize)]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_LEN];
        for &(kind, len) in chunks {
            packet.extend([kind, 0]);
            packet.extend((len as u16 + 4).to_be_bytes());
            packet.extend(vec![0xab; len.next_multiple_of(4)]);
        }
        packet
    }

    #[test]
    fn every_chunk_of_a_packet_is_seen() {
        let seen = Chunks::of(&packet(&[(SACK, 12), (DATA, 13), (SHUTDOWN, 4)])).unwrap();
        assert!(leaves_fast_path(seen) && ends(seen));
        assert!(!leaves_fast_path(Chunks::of(&packet(&[(SACK, 12), (DATA, 13)])).unwrap()));
        assert!(!leaves_fast_path(Chunks::of(&packet(&[(FORWARD_TSN, 4), (HEARTBEAT, 8)])).unwrap()));
        // Padding behind the packet is none, nor is a header cut short, nor a chunk shorter than its header.
        let padded = [packet(&[(DATA, 1)]), vec![0; 20]].concat();
        assert_eq!(Chunks::of(&padded), Some(Chunks::only(DATA)));
        assert_eq!(Chunks::of(&packet(&[(DATA, 1)])[..HEADER_LEN + 3]), None);
        assert_eq!(Chunks::of(&[packet(&[]), vec![SHUTDOWN, 0, 0, 3]].concat()), None);
        // A first fragment may end within a chunk.
        assert_eq!(Chunks::of(&packet(&[(ABORT, 40)])[..HEADER_LEN + 4]), Some(Chunks::only(ABORT)));
    }

    #[test]
    fn a_shutdown_behind_an_acknowledgement_shuts_down() {
        let open = run(INIT, &OPEN).unwrap();
        let both = Chunks::only(SACK).with(Chunks::only(SHUTDOWN));
        let Step::To(next) = super::advance(open, Original, both) else { panic!("it goes on") };
        assert_eq!(next.state, State::SctpShutdownSent);
        let cookie = Chunks::only(COOKIE_ECHO).with(Chunks::only(DATA));
        let waiting = run(INIT, &OPEN[..1]).unwrap();
        let Step::To(next) = super::advance(waiting, Original, cookie) else { panic!("it goes on") };
        assert_eq!(next.state, State::SctpCookieEchoed);
    }

    #[test]
    fn chunks_that_must_be_alone_are_nonsense_beside_others() {
        let open = run(INIT, &OPEN).unwrap();
        for alone in [INIT, INIT_ACK, SHUTDOWN_COMPLETE] {
            let bundled = Chunks::only(alone).with(Chunks::only(DATA));
            assert_eq!(super::open(bundled, true), Err(Invalid::Nonsense));
            assert_eq!(super::advance(open, Reply, bundled), Step::Invalid(Invalid::Nonsense));
        }
    }

    #[test]
    fn an_end_that_both_sides_outlive_was_forged() {
        let open = run(INIT, &OPEN).unwrap();
        let forgeries = [&[ABORT][..], &[SHUTDOWN], &[SHUTDOWN, SHUTDOWN_ACK], &[SHUTDOWN_ACK]];
        for (forged, forger) in forgeries.into_iter().flat_map(|it| [(it, Original), (it, Reply)]) {
            let forged: Vec<_> = forged.iter().map(|&chunk| (forger, chunk)).collect();
            let ended = run(INIT, &[&OPEN[..], &forged].concat()).unwrap();
            assert!(!ended.is_cacheable() && ended.state != State::SctpEstablished);
            for side in [Original, Reply] {
                // One side alone has not heard of a real end yet.
                let one = run(INIT, &[&OPEN[..], &forged, &[(side, DATA); 3]].concat()).unwrap();
                assert_eq!(one.state, ended.state);
                let other = side.other();
                let both = [&OPEN[..], &forged, &[(side, DATA), (other, SACK)]].concat();
                assert_eq!(run(INIT, &both).unwrap(), open);
            }
        }
    }

    #[test]
    fn a_real_shutdown_is_not_undone_by_what_was_on_its_way() {
        let real = [
            (Original, SHUTDOWN),
            (Reply, DATA),
            (Original, SHUTDOWN),
            (Reply, DATA),
            (Original, SHUTDOWN),
            (Reply, SHUTDOWN_ACK),
        ];
        let ended = run(INIT, &[&OPEN[..], &real].concat()).unwrap();
        assert_eq!(ended.state, State::SctpShutdownAckSent);
        // Nor is one for good that an acknowledgement out of order had undone.
        let late = [(Original, SHUTDOWN), (Reply, DATA), (Original, SACK), (Reply, SHUTDOWN_ACK)];
        let ended = run(INIT, &[&OPEN[..], &late, &[(Original, SHUTDOWN_COMPLETE)]].concat()).unwrap();
        assert_eq!(ended.state, State::SctpClosed);
    }
}
