//! What is done with every packet of a known flow: all of it worked out once, by the slow path.

use crate::conntrack::{ConnectionRef, Direction};

/// A device of the node: an uplink, an endpoint's attachment, the host port. Its queues are ports of the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u16);

/// A tunnel template in the snapshot's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TemplateId(pub u16);

/// The two stations of a link, in the snapshot's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LinkId(pub u16);

/// What a flow's packets get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// New MAC addresses, one hop less, and out.
    Forward,
    /// One hop less, a tunnel header in front, and out.
    Encapsulate,
}

const FORWARD: u8 = 0;
const ENCAPSULATE: u8 = 1;
/// The packet may carry a checksum that its sender left for a network card to finish.
const FINISH_CHECKSUM: u8 = 1;
/// The flow is one of a connection's.
const TRACKED: u8 = 2;
/// The packet gets other addresses or ports.
const REWRITE: u8 = 4;
/// An endpoint at one end of the flow has limits.
const METERED: u8 = 8;
/// The tunnel header says what the packet's sender asked for: the receiver's node answers in its name.
const SERVED: u8 = 16;
/// The packet gets other addresses or ports at both ends, which do not fit beside the action.
const APART: u8 = 32;

/// The compiled action of a flow: 8 bytes, so that all that most packets of a flow need is in one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Action {
    out: u16,
    /// A [`TemplateId`] when encapsulating, a [`LinkId`] else.
    via: u16,
    /// The longest IP packet that may take this way.
    max_len: u16,
    verb: u8,
    flags: u8,
}

impl Action {
    /// Out of `device` between the stations of `link`.
    #[must_use]
    pub fn forward(device: DeviceId, link: LinkId, max_len: u16) -> Action {
        Action { out: device.0, via: link.0, max_len, verb: FORWARD, ..Action::default() }
    }

    /// Out of `device` behind the header of `template`.
    #[must_use]
    pub fn encapsulate(device: DeviceId, template: TemplateId, max_len: u16) -> Action {
        Action { out: device.0, via: template.0, max_len, verb: ENCAPSULATE, ..Action::default() }
    }

    /// The same, for packets whose transport checksum may be left to finish.
    #[must_use]
    pub fn finishing_checksums(self, needed: bool) -> Action {
        self.flagged(FINISH_CHECKSUM, needed)
    }

    /// The same, for packets of a connection.
    #[must_use]
    pub fn tracking(self, is: bool) -> Action {
        self.flagged(TRACKED, is)
    }

    /// The same, for packets that get other addresses or ports.
    #[must_use]
    pub fn rewriting(self, is: bool) -> Action {
        self.flagged(REWRITE, is)
    }

    /// The same, for packets whose rewrite is kept apart.
    #[must_use]
    pub(super) fn rewriting_apart(self, is: bool) -> Action {
        self.flagged(APART, is)
    }

    /// The same, for packets from or to an endpoint with limits.
    #[must_use]
    pub fn metering(self, is: bool) -> Action {
        self.flagged(METERED, is)
    }

    /// The same behind the header of `template`, which has room for what the packet's sender asked for.
    #[must_use]
    pub fn serving(self, template: TemplateId, max_len: u16) -> Action {
        Action { via: template.0, max_len, ..self.flagged(SERVED, true) }
    }

    /// Whether the tunnel header says what the packet's sender asked for.
    #[inline(always)]
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.flags & SERVED != 0
    }

    fn flagged(self, flag: u8, is: bool) -> Action {
        Action { flags: if is { self.flags | flag } else { self.flags & !flag }, ..self }
    }

    /// Whether the action is all that a packet needs: no connection, no other addresses, no limits.
    #[inline(always)]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.flags & (TRACKED | REWRITE | METERED | SERVED) == 0
    }

    /// Whether nobody but its connection need hear of a packet: no limits, and no service that answers elsewhere.
    #[inline(always)]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.flags & (METERED | SERVED) == 0
    }

    /// Whether the flow is one of a connection's.
    #[inline(always)]
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.flags & TRACKED != 0
    }

    /// Whether packets get other addresses or ports.
    #[inline(always)]
    #[must_use]
    pub fn rewrites(&self) -> bool {
        self.flags & REWRITE != 0
    }

    /// Whether the rewrite is kept apart.
    #[inline(always)]
    pub(super) fn rewrites_apart(&self) -> bool {
        self.flags & APART != 0
    }

    /// Whether packets are from or to an endpoint with limits.
    #[inline(always)]
    #[must_use]
    pub fn is_metered(&self) -> bool {
        self.flags & METERED != 0
    }

    /// What is done.
    #[inline(always)]
    #[must_use]
    pub fn verb(&self) -> Verb {
        if self.verb == FORWARD { Verb::Forward } else { Verb::Encapsulate }
    }

    /// The device that the packet leaves by.
    #[inline(always)]
    #[must_use]
    pub fn out(&self) -> DeviceId {
        DeviceId(self.out)
    }

    /// The tunnel template, when encapsulating.
    #[inline(always)]
    #[must_use]
    pub fn template(&self) -> TemplateId {
        TemplateId(self.via)
    }

    /// The link, when not encapsulating.
    #[inline(always)]
    #[must_use]
    pub fn link(&self) -> LinkId {
        LinkId(self.via)
    }

    /// Whether transport checksums may be left to finish.
    #[inline(always)]
    #[must_use]
    pub fn finishes_checksums(&self) -> bool {
        self.flags & FINISH_CHECKSUM != 0
    }

    /// The same for packets whose transport checksums were seen to.
    #[must_use]
    pub fn with_checksums_finished(self) -> Action {
        Action { flags: self.flags & !FINISH_CHECKSUM, ..self }
    }

    /// The longest IP packet in bytes that may take this way.
    #[inline(always)]
    #[must_use]
    pub fn max_len(&self) -> u16 {
        self.max_len
    }
}

/// A flow's connection and its side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The connection, or [`ConnectionRef::NONE`].
    pub connection: ConnectionRef,
    /// Which way the flow goes.
    pub direction: Direction,
}

/// In a word: the flow goes the reply's way. An entry's number has 24 bits, so the bit is free.
const IS_REPLY: u64 = 1 << 31;

impl Tracked {
    /// No connection.
    pub const NONE: Tracked = Tracked { connection: ConnectionRef::NONE, direction: Direction::Original };

    /// Both in one word, zero for none.
    #[inline]
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.connection.to_bits() | if self.direction == Direction::Reply { IS_REPLY } else { 0 }
    }

    /// What [`Tracked::to_bits`] put into a word.
    #[inline]
    #[must_use]
    pub fn from_bits(bits: u64) -> Tracked {
        let direction = if bits & IS_REPLY == 0 { Direction::Original } else { Direction::Reply };
        Tracked { connection: ConnectionRef::from_bits(bits & !IS_REPLY), direction }
    }
}

/// What a flow is remembered with; `R` is its family's rewrite.
#[derive(Clone, Copy, Debug)]
pub struct Remembered<R> {
    /// What its packets get.
    pub action: Action,
    /// Its connection.
    pub tracked: Tracked,
    /// Other addresses and ports.
    pub rewrite: Option<R>,
}

impl<R> From<Action> for Remembered<R> {
    /// A flow that no connection is kept of.
    fn from(action: Action) -> Remembered<R> {
        Remembered { action, tracked: Tracked::NONE, rewrite: None }
    }
}
