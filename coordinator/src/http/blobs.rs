//! Blobs over HTTP: payloads too large for a frame, and the bodies that model files share with them. Streams in and out,
//! with ranges; what a blob is for is decided elsewhere.

use super::answer::{Answer, Path, refuse};
use crate::grid::Grid;
use crate::registry::blobs::{Blobs, Open};
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use coordinator_client::api::{Code, Problem};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Bytes read at a time: fewer hops to the thread that reads.
const READ_BYTES: usize = 256 << 10;

/// Blobs never change.
const FOR_EVER: &str = "private, max-age=31536000, immutable";

pub(crate) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(put, get))
}

/// Stores a payload.
#[utoipa::path(
    put, path = "/api/blobs/{sha256}", tag = "blobs", params(("sha256" = String, Path, description = "SHA-256 of the content")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "Stored"), (status = 200, description = "It was there"),
        (status = 422, description = "The content has another digest", body = Problem),
        (status = 413, description = "Too large", body = Problem),
    )
)]
async fn put(
    State(grid): State<Arc<Grid>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<StatusCode> {
    store(&grid.registry.blobs, &sha256, &headers, body, grid.options.registry.payload_bytes_max).await
}

/// A payload, or a part of it.
#[utoipa::path(
    get, path = "/api/blobs/{sha256}", tag = "blobs", params(("sha256" = String, Path, description = "SHA-256 of the content")),
    responses(
        (status = 200, description = "The content", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "The range", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "No such blob", body = Problem),
    )
)]
async fn get(State(grid): State<Arc<Grid>>, Path(sha256): Path<String>, headers: HeaderMap) -> Answer<Response> {
    send(&grid.registry.blobs, &sha256, &headers).await
}

/// Takes a body as the blob of a name.
pub(super) async fn store(
    blobs: &Blobs,
    sha256: &str,
    headers: &HeaderMap,
    body: Body,
    bytes_max: u64,
) -> Answer<StatusCode> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(refuse(
            Code::PayloadTooLarge,
            format!("the blob is larger than {bytes_max} bytes, the most that is taken here"),
        ));
    }
    let content: BodyDataStream = body.into_data_stream();
    let is_new = blobs.put(sha256, content, bytes_max).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

/// Sends a blob, or the range that is asked for.
pub(super) async fn send(blobs: &Blobs, sha256: &str, headers: &HeaderMap) -> Answer<Response> {
    let Open { mut file, bytes } = blobs.get(sha256).await?;
    let tag = HeaderValue::from_str(&format!("\"{sha256}\"")).expect("digests are ASCII");
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    // A range is of this content only if the caller does not say that it knows another.
    let is_current = headers.get(header::IF_RANGE).is_none_or(|known| *known == tag);
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).filter(|_| is_current);
    let (status, start, length) = match asked.map(|range| parse_range(range, bytes)) {
        None | Some(Range::Whole) => (StatusCode::OK, 0, bytes),
        Some(Range::Part { start, length }) => (StatusCode::PARTIAL_CONTENT, start, length),
        Some(Range::Outside) => {
            let range = HeaderValue::from_str(&format!("bytes */{bytes}")).expect("digits are ASCII");
            let mut problem = Problem::new(Code::InvalidInput, format!("the range lies outside of the {bytes} bytes"));
            problem.status = StatusCode::RANGE_NOT_SATISFIABLE.as_u16();
            let mut response = super::answer::Refusal(problem).into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, range);
            return Ok(response);
        }
    };
    if start > 0 {
        file.seek(std::io::SeekFrom::Start(start)).await.map_err(crate::registry::blobs::Error::from)?;
    }
    let stream = ReaderStream::with_capacity(file.take(length), READ_BYTES);
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(FOR_EVER));
    headers.insert(header::ETAG, tag);
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{bytes}", start + length - 1);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits are ASCII"));
    }
    Ok(response)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { start: u64, length: u64 },
    Outside,
}

/// Reads a range of bytes. Several ranges, other units and nonsense mean the whole, as RFC 9110 allows.
fn parse_range(header: &str, bytes: u64) -> Range {
    let Some((first, last)) = header.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (start, end) =
        match (first.trim().parse::<u64>(), last.trim().parse::<u64>(), first.is_empty(), last.is_empty()) {
            (Ok(first), Ok(last), ..) if first <= last => (first, last.saturating_add(1)),
            (Ok(first), _, _, true) => (first, bytes),
            (_, Ok(last), true, _) if last > 0 => (bytes.saturating_sub(last), bytes),
            (_, Ok(0), true, _) => return Range::Outside,
            _ => return Range::Whole,
        };
    if start >= bytes {
        return Range::Outside;
    }
    Range::Part { start, length: end.min(bytes) - start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let check = |header, want| assert_eq!(parse_range(header, 10), want, "{header}");
        let part = |start, length| Range::Part { start, length };
        check("bytes=0-4", part(0, 5));
        check("bytes=4-", part(4, 6));
        check("bytes=-3", part(7, 3));
        check("bytes=-30", part(0, 10));
        check("bytes=8-100", part(8, 2));
        check("bytes=9-9", part(9, 1));
        check("bytes=10-", Range::Outside);
        check("bytes=10-12", Range::Outside);
        check("bytes=-0", Range::Outside);
        check("bytes=5-4", Range::Whole);
        check("bytes=0-1,3-4", Range::Whole);
        check("lines=0-1", Range::Whole);
        check("bytes=x-", Range::Whole);
        check("bytes=-", Range::Whole);
        assert_eq!(parse_range("bytes=0-", 0), Range::Outside);
    }
}
