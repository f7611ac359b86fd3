//! Geneve headers and options (RFC 8926).

use crate::bytes::{be16, put, put16};
use crate::{Malformed, Vni, ethernet};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 8;
/// Bytes of an option in front of its data.
pub const OPTION_HEADER_LEN: usize = 4;
/// Bytes of the longest option data: 31 units of four bytes.
pub const MAX_OPTION_DATA: usize = 124;
/// Bytes of the longest option list: 63 units of four bytes.
pub const MAX_OPTIONS_LEN: usize = 252;
/// The destination port (RFC 8926 section 3.3).
pub const PORT: u16 = 6081;
/// The O flag, in the second byte: a control packet.
pub const CONTROL: u8 = 0x80;
/// The C flag, in the second byte: some option is critical.
pub const CRITICAL: u8 = 0x40;
/// The bit of an option's type that makes it critical: who does not know it must drop the packet.
pub const CRITICAL_OPTION: u8 = 0x80;

/// A checked view of a header, its options and what is behind.
#[derive(Clone, Copy, Debug)]
pub struct Geneve<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Geneve<'a> {
    /// Checks that header and options are there and the version is 0; what they say is not judged here.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        if header[0] >> 6 != 0 {
            return Err(Malformed::BadVersion);
        }
        let options_len = usize::from(header[0] & 0x3f) * 4;
        let (options, payload) = rest.split_at_checked(options_len).ok_or(Malformed::Truncated)?;
        Ok(Geneve { header, options, payload })
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Whether this is a control packet, which must not be delivered as data.
    #[inline]
    pub fn is_control(&self) -> bool {
        self.header[1] & CONTROL != 0
    }

    /// Whether the sender says that some option is critical.
    #[inline]
    pub fn has_critical(&self) -> bool {
        self.header[1] & CRITICAL != 0
    }

    /// What the payload is, as an Ethernet type; [`ethernet::BRIDGED`] is a frame.
    #[inline]
    pub fn protocol(&self) -> u16 {
        be16(self.header, 2)
    }

    /// The network.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_bytes([self.header[4], self.header[5], self.header[6]])
    }

    /// The options, in order.
    #[inline]
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options }
    }

    /// What is inside.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// One option as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionView<'a> {
    /// Who defines the type (IANA, "Geneve Option Classes").
    pub class: u16,
    /// The type, its critical bit included.
    pub kind: u8,
    /// The data.
    pub data: &'a [u8],
}

impl OptionView<'_> {
    /// Whether a receiver that does not know the option must drop the packet.
    #[inline]
    pub const fn is_critical(&self) -> bool {
        self.kind & CRITICAL_OPTION != 0
    }
}

/// The options of a header; an option that reaches past the list is the last item.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<OptionView<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let split = self.rest.split_first_chunk::<OPTION_HEADER_LEN>().and_then(|(header, behind)| {
            let (data, rest) = behind.split_at_checked(usize::from(header[3] & 0x1f) * 4)?;
            Some((OptionView { class: be16(header, 0), kind: header[2], data }, rest))
        });
        match split {
            Some((option, rest)) => {
                self.rest = rest;
                Some(Ok(option))
            }
            None => {
                self.rest = &[];
                Some(Err(Malformed::BadOption))
            }
        }
    }
}

/// One option to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneveOption {
    /// Who defines the type (IANA, "Geneve Option Classes").
    pub class: u16,
    /// The type, its critical bit included: see [`CRITICAL_OPTION`].
    pub kind: u8,
    /// The data: a multiple of four bytes, at most [`MAX_OPTION_DATA`].
    pub data: Vec<u8>,
}

/// Why options cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsTooLong {
    /// One option breaks the rules.
    #[error(
        "Geneve option {class:#06x}/{kind:#04x} has {len} bytes of data: give a multiple of 4, at most {MAX_OPTION_DATA}"
    )]
    Data {
        /// The option's class.
        class: u16,
        /// The option's type.
        kind: u8,
        /// Bytes of its data.
        len: usize,
    },
    /// All together are more than a header template takes.
    #[error(
        "the Geneve options take {len} bytes with their headers, and {max} fit: send fewer or shorter ones"
    )]
    Total {
        /// Bytes of all options and their headers.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
}

/// The fields of a header to send; an Ethernet frame is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr<'a> {
    /// The network.
    pub vni: Vni,
    /// The options.
    pub options: &'a [GeneveOption],
}

impl Repr<'_> {
    /// Bytes of the header, options included.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.iter().map(|option| OPTION_HEADER_LEN + option.data.len()).sum::<usize>()
    }

    /// The header's bytes, options included; `max_options` is the room that the caller has for these.
    pub fn emit(&self, max_options: usize) -> Result<Vec<u8>, OptionsTooLong> {
        for GeneveOption { class, kind, data } in self.options {
            if data.len() > MAX_OPTION_DATA || !data.len().is_multiple_of(4) {
                return Err(OptionsTooLong::Data { class: *class, kind: *kind, len: data.len() });
            }
        }
        let len = self.header_len() - HEADER_LEN;
        let max = max_options.min(MAX_OPTIONS_LEN);
        if len > max {
            return Err(OptionsTooLong::Total { len, max });
        }
        let critical = self.options.iter().any(|option| option.kind & CRITICAL_OPTION != 0);
        let mut fixed = [0; HEADER_LEN];
        fixed[0] = (len / 4) as u8;
        fixed[1] = if critical { CRITICAL } else { 0 };
        put16(&mut fixed, 2, ethernet::BRIDGED);
        put(&mut fixed, 4, self.vni.to_bytes());
        let mut header = fixed.to_vec();
        for option in self.options {
            header.extend(option.class.to_be_bytes());
            header.extend([option.kind, (option.data.len() / 4) as u8]);
            header.extend(&option.data);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Vec<GeneveOption> {
        vec![
            GeneveOption { class: 0x0102, kind: 0x81, data: vec![1, 2, 3, 4] },
            GeneveOption { class: 0xffff, kind: 0x01, data: vec![] },
        ]
    }

    #[test]
    fn view_reads_what_repr_emits() {
        let (options, vni) = (options(), Vni::new(77).unwrap());
        let mut packet = Repr { vni, options: &options }.emit(MAX_OPTIONS_LEN).unwrap();
        assert_eq!(packet.len(), 20);
        packet.push(9);
        let view = Geneve::new_checked(&packet).unwrap();
        assert_eq!((view.vni(), view.protocol(), view.header_len()), (vni, ethernet::BRIDGED, 20));
        assert!(view.has_critical() && !view.is_control());
        let read: Vec<_> = view.options().map(|option| option.unwrap()).collect();
        assert_eq!(read[0], OptionView { class: 0x0102, kind: 0x81, data: &[1, 2, 3, 4] });
        assert!(read[0].is_critical() && !read[1].is_critical() && read.len() == 2);
        assert_eq!(view.payload(), [9]);
    }

    #[test]
    fn broken_headers_are_refused() {
        let options = options();
        let header = Repr { vni: Vni::MAX, options: &options }.emit(MAX_OPTIONS_LEN).unwrap();
        assert_eq!(Geneve::new_checked(&header[..7]).err(), Some(Malformed::Truncated));
        assert_eq!(Geneve::new_checked(&header[..19]).err(), Some(Malformed::Truncated));
        let mut lying = header.clone();
        lying[19] = 1;
        let walked: Vec<_> = Geneve::new_checked(&lying).unwrap().options().collect();
        assert_eq!(walked.last(), Some(&Err(Malformed::BadOption)));
        let mut version = header;
        version[0] |= 0x40;
        assert_eq!(Geneve::new_checked(&version).err(), Some(Malformed::BadVersion));
    }

    #[test]
    fn options_that_do_not_fit_are_refused_with_numbers() {
        let odd = [GeneveOption { class: 1, kind: 2, data: vec![0; 3] }];
        let error = Repr { vni: Vni::MAX, options: &odd }.emit(MAX_OPTIONS_LEN).unwrap_err();
        assert_eq!(error, OptionsTooLong::Data { class: 1, kind: 2, len: 3 });
        let many = vec![GeneveOption { class: 1, kind: 2, data: vec![0; 124] }; 2];
        let error = Repr { vni: Vni::MAX, options: &many }.emit(MAX_OPTIONS_LEN).unwrap_err();
        assert_eq!(error, OptionsTooLong::Total { len: 256, max: 252 });
    }
}
