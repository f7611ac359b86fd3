//! The SIGBUS guard: a peer that truncates its file behind our mapping must not end this process.
//!
//! Reading a page that the file no longer has raises SIGBUS. The handler puts a page of zeros in its place if it lies in a
//! region that is watched, and marks the region poisoned; its port then stops with a reason. Any other SIGBUS goes to
//! whoever handled it before.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Mappings that can be watched at a time, in the whole process.
const WATCHES: usize = 8192;

/// One watched mapping. The handler reads it without a lock: `start` is set last and cleared first.
struct Slot {
    start: AtomicUsize,
    bytes: AtomicUsize,
    page: AtomicUsize,
    poisoned: AtomicBool,
}

static SLOTS: [Slot; WATCHES] = [const {
    Slot {
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; WATCHES];

/// Slots that have ever been used: as far as the handler looks.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Pages that were replaced since the process began.
static REPLACED: AtomicU64 = AtomicU64::new(0);

/// Whether the handler is in place; held while a slot is taken.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// What handled SIGBUS before us: the address of its `sigaction`, which is never freed.
static FORMER: AtomicUsize = AtomicUsize::new(0);

/// A look at whether any watched memory of the process was poisoned since the last look: one load of a word that is
/// hardly ever written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alarm {
    seen: u64,
}

impl Alarm {
    /// One that has seen everything up to now.
    #[must_use]
    pub(crate) fn new() -> Alarm {
        Alarm { seen: REPLACED.load(Ordering::Acquire) }
    }

    /// Whether something was poisoned since the last time; whose it was is yet to be found out.
    #[inline(always)]
    pub(crate) fn rings(&mut self) -> bool {
        let now = REPLACED.load(Ordering::Acquire);
        let rings = now != self.seen;
        self.seen = now;
        rings
    }
}

/// A mapping under watch, until dropped.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches a mapping of whole pages.
    pub(super) fn over(start: usize, bytes: usize, page: usize) -> io::Result<Watch> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            install()?;
            *installed = true;
        }
        let free = SLOTS.iter().position(|slot| slot.start.load(Ordering::Relaxed) == 0);
        let place = free.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        let slot = &SLOTS[place];
        slot.poisoned.store(false, Ordering::Relaxed);
        slot.bytes.store(bytes, Ordering::Relaxed);
        slot.page.store(page, Ordering::Relaxed);
        USED.fetch_max(place + 1, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Ok(Watch { slot: place })
    }

    pub(super) fn is_poisoned(&self) -> bool {
        SLOTS[self.slot].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SLOTS[self.slot].start.store(0, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    // SAFETY: `sigaction` is plain C data, for which all zeros is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // The alternative stack, if the thread has one, so that a fault deep down is served too.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut former: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the set is exclusively borrowed.
    unsafe { libc::sigemptyset(&raw mut action.sa_mask) };
    // Known before the handler can run, so that it never lacks it.
    // SAFETY: only asks; `former` is exclusively borrowed.
    unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut former) };
    FORMER.store(Box::into_raw(Box::new(former)) as usize, Ordering::Release);
    // SAFETY: the handler is async-signal-safe: atomics, one mmap, sigaction and the former handler.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid `siginfo_t` (SA_SIGINFO).
    let about = unsafe { &*info };
    // SAFETY: SIGBUS has an address.
    let address = unsafe { about.si_addr() } as usize;
    if !replace_page(address) {
        hand_on(signal, info, context);
    }
}

/// Puts zeros where a watched page was lost; whether it was one.
fn replace_page(address: usize) -> bool {
    let slots = &SLOTS[..USED.load(Ordering::Relaxed)];
    for slot in slots {
        let start = slot.start.load(Ordering::Acquire);
        if start == 0 || address.wrapping_sub(start) >= slot.bytes.load(Ordering::Relaxed) {
            continue;
        }
        let page = slot.page.load(Ordering::Relaxed);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let base = start + (address - start) / page * page;
        // SAFETY: `errno` belongs to this thread.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        let before = unsafe { *errno };
        // SAFETY: replaces one page of a mapping that is ours and held by whoever is reading it just now.
        let mapped = unsafe { libc::mmap(base as *mut libc::c_void, page, protection, flags, -1, 0) };
        // SAFETY: as above.
        unsafe { *errno = before };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.poisoned.store(true, Ordering::Release);
        REPLACED.fetch_add(1, Ordering::Release);
        return true;
    }
    false
}

/// A SIGBUS that is not ours: does what would have been done without us.
fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let former = FORMER.load(Ordering::Acquire) as *const libc::sigaction;
    // SAFETY: set before the handler was installed, and never freed.
    let former = unsafe { &*former };
    match former.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction is run again, and meets the default. A fault cannot be ignored.
            // SAFETY: restores the default; async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if former.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO the word is such a function's address (sigaction(2)).
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the word is such a function's address (sigaction(2)).
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
