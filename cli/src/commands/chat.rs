//! `neurogrid run chat` and `run generate`: texts on the terminal as they are written, in this process, on a worker, or through a coordinator.

use crate::args::{Access, Global, Target, Writing};

use crate::{output, sse};
use anyhow::Context;
use coordinator_client::api::Problem;
use coordinator_client::wire::task::Text;
use coordinator_client::wire::text::{ChatInput, Finish, GenerateInput, JsonText, WriteOptions};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use worker::text::{Input, NewText, Next};

/// What was asked for beside a conversation.
pub(crate) struct Chat {
    pub(crate) model: String,
    pub(crate) message: String,
    pub(crate) system: Option<String>,
    pub(crate) writing: Writing,
    pub(crate) target: Target,
}

/// A text, with how it ended.
#[derive(Debug, Default, Serialize)]
struct Answer {
    text: String,
    finish: String,
    input_tokens: u64,
    output_tokens: u64,
}

/// Where texts are written.
enum Writer {
    Local(worker::Handle),
    Remote { client: reqwest::Client, url: String, key: Option<String> },
}

/// Answers one message, or one line of the terminal after the other.
pub(crate) async fn chat(global: &Global, chat: Chat) -> anyhow::Result<ExitCode> {
    let Chat { model, mut message, system, writing, target } = chat;
    let is_interactive = message.is_empty() && std::io::stdin().is_terminal();
    if message.is_empty() && !is_interactive {
        std::io::stdin().read_to_string(&mut message).context("standard input is not UTF-8 text")?;
    }
    anyhow::ensure!(!(is_interactive && global.json), "--json needs a message: give one, or pipe it in");
    let writer = Writer::new(&target).await?;
    let mut talk = Conversation::new(system);
    if is_interactive {
        return converse(&writer, &model, &writing, talk).await;
    }
    anyhow::ensure!(!message.trim().is_empty(), "nothing to answer: give a message, or pipe one in");
    talk.say("user", message);
    let answer = writer.write(&model, &talk.input(&writing)?, &writing, |text| show(text, global.json)).await?;
    finish(global, &answer)
}

/// Goes on with a text.
pub(crate) async fn generate(
    global: &Global,
    model: String,
    prompt: Option<String>,
    writing: Writing,
    target: Target,
) -> anyhow::Result<ExitCode> {
    let prompt = match prompt {
        Some(prompt) => prompt,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input is not UTF-8 text")?;
            text
        }
    };
    let writer = Writer::new(&target).await?;
    let input = Input::Generate(GenerateInput { prompt: Text::Words(prompt), options: options(&writing) });
    let answer = writer.write(&model, &input, &writing, |text| show(text, global.json)).await?;
    finish(global, &answer)
}

fn show(text: &str, json: bool) {
    // A closed pipe (`| head`) ends the program quietly.
    let mut out = std::io::stdout();
    if !json && out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn finish(global: &Global, answer: &Answer) -> anyhow::Result<ExitCode> {
    if global.json {
        output::print(true, answer, |_| String::new())?;
    } else {
        output::line("");
        if answer.finish == Finish::Length.name() {
            tracing::warn!("the text is cut at {} tokens; --max-tokens allows more", answer.output_tokens);
        }
    }
    Ok(ExitCode::SUCCESS)
}

const HELP: &str = "\
Type a message and Enter. A message of several lines stands between two lines of \"\"\".
  /reset          begin a new conversation
  /system TEXT    begin a new one, and tell the model this first
  /exit           end (so does Ctrl-D)
Ctrl-C ends an answer that is being written.";

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Message(String),
    Reset(Option<String>),
    Help,
    Unknown(String),
    Exit,
    Empty,
}

impl Line {
    fn of(line: &str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => Line::Empty,
            "/help" | "/?" => Line::Help,
            "/exit" | "/quit" | "/bye" => Line::Exit,
            "/reset" | "/clear" => Line::Reset(None),
            "/system" => Line::Reset(Some(rest.trim().to_owned())),
            word if word.starts_with('/') => Line::Unknown(word.to_owned()),
            _ => Line::Message(line.to_owned()),
        }
    }
}

/// Reads a message; one of several lines stands between two lines of quotes. Nothing at the end of input.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Option<Line>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    if line.trim() != "\"\"\"" {
        return Ok(Some(Line::of(&line)));
    }
    let mut message = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 || line.trim() == "\"\"\"" {
            return Ok(Some(Line::Message(message)));
        }
        message.push_str(&line);
    }
}

async fn converse(writer: &Writer, model: &str, writing: &Writing, mut talk: Conversation) -> anyhow::Result<ExitCode> {
    eprintln!("Talking with {model}; /help says what else can be typed.");
    loop {
        eprint!("> ");
        // On a thread of its own: reading a terminal blocks, and nothing ends it but the end of the program.
        let line = tokio::select! {
            line = tokio::task::spawn_blocking(|| read_line(&mut std::io::stdin().lock())) => line??,
            _ = tokio::signal::ctrl_c() => {
                eprintln!();
                std::process::exit(130);
            }
        };
        match line {
            None | Some(Line::Exit) => return Ok(ExitCode::SUCCESS),
            Some(Line::Empty) => {}
            Some(Line::Help) => eprintln!("{HELP}"),
            Some(Line::Unknown(word)) => eprintln!("{word} is not known; /help says what is"),
            Some(Line::Reset(system)) => talk = Conversation::new(system.or_else(|| talk.system())),
            Some(Line::Message(message)) => {
                talk.say("user", message);
                let input = talk.input(writing)?;
                let mut so_far = String::new();
                let writing = writer.write(model, &input, writing, |text| {
                    so_far.push_str(text);
                    show(text, false);
                });
                let ended = tokio::select! {
                    ended = writing => ended.map(Some),
                    _ = tokio::signal::ctrl_c() => Ok(None),
                };
                output::line("");
                match ended {
                    Ok(Some(answer)) => {
                        tracing::debug!(
                            read = answer.input_tokens,
                            written = answer.output_tokens,
                            "{}",
                            answer.finish
                        );
                        talk.say("assistant", answer.text);
                    }
                    // What was said so far was said.
                    Ok(None) => talk.say("assistant", so_far),
                    Err(error) => {
                        eprintln!("error: {error:#}");
                        talk.messages.pop();
                    }
                }
            }
        }
    }
}

/// What was said so far.
struct Conversation {
    messages: Vec<Value>,
}

impl Conversation {
    fn new(system: Option<String>) -> Self {
        let mut talk = Self { messages: vec![] };
        if let Some(system) = system.filter(|system| !system.is_empty()) {
            talk.say("system", system);
        }
        talk
    }

    fn say(&mut self, role: &str, content: String) {
        self.messages.push(json!({"role": role, "content": content}));
    }

    fn system(&self) -> Option<String> {
        let first = self.messages.first().filter(|message| message["role"] == "system")?;
        first["content"].as_str().map(str::to_owned)
    }

    fn input(&self, writing: &Writing) -> anyhow::Result<Input> {
        let messages = JsonText::new(serde_json::to_string(&self.messages)?)?;
        Ok(Input::Chat(ChatInput { messages, tools: None, tool_choice: None, options: options(writing) }))
    }
}

fn options(writing: &Writing) -> WriteOptions {
    WriteOptions {
        max_tokens: writing.max_tokens,
        temperature: writing.temperature,
        top_p: writing.top_p,
        top_k: writing.top_k,
        seed: writing.seed,
        stop: writing.stop.clone(),
        ..WriteOptions::default()
    }
}

impl Writer {
    async fn new(target: &Target) -> anyhow::Result<Self> {
        let url = target.coordinator.as_ref().or(target.worker.as_ref());
        let Some(url) = url else {
            let access = Access { api_key: None, insecure: false };
            // The worker's API is bound to a free port of loopback and never served.
            let mut options = super::serving::options(([127, 0, 0, 1], 0).into(), &access, &target.serving);
            options.devices.devices = super::serving::find_devices(&target.serving).await?;
            return Ok(Writer::Local(worker::build(options)?.handle()));
        };
        let url = format!("{}/v1/", url.trim_end_matches('/'));
        Ok(Writer::Remote { client: crate::http::client()?, url, key: target.api_key.clone() })
    }

    /// Writes a text and shows it as it comes.
    async fn write(
        &self,
        model: &str,
        input: &Input,
        writing: &Writing,
        mut show: impl FnMut(&str),
    ) -> anyhow::Result<Answer> {
        match self {
            Writer::Local(worker) => {
                let mut text = worker.write(NewText::new(model, input.clone())).await?;
                while let Some(next) = text.next().await {
                    match next? {
                        Next::Piece(piece) => show(&piece.text),
                        Next::End(done) => {
                            return Ok(Answer {
                                finish: done.written.finish.name().into(),
                                input_tokens: done.input_tokens,
                                output_tokens: done.written.tokens.len() as u64,
                                text: done.written.text,
                            });
                        }
                    }
                }
                anyhow::bail!("the text broke off")
            }
            Writer::Remote { client, url, key } => {
                let (route, body) = body(model, input, writing)?;
                let url = format!("{url}{route}");
                let mut request = client.post(&url).json(&body);
                if let Some(key) = key {
                    request = request.bearer_auth(key);
                }
                let response = request.send().await;
                let response = response.with_context(|| format!("{url} cannot be reached; is it running?"))?;
                let status = response.status();
                if !status.is_success() {
                    let body = response.bytes().await.with_context(|| format!("{url} broke off its answer"))?;
                    if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
                        return Err(problem.into());
                    }
                    anyhow::bail!("{url} answered {status}: {}", String::from_utf8_lossy(&body));
                }
                read_chunks(response.bytes_stream(), show).await.with_context(|| url.clone())
            }
        }
    }
}

/// The route and the body that ask this of an OpenAI-like server.
fn body(model: &str, input: &Input, writing: &Writing) -> anyhow::Result<(&'static str, Value)> {
    let (route, name, value) = match input {
        Input::Chat(input) => ("chat/completions", "messages", serde_json::to_value(&input.messages)?),
        Input::Generate(input) => ("completions", "prompt", serde_json::to_value(&input.prompt)?),
    };
    let mut body = json!({"model": model, "stream": true, "stream_options": {"include_usage": true}, name: value});
    let Writing { max_tokens, temperature, top_p, top_k, seed, stop } = writing;
    let stop = (!stop.is_empty()).then_some(stop);
    let fields = [
        ("max_tokens", json!(max_tokens)),
        ("temperature", json!(temperature)),
        ("top_p", json!(top_p)),
        ("top_k", json!(top_k)),
        ("seed", json!(seed)),
        ("stop", json!(stop)),
    ];
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
        body[name] = value;
    }
    Ok((route, body))
}

/// Reads the chunks of a text.
async fn read_chunks<B: AsRef<[u8]>, E: std::error::Error + Send + Sync + 'static>(
    stream: impl futures_util::Stream<Item = Result<B, E>>,
    mut show: impl FnMut(&str),
) -> anyhow::Result<Answer> {
    let mut stream = std::pin::pin!(stream);
    let (mut parser, mut events, mut answer) = (sse::Parser::default(), Vec::new(), Answer::default());
    while let Some(bytes) = stream.next().await {
        parser.push(bytes?.as_ref(), &mut events).map_err(|error| anyhow::anyhow!("{error}"))?;
        for event in events.drain(..) {
            if event.data == "[DONE]" {
                return Ok(answer);
            }
            let chunk: Value = serde_json::from_str(&event.data).context("a chunk is not JSON")?;
            if let Some(error) = chunk.get("error") {
                anyhow::bail!("{}", error["message"].as_str().unwrap_or("the text broke off"));
            }
            let choice = &chunk["choices"][0];
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            show(text);
            answer.text.push_str(text);
            if let Some(reason) = choice["finish_reason"].as_str() {
                answer.finish = reason.into();
            }
            if let Some(usage) = chunk.get("usage").filter(|usage| !usage.is_null()) {
                answer.input_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0);
                answer.output_tokens = usage["completion_tokens"].as_u64().unwrap_or(0);
            }
        }
    }
    anyhow::bail!("the text broke off before its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(typed: &str, want: &[Line]) {
        let mut input = typed.as_bytes();
        let lines: Vec<Line> = std::iter::from_fn(|| read_line(&mut input).unwrap()).collect();
        assert_eq!(lines, want, "{typed:?}");
    }

    #[test]
    fn what_is_typed_is_a_message_or_a_command() {
        let message = |text: &str| Line::Message(text.into());
        check("hello\n\n/help\n/exit", &[message("hello"), Line::Empty, Line::Help, Line::Exit]);
        check("/system Be brief. \n/reset", &[Line::Reset(Some("Be brief.".into())), Line::Reset(None)]);
        check("\"\"\"\na\n /b\n\"\"\"\nc\n", &[message("a\n /b\n"), message("c")]);
        check("/what now", &[Line::Unknown("/what".into())]);
    }

    #[test]
    fn a_system_message_outlives_a_reset() {
        let mut talk = Conversation::new(Some("s".into()));
        talk.say("user", "u".into());
        assert_eq!(Conversation::new(talk.system()).messages, [json!({"role": "system", "content": "s"})]);
        assert!(Conversation::new(None).system().is_none());
    }

    #[tokio::test]
    async fn chunks_become_a_text_and_what_breaks_off_is_an_error() {
        let read = async |stream: &str| {
            let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
                stream.as_bytes().chunks(7).map(|piece| Ok(piece.to_vec())).collect();
            let mut shown = String::new();
            let answer = read_chunks(futures_util::stream::iter(pieces), |text| shown.push_str(text)).await;
            answer.map(|answer| {
                assert_eq!(answer.text, shown);
                (answer.text, answer.finish, answer.output_tokens)
            })
        };
        let chat = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"é\"},\"finish_reason\":null}]}\n\n: wait\n\n\
            data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
        assert_eq!(read(chat).await.unwrap(), ("é".to_owned(), "stop".to_owned(), 1));
        let broken = chat.split("data: [DONE]").next().unwrap();
        assert!(read(broken).await.unwrap_err().to_string().contains("broke off"));
        let failed = "data: {\"error\":{\"message\":\"no node\"}}\n\n";
        assert_eq!(read(failed).await.unwrap_err().to_string(), "no node");
    }
}
