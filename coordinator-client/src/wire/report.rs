//! What comes of work: progress, results with what is needed to check them, failures with who is at fault. Types only.

use super::digest::Transcript;
use super::id::NodeId;
use super::task::{TaskOutput, Usage};
use super::text::Piece;
use super::work::{Attempt, Payload};
use crate::api::Code;
use serde::{Deserialize, Deserializer, Serialize};

/// A part of a result, or how far a task is. Not acknowledged; may be lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Of which attempt.
    pub attempt: Attempt,
    /// Counts from 0; a gap says that something was lost. A new connection begins again at 0, with all that the attempt
    /// has told.
    pub sequence: u64,
    /// 0 to 1, when that is known.
    #[serde(default)]
    pub fraction: Option<f32>,
    /// The next piece of a text.
    #[serde(default)]
    pub piece: Option<Piece>,
}

/// A finished task. Held by the worker until acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Of which attempt.
    pub attempt: Attempt,
    /// What came out.
    pub output: Payload<TaskOutput>,
    /// What it took.
    pub usage: Usage,
    /// Where the time went.
    #[serde(default)]
    pub timings: Timings,
    /// The model that ran, `name@version`.
    pub model: String,
    /// Digest over the model's files, hex.
    pub model_digest: String,
    /// The class in which results are comparable.
    pub execution_class: String,
    /// How many requests shared the batch; 0 when unknown.
    #[serde(default)]
    pub batch_size: u32,
    /// SHA-256 of the input's MessagePack encoding, hex.
    pub input_sha256: String,
    /// SHA-256 of the output's MessagePack encoding, hex.
    pub output_sha256: String,
    /// The node's ed25519 signature over [`TaskResult::signed_bytes`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl TaskResult {
    /// What the node signs, so that a third party can check later who computed what from what: a [`Transcript`] of
    /// domain `neurogrid-result-v1` and the parts node id, task id (16 bytes), epoch (u64 little-endian), model, model
    /// digest, execution class, batch size (u32 little-endian), input digest, output digest (both as hex text), input
    /// tokens and output tokens (u64 little-endian).
    pub fn signed_bytes(&self, node: &NodeId) -> Vec<u8> {
        Transcript::new("neurogrid-result-v1")
            .part(node.0.as_bytes())
            .part(self.attempt.task.0.as_bytes())
            .part(&self.attempt.epoch.to_le_bytes())
            .part(self.model.as_bytes())
            .part(self.model_digest.as_bytes())
            .part(self.execution_class.as_bytes())
            .part(&self.batch_size.to_le_bytes())
            .part(self.input_sha256.as_bytes())
            .part(self.output_sha256.as_bytes())
            .part(&self.usage.input_tokens.to_le_bytes())
            .part(&self.usage.output_tokens.to_le_bytes())
            .into_bytes()
    }
}

/// Where a task's time went, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// Waiting, fetching and loading a model included.
    pub queue_us: u64,
    /// Tokenising, decoding, checking.
    pub prepare_us: u64,
    /// On the device, the whole batch.
    pub device_us: u64,
    /// Pooling, softmax, encoding.
    pub finish_us: u64,
    /// From arrival at the worker to the result.
    pub total_us: u64,
}

/// A task that was not done. Held by the worker until acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// Which attempt.
    pub attempt: Attempt,
    /// What is at fault.
    pub class: FailureClass,
    /// Whether another node, or this one later, may do it.
    pub retryable: bool,
    /// What went wrong, for programs. A code of a later protocol is read as `internal`.
    #[serde(deserialize_with = "known_code")]
    pub code: Code,
    /// What went wrong, for people.
    pub detail: String,
}

fn known_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(Code::ALL.iter().copied().find(|code| code.name() == name).unwrap_or(Code::Internal))
}

/// What is at fault. Only the worker's own faults touch its rating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The caller: every node would refuse it.
    Input,
    /// No room, time or connection for it here: given back.
    Resource,
    /// The model's files or its outputs.
    Model,
    /// The device.
    Hardware,
    /// Nobody: it was cancelled.
    Cancelled,
    /// The worker's program, or a class of a later protocol.
    #[serde(other)]
    Internal,
}
