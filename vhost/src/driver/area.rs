//! An area of a pod's memory: a file in memory that the front-end shares, read and written by guest address.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};

/// One contiguous piece of guest memory.
pub struct Area {
    file: OwnedFd,
    base: NonNull<u8>,
    len: usize,
    guest: u64,
    /// Bytes handed out by [`Area::take`].
    taken: AtomicUsize,
}

// SAFETY: the mapping belongs to the area for its whole life, and every access goes through raw pointers.
unsafe impl Send for Area {}
// SAFETY: as above; two threads that write the same bytes would be the test's own mistake and no worse than the device's
// own writes, which come at any time: no reference into the mapping is ever made.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `len` bytes of fresh memory that the guest knows at address `guest`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(len: usize, guest: u64) -> io::Result<Area> {
        // SAFETY: the name is a C string; the call makes a descriptor and touches nothing else.
        let raw = unsafe { libc::memfd_create(c"pod".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: sets the length of our own file.
        if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes, of a file that is `len` bytes long.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Area { file, base, len, guest, taken: AtomicUsize::new(0) })
    }

    /// The file behind it, to be shared.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where it begins in guest physical addresses.
    #[must_use]
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Where it begins in the front-end's own addresses.
    #[must_use]
    pub fn user(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a guest address lies in it.
    #[must_use]
    pub fn holds(&self, guest: u64) -> bool {
        guest.checked_sub(self.guest).is_some_and(|offset| offset < self.len as u64)
    }

    /// The front-end's own address of a guest address.
    #[must_use]
    pub fn user_of(&self, guest: u64) -> u64 {
        self.pointer(guest, 0) as u64
    }

    /// Takes `len` bytes aligned to `align` that nobody has taken yet; their guest address.
    ///
    /// # Panics
    /// When the area is used up: the test asked for too little memory.
    pub fn take(&self, len: usize, align: usize) -> u64 {
        let take = |taken: usize| Some(taken.next_multiple_of(align) + len).filter(|&end| end <= self.len);
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let start = before
            .expect("the pod's memory is large enough for its rings and buffers")
            .next_multiple_of(align);
        self.guest + start as u64
    }

    /// Bytes that [`Area::take`] can still give, alignment aside.
    #[must_use]
    pub fn left(&self) -> usize {
        self.len - self.taken.load(Ordering::Relaxed)
    }

    /// The address of `len` bytes at `guest`.
    fn pointer(&self, guest: u64, len: usize) -> *mut u8 {
        let offset = guest.checked_sub(self.guest).expect("the address lies in the pod's memory") as usize;
        assert!(offset + len <= self.len, "{len} bytes at {guest:#x} lie in the pod's memory");
        self.base.as_ptr().wrapping_add(offset)
    }

    /// Copies bytes out.
    pub fn read(&self, guest: u64, into: &mut [u8]) {
        let from = self.pointer(guest, into.len());
        // SAFETY: `pointer` checked the range against the mapping; `into` is ordinary memory outside of it.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    /// Copies bytes in.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        let to = self.pointer(guest, bytes.len());
        // SAFETY: `pointer` checked the range against the mapping; `bytes` is ordinary memory outside of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Reads a little-endian word that the device may write at any time; what it wrote before is seen as well.
    #[must_use]
    pub fn load16(&self, guest: u64) -> u16 {
        u16::from_le(self.word16(guest).load(Ordering::Acquire))
    }

    /// Writes a little-endian word; what was written before is seen by a device that sees it.
    pub fn store16(&self, guest: u64, word: u16) {
        self.word16(guest).store(word.to_le(), Ordering::Release);
    }

    /// As [`Area::load16`], of four bytes.
    #[must_use]
    pub fn load32(&self, guest: u64) -> u32 {
        let pointer = self.pointer(guest, 4).cast::<u32>();
        assert!(pointer.is_aligned(), "words of a ring are aligned");
        // SAFETY: in the mapping and aligned; shared words are only touched as atomics.
        u32::from_le(unsafe { AtomicU32::from_ptr(pointer) }.load(Ordering::Acquire))
    }

    fn word16(&self, guest: u64) -> &AtomicU16 {
        let pointer = self.pointer(guest, 2).cast::<u16>();
        assert!(pointer.is_aligned(), "words of a ring are aligned");
        // SAFETY: in the mapping, which lives as long as `self`, and aligned; shared words are only touched as atomics.
        unsafe { AtomicU16::from_ptr(pointer) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is this area's own, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
