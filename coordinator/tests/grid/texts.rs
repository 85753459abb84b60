//! Texts through the grid: what callers see while scripted nodes write, are lost, come back and talk rubbish.

use crate::help::{Node, Says, World};
use coordinator_client::wire::text::{Finish, TokenLogprob, WriteOptions};
use coordinator_client::wire::*;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

/// Tokens of a whole text.
const LENGTH: usize = 9;

/// Nothing here takes so long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// The token that comes after so many: another seed gives another text.
fn token(seed: u64, at: usize) -> u32 {
    let mixed = (seed ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 54).unwrap()
}

fn words(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!("é{token} ")).collect()
}

/// What is shown of so many tokens: up to two of them are held back, as where a stop string may begin.
fn shown(tokens: &[u32]) -> String {
    words(&tokens[..tokens.len() - tokens.len() % 3])
}

/// A node's attempt at a text.
struct Writer {
    offer: Offer,
    seed: u64,
    /// Tokens that another node wrote.
    start: usize,
    tokens: Vec<u32>,
    sequence: u64,
    wants_logprobs: bool,
}

impl Writer {
    fn new(offer: Offer) -> Self {
        let options = options(&offer).clone();
        let seed = options.seed.expect("the coordinator fixes the seed");
        let tokens = options.generated;
        assert!(
            tokens.iter().copied().eq((0..tokens.len()).map(|at| token(seed, at))),
            "it goes on behind the same text"
        );
        Self { offer, seed, start: tokens.len(), tokens, sequence: 0, wants_logprobs: options.logprobs.is_some() }
    }

    async fn take(node: &mut Node) -> Self {
        Self::new(node.offer().await)
    }

    fn logprobs(&self, from: usize, to: usize) -> Vec<TokenLogprob> {
        let one = |at: usize| {
            let token = token(self.seed, at);
            TokenLogprob { token, text: words(&[token]), logprob: -1.0, top: vec![] }
        };
        if self.wants_logprobs { (from..to).map(one).collect() } else { vec![] }
    }

    fn progress(&mut self, piece: Piece) -> Frame {
        let sequence = self.sequence;
        self.sequence += 1;
        Frame::Progress(Progress { attempt: self.offer.attempt, sequence, fraction: None, piece: Some(piece) })
    }

    /// The frame that tells what lies between so many tokens and so many.
    fn tells(&mut self, from: usize, to: usize) -> Frame {
        let text = shown(&self.tokens[..to])[shown(&self.tokens[..from]).len()..].to_owned();
        let logprobs = self.logprobs(from, to);
        self.progress(Piece { tokens: self.tokens[from..to].to_vec(), text, tool_calls: vec![], logprobs })
    }

    /// Writes so many tokens and tells them in one frame.
    async fn write(&mut self, node: &mut Node, count: usize) {
        let from = self.tokens.len();
        self.tokens.extend((from..from + count).map(|at| token(self.seed, at)));
        let frame = self.tells(from, from + count);
        node.send(frame).await;
    }

    /// Whatever is left of the text is written and told with the result only.
    fn result(&mut self, node: &Node) -> TaskResult {
        let from = self.tokens.len();
        self.tokens.extend((from..LENGTH).map(|at| token(self.seed, at)));
        let logprobs = self.logprobs(self.start, LENGTH);
        let written = Written {
            text: words(&self.tokens),
            tokens: self.tokens.clone(),
            tool_calls: vec![],
            logprobs,
            finish: Finish::Length,
        };
        let usage = Usage { input_tokens: 5, cached_tokens: 2, output_tokens: self.tokens.len() as u64 };
        let Payload::Inline(input) = &self.offer.input else { panic!("a small input goes inline") };
        let output = match input.kind() {
            TaskKind::Chat => TaskOutput::Chat(written),
            _ => TaskOutput::Generate(written),
        };
        node.sign(&self.offer, output, usage)
    }

    async fn finish(mut self, node: &mut Node) {
        let result = self.result(node);
        node.send(Frame::Result(Box::new(result))).await;
        assert_eq!(node.ack().await.outcome, AckOutcome::Settled);
    }
}

fn options(offer: &Offer) -> &WriteOptions {
    match &offer.input {
        Payload::Inline(TaskInput::Generate(input)) => &input.options,
        Payload::Inline(TaskInput::Chat(input)) => &input.options,
        other => panic!("no text but {other:?}"),
    }
}

/// An answer in chunks, as a caller reads it.
struct Stream {
    response: reqwest::Response,
    unread: String,
}

impl Stream {
    async fn open(world: &World, path: &str, body: Value) -> Self {
        let response = world.http.post(format!("{}{path}", world.origin)).json(&body).send().await.unwrap();
        let (status, kind) = (response.status(), response.headers().get("content-type").cloned());
        assert_eq!((status, kind.unwrap()), (StatusCode::OK, "text/event-stream".parse().unwrap()));
        Self { response, unread: String::new() }
    }

    /// The next event's lines, or `None` at the end.
    async fn event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.unread.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.unread = rest;
                if !event.starts_with(':') {
                    return Some(event);
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("an event should come");
            self.unread += std::str::from_utf8(&chunk.unwrap()?).unwrap();
        }
    }

    /// The next chunk; `None` for the goodbye.
    async fn chunk(&mut self) -> Option<Value> {
        let event = self.event().await.expect("a stream ends with [DONE]");
        match event.strip_prefix("data: ").unwrap() {
            "[DONE]" => None,
            data => Some(serde_json::from_str(data).unwrap()),
        }
    }

    /// All chunks that are left.
    async fn rest(&mut self) -> Vec<Value> {
        let mut chunks = vec![];
        while let Some(chunk) = self.chunk().await {
            chunks.push(chunk);
        }
        assert_eq!(self.event().await, None, "nothing comes behind [DONE]");
        chunks
    }

    /// Reads until so much is shown.
    async fn shows(&mut self, seen: &mut String, want: &str) {
        while seen.as_str() != want {
            let chunk = self.chunk().await.expect("it should go on");
            seen.push_str(content(&chunk));
            assert!(want.starts_with(seen.as_str()), "{seen:?} is not the beginning of {want:?}");
        }
    }
}

/// What a chunk shows.
fn content(chunk: &Value) -> &str {
    let choice = &chunk["choices"][0];
    choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default()
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": LENGTH});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn streamed() -> Value {
    chat(json!({"stream": true, "stream_options": {"include_usage": true}}))
}

/// A stream and the writer of its text: the answer begins with the first piece.
async fn begin(world: &World, node: &mut Node, first: usize) -> (Stream, Writer) {
    let open = Stream::open(world, "/v1/chat/completions", streamed());
    let write = async {
        let mut writer = Writer::take(node).await;
        writer.write(node, first).await;
        writer
    };
    tokio::join!(open, write)
}

pub(crate) async fn a_text_is_streamed_as_it_is_written(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let (mut stream, mut writer) = begin(&world, &mut node, 3).await;
    let role = stream.chunk().await.unwrap();
    assert_eq!(role["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let id = format!("chatcmpl-{}", writer.offer.attempt.task);
    assert_eq!((&role["id"], &role["model"], &role["usage"]), (&id.into(), &"m@1".into(), &Value::Null));
    let mut seen = String::new();
    for tokens in [3, 6, 6] {
        if writer.tokens.len() < tokens {
            writer.write(&mut node, 3).await;
        }
        stream.shows(&mut seen, &words(&writer.tokens[..tokens])).await;
    }
    let (seed, whole) = (writer.seed, (0..LENGTH).map(|at| token(writer.seed, at)).collect::<Vec<_>>());
    writer.finish(&mut node).await;
    let rest = stream.rest().await;
    assert_eq!(seen + content(&rest[0]), words(&whole), "seed {seed}");
    assert_eq!(rest[1]["choices"][0]["finish_reason"], "length");
    let usage = json!({"prompt_tokens": 5, "completion_tokens": LENGTH, "total_tokens": 5 + LENGTH,
        "prompt_tokens_details": {"cached_tokens": 2}});
    assert_eq!((&rest[2]["choices"], &rest[2]["usage"], rest.len()), (&json!([]), &usage, 3));
}

pub(crate) async fn a_text_is_answered_whole(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let check = async |node: &mut Node, path: &str, body: Value, pointer: &str, object: &str| {
        let write = async {
            let mut writer = Writer::take(node).await;
            writer.write(node, 4).await;
            let seed = writer.seed;
            writer.finish(node).await;
            seed
        };
        let ((status, answer), seed) = tokio::join!(world.ask(Method::POST, path, Some(body)), write);
        assert_eq!(status, StatusCode::OK, "{answer}");
        let whole: Vec<u32> = (0..LENGTH).map(|at| token(seed, at)).collect();
        assert_eq!((answer.pointer(pointer), &answer["object"]), (Some(&words(&whole).into()), &object.into()));
        assert_eq!(answer["usage"]["total_tokens"], 5 + LENGTH, "{answer}");
        seed
    };
    let content = "/choices/0/message/content";
    check(&mut node, "/v1/chat/completions", chat(json!({})), content, "chat.completion").await;
    let completion = json!({"model": "m@1", "prompt": "a", "seed": 7});
    let seed = check(&mut node, "/v1/completions", completion, "/choices/0/text", "text_completion").await;
    assert_eq!(seed, 7, "the caller's seed is kept");
}

pub(crate) async fn two_callers_are_never_mixed(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let (mut one, mut first) = begin(&world, &mut node, 3).await;
    let (mut two, mut second) = begin(&world, &mut node, 3).await;
    assert_ne!(first.seed, second.seed, "each text has a seed of its own");
    let (mut seen_one, mut seen_two) = (String::new(), String::new());
    for _ in 0..2 {
        second.write(&mut node, 3).await;
        first.write(&mut node, 3).await;
        one.shows(&mut seen_one, &words(&first.tokens)).await;
        two.shows(&mut seen_two, &words(&second.tokens)).await;
    }
    first.finish(&mut node).await;
    second.finish(&mut node).await;
    for stream in [&mut one, &mut two] {
        assert!(stream.rest().await.iter().all(|chunk| content(chunk).is_empty()), "all was shown");
    }
}

pub(crate) async fn a_text_goes_on_elsewhere_wherever_its_node_is_lost(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    for lost_at in 0..=LENGTH {
        let with_logprobs = json!({"stream": lost_at % 2 == 0, "logprobs": true});
        let request = world.http.post(format!("{}/v1/chat/completions", world.origin)).json(&chat(with_logprobs));
        let asked = tokio::spawn(request.send());
        let mut writer = Writer::take(&mut node).await;
        let (seed, task) = (writer.seed, writer.offer.attempt.task);
        for _ in 0..lost_at {
            writer.write(&mut node, 1).await;
        }
        // Answered after everything that was sent before it.
        node.send(Frame::Ping(Ping { nonce: 1 })).await;
        assert!(matches!(node.next().await, Some(Frame::Pong(_))));
        let mut other = Node::connect(&world, Says::writes(u8::try_from(lost_at).unwrap() + 2)).await;
        drop(node);
        let mut writer = Writer::take(&mut other).await;
        assert_eq!((writer.offer.attempt.task, writer.seed, writer.start), (task, seed, lost_at));
        while writer.tokens.len() + 2 <= LENGTH {
            writer.write(&mut other, 2).await;
        }
        writer.finish(&mut other).await;
        let response = asked.await.unwrap().unwrap();
        let whole: Vec<u32> = (0..LENGTH).map(|at| token(seed, at)).collect();
        let told = |logprobs: &Value| logprobs["content"].as_array().map_or(0, Vec::len);
        let (text, logprobs) = if lost_at % 2 == 0 {
            let chunks = Stream { response, unread: String::new() }.rest().await;
            let logprobs = chunks.iter().map(|chunk| told(&chunk["choices"][0]["logprobs"])).sum();
            (chunks.iter().map(content).collect::<String>(), logprobs)
        } else {
            let answer: Value = response.json().await.unwrap();
            let choice = &answer["choices"][0];
            (choice["message"]["content"].as_str().unwrap().to_owned(), told(&choice["logprobs"]))
        };
        assert_eq!((text, logprobs), (words(&whole), LENGTH), "lost after {lost_at} tokens");
        let result = world.get(&format!("/api/tasks/{task}/result")).await;
        assert_eq!(result["output"]["tokens"], json!(whole), "what is kept is whole");
        node = other;
    }
}

pub(crate) async fn a_text_goes_on_elsewhere_after_a_failure(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let (mut stream, writer) = begin(&world, &mut node, 4).await;
    let mut other = Node::connect(&world, Says::writes(2)).await;
    node.fail(writer.offer.attempt, FailureClass::Hardware).await;
    node.ack().await;
    world.pass(1_000);
    let again = Writer::take(&mut other).await;
    assert_eq!((again.start, again.seed), (4, writer.seed));
    let whole: Vec<u32> = (0..LENGTH).map(|at| token(writer.seed, at)).collect();
    again.finish(&mut other).await;
    assert_eq!(stream.rest().await.iter().map(content).collect::<String>(), words(&whole));
    let metrics = world.http.get(format!("{}/metrics", world.origin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("neurogrid_texts_continued_total 1"), "{metrics}");
    assert!(metrics.contains("neurogrid_texts_open 0"), "nothing is kept of a text that has ended: {metrics}");
}

pub(crate) async fn a_node_that_comes_back_in_time_goes_on_where_it_was(in_memory: bool) {
    let world = World::with(in_memory, |options| options.nodes.grace = PATIENCE).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let (mut stream, mut writer) = begin(&world, &mut node, 4).await;
    let mut seen = String::new();
    stream.shows(&mut seen, &shown(&writer.tokens)).await;
    drop(node);
    let says = Says { running: vec![writer.offer.attempt], ..Says::writes(1) };
    let mut node = Node::connect(&world, says).await;
    assert_eq!(node.welcome.adopted, [writer.offer.attempt]);
    // It cannot know what arrived, and tells everything again.
    writer.sequence = 0;
    for (from, to) in [(0, 3), (3, 4)] {
        let frame = writer.tells(from, to);
        node.send(frame).await;
    }
    writer.write(&mut node, 2).await;
    stream.shows(&mut seen, &shown(&writer.tokens)).await;
    writer.finish(&mut node).await;
    let rest = stream.rest().await;
    assert_eq!(
        seen.matches('é').count() + rest.iter().map(|chunk| content(chunk).matches('é').count()).sum::<usize>(),
        LENGTH
    );
}

pub(crate) async fn frames_of_an_attempt_that_is_over_are_not_heard(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let mut stranger = Node::connect(&world, Says { slots: 0, ..Says::writes(2) }).await;
    let (mut stream, mut writer) = begin(&world, &mut node, 3).await;
    let rubbish = |writer: &mut Writer| {
        let sequence = writer.sequence;
        let frame = writer.progress(Piece { tokens: vec![1], text: "rubbish".into(), ..Piece::default() });
        writer.sequence = sequence;
        frame
    };
    stranger.send(rubbish(&mut writer)).await;
    world.pass(30_000);
    assert!(matches!(node.next().await, Some(Frame::Cancel(_))), "its lease ran out");
    // The same node gets the text again, under a new number, and still has something to say under the old one.
    let mut again = Writer::take(&mut node).await;
    assert_eq!((again.offer.attempt.epoch, again.start), (2, 3));
    node.send(rubbish(&mut writer)).await;
    again.write(&mut node, 3).await;
    node.send(rubbish(&mut writer)).await;
    let whole: Vec<u32> = (0..LENGTH).map(|at| token(writer.seed, at)).collect();
    again.finish(&mut node).await;
    assert_eq!(stream.rest().await.iter().map(content).collect::<String>(), words(&whole));
}

pub(crate) async fn a_caller_who_leaves_stops_the_text(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let (mut stream, writer) = begin(&world, &mut node, 3).await;
    stream.shows(&mut String::new(), &shown(&writer.tokens)).await;
    drop(stream);
    let attempt = writer.offer.attempt;
    assert!(matches!(node.next().await, Some(Frame::Cancel(cancel)) if cancel.attempt == attempt));
    world.until(&attempt.task.to_string(), "/state", "cancelled").await;
}

pub(crate) async fn a_slow_reader_gets_all_of_it_and_holds_up_nobody(in_memory: bool) {
    const PIECES: usize = 100;
    const TOKENS: usize = 100;
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let body = json!({"model": "m", "prompt": "a", "max_tokens": PIECES * TOKENS, "stream": true});
    let piece = Piece { tokens: vec![7; TOKENS], text: "x".repeat(TOKENS * 1_000), ..Piece::default() };
    let open = Stream::open(&world, "/v1/completions", body);
    let write = async {
        let mut writer = Writer::take(&mut node).await;
        let frame = writer.progress(piece.clone());
        node.send(frame).await;
        writer
    };
    let (mut stream, mut writer) = tokio::join!(open, write);
    for _ in 1..PIECES {
        let frame = writer.progress(piece.clone());
        node.send(frame).await;
    }
    node.send(Frame::Ping(Ping { nonce: 1 })).await;
    assert!(matches!(node.next().await, Some(Frame::Pong(_))), "the link does not wait for the reader");
    let text = piece.text.repeat(PIECES);
    let tokens = vec![7; PIECES * TOKENS];
    let usage = Usage { input_tokens: 5, cached_tokens: 0, output_tokens: tokens.len() as u64 };
    let finish = Finish::Length;
    let written = Written { text: text.clone(), tokens, tool_calls: vec![], logprobs: vec![], finish };
    let packed = Payload::pack(TaskOutput::Generate(written.clone()));
    let path = node::paths::payload(&packed.sha256);
    let mut result = node.sign(&writer.offer, TaskOutput::Generate(written), usage);
    if let Some(blob) = packed.blob {
        // Larger than a message: it goes by reference.
        let token = world.login(&node.identity).await.unwrap();
        let put = world.http.put(format!("{}{path}", world.origin)).bearer_auth(token).body(blob);
        assert!(put.send().await.unwrap().status().is_success());
        result.output = packed.payload;
    }
    node.send(Frame::Result(Box::new(result))).await;
    assert_eq!(node.ack().await.outcome, AckOutcome::Settled);
    let chunks = stream.rest().await;
    let read: usize = chunks.iter().map(|chunk| content(chunk).len()).sum();
    assert_eq!(read, text.len());
    assert!(chunks.len() < PIECES, "what a slow reader has not taken is merged: {} chunks", chunks.len());
}

pub(crate) async fn what_a_node_cannot_have_written_is_refused(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::writes(1)).await;
    let (mut stream, mut writer) = begin(&world, &mut node, 3).await;
    let mut second = Node::connect(&world, Says::writes(2)).await;
    let frame = writer.progress(Piece { tokens: vec![1], text: "x".repeat(9_000), ..Piece::default() });
    node.send(frame).await;
    assert!(matches!(node.next().await, Some(Frame::Cancel(_))), "it is stopped");
    world.pass(1_000);
    let mut again = Writer::take(&mut second).await;
    assert_eq!(again.start, 3, "nothing of it is passed on");
    let task = world.get(&format!("/api/tasks/{}", again.offer.attempt.task)).await;
    assert_eq!(task["failure"]["fault"], "worker", "{task}");
    again.write(&mut second, 2).await;
    // Its result says something else than it told.
    let mut lie = again.result(&second);
    let Payload::Inline(TaskOutput::Chat(mut written)) = lie.output else { panic!() };
    written.text = "something else".into();
    lie = second.sign(&again.offer, TaskOutput::Chat(written), lie.usage);
    second.send(Frame::Result(Box::new(lie))).await;
    second.ack().await;
    let mut third = Node::connect(&world, Says::writes(3)).await;
    world.pass(1_000);
    let last = Writer::take(&mut third).await;
    assert_eq!(last.start, 5);
    let whole: Vec<u32> = (0..LENGTH).map(|at| token(writer.seed, at)).collect();
    last.finish(&mut third).await;
    assert_eq!(stream.rest().await.iter().map(content).collect::<String>(), words(&whole));
}

pub(crate) async fn what_goes_wrong_is_told_before_or_within_the_stream(in_memory: bool) {
    let world = World::new(in_memory).await;
    let ask = async |path: &str, body: Value| {
        let (status, body) = world.ask(Method::POST, path, Some(body)).await;
        (status.as_u16(), body["error"]["code"].as_str().or(body["code"].as_str()).unwrap_or_default().to_owned())
    };
    let chats = "/v1/chat/completions";
    assert_eq!(ask(chats, streamed()).await, (404, "model_not_found".into()));
    let mut node = Node::connect(&world, Says::writes(1)).await;
    assert_eq!(ask(chats, chat(json!({"n": 2}))).await, (400, "invalid_input".into()));
    assert_eq!(ask(chats, chat(json!({"stop": 7}))).await, (400, "invalid_json".into()));
    assert_eq!(ask("/v1/embeddings", json!({"model": "m", "input": "a"})).await, (400, "wrong_task".into()));
    let submit =
        |options: Value| json!({"kind": "generate", "model": "m", "input": {"prompt": "a", "options": options}});
    assert_eq!(ask("/api/tasks", submit(json!({"max_tokens": 0}))).await, (400, "invalid_input".into()));
    assert_eq!(ask("/api/tasks", submit(json!({"generated": [1]}))).await, (400, "invalid_input".into()));
    let refuse = async {
        let offer = node.offer().await;
        node.fail(offer.attempt, FailureClass::Input).await;
        node.ack().await;
    };
    let (refused, ()) = tokio::join!(ask(chats, streamed()), refuse);
    assert_eq!(refused, (400, "invalid_input".into()), "before the first chunk the status says it");
    let (mut stream, writer) = begin(&world, &mut node, 3).await;
    node.fail(writer.offer.attempt, FailureClass::Input).await;
    stream.shows(&mut String::new(), &shown(&writer.tokens)).await;
    let last = stream.chunk().await.unwrap();
    assert_eq!(stream.event().await, None, "it is the last event");
    assert_eq!((&last["error"]["code"], &last["error"]["message"]), (&"invalid_input".into(), &"as scripted".into()));
}

pub(crate) async fn tasks_that_write_tell_their_pieces_as_events(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says { slots: 0, ..Says::writes(1) }).await;
    let body = json!({"kind": "generate", "model": "m", "input": {"prompt": "a", "options": {"max_tokens": LENGTH}}});
    let (status, accepted) = world.ask(Method::POST, "/api/tasks", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
    let id = accepted["id"].as_str().unwrap();
    let events = format!("{}/api/tasks/{id}/events", world.origin);
    let open = async || Stream { response: world.http.get(&events).send().await.unwrap(), unread: String::new() };
    let mut early = open().await;
    node.send(Frame::Heartbeat(Heartbeat { slots: 1, ..Heartbeat::default() })).await;
    let mut writer = Writer::take(&mut node).await;
    writer.write(&mut node, 4).await;
    let read = async |stream: &mut Stream, until: &str| {
        let (mut tokens, mut text, mut states) = (vec![], String::new(), vec![]);
        while let Some(event) = stream.event().await {
            let (name, data) = event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: ")).unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            if name == "state" {
                states.push(data["state"].as_str().unwrap().to_owned());
            } else {
                let piece: Piece = serde_json::from_value(data).unwrap();
                tokens.extend(piece.tokens);
                text += &piece.text;
            }
            if name == until {
                break;
            }
        }
        (tokens, text, states)
    };
    let (mut tokens, mut text, _) = read(&mut early, "piece").await;
    let mut late = open().await;
    writer.write(&mut node, 1).await;
    let whole: Vec<u32> = (0..LENGTH).map(|at| token(writer.seed, at)).collect();
    writer.finish(&mut node).await;
    let rest = read(&mut early, "the end").await;
    tokens.extend(rest.0);
    text += &rest.1;
    assert_eq!((&tokens, &text, rest.2.last().map(String::as_str)), (&whole, &words(&whole), Some("succeeded")));
    let (tokens, text, states) = read(&mut late, "the end").await;
    assert_eq!((tokens, text, states.last().map(String::as_str)), (whole.clone(), words(&whole), Some("succeeded")));
    let (tokens, text, states) = read(&mut open().await, "the end").await;
    assert_eq!((tokens, text, states), (whole.clone(), words(&whole), vec!["succeeded".to_owned()]));
    let result = world.get(&format!("/api/tasks/{id}/result")).await;
    assert_eq!((&result["output"]["text"], &result["output"]["finish"]), (&words(&whole).into(), &"length".into()));
}

/// Only what lies on disk outlives a coordinator.
pub(crate) async fn a_text_begins_again_where_the_coordinator_forgot_how_far_it_was(in_memory: bool) {
    if in_memory {
        return;
    }
    let mut world = World::new(in_memory).await;
    let mut first = Node::connect(&world, Says::writes(1)).await;
    let body = json!({"kind": "generate", "model": "m", "input": {"prompt": "a", "options": {"max_tokens": LENGTH}}});
    let (_, accepted) = world.ask(Method::POST, "/api/tasks", Some(body)).await;
    let id = accepted["id"].as_str().unwrap().to_owned();
    let mut writer = Writer::take(&mut first).await;
    writer.write(&mut first, 3).await;
    first.send(Frame::Ping(Ping { nonce: 1 })).await;
    assert!(matches!(first.next().await, Some(Frame::Pong(_))));
    let mut second = Node::connect(&world, Says::writes(2)).await;
    drop(first);
    let mut again = Writer::take(&mut second).await;
    assert_eq!(again.start, 3);
    world.restart().await;
    let says = Says { running: vec![again.offer.attempt], ..Says::writes(2) };
    let mut second = Node::connect(&world, says).await;
    assert_eq!(second.welcome.adopted, [again.offer.attempt]);
    let result = again.result(&second);
    second.send(Frame::Result(Box::new(result))).await;
    second.ack().await;
    world.pass(60_000);
    let last = Writer::take(&mut second).await;
    assert_eq!((last.start, last.seed), (0, writer.seed));
    last.finish(&mut second).await;
    let task = world.until(&id, "/state", "succeeded").await;
    assert_eq!(
        (&task["failures"], &task["failure"]["fault"]),
        (&1.into(), &"coordinator".into()),
        "nobody else is blamed: {task}"
    );
}
