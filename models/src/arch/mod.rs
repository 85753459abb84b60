//! The architectures that run here, one line each. A `config.json` and a checkpoint go in, the description of an encoder or a
//! model on Candle's tensors comes out. Nothing here opens a file.

pub mod bert;
mod causal;
pub mod decoder;
pub mod distilbert;
pub mod encoder;
pub mod gemma2;
pub mod gemma3;
pub mod gte;
pub mod jina_bert;
pub mod llama;
pub mod mistral;
pub mod mlp;
pub mod modernbert;
pub mod mpnet;
pub mod nomic_bert;
mod parts;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod roberta;
mod scaling;
mod settings;
#[cfg(feature = "candle")]
mod weights;

pub(crate) use settings::has_head;
#[cfg(feature = "candle")]
pub use weights::Weights;

#[cfg(feature = "candle")]
use crate::engine::TensorSpec;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use crate::manifest::Manifest;
use serde_json::Value;

/// Every architecture. A manifest's `architecture` names one of them.
pub const ALL: &[Architecture] = &[
    bert::ARCHITECTURE,
    distilbert::ARCHITECTURE,
    gemma2::ARCHITECTURE,
    gemma3::ARCHITECTURE,
    gte::ARCHITECTURE,
    jina_bert::ARCHITECTURE,
    llama::ARCHITECTURE,
    mistral::ARCHITECTURE,
    mlp::ARCHITECTURE,
    modernbert::ARCHITECTURE,
    mpnet::ARCHITECTURE,
    nomic_bert::ARCHITECTURE,
    phi3::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    roberta::ARCHITECTURE,
];

/// One architecture.
#[derive(Debug)]
pub struct Architecture {
    /// Its name in manifests, which is its folder here.
    pub name: &'static str,
    /// Whether a `config.json` describes a model of this architecture.
    pub claims: fn(&Value) -> bool,
    /// Describes the encoder, where it is one: backends run what is described.
    pub describe: Option<Describe>,
    /// Describes the decoder, where it writes text.
    pub decode: Option<Decode>,
    /// Makes a model of another kind on Candle's tensors.
    #[cfg(feature = "candle")]
    pub build: Option<Build>,
}

/// Describes an encoder from its `config.json`, its manifest and the names and shapes in its checkpoint.
pub type Describe = fn(&Value, &Manifest, &Checkpoint) -> Result<encoder::Encoder, Error>;

/// Describes a decoder from its `config.json` and the names and shapes in its checkpoint.
pub type Decode = fn(&Value, &Checkpoint) -> Result<decoder::Decoder, Error>;

/// Makes a model on Candle's tensors.
#[cfg(feature = "candle")]
pub type Build = fn(&Value, &Manifest, &Weights<'_>) -> Result<Box<dyn Rows>, Error>;

/// What an encoder takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Segment ids are below this; with 0 or 1 they are not looked at.
    pub types: usize,
    /// Tokens of a sequence at most, special tokens included.
    pub tokens: usize,
    /// Length of the vector that comes out.
    pub vector: usize,
}

/// A model that turns rows of one tensor into rows of another.
#[cfg(feature = "candle")]
pub trait Rows: Send + Sync {
    /// Its only input; f32, `[n, …]`.
    fn input(&self) -> TensorSpec;

    /// Its only output; f32, `[n, …]`.
    fn output(&self) -> TensorSpec;

    /// `[n, …]` to `[n, …]`, in f32.
    ///
    /// # Errors
    /// What the device says.
    fn forward(&self, rows: &candle_core::Tensor) -> candle_core::Result<candle_core::Tensor>;
}
