//! DistilBERT: BERT's layers under names of their own, without segments, and a classifier with ReLU.
//!
//! # Source
//! Sanh et al., "DistilBERT" (arXiv 1910.01108). Names are those of `transformers`.

use super::encoder::{Activation, Embeddings, Encoder, Positions, Slice};
use super::parts::{self, Names, Plain};
use super::settings::Settings;
use super::{Architecture, Bounds};
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use crate::manifest::{Manifest, Pooling};
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "distilbert",
    claims: |config| config["model_type"] == "distilbert",
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

const NAMES: Names = Names {
    layer: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    out_norm: "output_layer_norm",
};

/// No configuration states it.
const EPSILON: f64 = 1e-12;

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let settings = Settings(config);
    let (h, f) = (settings.size("dim")?, settings.size("hidden_dim")?);
    let (queries, positions) = (settings.size("n_heads")?, settings.size("max_position_embeddings")?);
    let activation = settings.activation("activation", "gelu")?;
    let prefix = checkpoint.prefix("distilbert.", "embeddings.word_embeddings.weight");
    let at = |name: &str| format!("{prefix}{name}");
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, EPSILON);
    let plain = Plain { checkpoint, prefix, hidden: h, inner: f, epsilon: EPSILON, activation };
    let words = parts::table(checkpoint, at("embeddings.word_embeddings.weight"), h);
    let (head, vector) = parts::head(manifest, h, Pooling::Mean, || {
        parts::two_step_head(checkpoint, h, "pre_classifier", Activation::Relu, "classifier")
    });
    Ok(Encoder {
        bounds: Bounds { vocabulary: words.shape[0], types: 1, tokens: positions, vector },
        hidden: h,
        embeddings: Embeddings {
            words,
            positions: Some(Positions {
                table: Slice::whole(at("embeddings.position_embeddings.weight"), &[positions, h]),
                padding: None,
            }),
            types: None,
            norm: Some(norm(&at("embeddings.LayerNorm"))),
        },
        heads: parts::heads(queries, settings.head_dim(h, queries)?),
        bias: None,
        rotaries: vec![],
        layers: plain.layers(settings.layers("n_layers")?, &NAMES),
        norm: None,
        head,
    })
}
