//! Errors over HTTP: problem details (RFC 9457) with a stable code. Every code has its section in
//! `docs/errors/README.md`. Routes under `/v1` carry OpenAI's `error` object in the same body.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $status:literal, $retry:literal;)*) => {
        /// What went wrong, for programs. Stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// Its name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            /// HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// Whether the same request may succeed later.
            pub fn is_retryable(self) -> bool {
                match self { $(Code::$variant => $retry,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON of the expected shape.
    InvalidJson = "invalid_json", 400, false;
    /// The request is well-formed and still cannot be served, e.g. too many inputs.
    InvalidInput = "invalid_input", 400, false;
    /// A tensor has another shape than the model takes.
    WrongShape = "wrong_shape", 400, false;
    /// A tensor has another type than the model takes.
    WrongType = "wrong_type", 400, false;
    /// A tensor holds NaN or infinity.
    NotFinite = "not_finite", 400, false;
    /// The body is not UTF-8.
    NotUtf8 = "not_utf8", 400, false;
    /// A text has more tokens than the model takes.
    TooLong = "too_long", 400, false;
    /// The model does another task.
    WrongTask = "wrong_task", 400, false;
    /// No valid credentials.
    Unauthorized = "unauthorized", 401, false;
    /// Credentials that do not allow this.
    Forbidden = "forbidden", 403, false;
    /// No such route.
    NotFound = "not_found", 404, false;
    /// No such model or version.
    ModelNotFound = "model_not_found", 404, false;
    /// No such task.
    TaskNotFound = "task_not_found", 404, false;
    /// No such node.
    NodeNotFound = "node_not_found", 404, false;
    /// The route does not take this method.
    MethodNotAllowed = "method_not_allowed", 405, false;
    /// The caller did not finish its request in time.
    RequestTimeout = "request_timeout", 408, true;
    /// The same idempotency key came with another request, or a version exists with other content.
    Conflict = "conflict", 409, false;
    /// The task has no result yet.
    NotFinished = "not_finished", 409, true;
    /// The task was cancelled.
    Cancelled = "cancelled", 409, false;
    /// The attempt is no longer the task's current one.
    StaleAttempt = "stale_attempt", 409, false;
    /// The result was kept for its time and is gone.
    Expired = "expired", 410, false;
    /// The body is larger than allowed.
    PayloadTooLarge = "payload_too_large", 413, false;
    /// The body's content type is not served here.
    UnsupportedMediaType = "unsupported_media_type", 415, false;
    /// Bytes do not have the digest that they should have.
    DigestMismatch = "digest_mismatch", 422, false;
    /// The model's files are refused: unsafe format, broken, or not of a known architecture.
    ModelRefused = "model_refused", 422, false;
    /// The queue is full; come back after `Retry-After`.
    QueueFull = "queue_full", 429, true;
    /// Too many requests of one caller.
    RateLimited = "rate_limited", 429, true;
    /// A fault of our own.
    Internal = "internal", 500, true;
    /// The model gave what it cannot give, or fails on every input.
    ModelBroken = "model_broken", 500, false;
    /// The device failed.
    DeviceFailed = "device_failed", 500, true;
    /// Nothing that can do this is here, or it is shutting down.
    Unavailable = "unavailable", 503, true;
    /// No node of the grid can serve this, now or soon; the detail says what is missing.
    NoCapableNode = "no_capable_node", 503, true;
    /// A source of models did not answer as it should.
    SourceFailed = "source_failed", 502, true;
    /// The deadline passed.
    DeadlineExceeded = "deadline_exceeded", 504, true;
    /// Not enough device memory.
    OutOfMemory = "out_of_memory", 507, true;
    /// Not enough disk, or the cache's quota is used up by what may not be evicted.
    InsufficientStorage = "insufficient_storage", 507, true;
}

/// The body of an error, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail} ({code})", code = self.code.name())]
pub struct Problem {
    /// Address of the code's description.
    #[serde(rename = "type", default)]
    pub type_uri: String,
    /// The code in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened, with values and what to do.
    pub detail: String,
    /// What went wrong, for programs.
    pub code: Code,
    /// When to come back, in seconds; also in the `Retry-After` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// Content type of the body.
    pub const CONTENT_TYPE: &str = "application/problem+json";

    /// A problem of this code.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:neurogrid:error:{}", code.name()),
            title: code.name().replace('_', " "),
            status: code.status(),
            detail: detail.into(),
            code,
            retry_after_s: None,
        }
    }

    /// The same, with a time to come back.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The body for routes under `/v1`: the problem with OpenAI's `error` object beside its fields, so that both kinds
    /// of client find what they look for.
    pub fn to_openai_json(&self) -> serde_json::Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let mut body = serde_json::to_value(self).expect("a problem is plain data");
        body["error"] = serde_json::json!({
            "message": self.detail, "type": kind, "code": self.code.name(), "param": null,
        });
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_name_that_it_serialises_to() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn openai_clients_find_their_error_object() {
        let body = Problem::new(Code::ModelNotFound, "no model x").to_openai_json();
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["code"], "model_not_found");
    }
}
