//! Pieces that several families describe alike: names and sizes come in, parts of a description go out.

use super::encoder::{Activation, Dense, Head, Heads, Layer, Norm, NormKind, Reach, Slice, Step};
use crate::load::safetensors::Checkpoint;
use crate::manifest::{Manifest, Pooling, Task};

/// A layer norm under `name`. Checkpoints converted from TensorFlow call its parts gamma and beta; some families have no bias.
pub(super) fn layer_norm(checkpoint: &Checkpoint, name: &str, width: usize, epsilon: f64) -> Norm {
    let has = |part: &str| checkpoint.tensor(&format!("{name}.{part}")).is_some();
    let weight = if has("gamma") { "gamma" } else { "weight" };
    let bias = ["beta", "bias"].into_iter().find(|part| has(part));
    Norm {
        kind: NormKind::Layer,
        weight: format!("{name}.{weight}"),
        bias: bias.map(|part| format!("{name}.{part}")),
        width,
        epsilon: epsilon as f32,
    }
}

/// As many heads of keys as of queries, scores divided by the root of their width.
pub(super) fn heads(queries: usize, dim: usize) -> Heads {
    Heads { queries, keys: queries, dim, scale: 1.0 / (dim as f32).sqrt() }
}

/// `[rows, width]`, as many rows as the checkpoint has, which may be padded beyond what the configuration says.
pub(super) fn table(checkpoint: &Checkpoint, name: String, width: usize) -> Slice {
    let rows = checkpoint.rows(&name);
    Slice::whole(name, &[rows, width])
}

/// A product under `name` with a bias where the checkpoint has one.
pub(super) fn dense(checkpoint: &Checkpoint, name: &str, inputs: usize, outputs: usize) -> Dense {
    let biased = checkpoint.tensor(&format!("{name}.bias")).is_some();
    Dense::named(name, inputs, outputs, biased)
}

/// Two halves of one tensor `[2 · width, inputs]`, the second put first: where a family gates with its second half.
pub(super) fn halves_swapped(name: &str, inputs: usize, width: usize) -> Dense {
    let half = |rows| Slice { name: format!("{name}.weight"), shape: vec![2 * width, inputs], rows };
    Dense { weights: vec![half(width..2 * width), half(0..width)], biases: vec![], inputs, outputs: 2 * width }
}

/// A layer that normalises after each residual, as BERT's.
pub(super) struct PostNorm {
    pub(super) qkv: Dense,
    pub(super) out: Dense,
    pub(super) norm: Norm,
    pub(super) up: Dense,
    pub(super) activation: Activation,
    pub(super) down: Dense,
    pub(super) out_norm: Norm,
}

impl PostNorm {
    /// The layer; gated where the first half of its feed-forward part is twice as wide as the second takes.
    pub(super) fn layer(self, rotary: Option<usize>) -> Layer {
        Layer {
            attention_norm: None,
            qkv: self.qkv,
            head_norms: None,
            rotary,
            reach: Reach::ALL,
            attention_out: self.out,
            attention_norm_after: Some(self.norm),
            feed_forward_norm: None,
            gated: self.up.outputs == 2 * self.down.inputs,
            up: self.up,
            activation: self.activation,
            down: self.down,
            feed_forward_norm_after: Some(self.out_norm),
        }
    }
}

/// The head that a manifest's task needs, and the length of its vector. Classifiers look at `pooling`'s vector through
/// `steps`; embeddings pool as the manifest says.
pub(super) fn head(
    manifest: &Manifest,
    hidden: usize,
    usual: Pooling,
    classifier: impl FnOnce() -> (Head, usize),
) -> (Head, usize) {
    match manifest.task {
        Task::Embed => {
            let pooling = manifest.pooling.unwrap_or(usual);
            (Head { pooling, steps: vec![], padding: None }, hidden)
        }
        _ => classifier(),
    }
}

/// `out(activation(dense(first token)))`, the products under their names; as many outputs as the last has rows.
pub(super) fn two_step_head(
    checkpoint: &Checkpoint,
    hidden: usize,
    dense: &str,
    activation: Activation,
    out: &str,
) -> (Head, usize) {
    let labels = checkpoint.rows(&format!("{out}.weight"));
    let steps = vec![
        Step::new(Dense::named(dense, hidden, hidden, true), activation),
        Step::new(Dense::named(out, hidden, labels, true), Activation::None),
    ];
    (Head { pooling: Pooling::Cls, steps, padding: None }, labels)
}
