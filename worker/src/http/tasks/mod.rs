//! Tasks over HTTP: done while the caller waits, or taken in and asked for later.

mod kept;

use std::pin::Pin;
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header, request};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::task::{SubmitTask, TaskAccepted, TaskResult, TaskStatus};
use coordinator_client::api::{Code, Problem};
use coordinator_client::client::Outcome;
use coordinator_client::wire::TaskId;
use models::task::Reply;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::body::{Json, Reserved, answer, json_response};
use super::error::{Path, Refusal};
use crate::NewTask;
use crate::convert::{Asked, asked, check_json, outcome_of, outcome_of_text, request_of};
use crate::text::NewText;

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
    let new = kept::New {
        id,
        kind: submit.task.kind(),
        model: submit.model.clone(),
        priority: submit.priority,
        deadline_ms: submit.deadline_ms,
    };
    let running = begin(&app, submit)?;
    if !later {
        let (outcome, bytes) = running.await?;
        return answer(&app, bytes, move || Ok(result_of(id, outcome))).await;
    }
    let accepted = accept(&app, new, running, reserved);
    let location = HeaderValue::try_from(format!("/api/tasks/{id}")).expect("an id is plain text");
    let applied = (HeaderName::from_static("preference-applied"), HeaderValue::from_static("respond-async"));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location), applied], axum::Json(accepted)).into_response())
}

/// What comes of a task, with about how many bytes that holds.
type Running = Pin<Box<dyn Future<Output = Result<(Outcome, usize), crate::Error>> + Send>>;

/// Takes a task in, or refuses it at once.
fn begin(app: &Shared, submit: SubmitTask) -> Result<Running, Refusal> {
    // A deadline beyond the clock's end is none.
    let deadline = submit.deadline_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let (model, priority, kind) = (submit.model, submit.priority, submit.task.kind());
    match asked(submit.task)? {
        Asked::Text(input) => {
            let writing = app.handle.begin_writing(NewText { priority, deadline, ..NewText::new(model, input) })?;
            Ok(Box::pin(async move {
                let done = writing.await?.whole().await?;
                let bytes = done.written.text.len();
                Ok((outcome_of_text(kind, done), bytes))
            }))
        }
        Asked::Answer(task) => {
            let running = app.handle.begin(NewTask { request: request_of(task)?, model, priority, deadline })?;
            Ok(Box::pin(async move {
                let done = running.await?;
                if let Reply::Tensors(tensors) = &done.reply {
                    tensors.iter().try_for_each(check_json)?;
                }
                let bytes = reply_bytes(&done.reply);
                Ok((outcome_of(done), bytes))
            }))
        }
    }
}

/// Keeps what comes of a task that nobody waits for.
fn accept(app: &Shared, new: kept::New, running: Running, reserved: Reserved) -> TaskAccepted {
    let id = new.id;
    let model = app.handle.cache().find(&new.model).unwrap_or_else(|| new.model.clone());
    let stop = app.kept.begin(kept::New { model: model.clone(), ..new });
    let shared = std::sync::Arc::clone(app);
    tokio::spawn(async move {
        let _reserved = reserved;
        let ended = tokio::select! {
            biased;
            // Dropping the task calls it off.
            () = stop.cancelled() => return,
            ended = running => ended,
        };
        let result = match ended {
            Ok((outcome, _)) => {
                let model = outcome.model.clone();
                let write = move || super::body::json_bytes(&result_of(id, outcome));
                shared.handle.on_cpu(write).await.map(|bytes| (model, bytes))
            }
            Err(error) => Err(error),
        };
        shared.kept.end(id, result);
    });
    TaskAccepted { id, model, existing: false }
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

fn result_of(id: TaskId, outcome: Outcome) -> TaskResult {
    let Outcome { output, usage, timings, model, model_digest, execution_class, batch_size: _ } = outcome;
    let facts = serde_json::json!({
        "execution_class": execution_class,
        "model_digest": model_digest,
        "queue_us": timings.queue_us,
        "prepare_us": timings.prepare_us,
        "device_us": timings.device_us,
        "finish_us": timings.finish_us,
    });
    TaskResult { id, model, output, usage, facts: Some(facts) }
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
