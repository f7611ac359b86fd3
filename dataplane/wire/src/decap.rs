//! What is behind the UDP header of a tunnel.

use crate::dsr::ServedAs;
use crate::geneve::Geneve;
use crate::vxlan::Vxlan;
use crate::{Malformed, Vni, ethernet, geneve, udp, vxlan};

/// Which tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
}

impl TunnelKind {
    /// The UDP port that the tunnel is known by.
    pub const fn port(self) -> u16 {
        match self {
            TunnelKind::Vxlan => vxlan::PORT,
            TunnelKind::Geneve => geneve::PORT,
        }
    }
}

/// Where a tunnel's frame begins and which network it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The network.
    pub vni: Vni,
    /// Offset of the inner Ethernet header; all of that header is there.
    pub inner: u16,
    /// Whether the packet was sent on for a service that its receiver answers for: see [`served_as`].
    pub is_served: bool,
}

/// Reads the tunnel header behind the UDP header at `l4` of `frame`, which ends where the outer IP packet ends.
///
/// Of Geneve's options only [`ServedAs`] is understood, so any other critical one is an error, as RFC 8926 section 3.5 wants.
#[inline]
pub fn tunnel(frame: &[u8], l4: u16, kind: TunnelKind) -> Result<Tunnel, Malformed> {
    let start = usize::from(l4) + udp::HEADER_LEN;
    let behind = frame.get(start..).ok_or(Malformed::Truncated)?;
    let (vni, header_len, is_served) = match kind {
        TunnelKind::Vxlan => (Vxlan::new_checked(behind)?.vni(), vxlan::HEADER_LEN, false),
        TunnelKind::Geneve => {
            let view = Geneve::new_checked(behind)?;
            let is_served = judge(&view)?;
            (view.vni(), view.header_len(), is_served)
        }
    };
    if behind.len() < header_len + ethernet::HEADER_LEN {
        return Err(Malformed::Truncated);
    }
    let inner = u16::try_from(start + header_len).map_err(|_| Malformed::FrameTooLong)?;
    Ok(Tunnel { vni, inner, is_served })
}

/// As whom the receiver of a packet answers, which [`tunnel`] has found to be [`Tunnel::is_served`].
#[cold]
pub fn served_as(frame: &[u8], l4: u16) -> Result<ServedAs, Malformed> {
    let behind = frame.get(usize::from(l4) + udp::HEADER_LEN..).ok_or(Malformed::Truncated)?;
    ServedAs::find(Geneve::new_checked(behind)?.options())?.ok_or(Malformed::BadOption)
}

/// Whether an endpoint without a control protocol may take the packet, and whether [`ServedAs`] is among its options.
#[inline]
fn judge(view: &Geneve<'_>) -> Result<bool, Malformed> {
    if view.is_control() {
        return Err(Malformed::OamPacket);
    }
    if view.protocol() != ethernet::BRIDGED {
        return Err(Malformed::NotEthernet);
    }
    let mut is_served = false;
    for option in view.options() {
        let option = option?;
        if ServedAs::is(option.class, option.kind) {
            is_served = true;
        } else if option.is_critical() {
            return Err(Malformed::UnknownCriticalOption);
        }
    }
    Ok(is_served)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geneve::GeneveOption;

    const L4: u16 = 34;

    fn frame(tunnel_header: &[u8], inner_len: usize) -> Vec<u8> {
        [&[0; 42][..], tunnel_header, &vec![0; inner_len]].concat()
    }

    fn geneve(kind: u8) -> Vec<u8> {
        let options = [GeneveOption { class: 1, kind, data: vec![0; 8] }];
        geneve::Repr { vni: Vni::MAX, options: &options }.emit(252).unwrap()
    }

    #[test]
    fn inner_frame_is_found() {
        let vni = Vni::new(42).unwrap();
        let found = tunnel(&frame(&vxlan::Repr { vni }.emit(), 14), L4, TunnelKind::Vxlan);
        assert_eq!(found, Ok(Tunnel { vni, inner: 50, is_served: false }));
        let found = tunnel(&frame(&geneve(1), 14), L4, TunnelKind::Geneve);
        assert_eq!(found, Ok(Tunnel { vni: Vni::MAX, inner: 62, is_served: false }));
    }

    #[test]
    fn the_one_critical_option_that_is_known_is_taken_and_read() {
        let asked = ServedAs { address: "192.0.2.80".parse().unwrap(), port: 443 };
        let header = |options: &[GeneveOption]| geneve::Repr { vni: Vni::MAX, options }.emit(252).unwrap();
        let frame = |options: &[GeneveOption]| frame(&header(options), 14);
        let one = frame(&[asked.to_option()]);
        let found = tunnel(&one, L4, TunnelKind::Geneve);
        assert_eq!(found, Ok(Tunnel { vni: Vni::MAX, inner: 62, is_served: true }));
        assert_eq!(served_as(&one, L4), Ok(asked));
        let unknown = GeneveOption { class: 1, kind: 0x81, data: vec![] };
        let found = tunnel(&frame(&[asked.to_option(), unknown]), L4, TunnelKind::Geneve);
        assert_eq!(found, Err(Malformed::UnknownCriticalOption));
        let broken = GeneveOption { data: vec![0; 4], ..asked.to_option() };
        assert_eq!(served_as(&frame(&[broken]), L4), Err(Malformed::BadOption));
        assert_eq!(served_as(&frame(&[]), L4), Err(Malformed::BadOption));
    }

    #[test]
    fn a_frame_without_room_for_inner_ethernet_is_truncated() {
        let vni = Vni::MAX;
        for len in 0..14 {
            let found = tunnel(&frame(&vxlan::Repr { vni }.emit(), len), L4, TunnelKind::Vxlan);
            assert_eq!(found, Err(Malformed::Truncated));
        }
        assert_eq!(tunnel(&[], L4, TunnelKind::Geneve), Err(Malformed::Truncated));
    }

    #[test]
    fn geneve_that_may_not_be_delivered_is_refused() {
        let refused = |header: &[u8]| tunnel(&frame(header, 14), L4, TunnelKind::Geneve).unwrap_err();
        assert_eq!(refused(&geneve(0x81)), Malformed::UnknownCriticalOption);
        let mut control = geneve(1);
        control[1] |= geneve::CONTROL;
        assert_eq!(refused(&control), Malformed::OamPacket);
        let mut ipv4 = geneve(1);
        ipv4[2..4].copy_from_slice(&ethernet::IPV4.to_be_bytes());
        assert_eq!(refused(&ipv4), Malformed::NotEthernet);
        let mut lying = geneve(1);
        lying[11] = 3;
        assert_eq!(refused(&lying), Malformed::BadOption);
    }
}
