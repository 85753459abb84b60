//! Everything that can become of a task but its answer: which sentence the caller reads, which code, and who was at
//! fault. Converted at the edges: to a [`Problem`] for HTTP, to a [`Fault`] for the link.

use std::sync::Arc;

use coordinator_client::api::{Code, Problem};
use models::task::generate::language::PromptError;
use models::task::generate::{chat, constraint, tools};
use models::{engine, task};

use crate::generate::Refusal;
use crate::generate::writer::Refused;
use crate::{cache, device};

/// Why a task or a command was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Every permit is taken.
    #[error("all {capacity} places are taken; come back in {retry_after_s} s")]
    QueueFull {
        /// Tasks that may be inside at once.
        capacity: usize,
        /// When a place is likely to be free, judged by how fast tasks have been finishing.
        retry_after_s: u64,
    },
    /// The worker is on its way down.
    #[error("the worker is shutting down; send the task elsewhere")]
    Draining,
    /// The owner wants the machine for something else.
    #[error("the worker is paused by its owner; send the task elsewhere")]
    Paused,
    /// The deadline passed before the answer was there.
    #[error("the deadline passed while the task was {stage}; allow more time or lower the load")]
    DeadlineExceeded {
        /// Where the task was.
        stage: Stage,
    },
    /// The caller's request does not fit the model, or the model broke its promise.
    #[error(transparent)]
    Task(#[from] task::Error),
    /// A field of the request is out of range.
    #[error("{0}")]
    Request(String),
    /// An output holds NaN or infinity and is wanted as JSON, which has no such numbers.
    #[error("output {output:?} holds values that are not finite; ask for it as raw bytes at `/v2/models/NAME/infer`")]
    NotJson {
        /// The model's name for it.
        output: String,
    },
    /// The model is not here, or could not be brought here.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The model's files are here and could not be made into an engine.
    #[error("{model} could not be loaded on {device}: {error}")]
    Load {
        /// `name@version`.
        model: String,
        /// Where.
        device: engine::Device,
        /// What the backend says.
        error: Arc<models::Error>,
    },
    /// No device can take the model.
    #[error(transparent)]
    Placement(#[from] device::placement::Error),
    /// The device has no room for the model, now.
    #[error(transparent)]
    Memory(#[from] device::ledger::Short),
    /// The engine refused or failed.
    #[error("{model}: {error}")]
    Engine {
        /// `name@version`.
        model: String,
        /// What it says.
        error: engine::Error,
    },
    /// What is asked does not become a prompt.
    #[error("{model}: {error}")]
    Prompt {
        /// `name@version`.
        model: String,
        /// Why not.
        error: PromptError,
    },
    /// The tools cannot be used.
    #[error("{model}: {error}")]
    Tools {
        /// `name@version`.
        model: String,
        /// Why not.
        error: tools::Error,
    },
    /// The form that is demanded cannot be followed.
    #[error("{model}: {error}")]
    Form {
        /// `name@version`.
        model: String,
        /// Why not.
        error: constraint::Error,
    },
    /// The text cannot be written, or not now.
    #[error("{model}: {refused}")]
    Refused {
        /// `name@version`.
        model: String,
        /// Why not, with figures.
        refused: Refused,
    },
    /// The text could not be written on.
    #[error("{model}: {detail}")]
    NotWritten {
        /// `name@version`.
        model: String,
        /// What the model gave.
        detail: String,
    },
    /// The engine panicked on the batch that this task was in, or while it was loaded.
    #[error("{model} crashed and is being loaded again; try once more")]
    Panicked {
        /// `name@version`.
        model: String,
    },
    /// The engine panicked too often.
    #[error(
        "{model} crashed {times} times without an answer between and is out of use; unload it to let it be loaded afresh"
    )]
    Broken {
        /// `name@version`.
        model: String,
        /// How often.
        times: u32,
    },
    /// The model was unloaded while the task waited for it.
    #[error("{model} was unloaded while the task waited; try again")]
    Unloaded {
        /// `name@version`.
        model: String,
    },
    /// The model is not loaded.
    #[error("{model} is not loaded; `GET /api/models` lists what is")]
    NotLoaded {
        /// As asked.
        model: String,
    },
    /// A thread that should be there is not: our own fault.
    #[error("{0}; this is a fault of the worker, please report it")]
    Internal(String),
}

/// Where a task is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its model is fetched or loaded.
    Loading,
    /// It becomes tokens or tensors.
    Preparing,
    /// It waits for the device, or is on it.
    Queued,
    /// The device's outputs become the reply.
    Finishing,
    /// Its text is written.
    Writing,
}

impl Stage {
    pub(crate) fn from_u8(value: u8) -> Self {
        [Stage::Loading, Stage::Preparing, Stage::Queued, Stage::Finishing, Stage::Writing][usize::from(value).min(4)]
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Loading => "waiting for its model",
            Stage::Preparing => "being prepared",
            Stage::Queued => "waiting for the device",
            Stage::Finishing => "being finished",
            Stage::Writing => "being written",
        })
    }
}

/// Who was at fault when a task failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The request cannot be served by anybody.
    Caller,
    /// This worker's program.
    Worker,
    /// The model's files.
    Model,
    /// The device.
    Hardware,
    /// Nobody: there was no room, no time, or the worker is going. Another node may do it.
    Resource,
    /// Nobody: it was called off.
    Cancelled,
}

impl Fault {
    /// All of them.
    pub const ALL: &[Fault] =
        &[Fault::Caller, Fault::Worker, Fault::Model, Fault::Hardware, Fault::Resource, Fault::Cancelled];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Caller => "caller",
            Fault::Worker => "worker",
            Fault::Model => "model",
            Fault::Hardware => "hardware",
            Fault::Resource => "resource",
            Fault::Cancelled => "cancelled",
        }
    }
}

impl Error {
    /// Who was at fault.
    pub fn fault(&self) -> Fault {
        match self.code() {
            Code::QueueFull
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::OutOfMemory
            | Code::InsufficientStorage
            | Code::SourceFailed => Fault::Resource,
            Code::DeviceFailed => Fault::Hardware,
            Code::ModelBroken | Code::ModelRefused | Code::DigestMismatch => Fault::Model,
            Code::Cancelled => Fault::Cancelled,
            Code::Internal => Fault::Worker,
            code if code.status() < 500 => Fault::Caller,
            _ => Fault::Worker,
        }
    }

    /// The code that programs read.
    pub fn code(&self) -> Code {
        match self {
            Error::QueueFull { .. } => Code::QueueFull,
            Error::Draining | Error::Paused | Error::Unloaded { .. } => Code::Unavailable,
            Error::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Error::Task(error) => task_code(error),
            Error::Request(_) => Code::InvalidInput,
            Error::NotJson { .. } => Code::NotFinite,
            Error::Cache(error) => error.code(),
            Error::Load { error, .. } => load_code(error),
            Error::Placement(_) | Error::Memory(_) => Code::OutOfMemory,
            Error::Engine { error, .. } => engine_code(error),
            Error::Prompt { error, .. } => prompt_code(error),
            Error::Tools { error: tools::Error::Unknown, .. } => Code::WrongTask,
            Error::Form { error, .. } if !error.is_callers() => Code::WrongTask,
            Error::Tools { .. } | Error::Form { .. } => Code::InvalidInput,
            Error::Refused { refused, .. } => refused_code(refused),
            Error::NotWritten { .. } => Code::ModelBroken,
            Error::Panicked { .. } => Code::Internal,
            Error::Broken { .. } => Code::ModelBroken,
            Error::NotLoaded { .. } => Code::ModelNotFound,
            Error::Internal(_) => Code::Internal,
        }
    }
}

fn task_code(error: &task::Error) -> Code {
    match error {
        task::Error::WrongTask { .. } => Code::WrongTask,
        task::Error::TooLong { .. } => Code::TooLong,
        task::Error::Type { .. } => Code::WrongType,
        task::Error::Shape { .. } => Code::WrongShape,
        task::Error::NotFinite { .. } => Code::NotFinite,
        task::Error::BrokenOutput { .. } => Code::ModelBroken,
        task::Error::Count { .. }
        | task::Error::TokenId { .. }
        | task::Error::Name { .. }
        | task::Error::Output { .. }
        | task::Error::Prompt { .. }
        | task::Error::Range { .. }
        | task::Error::Tokenizer { .. } => Code::InvalidInput,
    }
}

fn prompt_code(error: &PromptError) -> Code {
    match error {
        PromptError::NoTemplate => Code::WrongTask,
        PromptError::Chat(chat::Error::Template(_)) => Code::ModelBroken,
        PromptError::Chat(chat::Error::Refused(_)) | PromptError::Tokens(_) | PromptError::Empty => Code::InvalidInput,
    }
}

fn refused_code(refused: &Refused) -> Code {
    match refused {
        Refused::Refusal(Refusal::QueueFull { .. }) => Code::QueueFull,
        Refused::Refusal(Refusal::Context { .. }) => Code::TooLong,
        Refused::Refusal(Refusal::Memory { .. }) => Code::OutOfMemory,
        Refused::Refusal(Refusal::Late { .. }) => Code::DeadlineExceeded,
        Refused::Refusal(Refusal::Empty | Refusal::Complete { .. } | Refusal::Priority(_))
        | Refused::Sampling(_)
        | Refused::Token { .. } => Code::InvalidInput,
    }
}

fn load_code(error: &models::Error) -> Code {
    match error {
        models::Error::OutOfMemory { .. } => Code::OutOfMemory,
        _ => Code::ModelRefused,
    }
}

fn engine_code(error: &engine::Error) -> Code {
    match error {
        engine::Error::Input(_) => Code::InvalidInput,
        engine::Error::OutOfMemory { .. } => Code::OutOfMemory,
        engine::Error::Device { .. } => Code::DeviceFailed,
        engine::Error::Backend { .. } => Code::ModelBroken,
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = Problem::new(error.code(), error.to_string());
        match error {
            Error::QueueFull { retry_after_s, .. } => problem.retry_after(retry_after_s),
            // Long enough for a restart, or for a model to be loaded again.
            Error::Draining | Error::Paused => problem.retry_after(30),
            // About how long a text takes.
            Error::Refused { refused: Refused::Refusal(refusal), .. } if refusal.is_transient() => {
                problem.retry_after(5)
            }
            Error::Unloaded { .. } | Error::Panicked { .. } => problem.retry_after(1),
            _ => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: Error, code: Code, fault: Fault) {
        assert_eq!((error.code(), error.fault()), (code, fault), "{error}");
        let retry_after = matches!(code, Code::QueueFull);
        let problem = Problem::from(error);
        assert!(!retry_after || problem.retry_after_s.is_some());
        assert_eq!(problem.status, code.status());
    }

    #[test]
    fn every_failure_names_who_was_at_fault() {
        let model = || "m@1".to_owned();
        check(Error::QueueFull { capacity: 1, retry_after_s: 2 }, Code::QueueFull, Fault::Resource);
        check(Error::Draining, Code::Unavailable, Fault::Resource);
        check(Error::DeadlineExceeded { stage: Stage::Queued }, Code::DeadlineExceeded, Fault::Resource);
        check(task::Error::NotFinite { name: "x".into() }.into(), Code::NotFinite, Fault::Caller);
        let broken = task::Error::BrokenOutput { model: model(), detail: "NaN".into() };
        check(broken.into(), Code::ModelBroken, Fault::Model);
        let gone = engine::Error::Device { device: engine::Device::Cpu, detail: "gone".into() };
        check(Error::Engine { model: model(), error: gone }, Code::DeviceFailed, Fault::Hardware);
        let load = |error| Error::Load { model: model(), device: engine::Device::Cuda(0), error: Arc::new(error) };
        let full =
            models::Error::OutOfMemory { device: engine::Device::Cuda(0), model: model(), detail: "full".into() };
        check(load(full), Code::OutOfMemory, Fault::Resource);
        let broken = models::Error::Tensor { name: "w".into(), detail: "is missing".into() };
        check(load(broken), Code::ModelRefused, Fault::Model);
        let input = engine::Error::Input("no".into());
        check(Error::Engine { model: model(), error: input }, Code::InvalidInput, Fault::Caller);
        check(Error::Panicked { model: model() }, Code::Internal, Fault::Worker);
        check(Error::Broken { model: model(), times: 3 }, Code::ModelBroken, Fault::Model);
        let refused = |refusal| Error::Refused { model: model(), refused: Refused::Refusal(refusal) };
        check(refused(Refusal::QueueFull { waiting: 3 }), Code::QueueFull, Fault::Resource);
        let context = Refusal::Context { prompt: 9, new_tokens_max: 9, context_max: 10 };
        check(refused(context), Code::TooLong, Fault::Caller);
        check(Error::Prompt { model: model(), error: PromptError::NoTemplate }, Code::WrongTask, Fault::Caller);
        let broken = chat::Error::Template("no end".into());
        check(Error::Prompt { model: model(), error: broken.into() }, Code::ModelBroken, Fault::Model);
    }
}
