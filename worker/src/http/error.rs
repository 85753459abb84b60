//! Whatever goes wrong becomes a problem on the wire, in the dress that the route's clients know: problem details
//! everywhere, with OpenAI's `error` object under `/v1` and the Open Inference Protocol's `error` text under `/v2`.

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::{Code, Problem};

/// A request that is not answered with what it asked for.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Problem);

impl Refusal {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Problem::new(code, detail))
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Self {
        Self(error.into())
    }
}

impl From<crate::cache::Error> for Refusal {
    fn from(error: crate::cache::Error) -> Self {
        Self(crate::Error::from(error).into())
    }
}

/// Parts of the path.
#[derive(axum::extract::FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Refusal))]
pub(super) struct Path<T>(pub(super) T);

/// Parts of the query.
#[derive(axum::extract::FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Refusal))]
pub(super) struct Query<T>(pub(super) T);

impl From<PathRejection> for Refusal {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::InvalidInput, format!("the path: {}", rejection.body_text()))
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::InvalidInput, format!("the query: {}", rejection.body_text()))
    }
}

impl IntoResponse for Refusal {
    /// Without a body: [`dress`] writes it when the response leaves, for it knows the route.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(self.0);
        response
    }
}

/// Writes the body of a refusal.
pub(super) fn dress(mut response: Response, path: &str) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let body = match path.split('/').nth(1) {
        Some("v1") => problem.to_openai_json(),
        Some("v2") => {
            let mut body = serde_json::to_value(&problem).expect("a problem is plain data");
            body["error"] = problem.detail.clone().into();
            body
        }
        _ => serde_json::to_value(&problem).expect("a problem is plain data"),
    };
    *response.body_mut() = Body::from(body.to_string());
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
    if let Some(seconds) = problem.retry_after_s {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if problem.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

pub(super) async fn not_found(uri: axum::http::Uri) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no route {}; `/docs` lists them all", uri.path()))
}

pub(super) async fn method_not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    let detail = format!("{} does not take {method}; `/docs` lists what it takes", uri.path());
    Refusal::new(Code::MethodNotAllowed, detail)
}

#[expect(clippy::needless_pass_by_value, reason = "the middleware's signature")]
pub(super) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let words = crate::device::thread::words_of(&*panic);
    tracing::error!("a route crashed: {words}");
    Refusal::new(Code::Internal, "the route crashed; this is a fault of the worker, please report it").into_response()
}
