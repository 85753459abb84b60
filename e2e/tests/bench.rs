//! `neurogrid bench` against a worker: what is asked is answered and counted, and a run that is ended early still reports.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::program::command;
use e2e::{Program, http};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A bundled model, so that nothing is fetched.
const MODEL: &str = "minilm-tiny";

fn worker(folder: &Path) -> Program {
    Program::start(folder, &["worker", "--bind", "127.0.0.1:0", "--api-key", "a-secret"]).unwrap()
}

/// `neurogrid bench embeddings` against a worker.
fn bench(folder: &Path, worker: &Program, arguments: &[&str]) -> Command {
    let url = worker.said("worker");
    let mut command = command(folder);
    command.args(["--json", "bench", "embeddings", "--url", &url, "--api-key", "a-secret"]).args(arguments);
    command
}

#[test]
fn vectors_are_asked_counted_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let worker = worker(folder.path());
    let (save, plot) = (folder.path().join("run.json"), folder.path().join("run.svg"));
    let files = ["--save", save.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
    let asked = ["--model", MODEL, "--concurrency", "1,3", "--requests", "20", "--texts", "2", "--prompt-tokens", "40"];
    let output = bench(folder.path(), &worker, &asked).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept = std::fs::read_to_string(&save).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), report);
    assert!(!kept.contains("a-secret"), "the key is not kept");
    for stage in report["stages"].as_array().unwrap() {
        let counts = json!({ "due": 20, "answered": 20, "failed": 0, "dropped": 0, "unfinished": 0 });
        assert_eq!(stage["requests"], counts, "{stage}");
        // Two texts of 40 tokens each, as near as whole words come.
        let tokens = stage["tokens"]["prompt_mean"].as_f64().unwrap();
        assert!((70.0..90.0).contains(&tokens), "{tokens}");
    }
    assert_eq!(report["stages"].as_array().unwrap().len(), 2);
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    assert!(worker.terminate().unwrap().success());
}

#[test]
fn an_unknown_model_and_a_wrong_key_are_said_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let worker = worker(folder.path());
    for (arguments, says) in
        [(["--model", "minilm-tiyn"], "did you mean minilm-tiny"), (["--requests", "1"], "name one with --model")]
    {
        let output = bench(folder.path(), &worker, &arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains(says), "{said}");
    }
    let url = worker.said("worker");
    let mut keyless = command(folder.path());
    let output = keyless.args(["bench", "embeddings", "--model", MODEL, "--url", &url]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--api-key"), "{said}");
    assert!(worker.terminate().unwrap().success());
}

#[tokio::test]
async fn a_run_that_is_interrupted_still_reports() {
    let folder = tempfile::tempdir().unwrap();
    let worker = worker(folder.path());
    let asked = ["--model", MODEL, "--rate", "50,60", "--duration", "1h"];
    let mut bench = bench(folder.path(), &worker, &asked);
    let child = bench.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // More than are asked before the load begins.
    let metrics = format!("{}/metrics", worker.said("worker"));
    let client = http::client();
    let under_way = http::until("requests of the load", Duration::from_secs(60), async || {
        let text = client.get(&metrics).bearer_auth("a-secret").send().await?.error_for_status()?.text().await?;
        let done = text.lines().find_map(|line| line.strip_prefix("neurogrid_worker_tasks_done_total "));
        Ok(done.and_then(|done| done.parse::<u64>().ok()).filter(|done| *done >= 20))
    });
    under_way.await.unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["is_interrupted"]), (Some(130), &json!(true)));
    assert_eq!(report["stages"].as_array().unwrap().len(), 1, "the second load was not begun");
    assert!(report["stages"][0]["requests"]["answered"].as_u64().unwrap() >= 10, "{report}");
    assert!(worker.terminate().unwrap().success());
}
