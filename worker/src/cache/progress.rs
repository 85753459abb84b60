//! How far a download is: numbers go in from the downloader, anyone may watch them come out. It draws nothing.

use tokio::sync::watch;

/// How far the fetching of a model is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The file that is fetched now.
    pub file: String,
    /// Bytes of all files that are here.
    pub bytes_done: u64,
    /// Bytes of all files, as far as they are known.
    pub bytes_total: u64,
}

/// Where a downloader says how far it is.
#[derive(Debug, Clone)]
pub(super) struct Reporter(watch::Sender<Progress>);

impl Reporter {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Progress::default()))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }

    /// Another file is begun, of which `bytes` were not counted before.
    pub(super) fn begin(&self, file: &str, new_bytes: u64) {
        self.0.send_modify(|progress| {
            file.clone_into(&mut progress.file);
            progress.bytes_total += new_bytes;
        });
    }

    pub(super) fn done(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.bytes_done += bytes);
    }

    /// Takes bytes back that have to be fetched again.
    pub(super) fn undo(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.bytes_done = progress.bytes_done.saturating_sub(bytes));
    }
}
