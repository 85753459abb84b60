//! The API's description of itself: every route that is served is in it, every path in it is served, and its schemas say
//! what the routes take.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use crate::api::send;
use crate::bench::start;

/// The routes that are promised, and a field of the answer of those that take nothing.
const ROUTES: &[(&str, &str, &str)] = &[
    ("get", "/health", "health"),
    ("get", "/health/live", "status"),
    ("get", "/health/ready", "status"),
    ("get", "/health/startup", "status"),
    ("get", "/status", "tasks_max"),
    ("post", "/api/pause", ""),
    ("post", "/api/resume", ""),
    ("get", "/api/hardware/profile", "cpu"),
    ("post", "/api/tasks/execute", ""),
    ("get", "/api/tasks/{id}", ""),
    ("delete", "/api/tasks/{id}", ""),
    ("get", "/api/tasks/{id}/result", ""),
    ("get", "/api/resources/status", "machine"),
    ("get", "/api/resources/limits", "body_bytes_max"),
    ("get", "/api/metrics", "tasks_done"),
    ("get", "/metrics", ""),
    ("get", "/api/models", "models"),
    ("get", "/api/models/{model}", "digest"),
    ("post", "/api/models/{model}", ""),
    ("delete", "/api/models/{model}", ""),
    ("put", "/api/models/{model}/pin", ""),
    ("delete", "/api/models/{model}/pin", ""),
    ("get", "/v1/models", "data"),
    ("get", "/v1/models/{model}", "owned_by"),
    ("post", "/v1/embeddings", ""),
    ("post", "/v1/rerank", ""),
    ("post", "/v1/chat/completions", ""),
    ("post", "/v1/completions", ""),
    ("get", "/v2", "extensions"),
    ("get", "/v2/health/live", ""),
    ("get", "/v2/health/ready", ""),
    ("get", "/v2/models/{model}", "inputs"),
    ("get", "/v2/models/{model}/versions/{version}", "outputs"),
    ("get", "/v2/models/{model}/ready", ""),
    ("get", "/v2/models/{model}/versions/{version}/ready", ""),
    ("post", "/v2/models/{model}/infer", ""),
    ("post", "/v2/models/{model}/versions/{version}/infer", ""),
    ("post", "/v2/repository/index", ""),
    ("post", "/v2/repository/models/{model}/load", ""),
    ("post", "/v2/repository/models/{model}/unload", ""),
    ("get", "/openapi.json", "paths"),
    ("get", "/docs", ""),
];

fn concrete(path: &str) -> String {
    let id = "018c0000-0000-7000-8000-000000000000";
    path.replace("{model}", "texts").replace("{version}", "1").replace("{id}", id)
}

#[tokio::test]
async fn every_promised_route_is_served_and_described_and_nothing_else_is() {
    let bench = start();
    let description = bench.api.get("/openapi.json").await.ok();
    let described: BTreeSet<(String, String)> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())))
        .collect();
    let promised: BTreeSet<(String, String)> =
        ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, promised);

    for (_, path, field) in ROUTES.iter().filter(|(_, _, field)| !field.is_empty()) {
        let answer = bench.api.get(&concrete(path)).await.ok();
        assert!(answer.get(field).is_some(), "{path}: {answer}");
    }
    let paths: BTreeSet<&str> = ROUTES.iter().map(|(_, path, _)| *path).collect();
    for path in paths {
        for method in ["get", "post", "put", "patch", "delete"] {
            let answer = send(bench.api.request(method.to_uppercase().parse().unwrap(), &concrete(path))).await;
            if promised.contains(&(method.to_owned(), path.to_owned())) {
                assert_ne!(answer.status, 405, "{method} {path}");
                assert!(!String::from_utf8_lossy(&answer.body).contains("there is no route"), "{method} {path}");
            } else {
                answer.problem(405, "method_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn the_page_shows_the_description_and_needs_nothing_from_elsewhere() {
    let bench = start();
    let page = bench.api.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(text.contains("openapi.json"));
    assert!(!text.contains("http://") && !text.contains("https://"), "it loads something from elsewhere");
    let head = send(bench.api.request(Method::HEAD, "/docs")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

/// Path, method, the way to the body's fields, the way on from there, and what must be found.
type Case<'a> = (&'a str, &'a str, &'a [&'a str], &'a [&'a str], &'a str);

/// Follows references and then these steps.
fn walk<'a>(description: &'a Value, mut at: &'a Value, steps: &[&str]) -> &'a Value {
    for step in steps {
        let found = resolve(description, at);
        let next = match found {
            Value::Array(items) => &items[step.parse::<usize>().unwrap()],
            other => &other[*step],
        };
        at = resolve(description, next);
    }
    resolve(description, at)
}

fn resolve<'a>(description: &'a Value, at: &'a Value) -> &'a Value {
    match at["$ref"].as_str() {
        Some(reference) => {
            let found = description.pointer(reference.trim_start_matches('#'));
            resolve(description, found.unwrap_or_else(|| panic!("{reference} leads nowhere")))
        }
        None => at,
    }
}

fn references(at: &Value, into: &mut BTreeSet<String>) {
    match at {
        Value::Object(fields) => {
            into.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| references(field, into));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[tokio::test]
async fn the_descriptions_names_are_unique_and_lead_to_the_right_schemas() {
    let bench = start();
    let description = bench.api.get("/openapi.json").await.ok();
    let mut all = BTreeSet::new();
    references(&description, &mut all);
    for reference in &all {
        assert!(description.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{path}: {id} is taken");
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"]["schema"];
            let problem = walk(&description, problem, &["properties"]);
            assert!(problem.get("code").is_some(), "{path} does not say how it refuses");
        }
    }
    // Parts of the wire that share a name are told apart.
    let request = ["requestBody", "content", "application/json", "schema", "properties"];
    let response = ["responses", "200", "content", "application/json", "schema", "properties"];
    let cases: [Case; 10] = [
        ("/v2/models/{model}/infer", "post", &request, &["inputs", "items", "properties"], "datatype"),
        ("/v1/embeddings", "post", &request, &["input"], "oneOf"),
        ("/v1/embeddings", "post", &request, &[], "input_type"),
        ("/api/tasks/execute", "post", &request, &["input", "oneOf", "0", "properties"], "prompt_name"),
        ("/api/tasks/execute", "post", &request, &["input", "oneOf", "2", "properties"], "tensors"),
        ("/api/models/{model}", "get", &response, &[], "matryoshka_dimensions"),
        ("/v2/models/{model}", "get", &response, &["inputs", "items", "properties"], "shape"),
        ("/status", "get", &response, &["devices", "items", "properties"], "reserved_bytes"),
        ("/status", "get", &response, &[], "tasks_max"),
        ("/api/tasks/{id}", "get", &response, &[], "submitted_ms"),
    ];
    for (path, method, to, steps, field) in cases {
        let found = walk(&description, &description["paths"][path][method], &[to, steps].concat());
        assert!(found.get(field).is_some(), "{method} {path} {steps:?}: {found}");
    }
    let metadata = walk(&description, &description["paths"]["/v2/models/{model}"]["get"], &response);
    let tensor = walk(&description, metadata, &["inputs", "items", "properties"]);
    assert!(tensor.get("data").is_none(), "metadata holds no values");
}
