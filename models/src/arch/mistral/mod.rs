//! Mistral: as Llama, where stated with a window that every layer sees only.
//!
//! # Source
//! Jiang et al., arXiv 2310.06825. Names are those of `transformers`.

use super::Architecture;
use super::causal::{self, Family, LLAMA};
use super::decoder::Decoder;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "mistral",
    claims: |config| config["model_type"] == "mistral",
    describe: None,
    decode: Some(decode),
    #[cfg(feature = "candle")]
    build: None,
};

fn decode(config: &Value, checkpoint: &Checkpoint) -> Result<Decoder, Error> {
    causal::describe(config, checkpoint, &Family { windows: |_, _| true, ..LLAMA })
}
