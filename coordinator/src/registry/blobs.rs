//! Files named by their SHA-256: streams come in, are hashed while they are written and appear under their name only
//! when they are whole and on disk; whole files and parts of them go out. What nothing refers to is removed in time.
//! Never trusts a name, never shows a half-written file.
//!
//! ```text
//! blobs/ab/abcd…                the files
//! uploads/…                     what is being written; emptied at start
//! references/abcd….{task id}    a task's input or output is this blob; empty files, so that a crash forgets none
//! ```

use bytes::Bytes;
use coordinator_client::wire::TaskId;
use coordinator_client::wire::digest::is_sha256_hex;
use futures_util::{Stream, StreamExt};
use sha2::Digest;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

/// Bytes that are gathered before they go to the file: fewer hops to the thread that writes.
const WRITE_BYTES: usize = 1 << 20;

/// Why a blob was not taken or not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is no digest.
    #[error("{0:?} is not a SHA-256 of 64 lower-case hex digits")]
    Name(String),
    /// Larger than allowed.
    #[error("the blob is larger than {max} bytes, the most that is taken here")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// Its content is another.
    #[error("the content's SHA-256 is {got}, not {want}; send it again")]
    Digest {
        /// The name that it was to have.
        want: String,
        /// What was sent.
        got: String,
    },
    /// The sender stopped.
    #[error("the upload ended early: {0}; send it again")]
    Upload(String),
    /// The disk is full.
    #[error("the coordinator's disk is full; free some space or ask its operator")]
    Full,
    /// There is none.
    #[error("no blob {0} is here")]
    Missing(String),
    /// The disk failed.
    #[error("the blob folder failed: {0}")]
    Io(std::io::Error),
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::Full,
            _ => Error::Io(error),
        }
    }
}

/// The folder.
#[derive(Debug)]
pub struct Blobs {
    folder: PathBuf,
}

/// A blob to be read.
#[derive(Debug)]
pub struct Open {
    /// At its first byte.
    pub file: fs::File,
    /// Its length.
    pub bytes: u64,
}

impl Blobs {
    /// Opens the folder and removes what an earlier process left half-written.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub async fn open(folder: PathBuf) -> Result<Self, Error> {
        let uploads = folder.join("uploads");
        if fs::try_exists(&uploads).await? {
            fs::remove_dir_all(&uploads).await?;
        }
        for part in ["uploads", "blobs", "references"] {
            fs::create_dir_all(folder.join(part)).await?;
        }
        Ok(Self { folder })
    }

    fn path(&self, sha256: &str) -> Result<PathBuf, Error> {
        if !is_sha256_hex(sha256) {
            return Err(Error::Name(sha256.into()));
        }
        Ok(self.folder.join("blobs").join(&sha256[..2]).join(sha256))
    }

    /// Its length, if it is here.
    ///
    /// # Errors
    /// When the name is no digest or the disk fails.
    pub async fn length(&self, sha256: &str) -> Result<Option<u64>, Error> {
        match fs::metadata(self.path(sha256)?).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// When there is none.
    pub async fn get(&self, sha256: &str) -> Result<Open, Error> {
        let file = match fs::File::open(self.path(sha256)?).await {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::Missing(sha256.into())),
            Err(e) => return Err(e.into()),
        };
        let bytes = file.metadata().await?.len();
        Ok(Open { file, bytes })
    }

    /// A whole blob in memory.
    ///
    /// # Errors
    /// When there is none, or it is larger than `bytes_max`.
    pub async fn read(&self, sha256: &str, bytes_max: u64) -> Result<Vec<u8>, Error> {
        let Open { mut file, bytes } = self.get(sha256).await?;
        if bytes > bytes_max {
            return Err(Error::TooLarge { max: bytes_max });
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.read_to_end(&mut content).await?;
        Ok(content)
    }

    /// Takes a stream as the blob of this name. Returns whether it is new.
    ///
    /// # Errors
    /// When the stream ends early, is too large, or is not what the name says. Nothing is kept then.
    pub async fn put<E: std::fmt::Display>(
        &self,
        sha256: &str,
        mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
        bytes_max: u64,
    ) -> Result<bool, Error> {
        let path = self.path(sha256)?;
        let upload = Upload::new(self.folder.join("uploads").join(uuid::Uuid::now_v7().to_string()));
        let mut file = BufWriter::with_capacity(WRITE_BYTES, fs::File::create(&upload.0).await?);
        let mut hash = sha2::Sha256::new();
        let mut bytes = 0u64;
        while let Some(chunk) = content.next().await {
            let chunk = chunk.map_err(|e| Error::Upload(e.to_string()))?;
            bytes = bytes.saturating_add(chunk.len() as u64);
            if bytes > bytes_max {
                return Err(Error::TooLarge { max: bytes_max });
            }
            hash.update(&chunk);
            file.write_all(&chunk).await?;
        }
        let got = data_encoding::HEXLOWER.encode(&hash.finalize());
        if got != sha256 {
            return Err(Error::Digest { want: sha256.into(), got });
        }
        file.flush().await?;
        file.get_ref().sync_all().await?;
        let is_new = !fs::try_exists(&path).await?;
        let parent = path.parent().expect("a blob lies in a folder");
        fs::create_dir_all(parent).await?;
        fs::rename(&upload.0, &path).await?;
        sync_folder(parent).await?;
        sync_folder(&self.folder.join("blobs")).await?;
        Ok(is_new)
    }

    /// The same for bytes in memory.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn put_bytes(&self, sha256: &str, content: Bytes) -> Result<bool, Error> {
        let bytes_max = content.len() as u64;
        let stream = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(content)]);
        self.put(sha256, stream, bytes_max).await
    }

    /// Remembers that a task's input or output is this blob, on disk when it returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn refer(&self, sha256: &str, task: TaskId) -> Result<(), Error> {
        self.path(sha256)?;
        let references = self.folder.join("references");
        fs::File::create(references.join(format!("{sha256}.{task}"))).await?;
        Ok(sync_folder(&references).await?)
    }

    /// The references: digest, task, and how long ago it was made.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn references(&self) -> Result<Vec<(String, TaskId, Duration)>, Error> {
        let now = SystemTime::now();
        let mut entries = fs::read_dir(self.folder.join("references")).await?;
        let mut references = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            let name = entry.file_name();
            let Some((sha256, task)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(task) = task.parse() else { continue };
            let age = now.duration_since(entry.metadata().await?.modified()?).unwrap_or_default();
            references.push((sha256.to_owned(), task, age));
        }
        Ok(references)
    }

    /// Forgets a reference.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn forget(&self, sha256: &str, task: TaskId) -> Result<(), Error> {
        self.path(sha256)?;
        match fs::remove_file(self.folder.join("references").join(format!("{sha256}.{task}"))).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Removes blobs that came more than `after` ago and for which `is_used` says no. Returns how many.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn collect(&self, after: Duration, is_used: impl Fn(&str) -> bool) -> Result<usize, Error> {
        let mut removed = 0;
        let now = SystemTime::now();
        let mut shelves = fs::read_dir(self.folder.join("blobs")).await?;
        while let Some(shelf) = shelves.next_entry().await? {
            if !shelf.file_type().await?.is_dir() {
                continue;
            }
            let mut entries = fs::read_dir(shelf.path()).await?;
            while let Some(entry) = entries.next_entry().await? {
                let name = entry.file_name();
                let Some(sha256) = name.to_str().filter(|name| is_sha256_hex(name)) else { continue };
                let modified = entry.metadata().await?.modified()?;
                let is_old = now.duration_since(modified).is_ok_and(|age| age >= after);
                if is_old && !is_used(sha256) {
                    fs::remove_file(entry.path()).await?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// A rename is durable when its folder is.
async fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { fs::File::open(folder).await?.sync_all().await } else { Ok(()) }
}

/// A half-written file, removed unless it was renamed.
struct Upload(PathBuf);

impl Upload {
    fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::digest::sha256_hex;

    async fn put(blobs: &Blobs, sha256: &str, parts: &[&'static str], max: u64) -> Result<bool, Error> {
        let parts = parts.iter().map(|part| match *part {
            "!" => Err("the line went dead"),
            part => Ok(Bytes::from_static(part.as_bytes())),
        });
        blobs.put(sha256, futures_util::stream::iter(parts.collect::<Vec<_>>()), max).await
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn only_whole_and_right_content_appears() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().into()).await.unwrap();
        let name = sha256_hex(b"hello");
        assert!(matches!(put(&blobs, &name, &["hel", "!"], 9).await, Err(Error::Upload(_))));
        assert!(matches!(put(&blobs, &name, &["hel"], 9).await, Err(Error::Digest { .. })));
        assert!(matches!(put(&blobs, &name, &["hel", "lo"], 4).await, Err(Error::TooLarge { max: 4 })));
        assert!(matches!(put(&blobs, "../../etc/passwd", &["x"], 9).await, Err(Error::Name(_))));
        assert_eq!(blobs.length(&name).await.unwrap(), None);
        assert!(put(&blobs, &name, &["hel", "lo"], 5).await.unwrap());
        assert!(!put(&blobs, &name, &["hello"], 5).await.unwrap(), "a second time it is not new");
        assert_eq!(blobs.read(&name, 5).await.unwrap(), b"hello");
        assert!(matches!(blobs.read(&name, 4).await, Err(Error::TooLarge { .. })));
        assert!(matches!(blobs.get(&sha256_hex(b"other")).await, Err(Error::Missing(_))));
        assert_eq!(files(&folder.path().join("uploads")), 0);
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_half_written_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        Blobs::open(folder.path().into()).await.unwrap();
        std::fs::write(folder.path().join("uploads/half"), "x").unwrap();
        Blobs::open(folder.path().into()).await.unwrap();
        assert_eq!(files(&folder.path().join("uploads")), 0);
    }

    #[tokio::test]
    async fn only_old_blobs_without_use_are_collected() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().into()).await.unwrap();
        let (used, unused) = (sha256_hex(b"used"), sha256_hex(b"unused"));
        blobs.put_bytes(&used, Bytes::from_static(b"used")).await.unwrap();
        blobs.put_bytes(&unused, Bytes::from_static(b"unused")).await.unwrap();
        let task = TaskId::new();
        blobs.refer(&used, task).await.unwrap();
        let references = blobs.references().await.unwrap();
        assert!(matches!(&references[..], [(sha256, of, _)] if *sha256 == used && *of == task));
        assert_eq!(blobs.collect(Duration::from_secs(3600), |_| false).await.unwrap(), 0, "too young");
        assert_eq!(blobs.collect(Duration::ZERO, |sha256| sha256 == used).await.unwrap(), 1);
        assert!(blobs.length(&used).await.unwrap().is_some() && blobs.length(&unused).await.unwrap().is_none());
        blobs.forget(&used, task).await.unwrap();
        blobs.forget(&used, task).await.unwrap();
        assert!(blobs.references().await.unwrap().is_empty());
    }
}
