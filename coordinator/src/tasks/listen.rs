//! A caller who hears a text while it is written: pieces as they come, from whichever node writes it, and its end. Each part of
//! the text comes once, whoever was lost on the way.

use super::hub::{Done, News, Watch};
use super::texts::Reader;
use super::view::{LOOK_EVERY, Waited};
use crate::grid::Grid;
use crate::store;
use coordinator_client::api::{Code, Problem, text};
use coordinator_client::wire::text::{Finish, Piece};
use coordinator_client::wire::{TaskId, Usage};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What is heard next.
#[derive(Debug)]
pub(crate) enum Heard {
    /// More of the text.
    Piece(Piece),
    /// The last of it, and what it took.
    End(Piece, Finish, Usage),
    /// It will not go on.
    Failed(Problem),
}

/// Somebody who listens to a task's text.
#[derive(Debug)]
pub(crate) struct Listener {
    grid: Arc<Grid>,
    id: TaskId,
    watch: Watch,
    reader: Reader,
    /// So long may nothing come.
    silence_max: Duration,
}

impl Listener {
    /// Listens to a task from its text's beginning. Should begin before the task can end.
    pub(crate) fn new(grid: Arc<Grid>, id: TaskId, silence_max: Duration) -> Result<Self, super::Error> {
        let watch = grid.watch(id)?;
        let reader = grid.hub.texts.read(id);
        Ok(Self { grid, id, watch, reader, silence_max })
    }

    /// What comes next. Loses nothing when dropped.
    pub(crate) async fn next(&mut self) -> Result<Heard, store::Error> {
        let silent_at = Instant::now() + self.silence_max;
        loop {
            let piece = self.reader.take();
            if !piece.is_empty() {
                return Ok(Heard::Piece(piece));
            }
            let look_at = silent_at.min(Instant::now() + LOOK_EVERY);
            tokio::select! {
                biased;
                () = self.grid.closing.cancelled() => {
                    let problem = Problem::new(Code::Unavailable, "the coordinator stops; try again").retry_after(2);
                    return Ok(Heard::Failed(problem));
                }
                news = self.watch.next() => match news {
                    News::Done(done) => return Ok(self.end(&done)),
                    News::State(state) if !state.is_final() => continue,
                    News::State(_) | News::Nothing => {}
                },
                () = self.reader.more() => continue,
                () = tokio::time::sleep_until(look_at) => {}
            }
            match self.grid.ended(self.id).await? {
                Waited::Done(done) => return Ok(self.end(&done)),
                Waited::Ended(problem) => return Ok(Heard::Failed(problem)),
                Waited::Pending if Instant::now() < silent_at => {}
                Waited::Pending => {
                    let detail = format!("no node wrote anything for {} s", self.silence_max.as_secs());
                    return Ok(Heard::Failed(Problem::new(Code::DeadlineExceeded, detail)));
                }
            }
        }
    }

    fn end(&mut self, done: &Done) -> Heard {
        match text::written(done.output.clone()) {
            Ok(written) => Heard::End(self.reader.rest(&written), written.finish, done.usage),
            Err(problem) => Heard::Failed(problem),
        }
    }
}
