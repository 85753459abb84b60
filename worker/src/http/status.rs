//! What the worker is doing, for its owner: state, links, queue, devices, models, and why it is idle. Pausing and going on.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Refusal;
use super::models::LoadedInfo;
use crate::admission;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(pause)).routes(routes!(resume))
}

/// The worker as it is now.
#[derive(Serialize, ToSchema)]
struct Status {
    /// Version of the program.
    version: &'static str,
    /// `open`, `paused` or `draining`.
    state: &'static str,
    /// Whether tasks should be sent.
    ready: bool,
    /// Why not, in words.
    not_ready_because: Vec<String>,
    /// Why it does nothing, when it does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_because: Option<&'static str>,
    /// Seconds since it started.
    uptime_s: u64,
    /// This node's id; absent when it works for no grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Its links to coordinators.
    links: Vec<LinkInfo>,
    /// Tasks inside.
    tasks_inside: usize,
    /// Tasks that may be inside at once.
    tasks_max: usize,
    /// Tasks that were refused.
    tasks_refused: u64,
    /// The devices.
    devices: Vec<DeviceInfo>,
    /// The models that are loaded.
    models_loaded: Vec<LoadedInfo>,
    /// Models that are being loaded.
    models_loading: Vec<String>,
}

/// A link to a coordinator.
#[derive(Serialize, ToSchema)]
struct LinkInfo {
    /// The coordinator's address.
    coordinator: String,
    /// Whether it is up.
    connected: bool,
    /// Whether nothing more is taken from it.
    draining: bool,
    /// Tasks of this grid that run.
    running: usize,
    /// Results that wait for the coordinator's word that it has them.
    unacknowledged: usize,
    /// How often the link came up.
    connections: u64,
    /// Tasks finished since the start.
    finished: u64,
    /// Tasks failed, cancelled or given back since the start.
    failed: u64,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

impl From<coordinator_client::client::Status> for LinkInfo {
    fn from(status: coordinator_client::client::Status) -> Self {
        Self {
            coordinator: status.address,
            connected: status.is_live,
            draining: status.is_draining,
            running: status.running,
            unacknowledged: status.unacknowledged,
            connections: status.connections,
            finished: status.finished,
            failed: status.failed,
            last_error: status.last_error,
        }
    }
}

/// A device.
#[derive(Serialize, ToSchema)]
pub(super) struct DeviceInfo {
    /// `cpu`, `cuda:0`, …
    device: String,
    /// Bytes that models may take.
    memory_bytes: u64,
    /// Bytes that models have taken.
    reserved_bytes: u64,
    /// Jobs that are not finished.
    jobs: usize,
    /// Their items that were not sent to the device.
    waiting_items: usize,
    /// Whether its last run failed because of the device.
    failing: bool,
}

impl From<crate::device::DeviceStatus> for DeviceInfo {
    fn from(status: crate::device::DeviceStatus) -> Self {
        Self {
            device: status.device.to_string(),
            memory_bytes: status.memory_bytes,
            reserved_bytes: status.reserved_bytes,
            jobs: status.jobs,
            waiting_items: status.waiting_items,
            failing: status.is_failing,
        }
    }
}

fn state_name(state: admission::State) -> &'static str {
    match state {
        admission::State::Open => "open",
        admission::State::Paused => "paused",
        admission::State::Draining => "draining",
    }
}

fn now(app: &Shared) -> Status {
    let status = app.handle.status();
    let links = app.links.as_ref().map(crate::link::Handle::status).unwrap_or_default();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        state: state_name(status.state),
        ready: status.not_ready_because.is_empty(),
        not_ready_because: status.not_ready_because,
        idle_because: status.idle_because,
        uptime_s: status.uptime.as_secs(),
        node: app.links.as_ref().map(|links| links.node().to_string()),
        links: links.into_iter().map(LinkInfo::from).collect(),
        tasks_inside: status.slots.inside,
        tasks_max: status.slots.capacity,
        tasks_refused: status.refused,
        devices: status.devices.into_iter().map(DeviceInfo::from).collect(),
        models_loaded: status.loaded.into_iter().map(LoadedInfo::from).collect(),
        models_loading: status.loading,
    }
}

/// What the worker is doing, and why it is idle.
#[utoipa::path(get, path = "/status", tag = "status", responses((status = 200, body = Status)))]
async fn status(State(app): State<Shared>) -> axum::Json<Status> {
    axum::Json(now(&app))
}

/// Refuses tasks, hands back those inside, and frees the devices' memory.
#[utoipa::path(post, path = "/api/pause", tag = "status", responses((status = 200, body = Status)))]
async fn pause(State(app): State<Shared>) -> Result<axum::Json<Status>, Refusal> {
    app.handle.pause().await?;
    Ok(axum::Json(now(&app)))
}

/// Takes tasks again.
#[utoipa::path(post, path = "/api/resume", tag = "status", responses((status = 200, body = Status)))]
async fn resume(State(app): State<Shared>) -> Result<axum::Json<Status>, Refusal> {
    app.handle.resume()?;
    Ok(axum::Json(now(&app)))
}
