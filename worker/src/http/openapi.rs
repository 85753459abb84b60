//! The API's description of itself: `openapi.json`, and a page that shows it. The page needs nothing from elsewhere.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use coordinator_client::api::Problem;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Shared, body};

/// The description before the routes are added.
pub(super) fn description() -> OpenApi {
    let info = InfoBuilder::new()
        .title("NeuroGrid worker")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Inference on this machine. Errors are problem details (RFC 9457) with a stable `code`."));
    OpenApiBuilder::new().info(info.build()).build()
}

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(json)).routes(routes!(page))
}

/// The text that is served: the description of all routes, with what they have in common.
pub(super) fn text(mut api: OpenApi) -> Bytes {
    for item in api.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        operations.into_iter().flatten().for_each(complete);
    }
    body::json_bytes(&api)
}

/// Names an operation after its group, for names of handlers are unique in their group only, and says how it refuses.
fn complete(operation: &mut Operation) {
    let group = operation.tags.iter().flatten().next().map(String::as_str).unwrap_or_default();
    operation.operation_id = operation.operation_id.take().map(|name| format!("{group}_{name}"));
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let refusal = ResponseBuilder::new().description("Why not.").content(Problem::CONTENT_TYPE, problem).build();
    operation.responses.responses.insert("default".into(), RefOr::T(refusal));
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "description",
    responses((status = 200, body = serde_json::Value)))]
async fn json(State(app): State<Shared>) -> Response {
    body::json_response(app.description.clone())
}

/// A page that shows the description.
#[utoipa::path(get, path = "/docs", tag = "description",
    responses((status = 200, body = String, content_type = "text/html")))]
async fn page() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("docs.html"))
}
