//! Headers that a guest's port gives to each frame that it sends: a small eBPF program of testpmd's transmit queue.
//!
//! A guest that only circulates frames would send them on with the MAC addresses and the hop limit that they arrived with, and
//! the next hop would rightly refuse them.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use penstock_wire::{MacAddr, ipv4, proto};

use super::PeerError;
use super::lab::{Lab, run};

/// The headers of the frames of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// The gateway.
    pub dst_mac: MacAddr,
    /// The sender.
    pub src_mac: MacAddr,
    /// The sender.
    pub src: Ipv4Addr,
    /// The receiver.
    pub dst: Ipv4Addr,
    /// Bytes of the frame, check sequence included.
    pub size: u16,
    /// Where the frame has the port that tells flows apart: the source's, or for answers the destination's.
    pub is_answer: bool,
}

impl Headers {
    /// The Ethernet and the IPv4 header.
    fn bytes(&self) -> [u8; 34] {
        let payload_len = self.size - 4 - 34;
        let header = ipv4::Repr {
            src: self.src,
            dst: self.dst,
            protocol: proto::UDP,
            tos: 0,
            ttl: 64,
            dont_fragment: false,
            payload_len,
        };
        let mut bytes = [0; 34];
        bytes[..6].copy_from_slice(&self.dst_mac.0);
        bytes[6..12].copy_from_slice(&self.src_mac.0);
        bytes[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
        bytes[14..].copy_from_slice(&header.emit());
        bytes
    }

    /// The program in C: a frame that is new, by its source address, gets a port by that address; then all get the headers.
    fn source(&self) -> String {
        let bytes = self.bytes();
        let (ports, _) = bytes.split_at(32);
        let mut stores = String::new();
        for (at, word) in (0..).step_by(8).zip(ports.chunks_exact(8)) {
            let word = word.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            stores += &format!("  *(unsigned long long *)(frame + {at}) = {word:#x}ULL;\n");
        }
        let last = u16::from_le_bytes([bytes[32], bytes[33]]);
        let own = u32::from_le_bytes(self.src.octets());
        let (flow, fixed) = if self.is_answer { (36, 34) } else { (34, 36) };
        // Port 9 is that of the discard protocol (RFC 863); flows begin at port 1024.
        format!(
            "unsigned long long entry(unsigned char *frame) {{\n  \
             unsigned source = *(unsigned *)(frame + 26);\n  \
             if (source != {own:#x}u) {{\n    \
             *(unsigned short *)(frame + {flow}) = (unsigned short)((source >> 24) << 8 | 4);\n    \
             *(unsigned short *)(frame + {fixed}) = {:#x};\n    \
             *(unsigned short *)(frame + 40) = 0;\n  }}\n\
             {stores}  *(unsigned short *)(frame + 32) = {last:#x};\n  return 1;\n}}\n",
            9u16.swap_bytes()
        )
    }

    /// Compiles it; returns the object file.
    ///
    /// # Errors
    /// When clang is not there.
    pub fn compile(&self, lab: &Lab, name: &str) -> Result<PathBuf, PeerError> {
        let [source, object] = ["c", "o"].map(|kind| lab.path(&format!("{name}.{kind}")));
        std::fs::write(&source, self.source())
            .map_err(|fault| PeerError::File { path: source.clone(), source: fault })?;
        let arguments = ["-O2", "-target", "bpf", "-c", "-o"].map(std::ffi::OsString::from);
        let files = [object.clone().into_os_string(), source.into_os_string()];
        run("clang", &[&arguments[..], &files].concat())?;
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_those_of_a_sound_packet() {
        let headers = Headers {
            dst_mac: MacAddr([2, 0, 0, 0, 0, 0xfe]),
            src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            src: Ipv4Addr::new(10, 1, 1, 1),
            dst: Ipv4Addr::new(10, 1, 1, 2),
            size: 64,
            is_answer: false,
        };
        let mut frame = headers.bytes().to_vec();
        frame.extend([4, 0, 0, 9, 0, 26, 0, 0]);
        frame.resize(60, 0);
        assert!(penstock_wire::parse::parse(&frame).is_ok());
        assert!(headers.source().contains("(frame + 26);"));
    }
}
