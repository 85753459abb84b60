//! A coordinator on a free port of loopback, a caller and scripted nodes that speak raw frames. Knows the API, so that the
//! tests are what happens and what must be true.

use coordinator::Options;
use coordinator::store::Clock;
use coordinator_client::identity::Identity;
use coordinator_client::wire::node::{Challenge, LoginResponse, RegisterRequest};
use coordinator_client::wire::*;
use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Nothing here takes so long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running coordinator.
pub(crate) struct World {
    pub(crate) origin: String,
    pub(crate) http: reqwest::Client,
    /// Moves the store's clock.
    pub(crate) now: Arc<AtomicI64>,
    options: Options,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    running: Option<tokio::task::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new(in_memory: bool) -> Self {
        Self::with(in_memory, |_| {}).await
    }

    pub(crate) async fn with(in_memory: bool, set: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let mut options = Options::default();
        options.http.address = "127.0.0.1:0".parse().unwrap();
        options.store.folder = folder.path().join("state");
        options.store.in_memory = in_memory;
        options.store.clock = Clock::Manual(now.clone());
        options.nodes.grace = Duration::from_millis(50);
        options.schedule.poll = Duration::from_millis(100);
        options.schedule.sweep = Duration::from_millis(20);
        set(&mut options);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut world = Self { origin: String::new(), http, now, options, stop: None, running: None, _folder: folder };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        // What runs on behind the one that was stopped, such as a reader's thread, may hold the store a moment longer.
        let build = async {
            loop {
                match coordinator::build(self.options.clone()).await {
                    Err(why) if why.to_string().contains("in use") => {
                        tokio::time::sleep(Duration::from_millis(10)).await
                    }
                    built => return built.unwrap(),
                }
            }
        };
        let coordinator = tokio::time::timeout(PATIENCE, build).await.expect("the folder is free after a while");
        self.options.http.address = coordinator.local_addr();
        self.origin = format!("http://{}", coordinator.local_addr());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        self.stop = Some(stop);
        self.running = Some(tokio::spawn(async move {
            coordinator.run_until(async move { drop(stopped.await) }).await.unwrap();
        }));
    }

    pub(crate) async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.running.take().unwrap()).await.expect("it stops").unwrap();
    }

    /// Stops it and starts it again at the same address on the same folder.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(crate) fn pass(&self, milliseconds: i64) {
        self.now.fetch_add(milliseconds, Ordering::SeqCst);
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        self.ask_with(method, path, body, &[]).await
    }

    pub(crate) async fn ask_with(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.origin));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let bytes = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// Submits an embedding of a text; returns the task's id.
    pub(crate) async fn submit(&self, model: &str, text: &str) -> String {
        self.submit_with(model, text, json!({})).await
    }

    pub(crate) async fn submit_with(&self, model: &str, text: &str, more: Value) -> String {
        let mut body = embed(model, text);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, body) = self.ask(Method::POST, "/api/tasks", Some(body)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a task's field is this.
    pub(crate) async fn until(&self, id: &str, pointer: &str, want: &str) -> Value {
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = self.get(&format!("/api/tasks/{id}")).await;
                if last.pointer(pointer) == Some(&json!(want)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let result = tokio::time::timeout(PATIENCE, wait).await;
        assert!(result.is_ok(), "{pointer} should become {want}: {last}");
        last
    }

    pub(crate) async fn login(&self, identity: &Identity) -> Result<String, Value> {
        let register = RegisterRequest {
            public_key: identity.public_key_hex(),
            origin: self.origin.clone(),
            name: "scripted".into(),
            region: "here".into(),
            profile: json!({"cpu": "none"}),
            enrolment_token: None,
        };
        let (status, body) =
            self.ask(Method::POST, node::paths::REGISTER, Some(serde_json::to_value(register).unwrap())).await;
        if status != StatusCode::OK {
            return Err(body);
        }
        let challenge: Challenge = serde_json::from_value(body).unwrap();
        let answer = identity.answer(&challenge, &self.origin).unwrap();
        let (status, body) =
            self.ask(Method::POST, node::paths::LOGIN, Some(serde_json::to_value(answer).unwrap())).await;
        if status != StatusCode::OK {
            return Err(body);
        }
        Ok(serde_json::from_value::<LoginResponse>(body).unwrap().token.token)
    }
}

/// A submit of an embedding.
pub(crate) fn embed(model: &str, text: &str) -> Value {
    json!({"kind": "embed", "model": model, "input": {"inputs": [text]}})
}

/// A scripted node.
pub(crate) struct Node {
    pub(crate) identity: Identity,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) welcome: Welcome,
}

/// What a node says of itself.
#[derive(Clone)]
pub(crate) struct Says {
    pub(crate) secret: u8,
    pub(crate) models: Vec<&'static str>,
    pub(crate) slots: u32,
    pub(crate) can_fetch: bool,
    pub(crate) running: Vec<Attempt>,
    /// What its models do.
    pub(crate) task: TaskKind,
}

impl Says {
    /// A node that embeds with these models.
    pub(crate) fn has(secret: u8, models: &[&'static str]) -> Self {
        let task = TaskKind::Embed;
        Self { secret, models: models.to_vec(), slots: 2, can_fetch: false, running: vec![], task }
    }

    /// A node that writes texts with the model `m@1`.
    pub(crate) fn writes(secret: u8) -> Self {
        Self { task: TaskKind::Generate, ..Self::has(secret, &["m@1"]) }
    }
}

impl Node {
    pub(crate) async fn connect(world: &World, says: Says) -> Self {
        let identity = Identity::from_secret(&[says.secret; 32]);
        let token = world.login(&identity).await.unwrap();
        let mut socket = open(world, &identity, &token, Some(SUBPROTOCOL)).await.unwrap();
        let held = |id: &&str| ModelHeld { id: (*id).into(), task: says.task, loaded: true, execution_class: None };
        let hello = Hello {
            protocols: vec![PROTOCOL],
            node: identity.node().clone(),
            session_epoch: 1,
            name: format!("node {}", says.secret),
            region: "here".into(),
            agent: "script".into(),
            capabilities: Capabilities {
                kinds: match says.task {
                    TaskKind::Generate => vec![TaskKind::Generate, TaskKind::Chat],
                    task => vec![task],
                },
                models: says.models.iter().map(held).collect(),
                can_fetch: says.can_fetch,
                memory_bytes_free: 1 << 30,
                slots: says.slots,
            },
            profile: Value::Null,
            running: says.running,
        };
        let hello = Frame::Hello(Box::new(hello)).encode().unwrap();
        socket.send(Message::Binary(hello.into())).await.unwrap();
        let welcome = match next(&mut socket).await {
            Some(Frame::Welcome(welcome)) => welcome,
            other => panic!("no welcome but {other:?}"),
        };
        Self { identity, socket, welcome }
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        self.socket.send(Message::Binary(frame.encode().unwrap().into())).await.unwrap();
    }

    pub(crate) async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Sends bytes below WebSocket, and ends the connection.
    pub(crate) async fn break_off(mut self, bytes: &[u8]) {
        let stream = self.socket.get_mut();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
    }

    /// The next frame that is no ping, or `None` when the link is closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        next(&mut self.socket).await
    }

    pub(crate) async fn offer(&mut self) -> Offer {
        match self.next().await {
            Some(Frame::Offer(offer)) => *offer,
            other => panic!("no offer but {other:?}"),
        }
    }

    pub(crate) async fn ack(&mut self) -> Ack {
        match self.next().await {
            Some(Frame::Ack(ack)) => ack,
            other => panic!("no ack but {other:?}"),
        }
    }

    pub(crate) async fn bye(&mut self) -> ByeReason {
        match self.next().await {
            Some(Frame::Bye(bye)) => bye.reason,
            other => panic!("no bye but {other:?}"),
        }
    }

    /// A signed result of an offer: one vector of one number per text.
    pub(crate) fn result_of(&self, offer: &Offer, value: f32) -> TaskResult {
        let output = TaskOutput::Embed { embeddings: Matrix { columns: 1, values: vec![value] } };
        self.sign(offer, output, Usage { input_tokens: 3, ..Usage::default() })
    }

    /// A signed result of an offer.
    pub(crate) fn sign(&self, offer: &Offer, output: TaskOutput, usage: Usage) -> TaskResult {
        let Payload::Inline(input) = &offer.input else { panic!("a small input goes inline") };
        let mut result = TaskResult {
            attempt: offer.attempt,
            model: offer.model.clone(),
            usage,
            timings: Timings::default(),
            model_digest: String::new(),
            execution_class: "script".into(),
            batch_size: 1,
            input_sha256: digest::sha256_hex(&digest::encode(input)),
            output_sha256: digest::sha256_hex(&digest::encode(&output)),
            output: Payload::Inline(output),
            signature: vec![],
        };
        result.signature = self.identity.sign(&result.signed_bytes(self.identity.node())).to_vec();
        result
    }

    /// Takes the next offer, answers it, and returns the acknowledgement.
    pub(crate) async fn work(&mut self) -> Ack {
        let offer = self.offer().await;
        let result = self.result_of(&offer, 0.5);
        self.send(Frame::Result(Box::new(result))).await;
        self.ack().await
    }

    pub(crate) async fn fail(&mut self, attempt: Attempt, class: FailureClass) {
        let code = coordinator_client::api::Code::InvalidInput;
        let failed = Failed { attempt, class, retryable: true, code, detail: "as scripted".into() };
        self.send(Frame::Failed(failed)).await;
    }
}

/// Opens a link without saying hello.
pub(crate) async fn open(
    world: &World,
    identity: &Identity,
    token: &str,
    protocol: Option<&str>,
) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, u16> {
    let url = format!("{}{}", world.origin.replace("http", "ws"), node::paths::session(identity.node()));
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    if let Some(protocol) = protocol {
        headers.insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

async fn next(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Option<Frame> {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a frame should come");
        match message {
            None | Some(Err(_) | Ok(Message::Close(_))) => return None,
            Some(Ok(Message::Binary(bytes))) => match Frame::decode(&bytes).unwrap().unwrap() {
                Frame::Ping(_) => {}
                frame => return Some(frame),
            },
            Some(Ok(_)) => {}
        }
    }
}
