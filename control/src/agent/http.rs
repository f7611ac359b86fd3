//! `/metrics`, `/healthz` and `/readyz`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::health::Health;

/// Callers that are served at a time.
const CONNECTIONS: usize = 8;
/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(10);
/// The text format that `prometheus_client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why nobody can ask.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; name another address and port with --listen")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// What is answered from.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) registry: Registry,
    pub(super) health: Health,
}

/// Listens on `address`.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, answers: Arc<Answers>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes the semaphore.
    while let Ok(seat) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    serve_one(stream, &answers).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!("a connection was not accepted: {error}");
                // Out of descriptors, most likely: do not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, answers: &Answers) {
    let respond =
        service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(&request, answers)));
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), respond);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection broke: {error}"),
        Err(_) => tracing::debug!("a connection took longer than {PATIENCE:?}"),
    }
}

fn answer(request: &Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "this can only be read\n".into());
    }
    let told = |wrong: Vec<String>| {
        if wrong.is_empty() {
            plain(StatusCode::OK, "ok\n".into())
        } else {
            plain(StatusCode::SERVICE_UNAVAILABLE, wrong.join("\n") + "\n")
        }
    };
    match request.uri().path() {
        "/metrics" => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &answers.registry) {
                Ok(()) => of_kind(StatusCode::OK, OPENMETRICS, text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        "/healthz" => told(answers.health.ailments()),
        "/readyz" => told(answers.health.missing()),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz here\n".into()),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    of_kind(status, "text/plain; charset=utf-8", text)
}

fn of_kind(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
