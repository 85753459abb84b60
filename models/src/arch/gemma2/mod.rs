//! Gemma 2: norms before and after each part, scores and logits bounded by tanh, every second layer with a window.
//!
//! # Source
//! Gemma Team, arXiv 2408.00118. Names are those of `transformers`.

use super::Architecture;
use super::causal::{self, Family, GEMMA};
use super::decoder::Decoder;
use super::settings::Settings;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    claims: |config| config["model_type"] == "gemma2",
    describe: None,
    decode: Some(decode),
    #[cfg(feature = "candle")]
    build: None,
};

fn decode(config: &Value, checkpoint: &Checkpoint) -> Result<Decoder, Error> {
    let windows = |_: Settings<'_>, layer: usize| layer.is_multiple_of(2);
    causal::describe(config, checkpoint, &Family { windows, ..GEMMA })
}
