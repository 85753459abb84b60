//! BERT as an [`Encoder`]: a configuration and the names in a checkpoint come in, the description goes out.

use super::{Activation, Config};
use crate::arch::Bounds;
use crate::arch::encoder::{self, Dense, Embeddings, Encoder, Head, Heads, Layer, Norm, NormKind, Reach, Slice, Step};
use crate::load::safetensors::Checkpoint;
use crate::load::{Error, inspect};
use crate::manifest::{Manifest, Pooling, Task};
use serde_json::Value;

/// The encoder of a checkpoint, with or without the prefix `bert.` before its tensors' names.
pub(super) fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    let config = Config::from_json(config).map_err(|e| Error::config(inspect::CONFIG, e))?;
    let (h, f, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps as f32);
    let prefix = checkpoint.prefix("bert.", "embeddings.word_embeddings.weight");
    let norm = |name: String| layer_norm(checkpoint, name, h, eps);
    let at = |name: &str| format!("{prefix}{name}");
    let layer = |index: usize| {
        let at = |name: &str| at(&format!("encoder.layer.{index}.{name}"));
        let dense = |name: &str, inputs, outputs| Dense::named(&at(name), inputs, outputs, true);
        let qkv = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        Layer {
            attention_norm: None,
            qkv: Dense::joined(&qkv.each_ref().map(String::as_str), h, &[h; 3], true),
            head_norms: None,
            rotary: None,
            reach: Reach::ALL,
            attention_out: dense("attention.output.dense", h, h),
            attention_norm_after: Some(norm(at("attention.output.LayerNorm"))),
            feed_forward_norm: None,
            up: dense("intermediate.dense", h, f),
            gated: false,
            activation: config.hidden_act.kernel(),
            down: dense("output.dense", f, h),
            feed_forward_norm_after: Some(norm(at("output.LayerNorm"))),
        }
    };
    let dim = h / config.num_attention_heads;
    let table = |name: &str, rows: usize| Slice::whole(at(&format!("embeddings.{name}.weight")), &[rows, h]);
    let (head, vector) = match manifest.task {
        Task::Embed => (Head { pooling: manifest.pooling.unwrap_or(Pooling::Mean), steps: vec![] }, h),
        _ => {
            let labels = checkpoint.rows("classifier.weight");
            let pooler = Dense::named(&at("pooler.dense"), h, h, true);
            let steps = vec![
                Step::new(pooler, encoder::Activation::Tanh),
                Step::new(Dense::named("classifier", h, labels, true), encoder::Activation::None),
            ];
            (Head { pooling: Pooling::Cls, steps }, labels)
        }
    };
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
            positions: Some((table("position_embeddings", config.max_position_embeddings), 0)),
            types: Some(table("token_type_embeddings", config.type_vocab_size)),
            norm: Some(norm(at("embeddings.LayerNorm"))),
        },
        heads: Heads {
            queries: config.num_attention_heads,
            keys: config.num_attention_heads,
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
        },
        bias: None,
        rotaries: vec![],
        layers: (0..config.num_hidden_layers).map(layer).collect(),
        norm: None,
        head,
    })
}

/// A layer norm. Checkpoints converted from TensorFlow call its parts gamma and beta.
fn layer_norm(checkpoint: &Checkpoint, name: String, width: usize, epsilon: f32) -> Norm {
    let is_old = checkpoint.tensor(&format!("{name}.gamma")).is_some();
    let (weight, bias) = if is_old { ("gamma", "beta") } else { ("weight", "bias") };
    let bias = Some(format!("{name}.{bias}"));
    Norm { kind: NormKind::Layer, weight: format!("{name}.{weight}"), bias, width, epsilon }
}

impl Activation {
    /// As the ops have it.
    pub(super) fn kernel(self) -> encoder::Activation {
        match self {
            Self::Gelu => encoder::Activation::Gelu,
            Self::GeluTanh => encoder::Activation::GeluTanh,
            Self::Relu => encoder::Activation::Relu,
        }
    }
}
