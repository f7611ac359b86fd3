//! What is said when something cannot be done: a code of the specification or of ours, a sentence, details.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::version::Version;

/// The kinds of failure, with the numbers of the CNI specification ("Error"); 100 and up are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub enum Code {
    /// A version of the specification that is not spoken.
    IncompatibleVersion,
    /// A field that is not supported; the message names its key and value.
    UnsupportedField,
    /// The container is unknown, so that nothing has to be cleaned up.
    UnknownContainer,
    /// A variable of the environment that is missing or wrong; the message names it.
    Environment,
    /// Reading or writing failed.
    Io,
    /// What was read is not what it should be.
    Decode,
    /// The configuration is wrong.
    Config,
    /// The same may go well in a moment: the agent or the dataplane is starting.
    TryAgainLater,
    /// ADD cannot be served (STATUS).
    Unavailable,
    /// ADD cannot be served, and containers that are attached may have lost their network (STATUS).
    Degraded,
    /// Something that should not fail did.
    Internal,
    /// The dataplane refused what it was told.
    Dataplane,
    /// No address is left, or the one asked for is taken.
    Addresses,
    /// There is an interface of this name, or this attachment, already.
    Exists,
    /// The container's network namespace cannot be entered or an interface not be set up in it.
    Plumbing,
    /// What is there is not what ADD made (CHECK).
    Differs,
    /// Another plugin that we called failed.
    Delegate,
    /// There is no such device, or it cannot do what is asked of it.
    Device,
    /// Some of what is to be removed could not be (GC).
    Remains,
}

impl Code {
    const ALL: [(Self, u32); 19] = [
        (Self::IncompatibleVersion, 1),
        (Self::UnsupportedField, 2),
        (Self::UnknownContainer, 3),
        (Self::Environment, 4),
        (Self::Io, 5),
        (Self::Decode, 6),
        (Self::Config, 7),
        (Self::TryAgainLater, 11),
        (Self::Unavailable, 50),
        (Self::Degraded, 51),
        (Self::Internal, 100),
        (Self::Dataplane, 101),
        (Self::Addresses, 102),
        (Self::Exists, 103),
        (Self::Plumbing, 104),
        (Self::Differs, 105),
        (Self::Delegate, 106),
        (Self::Device, 107),
        (Self::Remains, 108),
    ];
}

impl From<Code> for u32 {
    fn from(code: Code) -> u32 {
        let known = Code::ALL.into_iter().find(|(it, _)| *it == code);
        known.map_or(100, |(_, number)| number)
    }
}

/// A number that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not the number of a failure")]
pub struct UnknownCode(u32);

impl TryFrom<u32> for Code {
    type Error = UnknownCode;

    fn try_from(number: u32) -> Result<Self, UnknownCode> {
        Self::ALL.into_iter().find(|(_, it)| *it == number).map(|(code, _)| code).ok_or(UnknownCode(number))
    }
}

/// Why a verb could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Failure {
    /// What kind of failure it is.
    pub code: Code,
    /// A sentence with the likely cause and the mend.
    pub msg: String,
    /// More, for whoever looks closer; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }

    /// The error object of the specification, in one line.
    pub fn to_json(&self, version: Version) -> String {
        let object = serde_json::json!({
            "cniVersion": version.as_str(),
            "code": u32::from(self.code),
            "msg": self.msg,
            "details": self.details,
        });
        object.to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_number_of_its_own_and_none_of_the_reserved_ones() {
        let numbers: std::collections::BTreeSet<u32> = Code::ALL.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        for (code, number) in Code::ALL {
            assert_eq!(Code::try_from(u32::from(code)), Ok(code));
            assert!(number >= 100 || [1, 2, 3, 4, 5, 6, 7, 11, 50, 51].contains(&number), "{number}");
        }
    }
}
