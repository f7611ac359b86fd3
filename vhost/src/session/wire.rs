//! The messages as they come: each is looked at whole before it is taken.
//!
//! The protocol's crate reads from a blocking socket, reads a body in one go, and takes descriptors that do not fit its
//! buffer for a call to try again. So nothing is handed to it before all of it is there: then it neither waits nor reads
//! half. What it does not know at all (status, MTU) is read and answered here.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

use super::refusal::{Ending, Refusal, Request};

/// Bytes of a header: request, flags, size of the body (vhost-user specification, "Header").
const HEADER: usize = 12;
/// Bits of the flags that hold the version.
const VERSION_BITS: u32 = 3;
/// The only version there is.
const VERSION: u32 = 1;
/// The message is a reply.
const REPLY: u32 = 1 << 2;
/// The sender waits for an acknowledgement.
const NEED_REPLY: u32 = 1 << 3;

/// How long the end of a message may take after its beginning.
const PATIENCE: Duration = Duration::from_secs(3);
/// Unread replies that a peer may leave in its socket: one that sends without reading would block us in the end.
const UNREAD: u32 = 64 * 1024;
/// Descriptors that the kernel lets through in one message (`SCM_MAX_FD`, `net/scm.h`).
const MOST_FILES: usize = 253;

/// The header of a message that is there whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: Request,
    pub(super) needs_reply: bool,
    size: u32,
}

/// What is in the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing.
    Nothing,
    /// The beginning of a message.
    Part,
    /// A message.
    Whole(Header),
}

/// One connection's incoming messages.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    /// When the message that is not whole yet began.
    began: Option<Instant>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Wire {
        Wire { stream, began: None }
    }

    /// Looks at what is in the socket, and takes nothing.
    ///
    /// # Errors
    /// [`Ending`]: the peer is gone, or what is there cannot become a message.
    pub(super) fn look(&mut self) -> Result<Look, Ending> {
        let mut bytes = [0; HEADER];
        let Some(Peeked { count, files, lost }) =
            peek(&self.stream, &mut bytes).map_err(Ending::of_socket)?
        else {
            return Ok(Look::Nothing);
        };
        if count == 0 {
            return Err(Ending::HungUp);
        }
        if count < HEADER {
            return self.part(count as u32, HEADER as u32);
        }
        let header = check(&bytes)?;
        if files > MAX_ATTACHED_FD_ENTRIES {
            let most = MAX_ATTACHED_FD_ENTRIES;
            return Err(Refusal::TooManyFiles { request: header.request, count: files, most }.into());
        }
        if lost {
            return Err(Refusal::FilesLost { request: header.request }.into());
        }
        let (has, needs) = (queued(&self.stream, libc::FIONREAD)?, HEADER as u32 + header.size);
        if has < needs {
            return self.part(has, needs);
        }
        let unread = queued(&self.stream, libc::TIOCOUTQ)?;
        if unread > UNREAD {
            return Err(Refusal::NotReading { bytes: unread }.into());
        }
        self.began = None;
        Ok(Look::Whole(header))
    }

    fn part(&mut self, has: u32, needs: u32) -> Result<Look, Ending> {
        if self.is_cut_off() {
            return Err(Ending::CutOff);
        }
        let waited = self.began.get_or_insert_with(Instant::now).elapsed();
        if waited >= PATIENCE {
            return Err(Refusal::Half { has, needs, waited }.into());
        }
        Ok(Look::Part)
    }

    /// Whether the peer has hung up; what it said before may still be there.
    pub(super) fn is_cut_off(&self) -> bool {
        let mut state = libc::pollfd { fd: self.stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one structure, exclusively borrowed; the call does not wait.
        unsafe { libc::poll(&raw mut state, 1, 0) };
        state.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// Takes the message that [`Wire::look`] found, for a request that the protocol's crate does not know; its body.
    pub(super) fn take(&mut self, header: Header) -> Result<Vec<u8>, Ending> {
        let mut bytes = vec![0; HEADER + header.size as usize];
        // Descriptors that come with it are closed by the kernel: none of these requests has a use for them.
        (&self.stream).read_exact(&mut bytes).map_err(Ending::of_socket)?;
        Ok(bytes.split_off(HEADER))
    }

    /// Answers a request by a number.
    pub(super) fn reply(&mut self, header: Header, value: u64) -> Result<(), Ending> {
        let mut bytes = [0; HEADER + 8];
        let (head, body) = bytes.split_at_mut(HEADER);
        for (place, word) in head.chunks_exact_mut(4).zip([header.request.0, VERSION | REPLY, 8]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        body.copy_from_slice(&value.to_ne_bytes());
        (&self.stream).write_all(&bytes).map_err(Ending::of_socket)
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// The number that is the whole body of a message.
pub(super) fn number(header: Header, body: &[u8]) -> Result<u64, Refusal> {
    match <[u8; 8]>::try_from(body) {
        Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
        Err(_) => Err(Refusal::Malformed {
            request: header.request,
            source: vhost::vhost_user::Error::InvalidMessage,
        }),
    }
}

/// The header of a message that may be taken.
fn check(bytes: &[u8; HEADER]) -> Result<Header, Refusal> {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (request, flags, size) = (Request(word(0)), word(4), word(8));
    if flags & VERSION_BITS != VERSION || flags & !(VERSION_BITS | NEED_REPLY) != 0 {
        return Err(Refusal::Header { flags });
    }
    if !request.meaning().is_some_and(is_served) {
        return Err(Refusal::Unknown { request });
    }
    if size as usize > MAX_MSG_SIZE {
        return Err(Refusal::TooLong { request, size, most: MAX_MSG_SIZE as u32 });
    }
    Ok(Header { request, needs_reply: flags & NEED_REPLY != 0, size })
}

/// Requests of features that we offer.
fn is_served(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::GET_FEATURES
            | R::SET_FEATURES
            | R::SET_OWNER
            | R::RESET_OWNER
            | R::SET_MEM_TABLE
            | R::SET_LOG_BASE
            | R::SET_LOG_FD
            | R::SET_VRING_NUM
            | R::SET_VRING_ADDR
            | R::SET_VRING_BASE
            | R::GET_VRING_BASE
            | R::SET_VRING_KICK
            | R::SET_VRING_CALL
            | R::SET_VRING_ERR
            | R::GET_PROTOCOL_FEATURES
            | R::SET_PROTOCOL_FEATURES
            | R::GET_QUEUE_NUM
            | R::SET_VRING_ENABLE
            | R::NET_SET_MTU
            | R::GET_INFLIGHT_FD
            | R::SET_INFLIGHT_FD
            | R::RESET_DEVICE
            | R::GET_MAX_MEM_SLOTS
            | R::ADD_MEM_REG
            | R::REM_MEM_REG
            | R::SET_STATUS
            | R::GET_STATUS
    )
}

/// What a look at a socket found.
struct Peeked {
    count: usize,
    files: usize,
    /// Descriptors came that could not be made here.
    lost: bool,
}

/// Copies the first bytes in a socket and leaves them there; `None` when there are none yet.
fn peek(stream: &UnixStream, into: &mut [u8; HEADER]) -> io::Result<Option<Peeked>> {
    // Room for every descriptor that may come, aligned as control messages are.
    let mut control = [0u64; 2 + (MOST_FILES * size_of::<RawFd>()).div_ceil(8) + 1];
    let mut piece = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: `msghdr` is plain C data, for which all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let count = loop {
        // SAFETY: all that the message points to lives through the call and is exclusively borrowed.
        let count = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
        if count >= 0 {
            break count as usize;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    };
    let files = copies(&message).len();
    Ok(Some(Peeked { count, files, lost: message.msg_flags & libc::MSG_CTRUNC != 0 }))
}

/// The descriptors that came with a message: copies, when it was only looked at.
fn copies(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: the message was filled by `recvmsg`, and its control buffer is alive.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !at.is_null() {
        // SAFETY: not null, so it points to a whole header in the control buffer.
        let head = unsafe { at.read_unaligned() };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: only arithmetic.
            let lead = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: `at` points to a control message.
            let data = unsafe { libc::CMSG_DATA(at) }.cast::<RawFd>();
            for i in 0..(head.cmsg_len as usize).saturating_sub(lead) / size_of::<RawFd>() {
                // SAFETY: the kernel put that many descriptors there.
                let at = unsafe { data.add(i) };
                // SAFETY: as above.
                let raw = unsafe { at.read_unaligned() };
                // SAFETY: the kernel has just made it for this process, and nobody else knows it.
                files.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: both point into the control buffer, which is alive.
        at = unsafe { libc::CMSG_NXTHDR(message, at) };
    }
    files
}

/// Bytes that wait in a socket, to be read (`FIONREAD`) or to be read by the peer (`TIOCOUTQ`; unix(7)).
fn queued(stream: &UnixStream, what: libc::Ioctl) -> Result<u32, Ending> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both calls write one integer, which is exclusively borrowed.
    if unsafe { libc::ioctl(stream.as_raw_fd(), what, &raw mut bytes) } < 0 {
        return Err(Ending::Socket(io::Error::last_os_error()));
    }
    Ok(bytes.max(0) as u32)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::driver::{Messenger, header};

    fn pair() -> (Wire, Messenger) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours), Messenger::new(theirs).unwrap())
    }

    #[test]
    fn a_message_is_seen_once_all_of_it_is_there() {
        let (mut wire, peer) = pair();
        assert_eq!(wire.look().unwrap(), Look::Nothing);
        let whole = [&header(2, 1, 8)[..], &7u64.to_ne_bytes()].concat();
        for part in [&whole[..5], &whole[5..12], &whole[12..19]] {
            peer.send_raw(part, &[]).unwrap();
            assert_eq!(wire.look().unwrap(), Look::Part);
        }
        peer.send_raw(&whole[19..], &[]).unwrap();
        let Look::Whole(header) = wire.look().unwrap() else { panic!("it is whole") };
        assert_eq!(number(header, &wire.take(header).unwrap()).unwrap(), 7);
        assert_eq!(wire.look().unwrap(), Look::Nothing);
    }

    #[test]
    fn looking_takes_no_descriptor() {
        let (mut wire, peer) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        peer.send_raw(&header(5, 1, 0), &[file.as_fd(); 32]).unwrap();
        // Other tests open and close files meanwhile: some look of many finds the same number.
        let steady = (0..100).any(|_| {
            let before = open();
            assert!(matches!(wire.look().unwrap(), Look::Whole(_)));
            open() == before
        });
        assert!(steady, "descriptors stay behind");
    }

    #[test]
    fn more_descriptors_than_a_message_has_are_refused() {
        let (mut wire, peer) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        peer.send_raw(&header(5, 1, 0), &[file.as_fd(); 33]).unwrap();
        let ending = wire.look().unwrap_err();
        assert!(matches!(ending, Ending::Refused(Refusal::TooManyFiles { count: 33, .. })), "{ending}");
    }

    #[test]
    fn what_is_no_message_is_refused_at_its_header() {
        for (request, flags, size, words) in [
            (2, 2, 8, "not version 1"),
            (2, 5, 8, "not version 1"),
            (2, 0x11, 8, "not version 1"),
            (77, 1, 8, "request 77"),
            (28, 1, 0, "POSTCOPY_ADVISE"),
            (2, 1, 4097, "no message is longer"),
            (2, 1, u32::MAX, "no message is longer"),
        ] {
            let (mut wire, peer) = pair();
            peer.send_raw(&header(request, flags, size), &[]).unwrap();
            let ending = wire.look().unwrap_err();
            assert!(ending.to_string().contains(words), "{ending}");
        }
    }

    #[test]
    fn the_end_of_a_peer_is_told_from_its_end_in_mid_message() {
        let (mut wire, peer) = pair();
        drop(peer);
        assert!(matches!(wire.look(), Err(Ending::HungUp)));
        let (mut wire, peer) = pair();
        peer.send_raw(&header(2, 1, 8)[..7], &[]).unwrap();
        drop(peer);
        assert!(matches!(wire.look(), Err(Ending::CutOff)));
    }
}
