//! Frames of many flows, made once and replayed from memory.

use penstock_wire::{MacAddr, checksum, ethernet, ipv4, proto, udp};

/// Who sends what to whom, flow by flow: addresses stay, ports vary.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// Destination station.
    pub dst_mac: MacAddr,
    /// Source station.
    pub src_mac: MacAddr,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Bytes of a frame, without its check sequence; at least 60.
    pub frame_len: usize,
}

/// Source ports of a block of flows.
const PORTS: u32 = 60_000;

/// One UDP frame for each of `flows` flows.
#[must_use]
pub fn udp_flows(conversation: Conversation, flows: u32) -> Vec<Vec<u8>> {
    (0..flows)
        .map(|flow| udp_frame(conversation, (1024 + flow % PORTS) as u16, (4000 + flow / PORTS) as u16))
        .collect()
}

fn udp_frame(conversation: Conversation, sport: u16, dport: u16) -> Vec<u8> {
    let Conversation { dst_mac, src_mac, src, dst, frame_len } = conversation;
    let frame_len = frame_len.max(60);
    let total = (frame_len - ethernet::HEADER_LEN) as u16;
    let datagram = total - ipv4::HEADER_LEN as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto::UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[12..16].copy_from_slice(&src);
    header[16..20].copy_from_slice(&dst);
    let sum = checksum::sum(&header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&dst_mac.0[..], &src_mac.0, &ethernet::IPV4.to_be_bytes(), &header].concat();
    for word in [sport, dport, datagram, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    debug_assert_eq!(frame.len(), ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN);
    frame.resize(frame_len, b'x');
    frame
}

/// The numbers below `count` in an order without pattern, always the same: no cache and no prefetcher guesses the next.
#[must_use]
pub fn shuffled(count: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for last in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_its_own_ports_and_a_sound_frame() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let conversation = Conversation {
            dst_mac: mac,
            src_mac: mac,
            src: [10, 1, 1, 1],
            dst: [10, 1, 1, 2],
            frame_len: 60,
        };
        let frames = udp_flows(conversation, 70_000);
        let ports: std::collections::HashSet<&[u8]> = frames.iter().map(|frame| &frame[34..38]).collect();
        assert_eq!(ports.len(), 70_000);
        assert!(
            frames
                .iter()
                .step_by(997)
                .all(|frame| penstock_wire::parse::parse(frame).is_ok() && frame.len() == 60)
        );
    }

    #[test]
    fn a_shuffled_order_has_every_number_once() {
        let mut order = shuffled(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
