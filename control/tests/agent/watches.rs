//! Watches of an API server that restarts, forgets, and is of another age.

use std::collections::BTreeSet;

use penstock_control::kubernetes::{Key, Kind};
use penstock_control::watch::{NEWS, News, WatchMetrics, Watches};
use serde_json::json;
use tokio::sync::mpsc;

use crate::PATIENCE;
use crate::apiserver::{ApiServer, Reply, end_of_list, event, pod, watch};

/// What is told of pods: `+a`, `-a`, and `=a,b` for the end of a list.
struct Told {
    news: mpsc::Receiver<News>,
    _watches: Watches,
    /// Kinds that nobody serves, as they were told to be empty.
    empty: BTreeSet<Kind>,
}

impl Told {
    fn by(server: &ApiServer) -> Self {
        let (send, news) = mpsc::channel(NEWS);
        let watches = Watches::start(server.client(), send, WatchMetrics::default());
        Self { news, _watches: watches, empty: BTreeSet::new() }
    }

    async fn next(&mut self) -> String {
        loop {
            let news = tokio::time::timeout(PATIENCE, self.news.recv()).await.expect("news").unwrap();
            let name = |key: &Key| key.name.clone();
            match news {
                News::Applied(object) => return format!("+{}", object.key().name),
                News::Removed(key) => return format!("-{}", key.name),
                News::Listed(Kind::Pod, keys) => {
                    return format!("={}", keys.iter().map(name).collect::<Vec<_>>().join(","));
                }
                News::Listed(kind, keys) => {
                    assert!(keys.is_empty());
                    self.empty.insert(kind);
                }
            }
        }
    }

    async fn expect(&mut self, news: &[&str]) {
        for expected in news {
            assert_eq!(self.next().await, *expected);
        }
    }
}

#[tokio::test]
async fn a_streaming_list_is_followed_by_changes() {
    let events = [event("ADDED", &pod("a", "5")), event("ADDED", &pod("b", "3")), end_of_list("7")];
    let (more, reply) = watch(events);
    let server = ApiServer::start([reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "+b", "=a,b"]).await;
    more.send(event("MODIFIED", &pod("a", "8"))).unwrap();
    more.send(event("DELETED", &pod("b", "9"))).unwrap();
    told.expect(&["+a", "-b"]).await;
    let asked = server.asked.lock().unwrap();
    assert_eq!(asked[0]["sendInitialEvents"], "true");
    assert_eq!(asked[0]["allowWatchBookmarks"], "true");
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let (first, reply) = watch([event("ADDED", &pod("a", "5")), end_of_list("7")]);
    let server = ApiServer::start([reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "=a"]).await;
    // The server restarts: nobody is there for a moment, then the watch goes on after what was seen last.
    server.then(Reply::Refuse(503));
    let (_second, reply) = watch([event("DELETED", &pod("a", "12")), event("ADDED", &pod("b", "13"))]);
    server.then(reply);
    first
        .send(json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "11"}}}))
        .unwrap();
    drop(first);
    told.expect(&["-a", "+b"]).await;
    let asked = server.asked.lock().unwrap();
    assert_eq!(asked[2]["resourceVersion"], "11");
}

#[tokio::test]
async fn what_went_unseen_is_missing_in_the_next_list() {
    let (first, reply) =
        watch([event("ADDED", &pod("a", "5")), event("ADDED", &pod("b", "6")), end_of_list("7")]);
    let server = ApiServer::start([reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "+b", "=a,b"]).await;
    let (_second, reply) = watch([event("ADDED", &pod("b", "6")), end_of_list("90")]);
    server.then(reply);
    // What the server compacted is gone.
    first
        .send(event("ERROR", &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"})))
        .unwrap();
    told.expect(&["+b", "=b"]).await;
}

#[tokio::test]
async fn a_version_that_is_too_old_is_no_dead_end() {
    let (first, reply) = watch([event("ADDED", &pod("a", "5")), end_of_list("7")]);
    let server = ApiServer::start([reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "=a"]).await;
    server.then(Reply::Refuse(410));
    let (_second, reply) = watch([event("ADDED", &pod("c", "50")), end_of_list("90")]);
    server.then(reply);
    drop(first);
    told.expect(&["+c", "=c"]).await;
}

#[tokio::test]
async fn an_older_server_is_asked_for_plain_lists() {
    let (_more, reply) = watch([event("DELETED", &pod("a", "8"))]);
    let server = ApiServer::start([Reply::Refuse(422), Reply::List(vec![pod("a", "5")], "7"), reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "=a", "-a"]).await;
    let asked = server.asked.lock().unwrap();
    assert!(!asked[1].contains_key("sendInitialEvents"));
    assert_eq!(asked[2]["resourceVersion"], "7");
}

#[tokio::test]
async fn a_server_with_an_old_etcd_is_asked_for_plain_lists() {
    let cannot = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "reason": "InternalError", "message": "no progress"});
    let (_stream, refused) = watch([event("ERROR", &cannot)]);
    let (_more, reply) = watch([event("DELETED", &pod("a", "8"))]);
    let server = ApiServer::start([refused, Reply::List(vec![pod("a", "5")], "7"), reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "=a", "-a"]).await;
}

#[tokio::test]
async fn kinds_that_nobody_serves_are_none() {
    let (_more, reply) = watch([event("ADDED", &pod("a", "5")), end_of_list("7")]);
    let server = ApiServer::start([reply]).await;
    let mut told = Told::by(&server);
    told.expect(&["+a", "=a"]).await;
    while told.empty.len() < Kind::ALL.len() - 1 {
        let news = tokio::time::timeout(PATIENCE, told.news.recv()).await.expect("news").unwrap();
        let News::Listed(kind, keys) = news else { panic!("{news:?}") };
        assert!(keys.is_empty());
        told.empty.insert(kind);
    }
}
