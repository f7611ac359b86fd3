//! The header in front of every packet in a guest's buffers: `struct virtio_net_hdr_mrg_rxbuf` (`linux/virtio_net.h`).

use crate::features;

/// Bytes of the header of a version 1 device, or with mergeable buffers.
pub(crate) const LONG: usize = 12;
/// Bytes of the header of a legacy device without mergeable buffers: it lacks the number of buffers.
const SHORT: usize = 10;

/// The checksum at `start + offset` covers the pseudo header only (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified (`VIRTIO_NET_HDR_F_DATA_VALID`).
const DATA_VALID: u8 = 2;

/// Where the number of buffers is.
pub(crate) const BUFFERS_AT: usize = 10;

/// Bytes of the header with such features.
pub(crate) fn length(features: u64) -> usize {
    if features & (features::VERSION_1 | features::MRG_RXBUF) != 0 { LONG } else { SHORT }
}

/// The header of a packet that is finished and lies in `buffers` buffers.
#[inline(always)]
pub(crate) fn plain(buffers: u16) -> [u8; LONG] {
    let mut header = [0; LONG];
    header[BUFFERS_AT..].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// What a guest asks to be done to its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing.
    Nothing,
    /// The Internet checksum from `start` to the packet's end, put `offset` further on.
    Checksum {
        /// Bytes from the packet's first.
        start: u16,
        /// Bytes from there.
        offset: u16,
    },
}

/// A header that cannot be, or that asks for what was not negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads the header's first eight bytes, and its next two with the ninth and tenth in their low half.
#[inline(always)]
pub(crate) fn order(first: u64, offset: u16, features: u64) -> Result<Order, Malformed> {
    let [flags, segmentation, ..] = first.to_le_bytes();
    if (flags & !DATA_VALID) | segmentation == 0 {
        return Ok(Order::Nothing);
    }
    if segmentation != 0 || flags & !(NEEDS_CSUM | DATA_VALID) != 0 || features & features::CSUM == 0 {
        return Err(Malformed);
    }
    Ok(Order::Checksum { start: (first >> 48) as u16, offset })
}

/// Completes an Internet checksum (RFC 1071) over `packet[start..]` whose field, `offset` bytes on, holds the pseudo header's
/// sum.
#[cold]
pub(crate) fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let covered = packet.get_mut(start..).ok_or(Malformed)?;
    if offset + 2 > covered.len() {
        return Err(Malformed);
    }
    let (pairs, odd) = covered.as_chunks::<2>();
    let mut sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    if let [last] = odd {
        sum += u64::from(*last) << 8;
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero means "no checksum" to UDP (RFC 768); to the others 0xffff says the same as zero.
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        other => other,
    };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}
