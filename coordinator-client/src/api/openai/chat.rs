//! OpenAI's shapes for a conversation: `POST /v1/chat/completions`.

use super::logprobs::ChatLogprobs;
use super::request::{CompletionUsage, Head, How, Shape, request};
use crate::api::{Code, Problem, text};
use crate::wire::text::{self as wire, ChatInput, JsonText, Written};
use crate::wire::{TaskInput, Usage, digest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

request! {
    /// Body of `POST /v1/chat/completions`.
    ChatRequest {
        /// `name` or `name@version`.
        pub model: String,
        /// The conversation so far: `[{"role": "user", "content": "…"}]`.
        #[schema(value_type = Vec<Object>)]
        pub messages: JsonText,
        /// Functions that may be called: `[{"type": "function", "function": {"name": "…", "parameters": {…}}}]`.
        #[schema(value_type = Option<Vec<Object>>)]
        pub tools: Option<JsonText>,
        /// Whether they are: `none`, `auto`, `required`, or `{"type": "function", "function": {"name": "…"}}`.
        pub tool_choice: Option<Choice>,
        /// The same as `max_tokens`, and before it where both are given.
        pub max_completion_tokens: Option<u32>,
        /// Whether each token comes with its log-probability.
        pub logprobs: Option<bool>,
        /// With those of so many of the likeliest, 20 at most.
        pub top_logprobs: Option<u32>,
    }
}

/// Whether functions are called.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = r#"tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}"#
)]
pub enum Choice {
    /// In a word.
    Mode(ChoiceMode),
    /// This one is.
    Named {
        /// Which.
        function: NamedFunction,
    },
}

/// Whether functions are called, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChoiceMode {
    /// None is.
    None,
    /// As the model chooses.
    Auto,
    /// At least one is.
    Required,
}

/// A function by its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct NamedFunction {
    /// Its name.
    pub name: String,
}

impl ChatRequest {
    /// The model that it names, the task that it asks for, and how the answer is wanted.
    ///
    /// # Errors
    /// When it asks for what is not served, or for what no model could write.
    pub fn into_task(mut self) -> Result<(String, TaskInput, How), Problem> {
        let how = self.how(Shape::Chat);
        let mut options = self.options()?;
        options.max_tokens = self.max_completion_tokens.or(options.max_tokens);
        options.logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, count) => Some(count.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                let detail = "top_logprobs is given without logprobs; set logprobs to true";
                return Err(Problem::new(Code::InvalidInput, detail));
            }
        };
        let tool_choice = self.tool_choice.map(|choice| match choice {
            Choice::Mode(ChoiceMode::None) => wire::ToolChoice::None,
            Choice::Mode(ChoiceMode::Auto) => wire::ToolChoice::Auto,
            Choice::Mode(ChoiceMode::Required) => wire::ToolChoice::Required,
            Choice::Named { function } => wire::ToolChoice::Function(function.name),
        });
        let task = TaskInput::Chat(ChatInput { messages: self.messages, tools: self.tools, tool_choice, options });
        text::check(&task)?;
        Ok((self.model, task, how))
    }
}

/// Answer to `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// `chat.completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// `name@version` of the model that answered.
    pub model: String,
    /// One.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: CompletionUsage,
}

/// The answer itself.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatChoice {
    /// 0.
    pub index: u32,
    /// What the model says.
    pub message: ChatMessage,
    /// Of its tokens, where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model says.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatMessage {
    /// `assistant`
    pub role: &'static str,
    /// Null where it only calls functions.
    pub content: Option<String>,
    /// Always null: nothing is refused in words here.
    #[schema(value_type = Option<String>)]
    pub refusal: (),
    /// The functions that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCall {
    /// What the message with its result names.
    pub id: String,
    /// `function`
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Which, with what.
    pub function: FunctionCall,
}

/// Which function is called with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

impl ToolCall {
    /// The answer's call of this number. Its id has nine letters and digits: the templates of Mistral's models take no
    /// other, and no client looks into it.
    pub(super) fn new(answer: &str, index: usize, wire::ToolCall { name, arguments }: wire::ToolCall) -> Self {
        let mut id = digest::sha256_hex(format!("{answer}/{index}").as_bytes());
        id.truncate(9);
        Self { id, kind: "function", function: FunctionCall { name, arguments } }
    }
}

impl ChatCompletion {
    /// The answer that a text is.
    pub fn new(Head { id, created, model }: Head, written: Written, usage: Usage) -> Self {
        let Written { text, tokens: _, tool_calls, logprobs, finish } = written;
        let content = (!text.is_empty() || tool_calls.is_empty()).then_some(text);
        let calls = tool_calls.into_iter().enumerate();
        let tool_calls = calls.map(|(index, call)| ToolCall::new(&id, index, call)).collect();
        let message = ChatMessage { role: "assistant", content, refusal: (), tool_calls };
        let logprobs = ChatLogprobs::new(&logprobs);
        let choice = ChatChoice { index: 0, message, logprobs, finish_reason: finish.name() };
        Self { id, object: "chat.completion", created, model, choices: vec![choice], usage: usage.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::text::{Finish, Format, ToolChoice, WriteOptions};
    use serde_json::json;

    const TOOL: &str = r#"{"type": "function", "function": {"parameters": {"z": 1, "a": 2}, "name": "f"}}"#;

    fn task(more: &str) -> Result<(ChatInput, How), String> {
        let body = format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "a"}}], "user": "u"{more}}}"#);
        let request = serde_json::from_str::<ChatRequest>(&body).map_err(|e| e.to_string())?;
        match request.into_task().map_err(|problem| problem.detail)? {
            (model, TaskInput::Chat(input), how) if model == "m" => Ok((input, how)),
            other => panic!("{other:?}"),
        }
    }

    fn check(more: &str, want: WriteOptions) {
        assert_eq!(task(more).unwrap().0.options, want, "{more}");
    }

    fn refused(more: &str, part: &str) {
        let detail = task(more).unwrap_err();
        assert!(detail.contains(part), "{more}: {detail}");
    }

    #[test]
    fn what_is_asked_reaches_the_task() {
        let usual = WriteOptions::default;
        check("", usual());
        check(r#", "max_tokens": 5, "parallel_tool_calls": false"#, WriteOptions { max_tokens: Some(5), ..usual() });
        check(r#", "max_tokens": 5, "max_completion_tokens": 6"#, WriteOptions { max_tokens: Some(6), ..usual() });
        let sampling = r#", "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "typical_p": 0.8, "seed": -1,
            "repetition_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"7": -100},
            "ignore_eos": true, "n": 1, "stop": "x""#;
        let options = WriteOptions {
            max_tokens: None,
            temperature: Some(0.5),
            top_k: Some(0),
            top_p: Some(0.9),
            min_p: Some(0.1),
            typical_p: Some(0.8),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(1.0),
            frequency_penalty: Some(-1.0),
            logit_bias: [(7, -100.0)].into(),
            logprobs: None,
            seed: Some(u64::MAX),
            stop: vec!["x".into()],
            ignore_eos: true,
            format: None,
            generated: vec![],
        };
        check(sampling, options);
        check(r#", "stop": ["x", "y"], "top_k": 40"#, {
            WriteOptions { stop: vec!["x".into(), "y".into()], top_k: Some(40), ..usual() }
        });
        check(r#", "stop": null, "stream": null, "tools": null"#, usual());
        check(r#", "logprobs": true"#, WriteOptions { logprobs: Some(0), ..usual() });
        check(r#", "logprobs": true, "top_logprobs": 3"#, WriteOptions { logprobs: Some(3), ..usual() });
        check(r#", "logprobs": false, "top_logprobs": 0"#, usual());
    }

    #[test]
    fn what_is_not_served_or_makes_no_sense_is_refused() {
        refused(r#", "n": 2"#, "n is 2");
        refused(r#", "top_logprobs": 3"#, "set logprobs");
        refused(r#", "logprobs": true, "top_logprobs": 21"#, "more than 20");
        refused(r#", "max_tokens": 0"#, "at least 1");
        refused(r#", "max_tokens": -1"#, "-1");
        refused(r#", "stop": 7"#, "stop must be a text or texts");
        refused(r#", "logit_bias": {"x": 1}"#, "x");
        refused(r#", "tool_choice": "any""#, "tool_choice must be");
        refused(r#", "tool_choice": "required""#, "there are no tools");
        refused(r#", "response_format": {"type": "xml"}"#, "xml");
        refused(r#", "response_format": {"type": "json_schema"}"#, "needs json_schema");
        refused(r#", "response_format": {"type": "regex"}"#, "needs pattern");
        refused(r#", "response_format": {"type": "grammar", "pattern": "a"}"#, "needs grammar");
        let no_messages = serde_json::from_str::<ChatRequest>(r#"{"model": "m", "messages": []}"#).unwrap();
        assert!(no_messages.into_task().unwrap_err().detail.contains("no message"));
    }

    #[test]
    fn messages_and_tools_keep_their_order() {
        let body = format!(r#"{{"tools": [{TOOL}], "model": "m", "messages": [{{"role": "user", "a": 1.50}}]}}"#);
        let (_, task, _) = serde_json::from_str::<ChatRequest>(&body).unwrap().into_task().unwrap();
        let TaskInput::Chat(input) = task else { panic!("{task:?}") };
        assert_eq!(input.messages.as_str(), r#"[{"role": "user", "a": 1.50}]"#);
        assert_eq!(input.tools.unwrap().as_str(), format!("[{TOOL}]"));
    }

    #[test]
    fn every_choice_of_tools_is_read() {
        let check = |choice: &str, want: ToolChoice| {
            let (input, _) = task(&format!(r#", "tools": [{TOOL}], "tool_choice": {choice}"#)).unwrap();
            assert_eq!(input.tool_choice, Some(want), "{choice}");
        };
        check(r#""none""#, ToolChoice::None);
        check(r#""auto""#, ToolChoice::Auto);
        check(r#""required""#, ToolChoice::Required);
        check(r#"{"type": "function", "function": {"name": "f"}}"#, ToolChoice::Function("f".into()));
    }

    #[test]
    fn every_format_is_read() {
        let check = |format: &str, want: Option<Format>| {
            let (input, _) = task(&format!(r#", "response_format": {format}"#)).unwrap();
            assert_eq!(input.options.format, want, "{format}");
        };
        check(r#"{"type": "text"}"#, None);
        check(r#"{"type": "json_object"}"#, Some(Format::JsonObject));
        let schema = r#"{"type": "object", "properties": {"z": {}, "a": {}}}"#;
        let named =
            format!(r#"{{"json_schema": {{"name": "n", "strict": true, "schema": {schema}}}, "type": "json_schema"}}"#);
        check(&named, Some(Format::JsonSchema(JsonText::new(schema.into()).unwrap())));
        check(r#"{"type": "regex", "pattern": "a+"}"#, Some(Format::Regex("a+".into())));
        check(r#"{"type": "grammar", "grammar": "start: \"a\""}"#, Some(Format::Grammar("start: \"a\"".into())));
    }

    #[test]
    fn how_the_answer_is_wanted_is_said() {
        let check = |more: &str, stream, include_usage| {
            assert_eq!(task(more).unwrap().1, How { shape: Shape::Chat, stream, include_usage }, "{more}");
        };
        check("", false, false);
        check(r#", "stream": true"#, true, false);
        check(
            r#", "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false}"#,
            true,
            true,
        );
    }

    fn written() -> Written {
        Written { text: "Hi".into(), tokens: vec![4, 5], tool_calls: vec![], logprobs: vec![], finish: Finish::Stop }
    }

    fn answer(written: Written) -> serde_json::Value {
        let usage = Usage { input_tokens: 9, cached_tokens: 8, output_tokens: 2 };
        let head = Head::new(Shape::Chat, 1, 1_700_000_000, "m@1".into());
        serde_json::to_value(ChatCompletion::new(head, written, usage)).unwrap()
    }

    #[test]
    fn an_answer_looks_as_openais() {
        let want = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m@1",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                "prompt_tokens_details": {"cached_tokens": 8},
            },
        });
        assert_eq!(answer(written()), want);
    }

    #[test]
    fn calls_of_functions_look_as_openais() {
        let call = |arguments: &str| wire::ToolCall { name: "f".into(), arguments: arguments.into() };
        let calls = vec![call("{}"), call(r#"{"a":1}"#)];
        let mut answer =
            answer(Written { text: String::new(), tool_calls: calls, finish: Finish::ToolCalls, ..written() });
        let choice = &mut answer["choices"][0];
        let ids = [0, 1].map(|index| choice["message"]["tool_calls"][index]["id"].take());
        let text = |id: &serde_json::Value| id.as_str().unwrap().to_owned();
        assert!(ids[0] != ids[1], "{ids:?}");
        for id in ids.iter().map(text) {
            assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        }
        assert_eq!(choice["finish_reason"], "tool_calls");
        let want = json!({
            "role": "assistant", "content": null, "refusal": null,
            "tool_calls": [
                {"id": null, "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": null, "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
            ],
        });
        assert_eq!(choice["message"], want);
    }

    #[test]
    fn log_probabilities_look_as_openais() {
        let token = |text: &str, logprob: f32, top| wire::TokenLogprob { token: 1, text: text.into(), logprob, top };
        let top = vec![token("é", -0.5, vec![]), token("\u{fffd}", f32::NEG_INFINITY, vec![])];
        let answer = answer(Written { logprobs: vec![token("é", -0.5, top)], ..written() });
        let want = json!({
            "content": [{
                "token": "é", "bytes": [195, 169], "logprob": -0.5,
                "top_logprobs": [
                    {"token": "é", "bytes": [195, 169], "logprob": -0.5},
                    {"token": "\u{fffd}", "bytes": null, "logprob": -9999.0},
                ],
            }],
            "refusal": null,
        });
        assert_eq!(answer["choices"][0]["logprobs"], want);
    }
}
