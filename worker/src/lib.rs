//! What a GPU owner runs. Requests come in over HTTP or from a coordinator, are batched onto the devices of this machine
//! and answered; models come from the sources that are set. It trusts no caller, and keeps nothing but model files.
//!
//! # The road of a request
//! ```text
//! http/ or link/      Request       checked shapes, a priority, a deadline
//!   admission.rs      -> Permit     or a refusal at once
//!   device/           -> Use        the loaded model, loaded now where it was not
//!   prepare.rs        -> Encoded    tokens or tensors, on the CPU pool
//!   batch/            -> Batch      with other callers' items, when the device is free
//!   device/thread.rs  -> Outputs    on the device's own thread
//!   finish.rs         -> Reply      on the CPU pool
//! ```
//! [`service::Handle::execute`] walks it. Dropping its future calls the task off wherever it is. A text goes the same way up to the device
//! and then comes piece by piece: [`text`] draws its road.
//!
//! # The road of a model
//! ```text
//! cache/              name -> Manifest -> CachedModel     verified files
//! device/placement.rs -> Choice                           which device
//! device/ledger.rs    -> reservation                      or which idle models go, or a refusal
//! device/loading.rs   -> Resident                         engine on the thread, pipeline shared
//! ```

#![forbid(unsafe_code)]

pub mod admission;
pub mod batch;
pub mod cache;
pub mod config;
pub mod convert;
pub mod device;
mod error;
mod finish;
pub mod generate;
pub mod hardware;
pub mod http;
pub mod link;
pub mod metrics;
pub mod pool;
mod prepare;
pub mod service;
pub mod text;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use models::engine::Device;
use tokio_util::sync::CancellationToken;

pub use config::Options;
pub use error::{Error, Fault, Stage};
pub use service::{Done, Handle, NewTask, Slots, Status, Timings};
pub use text::{NewText, Writing};

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It would listen where others reach it, without a key.
    #[error(
        "{0} can be reached from other machines and no API key is set; set one (--api-key), listen on 127.0.0.1, or allow it with --insecure"
    )]
    Insecure(std::net::SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {error}; choose another port, or stop what uses it")]
    Bind {
        /// As set.
        address: std::net::SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// A setting that cannot be.
    #[error("{0}")]
    Setting(String),
    /// The system refuses threads.
    #[error("the system refuses a thread: {0}")]
    Threads(std::io::Error),
    /// The models on disk cannot be opened.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The API failed while it ran.
    #[error("the API stopped: {0}")]
    Http(std::io::Error),
}

/// A worker that is ready to run.
pub struct Worker {
    handle: Handle,
    http: http::Server,
    drain_timeout: Duration,
}

/// Makes a worker: opens the cache, starts the devices' threads, binds the API's address. Nothing is served yet.
///
/// # Errors
/// When a setting cannot be, or the system refuses what it needs.
pub fn build(options: Options) -> Result<Worker, StartError> {
    let Options { admission, batch, text, mut devices, cache, http, compute, hardware } = options;
    for (name, value) in [
        ("admission.tasks_max", admission.tasks_max),
        ("batch.tokens_max", batch.tokens_max),
        ("batch.tokens_max_cpu", batch.tokens_max_cpu),
        ("batch.sequences_max", batch.sequences_max),
        ("batch.rows_max", batch.rows_max),
        ("text.sequences_max", text.sequences_max),
        ("text.queue_max", text.queue_max),
        ("http.body_bytes_max", http.body_bytes_max),
        ("http.connections_max", http.connections_max),
    ] {
        if value == 0 {
            return Err(StartError::Setting(format!("{name} must be at least 1")));
        }
    }
    let mut hardware = hardware.unwrap_or_else(|| hardware::Options::new(&cache.folder));
    if devices.devices.iter().any(|device| matches!(device.device, Device::Cuda(_))) && hardware.probe.is_none() {
        // The cards that do the work are watched while they do it.
        hardware.probe = hardware::probe::Command::this_executable().ok();
    }
    let server = http::Server::bind(http, hardware)?;
    let threads = if compute.threads == 0 { hardware::threads() } else { compute.threads };
    if devices.devices.is_empty() {
        let memory_bytes = host_memory_bytes()?;
        devices.devices.push(config::DeviceOptions { device: Device::Cpu, memory_bytes });
    }
    let preload = devices.preload.clone();
    let metrics = Arc::new(metrics::Metrics::default());
    let cache = cache::Handle::open(&cache)?;
    let ask = |device| models::backend::cuda::free_bytes(device);
    let free_memory = compute.free_memory.clone().or_else(|| Some(Arc::new(ask) as config::FreeMemory));
    let compute = config::Compute { threads, free_memory, ..compute };
    let devices = device::Options { devices, batch, text, compute };
    let pool = pool::Pool::new(threads).map_err(StartError::Threads)?;
    let devices = device::Devices::start(devices, cache.clone(), Arc::clone(&metrics), pool.clone());
    let devices = devices.map_err(StartError::Threads)?;
    let handle = Handle::new(service::Parts {
        admission: admission::Admission::new(admission.tasks_max),
        pool,
        devices,
        cache,
        metrics,
        task_timeout: admission.task_timeout,
        has_started: AtomicBool::new(preload.is_empty()),
        preload,
        unfit: std::sync::Mutex::default(),
        started: Instant::now(),
    });
    Ok(Worker { handle, http: server, drain_timeout: admission.drain_timeout })
}

/// Four fifths of the memory that this process may use: the rest is for requests, replies and the system.
fn host_memory_bytes() -> Result<u64, StartError> {
    let system = sysinfo::System::new();
    let mut system = system.map_err(|error| StartError::Setting(format!("main memory is not known: {error:?}")))?;
    let memory = hardware::Memory::now(&mut system, &hardware::cgroup::limits());
    Ok(memory.total_bytes / 5 * 4)
}

impl Worker {
    /// The way into it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where its API listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.http.address()
    }

    /// Lets `GET /status` show the links to coordinators.
    pub fn show_links(&mut self, links: link::Handle) {
        self.http.links = Some(links);
    }

    /// Serves until `stop` is cancelled; then refuses newcomers, lets those inside finish within the limit that is set,
    /// and ends its threads.
    ///
    /// # Errors
    /// When the API fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StartError> {
        let Self { handle, http, drain_timeout } = self;
        let close = CancellationToken::new();
        let preload = {
            let handle = handle.clone();
            tokio::spawn(async move { handle.preload().await })
        };
        let mut serving = tokio::spawn(http.serve(handle.clone(), close.clone()));
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = &mut serving => Some(ended),
        };
        preload.abort();
        tracing::info!("shutting down: no new tasks, those inside have {} s", drain_timeout.as_secs());
        if !handle.drain(drain_timeout).await {
            tracing::warn!("some tasks were not done in time and are given up");
        }
        // Stopped before the connections are closed, so that those who still wait are told why.
        handle.stop().await;
        close.cancel();
        let ended = match ended {
            Some(ended) => ended,
            None => serving.await,
        };
        match ended {
            Ok(result) => result.map_err(StartError::Http),
            Err(_) => Err(StartError::Http(std::io::Error::other("the API crashed"))),
        }
    }
}
