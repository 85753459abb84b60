//! Phi 3 and 4: as Llama, queries, keys and values in one matrix, gate and up in another, a part of each head turned.
//!
//! # Source
//! Abdin et al., arXiv 2404.14219 and 2412.08905. Names are those of `transformers`.

use super::Architecture;
use super::causal::{self, Family, LLAMA};
use super::decoder::Decoder;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "phi3",
    claims: |config| config["model_type"] == "phi3",
    describe: None,
    decode: Some(decode),
    #[cfg(feature = "candle")]
    build: None,
};

fn decode(config: &Value, checkpoint: &Checkpoint) -> Result<Decoder, Error> {
    causal::describe(config, checkpoint, &Family { windows: |_, _| true, ..LLAMA })
}
