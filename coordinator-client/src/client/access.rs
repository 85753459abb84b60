//! The HTTP side of a link: logs in by key and challenge, keeps the token fresh, remembers the coordinator's key,
//! carries payloads that are too large for a frame. Never sends a token anywhere but to the coordinator that gave it.

use crate::api::{Code, Problem};
use crate::identity::{self, Identity};
use crate::wire::node::{Challenge, LoginRequest, LoginResponse, RegisterRequest, SessionToken, paths};
use crate::wire::{BlobRef, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use url::Url;

/// Answers to a login are small; more is not read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A token is not used in its last seconds, so that it does not expire on its way.
const TOKEN_MARGIN: Duration = Duration::from_secs(30);

/// Why the coordinator's HTTP side did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer.
    #[error("{url} does not answer: {detail}; is the coordinator running, and is the address right?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        detail: String,
    },
    /// An answer that says no.
    #[error("{url} answered {status}: {problem}")]
    Refused {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// Why.
        problem: Box<Problem>,
    },
    /// An answer of another shape.
    #[error("{url} does not answer as a coordinator does: {detail}; is this the right address?")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A proof that does not hold.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Another key than at the first login.
    #[error(
        "{origin} proves another key ({found}) than at the first login ({known}); if its operator changed the key, \
         remove {path}, else somebody stands in between"
    )]
    OtherKey {
        /// Which coordinator.
        origin: String,
        /// The remembered key.
        known: String,
        /// The key that it proves now.
        found: String,
        /// Where the key is remembered.
        path: PathBuf,
    },
    /// The key cannot be remembered.
    #[error("{path}: {source}; make the data folder writable")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A blob that is not what was asked for.
    #[error("blob {sha256}: {detail}")]
    Blob {
        /// Its digest.
        sha256: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl Error {
    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unreachable { .. } => true,
            Error::Refused { problem, .. } => problem.code.is_retryable(),
            _ => false,
        }
    }
}

/// What is told at registration, and where the coordinator's key is remembered.
#[derive(Debug, Clone)]
pub struct Options {
    /// Addresses of one grid, tried in order.
    pub addresses: Vec<Url>,
    /// A name for people.
    pub name: String,
    /// Where the node stands.
    pub region: String,
    /// Program and version.
    pub agent: String,
    /// Hardware.
    pub profile: serde_json::Value,
    /// Needed at the first registration where the grid asks for one.
    pub enrolment_token: Option<String>,
    /// Folder of the coordinators' remembered keys.
    pub known_folder: PathBuf,
    /// The largest payload that is fetched.
    pub payload_bytes_max: u64,
}

/// Access to one grid's HTTP side. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    identity: Arc<Identity>,
    http: reqwest::Client,
    current: Mutex<usize>,
    /// Locked while a login runs, so that all who wait get the same token.
    token: tokio::sync::Mutex<Option<Held>>,
}

struct Held {
    token: String,
    /// Which address gave it.
    address: usize,
    until: Instant,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Access({})", self.url())
    }
}

impl Access {
    /// Access that has not logged in yet.
    ///
    /// # Errors
    /// When there is no address, or TLS cannot be set up.
    pub fn new(options: Options, identity: Arc<Identity>) -> Result<Self, Error> {
        let Some(first) = options.addresses.first() else {
            let detail = "no address is given".into();
            return Err(Error::Unreachable { url: "coordinator".into(), detail });
        };
        let mut http = reqwest::Client::builder()
            .user_agent(&options.agent)
            .http1_only() // the link upgrades its connection, which HTTP/2 does not do
            .redirect(reqwest::redirect::Policy::none()) // a token must not follow a redirect
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30));
        if options.addresses.iter().all(is_loopback) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|e| Error::Unreachable { url: first.to_string(), detail: causes(&e) })?;
        Ok(Self {
            inner: Arc::new(Inner {
                options,
                identity,
                http,
                current: Mutex::new(0),
                token: tokio::sync::Mutex::new(None),
            }),
        })
    }

    /// The address in use.
    pub fn url(&self) -> &Url {
        &self.inner.options.addresses[self.index()]
    }

    /// The origin in use, as a challenge has to name it.
    pub fn origin(&self) -> String {
        self.url().origin().ascii_serialization()
    }

    /// Who logs in.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The address of a path at the coordinator.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url().as_str().trim_end_matches('/'))
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.inner.http
    }

    fn index(&self) -> usize {
        *self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to the next address.
    pub(super) fn rotate(&self) {
        let mut current = self.inner.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (*current + 1) % self.inner.options.addresses.len();
    }

    /// A token that holds for a while yet; logs in when there is none.
    ///
    /// # Errors
    /// When the coordinator does not let this node in, or does not prove who it is.
    pub async fn token(&self) -> Result<String, Error> {
        let address = self.index();
        let mut held = self.inner.token.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.address == address && held.until > Instant::now()) {
            return Ok(held.token.clone());
        }
        let token = self.login().await?;
        *held = Some(self.hold(&token));
        Ok(token.token)
    }

    /// Uses a token that came over the link.
    pub(super) async fn set_token(&self, token: &SessionToken) {
        *self.inner.token.lock().await = Some(self.hold(token));
    }

    /// Forgets a token that was refused.
    pub(super) async fn forget_token(&self) {
        *self.inner.token.lock().await = None;
    }

    fn hold(&self, token: &SessionToken) -> Held {
        let life = Duration::from_millis(token.expires_in_ms);
        let until = Instant::now() + life.saturating_sub(TOKEN_MARGIN.min(life / 2));
        Held { token: token.token.clone(), address: self.index(), until }
    }

    async fn login(&self) -> Result<SessionToken, Error> {
        let Options { name, region, profile, enrolment_token, .. } = &self.inner.options;
        let origin = self.origin();
        let register = RegisterRequest {
            public_key: self.identity().public_key_hex(),
            origin: origin.clone(),
            name: name.clone(),
            region: region.clone(),
            profile: profile.clone(),
            enrolment_token: enrolment_token.clone(),
        };
        let challenge: Challenge = self.post(paths::REGISTER, &register).await?;
        let request: LoginRequest = self.identity().answer(&challenge, &origin)?;
        let response: LoginResponse = self.post(paths::LOGIN, &request).await?;
        let key = identity::check_proof(&origin, &request, &response)?;
        self.recognise(&origin, &data_encoding::HEXLOWER.encode(&key))?;
        Ok(response.token)
    }

    /// Remembers a coordinator's key, or compares it with the remembered one.
    fn recognise(&self, origin: &str, key: &str) -> Result<(), Error> {
        let folder = &self.inner.options.known_folder;
        let path = folder.join(format!("{}.key", file_name(origin)));
        let failed = |source| Error::File { path: path.clone(), source };
        match std::fs::read_to_string(&path) {
            Ok(known) if known.trim_end() == key => Ok(()),
            Ok(known) => Err(Error::OtherKey {
                origin: origin.into(),
                known: known.trim_end().into(),
                found: key.into(),
                path: path.clone(),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(folder).map_err(failed)?;
                let beside = path.with_extension("new");
                std::fs::write(&beside, format!("{key}\n")).map_err(failed)?;
                std::fs::rename(&beside, &path).map_err(failed)
            }
            Err(e) => Err(failed(e)),
        }
    }

    async fn post<B: Serialize, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R, Error> {
        let url = self.at(path);
        let request = self.http().post(&url).timeout(Duration::from_secs(30)).json(body);
        let bytes = read(request, &url, ANSWER_BYTES_MAX as u64).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Answer { url, detail: e.to_string() })
    }

    /// The bytes at a path, with this node's token.
    ///
    /// # Errors
    /// When the coordinator does not give them, or gives more than `bytes_max`.
    pub async fn get(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, Error> {
        let url = self.at(path);
        let request = self.http().get(&url).bearer_auth(self.token().await?);
        read(request, &url, bytes_max).await
    }

    /// A payload that did not fit into a frame.
    ///
    /// # Errors
    /// When it is not there, too large, or not what the reference says.
    pub async fn get_payload<T: DeserializeOwned>(&self, blob: &BlobRef) -> Result<T, Error> {
        let refuse = |detail: String| Error::Blob { sha256: blob.sha256.clone(), detail };
        if !digest::is_sha256_hex(&blob.sha256) {
            return Err(refuse("its name is no digest".into()));
        }
        let bytes_max = self.inner.options.payload_bytes_max;
        if blob.bytes > bytes_max {
            return Err(refuse(format!("{} bytes are more than the {bytes_max} that are taken here", blob.bytes)));
        }
        let bytes = self.get(&paths::payload(&blob.sha256), blob.bytes).await?;
        if digest::sha256_hex(&bytes) != blob.sha256 {
            return Err(refuse("its content has another digest".into()));
        }
        rmp_serde::from_slice(&bytes).map_err(|e| refuse(e.to_string()))
    }

    /// Leaves a payload that does not fit into a frame.
    ///
    /// # Errors
    /// When the coordinator does not take it.
    pub async fn put_payload(&self, sha256: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let url = self.at(&paths::payload(sha256));
        let request = self.http().put(&url).bearer_auth(self.token().await?).body(bytes);
        read(request, &url, ANSWER_BYTES_MAX as u64).await.map(drop)
    }
}

async fn read(request: reqwest::RequestBuilder, url: &str, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let unreachable = |e: reqwest::Error| Error::Unreachable { url: url.into(), detail: causes(&e) };
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let limit = if status.is_success() { bytes_max } else { ANSWER_BYTES_MAX as u64 };
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(Error::Answer { url: url.into(), detail: format!("more than {limit} bytes came") });
        }
        bytes.extend(chunk);
    }
    if status.is_success() {
        return Ok(bytes);
    }
    Err(refused(url, status.as_u16(), &bytes))
}

/// The error of an answer that says no.
pub(super) fn refused(url: &str, status: u16, body: &[u8]) -> Error {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| {
        let code = match status {
            401 => Code::Unauthorized,
            403 => Code::Forbidden,
            404 => Code::NotFound,
            400..=499 => Code::InvalidInput,
            _ => Code::Unavailable,
        };
        Problem::new(code, String::from_utf8_lossy(body).chars().take(200).collect::<String>())
    });
    Error::Refused { url: url.into(), status, problem: Box::new(problem) }
}

/// An error with all its causes: reqwest's own text leaves them out.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A file name for an origin: readable, and different for every origin with a host name.
pub(super) fn file_name(origin: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
    origin.replace("://", "_").chars().map(safe).collect()
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
