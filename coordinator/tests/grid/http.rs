//! The registry, and how the coordinator answers what it cannot serve.

use crate::help::{Node, Says, World, embed};
use coordinator_client::wire::digest::sha256_hex;
use coordinator_client::wire::*;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn put(world: &World, path: &str, content: &[u8]) -> StatusCode {
    let request = world.http.put(format!("{}{path}", world.origin)).body(content.to_vec());
    request.send().await.unwrap().status()
}

fn manifest(version: &str, content: &[u8]) -> Value {
    let file = json!({"path": "model.safetensors", "sha256": sha256_hex(content), "bytes": content.len()});
    json!({"name": "m", "version": version, "task": "embed", "files": [file], "pooling": "mean"})
}

async fn register(world: &World, version: &str, content: &[u8]) -> (StatusCode, Value) {
    world.ask(Method::POST, "/api/models", Some(manifest(version, content))).await
}

pub(crate) async fn models_are_registered_once_and_fetched_in_ranges(in_memory: bool) {
    let mut world = World::new(in_memory).await;
    let content = b"0123456789";
    let sha256 = sha256_hex(content);
    let blob = format!("/api/models/m/1/blobs/{sha256}");
    let (status, body) = register(&world, "1", content).await;
    assert_eq!((status, &body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &"model_refused".into()), "no files yet");
    assert_eq!(put(&world, &blob, b"other").await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(put(&world, &blob, content).await, StatusCode::CREATED);
    assert_eq!(put(&world, &blob, content).await, StatusCode::OK);
    assert_eq!(register(&world, "1", content).await.0, StatusCode::CREATED);
    assert_eq!(register(&world, "1", content).await.0, StatusCode::OK);
    assert_eq!(put(&world, &format!("/api/blobs/{}", sha256_hex(b"z")), b"z").await, StatusCode::CREATED);
    let (status, body) = register(&world, "1", b"z").await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &"conflict".into()), "versions do not change");
    assert_eq!(register(&world, "2", b"z").await.0, StatusCode::CREATED);
    if !in_memory {
        world.restart().await;
    }
    assert_eq!(world.get("/api/models/m").await["version"], "2", "the newest");
    assert_eq!(world.get("/api/models/m/1").await, manifest("1", content));
    let get = async |range: &str| {
        let request = world.http.get(format!("{}{blob}", world.origin)).header("range", range);
        let response = request.send().await.unwrap();
        let header = response.headers().get("content-range").map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), header, response.text().await.unwrap())
    };
    assert_eq!(get("bytes=2-4").await, (206, Some("bytes 2-4/10".into()), "234".into()));
    assert_eq!(get("bytes=8-").await, (206, Some("bytes 8-9/10".into()), "89".into()));
    assert_eq!(get("none").await, (200, None, "0123456789".into()));
    let outside = get("bytes=10-").await;
    assert_eq!((outside.0, outside.1), (416, Some("bytes */10".into())));
    let pickle = json!({"name": "p", "version": "1", "task": "embed",
        "files": [{"path": "pytorch_model.bin", "sha256": sha256, "bytes": 10}]});
    let (status, body) = world.ask(Method::POST, "/api/models", Some(pickle)).await;
    assert_eq!((status, &body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &"model_refused".into()));
}

pub(crate) async fn a_registered_model_is_fetched_by_one_node_for_one_task(in_memory: bool) {
    let world = World::new(in_memory).await;
    assert_eq!(put(&world, &format!("/api/blobs/{}", sha256_hex(b"z")), b"z").await, StatusCode::CREATED);
    assert_eq!(register(&world, "1", b"z").await.0, StatusCode::CREATED);
    let first = world.submit("m", "a").await;
    world.until(&first, "/waits/code", "no_node").await;
    let mut node = Node::connect(&world, Says { can_fetch: true, slots: 4, ..Says::has(1, &[]) }).await;
    let offer = node.offer().await;
    assert_eq!((offer.attempt.task.to_string(), offer.model.as_str()), (first, "m@1"));
    let second = world.submit("m", "b").await;
    world.until(&second, "/waits/code", "model_fetching").await;
    let held = ModelHeld { id: "m@1".into(), task: TaskKind::Embed, loaded: true, execution_class: None };
    let running = vec![offer.attempt];
    node.send(Frame::Heartbeat(Heartbeat { slots: 4, running, models: Some(vec![held]), ..Heartbeat::default() }))
        .await;
    assert_eq!(node.offer().await.attempt.task.to_string(), second);
    let models = world.get("/api/models").await;
    assert_eq!(models[0]["loaded_on"], json!([node.identity.node().short()]));
}

pub(crate) async fn large_inputs_go_by_reference(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::has(1, &["m@1"])).await;
    let text = "x".repeat(work::INLINE_BYTES_MAX + 1);
    world.submit("m", &text).await;
    let offer = node.offer().await;
    let Payload::Blob(blob) = &offer.input else { panic!("it should go by reference") };
    let token = world.login(&node.identity).await.unwrap();
    let get = world.http.get(format!("{}{}", world.origin, node::paths::payload(&blob.sha256)));
    let content = get.bearer_auth(token).send().await.unwrap().bytes().await.unwrap();
    assert_eq!((content.len() as u64, sha256_hex(&content)), (blob.bytes, blob.sha256.clone()));
    let output = TaskOutput::Embed { embeddings: Matrix { columns: 1, values: vec![2.0] } };
    let packed = Payload::pack_above(output, 1);
    let path = node::paths::payload(&packed.sha256);
    assert_eq!(put(&world, &path, &packed.blob.unwrap()).await, StatusCode::CREATED);
    let mut result = TaskResult {
        attempt: offer.attempt,
        output: packed.payload,
        usage: Usage::default(),
        timings: Timings::default(),
        model: offer.model.clone(),
        model_digest: String::new(),
        execution_class: "script".into(),
        batch_size: 1,
        input_sha256: blob.sha256.clone(),
        output_sha256: packed.sha256,
        signature: vec![],
    };
    result.signature = node.identity.sign(&result.signed_bytes(node.identity.node())).to_vec();
    node.send(Frame::Result(Box::new(result))).await;
    assert_eq!(node.ack().await.outcome, AckOutcome::Settled);
    let result = world.get(&format!("/api/tasks/{}/result", offer.attempt.task)).await;
    assert_eq!(result["output"]["embeddings"], json!([[2.0]]));
}

pub(crate) async fn every_rejection_is_a_problem(in_memory: bool) {
    let world = World::with(in_memory, |options| {
        options.http.api_key = Some("a key that is long enough".into());
        options.http.body_bytes_max = 1_000;
    })
    .await;
    let key = "Bearer a key that is long enough";
    let check = async |method: Method, path: &str, auth: &str, kind: &str, body: &[u8], status: u16, code: &str| {
        let request = world.http.request(method, format!("{}{path}", world.origin));
        let request = request.header("authorization", auth).header("content-type", kind).body(body.to_vec());
        let response = request.send().await.unwrap();
        let (got, kind) = (response.status().as_u16(), response.headers()["content-type"].clone());
        let problem: Value = response.json().await.unwrap();
        let want = (status, "application/problem+json".parse().unwrap(), code);
        assert_eq!((got, kind, problem["code"].as_str().unwrap()), want, "{path}: {problem}");
    };
    let (post, get, json) = (Method::POST, Method::GET, "application/json");
    check(get.clone(), "/api/tasks", "", json, b"", 401, "unauthorized").await;
    check(get.clone(), "/api/tasks", "Bearer wrong", json, b"", 401, "unauthorized").await;
    check(get.clone(), "/api/nodes/x/session", key, json, b"", 401, "unauthorized").await;
    check(post.clone(), "/api/tasks", key, json, b"{", 400, "invalid_json").await;
    check(post.clone(), "/api/tasks", key, json, b"{\"model\": 1}", 400, "invalid_json").await;
    check(post.clone(), "/api/tasks", key, json, b"\"\xff\"", 400, "not_utf8").await;
    check(post.clone(), "/api/tasks", key, json, &[b' '; 2_000], 413, "payload_too_large").await;
    check(post.clone(), "/api/tasks", key, "text/plain", b"{}", 415, "unsupported_media_type").await;
    let unknown = embed("nobody/has-this", "a").to_string();
    check(post.clone(), "/api/tasks", key, json, unknown.as_bytes(), 404, "model_not_found").await;
    check(post.clone(), "/v1/embeddings", key, json, b"{}", 400, "invalid_json").await;
    check(get.clone(), "/api/tasks?limit=x", key, json, b"", 400, "invalid_input").await;
    check(get.clone(), "/api/tasks/no-id", key, json, b"", 404, "task_not_found").await;
    check(get.clone(), "/api/nodes/no-id", key, json, b"", 404, "node_not_found").await;
    check(get.clone(), "/api/nowhere", key, json, b"", 404, "not_found").await;
    check(Method::PATCH, "/api/tasks", key, json, b"", 405, "method_not_allowed").await;
    check(get.clone(), "/api/blobs/no-digest", key, json, b"", 400, "invalid_input").await;
    check(get, &format!("/api/blobs/{}", "0".repeat(64)), key, json, b"", 404, "not_found").await;
    let ok = world.ask_with(Method::GET, "/api/tasks", None, &[("authorization", key)]).await;
    assert_eq!(ok.0, StatusCode::OK);
}

pub(crate) async fn health_and_numbers_are_told(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::has(1, &["m@1"])).await;
    world.submit("m", "a").await;
    node.work().await;
    assert_eq!(world.get("/api/health").await["status"], "ok");
    for probe in ["live", "ready"] {
        assert_eq!(world.ask(Method::GET, &format!("/api/health/{probe}"), None).await.0, StatusCode::NO_CONTENT);
    }
    let stats = world.get("/api/stats").await;
    assert_eq!((&stats["tasks"]["succeeded"], &stats["nodes"]["nodes"]), (&1.into(), &1.into()));
    assert_eq!(world.get("/api/network/state").await["regions"]["here"]["nodes"], 1);
    assert_eq!(world.get("/status").await["idle"], "no task waits");
    let metrics = world.http.get(format!("{}/metrics", world.origin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("neurogrid_attempts_settled_total 1"), "{metrics}");
    let api = world.get("/openapi.json").await;
    for path in ["/api/tasks", "/api/tasks/{id}/events", "/api/nodes/{id}/session", "/v1/embeddings", "/api/models"] {
        assert!(api["paths"][path].is_object(), "{path} should be described");
    }
}
