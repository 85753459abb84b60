//! The list of models that are at hand: bundled ones and folders. Manifests and folders go in, shared models come out.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use models::manifest::split_id;
use models::{Manifest, bundled, load};

use super::{CachedModel, Error};
use crate::config;

/// The models, the one that was added last at the end.
#[derive(Default)]
pub(super) struct Store {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    models: Vec<Arc<CachedModel>>,
    pins: BTreeSet<String>,
}

impl Store {
    pub(super) fn open(options: &config::Cache) -> Result<Self, Error> {
        let store = Self::default();
        if options.bundled {
            let folder = options.folder.join("bundled");
            for model in bundled::all() {
                let folder = folder.join(format!("{}@{}", model.name, model.version));
                let manifest = model.manifest();
                if check_files(&manifest, &folder).is_err() {
                    model.write(&folder).map_err(|error| Error::io(&folder, &error))?;
                }
                store.add(CachedModel { manifest, folder })?;
            }
        }
        for folder in &options.folders {
            store.add_folder(folder)?;
        }
        Ok(store)
    }

    pub(super) fn find(&self, model: &str) -> Option<Arc<CachedModel>> {
        let (name, version) = split_id(model);
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |cached: &&Arc<CachedModel>| {
            cached.manifest.name == name && version.is_none_or(|v| v == cached.manifest.version)
        };
        state.models.iter().rev().find(is_meant).cloned()
    }

    pub(super) fn not_found(&self, model: &str) -> Error {
        let names: Vec<String> = self.list().iter().map(|cached| cached.manifest.id()).collect();
        let hint = match names.as_slice() {
            [] => "; there is none yet, add one with `neurogrid models add FOLDER`".to_owned(),
            names => format!("; here are {}", names.join(", ")),
        };
        Error::NotFound { model: model.to_owned(), hint }
    }

    pub(super) fn list(&self) -> Vec<Arc<CachedModel>> {
        let mut list = self.state.read().unwrap_or_else(PoisonError::into_inner).models.clone();
        list.sort_by_key(|cached| cached.manifest.id());
        list
    }

    /// The manifest in the folder is believed as to what the model is, and checked as to its files; where there is none,
    /// one is made.
    pub(super) fn add_folder(&self, folder: &Path) -> Result<Arc<CachedModel>, Error> {
        let refused = |reason: String| Error::Refused { model: folder.display().to_string(), reason };
        let found = load::inspect(folder, None, None, None).map_err(|error| refused(error.to_string()));
        let manifest = match std::fs::read(folder.join(models::manifest::FILE_NAME)) {
            Ok(json) => {
                let written = Manifest::from_json(&json).map_err(|error| refused(error.to_string()))?;
                check_files(&written, folder).map_err(refused)?;
                written
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => found?,
            Err(error) => return Err(Error::io(folder, &error)),
        };
        self.add(CachedModel { manifest, folder: folder.to_owned() })
    }

    pub(super) fn add(&self, model: CachedModel) -> Result<Arc<CachedModel>, Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let id = model.manifest.id();
        if let Some(known) = state.models.iter().find(|known| known.manifest.id() == id) {
            if known.manifest.digest() == model.manifest.digest() {
                return Ok(Arc::clone(known));
            }
            return Err(Error::Conflict { model: id });
        }
        let model = Arc::new(model);
        state.models.push(Arc::clone(&model));
        Ok(model)
    }

    pub(super) fn remove(&self, model: &str) -> Result<(), Error> {
        let id = self.find(model).ok_or_else(|| self.not_found(model))?.manifest.id();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.pins.contains(&id) {
            return Err(Error::Busy { model: id, reason: "it is pinned; unpin it first" });
        }
        if state.models.iter().any(|cached| cached.manifest.id() == id && Arc::strong_count(cached) > 1) {
            return Err(Error::Busy { model: id, reason: "it is loaded; unload it first" });
        }
        state.models.retain(|cached| cached.manifest.id() != id);
        Ok(())
    }

    pub(super) fn pin(&self, model: &str, pinned: bool) -> Result<(), Error> {
        let id = self.find(model).ok_or_else(|| self.not_found(model))?.manifest.id();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if pinned {
            state.pins.insert(id)
        } else {
            state.pins.remove(&id)
        };
        Ok(())
    }

    pub(super) fn is_pinned(&self, id: &str) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).pins.contains(id)
    }
}

/// Whether the files are those that the manifest names.
fn check_files(manifest: &Manifest, folder: &Path) -> Result<(), String> {
    use sha2::Digest;
    for file in &manifest.files {
        let mut reader = std::fs::File::open(folder.join(&file.path)).map_err(|e| format!("{}: {e}", file.path))?;
        let mut hash = sha2::Sha256::new();
        let bytes = std::io::copy(&mut reader, &mut Hasher(&mut hash)).map_err(|e| format!("{}: {e}", file.path))?;
        let sha256 = data_encoding::HEXLOWER.encode(&hash.finalize());
        if bytes != file.bytes || sha256 != file.sha256 {
            let (path, want) = (&file.path, &file.sha256);
            return Err(format!(
                "{path} is {bytes} bytes with SHA-256 {sha256}, its manifest says {} and {want}",
                file.bytes
            ));
        }
    }
    Ok(())
}

struct Hasher<'a>(&'a mut sha2::Sha256);

impl std::io::Write for Hasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
