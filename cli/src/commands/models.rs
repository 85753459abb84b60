//! `neurogrid models`: the models on this machine, and a grid's registry.

use crate::args::{Global, Grid, Models, Store};
use crate::output;
use anyhow::Context;
use coordinator_client::api::Problem;
use models::accuracy::{self, Accuracy};
use models::manifest::{Changes, Quantization};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use worker::cache::{self, Registry, Source};
use worker::config;

/// Runs it.
pub(crate) async fn run(global: &Global, command: Models) -> anyhow::Result<ExitCode> {
    match command {
        Models::List(store) => list(global, &store),
        Models::Pull { source, grid, store } => {
            let source = match source.strip_prefix("grid:") {
                Some(model) => {
                    let url =
                        grid.coordinator.context("say which coordinator's registry is meant: --coordinator URL")?;
                    Source::Registry { registry: Registry::with_key(&url, grid.api_key), model: model.into() }
                }
                None => source.parse()?,
            };
            pull(global, &store, source).await
        }
        Models::Add { folder, name, version, quantization, prompt, default_prompt, grid, store } => {
            let (quantization, prompts) = (quantization.map(Into::into), prompt.into_iter().collect());
            let changes = Changes { name, version, quantization, prompts, default_prompt };
            match grid {
                Grid { coordinator: Some(url), api_key } => {
                    let manifest = read(&folder, changes).await?;
                    upload(global, &manifest, &folder, &url, api_key.as_deref()).await
                }
                Grid { coordinator: None, .. } => pull(global, &store, Source::Folder { folder, changes }).await,
            }
        }
        Models::Accuracy { folder, quantization, texts, threads } => {
            accuracy(global, folder, quantization.into(), texts.as_deref(), threads).await
        }
        Models::Verify { model, store } => verify(global, &store, model).await,
        Models::Rm { model, store } => {
            let handle = cache::Handle::open(&cache(&store))?;
            let found = handle.get(&model).await?;
            let (id, is_own) = (found.manifest.id(), found.is_own());
            anyhow::ensure!(is_own, "{id} is part of the program, and was not downloaded: it stays");
            drop(found);
            handle.remove(&id)?;
            output::print(global.json, &serde_json::json!({ "removed": id }), |_| format!("{id} is removed"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Where models are kept and come from.
pub(crate) fn cache(store: &Store) -> config::Cache {
    let mut cache = config::Cache::default();
    if let Some(folder) = &store.cache_dir {
        cache.folder.clone_from(folder);
    }
    cache.quota_bytes = store.cache_quota_gb.map(|gb| (gb * 1e9) as u64);
    cache.hub.endpoint.clone_from(&store.hub_endpoint);
    cache.hub.token =
        store.hub_token.clone().or_else(|| std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()));
    cache
}

#[derive(serde::Serialize)]
struct Row {
    model: String,
    task: &'static str,
    quantization: Option<&'static str>,
    bytes: u64,
    pinned: bool,
    downloaded: bool,
    source: Option<String>,
    folder: String,
    digest: String,
}

fn list(global: &Global, store: &Store) -> anyhow::Result<ExitCode> {
    let handle = cache::Handle::open(&cache(store))?;
    let rows: Vec<Row> = handle.list().iter().map(|model| row(&handle, model)).collect();
    output::print(global.json, &rows, |rows| {
        let mut table = vec![["MODEL", "TASK", "SIZE", "", "FOLDER"].map(String::from).to_vec()];
        let cells = |row: &Row| {
            let kind = match (row.pinned, row.downloaded) {
                (true, _) => "pinned",
                (false, true) => "",
                (false, false) => "bundled",
            };
            let task = [row.task].into_iter().chain(row.quantization).collect::<Vec<_>>().join(", ");
            vec![row.model.clone(), task, output::bytes(row.bytes), kind.into(), row.folder.clone()]
        };
        table.extend(rows.iter().map(cells));
        output::table(&table)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn row(handle: &cache::Handle, model: &cache::CachedModel) -> Row {
    Row {
        model: model.manifest.id(),
        task: model.manifest.task.name(),
        quantization: model.manifest.quantization.map(Quantization::name),
        bytes: model.manifest.total_bytes(),
        pinned: handle.is_pinned(&model.manifest.id()),
        downloaded: model.is_own(),
        source: model.manifest.source.clone(),
        folder: model.folder.display().to_string(),
        digest: model.manifest.digest(),
    }
}

/// Fetches a model and shows how far it is.
async fn pull(global: &Global, store: &Store, source: Source) -> anyhow::Result<ExitCode> {
    let handle = cache::Handle::open(&cache(store))?;
    let pull = handle.pull(source);
    let mut progress = pull.progress();
    let bar = bar(global, 0);
    let shown = bar.clone();
    let showing = tokio::spawn(async move {
        while progress.changed().await.is_ok() {
            let now = progress.borrow_and_update().clone();
            shown.set_length(now.bytes_total.max(now.bytes_done));
            shown.set_position(now.bytes_done);
            shown.set_message(now.file);
        }
    });
    let done = pull.done().await;
    showing.abort();
    bar.finish_and_clear();
    let row = row(&handle, &*done?);
    output::print(global.json, &row, |row| {
        format!("{} ({}, {}) is in {}", row.model, row.task, output::bytes(row.bytes), row.folder)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A bar on standard error; none where nobody looks at one.
fn bar(global: &Global, bytes: u64) -> indicatif::ProgressBar {
    const LOOK: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    match global.json {
        true => indicatif::ProgressBar::hidden(),
        false => {
            let style = indicatif::ProgressStyle::with_template(LOOK).expect("a valid template");
            indicatif::ProgressBar::new(bytes).with_style(style)
        }
    }
}

#[derive(serde::Serialize)]
struct Verified {
    model: String,
    /// What is wrong; absent when nothing is.
    problem: Option<String>,
}

async fn verify(global: &Global, store: &Store, model: Option<String>) -> anyhow::Result<ExitCode> {
    let handle = cache::Handle::open(&cache(store))?;
    let models = match model {
        Some(model) => vec![handle.get(&model).await?.manifest.id()],
        None => handle.list().iter().map(|model| model.manifest.id()).collect(),
    };
    let mut verified = Vec::new();
    for model in models {
        let problem = handle.verify(&model).await.err().map(|error| error.to_string());
        verified.push(Verified { model, problem });
    }
    let is_good = verified.iter().all(|verified| verified.problem.is_none());
    output::print(global.json, &verified, |verified| {
        let line = |v: &Verified| match &v.problem {
            None => format!("{}: every file is as its manifest says", v.model),
            Some(problem) => format!("{problem}; remove it and pull it again"),
        };
        verified.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `accuracy` prints.
#[derive(serde::Serialize)]
struct Measured {
    model: String,
    quantization: &'static str,
    texts: usize,
    /// The texts are those inside the program, and not of the kind that the model is used for.
    sample: bool,
    execution_class: [String; 2],
    weights_bytes: [u64; 2],
    accuracy: Accuracy,
}

/// Compares a folder's model in two forms on the same texts.
async fn accuracy(
    global: &Global,
    folder: PathBuf,
    quantization: Quantization,
    texts: Option<&Path>,
    threads: usize,
) -> anyhow::Result<ExitCode> {
    let sample = texts.is_none();
    let texts = match texts {
        None => accuracy::sample_texts(),
        Some(path) => {
            let read = if path == Path::new("-") {
                std::io::read_to_string(std::io::stdin())
            } else {
                std::fs::read_to_string(path)
            };
            let text = read.with_context(|| format!("the texts in {} cannot be read", path.display()))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    let manifest = read(&folder, Changes::default()).await?;
    let measure = move || -> anyhow::Result<Measured> {
        let options = models::Options { threads, ..Default::default() };
        let load =
            |quantization| models::load(&models::Manifest { quantization, ..manifest.clone() }, &folder, &options);
        let (mut stored, mut smaller) = (load(None)?, load(Some(quantization))?);
        let accuracy = accuracy::measure(&mut stored, &mut smaller, &texts)?;
        let of = [stored.engine.info(), smaller.engine.info()];
        Ok(Measured {
            model: manifest.id(),
            quantization: quantization.name(),
            texts: texts.len(),
            sample,
            execution_class: of.map(|info| info.execution_class.clone()),
            weights_bytes: of.map(|info| info.weights_bytes),
            accuracy,
        })
    };
    let measured = tokio::task::spawn_blocking(measure).await??;
    output::print(global.json, &measured, |measured| {
        let [stored, smaller] = measured.weights_bytes.map(|bytes| bytes as f64 / 1e6);
        let [from, to] = &measured.execution_class;
        let texts = if measured.sample { "sentences of our own; --texts takes yours" } else { "texts" };
        let figures = match measured.accuracy {
            Accuracy::Embeddings { cosine_mean, cosine_least, rank_correlation } => format!(
                "cosine of a text's vectors   mean {cosine_mean:.5}, least {cosine_least:.5}\n\
                 order of all similarities    Spearman {rank_correlation:.5}"
            ),
            Accuracy::Scores { difference_mean, difference_most, rank_correlation, same_class } => {
                let same = same_class.map(|same| format!("\nsame first class             {:.1} %", same * 100.0));
                format!(
                    "difference of a score        mean {difference_mean:.5}, most {difference_most:.5}\n\
                     order of the scores          Spearman {rank_correlation:.5}{}",
                    same.unwrap_or_default()
                )
            }
        };
        format!(
            "{} in {} against itself as stored, on {} {texts}\n\
             {figures}\n\
             weights in memory            {stored:.1} MB -> {smaller:.1} MB\n\
             execution class              {from} -> {to}",
            measured.model, measured.quantization, measured.texts
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The manifest of a folder, changed as asked.
async fn read(folder: &Path, changes: Changes) -> anyhow::Result<models::Manifest> {
    let folder = folder.to_owned();
    // Hashing reads every byte of the weights.
    let read = tokio::task::spawn_blocking(move || cache::read_folder(&folder));
    Ok(read.await??.changed(changes)?)
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
    let bar = bar(global, manifest.total_bytes());
    for file in &manifest.files {
        bar.set_message(file.path.clone());
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
