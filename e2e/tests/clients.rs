//! The official OpenAI and Open Inference Protocol clients, pointed at a worker and at a coordinator.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]
#![expect(clippy::print_stdout, reason = "what was measured is said")]

use e2e::{Program, http, minilm, node_packages, python, root};
use serde_json::{Value, json};
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

/// The tiny encoder as sentence-transformers keeps a model with prompts, trained for 8 and 16 dimensions.
fn model_with_prompts(folder: &Path) {
    let from = e2e::tiny_bert();
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    for name in ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["matryoshka_dimensions"] = json!([8, 16]);
    write("config.json", config);
    let step = |name: &str, path: &str| json!({"type": format!("sentence_transformers.models.{name}"), "path": path});
    let steps = [step("Transformer", ""), step("Pooling", "1_Pooling"), step("Normalize", "2_Normalize")];
    write("modules.json", json!(steps));
    let prompts = json!({"query": "find what answers the question: ", "document": "read: ", "bare": ""});
    write("config_sentence_transformers.json", json!({"prompts": prompts, "default_prompt_name": "document"}));
}

#[test]
fn the_openai_client_chooses_prompts_and_dimensions_on_a_worker_and_through_the_grid() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("asks");
    model_with_prompts(&model);
    let program = up(folder.path(), &["--model-folder", model.to_str().unwrap()]);
    run_client(&python, "openai_prompts.py", &[&program.said("worker"), &program.said("coordinator")]);
}

/// The bundled model that writes text, with a chat template that knows tools.
fn model_with_tools(folder: &Path) {
    let from = root().join("models/bundled/debian-tiny-chat");
    std::fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let settings = std::fs::read(from.join("tokenizer_config.json")).unwrap();
    let mut settings: Value = serde_json::from_slice(&settings).unwrap();
    let template = settings["chat_template"].as_str().unwrap();
    let told = "{% if tools %}Write <tool_call>{\"name\": …, \"arguments\": …}</tool_call> to call: {{ tools | tojson }}{% endif %}";
    settings["chat_template"] = format!("{told}{template}").into();
    std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

#[test]
fn the_openai_client_has_texts_written_on_a_worker_and_through_the_grid() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("caller");
    model_with_tools(&model);
    let program = up(folder.path(), &["--model-folder", model.to_str().unwrap()]);
    run_client(&python, "openai_chat.py", &[&program.said("worker"), &program.said("coordinator")]);
}

#[test]
fn openais_client_for_node_has_texts_written_on_a_worker_and_through_the_grid() {
    let Some(packages) = node_packages() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("caller");
    model_with_tools(&model);
    let program = up(folder.path(), &["--model-folder", model.to_str().unwrap()]);
    let mut node = Command::new("node");
    node.arg(root().join("e2e/clients/openai_chat.mjs")).env("NEUROGRID_TEST_NODE", packages);
    let output = node.args([program.said("worker"), program.said("coordinator")]).output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

#[test]
fn the_triton_client_lists_checks_and_infers_digits() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = up(folder.path(), &[]);
    let digits = root().join("models/tests/data/digits_heldout.json");
    run_client(&python, "triton_digits.py", &[&program.said("worker"), digits.to_str().unwrap()]);
}
