//! How work goes to a worker: attempts, offers, and its answer to them. Payloads ride inline or by reference. Types only.

use super::digest;
use super::id::TaskId;
use super::task::TaskInput;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One try at a task. Every claim raises the task's epoch (its fencing token), so a late word from an earlier try
/// changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt {
    /// The task.
    pub task: TaskId,
    /// Which claim of it.
    pub epoch: u64,
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.task, self.epoch)
    }
}

/// A value in the message, or where to get it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload<T> {
    /// The value.
    Inline(T),
    /// Its MessagePack encoding lies at the coordinator, under its digest.
    Blob(BlobRef),
}

/// A blob at the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// SHA-256 of its content, 64 lower-case hex digits.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

/// What a payload may take inside a message; the rest is room for the frame around it.
pub const INLINE_BYTES_MAX: usize = super::MESSAGE_BYTES_MAX - (64 << 10);

/// A value made ready to be sent: its digest, and its bytes when they must be put as a blob first.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed<T> {
    /// What goes into the frame.
    pub payload: Payload<T>,
    /// SHA-256 of the value's encoding: the same whether it goes inline or as a blob.
    pub sha256: String,
    /// The blob's content, when the value is too large to go inline.
    pub blob: Option<Vec<u8>>,
}

impl<T: Serialize + DeserializeOwned> Payload<T> {
    /// Makes a value ready to be sent.
    pub fn pack(value: T) -> Packed<T> {
        Self::pack_above(value, INLINE_BYTES_MAX)
    }

    /// The same with another limit for what goes inline.
    pub fn pack_above(value: T, inline_bytes_max: usize) -> Packed<T> {
        let bytes = digest::encode(&value);
        let sha256 = digest::sha256_hex(&bytes);
        if bytes.len() <= inline_bytes_max {
            return Packed { payload: Payload::Inline(value), sha256, blob: None };
        }
        let blob = BlobRef { sha256: sha256.clone(), bytes: bytes.len() as u64 };
        Packed { payload: Payload::Blob(blob), sha256, blob: Some(bytes) }
    }
}

/// A task to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Which try at which task.
    pub attempt: Attempt,
    /// `name@version`, always with the version.
    pub model: String,
    /// What is asked.
    pub input: Payload<TaskInput>,
    /// Time left, from the arrival of this frame: the two clocks differ.
    #[serde(default)]
    pub deadline_in_ms: Option<u64>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// W3C trace context of the caller.
    #[serde(default)]
    pub trace_parent: Option<String>,
}

/// The worker runs an offered task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Which.
    pub attempt: Attempt,
}

/// The worker does not take an offered task. It costs the task no try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// Which.
    pub attempt: Attempt,
    /// Why, for programs.
    pub reason: DeclineReason,
    /// Why, for people.
    #[serde(default)]
    pub detail: String,
}

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclineReason {
    /// More was offered than asked for.
    NoSlot,
    /// The model would not fit into memory.
    NoMemory,
    /// It does not have the model and cannot fetch it.
    ModelMissing,
    /// It takes nothing more.
    Draining,
    /// It has already settled this attempt, or holds a later one of the same task.
    Stale,
    /// It does not run this kind of task, or a reason of a later protocol.
    #[serde(other)]
    Unsupported,
}
