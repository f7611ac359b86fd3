//! The session's socket: a path that fits, a file that is ours to make, and a connection that does not wait.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Bytes of a socket's path at most: `sun_path` has 108, one of them for the end (`sys/un.h`).
pub const MAX_PATH: usize = 107;

/// Who may connect to a socket that we serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The group that owns it; `None`: this process's.
    pub group: Option<u32>,
    /// Its permissions; `None`: read and write for owner and group (0o660).
    pub mode: Option<u32>,
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path does not fit.
    #[error(
        "{}: the path has {} bytes and a socket's at most {MAX_PATH}; use a shorter one", path.display(), path.as_os_str().len()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// No path, or one with a zero byte.
    #[error("{path:?} is no path for a socket; give an absolute path")]
    NoPath {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{}: there is a file that is no socket; it is left alone: choose another path or remove it", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody serves it.
    #[error("{}: somebody serves this socket already; end that process or choose another path", path.display())]
    Served {
        /// The path.
        path: PathBuf,
    },
    /// It is dead, but not ours.
    #[error(
        "{}: a dead socket of user {owner}, and this process is user {us}; it is left alone: remove it if its owner is gone",
        path.display()
    )]
    Foreign {
        /// The path.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// A system call failed.
    #[error("{}: {call} failed: {source}{}", path.display(), hint(call, source))]
    System {
        /// The path.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The likely cause and the mend.
fn hint(call: &str, error: &io::Error) -> &'static str {
    match (call, error.raw_os_error()) {
        ("bind", Some(libc::ENOENT)) => "; the directory is missing: create it",
        ("bind" | "connect", Some(libc::EACCES)) => {
            "; this process may not write there: check owner and mode of the socket and its directories"
        }
        ("chown", Some(libc::EPERM)) => "; this process is not in that group: add it, or give it CAP_CHOWN",
        ("bind", Some(libc::EROFS)) => "; the file system is read-only: choose a directory under /run",
        ("connect", Some(libc::ENOENT)) => {
            "; nobody serves it yet: the application or QEMU is to create it (server=on)"
        }
        ("connect", Some(libc::ECONNREFUSED)) => "; nobody serves it any more: the application ended",
        ("connect", Some(libc::EAGAIN)) => "; its queue of connections is full: somebody else is connected",
        _ => "",
    }
}

/// Whether a path can be a socket's.
///
/// # Errors
/// [`SocketError::TooLong`] or [`SocketError::NoPath`].
pub fn check(path: &Path) -> Result<(), SocketError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH {
        return Err(SocketError::TooLong { path: path.to_owned() });
    }
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(SocketError::NoPath { path: path.to_owned() });
    }
    Ok(())
}

/// A socket that we serve; its file goes away with it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, to remove no other.
    identity: Option<(u64, u64)>,
}

impl Served {
    /// Makes a socket file and listens. A dead one of ours is replaced.
    pub(super) fn bind(path: &Path, access: Access) -> Result<Served, SocketError> {
        check(path)?;
        clear(path)?;
        let failed = |call| move |source| SocketError::System { path: path.to_owned(), call, source };
        let socket = socket(0).map_err(failed("socket"))?;
        // A socket's file takes its first mode from the socket (unix(7), `unix_bind_bsd`): nobody else's until it is set up.
        // SAFETY: sets the mode of a descriptor that is ours.
        os(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) }).map_err(failed("fchmod"))?;
        let (address, length) = address(path);
        // SAFETY: the address is a `sockaddr_un` of that length, which lives through the call.
        os(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
            .map_err(failed("bind"))?;
        // From here on the file is removed when something fails.
        let identity = identity(path);
        let served = Served { listener: UnixListener::from(socket), path: path.to_owned(), identity };
        if let Some(group) = access.group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("chown"))?;
        }
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| SocketError::NoPath { path: path.to_owned() })?;
        // SAFETY: the name is a C string that lives through the call.
        os(unsafe { libc::chmod(name.as_ptr(), access.mode.unwrap_or(0o660)) }).map_err(failed("chmod"))?;
        // SAFETY: no memory is handed over.
        os(unsafe { libc::listen(served.listener.as_raw_fd(), 8) }).map_err(failed("listen"))?;
        served.listener.set_nonblocking(true).map_err(failed("fcntl"))?;
        Ok(served)
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            // Somebody who removed it meanwhile has done our work.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let about = std::fs::symlink_metadata(path).ok()?;
    Some((about.dev(), about.ino()))
}

/// Makes room for a socket: removes a dead one of ours, and nothing else.
fn clear(path: &Path) -> Result<(), SocketError> {
    let about = match std::fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::System { path: path.to_owned(), call: "stat", source }),
    };
    if !about.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match connect(path) {
        Err(SocketError::System { source, .. }) if source.raw_os_error() == Some(libc::ECONNREFUSED) => {}
        // A full queue of connections is somebody's too.
        Err(SocketError::System { source, .. }) if source.raw_os_error() == Some(libc::EAGAIN) => {
            return Err(SocketError::Served { path: path.to_owned() });
        }
        Err(error) => return Err(error),
        Ok(_) => return Err(SocketError::Served { path: path.to_owned() }),
    }
    // SAFETY: only asks.
    let us = unsafe { libc::geteuid() };
    if about.uid() != us {
        return Err(SocketError::Foreign { path: path.to_owned(), owner: about.uid(), us });
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(SocketError::System { path: path.to_owned(), call: "unlink", source })
        }
        _ => Ok(()),
    }
}

/// Connects without waiting: a server whose queue of connections is full answers `EAGAIN`.
pub(super) fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    check(path)?;
    let failed = |call| move |source| SocketError::System { path: path.to_owned(), call, source };
    let socket = socket(libc::SOCK_NONBLOCK).map_err(failed("socket"))?;
    let (address, length) = address(path);
    // SAFETY: the address is a `sockaddr_un` of that length, which lives through the call.
    os(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })
        .map_err(failed("connect"))?;
    Ok(UnixStream::from(socket))
}

fn socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor; no memory is handed over.
    let raw = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    os(raw)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The address of a path that [`check`] found good.
fn address(path: &Path) -> (libc::sockaddr_un, libc::socklen_t) {
    let mut sun_path = [0; 108];
    for (to, &from) in sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = from as libc::c_char;
    }
    let address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path };
    (address, size_of::<libc::sockaddr_un>() as libc::socklen_t)
}

fn os(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fresh(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("penstock-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_path_of_107_bytes_fits_and_one_of_108_is_refused() {
        let path = |len: usize| PathBuf::from(format!("/{}", "a".repeat(len - 1)));
        assert!(check(&path(107)).is_ok());
        let refusal = check(&path(108)).unwrap_err();
        assert!(refusal.to_string().contains("108 bytes"), "{refusal}");
        assert!(check(Path::new("")).is_err());
    }

    #[test]
    fn the_longest_path_is_served_and_connected_to() {
        let directory = std::env::temp_dir();
        let missing = MAX_PATH - directory.as_os_str().len() - 1;
        let path = directory.join(format!("{:x<missing$}", std::process::id()));
        assert_eq!(path.as_os_str().len(), MAX_PATH);
        let served = Served::bind(&path, Access::default()).unwrap();
        connect(&path).unwrap();
        assert!(served.accept().unwrap().is_some());
    }

    #[test]
    fn a_served_socket_has_the_mode_that_was_asked_for_and_goes_away_with_its_server() {
        let path = fresh("mode");
        let served = Served::bind(&path, Access { group: None, mode: Some(0o606) }).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o606);
        drop(served);
        assert!(!path.exists());
    }

    #[test]
    fn the_group_is_set_before_anybody_can_connect() {
        let path = fresh("group");
        // SAFETY: only asks.
        let own = unsafe { libc::getegid() };
        let served = Served::bind(&path, Access { group: Some(own), mode: None }).unwrap();
        let about = std::fs::metadata(&path).unwrap();
        assert_eq!((about.gid(), about.permissions().mode() & 0o777), (own, 0o660));
        drop(served);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let path = fresh("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file of a listener");
        let served = Served::bind(&path, Access::default()).unwrap();
        let refusal = Served::bind(&path, Access::default()).unwrap_err();
        assert!(matches!(refusal, SocketError::Served { .. }), "{refusal}");
        assert!(path.exists(), "the live one is left alone");
        drop(served);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = fresh("file");
        std::fs::write(&path, "precious").unwrap();
        let refusal = Served::bind(&path, Access::default()).unwrap_err();
        assert!(matches!(refusal, SocketError::NotASocket { .. }), "{refusal}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_socket_that_took_our_ones_place_survives_our_end() {
        let path = fresh("successor");
        let served = Served::bind(&path, Access::default()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let successor = UnixListener::bind(&path).unwrap();
        drop(served);
        assert!(path.exists());
        drop(successor);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_missing_server_is_told_with_its_likely_cause() {
        let refusal = connect(&fresh("nobody")).unwrap_err();
        assert!(refusal.to_string().contains("nobody serves it yet"), "{refusal}");
    }
}
