//! One batch of changes: what the dataplane takes of it is live, what it refuses is told object by object.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;

use penstock_api::Fault;
use penstock_api::client::{Client, ClientError, Live};
use penstock_api::model::{Key, Object, Policy, PolicyDirection, Rule, RuleAction};

use super::wanted::Refused;

/// Objects in one call at most. A call is applied whole, so the fewer there are, the less is seen half done.
const MOST: usize = 100_000;

/// Whoever takes changes: a dataplane.
pub trait Sink: Send {
    /// Adds objects, or replaces those with the same keys; all of them or none.
    fn upsert(&mut self, objects: &[Arc<Object>]) -> impl Future<Output = Result<Live, ClientError>> + Send;
    /// Removes objects; all of them or none.
    fn delete(&mut self, keys: &[Key]) -> impl Future<Output = Result<Live, ClientError>> + Send;
}

impl Sink for Client {
    async fn upsert(&mut self, objects: &[Arc<Object>]) -> Result<Live, ClientError> {
        Client::upsert(self, objects.iter().map(AsRef::as_ref)).await
    }

    async fn delete(&mut self, keys: &[Key]) -> Result<Live, ClientError> {
        Client::delete(self, keys).await
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Delivered {
    /// The newest generation that holds it; `None` when the dataplane took nothing.
    pub generation: Option<u64>,
    /// Objects added or replaced.
    pub upserted: usize,
    /// Objects removed.
    pub deleted: usize,
    /// What was refused.
    pub refused: Refused,
}

/// Sends changes. `held` are the keys that the dataplane has, and is kept up to date.
///
/// What is new goes out before what is old is removed, so that nothing is missing in between. Where the dataplane refuses
/// some, the rest goes without them, and they are tried once more when others made room: a port that changes hands, say.
/// A policy that is refused leaves whoever it is about no more open than it would, see `closed`.
///
/// # Errors
/// When the dataplane cannot be asked: nobody knows then what it has.
pub async fn deliver(
    sink: &mut impl Sink,
    mut upserts: Vec<Arc<Object>>,
    mut deletes: Vec<Key>,
    held: &mut BTreeSet<Key>,
) -> Result<Delivered, ClientError> {
    let mut done = Delivered::default();
    upserts.sort_by_cached_key(|object| object.key());
    // Whoever names others goes before them.
    deletes.sort_by(|a, b| b.cmp(a));
    loop {
        done.refused.clear();
        let before = done.upserted + done.deleted;
        deletes.retain(|key| held.contains(key));
        upserts = make(sink, upserts, held, &mut done).await?;
        deletes = make(sink, deletes, held, &mut done).await?;
        if upserts.is_empty() && deletes.is_empty() {
            break;
        }
        if done.upserted + done.deleted == before {
            // Where they stand in nobody's way but each other's, the first of them is taken.
            upserts = add_each(sink, upserts, held, &mut done).await?;
        }
        if done.upserted + done.deleted == before {
            break;
        }
    }
    let closed: Vec<_> = upserts.iter().filter_map(|it| closed(it)).map(Arc::new).collect();
    let refused = std::mem::take(&mut done.refused);
    make(sink, closed, held, &mut done).await?;
    done.refused = refused;
    Ok(done)
}

/// A change of one object: an object to add or replace, or the key of one to remove.
trait Step: Clone + Send + Sync {
    fn key(&self) -> Key;

    /// Makes several changes of this kind; all of them or none.
    fn send(sink: &mut impl Sink, steps: &[Self]) -> impl Future<Output = Result<Live, ClientError>> + Send;

    /// Notes that it was made.
    fn note(&self, held: &mut BTreeSet<Key>, done: &mut Delivered);
}

impl Step for Arc<Object> {
    fn key(&self) -> Key {
        Object::key(self)
    }

    fn send(sink: &mut impl Sink, steps: &[Self]) -> impl Future<Output = Result<Live, ClientError>> + Send {
        sink.upsert(steps)
    }

    fn note(&self, held: &mut BTreeSet<Key>, done: &mut Delivered) {
        held.insert(Object::key(self));
        done.upserted += 1;
    }
}

impl Step for Key {
    fn key(&self) -> Key {
        self.clone()
    }

    fn send(sink: &mut impl Sink, steps: &[Self]) -> impl Future<Output = Result<Live, ClientError>> + Send {
        sink.delete(steps)
    }

    fn note(&self, held: &mut BTreeSet<Key>, done: &mut Delivered) {
        held.remove(self);
        done.deleted += 1;
    }
}

/// Makes the changes that can be made; answers the rest.
async fn make<S: Step>(
    sink: &mut impl Sink,
    steps: Vec<S>,
    held: &mut BTreeSet<Key>,
    done: &mut Delivered,
) -> Result<Vec<S>, ClientError> {
    let mut rest = Vec::new();
    let mut queue: VecDeque<Vec<S>> = steps.chunks(MOST).map(<[_]>::to_vec).collect();
    while let Some(part) = queue.pop_front() {
        if part.is_empty() {
            continue;
        }
        match S::send(sink, &part).await {
            Ok(live) => {
                done.generation = Some(live.generation);
                part.iter().for_each(|step| step.note(held, done));
            }
            Err(ClientError::Refused(faults)) => {
                let keys: Vec<Key> = part.iter().map(Step::key).collect();
                match blame(&keys, faults) {
                    Blame::Some(blamed) => {
                        let (bad, good): (Vec<_>, Vec<_>) =
                            part.into_iter().partition(|step| blamed.contains_key(&step.key()));
                        rest.extend(bad);
                        done.refused.extend(blamed);
                        queue.push_front(good);
                    }
                    Blame::Halve => {
                        let (head, tail) = part.split_at(part.len() / 2);
                        queue.push_front(tail.to_vec());
                        queue.push_front(head.to_vec());
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rest)
}

/// Adds what can be added, one after the other; answers the rest.
async fn add_each(
    sink: &mut impl Sink,
    upserts: Vec<Arc<Object>>,
    held: &mut BTreeSet<Key>,
    done: &mut Delivered,
) -> Result<Vec<Arc<Object>>, ClientError> {
    let mut rest = Vec::new();
    for object in upserts {
        rest.extend(make(sink, vec![object], held, done).await?);
    }
    Ok(rest)
}

/// Who of a call is at fault.
enum Blame {
    /// These, each with what is said about it.
    Some(Refused),
    /// Some of many, but nobody says which.
    Halve,
}

/// Faults name objects by their keys; a fault of an object that is not in the call was caused by one that is.
fn blame(keys: &[Key], faults: Vec<Fault>) -> Blame {
    if let [key] = keys {
        return Blame::Some(Refused::from([(key.clone(), faults)]));
    }
    let mut by_name: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
    for fault in faults {
        by_name.entry(fault.object.clone()).or_default().push(fault);
    }
    let blamed: Refused = keys
        .iter()
        .filter_map(|key| by_name.remove(&key.to_string()).map(|faults| (key.clone(), faults)))
        .collect();
    if blamed.is_empty() { Blame::Halve } else { Blame::Some(blamed) }
}

/// What stands in for a policy that the dataplane does not take: whom it selects is no more open than with it.
///
/// Without rules that let something in there is less than before, and its tier's end holds for whom it selects. But where
/// rules keep something out, everything is kept out.
fn closed(object: &Object) -> Option<Object> {
    let Object::Policy(policy) = object else { return None };
    if policy.staged {
        return None;
    }
    let rule = |direction: &PolicyDirection| Rule {
        name: format!("refused-{direction}").parse().expect("a sound name"),
        direction: *direction,
        action: RuleAction::Deny,
        peers: Vec::new(),
        ports: Vec::new(),
    };
    let keeps_out = policy.rules.iter().any(|it| matches!(it.action, RuleAction::Deny | RuleAction::Pass));
    let rules = if keeps_out { policy.directions.iter().map(rule).collect() } else { Vec::new() };
    Some(Object::Policy(Policy { rules, ..policy.clone() }))
}

#[cfg(test)]
mod tests;
