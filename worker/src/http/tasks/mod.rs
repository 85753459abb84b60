//! Tasks over HTTP: done while the caller waits, or taken in and asked for later.

mod kept;

use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header, request};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::task::{SubmitTask, TaskAccepted, TaskResult, TaskStatus};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::{TaskId, Usage};
use models::task::Reply;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::body::{Json, Reserved, answer, json_response};
use super::error::{Path, Refusal};
use crate::convert::{check_json, output_of, request_of};
use crate::{Done, NewTask};

pub(super) use kept::Kept;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(execute)).routes(routes!(status, cancel)).routes(routes!(result))
}

/// Whether the caller wants to ask for the result later.
struct Later(bool);

impl<S: Sync> FromRequestParts<S> for Later {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        let values = parts.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        let mut words = values.flat_map(|value| value.split([',', ';']));
        Ok(Self(words.any(|word| word.trim().eq_ignore_ascii_case("respond-async"))))
    }
}

/// Does a task; with `Prefer: respond-async`, takes it in and answers with its id.
#[utoipa::path(post, path = "/api/tasks/execute", tag = "tasks", request_body = SubmitTask,
    params(("Prefer" = Option<String>, Header, description = "`respond-async` to be answered at once with an id")),
    responses((status = 200, body = TaskResult), (status = 202, body = TaskAccepted)))]
async fn execute(
    State(app): State<Shared>,
    Later(later): Later,
    Json(submit, reserved): Json<SubmitTask>,
) -> Result<Response, Refusal> {
    let id = TaskId::new();
    let kind = submit.task.kind();
    // A deadline beyond the clock's end is none.
    let deadline = submit.deadline_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let (model, priority) = (submit.model, submit.priority);
    let task = NewTask { request: request_of(submit.task)?, model, priority, deadline };
    if !later {
        let done = app.handle.execute(task).await?;
        return answer(&app, reply_bytes(&done.reply), move || Ok(result_of(id, done)?)).await;
    }
    let accepted = accept(&app, id, kind, submit.deadline_ms, task, reserved)?;
    let location = HeaderValue::try_from(format!("/api/tasks/{id}")).expect("an id is plain text");
    let applied = (HeaderName::from_static("preference-applied"), HeaderValue::from_static("respond-async"));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location), applied], axum::Json(accepted)).into_response())
}

/// Begins a task that nobody waits for. It is refused at once like any other when there is no place.
fn accept(
    app: &Shared,
    id: TaskId,
    kind: coordinator_client::wire::TaskKind,
    deadline_ms: Option<u64>,
    task: NewTask,
    reserved: Reserved,
) -> Result<TaskAccepted, Refusal> {
    let known = app.handle.cache().find(&task.model);
    let model = known.unwrap_or_else(|| task.model.clone());
    let priority = task.priority;
    let running = app.handle.begin(task)?;
    let stop = app.kept.begin(kept::New { id, kind, model: model.clone(), priority, deadline_ms });
    let shared = std::sync::Arc::clone(app);
    tokio::spawn(async move {
        let _reserved = reserved;
        let ended = tokio::select! {
            biased;
            // Dropping the task calls it off.
            () = stop.cancelled() => return,
            ended = running => ended,
        };
        let outcome = match ended {
            Ok(done) => {
                let model = done.model.clone();
                let write = move || result_of(id, done).map(|result| super::body::json_bytes(&result));
                shared.handle.on_cpu(write).await.flatten().map(|bytes| (model, bytes))
            }
            Err(error) => Err(error),
        };
        shared.kept.end(id, outcome);
    });
    Ok(TaskAccepted { id, model, existing: false })
}

/// About how many bytes a reply holds.
pub(super) fn reply_bytes(reply: &Reply) -> usize {
    match reply {
        Reply::Embeddings { values, .. } => size_of_val(values.as_slice()),
        Reply::Ranking(scores) => size_of_val(scores.as_slice()),
        Reply::Labels(rankings) => rankings.iter().flatten().map(|label| label.label.len() + 4).sum(),
        Reply::Tensors(tensors) => tensors.iter().map(|tensor| tensor.tensor.data().len()).sum(),
    }
}

fn result_of(id: TaskId, done: Done) -> Result<TaskResult, crate::Error> {
    if let Reply::Tensors(tensors) = &done.reply {
        tensors.iter().try_for_each(check_json)?;
    }
    let us = |time: Duration| time.as_micros() as u64;
    let facts = serde_json::json!({
        "execution_class": done.execution_class,
        "model_digest": done.model_digest,
        "queue_us": us(done.timings.queue),
        "prepare_us": us(done.timings.prepare),
        "device_us": us(done.timings.device),
        "finish_us": us(done.timings.finish),
    });
    let usage = Usage { input_tokens: done.input_tokens, ..Usage::default() };
    Ok(TaskResult { id, model: done.model, output: output_of(done.reply), usage, facts: Some(facts) })
}

fn id_of(text: &str) -> Result<TaskId, Refusal> {
    text.parse().map_err(|_| Refusal::new(Code::TaskNotFound, format!("{text:?} is not a task's id")))
}

/// How a task that was taken in stands.
#[utoipa::path(get, path = "/api/tasks/{id}", tag = "tasks", params(("id", description = "The task's id")),
    responses((status = 200, body = TaskStatus)))]
async fn status(State(app): State<Shared>, Path(id): Path<String>) -> Result<axum::Json<TaskStatus>, Refusal> {
    Ok(axum::Json(app.kept.status(id_of(&id)?)?))
}

/// The result of a task that was taken in; its failure, when it failed.
#[utoipa::path(get, path = "/api/tasks/{id}/result", tag = "tasks", params(("id", description = "The task's id")),
    responses((status = 200, body = TaskResult), (status = 409, body = Problem, content_type = "application/problem+json")))]
async fn result(State(app): State<Shared>, Path(id): Path<String>) -> Result<Response, Refusal> {
    Ok(json_response(app.kept.result(id_of(&id)?)?))
}

/// Calls a task off; forgets the result of one that has ended.
#[utoipa::path(delete, path = "/api/tasks/{id}", tag = "tasks", params(("id", description = "The task's id")),
    responses((status = 200, body = TaskStatus)))]
async fn cancel(State(app): State<Shared>, Path(id): Path<String>) -> Result<axum::Json<TaskStatus>, Refusal> {
    Ok(axum::Json(app.kept.cancel(id_of(&id)?)?))
}
