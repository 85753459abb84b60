//! Brings one file: an address and what is known of the content go in, a complete and verified file comes out. Chunks
//! come over several connections; what came before a crash does not come again. It chooses nothing and names no model.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::watch;
use url::Url;

use super::disk::Partial;
use super::source::Token;
use super::{Error, Progress, disk};
use crate::config;

/// No model file is larger; a server that sends without end fills no disk.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// The longest that a server may make us wait before a retry.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// How often a file may change while it is read, or come with a wrong digest, before that is the end.
const CHANGES_MAX: u32 = 2;

/// A file to fetch.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Relative path in the model's folder, already checked.
    pub(super) path: String,
    pub(super) url: Url,
    pub(super) sha256: Option<String>,
    pub(super) bytes: Option<u64>,
    pub(super) token: Token,
}

/// What is kept beside a file that grows.
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

/// The downloader. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    http: reqwest::Client,
    options: config::Download,
}

/// One file on its way.
struct Growing<'a> {
    part: std::path::PathBuf,
    wanted: &'a Wanted,
    progress: &'a watch::Sender<Progress>,
}

impl Growing<'_> {
    fn came(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.bytes_done += bytes);
    }

    /// Takes bytes back that have to come again.
    fn lost(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.bytes_done = progress.bytes_done.saturating_sub(bytes));
    }

    fn failed(&self, detail: impl std::fmt::Display) -> Error {
        Error::source_failed(&self.wanted.url, detail)
    }

    fn io(&self, error: &std::io::Error) -> Error {
        Error::io(&self.part, error)
    }
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

    /// A small answer, whole.
    pub(super) async fn text(&self, url: &Url, token: &Token, bytes_max: usize) -> Result<Vec<u8>, Error> {
        for failures in 1.. {
            let mut body = self.send(url, token, None, None).await?.bytes_stream();
            let mut text = Vec::new();
            let problem = loop {
                match tokio::time::timeout(self.options.idle_timeout, body.next()).await {
                    Ok(Some(Ok(bytes))) if text.len() + bytes.len() > bytes_max => {
                        return Err(Error::source_failed(url, format!("the answer is longer than {bytes_max} bytes")));
                    }
                    Ok(Some(Ok(bytes))) => text.extend_from_slice(&bytes),
                    Ok(Some(Err(error))) => break error.to_string(),
                    Ok(None) => return Ok(text),
                    Err(_) => break format!("nothing came for {:?}", self.options.idle_timeout),
                }
            };
            self.pause(failures, None, url, &problem).await?;
        }
        unreachable!("pausing fails before the failures cannot be counted any more")
    }

    /// Brings a file to its place, unless it is there.
    pub(super) async fn file(
        &self,
        partial: &Partial,
        wanted: &Wanted,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        progress.send_modify(|progress| progress.file.clone_from(&wanted.path));
        let growing = Growing { part: partial.part(&wanted.path), wanted, progress };
        if let Ok(there) = partial.model().join(&wanted.path).metadata() {
            growing.came(there.len());
            return Ok(());
        }
        let mut changes = 0;
        loop {
            match self.content(&growing).await {
                Ok(()) => {}
                Err(Fault::Changed) if changes < CHANGES_MAX => {
                    changes += 1;
                    disk::forget(&growing.part);
                    continue;
                }
                Err(Fault::Changed) => return Err(growing.failed("the file changes while it is read")),
                Err(Fault::Final(error)) => return Err(error),
            }
            let Some(want) = &wanted.sha256 else { return partial.complete(&growing.part, &wanted.path) };
            let (sha256, bytes) = super::store::digest_of(growing.part.clone()).await?;
            if sha256 == *want {
                return partial.complete(&growing.part, &wanted.path);
            }
            disk::forget(&growing.part);
            changes += 1;
            if changes > CHANGES_MAX {
                return Err(Error::Corrupt { file: wanted.url.to_string(), want: want.clone(), got: sha256 });
            }
            growing.lost(bytes);
        }
    }

    /// Fills the file that grows.
    async fn content(&self, growing: &Growing<'_>) -> Result<(), Fault> {
        let wanted = growing.wanted;
        let probe = self.send(&wanted.url, &wanted.token, Some((0, 1)), None).await?;
        let etag = text(probe.headers(), header::ETAG).filter(|tag| !tag.starts_with("W/"));
        // An empty file has no first byte, and some servers know no ranges.
        if probe.status() != StatusCode::PARTIAL_CONTENT {
            drop(probe);
            return self.whole(growing).await;
        }
        let bytes = range_total(probe.headers())
            .ok_or_else(|| growing.failed("the answer to a range has no usable Content-Range"))?;
        check_size(growing, bytes)?;
        // One byte only: reading it gives the connection back.
        drop(probe.bytes().await);
        let mut state = self.resume(growing, bytes, etag)?;
        growing.came(state.done.iter().map(|&chunk| chunk_length(&state, chunk)).sum());
        let chunks = 0..state.bytes.div_ceil(state.chunk_bytes);
        let missing: Vec<u64> = chunks.filter(|chunk| !state.done.contains(chunk)).collect();
        let etag = state.etag.clone();
        let fetch = |chunk: u64| {
            let start = chunk * state.chunk_bytes;
            let end = start + chunk_length(&state, chunk);
            let etag = etag.as_deref();
            async move { self.range(growing, start, end, etag).await.map(|()| chunk) }
        };
        let fetches: Vec<_> = missing.into_iter().map(fetch).collect();
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(self.options.connections.max(1));
        while let Some(chunk) = fetches.try_next().await? {
            state.done.push(chunk);
            let json = serde_json::to_vec(&state).expect("numbers and a text are JSON");
            disk::write(&disk::state_of(&growing.part), &json)?;
        }
        Ok(())
    }

    /// What is left of an earlier attempt at the same content, or a new beginning.
    fn resume(&self, growing: &Growing<'_>, bytes: u64, etag: Option<String>) -> Result<State, Error> {
        let part = &growing.part;
        let is_same = |state: &State| {
            // Without a digest only a strong tag says that it is still the same content.
            let is_known = growing.wanted.sha256.is_some() || state.etag.is_some();
            is_known && state.etag == etag && state.bytes == bytes && state.chunk_bytes > 0
        };
        let kept =
            std::fs::read(disk::state_of(part)).ok().and_then(|json| serde_json::from_slice::<State>(&json).ok());
        if let Some(state) = kept.filter(|state| is_same(state) && part.is_file()) {
            return Ok(state);
        }
        disk::forget(part);
        let file = std::fs::File::create(part).map_err(|error| growing.io(&error))?;
        file.set_len(bytes).map_err(|error| growing.io(&error))?;
        Ok(State { etag, bytes, chunk_bytes: self.options.chunk_bytes.max(1), done: Vec::new() })
    }

    /// Fetches `start..end`, going on where a broken or stalled connection left it.
    async fn range(&self, growing: &Growing<'_>, mut start: u64, end: u64, etag: Option<&str>) -> Result<(), Fault> {
        let Wanted { url, token, .. } = growing.wanted;
        let mut file =
            tokio::fs::OpenOptions::new().write(true).open(&growing.part).await.map_err(|error| growing.io(&error))?;
        file.seek(std::io::SeekFrom::Start(start)).await.map_err(|error| growing.io(&error))?;
        let mut failures = 0;
        while start < end {
            let response = self.send(url, token, Some((start, end)), etag).await?;
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
                        file.write_all(&bytes[..take]).await.map_err(|error| growing.io(&error))?;
                        start += take as u64;
                        growing.came(take as u64);
                        if start == end {
                            break String::new();
                        }
                    }
                    Ok(Some(Err(error))) => break error.to_string(),
                    Ok(None) => break "the answer ended early".into(),
                    Err(_) => break format!("nothing came for {:?}", self.options.idle_timeout),
                }
            };
            failures = if start > before { 1 } else { failures + 1 };
            if start < end {
                self.pause(failures, None, url, &problem).await?;
            }
        }
        // The state that says so must not be on disk before the content.
        file.sync_data().await.map_err(|error| growing.io(&error))?;
        Ok(())
    }

    /// Fetches all of it in one stream, from a server that knows no ranges.
    async fn whole(&self, growing: &Growing<'_>) -> Result<(), Fault> {
        let Wanted { url, token, .. } = growing.wanted;
        let limit = growing.wanted.bytes.unwrap_or(FILE_BYTES_MAX);
        for failures in 1.. {
            disk::forget(&growing.part);
            let response = self.send(url, token, None, None).await?;
            if let Some(bytes) = response.content_length() {
                check_size(growing, bytes)?;
            }
            let announced = response.content_length().or(growing.wanted.bytes);
            let mut file = tokio::fs::File::create(&growing.part).await.map_err(|error| growing.io(&error))?;
            let mut body = response.bytes_stream();
            let mut came = 0_u64;
            let problem = loop {
                match tokio::time::timeout(self.options.idle_timeout, body.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        came += bytes.len() as u64;
                        if came > limit {
                            return Err(growing.failed(format!("more than {limit} bytes come")).into());
                        }
                        file.write_all(&bytes).await.map_err(|error| growing.io(&error))?;
                        growing.came(bytes.len() as u64);
                    }
                    Ok(Some(Err(error))) => break error.to_string(),
                    Ok(None) if announced.is_some_and(|bytes| came < bytes) => break "the answer ended early".into(),
                    Ok(None) => {
                        file.sync_all().await.map_err(|error| growing.io(&error))?;
                        return Ok(());
                    }
                    Err(_) => break format!("nothing came for {:?}", self.options.idle_timeout),
                }
            };
            growing.lost(came);
            self.pause(failures, None, url, &problem).await?;
        }
        unreachable!("pausing fails before the failures cannot be counted any more")
    }

    /// One request, repeated while the server asks for patience. The answer is 200, 206, or 416 to a range.
    async fn send(
        &self,
        url: &Url,
        token: &Token,
        range: Option<(u64, u64)>,
        etag: Option<&str>,
    ) -> Result<Response, Error> {
        for failures in 1.. {
            let mut request = self.http.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = token.get().await.map_err(|error| Error::source_failed(url, error))? {
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
                    status => return Err(refusal(url, status)),
                },
                Ok(Err(error)) => (None, causes(&error)),
                Err(_) => (None, format!("no answer for {:?}", self.options.idle_timeout)),
            };
            self.pause(failures, wait, url, &problem).await?;
        }
        unreachable!("pausing fails before the failures cannot be counted any more")
    }

    /// Waits before the next attempt; an error when there were enough. Each wait is twice the one before, with jitter so
    /// that many workers do not come back at once.
    async fn pause(&self, failures: u32, asked: Option<Duration>, url: &Url, problem: &str) -> Result<(), Error> {
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

fn check_size(growing: &Growing<'_>, bytes: u64) -> Result<(), Error> {
    match growing.wanted.bytes {
        Some(want) if want != bytes => Err(growing.failed(format!("the file is {bytes} bytes, {want} are announced"))),
        _ if bytes > FILE_BYTES_MAX => Err(growing.failed(format!("{bytes} bytes are too many"))),
        _ => Ok(()),
    }
}

/// What an answer that is no content means.
fn refusal(url: &Url, status: StatusCode) -> Error {
    let detail = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("it answers {status}: the model is gated, private or not there; check the name and the token")
        }
        StatusCode::NOT_FOUND => format!("it answers {status}; check the name and the revision"),
        _ => format!("it answers {status}"),
    };
    Error::source_failed(url, detail)
}

/// An error with all its causes: reqwest's own text leaves them out.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error).chain(chain).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn chunk_length(state: &State, chunk: u64) -> u64 {
    state.chunk_bytes.min(state.bytes.saturating_sub(chunk.saturating_mul(state.chunk_bytes)))
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn range_total(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok()
}
