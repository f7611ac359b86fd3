//! From an interface and a queue to a bound socket with its fill ring filled.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::netdev::Netdev;
use crate::region::{CHUNK, HEADROOM, Region};
use crate::xsk::error::XskError;
use crate::xsk::socket::{RingSizes, Rings, Socket};
use crate::xsk::umem::{Lenders, Mode};
use crate::xsk::{CopyMode, MOST_PIECES, TX_BUDGET, Transfer, XskConfig};

/// How long a queue may stay busy: the kernel finishes a close in the background, and a bind meanwhile answers EBUSY.
pub(crate) const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// How long to wait between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// Packets under way hold memory of the socket's send buffer until their receiver has them: the default of 208 KiB is
/// full after some 270 small ones, fewer than a transmit ring holds.
const SEND_BUFFER: u32 = 8 << 20;

/// A bound socket and its rings; the fill ring holds the chunks that were given.
pub(crate) struct Opened {
    pub(crate) socket: Socket,
    pub(crate) rings: Rings,
    pub(crate) transfer: Transfer,
    /// Whether packets may lie in several chunks.
    pub(crate) chains: bool,
    /// Why it copies, when zero-copy was not asked away.
    pub(crate) because: Option<String>,
}

/// What is opened, for the messages.
pub(crate) struct Target<'a> {
    pub(crate) port: &'a str,
    pub(crate) netdev: &'a Netdev,
    pub(crate) queue: u32,
    pub(crate) region: &'static Region,
}

/// How a try ended that did not succeed.
enum Refusal {
    /// The queue is still or already in use.
    Busy,
    /// The device or the mode does not go together.
    Mode(io::Error),
    /// Nothing to be done.
    Fatal(XskError),
}

impl From<XskError> for Refusal {
    fn from(error: XskError) -> Refusal {
        Refusal::Fatal(error)
    }
}

/// Checks what can be checked before the kernel is asked.
pub(crate) fn check(target: &Target<'_>, config: &XskConfig) -> Result<(), XskError> {
    let fault = |key, value: u32, rule| {
        let (port, value) = (target.port.to_owned(), u64::from(value));
        Err(XskError::Setting { port, key, value, rule })
    };
    let ring = |slots: u32| slots.is_power_of_two() && (64..=32768).contains(&slots);
    if !ring(config.rx_ring) {
        return fault("rx_ring", config.rx_ring, "a power of two from 64 to 32768");
    }
    if !ring(config.tx_ring) {
        return fault("tx_ring", config.tx_ring, "a power of two from 64 to 32768");
    }
    if !(64..=32768).contains(&config.fill_level) {
        return fault("fill_level", config.fill_level, "from 64 to 32768");
    }
    if !(64..=config.fill_level).contains(&config.fill_at_first) {
        return fault("fill_at_first", config.fill_at_first, "from 64 to the fill level");
    }
    if let Some(budget) = config.tx_budget
        && !(32..=config.tx_ring).contains(&budget)
    {
        return fault("tx_budget", budget, "from 32 to the slots of the transmit ring");
    }
    if target.queue >= target.netdev.rx_queues {
        let queues = target.netdev.rx_queues;
        return Err(XskError::NoSuchQueue { port: target.port.to_owned(), queues });
    }
    Ok(())
}

/// Opens a socket in the best mode that the device and the configuration allow.
pub(crate) fn open(target: &Target<'_>, config: &XskConfig, chunks: &[u32]) -> Result<Opened, XskError> {
    let zero_copy = match (config.copy, target.netdev.features) {
        (CopyMode::Copy, _) => Err("it was asked for".to_owned()),
        (_, Some(features)) if !features.zero_copy => Err("the driver has no zero-copy".to_owned()),
        _ => bind_best(target, config, chunks, Transfer::ZeroCopy)?.map_err(|error| error.to_string()),
    };
    let (opened, because) = match (zero_copy, config.copy) {
        (Ok(opened), _) => (opened, None),
        (Err(why), CopyMode::ZeroCopy) => {
            return Err(XskError::NoZeroCopy { port: target.port.to_owned(), why });
        }
        (Err(why), _) => {
            let refused = |source| XskError::Refused {
                port: target.port.to_owned(),
                mtu: target.netdev.mtu,
                chunk: CHUNK,
                source,
            };
            (bind_best(target, config, chunks, Transfer::Copy)?.map_err(refused)?, Some(why))
        }
    };
    let Bound { socket, rings, chains } = opened;
    let system = |call| move |source| XskError::System { port: target.port.to_owned(), call, source };
    let transfer = socket.transfer().map_err(system("XDP_OPTIONS"))?;
    let opened = Opened { socket, rings, transfer, chains, because };
    tune(target, config, &opened)?;
    say(target, config, &opened);
    Ok(opened)
}

/// A socket that is bound.
struct Bound {
    socket: Socket,
    rings: Rings,
    chains: bool,
}

/// Binds for packets in several chunks or, where the kernel (before 6.6) or the driver has none of that, in one. The inner
/// error says that the mode cannot be had.
fn bind_best(
    target: &Target<'_>,
    config: &XskConfig,
    chunks: &[u32],
    transfer: Transfer,
) -> Result<Result<Bound, io::Error>, XskError> {
    let bind = |chains| bind_patiently(target, config, chunks, Mode { transfer, chains });
    let (bound, chains) = match bind(true)? {
        Ok(bound) => (Ok(bound), true),
        Err(_) => (bind(false)?, false),
    };
    Ok(bound.map(|(socket, rings)| Bound { socket, rings, chains }))
}

/// Binds, waiting while the queue is busy. The inner error says that the mode cannot be had.
fn bind_patiently(
    target: &Target<'_>,
    config: &XskConfig,
    chunks: &[u32],
    mode: Mode,
) -> Result<Result<(Socket, Rings), io::Error>, XskError> {
    let start = Instant::now();
    loop {
        match bind_once(target, config, chunks, mode) {
            Ok(bound) => return Ok(Ok(bound)),
            Err(Refusal::Mode(error)) => return Ok(Err(error)),
            Err(Refusal::Fatal(error)) => return Err(error),
            Err(Refusal::Busy) if start.elapsed() > BUSY_LIMIT => {
                let waited_ms = start.elapsed().as_millis();
                return Err(XskError::QueueBusy { port: target.port.to_owned(), waited_ms });
            }
            Err(Refusal::Busy) => std::thread::sleep(BUSY_PAUSE),
        }
    }
}

/// One try, on a socket of its own: a failed bind leaves a socket that cannot be bound again.
fn bind_once(
    target: &Target<'_>,
    config: &XskConfig,
    chunks: &[u32],
    mode: Mode,
) -> Result<(Socket, Rings), Refusal> {
    let socket = Socket::new(target.port)?;
    let completion = config.tx_ring;
    let fill = config.fill_level.next_power_of_two();
    let sizes = RingSizes { fill, completion, rx: config.rx_ring, tx: config.tx_ring };
    let mut rings = socket.rings(target.port, sizes)?;
    // Many drivers look at the fill ring when they bind, so it is filled before.
    for &chunk in chunks {
        let pushed = rings.fill.push(u64::from(chunk) * CHUNK as u64);
        debug_assert!(pushed, "the fill ring has room for the fill level");
    }
    rings.fill.publish();
    match bind_any(&socket, target, mode) {
        Ok(()) => Ok((socket, rings)),
        Err(Refusal::Mode(source)) => Err(match source.raw_os_error() {
            Some(libc::EBUSY) => Refusal::Busy,
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE) => Refusal::Mode(source),
            _ => XskError::from_call(target.port, "bind(AF_XDP)", target.region.bytes(), source).into(),
        }),
        Err(other) => Err(other),
    }
}

/// Binds with the UMEM of a bound socket, or with one of its own when there is none.
fn bind_any(socket: &Socket, target: &Target<'_>, mode: Mode) -> Result<(), Refusal> {
    let mut lenders = Lenders::lock();
    let place = (target.netdev.index, target.queue);
    let bind = |lender: Option<RawFd>| socket.bind(target.netdev.index, target.queue, mode, lender);
    let bound = loop {
        let Some(lender) = lenders.find(target.region, mode, place) else {
            socket.register(target.port, target.region)?;
            break bind(None);
        };
        match bind(Some(lender)) {
            // The lender's device was removed, which unbound it: it lends no more.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => lenders.remove(lender),
            other => break other,
        }
    };
    bound.map_err(Refusal::Mode)?;
    lenders.add(socket.raw(), target.region, mode, place);
    Ok(())
}

/// Waits until the kernel has let go of a queue whose socket was closed, `limit` at most; false when it has not.
///
/// A driver in zero-copy mode is told in the background, and may write to chunks until then. A bind in copy mode answers
/// EBUSY as long as that is not done, which is the one sign of it that the kernel gives.
pub(crate) fn await_release(target: &Target<'_>, limit: Duration) -> bool {
    let start = Instant::now();
    let sizes = RingSizes { fill: 64, completion: 64, rx: 64, tx: 64 };
    let plain = Mode { transfer: Transfer::Copy, chains: false };
    let busy = || -> Result<bool, XskError> {
        let socket = Socket::new(target.port)?;
        socket.register(target.port, target.region)?;
        let _rings = socket.rings(target.port, sizes)?;
        let bound = socket.bind(target.netdev.index, target.queue, plain, None);
        Ok(bound.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)))
    };
    loop {
        match busy() {
            Ok(true) if start.elapsed() < limit => std::thread::sleep(BUSY_PAUSE),
            Ok(busy) => return !busy,
            Err(error) => {
                tracing::warn!(port = target.port, "cannot tell whether the queue is released: {error}");
                return false;
            }
        }
    }
}

/// The options that a bound socket takes.
fn tune(target: &Target<'_>, config: &XskConfig, opened: &Opened) -> Result<(), XskError> {
    let system = |call| move |source| XskError::System { port: target.port.to_owned(), call, source };
    let socket = &opened.socket;
    socket.send_buffer(SEND_BUFFER).map_err(system("SO_SNDBUFFORCE"))?;
    if opened.transfer == Transfer::Copy {
        let budget = config.tx_budget.unwrap_or(TX_BUDGET.min(config.tx_ring));
        match (socket.limit_transmit(budget), config.tx_budget) {
            (Ok(()), _) => {}
            (Err(error), None) => {
                tracing::debug!(port = target.port, "no XDP_MAX_TX_SKB_BUDGET before Linux 6.17 ({error})");
            }
            (Err(source), Some(_)) => return Err(system("XDP_MAX_TX_SKB_BUDGET")(source)),
        }
    }
    if let Some(busy) = config.busy_poll {
        socket.busy_poll(busy).map_err(system("SO_PREFER_BUSY_POLL"))?;
    }
    Ok(())
}

/// What the operator should know about the port.
fn say(target: &Target<'_>, config: &XskConfig, opened: &Opened) {
    let (port, transfer) = (target.port, opened.transfer);
    match &opened.because {
        Some(why) if config.copy == CopyMode::Auto => {
            tracing::info!(port, "AF_XDP socket bound in {transfer} mode: {why}");
        }
        _ => tracing::info!(port, "AF_XDP socket bound in {transfer} mode"),
    }
    let pieces = if opened.chains { MOST_PIECES } else { 1 };
    let (longest, mtu) = (pieces * (CHUNK - HEADROOM), target.netdev.mtu);
    // 14 bytes of Ethernet and one VLAN tag.
    if mtu as usize + 18 > longest {
        tracing::warn!(
            port,
            "packets above {longest} bytes are too long for {pieces} chunks and are dropped, the interface's MTU is {mtu}; \
             mend: ip link set {} mtu {}",
            target.netdev.name,
            longest - 18
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FramePool, Hugepages, Port, XskPort};

    #[test]
    fn a_queue_is_released_only_after_its_socket_closed() {
        let lab = std::thread::spawn(|| {
            // SAFETY: moves this thread alone to a new network namespace; no memory is touched.
            let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(moved, 0, "labs need root: {}", io::Error::last_os_error());
            let mut pool = FramePool::new(Region::map(1024, Hugepages::Off).unwrap());
            let (netdev, region) = (Netdev::named("lo").unwrap(), pool.region());
            let config = XskConfig { fill_level: 64, fill_at_first: 64, ..XskConfig::default() };
            let port = XskPort::open(&netdev, 0, &config, &mut pool).unwrap();
            let target = Target { port: "lo:0", netdev: &netdev, queue: 0, region };
            assert!(!await_release(&target, Duration::from_millis(20)));
            port.close(&mut pool);
            assert!(await_release(&target, BUSY_LIMIT));
        });
        lab.join().unwrap();
    }
}
