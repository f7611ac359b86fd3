//! Why a session refuses what its peer says, in words that name the likely cause and the mend.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;
use vhost::vhost_user::Error as ProtocolError;
use vhost::vhost_user::message::FrontendReq;

use crate::features;
use crate::handover::StopError;
use crate::memory::MemoryError;
use crate::ring::RingFault;

/// A request of a front-end, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(pub u32);

impl Request {
    /// Its meaning; `None` for a number that the protocol does not have.
    pub(super) fn meaning(self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.0).ok()
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(request) => write!(f, "{request:?}"),
            None => write!(f, "request {}", self.0),
        }
    }
}

/// Why a message was refused. The connection ends with it: the two sides no longer agree on what was said.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Not a header of the protocol.
    #[error(
        "a message with flags {flags:#x}, which is not version 1 of the vhost-user protocol; something else speaks on \
         this socket"
    )]
    Header {
        /// The flags that it has.
        flags: u32,
    },
    /// A number that is no request, or one that we do not serve.
    #[error(
        "{request}, which this back-end does not have and did not offer; the front-end is newer or broken"
    )]
    Unknown {
        /// The request.
        request: Request,
    },
    /// A message longer than any that the protocol has.
    #[error("{request} of {size} bytes, and no message is longer than {most}; the front-end is broken")]
    TooLong {
        /// The request.
        request: Request,
        /// Bytes that are said to follow the header.
        size: u32,
        /// Bytes that may.
        most: u32,
    },
    /// A message whose end does not come.
    #[error(
        "half a message: {has} of {needs} bytes came within {waited:?}; the front-end hangs or is broken"
    )]
    Half {
        /// Bytes that came.
        has: u32,
        /// Bytes that were announced, or that a header has.
        needs: u32,
        /// How long we waited.
        waited: Duration,
    },
    /// More descriptors than the protocol attaches to a message.
    #[error(
        "{request} with {count} descriptors, and no message has more than {most}; the front-end is broken"
    )]
    TooManyFiles {
        /// The request.
        request: Request,
        /// Descriptors attached.
        count: usize,
        /// Descriptors that may be.
        most: usize,
    },
    /// Descriptors came that we could not take.
    #[error(
        "{request}: descriptors were lost on the way; this process has none left (raise its limit: ulimit -n, LimitNOFILE)"
    )]
    FilesLost {
        /// The request.
        request: Request,
    },
    /// Replies that nobody reads.
    #[error("{bytes} bytes of replies were not read; the front-end hangs or is broken")]
    NotReading {
        /// Bytes in the socket.
        bytes: u32,
    },
    /// A body or descriptors that do not fit the request.
    #[error("{request}: {source}; the front-end is broken")]
    Malformed {
        /// The request.
        request: Request,
        /// What the protocol's parser said.
        #[source]
        source: ProtocolError,
    },
    /// A request of a protocol feature that was not acknowledged.
    #[error("{request}, which needs a feature that was not agreed upon ({source}); the front-end is broken")]
    NotAgreed {
        /// The request.
        request: Request,
        /// Which.
        #[source]
        source: ProtocolError,
    },
    /// A ring that the device does not have.
    #[error(
        "{request} for ring {index}, and there are {rings} (two each of {pairs} queue pairs); configure more pairs here, \
         or start the guest with queues={pairs}", pairs = rings / 2
    )]
    NoSuchRing {
        /// The request.
        request: Request,
        /// The ring's number.
        index: u32,
        /// How many there are.
        rings: usize,
    },
    /// A size that no ring can have.
    #[error("ring {index} of {size} entries; a ring has 1 to 32768")]
    RingSize {
        /// The ring's number.
        index: u32,
        /// What was asked for.
        size: u32,
    },
    /// Features that we did not offer.
    #[error("the front-end takes features that were not offered: {}; it is broken, or kept them from another back-end", list(*extra))]
    Features {
        /// Those.
        extra: u64,
    },
    /// Protocol features that we did not offer.
    #[error("the front-end takes protocol features that were not offered: {extra:#x}; it is broken")]
    ProtocolFeatures {
        /// Those.
        extra: u64,
    },
    /// Memory that cannot be shared.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A descriptor that is no doorbell.
    #[error("{request} for ring {index}: {source}; the front-end is broken")]
    Doorbell {
        /// The request.
        request: Request,
        /// The ring's number.
        index: u32,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// A record of descriptors in flight that cannot be used.
    #[error(
        "the record of descriptors in flight ({queues} queues of {size}): {source}; the front-end is broken"
    )]
    Inflight {
        /// Queues that it is for.
        queues: u16,
        /// Entries of each.
        size: u16,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// A dirty log that cannot be used.
    #[error("the dirty log of {bytes:#x} bytes: {source}; the front-end is broken")]
    Log {
        /// Its length.
        bytes: u64,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// A worker that does not let go of a ring.
    #[error(transparent)]
    Stop(#[from] StopError),
}

impl Refusal {
    /// What the protocol's parser said about a request, or what the device had refused through it.
    pub(super) fn from_protocol(request: Request, said: ProtocolError) -> Refusal {
        match said {
            ProtocolError::ReqHandlerError(error) => match error.downcast::<Refusal>() {
                Ok(refusal) => refusal,
                Err(error) => Refusal::Malformed { request, source: ProtocolError::ReqHandlerError(error) },
            },
            source @ (ProtocolError::InactiveFeature(_) | ProtocolError::InactiveOperation(_)) => {
                Refusal::NotAgreed { request, source }
            }
            source => Refusal::Malformed { request, source },
        }
    }
}

/// As the protocol's handlers return it; `from_protocol` gets it back.
impl From<Refusal> for ProtocolError {
    fn from(refusal: Refusal) -> ProtocolError {
        ProtocolError::ReqHandlerError(io::Error::other(refusal))
    }
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum Ending {
    /// The peer hung up between two messages: the guest or the application went away.
    #[error("the front-end hung up")]
    HungUp,
    /// The peer was cut off in the middle of a message.
    #[error("the front-end was cut off in the middle of a message")]
    CutOff,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[source] io::Error),
    /// What it said was refused.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// What it wrote to a ring was refused.
    #[error("queue pair {pair}: {fault}")]
    Ring {
        /// The pair.
        pair: usize,
        /// What is wrong.
        #[source]
        fault: RingFault,
    },
    /// A bug of ours.
    #[error("a bug in this back-end ({0}); please report it")]
    Bug(String),
}

impl Ending {
    /// What a failure of the socket means: a peer that is gone without having read everything resets it.
    pub(super) fn of_socket(error: io::Error) -> Ending {
        match error.raw_os_error() {
            Some(libc::ECONNRESET | libc::EPIPE) => Ending::HungUp,
            _ => Ending::Socket(error),
        }
    }

    /// What the protocol's parser said about a request.
    pub(super) fn of_protocol(request: Request, said: ProtocolError) -> Ending {
        match said {
            ProtocolError::SocketBroken(error) | ProtocolError::SocketError(error) => {
                Ending::of_socket(error)
            }
            ProtocolError::Disconnected => Ending::HungUp,
            said => Refusal::from_protocol(request, said).into(),
        }
    }

    /// Whether somebody is to blame, rather than gone.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(self, Ending::HungUp | Ending::CutOff)
    }
}

fn list(set: u64) -> String {
    features::names(set).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_device_refuses_is_the_same_after_its_way_through_the_protocols_crate() {
        let refusal = Refusal::RingSize { index: 3, size: 0 };
        let said = refusal.to_string();
        let back = Refusal::from_protocol(Request(8), ProtocolError::from(refusal));
        assert!(matches!(back, Refusal::RingSize { index: 3, size: 0 }));
        assert_eq!(back.to_string(), said);
    }

    #[test]
    fn requests_are_told_by_name_where_they_have_one() {
        assert_eq!(Request(5).to_string(), "SET_MEM_TABLE");
        assert_eq!(Request(77).to_string(), "request 77");
    }
}
