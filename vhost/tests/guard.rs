//! The guard against truncated files is for guests' memory only: any other SIGBUS goes where it went before.

#![allow(clippy::unwrap_used, reason = "the leave for tests does not reach the functions beside them")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use penstock_vhost::naive::Arena;
use penstock_vhost::{MemoryError, RegionSetup};

/// Tells this program, started again, which SIGBUS to meet.
const ROLE: &str = "PENSTOCK_TEST_SIGBUS";

/// What a former handler ends the process with.
const SEEN: i32 = 7;

extern "C" fn former(_: libc::c_int) {
    // SAFETY: ends the process; async-signal-safe.
    unsafe { libc::_exit(SEEN) };
}

/// Meets a SIGBUS in memory that is no guest's, if this is the program started again.
#[test]
fn meet_sigbus() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "handled" {
        // SAFETY: the handler is async-signal-safe.
        unsafe { libc::signal(libc::SIGBUS, former as *const () as libc::sighandler_t) };
    }
    // The guard is in place once there is a guest's memory.
    let guest = Arena::new(4096).unwrap();
    let file = guest.file().try_clone().unwrap();
    // SAFETY: a mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(page, libc::MAP_FAILED);
    file.set_len(0).unwrap();
    // Our own mapping of the guest is guarded ...
    assert_eq!(guest.read(0, 1), [0]);
    // ... and this one is not.
    // SAFETY: mapped above; the read is meant to fault.
    let byte = unsafe { page.cast::<u8>().read_volatile() };
    panic!("{byte} was read from a page that is gone");
}

fn met(role: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let run = Command::new(program).args(["meet_sigbus", "--exact"]).env(ROLE, role).output().unwrap();
    println!("{}", String::from_utf8_lossy(&run.stdout));
    run.status
}

#[test]
fn a_sigbus_elsewhere_ends_the_process_as_it_would_have() {
    assert_eq!(met("plain").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_former_handler_sees_what_is_not_ours() {
    assert_eq!(met("handled").code(), Some(SEEN));
}

#[test]
fn memory_whose_pages_may_never_come_is_refused() {
    // A file of sysfs stands for those of file systems that are neither memory nor a disk.
    let file = File::open("/sys/kernel/uevent_seqnum").unwrap();
    let region = RegionSetup { guest: 0, user: 0, bytes: 16, offset: 0, file };
    let refused = penstock_vhost::GuestMemory::map([region]).unwrap_err();
    assert!(matches!(refused, MemoryError::FileSystem { kind: 0x6265_6572, .. }), "{refused}");
}
