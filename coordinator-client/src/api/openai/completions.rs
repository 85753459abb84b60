//! OpenAI's shapes for a text that goes on: `POST /v1/completions`.

use super::logprobs::CompletionLogprobs;
use super::request::{CompletionUsage, Head, How, Shape, only_one, request};
use crate::api::{Code, Problem, text};
use crate::wire::task::Text;
use crate::wire::text::{GenerateInput, Written};
use crate::wire::{TaskInput, Usage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// New tokens of a request that does not say how many, as at OpenAI.
const MAX_TOKENS_DEFAULT: u32 = 16;

request! {
    /// Body of `POST /v1/completions`. 16 new tokens at most where `max_tokens` is absent.
    CompletionRequest {
        /// `name` or `name@version`.
        pub model: String,
        /// What the text begins with.
        pub prompt: Prompt,
        /// Log-probabilities of each token and so many of the likeliest, 20 at most.
        pub logprobs: Option<u32>,
        /// How many texts are tried: only 1.
        pub best_of: Option<u32>,
        /// The prompt before the text: not served.
        pub echo: Option<bool>,
        /// What comes behind the text: not served.
        pub suffix: Option<String>,
    }
}

/// What a text begins with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "prompt must be a text, token ids, or a list of one of them")]
pub enum Prompt {
    /// Words.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
    /// A list of one text.
    Texts(Vec<String>),
    /// A list of the token ids of one.
    IdLists(Vec<Vec<u32>>),
}

impl Prompt {
    fn into_text(self) -> Result<Text, Problem> {
        let several = |count: usize| {
            let detail =
                format!("{count} prompts came, and one text is written for a request; send a request for each");
            Problem::new(Code::InvalidInput, detail)
        };
        match self {
            Prompt::Text(text) => Ok(Text::Words(text)),
            Prompt::Ids(ids) => Ok(Text::Ids(ids)),
            Prompt::Texts(texts) => {
                <[String; 1]>::try_from(texts).map(|[text]| Text::Words(text)).map_err(|all| several(all.len()))
            }
            Prompt::IdLists(lists) => {
                <[Vec<u32>; 1]>::try_from(lists).map(|[ids]| Text::Ids(ids)).map_err(|all| several(all.len()))
            }
        }
    }
}

impl CompletionRequest {
    /// The model that it names, the task that it asks for, and how the answer is wanted.
    ///
    /// # Errors
    /// When it asks for what is not served, or for what no model could write.
    pub fn into_task(mut self) -> Result<(String, TaskInput, How), Problem> {
        let how = self.how(Shape::Completion);
        let mut options = self.options()?;
        options.max_tokens = Some(options.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT));
        options.logprobs = self.logprobs;
        only_one("best_of", self.best_of)?;
        let refused = |detail: &str| Err(Problem::new(Code::InvalidInput, detail));
        if self.echo == Some(true) {
            return refused("echo is not served here; put the prompt before the answer yourself");
        }
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return refused("suffix is not served here; write what the model is to fill in into the prompt");
        }
        let task = TaskInput::Generate(GenerateInput { prompt: self.prompt.into_text()?, options });
        text::check(&task)?;
        Ok((self.model, task, how))
    }
}

/// Answer to `POST /v1/completions`, and a chunk of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Completion {
    /// `cmpl-…`
    pub id: String,
    /// `text_completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// `name@version` of the model that answered.
    pub model: String,
    /// One; none in the chunk with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Tokens. In chunks: null in all but the last, absent where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CompletionUsage>)]
    pub usage: Option<Option<CompletionUsage>>,
}

/// The text.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// 0.
    pub index: u32,
    /// What was written; in a chunk, since the last one.
    pub text: String,
    /// Of its tokens, where they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null before the end.
    pub finish_reason: Option<&'static str>,
}

impl Completion {
    /// The answer that a text is.
    pub fn new(Head { id, created, model }: Head, written: Written, usage: Usage) -> Self {
        let Written { text, tokens: _, tool_calls: _, logprobs, finish } = written;
        let logprobs = CompletionLogprobs::new(&logprobs, &mut 0);
        let choice = CompletionChoice { index: 0, text, logprobs, finish_reason: Some(finish.name()) };
        let usage = Some(Some(usage.into()));
        Self { id, object: "text_completion", created, model, choices: vec![choice], usage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::text::{Finish, TokenLogprob, WriteOptions};
    use serde_json::json;

    fn task(body: &str) -> Result<(GenerateInput, How), String> {
        let body = format!(r#"{{"model": "m", {body}}}"#);
        let request = serde_json::from_str::<CompletionRequest>(&body).map_err(|e| e.to_string())?;
        match request.into_task().map_err(|problem| problem.detail)? {
            (model, TaskInput::Generate(input), how) if model == "m" => Ok((input, how)),
            other => panic!("{other:?}"),
        }
    }

    /// `want` is the prompt, or a part of the refusal.
    fn check(body: &str, want: Result<Text, &str>) {
        match (task(body), want) {
            (Ok((input, _)), Ok(prompt)) => assert_eq!(input.prompt, prompt, "{body}"),
            (Err(detail), Err(part)) => assert!(detail.contains(part), "{body}: {detail}"),
            (got, want) => panic!("{body}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn one_prompt_is_taken_in_every_form() {
        check(r#""prompt": "a""#, Ok(Text::Words("a".into())));
        check(r#""prompt": ["a"]"#, Ok(Text::Words("a".into())));
        check(r#""prompt": [1, 2]"#, Ok(Text::Ids(vec![1, 2])));
        check(r#""prompt": [[1, 2]]"#, Ok(Text::Ids(vec![1, 2])));
        check(r#""prompt": ["a", "b"]"#, Err("2 prompts"));
        check(r#""prompt": [[1], [2]]"#, Err("2 prompts"));
        check(r#""prompt": []"#, Err("no token"));
        check(r#""prompt": 7"#, Err("prompt must be"));
        check(r#""max_tokens": 7"#, Err("prompt"));
    }

    #[test]
    fn what_is_not_served_is_refused() {
        check(
            r#""prompt": "a", "n": 1, "best_of": 1, "echo": false, "suffix": "", "user": "u""#,
            Ok(Text::Words("a".into())),
        );
        check(r#""prompt": "a", "n": 2"#, Err("n is 2"));
        check(r#""prompt": "a", "best_of": 2"#, Err("best_of is 2"));
        check(r#""prompt": "a", "echo": true"#, Err("echo"));
        check(r#""prompt": "a", "suffix": "b""#, Err("suffix"));
    }

    #[test]
    fn what_is_asked_reaches_the_task() {
        let (input, how) = task(r#""prompt": "a", "logprobs": 2, "seed": 7, "stop": ["x"], "stream": true"#).unwrap();
        let options = WriteOptions {
            max_tokens: Some(16),
            logprobs: Some(2),
            seed: Some(7),
            stop: vec!["x".into()],
            ..WriteOptions::default()
        };
        assert_eq!(input.options, options);
        assert_eq!(how, How { shape: Shape::Completion, stream: true, include_usage: false });
        let (input, _) = task(r#""prompt": "a", "max_tokens": 99"#).unwrap();
        assert_eq!(input.options, WriteOptions { max_tokens: Some(99), ..WriteOptions::default() });
    }

    #[test]
    fn an_answer_looks_as_openais() {
        let token = |text: &str, logprob: f32, top| TokenLogprob { token: 1, text: text.into(), logprob, top };
        let top = vec![token(" é", -0.25, vec![]), token("z", -1.5, vec![]), token("z", -2.0, vec![])];
        let written = Written {
            text: " éa".into(),
            tokens: vec![1, 2],
            tool_calls: vec![],
            logprobs: vec![token(" é", -0.25, top), token("a", -3.0, vec![token("b", -0.5, vec![])])],
            finish: Finish::Length,
        };
        let usage = Usage { input_tokens: 5, cached_tokens: 0, output_tokens: 2 };
        let head = Head::new(Shape::Completion, "x", 1_700_000_000, "m@1".into());
        let answer = Completion::new(head, written, usage);
        let want = json!({
            "id": "cmpl-x", "object": "text_completion", "created": 1_700_000_000, "model": "m@1",
            "choices": [{
                "index": 0, "text": " éa",
                "logprobs": {
                    "tokens": [" é", "a"],
                    "token_logprobs": [-0.25, -3.0],
                    "top_logprobs": [{" é": -0.25, "z": -1.5}, {"b": -0.5, "a": -3.0}],
                    "text_offset": [0, 2],
                },
                "finish_reason": "length",
            }],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        });
        assert_eq!(serde_json::to_value(&answer).unwrap(), want);
        assert!(
            serde_json::to_string(&answer).unwrap().contains(r#"{"b":-0.5,"a":-3.0}"#),
            "the likeliest comes first"
        );
    }
}
