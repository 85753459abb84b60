//! One request to a server: a body goes out, an answer with the time of each of its pieces comes back, or why there is none.

use super::api::{self, Kind, NoPiece, Usage};
use super::record::{Answer, Failure};
use crate::sse;
use reqwest::{Response, StatusCode, header};
use std::time::{Duration, Instant};
use url::Url;

/// What is said of an error is in its first bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// How long a server may take to close a stream that it has said is complete; until then its connection is not used again.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Where time begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// The moment that is so long behind the start.
    pub(crate) fn at(self, since_start: Duration) -> Instant {
        self.0 + since_start
    }
}

/// A server that speaks OpenAI's API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// Ends with `/v1/`.
    base: Url,
    key: Option<String>,
    timeout: Duration,
}

impl Client {
    /// A client of the server at `address`, with or without `/v1`. A request may take `timeout` from its start to its end.
    ///
    /// # Errors
    /// When that is no address.
    pub(crate) fn new(address: &str, key: Option<String>, timeout: Duration) -> anyhow::Result<Self> {
        let base = base(address).map_err(anyhow::Error::msg)?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("neurogrid-bench/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10).min(timeout))
            // A redirect would turn the request into another one.
            .redirect(reqwest::redirect::Policy::none());
        if is_this_machine(&base) {
            // Whatever proxy is set is not part of what is measured.
            http = http.no_proxy();
        }
        Ok(Self { http: http.build()?, base, key, timeout })
    }

    /// The server's address, as it is shown.
    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches("v1/").trim_end_matches('/')
    }

    /// The names of the models that it lists. `None` when it lists none.
    pub(crate) async fn models(&self) -> Result<Option<Vec<String>>, Failure> {
        let url = self.base.join("models").map_err(|error| Failure::Malformed(error.to_string()))?;
        let request = self.with_key(self.http.get(url)).timeout(self.timeout.min(Duration::from_secs(30)));
        let response = request.send().await.map_err(failure)?;
        match response.status() {
            StatusCode::OK => Ok(api::models(&response.bytes().await.map_err(failure)?)),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            _ => Err(refusal(response).await),
        }
    }

    /// Sends a body and reads the answer to its end. `inputs` is how many vectors embeddings must have.
    pub(crate) async fn ask(&self, kind: Kind, body: Vec<u8>, inputs: usize, clock: Clock) -> Result<Answer, Failure> {
        let asked = async {
            let url = self.base.join(kind.route()).map_err(|error| Failure::Malformed(error.to_string()))?;
            let request = || {
                let request =
                    self.with_key(self.http.post(url.clone())).header(header::CONTENT_TYPE, "application/json");
                request.body(body.clone())
            };
            // Some servers close the connection behind an answer, which shows only when it is used again. The time that it took
            // stays in the figures.
            let response = match request().send().await {
                Err(error) if is_hang_up(&error) => request().send().await,
                sent => sent,
            };
            let response = response.map_err(failure)?;
            if response.status() != StatusCode::OK {
                return Err(refusal(response).await);
            }
            if kind.is_stream() { stream(response, clock).await } else { vectors(response, inputs, clock).await }
        };
        tokio::time::timeout(self.timeout, asked).await.unwrap_or(Err(Failure::Timeout))
    }

    fn with_key(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

/// The address under which the routes are.
fn base(address: &str) -> Result<Url, String> {
    let wrong = |problem: &str| format!("{address:?} is no server's address: {problem}; write http://127.0.0.1:8080");
    let url = Url::parse(address).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("it must begin with http:// or https://"));
    }
    // Reports keep the address.
    if url.password().is_some() || !url.username().is_empty() {
        return Err("an address is kept in reports: give the key with --api-key, not in the address".into());
    }
    let path = url.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
    let mut base = url;
    base.set_path(&format!("{path}/v1/"));
    base.set_query(None);
    base.set_fragment(None);
    Ok(base)
}

fn is_this_machine(address: &Url) -> bool {
    match address.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Reads a text that comes in pieces.
async fn stream(mut response: Response, clock: Clock) -> Result<Answer, Failure> {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("text/event-stream") {
        let kind = kind.to_owned();
        let said = api::message_of(&beginning(response).await);
        return Err(Failure::Malformed(format!("the answer is no event stream but {kind:?}: {said}")));
    }
    let mut parser = sse::Parser::default();
    let mut events = Vec::new();
    let (mut arrivals, mut usage) = (Vec::new(), Usage::default());
    loop {
        let bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                parser.end().map_err(|error| Failure::CutOff(error.to_string()))?;
                return Err(Failure::CutOff("the stream ended without [DONE]".into()));
            }
            Err(error) => return Err(failure(error)),
        };
        let now = clock.now();
        parser.push(&bytes, &mut events).map_err(|error| Failure::Malformed(error.to_string()))?;
        for event in events.drain(..) {
            if event.data.trim() == "[DONE]" {
                close(response).await;
                return if arrivals.is_empty() {
                    Err(Failure::Empty)
                } else {
                    Ok(Answer { arrivals, ended: now, usage })
                };
            }
            if event.name == "error" {
                return Err(Failure::InStream(api::message_of(&event.data)));
            }
            let piece = api::piece(&event.data).map_err(|wrong| match wrong {
                NoPiece::Error(message) => Failure::InStream(message),
                NoPiece::Malformed(problem) => Failure::Malformed(problem),
            })?;
            usage = piece.usage.unwrap_or(usage);
            if piece.has_output {
                arrivals.push(now);
            }
        }
    }
}

/// Reads what is left of a complete stream, so that its connection can be used again.
async fn close(mut response: Response) {
    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
    drop(tokio::time::timeout(CLOSE_WITHIN, rest).await);
}

/// Reads vectors.
async fn vectors(response: Response, inputs: usize, clock: Clock) -> Result<Answer, Failure> {
    let body = response.bytes().await.map_err(failure)?;
    let ended = clock.now();
    let (count, usage) = api::embeddings(&body).map_err(Failure::Malformed)?;
    if count != inputs {
        return Err(Failure::Malformed(format!("{inputs} texts were asked, {count} vectors came")));
    }
    Ok(Answer { arrivals: vec![], ended, usage })
}

async fn refusal(response: Response) -> Failure {
    let status = response.status().as_u16();
    Failure::Status(status, api::message_of(&beginning(response).await))
}

/// The beginning of a body that says what went wrong.
async fn beginning(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(more)) = response.chunk().await {
        bytes.extend_from_slice(&more);
        if bytes.len() >= ERROR_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the connection was there and ended before the first byte of an answer.
fn is_hang_up(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

fn failure(error: reqwest::Error) -> Failure {
    // The first cause is what the system or the server did; what is around it is known.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let cause = cause.to_string();
    if error.is_connect() {
        Failure::Unreachable(cause)
    } else if error.is_timeout() {
        Failure::Timeout
    } else {
        Failure::Broken(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        for (address, want) in
            [("http://127.0.0.1:1", true), ("http://[::1]:1", true), ("http://localhost", true), ("http://h", false)]
        {
            assert_eq!(is_this_machine(&base(address).unwrap()), want, "{address}");
        }
    }

    #[test]
    fn an_address_is_taken_with_and_without_its_end() {
        for (address, want) in [
            ("http://h:1", "http://h:1/v1/"),
            ("http://h:1/", "http://h:1/v1/"),
            ("http://h:1/v1", "http://h:1/v1/"),
            ("https://h/api/v1/", "https://h/api/v1/"),
            ("https://h/openai", "https://h/openai/v1/"),
        ] {
            assert_eq!(base(address).map(String::from).as_deref(), Ok(want));
        }
        for wrong in ["", "h:1", "127.0.0.1:8080", "ftp://h", "http://", "http://user:secret@h"] {
            let refused = base(wrong).unwrap_err();
            assert!(!wrong.contains("secret") || !refused.contains("secret"), "{refused}");
        }
    }
}
