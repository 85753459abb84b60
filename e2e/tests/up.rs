//! The first command that a newcomer runs, and the line that it prints.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::program::command;
use e2e::{Program, digits, http};
use std::process::Command;

fn up(folder: &std::path::Path) -> Program {
    Program::start(folder, &["up", "--bind", "127.0.0.1:0", "--worker-bind", "127.0.0.1:0"]).unwrap()
}

#[test]
fn the_printed_curl_line_gets_a_right_answer() {
    let folder = tempfile::tempdir().unwrap();
    let program = up(folder.path());
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: there is no curl on this machine");
        return;
    }
    let output = Command::new("sh").args(["-c", &program.said("try_it")]).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(digits::best_label(&answer), Some(2), "{answer}");
    assert!(program.terminate().unwrap().success());
}

#[test]
fn the_printed_line_for_texts_gives_vectors_and_like_texts_get_like_ones() {
    let folder = tempfile::tempdir().unwrap();
    let program = up(folder.path());
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: there is no curl on this machine");
        return;
    }
    let line = program.said("embed");
    // A third text, about something else.
    let line = line.replace("\"]", "\",\"Install the package with apt\"]");
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let vector = |index: usize| -> Vec<f64> {
        serde_json::from_value(answer["data"][index]["embedding"].clone())
            .unwrap_or_else(|why| panic!("{why}: {answer}"))
    };
    let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (lions, cats, package) = (vector(0), vector(1), vector(2));
    assert!((cosine(&lions, &lions) - 1.0).abs() < 1e-5, "they have length 1");
    assert!(cosine(&lions, &cats) > cosine(&lions, &package) + 0.2, "{}", cosine(&lions, &cats));
    assert!(program.terminate().unwrap().success());
}

#[tokio::test]
async fn the_grid_and_the_worker_read_digits_alike() {
    let folder = tempfile::tempdir().unwrap();
    let program = up(folder.path());
    let (client, digits) = (http::client(), digits::held_out());
    let (grid, worker) = (program.said("coordinator"), program.said("worker"));
    let mut right = 0;
    for index in 0..100 {
        let task = digits.task(index);
        let (status, direct) = http::post(&client, &format!("{worker}/api/tasks/execute"), &task).await.unwrap();
        assert_eq!(status, 200, "{direct}");
        let request = client.post(format!("{grid}/api/tasks")).header("Prefer", "wait=30").json(&task);
        let through: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        let label = digits::best_label(&direct);
        assert!(label.is_some(), "{direct}");
        assert_eq!(label, digits::best_label(&through), "{through}");
        right += usize::from(label == Some(digits.label(index)));
    }
    assert!(right >= 97, "{right} of 100 held-out digits were read right");
}

#[test]
fn one_shell_line_reads_a_digit_without_any_server() {
    let folder = tempfile::tempdir().unwrap();
    let task = digits::held_out().task(1);
    let file = folder.path().join("digit.json");
    std::fs::write(&file, task["input"]["tensors"].to_string()).unwrap();
    for backend in ["candle", "onnx"] {
        let mut command = command(folder.path());
        command
            .args(["--json", "--log", "warn", "run", "classify", "digits", "--backend", backend, "--tensors"])
            .arg(&file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(digits::best_label(&answer), Some(digits::held_out().label(1)), "{backend}: {answer}");
    }
}

#[test]
fn an_address_that_others_reach_needs_a_key() {
    let folder = tempfile::tempdir().unwrap();
    for program in [&["worker", "--bind", "0.0.0.0:0"][..], &["coordinator", "--bind", "0.0.0.0:0"]] {
        let output = command(folder.path()).args(program).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("--api-key"), "{error}");
    }
}
