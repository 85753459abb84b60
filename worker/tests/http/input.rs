//! Bad input of every kind: each gets a problem of the right status and code, and the worker goes on.

use futures_util::stream;
use reqwest::{Body, Method};
use serde_json::{Value, json};

use crate::api::{embed, embed_with, infer, send};
use crate::bench::{start, start_with};

/// A tensor of the fake model's input.
fn tensor(more: Value) -> Value {
    let mut tensor = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]});
    tensor.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    tensor
}

#[tokio::test]
async fn tasks_that_cannot_be_done_are_refused_with_the_reason() {
    let bench = start();
    let words = |count: usize| vec!["word"; count].join(" ");
    let cases = [
        (embed_with("a", &json!({"model": "nobody"})), 404, "model_not_found"),
        (embed_with("a", &json!({"model": "texts@9"})), 404, "model_not_found"),
        (embed_with("a", &json!({"model": "tensors"})), 400, "wrong_task"),
        (embed_with("a", &json!({"kind": "dance"})), 400, "invalid_json"),
        (embed_with("a", &json!({"priority": 10})), 400, "invalid_json"),
        (embed_with("a", &json!({"prioritty": 1})), 400, "invalid_json"),
        (embed_with("a", &json!({"deadline_ms": -1})), 400, "invalid_json"),
        (embed_with("a", &json!({"deadline_ms": 0})), 504, "deadline_exceeded"),
        (embed_with("a", &json!({"input": {"inputs": "a"}})), 400, "invalid_json"),
        (embed_with("a", &json!({"input": {"inputs": []}})), 400, "invalid_input"),
        (embed_with("a", &json!({"input": {"inputs": vec!["a"; 2049]}})), 400, "invalid_input"),
        (embed_with("a", &json!({"input": {"inputs": [[]]}})), 400, "invalid_input"),
        (embed_with("a", &json!({"input": {"inputs": [[65_536]]}})), 400, "invalid_input"),
        (embed_with("a", &json!({"input": {"inputs": ["a"], "dimensions": 0}})), 400, "invalid_input"),
        (embed_with("a", &json!({"input": {"inputs": ["a"], "dimensions": 9}})), 400, "invalid_input"),
        (embed(&words(512)), 400, "too_long"),
        (embed(&"x".repeat((1 << 20) + 1)), 400, "invalid_input"),
        (json!({"kind": "rerank", "model": "pairs", "input": {"query": "q", "documents": []}}), 400, "invalid_input"),
        (json!({"kind": "classify", "model": "labels", "input": {}}), 400, "invalid_input"),
        (json!({"kind": "classify", "model": "labels", "input": {"inputs": ["a"], "top_n": 0}}), 400, "invalid_input"),
        (infer(&tensor(json!({"name": "z"}))), 400, "invalid_input"),
        (infer(&tensor(json!({"shape": [1, 3]}))), 400, "wrong_shape"),
        (infer(&tensor(json!({"shape": [4]}))), 400, "wrong_shape"),
        (infer(&tensor(json!({"shape": [2, 2]}))), 400, "wrong_shape"),
        (infer(&tensor(json!({"shape": [0, 4], "data": []}))), 400, "wrong_shape"),
        (infer(&tensor(json!({"shape": [u64::MAX, 4]}))), 400, "wrong_shape"),
        (infer(&tensor(json!({"shape": [-1, 4]}))), 400, "invalid_json"),
        (infer(&tensor(json!({"datatype": "INT64"}))), 400, "wrong_type"),
        (infer(&tensor(json!({"data": [1, 2, 3, 1e39]}))), 400, "not_finite"),
        (infer(&tensor(json!({"data": [1, 2, 3, "4"]}))), 400, "invalid_json"),
        (infer(&tensor(json!({"data": null}))), 400, "invalid_json"),
    ];
    for (task, status, code) in cases {
        let answer = bench.api.execute(task.clone()).await;
        let shown = task.to_string();
        assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{:.300}: {answer:?}", shown);
        answer.problem(status, code);
    }
    bench.api.execute(embed(&words(511))).await.ok();
    bench.api.execute(infer(&tensor(json!({})))).await.ok();
    assert_eq!(bench.api.get("/status").await.ok()["tasks_inside"], 0);
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be_are_refused_on_every_route_that_takes_one() {
    let bench = start();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let bodies: [(&[u8], &str); 8] = [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b"{\"model\": NaN}", "invalid_json"),
        (b"{\"model\": Infinity}", "invalid_json"),
        (b"{\"model\": \"\xff\"}", "not_utf8"),
        (deep.as_bytes(), "invalid_json"),
    ];
    for path in ["/api/tasks/execute", "/v1/embeddings", "/v1/rerank", "/v2/models/tensors/infer"] {
        for (body, code) in bodies {
            // With and without a type: nothing said is read as JSON.
            let request = bench.api.request(Method::POST, path).body(body.to_vec());
            send(request.header("content-type", "application/json")).await.problem(400, code);
            send(bench.api.request(Method::POST, path).body(body.to_vec())).await.problem(400, code);
        }
        let gzip = bench.api.request(Method::POST, path).header("content-encoding", "gzip").body(vec![31, 139]);
        send(gzip).await.problem(415, "unsupported_media_type");
    }
    for path in ["/api/tasks/execute", "/v1/embeddings", "/v1/rerank"] {
        let text = bench.api.request(Method::POST, path).header("content-type", "text/plain").body("{}");
        send(text).await.problem(415, "unsupported_media_type");
    }
    let number = r#"{"kind": "infer", "model": "tensors", "input": {"inputs":
        [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1e999]}]}}"#;
    send(bench.api.request(Method::POST, "/api/tasks/execute").body(number)).await.problem(400, "invalid_json");
    // Nothing said and good JSON is done.
    let task = bench.api.request(Method::POST, "/api/tasks/execute").body(embed("a").to_string());
    send(task).await.ok();
}

#[tokio::test]
async fn a_body_of_a_hundred_megabytes_is_refused_announced_or_not() {
    let bench = start();
    let megabyte = bytes::Bytes::from(vec![b' '; 1 << 20]);
    let body = || {
        let chunks: Vec<std::io::Result<_>> = (0..100).map(|_| Ok(megabyte.clone())).collect();
        Body::wrap_stream(stream::iter(chunks))
    };
    for path in ["/api/tasks/execute", "/v1/embeddings", "/v2/models/tensors/infer"] {
        let request = || bench.api.request(Method::POST, path).header("content-type", "application/json");
        send(request().body(body())).await.problem(413, "payload_too_large");
        let announced = request().header("content-length", 100 << 20).body(body());
        send(announced).await.problem(413, "payload_too_large");
    }
    bench.api.execute(embed("a")).await.ok();
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bench = start_with(|options| options.http.body_timeout = std::time::Duration::from_millis(20));
    let mut stream = tokio::net::TcpStream::connect(bench.api.address()).await.unwrap();
    let head = format!("POST /v1/rerank HTTP/1.1\r\nhost: {}\r\ncontent-length: 9\r\n\r\n{{", bench.api.address());
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout") && answer.contains("application/problem+json"), "{answer}");
}

#[tokio::test]
async fn wrong_paths_methods_and_ids_are_told_apart() {
    let bench = start();
    let nobody = "018c0000-0000-7000-8000-000000000000";
    let unknown = "ffffffff-ffff-4fff-bfff-ffffffffffff";
    let cases = [
        (Method::GET, "/nothing/here", 404, "not_found"),
        (Method::GET, "/v1/nothing", 404, "not_found"),
        (Method::GET, "/v2/nothing", 404, "not_found"),
        (Method::GET, "/api/tasks/execute", 405, "method_not_allowed"),
        (Method::PUT, "/status", 405, "method_not_allowed"),
        (Method::GET, "/v1/embeddings", 405, "method_not_allowed"),
        (Method::DELETE, "/v2/models/tensors/infer", 405, "method_not_allowed"),
        (Method::GET, "/api/tasks/7", 404, "task_not_found"),
        (Method::GET, &format!("/api/tasks/{unknown}"), 404, "task_not_found"),
        (Method::GET, &format!("/api/tasks/{nobody}"), 410, "expired"),
        (Method::GET, &format!("/api/tasks/{unknown}/result"), 404, "task_not_found"),
        (Method::DELETE, &format!("/api/tasks/{unknown}"), 404, "task_not_found"),
        (Method::GET, "/api/tasks/%ff", 400, "invalid_input"),
        (Method::GET, "/api/models/%ff", 400, "invalid_input"),
        (Method::GET, "/api/models/nobody", 404, "model_not_found"),
        (Method::POST, "/api/models/nobody", 404, "model_not_found"),
        (Method::DELETE, "/api/models/nobody", 404, "model_not_found"),
        (Method::DELETE, "/api/models/texts?files=perhaps", 400, "invalid_input"),
        (Method::PUT, "/api/models/nobody/pin", 404, "model_not_found"),
        (Method::DELETE, "/api/models/nobody/pin", 404, "model_not_found"),
        (Method::GET, "/v1/models/nobody", 404, "model_not_found"),
        (Method::GET, "/v2/models/nobody", 404, "model_not_found"),
        (Method::GET, "/v2/models/nobody/ready", 404, "model_not_found"),
        (Method::GET, "/v2/models/texts/versions/9/ready", 404, "model_not_found"),
        (Method::POST, "/v2/repository/models/nobody/load", 404, "model_not_found"),
        (Method::POST, "/v2/repository/models/nobody/unload", 404, "model_not_found"),
    ];
    for (method, path, status, code) in cases {
        let answer = send(bench.api.request(method.clone(), path)).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        let body = answer.problem(status, code);
        match path.split('/').nth(1) {
            Some("v1") => assert_eq!(body["error"]["code"], code, "OpenAI's clients read it here"),
            Some("v2") => assert_eq!(body["error"], body["detail"], "the protocol's clients read it here"),
            _ => assert!(body.get("error").is_none()),
        }
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
    }
}
