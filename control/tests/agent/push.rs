//! What is wanted reaches a dataplane that comes, goes, refuses and is slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_api::file::parse_objects;
use penstock_api::model::{Key, Object};
use penstock_control::push::{Dataplane, EVENTS, PushMetrics, Pusher, Ticket, Wanted};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dataplane::{Pretended, socket};
use crate::{PATIENCE, wait_until};

fn peer(name: &str, last: u8) -> Arc<Object> {
    let file = format!("[[peer]]\nname = \"{name}\"\naddress = \"192.0.2.{last}\"\n");
    Arc::new(parse_objects(&file, "test").unwrap().remove(0))
}

fn want(wanted: &Wanted, objects: impl IntoIterator<Item = Arc<Object>>) -> Ticket {
    wanted.change(Instant::now(), objects.into_iter().map(|it| (it.key(), Some(it))))
}

fn push(wanted: &Wanted, socket: &std::path::Path) -> JoinHandle<()> {
    let (events, _) = mpsc::channel(EVENTS);
    let dataplane = Dataplane { socket: socket.to_owned(), attached: None };
    tokio::spawn(Pusher::new(dataplane, wanted.clone(), PushMetrics::default(), events).run())
}

async fn settled(wanted: &Wanted, ticket: Ticket) -> penstock_control::push::Progress {
    tokio::time::timeout(PATIENCE, wanted.settled(ticket)).await.expect("it settles")
}

#[tokio::test]
async fn what_is_wanted_is_there_and_what_is_not_is_swept() {
    let socket = socket();
    let file = [peer("old", 1), peer("same", 2)].map(|it| Object::clone(&it)).to_vec();
    let dataplane = Pretended::start(&socket, file);
    let wanted = Wanted::default();
    let ticket = want(&wanted, [peer("same", 2), peer("new", 3)]);
    let pusher = push(&wanted, &socket);
    let progress = settled(&wanted, ticket).await;
    assert_eq!(dataplane.keys(), ["peer \"new\"", "peer \"same\""]);
    assert_eq!(progress.generation, dataplane.held.lock().unwrap().generation);
    let ticket = wanted.change(Instant::now(), [(peer("new", 3).key(), None)]);
    settled(&wanted, ticket).await;
    assert_eq!(dataplane.keys(), ["peer \"same\""]);
    pusher.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn uplinks_and_endpoints_of_the_file_stay() {
    let socket = socket();
    let file = "[[uplink]]\nname = \"u\"\ninterface = \"eth0\"\n[[network]]\nname = \"n\"\nvni = 1\n[[endpoint]]\nname = \"e\"\n\
                network = \"n\"\nmac = \"02:00:00:00:00:01\"\naddresses = [\"10.0.0.1\"]\nattachment = { tap = { interface = \"t\" } }\n";
    let dataplane = Pretended::start(&socket, parse_objects(file, "test").unwrap());
    let wanted = Wanted::default();
    let pusher = push(&wanted, &socket);
    settled(&wanted, Ticket::default()).await;
    assert_eq!(dataplane.keys(), ["uplink \"u\"", "endpoint \"e\""]);
    pusher.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn a_dataplane_that_restarts_gets_all_of_it_again() {
    let socket = socket();
    let wanted = Wanted::default();
    let pusher = push(&wanted, &socket);
    let ticket = want(&wanted, (1..=100).map(|i| peer(&format!("p{i}"), i)));
    let dataplane = Pretended::start(&socket, Vec::new());
    settled(&wanted, ticket).await;
    assert_eq!(dataplane.keys().len(), 100);
    dataplane.end().await;
    let mut progress = wanted.progress();
    tokio::time::timeout(PATIENCE, progress.wait_for(|it| !it.connected)).await.unwrap().unwrap();
    // What changes meanwhile is one change.
    for last in 1..=200 {
        want(&wanted, [peer("p1", last)]);
    }
    let ticket = wanted.change(Instant::now(), [(peer("p2", 2).key(), None)]);
    let dataplane = Pretended::start(&socket, vec![Object::clone(&peer("stale", 9))]);
    settled(&wanted, ticket).await;
    assert_eq!((dataplane.keys().len(), dataplane.calls()), (99, 2));
    assert_eq!(dataplane.get(&peer("p1", 1).key()).as_ref(), Some(&*peer("p1", 200)));
    pusher.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn a_slow_dataplane_is_not_sent_what_nobody_wants_any_more() {
    let socket = socket();
    let dataplane = Pretended::start(&socket, Vec::new());
    dataplane.held.lock().unwrap().takes = Duration::from_millis(200);
    let wanted = Wanted::default();
    let pusher = push(&wanted, &socket);
    settled(&wanted, Ticket::default()).await;
    let first = want(&wanted, [peer("a", 1)]);
    wait_until("the first change is under way", || wanted.pending() == 0).await;
    let mut last = first;
    for i in 2..250 {
        last = want(&wanted, [peer("a", i), peer("b", i)]);
        assert!(wanted.pending() <= 2);
    }
    settled(&wanted, last).await;
    assert_eq!(dataplane.calls(), 2);
    assert_eq!(dataplane.get(&peer("b", 1).key()).as_ref(), Some(&*peer("b", 249)));
    pusher.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn what_is_refused_is_told_and_tried_again() {
    let socket = socket();
    let dataplane = Pretended::start(&socket, Vec::new());
    dataplane.held.lock().unwrap().refuses = Some("bad".into());
    let wanted = Wanted::default();
    let pusher = push(&wanted, &socket);
    let ticket = want(&wanted, [peer("bad", 1), peer("good", 2)]);
    let progress = settled(&wanted, ticket).await;
    assert_eq!(dataplane.keys(), ["peer \"good\""]);
    let refused: Vec<&Key> = progress.refused.keys().collect();
    assert_eq!(refused, [&peer("bad", 1).key()]);
    assert_eq!(progress.refused.values().next().unwrap()[0].problem, "is not liked");
    dataplane.held.lock().unwrap().refuses = None;
    let mut progress = wanted.progress();
    tokio::time::timeout(PATIENCE, progress.wait_for(|it| it.refused.is_empty())).await.unwrap().unwrap();
    assert_eq!(dataplane.keys().len(), 2);
    pusher.abort();
    dataplane.end().await;
}

#[tokio::test]
async fn what_somebody_else_changed_is_mended() {
    let socket = socket();
    let dataplane = Pretended::start(&socket, Vec::new());
    let wanted = Wanted::default();
    let ticket = want(&wanted, [peer("a", 1)]);
    let pusher = push(&wanted, &socket);
    settled(&wanted, ticket).await;
    {
        let mut held = dataplane.held.lock().unwrap();
        held.objects = [Object::clone(&peer("b", 2))].into_iter().map(|it| (it.key(), it)).collect();
        held.generation += 1;
    }
    wait_until("it is as wanted again", || dataplane.keys() == ["peer \"a\""]).await;
    pusher.abort();
    dataplane.end().await;
}
