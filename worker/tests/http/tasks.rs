//! Tasks that are done while the caller waits, and those that are taken in: how they stand, what came of them, how long
//! that is kept.

use serde_json::{Value, json};

use crate::api::{Answer, embed, embed_with, infer};
use crate::bench::{Bench, start, start_with};

/// Waits until a task has ended, and returns how it stands.
async fn ended(bench: &Bench, id: &str) -> Value {
    loop {
        let status = bench.api.get(&format!("/api/tasks/{id}")).await.ok();
        if status["finished_ms"].is_number() {
            return status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

async fn result(bench: &Bench, id: &str) -> Answer {
    bench.api.get(&format!("/api/tasks/{id}/result")).await
}

#[tokio::test]
async fn every_kind_of_task_is_answered_in_its_shape() {
    let bench = start();
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [[1, 2, 3, 4], [5, 6, 7, 8.5]]});
    let cases = [
        (json!({"kind": "embed", "model": "texts", "input": {"inputs": ["a", [17, 18]], "dimensions": 3}}), vec![2, 3]),
        (json!({"kind": "rerank", "model": "pairs", "input": {"query": "q", "documents": ["a", "b", "c"]}}), vec![3]),
        (json!({"kind": "classify", "model": "labels@1", "input": {"inputs": ["a"], "top_n": 2}}), vec![1, 2]),
        (infer(&tensor), vec![1]),
    ];
    for (task, shape) in cases {
        let answer = bench.api.execute(task.clone()).await.ok();
        let model = task["model"].as_str().unwrap().trim_end_matches("@1");
        assert_eq!((&answer["kind"], &answer["model"]), (&task["kind"], &json!(format!("{model}@1"))), "{answer}");
        let mut part = answer["output"].as_object().unwrap().values().next().unwrap();
        for length in shape {
            assert_eq!(part.as_array().unwrap().len(), length, "{answer}");
            part = &part[0];
        }
        assert_eq!(answer["facts"]["execution_class"], "fake");
        assert_eq!(answer["usage"]["input_tokens"].as_u64() > Some(0), model != "tensors");
    }
    let doubled = bench.api.execute(infer(&tensor)).await.ok();
    let want = json!([{"name": "y", "datatype": "FP32", "shape": [2, 4],
        "data": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0]}]);
    assert_eq!(doubled["output"]["outputs"], want);
}

#[tokio::test]
async fn an_answer_does_not_depend_on_who_else_is_in_the_batch() {
    let bench = start();
    let alone = bench.api.execute(embed("me myself")).await.ok()["output"].clone();
    let first = bench.occupy().await;
    let tasks: Vec<_> = ["me myself", "somebody", "else"].map(|text| bench.begin(embed(text))).into();
    bench.waiting(3).await;
    bench.gate.open();
    first.await.unwrap().ok();
    let mut outputs = Vec::new();
    for task in tasks {
        outputs.push(task.await.unwrap().ok()["output"].clone());
    }
    assert_eq!(bench.gate.batches().last().unwrap().len(), 3);
    assert_eq!(outputs[0], alone);
    assert_ne!(outputs[1], outputs[2]);
}

#[tokio::test]
async fn a_task_that_nobody_waits_for_is_asked_for_later() {
    let bench = start();
    let first = bench.occupy().await;
    let request = bench.api.request(reqwest::Method::POST, "/api/tasks/execute").json(&embed("later"));
    let accepted = crate::api::send(request.header("prefer", "wait=5, Respond-Async")).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(accepted.header("preference-applied"), Some("respond-async"));
    let id = accepted.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(accepted.header("location"), Some(format!("/api/tasks/{id}").as_str()));
    assert_eq!(accepted.json()["model"], "texts@1");

    let status = bench.api.get(&format!("/api/tasks/{id}")).await.ok();
    assert_eq!((&status["id"], &status["kind"], &status["priority"]), (&json!(id), &json!("embed"), &json!(4)));
    assert!(status.get("finished_ms").is_none());
    result(&bench, &id).await.problem(409, "not_finished");

    bench.gate.open();
    first.await.unwrap().ok();
    let status = ended(&bench, &id).await;
    assert_eq!((&status["state"], &status["model"]), (&json!("succeeded"), &json!("texts@1")));
    let kept = result(&bench, &id).await.ok();
    assert_eq!(kept["id"], id.as_str());
    assert_eq!(kept["output"], bench.api.execute(embed("later")).await.ok()["output"]);
    assert_eq!(result(&bench, &id).await.ok(), kept, "it may be asked for again");

    bench.api.delete(&format!("/api/tasks/{id}")).await.ok();
    result(&bench, &id).await.problem(404, "task_not_found");
}

#[tokio::test]
async fn what_became_of_a_task_that_failed_is_told_like_any_failure() {
    let bench = start();
    let cases = [
        (embed("!fail"), "failed", "caller", 400, "invalid_input"),
        (embed("!nan"), "failed", "model", 500, "model_broken"),
        (embed("!oom"), "failed", "resource", 507, "out_of_memory"),
        (embed("!panic"), "failed", "worker", 500, "internal"),
    ];
    for (task, state, fault, status, code) in cases {
        let id = bench.api.submit(task).await;
        let stands = ended(&bench, &id).await;
        assert_eq!((&stands["state"], &stands["failure"]["fault"]), (&json!(state), &json!(fault)), "{stands}");
        assert_eq!((&stands["failure"]["code"], &stands["failures"]), (&json!(code), &json!(1)));
        result(&bench, &id).await.problem(status, code);
    }
    bench.gate.shut();
    let id = bench.api.submit(embed_with("late", &json!({"deadline_ms": 20}))).await;
    assert_eq!(ended(&bench, &id).await["state"], "expired");
    result(&bench, &id).await.problem(504, "deadline_exceeded");
}

#[tokio::test]
async fn a_called_off_task_frees_its_place_and_is_never_run() {
    let bench = start_with(|options| options.admission.tasks_max = 2);
    let first = bench.occupy().await;
    let id = bench.api.submit(embed("called off and never run")).await;
    bench.waiting(1).await;
    bench.api.execute(embed("a")).await.problem(429, "queue_full");
    let status = bench.api.delete(&format!("/api/tasks/{id}")).await.ok();
    assert_eq!(status["state"], "cancelled");
    bench.inside(1).await;
    let next = bench.begin(embed("a"));
    bench.waiting(1).await;
    bench.gate.open();
    first.await.unwrap().ok();
    next.await.unwrap().ok();
    assert_eq!(bench.gate.batches(), [vec![4], vec![2]]);
    result(&bench, &id).await.problem(409, "cancelled");
}

#[tokio::test]
async fn so_many_results_are_kept_and_those_that_ended_first_go_first() {
    let bench = start_with(|options| options.http.results_max = 2);
    bench.gate.shut();
    let slow = bench.api.submit(embed("slow")).await;
    bench.gate.begun(1).await;
    let mut called_off = Vec::new();
    for _ in 0..3 {
        let id = bench.api.submit(embed("called off")).await;
        bench.api.delete(&format!("/api/tasks/{id}")).await.ok();
        called_off.push(id);
    }
    bench.gate.open();
    ended(&bench, &slow).await;
    result(&bench, &slow).await.ok();
    result(&bench, &called_off[0]).await.problem(404, "task_not_found");
    result(&bench, &called_off[1]).await.problem(404, "task_not_found");
    result(&bench, &called_off[2]).await.problem(409, "cancelled");
}

#[tokio::test]
async fn a_result_that_cannot_be_kept_is_said_to_be_too_large() {
    let bench = start_with(|options| options.http.results_bytes_max = 100);
    let id = bench.api.submit(embed("a")).await;
    ended(&bench, &id).await;
    result(&bench, &id).await.problem(507, "insufficient_storage");
}

#[tokio::test]
async fn a_result_is_gone_after_its_time() {
    let bench = start_with(|options| options.http.result_retention = std::time::Duration::ZERO);
    let id = bench.api.submit(embed("a")).await;
    bench.inside(0).await;
    // In the second in which it came it may still be taken for one that never was.
    let answer = loop {
        let answer = result(&bench, &id).await;
        if answer.json()["code"] != "not_finished" {
            break answer;
        }
    };
    assert!([404, 410].contains(&answer.status), "{answer:?}");
}

#[tokio::test]
async fn numbers_that_json_cannot_carry_are_not_sent_as_null() {
    let bench = start();
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 3e38]});
    bench.api.execute(infer(&tensor)).await.problem(400, "not_finite");
    let id = bench.api.submit(infer(&tensor)).await;
    ended(&bench, &id).await;
    result(&bench, &id).await.problem(400, "not_finite");
}
