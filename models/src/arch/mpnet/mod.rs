//! MPNet (all-mpnet-base-v2): BERT's layers with one learned bias by distance for all of them, RoBERTa's positions and
//! classifier, and no segments.
//!
//! # Source
//! Song et al., "MPNet" (arXiv 2004.09297). Names are those of `transformers`.

use super::Architecture;
use super::encoder::{Bias, Encoder, Slice};
use super::parts::{self, Names};
use super::roberta::Family;
use super::settings::Settings;
use crate::load::checkpoint::Checkpoint;
use crate::load::{Error, inspect};
use crate::manifest::Manifest;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "mpnet",
    claims: |config| config["model_type"] == "mpnet",
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

const NAMES: Names = Names {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    out: "attention.attn.o",
    norm: "attention.LayerNorm",
    ..parts::BERT
};

/// The padding token around which positions are counted, whatever the configuration says.
const PADDING: u32 = 1;

/// Distances from here on share a bucket.
const DISTANCE_MAX: usize = 128;

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let family = Family { prefix: "mpnet.", epsilon: 1e-12, padding: PADDING, names: &NAMES, has_types: false };
    let plain = family.describe(config, manifest, checkpoint)?;
    let buckets = Settings(config).size_or("relative_attention_num_buckets", 32)?;
    if !buckets.is_multiple_of(4) {
        let detail = format!("relative_attention_num_buckets is {buckets}; a multiple of 4 is needed");
        return Err(Error::config(inspect::CONFIG, detail));
    }
    let prefix = checkpoint.prefix(family.prefix, "embeddings.word_embeddings.weight");
    let name = format!("{prefix}encoder.relative_attention_bias.weight");
    let table = Slice::whole(name, &[buckets, plain.heads.queries]);
    Ok(Encoder { bias: Some(Bias::Buckets { table, distance_max: DISTANCE_MAX }), ..plain })
}
