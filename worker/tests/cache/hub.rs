//! A stand-in for the Hub: files go in, its API and its content server on two addresses of loopback come out, with a record
//! of what was asked. It can be told to answer as broken servers and lines do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use sha2::Digest;

/// The only repository.
pub(crate) const REPOSITORY: &str = "org/Tiny-Bert";
/// The commit that its branch `main` is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files from here on are kept by the content server, as large files are.
const LARGE: usize = 4_096;

/// What one answer has wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection closes in the middle.
    Cut,
    /// Nothing comes after the middle.
    Stall,
    /// A byte is another one.
    Corrupt,
    /// It is said to come back later.
    TooMany,
    /// The server fails.
    Broken,
    /// The range is overlooked, also of a probe.
    NoRange,
    /// Nothing.
    Good,
}

/// One request of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Which file.
    pub(crate) path: String,
    /// The range, as sent.
    pub(crate) range: Option<String>,
    /// Whether a token came with it.
    pub(crate) has_token: bool,
    /// Whether it came to the content server.
    pub(crate) is_content: bool,
}

struct Shared {
    files: Mutex<BTreeMap<String, Bytes>>,
    faults: Mutex<BTreeMap<String, VecDeque<Fault>>>,
    asked: Mutex<Vec<Asked>>,
    token: Option<String>,
    content: Mutex<String>,
}

/// The stand-in.
pub(crate) struct Hub {
    /// Its address.
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Hub {
    /// Serves files; with a token only to who shows it.
    pub(crate) async fn start(files: BTreeMap<String, Bytes>, token: Option<&str>) -> Self {
        let shared = Arc::new(Shared {
            files: Mutex::new(files),
            faults: Mutex::default(),
            asked: Mutex::default(),
            token: token.map(str::to_owned),
            content: Mutex::default(),
        });
        let content = serve(Router::new().fallback(content).with_state(Arc::clone(&shared))).await;
        *shared.content.lock().unwrap() = content;
        let url = serve(Router::new().fallback(hub).with_state(Arc::clone(&shared))).await;
        Self { url, shared }
    }

    /// What is wrong with the next answers for a file; `""` is the list of files.
    pub(crate) fn fail(&self, path: &str, faults: &[Fault]) {
        self.shared.faults.lock().unwrap().insert(path.into(), faults.iter().copied().collect());
    }

    /// Gives a file another content, under the same commit.
    pub(crate) fn change(&self, path: &str, content: &[u8]) {
        self.shared.files.lock().unwrap().insert(path.into(), Bytes::copy_from_slice(content));
    }

    /// What was asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// The API: the list of files, and small files; for large ones the address of the content server.
async fn hub(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let headers = request.headers();
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(token) = &shared.token
        && shown != Some(&format!("Bearer {token}"))
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let path = request.uri().path();
    if [format!("/api/models/{REPOSITORY}/revision/main"), format!("/api/models/{REPOSITORY}/revision/{COMMIT}")]
        .iter()
        .any(|known| known == path)
    {
        return match shared.next_fault("") {
            Some(Fault::TooMany) => too_many(),
            Some(_) => StatusCode::BAD_GATEWAY.into_response(),
            None => axum::Json(shared.list()).into_response(),
        };
    }
    let Some(file) = path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(bytes) = shared.files.lock().unwrap().get(file).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if bytes.len() >= LARGE {
        let content = shared.content.lock().unwrap().clone();
        return (StatusCode::FOUND, [(header::LOCATION, format!("{content}/{file}"))]).into_response();
    }
    shared.answer(file, bytes, headers, false)
}

/// The content server, which knows nothing of tokens.
async fn content(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let file = request.uri().path().trim_start_matches('/').to_owned();
    let Some(bytes) = shared.files.lock().unwrap().get(&file).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    shared.answer(&file, bytes, request.headers(), true)
}

fn too_many() -> Response {
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response()
}

impl Shared {
    fn next_fault(&self, path: &str) -> Option<Fault> {
        self.faults.lock().unwrap().get_mut(path)?.pop_front()
    }

    fn list(&self) -> serde_json::Value {
        let files = self.files.lock().unwrap();
        let sibling = |(path, bytes): (&String, &Bytes)| match bytes.len() >= LARGE {
            true => {
                let lfs = serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
                serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": "b", "lfs": lfs })
            }
            false => serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": "b" }),
        };
        let siblings: Vec<_> = files.iter().map(sibling).collect();
        serde_json::json!({ "id": REPOSITORY, "sha": COMMIT, "private": false, "siblings": siblings })
    }

    fn answer(&self, path: &str, bytes: Bytes, headers: &HeaderMap, is_content: bool) -> Response {
        let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        let range = text(header::RANGE).map(str::to_owned);
        let has_token = headers.contains_key(header::AUTHORIZATION);
        self.asked.lock().unwrap().push(Asked { path: path.into(), range: range.clone(), has_token, is_content });
        let tag = format!("\"{}\"", sha256(&bytes));
        let is_same = text(header::IF_RANGE).is_none_or(|known| known == tag);
        // The probe for one byte is answered well, except by a server that knows no ranges.
        let is_probe = range.as_deref() == Some("bytes=0-0");
        let knows_ranges = self.faults.lock().unwrap().get(path).and_then(VecDeque::front) != Some(&Fault::NoRange);
        let fault = if is_probe && knows_ranges { None } else { self.next_fault(path) };
        match fault {
            Some(Fault::TooMany) => return too_many(),
            Some(Fault::Broken) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            _ => {}
        }
        let total = bytes.len();
        let asked = range.as_deref().filter(|_| is_same && fault != Some(Fault::NoRange)).map(|range| {
            let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            (start.parse::<usize>().unwrap(), end.parse::<usize>().unwrap())
        });
        let (status, part, said) = match asked {
            Some((start, _)) if start >= total => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
            Some((start, last)) => {
                let end = (last + 1).min(total);
                (
                    StatusCode::PARTIAL_CONTENT,
                    bytes.slice(start..end),
                    Some(format!("bytes {start}-{}/{total}", end - 1)),
                )
            }
            None => (StatusCode::OK, bytes, None),
        };
        let length = part.len();
        let mut response = Response::new(body(part, fault));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
        headers.insert(header::ETAG, tag.parse().unwrap());
        if let Some(said) = said {
            headers.insert(header::CONTENT_RANGE, said.parse().unwrap());
        }
        response
    }
}

fn body(part: Bytes, fault: Option<Fault>) -> Body {
    let half = part.slice(..part.len() / 2);
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(half)]);
    match fault {
        // What is sent must be on its way before the connection closes.
        Some(Fault::Cut) => Body::from_stream(first.chain(futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("cut"))
        }))),
        Some(Fault::Stall) => Body::from_stream(first.chain(futures_util::stream::pending())),
        Some(Fault::Corrupt) => {
            let mut damaged = part.to_vec();
            let last = damaged.len() - 1;
            damaged[last] ^= 1;
            damaged.into()
        }
        _ => part.into(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}
