//! What worker and coordinator tell each other about themselves: hello, welcome, heartbeat. Types only.

use super::control::Settings;
use super::id::NodeId;
use super::task::TaskKind;
use super::work::Attempt;
use serde::{Deserialize, Serialize};

/// The first frame of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that it speaks, best first.
    pub protocols: Vec<u16>,
    /// Who it is; must be the node that the session's token was given to.
    pub node: NodeId,
    /// Differs at every start of the worker process. A connection is (node, session epoch): a restarted worker does
    /// not inherit the leases of the process before it.
    pub session_epoch: u64,
    /// A name for people.
    pub name: String,
    /// Where it says it stands.
    #[serde(default)]
    pub region: String,
    /// Program and version, e.g. `neurogrid/0.1.0`.
    pub agent: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Hardware, for people and for placement; as `GET /api/hardware/profile` gives it.
    #[serde(default)]
    pub profile: serde_json::Value,
    /// Attempts that it still holds: running, or finished and not acknowledged.
    #[serde(default)]
    pub running: Vec<Attempt>,
}

/// What a worker can do. Required capabilities are conditions of a claim, never scores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Kinds of task that it runs.
    pub kinds: Vec<TaskKind>,
    /// Models that it has in its cache or loaded.
    pub models: Vec<ModelHeld>,
    /// Whether it fetches models that it lacks from the coordinator's registry.
    #[serde(default)]
    pub can_fetch: bool,
    /// Memory free for models, of the roomiest device, in bytes; says whether a model may fit.
    #[serde(default)]
    pub memory_bytes_free: u64,
    /// How many attempts it holds at once for this coordinator, a small prefetch included; see [`Heartbeat::slots`].
    pub slots: u32,
}

/// A model that a worker has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelHeld {
    /// `name@version`.
    pub id: String,
    /// What it does.
    pub task: TaskKind,
    /// Whether it is in device memory, ready to answer.
    pub loaded: bool,
    /// The class in which its results are comparable, once loaded, e.g. `cpu-f32-avx512`.
    #[serde(default)]
    pub execution_class: Option<String>,
}

/// The coordinator's answer to a [`Hello`]. Offers follow it, never precede it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version that the link speaks from here on.
    pub protocol: u16,
    /// How the link behaves.
    pub settings: Settings,
    /// The coordinator's clock, milliseconds since 1970.
    pub server_time_ms: u64,
    /// Attempts of [`Hello::running`] whose leases live on.
    #[serde(default)]
    pub adopted: Vec<Attempt>,
    /// Attempts of [`Hello::running`] that are no longer this worker's; it stops them.
    #[serde(default)]
    pub refused: Vec<Attempt>,
}

/// How a worker is. Sent every [`Settings::heartbeat_ms`], and at once when its slots or models change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// How many attempts it holds at once for this coordinator; 0 while it drains or is paused. The coordinator keeps
    /// what it offered and what is neither declined nor reported yet at or below this, so no credit goes astray: a
    /// `decline`, `result` or `failed` frees a place at once.
    pub slots: u32,
    /// How many of them were free when this was written.
    pub slots_free: u32,
    /// Attempts whose leases this renews: running, or finished and not acknowledged.
    pub running: Vec<Attempt>,
    /// Jobs waiting inside the worker, its local callers' included.
    #[serde(default)]
    pub queue: u32,
    /// Whether it finishes what it has and takes nothing more.
    #[serde(default)]
    pub draining: bool,
    /// Share of time that the busiest device worked, 0 to 1.
    #[serde(default)]
    pub utilisation: f32,
    /// Memory free for models, of the roomiest device, in bytes.
    #[serde(default)]
    pub memory_bytes_free: u64,
    /// The hottest device, in °C, where that can be read.
    #[serde(default)]
    pub temperature_c: Option<f32>,
    /// Its own view of its health, 0 to 100.
    #[serde(default)]
    pub health_score: u8,
    /// The models that it has, when they changed since the last hello or heartbeat that named them.
    #[serde(default)]
    pub models: Option<Vec<ModelHeld>>,
    /// Its clock, milliseconds since 1970; shows skew.
    #[serde(default)]
    pub time_ms: u64,
}
