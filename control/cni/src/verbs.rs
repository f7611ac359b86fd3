//! The verbs, as the plugin carries them out: addresses by another plugin where one is named, everything else by the agent.

use std::time::Duration;

use crate::config::{Config, OWN_IPAM, version_of};
use crate::delegate::Plugin;
use crate::environment::{AttachmentId, Environment, Verb};
use crate::failure::{Code, Failure};
use crate::protocol::{Answer, Attach, Detach, Done, Request, ask};
use crate::result::AddResult;
use crate::version::Version;

/// What is written on standard output: nothing, or one JSON object.
pub type Output = Option<String>;

/// Carries out what the environment asks for, with the configuration from standard input.
///
/// # Errors
/// What goes back to the runtime.
pub fn run(environment: Result<Environment, Failure>, config: &[u8]) -> Result<Output, Failure> {
    let environment = environment?;
    match environment.verb {
        Verb::Version => Ok(Some(versions(version_of(config)))),
        Verb::Del => Call::leniently(&environment, config).del().map(|()| None),
        Verb::Add => {
            let call = Call::strictly(&environment, config, Version::V030)?;
            let result = call.add()?;
            Ok(Some(result.to_json(call.config.cni_version).to_string()))
        }
        Verb::Check => Call::strictly(&environment, config, Version::V040)?.check().map(|()| None),
        Verb::Gc => Call::strictly(&environment, config, Version::V110)?.gc().map(|()| None),
        Verb::Status => Call::strictly(&environment, config, Version::V110)?.status().map(|()| None),
    }
}

fn versions(asked_in: Version) -> String {
    let supported = Version::ALL.map(Version::as_str);
    serde_json::json!({ "cniVersion": asked_in.as_str(), "supportedVersions": supported }).to_string()
}

/// One call of the plugin.
struct Call<'a> {
    environment: &'a Environment,
    raw: &'a [u8],
    config: Config,
}

impl<'a> Call<'a> {
    fn strictly(environment: &'a Environment, raw: &'a [u8], since: Version) -> Result<Self, Failure> {
        let config = Config::read(raw)?;
        if config.cni_version < since {
            let (verb, version) = (environment.verb.as_str(), config.cni_version);
            let msg = format!("{verb} is not in version {version} of the specification, but since {since}");
            return Err(Failure::new(Code::IncompatibleVersion, msg));
        }
        Ok(Self { environment, raw, config })
    }

    fn leniently(environment: &'a Environment, raw: &'a [u8]) -> Self {
        Self { environment, raw, config: Config::read_leniently(raw) }
    }

    fn ask(&self, request: &Request) -> Answer {
        ask(&self.config.socket, Duration::from_secs(self.config.timeout_seconds.into()), request)
    }

    /// Whether another plugin plumbs and wants only addresses of us.
    fn is_ipam(&self) -> bool {
        let asks_us = self.config.ipam.kind.as_deref().is_some_and(|kind| OWN_IPAM.contains(&kind));
        asks_us && !OWN_IPAM.contains(&self.config.kind.as_str())
    }

    fn id(&self) -> Result<AttachmentId, Failure> {
        let missing = || Failure::new(Code::Environment, "CNI_CONTAINERID is missing");
        self.environment.id.clone().ok_or_else(missing)
    }

    fn attach(&self, delegated: Option<AddResult>) -> Result<Box<Attach>, Failure> {
        let raw =
            if delegated.is_some() { String::from_utf8_lossy(self.raw).into_owned() } else { String::new() };
        Ok(Box::new(Attach {
            id: self.id()?,
            netns: self.environment.netns.clone().unwrap_or_default(),
            args: self.environment.args.clone(),
            config: self.config.clone(),
            delegated,
            raw,
        }))
    }

    fn detach(&self) -> Result<Detach, Failure> {
        Ok(Detach { id: self.id()?, network: self.config.name.clone() })
    }

    /// The plugin that gives addresses in our place.
    fn delegate(&self) -> Result<Option<Plugin>, Failure> {
        let name = self.config.ipam.delegate().filter(|_| !self.is_ipam());
        name.map(|name| Plugin::find(name, &self.environment.path)).transpose()
    }

    fn add(&self) -> Result<AddResult, Failure> {
        if self.is_ipam() {
            return given(self.ask(&Request::Lease(self.attach(None)?))?);
        }
        let Some(plugin) = self.delegate()? else {
            return given(self.ask(&Request::Add(self.attach(None)?))?);
        };
        let addresses = plugin.run(Verb::Add, self.raw)?;
        let added = self.attach(addresses).and_then(|attach| given(self.ask(&Request::Add(attach))?));
        added.map_err(|failure| match plugin.run(Verb::Del, self.raw) {
            Ok(_) => failure,
            // The runtime calls DEL after this, which tries again.
            Err(also) => {
                let details = format!("{}; the addresses stay given for now: {also}", failure.details);
                failure.with_details(details)
            }
        })
    }

    /// Nothing that is gone already is a failure. Addresses go last: nobody may get them while the container has them.
    fn del(&self) -> Result<(), Failure> {
        let detach = self.detach()?;
        if self.is_ipam() {
            return self.ask(&Request::Release(detach)).map(drop);
        }
        let id = detach.id.clone();
        let done = self.ask(&Request::Del(detach))?;
        if done.delegated.is_empty()
            && let Some(plugin) = self.delegate()?
        {
            return plugin.run(Verb::Del, self.raw).map(drop);
        }
        self.forget(&id, &done.delegated)
    }

    /// Gives back what other plugins gave, by the configurations that they gave it by.
    fn forget(&self, id: &AttachmentId, configs: &[String]) -> Result<(), Failure> {
        for raw in configs {
            let config = Config::read_leniently(raw.as_bytes());
            if let Some(name) = config.ipam.delegate() {
                Plugin::find(name, &self.environment.path)?.forget(id, raw.as_bytes())?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        if self.is_ipam() {
            return self.ask(&Request::CheckLease(self.detach()?)).map(drop);
        }
        if let Some(plugin) = self.delegate()? {
            plugin.run(Verb::Check, self.raw)?;
        }
        if self.config.prev_result.is_none() {
            let msg = "CHECK needs prevResult, what ADD gave; the runtime puts it into the configuration";
            return Err(Failure::new(Code::Config, msg));
        }
        self.ask(&Request::Check(self.attach(None)?)).map(drop)
    }

    /// Without the runtime's list nothing is removed: a missing list is not an empty one.
    fn gc(&self) -> Result<(), Failure> {
        let Some(valid) = self.config.valid_attachments.clone() else { return Ok(()) };
        let network = self.config.name.clone();
        if self.is_ipam() {
            return self.ask(&Request::GcLeases { network, valid }).map(drop);
        }
        let swept = self.ask(&Request::Gc { network, valid }).map(drop);
        let delegated = self.delegate().and_then(|plugin| match plugin {
            Some(plugin) => plugin.run(Verb::Gc, self.raw).map(drop),
            None => Ok(()),
        });
        swept.and(delegated)
    }

    fn status(&self) -> Result<(), Failure> {
        self.ask(&Request::Status(Box::new(self.config.clone()))).map_err(unavailable)?;
        if let Some(plugin) = self.delegate().map_err(unavailable)? {
            plugin.run(Verb::Status, self.raw)?;
        }
        Ok(())
    }
}

/// A status has codes of its own; whoever cannot be asked is not available.
fn unavailable(failure: Failure) -> Failure {
    match failure.code {
        Code::Unavailable | Code::Degraded => failure,
        _ => Failure { code: Code::Unavailable, ..failure },
    }
}

fn given(done: Done) -> Result<AddResult, Failure> {
    done.result.ok_or_else(|| Failure::new(Code::Internal, "the agent answered ADD without a result"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsString;

    fn environment(verb: &str) -> Result<Environment, Failure> {
        Environment::read(|name| {
            let value = match name {
                "CNI_COMMAND" => verb,
                "CNI_CONTAINERID" => "c1",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/run/netns/c1",
                _ => return None,
            };
            Some(OsString::from(value))
        })
    }

    #[test]
    fn versions_are_told_without_an_agent() {
        let said = run(environment("VERSION"), br#"{"cniVersion":"0.4.0"}"#).unwrap().unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["cniVersion"], "0.4.0");
        assert_eq!(said["supportedVersions"][4], "1.1.0");
        assert!(run(environment("VERSION"), b"").is_ok());
    }

    #[test]
    fn a_verb_that_the_version_does_not_have_is_refused() {
        for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
            let config = format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
            let failure = run(environment(verb), config.as_bytes()).unwrap_err();
            assert_eq!(failure.code, Code::IncompatibleVersion, "{verb}");
        }
    }

    #[test]
    fn without_the_runtimes_list_nothing_is_collected() {
        let config = br#"{"cniVersion":"1.1.0","name":"n","socket":"/nonexistent"}"#;
        assert_eq!(run(environment("GC"), config).unwrap(), None);
    }

    #[test]
    fn a_status_without_an_agent_is_unavailable_and_an_attachment_comes_later() {
        let config = br#"{"cniVersion":"1.1.0","name":"n","socket":"/nonexistent"}"#;
        assert_eq!(run(environment("STATUS"), config).unwrap_err().code, Code::Unavailable);
        assert_eq!(run(environment("ADD"), config).unwrap_err().code, Code::TryAgainLater);
        assert_eq!(run(environment("DEL"), config).unwrap_err().code, Code::TryAgainLater);
    }

    #[test]
    fn another_plugin_that_is_not_there_is_named() {
        let config = br#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"whereabouts"}}"#;
        let failure = run(environment("ADD"), config).unwrap_err();
        assert!(failure.msg.contains("whereabouts") && failure.msg.contains("CNI_PATH"), "{failure}");
        let config = br#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"../../bin/sh"}}"#;
        assert_eq!(run(environment("ADD"), config).unwrap_err().code, Code::Config);
    }

    /// Configurations with values of any kind at keys that mean something, and any bytes at all.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("[]".to_owned()),
            Just("{}".to_owned()),
            any::<i64>().prop_map(|it| it.to_string()),
            "[a-z0-9./:]{0,12}".prop_map(|it| format!("{it:?}")),
        ];
        let keys = ["cniVersion", "name", "ipam", "runtimeConfig", "prevResult", "interface", "mtu", "sriov"];
        let object = proptest::collection::vec((proptest::sample::select(keys.to_vec()), leaf), 0..8);
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            object.prop_map(|pairs| {
                let pairs: Vec<String> =
                    pairs.iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
                format!(r#"{{"cniVersion":"1.1.0","name":"n","socket":"/nonexistent",{}}}"#, pairs.join(","))
                    .replace(",}", "}")
                    .into_bytes()
            }),
        ]
    }

    proptest! {
        #[test]
        fn bad_input_gives_an_error_object_and_never_a_panic(
            config in input(),
            verb in "ADD|DEL|CHECK|GC|STATUS|VERSION|[A-Z]{0,6}",
            id in "\\PC{0,12}",
            ifname in "\\PC{0,17}",
            args in "\\PC{0,12}",
        ) {
            let environment = Environment::read(|name| match name {
                "CNI_COMMAND" => Some(OsString::from(&verb)),
                "CNI_CONTAINERID" => Some(OsString::from(&id)),
                "CNI_IFNAME" => Some(OsString::from(&ifname)),
                "CNI_NETNS" => Some(OsString::from("/run/netns/none")),
                "CNI_ARGS" => Some(OsString::from(&args)),
                _ => None,
            });
            // The default socket might be somebody's on this machine; only what names another is run.
            let is_ours = config.windows(12).any(|it| it == b"/nonexistent") || verb == "VERSION";
            if is_ours && let Err(failure) = run(environment, &config) {
                let object: serde_json::Value =
                    serde_json::from_str(&failure.to_json(version_of(&config))).unwrap();
                prop_assert!(object["code"].as_u64().unwrap() > 0);
                prop_assert!(!object["msg"].as_str().unwrap().is_empty());
            }
        }
    }
}
