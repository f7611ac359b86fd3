//! Following the kernel: a listing at the start, its messages after, a new listing when some were lost.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::decode;
use super::requests::Requests;
use super::view::{Change, Key};
use super::{KernelError, KernelView};

/// How long changes gather before they are told: a link that comes up sends a dozen messages within a millisecond.
const GATHER: Duration = Duration::from_millis(2);

/// How long to wait before a listing that failed is asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// How long a listing after a loss is put off at most while messages keep coming.
const PATIENCE: Duration = Duration::from_millis(500);

/// Batches that may wait for the receiver. While it is full, changes gather, one per thing that changed.
const BATCHES: usize = 4;

/// What is followed.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// The receiving end of what changes in the kernel; following ends when it is dropped.
#[derive(Debug)]
pub struct Watcher {
    batches: mpsc::Receiver<Vec<Change>>,
    tasks: [JoinHandle<()>; 2],
}

impl Watcher {
    /// Starts to follow the kernel on the current runtime; returns what it knows now.
    ///
    /// # Errors
    /// [`KernelError`], when the sockets cannot be had or the listing is refused.
    pub async fn start() -> Result<(KernelView, Watcher), KernelError> {
        let requests = Requests::open()?;
        // The groups are joined before the listing, so that nothing falls between the two.
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(|source| KernelError::Open { source })?;
        let reader = tokio::spawn(connection);
        let (sender, batches) = mpsc::channel(BATCHES);
        let view = match list(&requests).await {
            Ok(view) => view,
            Err(source) => {
                reader.abort();
                let object = "links, addresses and neighbours".to_owned();
                return Err(KernelError::Request { call: "a listing", object, source });
            }
        };
        let follower = Follower {
            requests,
            messages,
            view: view.clone(),
            touched: BTreeSet::new(),
            tell_at: Instant::now(),
            lost: None,
        };
        let follower = tokio::spawn(follower.follow(sender));
        Ok((view, Watcher { batches, tasks: [reader, follower] }))
    }

    /// The next changes, each thing at most once. `None` when the kernel can be followed no longer: the netlink socket
    /// broke, which the log says; start again.
    pub async fn changes(&mut self) -> Option<Vec<Change>> {
        self.batches.recv().await
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Follower {
    requests: Requests,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    view: KernelView,
    /// What has changed since the last batch.
    touched: BTreeSet<Key>,
    /// When the next batch is due.
    tell_at: Instant,
    /// When messages were lost, so that the view must be listed anew.
    lost: Option<Instant>,
}

impl Follower {
    async fn follow(mut self, sender: mpsc::Sender<Vec<Change>>) {
        loop {
            let idle = self.touched.is_empty() && self.lost.is_none();
            let due = self.tell_at;
            tokio::select! {
                // Messages first. The kernel reports a loss ahead of older messages that still wait in the socket; a
                // listing made before those are read would be overwritten by them.
                biased;
                message = self.messages.next() => match message {
                    Some((message, _)) => self.take(message.payload, idle),
                    None => {
                        tracing::error!("the netlink socket that follows the kernel's links and routes broke");
                        return;
                    }
                },
                () = tokio::time::sleep_until(due), if self.lost.is_some() => self.resync().await,
                permit = room(&sender, due), if !idle && self.lost.is_none() => {
                    let Ok(permit) = permit else { return };
                    let touched = std::mem::take(&mut self.touched);
                    permit.send(touched.into_iter().map(|key| self.view.change(key)).collect());
                }
            }
        }
    }

    fn take(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>, idle: bool) {
        match payload {
            NetlinkPayload::InnerMessage(message) => {
                if let Some(event) = decode::event(&message) {
                    self.view.take(event, &mut self.touched);
                }
            }
            NetlinkPayload::Overrun(_) => self.lost = self.lost.or(Some(Instant::now())),
            _ => {}
        }
        let gathered = Instant::now() + GATHER;
        match self.lost {
            // Until the socket has been read empty.
            Some(since) => self.tell_at = gathered.min(since + PATIENCE),
            None if idle => self.tell_at = gathered,
            None => {}
        }
    }

    /// Lists everything anew after a loss.
    async fn resync(&mut self) {
        match list(&self.requests).await {
            Ok(fresh) => {
                tracing::info!(
                    "the kernel sent more changes than could be read; its tables were listed anew"
                );
                self.view.differences(&fresh, &mut self.touched);
                self.touched.insert(Key::Routes);
                self.view = fresh;
                self.lost = None;
            }
            Err(error) => {
                tracing::warn!(
                    "listing the kernel's tables anew failed ({error}); trying again in {RETRY:?}"
                );
                self.tell_at = Instant::now() + RETRY;
            }
        }
    }
}

/// Waits until the batch is due and the receiver has room for it.
async fn room(
    sender: &mpsc::Sender<Vec<Change>>,
    due: Instant,
) -> Result<mpsc::Permit<'_, Vec<Change>>, mpsc::error::SendError<()>> {
    tokio::time::sleep_until(due).await;
    sender.reserve().await
}

/// Asks for all links, addresses and neighbours.
async fn list(requests: &Requests) -> io::Result<KernelView> {
    let mut view = KernelView::default();
    let mut lists = vec![
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
    ];
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        lists.push(RouteNetlinkMessage::GetNeighbour(message));
    }
    for message in lists {
        for answer in requests.dump(message).await? {
            if let Some(event) = decode::event(&answer) {
                view.take(event, &mut BTreeSet::new());
            }
        }
    }
    Ok(view)
}
