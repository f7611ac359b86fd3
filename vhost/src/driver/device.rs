//! A TCP/IP stack on a pod: smoltcp's device over its queues.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::pod::Pod;
use super::queue::Packet;

/// Where the ports of TCP and UDP over IPv4 without options are.
const PORTS: std::ops::Range<usize> = 34..38;

/// A packet that was received.
#[derive(Debug)]
pub struct Received(Packet);

/// Leave to send one packet.
#[derive(Debug)]
pub struct Sending<'a> {
    pod: &'a mut Pod,
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0.bytes)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        // A connection keeps to one pair, as every driver has it: its packets stay in order.
        let ports = packet.get(PORTS).unwrap_or_default();
        let pair = ports.iter().map(|&byte| u16::from(byte)).sum::<u16>() % self.pod.config().pairs;
        // A full ring loses the packet, as a full link would.
        self.pod.send(pair, &packet);
        result
    }
}

impl Device for Pod {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.receive_any()?;
        Some((Received(packet), Sending { pod: self }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending { pod: self })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // Ethernet's header counts here.
        capabilities.max_transmission_unit = self.config().mtu + 14;
        capabilities
    }
}
