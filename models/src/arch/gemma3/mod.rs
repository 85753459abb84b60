//! Gemma 3, text only: norms of heads, five layers with a window and angles of their own to one without.
//!
//! # Source
//! Gemma Team, arXiv 2503.19786. Names are those of `transformers`.

use super::Architecture;
use super::causal::{self, Family, GEMMA};
use super::decoder::Decoder;
use super::settings::Settings;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    claims: |config| config["model_type"] == "gemma3_text",
    describe: None,
    decode: Some(decode),
    #[cfg(feature = "candle")]
    build: None,
};

fn decode(config: &Value, checkpoint: &Checkpoint) -> Result<Decoder, Error> {
    let windows = |settings: Settings<'_>, layer: usize| {
        let period = settings.0["sliding_window_pattern"].as_u64().unwrap_or(6).max(1);
        !(layer as u64 + 1).is_multiple_of(period)
    };
    causal::describe(config, checkpoint, &Family { windows, ..GEMMA })
}
