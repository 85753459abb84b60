//! Tasks as callers see them: stored tasks come in; states, reasons for waiting, results and problems go out.

use super::hub::{Done, News, Watch};
use super::outcome::Facts;
use super::payload;
use crate::grid::Grid;
use crate::nodes::link::Link;
use crate::schedule::policy::Fit;
use crate::schedule::reason::{Case, Seen};
use crate::store::{self, AttemptRecord, Failure, Filter, State, Task, Want};
use coordinator_client::api::task::{TaskAttempt, TaskFailure, TaskState, TaskStatus, WaitCode, Waits};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::{Payload, TaskId, TaskKind, TaskOutput};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Queued tasks that are looked through for a task's place among them.
const AHEAD_MAX: usize = 1_000;

/// News may be missed when the process that caused them is not this one; then the store is asked so often.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What came of waiting.
#[derive(Debug)]
pub(crate) enum Waited {
    /// It has succeeded.
    Done(Arc<Done>),
    /// It ended without a result.
    Ended(Problem),
    /// It has not ended in this time.
    Pending,
}

impl Grid {
    /// A task as callers see it.
    pub(crate) fn status(&self, task: Task) -> TaskStatus {
        self.status_with(task, None)
    }

    /// The same, with its place among those that wait.
    pub(crate) async fn status_with_place(&self, task: Task) -> Result<TaskStatus, store::Error> {
        let ahead = if task.state == State::Queued { self.ahead(&task).await? } else { None };
        Ok(self.status_with(task, ahead))
    }

    fn status_with(&self, task: Task, ahead: Option<u64>) -> TaskStatus {
        let waits = (task.state == State::Queued).then(|| self.waits(&task, ahead));
        TaskStatus {
            id: task.id,
            kind: task.kind,
            model: task.model,
            priority: task.priority,
            state: state(task.state),
            waits,
            attempts: task.epoch,
            failures: task.failures,
            submitted_ms: task.submitted_ms,
            deadline_ms: task.deadline_ms,
            finished_ms: task.finished_ms,
            node: task.node,
            failure: task.failure.map(failure),
        }
    }

    /// How many queued tasks of the same kind and model come before a task, if that can be counted.
    async fn ahead(&self, task: &Task) -> Result<Option<u64>, store::Error> {
        let filter = Filter { state: Some(State::Queued), before: None, limit: AHEAD_MAX };
        let queued = self.store.tasks(filter).await?;
        if queued.len() == AHEAD_MAX {
            return Ok(None);
        }
        let is_ahead = |other: &&Task| {
            (other.kind, &other.model) == (task.kind, &task.model)
                && (other.priority > task.priority || (other.priority == task.priority && other.id < task.id))
        };
        Ok(Some(queued.iter().filter(is_ahead).count() as u64))
    }

    fn waits(&self, task: &Task, ahead: Option<u64>) -> Waits {
        let mut case = self.case(task.kind, &task.model);
        case.not_before_ms = task.not_before_ms;
        case.failure = task.failure.as_ref().map(|failure| failure.detail.clone());
        case.ahead = ahead;
        case.reason()
    }

    fn case(&self, kind: TaskKind, model: &str) -> Case {
        let want = Want { kind, model: model.to_owned() };
        let registered_bytes = self.registry.find(model).map(|version| version.manifest.total_bytes());
        let seen = |link: &Arc<Link>| Seen {
            node: format!("{} ({})", link.name, link.node.short()),
            fit: match link.fit(&want, registered_bytes) {
                Fit::Loaded | Fit::Cached if self.board.is_barred(link.session, &want) => Fit::Barred,
                fit => fit,
            },
            has_model: link.has(model),
            free: link.free(),
            busy: link.busy(),
            draining: link.is_draining(),
        };
        Case {
            kind: kind.name(),
            model: model.to_owned(),
            now_ms: self.store.now_ms(),
            not_before_ms: 0,
            failure: None,
            registered_bytes,
            fetching: self.board.fetching(model).map(|fetching| fetching.node.short().to_owned()),
            ahead: None,
            nodes: self.presence.all().iter().map(seen).collect(),
        }
    }

    /// Why nobody can serve this now or soon, if that is so: for callers who wait for the answer.
    pub(crate) fn objection(&self, kind: TaskKind, model: &str) -> Option<Problem> {
        let waits = self.case(kind, model).reason();
        match waits.code {
            WaitCode::NoNode | WaitCode::ModelMissing | WaitCode::KindNotServed | WaitCode::NodesDraining => {
                Some(Problem::new(Code::NoCapableNode, waits.detail).retry_after(2))
            }
            WaitCode::ModelFetching | WaitCode::NodesBusy | WaitCode::BackingOff | WaitCode::Dispatching => None,
        }
    }

    /// Waits for a task to end. The watch should have begun before the task could end.
    pub(crate) async fn wait(&self, watch: &mut Watch, id: TaskId, until: Instant) -> Result<Waited, store::Error> {
        loop {
            let look_at = until.min(Instant::now() + LOOK_EVERY);
            let news = tokio::select! {
                biased;
                news = watch.next() => Some(news),
                () = self.closing.cancelled() => {
                    let problem = Problem::new(Code::Unavailable, "the coordinator stops; try again").retry_after(2);
                    return Ok(Waited::Ended(problem));
                }
                () = tokio::time::sleep_until(look_at) => None,
            };
            match news {
                Some(News::Done(done)) => return Ok(Waited::Done(done)),
                Some(News::State(state)) if !state.is_final() => {}
                _ => match self.ended(id).await? {
                    Waited::Pending if Instant::now() < until => {}
                    waited => return Ok(waited),
                },
            }
        }
    }

    /// How a task ended, from the store.
    pub(crate) async fn ended(&self, id: TaskId) -> Result<Waited, store::Error> {
        let Some(task) = self.store.task(id).await? else {
            return Ok(Waited::Ended(not_found(id)));
        };
        if !task.state.is_final() {
            return Ok(Waited::Pending);
        }
        if task.state != State::Succeeded {
            return Ok(Waited::Ended(end_problem(&task)));
        }
        let internal = |detail: String| Waited::Ended(Problem::new(Code::Internal, detail));
        let Some(stored) = self.store.output(id).await? else {
            return Ok(Waited::Ended(not_found(id)));
        };
        let output = match payload::read::<TaskOutput>(&stored) {
            Err(error) => return Ok(internal(error.to_string())),
            Ok((Payload::Inline(output), _)) => output,
            Ok((Payload::Blob(blob), _)) => match self.read_blob(&blob.sha256).await {
                Err(error) => return Ok(internal(format!("the result's blob cannot be read: {error}"))),
                Ok(output) => output,
            },
        };
        let facts = task.facts.as_deref().map(serde_json::from_str::<Facts>);
        let usage = facts.and_then(Result::ok).map(|facts| facts.usage).unwrap_or_default();
        Ok(Waited::Done(Arc::new(Done { output, usage })))
    }
}

/// No such task.
pub(crate) fn not_found(id: impl std::fmt::Display) -> Problem {
    Problem::new(Code::TaskNotFound, format!("no task {id}; finished tasks are kept for a while only"))
}

/// Why a task has no result and never will.
fn end_problem(task: &Task) -> Problem {
    match (task.state, &task.failure) {
        (State::Cancelled, _) => Problem::new(Code::Cancelled, format!("task {} was cancelled", task.id)),
        (State::Expired, None) => {
            Problem::new(Code::DeadlineExceeded, format!("task {} was not done by its deadline", task.id))
        }
        (State::Expired, Some(failure)) => Problem::new(
            Code::DeadlineExceeded,
            format!("task {} was not done by its deadline; its last attempt failed: {}", task.id, failure.detail),
        ),
        (State::Quarantined, Some(failure)) => Problem::new(
            failure.code,
            format!(
                "task {} failed {} times and is given up; the last time: {}",
                task.id, task.failures, failure.detail
            ),
        ),
        (_, Some(failure)) => Problem::new(failure.code, failure.detail.clone()),
        (_, None) => Problem::new(Code::Internal, format!("task {} failed and nobody said why", task.id)),
    }
}

/// A stored state as callers see it.
pub(crate) fn state(state: State) -> TaskState {
    match state {
        State::Queued => TaskState::Queued,
        State::Leased => TaskState::Leased,
        State::Succeeded => TaskState::Succeeded,
        State::Failed => TaskState::Failed,
        State::Cancelled => TaskState::Cancelled,
        State::Expired => TaskState::Expired,
        State::Quarantined => TaskState::Quarantined,
    }
}

fn failure(failure: Failure) -> TaskFailure {
    let fault = match failure.fault {
        store::Fault::Caller => "caller",
        store::Fault::Worker => "worker",
        store::Fault::Coordinator => "coordinator",
        store::Fault::Network => "network",
        store::Fault::Model => "model",
    };
    TaskFailure { fault: fault.into(), code: failure.code, detail: failure.detail, retryable: failure.retryable }
}

/// A stored attempt as callers see it.
pub(crate) fn attempt(record: AttemptRecord) -> TaskAttempt {
    let outcome = record.outcome.map(|outcome| match outcome {
        store::Outcome::Settled => "settled",
        store::Outcome::GivenBack => "given_back",
        store::Outcome::Lost => "lost",
        store::Outcome::Cancelled => "cancelled",
        store::Outcome::Expired => "expired",
    });
    TaskAttempt {
        epoch: record.epoch,
        node: record.node,
        started_ms: record.started_ms,
        ended_ms: record.ended_ms,
        outcome: outcome.map(Into::into),
        failure: record.failure.map(failure),
    }
}
