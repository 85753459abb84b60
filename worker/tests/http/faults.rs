//! Engines that fail and crash: what must fail fails, the others in the batch are answered, and the worker goes on.

use serde_json::json;

use crate::api::{embed, embed_with};
use crate::bench::{Bench, start, start_with};

/// Runs these texts in one batch, and returns status and code of each.
async fn together(bench: &Bench, texts: &[&str]) -> Vec<(u16, String)> {
    let first = bench.occupy().await;
    let mut tasks = Vec::new();
    for (count, text) in texts.iter().enumerate() {
        tasks.push(bench.begin(embed(text)));
        bench.waiting(count + 1).await;
    }
    bench.gate.open();
    first.await.unwrap().ok();
    let mut ends = Vec::new();
    for task in tasks {
        let answer = task.await.unwrap();
        let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
        ends.push((answer.status, code));
    }
    assert!(bench.gate.batches().iter().any(|batch| batch.len() == texts.len()), "they were not together");
    ends
}

#[tokio::test]
async fn one_bad_item_in_a_batch_fails_alone() {
    let bench = start();
    for (bad, status, code) in
        [("!fail", 400, "invalid_input"), ("!nan", 500, "model_broken"), ("!oom", 507, "out_of_memory")]
    {
        let ends = together(&bench, &["good", bad, "fine", "well"]).await;
        let good = || (200, String::new());
        assert_eq!(ends, [good(), (status, code.to_owned()), good(), good()]);
    }
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn one_bad_text_of_a_task_fails_that_task_alone() {
    let bench = start();
    let first = bench.occupy().await;
    let mixed = bench.begin(embed_with("", &json!({"input": {"inputs": ["a", "!fail", "b"]}})));
    let good = bench.begin(embed_with("", &json!({"input": {"inputs": ["a", "b"]}})));
    bench.waiting(5).await;
    bench.gate.open();
    first.await.unwrap().ok();
    mixed.await.unwrap().problem(400, "invalid_input");
    assert_eq!(good.await.unwrap().ok()["output"]["embeddings"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_crash_fails_its_batch_and_nothing_else() {
    let bench = start();
    let other = json!({"kind": "classify", "model": "labels", "input": {"inputs": ["a"]}});
    bench.api.execute(other.clone()).await.ok();
    let ends = together(&bench, &["good", "!panic"]).await;
    assert_eq!(ends, [(500, "internal".to_owned()), (500, "internal".to_owned())]);
    bench.api.execute(other).await.ok();
    bench.api.execute(embed("waits for the new engine")).await.ok();
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
    assert_eq!(bench.api.get("/api/metrics").await.ok()["engine_panics"], 1);
    assert_eq!(bench.gate.loads(), 3);
}

#[tokio::test]
async fn a_model_that_crashes_too_often_is_out_of_use_until_it_is_loaded_afresh() {
    let bench = start_with(|options| options.devices.panics_max = 2);
    for _ in 0..2 {
        bench.api.execute(embed("!panic")).await.problem(500, "internal");
    }
    bench.until(|status| status.loaded.iter().any(|model| model.condition.name() == "broken")).await;
    bench.api.execute(embed("a")).await.problem(500, "model_broken");
    assert_eq!(bench.api.get("/health/ready").await.status, 503);
    bench.api.get("/v2/health/ready").await.problem(503, "unavailable");
    bench.api.get("/v2/models/texts/ready").await.problem(503, "unavailable");
    assert_eq!(bench.api.get("/health/live").await.status, 200);
    assert_eq!(bench.api.get("/health").await.ok()["status"], "degraded");
    bench.api.execute(json!({"kind": "classify", "model": "labels", "input": {"inputs": ["a"]}})).await.ok();
    assert_eq!(bench.api.delete("/api/models/texts").await.status, 204);
    bench.api.execute(embed("a")).await.ok();
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn a_failing_device_shows_and_its_next_answer_clears_it() {
    let bench = start();
    bench.api.execute(embed("!device")).await.problem(500, "device_failed");
    let ready = bench.api.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.json()["because"].to_string().contains("cpu is failing"));
    bench.api.execute(embed("a")).await.ok();
    assert_eq!(bench.api.get("/health/ready").await.status, 200);
}
