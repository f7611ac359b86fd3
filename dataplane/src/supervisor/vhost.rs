//! vhost-user devices: the socket of a pod's application or of a virtual machine, and what is known of who is there.

use std::fs;
use std::path::Path;

use penstock_api::model::SocketRole;
use penstock_vhost::session::{self, Access, OpenError, Role, Session, SessionConfig, State, Status};
use penstock_vhost::{VhostPort, features};
use thiserror::Error;

use crate::port::AnyPort;

/// Where groups and their numbers are written.
const GROUPS: &str = "/etc/group";

/// What a vhost-user device is opened by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) role: SocketRole,
    pub(super) group: Option<String>,
    pub(super) permissions: Option<u32>,
    /// Queue pairs that a guest may have; `None`: as many as there are workers.
    pub(super) pairs: Option<u32>,
}

/// Why a vhost-user device could not be opened.
#[derive(Debug, Error)]
pub(super) enum CannotOpen {
    #[error(
        "there is no group {0:?}; make it with `groupadd {0}`, or name one that is in {GROUPS} or a number"
    )]
    NoGroup(String),
    #[error("{pairs} queue pairs; a vhost-user device has 1 to {}", session::MAX_PAIRS)]
    Pairs { pairs: u32 },
    #[error(transparent)]
    Session(#[from] OpenError),
    #[error("no descriptors for {name}: {source}; raise the limit of this process (LimitNOFILE)")]
    Descriptors {
        name: String,
        #[source]
        source: std::io::Error,
    },
}

impl Socket {
    /// Opens the session and a port for each queue pair.
    pub(super) fn open(&self, workers: u32) -> Result<(Session, Vec<AnyPort>), CannotOpen> {
        let pairs = self.pairs.unwrap_or(workers);
        let role = match self.role {
            SocketRole::Client => Role::Client,
            SocketRole::Server => Role::Server(Access {
                group: self.group.as_deref().map(group_number).transpose()?,
                mode: self.permissions,
            }),
        };
        let config = SessionConfig {
            name: self.name.clone(),
            path: self.path.clone().into(),
            role,
            pairs: u16::try_from(pairs).map_err(|_| CannotOpen::Pairs { pairs })?,
            features: features::OFFERED,
        };
        let (session, intakes) = Session::open(config)?;
        let ports = intakes.into_iter().map(|intake| {
            let failed = |source| CannotOpen::Descriptors { name: self.name.clone(), source };
            Ok(AnyPort::Vhost(Box::new(VhostPort::new(intake).map_err(failed)?)))
        });
        let ports = ports.collect::<Result<Vec<_>, CannotOpen>>()?;
        Ok((session, ports))
    }
}

/// A group's number, by its name or by itself.
fn group_number(group: &str) -> Result<u32, CannotOpen> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    number_in(Path::new(GROUPS), group).ok_or_else(|| CannotOpen::NoGroup(group.to_owned()))
}

/// The third field of the line whose first is the name (group(5)).
fn number_in(groups: &Path, name: &str) -> Option<u32> {
    let text = fs::read_to_string(groups).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1))?.and_then(|number| number.parse().ok())
    })
}

/// How a session is, as `penstock ports` says it.
pub(super) fn state(status: &Status) -> String {
    let because = |what: &str| match &status.reason {
        Some(reason) => format!("{what}: {reason}"),
        None => what.to_owned(),
    };
    match status.state {
        State::Running => "up".to_owned(),
        State::Negotiating => "down: the peer has started no ring yet".to_owned(),
        State::Waiting => because("down: nobody is there"),
        State::Clearing => because("down: a worker has yet to let go"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name_or_number() {
        let file = std::env::temp_dir().join(format!("groups-{}", std::process::id()));
        fs::write(&file, "root:x:0:\nhugetlbfs:x:117:alice,bob\nbroken\n").unwrap();
        assert_eq!(number_in(&file, "hugetlbfs"), Some(117));
        assert_eq!((number_in(&file, "alice"), number_in(&file, "broken")), (None, None));
        fs::remove_file(&file).unwrap();
        assert_eq!(group_number("4711").unwrap(), 4711);
        let refused = group_number("no-such-group").unwrap_err().to_string();
        assert!(refused.contains("groupadd no-such-group"), "{refused}");
    }
}
