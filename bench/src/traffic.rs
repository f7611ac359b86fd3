//! The traffic of every trial: frames made once, in an order that is always the same, replayed from memory or from a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use penstock_dataplane::testbed::Datagram;
use penstock_io::pcap;
use penstock_wire::{MacAddr, checksum, ethernet, ipv4, ipv6, proto, tcp};
use thiserror::Error;

use crate::profile::{Popularity, Segment, Size};

/// Source ports of a block of flows.
pub const PORTS: u32 = 20_000;
/// The destination port of the first block of flows; each block has its own.
pub const FIRST_PORT: u16 = 4000;
/// The most memory that the frames of a trial may take.
const MOST_BYTES: u64 = 3 << 30;
/// The order of flows that are not equally popular is drawn for so many packets at least.
const DRAWN: u64 = 1 << 18;

/// Numbers without pattern, always the same (xorshift64, Marsaglia 2003).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall as `seed` says.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        // Zero would stay zero; near seeds are spread by Fibonacci hashing.
        Dice(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 16) % end
    }

    /// A number from 0 to below 1.
    pub fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Why there is no such traffic.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TrafficError {
    /// Its frames do not fit in memory.
    #[error(
        "{packets} frames of {bytes} bytes would take {} MiB, more than the {} that a trial may: ask for fewer --flows or a \
         smaller --size",
        (packets * bytes) >> 20,
        MOST_BYTES >> 20
    )]
    TooMuch {
        /// Frames in the order.
        packets: u64,
        /// The longest.
        bytes: u64,
    },
    /// A frame too short for its headers.
    #[error("a frame of {size} bytes has no room for its headers: ask for --size {least} at least")]
    TooShort {
        /// What was asked, check sequence included.
        size: u16,
        /// What it takes.
        least: u16,
    },
}

/// The ends of all flows of a trial, which differ in their ports only.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Destination station.
    pub dst_mac: MacAddr,
    /// Source station.
    pub src_mac: MacAddr,
    /// Where the packets come from.
    pub src: IpAddr,
    /// Where they go; of the same family.
    pub dst: IpAddr,
}

/// Flows, how large their frames are and which of them come how often.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// How many flows.
    pub flows: u32,
    /// Bytes of each frame, check sequence included.
    pub size: Size,
    /// Which flows come how often.
    pub popularity: Popularity,
    /// What the packets carry.
    pub segment: Segment,
    /// Whether UDP has a checksum; TCP always has, and so has UDP over IPv6.
    pub has_checksum: bool,
    /// What the order is drawn by.
    pub seed: u64,
}

/// Frames and the order in which they come, which is gone through again and again.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The frames, without check sequence.
    pub frames: Vec<Vec<u8>>,
    /// Numbers of frames.
    pub order: Vec<u32>,
}

impl Traffic {
    /// Writes the frames to a capture file, in their order: what others replay.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut writer = pcap::Writer::new(BufWriter::new(File::create(path)?))?;
        for &number in &self.order {
            let frame = &self.frames[number as usize];
            writer.write(Duration::ZERO, frame, frame.len() as u32)?;
        }
        writer.get_mut().flush()
    }
}

impl Stream {
    /// Makes the frames.
    ///
    /// # Errors
    /// When they are too short for their headers, or too many for memory.
    pub fn traffic(&self, ends: &Ends) -> Result<Traffic, TrafficError> {
        let sizes = self.size.mix();
        let least = 4 + 14 + if ends.src.is_ipv4() { 20 } else { 40 } + self.segment.header();
        if let Some(&size) = sizes.iter().find(|&&size| size < least) {
            return Err(TrafficError::TooShort { size, least });
        }
        let mut dice = Dice::new(self.seed);
        let longest = sizes.iter().copied().max().unwrap_or(64);
        let packets = match self.popularity {
            Popularity::Uniform => u64::from(self.flows) * if sizes.len() > 1 { 2 } else { 1 },
            Popularity::Zipf => DRAWN.max(u64::from(self.flows)),
        };
        let bytes = u64::from(longest).next_multiple_of(64);
        if packets.saturating_mul(bytes) > MOST_BYTES {
            return Err(TrafficError::TooMuch { packets, bytes });
        }
        let kinds: Vec<u16> = distinct(&sizes);
        let mut frames = Vec::with_capacity(self.flows as usize * kinds.len());
        for &size in &kinds {
            frames.extend((0..self.flows).map(|flow| self.frame(ends, flow, size)));
        }
        let flows = match self.popularity {
            Popularity::Uniform if kinds.len() == 1 => shuffled_by(self.flows, dice.roll()),
            Popularity::Uniform => {
                [shuffled_by(self.flows, dice.roll()), shuffled_by(self.flows, dice.roll())].concat()
            }
            Popularity::Zipf => zipf(self.flows, packets as usize, &mut dice),
        };
        let kind = |dice: &mut Dice| {
            let size = sizes[dice.below(sizes.len() as u64) as usize];
            kinds.iter().position(|&kind| kind == size).unwrap_or(0) as u32
        };
        let order = flows.into_iter().map(|flow| kind(&mut dice) * self.flows + flow).collect();
        Ok(Traffic { frames, order })
    }

    /// A flow's frame of a size, check sequence counted and not made.
    fn frame(&self, ends: &Ends, flow: u32, size: u16) -> Vec<u8> {
        let len = usize::from(size) - 4;
        let (sport, dport) = ports(flow);
        let ip_header = if ends.src.is_ipv4() { 20 } else { 40 };
        let mut payload = vec![b'x'; len - 14 - ip_header];
        payload[..2].copy_from_slice(&sport.to_be_bytes());
        payload[2..4].copy_from_slice(&dport.to_be_bytes());
        let checksum_at = match self.segment {
            Segment::Udp => {
                let datagram = payload.len() as u16;
                payload[4..6].copy_from_slice(&datagram.to_be_bytes());
                6
            }
            Segment::TcpSyn => {
                payload[4..12].fill(0);
                // Five words of header, a large window.
                payload[12..16].copy_from_slice(&[0x50, tcp::SYN, 0xff, 0xff]);
                payload[18..20].fill(0);
                16
            }
        };
        payload[checksum_at..checksum_at + 2].fill(0);
        let length = payload.len();
        let protocol = self.segment.protocol();
        let (ethertype, header, pseudo) = match (ends.src, ends.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => (
                ethernet::IPV4,
                header4(src, dst, protocol, length),
                checksum::pseudo_v4(src, dst, protocol, length as u16),
            ),
            (src, dst) => {
                let (src, dst) = (widened(src), widened(dst));
                (
                    ethernet::IPV6,
                    header6(src, dst, protocol, length),
                    checksum::pseudo_v6(src, dst, protocol, length as u32),
                )
            }
        };
        if self.has_checksum || self.segment == Segment::TcpSyn || ethertype == ethernet::IPV6 {
            let sum = pseudo.add_bytes(&payload).finish();
            // Zero would say that there is none (RFC 768).
            let sum = if sum == 0 { u16::MAX } else { sum };
            payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        [&ends.dst_mac.0[..], &ends.src_mac.0, &ethertype.to_be_bytes(), &header, &payload].concat()
    }
}

fn header4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length: usize) -> Vec<u8> {
    let payload_len = length as u16;
    ipv4::Repr { src, dst, protocol, tos: 0, ttl: 64, dont_fragment: true, payload_len }.emit().to_vec()
}

fn header6(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, length: usize) -> Vec<u8> {
    let payload_len = length as u16;
    ipv6::Repr { src, dst, next_header, traffic_class: 0, flow_label: 0, hop_limit: 64, payload_len }
        .emit()
        .to_vec()
}

fn widened(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The ports of a flow.
fn ports(flow: u32) -> (u16, u16) {
    ((1024 + flow % PORTS) as u16, FIRST_PORT + (flow / PORTS) as u16)
}

/// Each number once, in ascending order.
fn distinct(numbers: &[u16]) -> Vec<u16> {
    numbers.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// `count` numbers below `flows`, the n-th most popular of which comes 1/n times as often as the first (Zipf's law with
/// exponent 1); popularity and number have nothing to do with each other.
fn zipf(flows: u32, count: usize, dice: &mut Dice) -> Vec<u32> {
    let numbers = shuffled_by(flows, dice.roll());
    let mut sums = Vec::with_capacity(flows as usize);
    let mut sum = 0.0;
    for rank in 1..=flows {
        sum += 1.0 / f64::from(rank);
        sums.push(sum);
    }
    let one = |_| {
        let at = dice.share() * sum;
        numbers[sums.partition_point(|&end| end <= at).min(numbers.len() - 1)]
    };
    (0..count).map(one).collect()
}

/// One frame for each of `flows` flows, which differ from `first` in their ports.
#[must_use]
pub fn udp_flows(first: Datagram, flows: u32) -> Vec<Vec<u8>> {
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
    shuffled_by(count, 0x2545_f491_4f6c_dd1d)
}

/// The same in an order that `seed` decides.
fn shuffled_by(count: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut dice = Dice(seed | 1);
    for last in (1..order.len()).rev() {
        order.swap(last, (dice.roll() % (last as u64 + 1)) as usize);
    }
    order
}

impl Segment {
    const fn header(self) -> u16 {
        match self {
            Segment::Udp => 8,
            Segment::TcpSyn => 20,
        }
    }

    const fn protocol(self) -> u8 {
        match self {
            Segment::Udp => proto::UDP,
            Segment::TcpSyn => proto::TCP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const ENDS: Ends = Ends {
        dst_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        src_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        src: IpAddr::V4(Ipv4Addr::new(10, 1, 1, 1)),
        dst: IpAddr::V4(Ipv4Addr::new(10, 1, 1, 2)),
    };

    fn stream(flows: u32, size: Size) -> Stream {
        Stream {
            flows,
            size,
            popularity: Popularity::Uniform,
            segment: Segment::Udp,
            has_checksum: true,
            seed: 7,
        }
    }

    #[test]
    fn every_flow_has_its_own_ports_and_a_sound_frame() {
        let first = Datagram { has_checksum: true, ..Datagram::from_pod_a([10, 1, 1, 2], 0, 0) };
        let frames = udp_flows(first, 70_000);
        let ports: HashSet<&[u8]> = frames.iter().map(|frame| &frame[34..38]).collect();
        assert_eq!(ports.len(), 70_000);
        assert!(
            frames
                .iter()
                .step_by(997)
                .all(|frame| penstock_wire::parse::parse(frame).is_ok() && frame.len() == 60)
        );
    }

    #[test]
    fn frames_of_both_families_and_protocols_are_sound() {
        let v6 = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        for ends in [ENDS, Ends { src: v6(1), dst: v6(2), ..ENDS }] {
            for segment in [Segment::Udp, Segment::TcpSyn] {
                let stream = Stream { segment, ..stream(3, Size::Bytes(128)) };
                let traffic = stream.traffic(&ends).expect("sound traffic");
                for frame in &traffic.frames {
                    let parsed = penstock_wire::parse::parse(frame).expect("a sound frame");
                    let datagram = &frame[parsed.l4.into()..parsed.end.into()];
                    let length = datagram.len();
                    let protocol = segment.protocol();
                    let pseudo = match (ends.src, ends.dst) {
                        (IpAddr::V4(src), IpAddr::V4(dst)) => {
                            checksum::pseudo_v4(src, dst, protocol, length as u16)
                        }
                        (src, dst) => {
                            checksum::pseudo_v6(widened(src), widened(dst), protocol, length as u32)
                        }
                    };
                    assert!(
                        frame.len() == 124 && pseudo.add_bytes(datagram).is_valid(),
                        "{segment:?} {ends:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn uniform_traffic_has_every_flow_equally_often() {
        let traffic = stream(1000, Size::Bytes(64)).traffic(&ENDS).expect("sound traffic");
        let mut order = traffic.order;
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }

    #[test]
    fn the_internet_mix_is_seven_to_four_to_one() {
        let traffic = stream(12_000, Size::Imix).traffic(&ENDS).expect("sound traffic");
        let share = |len: usize| {
            let of_length = traffic.order.iter().filter(|&&at| traffic.frames[at as usize].len() == len);
            of_length.count() as f64 * 12.0 / traffic.order.len() as f64
        };
        for (len, expected) in [(60, 7.0), (590, 4.0), (1514, 1.0)] {
            assert!((share(len) - expected).abs() < 0.2, "{len}: {}", share(len));
        }
    }

    #[test]
    fn a_popular_flow_comes_twice_as_often_as_the_next() {
        let stream = Stream { popularity: Popularity::Zipf, ..stream(100, Size::Bytes(64)) };
        let traffic = stream.traffic(&ENDS).expect("sound traffic");
        let mut counts = vec![0u32; 100];
        traffic.order.iter().for_each(|&at| counts[at as usize] += 1);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert!(counts[99] > 0);
    }

    #[test]
    fn the_same_seed_makes_the_same_traffic_and_another_one_another() {
        let of =
            |seed| Stream { seed, ..stream(500, Size::Imix) }.traffic(&ENDS).expect("sound traffic").order;
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let short = Stream { segment: Segment::TcpSyn, ..stream(1, Size::Bytes(57)) }.traffic(&ENDS);
        assert_eq!(short.err(), Some(TrafficError::TooShort { size: 57, least: 58 }));
        let much = stream(10_000_000, Size::Bytes(1500)).traffic(&ENDS);
        assert_eq!(much.err(), Some(TrafficError::TooMuch { packets: 10_000_000, bytes: 1536 }));
    }

    #[test]
    fn a_shuffled_order_has_every_number_once() {
        let mut order = shuffled(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
