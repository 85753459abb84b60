//! The figures, as JSON for people and as text for Prometheus.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use crate::metrics::Summary;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(json)).routes(routes!(prometheus))
}

/// The figures since the worker started. Times in microseconds.
#[derive(Serialize, ToSchema)]
struct Figures {
    /// Seconds since it started.
    uptime_s: f64,
    /// Tasks that were answered.
    tasks_done: u64,
    /// Tasks that were not, by who was at fault.
    tasks_failed: BTreeMap<&'static str, u64>,
    /// Tasks inside now.
    tasks_inside: usize,
    /// Answered tasks per second, over the whole time.
    tasks_per_s: f64,
    /// Tokens read.
    input_tokens: u64,
    /// Tokens written.
    output_tokens: u64,
    /// Batches that were answered.
    batches: u64,
    /// Batches that failed.
    batches_failed: u64,
    /// Engines that panicked.
    engine_panics: u64,
    /// Distributions by name.
    distributions: BTreeMap<&'static str, Distribution>,
}

/// A distribution, from buckets of powers of two.
#[derive(Serialize, ToSchema)]
struct Distribution {
    /// How many values.
    count: u64,
    /// Their mean.
    mean: f64,
    /// Their median.
    p50: f64,
    /// 90 of 100 are below.
    p90: f64,
    /// 99 of 100 are below.
    p99: f64,
    /// The largest.
    max: f64,
}

impl From<Summary> for Distribution {
    fn from(Summary { count, mean, p50, p90, p99, max }: Summary) -> Self {
        Self { count, mean, p50, p90, p99, max }
    }
}

/// Throughput, response times by stage, batch sizes.
#[utoipa::path(get, path = "/api/metrics", tag = "metrics", responses((status = 200, body = Figures)))]
async fn json(State(app): State<Shared>) -> axum::Json<Figures> {
    let figures = app.handle.metrics().snapshot();
    let status = app.handle.status();
    let uptime_s = status.uptime.as_secs_f64();
    axum::Json(Figures {
        uptime_s,
        tasks_done: figures.done,
        tasks_failed: figures.failed.iter().map(|(fault, count)| (fault.name(), *count)).collect(),
        tasks_inside: status.slots.inside,
        tasks_per_s: figures.done as f64 / uptime_s.max(f64::MIN_POSITIVE),
        input_tokens: figures.input_tokens,
        output_tokens: figures.output_tokens,
        batches: figures.batches,
        batches_failed: figures.batches_failed,
        engine_panics: figures.panics,
        distributions: figures.distributions.into_iter().map(|(name, summary)| (name, summary.into())).collect(),
    })
}

/// The same for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "metrics",
    responses((status = 200, body = String, content_type = "text/plain")))]
async fn prometheus(State(app): State<Shared>) -> impl IntoResponse {
    let status = app.handle.status();
    let sum = |of: fn(&crate::device::DeviceStatus) -> u64| status.devices.iter().map(of).sum::<u64>() as f64;
    let texts = |of: fn(&crate::generate::Figures) -> usize| {
        status.loaded.iter().filter_map(|model| model.texts.as_ref()).map(of).sum::<usize>() as f64
    };
    let gauges = [
        ("tasks_inside", "Tasks inside", status.slots.inside as f64),
        ("tasks_max", "Tasks that may be inside at once", status.slots.capacity as f64),
        ("tasks_refused", "Tasks refused for want of a place or because the door was closed", status.refused as f64),
        ("waiting_items", "Items that wait for a device", sum(|device| device.waiting_items as u64)),
        ("device_memory_bytes", "Bytes that models may take", sum(|device| device.memory_bytes)),
        ("device_reserved_bytes", "Bytes that models have taken", sum(|device| device.reserved_bytes)),
        ("texts_running", "Texts that are written", texts(|figures| figures.running)),
        ("texts_waiting", "Texts that wait for their turn", texts(|figures| figures.waiting)),
        ("kv_blocks", "Blocks of KV caches", texts(|figures| figures.blocks.total)),
        ("kv_blocks_used", "Blocks of KV caches that texts hold", texts(|figures| figures.blocks.used)),
        ("models_loaded", "Models that are loaded", status.loaded.len() as f64),
        ("ready", "Whether tasks should be sent", f64::from(u8::from(status.not_ready_because.is_empty()))),
        ("uptime_seconds", "Seconds since the start", status.uptime.as_secs_f64()),
    ];
    let text = app.handle.metrics().prometheus(&gauges);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
