//! The port: replays a capture file and writes what is sent to another.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::{FormatError, RECORD_HEADER, Reader, Writer};
use crate::burst::Burst;
use crate::pool::FramePool;
use crate::port::{Port, PortCounters, PortFault};

/// Bytes of an Ethernet header: what is shorter is no frame.
const ETHERNET_HEADER: usize = 14;

/// Bytes of sent frames that are gathered before they are written while frames keep coming.
const GATHER: usize = 256 << 10;

/// Bytes of sent frames that may wait for `settle`; beyond, frames are refused.
const ROOM: usize = 1 << 20;

/// How often a capture file is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Once, then nothing more is received.
    #[default]
    Once,
    /// Again and again.
    Loop,
}

/// Why a port cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file cannot be opened, read or created.
    #[error("{}: cannot {what}: {source}; see whether the path is right and its directory readable and writable", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        what: &'static str,
        /// What the system call said.
        #[source]
        source: io::Error,
    },
    /// The file to replay is no capture file, or a broken one.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        #[source]
        source: FormatError,
    },
    /// The file to write is the one to replay.
    #[error("{}: this is the file that is replayed; write to another", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The file to write is a pipe or another thing that may make the worker wait.
    #[error("{}: not a regular file; what is sent can only be written to one, because a worker never waits", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
}

/// A port that receives the frames of one capture file and writes what is sent to another. The times of the file are not
/// kept: frames are received as fast as they are asked for.
pub struct PcapPort {
    name: String,
    replay: Replay,
    /// The whole file.
    file: Vec<u8>,
    /// Where in the file each frame lies; an empty range stands for one that the capture cut or that is no frame.
    frames: Vec<Range<usize>>,
    next: usize,
    /// What was sent and is not written yet, and the file it goes to.
    outbox: Option<(Writer<Vec<u8>>, File)>,
    /// The time of what is sent: that of the last `settle`, so that sending reads no clock.
    now: Duration,
    /// Packets that had been sent at the last `settle`.
    sent_before: u64,
    counters: PortCounters,
}

impl PcapPort {
    /// Opens a port: reads the whole of `receive`, if there is one, and creates `transmit` anew, if there is one; without
    /// it, what is sent is counted and discarded.
    ///
    /// # Errors
    /// [`OpenError`], which names the file, the place in it and what is wrong.
    pub fn open(
        receive: Option<&Path>,
        transmit: Option<&Path>,
        replay: Replay,
    ) -> Result<PcapPort, OpenError> {
        let named = |path: &Path| path.display().to_string();
        let name = receive.or(transmit).map_or_else(|| "pcap".to_owned(), named);
        let (file, frames) = match receive {
            Some(path) => load(path)?,
            None => Default::default(),
        };
        let outbox = match transmit {
            Some(path) => {
                Some((Writer::new(Vec::new()).map_err(cannot(path, "write"))?, create(path, receive)?))
            }
            None => None,
        };
        Ok(PcapPort {
            name,
            replay,
            file,
            frames,
            next: 0,
            outbox,
            now: since_epoch(),
            sent_before: 0,
            counters: PortCounters::default(),
        })
    }

    /// Whether the file has been replayed to its end.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.next == self.frames.len()
    }

    /// Writes out what waits.
    fn write_out(&mut self) -> io::Result<()> {
        let Some((waiting, file)) = &mut self.outbox else { return Ok(()) };
        let waiting = waiting.get_mut();
        let written = file.write_all(waiting);
        waiting.clear();
        written
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn cannot(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::File { path, what, source }
}

/// Reads a file and finds its frames.
fn load(path: &Path) -> Result<(Vec<u8>, Vec<Range<usize>>), OpenError> {
    let file = std::fs::read(path).map_err(cannot(path, "read"))?;
    let broken = |source| OpenError::Format { path: path.to_owned(), source };
    let mut frames = Vec::new();
    let mut start = super::FILE_HEADER + RECORD_HEADER;
    for record in Reader::new(&file).map_err(broken)? {
        let record = record.map_err(broken)?;
        let whole = !record.is_cut() && record.bytes.len() >= ETHERNET_HEADER;
        frames.push(start..if whole { start + record.bytes.len() } else { start });
        start += record.bytes.len() + RECORD_HEADER;
    }
    Ok((file, frames))
}

/// Creates the file for what is sent, unless it is the one that is replayed.
fn create(path: &Path, receive: Option<&Path>) -> Result<File, OpenError> {
    let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    if let Some(there) = identity(path) {
        if receive.and_then(identity) == Some(there) {
            return Err(OpenError::SameFile { path: path.to_owned() });
        }
        if !path.is_file() {
            return Err(OpenError::NotAFile { path: path.to_owned() });
        }
    }
    File::create(path).map_err(cannot(path, "create"))
}

impl Port for PcapPort {
    fn rx_burst(&mut self, pool: &mut FramePool, into: &mut Burst) -> usize {
        let mut got = 0;
        // As many records as there is room for, whether they are of use or not: a file of useless ones must not hold a
        // worker for ever.
        for _ in 0..into.room() {
            if self.next == self.frames.len() && self.replay == Replay::Loop {
                self.next = 0;
            }
            let Some(place) = self.frames.get(self.next) else { break };
            let bytes = &self.file[place.clone()];
            let Some(mut frame) = pool.alloc_for(bytes.len()) else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            self.next += 1;
            if bytes.is_empty() || frame.fill_from(bytes).is_err() {
                self.counters.rx_invalid += 1;
                pool.free(frame);
                continue;
            }
            self.counters.rx_packets += 1;
            self.counters.rx_bytes += bytes.len() as u64;
            match into.push(frame) {
                Ok(()) => got += 1,
                Err(frame) => pool.free(frame),
            }
        }
        got
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let mut taken = 0;
        while !frames.is_empty() {
            if let Some((waiting, _)) = &mut self.outbox
                && waiting.get_mut().len() >= ROOM
            {
                break;
            }
            let Some(frame) = frames.pop() else { break };
            taken += 1;
            if frame.len() < ETHERNET_HEADER {
                self.counters.tx_invalid += 1;
            } else {
                self.counters.tx_packets += 1;
                self.counters.tx_bytes += frame.len() as u64;
                if let Some((waiting, _)) = &mut self.outbox {
                    let written = waiting.write(self.now, frame.bytes(), frame.len() as u32);
                    debug_assert!(written.is_ok(), "memory takes every write");
                }
            }
            pool.free(frame);
        }
        taken
    }

    /// Writes what was sent to the file when enough has gathered, or when nothing more came since the last time.
    fn settle(&mut self, _pool: &mut FramePool) -> Result<(), PortFault> {
        let quiet = self.counters.tx_packets == self.sent_before;
        self.sent_before = self.counters.tx_packets;
        let Some((waiting, _)) = &mut self.outbox else { return Ok(()) };
        self.now = since_epoch();
        let waiting = waiting.get_mut().len();
        if waiting < GATHER && !(quiet && waiting > 0) {
            return Ok(());
        }
        let port = self.name.clone();
        self.write_out().map_err(|source| PortFault::System { port, call: "write", source })
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(mut self, _pool: &mut FramePool) {
        if let Err(error) = self.write_out() {
            tracing::error!("{}: what was sent last could not be written: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fault;
    use super::*;
    use crate::{BURST, CHUNK, HEADROOM, Hugepages, Region};

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("penstock-pcap-{test}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// A capture of frames of these lengths, each filled with its number.
        fn capture(&self, lengths: &[usize]) -> PathBuf {
            let mut writer = Writer::new(Vec::new()).unwrap();
            for (number, length) in lengths.iter().enumerate() {
                writer.write(Duration::from_secs(1), &vec![number as u8; *length], *length as u32).unwrap();
            }
            let path = self.file("in.pcap");
            std::fs::write(&path, writer.into_inner()).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pool() -> FramePool {
        FramePool::new(Region::map(1024, Hugepages::Off).unwrap())
    }

    fn lengths(burst: &Burst) -> Vec<usize> {
        burst.frames().iter().map(crate::Frame::len).collect()
    }

    #[test]
    fn what_is_received_and_sent_on_is_in_the_other_file() {
        let scratch = Scratch::new("forward");
        let (from, to) = (scratch.capture(&[60, 1514, 14]), scratch.file("out.pcap"));
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut port = PcapPort::open(Some(&from), Some(&to), Replay::Once).unwrap();
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 3);
        assert!(port.finished());
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 3);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
        port.settle(&mut pool).unwrap();
        port.settle(&mut pool).unwrap();
        let written = std::fs::read(&to).unwrap();
        let records: Vec<_> = Reader::new(&written).unwrap().map(Result::unwrap).collect();
        let before = std::fs::read(&from).unwrap();
        let originals: Vec<_> = Reader::new(&before).unwrap().map(Result::unwrap).collect();
        assert_eq!(records.len(), 3);
        for (record, original) in records.iter().zip(&originals) {
            assert_eq!(record.bytes, original.bytes);
            assert!(record.seconds > 1_700_000_000, "stamped with the time of sending");
        }
        assert_eq!((port.counters().rx_bytes, port.counters().tx_bytes), (1588, 1588));
        port.close(&mut pool);
        assert_eq!(pool.region().census().user, 0);
    }

    #[test]
    fn what_was_sent_last_is_written_at_the_close() {
        let scratch = Scratch::new("close");
        let (from, to) = (scratch.capture(&[60]), scratch.file("out.pcap"));
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut port = PcapPort::open(Some(&from), Some(&to), Replay::Once).unwrap();
        port.rx_burst(&mut pool, &mut burst);
        port.tx_burst(&mut pool, &mut burst);
        port.close(&mut pool);
        assert_eq!(Reader::new(&std::fs::read(&to).unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_loop_starts_over_and_keeps_the_order() {
        let scratch = Scratch::new("loop");
        let from = scratch.capture(&[60, 61, 62]);
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut port = PcapPort::open(Some(&from), None, Replay::Loop).unwrap();
        assert_eq!(port.rx_burst(&mut pool, &mut burst), BURST);
        assert!(lengths(&burst).chunks(3).all(|turn| turn == &[60, 61, 62][..turn.len()]));
        port.tx_burst(&mut pool, &mut burst);
        assert_eq!(port.counters().tx_packets, BURST as u64);
    }

    #[test]
    fn frames_that_are_too_large_cut_or_too_short_are_counted_and_passed_over() {
        let scratch = Scratch::new("odd");
        let from = scratch.capture(&[60, CHUNK - HEADROOM, CHUNK - HEADROOM + 1, 13, 61]);
        // The last frame was longer on the wire than what was kept of it.
        let mut bytes = std::fs::read(&from).unwrap();
        let last = bytes.len() - 61 - 4;
        bytes[last] = 99;
        std::fs::write(&from, bytes).unwrap();
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut port = PcapPort::open(Some(&from), None, Replay::Once).unwrap();
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 2);
        assert_eq!(lengths(&burst), [60, CHUNK - HEADROOM]);
        assert_eq!((port.counters().rx_invalid, port.counters().rx_packets), (3, 2));
        pool.free_burst(&mut burst);
    }

    #[test]
    fn a_loop_of_useless_frames_or_of_none_comes_back() {
        let scratch = Scratch::new("useless");
        let (mut pool, mut burst) = (pool(), Burst::new());
        for (lengths, invalid) in [(&[2000usize][..], BURST as u64), (&[][..], 0)] {
            let from = scratch.capture(lengths);
            let mut port = PcapPort::open(Some(&from), None, Replay::Loop).unwrap();
            assert_eq!(port.rx_burst(&mut pool, &mut burst), 0);
            assert_eq!(port.counters().rx_invalid, invalid);
        }
    }

    #[test]
    fn a_full_outbox_refuses_until_it_is_written() {
        let scratch = Scratch::new("full");
        let (from, to) = (scratch.capture(&[1500]), scratch.file("out.pcap"));
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut port = PcapPort::open(Some(&from), Some(&to), Replay::Loop).unwrap();
        while burst.is_empty() {
            port.rx_burst(&mut pool, &mut burst);
            port.tx_burst(&mut pool, &mut burst);
        }
        let sent = port.counters().tx_packets;
        assert!((600..800).contains(&sent), "{sent}");
        port.settle(&mut pool).unwrap();
        assert!(port.tx_burst(&mut pool, &mut burst) > 0 && burst.is_empty());
        port.close(&mut pool);
        assert!(Reader::new(&std::fs::read(&to).unwrap()).unwrap().all(|record| record.is_ok()));
    }

    #[test]
    fn broken_files_are_refused_by_name_and_place_and_nothing_is_overwritten() {
        let scratch = Scratch::new("broken");
        let from = scratch.capture(&[60, 60]);
        let whole = std::fs::read(&from).unwrap();
        let refuse = |to: Option<&Path>| PcapPort::open(Some(&from), to, Replay::Once).err().unwrap();
        assert!(matches!(refuse(Some(&from)), OpenError::SameFile { .. }));
        assert!(matches!(refuse(Some(&scratch.0)), OpenError::NotAFile { .. }));
        assert_eq!(std::fs::read(&from).unwrap(), whole);

        std::fs::write(&from, &whole[..whole.len() - 10]).unwrap();
        let refused = refuse(None);
        assert!(matches!(&refused, OpenError::Format { source, .. }
                if *source == FormatError { offset: 100, fault: Fault::FrameCut { have: 50, said: 60 } }));
        let told = refused.to_string();
        assert!(told.contains("in.pcap: at byte 100: a frame of 60 bytes"), "{told}");
        std::fs::remove_file(&from).unwrap();
        assert!(matches!(refuse(None), OpenError::File { what: "read", .. }));
    }
}
