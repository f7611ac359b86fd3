//! An entry: the words that hold both directions of a connection, and how they are read and written.
//!
//! ```text
//!  near, one cache line                                                              far
//!  0        1 2             3 4          5     6         7                           0 .. 2          3 .. 5
//!  control  original tuple  reply tuple  life  decision  parties                     original tuple  reply tuple
//!
//!  control:  generation 32 | seal 31 | wide 1     odd generation: lives    life:  deadline 32 | status 16 | generation 16
//!  decision: epoch 32 | verdict 16 | generation 16
//!  parties:  owner 16 | receiver 16 | generation 8 | backend 24, of a binding: connections that hold it
//! ```
//!
//! IPv4's tuples fit into the near words: both addresses, then ports, network and protocol. Where one of an entry's two
//! does not, both are wide: the first near word is the lower half of the source, the other three halves are far.
//!
//! Tuples never change while an entry lives. Life and decision carry the generation's lower half, so that a writer whose
//! entry was reused under its hands writes nothing. The seal is a check sum of what never changes: adoption believes no
//! entry without it.

use super::life::{Seconds, State, Status};
use super::shares::{Owner, parties_of};
use super::tuple::{Direction, Tuple, fold};
use super::words::{Ordering, Record, fence};

pub(crate) const CONTROL: usize = 0;
const ORIGINAL: usize = 1;
const REPLY: usize = 3;
pub(crate) const LIFE: usize = 5;
pub(crate) const DECISION: usize = 6;
pub(crate) const PARTIES: usize = 7;
/// In an entry that is free: the number of the next free one, plus one.
pub(crate) const NEXT: usize = ORIGINAL;

/// In the control word: the entry's tuples are wide.
const WIDE: u64 = 1;
/// Bits of a backend's number, and of the number of a binding's uses.
const BACKEND_BITS: u32 = 24;
const BACKEND_MASK: u64 = (1 << BACKEND_BITS) - 1;

/// A connection by its place and the generation of that place: a flow may keep it, and one load tells whether it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnectionRef(u64);

impl ConnectionRef {
    /// No connection; never live.
    pub const NONE: ConnectionRef = ConnectionRef(0);

    pub(crate) const fn new(index: u32, generation: u32) -> ConnectionRef {
        ConnectionRef((generation as u64) << 32 | index as u64)
    }

    pub(crate) const fn index(self) -> u32 {
        self.0 as u32
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The reference as a word, e.g. for a flow's entry.
    #[inline]
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The reference of a word that [`ConnectionRef::to_bits`] gave.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> ConnectionRef {
        ConnectionRef(bits)
    }
}

/// What was decided about a connection, and under which epoch of its policies: 48 bits that are the caller's own.
///
/// A table that is adopted forgets all decisions: epochs start anew with the daemon. Epoch zero is never current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The epoch of what it was decided by.
    pub epoch: u32,
    /// What was decided, e.g. by which rule.
    pub verdict: u16,
}

impl Decision {
    pub(crate) const fn word(self, generation: u32) -> u64 {
        (self.epoch as u64) << 32 | (self.verdict as u64) << 16 | (generation & 0xffff) as u64
    }

    /// The decision in a word, if it is that generation's; else none that is current.
    fn of(word: u64, generation: u32) -> Decision {
        if word as u16 != generation as u16 {
            return Decision::default();
        }
        Decision { epoch: (word >> 32) as u32, verdict: (word >> 16) as u16 }
    }
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parties {
    /// Whoever opened it: it counts against that one's share ...
    pub owner: Owner,
    /// ... and against that of the endpoint that it was opened to; nobody if that is not of this node.
    pub receiver: Owner,
    /// The backend that a service chose; the number is the caller's own, up to [`Parties::MOST_BACKEND`].
    pub backend: u32,
}

impl Parties {
    /// The greatest number that a backend may have.
    pub const MOST_BACKEND: u32 = BACKEND_MASK as u32;

    /// With a part of the generation, so that a word that was read is not taken for the next connection's.
    pub(crate) fn word(self, generation: u32) -> u64 {
        debug_assert!(
            self.backend <= Parties::MOST_BACKEND,
            "backend {} has too great a number",
            self.backend
        );
        u64::from(self.owner.0) << 48
            | u64::from(self.receiver.0) << 32
            | u64::from(generation & 0xff) << BACKEND_BITS
            | u64::from(self.backend) & BACKEND_MASK
    }

    pub(crate) const fn of(word: u64) -> Parties {
        Parties {
            owner: Owner((word >> 48) as u16),
            receiver: Owner((word >> 32) as u16),
            backend: (word & BACKEND_MASK) as u32,
        }
    }
}

/// How many connections hold a binding.
pub(crate) fn uses_of(binding: Record) -> u64 {
    binding[PARTIES].load(Ordering::Relaxed) & BACKEND_MASK
}

/// An entry's word of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) deadline: Seconds,
    pub(crate) status: Status,
    pub(crate) generation: u16,
}

/// What stands in the word of life of an entry that is dying or dead.
pub(crate) const DEAD: u64 = 0;

impl Life {
    pub(crate) const fn word(self) -> u64 {
        (self.deadline.0 as u64) << 32 | (self.status.bits() as u64) << 16 | self.generation as u64
    }

    /// `None` for the dead, and for what no writer writes.
    #[inline]
    pub(crate) fn of(word: u64) -> Option<Life> {
        let status = Status::from_bits((word >> 16) as u16)?;
        Some(Life { deadline: Seconds((word >> 32) as u32), status, generation: word as u16 })
    }

    #[inline]
    pub(crate) fn is_over(self, now: Seconds) -> bool {
        self.deadline <= now
    }
}

/// A connection, copied out of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Which one it is.
    pub reference: ConnectionRef,
    /// The packet that opened it, as it came.
    pub original: Tuple,
    /// Its answer, as it comes: the inverse of the original unless addresses are translated.
    pub reply: Tuple,
    /// How far it is.
    pub status: Status,
    /// When it is forgotten unless a packet comes.
    pub deadline: Seconds,
    /// Whose it is.
    pub parties: Parties,
    /// What was decided about it.
    pub decision: Decision,
}

impl Connection {
    /// A packet of it in `direction`, as it comes.
    #[must_use]
    pub fn arrives_as(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.original,
            Direction::Reply => self.reply,
        }
    }

    /// A packet of it in `direction`, as it goes on: translated, where it is.
    #[must_use]
    pub fn leaves_as(&self, direction: Direction) -> Tuple {
        self.arrives_as(direction.other()).inverse()
    }

    /// Whether the source of the original direction is translated.
    #[must_use]
    pub fn translates_source(&self) -> bool {
        let sent = self.leaves_as(Direction::Original);
        (sent.src(), sent.sport()) != (self.original.src(), self.original.sport())
    }

    /// Whether the destination of the original direction is translated.
    #[must_use]
    pub fn translates_destination(&self) -> bool {
        let sent = self.leaves_as(Direction::Original);
        (sent.dst(), sent.dport()) != (self.original.dst(), self.original.dport())
    }
}

/// The check sum of what never changes in an entry.
pub(crate) fn seal(generation: u32, original: &Tuple, reply: &Tuple) -> u32 {
    // Any odd constants would do: the sum guards against damage, not against people. These are fractions of the golden
    // ratio and of the square root of two.
    let mut sum = u64::from(generation) ^ 0x9e37_79b9_7f4a_7c15;
    for word in original.words.iter().chain(&reply.words) {
        sum = fold(sum ^ word, 0x6a09_e667_f3bc_c909).rotate_left(17) ^ word;
    }
    (sum ^ sum >> 32) as u32
}

/// The control word of a dead entry.
pub(crate) const fn dead(generation: u32) -> u64 {
    (generation as u64) << 32
}

/// The control word of a live entry with these tuples.
pub(crate) fn control(generation: u32, original: &Tuple, reply: &Tuple) -> u64 {
    let wide = if is_wide(original, reply) { WIDE } else { 0 };
    dead(generation) | u64::from(seal(generation, original, reply)) & !WIDE | wide
}

fn is_wide(original: &Tuple, reply: &Tuple) -> bool {
    original.packed().is_none() || reply.packed().is_none()
}

/// Whether a control word says that its entry lives.
#[inline(always)]
pub(crate) const fn lives(control: u64) -> bool {
    control >> 32 & 1 == 1
}

#[inline(always)]
pub(crate) const fn generation_of(control: u64) -> u32 {
    (control >> 32) as u32
}

/// The near and the far word that a direction's tuple begins with.
const fn begin(direction: Direction) -> (usize, usize) {
    match direction {
        Direction::Original => (ORIGINAL, 0),
        Direction::Reply => (REPLY, 3),
    }
}

/// Reads a tuple word by word; only the control word, whose value at the time is given, says whether the words belong
/// together.
#[inline]
fn load_tuple(record: Record, control: u64, direction: Direction) -> Tuple {
    let (near, far) = begin(direction);
    let [first, rest] = [near, near + 1].map(|at| record[at].load(Ordering::Relaxed));
    if control & WIDE == 0 {
        return Tuple::unpacked(first, rest);
    }
    let [src, dst, to] = [far, far + 1, far + 2].map(|at| record.far[at].load(Ordering::Relaxed));
    Tuple { words: [src, first, dst, to, rest] }
}

/// Both tuples of an entry that is its reader's own, or about to be found out to be another's.
#[inline]
pub(crate) fn load_tuples(record: Record) -> [Tuple; 2] {
    let control = record[CONTROL].load(Ordering::Relaxed);
    [Direction::Original, Direction::Reply].map(|direction| load_tuple(record, control, direction))
}

/// Writes the tuples of an entry that is nobody else's.
#[inline]
pub(crate) fn store_tuples(record: Record, original: &Tuple, reply: &Tuple) {
    let wide = is_wide(original, reply);
    for (direction, tuple) in [(Direction::Original, original), (Direction::Reply, reply)] {
        let (near, far) = begin(direction);
        let [src, from, dst, to, rest] = tuple.words;
        let first = if wide { from } else { tuple.packed().unwrap_or_default() };
        record[near].store(first, Ordering::Relaxed);
        record[near + 1].store(rest, Ordering::Relaxed);
        if wide {
            for (at, word) in [src, dst, to].into_iter().enumerate() {
                record.far[far + at].store(word, Ordering::Relaxed);
            }
        }
    }
}

/// Whether an entry lives and has `tuple` in `direction`; then its generation and life.
#[inline]
pub(crate) fn matches(record: Record, direction: Direction, tuple: &Tuple) -> Option<(u32, Life)> {
    let before = record[CONTROL].load(Ordering::Acquire);
    if !lives(before) || load_tuple(record, before, direction) != *tuple {
        return None;
    }
    let life = Life::of(record[LIFE].load(Ordering::Acquire))?;
    // The words above are this generation's only if the control word is still the same behind them.
    fence(Ordering::Acquire);
    let generation = generation_of(before);
    let whole = record[CONTROL].load(Ordering::Relaxed) == before && life.generation == generation as u16;
    whole.then_some((generation, life))
}

/// Copies an entry of that generation; `None` if it is gone.
pub(crate) fn copy(record: Record, reference: ConnectionRef) -> Option<Connection> {
    let before = record[CONTROL].load(Ordering::Acquire);
    if !lives(before) || generation_of(before) != reference.generation() {
        return None;
    }
    let [original, reply] =
        [Direction::Original, Direction::Reply].map(|direction| load_tuple(record, before, direction));
    let (decision, parties) = (record[DECISION].load(Ordering::Relaxed), parties_of(record));
    // Behind the words above: parties that were taken away are seen with the death that came before.
    fence(Ordering::Acquire);
    let life = Life::of(record[LIFE].load(Ordering::Acquire))?;
    let whole =
        record[CONTROL].load(Ordering::Relaxed) == before && life.generation == reference.generation() as u16;
    whole.then_some(Connection {
        reference,
        original,
        reply,
        status: life.status,
        deadline: life.deadline,
        // A binding is nobody's, and counts its uses where others have their backend.
        parties: if life.status.state == State::Binding { Parties::default() } else { parties },
        decision: Decision::of(decision, reference.generation()),
    })
}
