//! `/metrics` over HTTP.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use hyper::StatusCode;
use thiserror::Error;
use tokio::net::TcpListener;

use super::{Scrape, exposition};
use crate::control::Service;
use crate::control::http::{self, Answer};

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
        let listener = http::listen(address).map_err(|source| MetricsError { address, source })?;
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
        let answer = move |path: String| {
            let service = self.clone();
            async move { answer(&service, &path).await }
        };
        http::serve(at.listener, "metrics", answer).await;
    }
}

async fn answer(service: &Service, path: &str) -> Answer {
    if path != "/metrics" {
        return http::plain(StatusCode::NOT_FOUND, "there is nothing but /metrics here\n");
    }
    match service.look(Scrape::of).await {
        Ok(scrape) => http::of_kind(StatusCode::OK, exposition::CONTENT_TYPE, scrape.text()),
        Err(gone) => http::plain(StatusCode::SERVICE_UNAVAILABLE, gone.message()),
    }
}
