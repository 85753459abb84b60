//! How the coordinator is: health for probes, numbers for people and Prometheus, the API's own description.

use super::answer::{Answer, Refusal};
use super::models::{self, ModelView};
use super::nodes::{Sums, sums};
use crate::grid::Grid;
use crate::store::{Depth, State as TaskState};
use axum::Json as Reply;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use coordinator_client::api::{Code, Problem};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What anybody may call: probes know no keys.
pub(crate) fn open_router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(live)).routes(routes!(ready))
}

/// What people may call.
pub(crate) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new()
        .routes(routes!(stats))
        .routes(routes!(network))
        .routes(routes!(status))
        .routes(routes!(prometheus))
}

/// Whether it works.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok`.
    status: &'static str,
    /// The program's version.
    version: &'static str,
    /// Since when it runs, in milliseconds.
    uptime_ms: i64,
    /// Connected nodes.
    nodes: usize,
}

/// Whether it works: the store answers.
#[utoipa::path(
    get, path = "/api/health", tag = "operations",
    responses((status = 200, description = "It works", body = Health), (status = 503, description = "It does not, and why", body = Problem))
)]
async fn health(State(grid): State<Arc<Grid>>) -> Answer<Reply<Health>> {
    check(&grid).await?;
    Ok(Reply(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: grid.store.now_ms() - grid.started_ms,
        nodes: grid.presence.len(),
    }))
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/api/health/live", tag = "operations", responses((status = 204, description = "It does")))]
async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Whether it takes requests.
#[utoipa::path(
    get, path = "/api/health/ready", tag = "operations",
    responses((status = 204, description = "It does"), (status = 503, description = "It does not, and why", body = Problem))
)]
async fn ready(State(grid): State<Arc<Grid>>) -> Answer<StatusCode> {
    check(&grid).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check(grid: &Grid) -> Answer<()> {
    if grid.closing.is_cancelled() {
        return Err(Refusal(Problem::new(Code::Unavailable, "the coordinator stops").retry_after(2)));
    }
    grid.store.counts().await?;
    Ok(())
}

/// Numbers of the grid.
#[derive(Debug, Serialize, ToSchema)]
struct Stats {
    /// Tasks by state.
    tasks: BTreeMap<&'static str, u64>,
    /// What waits, by kind and model.
    waiting: Vec<Depth>,
    /// Connected nodes.
    nodes: Sums,
    /// Nodes that ever registered.
    nodes_known: usize,
    /// Registered model versions.
    models_registered: usize,
    /// Callers waiting for results.
    watched: usize,
}

async fn read_stats(grid: &Grid) -> Answer<Stats> {
    let counts = grid.store.counts().await?;
    Ok(Stats {
        tasks: TaskState::ALL.iter().map(|state| state.name()).zip(counts).collect(),
        waiting: grid.store.depths().await?,
        nodes: sums(grid),
        nodes_known: grid.store.nodes().await?.len(),
        models_registered: grid.registry.list().len(),
        watched: grid.hub.len(),
    })
}

/// Numbers of the grid.
#[utoipa::path(get, path = "/api/stats", tag = "operations", responses((status = 200, description = "The numbers", body = Stats)))]
async fn stats(State(grid): State<Arc<Grid>>) -> Answer<Reply<Stats>> {
    Ok(Reply(read_stats(&grid).await?))
}

/// Connected nodes of one region.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Region {
    /// How many.
    nodes: usize,
    /// Attempts that they take at one time.
    slots: u64,
    /// Attempts that they have.
    holds: u64,
    /// Their names.
    names: Vec<String>,
}

/// The grid as a network.
#[derive(Debug, Serialize, ToSchema)]
struct Network {
    /// Connected nodes by region.
    regions: BTreeMap<String, Region>,
    /// Models and who has them.
    models: Vec<ModelView>,
}

/// Who is connected where, and who has which model.
#[utoipa::path(get, path = "/api/network/state", tag = "operations", responses((status = 200, description = "The network", body = Network)))]
async fn network(State(grid): State<Arc<Grid>>) -> Reply<Network> {
    let mut regions: BTreeMap<String, Region> = BTreeMap::new();
    for link in grid.presence.all() {
        let now = link.snapshot();
        let region = regions.entry(link.region.clone()).or_default();
        region.nodes += 1;
        region.slots += u64::from(now.slots);
        region.holds += now.holds as u64;
        region.names.push(link.name.clone());
    }
    Reply(Network { regions, models: models::views(&grid) })
}

/// The coordinator itself.
#[derive(Debug, Serialize, ToSchema)]
struct Status {
    /// Program and version.
    agent: String,
    /// Its ed25519 key, which nodes remember.
    public_key: String,
    /// Where its state is kept; nothing when it is in memory.
    folder: Option<String>,
    /// Whether people need an API key.
    api_key_needed: bool,
    /// Whether new nodes need an enrolment token.
    enrolment_token_needed: bool,
    /// When it started, in milliseconds since the Unix epoch.
    started_ms: i64,
    /// Why it is idle, when it is.
    idle: Option<&'static str>,
    /// Numbers.
    stats: Stats,
}

/// The coordinator itself, and why it is idle.
#[utoipa::path(get, path = "/status", tag = "operations", responses((status = 200, description = "The coordinator", body = Status)))]
async fn status(State(grid): State<Arc<Grid>>) -> Answer<Reply<Status>> {
    let stats = read_stats(&grid).await?;
    let idle = match (stats.nodes.is_empty(), stats.waiting.is_empty()) {
        (true, _) => Some("no node is connected"),
        (false, true) if stats.nodes.is_idle() => Some("no task waits"),
        _ => None,
    };
    let options = &grid.options;
    Ok(Reply(Status {
        agent: format!("neurogrid/{}", env!("CARGO_PKG_VERSION")),
        public_key: grid.enrolment.public_key_hex(),
        folder: (!options.store.in_memory).then(|| options.store.folder.display().to_string()),
        api_key_needed: options.http.api_key.is_some(),
        enrolment_token_needed: options.nodes.enrolment_token.is_some(),
        started_ms: grid.started_ms,
        idle,
        stats,
    }))
}

/// Metrics in Prometheus' text form.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "The metrics", body = String)))]
async fn prometheus(State(grid): State<Arc<Grid>>) -> Answer<Response> {
    let counts = grid.store.counts().await?;
    let text = grid.metrics.render(counts[0], counts[1], grid.presence.len(), grid.hub.len(), grid.hub.texts.len());
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}
