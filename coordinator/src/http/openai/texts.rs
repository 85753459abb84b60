//! Texts in OpenAI's shapes, written by the grid: whole, or in chunks as server-sent events while they are written. The node that
//! writes may change on the way; the caller does not notice.

use super::super::answer::{Json, OpenAiRefusal, Refusal};
use super::super::events::KEEP_ALIVE;
use super::{CancelOnDrop, answer, submit};
use crate::grid::Grid;
use crate::store;
use crate::tasks::listen::{Heard, Listener};
use axum::Json as Reply;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::openai::{
    ChatChunk, ChatCompletion, ChatRequest, Chunks, Completion, CompletionRequest, Head, How, Shape,
};
use coordinator_client::api::{Problem, text};
use coordinator_client::wire::{TaskId, TaskInput};
use futures_util::stream;
use http::{HeaderName, HeaderValue};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Tells nginx to pass events on as they come.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(chat)).routes(routes!(completions))
}

/// A conversation to its next message. With `stream`, chunks come as server-sent events, `[DONE]` last.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer, or its chunks", content(
            (ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"),
        )),
        (status = "4XX", description = "Refused", body = Problem),
    )
)]
async fn chat(
    State(grid): State<Arc<Grid>>,
    body: Result<Json<ChatRequest>, Refusal>,
) -> Result<Response, OpenAiRefusal> {
    let (model, task, how) = body?.0.into_task().map_err(OpenAiRefusal)?;
    write(&grid, model, task, how).await
}

/// A prompt to the text behind it. With `stream`, chunks come as server-sent events, `[DONE]` last.
#[utoipa::path(
    post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The text, or its chunks", content(
            (Completion = "application/json"), (Completion = "text/event-stream"),
        )),
        (status = "4XX", description = "Refused", body = Problem),
    )
)]
async fn completions(
    State(grid): State<Arc<Grid>>,
    body: Result<Json<CompletionRequest>, Refusal>,
) -> Result<Response, OpenAiRefusal> {
    let (model, task, how) = body?.0.into_task().map_err(OpenAiRefusal)?;
    write(&grid, model, task, how).await
}

async fn write(grid: &Arc<Grid>, model: String, task: TaskInput, how: How) -> Result<Response, OpenAiRefusal> {
    let id = TaskId::new();
    let created = u64::try_from(grid.store.now_ms() / 1_000).unwrap_or(0);
    if how.stream {
        return Ok(speak(grid, id, created, model, task, how).await?);
    }
    let (model, output, usage) = answer(grid, id, model, task).await?;
    let written = text::written(output).map_err(OpenAiRefusal)?;
    let head = Head::new(how.shape, id, created, model);
    Ok(match how.shape {
        Shape::Chat => Reply(ChatCompletion::new(head, written, usage)).into_response(),
        Shape::Completion => Reply(Completion::new(head, written, usage)).into_response(),
    })
}

/// Answers in chunks. What goes wrong before the first of them is told by the status, unless that takes long.
async fn speak(
    grid: &Arc<Grid>,
    id: TaskId,
    created: u64,
    model: String,
    task: TaskInput,
    how: How,
) -> Result<Response, Refusal> {
    let started = Instant::now();
    let options = &grid.options.http;
    let listener = Listener::new(grid.clone(), id, options.wait_max)?;
    let (model, guard) = submit(grid, id, model, task, options.stream_max).await?;
    let chunks = Chunks::new(how, Head::new(how.shape, id, created, model));
    let mut speaker = Speaker { listener, chunks, unsaid: VecDeque::new(), has_ended: false, guard };
    if let Ok(heard) = tokio::time::timeout(KEEP_ALIVE, speaker.listener.next()).await {
        match heard? {
            Heard::Failed(problem) => return Err(problem.into()),
            heard => {
                grid.metrics.first_piece_seconds.record(started.elapsed());
                speaker.say(Ok(heard));
            }
        }
    }
    let events = stream::unfold(speaker, |mut speaker| async move {
        let event = speaker.next().await?;
        Some((Ok::<_, Infallible>(event), speaker))
    });
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(([(ACCEL_BUFFERING, HeaderValue::from_static("no"))], events).into_response())
}

/// Turns what is heard into events. The task goes with it, unless it has ended.
struct Speaker {
    listener: Listener,
    chunks: Chunks,
    unsaid: VecDeque<String>,
    has_ended: bool,
    guard: CancelOnDrop,
}

impl Speaker {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(data) = self.unsaid.pop_front() {
                return Some(Event::default().data(data));
            }
            if self.has_ended {
                return None;
            }
            let heard = self.listener.next().await;
            self.say(heard);
        }
    }

    fn say(&mut self, heard: Result<Heard, store::Error>) {
        match heard {
            Ok(Heard::Piece(piece)) => self.unsaid.extend(self.chunks.piece(&piece)),
            Ok(Heard::End(rest, finish, usage)) => {
                self.guard.keep();
                self.has_ended = true;
                self.unsaid.extend(self.chunks.piece(&rest));
                self.unsaid.extend(self.chunks.end(finish, usage));
                self.unsaid.push_back("[DONE]".into());
            }
            Ok(Heard::Failed(problem)) => self.break_off(&problem),
            Err(error) => self.break_off(&Refusal::from(error).0),
        }
    }

    /// The error is the last event: what has not ended is not done.
    fn break_off(&mut self, problem: &Problem) {
        self.has_ended = true;
        self.unsaid.push_back(Chunks::error(problem));
    }
}
