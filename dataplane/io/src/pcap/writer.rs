//! Writing the format.

use std::io::{self, Write};
use std::time::Duration;

use super::{ETHERNET, MAGIC_NANOSECONDS, MAX_FRAME};

/// Writes a capture file of Ethernet frames with nanoseconds, in little-endian byte order.
///
/// It makes several small writes for each frame: hand it something that gathers them.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// Writes the file's header.
    ///
    /// # Errors
    /// Those of `inner`.
    pub fn new(mut inner: W) -> io::Result<Writer<W>> {
        inner.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        // Version 2.4; eight bytes that are always zero.
        inner.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        inner.write_all(&MAX_FRAME.to_le_bytes())?;
        inner.write_all(&ETHERNET.to_le_bytes())?;
        Ok(Writer { inner })
    }

    /// Writes a frame that was seen `since_epoch` after the start of 1970 and had `original_len` bytes, of which `bytes`
    /// were kept. More than the format allows is cut; times beyond 2106 count from anew.
    ///
    /// # Errors
    /// Those of the inner writer; the file may then end within this frame.
    pub fn write(&mut self, since_epoch: Duration, bytes: &[u8], original_len: u32) -> io::Result<()> {
        let bytes = &bytes[..bytes.len().min(MAX_FRAME as usize)];
        let kept = bytes.len() as u32;
        let words = [since_epoch.as_secs() as u32, since_epoch.subsec_nanos(), kept, original_len.max(kept)]
            .map(u32::to_le_bytes);
        self.inner.write_all(words.as_flattened())?;
        self.inner.write_all(bytes)
    }

    /// Flushes the inner writer.
    ///
    /// # Errors
    /// Those of the inner writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// What it writes to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Gives back what it wrote to.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcap::PcapReader;
    use proptest::prelude::*;

    use super::super::Reader;
    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back_here_and_by_an_independent_reader(
            frames in prop::collection::vec((any::<u32>(), 0..1_000_000_000u32, prop::collection::vec(any::<u8>(), 0..100), 0..50u32), 0..8),
        ) {
            let mut writer = Writer::new(Vec::new()).unwrap();
            for (seconds, nanoseconds, bytes, cut) in &frames {
                let time = Duration::new((*seconds).into(), *nanoseconds);
                writer.write(time, bytes, bytes.len() as u32 + cut).unwrap();
            }
            let file = writer.into_inner();
            let records: Vec<_> = Reader::new(&file).unwrap().map(Result::unwrap).collect();
            prop_assert_eq!(records.len(), frames.len());
            let mut other = PcapReader::new(&file[..]).unwrap();
            for (record, (seconds, nanoseconds, bytes, cut)) in records.iter().zip(&frames) {
                prop_assert_eq!((record.seconds, record.nanoseconds), (*seconds, *nanoseconds));
                prop_assert_eq!(record.bytes, &bytes[..]);
                prop_assert_eq!(record.is_cut(), *cut > 0);
                let packet = other.next_packet().unwrap().unwrap();
                prop_assert_eq!(&packet.data[..], &bytes[..]);
                prop_assert_eq!(packet.timestamp, Duration::new((*seconds).into(), *nanoseconds));
                prop_assert_eq!(packet.orig_len, bytes.len() as u32 + cut);
            }
            prop_assert!(other.next_packet().is_none());
        }
    }

    #[test]
    fn a_frame_longer_than_the_format_allows_is_cut() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.write(Duration::ZERO, &vec![1; MAX_FRAME as usize + 5], MAX_FRAME + 5).unwrap();
        let file = writer.into_inner();
        let record = Reader::new(&file).unwrap().next().unwrap().unwrap();
        assert_eq!((record.bytes.len() as u32, record.original_len), (MAX_FRAME, MAX_FRAME + 5));
    }
}
