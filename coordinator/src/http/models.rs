//! The model registry over HTTP: files first, then the manifest that lists them. Versions never change.

use super::answer::{Answer, JsonText, Path, refuse};
use super::blobs;
use crate::grid::Grid;
use crate::registry::Version;
use axum::Json as Reply;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::TaskKind;
use coordinator_client::wire::model::Manifest;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What people may call.
pub(crate) fn router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(list, put)).routes(routes!(remove)).routes(routes!(put_blob))
}

/// What nodes may call too.
pub(crate) fn shared_router() -> OpenApiRouter<Arc<Grid>> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(get_newest)).routes(routes!(get_blob))
}

/// A model version, as it is listed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ModelView {
    /// `name@version`.
    id: String,
    /// What it does.
    task: TaskKind,
    /// Sum of its files, when it is registered.
    bytes: Option<u64>,
    /// SHA-256 of the manifest's JSON, when it is registered.
    manifest_sha256: Option<String>,
    /// When it was registered, in milliseconds since the Unix epoch.
    registered_ms: Option<i64>,
    /// Connected nodes that have it on disk.
    cached_on: Vec<String>,
    /// Connected nodes that have it in memory.
    loaded_on: Vec<String>,
}

/// Models that are registered or that a connected node has, and who has them.
#[utoipa::path(get, path = "/api/models", tag = "models", responses((status = 200, description = "The models", body = [ModelView])))]
async fn list(State(grid): State<Arc<Grid>>) -> Reply<Vec<ModelView>> {
    Reply(views(&grid))
}

/// Models and who has them.
pub(super) fn views(grid: &Grid) -> Vec<ModelView> {
    let empty = |id: &str, task| ModelView {
        id: id.to_owned(),
        task,
        bytes: None,
        manifest_sha256: None,
        registered_ms: None,
        cached_on: vec![],
        loaded_on: vec![],
    };
    let mut models: BTreeMap<String, ModelView> = BTreeMap::new();
    for version in grid.registry.list() {
        let view = empty(&version.manifest.id(), version.manifest.task);
        let registered = ModelView {
            bytes: Some(version.manifest.total_bytes()),
            manifest_sha256: Some(version.digest),
            registered_ms: Some(version.registered_ms),
            ..view
        };
        models.insert(registered.id.clone(), registered);
    }
    for (id, task) in grid.presence.all_announced() {
        models.entry(id.clone()).or_insert_with(|| empty(&id, task));
    }
    for link in grid.presence.all() {
        for held in link.snapshot().models {
            let view = models.entry(held.id.clone()).or_insert_with(|| empty(&held.id, held.task));
            let holders = if held.loaded { &mut view.loaded_on } else { &mut view.cached_on };
            holders.push(link.node.short().to_owned());
        }
    }
    models.into_values().collect()
}

/// Registers a version. Its files must be here.
#[utoipa::path(
    post, path = "/api/models", tag = "models", request_body = Manifest,
    responses(
        (status = 201, description = "Registered", body = Manifest), (status = 200, description = "It was there", body = Manifest),
        (status = 409, description = "It exists with other content", body = Problem),
        (status = 422, description = "A rule is broken, or files are missing", body = Problem),
    )
)]
async fn put(State(grid): State<Arc<Grid>>, JsonText(json): JsonText) -> Answer<Response> {
    let (version, is_new) = grid.registry.put(&json).await?;
    grid.board.wake_and_resync();
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, manifest_response(&version)).into_response())
}

fn manifest_response(version: &Version) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", version.digest)).expect("digests are ASCII");
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json), (header::ETAG, tag)], version.json.to_string()).into_response()
}

fn find(grid: &Grid, name: &str, version: Option<&str>) -> Answer<Version> {
    grid.registry.get(name, version).ok_or_else(|| {
        let id = version.map_or(name.to_owned(), |version| format!("{name}@{version}"));
        refuse(Code::ModelNotFound, format!("{id} is not registered here"))
    })
}

/// A version's manifest, byte for byte as it was registered.
#[utoipa::path(
    get, path = "/api/models/{name}/{version}", tag = "models",
    params(("name" = String, Path, description = "The model's name"), ("version" = String, Path, description = "Its version")),
    responses((status = 200, description = "The manifest", body = Manifest), (status = 404, description = "Not registered", body = Problem))
)]
async fn get(State(grid): State<Arc<Grid>>, path: Path<(String, String)>) -> Answer<Response> {
    let (name, version) = path.0;
    Ok(manifest_response(&find(&grid, &name, Some(&version))?))
}

/// The manifest of a model's newest version.
#[utoipa::path(
    get, path = "/api/models/{name}", tag = "models", params(("name" = String, Path, description = "The model's name")),
    responses((status = 200, description = "The manifest", body = Manifest), (status = 404, description = "Not registered", body = Problem))
)]
async fn get_newest(State(grid): State<Arc<Grid>>, Path(name): Path<String>) -> Answer<Response> {
    Ok(manifest_response(&find(&grid, &name, None)?))
}

/// Removes a version. Its files go in time, when no other version lists them.
#[utoipa::path(
    delete, path = "/api/models/{name}/{version}", tag = "models",
    params(("name" = String, Path, description = "The model's name"), ("version" = String, Path, description = "Its version")),
    responses((status = 204, description = "Removed"), (status = 404, description = "Not registered", body = Problem))
)]
async fn remove(State(grid): State<Arc<Grid>>, path: Path<(String, String)>) -> Answer<StatusCode> {
    let (name, version) = path.0;
    if grid.registry.remove(&name, &version).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(refuse(Code::ModelNotFound, format!("{name}@{version} is not registered here")))
}

/// Stores a file of a version that is about to be registered.
#[utoipa::path(
    put, path = "/api/models/{name}/{version}/blobs/{sha256}", tag = "models",
    params(
        ("name" = String, Path, description = "The model's name"), ("version" = String, Path, description = "Its version"),
        ("sha256" = String, Path, description = "SHA-256 of the content"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "Stored"), (status = 200, description = "It was there"), (status = 422, description = "Another digest", body = Problem))
)]
async fn put_blob(
    State(grid): State<Arc<Grid>>,
    path: Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<StatusCode> {
    let (_, _, sha256) = path.0;
    blobs::store(&grid.registry.blobs, &sha256, &headers, body, grid.options.registry.model_bytes_max).await
}

/// A file of a version, or a part of it.
#[utoipa::path(
    get, path = "/api/models/{name}/{version}/blobs/{sha256}", tag = "models",
    params(
        ("name" = String, Path, description = "The model's name"), ("version" = String, Path, description = "Its version"),
        ("sha256" = String, Path, description = "SHA-256 of the content"),
    ),
    responses(
        (status = 200, description = "The content", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "The range", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "No such file", body = Problem),
    )
)]
async fn get_blob(
    State(grid): State<Arc<Grid>>,
    path: Path<(String, String, String)>,
    headers: HeaderMap,
) -> Answer<Response> {
    let (name, version, sha256) = path.0;
    let found = find(&grid, &name, Some(&version))?;
    if found.manifest.file(&sha256).is_none() {
        return Err(refuse(Code::NotFound, format!("{} lists no file with SHA-256 {sha256}", found.manifest.id())));
    }
    blobs::send(&grid.registry.blobs, &sha256, &headers).await
}
