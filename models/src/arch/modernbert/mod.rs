//! ModernBERT: norms before each part, rotary positions, GeGLU, and a window of neighbours in all layers but every third.
//!
//! # Source
//! Warner et al., "Smarter, Better, Faster, Longer" (arXiv 2412.13663). Names are those of `transformers`, whose versions 4
//! and 5 state windows and angles in different keys; both are read.

use super::encoder::{Activation, Embeddings, Encoder, Head, Layer, Reach, Rotary, Step};
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
    name: "modernbert",
    claims: |config| config["model_type"] == "modernbert",
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

/// Positions in the encoder's list of rotaries.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let settings = Settings(config);
    let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
    let queries = settings.size("num_attention_heads")?;
    let eps = settings.positive_or("norm_eps", settings.positive_or("layer_norm_eps", 1e-5)?)?;
    let activation = settings.activation("hidden_activation", "gelu")?;
    let every = settings.size_or("global_attn_every_n_layers", 3)?;
    let window = settings.size_or("local_attention", 128)? / 2;
    let prefix = checkpoint.prefix("model.", "embeddings.tok_embeddings.weight");
    let at = |name: &str| format!("{prefix}{name}");
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, eps);
    let layer = |index: usize| {
        let at = |name: &str| at(&format!("layers.{index}.{name}"));
        let is_global = match config["layer_types"][index].as_str() {
            Some(kind) => kind == "full_attention",
            None => index.is_multiple_of(every),
        };
        let reach = if is_global { Reach::ALL } else { Reach { behind: window, ahead: window } };
        Layer {
            // The embeddings are normalised already.
            attention_norm: (index > 0).then(|| norm(&at("attn_norm"))),
            qkv: parts::dense(checkpoint, &at("attn.Wqkv"), h, 3 * h),
            head_norms: None,
            rotary: Some(if is_global { GLOBAL } else { LOCAL }),
            reach,
            attention_out: parts::dense(checkpoint, &at("attn.Wo"), h, h),
            attention_norm_after: None,
            feed_forward_norm: Some(norm(&at("mlp_norm"))),
            up: parts::dense(checkpoint, &at("mlp.Wi"), h, 2 * f),
            gated: true,
            activation,
            down: parts::dense(checkpoint, &at("mlp.Wo"), f, h),
            feed_forward_norm_after: None,
        }
    };
    let dim = settings.head_dim(h, queries)?;
    let rotary = |kind: &str, key: &str, default: f64| -> Result<Rotary, Error> {
        let of_kind = settings.under("rope_parameters").under(kind);
        of_kind.only(&[("rope_type", json!("default"))])?;
        let theta = of_kind.positive_or("rope_theta", settings.positive_or(key, default)?)?;
        Ok(Rotary::new(frequencies(dim, theta)))
    };
    let words = parts::table(checkpoint, at("embeddings.tok_embeddings.weight"), h);
    let head_activation = settings.activation("classifier_activation", "gelu")?;
    let (head, vector) = parts::head(manifest, h, Pooling::Cls, || {
        let labels = checkpoint.rows("classifier.weight");
        let steps = vec![
            Step {
                dense: parts::dense(checkpoint, "head.dense", h, h),
                activation: head_activation,
                norm: Some(norm("head.norm")),
            },
            Step::new(parts::dense(checkpoint, "classifier", h, labels), Activation::None),
        ];
        let is_mean = settings.word_or("classifier_pooling", "cls") == "mean";
        (Head { pooling: if is_mean { Pooling::Mean } else { Pooling::Cls }, steps, padding: None }, labels)
    });
    Ok(Encoder {
        bounds: Bounds {
            vocabulary: words.shape[0],
            types: 1,
            tokens: settings.size("max_position_embeddings")?,
            vector,
        },
        hidden: h,
        embeddings: Embeddings { words, positions: None, types: None, norm: Some(norm(&at("embeddings.norm"))) },
        heads: parts::heads(queries, dim),
        bias: None,
        rotaries: vec![
            rotary("full_attention", "global_rope_theta", 160_000.0)?,
            rotary("sliding_attention", "local_rope_theta", 10_000.0)?,
        ],
        layers: (0..settings.layers("num_hidden_layers")?).map(layer).collect(),
        norm: Some(norm(&at("final_norm"))),
        head,
    })
}
