//! Calling another plugin, such as one that gives addresses.
//!
//! It runs here, not in the agent: the specification wants the runtime's own environment, files and namespaces.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::environment::{AttachmentId, Verb};
use crate::failure::{Code, Failure};
use crate::result::AddResult;

/// A plugin that is called by its name.
#[derive(Debug)]
pub struct Plugin {
    name: String,
    program: PathBuf,
}

/// What of an error object is passed on.
#[derive(Deserialize)]
struct Said {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugin {
    /// Looks for the plugin in the folders of `CNI_PATH`.
    ///
    /// # Errors
    /// [`Code::Delegate`].
    pub fn find(name: &str, path: &[PathBuf]) -> Result<Self, Failure> {
        if name.contains('/') || name.starts_with('.') {
            let msg = format!("ipam.type is {name:?}, which is no plugin's name: a path cannot be");
            return Err(Failure::new(Code::Config, msg));
        }
        let program = path.iter().map(|folder| folder.join(name)).find(|program| program.is_file());
        match program {
            Some(program) => Ok(Self { name: name.to_owned(), program }),
            None => {
                let folders: Vec<String> = path.iter().map(|it| it.display().to_string()).collect();
                let msg = format!(
                    "ipam.type is {name:?}, and no such plugin is in CNI_PATH ({}); install it there, or leave ipam.type out",
                    folders.join(":")
                );
                Err(Failure::new(Code::Delegate, msg))
            }
        }
    }

    /// Has it do what we were asked for, with the same environment and the whole configuration.
    ///
    /// # Errors
    /// What it says, or [`Code::Delegate`].
    pub fn run(&self, verb: Verb, config: &[u8]) -> Result<Option<AddResult>, Failure> {
        self.finish(verb, config, Command::new(&self.program).env("CNI_COMMAND", verb.as_str()))
    }

    /// Has it forget an attachment, which may not be the one that we were called for.
    ///
    /// # Errors
    /// What it says, or [`Code::Delegate`].
    pub fn forget(&self, id: &AttachmentId, config: &[u8]) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.env("CNI_COMMAND", "DEL").env("CNI_CONTAINERID", &id.container_id);
        command.env("CNI_IFNAME", &id.ifname);
        self.finish(Verb::Del, config, &mut command).map(drop)
    }

    fn finish(&self, verb: Verb, config: &[u8], command: &mut Command) -> Result<Option<AddResult>, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let msg = format!("the plugin {} failed at {}", self.name, verb.as_str());
            Failure::new(Code::Delegate, msg).with_details(error)
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| failed(&error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that reads nothing says in its answer what is wrong with it.
            let _ = stdin.write_all(config);
        }
        let output = child.wait_with_output().map_err(|error| failed(&error))?;
        if !output.status.success() {
            let Ok(said) = serde_json::from_slice::<Said>(&output.stdout) else {
                return Err(failed(&output.status));
            };
            let code = Code::try_from(said.code).ok().filter(|_| said.code < 100).unwrap_or(Code::Delegate);
            return Err(Failure::new(code, format!("{}: {}", self.name, said.msg)).with_details(said.details));
        }
        if verb != Verb::Add {
            return Ok(None);
        }
        serde_json::from_slice(&output.stdout).map(Some).map_err(|error| failed(&error))
    }
}
