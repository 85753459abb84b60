//! What is used now, and what may be used.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::status::DeviceInfo;
use crate::hardware::live::Sample;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(limits))
}

/// What is used now.
#[derive(Serialize, ToSchema)]
struct ResourceStatus {
    /// Processor, memory, disk, network and GPUs, as last sampled.
    machine: Sample,
    /// What models have taken of each device.
    devices: Vec<DeviceInfo>,
    /// Bytes that the models at hand take on disk.
    models_bytes: u64,
    /// Tasks inside.
    tasks_inside: usize,
}

/// What may be used.
#[derive(Serialize, ToSchema)]
struct ResourceLimits {
    /// Tasks that may be inside at once.
    tasks_max: usize,
    /// Threads of every pool.
    threads: usize,
    /// What models may take of each device.
    devices: Vec<DeviceInfo>,
    /// Largest body of a request.
    body_bytes_max: usize,
    /// Bytes of all bodies that are read or worked on at once.
    bodies_bytes_max: usize,
    /// Connections at once.
    connections_max: usize,
    /// Seconds for which the results of tasks that nobody waits for are kept.
    result_retention_s: u64,
    /// How many of them are kept.
    results_max: usize,
    /// How many bytes of them are kept.
    results_bytes_max: usize,
}

/// What is used now: processor, memory, GPUs, disk, network, and what models take.
#[utoipa::path(get, path = "/api/resources/status", tag = "resources",
    responses((status = 200, body = ResourceStatus)))]
async fn status(State(app): State<Shared>) -> axum::Json<ResourceStatus> {
    let status = app.handle.status();
    axum::Json(ResourceStatus {
        machine: Sample::clone(&app.live.latest()),
        devices: status.devices.into_iter().map(DeviceInfo::from).collect(),
        models_bytes: app.handle.cache().list().iter().map(|cached| cached.manifest.total_bytes()).sum(),
        tasks_inside: status.slots.inside,
    })
}

/// What may be used.
#[utoipa::path(get, path = "/api/resources/limits", tag = "resources",
    responses((status = 200, body = ResourceLimits)))]
async fn limits(State(app): State<Shared>) -> axum::Json<ResourceLimits> {
    let status = app.handle.status();
    let options = &app.options;
    axum::Json(ResourceLimits {
        tasks_max: status.slots.capacity,
        threads: crate::hardware::threads(),
        devices: status.devices.into_iter().map(DeviceInfo::from).collect(),
        body_bytes_max: options.body_bytes_max,
        bodies_bytes_max: options.bodies_bytes_max,
        connections_max: options.connections_max,
        result_retention_s: options.result_retention.as_secs(),
        results_max: options.results_max,
        results_bytes_max: options.results_bytes_max,
    })
}
