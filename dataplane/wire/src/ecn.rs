//! Explicit congestion notification through tunnels (RFC 6040, which RFC 9601 carries over to tunnels with a shim header).

/// The bits of a type of service or traffic class that ECN has (RFC 3168).
pub const MASK: u8 = 0x03;
/// Not capable of ECN.
pub const NOT_ECT: u8 = 0b00;
/// Capable of ECN, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// Capable of ECN, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// A packet to drop: a router said "congestion" to a sender that does not understand it (RFC 6040 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("congestion was marked on the tunnel, and the packet inside is not capable of ECN")]
pub struct DropCe;

/// The inner type of service after decapsulation: DSCP as it was, ECN by the table of RFC 6040 figure 4.
///
/// | inner \ outer | not ECT | ECT(0) | ECT(1) | CE |
/// |---|---|---|---|---|
/// | not ECT | not ECT | not ECT | not ECT | drop |
/// | ECT(0) | ECT(0) | ECT(0) | ECT(1) | CE |
/// | ECT(1) | ECT(1) | ECT(1) | ECT(1) | CE |
/// | CE | CE | CE | CE | CE |
#[inline]
pub const fn decapsulate(outer_tos: u8, inner_tos: u8) -> Result<u8, DropCe> {
    match (outer_tos & MASK, inner_tos & MASK) {
        (CE, NOT_ECT) => Err(DropCe),
        (CE, _) => Ok(inner_tos | CE),
        (ECT_1, ECT_0) => Ok(inner_tos & !MASK | ECT_1),
        _ => Ok(inner_tos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_rfc_6040_holds() {
        let outer = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            (NOT_ECT, [Ok(NOT_ECT), Ok(NOT_ECT), Ok(NOT_ECT), Err(DropCe)]),
            (ECT_0, [Ok(ECT_0), Ok(ECT_0), Ok(ECT_1), Ok(CE)]),
            (ECT_1, [Ok(ECT_1), Ok(ECT_1), Ok(ECT_1), Ok(CE)]),
            (CE, [Ok(CE), Ok(CE), Ok(CE), Ok(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in outer.into_iter().zip(row) {
                let dscp = 0xb8;
                assert_eq!(decapsulate(outer, dscp | inner), expected.map(|ecn| dscp | ecn));
            }
        }
    }
}
