//! A little HTTP for those who ask one thing: one request a connection, few connections at a time, none for long.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as BlockingListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Callers that are served at a time at one address; more wait for their turn.
const CONNECTIONS: usize = 8;
/// How long a connection may last, a caller that reads slowly included.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is answered.
pub(super) type Answer = Response<Full<Bytes>>;

/// Listens on `address`.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = BlockingListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers everybody who reads a path, until its task is dropped; `what` is what the log calls it.
pub(super) async fn serve<F>(
    listener: TcpListener,
    what: &'static str,
    answer: impl Fn(String) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Answer> + Send,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes the semaphore.
    while let Ok(seat) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    serve_one(stream, what, answer).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!("{what}: a connection was not accepted: {error}");
                // Out of descriptors, most likely: do not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one<F>(stream: TcpStream, what: &'static str, answer: impl Fn(String) -> F)
where
    F: Future<Output = Answer>,
{
    let answer = &answer;
    let respond = service_fn(move |request: Request<Incoming>| async move {
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        let answer = if reads { answer(request.uri().path().to_owned()).await } else { only_to_be_read() };
        Ok::<_, Infallible>(answer)
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), respond);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("{what}: a connection broke: {error}"),
        Err(_) => tracing::debug!("{what}: a connection took longer than {PATIENCE:?}"),
    }
}

fn only_to_be_read() -> Answer {
    let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "this can only be read\n");
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refused
}

/// An answer in plain text.
pub(super) fn plain(status: StatusCode, text: &str) -> Answer {
    of_kind(status, "text/plain; charset=utf-8", text.to_owned())
}

/// An answer of a content type.
pub(super) fn of_kind(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
