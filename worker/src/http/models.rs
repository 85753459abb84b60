//! Models over HTTP: which are at hand, loading and unloading, keeping one from being evicted.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use coordinator_client::api::Code;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::{Path, Query, Refusal};
use crate::generate::Figures;
use crate::service::{LoadedModel, Model};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, load, unload)).routes(routes!(pin, unpin))
}

/// A model that is at hand.
#[derive(Serialize, ToSchema)]
struct ModelInfo {
    /// `name@version`.
    id: String,
    /// Its name.
    name: String,
    /// Its version.
    version: String,
    /// `embed`, `rerank`, `classify` or `infer`.
    task: &'static str,
    /// Bytes on disk.
    bytes: u64,
    /// Digest of its files.
    digest: String,
    /// Where it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// SPDX expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<String>,
    /// What may be put before a text to embed, by the names that `input_type` and `prompt_name` choose.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    prompts: BTreeMap<String, String>,
    /// Name of the prompt of requests that choose none; absent where their texts stand bare.
    #[serde(skip_serializing_if = "Option::is_none")]
    default_prompt: Option<String>,
    /// What `dimensions` may be beside the full length; any less than that where this is absent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    matryoshka_dimensions: Vec<usize>,
    /// Whether it is never evicted.
    pinned: bool,
    /// Where it runs, when it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    loaded: Option<LoadedInfo>,
}

/// Where a model runs and as what.
#[derive(Serialize, ToSchema)]
pub(super) struct LoadedInfo {
    /// `name@version`.
    model: String,
    /// `ready`, `reloading` or `broken`.
    condition: &'static str,
    /// `cpu`, `cuda:0`, …
    device: String,
    /// `candle`, `onnxruntime`, `tract` or `fake`.
    backend: &'static str,
    /// What really executes it.
    provider: String,
    /// The library behind it, when it was found at run time.
    #[serde(skip_serializing_if = "Option::is_none")]
    library: Option<String>,
    /// Inside which class of machines its answers are comparable.
    execution_class: String,
    /// Why this device and this backend.
    because: String,
    /// Bytes that are reserved for it.
    memory_bytes: u64,
    /// Its texts, where it wrote any.
    #[serde(skip_serializing_if = "Option::is_none")]
    texts: Option<TextsInfo>,
    /// Tasks that use it now.
    uses: usize,
    /// Seconds for which nobody has used it.
    idle_s: f64,
    /// Milliseconds that loading took.
    loaded_in_ms: u64,
}

/// How things stand with the texts of a model.
#[derive(Serialize, ToSchema)]
pub(super) struct TextsInfo {
    /// Those that are written now.
    running: usize,
    /// Those that wait for their turn.
    waiting: usize,
    /// Blocks of the KV cache.
    kv_blocks: usize,
    /// Blocks that texts hold; shared ones count once.
    kv_blocks_used: usize,
    /// Blocks that are kept for prompts that begin alike.
    kv_blocks_cached: usize,
    /// How often a text lost its blocks to others and was computed again.
    preemptions: u64,
    /// Tokens that were not computed because the KV cache had them.
    reused_tokens: u64,
    /// Tokens that were computed.
    computed_tokens: u64,
}

impl From<Figures> for TextsInfo {
    fn from(figures: Figures) -> Self {
        Self {
            running: figures.running,
            waiting: figures.waiting,
            kv_blocks: figures.blocks.total,
            kv_blocks_used: figures.blocks.used,
            kv_blocks_cached: figures.blocks.cached,
            preemptions: figures.preemptions,
            reused_tokens: figures.reused_tokens,
            computed_tokens: figures.computed_tokens,
        }
    }
}

impl From<LoadedModel> for LoadedInfo {
    fn from(loaded: LoadedModel) -> Self {
        Self {
            model: loaded.model,
            condition: loaded.condition.name(),
            device: loaded.info.device.to_string(),
            backend: loaded.info.backend,
            provider: loaded.info.provider,
            library: loaded.info.library,
            execution_class: loaded.info.execution_class,
            because: loaded.because,
            memory_bytes: loaded.memory_bytes,
            texts: loaded.texts.map(TextsInfo::from),
            uses: loaded.uses,
            idle_s: loaded.idle_for.as_secs_f64(),
            loaded_in_ms: loaded.loaded_in.as_millis() as u64,
        }
    }
}

impl From<Model> for ModelInfo {
    fn from(model: Model) -> Self {
        let manifest = &model.cached.manifest;
        Self {
            id: manifest.id(),
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            task: manifest.task.name(),
            bytes: manifest.total_bytes(),
            digest: manifest.digest(),
            source: manifest.source.clone(),
            license: manifest.license.clone(),
            prompts: manifest.prompts.clone(),
            default_prompt: manifest.default_prompt.clone(),
            matryoshka_dimensions: manifest.matryoshka_dimensions.clone(),
            pinned: model.is_pinned,
            loaded: model.loaded.map(LoadedInfo::from),
        }
    }
}

/// The models that are at hand.
#[derive(Serialize, ToSchema)]
struct ModelInfos {
    /// By name.
    models: Vec<ModelInfo>,
}

/// What goes with an unloading.
#[derive(Deserialize, IntoParams)]
struct Unload {
    /// Also forget the model, and delete its files where they are the cache's own.
    #[serde(default)]
    files: bool,
}

/// The models that are at hand, loaded or not.
#[utoipa::path(get, path = "/api/models", tag = "models", responses((status = 200, body = ModelInfos)))]
async fn list(State(app): State<Shared>) -> axum::Json<ModelInfos> {
    axum::Json(ModelInfos { models: app.handle.models().into_iter().map(ModelInfo::from).collect() })
}

fn info(app: &Shared, model: &str) -> Result<axum::Json<ModelInfo>, Refusal> {
    let found = app.handle.model(model).map(ModelInfo::from).map(axum::Json);
    found.ok_or_else(|| {
        Refusal::new(Code::ModelNotFound, format!("model {model:?} is not here; `GET /api/models` lists what is"))
    })
}

/// One model that is at hand.
#[utoipa::path(get, path = "/api/models/{model}", tag = "models",
    params(("model", description = "`name` or `name@version`")), responses((status = 200, body = ModelInfo)))]
async fn get(State(app): State<Shared>, Path(model): Path<String>) -> Result<axum::Json<ModelInfo>, Refusal> {
    info(&app, &model)
}

/// Loads a model, fetching it where it is not at hand.
#[utoipa::path(post, path = "/api/models/{model}", tag = "models",
    params(("model", description = "`name` or `name@version`")), responses((status = 200, body = ModelInfo)))]
async fn load(State(app): State<Shared>, Path(model): Path<String>) -> Result<axum::Json<ModelInfo>, Refusal> {
    let loaded = app.handle.load(&model).await?;
    info(&app, &loaded.model)
}

/// Unloads a model; its files stay unless they shall go too.
#[utoipa::path(delete, path = "/api/models/{model}", tag = "models",
    params(("model", description = "`name` or `name@version`"), Unload), responses((status = 204)))]
async fn unload(
    State(app): State<Shared>,
    Path(model): Path<String>,
    Query(query): Query<Unload>,
) -> Result<StatusCode, Refusal> {
    match app.handle.unload(&model).await {
        // To forget a model it need not be loaded.
        Err(crate::Error::NotLoaded { .. }) if query.files => {}
        result => result?,
    }
    if query.files {
        app.handle.cache().remove(&model)?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Keeps a model from being evicted.
#[utoipa::path(put, path = "/api/models/{model}/pin", tag = "models",
    params(("model", description = "`name` or `name@version`")), responses((status = 200, body = ModelInfo)))]
async fn pin(State(app): State<Shared>, Path(model): Path<String>) -> Result<axum::Json<ModelInfo>, Refusal> {
    app.handle.pin(&model, true)?;
    info(&app, &model)
}

/// Allows a model to be evicted again.
#[utoipa::path(delete, path = "/api/models/{model}/pin", tag = "models",
    params(("model", description = "`name` or `name@version`")), responses((status = 200, body = ModelInfo)))]
async fn unpin(State(app): State<Shared>, Path(model): Path<String>) -> Result<axum::Json<ModelInfo>, Refusal> {
    app.handle.pin(&model, false)?;
    info(&app, &model)
}
