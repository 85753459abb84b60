//! Qwen2 and Qwen2.5: as Llama, with biases for queries, keys and values.
//!
//! # Source
//! Yang et al., arXiv 2407.10671. Names are those of `transformers`.

use super::Architecture;
use super::causal::{self, Family, LLAMA};
use super::decoder::Decoder;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    claims: |config| config["model_type"] == "qwen2",
    describe: None,
    decode: Some(decode),
    #[cfg(feature = "candle")]
    build: None,
};

fn decode(config: &Value, checkpoint: &Checkpoint) -> Result<Decoder, Error> {
    causal::describe(config, checkpoint, &Family { windows: causal::upper_layers, ..LLAMA })
}
