//! Tasks that nobody waits for, and what came of them: kept for a time, in a number and a size that are bounded. Those
//! that run are bounded by the places at the door; of those that ended the oldest go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use coordinator_client::api::task::{TaskFailure, TaskState, TaskStatus};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::{TaskId, TaskKind};
use tokio_util::sync::CancellationToken;

use crate::{Error, config};

/// The tasks.
pub(in crate::http) struct Kept {
    state: Mutex<State>,
    retention: Duration,
    results_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<TaskId, Task>,
    /// Those that have ended, in the order in which they did.
    ended: VecDeque<TaskId>,
    /// Of their results.
    bytes: usize,
}

struct Task {
    status: TaskStatus,
    stop: CancellationToken,
    end: Option<Result<Bytes, Problem>>,
}

/// A task that begins.
pub(super) struct New {
    pub(super) id: TaskId,
    pub(super) kind: TaskKind,
    pub(super) model: String,
    pub(super) priority: u8,
    pub(super) deadline_ms: Option<u64>,
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Kept {
    pub(in crate::http) fn new(options: &config::Http) -> Self {
        Self {
            state: Mutex::default(),
            retention: options.result_retention,
            results_max: options.results_max,
            bytes_max: options.results_bytes_max,
        }
    }

    /// Notes a task that runs. The token is cancelled when it is called off.
    pub(super) fn begin(&self, new: New) -> CancellationToken {
        let stop = CancellationToken::new();
        let now = now_ms();
        let deadline = new.deadline_ms.map(|ms| now.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)));
        let status = TaskStatus {
            id: new.id,
            kind: new.kind,
            model: new.model,
            priority: new.priority,
            state: TaskState::Leased,
            waits: None,
            attempts: 1,
            failures: 0,
            submitted_ms: now,
            deadline_ms: deadline,
            finished_ms: None,
            node: None,
            failure: None,
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tasks.insert(new.id, Task { status, stop: stop.clone(), end: None });
        self.make_room(&mut state);
        stop
    }

    /// Notes what came of a task: its model and its result as JSON.
    pub(super) fn end(&self, id: TaskId, outcome: Result<(String, Bytes), Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { tasks, ended, bytes } = &mut *state;
        let Some(task) = tasks.get_mut(&id).filter(|task| task.end.is_none()) else { return };
        task.status.finished_ms = Some(now_ms());
        let too_large = |have: usize| {
            let max = self.bytes_max;
            let detail = format!("the result has {have} bytes, {max} are kept; ask for it without respond-async");
            Problem::new(Code::InsufficientStorage, detail)
        };
        let (state_now, end) = match outcome {
            Ok((_, result)) if result.len() > self.bytes_max => {
                let problem = too_large(result.len());
                task.status.failure = Some(failure_of(&problem, "caller"));
                (TaskState::Failed, Err(problem))
            }
            Ok((model, result)) => {
                task.status.model = model;
                *bytes += result.len();
                (TaskState::Succeeded, Ok(result))
            }
            Err(error) => {
                let fault = error.fault().name();
                let problem = Problem::from(error);
                task.status.failure = Some(failure_of(&problem, fault));
                let state = if problem.code == Code::DeadlineExceeded { TaskState::Expired } else { TaskState::Failed };
                (state, Err(problem))
            }
        };
        task.status.failures = u32::from(end.is_err());
        task.status.state = state_now;
        task.end = Some(end);
        ended.push_back(id);
        self.make_room(&mut state);
    }

    /// Lets go what was kept for its time, and of what is too much those that ended first.
    fn make_room(&self, state: &mut State) {
        let retention = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = now_ms().saturating_sub(retention);
        while let Some(&id) = state.ended.front() {
            let ended_ms = state.tasks.get(&id).and_then(|task| task.status.finished_ms);
            let is_old = ended_ms.is_none_or(|ms| ms <= oldest_ms);
            if !is_old && state.ended.len() <= self.results_max && state.bytes <= self.bytes_max {
                return;
            }
            state.ended.pop_front();
            state.forget(id);
        }
    }

    fn with<T>(&self, id: TaskId, then: impl FnOnce(&mut State, TaskId) -> T) -> Result<T, Problem> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_room(&mut state);
        if state.tasks.contains_key(&id) {
            return Ok(then(&mut state, id));
        }
        // An id tells when its task came.
        let came = id.0.get_timestamp().map(|timestamp| timestamp.to_unix().0);
        let expired_before = (now_ms() / 1000).cast_unsigned().saturating_sub(self.retention.as_secs());
        if came.is_some_and(|seconds| seconds < expired_before) {
            let detail = format!("the result of task {id} was kept for its time and is gone");
            return Err(Problem::new(Code::Expired, detail));
        }
        let detail = format!("there is no task {id}; it may have been forgotten to keep newer results");
        Err(Problem::new(Code::TaskNotFound, detail))
    }

    pub(super) fn status(&self, id: TaskId) -> Result<TaskStatus, Problem> {
        self.with(id, |state, id| state.tasks[&id].status.clone())
    }

    pub(super) fn result(&self, id: TaskId) -> Result<Bytes, Problem> {
        self.with(id, |state, id| {
            let not_finished = || Problem::new(Code::NotFinished, format!("task {id} is not done yet")).retry_after(1);
            state.tasks[&id].end.clone().unwrap_or_else(|| Err(not_finished()))
        })?
    }

    /// Calls a task off, or forgets one that has ended.
    pub(super) fn cancel(&self, id: TaskId) -> Result<TaskStatus, Problem> {
        self.with(id, |state, id| {
            let task = state.tasks.get_mut(&id).expect("it is there: `with` looked under the same lock");
            if task.end.is_some() {
                let status = task.status.clone();
                state.ended.retain(|ended| *ended != id);
                state.forget(id);
                return status;
            }
            task.stop.cancel();
            task.status.state = TaskState::Cancelled;
            task.status.finished_ms = Some(now_ms());
            task.end = Some(Err(Problem::new(Code::Cancelled, format!("task {id} was cancelled"))));
            let status = task.status.clone();
            state.ended.push_back(id);
            status
        })
    }
}

impl State {
    fn forget(&mut self, id: TaskId) {
        if let Some(Task { end: Some(Ok(result)), .. }) = self.tasks.remove(&id) {
            self.bytes -= result.len();
        }
    }
}

fn failure_of(problem: &Problem, fault: &str) -> TaskFailure {
    TaskFailure {
        fault: fault.to_owned(),
        code: problem.code,
        detail: problem.detail.clone(),
        retryable: problem.code.is_retryable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(retention: Duration, results_max: usize, bytes_max: usize) -> Kept {
        Kept::new(&config::Http {
            result_retention: retention,
            results_max,
            results_bytes_max: bytes_max,
            ..config::Http::default()
        })
    }

    fn begin(kept: &Kept) -> (TaskId, CancellationToken) {
        let id = TaskId::new();
        let new = New { id, kind: TaskKind::Embed, model: "m".into(), priority: 4, deadline_ms: Some(5) };
        (id, kept.begin(new))
    }

    fn done(kept: &Kept, size: usize) -> TaskId {
        let (id, _) = begin(kept);
        kept.end(id, Ok(("m@1".into(), vec![b'x'; size].into())));
        id
    }

    const LONG: Duration = Duration::from_secs(3600);

    fn check(kept: &Kept, id: TaskId, want: Result<usize, Code>) {
        let result = kept.result(id).map(|bytes| bytes.len()).map_err(|problem| problem.code);
        assert_eq!(result, want);
    }

    #[test]
    fn a_result_is_there_when_its_task_has_ended() {
        let kept = kept(LONG, 10, 100);
        let (id, _) = begin(&kept);
        check(&kept, id, Err(Code::NotFinished));
        kept.end(id, Ok(("m@1".into(), vec![b'x'; 3].into())));
        check(&kept, id, Ok(3));
        let status = kept.status(id).unwrap();
        assert_eq!((status.state, status.model.as_str()), (TaskState::Succeeded, "m@1"));
    }

    #[test]
    fn the_oldest_results_make_room_and_what_runs_stays() {
        let kept = kept(LONG, 2, 100);
        let (running, _) = begin(&kept);
        let ids: Vec<_> = (0..3).map(|_| done(&kept, 1)).collect();
        check(&kept, ids[0], Err(Code::TaskNotFound));
        check(&kept, ids[1], Ok(1));
        check(&kept, running, Err(Code::NotFinished));
        let large = done(&kept, 100);
        check(&kept, ids[2], Err(Code::TaskNotFound));
        check(&kept, large, Ok(100));
        check(&kept, done(&kept, 101), Err(Code::InsufficientStorage));
    }

    #[test]
    fn results_go_after_their_time() {
        let kept = kept(Duration::ZERO, 10, 100);
        let id = done(&kept, 1);
        assert!(kept.status(id).is_err());
        let old = TaskId("018c0000-0000-7000-8000-000000000000".parse().unwrap());
        check(&kept, old, Err(Code::Expired));
    }

    #[test]
    fn a_cancelled_task_is_told_and_stays_so() {
        let kept = kept(LONG, 10, 100);
        let (id, stop) = begin(&kept);
        assert_eq!(kept.cancel(id).unwrap().state, TaskState::Cancelled);
        assert!(stop.is_cancelled());
        kept.end(id, Ok(("m@1".into(), Bytes::new())));
        check(&kept, id, Err(Code::Cancelled));
        kept.cancel(id).unwrap();
        check(&kept, id, Err(Code::TaskNotFound));
    }

    #[test]
    fn a_passed_deadline_is_told_apart_from_a_failure() {
        let kept = kept(LONG, 10, 100);
        let (id, _) = begin(&kept);
        kept.end(id, Err(Error::DeadlineExceeded { stage: crate::Stage::Queued }));
        assert_eq!(kept.status(id).unwrap().state, TaskState::Expired);
        let (id, _) = begin(&kept);
        kept.end(id, Err(Error::Draining));
        let status = kept.status(id).unwrap();
        assert_eq!(status.state, TaskState::Failed);
        assert_eq!(status.failure.unwrap().fault, "resource");
    }
}
