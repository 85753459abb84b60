//! The cache's folder: verified content goes in under its digest, folders of models come out. Files appear whole or not
//! at all, and two processes do not write the same one.
//!
//! `blobs/sha256/…` read-only content, `models/NAME/VERSION/` hard links to it with `manifest.json`, `partial/` unfinished
//! downloads, `locks/` what is being written or used.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use models::Manifest;
use sha2::Digest;

use super::Error;
use super::fetch::Blob;

/// How often a lock that another process holds is tried again.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
}

impl Disk {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        for part in ["blobs/sha256", "models", "partial", "locks", "staging"] {
            let folder = root.join(part);
            std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, &error))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn blob(&self, sha256: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(sha256)
    }

    pub(super) fn blob_bytes(&self, sha256: &str) -> Option<u64> {
        Some(self.blob(sha256).metadata().ok()?.len())
    }

    pub(super) fn partial(&self, key: &str) -> PathBuf {
        self.root.join("partial").join(key)
    }

    fn open_lock(&self, key: &str) -> Result<File, Error> {
        let path = self.root.join("locks").join(key);
        File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| Error::io(&path, &error))
    }

    /// Waits until nobody else has the lock. It goes with the file.
    pub(super) async fn lock(&self, key: &str) -> Result<File, Error> {
        let file = self.open_lock(key)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_EVERY).await,
                Err(std::fs::TryLockError::Error(error)) => return Err(Error::io(&self.root.join("locks"), &error)),
            }
        }
    }

    /// Marks a model as used by this process.
    pub(super) fn hold(&self, id: &str) -> Result<File, Error> {
        let file = self.open_lock(id)?;
        file.lock_shared().map_err(|error| Error::io(&self.root.join("locks"), &error))?;
        Ok(file)
    }

    /// Makes a complete download visible.
    pub(super) fn publish(&self, partial: &Path, sha256: &str) -> Result<(), Error> {
        let at = |error: std::io::Error| Error::io(partial, &error);
        let file = File::options().write(true).open(partial).map_err(at)?;
        file.sync_all().map_err(at)?;
        let mut permissions = file.metadata().map_err(at)?.permissions();
        permissions.set_readonly(true);
        file.set_permissions(permissions).map_err(at)?;
        std::fs::rename(partial, self.blob(sha256)).map_err(at)?;
        sync_folder(&self.root.join("blobs/sha256"));
        forget(partial);
        Ok(())
    }

    /// A folder under which a model is put together.
    pub(super) fn stage(&self, files: &[(String, Blob)]) -> Result<PathBuf, Error> {
        let staging = self.root.join("staging").join(uuid::Uuid::now_v7().to_string());
        for (path, blob) in files {
            let link = staging.join(path);
            let parent = link.parent().expect("a file in a folder has a parent");
            std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, &error))?;
            std::fs::hard_link(self.blob(&blob.sha256), &link).map_err(|error| Error::io(&link, &error))?;
        }
        Ok(staging)
    }

    /// Gives the staged folder its name. An older one with the same content stays.
    pub(super) fn install(&self, staging: &Path, manifest: &Manifest) -> Result<PathBuf, Error> {
        write(&staging.join(models::manifest::FILE_NAME), manifest.to_json().as_bytes())?;
        let folder = self.root.join("models").join(&manifest.name).join(&manifest.version);
        let parent = folder.parent().expect("a version lies in its model's folder");
        std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, &error))?;
        if let Err(error) = std::fs::rename(staging, &folder) {
            let _ = std::fs::remove_dir_all(staging);
            let there = std::fs::read(folder.join(models::manifest::FILE_NAME)).ok();
            let there = there.and_then(|json| Manifest::from_json(&json).ok()).ok_or_else(|| Error::io(&folder, &error))?;
            if there.digest() != manifest.digest() {
                return Err(Error::Conflict { model: manifest.id() });
            }
        }
        sync_folder(parent);
        Ok(folder)
    }

    /// The models that are complete. A folder without a readable manifest is left alone.
    pub(super) fn models(&self) -> Vec<(Manifest, PathBuf)> {
        let below = |folder: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let mut found = Vec::new();
        for folder in below(&self.root.join("models")).iter().flat_map(|name| below(name)) {
            let Ok(json) = std::fs::read(folder.join(models::manifest::FILE_NAME)) else { continue };
            match Manifest::from_json(&json) {
                Ok(manifest) => found.push((manifest, folder)),
                Err(error) => tracing::warn!(folder = %folder.display(), "left alone: {error}"),
            }
        }
        found.sort_by_key(|(manifest, _)| manifest.id());
        found
    }

    /// Deletes a model's folder and the blobs that no other model has, unless another process uses it.
    pub(super) fn delete(&self, manifest: &Manifest) -> Result<(), Error> {
        let lock = self.open_lock(&manifest.id())?;
        if lock.try_lock().is_err() {
            return Err(Error::Busy { model: manifest.id(), reason: "another process uses it" });
        }
        let folder = self.root.join("models").join(&manifest.name).join(&manifest.version);
        // Renamed first, so that no one finds half of it.
        let gone = self.root.join("staging").join(uuid::Uuid::now_v7().to_string());
        std::fs::rename(&folder, &gone).map_err(|error| Error::io(&folder, &error))?;
        std::fs::remove_dir_all(&gone).map_err(|error| Error::io(&gone, &error))?;
        let others = self.models();
        let is_shared = |sha256: &str| others.iter().any(|(other, _)| other.files.iter().any(|file| file.sha256 == sha256));
        for file in manifest.files.iter().filter(|file| !is_shared(&file.sha256)) {
            let _ = std::fs::remove_file(self.blob(&file.sha256));
        }
        Ok(())
    }
}

/// Where a partial download's state is.
pub(super) fn state_of(partial: &Path) -> PathBuf {
    partial.with_extension("json")
}

/// Deletes a partial download.
pub(super) fn forget(partial: &Path) {
    let _ = std::fs::remove_file(state_of(partial));
    let _ = std::fs::remove_file(partial);
}

/// Writes a small file whole or not at all.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&temporary, path)).map_err(|error| Error::io(path, &error))
}

pub(super) fn sha256_of(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}

/// Digest and length of a file, read on a thread of its own.
pub(super) async fn hash(path: &Path) -> Result<Blob, Error> {
    let path = path.to_owned();
    let shown = path.clone();
    let hashed = tokio::task::spawn_blocking(move || super::store::digest(&path)).await;
    let (sha256, bytes) = hashed.expect("hashing does not panic").map_err(|error| Error::io(&shown, &error))?;
    Ok(Blob { sha256, bytes })
}

fn sync_folder(folder: &Path) {
    // Some systems cannot open folders; there the rename is as durable as it gets.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
