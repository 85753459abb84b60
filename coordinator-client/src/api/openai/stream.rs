//! Answers in chunks: pieces of a text go in as they are written, the JSON of chunks comes out. How chunks are framed is the
//! servers' part.

use super::chat::ToolCall;
use super::completions::{Completion, CompletionChoice};
use super::logprobs::{ChatLogprobs, CompletionLogprobs};
use super::request::{CompletionUsage, Head, How, Shape};
use crate::api::Problem;
use crate::wire::Usage;
use crate::wire::text::{Finish, Piece};
use serde::Serialize;
use utoipa::ToSchema;

/// A chunk of a chat's answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChunk {
    /// `chatcmpl-…`, the same in all of them.
    pub id: String,
    /// `chat.completion.chunk`
    pub object: &'static str,
    /// Seconds since 1970, the same in all of them.
    pub created: u64,
    /// `name@version` of the model that answers.
    pub model: String,
    /// One; none in the chunk with the usage.
    pub choices: Vec<DeltaChoice>,
    /// Tokens: null in all but the last, absent where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CompletionUsage>)]
    pub usage: Option<Option<CompletionUsage>>,
}

/// What is new of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DeltaChoice {
    /// 0.
    pub index: u32,
    /// What is new of the message.
    pub delta: Delta,
    /// Of its tokens, where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`; null before the end.
    pub finish_reason: Option<&'static str>,
}

/// What is new of the message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// What the model says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The functions that it calls, each whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<DeltaCall>,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeltaCall {
    /// Which of the answer's calls it is.
    pub index: usize,
    /// The call.
    #[serde(flatten)]
    pub call: ToolCall,
}

/// Makes the chunks of one answer. Told in order: [`piece`](Self::piece) as often as there is one, then [`end`](Self::end) once.
#[derive(Debug, Clone)]
pub struct Chunks {
    how: How,
    head: Head,
    has_begun: bool,
    /// Calls that are told.
    calls: usize,
    /// Characters of tokens whose log-probabilities are told.
    characters: usize,
}

impl Chunks {
    /// For an answer that begins so.
    pub fn new(how: How, head: Head) -> Self {
        Self { how, head, has_begun: false, calls: 0, characters: 0 }
    }

    /// The chunks that show a piece: none where it shows nothing yet. The first ones of a chat begin with the role.
    pub fn piece(&mut self, piece: &Piece) -> Vec<String> {
        let Piece { tokens: _, text, tool_calls, logprobs } = piece;
        let mut out = self.begin();
        let has_words = !text.is_empty() || !logprobs.is_empty();
        match self.how.shape {
            Shape::Completion if has_words => {
                let logprobs = CompletionLogprobs::new(logprobs, &mut self.characters);
                out.push(self.completion(text.clone(), logprobs, None));
            }
            Shape::Chat if has_words || !tool_calls.is_empty() => {
                let mut call = |call: &crate::wire::text::ToolCall| {
                    let index = self.calls;
                    self.calls += 1;
                    DeltaCall { index, call: ToolCall::new(&self.head.id, index, call.clone()) }
                };
                let tool_calls = tool_calls.iter().map(&mut call).collect();
                let delta = Delta { role: None, content: has_words.then(|| text.clone()), tool_calls };
                out.push(self.chat(delta, ChatLogprobs::new(logprobs), None));
            }
            _ => {}
        }
        out
    }

    /// The last chunks: why the text ends, and what it took where that was asked for.
    pub fn end(&mut self, finish: Finish, usage: Usage) -> Vec<String> {
        let mut out = self.begin();
        out.push(match self.how.shape {
            Shape::Chat => self.chat(Delta::default(), None, Some(finish)),
            Shape::Completion => self.completion(String::new(), None, Some(finish)),
        });
        if self.how.include_usage {
            out.push(self.chunk(None, None, Some(Some(usage.into()))));
        }
        out
    }

    /// What stands in place of the rest when the text cannot go on: OpenAI's error object.
    pub fn error(problem: &Problem) -> String {
        problem.to_openai_json().to_string()
    }

    fn begin(&mut self) -> Vec<String> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if self.how.shape == Shape::Completion || !is_first {
            return vec![];
        }
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        vec![self.chat(delta, None, None)]
    }

    fn chat(&self, delta: Delta, logprobs: Option<ChatLogprobs>, finish: Option<Finish>) -> String {
        let choice = DeltaChoice { index: 0, delta, logprobs, finish_reason: finish.map(Finish::name) };
        self.chunk(Some(choice), None, self.no_usage())
    }

    fn completion(&self, text: String, logprobs: Option<CompletionLogprobs>, finish: Option<Finish>) -> String {
        let choice = CompletionChoice { index: 0, text, logprobs, finish_reason: finish.map(Finish::name) };
        self.chunk(None, Some(choice), self.no_usage())
    }

    /// Where usage is asked for, the chunks before it say null.
    fn no_usage(&self) -> Option<Option<CompletionUsage>> {
        self.how.include_usage.then_some(None)
    }

    fn chunk(
        &self,
        chat: Option<DeltaChoice>,
        completion: Option<CompletionChoice>,
        usage: Option<Option<CompletionUsage>>,
    ) -> String {
        let Head { id, created, model } = self.head.clone();
        let json = match self.how.shape {
            Shape::Chat => {
                let choices = chat.into_iter().collect();
                serde_json::to_string(&ChatChunk {
                    id,
                    object: "chat.completion.chunk",
                    created,
                    model,
                    choices,
                    usage,
                })
            }
            Shape::Completion => {
                let choices = completion.into_iter().collect();
                serde_json::to_string(&Completion { id, object: "text_completion", created, model, choices, usage })
            }
        };
        json.expect("a chunk is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Code;
    use crate::wire::text::{self as wire, TokenLogprob};
    use serde_json::{Value, json};

    const USAGE: Usage = Usage { input_tokens: 5, cached_tokens: 4, output_tokens: 2 };

    fn chunks(shape: Shape, include_usage: bool) -> Chunks {
        Chunks::new(How { shape, stream: true, include_usage }, Head::new(shape, "x", 1_700_000_000, "m@1".into()))
    }

    fn read(chunks: Vec<String>) -> Vec<Value> {
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }

    fn words(text: &str) -> Piece {
        Piece { tokens: vec![1], text: text.into(), ..Piece::default() }
    }

    fn chat(delta: Value, finish: Option<&str>) -> Value {
        json!({
            "id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m@1",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        })
    }

    fn role() -> Value {
        chat(json!({"role": "assistant", "content": ""}), None)
    }

    #[test]
    fn a_chat_begins_with_its_role_and_ends_with_its_reason() {
        let mut chunks = chunks(Shape::Chat, false);
        assert_eq!(read(chunks.piece(&words("Hi"))), [role(), chat(json!({"content": "Hi"}), None)]);
        assert_eq!(read(chunks.piece(&words(""))), [Value::Null; 0], "nothing to show makes no chunk");
        assert_eq!(read(chunks.piece(&words(" you"))), [chat(json!({"content": " you"}), None)]);
        assert_eq!(read(chunks.end(Finish::Length, USAGE)), [chat(json!({}), Some("length"))]);
    }

    #[test]
    fn an_empty_chat_has_its_role_too() {
        assert_eq!(read(chunks(Shape::Chat, false).end(Finish::Stop, USAGE)), [role(), chat(json!({}), Some("stop"))]);
    }

    #[test]
    fn usage_comes_last_where_it_is_asked_for() {
        for shape in [Shape::Chat, Shape::Completion] {
            let mut chunks = chunks(shape, true);
            let mut all = read(chunks.piece(&words("Hi")));
            all.extend(read(chunks.end(Finish::Stop, USAGE)));
            let last = all.pop().unwrap();
            assert!(all.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "{all:?}");
            assert_eq!(last["choices"], json!([]));
            let want = json!({
                "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 4},
            });
            assert_eq!(last["usage"], want);
        }
    }

    #[test]
    fn calls_are_numbered_across_pieces() {
        let call = |name: &str| wire::ToolCall { name: name.into(), arguments: "{}".into() };
        let piece = |calls| Piece { tool_calls: calls, ..words("") };
        let mut chunks = chunks(Shape::Chat, false);
        let mut told = read(chunks.piece(&piece(vec![call("f"), call("g")])));
        told.extend(read(chunks.piece(&piece(vec![call("h")]))));
        let deltas: Vec<&Value> = told.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
        assert_eq!(deltas.len(), 3, "the role, then two chunks");
        let calls: Vec<&Value> = deltas[1..].iter().flat_map(|delta| delta["tool_calls"].as_array().unwrap()).collect();
        let named =
            |call: &Value| (call["index"].as_u64().unwrap(), call["function"]["name"].as_str().unwrap().to_owned());
        let want = [(0, "f".to_owned()), (1, "g".to_owned()), (2, "h".to_owned())];
        assert_eq!(calls.iter().map(|call| named(call)).collect::<Vec<_>>(), want);
        assert_eq!((&calls[0]["type"], &calls[0]["function"]["arguments"]), (&json!("function"), &json!("{}")));
        assert!(deltas[1].get("content").is_none(), "{}", deltas[1]);
        let whole = super::super::ChatCompletion::new(
            Head::new(Shape::Chat, "x", 0, "m@1".into()),
            wire::Written {
                text: String::new(),
                tokens: vec![],
                tool_calls: vec![call("f"), call("g"), call("h")],
                logprobs: vec![],
                finish: Finish::ToolCalls,
            },
            USAGE,
        );
        let ids: Vec<Value> = calls.iter().map(|call| call["id"].clone()).collect();
        let whole_ids: Vec<Value> =
            whole.choices[0].message.tool_calls.iter().map(|call| call.id.clone().into()).collect();
        assert_eq!(ids, whole_ids, "a call's id is the same in chunks and whole");
    }

    #[test]
    fn a_completion_is_told_in_its_own_shape() {
        let chunk = |text: &str, logprobs: Value, finish: Option<&str>| {
            json!({
                "id": "cmpl-x", "object": "text_completion", "created": 1_700_000_000, "model": "m@1",
                "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}],
            })
        };
        let mut chunks = chunks(Shape::Completion, false);
        assert_eq!(read(chunks.piece(&words("Hi"))), [chunk("Hi", Value::Null, None)]);
        let token = |text: &str| TokenLogprob { token: 1, text: text.into(), logprob: -1.0, top: vec![] };
        let told = |text: &str, offset: usize| {
            let logprobs = json!({
                "tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}], "text_offset": [offset],
            });
            chunk("", logprobs, None)
        };
        // The text of these is held back; their log-probabilities are told when they come.
        for (text, offset) in [("éa", 0), ("b", 2)] {
            let piece = Piece { logprobs: vec![token(text)], ..words("") };
            assert_eq!(read(chunks.piece(&piece)), [told(text, offset)]);
        }
        assert_eq!(read(chunks.end(Finish::Stop, USAGE)), [chunk("", Value::Null, Some("stop"))]);
    }

    #[test]
    fn log_probabilities_of_a_chat_are_told_with_their_piece() {
        let token = TokenLogprob { token: 1, text: "a".into(), logprob: -1.0, top: vec![] };
        let told = read(chunks(Shape::Chat, false).piece(&Piece { logprobs: vec![token], ..words("a") }));
        assert_eq!(told[0]["choices"][0]["logprobs"], Value::Null);
        assert_eq!(told[1]["choices"][0]["logprobs"]["content"][0]["token"], "a");
    }

    #[test]
    fn an_error_in_the_middle_is_openais() {
        let error: Value = serde_json::from_str(&Chunks::error(&Problem::new(Code::NoCapableNode, "no node"))).unwrap();
        assert_eq!(
            (&error["error"]["message"], &error["error"]["code"]),
            (&json!("no node"), &json!("no_capable_node"))
        );
    }
}
