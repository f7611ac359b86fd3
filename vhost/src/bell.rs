//! Event descriptors of a front-end: by which one side wakes the other, and how to use them without ever being blocked.
//!
//! The front-end made the descriptor and shares its flags: whatever we set, it may make it block again behind our back, and
//! fill it. Reading can be told not to wait (`RWF_NOWAIT`), writing cannot. So the kernel rings for us: a request of its
//! asynchronous input and output that is done at once tells the descriptor named in it (`IOCB_FLAG_RESFD`), by adding one or
//! leaving a full counter as it is. That takes longer than a write, so workers only say which bells they want rung; the
//! session's thread rings them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An event descriptor of a front-end.
#[derive(Debug)]
pub struct Doorbell {
    file: File,
    /// Whether the worker wants it rung.
    wanted: AtomicBool,
}

impl Doorbell {
    /// Takes a descriptor that came by the session's socket.
    ///
    /// # Errors
    /// `InvalidInput` if it is no event descriptor.
    pub fn new(file: File) -> io::Result<Doorbell> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if !link.to_string_lossy().contains("[eventfd]") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not an event descriptor but {}", link.display()),
            ));
        }
        Ok(Doorbell { file, wanted: AtomicBool::new(false) })
    }

    /// Wants it rung; whether nobody did yet, so that whoever rings it is to be woken.
    pub(crate) fn want(&self) -> bool {
        !self.wanted.swap(true, Ordering::AcqRel)
    }

    /// Whether somebody wants it rung, asked by whoever is about to.
    pub(crate) fn take_want(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Forgets that it was rung.
    pub(crate) fn quiet(&self) {
        let mut count = 0u64;
        let room = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: size_of::<u64>() };
        // One that was not rung has nothing to forget.
        // SAFETY: the kernel writes eight bytes to `count` at most; an offset of -1 is that of a plain read (preadv2(2)).
        unsafe { libc::preadv2(self.file.as_raw_fd(), &raw const room, 1, -1, libc::RWF_NOWAIT) };
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Requests that may be done and not collected (`io_setup(2)`); they count against `fs.aio-max-nr`.
const REQUESTS: usize = 8;
/// Wait for a descriptor as poll does (`IOCB_CMD_POLL`, linux/aio_abi.h).
const POLL: u16 = 5;
/// Tell the descriptor in `resfd` when it is done (`IOCB_FLAG_RESFD`).
const TELL: u32 = 1;

/// A request to the kernel (`struct iocb`, linux/aio_abi.h), as little-endian machines have it.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    /// Of a poll: the events.
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// The kernel's word about a request that is done (`struct io_event`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Done {
    data: u64,
    request: u64,
    results: [i64; 2],
}

/// Rings doorbells, whatever their front-end made of them.
#[derive(Debug)]
pub(crate) struct Ringer {
    context: libc::c_ulong,
    /// Readable always: waiting for it is done at once.
    always: EventFd,
}

impl Ringer {
    /// # Errors
    /// The kernel's, when it refuses `io_setup`.
    pub(crate) fn new() -> io::Result<Ringer> {
        let always = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        always.write(1)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word to `context`.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut context) };
        if done < 0 {
            let error = io::Error::last_os_error();
            let mend =
                "allow io_setup, io_submit and io_getevents, and raise fs.aio-max-nr if there are many ports";
            return Err(io::Error::new(error.kind(), format!("io_setup: {error}; {mend}")));
        }
        Ok(Ringer { context, always })
    }

    /// Rings a bell. One that is full has been rung often enough.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn ring(&self, bell: &Doorbell) -> io::Result<()> {
        let mut request = Request {
            opcode: POLL,
            fd: self.always.as_raw_fd() as u32,
            buffer: libc::POLLIN as u64,
            flags: TELL,
            resfd: bell.file.as_raw_fd() as u32,
            ..Request::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: one request, which the kernel has read when the call returns.
        let sent = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) };
        let error = (sent < 0).then(io::Error::last_os_error);
        self.collect();
        error.map_or(Ok(()), Err)
    }

    /// Takes note of what is done, so that there is room for more.
    fn collect(&self) {
        let mut done = [Done::default(); REQUESTS];
        let no_time: *mut libc::timespec = std::ptr::null_mut();
        // SAFETY: the kernel writes that many of them at most, and waits for none.
        unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0, done.len(), done.as_mut_ptr(), no_time)
        };
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody uses it any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::FromRawFd;

    /// An event descriptor that blocks, and its front-end's end.
    fn blocking() -> (Doorbell, File) {
        // SAFETY: makes a descriptor and touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: a descriptor just made, which nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        (Doorbell::new(file.try_clone().unwrap()).unwrap(), file)
    }

    fn count(mut file: &File) -> u64 {
        use std::io::Read;
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn a_bell_is_rung_as_often_as_asked_and_a_full_one_blocks_nobody() {
        let (bell, mut theirs) = blocking();
        let ringer = Ringer::new().unwrap();
        (0..100).for_each(|_| ringer.ring(&bell).unwrap());
        assert_eq!(count(&theirs), 100);
        theirs.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        (0..100).for_each(|_| ringer.ring(&bell).unwrap());
        assert!(count(&theirs) >= u64::MAX - 1);
    }

    #[test]
    fn a_bell_that_was_not_rung_is_quiet_at_once_also_where_it_blocks() {
        let (bell, theirs) = blocking();
        bell.quiet();
        (&theirs).write_all(&3u64.to_ne_bytes()).unwrap();
        bell.quiet();
        Ringer::new().unwrap().ring(&bell).unwrap();
        assert_eq!(count(&theirs), 1, "what was before is forgotten");
    }

    #[test]
    fn the_first_to_want_a_bell_rung_is_told() {
        let (bell, _theirs) = blocking();
        assert!(!bell.take_want());
        assert_eq!([bell.want(), bell.want()], [true, false]);
        assert!(bell.take_want());
        assert!(!bell.take_want() && bell.want());
    }

    #[test]
    fn what_is_no_event_descriptor_is_refused() {
        let error = Doorbell::new(File::open("/dev/null").unwrap()).unwrap_err();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }
}
