//! Models on disk: a model's name goes in, its manifest and a folder with verified, read-only files come out. The only
//! room that writes model files. It loads nothing onto a device.

mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coordinator_client::api::Code;
use models::Manifest;

use crate::config;

/// A model with its files. While a clone of the `Arc` lives outside the cache, the files stay where they are.
#[derive(Debug)]
pub struct CachedModel {
    /// What it is.
    pub manifest: Manifest,
    /// Where its files are.
    pub folder: PathBuf,
}

/// Why a model cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// No source has it.
    #[error("model {model:?} is not here{hint}")]
    NotFound {
        /// As asked.
        model: String,
        /// What is here, or could be done, in words with their own punctuation.
        hint: String,
    },
    /// The name cannot be one.
    #[error("{model:?} is not a model's name: {reason}")]
    BadName {
        /// As asked.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Its files are refused.
    #[error("{model} is refused: {reason}")]
    Refused {
        /// Name or folder.
        model: String,
        /// Why.
        reason: String,
    },
    /// It is there already with other files.
    #[error("{model} is here already with other files; give the new one another version")]
    Conflict {
        /// `name@version`.
        model: String,
    },
    /// It may not go now.
    #[error("{model} stays: {reason}")]
    Busy {
        /// `name@version`.
        model: String,
        /// `pinned`, `in use`, …
        reason: &'static str,
    },
    /// The disk fails.
    #[error("{path}: {detail}; check the disk and the folder's permissions")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        detail: String,
    },
}

impl Error {
    /// The code that programs read.
    pub fn code(&self) -> Code {
        match self {
            Error::NotFound { .. } => Code::ModelNotFound,
            Error::BadName { .. } => Code::InvalidInput,
            Error::Refused { .. } => Code::ModelRefused,
            Error::Conflict { .. } | Error::Busy { .. } => Code::Conflict,
            Error::Io { .. } => Code::InsufficientStorage,
        }
    }

    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), detail: error.to_string() }
    }
}

/// The way into the cache. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<store::Store>);

impl Handle {
    /// Opens the cache: what is bundled, what lies in the folders that are set, and what was kept.
    ///
    /// # Errors
    /// When a folder cannot be read or written, or holds a model that is refused.
    pub fn open(options: &config::Cache) -> Result<Self, Error> {
        Ok(Self(Arc::new(store::Store::open(options)?)))
    }

    /// `name@version` of a model that is at hand, for `name` or `name@version`. Quick: it looks at no disk.
    pub fn find(&self, model: &str) -> Option<String> {
        self.0.find(model).map(|cached| cached.manifest.id())
    }

    /// The model of this name, fetched where it is not at hand. May take long; one fetch serves all who ask.
    ///
    /// # Errors
    /// When no source has it, or its files are refused.
    pub async fn get(&self, model: &str) -> Result<Arc<CachedModel>, Error> {
        self.0.find(model).ok_or_else(|| self.0.not_found(model))
    }

    /// All models that are at hand, by name.
    pub fn list(&self) -> Vec<Arc<CachedModel>> {
        self.0.list()
    }

    /// Adds a folder with one model, which stays where it is. Reads and hashes its files.
    ///
    /// # Errors
    /// When the folder holds no model that can be served.
    pub async fn add_folder(&self, folder: PathBuf) -> Result<Arc<CachedModel>, Error> {
        let store = Arc::clone(&self.0);
        let shown = folder.clone();
        let added = tokio::task::spawn_blocking(move || store.add_folder(&folder)).await;
        added.unwrap_or_else(|_| {
            Err(Error::Refused { model: shown.display().to_string(), reason: "reading it crashed".into() })
        })
    }

    /// Adds a model whose files the caller answers for: nothing is read or checked.
    ///
    /// # Errors
    /// When another model has its name and version.
    pub fn add(&self, manifest: Manifest, folder: PathBuf) -> Result<Arc<CachedModel>, Error> {
        self.0.add(CachedModel { manifest, folder })
    }

    /// Forgets a model, and deletes its files where they are the cache's own.
    ///
    /// # Errors
    /// When it is not at hand, pinned or in use.
    pub fn remove(&self, model: &str) -> Result<(), Error> {
        self.0.remove(model)
    }

    /// Keeps a model from being evicted, or allows it again.
    ///
    /// # Errors
    /// When it is not at hand.
    pub fn pin(&self, model: &str, pinned: bool) -> Result<(), Error> {
        self.0.pin(model, pinned)
    }

    /// Whether a model is kept from being evicted.
    pub fn is_pinned(&self, id: &str) -> bool {
        self.0.is_pinned(id)
    }
}
