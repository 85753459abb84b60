//! Frames that steer a link or a worker and overtake work: settings, ack, cancel, drain, models, ping, bye. Types only.

use super::node::SessionToken;
use super::work::Attempt;
use serde::{Deserialize, Serialize};

/// How a link behaves. Chosen by the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Time between heartbeats. 5 s: cheap, and a silent node is noticed within a lease's third.
    pub heartbeat_ms: u64,
    /// How long a claim holds without being renewed. 30 s: six heartbeats, so that a slow network loses no work.
    pub lease_ms: u64,
    /// How long a report waits for its ack before it is sent again. 10 s: longer than any store's hiccup.
    pub resend_ms: u64,
    /// A fresh session token, when the last one is about to expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<SessionToken>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { heartbeat_ms: 5_000, lease_ms: 30_000, resend_ms: 10_000, token: None }
    }
}

/// A report is settled; the worker forgets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Of which attempt.
    pub attempt: Attempt,
    /// What came of it.
    pub outcome: AckOutcome,
}

/// What came of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckOutcome {
    /// It counts.
    Settled,
    /// The attempt was no longer the task's current one; the report is kept as evidence.
    StaleAttempt,
    /// This very attempt was settled before.
    Duplicate,
}

/// Stop an attempt. The worker answers with `failed` of class `cancelled`, or with the result if it was quicker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which.
    pub attempt: Attempt,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// Finish what runs, take nothing more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// `name@version`.
    pub model: String,
}

/// Are you there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Comes back in the pong.
    pub nonce: u64,
}

/// Why a link closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// For programs.
    pub reason: ByeReason,
    /// For people.
    #[serde(default)]
    pub detail: String,
}

/// Why a link closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByeReason {
    /// The sender stops; reconnect later.
    Shutdown,
    /// A message was no frame.
    Malformed,
    /// A frame came where it has no place, or no protocol version is shared.
    Protocol,
    /// The other side was silent for too long.
    Silent,
    /// A newer connection of the same node took over.
    Replaced,
    /// The token is not valid; log in again.
    Unauthorized,
    /// The node is banned.
    Banned,
    /// Another reason, or one of a later protocol.
    #[serde(other)]
    Other,
}
