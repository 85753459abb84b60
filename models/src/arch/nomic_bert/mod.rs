//! NomicBERT (nomic-embed-text-v1, v1.5): BERT's order of norms, rotary positions, SwiGLU, no biases in products. Embeddings
//! only.
//!
//! # Source
//! Nussbaum et al., "Nomic Embed" (arXiv 2402.01613). Names and settings are those of the published checkpoints.

use super::encoder::{Activation, Dense, Embeddings, Encoder, Rotary};
use super::parts::{self, PostNorm};
use super::settings::{Settings, has_head};
use super::{Architecture, Bounds};
use crate::load::checkpoint::Checkpoint;
use crate::load::{Error, inspect};
use crate::manifest::{Manifest, Pooling};
use kernels::rotary::frequencies;
use serde_json::{Value, json};

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "nomic_bert",
    claims: |config| config["model_type"] == "nomic_bert",
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let settings = Settings(config);
    settings.only(&[
        ("activation_function", json!("swiglu")),
        ("qkv_proj_bias", json!(false)),
        ("mlp_fc1_bias", json!(false)),
        ("mlp_fc2_bias", json!(false)),
        ("prenorm", json!(false)),
        ("causal", json!(false)),
        ("use_rms_norm", json!(false)),
        ("parallel_block", json!(false)),
        ("rotary_emb_fraction", json!(1.0)),
        ("rotary_emb_interleaved", json!(false)),
        ("rotary_emb_scale_base", Value::Null),
        ("rotary_scaling_factor", Value::Null),
    ])?;
    if has_head(config) {
        return Err(Error::config(inspect::CONFIG, "a classifier of this architecture is not supported"));
    }
    let (h, queries) = (settings.size("n_embd")?, settings.size("n_head")?);
    let eps = settings.positive_or("layer_norm_epsilon", 1e-12)?;
    let theta = settings.positive_or("rotary_emb_base", 10_000.0)?;
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, eps);
    let layer = |index: usize| {
        let at = |name: &str| format!("encoder.layers.{index}.{name}");
        // Rounded up from what the configuration says.
        let f = checkpoint.rows(&at("mlp.fc11.weight"));
        let layer = PostNorm {
            qkv: Dense::named(&at("attn.Wqkv"), h, 3 * h, false),
            out: Dense::named(&at("attn.out_proj"), h, h, false),
            norm: norm(&at("norm1")),
            up: Dense::joined(&[&at("mlp.fc12"), &at("mlp.fc11")], h, &[f, f], false),
            activation: Activation::Silu,
            down: Dense::named(&at("mlp.fc2"), f, h, false),
            out_norm: norm(&at("norm2")),
        };
        layer.layer(Some(0))
    };
    let words = parts::table(checkpoint, "embeddings.word_embeddings.weight".into(), h);
    let types = parts::table(checkpoint, "embeddings.token_type_embeddings.weight".into(), h);
    let dim = settings.head_dim(h, queries)?;
    let (head, vector) = parts::head(manifest, h, Pooling::Mean, || unreachable!("a head was refused above"));
    Ok(Encoder {
        bounds: Bounds {
            vocabulary: words.shape[0],
            types: types.shape[0],
            tokens: settings.size("n_positions")?,
            vector,
        },
        hidden: h,
        embeddings: Embeddings {
            words,
            positions: None,
            types: (types.shape[0] > 0).then_some(types),
            norm: Some(norm("emb_ln")),
        },
        heads: parts::heads(queries, dim),
        bias: None,
        rotaries: vec![Rotary::new(frequencies(dim, theta))],
        layers: (0..settings.layers("n_layer")?).map(layer).collect(),
        norm: None,
        head,
    })
}
