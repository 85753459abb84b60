//! A model that writes text, on its device's thread: texts are put on it, each step takes all of them a token further. A step that
//! fails fails its texts; a panic, also over a text that is put on it, takes the model out of use and never ends the thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::thread::{Report, Watcher, words_of};
use crate::generate::Figures;
use crate::generate::writer::{Ask, Event, Failure, Refused, Step, Writer};

/// A writer with what the thread must know of it.
pub struct Desk {
    /// The writer.
    pub writer: Writer,
    /// `name@version`.
    pub model: String,
    /// Told of what happens to it.
    pub watcher: Arc<dyn Watcher>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("model", &self.model).finish_non_exhaustive()
    }
}

/// What becomes of a text that is put on a desk: where its tokens come from, or why it is not taken.
pub type Answer = oneshot::Sender<Result<mpsc::Receiver<Event>, NotTaken>>;

/// Why a text is not taken.
#[derive(Debug)]
pub enum NotTaken {
    /// It cannot be written.
    Refused(Refused),
    /// There is no desk: the model crashed, or was taken down. The text is handed back.
    NoDesk(Box<Ask>),
    /// The model crashed over it, and is taken out of use.
    Crashed,
}

impl Desk {
    /// Takes a text on, or says why not.
    ///
    /// # Errors
    /// When the model cannot be used any more: whoever is still to be told so.
    pub(super) fn take(&mut self, ask: Ask, answer: Answer) -> Result<(), Answer> {
        match catch_unwind(AssertUnwindSafe(|| self.writer.submit(Instant::now(), ask))) {
            Ok(taken) => {
                // Whoever has left drops the channel with the text's end, and so calls it off.
                drop(answer.send(taken.map_err(NotTaken::Refused)));
                self.watcher.stands(self.writer.scheduler().figures());
                Ok(())
            }
            Err(panic) => {
                tracing::error!(model = self.model, "the engine crashed over a new text: {}", words_of(&*panic));
                Err(answer)
            }
        }
    }

    /// Whether there are texts on it.
    pub(super) fn is_busy(&self) -> bool {
        !self.writer.is_idle()
    }

    /// Takes all its texts a step further. Returns whether the model can still be used.
    pub(super) fn step(&mut self) -> bool {
        let started = Instant::now();
        let step = catch_unwind(AssertUnwindSafe(|| self.writer.step(&Instant::now)));
        self.watcher.stands(self.writer.scheduler().figures());
        match step {
            Ok(Step::Idle) => true,
            Ok(Step::Ran { sequences, tokens }) => {
                self.watcher.ran(Report { items: sequences, cost: tokens, started });
                true
            }
            Ok(Step::Failed(error)) => {
                tracing::warn!(model = self.model, "a step failed: {error}");
                self.watcher.failed(&error);
                true
            }
            Err(panic) => {
                tracing::error!(model = self.model, "the engine crashed: {}", words_of(&*panic));
                false
            }
        }
    }

    /// Takes it out of use after a panic. That is known before its callers are told: who comes again waits for it.
    pub(super) fn crash(self) {
        self.watcher.stands(Figures::default());
        self.watcher.panicked();
        self.clear(&Failure::Panicked);
    }

    /// Takes it down; its texts fail so.
    pub(super) fn clear(mut self, failure: &Failure) {
        self.writer.fail_all(failure);
        let model = self.model.clone();
        if catch_unwind(AssertUnwindSafe(move || drop(self))).is_err() {
            tracing::error!(model, "the engine crashed while it was taken down; some of its memory may be lost");
        }
    }
}

#[cfg(test)]
mod tests;
