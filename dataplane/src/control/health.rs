//! Health check ports: a load balancer asks a node there whether it has ready backends of a service.
//!
//! The answer is that of kube-proxy (`pkg/proxy/healthcheck/service_health.go`): 200 with a ready backend, else 503, on every
//! path, with the number of backends in the body and, as a weight, in a header.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::http::{self, Answer};

/// Between two attempts to listen at an address that cannot be had: one that is not usable yet, or another program's.
const AGAIN: Duration = Duration::from_secs(5);
/// What load balancers weigh nodes by, as kube-proxy names it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A service that load balancers ask for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The address and port.
    pub address: SocketAddr,
    /// The service.
    pub service: String,
    /// Its ready backends on this node.
    pub local_ready: usize,
}

/// Answers at every address that `checks` has, whenever they change, until their source is gone.
pub async fn serve_health_checks(mut checks: watch::Receiver<Vec<HealthCheck>>) {
    let mut open: BTreeMap<SocketAddr, JoinHandle<()>> = BTreeMap::new();
    let mut refused: BTreeSet<SocketAddr> = BTreeSet::new();
    loop {
        let wanted: BTreeSet<SocketAddr> =
            checks.borrow_and_update().iter().map(|check| check.address).collect();
        open.retain(|address, task| {
            let stays = wanted.contains(address);
            if !stays {
                task.abort();
            }
            stays
        });
        refused.retain(|address| wanted.contains(address));
        for address in wanted.into_iter().filter(|address| !open.contains_key(address)).collect::<Vec<_>>() {
            match http::listen(address) {
                Ok(listener) => {
                    refused.remove(&address);
                    let checks = checks.clone();
                    let answer = move |_| std::future::ready(answer(&checks.borrow(), address));
                    open.insert(address, tokio::spawn(http::serve(listener, "health check", answer)));
                }
                Err(error) => {
                    // Once, not every few seconds.
                    if refused.insert(address) {
                        tracing::warn!("health check port {address} is not answered: {error}; trying again");
                    }
                }
            }
        }
        let again = async {
            if refused.is_empty() { std::future::pending().await } else { tokio::time::sleep(AGAIN).await }
        };
        tokio::select! {
            changed = checks.changed() => if changed.is_err() { break },
            () = again => {}
        }
    }
    open.into_values().for_each(|task| task.abort());
}

/// What is said at `address`.
fn answer(checks: &[HealthCheck], address: SocketAddr) -> Answer {
    let Some(check) = checks.iter().find(|check| check.address == address) else {
        return http::plain(StatusCode::NOT_FOUND, "no service has this port any more\n");
    };
    let count = check.local_ready;
    let status = if count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "service": check.service, "localEndpoints": count });
    let mut answer = http::of_kind(status, "application/json", format!("{body}\n"));
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(count));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_ready_backends_is_well_and_one_without_is_not() {
        let check = |port, local_ready| HealthCheck {
            address: ([192, 0, 2, 1], port).into(),
            service: "shop/web".into(),
            local_ready,
        };
        let checks = [check(1, 2), check(2, 0)];
        let of = |port| {
            let answer = answer(&checks, ([192, 0, 2, 1], port).into());
            (answer.status().as_u16(), answer.headers().get(WEIGHT).cloned())
        };
        assert_eq!(of(1), (200, Some(HeaderValue::from(2))));
        assert_eq!(of(2), (503, Some(HeaderValue::from(0))));
        assert_eq!(of(3), (404, None));
    }
}
