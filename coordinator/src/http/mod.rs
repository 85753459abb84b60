//! The only room that knows axum: requests come in, are let in or refused, and go to the other rooms; answers go out, every
//! refusal as problem+json. One file per route group. Decides nothing about tasks, nodes or models.

pub(crate) mod answer;
mod auth;
mod blobs;
mod events;
mod models;
mod nodes;
mod openai;
mod operations;
pub(crate) mod serve;
mod session;
mod tasks;
mod wait;

use crate::grid::Grid;
use answer::refuse;
use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coordinator_client::api::Code;
use http::{HeaderValue, Method, Uri, header};
use std::any::Any;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa_axum::router::OpenApiRouter;

/// All routes.
pub(crate) fn router(grid: Arc<Grid>) -> Router {
    let options = &grid.options.http;
    let people = OpenApiRouter::new()
        .merge(tasks::router())
        .merge(nodes::router())
        .merge(models::router())
        .merge(openai::router())
        .merge(operations::router())
        .route_layer(from_fn_with_state(grid.clone(), auth::people));
    let nodes = nodes::node_router().route_layer(from_fn_with_state(grid.clone(), auth::nodes));
    let shared = models::shared_router()
        .merge(blobs::router())
        .route_layer(from_fn_with_state(grid.clone(), auth::anybody_known));
    let (routes, mut api) = OpenApiRouter::new()
        .merge(nodes::open_router())
        .merge(operations::open_router())
        .merge(people)
        .merge(nodes)
        .merge(shared)
        .split_for_parts();
    api.info.title = "NeuroGrid coordinator".into();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    let description = api.to_json().expect("the description is plain data");
    let description = async move || {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], description.clone())
    };
    routes
        .route("/openapi.json", get(description))
        .fallback(async |method: Method, uri: Uri| refuse(Code::NotFound, format!("no route {method} {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            refuse(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
        })
        .layer(DefaultBodyLimit::max(options.body_bytes_max))
        .layer(RequestBodyTimeoutLayer::new(options.body_time_max))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(grid)
}

/// A panic is a fault of ours, and touches nobody else's request.
fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = said.unwrap_or("?"), "a request handler panicked");
    refuse(Code::Internal, "a fault of the coordinator; its log says more").into_response()
}
