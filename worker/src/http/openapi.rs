//! The API's description of itself: `openapi.json`, and a page that shows it. The page needs nothing from elsewhere.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder};

use super::{Shared, body};

/// The description before the routes are added.
pub(super) fn description() -> OpenApi {
    let info = InfoBuilder::new()
        .title("NeuroGrid worker")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Inference on this machine. Errors are problem details (RFC 9457) with a stable `code`."));
    OpenApiBuilder::new().info(info.build()).build()
}

pub(super) fn routes(api: OpenApi) -> Router<Shared> {
    let json: Bytes = body::json_bytes(&api);
    let description = move || async move { body::json_response(json.clone()) };
    let page = || async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("docs.html")) };
    Router::new().route("/openapi.json", get(description)).route("/docs", get(page))
}
