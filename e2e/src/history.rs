//! Judges what a coordinator recorded: histories of tasks go in, broken promises come out. Knows no program and no network.

use serde::Deserialize;
use std::collections::HashMap;

/// What was recorded of one accepted task.
#[derive(Debug, Clone)]
pub struct Task {
    /// The id that the caller was given.
    pub id: String,
    /// The idempotency key that it was submitted with.
    pub key: String,
    /// The state in the end.
    pub state: String,
    /// Its attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

/// One attempt.
#[derive(Debug, Clone, Deserialize)]
pub struct Attempt {
    /// The fencing token.
    pub epoch: u64,
    /// Who had it.
    pub node: String,
    /// When it was given out.
    pub started_ms: i64,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// How it ended.
    pub outcome: Option<String>,
}

/// Every promise that these histories break, in words; empty when all are kept.
///
/// The promises: an accepted task is there and succeeded; exactly one attempt was settled and it is the last one; epochs count
/// from 1 without a gap; no two attempts run at the same time; one key is one task and one task one key.
pub fn violations(accepted: &[(String, String)], recorded: &HashMap<String, Task>) -> Vec<String> {
    let mut found = Vec::new();
    let mut by_key: HashMap<&str, &str> = HashMap::new();
    let mut by_id: HashMap<&str, &str> = HashMap::new();
    for (key, id) in accepted {
        if let Some(other) = by_key.insert(key, id).filter(|other| other != id) {
            found.push(format!("key {key} was given two tasks, {other} and {id}"));
        }
        if let Some(other) = by_id.insert(id, key).filter(|other| other != key) {
            found.push(format!("task {id} was given to two keys, {other} and {key}"));
        }
        match recorded.get(id) {
            None => found.push(format!("task {id} was accepted and is lost")),
            Some(task) => found.extend(task_violations(task)),
        }
    }
    found
}

fn task_violations(task: &Task) -> Vec<String> {
    let mut found = Vec::new();
    let id = &task.id;
    if task.state != "succeeded" {
        found.push(format!("task {id} ended as {}", task.state));
    }
    let settled: Vec<u64> =
        task.attempts.iter().filter(|a| a.outcome.as_deref() == Some("settled")).map(|a| a.epoch).collect();
    if settled.len() != 1 {
        found.push(format!("task {id} was settled {} times: epochs {settled:?}", settled.len()));
    }
    if task.attempts.last().map(|last| last.epoch) != settled.last().copied() {
        found.push(format!("task {id} was given out again after it was settled"));
    }
    for (index, attempt) in task.attempts.iter().enumerate() {
        if attempt.epoch != index as u64 + 1 {
            found.push(format!("task {id}: attempt {} has epoch {}", index + 1, attempt.epoch));
        }
        match attempt.ended_ms {
            None => found.push(format!("task {id}: attempt {} has not ended", attempt.epoch)),
            Some(ended) if ended < attempt.started_ms => {
                found.push(format!("task {id}: attempt {} ended before it started", attempt.epoch));
            }
            Some(ended) => {
                if let Some(next) = task.attempts.get(index + 1).filter(|next| next.started_ms < ended) {
                    found.push(format!("task {id}: attempts {} and {} overlap", attempt.epoch, next.epoch));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(epoch: u64, started_ms: i64, ended_ms: Option<i64>, outcome: &str) -> Attempt {
        Attempt { epoch, node: "n".into(), started_ms, ended_ms, outcome: Some(outcome.into()) }
    }

    fn check(state: &str, attempts: Vec<Attempt>, want: &[&str]) {
        let task = Task { id: "t".into(), key: "k".into(), state: state.into(), attempts };
        let recorded = HashMap::from([("t".to_owned(), task)]);
        assert_eq!(violations(&[("k".into(), "t".into())], &recorded), want);
    }

    #[test]
    fn a_kept_promise_is_no_violation_and_each_broken_one_is() {
        let lost = attempt(1, 0, Some(5), "lost");
        let settled = attempt(2, 5, Some(9), "settled");
        check("succeeded", vec![lost.clone(), settled.clone()], &[]);
        check("queued", vec![lost.clone(), settled.clone()], &["task t ended as queued"]);
        check(
            "succeeded",
            vec![attempt(1, 0, Some(5), "settled"), settled.clone()],
            &["task t was settled 2 times: epochs [1, 2]"],
        );
        check(
            "succeeded",
            vec![lost.clone()],
            &["task t was settled 0 times: epochs []", "task t was given out again after it was settled"],
        );
        check(
            "succeeded",
            vec![attempt(1, 0, Some(5), "settled"), attempt(2, 6, Some(7), "lost")],
            &["task t was given out again after it was settled"],
        );
        check(
            "succeeded",
            vec![lost.clone(), attempt(2, 4, Some(9), "settled")],
            &["task t: attempts 1 and 2 overlap"],
        );
        check("succeeded", vec![attempt(2, 5, Some(9), "settled")], &["task t: attempt 1 has epoch 2"]);
        check("succeeded", vec![attempt(1, 5, None, "settled")], &["task t: attempt 1 has not ended"]);
    }

    #[test]
    fn lost_and_doubled_tasks_are_found() {
        let pair = |key: &str, id: &str| (key.to_owned(), id.to_owned());
        let none = HashMap::new();
        assert_eq!(violations(&[pair("k", "t")], &none), ["task t was accepted and is lost"]);
        let found = violations(&[pair("k", "t"), pair("k", "u")], &none);
        assert!(found.contains(&"key k was given two tasks, t and u".to_owned()), "{found:?}");
        let found = violations(&[pair("k", "t"), pair("l", "t")], &none);
        assert!(found.contains(&"task t was given to two keys, k and l".to_owned()), "{found:?}");
    }
}
