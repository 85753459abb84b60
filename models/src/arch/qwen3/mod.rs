//! Qwen3 as an encoder (Qwen3-Embedding, Qwen3-Reranker as a classifier): causal attention with fewer heads of keys than of
//! queries, each head normalised, SwiGLU, the last token's vector. Never generation.
//!
//! # Source
//! Zhang et al., "Qwen3 Embedding" (arXiv 2506.05176). Names are those of `transformers`, whose versions 4 and 5 state angles in
//! different keys; both are read.

use super::causal::{self, Family, LLAMA};
use super::encoder::{Activation, Dense, Embeddings, Encoder, Head, Heads, Layer, Norm, NormKind, Reach, Rotary, Step};
use super::parts;
use super::settings::Settings;
use super::{Architecture, Bounds};
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use crate::manifest::{Manifest, Pooling};
use kernels::rotary::frequencies;
use serde_json::{Value, json};

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    claims: |config| config["model_type"] == "qwen3",
    describe: Some(describe),
    decode: Some(|config, checkpoint| {
        causal::describe(config, checkpoint, &Family { windows: causal::upper_layers, theta: 1e6, ..LLAMA })
    }),
    #[cfg(feature = "candle")]
    build: None,
};

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let settings = Settings(config);
    settings.only(&[
        ("attention_bias", json!(false)),
        ("use_sliding_window", json!(false)),
        ("rope_scaling", Value::Null),
    ])?;
    let of_rope = settings.under("rope_parameters");
    of_rope.only(&[("rope_type", json!("default"))])?;
    let theta = of_rope.positive_or("rope_theta", settings.positive_or("rope_theta", 1e6)?)?;
    let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
    let queries = settings.size("num_attention_heads")?;
    let keys = settings.size_or("num_key_value_heads", queries)?;
    let dim = match config["head_dim"].is_null() {
        true => settings.head_dim(h, queries)?,
        false => settings.size("head_dim")?,
    };
    settings.head_dim(queries, keys)?;
    let activation = settings.activation("hidden_act", "silu")?;
    let epsilon = settings.positive_or("rms_norm_eps", 1e-6)? as f32;
    let prefix = checkpoint.prefix("model.", "embed_tokens.weight");
    let at = |name: &str| format!("{prefix}{name}");
    let norm = |name: String, width| Norm { kind: NormKind::Rms, weight: name + ".weight", bias: None, width, epsilon };
    let layer = |index: usize| {
        let at = |name: &str| at(&format!("layers.{index}.{name}"));
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|part| at(&format!("self_attn.{part}")));
        let widths = [queries * dim, keys * dim, keys * dim];
        Layer {
            attention_norm: Some(norm(at("input_layernorm"), h)),
            qkv: Dense::joined(&qkv.each_ref().map(String::as_str), h, &widths, false),
            head_norms: Some((norm(at("self_attn.q_norm"), dim), norm(at("self_attn.k_norm"), dim))),
            rotary: Some(0),
            reach: Reach::CAUSAL,
            attention_out: Dense::named(&at("self_attn.o_proj"), queries * dim, h, false),
            attention_norm_after: None,
            feed_forward_norm: Some(norm(at("post_attention_layernorm"), h)),
            up: Dense::joined(&[&at("mlp.gate_proj"), &at("mlp.up_proj")], h, &[f, f], false),
            gated: true,
            activation,
            down: Dense::named(&at("mlp.down_proj"), f, h, false),
            feed_forward_norm_after: None,
        }
    };
    let words = parts::table(checkpoint, at("embed_tokens.weight"), h);
    let (head, vector) = parts::head(manifest, h, Pooling::Last, || {
        let labels = checkpoint.rows("score.weight");
        let steps = vec![Step::new(Dense::named("score", h, labels, false), Activation::None)];
        let padding = config["pad_token_id"].as_u64().map(|id| id as u32);
        (Head { pooling: Pooling::Last, steps, padding }, labels)
    });
    Ok(Encoder {
        bounds: Bounds {
            vocabulary: words.shape[0],
            types: 1,
            tokens: settings.size("max_position_embeddings")?,
            vector,
        },
        hidden: h,
        embeddings: Embeddings { words, positions: None, types: None, norm: None },
        heads: Heads { queries, keys, dim, scale: 1.0 / (dim as f32).sqrt() },
        bias: None,
        rotaries: vec![Rotary::new(frequencies(dim, theta))],
        layers: (0..settings.layers("num_hidden_layers")?).map(layer).collect(),
        norm: Some(norm(at("norm"), h)),
        head,
    })
}
