//! OpenAI's routes: embeddings and the list of models. The shapes are those that the coordinator serves too.

use axum::extract::State;
use axum::response::Response;
use coordinator_client::api::Code;
use coordinator_client::api::openai::{EmbeddingsRequest, EmbeddingsResponse, Model, ModelList};
use coordinator_client::wire::Usage;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::body::{Json, answer};
use super::error::{Path, Refusal};
use crate::NewTask;
use crate::convert::{output_of, request_of};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(embeddings)).routes(routes!(models)).routes(routes!(model))
}

/// Texts to vectors.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingsRequest,
    responses((status = 200, body = EmbeddingsResponse)))]
async fn embeddings(
    State(app): State<Shared>,
    Json(request, _reserved): Json<EmbeddingsRequest>,
) -> Result<Response, Refusal> {
    let (model, input, format) = request.into_task();
    let done = app.handle.execute(NewTask::new(model, request_of(input)?)).await?;
    let bytes = super::tasks::reply_bytes(&done.reply);
    answer(&app, bytes, move || {
        let usage = Usage { input_tokens: done.input_tokens, ..Usage::default() };
        Ok(EmbeddingsResponse::new(done.model, output_of(done.reply), usage, format)?)
    })
    .await
}

fn listed(model: &crate::service::Model) -> Model {
    let manifest = &model.cached.manifest;
    Model::new(manifest.id(), manifest.source.clone().unwrap_or_else(|| "local".into()))
}

/// The models that are at hand.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = ModelList)))]
async fn models(State(app): State<Shared>) -> axum::Json<ModelList> {
    axum::Json(ModelList::new(app.handle.models().iter().map(listed).collect()))
}

/// One model that is at hand.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai",
    params(("model", description = "`name` or `name@version`")), responses((status = 200, body = Model)))]
async fn model(State(app): State<Shared>, Path(model): Path<String>) -> Result<axum::Json<Model>, Refusal> {
    let found = app.handle.model(&model).as_ref().map(listed).map(axum::Json);
    found.ok_or_else(|| Refusal::new(Code::ModelNotFound, format!("model {model:?} is not here")))
}
