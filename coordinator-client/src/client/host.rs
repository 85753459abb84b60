//! What a link asks of the worker behind it. Offers go in, pieces of texts, outcomes or failures come out. Types and one trait.

use super::access::Access;
use super::pieces::Pieces;
use crate::api::Code;
use crate::session::Facts;
use crate::wire::{Attempt, FailureClass, TaskInput, TaskOutput, Timings, Usage};
use std::time::Instant;

/// A task to run, its input at hand.
#[derive(Debug, Clone)]
pub struct Offered {
    /// Which try at which task.
    pub attempt: Attempt,
    /// `name@version`.
    pub model: String,
    /// What is asked.
    pub input: TaskInput,
    /// When nobody waits for it any more.
    pub deadline: Option<Instant>,
    /// Higher goes first.
    pub priority: i32,
    /// W3C trace context of the caller.
    pub trace_parent: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What came out.
    pub output: TaskOutput,
    /// What it took.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The model that ran, `name@version`.
    pub model: String,
    /// Digest over the model's files, hex.
    pub model_digest: String,
    /// The class in which results are comparable.
    pub execution_class: String,
    /// How many requests shared the batch; 0 when unknown.
    pub batch_size: u32,
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({code})", code = self.code.name())]
pub struct Failure {
    /// What is at fault.
    pub class: FailureClass,
    /// Whether another node, or this one later, may do it.
    pub retryable: bool,
    /// For programs.
    pub code: Code,
    /// For people.
    pub detail: String,
}

/// The worker behind a link.
#[async_trait::async_trait]
pub trait Host: Send + Sync + 'static {
    /// How it is and what it can do, now. Asked several times a second; must not wait.
    fn facts(&self) -> Facts;

    /// Hardware, as `GET /api/hardware/profile` gives it. Asked once.
    fn profile(&self) -> serde_json::Value;

    /// Runs a task. `access` fetches a model that is not here; `pieces` takes those of a text while it is being written.
    /// Dropping the future cancels the task.
    ///
    /// # Errors
    /// When it is not done, with who is at fault.
    async fn execute(&self, offered: Offered, access: &Access, pieces: &Pieces) -> Result<Outcome, Failure>;

    /// Has a model ready, fetched first if need be.
    ///
    /// # Errors
    /// When that fails; it is logged.
    async fn load(&self, model: &str, access: &Access) -> Result<(), Failure>;

    /// Frees a model's memory.
    ///
    /// # Errors
    /// When that fails; it is logged.
    async fn unload(&self, model: &str) -> Result<(), Failure>;

    /// The coordinator wants this worker to take nothing more from it. The link sees to that by itself; this is for
    /// whoever shows it.
    fn draining(&self, reason: &str);
}
