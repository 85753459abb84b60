//! OpenAI's shapes as a caller sees them: bodies of requests go out, pieces of answers come in. Reads what servers write that
//! are not OpenAI's, as long as it says the same. Pure.

use super::prompts::{Ask, Prompt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/embeddings`.
    Embeddings,
}

impl Kind {
    /// The route behind `/v1`.
    pub(crate) fn route(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
        }
    }

    /// Whether the answer is a text that comes in pieces.
    pub(crate) fn is_stream(self) -> bool {
        self != Self::Embeddings
    }
}

/// What all requests of a run have in common.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) model: String,
    /// Whether texts go on behind their end, so that all have the length that was asked for.
    pub(crate) ignore_eos: bool,
    pub(crate) temperature: f64,
    /// Put over the body: what only some servers know.
    pub(crate) extra: Map<String, Value>,
}

impl Shape {
    /// The body that asks this.
    pub(crate) fn body(&self, ask: &Ask) -> Value {
        let mut body = json!({ "model": self.model });
        let texts = || {
            ask.prompts.iter().map(|prompt| match prompt {
                Prompt::Text(text) => json!(text),
                Prompt::Messages(messages) => json!(messages),
            })
        };
        match self.kind {
            Kind::Embeddings => body["input"] = texts().collect(),
            Kind::Completions => body["prompt"] = texts().next().unwrap_or_default(),
            Kind::Chat => {
                body["messages"] = match ask.prompts.first() {
                    Some(Prompt::Messages(messages)) => json!(messages),
                    Some(Prompt::Text(text)) => json!([{ "role": "user", "content": text }]),
                    None => json!([]),
                };
            }
        }
        if self.kind.is_stream() {
            body["max_tokens"] = ask.max_tokens.into();
            body["temperature"] = self.temperature.into();
            body["stream"] = true.into();
            body["stream_options"] = json!({ "include_usage": true });
            if self.ignore_eos {
                body["ignore_eos"] = true.into();
            }
        }
        for (name, value) in &self.extra {
            body[name.as_str()] = value.clone();
        }
        body
    }
}

/// Tokens as the server counts them. `None` where it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of the prompt.
    pub(crate) prompt: Option<u64>,
    /// Of these, how many it did not have to read, because it had read them before.
    pub(crate) cached: Option<u64>,
    /// Of the answer.
    pub(crate) output: Option<u64>,
}

/// What one event of a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Whether some of the text is in it.
    pub(crate) has_output: bool,
    /// Whether a reason is in it why the text ends.
    pub(crate) is_last: bool,
    /// Tokens, where they are in it.
    pub(crate) usage: Option<Usage>,
}

#[derive(Deserialize)]
struct WireChunk {
    #[serde(default)]
    choices: Vec<WireChoice>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    object: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct WireChoice {
    #[serde(default)]
    delta: Option<WireDelta>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct WireDelta {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<WireDetails>,
}

#[derive(Deserialize)]
struct WireDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl From<WireUsage> for Usage {
    fn from(usage: WireUsage) -> Self {
        let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Self { prompt: usage.prompt_tokens, cached, output: usage.completion_tokens }
    }
}

/// Why an event is no piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoPiece {
    /// The server says that something failed.
    Error(String),
    /// It is not the JSON that was expected.
    Malformed(String),
}

/// Reads the data of an event of a stream.
///
/// # Errors
/// When it is an error object, or none of OpenAI's shapes.
pub(crate) fn piece(data: &str) -> Result<Piece, NoPiece> {
    let malformed = |problem: String| NoPiece::Malformed(format!("{problem}: {}", begin_of(data)));
    let chunk: WireChunk = serde_json::from_str(data).map_err(|error| malformed(error.to_string()))?;
    if chunk.error.as_ref().is_some_and(|error| !error.is_null()) || chunk.object.as_deref() == Some("error") {
        return Err(NoPiece::Error(message_of(data)));
    }
    if chunk.choices.is_empty() && chunk.usage.is_none() {
        // Some servers write an error without its envelope.
        return Err(match chunk.message {
            Some(message) => NoPiece::Error(message),
            None => malformed("an event with neither choices nor usage".into()),
        });
    }
    let is_last = chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
    let has_output = chunk.choices.iter().any(has_output);
    Ok(Piece { has_output, is_last, usage: chunk.usage.map(Into::into) })
}

/// Whether a choice carries output. An empty text counts, where it is neither the greeting with the role nor the end: it is a token
/// that shows nothing yet.
fn has_output(choice: &WireChoice) -> bool {
    let is_last = choice.finish_reason.is_some();
    let shows =
        |text: &Option<String>, may_be_empty: bool| text.as_ref().is_some_and(|text| may_be_empty || !text.is_empty());
    let in_delta = choice.delta.as_ref().is_some_and(|delta| {
        let may_be_empty = !is_last && delta.role.is_none();
        shows(&delta.content, may_be_empty)
            || shows(&delta.reasoning_content, may_be_empty)
            || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
    });
    in_delta || shows(&choice.text, !is_last)
}

/// Reads the answer to a request for embeddings; returns how many vectors it has, and the tokens.
///
/// # Errors
/// When it is not that.
pub(crate) fn embeddings(body: &[u8]) -> Result<(usize, Usage), String> {
    #[derive(Deserialize)]
    struct Answer {
        data: Vec<Vector>,
        #[serde(default)]
        usage: Option<WireUsage>,
    }
    #[derive(Deserialize)]
    struct Vector {
        // Its numbers are not looked at: reading them would take the time of what is measured.
        #[serde(rename = "embedding")]
        _embedding: serde::de::IgnoredAny,
    }
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|error| format!("{error}: {}", begin_of(&String::from_utf8_lossy(body))))?;
    Ok((answer.data.len(), answer.usage.map(Into::into).unwrap_or_default()))
}

/// The names in the answer to `GET /v1/models`. `None` when it is no such list.
pub(crate) fn models(body: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let list: List = serde_json::from_slice(body).ok()?;
    Some(list.data.into_iter().map(|model| model.id).collect())
}

/// What an error's body says: OpenAI's `error.message`, problem details' `detail`, or its beginning.
pub(crate) fn message_of(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let places = ["/error/message", "/detail", "/message", "/error", "/title"];
    let message = places.iter().find_map(|place| value.pointer(place)?.as_str());
    begin_of(message.unwrap_or(body))
}

/// As much as a line of a report holds.
fn begin_of(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    let line = text.trim().replace(['\n', '\r'], " ");
    match line.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: Kind) -> Shape {
        Shape { kind, model: "m".into(), ignore_eos: false, temperature: 0.0, extra: Map::new() }
    }

    #[test]
    fn bodies_are_openais() {
        let ask = Ask { prompts: vec![Prompt::Text("a b".into())], max_tokens: 7 };
        assert_eq!(
            shape(Kind::Chat).body(&ask),
            json!({ "model": "m", "messages": [{ "role": "user", "content": "a b" }], "max_tokens": 7, "temperature": 0.0,
                    "stream": true, "stream_options": { "include_usage": true } })
        );
        let completions = shape(Kind::Completions).body(&ask);
        assert_eq!((&completions["prompt"], &completions["messages"]), (&json!("a b"), &Value::Null));
        let two = Ask { prompts: vec![Prompt::Text("a".into()), Prompt::Text("b".into())], max_tokens: 7 };
        assert_eq!(shape(Kind::Embeddings).body(&two), json!({ "model": "m", "input": ["a", "b"] }));
    }

    #[test]
    fn extra_fields_are_put_over_the_body() {
        let ask =
            Ask { prompts: vec![Prompt::Messages(vec![json!({ "role": "user", "content": "x" })])], max_tokens: 7 };
        let extra = json!({ "temperature": 1.5, "cache_prompt": false }).as_object().cloned().unwrap();
        let body = Shape { ignore_eos: true, extra, ..shape(Kind::Chat) }.body(&ask);
        assert_eq!(body["messages"], json!([{ "role": "user", "content": "x" }]));
        assert_eq!(
            (&body["ignore_eos"], &body["temperature"], &body["cache_prompt"]),
            (&json!(true), &json!(1.5), &json!(false))
        );
    }

    /// Whether the event has output, and is the last one with a choice.
    fn check(data: &str, has_output: bool, is_last: bool) {
        let piece = piece(data).unwrap();
        assert_eq!((piece.has_output, piece.is_last), (has_output, is_last), "{data}");
    }

    #[test]
    fn output_is_told_from_what_stands_around_it() {
        check(r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#, false, false);
        check(r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#, false, false);
        check(r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#, true, false);
        check(r#"{"choices":[{"delta":{"content":" b"}}]}"#, true, false);
        check(r#"{"choices":[{"delta":{"content":""}}]}"#, true, false);
        check(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, true, false);
        check(r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#, true, false);
        check(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, true, false);
        check(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false, true);
        check(r#"{"choices":[{"delta":{"content":"z"},"finish_reason":"length"}]}"#, true, true);
        check(r#"{"choices":[{"text":"z","finish_reason":null}]}"#, true, false);
        check(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, false, true);
        check(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#, false, false);
    }

    #[test]
    fn usage_is_read_as_far_as_it_is_there() {
        let usage = |data: &str| piece(data).unwrap().usage.unwrap();
        let full = usage(
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}"#,
        );
        assert_eq!(full, Usage { prompt: Some(3), cached: Some(2), output: Some(4) });
        let none = usage(r#"{"choices":[],"usage":{"prompt_tokens_details":null}}"#);
        assert_eq!(none, Usage::default());
    }

    #[test]
    fn errors_in_a_stream_are_told_from_broken_events() {
        for (data, message) in [
            (r#"{"error":{"message":"out of memory","code":500}}"#, "out of memory"),
            (r#"{"error":"gone"}"#, "gone"),
            (r#"{"object":"error","message":"bad","code":400}"#, "bad"),
            (r#"{"code":500,"message":"Compute error."}"#, "Compute error."),
        ] {
            assert_eq!(piece(data), Err(NoPiece::Error(message.into())), "{data}");
        }
        for data in ["", "nonsense", "{}", "[]", r#"{"choices":[{"delta":{"content":5}}]}"#] {
            assert!(matches!(piece(data), Err(NoPiece::Malformed(_))), "{data}");
        }
        // Null stands for no error.
        assert!(piece(r#"{"choices":[],"usage":{},"error":null}"#).is_ok());
    }

    #[test]
    fn embeddings_and_models_are_counted() {
        let body =
            br#"{"data":[{"index":0,"embedding":[1.0]},{"index":1,"embedding":"AAAA"}],"usage":{"prompt_tokens":9}}"#;
        assert_eq!(embeddings(body), Ok((2, Usage { prompt: Some(9), ..Usage::default() })));
        assert!(embeddings(br#"{"data":[{"index":0}]}"#).is_err());
        assert_eq!(models(br#"{"object":"list","data":[{"id":"a"},{"id":"b"}]}"#), Some(vec!["a".into(), "b".into()]));
        assert_eq!(models(b"<html>"), None);
    }

    #[test]
    fn an_error_says_what_its_server_says() {
        for (body, message) in [
            (r#"{"error":{"message":"no such model","type":"x"}}"#, "no such model"),
            (r#"{"title":"Not found","detail":"no model x","code":"model_not_found"}"#, "no model x"),
            (r#"{"error":"overloaded","error_type":"x"}"#, "overloaded"),
            ("plain\ntext", "plain text"),
        ] {
            assert_eq!(message_of(body), message);
        }
        assert_eq!(message_of(&"ä".repeat(900)).chars().count(), 201);
    }
}
