//! The only room that knows a coordinator. Offered tasks come in and go the same road as local ones; results, load and
//! health go out. One link per grid; nothing of one grid is told to another. It batches nothing and keeps no results:
//! the spool of the wire's client does.

mod host;
mod machine;
mod options;

pub use machine::{Machine, Sampled};
pub use options::{Error, Options};

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use coordinator_client::client::{self, Service, Status};
use coordinator_client::identity::Identity;
use tokio_util::sync::CancellationToken;

use crate::service;

/// File name of the node's key inside the data folder.
const KEY_FILE: &str = "node.key";

/// File that is locked as long as a process is linked by that key.
const LOCK_FILE: &str = "node.lock";

/// A worker's links to all its grids, ready to run.
pub struct Links {
    identity: Arc<Identity>,
    services: Vec<Service>,
    handle: Handle,
    /// Where there is a grid.
    lock: Option<File>,
}

/// Asks running links. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    node: coordinator_client::wire::NodeId,
    links: Vec<client::Handle>,
}

impl Links {
    /// Makes or reads the node's key and prepares a link to every grid. Nothing is dialled yet.
    ///
    /// # Errors
    /// When the data folder cannot be used or another worker is linked from it, or an address is none.
    pub fn new(options: Options, worker: service::Handle, machine: Arc<dyn Machine>) -> Result<Self, Error> {
        let identity = Arc::new(identity(&options.data_folder)?);
        let mut services = Vec::new();
        let mut links = Vec::new();
        let grids = options.grids()?;
        let lock = if grids.is_empty() { None } else { lock(&options.data_folder)? };
        let share = grids.len().max(1);
        for addresses in grids {
            let host = host::Host::new(worker.clone(), Arc::clone(&machine), options.slots_max, share);
            let mut client = client::Options::new(addresses, &options.data_folder);
            client.name.clone_from(&options.name);
            client.region.clone_from(&options.region);
            client.enrolment_token.clone_from(&options.enrolment_token);
            let (service, link) = Service::new(client, Arc::clone(&identity), Arc::new(host))?;
            services.push(service);
            links.push(link);
        }
        let handle = Handle { node: identity.node().clone(), links };
        Ok(Self { identity, services, handle, lock })
    }

    /// The handle on them.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The node's identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Runs them until `stop`; then each gives its work back and says goodbye. A worker that wants to finish its work
    /// calls [`Handle::drain`] before.
    pub async fn run(self, stop: CancellationToken) {
        let Self { services, lock, .. } = self;
        let mut running = tokio::task::JoinSet::new();
        for service in services {
            running.spawn(service.run(stop.clone()));
        }
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a link crashed; this worker gets nothing more from its coordinator");
            }
        }
        drop(lock);
    }
}

impl Handle {
    /// The node's id.
    pub fn node(&self) -> &coordinator_client::wire::NodeId {
        &self.node
    }

    /// How every link is.
    pub fn status(&self) -> Vec<Status> {
        self.links.iter().map(client::Handle::status).collect()
    }

    /// Waits until a coordinator has welcomed this worker on every link.
    pub async fn connected(&self) {
        for link in &self.links {
            link.until(|status| status.is_live).await;
        }
    }

    /// Takes nothing more from any coordinator, and returns when what was taken is finished and acknowledged. Put a
    /// time-out around it and then stop the links: what is left is given back.
    pub async fn drain(&self) {
        // Told to all of them before one is waited for.
        futures_util::future::join_all(self.links.iter().map(client::Handle::drain)).await;
    }
}

/// The node's key, made at first start.
///
/// # Errors
/// When the data folder cannot be used.
pub fn identity(data_folder: &Path) -> Result<Identity, Error> {
    Ok(Identity::load_or_create(&data_folder.join(KEY_FILE))?)
}

/// Keeps other workers from a folder: with one key they would be one node to a coordinator, and would hand in each other's results.
/// `None` on a file system that has no locks.
fn lock(data_folder: &Path) -> Result<Option<File>, Error> {
    let path = data_folder.join(LOCK_FILE);
    let file = File::create(&path).map_err(|source| Error::Lock { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(data_folder.into())),
        Err(TryLockError::Error(error)) => {
            tracing::warn!(path = %path.display(), %error, "not locked: see to it that no other worker uses this folder");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests;
