//! What attachments need of the node's dataplane, and a dataplane that is spoken to directly.

use std::future::Future;
use std::path::PathBuf;

use penstock_api::client::{Client, ClientError};
use penstock_api::model::{Encapsulation, Key, Name, Network, Object, Prefix};
use penstock_api::query::EventOrder;
use thiserror::Error;
use tokio::sync::Mutex;

/// Why the dataplane did not do what it was told.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// It cannot be reached, so that nothing is known of it.
    #[error("the dataplane cannot be reached: {0}")]
    Away(#[source] ClientError),
    /// It refused.
    #[error("the dataplane refused: {0}")]
    Refused(#[source] ClientError),
    /// There is no such network.
    #[error("the dataplane has no network {0:?}; name one that it has under `network`, or add it")]
    NoNetwork(String),
    /// It does not follow, or the agent does not know yet what it is to do.
    #[error(
        "the dataplane is not as the cluster wants it, after {} s; is penstockd running, and does the API server answer? The agent's /readyz says what is missing",
        .0.as_secs()
    )]
    Late(std::time::Duration),
}

impl From<ClientError> for DataplaneError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(_) | ClientError::Call(_) => Self::Refused(error),
            _ => Self::Away(error),
        }
    }
}

/// What is known of a network of the dataplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Its name.
    pub name: Name,
    /// The largest IP packet in bytes.
    pub mtu: u16,
    /// The addresses that belong to it.
    pub prefixes: Vec<Prefix>,
    /// The addresses that the dataplane answers for as the gateway.
    pub gateways: Vec<std::net::IpAddr>,
    /// The dataplane's workers.
    pub workers: u32,
}

/// A port of the dataplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortState {
    /// The interface, or the socket of a vhost-user port.
    pub interface: String,
    /// `up`, or what keeps it from coming up.
    pub state: String,
}

/// The node's dataplane, as attachments use it. What is put is there until it is removed, whatever restarts.
pub trait Dataplane: Send + Sync + 'static {
    /// Waits, but not for ever, until it can be told something.
    fn awaited(&self) -> impl Future<Output = Result<(), DataplaneError>> + Send {
        std::future::ready(Ok(()))
    }

    /// The network of this name.
    fn network(&self, name: &str) -> impl Future<Output = Result<NetworkFacts, DataplaneError>> + Send;

    /// Adds or replaces objects. When this returns, they and every policy about them are live on every worker.
    fn put(&self, objects: Vec<Object>) -> impl Future<Output = Result<(), DataplaneError>> + Send;

    /// Removes objects; what is not there is removed already. When this returns, no worker has them any more.
    fn remove(&self, keys: Vec<Key>) -> impl Future<Output = Result<(), DataplaneError>> + Send;

    /// The ports of an endpoint, and whether all of these objects are there as they were put.
    fn inspect(
        &self,
        endpoint: &Name,
        objects: &[Object],
    ) -> impl Future<Output = Result<(Vec<PortState>, bool), DataplaneError>> + Send;
}

/// A dataplane without an agent: attachments are the only objects that come over its socket.
#[derive(Debug)]
pub struct Direct {
    socket: PathBuf,
    client: Mutex<Option<Client>>,
}

impl Direct {
    /// The dataplane that listens at a socket.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket, client: Mutex::new(None) }
    }

    async fn client(&self) -> Result<Client, DataplaneError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let fresh = Client::connect(&self.socket).await?;
        *client = Some(fresh.clone());
        Ok(fresh)
    }

    /// A connection that was lost is made anew by the next call.
    async fn noted<T>(&self, answer: Result<T, ClientError>) -> Result<T, DataplaneError> {
        if let Err(error) = &answer
            && !matches!(error, ClientError::Refused(_) | ClientError::Call(_))
        {
            *self.client.lock().await = None;
        }
        Ok(answer?)
    }

    /// What is known of a network that the dataplane has.
    ///
    /// # Errors
    /// [`DataplaneError::Away`].
    pub async fn facts(&self, network: Network) -> Result<NetworkFacts, DataplaneError> {
        let mut client = self.client().await?;
        let status = client.status().await;
        let status = self.noted(status).await?;
        let ports = client.ports().await;
        let ports = self.noted(ports).await?;
        let small = |mtu: u32| u16::try_from(mtu).unwrap_or(u16::MAX);
        // The host port has what the tunnels leave of the uplinks.
        let host = ports.iter().find(|port| port.name == "host" && port.network == network.name.as_str());
        let uplinks = ports.iter().filter(|port| port.network.is_empty() && port.name != "host");
        let over_ipv6 = status.underlay_addresses.iter().all(|it| it.contains(':'));
        let left = uplinks
            .map(|port| small(port.mtu))
            .min()
            .unwrap_or(1500)
            .saturating_sub(overhead(&network, over_ipv6));
        let mtu = network.mtu.or(host.map(|port| small(port.mtu))).unwrap_or(left);
        Ok(NetworkFacts {
            name: network.name,
            mtu,
            prefixes: network.prefixes,
            gateways: network.gateways,
            workers: status.workers.max(1),
        })
    }

    /// The ports of an endpoint.
    ///
    /// # Errors
    /// [`DataplaneError::Away`].
    pub async fn ports_of(&self, endpoint: &Name) -> Result<Vec<PortState>, DataplaneError> {
        let mut client = self.client().await?;
        let ports = client.ports().await;
        let ports = self.noted(ports).await?.into_iter();
        let ports = ports.filter(|port| port.endpoint == endpoint.as_str());
        Ok(ports.map(|port| PortState { interface: port.interface, state: port.state }).collect())
    }

    /// Waits until the daemon that answers now has ended.
    ///
    /// # Errors
    /// [`DataplaneError::Away`] when none answers.
    pub async fn until_it_ends(&self) -> Result<(), DataplaneError> {
        let mut client = self.client().await?;
        let order = EventOrder::default();
        let watched = client.events(&order).await;
        let mut events = self.noted(watched).await?;
        while let Ok(Some(_)) = events.next().await {}
        *self.client.lock().await = None;
        Ok(())
    }
}

/// Bytes that a tunnel adds to an IP packet: Ethernet, VXLAN or Geneve without options, UDP, and IPv4 or IPv6.
fn overhead(network: &Network, over_ipv6: bool) -> u16 {
    match network.encapsulation {
        Encapsulation::None => 0,
        _ if over_ipv6 => 14 + 8 + 8 + 40,
        _ => 14 + 8 + 8 + 20,
    }
}

impl Dataplane for Direct {
    async fn network(&self, name: &str) -> Result<NetworkFacts, DataplaneError> {
        let mut client = self.client().await?;
        let objects = client.objects().await;
        let objects = self.noted(objects).await?;
        let network = objects.into_iter().find_map(|object| match object {
            Object::Network(network) if network.name.as_str() == name => Some(network),
            _ => None,
        });
        let network = network.ok_or_else(|| DataplaneError::NoNetwork(name.to_owned()))?;
        self.facts(network).await
    }

    async fn put(&self, objects: Vec<Object>) -> Result<(), DataplaneError> {
        let put = self.client().await?.upsert(&objects).await;
        self.noted(put).await.map(drop)
    }

    async fn remove(&self, keys: Vec<Key>) -> Result<(), DataplaneError> {
        let mut client = self.client().await?;
        match client.delete(&keys).await {
            Ok(_) => Ok(()),
            // Some of them may not be there: none was removed then.
            Err(ClientError::Refused(_)) => {
                let there = client.objects().await;
                let there = self.noted(there).await?;
                let keys: Vec<Key> = there.iter().map(Object::key).filter(|key| keys.contains(key)).collect();
                if keys.is_empty() {
                    return Ok(());
                }
                let removed = client.delete(&keys).await;
                self.noted(removed).await.map(drop)
            }
            other => self.noted(other).await.map(drop),
        }
    }

    async fn inspect(
        &self,
        endpoint: &Name,
        objects: &[Object],
    ) -> Result<(Vec<PortState>, bool), DataplaneError> {
        let ports = self.ports_of(endpoint).await?;
        let mut client = self.client().await?;
        let there = client.objects().await;
        let there = self.noted(there).await?;
        Ok((ports, objects.iter().all(|object| there.contains(object))))
    }
}
