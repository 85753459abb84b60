//! GTE's "new" encoders (gte-base-en-v1.5, gte-large-en-v1.5, gte-multilingual-base and its reranker): BERT's order of norms,
//! rotary positions that are stretched by the NTK rule, GeGLU whose second half is activated.
//!
//! # Source
//! Zhang et al., "mGTE" (arXiv 2407.19669). Names and settings are those of the published checkpoints.

use super::encoder::{Activation, Dense, Embeddings, Encoder, Rotary};
use super::parts::{self, PostNorm};
use super::settings::Settings;
use super::{Architecture, Bounds};
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use crate::manifest::{Manifest, Pooling};
use kernels::rotary::frequencies;
use serde_json::{Value, json};

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "gte",
    claims: |config| config["model_type"] == "new",
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let settings = Settings(config);
    settings.only(&[
        ("layer_norm_type", json!("layer_norm")),
        ("position_embedding_type", json!("rope")),
        ("pack_qkv", json!(true)),
        ("logn_attention_scale", json!(false)),
        ("logn_attention_clip1", json!(false)),
    ])?;
    let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
    let queries = settings.size("num_attention_heads")?;
    let eps = settings.positive_or("layer_norm_eps", 1e-12)?;
    let activation = settings.activation("hidden_act", "gelu")?;
    let prefix = checkpoint.prefix("new.", "embeddings.word_embeddings.weight");
    let at = |name: &str| format!("{prefix}{name}");
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, eps);
    let layer = |index: usize| {
        let at = |name: &str| at(&format!("encoder.layer.{index}.{name}"));
        let layer = PostNorm {
            qkv: Dense::named(&at("attention.qkv_proj"), h, 3 * h, true),
            out: Dense::named(&at("attention.o_proj"), h, h, true),
            norm: norm(&at("attn_ln")),
            up: parts::halves_swapped(&at("mlp.up_gate_proj"), h, f),
            activation,
            down: Dense::named(&at("mlp.down_proj"), f, h, true),
            out_norm: norm(&at("mlp_ln")),
        };
        layer.layer(Some(0))
    };
    let words = parts::table(checkpoint, at("embeddings.word_embeddings.weight"), h);
    let types = parts::table(checkpoint, at("embeddings.token_type_embeddings.weight"), h);
    let dim = settings.head_dim(h, queries)?;
    let (head, vector) = parts::head(manifest, h, Pooling::Cls, || {
        parts::two_step_head(checkpoint, h, &at("pooler.dense"), Activation::Tanh, "classifier")
    });
    Ok(Encoder {
        bounds: Bounds {
            vocabulary: words.shape[0],
            types: types.shape[0],
            tokens: settings.size("max_position_embeddings")?,
            vector,
        },
        hidden: h,
        embeddings: Embeddings {
            words,
            positions: None,
            types: (types.shape[0] > 0).then_some(types),
            norm: Some(norm(&at("embeddings.LayerNorm"))),
        },
        heads: parts::heads(queries, dim),
        bias: None,
        rotaries: vec![rotary(&settings, dim)?],
        layers: (0..settings.layers("num_hidden_layers")?).map(layer).collect(),
        norm: None,
        head,
    })
}

/// `f_i = (theta · s)^(−2i/d) / s^(2/d)` with the factor `s` of the NTK rule, whatever the length; plain without one.
fn rotary(settings: &Settings<'_>, dim: usize) -> Result<Rotary, Error> {
    let theta = settings.positive_or("rope_theta", 10_000.0)?;
    let scaling = settings.under("rope_scaling");
    scaling.only(&[("type", json!("ntk")), ("mixed_b", Value::Null)])?;
    let factor = scaling.positive_or("factor", 1.0)?;
    let shrink = factor.powf(2.0 / dim as f64);
    let stretched = frequencies(dim, theta * factor);
    Ok(Rotary::new(stretched.iter().map(|frequency| frequency / shrink).collect()))
}
