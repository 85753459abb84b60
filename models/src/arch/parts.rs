//! Pieces that several families describe alike: names and sizes come in, parts of a description go out.

use super::encoder::{Activation, Dense, Head, Heads, Layer, Norm, NormKind, Reach, Slice, Step};
use crate::load::checkpoint::Checkpoint;
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

/// What a family of BERT's plainest kind calls the parts of its layers.
pub(super) struct Names {
    /// What stands before a layer's number.
    pub(super) layer: &'static str,
    pub(super) qkv: [&'static str; 3],
    pub(super) out: &'static str,
    pub(super) norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) out_norm: &'static str,
}

/// BERT's own.
pub(super) const BERT: Names = Names {
    layer: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    out_norm: "output.LayerNorm",
};

/// What is the same in all layers of BERT's plainest kind.
pub(super) struct Plain<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) prefix: &'a str,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) epsilon: f64,
    pub(super) activation: Activation,
}

impl Plain<'_> {
    /// So many layers: separate queries, keys and values, biases everywhere, no gate.
    pub(super) fn layers(&self, count: usize, names: &Names) -> Vec<Layer> {
        let (h, f) = (self.hidden, self.inner);
        let layer = |index: usize| {
            let at = |name: &str| format!("{}{}.{index}.{name}", self.prefix, names.layer);
            let norm = |name: &str| layer_norm(self.checkpoint, &at(name), h, self.epsilon);
            let qkv = names.qkv.map(at);
            let layer = PostNorm {
                qkv: Dense::joined(&qkv.each_ref().map(String::as_str), h, &[h; 3], true),
                out: Dense::named(&at(names.out), h, h, true),
                norm: norm(names.norm),
                up: Dense::named(&at(names.up), h, f, true),
                activation: self.activation,
                down: Dense::named(&at(names.down), f, h, true),
                out_norm: norm(names.out_norm),
            };
            layer.layer(None)
        };
        (0..count).map(layer).collect()
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
