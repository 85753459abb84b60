//! Jina embeddings v2: BERT with a bias that falls with the distance (ALiBi) in place of positions, and a gated feed-forward
//! part. Embeddings only.
//!
//! # Source
//! Günther et al., "Jina Embeddings 2" (arXiv 2310.19923), after Press et al., "Train Short, Test Long" (arXiv 2108.12409).
//! Names and settings are those of the published checkpoints.

use super::encoder::{Activation, Bias, Dense, Embeddings, Encoder};
use super::parts::{self, PostNorm};
use super::settings::{Settings, has_head};
use super::{Architecture, Bounds};
use crate::load::checkpoint::Checkpoint;
use crate::load::{Error, inspect};
use crate::manifest::{Manifest, Pooling};
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "jina_bert",
    claims: |config| config["model_type"] == "bert" && config["position_embedding_type"] == "alibi",
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let settings = Settings(config);
    let wrong = |detail: String| Err(Error::config(inspect::CONFIG, detail));
    if has_head(config) {
        return wrong("a classifier of this architecture is not supported".into());
    }
    let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
    let queries = settings.size("num_attention_heads")?;
    let eps = settings.positive_or("layer_norm_eps", 1e-12)?;
    let activation = match settings.word_or("feed_forward_type", "geglu") {
        "geglu" => Activation::Gelu,
        "reglu" => Activation::Relu,
        other => return wrong(format!("feed_forward_type {other:?} is not supported; geglu and reglu are")),
    };
    let prefix = checkpoint.prefix("bert.", "embeddings.word_embeddings.weight");
    let at = |name: &str| format!("{prefix}{name}");
    if checkpoint.rows(&at("encoder.layer.0.mlp.gated_layers.weight")) == 0 {
        return wrong("only the variant with mlp.gated_layers is supported".into());
    }
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, eps);
    let layer = |index: usize| {
        let at = |name: &str| at(&format!("encoder.layer.{index}.{name}"));
        let qkv = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        let layer = PostNorm {
            qkv: Dense::joined(&qkv.each_ref().map(String::as_str), h, &[h; 3], true),
            out: Dense::named(&at("attention.output.dense"), h, h, true),
            norm: norm(&at("attention.output.LayerNorm")),
            up: Dense::named(&at("mlp.gated_layers"), h, 2 * f, false),
            activation,
            down: Dense::named(&at("mlp.wo"), f, h, true),
            out_norm: norm(&at("mlp.layernorm")),
        };
        layer.layer(None)
    };
    let words = parts::table(checkpoint, at("embeddings.word_embeddings.weight"), h);
    let types = parts::table(checkpoint, at("embeddings.token_type_embeddings.weight"), h);
    let (head, vector) = parts::head(manifest, h, Pooling::Mean, || unreachable!("a head was refused above"));
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
        heads: parts::heads(queries, settings.head_dim(h, queries)?),
        bias: Some(Bias::Alibi),
        rotaries: vec![],
        layers: (0..settings.layers("num_hidden_layers")?).map(layer).collect(),
        norm: None,
        head,
    })
}
