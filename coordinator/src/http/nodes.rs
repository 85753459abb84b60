//! Nodes over HTTP: how they get in, how they are, and what the operator decides about them.

use super::answer::{Answer, Json, Path, Refusal, refuse};
use super::auth::Caller;
use super::serve::Connection;
use crate::grid::Grid;
use crate::nodes::SaidOfItself;
use crate::nodes::link::Link;
use crate::nodes::session::renew;
use crate::store::{Node, NodeState};
use axum::extract::{ConnectInfo, State};
use axum::{Extension, Json as Reply};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::node::{Challenge, LoginRequest, LoginResponse, RegisterRequest};
use coordinator_client::wire::{ByeReason, Drain, Frame, Heartbeat, ModelHeld, NodeId, Settings, TaskKind};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What anybody may call.
pub(crate) fn open_router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(register)).routes(routes!(login))
}

/// What people may call.
pub(crate) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(all_metrics))
        .routes(routes!(get))
        .routes(routes!(metrics))
        .routes(routes!(drain))
        .routes(routes!(ban))
        .routes(routes!(activate))
}

/// What nodes may call.
pub(crate) fn node_router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(heartbeat)).routes(routes!(super::session::session))
}

/// A node, as people see it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeView {
    /// Its id.
    id: NodeId,
    /// The id's first characters.
    short_id: String,
    /// For people.
    name: String,
    /// Where it says it stands.
    region: String,
    /// Whether it may get work.
    state: NodeState,
    /// First registration, in milliseconds since the Unix epoch.
    registered_ms: i64,
    /// Last sign of life.
    seen_ms: i64,
    /// Attempts that were settled.
    settled: u64,
    /// Attempts that failed by its own fault.
    faulted: u64,
    /// Attempts that were lost with its connection.
    lost: u64,
    /// Share of its attempts that were settled, when there were any.
    rating: Option<f64>,
    /// How it is, while it is connected.
    link: Option<LinkView>,
    /// Program and version.
    agent: String,
    /// Hardware as it told it.
    #[schema(value_type = Object)]
    hardware: serde_json::Value,
}

/// A connected node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LinkView {
    /// The connection's number.
    session: u64,
    /// Since when.
    connected_ms: i64,
    /// When it was last heard.
    heard_ms: i64,
    /// Kinds of task that it runs.
    kinds: Vec<TaskKind>,
    /// Models that it has.
    models: Vec<HeldView>,
    /// Whether it fetches models that it lacks.
    can_fetch: bool,
    /// Device memory free for models.
    memory_bytes_free: u64,
    /// Attempts that it takes at one time.
    slots: u32,
    /// How many more it takes now.
    slots_free: usize,
    /// Attempts that it has.
    holds: usize,
    /// Whether it takes nothing more.
    draining: bool,
    /// Jobs waiting inside it.
    queue: u32,
    /// Share of time that its busiest device worked.
    utilisation: f32,
    /// Its hottest device.
    temperature_c: Option<f32>,
    /// Its own view of its health, 0 to 100, once it said so.
    health_score: Option<u8>,
    /// How far its clock is ahead of this one's, at its last heartbeat.
    clock_ahead_ms: Option<i64>,
}

/// A model that a node has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeldView {
    /// `name@version`.
    id: String,
    /// What it does.
    task: TaskKind,
    /// Whether it is in device memory.
    loaded: bool,
    /// The class in which its results are comparable, once loaded.
    execution_class: Option<String>,
}

impl From<ModelHeld> for HeldView {
    fn from(held: ModelHeld) -> Self {
        Self { id: held.id, task: held.task, loaded: held.loaded, execution_class: held.execution_class }
    }
}

fn link_view(link: &Link) -> LinkView {
    let now = link.snapshot();
    let beat = now.heartbeat.unwrap_or_default();
    let has_beat = beat.time_ms > 0;
    LinkView {
        session: link.session,
        connected_ms: link.connected_ms,
        heard_ms: now.heard_ms,
        kinds: now.kinds,
        models: now.models.into_iter().map(Into::into).collect(),
        can_fetch: now.can_fetch,
        memory_bytes_free: now.memory_bytes_free,
        slots: now.slots,
        slots_free: now.slots_free,
        holds: now.holds,
        draining: now.draining,
        queue: beat.queue,
        utilisation: beat.utilisation,
        temperature_c: beat.temperature_c,
        health_score: has_beat.then_some(beat.health_score),
        clock_ahead_ms: now.clock_ahead_ms,
    }
}

fn view(grid: &Grid, node: Node) -> NodeView {
    let link = grid.presence.get(&node.id);
    let said: SaidOfItself = serde_json::from_str(&node.profile).unwrap_or_default();
    let ended = node.settled + node.faulted + node.lost;
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let rating = (ended > 0).then(|| node.settled as f64 / ended as f64);
    NodeView {
        short_id: node.id.short().to_owned(),
        id: node.id,
        name: node.name,
        region: node.region,
        state: node.state,
        registered_ms: node.registered_ms,
        seen_ms: link.as_ref().map_or(node.seen_ms, |link| link.snapshot().heard_ms),
        settled: node.settled,
        faulted: node.faulted,
        lost: node.lost,
        rating,
        agent: link.as_ref().map_or(said.agent, |link| link.agent.clone()),
        link: link.as_deref().map(link_view),
        hardware: said.hardware,
    }
}

/// Makes a node known and gives it a challenge.
#[utoipa::path(
    post, path = "/api/nodes/register", tag = "nodes", request_body = RegisterRequest,
    responses((status = 200, description = "What to sign", body = Challenge), (status = 403, description = "Not let in, and why", body = Problem))
)]
async fn register(
    State(grid): State<Arc<Grid>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    Json(request): Json<RegisterRequest>,
) -> Answer<Reply<Challenge>> {
    let origins = &grid.options.http.origins;
    Ok(Reply(grid.enrolment.register(request, |origin| connection.is_origin(origin, origins)).await?))
}

/// Takes the answer to a challenge and gives a session token.
#[utoipa::path(
    post, path = "/api/nodes/login", tag = "nodes", request_body = LoginRequest,
    responses((status = 200, description = "The token", body = LoginResponse), (status = 401, description = "Not proved", body = Problem))
)]
async fn login(State(grid): State<Arc<Grid>>, Json(request): Json<LoginRequest>) -> Answer<Reply<LoginResponse>> {
    Ok(Reply(grid.enrolment.login(request).await?))
}

/// All nodes.
#[utoipa::path(get, path = "/api/nodes", tag = "nodes", responses((status = 200, description = "The nodes", body = [NodeView])))]
async fn list(State(grid): State<Arc<Grid>>) -> Answer<Reply<Vec<NodeView>>> {
    Ok(Reply(grid.store.nodes().await?.into_iter().map(|node| view(&grid, node)).collect()))
}

async fn find(grid: &Grid, id: &str) -> Answer<Node> {
    let missing = || refuse(Code::NodeNotFound, format!("no node {id}"));
    let whole = grid.store.node(&NodeId(id.to_owned())).await?;
    match whole {
        Some(node) => Ok(node),
        // People know the short form.
        None if id.len() >= 12 => {
            let nodes = grid.store.nodes().await?;
            nodes.into_iter().find(|node| node.id.short() == id).ok_or_else(missing)
        }
        None => Err(missing()),
    }
}

/// One node, by its id or the id's first 12 characters.
#[utoipa::path(
    get, path = "/api/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "No such node", body = Problem))
)]
async fn get(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<NodeView>> {
    let node = find(&grid, &id).await?;
    Ok(Reply(view(&grid, node)))
}

/// How a connected node is.
#[utoipa::path(
    get, path = "/api/nodes/{id}/metrics", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    responses((status = 200, description = "How it is", body = LinkView), (status = 404, description = "Not known or not connected", body = Problem))
)]
async fn metrics(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<LinkView>> {
    let node = find(&grid, &id).await?;
    let link = grid.presence.get(&node.id);
    let missing = || refuse(Code::NodeNotFound, format!("node {} is not connected", node.id.short()));
    link.as_deref().map(link_view).map(Reply).ok_or_else(missing)
}

/// Sums over the connected nodes.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Sums {
    /// Connected nodes.
    nodes: usize,
    /// Attempts that they take at one time.
    slots: u64,
    /// How many more they take now.
    slots_free: u64,
    /// Attempts that they have.
    holds: u64,
    /// Jobs waiting inside them.
    queue: u64,
    /// Mean utilisation of those that said so.
    utilisation: Option<f32>,
}

impl Sums {
    /// Whether nobody is connected.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// Whether nobody has anything to do.
    pub(super) fn is_idle(&self) -> bool {
        self.holds == 0
    }
}

/// Sums over the links.
pub(super) fn sums(grid: &Grid) -> Sums {
    let mut sums = Sums::default();
    let mut told: Vec<f32> = Vec::new();
    for link in grid.presence.all() {
        let now = link.snapshot();
        sums.nodes += 1;
        sums.slots += u64::from(now.slots);
        sums.slots_free += now.slots_free as u64;
        sums.holds += now.holds as u64;
        if let Some(beat) = now.heartbeat {
            sums.queue += u64::from(beat.queue);
            told.push(beat.utilisation);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let mean = (!told.is_empty()).then(|| told.iter().sum::<f32>() / told.len() as f32);
    Sums { utilisation: mean, ..sums }
}

/// Sums over the connected nodes.
#[utoipa::path(get, path = "/api/nodes/metrics", tag = "nodes", responses((status = 200, description = "The sums", body = Sums)))]
async fn all_metrics(State(grid): State<Arc<Grid>>) -> Reply<Sums> {
    Reply(sums(&grid))
}

/// A sign of life without a link: for scripts. Renews the leases that it names if the node has a link.
#[utoipa::path(
    post, path = "/api/nodes/{id}/heartbeat", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    request_body(content = Object, description = "A heartbeat, as it crosses the link"),
    responses((status = 200, description = "Settings of the link", body = Object), (status = 403, description = "Another node's token", body = Problem))
)]
async fn heartbeat(
    State(grid): State<Arc<Grid>>,
    Extension(Caller(caller)): Extension<Caller>,
    Path(id): Path<String>,
    Json(heartbeat): Json<Heartbeat>,
) -> Answer<Reply<Settings>> {
    check_own(&caller, &id)?;
    match grid.presence.get(&caller) {
        Some(link) => {
            link.hear(grid.store.now_ms());
            let running = link.to_renew(&heartbeat.running, grid.store.now_ms(), 0);
            link.heartbeat(heartbeat, grid.store.now_ms());
            if !running.is_empty() {
                renew(&grid, &link, &running).await;
            }
            grid.board.wake();
        }
        None => {
            if let Some(node) = grid.store.node(&caller).await? {
                grid.store.put_node(Node { seen_ms: grid.store.now_ms(), ..node }).await?;
            }
        }
    }
    Ok(Reply(crate::nodes::session::settings(&grid)))
}

/// A node may speak for itself alone.
pub(super) fn check_own(caller: &NodeId, id: &str) -> Answer<()> {
    if caller.0 == id {
        return Ok(());
    }
    Err(refuse(Code::Forbidden, format!("this token is of node {}, not of {id}", caller.short())))
}

async fn set_state(grid: &Grid, id: &str, state: NodeState) -> Answer<Reply<NodeView>> {
    let node = find(grid, id).await?;
    grid.store.set_node_state(&node.id, state).await?;
    if let Some(link) = grid.presence.get(&node.id) {
        match state {
            NodeState::Active => link.put_aside(false),
            NodeState::Draining => link.put_aside(true),
            NodeState::Banned => link.close(ByeReason::Banned, "an operator banned this node"),
        }
        if state == NodeState::Draining {
            link.send(Frame::Drain(Drain { reason: "an operator asked for it".into() }));
        }
        grid.board.wake();
    }
    let node = grid.store.node(&node.id).await?.ok_or_else(|| Refusal(Problem::new(Code::NodeNotFound, id)))?;
    Ok(Reply(view(grid, node)))
}

/// Gives a node nothing more; it finishes what it has.
#[utoipa::path(
    post, path = "/api/nodes/{id}/drain", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    responses((status = 200, description = "The node after it", body = NodeView), (status = 404, description = "No such node", body = Problem))
)]
async fn drain(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<NodeView>> {
    set_state(&grid, &id, NodeState::Draining).await
}

/// Closes a node's link and lets it in no more.
#[utoipa::path(
    post, path = "/api/nodes/{id}/ban", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    responses((status = 200, description = "The node after it", body = NodeView), (status = 404, description = "No such node", body = Problem))
)]
async fn ban(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<NodeView>> {
    set_state(&grid, &id, NodeState::Banned).await
}

/// Lets a node work again. A node that was told to drain takes work after its next connection.
#[utoipa::path(
    post, path = "/api/nodes/{id}/activate", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    responses((status = 200, description = "The node after it", body = NodeView), (status = 404, description = "No such node", body = Problem))
)]
async fn activate(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<NodeView>> {
    set_state(&grid, &id, NodeState::Active).await
}
