//! A coordinator for tests: it answers register, login and blobs over real HTTP on loopback and speaks real frames over
//! a real WebSocket, and leaves every decision to the test. Keeps no tasks; panics where a coordinator would say no.

use crate::api::{Code, Problem};
use crate::identity::{self, Identity};
use crate::wire::node::{Challenge, LoginRequest, RegisterRequest, SessionToken, TOKEN_MS, bytes_of_hex, paths};
use crate::wire::{Attempt, Bye, Frame, Hello, MESSAGE_BYTES_MAX, NodeId, SUBPROTOCOL, Settings, Welcome, digest};
use futures_util::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Connections that wait for the test to take them.
const CONNECTIONS_MAX: usize = 16;

/// A running fake. Stops when dropped.
#[derive(Debug)]
pub struct Coordinator {
    shared: Arc<Shared>,
    links: mpsc::Receiver<Link>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    address: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    identity: Identity,
    /// What challenges say instead of the dialled origin.
    claimed_origin: Option<String>,
    challenges: HashMap<String, ([u8; 32], Challenge)>,
    tokens: HashMap<String, NodeId>,
    token_ms: u64,
    logins: u64,
    /// What lies at which path.
    content: HashMap<String, Vec<u8>>,
}

/// One worker's connection, after its upgrade.
#[derive(Debug)]
pub struct Link {
    stream: WebSocketStream<TcpStream>,
    /// Who logged in.
    pub node: NodeId,
}

impl Coordinator {
    /// Starts one on a free port of loopback.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let state = State {
            identity: Identity::generate().expect("the system gives random bytes"),
            claimed_origin: None,
            challenges: HashMap::new(),
            tokens: HashMap::new(),
            token_ms: TOKEN_MS,
            logins: 0,
            content: HashMap::new(),
        };
        let shared = Arc::new(Shared { address, state: Mutex::new(state) });
        let (to_test, links) = mpsc::channel(CONNECTIONS_MAX);
        let stop = CancellationToken::new();
        let serving = serve(listener, Arc::clone(&shared), to_test);
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = serving => {}
            }
        });
        Self { shared, links, _stop: stop.drop_guard() }
    }

    /// Its address.
    pub fn url(&self) -> url::Url {
        self.shared.address.parse().expect("an address is a URL")
    }

    /// Waits for the next worker that connects.
    pub async fn accept(&mut self) -> Link {
        self.links.recv().await.expect("it serves as long as it lives")
    }

    /// Makes challenges name another origin, as one that passes on another coordinator's challenges does.
    pub fn claim_origin(&self, origin: &str) {
        self.shared.state().claimed_origin = Some(origin.into());
    }

    /// Takes another key, as an impostor has.
    pub fn change_key(&self) {
        self.shared.state().identity = Identity::generate().expect("the system gives random bytes");
    }

    /// Makes tokens hold for so long, and those that are out invalid.
    pub fn expire_tokens(&self, token_ms: u64) {
        let mut state = self.shared.state();
        state.token_ms = token_ms;
        state.tokens.clear();
    }

    /// How often nodes have logged in.
    pub fn logins(&self) -> u64 {
        self.shared.state().logins
    }

    /// Lays something at a path, for whoever has a token.
    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.state().content.insert(path.into(), bytes.into());
    }

    /// What lies at a path.
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.shared.state().content.get(path).cloned()
    }
}

impl Link {
    /// The next frame; `None` when the worker is gone.
    pub async fn recv(&mut self) -> Option<Frame> {
        loop {
            match self.stream.next().await? {
                Ok(Message::Binary(bytes)) => {
                    return Some(Frame::decode(&bytes).expect("workers send frames").expect("of this protocol"));
                }
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame that is neither a heartbeat nor a ping; pings are answered.
    pub async fn recv_work(&mut self) -> Option<Frame> {
        loop {
            match self.recv().await? {
                Frame::Heartbeat(_) => {}
                Frame::Ping(ping) => self.send(Frame::Pong(ping)).await,
                frame => return Some(frame),
            }
        }
    }

    /// Sends a frame. A worker that is gone does not get it.
    pub async fn send(&mut self, frame: Frame) {
        let bytes = frame.encode().expect("tests send frames that fit");
        self.send_bytes(bytes).await;
    }

    /// Sends what need not be a frame.
    pub async fn send_bytes(&mut self, bytes: Vec<u8>) {
        let _ = self.stream.send(Message::Binary(bytes.into())).await; // the worker may be gone
    }

    /// Reads the hello and welcomes the worker, refusing these attempts and adopting its others.
    pub async fn welcome(&mut self, settings: Settings, refused: &[Attempt]) -> Hello {
        let Some(Frame::Hello(hello)) = self.recv().await else { panic!("a worker says hello first") };
        let (refused, adopted) = hello.running.iter().partition(|attempt| refused.contains(attempt));
        let protocol = crate::wire::PROTOCOL;
        self.send(Frame::Welcome(Welcome { protocol, settings, server_time_ms: 0, adopted, refused })).await;
        *hello
    }

    /// Says goodbye and closes.
    pub async fn bye(mut self, bye: Bye) {
        self.send(Frame::Bye(bye)).await;
        let _ = self.stream.close(None).await; // the worker may be gone
    }

    /// Cuts the connection without a word.
    pub fn cut(self) {
        drop(self);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, links: mpsc::Sender<Link>) {
    loop {
        let (stream, _) = listener.accept().await.expect("loopback accepts");
        let (shared, links) = (Arc::clone(&shared), links.clone());
        tokio::spawn(async move {
            // A caller that speaks no HTTP, or goes in the middle, is left.
            let _ = serve_one(stream, &shared, &links).await;
        });
    }
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// Reads one request at a time and nothing beyond it: what follows an upgrade is not HTTP.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let split = |line: &str| line.split_once(':').map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
    let headers: HashMap<_, _> = lines.filter_map(split).collect();
    let length = headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Request { method, path, headers, body })
}

async fn serve_one(mut stream: TcpStream, shared: &Shared, links: &mpsc::Sender<Link>) -> std::io::Result<()> {
    loop {
        let request = read_request(&mut stream).await?;
        if let Some(key) = request.headers.get("sec-websocket-key") {
            let Some(node) = shared.node_of(&request).filter(|node| request.path == paths::session(node)) else {
                respond(&mut stream, &no(Code::Unauthorized, "no such token")).await?;
                continue;
            };
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {}\r\nsec-websocket-protocol: {SUBPROTOCOL}\r\n\r\n",
                derive_accept_key(key.as_bytes())
            );
            stream.write_all(head.as_bytes()).await?;
            let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX));
            let stream = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
            let _ = links.send(Link { stream, node }).await; // the test may have ended
            return Ok(());
        }
        respond(&mut stream, &shared.answer(&request)).await?;
    }
}

type Answer = (u16, Vec<u8>);

async fn respond(stream: &mut TcpStream, (status, body): &Answer) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await
}

fn json(body: &impl serde::Serialize) -> Answer {
    (200, serde_json::to_vec(body).expect("wire types are plain data"))
}

fn no(code: Code, detail: &str) -> Answer {
    let body = serde_json::to_vec(&Problem::new(code, detail)).expect("a problem is plain data");
    (code.status(), body)
}

impl Shared {
    fn node_of(&self, request: &Request) -> Option<NodeId> {
        let token = request.headers.get("authorization")?.strip_prefix("Bearer ")?;
        self.state().tokens.get(token).cloned()
    }

    fn answer(&self, request: &Request) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", paths::REGISTER) => self.register(&request.body),
            ("POST", paths::LOGIN) => self.login(&request.body),
            _ if self.node_of(request).is_none() => no(Code::Unauthorized, "no such token"),
            ("PUT", path) => {
                if !path.ends_with(&digest::sha256_hex(&request.body)) {
                    return no(Code::DigestMismatch, "the body has another digest than its path");
                }
                self.state().content.insert(path.into(), request.body.clone());
                (201, Vec::new())
            }
            (_, path) => match self.state().content.get(path) {
                Some(bytes) => (200, bytes.clone()),
                None => no(Code::NotFound, "nothing lies there"),
            },
        }
    }

    fn register(&self, body: &[u8]) -> Answer {
        let Ok(RegisterRequest { public_key, origin, .. }) = serde_json::from_slice(body) else {
            return no(Code::InvalidJson, "that is no registration");
        };
        let Some(key) = bytes_of_hex::<32>(&public_key) else { return no(Code::InvalidInput, "that is no key") };
        let mut state = self.state();
        let challenge = Challenge {
            node_id: NodeId::of_key(&key),
            nonce: identity::random_hex().expect("the system gives random bytes"),
            origin: state.claimed_origin.clone().unwrap_or(origin),
            expires_at_ms: 0,
        };
        state.challenges.insert(challenge.nonce.clone(), (key, challenge.clone()));
        json(&challenge)
    }

    fn login(&self, body: &[u8]) -> Answer {
        let Ok(request) = serde_json::from_slice::<LoginRequest>(body) else {
            return no(Code::InvalidJson, "that is no login");
        };
        let mut state = self.state();
        let Some((key, challenge)) = state.challenges.remove(&request.nonce) else {
            return no(Code::Unauthorized, "that nonce is not out");
        };
        if identity::check_answer(&key, &challenge, &request).is_err() {
            return no(Code::Unauthorized, "that signature does not match");
        }
        let token = identity::random_hex().expect("the system gives random bytes");
        state.tokens.insert(token.clone(), request.node_id.clone());
        state.logins += 1;
        let token = SessionToken { token, expires_at_ms: 0, expires_in_ms: state.token_ms };
        json(&state.identity.prove(&challenge.origin, &request, token))
    }
}
