//! `neurogrid models`: the models on this machine, and a grid's registry.

use crate::args::{Global, Models, Store};
use crate::output;
use anyhow::Context;
use coordinator_client::api::Problem;
use std::path::Path;
use std::process::ExitCode;
use worker::{cache, config};

/// Runs it.
pub(crate) async fn run(global: &Global, command: Models) -> anyhow::Result<ExitCode> {
    match command {
        Models::List(store) => list(global, &store),
        Models::Add { folder, name, version, coordinator, api_key } => {
            let manifest = inspect(&folder, name, version).await?;
            upload(global, &manifest, &folder, &coordinator, api_key.as_deref()).await
        }
    }
}

/// Where models are kept and come from.
pub(crate) fn cache(store: &Store) -> config::Cache {
    let mut cache = config::Cache::default();
    if let Some(folder) = &store.cache_dir {
        cache.folder.clone_from(folder);
    }
    cache
}

#[derive(serde::Serialize)]
struct Row {
    model: String,
    task: &'static str,
    bytes: u64,
    folder: String,
    digest: String,
}

fn list(global: &Global, store: &Store) -> anyhow::Result<ExitCode> {
    let models = cache::Handle::open(&cache(store))?.list();
    let row = |model: &std::sync::Arc<cache::CachedModel>| Row {
        model: model.manifest.id(),
        task: model.manifest.task.name(),
        bytes: model.manifest.total_bytes(),
        folder: model.folder.display().to_string(),
        digest: model.manifest.digest(),
    };
    let rows: Vec<Row> = models.iter().map(row).collect();
    output::print(global.json, &rows, |rows| {
        let mut table = vec![["MODEL", "TASK", "SIZE", "FOLDER"].map(String::from).to_vec()];
        let cells = |row: &Row| vec![row.model.clone(), row.task.into(), output::bytes(row.bytes), row.folder.clone()];
        table.extend(rows.iter().map(cells));
        output::table(&table)
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn inspect(folder: &Path, name: Option<String>, version: Option<String>) -> anyhow::Result<models::Manifest> {
    let folder = folder.to_owned();
    let inspect = move || models::load::inspect(&folder, name.as_deref(), version.as_deref(), None);
    // Hashing reads every byte of the weights.
    Ok(tokio::task::spawn_blocking(inspect).await??)
}

/// Puts the files that the registry lacks, then the manifest.
async fn upload(
    global: &Global,
    manifest: &models::Manifest,
    folder: &Path,
    coordinator: &str,
    api_key: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let client = crate::http::client()?;
    let base = coordinator.trim_end_matches('/');
    let authorised = |request: reqwest::RequestBuilder| match api_key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    let bar = match global.json {
        true => indicatif::ProgressBar::hidden(),
        false => indicatif::ProgressBar::new(manifest.total_bytes()),
    };
    for file in &manifest.files {
        let url = format!("{base}/api/models/{}/{}/blobs/{}", manifest.name, manifest.version, file.sha256);
        let content = tokio::fs::File::open(folder.join(&file.path)).await?;
        let counted = tokio_util::io::ReaderStream::new(bar.wrap_async_read(content));
        let request = authorised(client.put(&url)).header("Content-Length", file.bytes);
        answered(request.body(reqwest::Body::wrap_stream(counted)).send().await, &url).await?;
    }
    bar.finish_and_clear();
    let url = format!("{base}/api/models");
    let request = authorised(client.post(&url)).header("Content-Type", "application/json");
    answered(request.body(manifest.to_json()).send().await, &url).await?;
    let added = serde_json::json!({ "model": manifest.id(), "coordinator": base, "bytes": manifest.total_bytes() });
    output::print(global.json, &added, |_| format!("{} is in the registry of {base}", manifest.id()))?;
    Ok(ExitCode::SUCCESS)
}

/// Checks an answer; a problem becomes the error.
async fn answered(response: reqwest::Result<reqwest::Response>, url: &str) -> anyhow::Result<()> {
    let response = response.with_context(|| format!("{url} cannot be reached; is it running?"))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.text().await.unwrap_or_default();
    match serde_json::from_str::<Problem>(&body) {
        Ok(problem) => Err(problem.into()),
        Err(_) => anyhow::bail!("{url} answered {status}: {body}"),
    }
}
