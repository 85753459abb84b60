//! What changes the tables. Each function is one command inside a group's transaction.

use super::super::*;
use super::rows::{self, state_number, to_json};
use rusqlite::{Connection, OptionalExtension, params};

const QUEUED: i64 = 0;
const LEASED: i64 = 1;

/// Tasks that are queued or leased. Kept as a number beside them: counting a long queue at each submit would take longer
/// than the submit.
pub(super) fn open_tasks(c: &Connection) -> Result<usize, Error> {
    Ok(c.prepare_cached("SELECT sum(tasks) FROM totals WHERE state < 2")?.query_row([], |row| row.get(0))?)
}

pub(super) fn submit(c: &Connection, now: i64, max: usize, task: &NewTask) -> Result<Submitted, Error> {
    if let Some(key) = &task.idempotency_key {
        let sql = "SELECT id, request_sha256 FROM tasks WHERE tenant = ?1 AND idempotency_key = ?2";
        let known = c
            .prepare_cached(sql)?
            .query_row([&task.tenant, key], |row| Ok((rows::task_id(row, 0)?, row.get::<_, [u8; 32]>(1)?)))
            .optional()?;
        if let Some((id, request_sha256)) = known {
            if request_sha256 != task.request_sha256 {
                return Err(Error::IdempotencyConflict { key: key.clone(), task: id });
            }
            return Ok(Submitted { id, existing: true });
        }
    }
    let exists = c.prepare_cached("SELECT 1 FROM tasks WHERE id = ?1")?.exists([task.id.0.as_bytes()])?;
    if exists {
        return Err(Error::Exists(task.id));
    }
    if open_tasks(c)? >= max {
        return Err(Error::Full { max });
    }
    c.prepare_cached(
        "INSERT INTO tasks (id, tenant, kind, model, priority, state, failures_max, submitted_ms, not_before_ms,
                            deadline_ms, request_sha256, idempotency_key)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        task.id.0.as_bytes(),
        task.tenant,
        task.kind.name(),
        task.model,
        task.priority,
        task.failures_max,
        now,
        task.deadline_ms,
        task.request_sha256,
        task.idempotency_key,
    ])?;
    c.prepare_cached("INSERT INTO payloads (seq, input) VALUES (?1, ?2)")?
        .execute(params![c.last_insert_rowid(), task.input])?;
    Ok(Submitted { id: task.id, existing: false })
}

/// A queued task that the node could take.
struct Candidate {
    priority: u8,
    seq: i64,
}

pub(super) fn claim(c: &Connection, now: i64, claim: &Claim) -> Result<Vec<Claimed>, Error> {
    let mut candidates = Vec::new();
    let mut find = c.prepare_cached(
        "SELECT priority, seq FROM tasks t
         WHERE state = 0 AND kind = ?1 AND model = ?2 AND not_before_ms <= ?3
           AND (deadline_ms IS NULL OR deadline_ms > ?3)
           AND NOT EXISTS (SELECT 1 FROM exclusions e WHERE e.seq = t.seq AND e.node = ?4 AND e.until_ms > ?3)
         ORDER BY priority DESC, seq LIMIT ?5",
    )?;
    let distinct: std::collections::HashSet<&Want> = claim.wants.iter().collect();
    for want in distinct {
        let found = find
            .query_map(params![want.kind.name(), want.model, now, claim.node.0, claim.max as i64], |row| {
                Ok(Candidate { priority: row.get(0)?, seq: row.get(1)? })
            })?;
        for candidate in found {
            candidates.push(candidate?);
        }
    }
    candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.priority), candidate.seq));
    candidates.truncate(claim.max);
    candidates.iter().map(|candidate| lease(c, now, claim, candidate.seq)).collect()
}

fn lease(c: &Connection, now: i64, claim: &Claim, seq: i64) -> Result<Claimed, Error> {
    let mut claimed = c
        .prepare_cached(
            "UPDATE tasks SET state = 1, epoch = epoch + 1, node = ?2, session = ?3, lease_until_ms = ?4
             WHERE seq = ?1 RETURNING id, epoch, kind, model, priority, deadline_ms",
        )?
        .query_row(params![seq, claim.node.0, claim.session as i64, now + claim.lease_ms], |row| {
            Ok(Claimed {
                attempt: Attempt { task: rows::task_id(row, 0)?, epoch: row.get(1)? },
                kind: rows::kind(row, 2)?,
                model: row.get(3)?,
                priority: row.get(4)?,
                deadline_ms: row.get(5)?,
                input: vec![],
            })
        })?;
    claimed.input =
        c.prepare_cached("SELECT input FROM payloads WHERE seq = ?1")?.query_row([seq], |row| row.get(0))?;
    c.prepare_cached("INSERT INTO attempts (seq, epoch, node, started_ms) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![seq, claimed.attempt.epoch, claim.node.0, now])?;
    Ok(claimed)
}

/// Prolongs one lease, if it is the node's. With a session, only if it is that connection's.
fn prolong(
    c: &Connection,
    until: i64,
    node: &NodeId,
    held_by: Option<u64>,
    session: u64,
    attempt: Attempt,
) -> Result<bool, Error> {
    let changed = c
        .prepare_cached(
            "UPDATE tasks SET lease_until_ms = ?1, session = ?2
             WHERE id = ?3 AND state = 1 AND epoch = ?4 AND node = ?5 AND (?6 IS NULL OR session = ?6)",
        )?
        .execute(params![
            until,
            session as i64,
            attempt.task.0.as_bytes(),
            attempt.epoch,
            node.0,
            held_by.map(|s| s as i64)
        ])?;
    Ok(changed == 1)
}

pub(super) fn renew(
    c: &Connection,
    until: i64,
    node: &NodeId,
    session: u64,
    running: &[Attempt],
) -> Result<Vec<Attempt>, Error> {
    let mut stale = Vec::new();
    for attempt in running {
        if !prolong(c, until, node, Some(session), session, *attempt)? {
            stale.push(*attempt);
        }
    }
    Ok(stale)
}

pub(super) fn adopt(
    c: &Connection,
    now: i64,
    node: &NodeId,
    session: u64,
    running: &[Attempt],
    lease_ms: i64,
) -> Result<Adopted, Error> {
    let mut result = Adopted::default();
    for attempt in running {
        let adopted = prolong(c, now + lease_ms, node, None, session, *attempt)?;
        if adopted { result.adopted.push(*attempt) } else { result.refused.push(*attempt) }
    }
    let mut left = held(c, node)?;
    left.retain(|holder| !result.adopted.contains(&holder.attempt));
    result.requeued = left.iter().map(|holder| holder.attempt.task).collect();
    lose(c, now, &left)?;
    Ok(result)
}

pub(super) fn release(c: &Connection, now: i64, node: &NodeId, session: u64) -> Result<Vec<TaskId>, Error> {
    let mut holders = held(c, node)?;
    holders.retain(|holder| holder.session == session);
    lose(c, now, &holders)?;
    Ok(holders.into_iter().map(|holder| holder.attempt.task).collect())
}

const HOLDER: &str = "SELECT id, epoch, node, session FROM tasks";

fn held(c: &Connection, node: &NodeId) -> Result<Vec<Holder>, Error> {
    let sql = format!("{HOLDER} WHERE state = 1 AND node = ?1 ORDER BY seq");
    Ok(c.prepare_cached(&sql)?.query_map([&node.0], rows::holder)?.collect::<Result<_, _>>()?)
}

fn lose(c: &Connection, now: i64, holders: &[Holder]) -> Result<(), Error> {
    for holder in holders {
        let row = held_row(c, holder.attempt, &holder.node)?.expect("found as held in the same transaction");
        let again = Again { not_before_ms: now, excluded_until_ms: now };
        fail(c, now, &row, Outcome::Lost, &lost(), again, true)?;
        c.prepare_cached("UPDATE nodes SET lost = lost + 1 WHERE id = ?1")?.execute([&holder.node.0])?;
    }
    Ok(())
}

/// What a failing attempt's task is judged by.
struct Held {
    seq: i64,
    epoch: u64,
    failures: u32,
    failures_max: u32,
}

fn held_row(c: &Connection, attempt: Attempt, node: &NodeId) -> Result<Option<Held>, Error> {
    let sql = "SELECT seq, epoch, failures, failures_max FROM tasks
               WHERE id = ?1 AND state = 1 AND epoch = ?2 AND node = ?3";
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Held { seq: row.get(0)?, epoch: row.get(1)?, failures: row.get(2)?, failures_max: row.get(3)? })
    };
    Ok(c.prepare_cached(sql)?.query_row(params![attempt.task.0.as_bytes(), attempt.epoch, node.0], row).optional()?)
}

fn end_attempt(
    c: &Connection,
    now: i64,
    seq: i64,
    epoch: u64,
    outcome: Outcome,
    failure: Option<&Failure>,
) -> Result<(), Error> {
    c.prepare_cached(
        "UPDATE attempts SET ended_ms = ?3, outcome = ?4, failure = ?5
         WHERE seq = ?1 AND epoch = ?2 AND ended_ms IS NULL",
    )?
    .execute(params![seq, epoch, now, to_json(&outcome), failure.map(to_json)])?;
    Ok(())
}

/// Every way of a task's end goes through here.
fn end_task(c: &Connection, now: i64, seq: i64, state: State) -> Result<(), Error> {
    c.prepare_cached("UPDATE tasks SET state = ?2, finished_ms = ?3, lease_until_ms = NULL WHERE seq = ?1")?
        .execute(params![seq, state_number(state), now])?;
    // Nobody is passed over any more for a task that has ended.
    c.prepare_cached("DELETE FROM exclusions WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// When and where a requeued task may run again.
#[derive(Clone, Copy)]
pub(super) struct Again {
    pub(super) not_before_ms: i64,
    pub(super) excluded_until_ms: i64,
}

fn fail(
    c: &Connection,
    now: i64,
    held: &Held,
    outcome: Outcome,
    failure: &Failure,
    again: Again,
    counts: bool,
) -> Result<GivenBack, Error> {
    let (given_back, state, failures) = after_failure(failure, held.failures, held.failures_max, counts);
    end_attempt(c, now, held.seq, held.epoch, outcome, Some(failure))?;
    c.prepare_cached(
        "UPDATE tasks SET state = ?2, failures = ?3, failure = ?4, lease_until_ms = NULL,
                          not_before_ms = CASE WHEN ?2 = 0 THEN ?5 ELSE not_before_ms END WHERE seq = ?1",
    )?
    .execute(params![held.seq, state_number(state), failures, to_json(failure), again.not_before_ms])?;
    if state.is_final() {
        end_task(c, now, held.seq, state)?;
    }
    Ok(given_back)
}

pub(super) fn finish(
    c: &Connection,
    now: i64,
    attempt: Attempt,
    node: &NodeId,
    output: &[u8],
    facts: &str,
) -> Result<Settlement, Error> {
    let Some(held) = held_row(c, attempt, node)? else {
        let sql = "SELECT 1 FROM tasks WHERE id = ?1 AND state = 2 AND epoch = ?2 AND node = ?3";
        let duplicate = c.prepare_cached(sql)?.exists(params![attempt.task.0.as_bytes(), attempt.epoch, node.0])?;
        return Ok(if duplicate { Settlement::Duplicate } else { Settlement::Stale });
    };
    end_attempt(c, now, held.seq, held.epoch, Outcome::Settled, None)?;
    end_task(c, now, held.seq, State::Succeeded)?;
    c.prepare_cached("UPDATE tasks SET facts = ?2 WHERE seq = ?1")?.execute(params![held.seq, facts])?;
    c.prepare_cached("UPDATE payloads SET output = ?2 WHERE seq = ?1")?.execute(params![held.seq, output])?;
    c.prepare_cached("UPDATE nodes SET settled = settled + 1 WHERE id = ?1")?.execute([&node.0])?;
    Ok(Settlement::Settled)
}

pub(super) fn give_back(
    c: &Connection,
    now: i64,
    attempt: Attempt,
    node: &NodeId,
    failure: &Failure,
    again: Again,
    counts: bool,
) -> Result<GivenBack, Error> {
    let Some(held) = held_row(c, attempt, node)? else { return Ok(GivenBack::Stale) };
    let given_back = fail(c, now, &held, Outcome::GivenBack, failure, again, counts)?;
    if given_back == GivenBack::Requeued {
        c.prepare_cached(
            "INSERT INTO exclusions (seq, node, until_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT (seq, node) DO UPDATE SET until_ms = excluded.until_ms",
        )?
        .execute(params![held.seq, node.0, again.excluded_until_ms])?;
    }
    if failure.fault == Fault::Worker {
        c.prepare_cached("UPDATE nodes SET faulted = faulted + 1 WHERE id = ?1")?.execute([&node.0])?;
    }
    Ok(given_back)
}

/// Ends an open task without a result. Returns who had it.
fn end_open(c: &Connection, now: i64, id: TaskId, outcome: Outcome, state: State) -> Result<Option<Holder>, Error> {
    let (seq, stored): (i64, i64) = c
        .prepare_cached("SELECT seq, state FROM tasks WHERE id = ?1")?
        .query_row([id.0.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let holder = match stored {
        LEASED => {
            let sql = format!("{HOLDER} WHERE seq = ?1");
            let holder = c.prepare_cached(&sql)?.query_row([seq], rows::holder)?;
            end_attempt(c, now, seq, holder.attempt.epoch, outcome, None)?;
            Some(holder)
        }
        _ => None,
    };
    end_task(c, now, seq, state)?;
    Ok(holder)
}

pub(super) fn cancel(c: &Connection, now: i64, id: TaskId) -> Result<Option<Cancelled>, Error> {
    let found: Option<i64> = c
        .prepare_cached("SELECT state FROM tasks WHERE id = ?1")?
        .query_row([id.0.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(match found {
        None => None,
        Some(QUEUED | LEASED) => {
            let holder = end_open(c, now, id, Outcome::Cancelled, State::Cancelled)?;
            Some(Cancelled { state: State::Cancelled, holder })
        }
        Some(number) => {
            let state = State::ALL.iter().copied().find(|state| state_number(*state) == number);
            let state = state.ok_or_else(|| Error::Engine(format!("task {id} has the unknown state {number}")))?;
            Some(Cancelled { state, holder: None })
        }
    })
}

pub(super) fn sweep(c: &Connection, now: i64, finished_before: i64) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let sql = "SELECT id FROM tasks WHERE state < 2 AND deadline_ms IS NOT NULL AND deadline_ms <= ?1 ORDER BY seq";
    swept.expired = c.prepare_cached(sql)?.query_map([now], |row| rows::task_id(row, 0))?.collect::<Result<_, _>>()?;
    for id in &swept.expired {
        swept.expired_holders.extend(end_open(c, now, *id, Outcome::Expired, State::Expired)?);
    }
    let sql = format!("{HOLDER} WHERE state = 1 AND lease_until_ms <= ?1 ORDER BY seq");
    swept.lost = c.prepare_cached(&sql)?.query_map([now], rows::holder)?.collect::<Result<_, _>>()?;
    lose(c, now, &swept.lost)?;
    swept.forgotten =
        c.prepare_cached("DELETE FROM tasks WHERE state >= 2 AND finished_ms <= ?1")?.execute([finished_before])?;
    Ok(swept)
}

pub(super) fn put_node(c: &Connection, node: &Node) -> Result<(), Error> {
    c.prepare_cached(
        "INSERT INTO nodes (id, tenant, public_key, name, region, profile, registered_ms, seen_ms, state,
                            settled, faulted, lost)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, region = excluded.region,
                                        profile = excluded.profile, seen_ms = excluded.seen_ms",
    )?
    .execute(params![
        node.id.0,
        node.tenant,
        node.public_key,
        node.name,
        node.region,
        node.profile,
        node.registered_ms,
        node.seen_ms,
        to_json(&node.state),
        node.settled as i64,
        node.faulted as i64,
        node.lost as i64,
    ])?;
    Ok(())
}

pub(super) fn set_node_state(c: &Connection, id: &NodeId, state: NodeState) -> Result<bool, Error> {
    let changed =
        c.prepare_cached("UPDATE nodes SET state = ?2 WHERE id = ?1")?.execute(params![id.0, to_json(&state)])?;
    Ok(changed == 1)
}

pub(super) fn put_model(c: &Connection, model: &Model) -> Result<Put, Error> {
    let known: Option<String> = c
        .prepare_cached("SELECT digest FROM models WHERE name = ?1 AND version = ?2")?
        .query_row([&model.name, &model.version], |row| row.get(0))
        .optional()?;
    if let Some(digest) = known {
        return Ok(if digest == model.digest { Put::Unchanged } else { Put::Conflict });
    }
    c.prepare_cached(
        "INSERT INTO models (name, version, manifest, digest, registered_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![model.name, model.version, model.manifest, model.digest, model.registered_ms])?;
    Ok(Put::Created)
}

pub(super) fn remove_model(c: &Connection, name: &str, version: &str) -> Result<bool, Error> {
    let removed = c.prepare_cached("DELETE FROM models WHERE name = ?1 AND version = ?2")?.execute([name, version])?;
    Ok(removed == 1)
}
