//! The task that keeps a dataplane as it is wanted, whichever side restarts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_api::client::{Client, ClientError, Stream};
use penstock_api::model::{Key, Object};
use penstock_api::proto;
use penstock_api::query::{EventKind, EventOrder};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::delivery::deliver;
use super::{Progress, PushMetrics, Refused, Wanted};
use crate::attach::Footprint;

/// Between two attempts to reach a dataplane that is away: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often the dataplane is asked whether somebody else changed it.
const LOOK: Duration = Duration::from_secs(1);
/// What was refused is tried again after so long: first and longest. What was in its way may be gone, even unseen.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Events that may wait for whoever takes them; the rest is lost.
pub const EVENTS: usize = 256;

/// Where a dataplane is and which of its objects are ours.
#[derive(Debug, Clone)]
pub struct Dataplane {
    /// Its socket.
    pub socket: PathBuf,
    /// Which endpoints are removed that are not wanted: those that attachments made, when it is us who attach pods.
    pub attached: Option<Footprint>,
}

impl Dataplane {
    /// Whether an object that is not wanted is removed. The rest is its own file's.
    fn is_ours(&self, object: &Object) -> bool {
        match object {
            Object::Uplink(_) => false,
            Object::Endpoint(endpoint) => self.attached.as_ref().is_some_and(|it| it.is_of(endpoint)),
            _ => true,
        }
    }
}

/// Keeps a dataplane as it is wanted.
#[derive(Debug)]
pub struct Pusher {
    dataplane: Dataplane,
    wanted: Wanted,
    metrics: PushMetrics,
    events: mpsc::Sender<proto::Event>,
    refused: Refused,
    /// How long what is refused waits before it is tried again, and when it is.
    pause: Duration,
    again: Instant,
}

/// A connection to a dataplane that is as it is wanted, or will be with the next batch.
struct Session {
    client: Client,
    /// Ends when the dataplane does.
    events: Stream<proto::Event>,
    held: BTreeSet<Key>,
    generation: u64,
}

impl Pusher {
    /// A pusher of what is `wanted` to a `dataplane`, whose events go to `events`.
    #[must_use]
    pub fn new(
        dataplane: Dataplane,
        wanted: Wanted,
        metrics: PushMetrics,
        events: mpsc::Sender<proto::Event>,
    ) -> Self {
        Self {
            dataplane,
            wanted,
            metrics,
            events,
            refused: Refused::new(),
            pause: AGAIN.0,
            again: Instant::now(),
        }
    }

    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        let mut pause = RETRY.0;
        let mut told = String::new();
        loop {
            match self.open().await {
                Ok(session) => {
                    pause = RETRY.0;
                    told.clear();
                    let error = self.keep(session).await;
                    self.metrics.failures.inc();
                    self.metrics.connected.set(0);
                    self.wanted.tell(|progress| progress.connected = false);
                    tracing::warn!("the dataplane goes on with what it has: {error}");
                }
                Err(error) => {
                    self.metrics.failures.inc();
                    // Said once, not with every attempt.
                    let text = error.to_string();
                    if told != text {
                        tracing::warn!("{text}; trying again");
                        told = text;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Connects, and marks everything that differs.
    async fn open(&mut self) -> Result<Session, ClientError> {
        let mut client = Client::connect(&self.dataplane.socket).await?;
        let order =
            EventOrder { kinds: vec![EventKind::Exhaustion, EventKind::Refusal], ..EventOrder::default() };
        let events = client.events(&order).await?;
        let generation = client.status().await?.generation;
        let mut session = Session { client, events, held: BTreeSet::new(), generation };
        self.compare(&mut session).await?;
        Ok(session)
    }

    /// Looks at everything that the dataplane holds and marks what differs from what is wanted.
    async fn compare(&mut self, session: &mut Session) -> Result<(), ClientError> {
        let held: Vec<Object> = session.client.objects().await?;
        session.held = held.iter().map(Object::key).collect();
        self.wanted.compare(&held, |object| self.dataplane.is_ours(object));
        self.refused.clear();
        self.pause = AGAIN.0;
        self.metrics.resyncs.inc();
        Ok(())
    }

    /// Sends changes as they come, until the dataplane is lost.
    async fn keep(&mut self, mut session: Session) -> ClientError {
        // Once at the beginning, so that whoever waits learns that all is well when nothing differs.
        if let Err(error) = self.send(&mut session).await {
            return error;
        }
        tracing::info!(generation = session.generation, "the dataplane is as it is wanted");
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (refuses, again) = (!self.refused.is_empty(), self.again);
            let outcome = tokio::select! {
                () = self.wanted.changed() => self.send(&mut session).await,
                event = session.events.next() => self.heed(event),
                _ = look.tick() => self.look(&mut session).await,
                () = sleep_until(again), if refuses => self.try_again(&mut session).await,
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    /// Hands an event on; an end of events is the end of the dataplane.
    fn heed(&self, event: Result<Option<proto::Event>, ClientError>) -> Result<(), ClientError> {
        match event? {
            Some(event) => {
                tracing::warn!(network = event.network, endpoint = event.endpoint, "{}", event.sentence);
                // Whoever takes them may be slow: events are told, not kept.
                let _ = self.events.try_send(event);
                Ok(())
            }
            None => Err(ClientError::Lost {
                call: "events",
                source: Box::new(tonic::Status::unavailable("the dataplane ended")),
            }),
        }
    }

    /// Whether somebody else changed the dataplane: its file was read again, say.
    async fn look(&mut self, session: &mut Session) -> Result<(), ClientError> {
        let status = session.client.status().await?;
        if status.generation == session.generation {
            return Ok(());
        }
        tracing::info!(
            generation = status.generation,
            expected = session.generation,
            "somebody else changed the dataplane: all of it is compared"
        );
        session.generation = status.generation;
        self.compare(session).await?;
        self.send(session).await
    }

    async fn try_again(&mut self, session: &mut Session) -> Result<(), ClientError> {
        self.pause = (self.pause * 2).min(AGAIN.1);
        self.wanted.put_back(self.refused.keys().cloned(), None);
        self.send(session).await
    }

    /// Sends everything that waits and tells how it went.
    async fn send(&mut self, session: &mut Session) -> Result<(), ClientError> {
        let batch = self.wanted.take();
        let keys = || batch.upserts.iter().map(|it| it.key()).chain(batch.deletes.iter().cloned());
        let (upserts, deletes) = (batch.upserts.clone(), batch.deletes.clone());
        let delivered = match deliver(&mut session.client, upserts, deletes, &mut session.held).await {
            Ok(delivered) => delivered,
            Err(error) => {
                self.wanted.put_back(keys(), batch.since);
                return Err(error);
            }
        };
        if let Some(generation) = delivered.generation {
            session.generation = generation;
        }
        let before: Refused = keys().filter_map(|key| self.refused.remove_entry(&key)).collect();
        for (key, faults) in &delivered.refused {
            // Said once, not with every attempt.
            if before.get(key) != Some(faults) {
                faults.iter().for_each(|fault| tracing::error!("the dataplane refuses {key}: {fault}"));
            }
        }
        self.refused.extend(delivered.refused);
        self.again = Instant::now() + self.pause;
        self.metrics.batches.inc();
        self.metrics.upserts.inc_by(delivered.upserted as u64);
        self.metrics.deletes.inc_by(delivered.deleted as u64);
        self.metrics.refused.set(self.refused.len() as i64);
        self.metrics.connected.set(1);
        self.metrics.generation.set(session.generation as i64);
        if let Some(since) = batch.since {
            self.metrics.took(since.elapsed());
        }
        let (settled, generation) = (batch.ticket, session.generation);
        let refused = if self.refused.is_empty() { Arc::default() } else { Arc::new(self.refused.clone()) };
        self.wanted.tell(|progress| {
            *progress = Progress { settled, generation, connected: true, refused };
        });
        Ok(())
    }
}
