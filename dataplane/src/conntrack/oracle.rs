//! What the table must make of packets, written down a second time: the kernel's tables, and where this one differs.
//!
//! The facts are those of `net/netfilter/nf_conntrack_proto_tcp.c` (`tcp_conntracks`), `nf_conntrack_proto_sctp.c`
//! (`sctp_conntracks`) and `nf_conntrack_proto_udp.c`. Nothing here uses the code that it is to judge.

use std::collections::HashSet;

use penstock_wire::tcp::{ACK, FIN, PSH, RST, SYN};

use super::life::{self, Marks, Step};
use super::tuple::Direction;
use super::{Chunks, Invalid, Packet, Settings, State, Status};

/// What a packet does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Goes,
    Ignored,
    Ended,
    Reopened,
    Invalid(Invalid),
}

/// A connection as the oracle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Oracle {
    pub(super) state: State,
    pub(super) replied: bool,
    pub(super) assured: bool,
    /// Who has sent a FIN, the side that opened it first.
    finished: [bool; 2],
    /// Who goes on after an end that may have been forged.
    goes_on: [bool; 2],
}

/// The kernel's states in the order of its tables' columns, "none" left out.
const TCP_STATES: [State; 9] = [
    State::SynSent,
    State::SynReceived,
    State::Established,
    State::FinWait,
    State::CloseWait,
    State::LastAck,
    State::TimeWait,
    State::Close,
    State::SynSent2,
];
const SS: usize = 0;
const SR: usize = 1;
const ES: usize = 2;
const FW: usize = 3;
const CW: usize = 4;
const LA: usize = 5;
const TW: usize = 6;
const CL: usize = 7;
const S2: usize = 8;
/// Invalid and ignored.
const IV: usize = 9;
const IG: usize = 10;

/// `tcp_conntracks`, by direction and segment.
#[rustfmt::skip]
const TCP: [[[usize; 9]; 5]; 2] = [
    [
        //  SS  SR  ES  FW  CW  LA  TW  CL  S2      ORIGINAL
        /* syn     */ [SS, IG, IG, IG, IG, IG, SS, SS, S2],
        /* syn-ack */ [IV, SR, IV, IV, IV, IV, IV, IV, SR],
        /* fin     */ [IV, FW, FW, LA, LA, LA, TW, CL, IV],
        /* ack     */ [IV, ES, ES, CW, CW, TW, TW, CL, IV],
        /* rst     */ [CL, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
    [
        //  SS  SR  ES  FW  CW  LA  TW  CL  S2      REPLY
        /* syn     */ [S2, IV, IV, IV, IV, IV, SS, IV, S2],
        /* syn-ack */ [SR, IG, IG, IG, IG, IG, IG, IG, SR],
        /* fin     */ [IV, FW, FW, LA, LA, LA, TW, CL, IV],
        /* ack     */ [IG, SR, ES, CW, CW, TW, TW, CL, IG],
        /* rst     */ [CL, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
];

/// The kernel's states of SCTP, in the order of its tables' columns; "heartbeat sent" is what is picked up here.
const SCTP_STATES: [State; 8] = [
    State::SctpClosed,
    State::SctpCookieWait,
    State::SctpCookieEchoed,
    State::SctpEstablished,
    State::SctpShutdownSent,
    State::SctpShutdownReceived,
    State::SctpShutdownAckSent,
    State::SctpPickedUp,
];

/// `sctp_conntracks` by direction and chunk (INIT, INIT ACK, ABORT, SHUTDOWN, SHUTDOWN ACK, COOKIE ECHO, COOKIE ACK,
/// SHUTDOWN COMPLETE): what the columns become. What is picked up is answered below.
const SCTP: [[[usize; 7]; 8]; 2] = [
    [
        /* CL CW CE ES SS SR SA */
        [1, 1, 2, 3, 0, 0, 6],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 4, 4, 5, 6],
        [0, 1, 2, 3, 6, 6, 6],
        [0, 2, 2, 3, 4, 5, 6],
        [0, 1, 3, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 0],
    ],
    [
        [0, 1, 2, 3, 4, 5, 6],
        [1, 1, 2, 3, 4, 5, 6],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 5, 4, 5, 6],
        [0, 1, 2, 3, 6, 6, 6],
        [0, 2, 2, 3, 4, 5, 6],
        [0, 1, 3, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 0],
    ],
];
const CHUNKS: [u8; 8] = [1, 2, 6, 7, 8, 10, 11, 14];
const INIT: usize = 0;
const INIT_ACK: usize = 1;
const ABORT: usize = 2;
const SHUTDOWN_ACK: usize = 4;
const COMPLETE: usize = 7;

impl Oracle {
    /// The connection that a packet opens, conversations under way being picked up.
    pub(super) fn begin(packet: Packet) -> Option<Oracle> {
        let state = match packet {
            Packet::Tcp(flags) if flags & (SYN | FIN | RST | ACK) == SYN => State::SynSent,
            Packet::Tcp(flags) if flags & (SYN | FIN | RST | ACK) == ACK => State::Established,
            Packet::Sctp(chunks) if chunks == Chunks::only(1) => State::SctpCookieWait,
            Packet::Sctp(chunks) if control_of(chunks).is_none() => State::SctpPickedUp,
            Packet::Udp => State::UdpUnreplied,
            Packet::Echo { request: true } => State::EchoSent,
            Packet::Other => State::OtherUnreplied,
            _ => return None,
        };
        Some(Oracle { state, replied: false, assured: false, finished: [false; 2], goes_on: [false; 2] })
    }

    /// What a packet does to it. Of SCTP, a packet is one chunk here.
    pub(super) fn step(&mut self, direction: Direction, packet: Packet) -> Outcome {
        let outcome = match packet {
            Packet::Tcp(flags) => self.tcp(direction, flags),
            Packet::Sctp(chunks) => self.sctp(direction, chunks),
            Packet::Udp => {
                // A stream, for the kernel too, takes more than a question and its answer.
                let is_stream =
                    self.state == State::UdpStream || self.replied && direction == Direction::Original;
                self.assured = is_stream;
                self.state = match (is_stream, self.replied || direction == Direction::Reply) {
                    (true, _) => State::UdpStream,
                    (false, true) => State::UdpReplied,
                    (false, false) => State::UdpUnreplied,
                };
                Outcome::Goes
            }
            Packet::Echo { .. } | Packet::Other => {
                let (answered, is_echo) = (direction == Direction::Reply, packet != Packet::Other);
                if answered {
                    self.state = if is_echo { State::EchoAnswered } else { State::OtherReplied };
                    self.assured = !is_echo;
                }
                Outcome::Goes
            }
        };
        self.replied |= outcome == Outcome::Goes && direction == Direction::Reply;
        outcome
    }

    /// Seconds that it is remembered for without packets: the kernel's defaults.
    pub(super) fn timeout(&self) -> u32 {
        match self.state {
            State::SynSent | State::SynSent2 | State::FinWait | State::TimeWait => 120,
            State::SynReceived | State::CloseWait => 60,
            State::Established if self.replied => 432_000,
            State::Established => 300,
            State::LastAck => 30,
            State::Close | State::SctpClosed => 10,
            State::UdpUnreplied | State::UdpReplied => 30,
            State::UdpStream => 120,
            State::EchoSent | State::EchoAnswered | State::SctpPickedUp => 30,
            State::SctpCookieWait | State::SctpCookieEchoed => 3,
            State::SctpEstablished => 210,
            State::SctpShutdownSent | State::SctpShutdownReceived | State::SctpShutdownAckSent => 3,
            State::OtherUnreplied | State::OtherReplied => 600,
            State::Binding | State::OneWay => panic!("no packet opens these"),
        }
    }

    fn tcp(&mut self, direction: Direction, flags: u8) -> Outcome {
        let segment = match flags & (SYN | FIN | RST | ACK) {
            SYN => 0,
            both if both == SYN | ACK => 1,
            both if both == FIN | ACK => 2,
            ACK => 3,
            only if only & !ACK == RST => 4,
            _ => return Outcome::Invalid(Invalid::Nonsense),
        };
        let (way, column) = (direction as usize, column(&TCP_STATES, self.state));
        let known = TCP[way][segment][column];
        let is_end = segment == 4;
        // Sequence numbers are not kept, so who finishes and who acknowledges is told by the direction.
        if segment == 2 && known < IV && [SR, ES, FW, CW].contains(&column) {
            let both = column != SR && column != ES && self.finished[1 - way];
            self.finished[way] = true;
            self.state = TCP_STATES[if both {
                LA
            } else if [SR, ES].contains(&column) {
                FW
            } else {
                column
            }];
            return Outcome::Goes;
        }
        match (known, column) {
            // A reset of a connection that nobody has answered is its end, in the kernel too.
            (CL, _) if is_end && !self.replied => return Outcome::Ended,
            (SS, TW | CL) => return Outcome::Reopened,
            // Where the kernel looks at the sequence number of a SYN that comes back, this one lets it open anew.
            (IV, CL) if segment == 0 => return Outcome::Reopened,
            // After a reset that may have been forged, acknowledgements of both sides say that it was.
            (_, CL) if segment == 1 || segment == 3 => {
                self.undo(way, State::Established, self.finished != [false; 2]);
                return Outcome::Goes;
            }
            (IV, _) => return Outcome::Invalid(Invalid::OutOfTurn),
            // A repeated SYN-ACK renews the time here.
            (IG, SR) if segment == 1 => return Outcome::Goes,
            (IG, _) => return Outcome::Ignored,
            // Who acknowledges its own FIN has not been heard yet.
            (CW, FW) if self.finished[way] && !self.finished[1 - way] => return Outcome::Goes,
            _ => {}
        }
        let (before, after) = (self.state, TCP_STATES[known]);
        self.state = after;
        let was_open = matches!(before, State::SynReceived | State::Established);
        self.assured |=
            was_open && after == State::Established && (self.replied || direction == Direction::Reply);
        Outcome::Goes
    }

    fn sctp(&mut self, direction: Direction, chunks: Chunks) -> Outcome {
        let (way, column) = (direction as usize, column(&SCTP_STATES, self.state));
        let is_ending = [0, 4, 5, 6].contains(&column);
        let Some(chunk) = control_of(chunks) else {
            match self.state {
                State::SctpPickedUp if direction == Direction::Reply => self.state = State::SctpEstablished,
                // Who goes on with data has not heard of an end: if neither has, it was forged.
                _ if is_ending => self.undo(way, State::SctpEstablished, false),
                _ => {}
            }
            self.assured |= self.state == State::SctpEstablished;
            return Outcome::Goes;
        };
        let after = match (chunk, self.state) {
            (INIT, State::SctpClosed) => return Outcome::Reopened,
            (INIT, State::SctpPickedUp) if direction == Direction::Original => return Outcome::Reopened,
            (ABORT, _) if !self.replied => return Outcome::Ended,
            (COMPLETE, state) if state != State::SctpShutdownAckSent => {
                return Outcome::Invalid(Invalid::OutOfTurn);
            }
            (ABORT, State::SctpPickedUp) => State::SctpClosed,
            (_, State::SctpPickedUp) => State::SctpPickedUp,
            // The kernel opens what was closed by an INIT ACK, and closes what is shut down by an INIT.
            (INIT | INIT_ACK, state) => state,
            // Whoever acknowledges has heard a SHUTDOWN, be it taken for forged here.
            (SHUTDOWN_ACK, State::SctpEstablished) => State::SctpShutdownAckSent,
            _ => SCTP_STATES[SCTP[way][chunk][column]],
        };
        self.goes_on = [false; 2];
        self.state = after;
        self.assured |= after == State::SctpEstablished;
        Outcome::Goes
    }

    /// One side goes on as if nothing had ended; when both do, it is open again.
    fn undo(&mut self, way: usize, open: State, is_over: bool) {
        if is_over {
            return;
        }
        self.goes_on[way] = true;
        if self.goes_on == [true; 2] {
            (self.state, self.goes_on, self.assured) = (open, [false; 2], true);
        }
    }
}

fn column(states: &[State], state: State) -> usize {
    states.iter().position(|it| *it == state).expect("a state of the protocol")
}

/// Which of the chunks that move an association a packet of one chunk has.
fn control_of(chunks: Chunks) -> Option<usize> {
    CHUNKS.iter().position(|&chunk| Chunks::only(chunk) == chunks)
}

/// What the code that is judged says, in the oracle's words.
fn said(status: Status, direction: Direction, packet: Packet) -> (Status, Outcome) {
    match life::advance(status, direction, packet) {
        Step::To(next) => (next, Outcome::Goes),
        Step::Ignore => (status, Outcome::Ignored),
        Step::End => (status, Outcome::Ended),
        Step::Reopen => (status, Outcome::Reopened),
        Step::Invalid(why) => (status, Outcome::Invalid(why)),
    }
}

impl Oracle {
    /// Whether a status is what the oracle holds of its connection.
    pub(super) fn agrees(&self, status: Status) -> bool {
        let (replied, assured) = (status.marks.has(Marks::REPLIED), status.marks.has(Marks::ASSURED));
        (status.state, replied, assured) == (self.state, self.replied, self.assured)
    }
}

#[test]
fn every_life_that_packets_can_make_is_the_oracles() {
    let settings = Settings::default();
    let mut flags: Vec<u8> = (0..32).filter(|flags| flags & PSH == 0).collect();
    flags.push(PSH | ACK);
    let tcp: Vec<_> = flags.into_iter().map(Packet::Tcp).collect();
    let sctp = (0..16).map(|chunk| Packet::Sctp(Chunks::only(chunk))).collect();
    let echo = [true, false].map(|request| Packet::Echo { request }).to_vec();
    for packets in [tcp, sctp, echo, vec![Packet::Udp], vec![Packet::Other]] {
        let (mut seen, mut ahead) = (HashSet::new(), Vec::new());
        for &packet in &packets {
            let (opened, expected) = (life::open(packet, &settings).ok(), Oracle::begin(packet));
            assert_eq!(opened.map(|it| it.state), expected.map(|it| it.state), "{packet:?}");
            ahead.extend(opened.zip(expected).map(|it| (it, vec![(Direction::Original, packet)])));
        }
        while let Some(((status, oracle), path)) = ahead.pop() {
            assert!(oracle.agrees(status), "{oracle:?} is {status:?} after {path:?}");
            assert_eq!(settings.timeouts.of(status), oracle.timeout(), "{status:?}");
            if !seen.insert((status.bits(), oracle)) {
                continue;
            }
            for direction in [Direction::Original, Direction::Reply] {
                for &packet in &packets {
                    let mut next = oracle;
                    let expected = next.step(direction, packet);
                    let (after, outcome) = said(status, direction, packet);
                    assert_eq!(outcome, expected, "{direction:?} {packet:?} to {status:?} after {path:?}");
                    if outcome == Outcome::Goes {
                        let path = [&path[..], &[(direction, packet)]].concat();
                        ahead.push(((after, next), path));
                    }
                }
            }
        }
    }
}
