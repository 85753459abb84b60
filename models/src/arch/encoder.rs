//! What an encoder is, whatever family it comes from: a description in the names of its checkpoint's tensors, from which a
//! backend loads and runs it. An architecture's folder makes one from a `config.json`. Never a number of a weight.
//!
//! Every encoder here is, with whatever of it a family has:
//!
//! ```text
//! x = norm(words + positions + types)
//! for each layer:
//!     x = norm_after(x + out(attention(rotary(norm(qkv(norm_before(x)))))))
//!     x = norm_after(x + down(feed_forward(up(norm_before(x)))))
//! x = norm(x), pooled per sequence, then the head's steps
//! ```

use super::Bounds;
use crate::manifest::Pooling;
use std::ops::Range;

pub use kernels::attention::Reach;
pub use kernels::linear::Activation;
use kernels::rotary::Table;

/// An encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// What it takes and gives.
    pub bounds: Bounds,
    /// Width of a token's vector, `h`.
    pub hidden: usize,
    /// Its first step.
    pub embeddings: Embeddings,
    /// Heads, the same in every layer.
    pub heads: Heads,
    /// What is added to attention scores by distance, the same in every layer.
    pub bias: Option<Bias>,
    /// Rotary positions that layers choose from.
    pub rotaries: Vec<Rotary>,
    /// In their order.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub norm: Option<Norm>,
    /// What becomes of the token vectors.
    pub head: Head,
}

/// A tensor's rows, or some of them: `[rows, columns]` as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The tensor.
    pub name: String,
    /// Its shape, which the checkpoint must have.
    pub shape: Vec<usize>,
    /// The rows of it that are meant.
    pub rows: Range<usize>,
}

impl Slice {
    /// All rows of a tensor.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), rows: 0..shape[0] }
    }
}

/// `x Wᵀ + b`. Several parts of one input lie side by side in the output, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dense {
    /// Each `[outputs, inputs]`.
    pub weights: Vec<Slice>,
    /// Each `[outputs]`; as many as there are weights, or none.
    pub biases: Vec<Slice>,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
}

impl Dense {
    /// One layer under `name`, as `transformers` saves it: `name.weight` and `name.bias`.
    pub fn named(name: &str, inputs: usize, outputs: usize, biased: bool) -> Self {
        Self::joined(&[name], inputs, &[outputs], biased)
    }

    /// Several of one input.
    pub fn joined(names: &[&str], inputs: usize, outputs: &[usize], biased: bool) -> Self {
        let parts = || names.iter().zip(outputs);
        let weights = parts().map(|(name, outputs)| Slice::whole(format!("{name}.weight"), &[*outputs, inputs]));
        let biases =
            parts().filter(|_| biased).map(|(name, outputs)| Slice::whole(format!("{name}.bias"), &[*outputs]));
        Self { weights: weights.collect(), biases: biases.collect(), inputs, outputs: outputs.iter().sum() }
    }
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance.
    Layer,
    /// Root of the mean square.
    Rms,
}

/// A normalisation over the last dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// `[width]`
    pub weight: String,
    /// `[width]`; zeros where absent.
    pub bias: Option<String>,
    /// Elements of a row.
    pub width: usize,
    /// Added to the variance or the mean square.
    pub epsilon: f32,
}

/// The sum that a token begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// `[vocabulary, h]`
    pub words: Slice,
    /// Learned positions.
    pub positions: Option<Positions>,
    /// `[types, h]`
    pub types: Option<Slice>,
    /// Of the sum.
    pub norm: Option<Norm>,
}

/// A learned vector per position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// `[positions, h]`
    pub table: Slice,
    /// Where tokens are counted around padding, its id `p`: other tokens have the rows from `p + 1` on, and a token that is
    /// the padding one has row `p`. Without it the rows count from 0.
    pub padding: Option<u32>,
}

/// The heads of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Of queries.
    pub queries: usize,
    /// Of keys and values; they divide those of queries.
    pub keys: usize,
    /// Elements of each, `d`.
    pub dim: usize,
    /// What scores are multiplied with.
    pub scale: f32,
}

impl Heads {
    /// Width of the queries of all heads.
    pub fn query_width(&self) -> usize {
        self.queries * self.dim
    }

    /// Width of queries, keys and values of all heads.
    pub fn width(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }
}

/// What is added to attention scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bias {
    /// `−slope · |distance|`, see [`kernels::attention::Relative::alibi`].
    Alibi,
    /// A learned value by head and bucket of distances, `[buckets, heads]`, as T5 and MPNet have it.
    Buckets {
        /// The table.
        table: Slice,
        /// Distances from here on share the last bucket.
        distance_max: usize,
    },
}

/// Rotary positions: an angle per position for each pair of a head's elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// In radians per position, `[d / 2]`. Pairs of frequency 0 stay as they are.
    pub frequencies: Vec<f64>,
    /// What pairs that are turned are multiplied with.
    pub amplitude: f64,
}

impl Rotary {
    /// Turns, and leaves the length.
    pub fn new(frequencies: Vec<f64>) -> Self {
        Self { frequencies, amplitude: 1.0 }
    }

    /// Its sines and cosines.
    pub fn table(&self, positions: usize) -> Table {
        Table::scaled(positions, &self.frequencies, self.amplitude)
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Before attention.
    pub attention_norm: Option<Norm>,
    /// Queries, keys and values side by side.
    pub qkv: Dense,
    /// Of each head of queries, and of keys.
    pub head_norms: Option<(Norm, Norm)>,
    /// Which of the encoder's rotaries.
    pub rotary: Option<usize>,
    /// Which keys are seen.
    pub reach: Reach,
    /// Of the context.
    pub attention_out: Dense,
    /// After attention and its residual.
    pub attention_norm_after: Option<Norm>,
    /// Before the feed-forward part.
    pub feed_forward_norm: Option<Norm>,
    /// Its first half; where `gated`, what is activated and what it is multiplied with lie side by side.
    pub up: Dense,
    /// Whether the first half is a gated unit.
    pub gated: bool,
    /// Its activation.
    pub activation: Activation,
    /// Its second half.
    pub down: Dense,
    /// After the feed-forward part and its residual.
    pub feed_forward_norm_after: Option<Norm>,
}

/// What becomes of the token vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// How they become one.
    pub pooling: Pooling,
    /// What a classifier does with it; nothing for embeddings.
    pub steps: Vec<Step>,
    /// Tokens of this id at the end of a text are passed over when the last one is looked for.
    pub padding: Option<u32>,
}

/// `norm(activation(x Wᵀ + b))`
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The product.
    pub dense: Dense,
    /// After it.
    pub activation: Activation,
    /// After that.
    pub norm: Option<Norm>,
}

impl Step {
    /// Without a norm.
    pub fn new(dense: Dense, activation: Activation) -> Self {
        Self { dense, activation, norm: None }
    }
}
