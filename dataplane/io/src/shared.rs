//! Named memory that outlives the process: a file, mapped shared, that one process owns at a time.
//!
//! ```text
//!  page 0: magic, versions, sizes, seed, boot, clock, their checksum | owner, adoptions      page 1 on: words
//! ```
//!
//! What a killed daemon had written is there when the next one opens the file. The header says whether it may be taken:
//! a file of another layout, another boot or with a damaged header is set aside under another name, never misread.
//! What the words mean, and which of them were half-written, is for their owner to find out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::clock::{Ticks, TicksPerSecond};
use crate::pages::HUGE;

/// "PENSTOCK", most significant byte first: the first word of every region.
const MAGIC: u64 = 0x5045_4e53_544f_434b;
/// The version of the header itself.
const HEADER_VERSION: u64 = 1;
/// Bytes in front of the words: one page, so that they are as aligned as the mapping.
const HEADER_BYTES: usize = 4096;
/// Words of the header that are in use.
const HEADER_WORDS: usize = 13;
/// `MADV_POPULATE_WRITE` (linux/mman.h), from Linux 5.14 on.
const MADV_POPULATE_WRITE: libc::c_int = 23;
/// Times that opening starts over because the file was renamed or removed meanwhile.
const RETRIES: usize = 16;

// Where the header's words are. Those up to `CHECKSUM` never change once written; the checksum covers them.
const MAGIC_AT: usize = 0;
const VERSIONS_AT: usize = 1;
const WORDS_AT: usize = 2;
const SHAPE_AT: usize = 3;
const SEED_AT: usize = 4;
const BOOT_AT: usize = 6;
const ORIGIN_AT: usize = 8;
const RATE_AT: usize = 9;
const CHECKSUM_AT: usize = 10;
const OWNER_AT: usize = 11;
const ADOPTIONS_AT: usize = 12;

/// What the words of a region are, as far as this module must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The version of their meaning: another version is never adopted.
    pub version: u32,
    /// How many there are.
    pub words: usize,
    /// A number for everything else that must be the same, e.g. a capacity.
    pub shape: u64,
}

/// The time-stamp counter as a region's first owner found it; its later owners go on with it, so that times in the
/// words mean the same to all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RegionClock {
    /// The counter when the region was made.
    pub origin: Ticks,
    /// How fast it runs.
    pub rate: TicksPerSecond,
}

impl RegionClock {
    /// Whole seconds from the region's making to `now`, counted from one: zero is no moment.
    #[inline]
    #[must_use]
    pub fn seconds(&self, now: Ticks) -> u32 {
        (now.since(self.origin) / self.rate.0.max(1)).saturating_add(1).min(u64::from(u32::MAX)) as u32
    }
}

/// How a region came to be this process's.
#[derive(Debug)]
pub enum Opened {
    /// There was none.
    Fresh,
    /// A former owner's words are in it.
    Adopted {
        /// How many owners it had before.
        owners: u64,
    },
    /// There was one that may not be used; the words are new.
    SetAside {
        /// Why.
        why: Unfit,
        /// Where it is now. It may be removed; the next one set aside takes its place.
        to: PathBuf,
    },
}

/// Why a region that is there may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// It does not begin as regions do: another program's file, or its maker was killed before it was done.
    #[error("it was never finished, or it is another program's file")]
    Unfinished,
    /// Its header does not add up.
    #[error("its header is damaged")]
    Damaged,
    /// Another release wrote it.
    #[error("it has layout {found}, and this release works with layout {expected}")]
    Version {
        /// Header and layout version in the file, as `header.layout`.
        found: Version,
        /// Header and layout version of this release.
        expected: Version,
    },
    /// It has another size or shape.
    #[error("it was made for another capacity ({found} words instead of {expected}, or another shape)")]
    Shape {
        /// Words in the file.
        found: u64,
        /// Words wanted.
        expected: u64,
    },
    /// The machine was started anew since: its times mean nothing and its connections are gone.
    #[error("it is from before the machine's last start")]
    OtherBoot,
    /// The time-stamp counter stands before the moment when the region was made.
    #[error("the machine's time-stamp counter has gone back since it was made")]
    ClockWentBack,
}

/// A header's and a layout's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The header's.
    pub header: u32,
    /// The layout's.
    pub layout: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.header, self.layout)
    }
}

/// Why a region cannot be had.
#[derive(Debug, Error)]
pub enum SharedError {
    /// Another process has it.
    #[error("{} is in use by process {owner}: is another daemon running? Stop it, or give this one another name", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// The process that said last that it is its.
        owner: u64,
    },
    /// The file cannot be opened or made.
    #[error("cannot open {}: does its directory exist, and is it writable? (/dev/shm and /run/penstock are usual)", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no room for it.
    #[error(
        "no room for {bytes} bytes in {}: make the file system larger (`mount -o remount,size=… /dev/shm`) or the \
         table smaller", path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Bytes that it needs.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be mapped.
    #[error("cannot map {bytes} bytes of {}: is there a limit on locked or virtual memory (`ulimit -v`)?", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// Bytes of it.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An unfit file could not be renamed.
    #[error("cannot set {} aside ({why}): remove it by hand", path.display())]
    SetAside {
        /// The file.
        path: PathBuf,
        /// Why it is unfit.
        why: Unfit,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The machine does not say which boot this is, or has no randomness.
    #[error("cannot read {what}: is /proc mounted?")]
    System {
        /// What could not be read.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others kept renaming or removing the file.
    #[error("{} keeps changing under our hands: does something clean up its directory?", path.display())]
    Unsteady {
        /// The file.
        path: PathBuf,
    },
}

/// A shared mapping of a whole file, aligned to 2 MiB; unmapped on drop.
struct SharedMapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is reached as atomics only, and nothing about the mapping is tied to a thread.
unsafe impl Send for SharedMapping {}
// SAFETY: as above.
unsafe impl Sync for SharedMapping {}

/// A named region of words, this process's alone until it is dropped or the process ends, however it ends.
pub struct SharedRegion {
    mapping: SharedMapping,
    /// Holds the lock; the kernel lets go of it with the process.
    _file: File,
    path: PathBuf,
    words: usize,
}

impl SharedRegion {
    /// Opens the region `name` in `directory` (best one of memory: /dev/shm, /run), or makes it.
    ///
    /// `now` and `rate` become the clock of a region that is made; an adopted one keeps its own.
    ///
    /// # Errors
    /// [`SharedError`], which names the file and the mend. A region that is there but unfit is no error: it is set aside
    /// as `NAME.aside`, see [`Opened::SetAside`].
    pub fn open(
        directory: &Path,
        name: &str,
        layout: Layout,
        now: Ticks,
        rate: TicksPerSecond,
    ) -> Result<(SharedRegion, Opened), SharedError> {
        let path = directory.join(name);
        let boot = boot_id()?;
        let mut unfit = None;
        for _ in 0..RETRIES {
            let Some(file) = lock(&path)? else { continue };
            let bytes = HEADER_BYTES + layout.words * size_of::<u64>();
            if size_of_file(&file, &path)? == 0 {
                reserve(&file, &path, bytes)?;
                let region = SharedRegion::map(file, path, bytes, layout.words)?;
                region.inscribe(layout, boot, RegionClock { origin: now, rate })?;
                let opened = match unfit {
                    None => Opened::Fresh,
                    Some((why, to)) => Opened::SetAside { why, to },
                };
                return Ok((region, opened));
            }
            match judge(&file, layout, boot, now) {
                Ok(()) => {
                    let region = SharedRegion::map(file, path, bytes, layout.words)?;
                    let owners = region.take_over();
                    return Ok((region, Opened::Adopted { owners }));
                }
                Err(why) => {
                    let to = directory.join(format!("{name}.aside"));
                    fs::rename(&path, &to).map_err(|source| SharedError::SetAside {
                        path: path.clone(),
                        why,
                        source,
                    })?;
                    unfit = Some((why, to));
                }
            }
        }
        Err(SharedError::Unsteady { path })
    }

    /// The region for the rest of the process's life.
    #[must_use]
    pub fn leak(self) -> &'static SharedRegion {
        Box::leak(Box::new(self))
    }

    /// The words, zero at first.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `HEADER_BYTES` and then `words` words long, and lives as long as `self`.
        let first = unsafe { self.mapping.base.add(HEADER_BYTES) };
        // SAFETY: initialised by the kernel, aligned, inside the mapping, and only ever reached as atomics.
        unsafe { std::slice::from_raw_parts(first.as_ptr().cast(), self.words) }
    }

    /// A random number that was drawn when the region was made, the same for all its owners.
    #[must_use]
    pub fn seed(&self) -> [u64; 2] {
        [self.header(SEED_AT), self.header(SEED_AT + 1)]
    }

    /// The clock that times in the words are told by.
    #[must_use]
    pub fn clock(&self) -> RegionClock {
        RegionClock { origin: Ticks(self.header(ORIGIN_AT)), rate: TicksPerSecond(self.header(RATE_AT)) }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn header_words(&self) -> &[AtomicU64] {
        // SAFETY: the header's page is the mapping's first; it is only ever reached as atomics.
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr().cast(), HEADER_WORDS) }
    }

    fn header(&self, at: usize) -> u64 {
        self.header_words()[at].load(Ordering::Relaxed)
    }

    fn map(file: File, path: PathBuf, bytes: usize, words: usize) -> Result<SharedRegion, SharedError> {
        match SharedMapping::of(&file, bytes) {
            Ok(mapping) => Ok(SharedRegion { mapping, _file: file, path, words }),
            Err(source) => Err(SharedError::Map { path, bytes, source }),
        }
    }

    /// Writes the header of a new region, the magic last: a maker killed before that leaves an unfinished one.
    fn inscribe(&self, layout: Layout, boot: [u64; 2], clock: RegionClock) -> Result<(), SharedError> {
        let seed = random()?;
        let header = self.header_words();
        let set = |at: usize, value: u64| header[at].store(value, Ordering::Relaxed);
        set(VERSIONS_AT, HEADER_VERSION << 32 | u64::from(layout.version));
        set(WORDS_AT, layout.words as u64);
        set(SHAPE_AT, layout.shape);
        set(SEED_AT, seed[0]);
        set(SEED_AT + 1, seed[1]);
        set(BOOT_AT, boot[0]);
        set(BOOT_AT + 1, boot[1]);
        set(ORIGIN_AT, clock.origin.0);
        set(RATE_AT, clock.rate.0);
        set(CHECKSUM_AT, checksum(std::array::from_fn(|at| self.header(at))));
        set(OWNER_AT, u64::from(std::process::id()));
        header[MAGIC_AT].store(MAGIC, Ordering::Release);
        Ok(())
    }

    /// Writes the new owner down; returns how many there were before.
    fn take_over(&self) -> u64 {
        let header = self.header_words();
        header[OWNER_AT].store(u64::from(std::process::id()), Ordering::Relaxed);
        header[ADOPTIONS_AT].fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl SharedMapping {
    fn of(file: &File, bytes: usize) -> io::Result<SharedMapping> {
        let span = bytes.next_multiple_of(HUGE);
        // Addresses first, one huge page more than needed; the file goes into the aligned middle.
        // SAFETY: a mapping at an address of the kernel's choice touches no memory of ours.
        let whole = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), span + HUGE, libc::PROT_NONE, flags, -1, 0)
        };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let lead = (whole as usize).next_multiple_of(HUGE) - whole as usize;
        let middle = whole.wrapping_byte_add(lead);
        // SAFETY: the range lies inside the addresses just reserved, which nothing else knows of.
        let base = unsafe {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
            libc::mmap(middle, bytes, protection, flags, file.as_raw_fd(), 0)
        };
        let failed = (base == libc::MAP_FAILED).then(io::Error::last_os_error);
        let kept = if failed.is_some() { 0 } else { bytes.next_multiple_of(4096) };
        let head = if failed.is_some() { 0 } else { lead };
        if head > 0 {
            // SAFETY: the reserved addresses in front of the file; never used.
            unsafe { libc::munmap(whole, head) };
        }
        // SAFETY: the reserved addresses behind the file (all of them if it could not be mapped); never used.
        unsafe { libc::munmap(whole.wrapping_byte_add(head + kept), span + HUGE - head - kept) };
        if let Some(error) = failed {
            return Err(error);
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mapping = SharedMapping { base, bytes };
        mapping.touch();
        Ok(mapping)
    }

    /// Brings every page in, so that no worker faults on one.
    fn touch(&self) {
        // Advice only: most machines keep transparent huge pages away from shared memory.
        // SAFETY: the range is exactly this mapping.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: the range is exactly this mapping; populating does not change its contents.
        let done = unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, MADV_POPULATE_WRITE) };
        if done != 0 {
            // A kernel before 5.14: one read a page brings it in, as writable as the file is.
            for offset in (0..self.bytes).step_by(4096) {
                // SAFETY: the offset lies inside the mapping.
                let word = unsafe { self.base.add(offset) };
                // SAFETY: page-aligned, mapped, and reached as an atomic like all of the region.
                unsafe { AtomicU64::from_ptr(word.as_ptr().cast()) }.load(Ordering::Relaxed);
            }
        }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping, and its owner is going away.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Opens and locks the file; `None` if it was renamed or removed before the lock was had.
fn lock(path: &Path) -> Result<Option<File>, SharedError> {
    let failed = |source| SharedError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut word = [0; 8];
            // Only for the message: a file too short to say so belongs to a process that is just making it.
            let owner = match file.read_exact_at(&mut word, (OWNER_AT * 8) as u64) {
                Ok(()) => u64::from_ne_bytes(word),
                Err(_) => 0,
            };
            return Err(SharedError::InUse { path: path.to_owned(), owner });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let held = file.metadata().map_err(failed)?;
    Ok(match fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => Some(file),
        _ => None,
    })
}

fn size_of_file(file: &File, path: &Path) -> Result<u64, SharedError> {
    let metadata = file.metadata().map_err(|source| SharedError::Open { path: path.to_owned(), source })?;
    Ok(metadata.len())
}

/// Gives the file its size and its memory: a write into a file without memory behind it would end the process.
fn reserve(file: &File, path: &Path, bytes: usize) -> Result<(), SharedError> {
    // SAFETY: a system call on a descriptor that is open.
    let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
    if error == 0 {
        return Ok(());
    }
    // Empty again, so that the next attempt does not meet half a file.
    let _ = file.set_len(0);
    Err(SharedError::NoRoom { path: path.to_owned(), bytes, source: io::Error::from_raw_os_error(error) })
}

/// Whether what a locked file holds may be adopted.
fn judge(file: &File, layout: Layout, boot: [u64; 2], now: Ticks) -> Result<(), Unfit> {
    let mut bytes = [0; HEADER_WORDS * 8];
    file.read_exact_at(&mut bytes, 0).map_err(|_| Unfit::Unfinished)?;
    let mut header = [0; HEADER_WORDS];
    for (word, bytes) in header.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    if header[MAGIC_AT] != MAGIC {
        return Err(Unfit::Unfinished);
    }
    let version = |word: u64| Version { header: (word >> 32) as u32, layout: word as u32 };
    let (found, expected) =
        (version(header[VERSIONS_AT]), version(HEADER_VERSION << 32 | u64::from(layout.version)));
    if u64::from(found.header) != HEADER_VERSION {
        // Another header's checksum may stand elsewhere, so the version is asked first.
        return Err(Unfit::Version { found, expected });
    }
    if checksum(std::array::from_fn(|at| header[at])) != header[CHECKSUM_AT] {
        return Err(Unfit::Damaged);
    }
    if found != expected {
        return Err(Unfit::Version { found, expected });
    }
    let expected = layout.words as u64;
    let size = file.metadata().map_err(|_| Unfit::Damaged)?.len();
    if header[WORDS_AT] != expected || header[SHAPE_AT] != layout.shape {
        return Err(Unfit::Shape { found: header[WORDS_AT], expected });
    }
    if size != HEADER_BYTES as u64 + expected * 8 {
        return Err(Unfit::Damaged);
    }
    if header[BOOT_AT..BOOT_AT + 2] != boot {
        return Err(Unfit::OtherBoot);
    }
    if now.0 < header[ORIGIN_AT] {
        return Err(Unfit::ClockWentBack);
    }
    Ok(())
}

/// FNV-1a, 64 bits (RFC 9923), over the words that never change, the magic left out.
fn checksum(words: [u64; CHECKSUM_AT]) -> u64 {
    let bytes = words[VERSIONS_AT..].iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// This boot's random number (random(4)).
fn boot_id() -> Result<[u64; 2], SharedError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let failed = |source| SharedError::System { what: PATH, source };
    let text = fs::read_to_string(PATH).map_err(failed)?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&hex, 16).map_err(|error| failed(io::Error::other(error)))?;
    Ok([(id >> 64) as u64, id as u64])
}

fn random() -> Result<[u64; 2], SharedError> {
    let mut bytes = [0u8; 16];
    // SAFETY: the kernel writes at most sixteen bytes into sixteen bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != bytes.len() as isize {
        return Err(SharedError::System {
            what: "the system's randomness",
            source: io::Error::last_os_error(),
        });
    }
    let bits = u128::from_ne_bytes(bytes);
    Ok([(bits >> 64) as u64, bits as u64])
}

#[cfg(test)]
mod tests;
