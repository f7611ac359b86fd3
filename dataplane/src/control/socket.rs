//! The unix socket that the daemon listens on.

use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use futures::Stream;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// Who may speak to the daemon: root, and the socket's group.
const MODE: u32 = 0o660;

/// Why nobody can be listened to.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{}: another daemon answers there; stop it, or give this one a socket of its own with control.socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket has the name.
    #[error("{}: there is a file of this name that is no socket; remove it, or choose another control.socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{}: cannot {what}: {source}; see whether the folder is there and may be written by this user", path.display())]
    System {
        /// The socket or its folder.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on; its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("{}: the socket stays: {error}", self.0.display());
        }
    }
}

impl Listener {
    /// Listens on `path`: makes its folder, and takes the place of a socket that a daemon left behind.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        let failed = |what| move |source| SocketError::System { path: path.to_owned(), what, source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed("make its folder"))?;
        }
        clear(path)?;
        let listener = UnixListener::bind(path).map_err(failed("bind"))?;
        let file = SocketFile(path.to_owned());
        let mode = std::fs::Permissions::from_mode(MODE);
        std::fs::set_permissions(path, mode).map_err(failed("set the mode"))?;
        Ok(Listener { listener, file })
    }

    /// The connections that come in. One that fails on its way is passed over.
    pub(super) fn connections(self) -> impl Stream<Item = io::Result<UnixStream>> {
        futures::stream::unfold(self, |it| async move {
            let accepted = it.listener.accept().await;
            if let Err(error) = &accepted {
                tracing::warn!("{}: a connection was not accepted: {error}", it.file.0.display());
                // Out of descriptors, most likely: do not spin.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Some((accepted.map(|(stream, _)| stream), it))
        })
    }
}

/// Removes a socket that nobody answers on.
fn clear(path: &Path) -> Result<(), SocketError> {
    let failed = |what, source| SocketError::System { path: path.to_owned(), what, source };
    match BlockingStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let is_socket = std::fs::symlink_metadata(path)
                .map(|it| std::os::unix::fs::FileTypeExt::is_socket(&it.file_type()))
                .map_err(|source| failed("look at it", source))?;
            if !is_socket {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            std::fs::remove_file(path).map_err(|source| failed("remove the old socket", source))
        }
        Err(source) => Err(failed("look whether somebody answers", source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("penstock-socket-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    fn bind(path: &Path) -> Result<Listener, SocketError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        Listener::bind(path)
    }

    #[test]
    fn the_folder_is_made_and_a_socket_without_a_daemon_is_replaced() {
        let folder = folder("stale");
        let path = folder.join("deep/penstock.sock");
        let listener = bind(&path).unwrap();
        // As after `kill -9`: the file stays, nobody listens.
        let Listener { listener, file } = listener;
        std::mem::forget(file);
        drop(listener);
        let again = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        drop(again);
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_daemon_that_answers_and_a_file_of_the_name_are_left_alone() {
        let folder = folder("taken");
        let path = folder.join("penstock.sock");
        let _running = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
        let file = folder.join("notes.txt");
        std::fs::write(&file, "keep me").unwrap();
        assert!(matches!(bind(&file), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "keep me");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
