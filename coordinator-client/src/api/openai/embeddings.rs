//! OpenAI's shapes for embeddings: their request becomes a task's input, a task's output becomes their response.

use crate::api::{Code, Problem};
use crate::wire::task::{EmbedInput, Text};
use crate::wire::{TaskInput, TaskOutput, Usage};
use base64::Engine;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct EmbeddingsRequest {
    /// `name` or `name@version`.
    pub model: String,
    /// One text, several, or the token ids of one or several.
    pub input: Input,
    /// How vectors are written; numbers when absent.
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// Keep only the first so many dimensions: one of the model's `matryoshka_dimensions` where it has such, else any.
    #[serde(default)]
    pub dimensions: Option<u32>,
    /// What the texts are for: `query`, `document`, or another name that the model has a prompt for. The model's default
    /// when absent. Not OpenAI's: Cohere's and Voyage's.
    #[serde(default)]
    pub input_type: Option<String>,
    /// The exact name of one of the model's prompts, in place of `input_type`. Not OpenAI's.
    #[serde(default)]
    pub prompt_name: Option<String>,
    /// Cut what is too long instead of refusing it. Not OpenAI's.
    #[serde(default)]
    pub truncate: bool,
}

/// What is embedded.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "input must be a text, texts, token ids, or lists of token ids")]
pub enum Input {
    /// One text.
    Text(String),
    /// Several.
    Texts(Vec<String>),
    /// The token ids of one text.
    Ids(Vec<u32>),
    /// The token ids of several.
    IdLists(Vec<Vec<u32>>),
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// Arrays of numbers.
    #[default]
    Float,
    /// Base64 of little-endian `f32`.
    Base64,
}

impl EmbeddingsRequest {
    /// The task that it asks for, with the model and the encoding of the answer.
    pub fn into_task(self) -> (String, TaskInput, EncodingFormat) {
        let inputs = match self.input {
            Input::Text(text) => vec![Text::Words(text)],
            Input::Texts(texts) => texts.into_iter().map(Text::Words).collect(),
            Input::Ids(ids) => vec![Text::Ids(ids)],
            Input::IdLists(lists) => lists.into_iter().map(Text::Ids).collect(),
        };
        let Self { model, dimensions, input_type, prompt_name, truncate, .. } = self;
        let input = EmbedInput { inputs, input_type, prompt_name, dimensions, normalize: None, truncate };
        (model, TaskInput::Embed(input), self.encoding_format.unwrap_or_default())
    }
}

/// Answer to `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: &'static str,
    /// One per text, in their order.
    pub data: Vec<Embedding>,
    /// `name@version` of the model that answered.
    pub model: String,
    /// Tokens.
    pub usage: EmbeddingsUsage,
}

/// One vector.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Position of the text in the request.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector in one of its encodings.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian `f32`.
    Base64(String),
}

/// Tokens as OpenAI counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct EmbeddingsUsage {
    /// Tokens of all inputs, special tokens included.
    pub prompt_tokens: u64,
    /// The same: an embedding has no other tokens.
    pub total_tokens: u64,
}

impl EmbeddingsResponse {
    /// The response that a task's output gives.
    ///
    /// # Errors
    /// When the output is not embeddings: a fault of whoever answered the task.
    pub fn new(model: String, output: TaskOutput, usage: Usage, format: EncodingFormat) -> Result<Self, Problem> {
        let TaskOutput::Embed { embeddings } = output else {
            return Err(Problem::new(Code::Internal, "the task's output is not embeddings"));
        };
        let embedding = |(index, row): (usize, &[f32])| {
            let embedding = match format {
                EncodingFormat::Float => Vector::Float(row.to_vec()),
                EncodingFormat::Base64 => {
                    let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
                    Vector::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
                }
            };
            Embedding { object: "embedding", index, embedding }
        };
        let data = embeddings.rows().enumerate().map(embedding).collect();
        let tokens = usage.input_tokens;
        let usage = EmbeddingsUsage { prompt_tokens: tokens, total_tokens: tokens };
        Ok(Self { object: "list", data, model, usage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Matrix;

    /// `want` are the inputs as JSON, or nothing for a refusal.
    fn check(input: &str, want: Option<&str>) {
        let body = format!(r#"{{"model": "m", "user": "u", "input": {input}}}"#);
        let request = serde_json::from_str::<EmbeddingsRequest>(&body);
        let inputs = request.as_ref().ok().map(|request| match request.clone().into_task() {
            (model, TaskInput::Embed(input), EncodingFormat::Float) if model == "m" => {
                serde_json::to_string(&input.inputs).unwrap()
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(inputs.as_deref(), want, "{input}: {request:?}");
    }

    #[test]
    fn every_form_of_input_is_read_and_others_are_refused() {
        check(r#""a""#, Some(r#"["a"]"#));
        check(r#"["a","b"]"#, Some(r#"["a","b"]"#));
        check("[1,2]", Some("[[1,2]]"));
        check("[[1,2],[3]]", Some("[[1,2],[3]]"));
        check("7", None);
        check(r#"["a",1]"#, None);
        check("[-1]", None);
        check("null", None);
    }

    #[test]
    fn what_is_beside_the_input_reaches_the_task() {
        let body = r#"{"model": "m", "input": "a", "input_type": "query", "prompt_name": "p", "dimensions": 2,
            "truncate": true, "encoding_format": "base64"}"#;
        let (_, task, format) = serde_json::from_str::<EmbeddingsRequest>(body).unwrap().into_task();
        let want = EmbedInput {
            inputs: vec![Text::Words("a".into())],
            input_type: Some("query".into()),
            prompt_name: Some("p".into()),
            dimensions: Some(2),
            normalize: None,
            truncate: true,
        };
        assert_eq!((task, format), (TaskInput::Embed(want), EncodingFormat::Base64));
    }

    #[test]
    fn vectors_are_written_as_asked() {
        let output = || TaskOutput::Embed { embeddings: Matrix { columns: 2, values: vec![1.0, -0.5, 0.25, 2.0] } };
        let json = |format| {
            let response =
                EmbeddingsResponse::new("m@1".into(), output(), Usage { input_tokens: 7, ..Usage::default() }, format);
            serde_json::to_value(response.unwrap()).unwrap()
        };
        let floats = json(EncodingFormat::Float);
        assert_eq!(floats["data"][1]["embedding"], serde_json::json!([0.25, 2.0]));
        assert_eq!((&floats["data"][1]["index"], &floats["usage"]["total_tokens"]), (&1.into(), &7.into()));
        // 0x3f800000 and 0xbf000000, little-endian.
        assert_eq!(json(EncodingFormat::Base64)["data"][0]["embedding"], "AACAPwAAAL8=");
    }

    #[test]
    fn another_kind_of_output_is_an_error() {
        let output = TaskOutput::Infer { outputs: vec![] };
        let response = EmbeddingsResponse::new("m".into(), output, Usage::default(), EncodingFormat::Float);
        assert_eq!(response.unwrap_err().code, Code::Internal);
    }
}
