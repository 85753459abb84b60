//! Bodies of requests: bytes come in, within a limit for each and one for all, and checked JSON comes out. Large ones
//! are parsed on the CPU pool. What is wrong with a body is said before anything is queued.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use coordinator_client::api::Code;
use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Shared;
use super::error::Refusal;

/// Bytes of all bodies that are being read or worked on.
#[derive(Clone)]
pub(super) struct Budget {
    used: Arc<AtomicUsize>,
    max: usize,
}

/// A part of the budget. Dropping it gives the part back.
pub(super) struct Reserved {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self { used: Arc::default(), max }
    }

    fn reserve(&self) -> Reserved {
        Reserved { budget: self.clone(), bytes: 0 }
    }
}

impl Reserved {
    fn grow_to(&mut self, bytes: usize) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        let fits = |used: usize| used.checked_add(more).filter(|sum| *sum <= self.budget.max);
        if self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            let max = self.budget.max;
            let detail = format!("the bodies of other requests fill the {max} bytes that there are; come back soon");
            return Err(Refusal(coordinator_client::api::Problem::new(Code::QueueFull, detail).retry_after(1)));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes of a body.
pub(super) struct Raw {
    pub(super) bytes: Bytes,
    pub(super) headers: HeaderMap,
    pub(super) reserved: Reserved,
}

/// How much of a body that is too large is read and thrown away, as a multiple of the limit: a caller that is still
/// sending when the connection closes may never see the answer.
const DISCARD_FACTOR: usize = 4;

/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

impl FromRequest<Shared> for Raw {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let max = app.options.body_bytes_max;
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut stream = body.into_data_stream();
        let read = async {
            let mut reserved = app.bodies.reserve();
            let too_large = || {
                Refusal::new(Code::PayloadTooLarge, format!("the body is larger than {max} bytes; send it in parts"))
            };
            check_encoding(&parts.headers)?;
            if length.is_some_and(|length: usize| length > max) {
                return Err(too_large());
            }
            reserved.grow_to(length.unwrap_or(0))?;
            let mut bytes = BytesMut::new();
            while let Some(chunk) = stream.next().await {
                let broken = |_| Refusal::new(Code::InvalidInput, "the body ended before its announced end");
                let chunk: Bytes = chunk.map_err(broken)?;
                if bytes.is_empty() && length == Some(chunk.len()) {
                    // The whole body in one piece, as small ones are: no copy.
                    return Ok((chunk, reserved));
                }
                if bytes.len() + chunk.len() > max {
                    return Err(too_large());
                }
                reserved.grow_to(bytes.len() + chunk.len())?;
                if bytes.is_empty() {
                    bytes.reserve(length.unwrap_or(chunk.len()));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok((bytes.freeze(), reserved))
        };
        let in_time = tokio::time::timeout(app.options.body_timeout, read).await;
        let read = in_time.unwrap_or_else(|_| {
            let seconds = app.options.body_timeout.as_secs();
            Err(Refusal::new(Code::RequestTimeout, format!("the body did not come within {seconds} s")))
        });
        match read {
            Ok((bytes, reserved)) => Ok(Self { bytes, headers: parts.headers, reserved }),
            Err(refusal) => {
                if refusal.0.code != Code::RequestTimeout {
                    discard(stream, max.saturating_mul(DISCARD_FACTOR)).await;
                }
                Err(refusal)
            }
        }
    }
}

async fn discard(mut stream: axum::body::BodyDataStream, max: usize) {
    let all = async {
        let mut seen = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            seen += chunk.len();
            if seen > max {
                return;
            }
        }
    };
    // What was not read in time is cut off.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, all).await;
}

/// A body of JSON, with its part of the budget: to be held as long as the work lasts.
pub(super) struct Json<T>(pub(super) T, pub(super) Reserved);

/// A larger one is parsed on the CPU pool: about 100 µs.
const INLINE_JSON_BYTES: usize = 32 << 10;

impl<T: DeserializeOwned + Send + 'static> FromRequest<Shared> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refusal> {
        let Raw { bytes, headers, reserved } = Raw::from_request(request, app).await?;
        check_type(&headers)?;
        let value = if bytes.len() <= INLINE_JSON_BYTES {
            parse(&bytes)?
        } else {
            app.handle.on_cpu(move || parse(&bytes)).await??
        };
        Ok(Self(value, reserved))
    }
}

/// Bodies are not unpacked: a small one may become a large one.
fn check_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let detail = format!("the body is packed as {encoding:?}; send it as it is");
            Err(Refusal::new(Code::UnsupportedMediaType, detail))
        }
        _ => Ok(()),
    }
}

/// JSON, or nothing said. What `curl -d` says when it is told nothing is let through too.
fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or("?").to_ascii_lowercase();
    let kind = text.split(';').next().unwrap_or_default().trim();
    if kind == "application/json" || kind.ends_with("+json") || kind == "application/x-www-form-urlencoded" {
        return Ok(());
    }
    let detail = format!("the body is {kind:?}, this route takes application/json");
    Err(Refusal::new(Code::UnsupportedMediaType, detail))
}

/// Reads JSON.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let position = error.valid_up_to();
        Refusal::new(Code::NotUtf8, format!("the body is not UTF-8: byte {position} begins no character"))
    })?;
    serde_json::from_str(text).map_err(|error| Refusal::new(Code::InvalidJson, format!("the body: {error}")))
}

/// A larger answer is written on the CPU pool: about 200 µs.
const INLINE_ANSWER_BYTES: usize = 32 << 10;

/// An answer in JSON. `bytes` is about how much it holds, as numbers or text.
pub(super) async fn answer<T: Serialize + Send + 'static>(
    app: &Shared,
    bytes: usize,
    make: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<axum::response::Response, Refusal> {
    let write = move || make().map(|value| json_bytes(&value));
    let bytes = if bytes <= INLINE_ANSWER_BYTES { write()? } else { app.handle.on_cpu(write).await?? };
    Ok(json_response(bytes))
}

/// The JSON text of a value.
pub(super) fn json_bytes<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("our answers have no maps with odd keys").into()
}

/// A response with this JSON text.
pub(super) fn json_response(bytes: Bytes) -> axum::response::Response {
    let mut response = axum::response::Response::new(axum::body::Body::from(bytes));
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = Budget::new(10);
        let mut first = budget.reserve();
        let mut second = budget.reserve();
        assert!(first.grow_to(6).is_ok());
        assert!(second.grow_to(4).is_ok());
        assert!(second.grow_to(5).is_err());
        assert!(first.grow_to(3).is_ok(), "what is reserved stays reserved");
        drop(first);
        assert!(second.grow_to(10).is_ok());
    }

    fn check(bytes: &[u8], want: Option<Code>) {
        let parsed = parse::<Vec<f32>>(bytes);
        assert_eq!(parsed.err().map(|refusal| refusal.0.code), want);
    }

    #[test]
    fn bad_bodies_are_told_apart() {
        check(b"[1, 2.5]", None);
        check(b"[1, 2", Some(Code::InvalidJson));
        check(b"[NaN]", Some(Code::InvalidJson));
        check(b"{}", Some(Code::InvalidJson));
        check(b"[1, \xff]", Some(Code::NotUtf8));
    }
}
