//! How values look in the tables, and rows become facts.

use super::super::*;
use coordinator_client::wire::TaskKind;
use rusqlite::{Row, types::Type};
use serde::Serialize;

/// Columns of `tasks` that [`task`] reads, in its order.
pub(super) const TASK: &str = "id, tenant, kind, model, priority, state, epoch, failures, submitted_ms, not_before_ms, \
                               deadline_ms, finished_ms, node, lease_until_ms, failure, facts";

/// Columns of `nodes` that [`node`] reads, in its order.
pub(super) const NODE: &str =
    "id, tenant, public_key, name, region, profile, registered_ms, seen_ms, state, settled, faulted, lost";

/// Columns of `models` that [`model`] reads, in its order.
pub(super) const MODEL: &str = "name, version, manifest, digest, registered_ms";

fn broken(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("not a {what}").into())
}

pub(super) fn state_number(state: State) -> i64 {
    State::ALL.iter().position(|s| *s == state).expect("ALL lists every state") as i64
}

fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<State> {
    let number: usize = row.get(column)?;
    State::ALL.get(number).copied().ok_or_else(|| broken(column, "state"))
}

pub(super) fn kind(row: &Row<'_>, column: usize) -> rusqlite::Result<TaskKind> {
    TaskKind::from_name(row.get_ref(column)?.as_str()?).ok_or_else(|| broken(column, "kind"))
}

pub(super) fn task_id(row: &Row<'_>, column: usize) -> rusqlite::Result<TaskId> {
    let bytes: [u8; 16] = row.get(column)?;
    Ok(TaskId(uuid::Uuid::from_bytes(bytes)))
}

/// A serde value in a TEXT column.
pub(super) fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|_| broken(column, "known value"))).transpose()
}

/// The text of a serde value for a TEXT column.
pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data")
}

pub(super) fn holder(row: &Row<'_>) -> rusqlite::Result<Holder> {
    let attempt = Attempt { task: task_id(row, 0)?, epoch: row.get(1)? };
    Ok(Holder { attempt, node: NodeId(row.get(2)?), session: row.get::<_, i64>(3)? as u64 })
}

pub(super) fn task(row: &Row<'_>) -> rusqlite::Result<Task> {
    Ok(Task {
        id: task_id(row, 0)?,
        tenant: row.get(1)?,
        kind: kind(row, 2)?,
        model: row.get(3)?,
        priority: row.get(4)?,
        state: state(row, 5)?,
        epoch: row.get(6)?,
        failures: row.get(7)?,
        submitted_ms: row.get(8)?,
        not_before_ms: row.get(9)?,
        deadline_ms: row.get(10)?,
        finished_ms: row.get(11)?,
        node: row.get::<_, Option<String>>(12)?.map(NodeId),
        lease_until_ms: row.get(13)?,
        failure: json(row, 14)?,
        facts: row.get(15)?,
    })
}

pub(super) fn attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRecord> {
    Ok(AttemptRecord {
        epoch: row.get(0)?,
        node: NodeId(row.get(1)?),
        started_ms: row.get(2)?,
        ended_ms: row.get(3)?,
        outcome: json(row, 4)?,
        failure: json(row, 5)?,
    })
}

pub(super) fn node(row: &Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node {
        id: NodeId(row.get(0)?),
        tenant: row.get(1)?,
        public_key: row.get(2)?,
        name: row.get(3)?,
        region: row.get(4)?,
        profile: row.get(5)?,
        registered_ms: row.get(6)?,
        seen_ms: row.get(7)?,
        state: json(row, 8)?.ok_or_else(|| broken(8, "state"))?,
        settled: row.get(9)?,
        faulted: row.get(10)?,
        lost: row.get(11)?,
    })
}

pub(super) fn model(row: &Row<'_>) -> rusqlite::Result<Model> {
    Ok(Model {
        name: row.get(0)?,
        version: row.get(1)?,
        manifest: row.get(2)?,
        digest: row.get(3)?,
        registered_ms: row.get(4)?,
    })
}
