//! A worker's link to one grid: logs in, connects, drives the session, runs what is offered on its [`Host`], reports,
//! reconnects. Work comes in, results go out. Never decides about attempts and leases: that is the session's.

mod access;
mod host;
mod pieces;
mod run;
mod socket;

pub use access::{Access, Error as AccessError};
pub use host::{Failure, Host, Offered, Outcome};
pub use pieces::Pieces;

use crate::identity::{self, Identity};
use crate::session::{Introduction, Session};
use crate::spool::{self, Spool};
use crate::wire::TaskResult;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use url::Url;

/// One link's settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// Addresses of one grid, tried in order.
    pub addresses: Vec<Url>,
    /// A name for people.
    pub name: String,
    /// Where the worker stands.
    pub region: String,
    /// Program and version.
    pub agent: String,
    /// Needed at the first registration where the grid asks for one.
    pub enrolment_token: Option<String>,
    /// Folder for coordinators' keys and unacknowledged results; may be shared by all links of a worker.
    pub data_folder: PathBuf,
    /// First and shortest wait before another try to connect. 0.5 s: a coordinator that restarts is back by then.
    pub reconnect_min: Duration,
    /// Longest wait. 30 s: nobody waits for longer, and a thousand workers come back at 33 a second.
    pub reconnect_max: Duration,
    /// How long reports wait for their ack when the worker stops; what is not acknowledged stays in the spool.
    pub stop_within: Duration,
    /// The largest payload that is fetched.
    pub payload_bytes_max: u64,
    /// What a payload may take inside a frame; larger ones go as blobs.
    pub inline_bytes_max: usize,
}

impl Options {
    /// The defaults for a grid at these addresses.
    pub fn new(addresses: Vec<Url>, data_folder: impl Into<PathBuf>) -> Self {
        Self {
            addresses,
            name: String::new(),
            region: String::new(),
            agent: concat!("neurogrid/", env!("CARGO_PKG_VERSION")).into(),
            enrolment_token: None,
            data_folder: data_folder.into(),
            reconnect_min: Duration::from_millis(500),
            reconnect_max: Duration::from_secs(30),
            stop_within: Duration::from_secs(5),
            payload_bytes_max: 256 << 20,
            inline_bytes_max: crate::wire::work::INLINE_BYTES_MAX,
        }
    }
}

/// Why a link cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or TLS.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No random bytes.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The folder for results.
    #[error(transparent)]
    Spool(#[from] spool::Error),
}

/// How a link is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The address in use.
    pub address: String,
    /// Whether the coordinator has welcomed this worker and the link is open.
    pub is_live: bool,
    /// Whether nothing more is taken from this coordinator.
    pub is_draining: bool,
    /// Attempts that run.
    pub running: usize,
    /// Reports that wait for their ack.
    pub unacknowledged: usize,
    /// How often the link came up.
    pub connections: u64,
    /// Tasks finished since the start.
    pub finished: u64,
    /// Tasks failed, cancelled or given back since the start.
    pub failed: u64,
    /// Frames of a later protocol that were ignored.
    pub unknown_frames: u64,
    /// Why the link is not open.
    pub last_error: Option<String>,
}

/// Asks a running [`Service`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    access: Access,
}

#[derive(Debug)]
enum Command {
    Drain,
}

impl Handle {
    /// How the link is.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until the link is as wanted, or the service has ended.
    pub async fn until(&self, wanted: impl FnMut(&Status) -> bool) {
        let mut status = self.status.clone();
        let _ = status.wait_for(wanted).await; // an error says that the service has ended
    }

    /// Takes nothing more from this coordinator; returns when everything taken is finished and acknowledged, or the
    /// service has ended. Whoever cannot wait for long puts a time-out around it and stops the service.
    pub async fn drain(&self) {
        if self.commands.send(Command::Drain).await.is_ok() {
            self.until(|status| status.is_draining && status.running == 0 && status.unacknowledged == 0).await;
        }
    }

    /// The grid's HTTP side, with this worker's token.
    pub fn access(&self) -> &Access {
        &self.access
    }
}

/// The loop of one link. Runs until it is told to stop.
pub struct Service {
    options: Options,
    host: Arc<dyn Host>,
    access: Access,
    spool: Arc<Spool>,
    recovered: Vec<TaskResult>,
    session: Session,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
}

impl Service {
    /// A link that has not connected yet, and the handle on it.
    ///
    /// # Errors
    /// When there is no address, or the data folder cannot be used.
    pub fn new(options: Options, identity: Arc<Identity>, host: Arc<dyn Host>) -> Result<(Self, Handle), Error> {
        let profile = host.profile();
        let session_epoch = u64::from_le_bytes(identity::random()?[..8].try_into().expect("8 of 32 bytes")) >> 1;
        let introduction = Introduction {
            node: identity.node().clone(),
            session_epoch,
            name: options.name.clone(),
            region: options.region.clone(),
            agent: options.agent.clone(),
            profile: profile.clone(),
        };
        let access = Access::new(
            access::Options {
                addresses: options.addresses.clone(),
                name: options.name.clone(),
                region: options.region.clone(),
                agent: options.agent.clone(),
                profile,
                enrolment_token: options.enrolment_token.clone(),
                known_folder: options.data_folder.join("coordinators"),
                payload_bytes_max: options.payload_bytes_max,
            },
            identity,
        )?;
        let folder = options.data_folder.join("spool").join(access::file_name(&access.origin()));
        let (spool, recovered) = Spool::open(spool::Options::new(folder))?;
        let (to_service, commands) = mpsc::channel(8); // few commands, each handled at once
        let status = watch::Sender::new(Status { address: access.url().to_string(), ..Status::default() });
        let handle = Handle { commands: to_service, status: status.subscribe(), access: access.clone() };
        let session = Session::new(introduction, host.facts());
        let spool = Arc::new(spool);
        Ok((Self { options, host, access, spool, recovered, session, commands, status }, handle))
    }
}
