//! The official OpenAI and Open Inference Protocol clients, pointed at a worker and at a coordinator.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]
#![expect(clippy::print_stdout, reason = "what was measured is said")]

use e2e::{Program, http, minilm, python, root};
use std::path::Path;
use std::process::Command;

fn run_client(python: &Path, script: &str, args: &[&str]) {
    let script = root().join("e2e/clients").join(script);
    let output = Command::new(python).arg(&script).args(args).env("NO_PROXY", "*").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}{err}");
    assert!(output.status.success(), "{} failed", script.display());
}

fn up(folder: &Path, more: &[&str]) -> Program {
    let args = [&["up", "--bind", "127.0.0.1:0", "--worker-bind", "127.0.0.1:0"], more].concat();
    Program::start(folder, &args).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_embeds_a_thousand_texts_on_a_worker_and_through_the_grid() {
    let (Some(python), Some(model)) = (python(), minilm()) else { return };
    let golden = root().join("models/tests/data");
    for (backend, provider) in [("auto", "kernels-cpu"), ("onnx", "CPUExecutionProvider")] {
        let folder = tempfile::tempdir().unwrap();
        let program = up(folder.path(), &["--backend", backend, "--model-folder", model.to_str().unwrap()]);
        for url in [program.said("worker"), program.said("coordinator")] {
            run_client(&python, "openai_embed.py", &[&url, golden.to_str().unwrap()]);
        }
        // What was asked for is what ran.
        let status = http::get(&http::client(), &format!("{}/status", program.said("worker"))).await.unwrap();
        let loaded = status["models_loaded"].as_array().unwrap();
        let minilm = loaded.iter().find(|model| model["model"] == "minilm@1").unwrap();
        assert_eq!(minilm["provider"], provider, "{status}");
    }
}

#[test]
fn the_triton_client_lists_checks_and_infers_digits() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = up(folder.path(), &[]);
    let digits = root().join("models/tests/data/digits_heldout.json");
    run_client(&python, "triton_digits.py", &[&program.said("worker"), digits.to_str().unwrap()]);
}
