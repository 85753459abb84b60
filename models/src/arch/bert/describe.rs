//! BERT as an [`Encoder`]: a configuration and the names in a checkpoint come in, the description goes out.

use super::{Activation, Config};
use crate::arch::Bounds;
use crate::arch::encoder::{self, Embeddings, Encoder, Positions, Slice};
use crate::arch::parts::{self, Plain};
use crate::load::checkpoint::Checkpoint;
use crate::load::{Error, inspect};
use crate::manifest::{Manifest, Pooling};
use serde_json::Value;

/// The encoder of a checkpoint, with or without the prefix `bert.` before its tensors' names.
pub(super) fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let config = Config::from_json(config).map_err(|e| Error::config(inspect::CONFIG, e))?;
    let (h, f) = (config.hidden_size, config.intermediate_size);
    let prefix = checkpoint.prefix("bert.", "embeddings.word_embeddings.weight");
    let at = |name: &str| format!("{prefix}{name}");
    let norm = |name: &str| parts::layer_norm(checkpoint, name, h, config.layer_norm_eps);
    let plain = Plain {
        checkpoint,
        prefix,
        hidden: h,
        inner: f,
        epsilon: config.layer_norm_eps,
        activation: match config.hidden_act {
            Activation::Gelu => encoder::Activation::Gelu,
            Activation::GeluTanh => encoder::Activation::GeluTanh,
            Activation::Relu => encoder::Activation::Relu,
        },
    };
    let table = |name: &str, rows: usize| Slice::whole(at(&format!("embeddings.{name}.weight")), &[rows, h]);
    let (head, vector) = parts::head(manifest, h, Pooling::Mean, || {
        parts::two_step_head(checkpoint, h, &at("pooler.dense"), encoder::Activation::Tanh, "classifier")
    });
    Ok(Encoder {
        bounds: Bounds {
            vocabulary: config.vocab_size,
            types: config.type_vocab_size,
            tokens: config.max_position_embeddings,
            vector,
        },
        hidden: h,
        embeddings: Embeddings {
            words: table("word_embeddings", config.vocab_size),
            positions: Some(Positions {
                table: table("position_embeddings", config.max_position_embeddings),
                padding: None,
            }),
            types: Some(table("token_type_embeddings", config.type_vocab_size)),
            norm: Some(norm(&at("embeddings.LayerNorm"))),
        },
        heads: parts::heads(config.num_attention_heads, h / config.num_attention_heads),
        bias: None,
        rotaries: vec![],
        layers: plain.layers(config.num_hidden_layers, &parts::BERT),
        norm: None,
        head,
    })
}
