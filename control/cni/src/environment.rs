//! What the runtime says by environment variables.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};

/// The longest container ID in bytes. Runtimes take 64; what we keep of an attachment is in a file of its name.
pub const MAX_CONTAINER_ID: usize = 200;

/// The longest name of an interface in bytes: `IFNAMSIZ` of `linux/if.h` without the closing zero.
pub const MAX_INTERFACE: usize = 15;

/// The verbs of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// See whether what ADD made is still so.
    Check,
    /// Remove attachments that the runtime does not know.
    Gc,
    /// Whether ADD can be served.
    Status,
    /// Which versions are spoken.
    Version,
}

impl Verb {
    /// As `CNI_COMMAND` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// One container's interface: what verbs are about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// The container, as the runtime names it.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
}

impl AttachmentId {
    /// Checked names.
    ///
    /// # Errors
    /// [`Code::Environment`], which names the variable.
    pub fn new(container_id: String, ifname: String) -> Result<Self, Failure> {
        check_container_id(&container_id)?;
        check_interface(&ifname)?;
        Ok(Self { container_id, ifname })
    }
}

/// `container/eth0`
impl std::fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// What the runtime said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// What is to be done.
    pub verb: Verb,
    /// To what; absent for GC, STATUS and VERSION.
    pub id: Option<AttachmentId>,
    /// The container's network namespace; may be absent for DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`
    pub args: BTreeMap<String, String>,
    /// Folders that other plugins are looked for in.
    pub path: Vec<PathBuf>,
}

impl Environment {
    /// Takes what `variable` knows, and checks it.
    ///
    /// # Errors
    /// [`Code::Environment`], which names the variable.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let text = |name: &str| -> Result<Option<String>, Failure> {
            let Some(value) = variable(name) else { return Ok(None) };
            let value = value
                .into_string()
                .map_err(|value| wrong(format!("{name} is not text in UTF-8: {value:?}")))?;
            Ok(Some(value).filter(|value| !value.is_empty()))
        };
        let verb = match text("CNI_COMMAND")?.as_deref() {
            Some("ADD") => Verb::Add,
            Some("DEL") => Verb::Del,
            Some("CHECK") => Verb::Check,
            Some("GC") => Verb::Gc,
            Some("STATUS") => Verb::Status,
            Some("VERSION") => Verb::Version,
            Some(other) => {
                let verbs = "ADD, DEL, CHECK, GC, STATUS and VERSION";
                return Err(wrong(format!("CNI_COMMAND is {other:?}; {verbs} are known")));
            }
            None => {
                let said = "CNI_COMMAND is missing; a container runtime sets it (this is a CNI plugin)";
                return Err(wrong(said));
            }
        };
        let needed = |name: &str| -> Result<String, Failure> {
            text(name)?.ok_or_else(|| {
                wrong(format!("{name} is missing; a container runtime sets it for {}", verb.as_str()))
            })
        };
        let id = match verb {
            Verb::Add | Verb::Del | Verb::Check => {
                Some(AttachmentId::new(needed("CNI_CONTAINERID")?, needed("CNI_IFNAME")?)?)
            }
            Verb::Gc | Verb::Status | Verb::Version => None,
        };
        let netns = match verb {
            Verb::Add | Verb::Check => Some(needed("CNI_NETNS")?),
            Verb::Del => text("CNI_NETNS")?,
            _ => None,
        };
        let args = match verb {
            Verb::Add | Verb::Del | Verb::Check => read_args(&text("CNI_ARGS")?.unwrap_or_default())?,
            _ => BTreeMap::new(),
        };
        let path = variable("CNI_PATH").map(|value| std::env::split_paths(&value).collect());
        Ok(Self { verb, id, netns: netns.map(PathBuf::from), args, path: path.unwrap_or_default() })
    }
}

fn wrong(msg: impl Into<String>) -> Failure {
    Failure::new(Code::Environment, msg)
}

/// Whether a text is a name by the specification's rule for containers and networks: a letter or digit, then letters,
/// digits, `_`, `.` and `-`.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn check_container_id(id: &str) -> Result<(), Failure> {
    if !is_name(id) {
        return Err(wrong(format!(
            "CNI_CONTAINERID is {id:?}; it starts with a letter or digit and goes on with these, `_`, `.` and `-`"
        )));
    }
    if id.len() > MAX_CONTAINER_ID {
        let length = id.len();
        return Err(wrong(format!("CNI_CONTAINERID has {length} bytes; {MAX_CONTAINER_ID} are the most")));
    }
    Ok(())
}

fn check_interface(name: &str) -> Result<(), Failure> {
    let allowed = |c: char| c != '/' && c != ':' && c != '\0' && c != '%' && !c.is_whitespace();
    let valid = (1..=MAX_INTERFACE).contains(&name.len()) && name != "." && name != "..";
    if valid && name.chars().all(allowed) {
        return Ok(());
    }
    Err(wrong(format!(
        "CNI_IFNAME is {name:?}; an interface's name has 1 to {MAX_INTERFACE} bytes without blanks, `/`, `:` and `%`"
    )))
}

fn read_args(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong(format!("CNI_ARGS has {pair:?}; it is KEY=VALUE pairs parted by `;`")))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Failure> {
        Environment::read(|name| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| OsString::from(value))
        })
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/c1"),
    ];

    #[test]
    fn add_takes_a_container_a_namespace_and_an_interface() {
        let environment = read(&ADD).unwrap();
        assert_eq!(environment.id.unwrap().to_string(), "c1/eth0");
        for left_out in 0..ADD.len() {
            let mut some = ADD.to_vec();
            let (name, _) = some.remove(left_out);
            let failure = read(&some).unwrap_err();
            assert_eq!(failure.code, Code::Environment);
            assert!(failure.msg.contains(name), "{failure}");
        }
    }

    #[test]
    fn del_needs_no_namespace_and_gc_nothing_at_all() {
        let del = [("CNI_COMMAND", "DEL"), ADD[1], ADD[2], ("CNI_NETNS", "")];
        assert_eq!(read(&del).unwrap().netns, None);
        assert_eq!(read(&[("CNI_COMMAND", "GC")]).unwrap().id, None);
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for id in ["../c", "", ".c", "a/b", "-c", "c\n", &"c".repeat(201)] {
            let failure = AttachmentId::new(id.to_owned(), "eth0".to_owned()).unwrap_err();
            assert!(failure.msg.contains("CNI_CONTAINERID"), "{id:?}: {failure}");
        }
        for interface in ["", ".", "..", "a/b", "a b", "sixteen-bytes-xx", "eth%d", "a:1"] {
            let failure = AttachmentId::new("c".to_owned(), interface.to_owned()).unwrap_err();
            assert!(failure.msg.contains("CNI_IFNAME"), "{interface:?}: {failure}");
        }
    }

    #[test]
    fn arguments_are_pairs() {
        let with = |args| {
            let mut variables = ADD.to_vec();
            variables.push(("CNI_ARGS", args));
            read(&variables)
        };
        let args = with("IgnoreUnknown=1;K8S_POD_NAME=web-0;;X=a=b").unwrap().args;
        assert_eq!(args["K8S_POD_NAME"], "web-0");
        assert_eq!(args["X"], "a=b");
        assert!(with("novalue").unwrap_err().msg.contains("CNI_ARGS"));
    }
}
