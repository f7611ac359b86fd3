//! What cannot be used or honoured, and why.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use penstock_api::model::Prefix;
use serde::Serialize;

use super::selector::Selector;
use crate::kubernetes::Key;

/// One thing about an object that cannot be used or honoured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// Where in the object: `spec.ingress[0].from[1]`; empty when it is the object as a whole.
    pub field: String,
    /// What is wrong, and what becomes of it.
    pub problem: String,
    /// What puts it right.
    pub mend: String,
}

impl Problem {
    /// A problem with a field of an object.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, mend: impl Into<String>) -> Problem {
        Problem { field: field.into(), problem: problem.into(), mend: mend.into() }
    }

    /// The problem with the object that it is about, as one line.
    #[must_use]
    pub fn of(&self, key: &Key) -> String {
        format!("{key}: {self}")
    }
}

/// ``spec.ingress[0]: no protocol "ICMP"; write TCP, UDP or SCTP``
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.problem, self.mend)
    }
}

/// Collects what is wrong with one object while it is read.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    pub(super) found: Vec<Problem>,
}

impl Complaints {
    pub(super) fn say(&mut self, field: impl Into<String>, problem: impl Into<String>, mend: &str) {
        self.found.push(Problem::new(field, problem, mend));
    }

    /// A prefix; bits behind its length are cut off, as Kubernetes does.
    pub(super) fn prefix(&mut self, field: &str, text: &str) -> Option<Prefix> {
        let prefix = text.parse::<IpNet>().ok().and_then(|net| Prefix::new(net.trunc()).ok());
        if prefix.is_none() {
            let problem = format!("{text:?} is no prefix and is left out");
            self.say(field, problem, "write it as in 10.1.0.0/16 or fd00:1::/64");
        }
        prefix
    }

    pub(super) fn prefixes<'a>(
        &mut self,
        field: &str,
        texts: impl IntoIterator<Item = &'a String>,
    ) -> Vec<Prefix> {
        let mut prefixes = Vec::new();
        for (i, text) in texts.into_iter().enumerate() {
            prefixes.extend(self.prefix(&format!("{field}[{i}]"), text));
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    pub(super) fn addresses<'a>(
        &mut self,
        field: &str,
        texts: impl IntoIterator<Item = &'a String>,
    ) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (i, text) in texts.into_iter().enumerate() {
            match text.parse::<IpAddr>() {
                Ok(address) if !addresses.contains(&address) => addresses.push(address),
                Ok(_) => {}
                Err(_) => {
                    let problem = format!("{text:?} is no address and is left out");
                    self.say(format!("{field}[{i}]"), problem, "write it as in 10.1.0.7 or fd00::7");
                }
            }
        }
        addresses
    }

    /// A selector; absent it selects everything. None if it cannot be understood.
    pub(super) fn selector(&mut self, field: &str, written: Option<&LabelSelector>) -> Option<Selector> {
        match Selector::or_everything(written) {
            Ok(selector) => Some(selector),
            Err(invalid) => {
                let text = invalid.to_string();
                let (problem, mend) = text.split_once("; ").unwrap_or((&text, "put it right"));
                self.say(field, format!("{problem}, so that nothing is selected"), mend);
                None
            }
        }
    }
}
