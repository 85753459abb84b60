//! Models over the API: listed, loaded once however many ask, unloaded, pinned, forgotten.

use reqwest::Method;
use serde_json::json;

use crate::api::{embed, send};
use crate::bench::{start, start_with};

#[tokio::test]
async fn a_model_is_loaded_when_it_is_asked_for_and_unloaded_when_that_is_said() {
    let bench = start();
    let info = bench.api.get("/api/models/texts").await.ok();
    assert_eq!((&info["id"], &info["task"], &info["pinned"]), (&json!("texts@1"), &json!("embed"), &json!(false)));
    assert!(info.get("loaded").is_none());
    let names = bench.api.get("/api/models").await.ok()["models"].as_array().unwrap().clone();
    let names: Vec<&str> = names.iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(names, ["digits@1", "labels@1", "minilm-tiny@1", "pairs@1", "tensors@1", "texts@1", "writer@1"]);

    for name in ["texts", "texts@1"] {
        let loaded = bench.api.post(&format!("/api/models/{name}"), json!({})).await.ok();
        assert_eq!((&loaded["loaded"]["condition"], &loaded["loaded"]["device"]), (&json!("ready"), &json!("cpu")));
    }
    assert_eq!(bench.gate.loads(), 1);
    assert_eq!(bench.api.get("/status").await.ok()["models_loaded"][0]["model"], "texts@1");
    assert_eq!(bench.api.delete("/api/models/texts").await.status, 204);
    bench.api.delete("/api/models/texts").await.problem(404, "model_not_found");
    bench.api.execute(embed("a")).await.ok();
    assert_eq!(bench.gate.loads(), 2);
}

#[tokio::test]
async fn one_load_serves_all_who_ask() {
    let bench = start();
    bench.gate.hold_loading();
    let tasks: Vec<_> = (0..8).map(|_| bench.begin(embed("a"))).collect();
    bench.inside(8).await;
    bench.until(|status| status.loading == ["texts@1"]).await;
    bench.gate.let_load();
    for task in tasks {
        task.await.unwrap().ok();
    }
    assert_eq!(bench.gate.loads(), 1);
}

#[tokio::test]
async fn an_unloading_waits_for_those_who_use_the_model() {
    let bench = start();
    let running = bench.occupy().await;
    let api = bench.api.clone();
    let unloading = tokio::spawn(async move { api.delete("/api/models/texts").await });
    bench.until(|status| status.loaded.is_empty()).await;
    bench.gate.open();
    running.await.unwrap().ok();
    assert_eq!(unloading.await.unwrap().status, 204);
}

#[tokio::test]
async fn a_pinned_model_is_neither_forgotten_nor_pushed_out() {
    // A model counts as 64 MiB and its files: there is room for one.
    let bench = start_with(|options| {
        options.compute.backend = ::models::load::Backend::Auto;
        options.devices.devices =
            vec![worker::config::DeviceOptions { device: ::models::engine::Device::Cpu, memory_bytes: 100 << 20 }];
    });
    let pin = |method: Method| send(bench.api.request(method, "/api/models/texts/pin"));
    assert_eq!(pin(Method::PUT).await.ok()["pinned"], true);
    bench.api.delete("/api/models/texts?files=true").await.problem(409, "conflict");
    bench.api.post("/api/models/texts", json!({})).await.ok();
    bench.api.post("/api/models/pairs", json!({})).await.problem(507, "out_of_memory");
    assert_eq!(pin(Method::DELETE).await.ok()["pinned"], false);
    bench.api.post("/api/models/pairs", json!({})).await.ok();
    assert!(bench.api.get("/api/models/texts").await.ok().get("loaded").is_none(), "it made room");
    assert_eq!(bench.api.delete("/api/models/texts?files=true").await.status, 204);
    bench.api.get("/api/models/texts").await.problem(404, "model_not_found");
    bench.api.execute(embed("a")).await.problem(404, "model_not_found");
}

#[tokio::test]
async fn the_protocols_repository_lists_loads_and_unloads() {
    let bench = start();
    let index = bench.api.post("/v2/repository/index", json!({})).await.ok();
    let texts = index.as_array().unwrap().iter().find(|model| model["name"] == "texts").unwrap();
    assert_eq!(texts, &json!({"name": "texts", "version": "1", "state": "READY", "reason": ""}));
    for verb in ["unload", "load", "load", "unload", "unload"] {
        let path = format!("/v2/repository/models/texts/{verb}");
        let answer = bench.api.post(&path, json!({"parameters": {"unload_dependents": false}})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(bench.gate.loads(), 1);
}
