//! Why a command failed, and what its exit status is.

use std::io;
use std::process::ExitCode;

use penstock_api::Fault;
use penstock_api::client::ClientError;
use penstock_control::judge::JudgeError;
use penstock_control::manifests::ManifestError;
use serde_json::json;
use thiserror::Error;

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The daemon could not be asked, or would not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The command does not make sense.
    #[error("{0}")]
    Usage(String),
    /// The file given holds mistakes; nothing was sent.
    #[error("nothing was sent:\n{}", .0.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
    /// The manifests given hold mistakes.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The manifests do not answer the question.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// The system refused something on this side.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the file's name.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The agent would not do it, or the node does not let us.
    #[error("{0}")]
    Agent(String),
    /// The output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Whether the reader of our output went away, which is no fault of ours.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        match self {
            Self::Output(error) | Self::Io { source: error, .. } => error.kind() == io::ErrorKind::BrokenPipe,
            Self::Client(_)
            | Self::Usage(_)
            | Self::Faults(_)
            | Self::Agent(_)
            | Self::Manifests(_)
            | Self::Judge(_) => false,
        }
    }

    /// 1: refused or not reached. 2: the command or its file is at fault.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(_) | Self::Agent(_) | Self::Io { .. } | Self::Output(_) => ExitCode::from(1),
            Self::Usage(_) | Self::Faults(_) | Self::Manifests(_) | Self::Judge(_) => ExitCode::from(2),
        }
    }

    /// Says it on standard error.
    pub(crate) fn report(&self, as_json: bool) {
        if as_json {
            let faults: &[Fault] = match self {
                Self::Client(ClientError::Refused(faults))
                | Self::Faults(faults)
                | Self::Manifests(ManifestError::Faults(faults)) => faults,
                _ => &[],
            };
            eprintln!("{}", json!({ "error": self.to_string(), "faults": faults }));
            return;
        }
        eprintln!("penstock: {self}");
        let mut cause = match self {
            Self::Client(error) => std::error::Error::source(error),
            _ => None,
        };
        while let Some(error) = cause {
            eprintln!("  because: {error}");
            cause = error.source();
        }
    }
}
