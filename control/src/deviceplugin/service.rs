//! One resource, as the kubelet asks about it.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::pool::{AllocationError, Device, Grant, Pool};
use super::preference::preferred;
use super::proto::device_plugin_server::DevicePlugin;
use super::proto::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};

/// What the kubelet is to call beside Allocate. It need not ask before containers start: a pod must start while the agent
/// is being replaced, too, and everything is ready since it was allocated.
pub(super) const OPTIONS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };

/// The service of one resource.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) devices: watch::Receiver<Vec<Device>>,
}

impl From<AllocationError> for Status {
    fn from(error: AllocationError) -> Self {
        match error {
            AllocationError::Unknown { .. } => Status::not_found(error.to_string()),
            AllocationError::Folder { .. } => Status::internal(error.to_string()),
        }
    }
}

impl Service {
    /// Prepares the devices of each container on a thread that may wait for the disk.
    async fn grants(&self, containers: Vec<Vec<String>>) -> Result<Vec<Grant>, Status> {
        let pool = Arc::clone(&self.pool);
        let granted = tokio::task::spawn_blocking(move || {
            containers.iter().map(|ids| pool.allocate(ids)).collect::<Result<Vec<Grant>, AllocationError>>()
        });
        Ok(granted.await.map_err(|error| Status::internal(error.to_string()))??)
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let state = (self.devices.clone(), true);
        let told = stream::unfold(state, async |(mut devices, is_first)| {
            // Nobody changes them any more: the resource's post is gone, and the connection with it.
            if !is_first && devices.changed().await.is_err() {
                return None;
            }
            let listed = devices.borrow_and_update().iter().map(Into::into).collect();
            Some((Ok(ListAndWatchResponse { devices: listed }), (devices, false)))
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let devices = self.devices.borrow();
        let answers = request.into_inner().container_requests.into_iter().map(|asked| {
            let size = usize::try_from(asked.allocation_size).unwrap_or(0);
            let (available, must) = (&asked.available_device_i_ds, &asked.must_include_device_i_ds);
            ContainerPreferredAllocationResponse { device_i_ds: preferred(&devices, available, must, size) }
        });
        Ok(Response::new(PreferredAllocationResponse { container_responses: answers.collect() }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests.into_iter().map(|it| it.devices_ids);
        let grants = self.grants(containers.collect()).await?;
        let container_responses = grants.into_iter().map(Into::into).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let devices = self.devices.borrow();
        let unknown =
            request.into_inner().devices_ids.into_iter().find(|id| !devices.iter().any(|it| it.id == *id));
        match unknown {
            None => Ok(Response::new(PreStartContainerResponse {})),
            Some(id) => {
                let resource = format!("{}/{}", super::DOMAIN, self.pool.name());
                Err(AllocationError::Unknown { resource, id }.into())
            }
        }
    }
}
