//! What a task asks and what it gives, as JSON for people and as MessagePack on the link. The same types serve both:
//! tensors are arrays of numbers in JSON and raw bytes on the link.

use super::tensor::{Matrix, Tensor};
use super::text::{ChatInput, GenerateInput, Written};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kinds of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Texts to vectors.
    Embed,
    /// A query and documents to scores.
    Rerank,
    /// Texts or tensors to labels.
    Classify,
    /// Named tensors to named tensors.
    Infer,
    /// A prompt to the text behind it.
    Generate,
    /// A conversation to its next message.
    Chat,
}

impl TaskKind {
    /// All of them.
    pub const ALL: &[TaskKind] =
        &[TaskKind::Embed, TaskKind::Rerank, TaskKind::Classify, TaskKind::Infer, TaskKind::Generate, TaskKind::Chat];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Embed => "embed",
            TaskKind::Rerank => "rerank",
            TaskKind::Classify => "classify",
            TaskKind::Infer => "infer",
            TaskKind::Generate => "generate",
            TaskKind::Chat => "chat",
        }
    }

    /// The kind of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// What is asked: `{"kind": "embed", "input": {"inputs": ["…"]}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", content = "input", rename_all = "snake_case")]
pub enum TaskInput {
    /// Texts to vectors.
    Embed(EmbedInput),
    /// A query and documents to scores.
    Rerank(RerankInput),
    /// Texts or tensors to labels.
    Classify(ClassifyInput),
    /// Named tensors to named tensors.
    Infer(InferInput),
    /// A prompt to the text behind it.
    Generate(GenerateInput),
    /// A conversation to its next message.
    Chat(ChatInput),
}

impl TaskInput {
    /// Which kind it is.
    pub fn kind(&self) -> TaskKind {
        match self {
            TaskInput::Embed(_) => TaskKind::Embed,
            TaskInput::Rerank(_) => TaskKind::Rerank,
            TaskInput::Classify(_) => TaskKind::Classify,
            TaskInput::Infer(_) => TaskKind::Infer,
            TaskInput::Generate(_) => TaskKind::Generate,
            TaskInput::Chat(_) => TaskKind::Chat,
        }
    }
}

/// A text, or token ids of one (special tokens included).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Text {
    /// Words.
    Words(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Texts to embed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbedInput {
    /// 1 to 2,048 texts.
    pub inputs: Vec<Text>,
    /// What the texts are for: `query`, `document`, or another name that the model has a prompt for; names that other
    /// services have for these two are known too. The model's prompt of this name is put before each text. The model's
    /// default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_type: Option<String>,
    /// The exact name of one of the model's prompts, in place of `input_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_name: Option<String>,
    /// Keep only the first so many dimensions: one of the model's `matryoshka_dimensions` where it has such, else any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Scale to length 1; the model's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Cut what is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
}

/// A query and the documents to score against it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RerankInput {
    /// What is looked for.
    pub query: String,
    /// What is scored.
    pub documents: Vec<String>,
    /// Only the best so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n: Option<u32>,
    /// Cut what is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
}

/// Texts, or tensors, to label. Exactly one of `inputs` and `tensors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifyInput {
    /// Texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Text>,
    /// The model's tensors, rows outermost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
    /// Only the best so many labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n: Option<u32>,
    /// Cut what is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
}

/// Named tensors in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InferInput {
    /// The model's inputs.
    pub inputs: Vec<Tensor>,
    /// Names of the wanted outputs; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

/// What a task gave: `{"kind": "embed", "output": {"embeddings": [[…]]}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", content = "output", rename_all = "snake_case")]
pub enum TaskOutput {
    /// One vector per text.
    Embed {
        /// `[n, dimensions]`.
        embeddings: Matrix,
    },
    /// Scores, best first.
    Rerank {
        /// Per document.
        results: Vec<Score>,
    },
    /// Labels per input, best first.
    Classify {
        /// Per input.
        results: Vec<Vec<Label>>,
    },
    /// Named tensors.
    Infer {
        /// The model's outputs.
        outputs: Vec<Tensor>,
    },
    /// The text behind the prompt.
    Generate(Written),
    /// The message.
    Chat(Written),
}

/// A document's score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Score {
    /// Position in the request.
    pub index: u32,
    /// 0 to 1.
    pub score: f32,
}

/// A label and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Label {
    /// The class.
    pub label: String,
    /// 0 to 1.
    pub score: f32,
}

/// What a task took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens read, special tokens included; 0 for tensors.
    pub input_tokens: u64,
    /// Of these, tokens that were not computed because the KV cache had them.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Tokens of the text that was written, those that another node wrote included; 0 where none is.
    #[serde(default)]
    pub output_tokens: u64,
}
