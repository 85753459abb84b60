//! The Open Inference Protocol, version 2, over REST: metadata, readiness and inference, with the extensions for binary
//! tensors and for the repository of models.

mod wire;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use coordinator_client::api::Code;
use models::engine::TensorSpec;
use models::task::{Reply, Request};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::body::Raw;
use super::error::{Path, Refusal};
use crate::device::resident::Condition;
use crate::{Done, NewTask};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(server))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(model))
        .routes(routes!(model_version))
        .routes(routes!(model_ready))
        .routes(routes!(model_version_ready))
        .routes(routes!(infer))
        .routes(routes!(infer_version))
        .routes(routes!(index))
        .routes(routes!(load))
        .routes(routes!(unload))
}

/// The server.
#[derive(Serialize, ToSchema)]
#[schema(as = oip::Server)]
struct Server {
    /// Its name.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// What it has beyond the protocol.
    extensions: &'static [&'static str],
}

/// A model.
#[derive(Serialize, ToSchema)]
#[schema(as = oip::Metadata)]
struct Metadata {
    /// Its name.
    name: String,
    /// Its versions that are at hand, the newest last.
    versions: Vec<String>,
    /// What runs it.
    platform: String,
    /// What it takes.
    inputs: Vec<Tensor>,
    /// What it gives.
    outputs: Vec<Tensor>,
}

/// A tensor that a model takes or gives.
#[derive(Serialize, ToSchema)]
#[schema(as = oip::Tensor)]
struct Tensor {
    /// Its name.
    name: String,
    /// `FP32`, `INT64`, …
    datatype: &'static str,
    /// Dimensions, −1 for those that differ from call to call.
    shape: Vec<i64>,
}

/// A model in the list of the repository.
#[derive(Serialize, ToSchema)]
#[schema(as = oip::Listed)]
struct Listed {
    /// Its name.
    name: String,
    /// Its version.
    version: String,
    /// `READY` or `UNAVAILABLE`.
    state: &'static str,
    /// Why it is not ready.
    reason: String,
}

/// The server and its extensions.
#[utoipa::path(get, path = "/v2", tag = "oip", responses((status = 200, body = Server)))]
async fn server() -> axum::Json<Server> {
    axum::Json(Server {
        name: "neurogrid",
        version: env!("CARGO_PKG_VERSION"),
        extensions: &["binary_tensor_data", "model_repository"],
    })
}

/// Whether the server lives.
#[utoipa::path(get, path = "/v2/health/live", tag = "oip", responses((status = 200)))]
async fn live() {}

/// Whether the server takes inferences.
#[utoipa::path(get, path = "/v2/health/ready", tag = "oip", responses((status = 200), (status = 503)))]
async fn ready(State(app): State<Shared>) -> Result<(), Refusal> {
    match app.handle.status().not_ready_because.as_slice() {
        [] => Ok(()),
        reasons => Err(Refusal::new(Code::Unavailable, format!("not ready: {}", reasons.join("; ")))),
    }
}

fn id_of(name: &str, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("{name}@{version}"),
        None => name.to_owned(),
    }
}

/// What a model takes and gives is known when it is loaded, so it is loaded.
async fn metadata(app: &Shared, name: &str, version: Option<&str>) -> Result<axum::Json<Metadata>, Refusal> {
    let id = id_of(name, version);
    let loaded = app.handle.load(&id).await?;
    let (name, _) = models::manifest::split_id(&loaded.model);
    let all = app.handle.cache().list();
    let versions = all.iter().filter(|cached| cached.manifest.name == name);
    let tensor = |spec: &TensorSpec| Tensor {
        name: spec.name.clone(),
        datatype: spec.datatype.name(),
        shape: spec.shape.iter().map(|dim| dim.map_or(-1, |dim| dim as i64)).collect(),
    };
    Ok(axum::Json(Metadata {
        name: name.to_owned(),
        versions: versions.map(|cached| cached.manifest.version.clone()).collect(),
        platform: format!("{}_{}", loaded.info.backend, loaded.info.provider),
        inputs: loaded.info.inputs.iter().map(tensor).collect(),
        outputs: loaded.info.outputs.iter().map(tensor).collect(),
    }))
}

/// What a model takes and gives.
#[utoipa::path(get, path = "/v2/models/{model}", tag = "oip", params(("model", description = "Its name")),
    responses((status = 200, body = Metadata)))]
async fn model(State(app): State<Shared>, Path(name): Path<String>) -> Result<axum::Json<Metadata>, Refusal> {
    metadata(&app, &name, None).await
}

/// What a model's version takes and gives.
#[utoipa::path(get, path = "/v2/models/{model}/versions/{version}", tag = "oip",
    params(("model", description = "Its name"), ("version", description = "Its version")),
    responses((status = 200, body = Metadata)))]
async fn model_version(
    State(app): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<axum::Json<Metadata>, Refusal> {
    metadata(&app, &name, Some(&version)).await
}

/// A model that is at hand is ready: it is loaded when it is first asked. One that is out of use is not.
fn check_ready(app: &Shared, id: &str) -> Result<(), Refusal> {
    let model = app.handle.model(id);
    let model = model.ok_or_else(|| Refusal::new(Code::ModelNotFound, format!("model {id:?} is not here")))?;
    match model.loaded.map(|loaded| loaded.condition) {
        None | Some(Condition::Ready) => Ok(()),
        Some(condition) => Err(Refusal::new(Code::Unavailable, format!("{id} is {}", condition.name()))),
    }
}

/// Whether a model takes inferences.
#[utoipa::path(get, path = "/v2/models/{model}/ready", tag = "oip", params(("model", description = "Its name")),
    responses((status = 200), (status = 404), (status = 503)))]
async fn model_ready(State(app): State<Shared>, Path(name): Path<String>) -> Result<(), Refusal> {
    check_ready(&app, &name)
}

/// Whether a model's version takes inferences.
#[utoipa::path(get, path = "/v2/models/{model}/versions/{version}/ready", tag = "oip",
    params(("model", description = "Its name"), ("version", description = "Its version")),
    responses((status = 200), (status = 404), (status = 503)))]
async fn model_version_ready(
    State(app): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<(), Refusal> {
    check_ready(&app, &id_of(&name, Some(&version)))
}

/// Named tensors in, named tensors out.
#[utoipa::path(post, path = "/v2/models/{model}/infer", tag = "oip", params(("model", description = "Its name")),
    request_body = wire::InferRequest, responses((status = 200, body = wire::InferResponse)))]
async fn infer(State(app): State<Shared>, Path(name): Path<String>, body: Raw) -> Result<Response, Refusal> {
    run(&app, &name, None, body).await
}

/// Named tensors in, named tensors out, on one version.
#[utoipa::path(post, path = "/v2/models/{model}/versions/{version}/infer", tag = "oip",
    params(("model", description = "Its name"), ("version", description = "Its version")),
    request_body = wire::InferRequest, responses((status = 200, body = wire::InferResponse)))]
async fn infer_version(
    State(app): State<Shared>,
    Path((name, version)): Path<(String, String)>,
    body: Raw,
) -> Result<Response, Refusal> {
    run(&app, &name, Some(&version), body).await
}

/// A larger body is read, and a larger answer written, on the CPU pool.
const INLINE_BYTES: usize = 32 << 10;

async fn run(app: &Shared, name: &str, version: Option<&str>, body: Raw) -> Result<Response, Refusal> {
    let Raw { bytes, headers, reserved: _reserved } = body;
    let json_bytes = wire::json_length(&headers)?;
    let read = {
        let bytes = bytes.clone();
        move || wire::read(&bytes, json_bytes)
    };
    let asked = if bytes.len() <= INLINE_BYTES { read()? } else { app.handle.on_cpu(read).await?? };
    let wire::Asked { id, inputs, outputs, timeout } = asked;
    let names = outputs.names();
    let deadline = timeout.and_then(|timeout| std::time::Instant::now().checked_add(timeout));
    let request = Request::Infer { inputs, outputs: names };
    let task = NewTask { deadline, ..NewTask::new(id_of(name, version), request) };
    let Done { reply, model, .. } = app.handle.execute(task).await?;
    let Reply::Tensors(tensors) = reply else {
        return Err(Refusal::new(Code::Internal, "the model's answer is not tensors"));
    };
    let size: usize = tensors.iter().map(|tensor| tensor.tensor.data().len()).sum();
    let write = move || wire::write(id, &model, tensors, &outputs);
    let written = if size <= INLINE_BYTES { write()? } else { app.handle.on_cpu(write).await?? };
    let mut response = written.body.into_response();
    let kind = match written.json_bytes {
        Some(length) => {
            response.headers_mut().insert(wire::LENGTH_HEADER, HeaderValue::from(length));
            "application/octet-stream"
        }
        None => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// The models that are at hand.
#[utoipa::path(post, path = "/v2/repository/index", tag = "oip", responses((status = 200, body = [Listed])))]
async fn index(State(app): State<Shared>) -> axum::Json<Vec<Listed>> {
    let listed = |model: crate::service::Model| {
        let manifest = &model.cached.manifest;
        let broken = model.loaded.filter(|loaded| loaded.condition != Condition::Ready);
        Listed {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            state: if broken.is_none() { "READY" } else { "UNAVAILABLE" },
            reason: broken.map(|loaded| loaded.condition.name().to_owned()).unwrap_or_default(),
        }
    };
    axum::Json(app.handle.models().into_iter().map(listed).collect())
}

/// Loads a model.
#[utoipa::path(post, path = "/v2/repository/models/{model}/load", tag = "oip",
    params(("model", description = "Its name")), responses((status = 200)))]
async fn load(State(app): State<Shared>, Path(name): Path<String>) -> Result<(), Refusal> {
    app.handle.load(&name).await?;
    Ok(())
}

/// Unloads a model. One that is not loaded is fine.
#[utoipa::path(post, path = "/v2/repository/models/{model}/unload", tag = "oip",
    params(("model", description = "Its name")), responses((status = 200)))]
async fn unload(State(app): State<Shared>, Path(name): Path<String>) -> Result<(), Refusal> {
    match app.handle.unload(&name).await {
        Ok(()) => Ok(()),
        Err(crate::Error::NotLoaded { .. }) if app.handle.model(&name).is_some() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
