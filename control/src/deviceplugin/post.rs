//! The place at which a resource is served, and the kubelet's knowing of it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};

use super::dataplane::Outside;
use super::pool::{Device, Pool};
use super::proto::RegisterRequest;
use super::proto::device_plugin_server::DevicePluginServer;
use super::proto::registration_client::RegistrationClient;
use super::service::{OPTIONS, Service};

/// The version of the API.
const VERSION: &str = "v1beta1";

/// How often it is seen whether the kubelet is still the one that knows us, and whether our socket is still there: a
/// kubelet that starts removes it.
const LOOK: Duration = Duration::from_secs(1);

/// How often devices are looked at without a cause.
const LOOK_AT_DEVICES: Duration = Duration::from_secs(10);

/// How long the kubelet may take for a registration: it calls us meanwhile, and waits ten seconds for that.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long after a registration the kubelet may not be watching: it begins at once, and one that has ceased forgot us.
const UNWATCHED: Duration = Duration::from_secs(5);

/// Why a resource is not offered at the moment.
#[derive(Debug, Error)]
enum PostError {
    /// The socket cannot be made.
    #[error("cannot listen at {}: {source}; is it the kubelet's folder, mounted in the agent's pod?", .socket.display())]
    Listen {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("{}: another agent listens there; end it first", .0.display())]
    InUse(PathBuf),
    /// The kubelet cannot be reached.
    #[error("the kubelet cannot be reached at {}: {source}", .socket.display())]
    Connect {
        socket: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    /// The kubelet refused.
    #[error("the kubelet did not take the resource: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
    /// The kubelet did not answer.
    #[error("the kubelet did not answer within {} s", PATIENCE.as_secs())]
    Slow,
}

/// Which file a path leads to: another one when it was made anew, even with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    number: u64,
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(path: &Path) -> Option<Self> {
        let seen = fs::symlink_metadata(path).ok()?;
        Some(Self { device: seen.dev(), number: seen.ino(), changed: (seen.ctime(), seen.ctime_nsec()) })
    }
}

/// The place of one resource.
#[derive(Debug)]
pub(super) struct Post {
    folder: PathBuf,
    pool: Arc<dyn Pool>,
    outside: watch::Receiver<Outside>,
    devices: watch::Sender<Vec<Device>>,
    /// What was complained of last: the same is not said again and again.
    complaint: String,
}

impl Post {
    /// A place in the kubelet's folder.
    pub(super) fn new(folder: PathBuf, pool: Arc<dyn Pool>, outside: watch::Receiver<Outside>) -> Self {
        let devices = watch::Sender::new(pool.devices(&outside.borrow()));
        Self { folder, pool, outside, devices, complaint: String::new() }
    }

    /// Holds the place for ever.
    pub(super) async fn hold(mut self) {
        loop {
            if let Err(error) = self.serve().await {
                self.complain(&error);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn complain(&mut self, error: &PostError) {
        let text = error.to_string();
        if self.complaint != text {
            tracing::warn!("{}/{} is not offered: {text}", super::DOMAIN, self.pool.name());
            self.complaint = text;
        }
    }

    fn file_name(&self) -> String {
        format!("penstock-{}.sock", self.pool.name())
    }

    /// Serves until the socket is gone from the folder.
    async fn serve(&mut self) -> Result<(), PostError> {
        let path = self.folder.join(self.file_name());
        let listener = listen(&path)?;
        let own = FileIdentity::of(&path);
        let service = Service { pool: Arc::clone(&self.pool), devices: self.devices.subscribe() };
        let server = Server::builder().add_service(DevicePluginServer::new(service));
        // Listens as long as this call lasts; what is connected goes on until the kubelet lets go of it.
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_at_devices = interval(LOOK_AT_DEVICES);
        let mut known_to: Option<(FileIdentity, Instant)> = None;
        loop {
            tokio::select! {
                _ = look.tick() => {
                    if FileIdentity::of(&path) != own {
                        tracing::info!("{} is gone: the kubelet began anew", path.display());
                        return Ok(());
                    }
                    self.stay_known(&mut known_to).await;
                }
                _ = look_at_devices.tick() => self.look_at_devices().await,
                Ok(()) = self.outside.changed() => self.look_at_devices().await,
                _ = serving.join_next() => return Ok(()),
            }
        }
    }

    /// Registers with a kubelet that does not know us.
    async fn stay_known(&mut self, known_to: &mut Option<(FileIdentity, Instant)>) {
        let kubelet = self.folder.join("kubelet.sock");
        let Some(there) = FileIdentity::of(&kubelet) else {
            *known_to = None;
            return;
        };
        // The service itself holds one.
        let is_watched = self.devices.receiver_count() > 1;
        let is_known =
            known_to.is_some_and(|(it, since)| it == there && (is_watched || since.elapsed() < UNWATCHED));
        if is_known {
            return;
        }
        match self.register(&kubelet).await {
            Ok(()) => {
                tracing::info!("the kubelet knows {}/{}", super::DOMAIN, self.pool.name());
                self.complaint.clear();
                *known_to = Some((there, Instant::now()));
            }
            Err(error) => self.complain(&error),
        }
    }

    async fn register(&self, kubelet: &Path) -> Result<(), PostError> {
        let connect = |source| PostError::Connect { socket: kubelet.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", kubelet.display())).map_err(connect)?;
        let ask = async {
            let channel = endpoint.connect().await.map_err(connect)?;
            let request = RegisterRequest {
                version: VERSION.to_owned(),
                endpoint: self.file_name(),
                resource_name: format!("{}/{}", super::DOMAIN, self.pool.name()),
                options: Some(OPTIONS),
            };
            RegistrationClient::new(channel)
                .register(request)
                .await
                .map_err(|status| PostError::Refused(Box::new(status)))
        };
        timeout(PATIENCE, ask).await.map_err(|_| PostError::Slow)?.map(drop)
    }

    async fn look_at_devices(&mut self) {
        let (pool, outside) = (Arc::clone(&self.pool), self.outside.borrow_and_update().clone());
        let looked = tokio::task::spawn_blocking(move || pool.devices(&outside)).await;
        let Ok(devices) = looked else { return };
        self.devices.send_if_modified(|told| {
            let differs = *told != devices;
            if differs {
                let healthy = devices.iter().filter(|device| device.is_healthy).count();
                let (all, name) = (devices.len(), self.pool.name());
                tracing::info!("{}/{name}: {healthy} of {all} devices are healthy", super::DOMAIN);
                *told = devices;
            }
            differs
        });
    }
}

/// Listens in place of a socket that was left behind.
fn listen(path: &Path) -> Result<UnixListener, PostError> {
    let failed = |source| PostError::Listen { socket: path.to_owned(), source };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(PostError::InUse(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}
