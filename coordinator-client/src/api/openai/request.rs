//! What the requests of chat and completions have in common, and what their answers begin and end with.

use crate::api::{Code, Problem};
use crate::wire::Usage;
use crate::wire::text::{Format, JsonText};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request for a text: its own fields and those that both routes take. One list, so that none has what the other lacks.
macro_rules! request {
    ($(#[$meta:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $($own)*
            /// New tokens at most.
            pub max_tokens: Option<u32>,
            /// 0, which is greedy, to 2. The model's own when absent, as with all of these.
            pub temperature: Option<f32>,
            /// The share of probability that is left, above 0 to 1.
            pub top_p: Option<f32>,
            /// How many of the likeliest tokens are left; 0 or less is all. Not OpenAI's: vLLM's, as the next four.
            pub top_k: Option<i64>,
            /// The least probability, in parts of the likeliest token's.
            pub min_p: Option<f32>,
            /// The share that is left of the most typical tokens.
            pub typical_p: Option<f32>,
            /// For tokens of prompt and text; 1 is off.
            pub repetition_penalty: Option<f32>,
            /// Goes on where the model would end its text, for measuring.
            pub ignore_eos: Option<bool>,
            /// For tokens of the text, once; −2 to 2.
            pub presence_penalty: Option<f32>,
            /// For tokens of the text, as often as they are in it; −2 to 2.
            pub frequency_penalty: Option<f32>,
            /// What is added to logits, by token id: −100 to 100.
            #[schema(value_type = Option<std::collections::BTreeMap<String, f32>>)]
            pub logit_bias: Option<std::collections::BTreeMap<u32, f32>>,
            /// The same seed gives the same text.
            pub seed: Option<i64>,
            /// The text ends before one of these, 16 at most.
            pub stop: Option<crate::api::openai::request::Stop>,
            /// How many texts: only 1.
            pub n: Option<u32>,
            /// What the text must look like.
            pub response_format: Option<crate::api::openai::request::ResponseFormat>,
            /// Chunks as they are written, in place of one answer.
            pub stream: Option<bool>,
            /// How chunks are sent.
            pub stream_options: Option<crate::api::openai::request::StreamOptions>,
        }

        impl $name {
            /// The shape of the answer that is wanted.
            fn how(&self, shape: crate::api::openai::Shape) -> crate::api::openai::How {
                let include_usage = self.stream_options.as_ref().and_then(|options| options.include_usage);
                crate::api::openai::How {
                    shape,
                    stream: self.stream.unwrap_or(false),
                    include_usage: include_usage.unwrap_or(false),
                }
            }

            /// How the text is to be written, as far as both routes say it alike.
            fn options(&mut self) -> Result<crate::wire::text::WriteOptions, crate::api::Problem> {
                crate::api::openai::request::only_one("n", self.n)?;
                let format = self.response_format.take().map(|format| format.into_format()).transpose()?.flatten();
                Ok(crate::wire::text::WriteOptions {
                    max_tokens: self.max_tokens,
                    temperature: self.temperature,
                    top_k: self.top_k.map(|count| u32::try_from(count.max(0)).unwrap_or(u32::MAX)),
                    top_p: self.top_p,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.take().unwrap_or_default(),
                    logprobs: None,
                    seed: self.seed.map(i64::cast_unsigned),
                    stop: self.stop.take().map(|stop| stop.into_list()).unwrap_or_default(),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    format,
                    generated: vec![],
                })
            }
        }
    };
}
pub(super) use request;

/// Which of the two routes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// How an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// Of which route.
    pub shape: Shape,
    /// In chunks as it is written.
    pub stream: bool,
    /// With a last chunk that has the usage.
    pub include_usage: bool,
}

/// What an answer, and each of its chunks, begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// `name@version` of the model that answers.
    pub model: String,
}

impl Head {
    /// With an id of the shape's kind around one that is used once.
    pub fn new(shape: Shape, unique: impl std::fmt::Display, created: u64, model: String) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl",
            Shape::Completion => "cmpl",
        };
        Self { id: format!("{prefix}-{unique}"), created, model }
    }
}

/// Stop strings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "stop must be a text or texts")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Stop {
    pub(super) fn into_list(self) -> Vec<String> {
        match self {
            Stop::One(stop) => vec![stop],
            Stop::Several(stops) => stops,
        }
    }
}

/// How chunks are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk without choices has the usage.
    pub include_usage: Option<bool>,
}

/// What a text must look like: `{"type": "json_schema", "json_schema": {"schema": {…}}}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// Which kind; the field of its name says more.
    #[serde(rename = "type")]
    pub kind: FormatKind,
    /// For `json_schema`.
    pub json_schema: Option<NamedSchema>,
    /// For `regex`: matched from beginning to end.
    pub pattern: Option<String>,
    /// For `grammar`, in Lark's notation.
    pub grammar: Option<String>,
}

/// The kinds of format. The last two are not OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    /// Anything.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema,
    /// What a regular expression matches.
    Regex,
    /// What a grammar allows.
    Grammar,
}

/// A schema as OpenAI wraps it. Its name, description and strictness change nothing: it is always kept to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct NamedSchema {
    /// JSON Schema.
    #[schema(value_type = Object)]
    pub schema: JsonText,
}

impl ResponseFormat {
    pub(super) fn into_format(self) -> Result<Option<Format>, Problem> {
        let lacks = |kind: &str, field: &str| {
            let detail = format!("response_format of type {kind} needs {field} beside its type");
            Problem::new(Code::InvalidInput, detail)
        };
        Ok(match self.kind {
            FormatKind::Text => None,
            FormatKind::JsonObject => Some(Format::JsonObject),
            FormatKind::JsonSchema => {
                let NamedSchema { schema } = self.json_schema.ok_or_else(|| lacks("json_schema", "json_schema"))?;
                Some(Format::JsonSchema(schema))
            }
            FormatKind::Regex => Some(Format::Regex(self.pattern.ok_or_else(|| lacks("regex", "pattern"))?)),
            FormatKind::Grammar => Some(Format::Grammar(self.grammar.ok_or_else(|| lacks("grammar", "grammar"))?)),
        })
    }
}

/// Refuses more than one text for one request.
pub(super) fn only_one(field: &str, count: Option<u32>) -> Result<(), Problem> {
    match count {
        None | Some(1) => Ok(()),
        Some(count) => {
            let detail = format!("{field} is {count}, and one text is written for a request; send several requests");
            Err(Problem::new(Code::InvalidInput, detail))
        }
    }
}

/// Tokens as OpenAI counts those of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionUsage {
    /// Tokens of the prompt, special ones included.
    pub prompt_tokens: u64,
    /// Tokens that were written.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// More of the prompt's.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More of the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those that were not computed because the KV cache had them.
    pub cached_tokens: u64,
}

impl From<Usage> for CompletionUsage {
    fn from(Usage { input_tokens, cached_tokens, output_tokens }: Usage) -> Self {
        Self {
            prompt_tokens: input_tokens,
            completion_tokens: output_tokens,
            total_tokens: input_tokens.saturating_add(output_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}
