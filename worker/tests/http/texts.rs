//! Texts over the API: whole and streamed, each caller its own, called off by hanging up, and what is told when they fail. The fake's next
//! token depends on all before it, so that a text which was mixed up with another would be another text.

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, embed};
use crate::bench::{Bench, start, start_with};

fn completion(prompt: &str, more: &Value) -> Value {
    let mut body = json!({"model": "writer", "prompt": prompt, "max_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn complete(bench: &Bench, prompt: &str, more: &Value) -> Answer {
    bench.api.post("/v1/completions", completion(prompt, more)).await
}

async fn text(bench: &Bench, prompt: &str) -> String {
    complete(bench, prompt, &json!({})).await.ok()["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// The events of a stream, each read as JSON, and whether it was said to be over.
fn events(body: &[u8]) -> (Vec<Value>, bool) {
    let text = std::str::from_utf8(body).unwrap();
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let is_over = data.last() == Some(&"[DONE]");
    data.retain(|data| *data != "[DONE]");
    (data.iter().map(|data| serde_json::from_str(data).unwrap()).collect(), is_over)
}

#[tokio::test]
async fn a_text_is_written_whole_or_in_chunks_and_is_the_same() {
    let bench = start();
    let chat = |more: &Value| {
        let mut body =
            json!({"model": "writer", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 9, "seed": 3});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let whole = bench.api.post("/v1/chat/completions", chat(&json!({}))).await.ok();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["role"], &whole["object"]), (&json!("assistant"), &json!("chat.completion")));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 9);
    assert_eq!(whole["usage"]["prompt_tokens"], 3);
    let words = message["content"].as_str().unwrap();
    assert_eq!(words.split_whitespace().count(), 9, "{words}");

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = bench.api.post("/v1/chat/completions", chat(&more)).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let (chunks, is_over) = events(&answer.body);
    assert!(is_over);
    let told: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(told, words);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 9);
    let ids: std::collections::BTreeSet<&str> = chunks.iter().filter_map(|chunk| chunk["id"].as_str()).collect();
    assert_eq!(ids.len(), 1);

    // The same words as a task.
    let task = json!({"kind": "chat", "model": "writer", "input": {
        "messages": [{"role": "user", "content": "a b"}], "options": {"max_tokens": 9, "seed": 3}}});
    let done = bench.api.execute(task).await.ok();
    assert_eq!((&done["kind"], &done["output"]["text"]), (&json!("chat"), &json!(words)));
    assert_eq!(done["usage"], json!({"input_tokens": 3, "cached_tokens": 0, "output_tokens": 9}));
    assert_eq!(done["output"]["finish"], "length");
}

#[tokio::test]
async fn each_of_many_callers_gets_what_it_gets_alone() {
    let bench = start();
    let prompts: Vec<String> = (0..48).map(|n| format!("caller {} says {}", n % 12, "word ".repeat(n))).collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(text(&bench, prompt).await);
    }
    let together = futures_util::future::join_all(prompts.iter().map(|prompt| text(&bench, prompt))).await;
    assert_eq!(together, alone);
    let metrics = bench.api.get("/api/metrics").await.ok();
    assert_eq!(metrics["output_tokens"], 2 * 48 * 12);
    let texts = bench.api.get("/status").await.ok()["models_loaded"][0]["texts"].clone();
    assert_eq!((&texts["running"], &texts["waiting"], &texts["kv_blocks_used"]), (&json!(0), &json!(0), &json!(0)));
    let tokens = |name: &str| texts[name].as_u64().unwrap();
    assert!(tokens("reused_tokens") > 0 && tokens("computed_tokens") > 2 * 48 * 12, "{texts}");
}

#[tokio::test]
async fn a_stop_string_ends_a_text_and_is_no_part_of_it() {
    let bench = start();
    let all = text(&bench, "a b").await;
    let words: Vec<&str> = all.split_whitespace().collect();
    let stop = format!("{} {}", words[4], words[5]);
    let answer = complete(&bench, "a b", &json!({"stop": stop})).await.ok();
    let want = all.split(&stop).next().unwrap();
    assert_eq!((&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]), (&json!(want), &json!("stop")));
}

#[tokio::test]
async fn log_probabilities_come_with_their_tokens() {
    let bench = start();
    let answer = complete(&bench, "a b", &json!({"logprobs": 2, "max_tokens": 3})).await.ok();
    let logprobs = &answer["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 3);
    assert_eq!(
        tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>(),
        answer["choices"][0]["text"].as_str().unwrap()
    );
    assert!(logprobs["token_logprobs"].as_array().unwrap().iter().all(|value| value.as_f64().unwrap() <= 0.0));
}

#[tokio::test]
async fn who_hangs_up_calls_its_text_off() {
    // Longer than anybody waits for.
    let bench = start();
    for stream in [true, false] {
        let held = bench.occupy().await;
        let body = completion("a", &json!({"max_tokens": 400, "stream": stream}));
        let request = bench.api.request(Method::POST, "/v1/completions").json(&body);
        let sending = tokio::spawn(async move { request.send().await.unwrap() });
        bench.inside(2).await;
        bench.gate.open();
        held.await.unwrap().ok();
        if stream {
            let mut body = sending.await.unwrap().bytes_stream();
            body.next().await.unwrap().unwrap();
            drop(body);
        } else {
            sending.abort();
        }
        bench.inside(0).await;
    }
    assert_eq!(text(&bench, "a b").await.split_whitespace().count(), 12);
}

#[tokio::test]
async fn a_model_that_fails_tells_each_caller_and_is_there_again() {
    let bench = start();
    let before = text(&bench, "a b").await;
    complete(&bench, "a !oom", &json!({})).await.problem(507, "out_of_memory");
    complete(&bench, "a !device", &json!({})).await.problem(500, "device_failed");
    complete(&bench, "a !panic", &json!({})).await.problem(500, "internal");
    // Of the texts that the crash ended nothing is shown any more.
    let texts = |bench: &Bench| bench.worker.status().loaded[0].texts.unwrap();
    let crashed = texts(&bench);
    assert_eq!((crashed.running, crashed.waiting, crashed.blocks.used), (0, 0, 0));
    bench.until(|status| status.loaded.iter().all(|model| model.condition.name() == "ready")).await;
    assert_eq!(text(&bench, "a b").await, before);
    let body = completion("a !device", &json!({"stream": true}));
    let answer = bench.api.post("/v1/completions", body).await;
    let (chunks, is_over) = events(&answer.body);
    assert!(!is_over && chunks.last().unwrap()["error"]["code"] == "device_failed", "{chunks:?}");
}

#[tokio::test]
async fn a_paused_worker_hands_its_texts_back() {
    let bench = start();
    let held = bench.occupy().await;
    let api = bench.api.clone();
    let writing = tokio::spawn(async move { api.post("/v1/completions", completion("a", &json!({}))).await });
    bench.inside(2).await;
    let api = bench.api.clone();
    let pausing = tokio::spawn(async move { api.post("/api/pause", json!({})).await });
    bench.until(|status| status.loaded.is_empty()).await;
    bench.gate.open();
    held.await.unwrap();
    writing.await.unwrap().problem(503, "unavailable");
    pausing.await.unwrap().ok();
    complete(&bench, "a", &json!({})).await.problem(503, "unavailable");
    bench.api.post("/api/resume", json!({})).await.ok();
    complete(&bench, "a", &json!({})).await.ok();
}

#[tokio::test]
async fn deadlines_hold_while_a_text_waits() {
    let bench = start();
    complete(&bench, "a", &json!({})).await.ok();
    let held = bench.occupy().await;
    let task = json!({"kind": "generate", "model": "writer", "deadline_ms": 30, "input": {"prompt": "a"}});
    bench.api.execute(task).await.problem(504, "deadline_exceeded");
    bench.gate.open();
    held.await.unwrap().ok();
    bench.inside(0).await;
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_with_the_reason() {
    let bench = start();
    let refused = async |path: &str, body: Value, status: u16, code: &str, part: &str| {
        let problem = bench.api.post(path, body).await.problem(status, code);
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
        assert!(problem["error"]["message"].as_str().unwrap().contains(part), "{problem}");
    };
    let chat = |messages: Value| json!({"model": "writer", "messages": messages});
    let path = "/v1/chat/completions";
    refused(path, chat(json!([])), 400, "invalid_input", "no message").await;
    refused(path, chat(json!("hello")), 400, "invalid_input", "messages").await;
    refused(
        path,
        json!({"model": "texts", "messages": [{"role": "user", "content": "a"}]}),
        400,
        "wrong_task",
        "embed",
    )
    .await;
    refused(
        path,
        json!({"model": "nobody", "messages": [{"role": "user", "content": "a"}]}),
        404,
        "model_not_found",
        "nobody",
    )
    .await;
    let path = "/v1/completions";
    refused(path, completion("a", &json!({"max_tokens": 9000})), 400, "too_long", "512").await;
    refused(path, completion(&"a ".repeat(600), &json!({"max_tokens": 1})), 400, "too_long", "601").await;
    refused(path, completion("a", &json!({"max_tokens": 0})), 400, "invalid_input", "max_tokens").await;
    refused(path, completion("a", &json!({"temperature": 9})), 400, "invalid_input", "temperature").await;
    refused(path, completion("a", &json!({"n": 2})), 400, "invalid_input", "n is 2").await;
    refused(path, json!({"model": "writer", "prompt": [999_999]}), 400, "invalid_input", "999999").await;
    refused("/v1/embeddings", json!({"model": "writer", "input": "a"}), 400, "wrong_task", "generate").await;
}

#[tokio::test]
async fn texts_and_batches_take_turns_on_a_device() {
    let bench = start();
    let long = {
        let api = bench.api.clone();
        tokio::spawn(async move { api.post("/v1/completions", completion("a", &json!({"max_tokens": 500}))).await })
    };
    for n in 0..20 {
        bench.api.execute(embed(&format!("text {n}"))).await.ok();
    }
    let answer = long.await.unwrap().ok();
    assert_eq!(answer["usage"]["completion_tokens"], 500);
}

#[tokio::test]
async fn more_texts_than_may_be_written_at_once_wait_and_more_than_may_wait_are_refused() {
    let bench = start_with(|options| {
        options.text.sequences_max = 2;
        options.text.queue_max = 3;
    });
    complete(&bench, "a", &json!({})).await.ok();
    let held = bench.occupy().await;
    let writing: Vec<_> = (0..8)
        .map(|n| {
            let api = bench.api.clone();
            let body = completion(&format!("a {n}"), &json!({}));
            tokio::spawn(async move { api.post("/v1/completions", body).await })
        })
        .collect();
    bench.inside(9).await;
    // Until they have their prompts and stand before the device.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    bench.gate.open();
    held.await.unwrap().ok();
    let mut answers = Vec::new();
    for answer in writing {
        answers.push(answer.await.unwrap());
    }
    let written = answers.iter().filter(|answer| answer.status == 200).count();
    // As many as may wait are taken at once; who comes after the first step may find a place.
    assert!((3..8).contains(&written), "{written}");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.problem(429, "queue_full");
    }
}
