//! Capture files: a port that replays one and writes another, and the format itself.
//!
//! The format is the classic one (libpcap's, `draft-ietf-opsawg-pcap`), of Ethernet frames; pcapng is not read.

mod port;
mod reader;
mod writer;

pub use port::{OpenError, PcapPort, Replay};
pub use reader::{Fault, FormatError, Reader, Record};
pub use writer::Writer;

/// The first four bytes of a file with microseconds, in its writer's byte order.
const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;

/// The first four bytes of a file with nanoseconds, in its writer's byte order.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// Bytes of the header of a file.
const FILE_HEADER: usize = 24;

/// Bytes of the header of a record.
const RECORD_HEADER: usize = 16;

/// The most bytes of a frame that a file may hold (libpcap's `MAXIMUM_SNAPLEN`).
const MAX_FRAME: u32 = 262_144;
