//! Workers that die or fall silent in the middle of a task.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]
#![expect(clippy::print_stdout, reason = "what was measured is said")]

use e2e::{Program, free_port, http};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A coordinator and two workers that serve a small encoder.
struct Grid {
    coordinator: Program,
    workers: Vec<Program>,
    url: String,
    _folder: tempfile::TempDir,
}

fn grid() -> Grid {
    let folder = tempfile::tempdir().unwrap();
    let bind = format!("127.0.0.1:{}", free_port());
    let coordinator = Program::start(&folder.path().join("coordinator"), &["coordinator", "--bind", &bind]).unwrap();
    let url = coordinator.said("coordinator");
    let workers = ["a", "b"].map(|name| worker(&folder.path().join(name), &url)).into();
    Grid { coordinator, workers, url, _folder: folder }
}

fn worker(folder: &Path, url: &str) -> Program {
    let model = e2e::tiny_bert();
    let model = model.to_str().unwrap();
    Program::start(
        folder,
        &["worker", "--coordinator", url, "--bind", "127.0.0.1:0", "--backend", "candle", "--model-folder", model],
    )
    .unwrap()
}

/// Many long texts: seconds of work for one worker.
fn slow_task() -> Value {
    let text = "the quick brown fox jumps over the lazy dog ".repeat(12);
    json!({
        "kind": "embed",
        "model": "tiny-bert",
        "input": {"inputs": vec![text; 2_000], "truncate": true},
    })
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

impl Grid {
    async fn ready(&self, client: &reqwest::Client) {
        let nodes = format!("{}/api/nodes", self.url);
        http::until("two workers are connected", Duration::from_secs(30), async || {
            let nodes = http::get(client, &nodes).await?;
            let list = nodes.as_array().cloned().unwrap_or_default();
            let connected = list.iter().filter(|node| node["link"].is_object()).count();
            Ok((connected == 2).then_some(()))
        })
        .await
        .unwrap();
    }

    /// Submits the slow task and waits until a worker runs it. Returns its address and which worker has it.
    async fn start_slow_task(&self, client: &reqwest::Client) -> (String, usize) {
        let (status, accepted) = http::post(client, &format!("{}/api/tasks", self.url), &slow_task()).await.unwrap();
        assert!(status == 201 || status == 202, "{status}: {accepted}");
        let task = format!("{}/api/tasks/{}", self.url, accepted["id"].as_str().unwrap());
        let holder = http::until("a worker has the task", Duration::from_secs(30), async || {
            let status = http::get(client, &task).await?;
            let leased = status["state"] == "leased";
            Ok(status["node"].as_str().filter(|_| leased).map(str::to_owned))
        });
        let holder = holder.await.unwrap();
        let index = self.workers.iter().position(|worker| worker.said("node") == holder).unwrap();
        // In the middle of it, not at its very start.
        tokio::time::sleep(Duration::from_millis(200)).await;
        (task, index)
    }

    /// The task's attempts once it has ended well.
    async fn attempts_when_done(&self, client: &reqwest::Client, task: &str) -> Vec<Value> {
        http::until("the task has succeeded", Duration::from_secs(120), async || {
            let status = http::get(client, task).await?;
            Ok((status["state"] == "succeeded").then_some(()))
        })
        .await
        .unwrap();
        let attempts = http::get(client, &format!("{task}/attempts")).await.unwrap();
        attempts.as_array().unwrap_or_else(|| panic!("{attempts}")).clone()
    }
}

fn check_attempts(attempts: &[Value], lost_by: &str, since_ms: i64, within_ms: i64) {
    let outcomes: Vec<&str> = attempts.iter().filter_map(|a| a["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["lost", "settled"], "{attempts:?}");
    assert_eq!(attempts[0]["node"], lost_by);
    assert_ne!(attempts[1]["node"], lost_by);
    let waited = attempts[1]["started_ms"].as_i64().unwrap() - since_ms;
    println!("the task ran elsewhere after {waited} ms");
    assert!(waited <= within_ms, "{waited} ms, promised are {within_ms}");
}

#[tokio::test]
async fn a_killed_workers_task_runs_elsewhere_within_two_seconds() {
    let mut grid = grid();
    let client = http::client();
    grid.ready(&client).await;
    let (task, holder) = grid.start_slow_task(&client).await;
    let worker = grid.workers.remove(holder);
    let node = worker.said("node");
    let killed_ms = now_ms();
    worker.kill();
    let attempts = grid.attempts_when_done(&client, &task).await;
    check_attempts(&attempts, &node, killed_ms, 2_000);
}

#[tokio::test]
async fn a_silent_workers_task_runs_elsewhere_and_its_late_result_is_refused() {
    let grid = grid();
    let client = http::client();
    grid.ready(&client).await;
    let (task, holder) = grid.start_slow_task(&client).await;
    let node = grid.workers[holder].said("node");
    let stopped_ms = now_ms();
    grid.workers[holder].signal(Signal::STOP);
    let attempts = grid.attempts_when_done(&client, &task).await;
    check_attempts(&attempts, &node, stopped_ms, 15_000);
    // It wakes up, finishes what it believes to have, and is told that it is too late.
    grid.workers[holder].signal(Signal::CONT);
    grid.ready(&client).await;
    let after = http::get(&client, &format!("{task}/attempts")).await.unwrap();
    assert_eq!(after.as_array(), Some(&attempts), "a late result changes nothing");
    assert!(grid.coordinator.terminate().unwrap().success());
}

#[tokio::test]
async fn a_worker_that_is_asked_to_end_finishes_what_it_has() {
    let mut grid = grid();
    let client = http::client();
    grid.ready(&client).await;
    let (task, holder) = grid.start_slow_task(&client).await;
    let node = grid.workers[holder].said("node");
    let worker = grid.workers.remove(holder);
    let ended = tokio::task::spawn_blocking(|| worker.terminate()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    let attempts = grid.attempts_when_done(&client, &task).await;
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    assert_eq!(attempts[0]["node"], node.as_str());
}
