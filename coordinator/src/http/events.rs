//! A task's life as server-sent events: one `state` event now, one with each change, and the end of the stream when the task
//! has ended. Of changes faster than the reader, the last is told. Between them, what is written of a text comes as `piece`
//! events, every part of it once.

use super::answer::{Answer, Path};
use super::tasks::find;
use crate::grid::Grid;
use crate::store::{State, Task};
use crate::tasks::hub::Watch;
use crate::tasks::offer::is_text;
use crate::tasks::texts::Reader;
use crate::tasks::view::Waited;
use axum::extract::State as Shared;
use axum::response::sse::{Event, KeepAlive, Sse};
use coordinator_client::api::task::TaskStatus;
use coordinator_client::api::{Problem, text};
use coordinator_client::wire::Piece;
use futures_util::Stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// A silent stream shows so often that it lives; below the idle time-outs of proxies.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often the store is looked at without news, as a safety net.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// State changes of a task as server-sent events named `state`, each with the task as data. Of a text, what was written
/// since the last one as events named `piece`.
#[utoipa::path(
    get, path = "/api/tasks/{id}/events", tag = "tasks", params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "Events", content_type = "text/event-stream", body = TaskStatus),
        (status = 404, description = "No such task", body = Problem),
    )
)]
pub(super) async fn events(
    Shared(grid): Shared<Arc<Grid>>,
    Path(id): Path<String>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let task = find(&grid, &id).await?;
    let watch = grid.watch(task.id)?;
    let reader = is_text(task.kind).then(|| grid.hub.texts.read(task.id));
    // Read again: what changed before the watch began must not be missed.
    let task = find(&grid, &id).await?;
    let stream = futures_util::stream::unfold(
        Some(Teller { grid, watch, reader, task, told: None, has_ended: false }),
        |teller| async move {
            let mut teller = teller?;
            let event = teller.next().await?;
            Some((Ok(event), (!teller.has_ended).then_some(teller)))
        },
    );
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Teller {
    grid: Arc<Grid>,
    watch: Watch,
    /// Of a text.
    reader: Option<Reader>,
    task: Task,
    told: Option<(State, u64)>,
    has_ended: bool,
}

impl Teller {
    /// The next event, or `None` when the coordinator stops or the task is forgotten.
    async fn next(&mut self) -> Option<Event> {
        while self.told == Some((self.task.state, self.task.epoch)) {
            if let Some(piece) = self.reader.as_mut().map(Reader::take).filter(|piece| !piece.is_empty()) {
                return tell(&piece);
            }
            tokio::select! {
                biased;
                () = self.grid.closing.cancelled() => return None,
                _ = self.watch.next() => {}
                () = more(&mut self.reader) => continue,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.task = self.grid.store.task(self.task.id).await.ok()??;
        }
        if self.task.state.is_final() {
            if let Some(piece) = self.rest().await.filter(|piece| !piece.is_empty()) {
                return tell(&piece);
            }
            self.has_ended = true;
        }
        self.told = Some((self.task.state, self.task.epoch));
        let status = self.grid.status(self.task.clone());
        Event::default().event("state").json_data(status).ok()
    }

    /// What is left of a text, when its task has ended.
    async fn rest(&mut self) -> Option<Piece> {
        let reader = self.reader.as_mut()?;
        let told = reader.take();
        if !told.is_empty() || self.task.state != State::Succeeded {
            return Some(told);
        }
        match self.grid.ended(self.task.id).await {
            Ok(Waited::Done(done)) => Some(reader.rest(&text::written(done.output.clone()).ok()?)),
            _ => None,
        }
    }
}

fn tell(piece: &Piece) -> Option<Event> {
    Event::default().event("piece").json_data(piece).ok()
}

async fn more(reader: &mut Option<Reader>) {
    match reader {
        Some(reader) => reader.more().await,
        None => std::future::pending().await,
    }
}
