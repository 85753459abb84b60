//! A coordinator's tasks on the worker's own road: offers become requests, replies become outcomes, errors name who was
//! at fault. Also what a coordinator is told of models, load and health. Decides nothing about leases.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use coordinator_client::api::{Code, Problem};
use coordinator_client::client::{self, Access, Failure, Offered, Outcome, Pieces};
use coordinator_client::session::Facts;
use coordinator_client::wire::{Capabilities, FailureClass, ModelHeld, TaskKind};
use models::manifest::Task;

use crate::cache::{Registry, Source};
use crate::convert::Asked;
use crate::device::resident::Condition;
use crate::service::{Model, NewTask};
use crate::text::{NewText, Next};
use crate::{Error, Fault, convert, service};

use super::Machine;

/// The worker as one grid sees it.
pub(super) struct Host {
    worker: service::Handle,
    machine: Arc<dyn Machine>,
    slots_max: Option<u32>,
    /// Among how many grids the worker's places are shared.
    share: usize,
    /// Callers of one grid share what was computed of their prompts, and nobody else does.
    salt: u64,
}

impl Host {
    pub(super) fn new(
        worker: service::Handle,
        machine: Arc<dyn Machine>,
        slots_max: Option<u32>,
        share: usize,
    ) -> Self {
        Self { worker, machine, slots_max, share, salt: RandomState::new().hash_one(()) }
    }

    /// Has a model at hand, out of this grid's registry where it is not: no other grid is asked.
    async fn fetch(&self, model: &str, access: &Access, deadline: Option<Instant>) -> Result<(), Failure> {
        if self.worker.cache().get(model).await.is_ok() {
            return Ok(());
        }
        let tokens = access.clone();
        let registry = Registry::with_tokens(access.url().as_str(), move || {
            let access = tokens.clone();
            async move { access.token().await.map_err(|error| error.to_string()) }
        });
        let pull = self.worker.cache().pull(Source::Registry { registry, model: model.into() });
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            fetched = pull.done() => fetched.map(drop).map_err(|error| of_error(Error::Cache(error))),
            () = late => {
                let detail = format!("the deadline passed while {model} was fetched; it is fetched on, try again");
                Err(of_problem(FailureClass::Resource, Problem::new(Code::DeadlineExceeded, detail)))
            }
        }
    }

    /// Tasks that this grid may have here at once. Half of the worker's places, so that its local callers always find
    /// one, shared among its grids; the batches of a device fill long before that. None while the door is closed or a
    /// card is broken.
    fn slots(&self) -> u32 {
        let service::Slots { capacity, .. } = self.worker.slots();
        let status = self.worker.status();
        if status.state != crate::admission::State::Open || !status.is_fit {
            return 0;
        }
        let half = u32::try_from(capacity.div_ceil(2)).unwrap_or(u32::MAX);
        let all = self.slots_max.unwrap_or(half).min(u32::try_from(capacity).unwrap_or(u32::MAX));
        (all / u32::try_from(self.share).unwrap_or(u32::MAX)).max(1)
    }
}

#[async_trait::async_trait]
impl client::Host for Host {
    fn facts(&self) -> Facts {
        let status = self.worker.status();
        let free = status.devices.iter().filter(|device| !device.is_failing);
        let free = free.map(|device| device.memory_bytes.saturating_sub(device.reserved_bytes));
        let capabilities = Capabilities {
            kinds: TaskKind::ALL.to_vec(),
            models: self.worker.models().iter().map(held).collect(),
            can_fetch: true,
            memory_bytes_free: free.max().unwrap_or(0),
            slots: self.slots(),
        };
        let queue: usize = status.devices.iter().map(|device| device.jobs).sum();
        Facts {
            capabilities,
            queue: u32::try_from(queue).unwrap_or(u32::MAX),
            utilisation: self.machine.utilisation(),
            temperature_c: self.machine.temperature_c(),
            health_score: self.machine.health_score(),
        }
    }

    fn profile(&self) -> serde_json::Value {
        self.machine.profile()
    }

    async fn execute(&self, offered: Offered, access: &Access, pieces: &Pieces) -> Result<Outcome, Failure> {
        let Offered { attempt: _, model, input, deadline, priority, trace_parent: _ } = offered;
        let (kind, priority) = (input.kind(), priority_of(priority));
        let asked = convert::asked(input).map_err(|problem| of_problem(FailureClass::Input, problem))?;
        let input = match asked {
            Asked::Text(input) => input,
            Asked::Answer(task) => {
                let request = convert::request_of(task).map_err(|problem| of_problem(FailureClass::Input, problem))?;
                self.fetch(&model, access, deadline).await?;
                let done = self.worker.execute(NewTask { model, request, priority, deadline }).await;
                return done.map(convert::outcome_of).map_err(of_error);
            }
        };
        self.fetch(&model, access, deadline).await?;
        let text = NewText { priority, deadline, salt: self.salt, ..NewText::new(model, input) };
        let mut writing = self.worker.write(text).await.map_err(of_error)?;
        while let Some(next) = writing.next().await {
            match next.map_err(of_error)? {
                Next::Piece(piece) => pieces.push(piece),
                Next::End(done) => return Ok(convert::outcome_of_text(kind, *done)),
            }
        }
        Err(of_error(Error::Internal("a text broke off without a word".into())))
    }

    async fn load(&self, model: &str, access: &Access) -> Result<(), Failure> {
        self.fetch(model, access, None).await?;
        self.worker.load(model).await.map(drop).map_err(of_error)
    }

    async fn unload(&self, model: &str) -> Result<(), Failure> {
        self.worker.unload(model).await.map_err(of_error)
    }

    fn draining(&self, reason: &str) {
        tracing::info!(reason, "the coordinator wants this worker to take nothing more from it");
    }
}

fn held(model: &Model) -> ModelHeld {
    let manifest = &model.cached.manifest;
    let ready = model.loaded.as_ref().filter(|loaded| loaded.condition == Condition::Ready);
    ModelHeld {
        id: manifest.id(),
        task: match manifest.task {
            Task::Embed => TaskKind::Embed,
            Task::Rerank => TaskKind::Rerank,
            Task::Classify => TaskKind::Classify,
            Task::Infer => TaskKind::Infer,
            Task::Generate => TaskKind::Generate,
        },
        loaded: ready.is_some(),
        execution_class: ready.map(|loaded| loaded.info.execution_class.clone()),
    }
}

fn priority_of(priority: i32) -> u8 {
    u8::try_from(priority.clamp(0, i32::from(NewTask::PRIORITY_MAX))).expect("it was clamped")
}

fn of_error(error: Error) -> Failure {
    let class = match error.fault() {
        Fault::Caller => FailureClass::Input,
        Fault::Worker => FailureClass::Internal,
        Fault::Model => FailureClass::Model,
        Fault::Hardware => FailureClass::Hardware,
        Fault::Resource => FailureClass::Resource,
        Fault::Cancelled => FailureClass::Cancelled,
    };
    of_problem(class, Problem::from(error))
}

/// A model that is not here is no fault of the caller's: the coordinator offered it, another node may have it.
fn of_problem(class: FailureClass, Problem { code, detail, .. }: Problem) -> Failure {
    let elsewhere = matches!(code, Code::ModelNotFound);
    let class = if elsewhere { FailureClass::Resource } else { class };
    let another_may = matches!(class, FailureClass::Resource | FailureClass::Hardware | FailureClass::Internal);
    let retryable = another_may && code != Code::DeadlineExceeded;
    Failure { class, retryable, code, detail }
}
