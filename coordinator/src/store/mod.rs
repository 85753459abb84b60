//! What the coordinator remembers: tasks and their attempts, nodes, models. Commands go in, facts come out; every
//! command is atomic, and durable when it returns; claims and renewals less so. The store never talks to a node and never decides who should run what.
//!
//! # Life of a task
//! ```text
//! submit -> queued -> claim -> leased -> finish -> succeeded
//!             ^                  |
//!             +-- give_back, release, sweep (lease over) --+-> failed       not retryable
//!                                                          +-> quarantined  failed too often
//! queued or leased -> cancel -> cancelled;  deadline passed (sweep) -> expired
//! ```
//! # Fencing
//! Every claim raises the task's epoch. `renew`, `finish` and `give_back` carry (task, epoch) and touch nothing unless the
//! task is leased under this very epoch by this very node. So a task ends once, however often its result comes.

use coordinator_client::api::Code;
use coordinator_client::wire::{NodeId, TaskId};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[cfg(test)]
mod conformance;
mod memory;
mod records;
mod sqlite;

pub use memory::Memory;
pub use records::*;
pub use sqlite::{Options as SqliteOptions, Sqlite};

/// The store's clock. Tests move it by hand.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// Milliseconds since the Unix epoch, set by a test.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        match self {
            Clock::System => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        }
    }
}

/// Limits that every store keeps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tasks queued or leased at one time; a further one is refused. Bounds the disk that callers can take.
    pub tasks_open_max: usize,
    /// How long a finished task and its result are kept.
    pub retention_ms: i64,
    /// How long a node that failed a task is passed over for it, while others may take it.
    pub exclusion_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tasks_open_max: 1_000_000, retention_ms: 86_400_000, exclusion_ms: 10_000 }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key came with another request before.
    #[error("idempotency key {key:?} was used for another request (task {task}); use a new key")]
    IdempotencyConflict {
        /// The key.
        key: String,
        /// The first request's task.
        task: TaskId,
    },
    /// The id is in use.
    #[error("task {0} exists")]
    Exists(TaskId),
    /// Too many open tasks.
    #[error("{max} tasks are open, no more are taken; try again later")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The engine failed; the command may be repeated.
    #[error("the store failed: {0}")]
    Engine(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// The store. Every engine passes the same conformance suite.
#[async_trait::async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The store's clock, in milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;

    /// Stores a task. With an idempotency key that came before, returns the first task.
    async fn submit(&self, task: NewTask) -> Result<Submitted, Error>;

    /// Gives up to `max` queued tasks that the node can do, by priority, then age.
    ///
    /// Claims and renewals need not outlive a power cut. A claim that one undid leaves its task queued, and its epoch is
    /// given out again; a report under the undone claim touches nothing unless the same node got the task again, for
    /// reports name task, epoch and node.
    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, Error>;

    /// Prolongs leases. Returns those that are not this node's and connection's any more.
    async fn renew(
        &self,
        node: &NodeId,
        session: u64,
        running: &[Attempt],
        lease_ms: i64,
    ) -> Result<Vec<Attempt>, Error>;

    /// A node came back with a new connection and says what it still has (running, or finished and not acknowledged).
    /// Those leases go on; its other leases, whatever their connection, are lost.
    async fn adopt(&self, node: &NodeId, session: u64, running: &[Attempt], lease_ms: i64) -> Result<Adopted, Error>;

    /// A connection is gone: its leases are lost. Returns the tasks, in their order of submission.
    async fn release(&self, node: &NodeId, session: u64) -> Result<Vec<TaskId>, Error>;

    /// A result came.
    async fn finish(
        &self,
        attempt: Attempt,
        node: &NodeId,
        output: Vec<u8>,
        facts: String,
    ) -> Result<Settlement, Error>;

    /// A node could not do it. Requeued tasks wait `delay_ms`; `counts` says whether it counts as a failure of the task
    /// (a refusal for lack of room does not). The node is passed over for the task: for [`Limits::exclusion_ms`] when it
    /// counts, else for twice the delay, so that others come first and one that is alone gets it again soon.
    async fn give_back(
        &self,
        attempt: Attempt,
        node: &NodeId,
        failure: Failure,
        delay_ms: i64,
        counts: bool,
    ) -> Result<GivenBack, Error>;

    /// Cancels a task. `None` when there is none.
    async fn cancel(&self, id: TaskId) -> Result<Option<Cancelled>, Error>;

    /// Takes back leases that ran out, ends tasks whose deadline passed, forgets what was kept for its time.
    async fn sweep(&self) -> Result<Swept, Error>;

    /// One task.
    async fn task(&self, id: TaskId) -> Result<Option<Task>, Error>;

    /// A task's serialised input.
    async fn input(&self, id: TaskId) -> Result<Option<Vec<u8>>, Error>;

    /// A succeeded task's serialised output.
    async fn output(&self, id: TaskId) -> Result<Option<Vec<u8>>, Error>;

    /// A task's attempts, oldest first.
    async fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRecord>, Error>;

    /// Tasks, newest first.
    async fn tasks(&self, filter: Filter) -> Result<Vec<Task>, Error>;

    /// How many tasks are in each state, in the order of [`State::ALL`].
    async fn counts(&self) -> Result<[u64; 7], Error>;

    /// What waits, by kind and model.
    async fn depths(&self) -> Result<Vec<Depth>, Error>;

    /// Stores a node, or its new name, region, profile and sign of life. Counters, state and first registration stay.
    async fn put_node(&self, node: Node) -> Result<(), Error>;

    /// One node.
    async fn node(&self, id: &NodeId) -> Result<Option<Node>, Error>;

    /// All nodes, by id.
    async fn nodes(&self) -> Result<Vec<Node>, Error>;

    /// Whether a node may get work. `false` when there is none.
    async fn set_node_state(&self, id: &NodeId, state: NodeState) -> Result<bool, Error>;

    /// Registers a model version.
    async fn put_model(&self, model: Model) -> Result<Put, Error>;

    /// One version, or the one registered last.
    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, Error>;

    /// All versions, by name, newest first.
    async fn models(&self) -> Result<Vec<Model>, Error>;

    /// Removes a version. `false` when there is none.
    async fn remove_model(&self, name: &str, version: &str) -> Result<bool, Error>;
}

/// The failure of an attempt whose node was lost.
fn lost() -> Failure {
    Failure {
        fault: Fault::Network,
        code: Code::Unavailable,
        detail: "the node was lost, or did not renew its lease".into(),
        retryable: true,
    }
}

/// Where a task goes after a failed attempt; shared by all engines so that they cannot differ.
fn after_failure(failure: &Failure, failures: u32, failures_max: u32, counts: bool) -> (GivenBack, State, u32) {
    let failures = failures + u32::from(counts);
    if !failure.retryable {
        (GivenBack::Failed, State::Failed, failures)
    } else if counts && failures >= failures_max {
        (GivenBack::Quarantined, State::Quarantined, failures)
    } else {
        (GivenBack::Requeued, State::Queued, failures)
    }
}

/// How long a node that gave a task back is passed over for it; shared by all engines so that they cannot differ.
fn passed_over_ms(limits: &Limits, delay_ms: i64, counts: bool) -> i64 {
    if counts { limits.exclusion_ms } else { delay_ms.saturating_mul(2).min(limits.exclusion_ms) }
}
