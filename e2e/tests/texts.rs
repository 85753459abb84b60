//! Texts that are streamed through a grid whose workers are killed in the middle.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::{Program, free_port, http};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

const TOKENS: usize = 300;

fn worker(folder: &Path, url: &str) -> Program {
    Program::start(folder, &["worker", "--coordinator", url, "--bind", "127.0.0.1:0"]).unwrap()
}

fn body(number: usize, stream: bool) -> Value {
    json!({
        "model": "debian-tiny-chat", "messages": [{"role": "user", "content": format!("What is package {number} for?")}],
        "max_tokens": TOKENS, "temperature": 0.8, "seed": number, "ignore_eos": true, "stream": stream,
    })
}

/// What came of a stream.
#[derive(Debug, Default)]
struct Streamed {
    text: String,
    task: String,
    is_over: bool,
    error: Option<String>,
}

/// Reads a stream to its end, and tells when its first words are there.
async fn read(client: reqwest::Client, url: String, number: usize, begun: watch::Sender<usize>) -> Streamed {
    let response = client.post(url).json(&body(number, true)).send().await.unwrap();
    let mut seen = Streamed::default();
    if !response.status().is_success() {
        seen.error = Some(response.text().await.unwrap());
        return seen;
    }
    let (mut response, mut held) = (response, Vec::new());
    while let Some(bytes) = response.chunk().await.unwrap() {
        held.extend_from_slice(&bytes);
        while let Some(end) = held.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = held.drain(..end + 2).collect();
            let Some(data) = std::str::from_utf8(&event).unwrap().trim().strip_prefix("data: ").map(str::to_owned)
            else {
                continue;
            };
            if data == "[DONE]" {
                seen.is_over = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(&data).unwrap();
            if let Some(error) = chunk.get("error") {
                seen.error = Some(error.to_string());
            }
            if let Some(words) = chunk["choices"][0]["delta"]["content"].as_str().filter(|words| !words.is_empty()) {
                if seen.text.is_empty() {
                    begun.send_modify(|count| *count += 1);
                }
                seen.text.push_str(words);
            }
            if let Some(id) = chunk["id"].as_str() {
                seen.task = id.trim_start_matches("chatcmpl-").to_owned();
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_go_on_elsewhere_when_their_worker_is_killed_and_nothing_is_missing_or_twice() {
    const TEXTS: usize = 12;
    let folder = tempfile::tempdir().unwrap();
    let bind = format!("127.0.0.1:{}", free_port());
    let coordinator = Program::start(&folder.path().join("coordinator"), &["coordinator", "--bind", &bind]).unwrap();
    let url = coordinator.said("coordinator");
    let mut workers: Vec<Program> = ["a", "b"].map(|name| worker(&folder.path().join(name), &url)).into();
    let client = http::client();
    http::until("two workers are connected", Duration::from_secs(30), async || {
        let nodes = http::get(&client, &format!("{url}/api/nodes")).await?;
        let list = nodes.as_array().cloned().unwrap_or_default();
        Ok((list.iter().filter(|node| node["link"].is_object()).count() == 2).then_some(()))
    })
    .await
    .unwrap();

    let route = format!("{url}/v1/chat/completions");
    let mut want = Vec::new();
    for number in 0..TEXTS {
        let (status, answer) = http::post(&client, &route, &body(number, false)).await.unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(TOKENS)), "{answer}");
        want.push(answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
    }

    let mut lost = 0;
    // A worker that has nothing to do when it is killed proves nothing: once more, then.
    for round in 0..5 {
        let (begun, mut count) = watch::channel(0);
        let streams: Vec<_> =
            (0..TEXTS).map(|number| tokio::spawn(read(client.clone(), route.clone(), number, begun.clone()))).collect();
        count.wait_for(|count| *count >= 3).await.unwrap();
        workers.remove(0).kill();
        for (number, stream) in streams.into_iter().enumerate() {
            let seen = stream.await.unwrap();
            assert!(seen.is_over && seen.error.is_none(), "{number}: {seen:?}");
            assert_eq!(seen.text, want[number], "{number}");
            let attempts = http::get(&client, &format!("{url}/api/tasks/{}/attempts", seen.task)).await.unwrap();
            lost += usize::from(attempts.as_array().unwrap().iter().any(|attempt| attempt["outcome"] == "lost"));
        }
        if lost > 0 {
            break;
        }
        workers.push(worker(&folder.path().join(format!("more-{round}")), &url));
    }
    assert!(lost > 0, "no text was ever lost with its worker");
    assert!(coordinator.terminate().unwrap().success());
}
