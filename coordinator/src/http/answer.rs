//! How the HTTP side says no: errors of the rooms come in, `application/problem+json` goes out, for every rejection. Also the
//! extractors whose own rejections say so.

use crate::nodes::enrol;
use crate::registry::{self, blobs};
use crate::{store, tasks};
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::{Code, Problem};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;

/// A refusal: a problem on its way out.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Problem);

/// What a handler gives.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// A refusal of this code.
pub(crate) fn refuse(code: Code, detail: impl Into<String>) -> Refusal {
    Refusal(Problem::new(code, detail))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.0).expect("a problem is plain data");
        respond(&self.0, body)
    }
}

/// A refusal on a route under `/v1`: OpenAI's error object beside the problem's fields.
#[derive(Debug)]
pub(crate) struct OpenAiRefusal(pub(crate) Problem);

impl From<Refusal> for OpenAiRefusal {
    fn from(Refusal(problem): Refusal) -> Self {
        Self(problem)
    }
}

impl IntoResponse for OpenAiRefusal {
    fn into_response(self) -> Response {
        let body = self.0.to_openai_json().to_string().into_bytes();
        respond(&self.0, body)
    }
}

fn respond(problem: &Problem, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
    if let Some(seconds) = problem.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        let detail = error.to_string();
        Self(match error {
            store::Error::IdempotencyConflict { .. } | store::Error::Exists(_) => Problem::new(Code::Conflict, detail),
            store::Error::Full { .. } => Problem::new(Code::QueueFull, detail).retry_after(5),
            store::Error::Engine(_) => {
                tracing::error!(error = detail, "the store failed");
                Problem::new(Code::Unavailable, detail).retry_after(1)
            }
            store::Error::Closed => Problem::new(Code::Unavailable, detail).retry_after(2),
        })
    }
}

impl From<blobs::Error> for Refusal {
    fn from(error: blobs::Error) -> Self {
        let code = match &error {
            blobs::Error::Name(_) => Code::InvalidInput,
            blobs::Error::TooLarge { .. } => Code::PayloadTooLarge,
            blobs::Error::Digest { .. } => Code::DigestMismatch,
            blobs::Error::Upload(_) => Code::RequestTimeout,
            blobs::Error::Full => Code::InsufficientStorage,
            blobs::Error::Missing(_) => Code::NotFound,
            blobs::Error::Io(error) => {
                tracing::error!(%error, "the blob folder failed");
                Code::Internal
            }
        };
        refuse(code, error.to_string())
    }
}

impl From<registry::Error> for Refusal {
    fn from(error: registry::Error) -> Self {
        let detail = error.to_string();
        match error {
            registry::Error::Blob(error) => error.into(),
            registry::Error::Store(error) => error.into(),
            registry::Error::Json(_) => refuse(Code::InvalidJson, detail),
            registry::Error::Manifest(_) => refuse(Code::ModelRefused, detail),
            registry::Error::FilesMissing { .. } | registry::Error::Length { .. } => refuse(Code::ModelRefused, detail),
            registry::Error::Conflict(_) => refuse(Code::Conflict, detail),
        }
    }
}

impl From<tasks::Error> for Refusal {
    fn from(error: tasks::Error) -> Self {
        let detail = error.to_string();
        match error {
            tasks::Error::Blob(error) => error.into(),
            tasks::Error::Store(error) => error.into(),
            tasks::Error::ModelNotFound(_) => refuse(Code::ModelNotFound, detail),
            tasks::Error::WrongTask { .. } => refuse(Code::WrongTask, detail),
            tasks::Error::TooLong { .. } | tasks::Error::FailuresMax { .. } => refuse(Code::InvalidInput, detail),
            tasks::Error::TooLarge { .. } => refuse(Code::PayloadTooLarge, detail),
            tasks::Error::Waiting { .. } => Self(Problem::new(Code::QueueFull, detail).retry_after(1)),
        }
    }
}

impl From<enrol::Error> for Refusal {
    fn from(error: enrol::Error) -> Self {
        let detail = error.to_string();
        match error {
            enrol::Error::Store(error) => error.into(),
            enrol::Error::Key | enrol::Error::TooLong { .. } => refuse(Code::InvalidInput, detail),
            enrol::Error::Origin(_) | enrol::Error::Enrolment | enrol::Error::Banned(_) => {
                refuse(Code::Forbidden, detail)
            }
            enrol::Error::Busy => Self(Problem::new(Code::RateLimited, detail).retry_after(60)),
            enrol::Error::Challenge | enrol::Error::Answer(_) => refuse(Code::Unauthorized, detail),
            enrol::Error::Random(_) => refuse(Code::Internal, detail),
        }
    }
}

/// A JSON body. Refuses other content types, bodies over the limit, what is not UTF-8 and what has another shape.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        check_content_type(&request)?;
        let bytes = Bytes::from_request(request, state).await.map_err(bytes_refused)?;
        Ok(Self(from_json(&bytes)?))
    }
}

/// The text of a JSON body, unread.
#[derive(Debug)]
pub(crate) struct JsonText(pub(crate) String);

impl<S: Send + Sync> FromRequest<S> for JsonText {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        check_content_type(&request)?;
        let bytes = Bytes::from_request(request, state).await.map_err(bytes_refused)?;
        String::from_utf8(bytes.into()).map(Self).map_err(|e| refuse(Code::NotUtf8, e.to_string()))
    }
}

fn check_content_type(request: &Request) -> Answer<()> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json") {
        return Ok(());
    }
    let detail = format!("the body's content type is {essence:?}; send `Content-Type: application/json`");
    Err(refuse(Code::UnsupportedMediaType, detail))
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    let text = std::str::from_utf8(bytes).map_err(|e| refuse(Code::NotUtf8, format!("the body is not UTF-8: {e}")))?;
    serde_json::from_str(text).map_err(|e| refuse(Code::InvalidJson, e.to_string()))
}

fn bytes_refused(rejection: BytesRejection) -> Refusal {
    let detail = rejection.body_text();
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            refuse(Code::PayloadTooLarge, "the body is larger than is taken here; split the request")
        }
        StatusCode::REQUEST_TIMEOUT => refuse(Code::RequestTimeout, detail),
        _ if detail.contains("not received within") => refuse(Code::RequestTimeout, detail),
        _ => refuse(Code::InvalidInput, detail),
    }
}

/// Query parameters.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let Query(params) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection| refuse(Code::InvalidInput, rejection.body_text()))?;
        Ok(Self(params))
    }
}

/// Parameters of the path, as text.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let axum::extract::Path(params) = axum::extract::Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection| refuse(Code::NotFound, rejection.body_text()))?;
        Ok(Self(params))
    }
}
