//! More work than there is room or time for: refusals at once, deadlines, callers who leave, priorities.

use reqwest::Method;
use serde_json::json;

use crate::api::{Answer, embed, embed_with, send};
use crate::bench::{Bench, start, start_with};

async fn opened(bench: &Bench, tasks: impl IntoIterator<Item = tokio::task::JoinHandle<Answer>>) {
    bench.gate.open();
    for task in tasks {
        task.await.unwrap().ok();
    }
}

#[tokio::test]
async fn a_full_worker_says_so_at_once_on_every_route() {
    let bench = start_with(|options| options.admission.tasks_max = 2);
    let tasks = [bench.occupy().await, bench.begin(embed("waits"))];
    bench.waiting(1).await;
    // The gate is shut: whoever is answered now has not waited for the device.
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]});
    let cases = [
        ("/api/tasks/execute", embed("a")),
        ("/v1/embeddings", json!({"model": "texts", "input": "a"})),
        ("/v1/rerank", json!({"model": "pairs", "query": "q", "documents": ["a"]})),
        ("/v2/models/tensors/infer", json!({"inputs": [tensor]})),
    ];
    let count = cases.len() as u64;
    for (path, body) in cases {
        let answer = bench.api.post(path, body).await;
        answer.problem(429, "queue_full");
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    let later = bench.api.request(Method::POST, "/api/tasks/execute").header("prefer", "respond-async");
    send(later.json(&embed("a"))).await.problem(429, "queue_full");
    assert_eq!(bench.api.get("/status").await.ok()["tasks_refused"], count + 1);
    opened(&bench, tasks).await;
    bench.api.execute(embed("a")).await.ok();
}

#[tokio::test]
async fn deadlines_hold_in_the_queue_and_on_the_device() {
    let bench = start();
    bench.gate.shut();
    let soon = |text| embed_with(text, &json!({"deadline_ms": 30}));
    let running = bench.begin(soon("is on the device"));
    bench.gate.begun(1).await;
    let waiting = bench.begin(soon("waits and is never run"));
    let patient = bench.begin(embed("waits"));
    running.await.unwrap().problem(504, "deadline_exceeded");
    waiting.await.unwrap().problem(504, "deadline_exceeded");
    let raw = json!({"parameters": {"timeout": 20_000},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]});
    bench.api.post("/v2/models/tensors/infer", raw).await.problem(504, "deadline_exceeded");
    bench.waiting(1).await;
    opened(&bench, [patient]).await;
    assert_eq!(bench.gate.batches(), [vec![5], vec![2]]);
}

#[tokio::test]
async fn a_caller_who_hangs_up_frees_its_place_in_the_queue_and_on_the_device() {
    let bench = start_with(|options| options.admission.tasks_max = 2);
    let running = bench.occupy().await;
    let waiting = bench.begin(embed("hangs up and is never run"));
    bench.waiting(1).await;
    waiting.abort();
    bench.inside(1).await;
    bench.waiting(0).await;
    running.abort();
    bench.inside(0).await;
    let tasks = [bench.begin(embed("a b")), bench.begin(embed("a b"))];
    bench.waiting(2).await;
    opened(&bench, tasks).await;
    assert_eq!(bench.gate.batches(), [vec![4], vec![3, 3]]);
    let failed = bench.api.get("/api/metrics").await.ok()["tasks_failed"]["cancelled"].clone();
    assert_eq!(failed, 2);
}

#[tokio::test]
async fn the_higher_priority_goes_first_and_equals_go_in_their_order() {
    let bench = start_with(|options| options.batch.sequences_max = 1);
    let mut tasks = vec![bench.occupy().await];
    // By the number of words: a batch's cost is one more.
    for (count, (words, priority)) in [(1, 0), (2, 4), (3, 9), (4, 4), (5, 9)].into_iter().enumerate() {
        let text = vec!["w"; words].join(" ");
        tasks.push(bench.begin(embed_with(&text, &json!({"priority": priority}))));
        bench.waiting(count + 1).await;
    }
    opened(&bench, tasks).await;
    assert_eq!(bench.gate.batches(), [[4], [4], [6], [3], [5], [2]]);
}

#[tokio::test]
async fn what_waits_shares_a_batch_within_the_budget_and_one_that_is_larger_goes_alone() {
    let bench = start_with(|options| options.batch.tokens_max_cpu = 10);
    let mut tasks = vec![bench.occupy().await];
    for (count, words) in [3, 4, 3, 20].into_iter().enumerate() {
        tasks.push(bench.begin(embed(&vec!["w"; words].join(" "))));
        bench.waiting(count + 1).await;
    }
    opened(&bench, tasks).await;
    let mut batches = bench.gate.batches();
    assert_eq!(batches.remove(0), [4]);
    assert!(batches.iter().all(|batch| batch.iter().sum::<usize>() <= 10 || batch.len() == 1), "{batches:?}");
    let mut costs = batches.concat();
    costs.sort_unstable();
    assert_eq!(costs, [4, 4, 5, 21]);
    assert!(batches.len() < 4, "{batches:?}");
}

#[tokio::test]
async fn bodies_share_one_budget_and_a_refused_one_may_come_again() {
    let bench = start_with(|options| options.http.bodies_bytes_max = 1000);
    let first = bench.begin(embed(&"x".repeat(600)));
    bench.inside(0).await;
    first.await.unwrap().ok();
    let held = bench.occupy().await;
    let task = bench.begin(embed(&"x".repeat(600)));
    bench.waiting(1).await;
    bench.api.execute(embed(&"x".repeat(600))).await.problem(429, "queue_full");
    opened(&bench, [held, task]).await;
    bench.api.execute(embed(&"x".repeat(600))).await.ok();
}

#[tokio::test]
async fn the_figures_count_what_was_done_and_what_was_not() {
    let bench = start();
    bench.api.execute(embed("a b")).await.ok();
    bench.api.execute(embed("a")).await.ok();
    bench.api.execute(embed("!fail")).await.problem(400, "invalid_input");
    let figures = bench.api.get("/api/metrics").await.ok();
    assert_eq!((&figures["tasks_done"], &figures["input_tokens"]), (&json!(2), &json!(5)), "{figures}");
    assert_eq!((&figures["batches"], &figures["tasks_failed"]["caller"]), (&json!(2), &json!(1)));
    assert_eq!(figures["distributions"]["task_us"]["count"], 2);
    let answer = bench.api.get("/metrics").await;
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = std::str::from_utf8(&answer.body).unwrap();
    for line in [
        "neurogrid_worker_tasks_done_total 2",
        "neurogrid_worker_tasks_failed_total{fault=\"caller\"} 1",
        "neurogrid_worker_tasks_inside 0",
        "neurogrid_worker_ready 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let base = name.split('{').next().unwrap();
        assert!(base.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}
