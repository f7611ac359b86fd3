//! The control API of the dataplane: `penstock.proto` and the typed model beside it.
//!
//! [`model`] is what the rest of the project works with: its types can hold only well-formed values. [`proto`] is
//! what travels over the socket, with the client and the server trait that tonic makes of it. [`convert`] leads
//! from one to the other, and [`mod@file`] from a TOML file to the model; both report every fault at once.
//! [`query`] is what may be asked, [`filter`] chooses frames, [`describe`] puts one into words, and [`client`] speaks
//! to the daemon.

pub mod check;
mod classifier;
pub mod client;
pub mod convert;
pub mod describe;
mod dissect;
pub mod fault;
pub mod file;
pub mod filter;
pub mod model;
pub mod query;
pub mod scalar;

pub use fault::Fault;

/// The messages, the client and the server trait that are generated from `penstock.proto`.
///
/// The daemon implements [`proto::dataplane_server::Dataplane`].
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("penstock.v1");
}

/// The largest message that either side accepts, in bytes: room for a million routes in one answer.
pub const MESSAGE_LIMIT: usize = 256 << 20;

/// Where the daemon listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/penstock/penstock.sock";

/// Wraps the daemon's implementation of the service, with the message limits that the client has too.
pub fn server<S: proto::dataplane_server::Dataplane>(
    service: S,
) -> proto::dataplane_server::DataplaneServer<S> {
    proto::dataplane_server::DataplaneServer::new(service)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}
