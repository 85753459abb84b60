//! OpenAI's routes, served by the grid: a request becomes an urgent task, and whoever waits for it gets the answer from the
//! hand of the node's report, without asking the store. A caller who leaves takes the task along.

mod texts;

use super::answer::{Json, OpenAiRefusal, Refusal};
use crate::grid::Grid;
use crate::tasks::Request;
use crate::tasks::hub::Done;
use crate::tasks::view::Waited;
use axum::Json as Reply;
use axum::extract::State;
use coordinator_client::api::openai::{EmbeddingsRequest, EmbeddingsResponse, Model, ModelList};
use coordinator_client::api::rerank::{RerankRequest, RerankResponse};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::{TaskId, TaskInput, TaskOutput, Usage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new()
        .routes(routes!(embeddings))
        .routes(routes!(rerank))
        .routes(routes!(models))
        .merge(texts::router())
}

type OpenAiAnswer<T> = Result<Reply<T>, OpenAiRefusal>;

/// Texts to vectors.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingsRequest,
    responses((status = 200, description = "The vectors", body = EmbeddingsResponse), (status = "4XX", description = "Refused", body = Problem))
)]
async fn embeddings(
    State(grid): State<Arc<Grid>>,
    body: Result<Json<EmbeddingsRequest>, Refusal>,
) -> OpenAiAnswer<EmbeddingsResponse> {
    let (model, task, format) = body?.0.into_task();
    let (model, output, usage) = answer(&grid, TaskId::new(), model, task).await?;
    EmbeddingsResponse::new(model, output, usage, format).map(Reply).map_err(OpenAiRefusal)
}

/// A query and documents to scores.
#[utoipa::path(
    post, path = "/v1/rerank", tag = "openai", request_body = RerankRequest,
    responses((status = 200, description = "The scores, best first", body = RerankResponse), (status = "4XX", description = "Refused", body = Problem))
)]
async fn rerank(
    State(grid): State<Arc<Grid>>,
    body: Result<Json<RerankRequest>, Refusal>,
) -> OpenAiAnswer<RerankResponse> {
    let (model, task, wanted) = body?.0.into_task();
    let (model, output, usage) = answer(&grid, TaskId::new(), model, task).await?;
    RerankResponse::new(model, output, usage, &wanted).map(Reply).map_err(OpenAiRefusal)
}

/// Models that the registry or a connected node has.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai",
    responses((status = 200, description = "The models", body = ModelList))
)]
async fn models(State(grid): State<Arc<Grid>>) -> Reply<ModelList> {
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    for link in grid.presence.all() {
        for held in link.snapshot().models {
            models.entry(held.id.clone()).or_insert_with(|| Model::new(held.id, "node".into()));
        }
    }
    for version in grid.registry.list() {
        let id = version.manifest.id();
        let created = u64::try_from(version.registered_ms / 1000).unwrap_or(0);
        models.insert(id.clone(), Model { created, ..Model::new(id, "registry".into()) });
    }
    Reply(ModelList::new(models.into_values().collect()))
}

/// Submits a task as an urgent one that ends with its caller. Returns the resolved model and what cancels the task when it
/// is dropped.
async fn submit(
    grid: &Arc<Grid>,
    id: TaskId,
    model: String,
    task: TaskInput,
    deadline: Duration,
) -> Result<(String, CancelOnDrop), Refusal> {
    let resolved = grid.resolve(&model, task.kind())?;
    if let Some(problem) = grid.objection(task.kind(), &resolved) {
        return Err(problem.into());
    }
    let request = Request {
        task,
        model: resolved,
        priority: grid.options.tasks.interactive_priority,
        deadline: Some(deadline),
        failures_max: None,
        idempotency_key: None,
    };
    let guard = CancelOnDrop { grid: grid.clone(), id: Some(id) };
    let (_, model) = grid.submit(id, request).await?;
    Ok((model, guard))
}

/// Submits a task, waits for its end, and cancels it when the caller goes away.
async fn answer(
    grid: &Arc<Grid>,
    id: TaskId,
    model: String,
    task: TaskInput,
) -> Result<(String, TaskOutput, Usage), Refusal> {
    let started = std::time::Instant::now();
    let mut watch = grid.watch(id)?;
    let wait = grid.options.http.wait_max;
    let (model, mut guard) = submit(grid, id, model, task, wait).await?;
    let waited = grid.wait(&mut watch, id, Instant::now() + wait).await?;
    match waited {
        Waited::Done(done) => {
            guard.keep();
            drop(watch);
            grid.metrics.interactive_seconds.record(started.elapsed());
            let Done { output, usage } = Arc::try_unwrap(done)
                .unwrap_or_else(|shared| Done { output: shared.output.clone(), usage: shared.usage });
            Ok((model, output, usage))
        }
        Waited::Ended(problem) => Err(problem.into()),
        Waited::Pending => {
            let detail = format!("no node answered within {} s", wait.as_secs());
            Err(Problem::new(Code::DeadlineExceeded, detail).into())
        }
    }
}

/// Cancels a task that nobody waits for any more.
#[derive(Debug)]
struct CancelOnDrop {
    grid: Arc<Grid>,
    id: Option<TaskId>,
}

impl CancelOnDrop {
    /// The task has ended.
    fn keep(&mut self) {
        self.id = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let grid = self.grid.clone();
        self.grid.tracker.spawn(async move {
            if let Err(error) = grid.cancel(id, "the caller went away").await {
                tracing::warn!(task = %id, %error, "a task that nobody waits for was not cancelled");
            }
        });
    }
}
