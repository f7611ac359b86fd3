//! The requests of the protocol, as rust-vmm's crate hands them over, and the few that it does not know.

use std::fs::File;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    FrontendReq, VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
    VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol,
    VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags,
    VhostUserVringState,
};
use vhost::vhost_user::{Error as ProtocolError, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::device::{Addresses, Device};
use super::refusal::{Refusal, Request};
use crate::memory::{GuestMemory, MAX_REGIONS, RegionSetup};

/// Protocol features of every device.
pub(super) const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::LOG_SHMFD)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::MTU)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::STATUS);

/// The smallest and the largest MTU of a virtio network device (virtio 1.2 section 5.1.4.1).
const MTUS: std::ops::RangeInclusive<u64> = 68..=65_535;

/// A request by its name.
fn of(request: FrontendReq) -> Request {
    Request(request.into())
}

/// What is not offered is not asked for.
fn not_offered<T>(request: FrontendReq) -> Result<T> {
    Err(Refusal::Unknown { request: of(request) }.into())
}

fn region(row: &VhostUserMemoryRegion, file: File) -> RegionSetup {
    RegionSetup {
        guest: row.guest_phys_addr,
        user: row.user_addr,
        bytes: row.memory_size,
        offset: row.mmap_offset,
        file,
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// No longer used; what it once meant is a reset.
    fn reset_owner(&mut self) -> Result<()> {
        Ok(self.reset()?)
    }

    fn reset_device(&mut self) -> Result<()> {
        Ok(self.reset()?)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(Device::set_features(self, features)?)
    }

    fn set_mem_table(
        &mut self,
        rows: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = rows.iter().zip(files).map(|(row, file)| region(row, file));
        self.set_memory(GuestMemory::map(regions).map_err(Refusal::from)?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.set_size(of(FrontendReq::SET_VRING_NUM), index, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let at = Addresses::new(&flags, descriptor, used, available, log);
        Ok(self.set_addresses(of(FrontendReq::SET_VRING_ADDR), index, at)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.set_base(of(FrontendReq::SET_VRING_BASE), index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.stop(of(FrontendReq::GET_VRING_BASE), index)?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        Ok(self.set_kick(of(FrontendReq::SET_VRING_KICK), index.into(), file)?)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        Ok(self.set_call(of(FrontendReq::SET_VRING_CALL), index.into(), file)?)
    }

    /// A ring that stops ends the connection, which tells more than this descriptor could.
    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(of(FrontendReq::SET_VRING_ERR), index.into())?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<Protocol> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let extra = features & !PROTOCOL.bits();
        if extra != 0 {
            return Err(Refusal::ProtocolFeatures { extra }.into());
        }
        self.protocol = Some(features);
        Ok(())
    }

    /// In pairs, for a network device.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.pairs() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.set_enabled(of(FrontendReq::SET_VRING_ENABLE), index, enable)?)
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        not_offered(FrontendReq::GET_CONFIG)
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        not_offered(FrontendReq::SET_CONFIG)
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        not_offered(FrontendReq::GPU_SET_SOCKET)
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        not_offered(FrontendReq::GET_SHARED_OBJECT)
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        let (bytes, file) = self.make_record(queues, size)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        Ok(self.set_record(file, kept.mmap_offset, kept.num_queues, kept.queue_size)?)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        row: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let memory = self.memory().with(region(row, file)).map_err(Refusal::from)?;
        self.set_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, row: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory().without(row.guest_phys_addr, row.user_addr, row.memory_size);
        Ok(self.set_memory(memory.map_err(Refusal::from)?)?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        not_offered(FrontendReq::SET_DEVICE_STATE_FD)
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered(FrontendReq::CHECK_DEVICE_STATE)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered(FrontendReq::GET_SHMEM_CONFIG)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        Ok(self.set_log(&file, log.mmap_offset, log.mmap_size)?)
    }
}

/// How a request of these is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// By this number, always.
    Value(u64),
    /// Only if the front-end asks for an acknowledgement: zero, or not for what is invalid and left undone.
    Acknowledgement(u64),
}

/// Whether a request is one that the crate does not know, or takes too strictly: DPDK's front-end disables its rings on a
/// fresh connection before it acknowledges any feature, when its back-end comes back.
pub(super) fn is_ours(request: Request) -> bool {
    use FrontendReq as R;
    let ours = [R::SET_STATUS, R::GET_STATUS, R::NET_SET_MTU, R::SET_LOG_FD, R::SET_VRING_ENABLE];
    request.meaning().is_some_and(|request| ours.contains(&request))
}

/// Whether such a request has a body: a number, or a ring's number and one.
pub(super) fn has_body(request: Request) -> bool {
    !matches!(request.meaning(), Some(FrontendReq::GET_STATUS | FrontendReq::SET_LOG_FD))
}

impl Device {
    /// Serves a request that [`is_ours`]; `value` is its body.
    pub(super) fn serve(&mut self, request: Request, value: u64) -> std::result::Result<Answer, Refusal> {
        let needs = match request.meaning() {
            Some(FrontendReq::NET_SET_MTU) => Protocol::MTU,
            Some(FrontendReq::SET_STATUS | FrontendReq::GET_STATUS) => Protocol::STATUS,
            _ => Protocol::empty(),
        };
        if !self.has_agreed(needs.bits()) {
            let source = ProtocolError::InactiveOperation(needs);
            return Err(Refusal::NotAgreed { request, source });
        }
        Ok(match request.meaning() {
            Some(FrontendReq::GET_STATUS) => Answer::Value(self.status.into()),
            Some(FrontendReq::SET_STATUS) => match u8::try_from(value) {
                Ok(status) => {
                    // Zero is the driver's reset of the device (virtio 1.2 section 2.1.1).
                    if status == 0 {
                        self.reset()?;
                    }
                    self.status = status;
                    Answer::Acknowledgement(0)
                }
                Err(_) => Answer::Acknowledgement(1),
            },
            Some(FrontendReq::NET_SET_MTU) if MTUS.contains(&value) => {
                self.mtu = u16::try_from(value).ok();
                Answer::Acknowledgement(0)
            }
            Some(FrontendReq::NET_SET_MTU) => Answer::Acknowledgement(1),
            Some(FrontendReq::SET_LOG_FD) => Answer::Acknowledgement(0),
            Some(FrontendReq::SET_VRING_ENABLE) => {
                let [a, b, c, d, rest @ ..] = value.to_ne_bytes();
                let enable = match u32::from_ne_bytes(rest) {
                    0 => false,
                    1 => true,
                    _ => return Err(Refusal::Malformed { request, source: ProtocolError::InvalidParam }),
                };
                self.set_enabled(request, u32::from_ne_bytes([a, b, c, d]), enable)?;
                Answer::Acknowledgement(0)
            }
            _ => return Err(Refusal::Unknown { request }),
        })
    }
}
