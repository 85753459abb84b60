//! OpenAI's routes for texts: chat and completions, at once or in chunks as they are written. A caller who hangs up calls its text off.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::openai::{
    ChatCompletion, ChatRequest, Chunks, Completion, CompletionRequest, Head, How, Shape,
};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::{TaskId, TaskInput};
use futures_util::stream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::body::{Json, answer};
use super::error::Refusal;
use crate::convert::{Asked, asked, usage_of};
use crate::text::{NewText, Next, Writing};

/// So often something is sent while nothing is written, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(chat)).routes(routes!(completions))
}

/// A conversation to its next message; with `stream`, chunks as they are written, as server-sent events.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    responses((status = 200, body = ChatCompletion)))]
async fn chat(State(app): State<Shared>, Json(request, _reserved): Json<ChatRequest>) -> Result<Response, Refusal> {
    let (model, task, how) = request.into_task()?;
    write(&app, model, task, how).await
}

/// A prompt to the text behind it; with `stream`, chunks as they are written, as server-sent events.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses((status = 200, body = Completion)))]
async fn completions(
    State(app): State<Shared>,
    Json(request, _reserved): Json<CompletionRequest>,
) -> Result<Response, Refusal> {
    let (model, task, how) = request.into_task()?;
    write(&app, model, task, how).await
}

async fn write(app: &Shared, model: String, task: TaskInput, how: How) -> Result<Response, Refusal> {
    let Asked::Text(input) = asked(task)? else {
        return Err(Refusal::new(Code::Internal, "a request for a text asks for another task"));
    };
    let writing = app.handle.write(NewText::new(model, input)).await?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let head = Head::new(how.shape, TaskId::new(), created, writing.model().to_owned());
    if how.stream {
        let events = stream::unfold(Some((writing, Chunks::new(how, head))), |state| async {
            let (events, state) = next(state?).await;
            Some((stream::iter(events.into_iter().map(Ok::<_, Infallible>)), state))
        });
        let sse = Sse::new(futures_util::StreamExt::flatten(events));
        let sse = sse.keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        // Tells nginx to pass events on as they come.
        return Ok(([("x-accel-buffering", "no")], sse).into_response());
    }
    let done = writing.whole().await?;
    let (usage, bytes) = (usage_of(&done), done.written.text.len());
    match how.shape {
        Shape::Chat => answer(app, bytes, move || Ok(ChatCompletion::new(head, done.written, usage))).await,
        Shape::Completion => answer(app, bytes, move || Ok(Completion::new(head, done.written, usage))).await,
    }
}

/// The events of what comes next, and what they go on with.
async fn next((mut writing, mut chunks): (Writing, Chunks)) -> (Vec<Event>, Option<(Writing, Chunks)>) {
    let events = |chunks: Vec<String>| chunks.into_iter().map(|chunk| Event::default().data(chunk)).collect::<Vec<_>>();
    match writing.next().await {
        Some(Ok(Next::Piece(piece))) => (events(chunks.piece(&piece)), Some((writing, chunks))),
        Some(Ok(Next::End(done))) => {
            let mut last = chunks.end(done.written.finish, usage_of(&done));
            last.push("[DONE]".into());
            (events(last), None)
        }
        Some(Err(error)) => (events(vec![Chunks::error(&Problem::from(error))]), None),
        None => (vec![], None),
    }
}
