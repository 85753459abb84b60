//! Downloads one file: an address and what is known of the content go in, a verified blob comes out. What was fetched
//! before a crash is not fetched again. Nothing is visible under `blobs/` before its digest is right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::disk::Disk;
use super::progress::Reporter;
use super::{Error, disk};
use crate::config;

/// No model file is larger; a server that sends without end fills no disk.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// The longest that a server may make us wait before a retry.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A file to fetch.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Relative path in the model's folder, already checked.
    pub(super) path: String,
    pub(super) url: url::Url,
    pub(super) sha256: Option<String>,
    pub(super) bytes: Option<u64>,
    pub(super) token: Option<String>,
}

/// A file that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) sha256: String,
    pub(super) bytes: u64,
}

/// What is kept beside a partial file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    etag: Option<String>,
    bytes: u64,
    chunk_bytes: u64,
    done: Vec<u64>,
}

/// Why one attempt ended.
enum Fault {
    /// The content is another one than before: begin again.
    Changed,
    /// Nothing helps.
    Final(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Final(error)
    }
}

/// What the server has.
struct Offer {
    bytes: u64,
    etag: Option<String>,
}

/// The downloader. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    pub(super) http: reqwest::Client,
    pub(super) options: config::Download,
}

impl Fetcher {
    pub(super) fn new(options: config::Download) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("neurogrid/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.idle_timeout)
            // The client itself takes the token away when a redirect leads to another host.
            .redirect(reqwest::redirect::Policy::limited(5))
            .build()
            .map_err(|error| Error::source_failed("the HTTP client", error))?;
        Ok(Self { http, options })
    }

    /// Fetches a file, or finds it among the blobs.
    pub(super) async fn blob(&self, disk: &Disk, wanted: &Wanted, progress: &Reporter) -> Result<Blob, Error> {
        progress.begin(&wanted.path, 0);
        let key = wanted.sha256.clone().unwrap_or_else(|| disk::sha256_of(wanted.url.as_str().as_bytes()));
        let _lock = disk.lock(&key).await?;
        if let Some(sha256) = &wanted.sha256
            && let Some(bytes) = disk.blob_bytes(sha256)
        {
            progress.done(bytes);
            return Ok(Blob { sha256: sha256.clone(), bytes });
        }
        let partial = disk.partial(&key);
        let mut damaged = false;
        let mut changes = 0;
        loop {
            match self.content(&partial, wanted, progress).await {
                Ok(()) => {}
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Changed) if changes < 3 => {
                    changes += 1;
                    disk::forget(&partial);
                    continue;
                }
                Err(Fault::Changed) => return Err(Error::source_failed(&wanted.url, "the file changes while it is read")),
            }
            let blob = disk::hash(&partial).await?;
            match &wanted.sha256 {
                Some(sha256) if *sha256 != blob.sha256 => {
                    disk::forget(&partial);
                    if damaged {
                        let (want, got) = (sha256.clone(), blob.sha256);
                        return Err(Error::Corrupt { file: wanted.url.to_string(), want, got });
                    }
                    progress.undo(blob.bytes);
                    damaged = true;
                }
                _ => {
                    disk.publish(&partial, &blob.sha256)?;
                    return Ok(blob);
                }
            }
        }
    }

    /// Fills the partial file.
    async fn content(&self, partial: &Path, wanted: &Wanted, progress: &Reporter) -> Result<(), Fault> {
        let probe = self.send(wanted, Some((0, 1)), None).await?;
        let etag = text(probe.headers(), header::ETAG).filter(|tag| !tag.starts_with("W/"));
        if probe.status() != StatusCode::PARTIAL_CONTENT {
            drop(probe);
            return self.whole(partial, wanted, progress).await;
        }
        let bytes = range_total(probe.headers())
            .ok_or_else(|| Error::source_failed(&wanted.url, "the answer to a range has no usable Content-Range"))?;
        self.check_size(wanted, bytes)?;
        // One byte only: reading it gives the connection back.
        drop(probe.bytes().await);
        let mut state = self.resume(partial, wanted, Offer { bytes, etag })?;
        progress.done(state.done.iter().map(|&chunk| chunk_length(&state, chunk)).sum());
        let missing: Vec<u64> =
            (0..state.bytes.div_ceil(state.chunk_bytes)).filter(|chunk| !state.done.contains(chunk)).collect();
        let tag = state.etag.clone();
        let fetched = futures_util::stream::iter(missing.into_iter().map(|chunk| {
            let start = chunk * state.chunk_bytes;
            let end = start + chunk_length(&state, chunk);
            let tag = tag.clone();
            async move {
                self.part(partial, wanted, (start, end), tag.as_deref(), progress).await?;
                Ok::<u64, Fault>(chunk)
            }
        }))
        .buffer_unordered(self.options.connections.max(1));
        let mut fetched = Box::pin(fetched.collect_into(partial, &mut state));
        fetched.as_mut().await
    }

    /// What is left of an earlier attempt at the same content, or a new beginning.
    fn resume(&self, partial: &Path, wanted: &Wanted, offer: Offer) -> Result<State, Error> {
        let same = |state: &State| {
            // Without a digest only a strong tag says that it is still the same content.
            let known = wanted.sha256.is_some() || state.etag.is_some();
            known && state.etag == offer.etag && state.bytes == offer.bytes && state.chunk_bytes > 0
        };
        let kept = std::fs::read(disk::state_of(partial)).ok().and_then(|json| serde_json::from_slice::<State>(&json).ok());
        if let Some(state) = kept.filter(|state| same(state) && partial.is_file()) {
            return Ok(state);
        }
        disk::forget(partial);
        let file = std::fs::File::create(partial).map_err(|error| Error::io(partial, &error))?;
        file.set_len(offer.bytes).map_err(|error| Error::io(partial, &error))?;
        let chunk_bytes = self.options.chunk_bytes.max(1);
        Ok(State { etag: offer.etag, bytes: offer.bytes, chunk_bytes, done: Vec::new() })
    }

    /// Fetches `[start, end)`, going on where a broken or stalled connection left it.
    async fn part(
        &self,
        partial: &Path,
        wanted: &Wanted,
        (mut start, end): (u64, u64),
        etag: Option<&str>,
        progress: &Reporter,
    ) -> Result<(), Fault> {
        let mut file = open_at(partial, start).await?;
        let mut failures = 0;
        while start < end {
            let response = self.send(wanted, Some((start, end)), etag).await?;
            let begins = text(response.headers(), header::CONTENT_RANGE);
            let is_asked = begins.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
            if response.status() != StatusCode::PARTIAL_CONTENT || !is_asked {
                return Err(Fault::Changed);
            }
            let before = start;
            let mut body = response.bytes_stream();
            let problem = loop {
                match tokio::time::timeout(self.options.idle_timeout, body.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        let take = bytes.len().min(usize::try_from(end - start).unwrap_or(usize::MAX));
                        file.write_all(&bytes[..take]).await.map_err(|error| Error::io(partial, &error))?;
                        start += take as u64;
                        progress.done(take as u64);
                        if start == end {
                            break String::new();
                        }
                    }
                    Ok(Some(Err(error))) => break error.to_string(),
                    Ok(None) => break "the answer ended early".into(),
                    Err(_) => break format!("nothing came for {:?}", self.options.idle_timeout),
                }
            };
            failures = if start > before { 0 } else { failures + 1 };
            if start < end {
                self.pause(failures, None, &wanted.url, &problem).await?;
            }
        }
        file.sync_data().await.map_err(|error| Error::io(partial, &error))?;
        Ok(())
    }

    /// Fetches all of it in one stream, from a server that knows no ranges.
    async fn whole(&self, partial: &Path, wanted: &Wanted, progress: &Reporter) -> Result<(), Fault> {
        for failures in 1.. {
            disk::forget(partial);
            let response = self.send(wanted, None, None).await?;
            let announced = response.content_length();
            let limit = wanted.bytes.unwrap_or(FILE_BYTES_MAX);
            let mut file = tokio::fs::File::create(partial).await.map_err(|error| Error::io(partial, &error))?;
            let mut body = response.bytes_stream();
            let mut came = 0_u64;
            let problem = loop {
                match tokio::time::timeout(self.options.idle_timeout, body.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        came += bytes.len() as u64;
                        if came > limit {
                            return Err(Error::source_failed(&wanted.url, format!("more than {limit} bytes come")).into());
                        }
                        file.write_all(&bytes).await.map_err(|error| Error::io(partial, &error))?;
                        progress.done(bytes.len() as u64);
                    }
                    Ok(Some(Err(error))) => break error.to_string(),
                    Ok(None) if announced.or(wanted.bytes).is_some_and(|bytes| came < bytes) => break "the answer ended early".into(),
                    Ok(None) => {
                        file.sync_all().await.map_err(|error| Error::io(partial, &error))?;
                        return Ok(());
                    }
                    Err(_) => break format!("nothing came for {:?}", self.options.idle_timeout),
                }
            };
            progress.undo(came);
            self.pause(failures, None, &wanted.url, &problem).await?;
        }
        unreachable!("pausing fails before the failures cannot be counted any more")
    }

    fn check_size(&self, wanted: &Wanted, bytes: u64) -> Result<(), Error> {
        match wanted.bytes {
            Some(want) if want != bytes => {
                Err(Error::source_failed(&wanted.url, format!("the file is {bytes} bytes, {want} are announced")))
            }
            _ if bytes > FILE_BYTES_MAX => Err(Error::source_failed(&wanted.url, format!("{bytes} bytes are too many"))),
            _ => Ok(()),
        }
    }

    /// One request, repeated while the server asks for patience. The answer is 200, 206 or 416.
    async fn send(&self, wanted: &Wanted, range: Option<(u64, u64)>, etag: Option<&str>) -> Result<Response, Error> {
        for failures in 1.. {
            let mut request = self.http.get(wanted.url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = &wanted.token {
                request = request.bearer_auth(token);
            }
            if let Some((start, end)) = range {
                request = request.header(header::RANGE, format!("bytes={start}-{}", end - 1));
            }
            if let Some(etag) = etag {
                request = request.header(header::IF_RANGE, etag);
            }
            let (wait, problem) = match tokio::time::timeout(self.options.idle_timeout, request.send()).await {
                Ok(Ok(response)) => match response.status() {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                    StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => return Ok(response),
                    status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                        let wait = text(response.headers(), header::RETRY_AFTER).and_then(|wait| wait.parse().ok());
                        (wait.map(Duration::from_secs), format!("it answers {status}"))
                    }
                    status => return Err(refusal(&wanted.url, status)),
                },
                Ok(Err(error)) => (None, error.to_string()),
                Err(_) => (None, format!("no answer for {:?}", self.options.idle_timeout)),
            };
            self.pause(failures, wait, &wanted.url, &problem).await?;
        }
        unreachable!("pausing fails before the failures cannot be counted any more")
    }

    /// Waits before the next attempt; an error when there were enough. Each wait is twice the one before, with jitter so
    /// that many workers do not come back at once.
    async fn pause(&self, failures: u32, asked: Option<Duration>, url: &url::Url, problem: &str) -> Result<(), Error> {
        if failures > self.options.retries {
            return Err(Error::source_failed(url, format!("{problem}; given up after {failures} attempts")));
        }
        let wait = self.options.backoff * 2_u32.saturating_pow(failures.min(8));
        let wait = wait.mul_f64(rand::random_range(0.5..1.0)).max(asked.unwrap_or_default()).min(WAIT_MAX);
        tracing::debug!(%url, ?wait, "fetched again soon: {problem}");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Notes chunks as they come.
trait CollectInto {
    async fn collect_into(self, partial: &Path, state: &mut State) -> Result<(), Fault>;
}

impl<S: futures_util::Stream<Item = Result<u64, Fault>>> CollectInto for S {
    async fn collect_into(self, partial: &Path, state: &mut State) -> Result<(), Fault> {
        let mut chunks = std::pin::pin!(self);
        while let Some(chunk) = chunks.try_next().await? {
            state.done.push(chunk);
            let json = serde_json::to_vec(&state).expect("numbers and a text are JSON");
            disk::write(&disk::state_of(partial), &json)?;
        }
        Ok(())
    }
}

/// What an answer that is no content means.
pub(super) fn refusal(url: &url::Url, status: StatusCode) -> Error {
    let detail = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("it answers {status}; the model is gated or private: set a token that may read it")
        }
        StatusCode::NOT_FOUND => format!("it answers {status}; check the name and the revision"),
        _ => format!("it answers {status}"),
    };
    Error::source_failed(url, detail)
}

fn chunk_length(state: &State, chunk: u64) -> u64 {
    state.chunk_bytes.min(state.bytes.saturating_sub(chunk.saturating_mul(state.chunk_bytes)))
}

pub(super) fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn range_total(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok()
}

async fn open_at(partial: &Path, start: u64) -> Result<tokio::fs::File, Error> {
    let path: PathBuf = partial.to_owned();
    let mut file =
        tokio::fs::OpenOptions::new().write(true).open(&path).await.map_err(|error| Error::io(&path, &error))?;
    file.seek(std::io::SeekFrom::Start(start)).await.map_err(|error| Error::io(&path, &error))?;
    Ok(file)
}
