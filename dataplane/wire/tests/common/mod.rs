//! Frames for tests: sound ones from a few choices, and the strategies that make them.

#![allow(dead_code, reason = "every test file takes what it needs")]
#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;

/// The sum of RFC 1071 as its text has it: word by word, carries wrapped at once.
pub(crate) fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Who sends frames in tests.
pub(crate) const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Who gets them.
pub(crate) const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What a sound frame carries.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// Source and destination port.
    Udp(u16, u16),
    /// Source and destination port.
    Tcp(u16, u16),
    /// Identifier and sequence number.
    Echo(u16, u16),
    /// A protocol that is not looked into.
    Raw(u8),
}

/// The network layer of a sound frame.
#[derive(Clone, Debug)]
pub(crate) enum Network {
    /// Source, destination.
    V4([u8; 4], [u8; 4]),
    /// Source, destination.
    V6([u8; 16], [u8; 16]),
}

/// A sound frame, made by etherparse.
#[derive(Clone, Debug)]
pub(crate) struct Sound {
    pub(crate) vlan: Option<u16>,
    pub(crate) network: Network,
    pub(crate) hops: u8,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

impl Sound {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let step = PacketBuilder::ethernet2(SENDER, GATEWAY);
        let is_v4 = matches!(self.network, Network::V4(..));
        let step = match (&self.network, self.vlan) {
            (Network::V4(src, dst), None) => step.ipv4(*src, *dst, self.hops),
            (Network::V6(src, dst), None) => step.ipv6(*src, *dst, self.hops),
            (network, Some(id)) => {
                let step = step.single_vlan(id.try_into().unwrap());
                match network {
                    Network::V4(src, dst) => step.ipv4(*src, *dst, self.hops),
                    Network::V6(src, dst) => step.ipv6(*src, *dst, self.hops),
                }
            }
        };
        let mut frame = Vec::new();
        match self.transport {
            Transport::Udp(src, dst) => step.udp(src, dst).write(&mut frame, &self.payload),
            Transport::Tcp(src, dst) => step.tcp(src, dst, 1, 64_000).write(&mut frame, &self.payload),
            Transport::Echo(id, sequence) if is_v4 => {
                step.icmpv4_echo_request(id, sequence).write(&mut frame, &self.payload)
            }
            Transport::Echo(id, sequence) => {
                step.icmpv6_echo_request(id, sequence).write(&mut frame, &self.payload)
            }
            Transport::Raw(protocol) => step.write(&mut frame, IpNumber(protocol), &self.payload),
        }
        .unwrap();
        frame
    }
}

/// Protocols that neither parser looks into.
const OPAQUE: [u8; 4] = [47, 50, 89, 115];

pub(crate) fn any_transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        any::<(u16, u16)>().prop_map(|(src, dst)| Transport::Udp(src, dst)),
        any::<(u16, u16)>().prop_map(|(src, dst)| Transport::Tcp(src, dst)),
        any::<(u16, u16)>().prop_map(|(id, sequence)| Transport::Echo(id, sequence)),
        prop::sample::select(&OPAQUE).prop_map(Transport::Raw),
    ]
}

pub(crate) fn any_network() -> impl Strategy<Value = Network> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(src, dst)| Network::V4(src, dst)),
        any::<([u8; 16], [u8; 16])>().prop_map(|(src, dst)| Network::V6(src, dst)),
    ]
}

pub(crate) fn any_sound() -> impl Strategy<Value = Sound> {
    (
        prop::option::of(1..4095u16),
        any_network(),
        any::<u8>(),
        any_transport(),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(vlan, network, hops, transport, payload)| Sound {
            vlan,
            network,
            hops,
            transport,
            payload,
        })
}

/// Frames that are sound, or broken in a few bytes, or cut.
pub(crate) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let broken = (any_sound(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4));
    let cut = (any_sound(), any::<prop::sample::Index>());
    prop_oneof![
        any_sound().prop_map(|sound| sound.frame()),
        broken.prop_map(|(sound, changes)| {
            let mut frame = sound.frame();
            for (at, value) in changes {
                // Headers are where the interesting bytes are.
                let at = at.index(frame.len().min(80));
                frame[at] = value;
            }
            frame
        }),
        cut.prop_map(|(sound, at)| {
            let mut frame = sound.frame();
            frame.truncate(at.index(frame.len() + 1));
            frame
        }),
        prop::collection::vec(any::<u8>(), 0..120),
    ]
}
