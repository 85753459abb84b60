//! Probes: whether the process lives, has started, is ready, and how well it does.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use crate::hardware::health as score;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(live)).routes(routes!(ready)).routes(routes!(startup))
}

/// How well the worker does.
#[derive(Serialize, ToSchema)]
struct Report {
    /// `ok`, or `degraded` when it is not ready or points were lost.
    status: &'static str,
    /// Whether tasks should be sent.
    ready: bool,
    /// Why not, in words.
    not_ready_because: Vec<String>,
    /// 0 to 100 with the reasons.
    health: score::Health,
}

/// A probe's answer.
#[derive(Serialize, ToSchema)]
struct Probe {
    /// `ok` or `unavailable`.
    status: &'static str,
    /// Why it is not ok, in words.
    because: Vec<String>,
}

fn probe(because: Vec<String>) -> Response {
    if because.is_empty() {
        return axum::Json(Probe { status: "ok", because }).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(Probe { status: "unavailable", because })).into_response()
}

/// How well the worker does, with a score and its reasons.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Report)))]
async fn health(State(app): State<Shared>) -> axum::Json<Report> {
    let status = app.handle.status();
    let figures = app.handle.metrics().snapshot();
    let failed = figures.failed.iter().filter(|(fault, _)| {
        use crate::Fault;
        matches!(fault, Fault::Worker | Fault::Model | Fault::Hardware)
    });
    let failed: u64 = failed.map(|(_, count)| count).sum();
    let inputs = score::Inputs {
        requests: figures.done + failed,
        requests_failed: failed,
        ..score::Inputs::of(&app.live.latest())
    };
    let health = score::assess(&inputs);
    let ready = status.not_ready_because.is_empty();
    let is_well = ready && health.score == 100;
    let status_word = if is_well { "ok" } else { "degraded" };
    axum::Json(Report { status: status_word, ready, not_ready_because: status.not_ready_because, health })
}

/// Whether the process answers.
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = Probe)))]
async fn live() -> Response {
    probe(Vec::new())
}

/// Whether tasks should be sent.
#[utoipa::path(get, path = "/health/ready", tag = "health",
    responses((status = 200, body = Probe), (status = 503, body = Probe)))]
async fn ready(State(app): State<Shared>) -> Response {
    probe(app.handle.status().not_ready_because)
}

/// Whether the models that were asked for at the start are loaded.
#[utoipa::path(get, path = "/health/startup", tag = "health",
    responses((status = 200, body = Probe), (status = 503, body = Probe)))]
async fn startup(State(app): State<Shared>) -> Response {
    match app.handle.status().has_started {
        true => probe(Vec::new()),
        false => probe(vec!["still loading the models that were asked for at the start".into()]),
    }
}
