//! Answers that come as things happen: passed on until there are no more, or nobody wants them.

use std::io;

use penstock_api::client::Stream;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Passes every piece to `take` until the daemon ends the answer, someone interrupts, or whoever reads has gone.
pub(crate) async fn follow<T>(
    stream: &mut Stream<T>,
    to_stdout: bool,
    mut take: impl FnMut(T) -> io::Result<()>,
) -> Result<(), Failure> {
    let on =
        |kind| signal(kind).map_err(|source| Failure::Io { what: "watching for signals".to_owned(), source });
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let mut gone = std::pin::pin!(reader_gone(to_stdout));
    loop {
        let piece = tokio::select! {
            piece = stream.next() => piece?,
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            () = &mut gone => None,
        };
        let Some(piece) = piece else { return Ok(()) };
        match take(piece) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns when standard output is a pipe that nobody reads any more, even if nothing comes that would show it.
async fn reader_gone(to_stdout: bool) {
    // Opened anew through /proc, since watching makes a descriptor non-blocking and our writes must block.
    // What is no pipe cannot be opened like this and need not be watched.
    let pipe = pipe::OpenOptions::new().open_sender("/proc/self/fd/1");
    match pipe {
        Ok(pipe) if to_stdout && pipe.ready(Interest::ERROR).await.is_ok() => {}
        _ => std::future::pending().await,
    }
}
