//! One of many agents leads: the one that holds a lease (`coordination.k8s.io/v1`), renewed while it lives.
//!
//! As in client-go's leaderelection, clocks of different machines are never compared: a lease is taken over when it was
//! not renewed for its duration as the taker's own clock saw it.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

/// How long a lease lasts without being renewed.
const LASTS: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at by those that do not hold it.
const RENEW: Duration = Duration::from_secs(3);
/// How long a holder that cannot renew it goes on, so that it has stopped before another begins.
const GIVES_UP: Duration = Duration::from_secs(10);

/// A lease that many agents want.
pub struct Lease {
    api: Api<Object>,
    name: String,
    holder: String,
    leading: watch::Sender<bool>,
    seen: Option<Seen>,
    renewed: Option<Instant>,
}

/// What was last seen of a lease, and since when it is so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    holder: Option<String>,
    renewed: Option<String>,
    since: Instant,
}

impl Seen {
    /// The same sight as before keeps its time.
    fn look(spec: Option<&LeaseSpec>, before: Option<&Seen>, now: Instant) -> Seen {
        let holder = spec.and_then(|spec| spec.holder_identity.clone()).filter(|holder| !holder.is_empty());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string());
        match before {
            Some(before) if before.holder == holder && before.renewed == renewed => before.clone(),
            _ => Seen { holder, renewed, since: now },
        }
    }

    /// Whether `me` may write itself in.
    fn is_free_for(&self, me: &str, now: Instant) -> bool {
        match &self.holder {
            None => true,
            Some(holder) => holder == me || now.duration_since(self.since) > LASTS,
        }
    }
}

impl Lease {
    /// The lease `name` in a namespace, wanted by `holder`, who is nobody else.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, name: &str, holder: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            holder: holder.to_owned(),
            leading: watch::Sender::new(false),
            seen: None,
            renewed: None,
        }
    }

    /// Whether it is held, now and whenever that changes.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Wants the lease until this is dropped.
    pub async fn run(mut self) {
        let mut told = String::new();
        loop {
            match tokio::time::timeout(RENEW, self.try_once()).await {
                Ok(Ok(leads)) => {
                    told.clear();
                    self.say(leads);
                }
                Ok(Err(error)) => {
                    let text = error.to_string();
                    if told != text {
                        tracing::warn!("the lease {} cannot be renewed: {text}", self.name);
                        told = text;
                    }
                }
                Err(_) => tracing::debug!("the lease {}: no answer in time", self.name),
            }
            if self.renewed.is_some_and(|renewed| renewed.elapsed() > GIVES_UP) {
                self.say(false);
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    fn say(&mut self, leads: bool) {
        if !leads {
            self.renewed = None;
        }
        let name = &self.name;
        self.leading.send_if_modified(|before| {
            if *before != leads {
                tracing::info!(
                    "this agent {} the lease {name}",
                    if leads { "holds" } else { "does not hold" }
                );
            }
            std::mem::replace(before, leads) != leads
        });
    }

    /// Takes or renews the lease if it may. Whether it holds it then.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(&self.name).await?;
        let now = Instant::now();
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let seen = Seen::look(spec, self.seen.as_ref(), now);
        let is_free = seen.is_free_for(&self.holder, now);
        self.seen = Some(seen);
        if !is_free {
            return Ok(false);
        }
        let written = self.written(found.as_ref());
        let outcome = match &found {
            None => self.api.create(&PostParams::default(), &written).await,
            // The version in it makes the server refuse what somebody else was faster with.
            Some(_) => self.api.replace(&self.name, &PostParams::default(), &written).await,
        };
        match outcome {
            Ok(_) => {
                self.renewed = Some(now);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The lease with our name in it.
    fn written(&self, found: Option<&Object>) -> Object {
        let now = MicroTime(Timestamp::now());
        let before = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_ours = before.holder_identity.as_deref() == Some(&self.holder);
        let metadata = match found {
            Some(lease) => lease.metadata.clone(),
            None => ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
        };
        let spec = LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(LASTS.as_secs() as i32),
            acquire_time: if is_ours { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!is_ours)),
            ..before
        };
        Object { metadata, spec: Some(spec) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_over_only_when_it_was_seen_unrenewed_for_its_duration() {
        let start = Instant::now();
        let first = Seen::look(Some(&spec("other", 1)), None, start);
        assert!(!first.is_free_for("me", start));
        // Its time is long ago by some clock, which says nothing.
        let late = start + LASTS + Duration::from_secs(1);
        let renewed = Seen::look(Some(&spec("other", 2)), Some(&first), late);
        assert!(!renewed.is_free_for("me", late));
        let same = Seen::look(Some(&spec("other", 1)), Some(&first), late);
        assert!(same.is_free_for("me", late));
    }

    #[test]
    fn a_lease_that_nobody_holds_or_that_is_ours_is_free() {
        let now = Instant::now();
        assert!(Seen::look(None, None, now).is_free_for("me", now));
        assert!(Seen::look(Some(&spec("", 1)), None, now).is_free_for("me", now));
        assert!(Seen::look(Some(&spec("me", 1)), None, now).is_free_for("me", now));
    }
}
