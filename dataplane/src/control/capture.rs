//! Captures: frames that pass a port, on their way to whoever asked for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use penstock_api::proto::{CapturedFrame, Direction};
use penstock_api::query::CaptureOrder;
use penstock_io::{CHUNK, FramePool};
use tokio::sync::mpsc;
use tonic::Status;

use super::clock::WallClock;
use super::{Answers, Service};
use crate::mailbox::{CaptureTap, Captured, Command};
use crate::supervisor::{Device, Engine, Owner};

/// Frames that may wait for the control thread.
const WAITING: usize = 2048;
/// Frames that may wait for whoever asked.
const SENDING: usize = 256;
/// How often the workers' copies are fetched.
const FETCH: Duration = Duration::from_millis(5);
/// After this long no worker is still in the middle of the turn in which a capture was closed.
const LAST_TURN: Duration = Duration::from_millis(200);

/// A capture in progress.
struct Capture {
    tap: Arc<CaptureTap>,
    order: CaptureOrder,
    port: String,
    clock: WallClock,
    pool: FramePool,
    answers: mpsc::Sender<Result<CapturedFrame, Status>>,
    lost_before: u64,
    sent: u64,
}

/// Starts a capture on every worker.
pub(super) async fn start(service: &Service, order: CaptureOrder) -> Result<Answers<CapturedFrame>, Status> {
    let (answers, frames) = mpsc::channel(SENDING);
    let capture = service.look(move |engine| begin(engine, order, answers)).await??;
    tokio::spawn(capture.run());
    Ok(Box::pin(futures::stream::unfold(frames, |mut frames| async move {
        frames.recv().await.map(|frame| (frame, frames))
    })))
}

fn begin(
    engine: &Engine,
    order: CaptureOrder,
    answers: mpsc::Sender<Result<CapturedFrame, Status>>,
) -> Result<Capture, Status> {
    let (owner, device) = find(engine, &order.port).ok_or_else(|| {
        Status::not_found(format!("there is no port {:?}; `penstock ports` lists them", order.port))
    })?;
    let tap = Arc::new(CaptureTap {
        device: device.id,
        filter: order.filter.clone(),
        snaplen: order.snaplen.map_or(CHUNK, |bytes| bytes as usize),
        frames: ArrayQueue::new(WAITING),
        lost: AtomicU64::new(0),
        closed: AtomicBool::new(false),
    });
    for worker in engine.workers() {
        worker.tell(Command::Capture(Arc::clone(&tap)));
    }
    let clock = WallClock::now(engine.rate());
    let (port, pool) = (owner.port_name().to_owned(), FramePool::new(engine.region()));
    Ok(Capture { tap, order, port, clock, pool, answers, lost_before: 0, sent: 0 })
}

/// The device of a port's name or number.
fn find<'a>(engine: &'a Engine, port: &str) -> Option<(&'a Owner, &'a Device)> {
    let by_name = engine.devices().iter().find(|(owner, _)| owner.port_name() == port);
    let number: Option<u32> = port.parse().ok();
    let by_number =
        || engine.devices().iter().find(|(_, device)| device.queues.iter().any(|it| Some(it.id.0) == number));
    by_name.or_else(by_number)
}

impl Capture {
    async fn run(mut self) {
        let until = self.order.duration.map(|duration| Instant::now() + duration);
        while self.fetch().await && until.is_none_or(|until| Instant::now() < until) {
            tokio::select! {
                () = tokio::time::sleep(FETCH) => {}
                () = self.answers.closed() => break,
            }
        }
        self.tap.closed.store(true, Ordering::Relaxed);
        // What was asked for within the time is still owed.
        self.fetch().await;
        drop(self.answers);
        tokio::time::sleep(LAST_TURN).await;
        while let Some(captured) = self.tap.frames.pop() {
            self.pool.free(captured.copy);
        }
    }

    /// Sends what is there; tells whether more is wanted.
    async fn fetch(&mut self) -> bool {
        while let Some(captured) = self.tap.frames.pop() {
            if self.order.count.is_some_and(|count| self.sent >= count) {
                self.pool.free(captured.copy);
                return false;
            }
            let answer = self.answer(captured);
            if self.answers.send(Ok(answer)).await.is_err() {
                return false;
            }
            self.sent += 1;
        }
        !self.answers.is_closed() && self.order.count.is_none_or(|count| self.sent < count)
    }

    fn answer(&mut self, captured: Captured) -> CapturedFrame {
        let lost = self.tap.lost.load(Ordering::Relaxed);
        let direction = if captured.sent { Direction::Tx } else { Direction::Rx };
        let frame = CapturedFrame {
            timestamp_ns: self.clock.nanoseconds(captured.at),
            direction: direction.into(),
            port: self.port.clone(),
            worker: captured.worker.into(),
            length: captured.length,
            data: captured.copy.bytes().to_vec(),
            lost: lost - std::mem::replace(&mut self.lost_before, lost),
        };
        self.pool.free(captured.copy);
        frame
    }
}
