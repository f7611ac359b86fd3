//! The task that tells the API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter as Source};
use penstock_api::proto;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Outlook;
use super::objects::{WRITER, answer, reference};
use crate::kubernetes::{Key, Kind, Node};
use crate::push::Progress;

/// Between two rounds: changes that follow each other are told together.
const PAUSE: Duration = Duration::from_millis(500);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(10);
/// A dataplane that is away for no longer is restarting: nobody need be told.
const RESTARTS: Duration = Duration::from_secs(10);
/// The longest note of an event that the API server takes, in bytes.
const NOTE: usize = 1024;

/// What is told of.
pub struct Sources {
    /// What the agent thinks of the cluster's objects.
    pub outlook: watch::Receiver<Outlook>,
    /// How the dataplane follows.
    pub progress: watch::Receiver<Progress>,
    /// Whether it is this agent that speaks of what is not its node's alone.
    pub leading: watch::Receiver<bool>,
    /// What the dataplane tells.
    pub events: mpsc::Receiver<proto::Event>,
}

/// Tells the API server how the node fares and what cannot be honoured.
pub struct Reporter {
    client: kube::Client,
    node: String,
    recorder: Recorder,
    sources: Sources,
    /// The node itself, as events name it.
    reference: Option<ObjectReference>,
    /// Whether the node was said to be up.
    up: Option<bool>,
    down_since: Instant,
    /// What was told of objects.
    events_told: BTreeMap<Key, Vec<String>>,
    answers_told: BTreeMap<Key, Vec<String>>,
    refused_told: String,
}

impl Reporter {
    /// One that speaks for `node`.
    #[must_use]
    pub fn new(client: kube::Client, node: &str, sources: Sources) -> Self {
        let source = Source { controller: WRITER.to_owned(), instance: Some(node.to_owned()) };
        Self {
            recorder: Recorder::new(client.clone(), source),
            client,
            node: node.to_owned(),
            sources,
            reference: None,
            up: None,
            down_since: Instant::now(),
            events_told: BTreeMap::new(),
            answers_told: BTreeMap::new(),
            refused_told: String::new(),
        }
    }

    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        let mut told = String::new();
        loop {
            let pause = match self.round().await {
                Ok(()) => {
                    told.clear();
                    PAUSE
                }
                Err(error) => {
                    let text = error.to_string();
                    if told != text {
                        tracing::warn!("the API server cannot be told: {text}");
                        told = text;
                    }
                    AGAIN
                }
            };
            sleep(pause).await;
            if told.is_empty() {
                self.wait().await;
            }
        }
    }

    /// Waits for something to tell. What the dataplane tells goes out at once.
    async fn wait(&mut self) {
        let pending = self.up != Some(false) && !self.sources.progress.borrow().connected;
        tokio::select! {
            changed = self.sources.outlook.changed() => end_if(changed.is_err()).await,
            changed = self.sources.progress.changed() => end_if(changed.is_err()).await,
            changed = self.sources.leading.changed() => end_if(changed.is_err()).await,
            event = self.sources.events.recv() => match event {
                Some(event) => self.tell_event(&event).await,
                None => end_if(true).await,
            },
            () = sleep(RESTARTS), if pending => {}
        }
    }

    /// Tells what is new.
    async fn round(&mut self) -> Result<(), kube::Error> {
        let progress = self.sources.progress.borrow_and_update().clone();
        if progress.connected {
            self.down_since = Instant::now();
        }
        let up = progress.connected || (self.up == Some(true) && self.down_since.elapsed() < RESTARTS);
        if self.up != Some(up) && (up || self.down_since.elapsed() >= RESTARTS) {
            self.say_up(up).await?;
            self.up = Some(up);
        }
        let refused: Vec<String> = progress.refused.values().flatten().map(ToString::to_string).collect();
        let refused = refused.join("\n");
        if refused != self.refused_told {
            if !refused.is_empty() {
                self.publish_about_node("DataplaneRefuses", &refused).await?;
            }
            self.refused_told = refused;
        }
        let outlook = self.sources.outlook.borrow_and_update().clone();
        if *self.sources.leading.borrow_and_update() {
            self.tell_objects(&outlook).await?;
        }
        Ok(())
    }

    /// The node's condition for its network, and who cares for it.
    async fn say_up(&self, up: bool) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let now = Timestamp::now();
        let (status, reason, message) = if up {
            ("False", "PenstockIsUp", "the dataplane is as the cluster wants it")
        } else {
            ("True", "DataplaneIsDown", "penstockd does not answer the agent")
        };
        let condition = json!({
            "type": "NetworkUnavailable", "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let conditions = json!({"status": {"conditions": [condition]}});
        nodes.patch_status(&self.node, &PatchParams::default(), &Patch::Strategic(conditions)).await?;
        let annotations =
            json!({"metadata": {"annotations": {"penstock.dev/agent-version": env!("CARGO_PKG_VERSION")}}});
        nodes.patch(&self.node, &PatchParams::default(), &Patch::Merge(annotations)).await?;
        Ok(())
    }

    /// Events and status of objects of the cluster.
    async fn tell_objects(&mut self, outlook: &Outlook) -> Result<(), kube::Error> {
        self.events_told.retain(|key, _| outlook.problems.contains_key(key));
        self.answers_told.retain(|key, _| outlook.answered.contains(key));
        for (key, problems) in &outlook.problems {
            if self.events_told.get(key) == Some(problems) {
                continue;
            }
            if let Some(about) = reference(&self.client, key).await? {
                self.publish(&about, "NotHonoured", &problems.join("\n")).await?;
            }
            self.events_told.insert(key.clone(), problems.clone());
        }
        for key in &outlook.answered {
            let problems = outlook.problems.get(key).cloned().unwrap_or_default();
            if self.answers_told.get(key) != Some(&problems) {
                answer(&self.client, key, &problems).await?;
                self.answers_told.insert(key.clone(), problems);
            }
        }
        Ok(())
    }

    async fn tell_event(&mut self, event: &proto::Event) {
        let whose = if event.endpoint.is_empty() { String::new() } else { format!("{}: ", event.endpoint) };
        let told = self.publish_about_node("DataplaneTells", &(whose + &event.sentence)).await;
        if let Err(error) = told {
            tracing::debug!("an event of the dataplane was not told: {error}");
        }
    }

    async fn publish_about_node(&mut self, reason: &str, note: &str) -> Result<(), kube::Error> {
        if self.reference.is_none() {
            self.reference = reference(&self.client, &Key::new(Kind::Node, "", &self.node)).await?;
        }
        match self.reference.clone() {
            Some(about) => self.publish(&about, reason, note).await,
            None => Ok(()),
        }
    }

    async fn publish(&self, about: &ObjectReference, reason: &str, note: &str) -> Result<(), kube::Error> {
        let mut note = note.to_owned();
        note.truncate(note.floor_char_boundary(NOTE));
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Translate".to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, about).await
    }
}

/// A source that ended has nothing more to say.
async fn end_if(ended: bool) {
    if ended {
        std::future::pending::<()>().await;
    }
}
