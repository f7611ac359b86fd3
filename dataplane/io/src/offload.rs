//! Work on a frame that its sender left to a device, and the ports that leave such work or take it over.
//!
//! The facts are those of a virtio network header (Virtual I/O Device 1.2, section 5.1.6), without its encoding.

/// What is still to be done to a packet before it can leave on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to finish.
    pub checksum: Option<Partial>,
    /// The packets that it is to become; each has the checksum above, too.
    pub segments: Option<Segments>,
}

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Offload = Offload { checksum: None, segments: None };
}

/// A checksum that covers the pseudo header only, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Bytes from the packet's first byte to the first that the checksum covers; it covers all from there on.
    pub start: u16,
    /// Bytes from there to the checksum.
    pub offset: u16,
}

/// How a packet is cut into smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// By which protocol's rules.
    pub kind: SegmentKind,
    /// Bytes of each segment's payload; the last may have fewer.
    pub size: u16,
    /// Bytes of the headers that each segment gets, Ethernet's included.
    pub header_len: u16,
}

/// The protocol by whose rules a packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either: datagrams of one flow.
    Udp,
}

/// What a port takes beyond whole packets of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities(u8);

impl Abilities {
    /// Packets that are finished, in one chunk.
    pub const NONE: Abilities = Abilities(0);
    /// Packets of several chunks.
    pub const CHAINS: Abilities = Abilities(1);
    /// Checksums to be finished.
    pub const CHECKSUM: Abilities = Abilities(2);
    /// TCP over IPv4 to be cut, in several chunks.
    pub const TCP4: Abilities = Abilities(4);
    /// TCP over IPv6 to be cut, in several chunks.
    pub const TCP6: Abilities = Abilities(8);
    /// UDP to be cut, in several chunks.
    pub const UDP: Abilities = Abilities(16);
    /// All of it.
    pub const ALL: Abilities = Abilities(31);

    /// These and those.
    #[must_use]
    pub const fn and(self, others: Abilities) -> Abilities {
        Abilities(self.0 | others.0)
    }

    /// These if `condition` holds, else none.
    #[must_use]
    pub const fn when(self, condition: bool) -> Abilities {
        if condition { self } else { Abilities::NONE }
    }

    /// Whether all of `others` are there.
    #[must_use]
    pub const fn has(self, others: Abilities) -> bool {
        self.0 & others.0 == others.0
    }

    /// What it takes to send a frame with this left to do, in one chunk or in several.
    #[must_use]
    pub const fn needed_for(left: Offload, is_chain: bool) -> Abilities {
        let cut = match left.segments {
            None => Abilities::NONE,
            Some(Segments { kind: SegmentKind::Tcp4, .. }) => Abilities::TCP4,
            Some(Segments { kind: SegmentKind::Tcp6, .. }) => Abilities::TCP6,
            Some(Segments { kind: SegmentKind::Udp, .. }) => Abilities::UDP,
        };
        let chain = Abilities::CHAINS.when(is_chain && left.segments.is_none());
        cut.and(chain).and(Abilities::CHECKSUM.when(left.checksum.is_some()))
    }

    /// As a byte, to be kept in a word that others read.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// From a byte of [`Abilities::to_bits`]; other bits mean nothing.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Abilities {
        Abilities(bits & Abilities::ALL.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_frame_needs_follows_from_what_is_left_to_do() {
        let checksum = Some(Partial { start: 34, offset: 16 });
        let segments = Some(Segments { kind: SegmentKind::Tcp6, size: 1400, header_len: 74 });
        assert_eq!(Abilities::needed_for(Offload::NONE, false), Abilities::NONE);
        assert_eq!(Abilities::needed_for(Offload::NONE, true), Abilities::CHAINS);
        let needed = Abilities::needed_for(Offload { checksum, segments }, true);
        assert_eq!(needed, Abilities::TCP6.and(Abilities::CHECKSUM));
        assert!(Abilities::ALL.has(needed) && !Abilities::CHAINS.and(Abilities::TCP4).has(needed));
    }
}
