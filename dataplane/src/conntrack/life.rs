//! The life cycle of connections, as pure functions: a packet of each protocol opens, advances or ends one.

use penstock_wire::tcp as wire_tcp;

use super::sctp::{self, Chunks};
use super::tcp;
use super::tuple::Direction;

/// Whole seconds since some fixed moment that outlives the daemon, see `RegionClock::seconds`. Zero is no moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u32);

impl Seconds {
    /// The moment `seconds` later.
    #[inline]
    #[must_use]
    pub fn after(self, seconds: u32) -> Seconds {
        Seconds(self.0.saturating_add(seconds))
    }
}

/// How far a connection is. The numbers are part of the shared layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// TCP: the first SYN was seen.
    SynSent = 1,
    /// TCP: a SYN each way (simultaneous open).
    SynSent2,
    /// TCP: SYN and SYN-ACK were seen.
    SynReceived,
    /// TCP: open.
    Established,
    /// TCP: one side is done.
    FinWait,
    /// TCP: and the other has heard it.
    CloseWait,
    /// TCP: both sides are done.
    LastAck,
    /// TCP: and have heard it.
    TimeWait,
    /// TCP: reset.
    Close,
    /// UDP: nobody has answered.
    UdpUnreplied,
    /// UDP: answered once.
    UdpReplied,
    /// UDP: a conversation.
    UdpStream,
    /// ICMP echo: asked.
    EchoSent,
    /// ICMP echo: answered.
    EchoAnswered,
    /// SCTP: INIT was seen.
    SctpCookieWait,
    /// SCTP: COOKIE ECHO was seen.
    SctpCookieEchoed,
    /// SCTP: open.
    SctpEstablished,
    /// SCTP: the side that opened it shuts it down.
    SctpShutdownSent,
    /// SCTP: the other side shuts it down.
    SctpShutdownReceived,
    /// SCTP: and it is acknowledged.
    SctpShutdownAckSent,
    /// SCTP: ended.
    SctpClosed,
    /// SCTP: picked up in the middle, nobody has answered yet.
    SctpPickedUp,
    /// Another protocol: one way.
    OtherUnreplied,
    /// Another protocol: both ways.
    OtherReplied,
    /// No connection: an internal address and port that always leave by the same external ones.
    Binding,
    /// TCP or SCTP whose answers pass another node: all that is known is what one side says.
    OneWay,
}

impl State {
    const ALL: [State; 26] = [
        State::SynSent,
        State::SynSent2,
        State::SynReceived,
        State::Established,
        State::FinWait,
        State::CloseWait,
        State::LastAck,
        State::TimeWait,
        State::Close,
        State::UdpUnreplied,
        State::UdpReplied,
        State::UdpStream,
        State::EchoSent,
        State::EchoAnswered,
        State::SctpCookieWait,
        State::SctpCookieEchoed,
        State::SctpEstablished,
        State::SctpShutdownSent,
        State::SctpShutdownReceived,
        State::SctpShutdownAckSent,
        State::SctpClosed,
        State::SctpPickedUp,
        State::OtherUnreplied,
        State::OtherReplied,
        State::Binding,
        State::OneWay,
    ];

    /// The state of that number.
    #[inline]
    pub(crate) fn from_bits(bits: u8) -> Option<State> {
        State::ALL.get(usize::from(bits).checked_sub(1)?).copied()
    }
}

/// What is known of a connection besides its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(pub(crate) u8);

impl Marks {
    /// Worth keeping when the table is full: both sides want it.
    pub const ASSURED: Marks = Marks(1);
    /// A packet came back.
    pub const REPLIED: Marks = Marks(2);
    /// TCP: the side that opened it has sent its FIN.
    pub const FIN_ORIGINAL: Marks = Marks(4);
    /// TCP: the other side has sent its FIN.
    pub const FIN_REPLY: Marks = Marks(8);
    /// TCP, SCTP: after a reset or an abort, the side that opened it goes on as if there had been none.
    pub const UNRESET_ORIGINAL: Marks = Marks(16);
    /// TCP, SCTP: after a reset or an abort, the other side goes on as if there had been none.
    pub const UNRESET_REPLY: Marks = Marks(32);
    /// Its external address and port are those of a binding.
    pub const BOUND: Marks = Marks(64);

    /// Whether all of `marks` are there.
    #[inline]
    #[must_use]
    pub const fn has(self, marks: Marks) -> bool {
        self.0 & marks.0 == marks.0
    }

    /// These and `marks`.
    #[inline]
    #[must_use]
    pub const fn with(self, marks: Marks) -> Marks {
        Marks(self.0 | marks.0)
    }

    /// These without `marks`.
    #[inline]
    #[must_use]
    pub const fn without(self, marks: Marks) -> Marks {
        Marks(self.0 & !marks.0)
    }
}

/// State and marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How far it is.
    pub state: State,
    /// What else is known.
    pub marks: Marks,
}

impl Status {
    /// A state without marks.
    #[must_use]
    pub const fn of(state: State) -> Status {
        Status { state, marks: Marks(0) }
    }

    pub(crate) const fn to(self, state: State) -> Status {
        Status { state, ..self }
    }

    pub(crate) const fn marked(self, marks: Marks) -> Status {
        Status { marks: self.marks.with(marks), ..self }
    }

    pub(crate) const fn without(self, marks: Marks) -> Status {
        Status { marks: self.marks.without(marks), ..self }
    }

    pub(crate) const fn bits(self) -> u16 {
        (self.state as u16) << 8 | self.marks.0 as u16
    }

    pub(crate) fn from_bits(bits: u16) -> Option<Status> {
        Some(Status { state: State::from_bits((bits >> 8) as u8)?, marks: Marks(bits as u8) })
    }

    /// Whether both sides want it, so that it does not give way when the table is full.
    #[inline]
    #[must_use]
    pub const fn is_assured(self) -> bool {
        self.marks.has(Marks::ASSURED)
    }

    /// Whether its handshake is not done: what a flood of openings leaves behind.
    #[inline]
    #[must_use]
    pub const fn is_half_open(self) -> bool {
        use State::{SctpCookieEchoed, SctpCookieWait, SynReceived, SynSent, SynSent2};
        matches!(self.state, SynSent | SynSent2 | SynReceived | SctpCookieWait | SctpCookieEchoed)
    }

    /// Whether its packets may take the fast path: those for which [`leaves_fast_path`] is false then change nothing
    /// that matters before the next keep-alive. Handshakes, endings and resets are watched packet by packet.
    #[inline]
    #[must_use]
    pub const fn is_cacheable(self) -> bool {
        match self.state {
            State::Established => self.marks.has(Marks::REPLIED),
            State::OneWay => self.marks.has(Marks::ASSURED),
            State::UdpUnreplied
            | State::UdpReplied
            | State::UdpStream
            | State::EchoSent
            | State::EchoAnswered
            | State::SctpEstablished
            | State::OtherUnreplied
            | State::OtherReplied => true,
            _ => false,
        }
    }
}

/// What of a packet its connection's life depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// An SCTP packet with these chunks.
    Sctp(Chunks),
    /// A UDP datagram.
    Udp,
    /// An ICMP echo: `request`, or reply.
    Echo {
        /// Whether it asks.
        request: bool,
    },
    /// Any other protocol.
    Other,
}

/// Whether a packet must meet the slow path although its flow is known, since it may change its connection's state.
///
/// The first reply needs no mention: it is the first packet of its own flow.
#[inline]
#[must_use]
pub const fn leaves_fast_path(packet: Packet) -> bool {
    match packet {
        Packet::Tcp(flags) => tcp::leaves_fast_path(flags),
        Packet::Sctp(chunks) => sctp::leaves_fast_path(chunks),
        Packet::Udp | Packet::Echo { .. } | Packet::Other => false,
    }
}

/// Why a packet fits no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Flags or chunks that no sane sender combines.
    Nonsense,
    /// It belongs to a connection whose beginning was not seen, and picking up is off.
    NotOpened,
    /// It does not follow on what was seen of its connection.
    OutOfTurn,
    /// An answer that nobody asked for.
    Unsolicited,
}

/// What a packet does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on like this, and its time runs anew.
    To(Status),
    /// It passes and changes nothing, not even the time that is left.
    Ignore,
    /// It ends the connection: there is nothing to wait for.
    End,
    /// It opens a new connection in place of this one, which is over.
    Reopen,
    /// It does not fit.
    Invalid(Invalid),
}

/// How connections are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long they are remembered.
    pub timeouts: Timeouts,
    /// Whether TCP and SCTP conversations whose beginning was not seen are picked up (the kernel's
    /// `nf_conntrack_tcp_loose`, on by default).
    pub pick_up: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { timeouts: Timeouts::default(), pick_up: true }
    }
}

/// How long a quiet connection is remembered, in seconds. The defaults are the kernel's: `nf_conntrack_proto_tcp.c`,
/// `_udp.c`, `_icmp.c`, `_icmpv6.c`, `_sctp.c`, `_generic.c` in `net/netfilter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the states'")]
pub struct Timeouts {
    pub tcp_syn_sent: u32,
    pub tcp_syn_received: u32,
    pub tcp_established: u32,
    pub tcp_fin_wait: u32,
    pub tcp_close_wait: u32,
    pub tcp_last_ack: u32,
    pub tcp_time_wait: u32,
    pub tcp_close: u32,
    /// Picked up in the middle, and nobody has answered.
    pub tcp_unacknowledged: u32,
    pub udp: u32,
    pub udp_stream: u32,
    pub icmp: u32,
    pub sctp_closed: u32,
    pub sctp_cookie_wait: u32,
    pub sctp_cookie_echoed: u32,
    pub sctp_established: u32,
    pub sctp_shutdown: u32,
    /// Picked up in the middle, and nobody has answered (the kernel's HEARTBEAT_SENT).
    pub sctp_picked_up: u32,
    pub other: u32,
    /// A binding without connections; RFC 4787 REQ-5 recommends five minutes or more.
    pub binding: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        const MINUTE: u32 = 60;
        const DAY: u32 = 24 * 60 * MINUTE;
        Timeouts {
            tcp_syn_sent: 2 * MINUTE,
            tcp_syn_received: MINUTE,
            tcp_established: 5 * DAY,
            tcp_fin_wait: 2 * MINUTE,
            tcp_close_wait: MINUTE,
            tcp_last_ack: 30,
            tcp_time_wait: 2 * MINUTE,
            tcp_close: 10,
            tcp_unacknowledged: 5 * MINUTE,
            udp: 30,
            udp_stream: 2 * MINUTE,
            icmp: 30,
            sctp_closed: 10,
            sctp_cookie_wait: 3,
            sctp_cookie_echoed: 3,
            sctp_established: 210,
            sctp_shutdown: 3,
            sctp_picked_up: 30,
            other: 10 * MINUTE,
            binding: 5 * MINUTE,
        }
    }
}

impl Timeouts {
    /// How long a connection of this status is remembered without packets.
    #[must_use]
    pub const fn of(&self, status: Status) -> u32 {
        match status.state {
            State::SynSent | State::SynSent2 => self.tcp_syn_sent,
            State::SynReceived => self.tcp_syn_received,
            State::Established if status.marks.has(Marks::REPLIED) => self.tcp_established,
            State::Established => self.tcp_unacknowledged,
            State::FinWait => self.tcp_fin_wait,
            State::CloseWait => self.tcp_close_wait,
            State::LastAck => self.tcp_last_ack,
            State::TimeWait => self.tcp_time_wait,
            State::Close => self.tcp_close,
            State::UdpUnreplied | State::UdpReplied => self.udp,
            State::UdpStream => self.udp_stream,
            State::EchoSent | State::EchoAnswered => self.icmp,
            State::SctpCookieWait => self.sctp_cookie_wait,
            State::SctpCookieEchoed => self.sctp_cookie_echoed,
            State::SctpEstablished => self.sctp_established,
            State::SctpShutdownSent | State::SctpShutdownReceived | State::SctpShutdownAckSent => {
                self.sctp_shutdown
            }
            State::SctpClosed => self.sctp_closed,
            State::SctpPickedUp => self.sctp_picked_up,
            State::OtherUnreplied | State::OtherReplied => self.other,
            State::Binding => self.binding,
            State::OneWay if status.marks.has(Marks::ASSURED) => self.tcp_established,
            State::OneWay if status.marks.has(Marks::FIN_ORIGINAL) => self.tcp_fin_wait,
            State::OneWay => self.tcp_syn_sent,
        }
    }
}

/// The status of the connection that a packet opens.
///
/// # Errors
/// Why it opens none.
pub fn open(packet: Packet, settings: &Settings) -> Result<Status, Invalid> {
    match packet {
        Packet::Tcp(flags) => tcp::open(flags, settings.pick_up),
        Packet::Sctp(chunks) => sctp::open(chunks, settings.pick_up),
        Packet::Udp => Ok(Status::of(State::UdpUnreplied)),
        Packet::Echo { request: true } => Ok(Status::of(State::EchoSent)),
        Packet::Echo { request: false } => Err(Invalid::Unsolicited),
        Packet::Other => Ok(Status::of(State::OtherUnreplied)),
    }
}

/// The status of the connection that a packet opens whose answers pass another node.
///
/// # Errors
/// Why it opens none.
pub fn open_one_way(packet: Packet, settings: &Settings) -> Result<Status, Invalid> {
    let seen_both_ways = open(packet, settings)?;
    Ok(one_way(Status::of(State::OneWay), packet).unwrap_or(seen_both_ways))
}

/// What a packet says of a connection of which one side only is seen: it opens, goes on, or its sender is done. One that only
/// opened is not assured, or a flood of openings would fill the table. `None` for protocols that have no such words.
fn one_way(status: Status, packet: Packet) -> Option<Status> {
    let opened = status.without(Marks::ASSURED).without(Marks::FIN_ORIGINAL);
    let (opens, ends) = match packet {
        Packet::Tcp(flags) => (flags & wire_tcp::SYN != 0, flags & (wire_tcp::FIN | wire_tcp::RST) != 0),
        Packet::Sctp(chunks) => (sctp::begins(chunks), sctp::ends(chunks)),
        Packet::Udp | Packet::Echo { .. } | Packet::Other => return None,
    };
    Some(if opens {
        opened
    } else if ends || status.marks.has(Marks::FIN_ORIGINAL) {
        opened.marked(Marks::FIN_ORIGINAL)
    } else {
        status.marked(Marks::ASSURED)
    })
}

/// What a packet that goes in `direction` does to a connection.
#[must_use]
pub fn advance(status: Status, direction: Direction, packet: Packet) -> Step {
    if status.state == State::OneWay {
        // An answer means that the answers pass here after all, and changes nothing.
        return Step::To(
            one_way(status, packet).filter(|_| direction == Direction::Original).unwrap_or(status),
        );
    }
    let replied = if direction == Direction::Reply { status.marked(Marks::REPLIED) } else { status };
    match packet {
        Packet::Tcp(flags) => tcp::advance(status, direction, flags),
        Packet::Sctp(chunks) => sctp::advance(status, direction, chunks),
        Packet::Udp => Step::To(match (status.state, direction) {
            (State::UdpUnreplied, Direction::Reply) => replied.to(State::UdpReplied),
            // A question and its answer are no conversation: DNS must not fill the table with assured entries.
            (State::UdpReplied, Direction::Original) => status.to(State::UdpStream).marked(Marks::ASSURED),
            _ => replied,
        }),
        Packet::Echo { .. } => Step::To(match direction {
            Direction::Original => status,
            Direction::Reply => replied.to(State::EchoAnswered),
        }),
        Packet::Other => Step::To(match direction {
            Direction::Original => status,
            Direction::Reply => replied.to(State::OtherReplied).marked(Marks::ASSURED),
        }),
    }
}

/// What packets that took the fast path in `direction` since the last look have done to a connection.
///
/// They were no packets for which [`leaves_fast_path`] is true, so only UDP's state can have changed.
#[must_use]
pub fn keep_alive(status: Status, direction: Direction) -> Status {
    let is_udp = matches!(status.state, State::UdpUnreplied | State::UdpReplied | State::UdpStream);
    match advance(status, direction, Packet::Udp) {
        Step::To(next) if is_udp => next,
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_its_word() {
        for (number, state) in (1u8..).zip(State::ALL) {
            assert_eq!(state as u8, number);
            for marks in 0..=255 {
                let status = Status { state, marks: Marks(marks) };
                assert_eq!(Status::from_bits(status.bits()), Some(status));
            }
        }
        assert_eq!(Status::from_bits(0), None);
        assert_eq!(Status::from_bits(27 << 8), None);
    }

    fn after(status: Status, direction: Direction, packet: Packet) -> Status {
        match advance(status, direction, packet) {
            Step::To(next) => next,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_and_its_answer_are_no_stream_and_a_third_datagram_makes_one() {
        let settings = Settings::default();
        let asked = open(Packet::Udp, &settings).unwrap();
        assert_eq!((asked.state, settings.timeouts.of(asked)), (State::UdpUnreplied, 30));
        assert_eq!(after(asked, Direction::Original, Packet::Udp), asked);
        let answered = after(asked, Direction::Reply, Packet::Udp);
        assert!(!answered.is_assured() && answered.marks.has(Marks::REPLIED));
        assert_eq!(settings.timeouts.of(answered), 30);
        let stream = after(answered, Direction::Original, Packet::Udp);
        assert!(stream.is_assured());
        assert_eq!(settings.timeouts.of(stream), 120);
        assert_eq!(keep_alive(answered, Direction::Original), stream);
    }

    #[test]
    fn of_a_connection_seen_from_one_side_the_opening_alone_assures_nothing() {
        use penstock_wire::tcp::{ACK, FIN, RST, SYN};
        let settings = Settings::default();
        let opened = open_one_way(Packet::Tcp(SYN), &settings).unwrap();
        assert!(!opened.is_assured() && !opened.is_cacheable() && !opened.is_half_open());
        assert_eq!(settings.timeouts.of(opened), 120);
        let going = after(opened, Direction::Original, Packet::Tcp(ACK));
        assert!(going.is_assured() && going.is_cacheable());
        assert_eq!(settings.timeouts.of(going), 432_000);
        for last in [FIN | ACK, RST] {
            let done = after(going, Direction::Original, Packet::Tcp(last));
            assert_eq!((done.is_cacheable(), settings.timeouts.of(done)), (false, 120));
            // What its sender still acknowledges does not bring it back, and a new opening does.
            assert_eq!(after(done, Direction::Original, Packet::Tcp(ACK)), done);
            assert_eq!(after(done, Direction::Original, Packet::Tcp(SYN)), opened);
        }
        assert_eq!(open_one_way(Packet::Udp, &settings).unwrap().state, State::UdpUnreplied);
        assert_eq!(open_one_way(Packet::Tcp(SYN | FIN), &settings), Err(Invalid::Nonsense));
    }

    #[test]
    fn an_echo_reply_that_nobody_asked_for_opens_nothing() {
        let settings = Settings::default();
        assert_eq!(open(Packet::Echo { request: false }, &settings), Err(Invalid::Unsolicited));
        let asked = open(Packet::Echo { request: true }, &settings).unwrap();
        let answered = after(asked, Direction::Reply, Packet::Echo { request: false });
        assert_eq!((answered.state, settings.timeouts.of(answered)), (State::EchoAnswered, 30));
        assert!(!answered.is_assured());
    }

    #[test]
    fn a_keep_alive_moves_no_state_but_udps() {
        for state in State::ALL {
            let status = Status::of(state);
            let udp = matches!(state, State::UdpUnreplied | State::UdpReplied | State::UdpStream);
            for direction in [Direction::Original, Direction::Reply] {
                assert!(udp || keep_alive(status, direction) == status, "{state:?}");
            }
        }
    }

    #[test]
    fn no_packet_makes_a_connection_half_open_that_was_not() {
        // Or its owners' counts of such would not add up.
        let tcp = (0..64).map(Packet::Tcp);
        let sctp = (0..16).map(|chunk| Packet::Sctp(Chunks::only(chunk)));
        for packet in tcp.chain(sctp) {
            for (state, marks) in State::ALL.into_iter().flat_map(|state| (0..128).map(move |it| (state, it)))
            {
                let status = Status { state, marks: Marks(marks) };
                for direction in [Direction::Original, Direction::Reply] {
                    if let Step::To(next) = advance(status, direction, packet) {
                        assert!(status.is_half_open() || !next.is_half_open(), "{status:?} {packet:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn timeouts_are_the_kernels() {
        let timeouts = Timeouts::default();
        let open = Status::of(State::Established);
        assert_eq!(timeouts.of(open), 300);
        assert_eq!(timeouts.of(open.marked(Marks::REPLIED)), 432_000);
        assert_eq!(timeouts.of(Status::of(State::SynReceived)), 60);
        assert_eq!(timeouts.of(Status::of(State::SctpEstablished)), 210);
        assert_eq!(timeouts.of(Status::of(State::OtherUnreplied)), 600);
    }
}
