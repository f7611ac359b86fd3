//! The versions of the CNI specification that are spoken.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};

/// A version of the specification whose results can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Version {
    /// 0.3.0
    #[serde(rename = "0.3.0")]
    V030,
    /// 0.3.1, which mends words of 0.3.0 only.
    #[serde(rename = "0.3.1")]
    V031,
    /// 0.4.0, which brought CHECK.
    #[serde(rename = "0.4.0")]
    V040,
    /// 1.0.0, which took the family out of addresses.
    #[serde(rename = "1.0.0")]
    V100,
    /// 1.1.0, which brought GC, STATUS and `socketPath`.
    #[default]
    #[serde(rename = "1.1.0")]
    V110,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V030, Self::V031, Self::V040, Self::V100, Self::V110];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// The version of this name.
    ///
    /// # Errors
    /// [`Code::IncompatibleVersion`].
    pub fn parse(text: &str) -> Result<Self, Failure> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let spoken = Self::ALL.map(Self::as_str).join(", ");
            Failure::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not spoken here: {spoken} are"),
            )
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
