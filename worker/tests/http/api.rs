//! A client that knows the worker's API: a method, a path and a body go in, an answer comes out.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// The client of one worker.
#[derive(Clone)]
pub(crate) struct Api {
    base: String,
    client: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Api {
    pub(crate) fn new(address: std::net::SocketAddr) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { base: format!("http://{address}"), client }
    }

    /// Where it sends to.
    pub(crate) fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// A request that may still be changed.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    /// Has a task done while it waits.
    pub(crate) async fn execute(&self, task: Value) -> Answer {
        self.post("/api/tasks/execute", task).await
    }

    /// Has a task taken in, and returns its id.
    pub(crate) async fn submit(&self, task: Value) -> String {
        let request = self.request(Method::POST, "/api/tasks/execute").header("prefer", "respond-async");
        let answer = send(request.json(&task)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }
}

/// Sends a request and reads its answer to the end.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.unwrap() }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body of an answer that must be a good one.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Checks that it is a problem as every problem must be, of this status and code.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.headers.get(CONTENT_TYPE).unwrap(), "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!((self.status, body["code"].as_str()), (status, Some(code)), "{body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("urn:neurogrid:error:{code}"));
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
        let retry_after_s = body["retry_after_s"].as_u64().map(|seconds| seconds.to_string());
        assert_eq!(self.header("retry-after"), retry_after_s.as_deref());
        body
    }
}

/// A task that embeds one text with the fake model.
pub(crate) fn embed(text: &str) -> Value {
    json!({"kind": "embed", "model": "texts", "input": {"inputs": [text]}})
}

/// The same with more fields.
pub(crate) fn embed_with(text: &str, more: &Value) -> Value {
    let mut task = embed(text);
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    task
}

/// A task that doubles tensors with the fake model.
pub(crate) fn infer(tensor: &Value) -> Value {
    json!({"kind": "infer", "model": "tensors", "input": {"inputs": [tensor]}})
}
