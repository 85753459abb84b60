//! The coordinator: tasks come in by HTTP, are kept in a store, leased to nodes over their links, and their results are
//! handed back. It never runs inference.
//!
//! ```text
//! caller -> http/tasks, http/openai -> tasks/ submit -> store            -> schedule/ claims -> nodes/ offers -> worker
//! caller <- http/          <- tasks/hub <- tasks/outcome settles, store  <- nodes/session    <- result        <- worker
//! caller <- http/          <- tasks/listen <- tasks/texts                <- nodes/session    <- progress      <- worker
//! ```
//! [`build`] wires the rooms, [`Coordinator::run_until`] owns the threads of execution and their end.

#![forbid(unsafe_code)]

mod grid;
mod http;
mod metrics;
mod nodes;
pub mod options;
pub mod registry;
mod schedule;
pub mod store;
mod tasks;

use ::http::uri::Scheme;
use coordinator_client::identity::{self, Identity};
use grid::Grid;
pub use options::Options;
use registry::{Registry, blobs::Blobs};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use store::{Memory, Sqlite, SqliteOptions, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest number of stored nodes whose models are remembered at start.
const NODES_REMEMBERED_MAX: usize = 100_000;

/// How long what runs beside requests may take to end.
const END_MAX: Duration = Duration::from_secs(5);

/// Why a coordinator does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would serve strangers.
    #[error(
        "{0} can be reached from other machines and no API key is set; set one (--api-key), listen on loopback, or \
         allow it with --insecure"
    )]
    Insecure(SocketAddr),
    /// A key that anybody would guess.
    #[error("the API key is shorter than {min} characters; choose a longer one, at random")]
    WeakKey {
        /// The least.
        min: usize,
    },
    /// An origin that is none.
    #[error("{0:?} is not an origin; write it like `https://grid.example.org` or `http://10.0.0.1:3001`")]
    Origin(String),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}; is another coordinator running, or is the port taken?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's own words.
        source: std::io::Error,
    },
    /// The key cannot be read or made.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The store cannot be opened or read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The blobs or the models cannot be opened.
    #[error(transparent)]
    Registry(Box<registry::Error>),
    /// The server stopped by itself.
    #[error("the server stopped: {0}")]
    Serve(std::io::Error),
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// Shortest API key.
const KEY_CHARS_MIN: usize = 16;

/// A coordinator that listens and does not answer yet.
#[derive(Debug)]
pub struct Coordinator {
    grid: Arc<Grid>,
    listener: TcpListener,
    address: SocketAddr,
}

/// Opens the store, the key and the blobs, and binds the address.
///
/// # Errors
/// When a setting is unsafe, or something cannot be opened.
pub async fn build(options: Options) -> Result<Coordinator, Error> {
    check(&options)?;
    let kept = &options.store;
    let store: Arc<dyn Store> = if kept.in_memory {
        Arc::new(Memory::new(kept.clock.clone(), kept.limits()))
    } else {
        Arc::new(Sqlite::open(SqliteOptions {
            path: kept.folder.join("coordinator.db"),
            limits: kept.limits(),
            clock: kept.clock.clone(),
            readers: kept.readers,
        })?)
    };
    let identity = Identity::load_or_create(&kept.folder.join("coordinator.key"))?;
    let blobs = Blobs::open(kept.folder.join("blobs")).await.map_err(registry::Error::from)?;
    let registry = Registry::open(store.clone(), blobs).await?;
    let now_ms = store.now_ms();
    let presence = nodes::presence::Presence::new(options.nodes.links_max, now_ms);
    for node in store.nodes().await?.into_iter().take(NODES_REMEMBERED_MAX) {
        let said: nodes::SaidOfItself = serde_json::from_str(&node.profile).unwrap_or_default();
        presence.announce(&said.models);
    }
    let address = options.http.address;
    let listen = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let grid = Grid {
        enrolment: nodes::enrol::Enrolment::new(identity, store.clone(), options.nodes.clone()),
        presence,
        board: schedule::board::Board::default(),
        hub: tasks::hub::Hub::new(options.tasks.waiting_max),
        metrics: metrics::Metrics::new(),
        closing: CancellationToken::new(),
        tracker: TaskTracker::new(),
        started_ms: now_ms,
        registry,
        store,
        options,
    };
    Ok(Coordinator { grid: Arc::new(grid), listener, address })
}

fn check(options: &Options) -> Result<(), Error> {
    let http = &options.http;
    if !http.address.ip().is_loopback() && http.api_key.is_none() && !http.insecure {
        return Err(Error::Insecure(http.address));
    }
    if http.api_key.as_ref().is_some_and(|key| key.chars().count() < KEY_CHARS_MIN) {
        return Err(Error::WeakKey { min: KEY_CHARS_MIN });
    }
    for origin in &http.origins {
        let url = url::Url::parse(origin).map_err(|_| Error::Origin(origin.clone()))?;
        let is_origin = [Scheme::HTTP.as_str(), Scheme::HTTPS.as_str()].contains(&url.scheme())
            && url.origin().ascii_serialization() == origin.trim_end_matches('/');
        if !is_origin {
            return Err(Error::Origin(origin.clone()));
        }
    }
    Ok(())
}

impl Coordinator {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, then says goodbye to nodes, lets requests end and closes the store.
    ///
    /// # Errors
    /// When the server stops by itself.
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let Self { grid, listener, address } = self;
        let (closing, tracker) = (grid.closing.clone(), grid.tracker.clone());
        let drain_max = grid.options.http.drain_max;
        for task in [
            tracker.spawn(schedule::dispatch::run(grid.clone())),
            tracker.spawn(schedule::dispatch::sweep(grid.clone())),
            tracker.spawn(schedule::dispatch::collect(grid.clone())),
        ] {
            drop(task); // they end when `closing` is cancelled, and the tracker waits for them
        }
        tracing::info!(%address, "the coordinator listens");
        let stopping = {
            let closing = closing.clone();
            async move {
                shutdown.await;
                tracing::info!("the coordinator stops");
                closing.cancel();
            }
        };
        let mut serving = std::pin::pin!(http::serve::serve(grid, listener, stopping));
        let served = tokio::select! {
            served = &mut serving => served,
            () = async { closing.cancelled().await; tokio::time::sleep(drain_max).await } => {
                tracing::warn!("requests under way were cut off");
                Ok(())
            }
        };
        closing.cancel();
        tracker.close();
        if tokio::time::timeout(END_MAX, tracker.wait()).await.is_err() {
            tracing::warn!(tasks = tracker.len(), "some work did not end in time");
        }
        served.map_err(Error::Serve)
    }
}
