//! Capture files in the classic format with nanosecond time stamps, which Wireshark and tcpdump read.
//!
//! The format: draft-ietf-opsawg-pcap. Numbers are written in little endian; the magic number tells a reader so.

use std::io::{self, Write};

/// The magic number of a file with time stamps in nanoseconds.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
/// The version of the format, major and minor.
const VERSION: [u16; 2] = [2, 4];
/// `LINKTYPE_ETHERNET`: frames begin with their Ethernet header.
const LINKTYPE_ETHERNET: u32 = 1;
/// What a file says of a capture without a snap length, in bytes: tcpdump's default, which no reader refuses.
const WHOLE_FRAMES: u32 = 262_144;
const NANOSECONDS: u64 = 1_000_000_000;

/// Writes frames to a file or a pipe, each at once.
#[derive(Debug)]
pub(crate) struct PcapWriter<W> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file's header and flushes it: Wireshark waits for it before it shows anything.
    pub(crate) fn new(mut out: W, snaplen: Option<u32>) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC_NANOSECONDS.to_le_bytes());
        header.extend(VERSION.map(u16::to_le_bytes).concat());
        // The time zone's offset and the accuracy of time stamps: 0 in every file there is.
        header.extend([0; 8]);
        header.extend(snaplen.unwrap_or(WHOLE_FRAMES).to_le_bytes());
        header.extend(LINKTYPE_ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        out.flush()?;
        Ok(Self { out })
    }

    /// Writes one frame, of which `data` was kept and `wire_len` bytes were on the wire, and flushes it.
    pub(crate) fn frame(&mut self, timestamp_ns: u64, data: &[u8], wire_len: u32) -> io::Result<()> {
        let kept = u32::try_from(data.len()).map_err(io::Error::other)?;
        // The format's seconds end in 2106; a clock beyond that is shown at the end.
        let seconds = u32::try_from(timestamp_ns / NANOSECONDS).unwrap_or(u32::MAX);
        let nanoseconds = (timestamp_ns % NANOSECONDS) as u32;
        let header = [seconds, nanoseconds, kept, wire_len.max(kept)].map(u32::to_le_bytes);
        self.out.write_all(&header.concat())?;
        self.out.write_all(data)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut bytes = Vec::new();
        let mut writer = PcapWriter::new(&mut bytes, Some(96)).unwrap();
        writer.frame(1_700_000_000_123_456_789, &[1, 2, 3], 60).unwrap();
        #[rustfmt::skip]
        let expected = [
            0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 96, 0, 0, 0, 1, 0, 0, 0,
            0x00, 0xf1, 0x53, 0x65, 0x15, 0xcd, 0x5b, 0x07, 3, 0, 0, 0, 60, 0, 0, 0,
            1, 2, 3,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_capture_of_whole_frames_says_a_length_that_readers_take() {
        let mut bytes = Vec::new();
        PcapWriter::new(&mut bytes, None).unwrap();
        assert_eq!(bytes[16..20], 262_144_u32.to_le_bytes());
    }

    #[test]
    fn every_frame_is_flushed() {
        struct Counting(usize);
        impl Write for Counting {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                self.0 += 1;
                Ok(())
            }
        }
        let mut writer = PcapWriter::new(Counting(0), None).unwrap();
        writer.frame(0, &[], 0).unwrap();
        writer.frame(u64::MAX, &[], 0).unwrap();
        assert_eq!(writer.out.0, 3);
    }
}
