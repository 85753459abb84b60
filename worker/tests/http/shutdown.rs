//! Starting, pausing and shutting down: who is let in, who is told what, and what is finished.

use serde_json::json;

use crate::api::embed;
use crate::bench::{Gate, start, start_behind, start_with};

#[tokio::test]
async fn a_worker_has_started_when_the_models_asked_for_are_loaded() {
    let gate = Gate::default();
    gate.hold_loading();
    let bench = start_behind(gate, |options| options.devices.preload = vec!["texts".into()]);
    bench.until(|status| status.loading == ["texts@1"]).await;
    for path in ["/health/startup", "/health/ready"] {
        let answer = bench.api.get(path).await;
        assert_eq!((answer.status, &answer.json()["status"]), (503, &json!("unavailable")), "{path}");
    }
    assert_eq!(bench.api.get("/health/live").await.status, 200);
    assert_eq!(bench.api.get("/status").await.ok()["models_loading"], json!(["texts@1"]));
    bench.gate.let_load();
    bench.until(|status| status.has_started).await;
    for path in ["/health/startup", "/health/ready"] {
        assert_eq!(bench.api.get(path).await.ok()["status"], "ok");
    }
}

#[tokio::test]
async fn a_worker_that_shuts_down_refuses_newcomers_and_finishes_what_is_inside() {
    let mut bench = start();
    let inside = [bench.occupy().await, bench.begin(embed("waits"))];
    bench.waiting(1).await;
    bench.stop.cancel();
    bench.until(|status| !status.not_ready_because.is_empty()).await;
    assert_eq!(bench.api.get("/health/ready").await.status, 503);
    assert_eq!(bench.api.get("/health/live").await.status, 200);
    let refused = bench.api.execute(embed("late")).await;
    refused.problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    bench.api.post("/api/models/labels", json!({})).await.problem(503, "unavailable");
    bench.api.post("/api/pause", json!({})).await.problem(503, "unavailable");
    assert_eq!(bench.api.get("/status").await.ok()["state"], "draining");
    bench.gate.open();
    for task in inside {
        task.await.unwrap().ok();
    }
    (&mut bench.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_done_in_time_is_told_when_the_worker_goes() {
    let mut bench = start_with(|options| options.admission.drain_timeout = std::time::Duration::from_millis(10));
    let running = bench.occupy().await;
    let waiting = bench.begin(embed("waits"));
    bench.waiting(1).await;
    bench.stop.cancel();
    running.await.unwrap().problem(503, "unavailable");
    waiting.await.unwrap().problem(503, "unavailable");
    bench.gate.open();
    (&mut bench.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_paused_worker_hands_its_tasks_back_and_works_again_when_it_may() {
    let bench = start();
    let running = bench.occupy().await;
    let waiting = bench.begin(embed("waits"));
    bench.waiting(1).await;
    let api = bench.api.clone();
    let pausing = tokio::spawn(async move { api.post("/api/pause", json!({})).await });
    running.await.unwrap().problem(503, "unavailable");
    waiting.await.unwrap().problem(503, "unavailable");
    bench.gate.open();
    let paused = pausing.await.unwrap().ok();
    assert_eq!((&paused["state"], &paused["models_loaded"]), (&json!("paused"), &json!([])));
    assert_eq!(paused["devices"][0]["reserved_bytes"], 0);
    assert_eq!(bench.api.get("/health/ready").await.status, 503);
    bench.api.execute(embed("a")).await.problem(503, "unavailable");
    bench.api.post("/api/models/texts", json!({})).await.problem(503, "unavailable");
    assert_eq!(bench.api.post("/api/resume", json!({})).await.ok()["state"], "open");
    bench.api.execute(embed("a")).await.ok();
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
}
