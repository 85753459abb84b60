//! What callers ask of a model and what they get: pure preparation before the device and pure finishing after it.
//! A [`Pipeline`] belongs to one loaded model and is shared by the CPU threads.

mod classify;
mod embed;
pub mod generate;
mod infer;
pub mod limits;
mod pipeline;
mod prompt;
mod rerank;
mod split;
mod tokenizer;

pub use pipeline::{Pending, Pipeline, Prepared};
pub use prompt::Prompt;
pub use split::Part;
pub use tokenizer::Tokenizer;

use crate::tensor::NamedTensor;

/// What a caller asks. Bounds on counts and lengths are checked by [`Pipeline::prepare`].
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Texts to vectors.
    Embed {
        /// One vector each.
        inputs: Vec<Text>,
        /// What stands before each text; the manifest's default when absent. Token ids are taken as they are: a prompt
        /// that is chosen for them is refused.
        prompt: Option<Prompt>,
        /// Keep only the first so many dimensions (Matryoshka), then normalise.
        dimensions: Option<usize>,
        /// Scale to length 1; the manifest's choice when absent.
        normalize: Option<bool>,
        /// Cut inputs that are too long instead of refusing them.
        truncate: bool,
    },
    /// Scores of documents against a query.
    Rerank {
        /// What is looked for.
        query: String,
        /// What is scored.
        documents: Vec<String>,
        /// Only the best so many.
        top_n: Option<usize>,
        /// Cut pairs that are too long (the document's end) instead of refusing them.
        truncate: bool,
    },
    /// Labels of texts.
    ClassifyTexts {
        /// One ranking each.
        inputs: Vec<Text>,
        /// Only the best so many labels.
        top_n: Option<usize>,
        /// Cut inputs that are too long instead of refusing them.
        truncate: bool,
    },
    /// Labels of tensor rows, e.g. images.
    ClassifyTensors {
        /// The model's inputs, rows outermost.
        inputs: Vec<NamedTensor>,
        /// Only the best so many labels.
        top_n: Option<usize>,
    },
    /// Named tensors to named tensors.
    Infer {
        /// The model's inputs.
        inputs: Vec<NamedTensor>,
        /// Names of the wanted outputs; all when empty.
        outputs: Vec<String>,
    },
}

impl Request {
    /// What it asks for, in words.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Embed { .. } => "embed",
            Request::Rerank { .. } => "rerank",
            Request::ClassifyTexts { .. } => "classify texts",
            Request::ClassifyTensors { .. } => "classify tensors",
            Request::Infer { .. } => "infer",
        }
    }
}

/// A text, or one that the caller has already tokenised.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// Words.
    Words(String),
    /// Token ids, special tokens included.
    Ids(Vec<u32>),
}

/// What a caller gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Of [`Request::Embed`], in the order of its inputs.
    Embeddings {
        /// Length of each vector.
        dimensions: usize,
        /// `[n, dimensions]`, row-major.
        values: Vec<f32>,
    },
    /// Of [`Request::Rerank`], best first; ties by index.
    Ranking(Vec<Score>),
    /// Of the classifications: per input, best first; probabilities.
    Labels(Vec<Vec<Label>>),
    /// Of [`Request::Infer`].
    Tensors(Vec<NamedTensor>),
}

/// A document's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Position in the request.
    pub index: usize,
    /// Sigmoid of the logit, 0 to 1.
    pub score: f32,
}

/// A label and its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The manifest's name, or `LABEL_3`.
    pub label: String,
    /// Softmax of the logits, 0 to 1.
    pub score: f32,
}

/// Why a request is refused, or could not be finished.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The model does not do this task.
    #[error("{model} does {does}, not {asked}; choose another model")]
    WrongTask {
        /// `name@version`.
        model: String,
        /// Its task.
        does: &'static str,
        /// The asked one.
        asked: &'static str,
    },
    /// Nothing to do, or too much at once.
    #[error("{what}: {have} given, 1 to {max} allowed")]
    Count {
        /// `inputs`, `documents`, …
        what: &'static str,
        /// How many came.
        have: usize,
        /// How many may come.
        max: usize,
    },
    /// Longer than the model takes.
    #[error("input {index} has {have} tokens, {model} takes {max}; shorten it or set truncate")]
    TooLong {
        /// Which input.
        index: usize,
        /// `name@version`.
        model: String,
        /// Its tokens.
        have: usize,
        /// The model's limit.
        max: usize,
    },
    /// A token id that the model does not have.
    #[error("input {index}: token id {id} is not below the vocabulary's {vocabulary}")]
    TokenId {
        /// Which input.
        index: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// An input that the model does not know, twice, or missing.
    #[error("input {name:?} is {problem}; {model} takes {takes}")]
    Name {
        /// The name.
        name: String,
        /// `unknown`, `missing` or `given twice`.
        problem: &'static str,
        /// `name@version`.
        model: String,
        /// The inputs it has, with types and shapes.
        takes: String,
    },
    /// An output that the model does not have.
    #[error("output {name:?} is unknown; {model} gives {gives}")]
    Output {
        /// The name.
        name: String,
        /// `name@version`.
        model: String,
        /// The outputs it has.
        gives: String,
    },
    /// A tensor of another type.
    #[error("input {name:?} is {have}, the model takes {want}")]
    Type {
        /// The input.
        name: String,
        /// Its type.
        have: &'static str,
        /// The model's type.
        want: &'static str,
    },
    /// A tensor of another shape.
    #[error("input {name:?} has shape {have:?}, the model takes {want}")]
    Shape {
        /// The input.
        name: String,
        /// Its shape.
        have: Vec<usize>,
        /// The model's, e.g. `[n, 64]`.
        want: String,
    },
    /// NaN or infinity.
    #[error("input {name:?} has values that are not finite")]
    NotFinite {
        /// The input.
        name: String,
    },
    /// A prompt that the model does not have, that may be one of several, or that cannot stand where it should.
    #[error("{field} {name:?} {problem}")]
    Prompt {
        /// `input_type` or `prompt_name`.
        field: &'static str,
        /// As given.
        name: String,
        /// Why not, with what there is.
        problem: String,
    },
    /// A number out of its range.
    #[error("{what} is {have}, it must be {want}")]
    Range {
        /// `dimensions`, `top_n`.
        what: &'static str,
        /// As given.
        have: usize,
        /// The range in words.
        want: String,
    },
    /// The tokenizer failed on this input.
    #[error("input {index} could not be tokenised: {detail}")]
    Tokenizer {
        /// Which input.
        index: usize,
        /// Its own words.
        detail: String,
    },
    /// The engine gave what its model cannot give: our own or the model's fault, never the caller's.
    #[error("{model} gave an output that is not valid: {detail}")]
    BrokenOutput {
        /// `name@version`.
        model: String,
        /// What is wrong with it.
        detail: String,
    },
}
