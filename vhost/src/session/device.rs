//! What a front-end has told of its device, and the queue pairs that follow from it.
//!
//! Every message changes what is told and then settles the pairs that it concerns: a pair is taken back from its worker,
//! and handed over again as it is now. That holds for the memory table under traffic as for a doorbell that is replaced.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserVringAddrFlags;

use super::refusal::{Refusal, Request};
use crate::bell::Doorbell;
use crate::features;
use crate::handover::{Bases, PairSetup, RingSetup, Switch};
use crate::inflight::{Inflight, InflightQueue};
use crate::log::DirtyLog;
use crate::memory::GuestMemory;

/// How long a worker may take to let go of a pair: a burst when it works, a wake-up when it sleeps.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Entries of a ring at most, in either format (virtio 1.2 sections 2.7 and 2.8.10.1).
const MOST_ENTRIES: u32 = 32_768;
/// Where the used ring has its index (`struct vring_used`, `linux/virtio_ring.h`).
const USED_INDEX: usize = 2;

/// Where a ring is, as `SET_VRING_ADDR` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    /// Where the used ring is in the dirty log.
    pub(super) log: Option<u64>,
}

/// How a ring is woken.
#[derive(Clone, Debug, Default)]
enum Kick {
    /// It is not started.
    #[default]
    Stopped,
    /// Started, and the guest expects it to be polled.
    Polled,
    /// Started, with a doorbell.
    Rung(Arc<Doorbell>),
}

/// What was told of one ring.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    size: u32,
    at: Option<Addresses>,
    base: u32,
    kick: Kick,
    call: Option<Arc<Doorbell>>,
    /// What was said of it; nothing said: as [`Device::enabled_at_first`].
    enabled: Option<bool>,
}

/// The record of descriptors in flight.
#[derive(Debug)]
struct Record {
    file: File,
    offset: u64,
    queues: u16,
    size: u16,
    /// Mapped for the kind of ring that was agreed upon.
    mapped: Option<(bool, Inflight)>,
}

/// A device as one connection sees it.
pub(super) struct Device {
    switches: Arc<[Switch]>,
    /// Whether each pair is with its worker.
    serving: Vec<bool>,
    rings: Vec<Ring>,
    pub(super) offered: u64,
    pub(super) acknowledged: Option<u64>,
    /// Protocol features acknowledged over this connection; nothing said yet: see [`Device::has_agreed`].
    pub(super) protocol: Option<u64>,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    record: Option<Record>,
    /// Device status (virtio 1.2 section 2.1).
    pub(super) status: u8,
    /// The MTU that the front-end shows its guest.
    pub(super) mtu: Option<u16>,
}

/// What a person may want to know of one ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatus {
    /// Its entries; 0 as long as they were not told.
    pub size: u32,
    /// Started and not stopped since.
    pub started: bool,
    /// Packets may flow.
    pub enabled: bool,
}

impl Device {
    /// A device that nothing was told of.
    pub(super) fn new(switches: Arc<[Switch]>, offered: u64) -> Device {
        let pairs = switches.len();
        Device {
            switches,
            serving: vec![false; pairs],
            rings: vec![Ring::default(); 2 * pairs],
            offered,
            acknowledged: None,
            protocol: None,
            memory: Arc::default(),
            log: None,
            record: None,
            status: 0,
            mtu: None,
        }
    }

    pub(super) fn pairs(&self) -> usize {
        self.switches.len()
    }

    /// The place of a ring that a request names.
    pub(super) fn ring(&self, request: Request, index: u32) -> Result<usize, Refusal> {
        let rings = self.rings.len();
        let place = usize::try_from(index).ok().filter(|&place| place < rings);
        place.ok_or(Refusal::NoSuchRing { request, index, rings })
    }

    /// Changes what is told of one ring.
    fn change(
        &mut self,
        request: Request,
        index: u32,
        change: impl FnOnce(&mut Ring),
    ) -> Result<(), Refusal> {
        let place = self.ring(request, index)?;
        self.halt(place / 2)?;
        change(&mut self.rings[place]);
        self.go_on(place / 2)
    }

    pub(super) fn set_size(&mut self, request: Request, index: u32, size: u32) -> Result<(), Refusal> {
        if size == 0 || size > MOST_ENTRIES {
            return Err(Refusal::RingSize { index, size });
        }
        self.change(request, index, |ring| ring.size = size)
    }

    pub(super) fn set_addresses(
        &mut self,
        request: Request,
        index: u32,
        at: Addresses,
    ) -> Result<(), Refusal> {
        self.change(request, index, |ring| ring.at = Some(at))
    }

    pub(super) fn set_base(&mut self, request: Request, index: u32, base: u32) -> Result<(), Refusal> {
        self.change(request, index, |ring| ring.base = base)
    }

    pub(super) fn set_enabled(&mut self, request: Request, index: u32, enabled: bool) -> Result<(), Refusal> {
        self.change(request, index, |ring| ring.enabled = Some(enabled))
    }

    /// Starts a ring: with a doorbell, or without one to be polled.
    pub(super) fn set_kick(
        &mut self,
        request: Request,
        index: u32,
        file: Option<File>,
    ) -> Result<(), Refusal> {
        let kick = match bell(request, index, file)? {
            Some(bell) => Kick::Rung(bell),
            None => Kick::Polled,
        };
        self.change(request, index, |ring| ring.kick = kick)
    }

    pub(super) fn set_call(
        &mut self,
        request: Request,
        index: u32,
        file: Option<File>,
    ) -> Result<(), Refusal> {
        let call = bell(request, index, file)?;
        self.change(request, index, |ring| ring.call = call)
    }

    /// Stops a ring; where it stands.
    pub(super) fn stop(&mut self, request: Request, index: u32) -> Result<u32, Refusal> {
        self.change(request, index, |ring| ring.kick = Kick::Stopped)?;
        Ok(self.rings[self.ring(request, index)?].base)
    }

    pub(super) fn set_features(&mut self, acknowledged: u64) -> Result<(), Refusal> {
        let extra = acknowledged & !self.offered;
        if extra != 0 {
            return Err(Refusal::Features { extra });
        }
        self.change_all(|device| device.acknowledged = Some(acknowledged))
    }

    /// Replaces the memory that the rings lie in; they go on where they stand.
    pub(super) fn set_memory(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        self.change_all(|device| device.memory = Arc::new(memory))
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(super) fn set_log(&mut self, file: &File, offset: u64, bytes: u64) -> Result<(), Refusal> {
        let log = DirtyLog::map(file, offset, bytes).map_err(|source| Refusal::Log { bytes, source })?;
        self.change_all(|device| device.log = Some(Arc::new(log)))
    }

    /// Makes a record of descriptors in flight; its length and its file.
    pub(super) fn make_record(&mut self, queues: u16, size: u16) -> Result<(u64, File), Refusal> {
        self.check_record(queues, size)?;
        let failed = |source| Refusal::Inflight { queues, size, source };
        let (_, file) = Inflight::create(queues, size, self.is_packed()).map_err(failed)?;
        Ok((Inflight::bytes(queues, size, self.is_packed()), file))
    }

    /// Keeps to the record that the front-end kept.
    pub(super) fn set_record(
        &mut self,
        file: File,
        offset: u64,
        queues: u16,
        size: u16,
    ) -> Result<(), Refusal> {
        self.check_record(queues, size)?;
        self.change_all(|device| device.record = Some(Record { file, offset, queues, size, mapped: None }))
    }

    fn check_record(&self, queues: u16, size: u16) -> Result<(), Refusal> {
        let rings = self.rings.len();
        if usize::from(queues) > rings {
            return Err(Refusal::NoSuchRing { request: Request(31), index: u32::from(queues) - 1, rings });
        }
        if size == 0 || u32::from(size) > MOST_ENTRIES {
            return Err(Refusal::RingSize { index: 0, size: size.into() });
        }
        Ok(())
    }

    /// Stops all rings and forgets what was told of them; memory stays.
    pub(super) fn reset(&mut self) -> Result<(), Refusal> {
        self.change_all(|device| {
            device
                .rings
                .iter_mut()
                .for_each(|ring| *ring = Ring { call: ring.call.take(), ..Ring::default() });
        })
    }

    fn change_all(&mut self, change: impl FnOnce(&mut Device)) -> Result<(), Refusal> {
        (0..self.pairs()).try_for_each(|pair| self.halt(pair))?;
        change(self);
        (0..self.pairs()).try_for_each(|pair| self.go_on(pair))
    }

    /// Takes a pair back from its worker.
    fn halt(&mut self, pair: usize) -> Result<(), Refusal> {
        if !self.serving[pair] {
            return Ok(());
        }
        let Bases { rx, tx } = self.switches[pair].stop(PATIENCE)?;
        self.serving[pair] = false;
        for (ring, base) in self.rings[2 * pair..].iter_mut().zip([tx, rx]) {
            ring.base = base.unwrap_or(ring.base);
        }
        Ok(())
    }

    /// Hands a pair to its worker if a ring of it can work.
    fn go_on(&mut self, pair: usize) -> Result<(), Refusal> {
        let (tx, rx) = (self.ring_setup(2 * pair)?, self.ring_setup(2 * pair + 1)?);
        if tx.is_none() && rx.is_none() {
            return Ok(());
        }
        let features = self.acknowledged.unwrap_or(0);
        let log = self.log.clone().filter(|_| features & features::LOG_ALL != 0);
        self.switches[pair].start(PairSetup { memory: Arc::clone(&self.memory), features, rx, tx, log });
        self.serving[pair] = true;
        Ok(())
    }

    /// A ring that was started and of which all is told.
    fn ring_setup(&mut self, index: usize) -> Result<Option<RingSetup>, Refusal> {
        let ring = self.rings[index].clone();
        let kick = match ring.kick {
            Kick::Stopped => return Ok(None),
            Kick::Polled => None,
            Kick::Rung(bell) => Some(bell),
        };
        let Some(at) = ring.at.filter(|_| ring.size != 0 && self.memory.regions() != 0) else {
            return Ok(None);
        };
        let inflight = self.inflight(index as u16)?;
        let base = self.base(ring.base, at);
        Ok(Some(RingSetup {
            size: ring.size,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            used_log: at.log,
            base,
            kick,
            call: ring.call,
            enabled: ring.enabled.unwrap_or(self.enabled_at_first()),
            inflight,
        }))
    }

    /// Where a ring goes on. A front-end whose back-end was lost does not know, and may say zero (DPDK's does). What a split
    /// ring says in the used index holds, for whoever uses descriptors in order, as we do; a packed one has no such word.
    fn base(&self, told: u32, at: Addresses) -> u32 {
        let used = self.memory.words_at_user(at.used, 4, 4).filter(|_| !self.is_packed());
        used.map_or(told, |used| used.load16(USED_INDEX, Ordering::Acquire).into())
    }

    fn inflight(&mut self, queue: u16) -> Result<Option<InflightQueue>, Refusal> {
        let packed = self.is_packed();
        let Some(record) = &mut self.record else { return Ok(None) };
        let Record { offset, queues, size, .. } = *record;
        if record.mapped.as_ref().is_none_or(|(kind, _)| *kind != packed) {
            let inflight = Inflight::map(&record.file, offset, queues, size, packed);
            record.mapped =
                Some((packed, inflight.map_err(|source| Refusal::Inflight { queues, size, source })?));
        }
        Ok(record.mapped.as_ref().and_then(|(_, inflight)| inflight.queue(queue)))
    }

    fn is_packed(&self) -> bool {
        self.acknowledged.unwrap_or(0) & features::RING_PACKED != 0
    }

    /// Whether a protocol feature of ours may be used. A front-end that comes back may go on with what it agreed upon with
    /// the connection before, until it says what holds for this one (DPDK's resets the device first).
    pub(super) fn has_agreed(&self, feature: u64) -> bool {
        self.protocol.is_none_or(|agreed| agreed & feature == feature)
    }

    /// Without protocol features nobody could enable a ring, so it is (vhost-user specification, "Ring states").
    fn enabled_at_first(&self) -> bool {
        self.acknowledged.unwrap_or(0) & features::PROTOCOL_FEATURES == 0
    }

    /// Takes all pairs back for good: the connection is over.
    pub(super) fn end(&mut self) -> Result<(), Refusal> {
        (0..self.pairs()).try_for_each(|pair| self.halt(pair))
    }

    /// All rings, for people.
    pub(super) fn ring_status(&self) -> impl Iterator<Item = RingStatus> {
        self.rings.iter().map(|ring| RingStatus {
            size: ring.size,
            started: !matches!(ring.kick, Kick::Stopped),
            enabled: ring.enabled.unwrap_or(self.enabled_at_first()),
        })
    }
}

/// A doorbell from a descriptor that came with a request.
fn bell(request: Request, index: u32, file: Option<File>) -> Result<Option<Arc<Doorbell>>, Refusal> {
    let failed = |source: io::Error| Refusal::Doorbell { request, index, source };
    file.map(|file| Doorbell::new(file).map(Arc::new).map_err(failed)).transpose()
}

/// The addresses of `SET_VRING_ADDR`.
impl Addresses {
    pub(super) fn new(
        flags: &VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Addresses {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        Addresses { desc, avail, used, log }
    }
}
