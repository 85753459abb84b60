//! Fetches whole models: a source goes in, a verified model in the cache comes out, with its progress on the way. One fetch
//! serves all who ask for the same; a model shows only when all of it was checked. It serves nothing and loads nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use models::manifest::Changes;
use models::{Manifest, load, manifest};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, watch};
use url::Url;

use super::disk::Partial;
use super::fetch::{Fetcher, Wanted};
use super::quota;
use super::source::{Registry, Source, Token};
use super::store::{self, Store};
use super::{CachedModel, Error};
use crate::{config, hardware};

/// No manifest and no list of files is longer.
const TEXT_BYTES_MAX: usize = 16 << 20;
/// Models that are fetched at one time; more wait for their turn.
const PULLS_MAX: usize = 4;
/// What stays free on the disk: others need room too.
const DISK_RESERVE_BYTES: u64 = 1 << 30;

/// How far the fetching of a model is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The file that is fetched now.
    pub file: String,
    /// Bytes of all files that are here.
    pub bytes_done: u64,
    /// Bytes of all files; 0 before they are known.
    pub bytes_total: u64,
}

type Ended = Option<Result<Arc<CachedModel>, Error>>;

/// A fetch on its way, or ended.
#[derive(Debug, Clone)]
pub struct Pull {
    progress: watch::Receiver<Progress>,
    ended: watch::Receiver<Ended>,
}

impl Pull {
    /// How far it is. Changes are seen by waiting on it.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits for the model.
    ///
    /// # Errors
    /// When the source does not give it, its files are refused, or there is no room.
    pub async fn done(mut self) -> Result<Arc<CachedModel>, Error> {
        match self.ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().expect("it was waited for"),
            Err(_) => Err(Error::source_failed("the download", "it was stopped, or crashed; ask again")),
        }
    }
}

/// Fetches models into the cache.
pub(super) struct Puller {
    store: Arc<Store>,
    fetcher: Fetcher,
    hub: config::Hub,
    quota_bytes: Option<u64>,
    turns: Semaphore,
    /// Bytes of the models that are on their way.
    taken: Arc<AtomicU64>,
    under_way: Mutex<HashMap<String, Pull>>,
}

/// What has to be fetched for a model.
struct Plan {
    /// The same for the same content: where an interrupted fetch goes on.
    key: String,
    files: Vec<Wanted>,
    /// What the model is, when the source says it; else its files do.
    manifest: Option<Manifest>,
    /// Its name and version otherwise.
    name: String,
    version: String,
}

/// What the Hub tells of a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Puller {
    pub(super) fn new(store: Arc<Store>, options: &config::Cache) -> Result<Self, Error> {
        Ok(Self {
            store,
            fetcher: Fetcher::new(options.download.clone())?,
            hub: options.hub.clone(),
            quota_bytes: options.quota_bytes,
            turns: Semaphore::new(PULLS_MAX),
            taken: Arc::default(),
            under_way: Mutex::default(),
        })
    }

    pub(super) fn pull(self: &Arc<Self>, source: Source) -> Pull {
        // All of it: two names for the same folder are two models.
        let key = format!("{source:?}");
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pull) = under_way.get(&key) {
            return pull.clone();
        }
        let (report, progress) = watch::channel(Progress::default());
        let (end, ended) = watch::channel(None);
        let pull = Pull { progress, ended };
        under_way.insert(key.clone(), pull.clone());
        let this = Arc::clone(self);
        tokio::spawn(async move {
            // Takes the entry away even when the fetch panics.
            let _entry = Entry { puller: Arc::clone(&this), key };
            let result = this.fetch(&source, &report).await;
            match &result {
                Ok(model) => tracing::info!(model = model.manifest.id(), %source, "the model is in the cache"),
                Err(error) => tracing::warn!(%source, "the model is not fetched: {error}"),
            }
            end.send_replace(Some(result));
        });
        pull
    }

    async fn fetch(&self, source: &Source, progress: &watch::Sender<Progress>) -> Result<Arc<CachedModel>, Error> {
        let _turn = self.turns.acquire().await.expect("the turns are never closed");
        let plan = match source {
            Source::Hub { repository, revision } => self.plan_hub(repository, revision).await?,
            Source::Manifest(url) => self.plan_manifest(url).await?,
            Source::Registry { registry, model } => self.plan_registry(registry, model).await?,
            Source::Folder { folder, changes } => return self.copy(folder, changes.clone(), progress).await,
        };
        let digest = plan.manifest.as_ref().map(Manifest::digest);
        let known = || self.store.find(&format!("{}@{}", plan.name, plan.version));
        let is_here =
            |found: &Arc<CachedModel>| digest.as_ref().is_none_or(|digest| *digest == found.manifest.digest());
        if let Some(found) = known().filter(is_here) {
            return Ok(found);
        }
        let partial = self.store.disk().partial(&plan.key).await?;
        // Another process may have brought it while this one waited for the place.
        self.store.rescan()?;
        if let Some(found) = known().filter(is_here) {
            return Ok(found);
        }
        let bytes: u64 = plan.files.iter().filter_map(|file| file.bytes).sum();
        progress.send_modify(|progress| progress.bytes_total = bytes);
        let shown = source.to_string();
        let _room = self.make_room(&shown, bytes).await?;
        for file in &plan.files {
            self.fetcher.file(&partial, file, progress).await?;
        }
        let Plan { manifest, name, version, .. } = plan;
        let from = shown.clone();
        let inspect = move |folder: &Path| load::inspect(folder, Some(&name), Some(&version), Some(&from));
        self.finish(shown, partial, manifest, inspect).await
    }

    /// Checks what is complete and lets it appear. What is refused is deleted: to go on with it would not help.
    async fn finish(
        &self,
        shown: String,
        partial: Partial,
        manifest: Option<Manifest>,
        inspect: impl FnOnce(&Path) -> Result<Manifest, models::Error> + Send + 'static,
    ) -> Result<Arc<CachedModel>, Error> {
        let (store, crashed) = (Arc::clone(&self.store), Error::crashed(&shown));
        let finished = tokio::task::spawn_blocking(move || {
            let folder = partial.model();
            let made = match manifest {
                Some(manifest) => Ok(manifest),
                None => {
                    inspect(&folder).map_err(|error| Error::Refused { model: shown.clone(), reason: error.to_string() })
                }
            };
            let checked = made.and_then(|manifest| {
                super::disk::write(&folder.join(manifest::FILE_NAME), manifest.to_json().as_bytes())?;
                store::read_folder(&folder)
            });
            match checked {
                Ok(manifest) => {
                    let folder = store.disk().install(&partial, &manifest)?;
                    store.add_own(manifest, folder)
                }
                Err(Error::Refused { reason, .. }) => {
                    partial.delete();
                    Err(Error::Refused { model: shown, reason })
                }
                Err(error) => Err(error),
            }
        });
        finished.await.unwrap_or(Err(crashed))
    }

    /// The files of a revision that a model needs, by the Hub's own list.
    async fn plan_hub(&self, repository: &str, revision: &str) -> Result<Plan, Error> {
        let api = hub_api(&self.hub).map_err(|error| Error::source_failed("the Hub", error))?;
        let repo = |revision: &str| Repo::with_revision(repository.into(), RepoType::Model, revision.into());
        let request = api.repo(repo(revision)).info_request();
        let address = request.uri_ref().map(ToString::to_string).unwrap_or_default();
        let mut url = parse(&address)?;
        url.query_pairs_mut().append_pair("blobs", "true");
        let token = Token::fixed(self.hub.token.clone().or_else(|| hf_hub::Cache::from_env().token()));
        let text = self.fetcher.text(&url, &token, TEXT_BYTES_MAX).await?;
        let told: Revision = serde_json::from_slice(&text).map_err(|error| Error::source_failed(&url, error))?;
        // From here on by commit: a branch may move meanwhile.
        let pinned = api.repo(repo(&told.sha));
        let mut files = Vec::new();
        for file in told.siblings.into_iter().filter(|file| load::is_wanted(&file.path)) {
            if !manifest::is_inside(&file.path) {
                return Err(Error::source_failed(&url, format!("{:?} is no path inside a model", file.path)));
            }
            files.push(Wanted {
                url: parse(&pinned.url(&file.path))?,
                path: file.path,
                sha256: file.lfs.map(|lfs| lfs.sha256),
                bytes: file.size,
                token: token.clone(),
            });
        }
        let refused = |reason: String| Error::Refused { model: repository.into(), reason };
        // Repositories have the same model in many sizes.
        let ggufs = load::choose_gguf(files.iter().map(|file| file.path.as_str()));
        let ggufs =
            ggufs.map_err(|error| refused(format!("{error}; fetch the one that you want, and add its folder")))?;
        let ggufs: Vec<String> = ggufs.into_iter().map(str::to_owned).collect();
        files.retain(|file| !file.path.ends_with(".gguf") || ggufs.contains(&file.path));
        if !files.iter().any(|file| file.path.ends_with(".safetensors") || file.path.ends_with(".onnx"))
            && ggufs.is_empty()
        {
            return Err(refused(
                "it has no safetensors, no GGUF file and no model.onnx; other formats are not read".into(),
            ));
        }
        let name = repository.rsplit('/').next().unwrap_or(repository).to_ascii_lowercase();
        Ok(Plan { key: format!("hf:{repository}@{}", told.sha), files, manifest: None, name, version: told.sha })
    }

    /// The files beside a manifest.
    async fn plan_manifest(&self, url: &Url) -> Result<Plan, Error> {
        let token = Token::fixed(None);
        let manifest = self.manifest(url, &token).await?;
        let file = |path: &str| url.join(path).map_err(|error| Error::source_failed(url, format!("{path}: {error}")));
        plan_of(manifest, &token, |listed| file(&listed.path))
    }

    /// The blobs of a version in a coordinator's registry.
    async fn plan_registry(&self, registry: &Registry, model: &str) -> Result<Plan, Error> {
        let (name, version) = manifest::split_id(model);
        let base = format!("{}/api/models/{name}", registry.url);
        let url = parse(&version.map_or(base.clone(), |version| format!("{base}/{version}")))?;
        let manifest = self.manifest(&url, &registry.token).await?;
        if manifest.name != name || version.is_some_and(|version| version != manifest.version) {
            return Err(Error::source_failed(&url, format!("it answers with {}", manifest.id())));
        }
        let blobs = format!("{base}/{}/blobs", manifest.version);
        plan_of(manifest, &registry.token, |listed| parse(&format!("{blobs}/{}", listed.sha256)))
    }

    async fn manifest(&self, url: &Url, token: &Token) -> Result<Manifest, Error> {
        let json = self.fetcher.text(url, token, TEXT_BYTES_MAX).await?;
        Manifest::from_json(&json).map_err(|error| Error::Refused { model: url.to_string(), reason: error.to_string() })
    }

    /// Copies a folder's model into the cache.
    async fn copy(
        &self,
        folder: &Path,
        changes: Changes,
        progress: &watch::Sender<Progress>,
    ) -> Result<Arc<CachedModel>, Error> {
        let shown = folder.display().to_string();
        let (from, model) = (folder.to_owned(), shown.clone());
        let read = tokio::task::spawn_blocking(move || {
            let refused = |error: manifest::Error| Error::Refused { model, reason: error.to_string() };
            store::read_folder(&from)?.changed(changes).map_err(refused)
        });
        let manifest = read.await.unwrap_or_else(|_| Err(Error::crashed(&shown)))?;
        let bytes = manifest.total_bytes();
        progress.send_modify(|progress| progress.bytes_total = bytes);
        let _room = self.make_room(&shown, bytes).await?;
        let partial = self.store.disk().partial(&format!("folder:{shown} {}", manifest.id())).await?;
        for file in &manifest.files {
            progress.send_modify(|progress| progress.file.clone_from(&file.path));
            let (from, part): (PathBuf, PathBuf) = (folder.join(&file.path), partial.part(&file.path));
            let copied = copy_content(&from, &part).await.map_err(|error| Error::io(&from, &error))?;
            partial.complete(&part, &file.path)?;
            progress.send_modify(|progress| progress.bytes_done += copied);
        }
        self.finish(shown, partial, Some(manifest), |_| unreachable!("the manifest is known")).await
    }

    /// Evicts models until so many bytes fit into the quota and onto the disk, beside what else is on its way.
    async fn make_room(&self, model: &str, bytes: u64) -> Result<Room, Error> {
        let store = Arc::clone(&self.store);
        let (model, quota_bytes) = (model.to_owned(), self.quota_bytes);
        let room = Room { taken: Arc::clone(&self.taken), bytes };
        let bytes = self.taken.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let made = tokio::task::spawn_blocking(move || {
            let mut kept: Vec<String> = Vec::new();
            loop {
                let mut held = store.held();
                held.iter_mut().for_each(|model| model.stays |= kept.contains(&model.id));
                let used: u64 = held.iter().map(|model| model.bytes).sum();
                let free = hardware::disk::at(store.disk().root()).map_or(u64::MAX, |disk| disk.free_bytes);
                let left = used.saturating_add(free.saturating_sub(DISK_RESERVE_BYTES));
                let quota = quota_bytes.unwrap_or(u64::MAX).min(left);
                let folder = store.disk().root().to_owned();
                let no_room = |missing| Error::NoRoom { model: model.clone(), missing, folder: folder.clone() };
                let Some(first) = quota::choose(&held, bytes, quota).map_err(no_room)?.into_iter().next() else {
                    return Ok(());
                };
                match store.remove(&first) {
                    Ok(()) => tracing::info!(model = first, "evicted: the least recently used, and room is needed"),
                    // Taken into use a moment ago, here or by another process.
                    Err(Error::Busy { .. }) => kept.push(first),
                    Err(error) => return Err(error),
                }
            }
        });
        made.await.unwrap_or_else(|_| Err(Error::crashed("the cache"))).map(|()| room)
    }
}

/// The Hub's addresses.
fn hub_api(hub: &config::Hub) -> Result<Api, ApiError> {
    let builder = ApiBuilder::from_env();
    match &hub.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint.trim_end_matches('/').into()),
        None => builder,
    }
    .build()
}

/// Copies what is in a file, and not who may write it.
async fn copy_content(from: &Path, to: &Path) -> std::io::Result<u64> {
    let (mut from, mut to) = (tokio::fs::File::open(from).await?, tokio::fs::File::create(to).await?);
    let copied = tokio::io::copy(&mut from, &mut to).await?;
    to.flush().await?;
    Ok(copied)
}

fn plan_of(
    manifest: Manifest,
    token: &Token,
    address: impl Fn(&manifest::File) -> Result<Url, Error>,
) -> Result<Plan, Error> {
    let mut files = Vec::new();
    for file in &manifest.files {
        files.push(Wanted {
            path: file.path.clone(),
            url: address(file)?,
            sha256: Some(file.sha256.clone()),
            bytes: Some(file.bytes),
            token: token.clone(),
        });
    }
    let (name, version) = (manifest.name.clone(), manifest.version.clone());
    Ok(Plan { key: format!("{} {}", manifest.id(), manifest.digest()), files, manifest: Some(manifest), name, version })
}

fn parse(address: &str) -> Result<Url, Error> {
    Url::parse(address).map_err(|error| Error::source_failed(address, error))
}

/// Room that a model on its way has taken.
struct Room {
    taken: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The entry of a fetch under way.
struct Entry {
    puller: Arc<Puller>,
    key: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.puller.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
