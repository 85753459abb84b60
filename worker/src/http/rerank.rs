//! Reranking in the shape that Jina and Cohere share, which the coordinator serves too.

use axum::extract::State;
use axum::response::Response;
use coordinator_client::api::rerank::{RerankRequest, RerankResponse};
use coordinator_client::wire::Usage;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::body::{Json, answer};
use super::error::Refusal;
use crate::NewTask;
use crate::convert::{output_of, request_of};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(rerank))
}

/// A query and documents to scores, best first.
#[utoipa::path(post, path = "/v1/rerank", tag = "rerank", request_body = RerankRequest,
    responses((status = 200, body = RerankResponse)))]
async fn rerank(State(app): State<Shared>, Json(request, _reserved): Json<RerankRequest>) -> Result<Response, Refusal> {
    let (model, input, wanted) = request.into_task();
    let done = app.handle.execute(NewTask::new(model, request_of(input)?)).await?;
    let bytes = super::tasks::reply_bytes(&done.reply);
    answer(&app, bytes, move || {
        let usage = Usage { input_tokens: done.input_tokens, ..Usage::default() };
        Ok(RerankResponse::new(done.model, output_of(done.reply), usage, &wanted)?)
    })
    .await
}
