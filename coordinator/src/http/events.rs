//! A task's life as server-sent events: one `state` event now, one with each change, and the end of the stream when the task
//! has ended. Of changes faster than the reader, the last is told.

use super::answer::{Answer, Path};
use super::tasks::find;
use crate::grid::Grid;
use crate::store::Task;
use crate::tasks::hub::Watch;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use coordinator_client::api::Problem;
use coordinator_client::api::task::TaskStatus;
use futures_util::Stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// A silent stream shows so often that it lives; below the idle time-outs of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often the store is looked at without news, as a safety net.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// State changes of a task as server-sent events named `state`, each with the task as data.
#[utoipa::path(
    get, path = "/api/tasks/{id}/events", tag = "tasks", params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "Events", content_type = "text/event-stream", body = TaskStatus),
        (status = 404, description = "No such task", body = Problem),
    )
)]
pub(super) async fn events(
    State(grid): State<Arc<Grid>>,
    Path(id): Path<String>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let task = find(&grid, &id).await?;
    let watch = grid.watch(task.id)?;
    // Read again: what changed before the watch began must not be missed.
    let task = find(&grid, &id).await?;
    let stream = futures_util::stream::unfold(Some(Teller { grid, watch, task, told: None }), |teller| async move {
        let mut teller = teller?;
        let event = teller.next().await?;
        let is_last = teller.task.state.is_final();
        Some((Ok(event), (!is_last).then_some(teller)))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Teller {
    grid: Arc<Grid>,
    watch: Watch,
    task: Task,
    told: Option<(crate::store::State, u64)>,
}

impl Teller {
    /// The next event, or `None` when the coordinator stops or the task is forgotten.
    async fn next(&mut self) -> Option<Event> {
        while self.told == Some((self.task.state, self.task.epoch)) {
            tokio::select! {
                biased;
                () = self.grid.closing.cancelled() => return None,
                _ = self.watch.next() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.task = self.grid.store.task(self.task.id).await.ok()??;
        }
        self.told = Some((self.task.state, self.task.epoch));
        let status = self.grid.status(self.task.clone());
        Event::default().event("state").json_data(status).ok()
    }
}
