//! The model registry: manifests and files come in, versions that never change go out. Manifests live in the store, files
//! in the blob folder. A manifest is taken only when all its files are here. Never reads what is inside a model's files.

pub mod blobs;

use crate::store::{self, Model, Put, Store};
use blobs::Blobs;
use coordinator_client::wire::digest::sha256_hex;
use coordinator_client::wire::model::{self, File, Manifest};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// Why the registry refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest is not JSON of a manifest's shape.
    #[error("the manifest is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// The manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] model::Error),
    /// Files are not here yet.
    #[error(
        "{model}: {count} of its files are not here, e.g. {path} ({sha256}); PUT them to /api/models/{name}/{version}/blobs/{{sha256}} first"
    )]
    FilesMissing {
        /// `name@version`.
        model: String,
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// How many.
        count: usize,
        /// The first.
        path: String,
        /// Its digest.
        sha256: String,
    },
    /// A file has another length than the manifest says.
    #[error("{path}: the blob has {have} bytes, the manifest says {want}")]
    Length {
        /// The file.
        path: String,
        /// As stored.
        have: u64,
        /// As listed.
        want: u64,
    },
    /// The version exists with other content.
    #[error("{0} is registered with other content; versions do not change, register a new version")]
    Conflict(String),
    /// A file could not be read or written.
    #[error(transparent)]
    Blob(#[from] blobs::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// A registered version.
#[derive(Debug, Clone)]
pub struct Version {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// The manifest's JSON as it was sent.
    pub json: Arc<str>,
    /// SHA-256 of that JSON, in hex.
    pub digest: String,
    /// When it was registered.
    pub registered_ms: i64,
}

/// The registry.
#[derive(Debug)]
pub struct Registry {
    /// The files.
    pub blobs: Blobs,
    store: Arc<dyn Store>,
    /// What the store holds, newest first; read at start, so that a request need not ask the store.
    index: RwLock<BTreeMap<String, Vec<Version>>>,
}

impl Registry {
    /// Reads what the store holds.
    ///
    /// # Errors
    /// When the store fails. A stored manifest that cannot be read is left out and logged.
    pub async fn open(store: Arc<dyn Store>, blobs: Blobs) -> Result<Self, Error> {
        let mut index: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        for stored in store.models().await? {
            match serde_json::from_str::<Manifest>(&stored.manifest) {
                Ok(manifest) => index.entry(stored.name.clone()).or_default().push(Version {
                    manifest: Arc::new(manifest),
                    json: stored.manifest.into(),
                    digest: stored.digest,
                    registered_ms: stored.registered_ms,
                }),
                Err(error) => tracing::error!(model = stored.name, %error, "a stored manifest cannot be read"),
            }
        }
        Ok(Self { blobs, store, index: RwLock::new(index) })
    }

    /// Registers a version. Returns it, and whether it is new.
    ///
    /// # Errors
    /// When the manifest breaks a rule, files are missing, or the version has other content.
    pub async fn put(&self, json: &str) -> Result<(Version, bool), Error> {
        let manifest: Manifest = serde_json::from_str(json)?;
        manifest.check()?;
        self.check_files(&manifest).await?;
        let version = Version {
            digest: sha256_hex(json.as_bytes()),
            registered_ms: self.store.now_ms(),
            json: json.into(),
            manifest: Arc::new(manifest),
        };
        let manifest = &version.manifest;
        let stored = Model {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            manifest: json.into(),
            digest: version.digest.clone(),
            registered_ms: version.registered_ms,
        };
        match self.store.put_model(stored).await? {
            Put::Conflict => Err(Error::Conflict(manifest.id())),
            Put::Unchanged => Ok((self.get(&manifest.name, Some(&manifest.version)).unwrap_or(version), false)),
            Put::Created => {
                let mut index = self.index.write().expect("nobody panics while it holds the lock");
                index.entry(manifest.name.clone()).or_default().insert(0, version.clone());
                Ok((version.clone(), true))
            }
        }
    }

    async fn check_files(&self, manifest: &Manifest) -> Result<(), Error> {
        let mut missing: Vec<&File> = Vec::new();
        for file in &manifest.files {
            match self.blobs.length(&file.sha256).await? {
                None => missing.push(file),
                Some(have) if have != file.bytes => {
                    return Err(Error::Length { path: file.path.clone(), have, want: file.bytes });
                }
                Some(_) => {}
            }
        }
        match missing.first() {
            None => Ok(()),
            Some(first) => Err(Error::FilesMissing {
                model: manifest.id(),
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                count: missing.len(),
                path: first.path.clone(),
                sha256: first.sha256.clone(),
            }),
        }
    }

    /// One version, or the newest.
    pub fn get(&self, name: &str, version: Option<&str>) -> Option<Version> {
        let index = self.index.read().expect("nobody panics while it holds the lock");
        let versions = index.get(name)?;
        match version {
            None => versions.first().cloned(),
            Some(version) => versions.iter().find(|known| known.manifest.version == version).cloned(),
        }
    }

    /// The version of a `name@version`.
    pub fn find(&self, id: &str) -> Option<Version> {
        let (name, version) = id.split_once('@')?;
        self.get(name, Some(version))
    }

    /// All versions, by name, newest first.
    pub fn list(&self) -> Vec<Version> {
        let index = self.index.read().expect("nobody panics while it holds the lock");
        index.values().flatten().cloned().collect()
    }

    /// Removes a version; its files go when nothing else refers to them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove(&self, name: &str, version: &str) -> Result<bool, Error> {
        let existed = self.store.remove_model(name, version).await?;
        let mut index = self.index.write().expect("nobody panics while it holds the lock");
        if let Some(versions) = index.get_mut(name) {
            versions.retain(|known| known.manifest.version != version);
            if versions.is_empty() {
                index.remove(name);
            }
        }
        Ok(existed)
    }

    /// Removes references of tasks that are forgotten, and blobs older than `after` that nothing refers to.
    ///
    /// # Errors
    /// When the disk or the store fails.
    pub async fn collect(&self, after: Duration) -> Result<usize, Error> {
        let mut used: HashSet<String> = HashSet::new();
        for (sha256, task, age) in self.blobs.references().await? {
            // A young reference may be of a task that is just being submitted.
            if age < after || self.store.task(task).await?.is_some() {
                used.insert(sha256);
            } else {
                self.blobs.forget(&sha256, task).await?;
            }
        }
        for version in self.list() {
            used.extend(version.manifest.files.iter().map(|file| file.sha256.clone()));
        }
        Ok(self.blobs.collect(after, |sha256| used.contains(sha256)).await?)
    }
}
