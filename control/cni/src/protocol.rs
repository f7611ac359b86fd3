//! The words that plugin and agent exchange over the agent's unix socket: one line of JSON each way, then the end.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::environment::AttachmentId;
use crate::failure::{Code, Failure};
use crate::result::AddResult;

/// The longest line, either way, in bytes.
pub const MAX_LINE: u64 = 1 << 20;

/// What is asked of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Attach a container.
    Add(Box<Attach>),
    /// Detach it.
    Del(Detach),
    /// See whether what ADD made is still so.
    Check(Box<Attach>),
    /// Remove the network's attachments that are not among these.
    Gc {
        /// The network's name.
        network: String,
        /// What stays.
        valid: Vec<AttachmentId>,
    },
    /// Whether ADD can be served.
    Status(Box<Config>),
    /// Only give addresses: another plugin plumbs.
    Lease(Box<Attach>),
    /// Give back what `Lease` gave.
    Release(Detach),
    /// See whether what `Lease` gave is still so.
    CheckLease(Detach),
    /// Remove the network's leases that are not among these.
    GcLeases {
        /// The network's name.
        network: String,
        /// What stays.
        valid: Vec<AttachmentId>,
    },
    /// The addresses that are given, for a person to see.
    Show,
}

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attach {
    /// The container and its interface.
    pub id: AttachmentId,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// `CNI_ARGS`
    pub args: BTreeMap<String, String>,
    /// The plugin's configuration.
    pub config: Config,
    /// The addresses that another plugin gave, when one did.
    pub delegated: Option<AddResult>,
    /// The configuration word for word, kept for that plugin's DEL; empty without one.
    #[serde(default)]
    pub raw: String,
}

/// What is to be detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Detach {
    /// The container and its interface.
    pub id: AttachmentId,
    /// The network; empty when the configuration does not say it any more.
    pub network: String,
}

/// An address that is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Given {
    /// The network's name.
    pub network: String,
    /// The container and its interface.
    pub id: AttachmentId,
    /// The addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// The pools that they are of, when they are of any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// `attachment`, or `lease` where another plugin plumbs.
    pub holder: String,
    /// Whether it is whole: not in the middle of ADD.
    pub complete: bool,
    /// The pod, `namespace/name`, when it is one.
    pub pod: Option<String>,
    /// The container's network namespace.
    pub netns: PathBuf,
}

/// What the agent did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Done {
    /// What ADD and `Lease` give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<AddResult>,
    /// The configurations by which another plugin gave addresses to what is gone now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegated: Vec<String>,
    /// What `Show` shows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Given>,
    /// What `Show` finds wrong with pools: addresses that blocks and attachments do not agree about, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub astray: Vec<String>,
}

/// The agent's answer.
pub type Answer = Result<Done, Failure>;

/// Asks the agent.
///
/// # Errors
/// What the agent says, or [`Code::TryAgainLater`] when nobody answers.
pub fn ask(socket: &Path, within: Duration, request: &Request) -> Answer {
    let later = |what: &str, error: io::Error| {
        let mend = "is penstock-agent running? It may just be starting";
        Failure::new(
            Code::TryAgainLater,
            format!("{what} the agent at {}: {error}; {mend}", socket.display()),
        )
    };
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(
            Code::Io,
            format!("{}: permission denied; the plugin must run as root", socket.display()),
        ),
        _ => later("cannot connect to", error),
    })?;
    let mut line = serde_json::to_vec(request)
        .map_err(|error| Failure::new(Code::Internal, "a request cannot be written").with_details(error))?;
    line.push(b'\n');
    stream
        .set_read_timeout(Some(within))
        .and_then(|()| stream.set_write_timeout(Some(within)))
        .and_then(|()| (&stream).write_all(&line))
        .map_err(|error| later("cannot write to", error))?;
    let mut answer = String::new();
    BufReader::new((&stream).take(MAX_LINE))
        .read_line(&mut answer)
        .map_err(|error| later("no answer from", error))?;
    if !answer.ends_with('\n') {
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(later("no whole answer from", error));
    }
    serde_json::from_str(&answer).map_err(|error| {
        let msg = "the agent's answer cannot be read; plugin and agent are of different versions";
        Failure::new(Code::Decode, msg).with_details(error)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_at_the_socket_means_try_again_later() {
        let failure =
            ask(Path::new("/nonexistent/cni.sock"), Duration::from_secs(1), &Request::Show).unwrap_err();
        assert_eq!(failure.code, Code::TryAgainLater);
        assert!(failure.msg.contains("is penstock-agent running?"), "{failure}");
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        for answer in [Ok(Done::default()), Err(Failure::new(Code::Addresses, "none left"))] {
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
        }
    }
}
