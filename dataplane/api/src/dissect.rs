//! What filters and descriptions want to know of a frame.

use std::net::IpAddr;

use penstock_wire::decap::TunnelKind;
use penstock_wire::geneve::{self, Geneve};
use penstock_wire::parse::{Fragment, Net, Parsed};
use penstock_wire::vxlan::{self, Vxlan};
use penstock_wire::{Malformed, Vni, proto, udp};

/// What is known of a frame, found once however many terms ask.
pub(crate) struct Facts<'a> {
    pub(crate) frame: &'a [u8],
    pub(crate) parsed: Result<Parsed, Malformed>,
}

impl<'a> Facts<'a> {
    pub(crate) fn of(frame: &'a [u8]) -> Self {
        Self { frame, parsed: penstock_wire::parse::parse(frame) }
    }

    /// The network and the frame inside, when this is a tunnel's packet.
    ///
    /// Geneve options are not judged: who captures wants to see also what the dataplane refuses.
    pub(crate) fn tunnel(&self) -> Option<Inside<'a>> {
        let parsed = self.parsed.ok()?;
        let packet = Packet::of(&parsed).filter(|packet| packet.protocol == proto::UDP)?;
        let start = usize::from(parsed.l4) + udp::HEADER_LEN;
        let payload = self.frame.get(start..usize::from(parsed.end))?;
        let (_, port) = packet.ports?;
        match port {
            vxlan::PORT => {
                let header = Vxlan::new_checked(payload).ok()?;
                Some(Inside { kind: TunnelKind::Vxlan, vni: header.vni(), frame: header.payload() })
            }
            geneve::PORT => {
                let header = Geneve::new_checked(payload).ok()?;
                Some(Inside { kind: TunnelKind::Geneve, vni: header.vni(), frame: header.payload() })
            }
            _ => None,
        }
    }
}

/// What a tunnel's packet carries.
pub(crate) struct Inside<'a> {
    pub(crate) kind: TunnelKind,
    pub(crate) vni: Vni,
    /// From the inner Ethernet header on; nobody has looked at it yet.
    pub(crate) frame: &'a [u8],
}

/// Who speaks to whom in an IP packet of either version.
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// The ports of TCP, UDP or SCTP; `None` for other protocols and later fragments.
    pub(crate) ports: Option<(u16, u16)>,
}

impl Packet {
    pub(crate) fn of(parsed: &Parsed) -> Option<Self> {
        let (source, destination, protocol, ports, fragment) = match parsed.net {
            Net::V4(f) => (f.src.into(), f.dst.into(), f.proto, (f.sport, f.dport), f.fragment),
            Net::V6(f) => (f.src.into(), f.dst.into(), f.proto, (f.sport, f.dport), f.fragment),
            Net::Arp | Net::Other(_) => return None,
        };
        let has_ports =
            matches!(protocol, proto::TCP | proto::UDP | proto::SCTP) && fragment != Fragment::Later;
        Some(Self { source, destination, protocol, ports: has_ports.then_some(ports) })
    }
}
