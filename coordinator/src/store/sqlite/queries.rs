//! What is asked of the tables. Nothing here writes.

use super::super::*;
use super::rows;
use rusqlite::{Connection, OptionalExtension, params};

pub(super) fn task(c: &Connection, id: TaskId) -> Result<Option<Task>, Error> {
    let sql = format!("SELECT {} FROM tasks WHERE id = ?1", rows::TASK);
    Ok(c.prepare_cached(&sql)?.query_row([id.0.as_bytes()], rows::task).optional()?)
}

/// `column` is `input` or `output`.
pub(super) fn payload(c: &Connection, column: &'static str, id: TaskId) -> Result<Option<Vec<u8>>, Error> {
    let sql = format!("SELECT p.{column} FROM payloads p JOIN tasks t USING (seq) WHERE t.id = ?1");
    let found: Option<Option<Vec<u8>>> =
        c.prepare_cached(&sql)?.query_row([id.0.as_bytes()], |row| row.get(0)).optional()?;
    Ok(found.flatten())
}

pub(super) fn attempts(c: &Connection, id: TaskId) -> Result<Vec<AttemptRecord>, Error> {
    let sql = "SELECT a.epoch, a.node, a.started_ms, a.ended_ms, a.outcome, a.failure
               FROM attempts a JOIN tasks t USING (seq) WHERE t.id = ?1 ORDER BY a.epoch";
    Ok(c.prepare_cached(sql)?.query_map([id.0.as_bytes()], rows::attempt)?.collect::<Result<_, _>>()?)
}

pub(super) fn tasks(c: &Connection, filter: &Filter) -> Result<Vec<Task>, Error> {
    let before: i64 = match filter.before {
        None => i64::MAX,
        Some(id) => c
            .prepare_cached("SELECT seq FROM tasks WHERE id = ?1")?
            .query_row([id.0.as_bytes()], |row| row.get(0))
            .optional()?
            .unwrap_or(0),
    };
    let sql = format!(
        "SELECT {} FROM tasks WHERE seq < ?1 AND (?2 IS NULL OR state = ?2) ORDER BY seq DESC LIMIT ?3",
        rows::TASK
    );
    let state = filter.state.map(rows::state_number);
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    Ok(c.prepare_cached(&sql)?.query_map(params![before, state, limit], rows::task)?.collect::<Result<_, _>>()?)
}

pub(super) fn counts(c: &Connection) -> Result<[u64; 7], Error> {
    let mut counts = [0; 7];
    let mut statement = c.prepare_cached("SELECT state, tasks FROM totals")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        if let Some(count) = counts.get_mut(row.get::<_, usize>(0)?) {
            *count = row.get(1)?;
        }
    }
    Ok(counts)
}

pub(super) fn depths(c: &Connection) -> Result<Vec<Depth>, Error> {
    let sql = "SELECT kind, model, count(*), min(submitted_ms) FROM tasks WHERE state = 0 GROUP BY kind, model";
    let depth = |row: &rusqlite::Row<'_>| {
        Ok(Depth { kind: rows::kind(row, 0)?, model: row.get(1)?, queued: row.get(2)?, oldest_ms: row.get(3)? })
    };
    let mut depths: Vec<Depth> = c.prepare_cached(sql)?.query_map([], depth)?.collect::<Result<_, _>>()?;
    depths.sort_by(|a, b| (a.kind, &a.model).cmp(&(b.kind, &b.model)));
    Ok(depths)
}

pub(super) fn node(c: &Connection, id: &NodeId) -> Result<Option<Node>, Error> {
    let sql = format!("SELECT {} FROM nodes WHERE id = ?1", rows::NODE);
    Ok(c.prepare_cached(&sql)?.query_row([&id.0], rows::node).optional()?)
}

pub(super) fn nodes(c: &Connection) -> Result<Vec<Node>, Error> {
    let sql = format!("SELECT {} FROM nodes ORDER BY id", rows::NODE);
    Ok(c.prepare_cached(&sql)?.query_map([], rows::node)?.collect::<Result<_, _>>()?)
}

pub(super) fn model(c: &Connection, name: &str, version: Option<&str>) -> Result<Option<Model>, Error> {
    let sql = format!(
        "SELECT {} FROM models WHERE name = ?1 AND (?2 IS NULL OR version = ?2) ORDER BY seq DESC LIMIT 1",
        rows::MODEL
    );
    Ok(c.prepare_cached(&sql)?.query_row(params![name, version], rows::model).optional()?)
}

pub(super) fn models(c: &Connection) -> Result<Vec<Model>, Error> {
    let sql = format!("SELECT {} FROM models ORDER BY name, seq DESC", rows::MODEL);
    Ok(c.prepare_cached(&sql)?.query_map([], rows::model)?.collect::<Result<_, _>>()?)
}
