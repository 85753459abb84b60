//! Finished results on disk: written before they are sent, removed at their ack, read back after a restart. Results
//! in, results out; a damaged file is set aside, and never stops anything.

use crate::wire::{Attempt, TaskResult, digest};
use sha2::Digest;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// First bytes of a spooled result: name and version of the format. The SHA-256 of the rest follows.
const MAGIC: &[u8; 8] = b"ngspool1";

/// Set-aside files that are kept for whoever wants to look; more would only fill the disk.
const DAMAGED_MAX: usize = 8;

/// Where and how much.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder, for one coordinator alone.
    pub folder: PathBuf,
    /// The most results; beyond it the oldest go. 256: what a worker of many slots finishes during a long reconnect.
    pub count_max: usize,
    /// The most bytes; beyond it the oldest go.
    pub bytes_max: u64,
}

impl Options {
    /// The defaults for a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), count_max: 256, bytes_max: 512 << 20 }
    }
}

/// Why a result could not be spooled.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; free disk space or make the data folder writable")]
pub struct Error {
    /// Which file.
    pub path: PathBuf,
    /// The system's own words.
    pub source: std::io::Error,
}

/// The results of one coordinator that are not acknowledged.
#[derive(Debug)]
pub struct Spool {
    options: Options,
    /// Size by attempt, in the order in which they came; attempts sort by the task's time.
    held: Mutex<BTreeMap<Attempt, u64>>,
}

impl Spool {
    /// Opens a folder and reads what a process before this one left in it.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub fn open(options: Options) -> Result<(Self, Vec<TaskResult>), Error> {
        let folder = options.folder.clone();
        let failed = |source| Error { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let mut results = Vec::new();
        let mut held = BTreeMap::new();
        let mut damaged = 0;
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("result") => match std::fs::read(&path).map_err(|e| e.to_string()).and_then(|b| parse(&b)) {
                    Ok((result, bytes)) => {
                        held.insert(result.attempt, bytes);
                        results.push(result);
                    }
                    Err(reason) => {
                        damaged += 1;
                        set_aside(&path, &reason, damaged <= DAMAGED_MAX);
                    }
                },
                Some("damaged") => {
                    damaged += 1;
                    if damaged > DAMAGED_MAX {
                        let _ = std::fs::remove_file(&path); // the next start tries again
                    }
                }
                // Left by a crash in the middle of a write: the result was never sent, its lease brings it back.
                Some("new") => drop(std::fs::remove_file(&path)),
                _ => {}
            }
        }
        results.sort_by_key(|result| result.attempt);
        Ok((Self { options, held: Mutex::new(held) }, results))
    }

    /// Stores a result. When this returns, no crash of the process loses it; one of the system may, and then its lease brings
    /// the task back.
    ///
    /// # Errors
    /// When the disk does not take it. The result may be sent nevertheless: its lease protects the task.
    pub fn put(&self, result: &TaskResult) -> Result<(), Error> {
        let path = self.path(result.attempt);
        let bytes = format(result);
        let length = bytes.len() as u64;
        write(&path, &bytes).map_err(|source| Error { path: path.clone(), source })?;
        let evicted = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert(result.attempt, length);
            let mut evicted = Vec::new();
            let over = |held: &BTreeMap<Attempt, u64>| {
                held.len() > self.options.count_max || held.values().sum::<u64>() > self.options.bytes_max
            };
            while held.len() > 1 && over(&held) {
                evicted.extend(held.pop_first().map(|(attempt, _)| attempt));
            }
            evicted
        };
        for attempt in evicted {
            tracing::warn!(%attempt, "the spool is full; its oldest result is dropped");
            let _ = std::fs::remove_file(self.path(attempt)); // at worst it is sent again after a restart
        }
        Ok(())
    }

    /// Forgets a result.
    pub fn remove(&self, attempt: Attempt) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
        if held.is_some() {
            let _ = std::fs::remove_file(self.path(attempt)); // at worst it is sent again after a restart
        }
    }

    /// How many results it holds.
    pub fn len(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn path(&self, attempt: Attempt) -> PathBuf {
        self.options.folder.join(format!("{}-{}.result", attempt.task, attempt.epoch))
    }
}

fn format(result: &TaskResult) -> Vec<u8> {
    let body = digest::encode(result);
    let mut bytes = Vec::with_capacity(body.len() + 40);
    bytes.extend(MAGIC);
    bytes.extend(sha2::Sha256::digest(&body));
    bytes.extend(body);
    bytes
}

fn parse(bytes: &[u8]) -> Result<(TaskResult, u64), String> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or("too short")?;
    let (sum, body) = rest.split_first_chunk::<32>().ok_or("too short")?;
    if magic != MAGIC {
        return Err("of another format".into());
    }
    if sha2::Sha256::digest(body)[..] != sum[..] {
        return Err("its content does not match its digest".into());
    }
    let result = rmp_serde::from_slice(body).map_err(|e| e.to_string())?;
    Ok((result, bytes.len() as u64))
}

/// Beside, then renamed: no crash of the process leaves half a file of the final name. After a crash of the system there may
/// be one; its digest shows it.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(bytes)?;
    std::fs::rename(&beside, path)
}

fn set_aside(path: &Path, reason: &str, keep: bool) {
    tracing::warn!(path = %path.display(), reason, "a spooled result is damaged and set aside");
    let moved = if keep { std::fs::rename(path, path.with_extension("damaged")) } else { std::fs::remove_file(path) };
    if let Err(e) = moved {
        tracing::warn!(path = %path.display(), error = %e, "the damaged file could not be moved");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Payload, TaskId, TaskOutput};

    fn result(epoch: u64) -> TaskResult {
        TaskResult {
            attempt: Attempt { task: TaskId(uuid::Uuid::from_u128(epoch.into())), epoch },
            output: Payload::Inline(TaskOutput::Rerank { results: vec![] }),
            usage: Default::default(),
            timings: Default::default(),
            model: "m@1".into(),
            model_digest: String::new(),
            execution_class: "fake".into(),
            batch_size: 1,
            input_sha256: String::new(),
            output_sha256: String::new(),
            signature: vec![],
        }
    }

    fn open(folder: &Path, count_max: usize) -> (Spool, Vec<u64>) {
        let (spool, left) = Spool::open(Options { count_max, ..Options::new(folder) }).unwrap();
        (spool, left.iter().map(|r| r.attempt.epoch).collect())
    }

    #[test]
    fn what_was_not_acknowledged_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, left) = open(folder.path(), 9);
        assert!(left.is_empty());
        (1..=3).for_each(|epoch| spool.put(&result(epoch)).unwrap());
        spool.remove(result(2).attempt);
        let (spool, left) = Spool::open(Options::new(folder.path())).unwrap();
        assert_eq!(left, vec![result(1), result(3)]);
        assert_eq!(spool.len(), 2);
    }

    #[test]
    fn beyond_its_bound_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = open(folder.path(), 2);
        (1..=4).for_each(|epoch| spool.put(&result(epoch)).unwrap());
        assert_eq!(open(folder.path(), 2).1, [3, 4]);
        let bytes_max = format(&result(1)).len() as u64 * 2;
        let spool = Spool::open(Options { bytes_max, ..Options::new(folder.path()) }).unwrap().0;
        spool.put(&result(5)).unwrap();
        assert_eq!(open(folder.path(), 9).1, [4, 5]);
    }

    #[test]
    fn damaged_files_are_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = open(folder.path(), 99);
        spool.put(&result(1)).unwrap();
        let good = format(&result(2));
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let cases: [&[u8]; 4] =
            [b"", &good[..good.len() - 1], &flipped, b"something else entirely, and long enough to look at"];
        for (index, bytes) in cases.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.result")), bytes).unwrap();
        }
        std::fs::write(folder.path().join("x.new"), b"half").unwrap();
        for _ in 0..2 {
            assert_eq!(open(folder.path(), 9).1, [1]);
            let names = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path());
            let damaged = names.filter(|p| p.extension().is_some_and(|e| e == "damaged")).count();
            assert_eq!(damaged, cases.len());
        }
        assert!(!folder.path().join("x.new").exists());
    }
}
