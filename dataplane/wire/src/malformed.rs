//! What can be wrong with the bytes of a packet.

use std::fmt;

/// Makes the enum, its list, its names and its sentences from one table, so that they cannot drift.
macro_rules! malformed {
    ($($(#[$meta:meta])* $variant:ident, $name:literal, $sentence:literal;)*) => {
        /// The rule of the wire format that a packet breaks.
        ///
        /// `Display` gives the operator's sentence, [`Malformed::name`] a word for counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Malformed {
            $(#[doc = $sentence] $(#[$meta])* $variant,)*
        }

        impl Malformed {
            /// Every rule, in the order of their numbers: `ALL[i] as usize == i`.
            pub const ALL: &[Malformed] = &[$(Malformed::$variant),*];

            /// A short name in kebab case, fit for a counter.
            pub const fn name(self) -> &'static str {
                match self { $(Malformed::$variant => $name,)* }
            }

            /// The sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Malformed::$variant => $sentence,)* }
            }
        }
    };
}

malformed! {
    FrameTooLong, "frame-too-long", "the frame is longer than 65535 bytes";
    Truncated, "truncated", "the packet ends inside a header";
    BadVersion, "bad-version", "the version field is not the one of this protocol";
    BadHeaderLength, "bad-header-length", "the header-length field is below the minimum or reaches past the packet";
    BadTotalLength, "bad-total-length", "the length field of the IP header is less than the header or more than the frame holds";
    BadSegmentLength, "bad-segment-length", "the length field of the transport header disagrees with the IP packet";
    BadChecksum, "bad-checksum", "the checksum is wrong";
    BadOption, "bad-option", "an option's length is zero, too short or reaches past the options";
    BadExtension, "bad-extension", "an IPv6 extension header stands where it may not";
    TooManyExtensions, "too-many-extensions", "the chain of IPv6 extension headers is longer than eight";
    TinyFragment, "tiny-fragment", "a fragment splits the transport header";
    BadFragment, "bad-fragment", "a fragment reaches past 65535 bytes, or is not the last and not a multiple of eight bytes";
    BadArp, "bad-arp", "an ARP message is not about IPv4 over Ethernet";
    BadNeighbour, "bad-neighbour", "a neighbour-discovery message breaks a rule of RFC 4861 section 7.1";
    BadTunnelFlags, "bad-tunnel-flags", "a VXLAN header carries no valid network identifier";
    UnknownCriticalOption, "unknown-critical-option", "a Geneve header carries a critical option that is not understood";
    OamPacket, "oam-packet", "a Geneve control packet came to an endpoint that speaks no control protocol";
    NotEthernet, "not-ethernet", "a tunnel carries something else than Ethernet frames";
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rules_are_numbered_in_order_and_named_apart() {
        let names: HashSet<_> = Malformed::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), Malformed::ALL.len());
        for (number, rule) in Malformed::ALL.iter().enumerate() {
            assert_eq!(*rule as usize, number);
        }
    }
}
