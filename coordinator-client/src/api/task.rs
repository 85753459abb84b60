//! Tasks over HTTP: what is submitted, how a task stands and why it waits, and its result. Shapes only, no server.

use super::Code;
use crate::wire::{NodeId, TaskId, TaskInput, TaskKind, TaskOutput, Usage, task, text};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Priority of a task that does not name one.
pub const PRIORITY_DEFAULT: u8 = 4;

/// Highest priority.
pub const PRIORITY_MAX: u8 = 9;

/// Body of `POST /api/tasks`:
/// `{"kind": "embed", "input": {"inputs": ["…"]}, "model": "name@version", "priority": 4, "deadline_ms": 60000}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSubmit")]
pub struct SubmitTask {
    /// What is asked.
    #[serde(flatten)]
    pub task: TaskInput,
    /// `name` (its newest version) or `name@version`.
    pub model: String,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// It is not wanted any more so many milliseconds after it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// So many failed attempts put it into quarantine; the server's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_max: Option<u32>,
}

impl SubmitTask {
    /// A task with nothing but what must be said.
    pub fn new(model: impl Into<String>, task: TaskInput) -> Self {
        Self { task, model: model.into(), priority: PRIORITY_DEFAULT, deadline_ms: None, failures_max: None }
    }
}

/// How a [`SubmitTask`] looks in JSON. The input is read after its kind is known, so that a misspelt field is refused
/// by its name wherever it stands.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SubmitTask)]
struct RawSubmit {
    /// What is asked.
    kind: TaskKind,
    /// The kind's input.
    #[schema(value_type = AnyInput)]
    input: Box<serde_json::value::RawValue>,
    /// `name` (its newest version) or `name@version`.
    model: String,
    /// 0 to 9, higher first; 4 when absent.
    priority: Option<u8>,
    /// It is not wanted any more so many milliseconds after it came.
    deadline_ms: Option<u64>,
    /// So many failed attempts put it into quarantine; the server's choice when absent.
    failures_max: Option<u32>,
}

/// The inputs of all kinds, for the API's description.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described, never made: the kind says how an input is read")]
enum AnyInput {
    Embed(task::EmbedInput),
    Rerank(task::RerankInput),
    Classify(task::ClassifyInput),
    Infer(task::InferInput),
    Generate(text::GenerateInput),
    Chat(text::ChatInput),
}

impl TryFrom<RawSubmit> for SubmitTask {
    type Error = String;

    fn try_from(raw: RawSubmit) -> Result<Self, String> {
        let task = input_from_json(raw.kind, raw.input.get()).map_err(|e| format!("input: {e}"))?;
        let priority = raw.priority.unwrap_or(PRIORITY_DEFAULT);
        if priority > PRIORITY_MAX {
            return Err(format!("priority {priority} is not 0 to {PRIORITY_MAX}"));
        }
        if raw.failures_max == Some(0) {
            return Err("failures_max must be at least 1".into());
        }
        Ok(Self { task, model: raw.model, priority, deadline_ms: raw.deadline_ms, failures_max: raw.failures_max })
    }
}

impl utoipa::PartialSchema for SubmitTask {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        RawSubmit::schema()
    }
}

impl ToSchema for SubmitTask {
    fn name() -> std::borrow::Cow<'static, str> {
        "SubmitTask".into()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        RawSubmit::schemas(schemas);
    }
}

/// Reads the JSON of a kind's input.
///
/// # Errors
/// When the JSON is not of the kind's shape.
pub fn input_from_json(kind: TaskKind, json: &str) -> Result<TaskInput, serde_json::Error> {
    Ok(match kind {
        TaskKind::Embed => TaskInput::Embed(serde_json::from_str::<task::EmbedInput>(json)?),
        TaskKind::Rerank => TaskInput::Rerank(serde_json::from_str::<task::RerankInput>(json)?),
        TaskKind::Classify => TaskInput::Classify(serde_json::from_str::<task::ClassifyInput>(json)?),
        TaskKind::Infer => TaskInput::Infer(serde_json::from_str::<task::InferInput>(json)?),
        TaskKind::Generate => TaskInput::Generate(serde_json::from_str::<text::GenerateInput>(json)?),
        TaskKind::Chat => TaskInput::Chat(serde_json::from_str::<text::ChatInput>(json)?),
    })
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
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
    /// Failed on too many attempts.
    Quarantined,
}

impl TaskState {
    /// Whether nothing more happens to it.
    pub fn is_final(self) -> bool {
        !matches!(self, TaskState::Queued | TaskState::Leased)
    }
}

/// Answer to `POST /api/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskAccepted {
    /// The task's id.
    pub id: TaskId,
    /// `name@version`, resolved.
    pub model: String,
    /// Whether the idempotency key came before: the id is the first submit's.
    pub existing: bool,
}

/// A task as it stands: `GET /api/tasks/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskStatus {
    /// Its id.
    pub id: TaskId,
    /// What it asks.
    pub kind: TaskKind,
    /// `name@version`.
    pub model: String,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// Where it stands.
    pub state: TaskState,
    /// Why it waits, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Waits>,
    /// How often a node was given it.
    pub attempts: u64,
    /// Attempts that failed.
    pub failures: u32,
    /// When it came, in milliseconds since the Unix epoch, as all times here.
    pub submitted_ms: i64,
    /// When it is no longer wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<i64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<i64>,
    /// Who has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Why the last failed attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<TaskFailure>,
}

/// Why a task waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Waits {
    /// The reason, for programs.
    pub code: WaitCode,
    /// The reason, for people, with values and what would help.
    pub detail: String,
    /// Tasks before it that the same nodes can do, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// It is not given out before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

/// The reasons why a task waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitCode {
    /// No node is connected.
    NoNode,
    /// No connected node has the model, and none can fetch it.
    ModelMissing,
    /// Nodes have the model, but none runs this kind of task on it.
    KindNotServed,
    /// A node is fetching the model.
    ModelFetching,
    /// Every node that can do it is banned or drains.
    NodesDraining,
    /// Every node that can do it is busy.
    NodesBusy,
    /// It failed and is tried again later.
    BackingOff,
    /// Nothing stands in its way; it is about to be given to a node.
    Dispatching,
}

/// Why an attempt, or a task, failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskFailure {
    /// Who was to blame: `caller`, `worker`, `coordinator`, `network`, `model`.
    pub fault: String,
    /// What went wrong, for programs.
    pub code: Code,
    /// What went wrong, for people.
    pub detail: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

/// A succeeded task's result: `GET /api/tasks/{id}/result`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskResult {
    /// The task's id.
    pub id: TaskId,
    /// `name@version`.
    pub model: String,
    /// What it gave.
    #[serde(flatten)]
    pub output: TaskOutput,
    /// What it took.
    pub usage: Usage,
    /// Facts of the result: node, execution class, digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub facts: Option<serde_json::Value>,
}

/// A page of tasks, newest first: `GET /api/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskStatus>,
    /// Pass it as `before` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<TaskId>,
}

/// One attempt at a task: `GET /api/tasks/{id}/attempts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskAttempt {
    /// The fencing token: the number of the claim, from 1.
    pub epoch: u64,
    /// Who had it.
    pub node: NodeId,
    /// When it was given to the node.
    pub started_ms: i64,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
    /// How it ended: `settled`, `given_back`, `lost`, `cancelled`, `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<TaskFailure>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<(), &str>) {
        match (serde_json::from_str::<SubmitTask>(json), expected) {
            (Ok(task), Ok(())) => {
                let again = serde_json::to_string(&task).unwrap();
                assert_eq!(serde_json::from_str::<SubmitTask>(&again).unwrap(), task);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} should name {part}"),
            (got, expected) => panic!("{json}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_submit_is_read_strictly_and_comes_back_the_same() {
        check(r#"{"kind":"embed","model":"m","input":{"inputs":["a"]}}"#, Ok(()));
        check(r#"{"input":{"query":"q","documents":["a"]},"kind":"rerank","model":"m@1","priority":9}"#, Ok(()));
        let tensor = r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[[0.5,1]]}"#;
        check(&format!(r#"{{"kind":"infer","model":"m","deadline_ms":5,"input":{{"inputs":[{tensor}]}}}}"#), Ok(()));
        check(r#"{"kind":"embed","model":"m","input":{"input":["a"]}}"#, Err("unknown field `input`"));
        check(r#"{"kind":"embed","model":"m","input":{"inputs":["a"]},"prioritty":1}"#, Err("prioritty"));
        check(r#"{"kind":"embed","model":"m","input":{"inputs":["a"]},"priority":10}"#, Err("priority 10"));
        check(r#"{"kind":"embed","model":"m","input":{"inputs":["a"]},"failures_max":0}"#, Err("failures_max"));
        check(r#"{"kind":"dance","model":"m","input":{}}"#, Err("dance"));
        check(r#"{"kind":"embed","input":{"inputs":["a"]}}"#, Err("model"));
    }
}
