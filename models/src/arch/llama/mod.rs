//! Llama 2 and 3, and what is built like them (SmolLM, TinyLlama): RMS norms, rotary positions, SwiGLU, keys shared by queries.
//!
//! # Source
//! Touvron et al., arXiv 2307.09288; Grattafiori et al., arXiv 2407.21783. Names are those of `transformers`.

use super::Architecture;
use super::causal::{self, LLAMA};
use super::decoder::Decoder;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    claims: |config| config["model_type"] == "llama",
    describe: None,
    decode: Some(decode),
    #[cfg(feature = "candle")]
    build: None,
};

fn decode(config: &Value, checkpoint: &Checkpoint) -> Result<Decoder, Error> {
    causal::describe(config, checkpoint, &LLAMA)
}
