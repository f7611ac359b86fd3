//! vhost-user messages as a front-end writes them: by number, so that tests can also write what nobody should.
//!
//! Source: the vhost-user specification (QEMU, `docs/interop/vhost-user.rst`), "Message Specification".

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of a message's header: request, flags, size of what follows.
pub const HEADER: usize = 12;
/// Version 1 of the protocol, in the flags.
pub const VERSION: u32 = 1;
/// The message is a reply.
pub const REPLY: u32 = 4;
/// The sender waits for an acknowledgement.
pub const NEED_REPLY: u32 = 8;

/// How long a front-end waits for an answer: the back-end answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// The front-end's end of a session.
#[derive(Debug)]
pub struct Messenger {
    stream: UnixStream,
}

impl Messenger {
    /// Speaks over a connected socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(stream: UnixStream) -> io::Result<Messenger> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Messenger { stream })
    }

    /// Writes a message with descriptors attached to its first byte.
    ///
    /// # Errors
    /// What the kernel says, a back-end that hung up among it.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let header = header(request, VERSION | flags, body.len() as u32);
        self.send_raw(&[&header[..], body].concat(), files)
    }

    /// Writes any bytes with any descriptors.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send_raw(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = 0;
        while sent < bytes.len() {
            let attached = if sent == 0 { files.as_slice() } else { &[] };
            sent += self.stream.send_with_fds(&[&bytes[sent..]], attached).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Reads the reply to `request`: its body, and the descriptor that came with it.
    ///
    /// # Errors
    /// What the kernel says (`UnexpectedEof` for a back-end that hung up), `InvalidData` for an answer to something else.
    pub fn reply(&self, request: u32) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut head = [0; HEADER];
        let (read, file) = self.receive(&mut head)?;
        (&self.stream).read_exact(&mut head[read..])?;
        let (got, flags, size) = (word(&head, 0), word(&head, 4), word(&head, 8));
        if got != request || flags & REPLY == 0 || size > 65_536 {
            let said = format!(
                "request {got}, flags {flags:#x} and {size} bytes where the reply to {request} was due"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, said));
        }
        let mut body = vec![0; size as usize];
        (&self.stream).read_exact(&mut body)?;
        Ok((body, file))
    }

    /// Reads at least one byte, and a descriptor if one comes with it.
    fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let mut files = [-1; 1];
        let mut pieces = [libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() }];
        // SAFETY: the one piece is `into`, which is exclusively borrowed and takes any bytes.
        let (read, count) =
            unsafe { self.stream.recv_with_fds(&mut pieces, &mut files) }.map_err(io::Error::from)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let file = (count == 1).then(|| unsafe { OwnedFd::from_raw_fd(files[0]) });
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the back-end closed the session"));
        }
        Ok((read, file))
    }

    /// Whether the back-end has closed the session.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let mut state = libc::pollfd { fd: self.stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one structure, exclusively borrowed; the call does not wait.
        unsafe { libc::poll(&raw mut state, 1, 0) };
        state.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
    }
}

impl AsFd for Messenger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A message's header. All words are in the machine's own order.
#[must_use]
pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&request.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..].copy_from_slice(&size.to_ne_bytes());
    bytes
}

/// The four bytes at `at`.
fn word(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
