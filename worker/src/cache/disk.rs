//! The cache's folder: unfinished downloads grow in it, finished models appear in it whole or not at all, and no two
//! processes write or delete the same one at once. It fetches nothing and checks no content.
//!
//! ```text
//! models/NAME/VERSION/   manifest.json and the files    partial/KEY/  model/ what is complete, parts/ what is not
//! locks/                 who uses or writes what; the time of a model's lock is that of its last use
//! pins/NAME@VERSION      models that stay
//! ```

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use models::Manifest;
use sha2::Digest;

use super::Error;

/// How often a lock that another process holds is tried again.
const LOCK_EVERY: Duration = Duration::from_millis(100);
/// Unfinished downloads that nobody went on with for so long are deleted.
const PARTIAL_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Names of folders that are being deleted begin so.
const GONE: &str = "gone-";

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
}

/// A download that is not complete.
#[derive(Debug)]
pub(super) struct Partial {
    root: PathBuf,
    /// Held as long as this process writes to it.
    _lock: File,
}

impl Disk {
    /// Opens the folder, made when it is not there, and clears away what was given up.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let disk = Self { root: root.to_owned() };
        for part in ["models", "partial", "locks", "pins"] {
            let folder = root.join(part);
            std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, &error))?;
        }
        for partial in below(&root.join("partial")) {
            let key = partial.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let age = partial.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
            let is_free = || disk.lock_file(&key).is_ok_and(|lock| lock.try_lock().is_ok());
            if key.starts_with(GONE) || (age.is_some_and(|age| age > PARTIAL_KEPT) && is_free()) {
                let _ = std::fs::remove_dir_all(partial);
            }
        }
        Ok(disk)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn lock_file(&self, key: &str) -> Result<File, Error> {
        let path = self.root.join("locks").join(key);
        File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| Error::io(&path, &error))
    }

    /// The place where a download grows, of this process alone. Waits while another process has it.
    pub(super) async fn partial(&self, source: &str) -> Result<Partial, Error> {
        let key = sha256_of(source.as_bytes());
        let lock = self.lock_file(&key)?;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_EVERY).await,
                Err(std::fs::TryLockError::Error(error)) => return Err(Error::io(&self.root.join("locks"), &error)),
            }
        }
        let root = self.root.join("partial").join(key);
        for folder in [root.join("model"), root.join("parts")] {
            std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, &error))?;
        }
        Ok(Partial { root, _lock: lock })
    }

    /// Marks a model as used by this process, as long as the file lives.
    pub(super) fn hold(&self, id: &str) -> Result<File, Error> {
        let file = self.lock_file(id)?;
        file.lock_shared().map_err(|error| Error::io(&self.root.join("locks"), &error))?;
        Ok(file)
    }

    pub(super) fn is_pinned(&self, id: &str) -> bool {
        self.root.join("pins").join(id).exists()
    }

    pub(super) fn pin(&self, id: &str, pinned: bool) -> Result<(), Error> {
        let path = self.root.join("pins").join(id);
        let done = match pinned {
            true => File::create(&path).map(drop),
            false => std::fs::remove_file(&path),
        };
        match done {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, &error)),
            _ => Ok(()),
        }
    }

    fn folder(&self, manifest: &Manifest) -> PathBuf {
        self.root.join("models").join(&manifest.name).join(&manifest.version)
    }

    /// Gives a complete download, its manifest beside the files, its name. One with the same files that is there already stays.
    pub(super) fn install(&self, partial: &Partial, manifest: &Manifest) -> Result<PathBuf, Error> {
        sync_folder(&partial.model());
        let folder = self.folder(manifest);
        let parent = folder.parent().expect("a version lies in its model's folder");
        std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, &error))?;
        if let Err(error) = std::fs::rename(partial.model(), &folder) {
            match read_manifest(&folder) {
                Some(there) if there.digest() == manifest.digest() => {}
                Some(_) => return Err(Error::Conflict { model: manifest.id() }),
                None => return Err(Error::io(&folder, &error)),
            }
        }
        sync_folder(parent);
        partial.delete();
        Ok(folder)
    }

    /// The models that are complete. A folder without a readable manifest is left alone.
    pub(super) fn models(&self) -> Vec<(Manifest, PathBuf)> {
        let versions = below(&self.root.join("models")).into_iter().flat_map(|name| below(&name));
        let mut found: Vec<_> = versions.filter_map(|folder| Some((read_manifest(&folder)?, folder))).collect();
        found.sort_by_key(|(manifest, _)| manifest.id());
        found
    }

    /// Deletes a model's folder, unless another process uses it.
    pub(super) fn delete(&self, manifest: &Manifest, held: &File) -> Result<(), Error> {
        // One who deletes at a time: a refused attempt lets go of the shared lock, and has to take it again unseen.
        let at = |error: std::io::Error| Error::io(&self.root.join("locks"), &error);
        let deleting = self.lock_file("deleting")?;
        deleting.lock().map_err(at)?;
        if held.try_lock().is_err() {
            held.lock_shared().map_err(at)?;
            return Err(Error::Busy { model: manifest.id(), reason: "another process has it at hand" });
        }
        let folder = self.folder(manifest);
        // Renamed first, so that no one finds half of it.
        let gone = self.root.join("partial").join(format!("{GONE}{}", uuid::Uuid::now_v7()));
        std::fs::rename(&folder, &gone).map_err(|error| Error::io(&folder, &error))?;
        let _ = std::fs::remove_dir_all(&gone); // what is left of it goes at the next start
        let _ = std::fs::remove_dir(folder.parent().expect("a version lies in its model's folder")); // when it was the last
        Ok(())
    }

    /// When a model was used last, in milliseconds since the Unix epoch.
    pub(super) fn last_used_ms(&self, id: &str) -> u64 {
        let at = self.root.join("locks").join(id).metadata().and_then(|data| data.modified()).ok();
        let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Partial {
    /// Where complete files are.
    pub(super) fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// Where a file grows.
    pub(super) fn part(&self, path: &str) -> PathBuf {
        self.root.join("parts").join(sha256_of(path.as_bytes()))
    }

    /// Gives a file that grew, and was checked, its place.
    pub(super) fn complete(&self, part: &Path, path: &str) -> Result<(), Error> {
        let at = |error: std::io::Error| Error::io(part, &error);
        File::options().write(true).open(part).and_then(|file| file.sync_all()).map_err(at)?;
        let target = self.model().join(path);
        let parent = target.parent().expect("a file in a folder has a parent");
        std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, &error))?;
        std::fs::rename(part, &target).map_err(at)?;
        // Weights are mapped into memory: nobody is to write into them by accident.
        let mut permissions = target.metadata().map_err(at)?.permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&target, permissions).map_err(at)?;
        sync_folder(parent);
        forget(part);
        Ok(())
    }

    /// Deletes all of it.
    pub(super) fn delete(&self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Says that a model is used now.
pub(super) fn touch(held: &File) {
    let _ = held.set_modified(SystemTime::now()); // worth a wrong choice at worst
}

fn below(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn read_manifest(folder: &Path) -> Option<Manifest> {
    let json = std::fs::read(folder.join(models::manifest::FILE_NAME)).ok()?;
    match Manifest::from_json(&json) {
        Ok(manifest) => Some(manifest),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), "left alone: {error}");
            None
        }
    }
}

/// Where the state of a file that grows is.
pub(super) fn state_of(part: &Path) -> PathBuf {
    part.with_extension("json")
}

/// Deletes a file that grows.
pub(super) fn forget(part: &Path) {
    let _ = std::fs::remove_file(state_of(part));
    let _ = std::fs::remove_file(part);
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

fn sync_folder(folder: &Path) {
    // Some systems cannot open folders; there the rename is as durable as it gets.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
