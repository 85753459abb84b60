//! Tasks over HTTP: submit, look, wait, cancel. Requests in, states, results and problems out.

use super::answer::{Answer, Json, Params, Path, Refusal, refuse};
use super::wait::{Wanted, wanted_wait};
use crate::grid::Grid;
use crate::store::{self, Filter, Task};
use crate::tasks::hub::Done;
use crate::tasks::offer::options_of;
use crate::tasks::view::{self, Waited, attempt, not_found};
use crate::tasks::{Request, outcome::Facts};
use axum::Json as Reply;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use coordinator_client::api::task::{
    SubmitTask, TaskAccepted, TaskAttempt, TaskPage, TaskResult, TaskState, TaskStatus,
};
use coordinator_client::api::{Code, Problem, text};
use coordinator_client::wire::TaskId;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Tasks on one page, when the caller does not say, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 500;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

pub(crate) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new()
        .routes(routes!(submit, list))
        .routes(routes!(get, cancel))
        .routes(routes!(result))
        .routes(routes!(attempts))
        .routes(routes!(super::events::events))
}

/// Submits a task. `Prefer: wait=SECONDS` waits for its result.
#[utoipa::path(
    post, path = "/api/tasks", tag = "tasks", request_body = SubmitTask,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "A repeated submit with this key is the same task"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`: answer with the result if it comes in this time"),
    ),
    responses(
        (status = 202, description = "Taken", body = TaskAccepted),
        (status = 200, description = "Done within the wait", body = TaskResult),
        (status = "4XX", description = "Refused", body = Problem),
    )
)]
async fn submit(State(grid): State<Arc<Grid>>, headers: HeaderMap, Json(body): Json<SubmitTask>) -> Answer<Response> {
    let idempotency_key = match headers.get(&IDEMPOTENCY_KEY) {
        None => None,
        Some(key) => match key.to_str() {
            Ok(key) if !key.is_empty() => Some(key.to_owned()),
            _ => return Err(refuse(Code::InvalidInput, "Idempotency-Key must be visible ASCII and not empty")),
        },
    };
    text::check(&body.task)?;
    if options_of(&body.task).is_some_and(|options| !options.generated.is_empty()) {
        let detail = "options.generated is for nodes that go on with a text; put what it begins with into the prompt";
        return Err(refuse(Code::InvalidInput, detail));
    }
    let wait = wanted_wait(&headers, grid.options.http.wait_max);
    let mut id = TaskId::new();
    let mut watch = match wait {
        Wanted::Wait(_) => Some(grid.watch(id)?),
        Wanted::No => None,
    };
    let request = Request {
        task: body.task,
        model: body.model,
        priority: body.priority,
        deadline: body.deadline_ms.map(Duration::from_millis),
        failures_max: body.failures_max,
        idempotency_key,
    };
    let (submitted, mut model) = grid.submit(id, request).await?;
    if submitted.existing {
        id = submitted.id;
        if watch.is_some() {
            watch = Some(grid.watch(id)?);
        }
        if let Some(task) = grid.store.task(id).await? {
            model = task.model;
        }
    }
    if let (Wanted::Wait(wait), Some(watch)) = (wait, &mut watch) {
        // Of an existing task the end may have come before the watch.
        let waited = match submitted.existing {
            true => grid.ended(id).await?,
            false => Waited::Pending,
        };
        let waited = match waited {
            Waited::Pending => grid.wait(watch, id, Instant::now() + wait).await?,
            ended => ended,
        };
        match waited {
            Waited::Done(done) => {
                let mut response = Reply(task_result(id, model, done, None)).into_response();
                let applied = HeaderValue::from_str(&format!("wait={}", wait.as_secs())).expect("digits");
                response.headers_mut().insert(PREFERENCE_APPLIED, applied);
                return Ok(response);
            }
            Waited::Ended(problem) => return Err(problem.into()),
            Waited::Pending => {}
        }
    }
    let location = HeaderValue::from_str(&format!("/api/tasks/{id}")).expect("ids are ASCII");
    let accepted = TaskAccepted { id, model, existing: submitted.existing };
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Reply(accepted)).into_response())
}

fn task_result(id: TaskId, model: String, done: Arc<Done>, facts: Option<serde_json::Value>) -> TaskResult {
    let (output, usage) = match Arc::try_unwrap(done) {
        Ok(done) => (done.output, done.usage),
        Err(shared) => (shared.output.clone(), shared.usage),
    };
    TaskResult { id, model, output, usage, facts }
}

fn parse(id: &str) -> Answer<TaskId> {
    id.parse().map_err(|_| Refusal(not_found(id)))
}

/// A task by the id in a path.
pub(super) async fn find(grid: &Grid, id: &str) -> Answer<Task> {
    let id = parse(id)?;
    grid.store.task(id).await?.ok_or_else(|| Refusal(not_found(id)))
}

/// One task: where it stands, and why it waits.
#[utoipa::path(
    get, path = "/api/tasks/{id}", tag = "tasks", params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, description = "The task", body = TaskStatus), (status = 404, description = "No such task", body = Problem))
)]
async fn get(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<TaskStatus>> {
    let task = find(&grid, &id).await?;
    Ok(Reply(grid.status_with_place(task).await?))
}

/// Which tasks to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct ListParams {
    /// Only in this state.
    #[param(inline)]
    state: Option<TaskState>,
    /// Only submitted before this one.
    before: Option<String>,
    /// At most so many, up to 500; 100 when absent.
    limit: Option<usize>,
}

/// Tasks, newest first.
#[utoipa::path(
    get, path = "/api/tasks", tag = "tasks", params(ListParams),
    responses((status = 200, description = "A page of tasks", body = TaskPage))
)]
async fn list(State(grid): State<Arc<Grid>>, Params(params): Params<ListParams>) -> Answer<Reply<TaskPage>> {
    let limit = params.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let before = params.before.as_deref().map(parse).transpose()?;
    let wanted = |state: &&store::State| params.state == Some(view::state(**state));
    let filter = Filter { state: store::State::ALL.iter().find(wanted).copied(), before, limit };
    let tasks: Vec<TaskStatus> = grid.store.tasks(filter).await?.into_iter().map(|task| grid.status(task)).collect();
    let next = tasks.last().filter(|_| tasks.len() == limit).map(|task| task.id);
    Ok(Reply(TaskPage { tasks, next }))
}

/// A succeeded task's result.
#[utoipa::path(
    get, path = "/api/tasks/{id}/result", tag = "tasks", params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "The result", body = TaskResult),
        (status = 404, description = "No such task", body = Problem),
        (status = 409, description = "It has not ended", body = Problem),
        (status = 410, description = "It ended without a result, and why", body = Problem),
    )
)]
async fn result(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<TaskResult>> {
    let task = find(&grid, &id).await?;
    match grid.ended(task.id).await? {
        Waited::Done(done) => {
            let task = find(&grid, &id).await?;
            let facts = task.facts.as_deref().and_then(|facts| serde_json::from_str::<Facts>(facts).ok());
            let facts = facts.map(|facts| {
                let mut facts = serde_json::to_value(facts).expect("facts are plain data");
                facts["node"] = serde_json::json!(task.node);
                facts
            });
            Ok(Reply(task_result(task.id, task.model, done, facts)))
        }
        // Whatever the cause, there will never be a result here.
        Waited::Ended(problem) if task.state.is_final() => Err(Refusal(Problem { status: 410, ..problem })),
        Waited::Ended(problem) => Err(Refusal(problem)),
        Waited::Pending => {
            let status = grid.status(task);
            let why = status.waits.map_or_else(|| "a node has it".to_owned(), |waits| waits.detail);
            let detail = format!("task {} has not ended: {why}", status.id);
            Err(Refusal(Problem::new(Code::NotFinished, detail).retry_after(1)))
        }
    }
}

/// Every attempt at a task, oldest first.
#[utoipa::path(
    get, path = "/api/tasks/{id}/attempts", tag = "tasks", params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, description = "The attempts", body = [TaskAttempt]), (status = 404, description = "No such task", body = Problem))
)]
async fn attempts(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<Vec<TaskAttempt>>> {
    let task = find(&grid, &id).await?;
    Ok(Reply(grid.store.attempts(task.id).await?.into_iter().map(attempt).collect()))
}

/// Cancels a task. Of one that has ended, nothing changes.
#[utoipa::path(
    delete, path = "/api/tasks/{id}", tag = "tasks", params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, description = "The task after it", body = TaskStatus), (status = 404, description = "No such task", body = Problem))
)]
async fn cancel(State(grid): State<Arc<Grid>>, Path(id): Path<String>) -> Answer<Reply<TaskStatus>> {
    let id = parse(&id)?;
    grid.cancel(id, "the caller cancelled it").await?.ok_or_else(|| Refusal(not_found(id)))?;
    let task = grid.store.task(id).await?.ok_or_else(|| Refusal(not_found(id)))?;
    Ok(Reply(grid.status(task)))
}
