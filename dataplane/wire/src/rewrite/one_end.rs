//! The rewrite of one end of an IPv4 flow in eight bytes, for who keeps many.

use std::net::Ipv4Addr;

use super::Rewrite4;
use crate::bytes::array;
use crate::parse::V4Flow;

/// Another address and port for one end of the packets of an IPv4 flow; the rest of a [`Rewrite4`] is worked out from the
/// flow: a few additions, where 12 bytes more of it could be another cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct OneEnd4 {
    address: [u8; 4],
    port: [u8; 2],
    /// 1: the sender's end; 0: the receiver's.
    is_source: u8,
    reserved: u8,
}

impl OneEnd4 {
    /// What `rewrite` makes of whole packets of `flow`; `None` if it changes both ends.
    #[must_use]
    pub fn of(flow: &V4Flow, rewrite: &Rewrite4) -> Option<OneEnd4> {
        let ports = rewrite.transport.ports();
        let source =
            OneEnd4 { address: rewrite.src().octets(), port: array(&ports, 0), is_source: 1, reserved: 0 };
        let receiver =
            OneEnd4 { address: rewrite.dst().octets(), port: array(&ports, 2), is_source: 0, reserved: 0 };
        [source, receiver].into_iter().find(|end| end.whole(flow) == Some(*rewrite))
    }

    /// The whole rewrite for packets of the flow that it was made of; `None` only for other flows.
    #[inline(always)]
    #[must_use]
    pub fn whole(&self, flow: &V4Flow) -> Option<Rewrite4> {
        let (address, port) = (Ipv4Addr::from(self.address), u16::from_be_bytes(self.port));
        let (addresses, ports) = if self.is_source == 1 {
            ([address, flow.dst], [port, flow.dport])
        } else {
            ([flow.src, address], [flow.sport, port])
        };
        Rewrite4::between(flow, addresses, ports).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::Fragment;
    use crate::proto;
    use crate::rewrite::Change;
    use proptest::prelude::*;

    /// Those whose checksums differ, and one without ports (GRE).
    const PROTOCOLS: &[u8] = &[proto::TCP, proto::UDP, proto::ICMP, proto::SCTP, 47];

    fn flow() -> impl Strategy<Value = V4Flow> {
        (any::<[u32; 2]>(), any::<[u16; 2]>(), prop::sample::select(PROTOCOLS)).prop_map(
            |([src, dst], [sport, dport], proto)| V4Flow {
                src: Ipv4Addr::from_bits(src),
                dst: Ipv4Addr::from_bits(dst),
                proto,
                sport,
                dport,
                tos: 0,
                ttl: 64,
                dont_fragment: false,
                fragment: Fragment::Whole,
                options: false,
            },
        )
    }

    proptest! {
        #[test]
        fn a_rewrite_of_one_end_is_kept_whole(
            flow in flow(),
            address in any::<u32>(),
            port in prop::option::of(any::<u16>()),
            is_source in any::<bool>(),
        ) {
            let address = Some(Ipv4Addr::from_bits(address).into());
            let change = if is_source {
                Change { src: address, sport: port, ..Change::default() }
            } else {
                Change { dst: address, dport: port, ..Change::default() }
            };
            let rewrite = Rewrite4::new(&flow, &change).unwrap();
            let end = OneEnd4::of(&flow, &rewrite);
            prop_assert_eq!(end.and_then(|end| end.whole(&flow)), Some(rewrite));
        }

        #[test]
        fn a_rewrite_of_both_ends_is_refused_or_kept_whole(
            flow in flow(),
            [src, dst] in any::<[u32; 2]>(),
            [sport, dport] in any::<[u16; 2]>(),
        ) {
            let change = Change {
                src: Some(Ipv4Addr::from_bits(src).into()),
                dst: Some(Ipv4Addr::from_bits(dst).into()),
                sport: Some(sport),
                dport: Some(dport),
            };
            let rewrite = Rewrite4::new(&flow, &change).unwrap();
            let changes_both = Ipv4Addr::from_bits(src) != flow.src && Ipv4Addr::from_bits(dst) != flow.dst;
            match OneEnd4::of(&flow, &rewrite) {
                Some(end) => prop_assert_eq!(end.whole(&flow), Some(rewrite)),
                None => prop_assert!(changes_both || sport != flow.sport || dport != flow.dport),
            }
            prop_assert!(!changes_both || OneEnd4::of(&flow, &rewrite).is_none());
        }
    }

    #[test]
    fn it_is_as_small_as_it_says() {
        assert_eq!(size_of::<OneEnd4>(), 8);
    }
}
