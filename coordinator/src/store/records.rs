//! What the store's commands take and give: tasks and their attempts, nodes, models. Plain values, no behaviour but their names.

use coordinator_client::api::Code;
use coordinator_client::wire::{NodeId, TaskId, TaskKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One attempt at a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// The task.
    pub task: TaskId,
    /// The fencing token: the number of the claim, from 1.
    pub epoch: u64,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for a node.
    Queued,
    /// A node has it.
    Leased,
    /// Has a result.
    Succeeded,
    /// Failed in a way that no retry mends.
    Failed,
    /// Was cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// Failed on too many attempts; an operator should look.
    Quarantined,
}

impl State {
    /// All of them; the position is the stored number.
    pub const ALL: &[State] = &[
        State::Queued,
        State::Leased,
        State::Succeeded,
        State::Failed,
        State::Cancelled,
        State::Expired,
        State::Quarantined,
    ];

    /// Whether nothing more happens to it.
    pub fn is_final(self) -> bool {
        !matches!(self, State::Queued | State::Leased)
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Leased => "leased",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::Expired => "expired",
            State::Quarantined => "quarantined",
        }
    }
}

/// Who was to blame for an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request cannot be served as it is.
    Caller,
    /// The node.
    Worker,
    /// This side.
    Coordinator,
    /// The link broke.
    Network,
    /// The model.
    Model,
}

/// Why an attempt, or a task, failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Who was to blame.
    pub fault: Fault,
    /// What went wrong, for programs.
    pub code: Code,
    /// What went wrong, for people.
    pub detail: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

/// A task to be stored.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// Whose it is. One tenant, `default`, until there are accounts.
    pub tenant: String,
    /// What it asks.
    pub kind: TaskKind,
    /// `name@version`, resolved.
    pub model: String,
    /// Serialised input, or a reference to it.
    pub input: Vec<u8>,
    /// SHA-256 of kind, model and input: what makes two requests the same.
    pub request_sha256: [u8; 32],
    /// 0 to 9, higher first.
    pub priority: u8,
    /// When it is no longer wanted.
    pub deadline_ms: Option<i64>,
    /// A repeated submit with this key is the same task.
    pub idempotency_key: Option<String>,
    /// So many failed attempts put it into quarantine.
    pub failures_max: u32,
}

/// What came of a submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// The task's id: of the first submit when the idempotency key came before.
    pub id: TaskId,
    /// Whether the idempotency key came before.
    pub existing: bool,
}

/// A node asks for work.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Who asks.
    pub node: NodeId,
    /// Its connection.
    pub session: u64,
    /// What it can do. Conditions, never scores.
    pub wants: Vec<Want>,
    /// How many it takes.
    pub max: usize,
    /// How long it may keep them without a renewal.
    pub lease_ms: i64,
}

/// One thing a node can do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Want {
    /// What is asked.
    pub kind: TaskKind,
    /// `name@version`.
    pub model: String,
}

/// A task given to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Task and fencing token.
    pub attempt: Attempt,
    /// What it asks.
    pub kind: TaskKind,
    /// `name@version`.
    pub model: String,
    /// Serialised input.
    pub input: Vec<u8>,
    /// 0 to 9.
    pub priority: u8,
    /// When it is no longer wanted.
    pub deadline_ms: Option<i64>,
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Accepted: the task has succeeded by it.
    Settled,
    /// This very attempt was accepted before.
    Duplicate,
    /// Another attempt is the task's, or the task has ended otherwise. Nothing was touched.
    Stale,
}

/// What became of a task that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenBack {
    /// It waits again.
    Requeued,
    /// It failed for good.
    Failed,
    /// It failed too often.
    Quarantined,
    /// It was not this attempt's any more. Nothing was touched.
    Stale,
}

/// A node that held a task that was taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Its connection.
    pub session: u64,
    /// What it held.
    pub attempt: Attempt,
}

/// What became of a cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    /// The state after it: `cancelled`, or the final state that it already had.
    pub state: State,
    /// Who should be told to stop.
    pub holder: Option<Holder>,
}

/// What came of a reconnect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Leases that go on under the new connection.
    pub adopted: Vec<Attempt>,
    /// Attempts that are no longer the node's.
    pub refused: Vec<Attempt>,
    /// Tasks of the node that it no longer runs; they wait again, or are in quarantine.
    pub requeued: Vec<TaskId>,
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Leases that ran out.
    pub lost: Vec<Holder>,
    /// Tasks whose deadline passed.
    pub expired: Vec<TaskId>,
    /// Those of them that a node had.
    pub expired_holders: Vec<Holder>,
    /// Finished tasks that were kept for their time.
    pub forgotten: usize,
}

/// A task as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Whose it is.
    pub tenant: String,
    /// What it asks.
    pub kind: TaskKind,
    /// `name@version`.
    pub model: String,
    /// 0 to 9.
    pub priority: u8,
    /// Where it stands.
    pub state: State,
    /// Claims so far.
    pub epoch: u64,
    /// Failed attempts so far.
    pub failures: u32,
    /// When it came.
    pub submitted_ms: i64,
    /// Not given to a node before.
    pub not_before_ms: i64,
    /// When it is no longer wanted.
    pub deadline_ms: Option<i64>,
    /// When it ended.
    pub finished_ms: Option<i64>,
    /// Who has it, or had it last.
    pub node: Option<NodeId>,
    /// When the lease ends.
    pub lease_until_ms: Option<i64>,
    /// Why the last failed attempt failed.
    pub failure: Option<Failure>,
    /// Facts of the result (execution class, usage, digests, signature) as JSON.
    pub facts: Option<String>,
}

/// One attempt in a task's history.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AttemptRecord {
    /// The fencing token.
    pub epoch: u64,
    /// Who had it.
    pub node: NodeId,
    /// When it was claimed.
    pub started_ms: i64,
    /// When it ended; absent while it runs.
    pub ended_ms: Option<i64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its result was accepted.
    Settled,
    /// The node gave it back.
    GivenBack,
    /// The node was lost, or its lease ran out.
    Lost,
    /// The task was cancelled.
    Cancelled,
    /// The task's deadline passed.
    Expired,
}

/// How many tasks wait for one kind and model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Depth {
    /// What is asked.
    pub kind: TaskKind,
    /// `name@version`.
    pub model: String,
    /// Queued tasks.
    pub queued: u64,
    /// When the oldest came.
    pub oldest_ms: i64,
}

/// Which tasks to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only in this state.
    pub state: Option<State>,
    /// Only submitted before this one, for paging.
    pub before: Option<TaskId>,
    /// At most so many.
    pub limit: usize,
}

/// A node as it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Whose it is.
    pub tenant: String,
    /// ed25519.
    pub public_key: [u8; 32],
    /// For people.
    pub name: String,
    /// Where it is, in the operator's words.
    pub region: String,
    /// Hardware profile as JSON.
    pub profile: String,
    /// First registration.
    pub registered_ms: i64,
    /// Last sign of life that was stored.
    pub seen_ms: i64,
    /// Whether it may get work.
    pub state: NodeState,
    /// Attempts that were settled.
    pub settled: u64,
    /// Attempts that failed by its own fault.
    pub faulted: u64,
    /// Attempts that were lost with its connection.
    pub lost: u64,
}

/// Whether a node may get work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Yes.
    Active,
    /// It finishes what it has.
    Draining,
    /// No, and it may not log in.
    Banned,
}

/// A model version in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The manifest's JSON.
    pub manifest: String,
    /// SHA-256 of the manifest's JSON, in hex.
    pub digest: String,
    /// When it was registered.
    pub registered_ms: i64,
}

/// What came of registering a model version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is new.
    Created,
    /// The same was there.
    Unchanged,
    /// Another content was there under this name and version. Nothing was touched.
    Conflict,
}
