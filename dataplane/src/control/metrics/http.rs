//! `/metrics` over HTTP: one request a connection, few connections at a time, none for long.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
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
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Scrape, exposition};
use crate::control::Service;

/// Scrapers that are served at a time; more wait for their turn.
const CONNECTIONS: usize = 8;
/// How long a connection may last, a scraper that reads slowly included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why `/metrics` cannot be served.
#[derive(Debug, Error)]
#[error("control.metrics: cannot listen on {address}: {source}; {}", mend(source))]
pub struct MetricsError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

fn mend(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::AddrInUse => "see who has the port with `ss -ltnp`, or name another",
        ErrorKind::AddrNotAvailable => "no interface here has the address: name one that `ip address` shows",
        ErrorKind::PermissionDenied => "ports under 1024 take CAP_NET_BIND_SERVICE: name a higher one",
        _ => "name another address and port, or leave the key out",
    }
}

/// A TCP port that is listened on.
#[derive(Debug)]
pub struct MetricsListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsListener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// [`MetricsError`], which names the address.
    pub fn bind(address: SocketAddr) -> Result<MetricsListener, MetricsError> {
        let listen = || {
            let listener = BlockingListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = listen().map_err(|source| MetricsError { address, source })?;
        Ok(MetricsListener { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Service {
    /// Answers scrapers, until its task is dropped.
    pub async fn serve_metrics(self, at: MetricsListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        // Nobody closes the semaphore.
        while let Ok(seat) = Arc::clone(&room).acquire_owned().await {
            match at.listener.accept().await {
                Ok((stream, _)) => {
                    let service = self.clone();
                    tokio::spawn(async move {
                        serve_one(service, stream).await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    tracing::warn!("{}: a connection was not accepted: {error}", at.address);
                    // Out of descriptors, most likely: do not spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_one(service: Service, stream: TcpStream) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(&service, request.method(), request.uri().path()).await) }
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("metrics: a connection broke: {error}"),
        Err(_) => tracing::debug!("metrics: a connection took longer than {PATIENCE:?}"),
    }
}

async fn answer(service: &Service, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if path != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is nothing but /metrics here\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match service.look(Scrape::of).await {
        Ok(scrape) => {
            let mut found = Response::new(Full::new(Bytes::from(scrape.text())));
            let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
            found.headers_mut().insert(CONTENT_TYPE, kind);
            found
        }
        Err(gone) => plain(StatusCode::SERVICE_UNAVAILABLE, gone.message()),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
