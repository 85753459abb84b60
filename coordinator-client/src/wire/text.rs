//! What is asked of a model that writes text, and what it writes: whole in a result, piece by piece in progress frames. The same types serve
//! JSON for people and MessagePack on the link. Types only.

use super::task::Text;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A text to be continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateInput {
    /// What it begins with: words, which the model's tokenizer begins as it begins a text, or token ids as they are.
    pub prompt: Text,
    /// How it goes on.
    #[serde(default)]
    pub options: WriteOptions,
}

/// A conversation to be answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatInput {
    /// Messages as OpenAI has them: `[{"role": "user", "content": "…"}]`.
    #[schema(value_type = Vec<Object>)]
    pub messages: JsonText,
    /// Tools that may be called, as OpenAI has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<JsonText>,
    /// Whether tools are called: by the model's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// How the answer is written.
    #[serde(default)]
    pub options: WriteOptions,
}

/// Whether an answer may call tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// It does not; the model is not told of any.
    None,
    /// As the model chooses.
    Auto,
    /// It calls at least one.
    Required,
    /// It calls this one.
    Function(String),
}

/// How a text is written. What is absent is as the model's own files say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WriteOptions {
    /// New tokens at most; as many as the model's context has room for when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0, which is greedy, to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are left; 0 is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// The share of probability that is left, above 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// The least probability, in parts of the likeliest token's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// The share that is left of the most typical tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// For tokens of prompt and text; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// For tokens of the text, once; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// For tokens of the text, as often as they are in it; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// What is added to logits, by token id: −100 to 100.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Log-probabilities of each token and so many of the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// The same seed gives the same text. One is chosen when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The text ends before one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Goes on where the model would end its text, for measuring.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
    /// What the text must look like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Tokens that were written already, by another node: the text goes on behind them, and they count as its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generated: Vec<u32>,
}

/// What a text must look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(JsonText),
    /// What this regular expression matches from beginning to end.
    Regex(String),
    /// What this grammar allows, in Lark's notation.
    Grammar(String),
}

/// A text that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Written {
    /// What it says, without stop strings and without the calls of tools.
    pub text: String,
    /// All its tokens in order, those that another node wrote included.
    pub tokens: Vec<u32>,
    /// The tools that it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Of each token that this node wrote, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ends.
    pub finish: Finish,
}

/// A piece of a text that is being written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Piece {
    /// The tokens since the last piece. What they say may come with a later one.
    pub tokens: Vec<u32>,
    /// What may be shown since the last piece.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Calls that are complete since the last piece.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Of each of the tokens, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
}

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model, a stop string or the format ended it.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// It calls tools.
    ToolCalls,
}

impl Finish {
    /// Its name as OpenAI has it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Which tool.
    pub name: String,
    /// Its arguments: the text of a JSON object.
    pub arguments: String,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// What it says; bytes that are no character are shown as �.
    pub text: String,
    /// Natural logarithm of its probability before anything was left out.
    pub logprob: f32,
    /// The likeliest in its place, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub top: Vec<TokenLogprob>,
}

/// JSON that is passed on as it was written: keys keep their order, numbers their digits. JSON inside JSON; text on the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// JSON of this text.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn new(text: String) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&serde_json::value::RawValue>(&text)?;
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let raw: &serde_json::value::RawValue = serde_json::from_str(&self.0).map_err(ser::Error::custom)?;
            raw.serialize(serializer)
        } else {
            serializer.serialize_str(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let raw = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
            Ok(Self(String::from(Box::<str>::from(raw))))
        } else {
            Self::new(String::deserialize(deserializer)?).map_err(de::Error::custom)
        }
    }
}

impl utoipa::PartialSchema for JsonText {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let any = utoipa::openapi::schema::SchemaType::AnyValue;
        utoipa::openapi::ObjectBuilder::new().schema_type(any).build().into()
    }
}

impl ToSchema for JsonText {}
