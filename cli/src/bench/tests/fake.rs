//! A server that speaks just enough HTTP/1.1 and of OpenAI's API to be loaded, and that a test tells how to answer: whole, slowly,
//! in torn pieces, or not at all. Every connection is served in a task of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, tcp::OwnedWriteHalf};
use tokio::sync::{Mutex, Notify};

/// One request that came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// 0 for the first.
    pub(super) number: u64,
    pub(super) line: String,
    pub(super) key: Option<String>,
    pub(super) body: serde_json::Value,
    pub(super) at: Instant,
}

/// What a test says that is answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// A stream of these pieces of bytes, with the end that chunked bodies have.
    Stream(Vec<Vec<u8>>),
    /// A stream that is torn off behind these bytes.
    Torn(Vec<u8>),
    /// A whole body.
    Whole(u16, &'static str, String),
    /// Nothing: the connection is closed.
    Hangup,
    /// Nothing, ever.
    Silence,
}

/// What was held back, and for how long.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) requests: Mutex<Vec<Request>>,
    /// How long requests were held, in seconds.
    pub(super) holds: Mutex<Vec<f64>>,
    count: AtomicU64,
    changed: Notify,
}

impl Seen {
    /// Waits until so many requests have come.
    pub(super) async fn until(&self, count: u64) {
        loop {
            let changed = self.changed.notified();
            if self.count.load(Ordering::SeqCst) >= count {
                return;
            }
            // A notice that came between the look and the wait is not lost for long.
            drop(tokio::time::timeout(Duration::from_millis(20), changed).await);
        }
    }
}

/// The answer to each request; may take its time.
pub(super) trait Answers: Send + Sync + 'static {
    fn answer(&self, request: Request, seen: Arc<Seen>) -> impl Future<Output = Answer> + Send;
}

impl<F, R> Answers for F
where
    F: Fn(Request, Arc<Seen>) -> R + Send + Sync + 'static,
    R: Future<Output = Answer> + Send,
{
    fn answer(&self, request: Request, seen: Arc<Seen>) -> impl Future<Output = Answer> + Send {
        self(request, seen)
    }
}

/// Starts a server; it lives as long as the test's runtime. Returns its address and what it sees.
pub(super) async fn serve(answers: impl Answers) -> (String, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (seen, answers) = (Arc::new(Seen::default()), Arc::new(answers));
    let (seen_by_server, answers) = (seen.clone(), answers);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, answers.clone(), seen_by_server.clone()));
        }
    });
    (address, seen)
}

/// Serves one connection until it is closed. Nothing of it fails: a caller that leaves ends it.
async fn connection(stream: TcpStream, answers: Arc<impl Answers>, seen: Arc<Seen>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let (mut length, mut key) = (0, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).await.ok()?;
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => key = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await.ok()?;
        let answer = if line.starts_with("GET /v1/models ") {
            Answer::Whole(200, "application/json", r#"{"object":"list","data":[{"id":"fake"}]}"#.into())
        } else {
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let number = seen.count.fetch_add(1, Ordering::SeqCst);
            let request = Request { number, line: line.trim().into(), key, body, at: Instant::now() };
            seen.requests.lock().await.push(request.clone());
            seen.changed.notify_waiters();
            answers.answer(request, seen.clone()).await
        };
        write(&mut writer, answer).await?;
    }
}

/// `None` when the connection is at its end.
async fn write(writer: &mut OwnedWriteHalf, answer: Answer) -> Option<()> {
    const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    match answer {
        Answer::Stream(pieces) => {
            writer.write_all(STREAM.as_bytes()).await.ok()?;
            for piece in pieces {
                chunk(writer, &piece).await?;
                // Lets the reader see each piece for itself.
                tokio::task::yield_now().await;
            }
            writer.write_all(b"0\r\n\r\n").await.ok()
        }
        Answer::Torn(bytes) => {
            writer.write_all(STREAM.as_bytes()).await.ok()?;
            chunk(writer, &bytes).await?;
            None
        }
        Answer::Whole(status, kind, body) => {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}");
            writer.write_all(head.as_bytes()).await.ok()
        }
        Answer::Hangup => None,
        Answer::Silence => std::future::pending().await,
    }
}

async fn chunk(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> Option<()> {
    writer.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await.ok()?;
    writer.write_all(bytes).await.ok()?;
    writer.write_all(b"\r\n").await.ok()?;
    writer.flush().await.ok()
}

/// An event of a stream.
pub(super) fn event(data: impl std::fmt::Display) -> String {
    format!("data: {data}\n\n")
}

/// A whole text: the role, so many pieces, the reason for its end, the tokens, and the end.
pub(super) fn text(request: &Request, pieces: usize, tokens: usize) -> Answer {
    let is_chat = request.line.contains("/chat/");
    let choice = |delta: serde_json::Value| event(serde_json::json!({ "object": "chunk", "choices": [delta] }));
    let mut events = Vec::new();
    if is_chat {
        events.push(choice(serde_json::json!({ "delta": { "role": "assistant", "content": "" } })));
    }
    for _ in 0..pieces {
        events.push(choice(match is_chat {
            true => serde_json::json!({ "delta": { "content": " größer" } }),
            false => serde_json::json!({ "text": " größer" }),
        }));
    }
    events.push(choice(serde_json::json!({ "delta": {}, "finish_reason": "length" })));
    let prompt = prompt_tokens(request);
    let usage = serde_json::json!({ "prompt_tokens": prompt, "completion_tokens": tokens });
    events.push(event(serde_json::json!({ "choices": [], "usage": usage })));
    events.push(event("[DONE]"));
    Answer::Stream(events.into_iter().map(String::into_bytes).collect())
}

/// Two tokens a word, and five around them.
pub(super) fn prompt_tokens(request: &Request) -> usize {
    let text = match &request.body {
        body if body["messages"].is_array() => body["messages"][0]["content"].as_str(),
        body => body["prompt"].as_str().or(body["input"][0].as_str()),
    };
    5 + 2 * text.unwrap_or_default().split_whitespace().count()
}
