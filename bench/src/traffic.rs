//! Frames of many flows, made once and replayed from memory.

use penstock_dataplane::testbed::Datagram;

/// Source ports of a block of flows.
pub const PORTS: u32 = 20_000;
/// The destination port of the first block of flows; each block has its own.
pub const FIRST_PORT: u16 = 4000;

/// One frame for each of `flows` flows, which differ from `first` in their ports.
#[must_use]
pub fn udp_flows(first: Datagram, flows: u32) -> Vec<Vec<u8>> {
    let ports = |flow| ((1024 + flow % PORTS) as u16, FIRST_PORT + (flow / PORTS) as u16);
    (0..flows)
        .map(|flow| {
            let (sport, dport) = ports(flow);
            Datagram { sport, dport, ..first }.frame()
        })
        .collect()
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
        let first = Datagram { has_checksum: true, ..Datagram::from_pod_a([10, 1, 1, 2], 0, 0) };
        let frames = udp_flows(first, 70_000);
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
