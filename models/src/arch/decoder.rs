//! What a decoder is, whatever family it comes from: a description in the names of its checkpoint's tensors, from which a
//! backend loads and runs it. An architecture's folder makes one from a `config.json`. Never a number of a weight.
//!
//! Every decoder here is, with whatever of it a family has:
//!
//! ```text
//! x = words · words_scale
//! for each layer:
//!     x = x + norm_after(out(attention(rotary(norm(qkv(norm_before(x)))))))
//!     x = x + norm_after(down(activation(gate) · up))        [gate, up] = up(norm_before(x))
//! logits = softcap(output(norm(x)))
//! ```

pub use super::encoder::{Activation, Dense, Heads, Norm, NormKind, Rotary, Slice};

/// A decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Tokens of a sequence at most, as the model was trained.
    pub context: usize,
    /// Width of a token's vector, `h`.
    pub hidden: usize,
    /// `[vocabulary, h]`
    pub words: Slice,
    /// What a token's vector is multiplied with at first.
    pub words_scale: f32,
    /// Heads, the same in every layer.
    pub heads: Heads,
    /// Attention scores `s` become `c · tanh(s / c)`.
    pub attention_softcap: Option<f32>,
    /// Rotary positions that layers choose from.
    pub rotaries: Vec<Rotary>,
    /// What makes longer sequences possible.
    pub longer: Option<Longer>,
    /// In their order.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub norm: Norm,
    /// What is added to the weights of all norms: Gemma stores them less 1.
    pub norm_offset: f32,
    /// To logits: `[vocabulary, h]`, the table of words itself where the two are tied.
    pub output: Dense,
    /// Logits `l` become `c · tanh(l / c)`.
    pub output_softcap: Option<f32>,
}

/// Other angles, with which sequences may be longer. They are another model's, as it were: keys are kept, so that angles cannot change
/// while a sequence grows, and what is in one cache must be turned alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Longer {
    /// Tokens of a sequence at most.
    pub context: usize,
    /// In the place of the decoder's.
    pub rotaries: Vec<Rotary>,
}

impl Decoder {
    /// The same for sequences of so many tokens: with the angles for longer ones where they are asked for, else as it is.
    pub fn for_sequences_of(mut self, tokens: Option<usize>) -> Self {
        if let Some(Longer { context, rotaries }) = self.longer.take_if(|_| tokens > Some(self.context)) {
            (self.context, self.rotaries) = (context, rotaries);
        }
        self
    }

    /// Token ids are below this.
    pub fn vocabulary(&self) -> usize {
        self.words.shape[0]
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Before attention.
    pub attention_norm: Norm,
    /// Queries, keys and values side by side.
    pub qkv: Dense,
    /// Of each head of queries, and of keys.
    pub head_norms: Option<(Norm, Norm)>,
    /// Which of the decoder's rotaries.
    pub rotary: usize,
    /// A token sees so many last ones, itself included; all where absent.
    pub window: Option<usize>,
    /// Of the context.
    pub attention_out: Dense,
    /// Of what attention adds.
    pub attention_norm_after: Option<Norm>,
    /// Before the feed-forward part.
    pub feed_forward_norm: Norm,
    /// What is activated and what it is multiplied with side by side.
    pub up: Dense,
    /// Of the first of them.
    pub activation: Activation,
    /// Back to `h`.
    pub down: Dense,
    /// Of what the feed-forward part adds.
    pub feed_forward_norm_after: Option<Norm>,
}
