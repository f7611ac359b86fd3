//! Reading the format from bytes in memory.

use thiserror::Error;

use super::{ETHERNET, FILE_HEADER, MAGIC_MICROSECONDS, MAGIC_NANOSECONDS, MAX_FRAME, RECORD_HEADER};

/// The first four bytes of a pcapng file, the same in either byte order.
const MAGIC_PCAPNG: u32 = 0x0a0d_0d0a;

/// The records of a capture file, first to last. Ends after the first fault.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    /// Where the next record starts.
    at: usize,
    big_endian: bool,
    /// Nanoseconds that a record's fraction counts.
    unit: u32,
}

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was captured: seconds since 1970.
    pub seconds: u32,
    /// Nanoseconds after that, less than a second.
    pub nanoseconds: u32,
    /// Bytes that the frame had on the wire.
    pub original_len: u32,
    /// What was kept of it.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// Whether the capture kept only the frame's beginning.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.bytes.len() < self.original_len as usize
    }
}

/// What is wrong with a capture file, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("at byte {offset}: {fault}")]
pub struct FormatError {
    /// Bytes from the file's start to the header that is wrong.
    pub offset: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// What can be wrong with a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Another kind of file.
    #[error("not a pcap file (it starts with {magic:#010x})")]
    NotPcap {
        /// The first four bytes, as a big-endian number; absent bytes count as zero.
        magic: u32,
    },
    /// The newer format.
    #[error("a pcapng file, which is not read here; convert it with `editcap -F pcap IN OUT`")]
    Pcapng,
    /// A version of the format that is not 2.4.
    #[error("pcap version {major}.{minor}; only 2.4 is read")]
    Version {
        /// The number before the dot.
        major: u16,
        /// The number after the dot.
        minor: u16,
    },
    /// Frames that are not Ethernet, or that carry their check sequence.
    #[error("link type {link_type:#x}; only Ethernet without frame check sequence (1) is read")]
    LinkType {
        /// The field in the file's header.
        link_type: u32,
    },
    /// The file ends within a header.
    #[error("the file ends within a header ({have} of {need} bytes)")]
    HeaderCut {
        /// Bytes that are there.
        have: usize,
        /// Bytes of the header.
        need: usize,
    },
    /// The file ends within a frame.
    #[error("a frame of {said} bytes is announced but the file ends after {have} of them")]
    FrameCut {
        /// Bytes that are there.
        have: usize,
        /// Bytes that were announced.
        said: u32,
    },
    /// A frame that is longer than any.
    #[error("a frame of {said} bytes is announced; the most that the format allows is {MAX_FRAME}")]
    TooLong {
        /// Bytes that were announced.
        said: u32,
    },
    /// More was kept of a frame than there was.
    #[error("{kept} bytes are kept of a frame of {original}")]
    Lengths {
        /// Bytes in the file.
        kept: u32,
        /// Bytes on the wire.
        original: u32,
    },
    /// A fraction of a second of a second or more.
    #[error("the time's fraction of a second, {fraction}, is more than a second")]
    Time {
        /// The field in the record's header.
        fraction: u32,
    },
}

impl<'a> Reader<'a> {
    /// Reads the file's header.
    ///
    /// # Errors
    /// [`FormatError`] when it is not a classic pcap file of Ethernet frames.
    pub fn new(bytes: &'a [u8]) -> Result<Reader<'a>, FormatError> {
        let wrong = |fault| FormatError { offset: 0, fault };
        let mut magic = [0; 4];
        magic.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let (big_endian, unit) = match (u32::from_be_bytes(magic), u32::from_le_bytes(magic)) {
            (MAGIC_MICROSECONDS, _) => (true, 1000),
            (MAGIC_NANOSECONDS, _) => (true, 1),
            (_, MAGIC_MICROSECONDS) => (false, 1000),
            (_, MAGIC_NANOSECONDS) => (false, 1),
            (MAGIC_PCAPNG, _) => return Err(wrong(Fault::Pcapng)),
            (magic, _) => return Err(wrong(Fault::NotPcap { magic })),
        };
        let Some(header) = bytes.first_chunk::<FILE_HEADER>() else {
            return Err(wrong(Fault::HeaderCut { have: bytes.len(), need: FILE_HEADER }));
        };
        let reader = Reader { bytes, at: FILE_HEADER, big_endian, unit };
        let [.., v0, v1, v2, v3, _, _, _, _, _, _, _, _, _, _, _, _, l0, l1, l2, l3] = *header;
        let version = |pair| if big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) };
        let (major, minor) = (version([v0, v1]), version([v2, v3]));
        if (major, minor) != (2, 4) {
            return Err(wrong(Fault::Version { major, minor }));
        }
        let link_type = reader.word([l0, l1, l2, l3]);
        if link_type != ETHERNET {
            return Err(wrong(Fault::LinkType { link_type }));
        }
        Ok(reader)
    }

    fn word(&self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// The record at the start of `rest`, which is not empty.
    fn record(&self, rest: &'a [u8]) -> Result<Record<'a>, Fault> {
        let Some((header, rest)) = rest.split_first_chunk::<RECORD_HEADER>() else {
            return Err(Fault::HeaderCut { have: rest.len(), need: RECORD_HEADER });
        };
        let (words, _) = header.as_chunks::<4>();
        let &[seconds, fraction, kept, original] = words else {
            return Err(Fault::HeaderCut { have: 0, need: RECORD_HEADER });
        };
        let [seconds, fraction, kept, original] =
            [seconds, fraction, kept, original].map(|word| self.word(word));
        if fraction >= 1_000_000_000 / self.unit {
            return Err(Fault::Time { fraction });
        }
        if kept > MAX_FRAME {
            return Err(Fault::TooLong { said: kept });
        }
        if kept > original {
            return Err(Fault::Lengths { kept, original });
        }
        let cut = Fault::FrameCut { have: rest.len(), said: kept };
        let bytes = rest.get(..kept as usize).ok_or(cut)?;
        Ok(Record { seconds, nanoseconds: fraction * self.unit, original_len: original, bytes })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Record<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let record = self.record(rest).map_err(|fault| FormatError { offset: self.at, fault });
        self.at = match &record {
            Ok(record) => self.at + RECORD_HEADER + record.bytes.len(),
            Err(_) => self.bytes.len(),
        };
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
    use pcap_file::{DataLink, Endianness, TsResolution};
    use proptest::prelude::*;

    use super::*;

    const FRAMES: [(Duration, &[u8]); 2] =
        [(Duration::new(1_700_000_000, 123_456_000), &[7; 60]), (Duration::new(1_700_000_001, 0), &[8; 61])];

    /// A file as an independent writer makes it.
    fn file(endianness: Endianness, ts_resolution: TsResolution, frames: &[(Duration, &[u8])]) -> Vec<u8> {
        let header =
            PcapHeader { endianness, ts_resolution, datalink: DataLink::ETHERNET, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for (time, frame) in frames {
            writer.write_packet(&PcapPacket::new(*time, frame.len() as u32, frame)).unwrap();
        }
        writer.into_writer()
    }

    fn little(frames: &[(Duration, &[u8])]) -> Vec<u8> {
        file(Endianness::Little, TsResolution::MicroSecond, frames)
    }

    fn fault(bytes: &[u8]) -> FormatError {
        match Reader::new(bytes) {
            Ok(reader) => reader.filter_map(Result::err).next().expect("a fault"),
            Err(error) => error,
        }
    }

    #[test]
    fn both_precisions_and_byte_orders_are_read() {
        for endianness in [Endianness::Little, Endianness::Big] {
            for resolution in [TsResolution::MicroSecond, TsResolution::NanoSecond] {
                let bytes = file(endianness, resolution, &FRAMES);
                let records: Vec<_> = Reader::new(&bytes).unwrap().map(Result::unwrap).collect();
                assert_eq!(records.len(), 2);
                assert_eq!((records[0].seconds, records[0].nanoseconds), (1_700_000_000, 123_456_000));
                assert_eq!((records[0].bytes, records[0].original_len), (&[7; 60][..], 60));
                assert_eq!(records[1].bytes, [8; 61]);
            }
        }
    }

    #[test]
    fn every_way_to_lie_is_named_with_its_place() {
        let good = little(&FRAMES);
        let patched = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            fault(&bytes)
        };
        let second = FILE_HEADER + RECORD_HEADER + 60;
        let at = |offset, fault| FormatError { offset, fault };
        assert_eq!(patched(4, &[3]), at(0, Fault::Version { major: 3, minor: 4 }));
        assert_eq!(patched(20, &[113]), at(0, Fault::LinkType { link_type: 113 }));
        assert_eq!(patched(0, b"PK"), at(0, Fault::NotPcap { magic: 0x504b_b2a1 }));
        assert_eq!(patched(0, &[0x0a, 0x0d, 0x0d, 0x0a]), at(0, Fault::Pcapng));
        assert_eq!(
            patched(second + 4, &1_000_000u32.to_le_bytes()),
            at(second, Fault::Time { fraction: 1_000_000 })
        );
        assert_eq!(patched(second + 8, &[62]), at(second, Fault::Lengths { kept: 62, original: 61 }));
        assert_eq!(patched(second + 8, &[0xff; 8]), at(second, Fault::TooLong { said: u32::MAX }));
        assert_eq!(
            patched(second + 8, &[62, 0, 0, 0, 62]),
            at(second, Fault::FrameCut { have: 61, said: 62 })
        );
        assert_eq!(
            at(40, Fault::FrameCut { have: 3, said: 60 }).to_string(),
            "at byte 40: a frame of 60 bytes is announced but the file ends after 3 of them"
        );
    }

    #[test]
    fn a_file_cut_anywhere_gives_what_is_whole_and_then_says_so() {
        let bytes = little(&FRAMES);
        let second = FILE_HEADER + RECORD_HEADER + 60;
        for end in 0..bytes.len() {
            let cut = &bytes[..end];
            let Ok(reader) = Reader::new(cut) else {
                assert!(end < FILE_HEADER);
                continue;
            };
            let results: Vec<_> = reader.collect();
            let whole = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(whole, usize::from(end >= second), "{end}");
            let between_records = end == FILE_HEADER || end == second;
            assert_eq!(results.last().is_some_and(Result::is_err), !between_records, "{end}");
        }
    }

    #[test]
    fn a_frame_of_which_a_part_was_kept_says_so() {
        let mut bytes = little(&FRAMES[..1]);
        bytes[FILE_HEADER + 12] = 61;
        assert!(Reader::new(&bytes).unwrap().next().unwrap().unwrap().is_cut());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic_and_as_an_independent_reader_does(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let frames: Vec<_> = frames.iter().map(|frame| (Duration::from_micros(77), &frame[..])).collect();
            let mut bytes = little(&frames);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let Ok(reader) = Reader::new(&bytes) else { return Ok(()) };
            let ours: Vec<_> = reader.map_while(Result::ok).collect();
            let mut theirs = PcapReader::new(&bytes[..]).unwrap();
            for record in &ours {
                let packet = theirs.next_packet().unwrap();
                // It refuses frames above the header's snapshot length, which we let pass as libpcap does.
                let Ok(packet) = packet else { break };
                prop_assert_eq!(&packet.data[..], record.bytes);
                prop_assert_eq!(packet.orig_len, record.original_len);
                prop_assert_eq!(packet.timestamp, Duration::new(record.seconds.into(), record.nanoseconds));
            }
        }

        #[test]
        fn noise_is_read_without_a_panic(
            magic in prop_oneof![Just(MAGIC_MICROSECONDS), Just(MAGIC_NANOSECONDS), any::<u32>()],
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = Vec::from(magic.to_le_bytes());
            bytes.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
            bytes.extend(noise);
            for length in [bytes.len(), 24, 20, 3, 0] {
                let bytes = &bytes[..length.min(bytes.len())];
                if let Ok(reader) = Reader::new(bytes) {
                    let records = reader.filter(Result::is_ok).count();
                    prop_assert!(records * RECORD_HEADER <= bytes.len());
                }
            }
        }
    }
}
