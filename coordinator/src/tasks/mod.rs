//! The verbs on tasks: submit, wait, settle, give back, cancel. Requests and reports come in, the store is asked, those who
//! watch and the scheduler are told. Never decides who runs what.

pub(crate) mod hub;
pub(crate) mod listen;
pub(crate) mod offer;
pub(crate) mod outcome;
pub(crate) mod payload;
pub(crate) mod relay;
pub(crate) mod texts;
pub(crate) mod view;

use crate::grid::Grid;
use crate::nodes::link::serves;
use crate::options::millis;
use crate::registry;
use crate::store::{self, Attempt, Failure, GivenBack, NewTask, State, Submitted, Want};
use coordinator_client::api::Code;
use coordinator_client::wire::digest::{encode, sha256_hex};
use coordinator_client::wire::work::INLINE_BYTES_MAX;
use coordinator_client::wire::{BlobRef, Cancel, Frame, NodeId, TaskId, TaskInput, TaskKind};
use hub::News;
use sha2::Digest;
use std::time::{Duration, Instant};

/// Whose tasks they are until there are accounts.
const TENANT: &str = "default";

/// Longest idempotency key and model name that are looked at.
const NAME_BYTES_MAX: usize = 256;

/// A task that somebody asks for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) task: TaskInput,
    /// With or without a version.
    pub(crate) model: String,
    pub(crate) priority: u8,
    /// Time from now.
    pub(crate) deadline: Option<Duration>,
    pub(crate) failures_max: Option<u32>,
    pub(crate) idempotency_key: Option<String>,
}

/// Why a task was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "model {0} is neither registered nor on any node that was ever connected; register it, or connect a node that has it"
    )]
    ModelNotFound(String),
    #[error("model {model} does {does}, not {asked}")]
    WrongTask { model: String, does: &'static str, asked: &'static str },
    #[error("{field} is longer than {NAME_BYTES_MAX} bytes")]
    TooLong { field: &'static str },
    #[error("failures_max is {got}, the most is {max}")]
    FailuresMax { got: u32, max: u32 },
    #[error("the input takes {bytes} bytes as stored, the most is {max}; split it")]
    TooLarge { bytes: u64, max: u64 },
    #[error("{max} callers are waiting for results; try again later")]
    Waiting { max: usize },
    #[error(transparent)]
    Blob(#[from] registry::blobs::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Grid {
    /// `name@version` for a name with or without version.
    pub(crate) fn resolve(&self, model: &str, kind: TaskKind) -> Result<String, Error> {
        if model.len() > NAME_BYTES_MAX {
            return Err(Error::TooLong { field: "model" });
        }
        let registered = |version: &registry::Version| (version.manifest.id(), version.manifest.task);
        let found = match model.split_once('@') {
            Some((name, version)) => self
                .registry
                .get(name, Some(version))
                .map(|version| registered(&version))
                .or_else(|| Some((model.to_owned(), self.presence.announced(model)?))),
            None => self.registry.get(model, None).map(|version| registered(&version)).or_else(|| {
                let id = self.presence.newest(model, kind)?;
                let task = self.presence.announced(&id)?;
                Some((id, task))
            }),
        };
        match found {
            None => Err(Error::ModelNotFound(model.into())),
            Some((id, task)) if serves(task, kind) => Ok(id),
            Some((id, task)) => Err(Error::WrongTask { model: id, does: task.name(), asked: kind.name() }),
        }
    }

    /// Stores a task. The caller chose the id, so that it could begin to watch before. Returns the resolved model too.
    pub(crate) async fn submit(&self, id: TaskId, mut request: Request) -> Result<(Submitted, String), Error> {
        let kind = request.task.kind();
        let model = self.resolve(&request.model, kind)?;
        let limits = &self.options.tasks;
        let failures_max = request.failures_max.unwrap_or(limits.failures_max);
        if failures_max > limits.failures_max_limit {
            return Err(Error::FailuresMax { got: failures_max, max: limits.failures_max_limit });
        }
        if request.idempotency_key.as_ref().is_some_and(|key| key.len() > NAME_BYTES_MAX) {
            return Err(Error::TooLong { field: "Idempotency-Key" });
        }
        let mut encoded = encode(&request.task);
        let request_sha256 = digest_of_request(kind, &request.model, &encoded);
        if offer::fix_seed(&mut request.task) {
            encoded = encode(&request.task);
        }
        let task = NewTask {
            id,
            tenant: TENANT.into(),
            kind,
            model: model.clone(),
            input: self.keep_input(id, encoded).await?,
            request_sha256,
            priority: request.priority,
            deadline_ms: request.deadline.map(|deadline| self.store.now_ms().saturating_add(millis(deadline))),
            idempotency_key: request.idempotency_key,
            failures_max,
        };
        let submitted = self.store.submit(task).await?;
        if !submitted.existing {
            self.metrics.submitted.increment(1);
            self.board.add(Want { kind, model: model.clone() });
        }
        Ok((submitted, model))
    }

    /// Stored form of an encoded input; a large one becomes a blob.
    pub(super) async fn keep_input(&self, id: TaskId, encoded: Vec<u8>) -> Result<Vec<u8>, Error> {
        if encoded.len() <= INLINE_BYTES_MAX {
            return Ok(payload::inline(&encoded));
        }
        let (bytes, max) = (encoded.len() as u64, self.options.registry.payload_bytes_max);
        if bytes > max {
            return Err(Error::TooLarge { bytes, max });
        }
        let sha256 = sha256_hex(&encoded);
        self.registry.blobs.refer(&sha256, id).await?;
        self.registry.blobs.put_bytes(&sha256, encoded.into()).await?;
        Ok(payload::reference(BlobRef { sha256, bytes }))
    }

    /// Watches a task from now on.
    pub(crate) fn watch(&self, id: TaskId) -> Result<hub::Watch, Error> {
        self.hub.watch(id).ok_or(Error::Waiting { max: self.options.tasks.waiting_max })
    }

    /// Cancels a task and tells the node that has it. `None` when there is no such task.
    pub(crate) async fn cancel(&self, id: TaskId, reason: &str) -> Result<Option<State>, store::Error> {
        let Some(cancelled) = self.store.cancel(id).await? else { return Ok(None) };
        if cancelled.state == State::Cancelled {
            self.metrics.cancelled.increment(1);
            self.hub.tell(id, News::State(State::Cancelled));
        }
        if let Some(holder) = cancelled.holder {
            self.stop(&holder, reason);
        }
        Ok(Some(cancelled.state))
    }

    /// Tells a node to stop an attempt that is no longer its.
    pub(crate) fn stop(&self, holder: &store::Holder, reason: &str) {
        if let Some(link) = self.presence.get(&holder.node) {
            link.send(Frame::Cancel(Cancel { attempt: to_wire(holder.attempt), reason: reason.into() }));
        }
    }

    /// Gives an attempt's task back, or fails it, and tells whom it concerns.
    pub(crate) async fn give_back(
        &self,
        attempt: Attempt,
        node: &NodeId,
        failure: Failure,
        counts: bool,
        want: Option<Want>,
    ) -> Result<GivenBack, store::Error> {
        let delay = self.backoff(attempt.epoch);
        let given_back = self.store.give_back(attempt, node, failure, millis(delay), counts).await?;
        let state = match given_back {
            GivenBack::Requeued => State::Queued,
            GivenBack::Failed => State::Failed,
            GivenBack::Quarantined => State::Quarantined,
            GivenBack::Stale => return Ok(given_back),
        };
        self.hub.tell(attempt.task, News::State(state));
        match want {
            Some(want) if state == State::Queued => self.board.add_later(want, Instant::now() + delay),
            _ => self.board.wake_and_resync(),
        }
        Ok(given_back)
    }

    /// How long a task waits after its n-th attempt failed: random below a bound that doubles, so that what failed
    /// together does not come back together.
    fn backoff(&self, epoch: u64) -> Duration {
        let schedule = &self.options.schedule;
        let doublings = u32::try_from(epoch.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
        let bound = schedule.backoff.saturating_mul(1 << doublings).min(schedule.backoff_max);
        bound.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Tasks were taken from nodes that are gone: they wait again, or are in quarantine. Tells whom it concerns.
    pub(crate) async fn taken_back(&self, tasks: &[TaskId]) {
        if tasks.is_empty() {
            return;
        }
        self.metrics.lost.increment(tasks.len() as u64);
        self.board.wake_and_resync();
        for id in tasks.iter().filter(|id| self.hub.cares(**id)) {
            if let Ok(Some(task)) = self.store.task(*id).await {
                self.hub.tell(*id, News::State(task.state));
            }
        }
    }
}

/// The failure of a task that broke a rule of ours and not of the node's.
pub(crate) fn internal(detail: impl Into<String>) -> Failure {
    Failure { fault: store::Fault::Coordinator, code: Code::Internal, detail: detail.into(), retryable: false }
}

/// What makes two requests the same: kind, model as it was asked for, and input.
fn digest_of_request(kind: TaskKind, model: &str, encoded: &[u8]) -> [u8; 32] {
    let mut hash = sha2::Sha256::new();
    for part in [kind.name().as_bytes(), model.as_bytes(), encoded] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The store's attempt as it crosses the link.
pub(crate) fn to_wire(attempt: Attempt) -> coordinator_client::wire::Attempt {
    coordinator_client::wire::Attempt { task: attempt.task, epoch: attempt.epoch }
}

/// The link's attempt as the store has it.
pub(crate) fn from_wire(attempt: coordinator_client::wire::Attempt) -> Attempt {
    Attempt { task: attempt.task, epoch: attempt.epoch }
}
