//! MPNet (all-mpnet-base-v2): BERT's layers with one learned bias by distance for all of them, RoBERTa's positions and
//! classifier, and no segments.
//!
//! # Source
//! Song et al., "MPNet" (arXiv 2004.09297). Names are those of `transformers`.

use super::encoder::{Activation, Bias, Embeddings, Encoder, Positions, Slice};
use super::parts::{self, Names, Plain};
use super::settings::Settings;
use super::{Architecture, Bounds};
use crate::load::checkpoint::Checkpoint;
use crate::load::{Error, inspect};
use crate::manifest::{Manifest, Pooling};
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
    let settings = Settings(config);
    let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
    let (queries, positions) = (settings.size("num_attention_heads")?, settings.size("max_position_embeddings")?);
    let eps = settings.positive_or("layer_norm_eps", 1e-12)?;
    let activation = settings.activation("hidden_act", "gelu")?;
    let buckets = settings.size_or("relative_attention_num_buckets", 32)?;
    if !buckets.is_multiple_of(4) {
        let detail = format!("relative_attention_num_buckets is {buckets}; a multiple of 4 is needed");
        return Err(Error::config(inspect::CONFIG, detail));
    }
    let prefix = checkpoint.prefix("mpnet.", "embeddings.word_embeddings.weight");
    let at = |name: &str| format!("{prefix}{name}");
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, eps);
    let plain = Plain { checkpoint, prefix, hidden: h, inner: f, epsilon: eps, activation };
    let words = parts::table(checkpoint, at("embeddings.word_embeddings.weight"), h);
    let (head, vector) = parts::head(manifest, h, Pooling::Mean, || {
        parts::two_step_head(checkpoint, h, "classifier.dense", Activation::Tanh, "classifier.out_proj")
    });
    Ok(Encoder {
        bounds: Bounds {
            vocabulary: words.shape[0],
            types: 1,
            tokens: positions.saturating_sub(PADDING as usize + 1).max(1),
            vector,
        },
        hidden: h,
        embeddings: Embeddings {
            words,
            positions: Some(Positions {
                table: Slice::whole(at("embeddings.position_embeddings.weight"), &[positions, h]),
                padding: Some(PADDING),
            }),
            types: None,
            norm: Some(norm(&at("embeddings.LayerNorm"))),
        },
        heads: parts::heads(queries, settings.head_dim(h, queries)?),
        bias: Some(Bias::Buckets {
            table: Slice::whole(at("encoder.relative_attention_bias.weight"), &[buckets, queries]),
            distance_max: DISTANCE_MAX,
        }),
        rotaries: vec![],
        layers: plain.layers(settings.layers("num_hidden_layers")?, &NAMES),
        norm: None,
        head,
    })
}
