//! The unix socket at which the CNI plugin asks.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock_cni::failure::{Code, Failure};
use penstock_cni::protocol::{Answer, MAX_LINE, Request};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::attacher::{Attacher, Pods};
use super::dataplane::Dataplane;

/// How long a plugin may take to write its line: it has all of it before it connects.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nobody can ask.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot listen at {}: {source}; is the folder writable, and no other agent there?", .socket.display())]
    Listen {
        /// Its path.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another agent listens there.
    #[error("{}: another agent listens there; end it first, or choose another socket", .0.display())]
    InUse(PathBuf),
}

/// A socket that plugins ask at.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at a path, in place of a socket that was left behind. Only root may ask.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn listen(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { socket: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ServeError::InUse(path.to_owned()));
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until the future is dropped. What was begun then comes to its end as long as the runtime lives.
    pub async fn serve<D: Dataplane, P: Pods>(self, attacher: Arc<Attacher<D, P>>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // A task of its own: a plugin that is killed leaves no half of an attachment.
                    tokio::spawn(converse(stream, Arc::clone(&attacher)));
                }
                Err(error) => {
                    tracing::error!("{}: {error}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever finds it gone knows that nobody is there; a socket left behind says the same.
        let _ = fs::remove_file(&self.path);
    }
}

async fn converse<D: Dataplane, P: Pods>(mut stream: UnixStream, attacher: Arc<Attacher<D, P>>) {
    let answer = match tokio::time::timeout(PATIENCE, read(&mut stream)).await {
        Ok(Ok(request)) => attacher.answer(request).await,
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::new(Code::Io, "the request did not come whole")),
    };
    if let Err(error) = write(&mut stream, &answer).await {
        tracing::warn!("a plugin did not wait for its answer: {error}");
    }
}

async fn read(stream: &mut UnixStream) -> Result<Request, Failure> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(MAX_LINE));
    reader
        .read_line(&mut line)
        .await
        .map_err(|error| Failure::new(Code::Io, "the request cannot be read").with_details(error))?;
    serde_json::from_str(&line).map_err(|error| {
        let msg = "the plugin's request is not understood; plugin and agent are of different versions";
        Failure::new(Code::Decode, msg).with_details(error)
    })
}

async fn write(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.shutdown().await
}
