//! One batch of changes: what the dataplane takes of it is live, what it refuses is told object by object.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;

use penstock_api::Fault;
use penstock_api::client::{Client, ClientError, Live};
use penstock_api::model::{Key, Object, Policy, PolicyDirection, Rule, RuleAction};

use super::wanted::{Batch, Refused};

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

/// Sends a batch. `held` are the keys that the dataplane has, and is kept up to date.
///
/// What is new goes out before what is old is removed, so that nothing is missing in between. Where the dataplane refuses
/// some, the rest goes without them, and they are tried once more when others made room: a port that changes hands, say.
/// A policy that is refused leaves whoever it is about no more open than it would, see [`closed`].
///
/// # Errors
/// When the dataplane cannot be asked: nobody knows then what it has.
pub(super) async fn deliver_batch(
    sink: &mut impl Sink,
    batch: &Batch,
    held: &mut BTreeSet<Key>,
) -> Result<Delivered, ClientError> {
    deliver(sink, batch.upserts.clone(), batch.deletes.clone(), held).await
}

/// Sends `upserts` and `deletes` as a batch is sent: what is new before what is old is removed, and without what is refused.
///
/// # Errors
/// When the dataplane cannot be asked.
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
        upserts = put(sink, upserts, held, &mut done).await?;
        deletes = remove(sink, deletes, held, &mut done).await?;
        if upserts.is_empty() && deletes.is_empty() {
            break;
        }
        if done.upserted + done.deleted == before {
            // Where they stand in nobody's way but each other's, the first of them is taken.
            upserts = put_each(sink, upserts, held, &mut done).await?;
        }
        if done.upserted + done.deleted == before {
            break;
        }
    }
    let closed: Vec<_> = upserts.iter().filter_map(|it| closed(it)).map(Arc::new).collect();
    let refused = std::mem::take(&mut done.refused);
    put(sink, closed, held, &mut done).await?;
    done.refused = refused;
    Ok(done)
}

/// Adds what can be added; answers the rest.
async fn put(
    sink: &mut impl Sink,
    upserts: Vec<Arc<Object>>,
    held: &mut BTreeSet<Key>,
    done: &mut Delivered,
) -> Result<Vec<Arc<Object>>, ClientError> {
    let mut rest = Vec::new();
    let mut queue: VecDeque<Vec<Arc<Object>>> = upserts.chunks(MOST).map(<[_]>::to_vec).collect();
    while let Some(part) = queue.pop_front() {
        if part.is_empty() {
            continue;
        }
        match sink.upsert(&part).await {
            Ok(live) => {
                done.generation = Some(live.generation);
                done.upserted += part.len();
                held.extend(part.iter().map(|object| object.key()));
            }
            Err(ClientError::Refused(faults)) => {
                let keys: Vec<Key> = part.iter().map(|object| object.key()).collect();
                match blame(&keys, faults) {
                    Blame::Some(blamed) => {
                        let (bad, good): (Vec<_>, Vec<_>) =
                            part.into_iter().partition(|object| blamed.contains_key(&object.key()));
                        rest.extend(bad);
                        done.refused.extend(blamed);
                        queue.push_front(good);
                    }
                    Blame::Halve => {
                        let tail = part[part.len() / 2..].to_vec();
                        queue.push_front(tail);
                        queue.push_front(part[..part.len() / 2].to_vec());
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rest)
}

/// Adds what can be added, one after the other; answers the rest.
async fn put_each(
    sink: &mut impl Sink,
    upserts: Vec<Arc<Object>>,
    held: &mut BTreeSet<Key>,
    done: &mut Delivered,
) -> Result<Vec<Arc<Object>>, ClientError> {
    let mut rest = Vec::new();
    for object in upserts {
        rest.extend(put(sink, vec![object], held, done).await?);
    }
    Ok(rest)
}

/// Removes what can be removed; answers the rest.
async fn remove(
    sink: &mut impl Sink,
    deletes: Vec<Key>,
    held: &mut BTreeSet<Key>,
    done: &mut Delivered,
) -> Result<Vec<Key>, ClientError> {
    let mut rest = Vec::new();
    let mut queue: VecDeque<Vec<Key>> = deletes.chunks(MOST).map(<[_]>::to_vec).collect();
    while let Some(part) = queue.pop_front() {
        if part.is_empty() {
            continue;
        }
        match sink.delete(&part).await {
            Ok(live) => {
                done.generation = Some(live.generation);
                done.deleted += part.len();
                for key in &part {
                    held.remove(key);
                }
            }
            Err(ClientError::Refused(faults)) => match blame(&part, faults) {
                Blame::Some(blamed) => {
                    let (bad, good): (Vec<_>, Vec<_>) =
                        part.into_iter().partition(|key| blamed.contains_key(key));
                    rest.extend(bad);
                    done.refused.extend(blamed);
                    queue.push_front(good);
                }
                Blame::Halve => {
                    let tail = part[part.len() / 2..].to_vec();
                    queue.push_front(tail);
                    queue.push_front(part[..part.len() / 2].to_vec());
                }
            },
            Err(error) => return Err(error),
        }
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
