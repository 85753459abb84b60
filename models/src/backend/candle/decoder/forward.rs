//! One step of a decoder on Candle's tensors: tokens of several sequences come in side by side, their keys and values go into the cache, a
//! row of logits comes out for each that is asked for. Every sum with a residual is one with the norm that follows it.

use super::batch::{Arrays, Batch};
use super::cache::Cache;
use super::ops::{self, Scores, Step, Turn};
use super::weights::{Layer, Weights};
use crate::arch::decoder::Decoder;
use crate::backend::candle::encoder::Norm;
use crate::backend::candle::ops::{glu, norm};
use candle_core::{DType, Result, Tensor};

/// What a step is run with.
pub(super) struct Forward<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) weights: &'a Weights,
    /// One for each layer.
    pub(super) caches: &'a [Cache],
}

impl Forward<'_> {
    /// `[asked, vocabulary]` in f32 on the device, where any are asked for. The arrays are the batch's.
    pub(super) fn run(&self, batch: &Batch, arrays: &Arrays) -> Result<Option<Tensor>> {
        let layers = &self.weights.layers;
        let Some(first) = layers.first() else { candle_core::bail!("a decoder without layers") };
        let mut x = self.weights.vectors(&arrays.ids)?;
        if self.decoder.words_scale != 1.0 {
            x = (x * f64::from(self.decoder.words_scale))?;
        }
        let mut input = norm(&x, None, None, &first.attention_norm)?;
        for (index, layer) in layers.iter().enumerate() {
            let step = Step { heads: &self.decoder.heads, batch, arrays, cache: &self.caches[index] };
            let attended = self.attended(layer, &input, step)?;
            (x, input) = ops::add_norm(&x, &attended, &layer.feed_forward_norm)?;
            let forwarded = forwarded(layer, &input)?;
            match layers.get(index + 1) {
                Some(next) => (x, input) = ops::add_norm(&x, &forwarded, &next.attention_norm)?,
                // Of the last layer only some rows are of use.
                None => {
                    let Some(asked) = &arrays.asked else { return Ok(None) };
                    if batch.asks_for_all() {
                        return self.logits(&norm(&forwarded, None, Some(&x), &self.weights.norm)?).map(Some);
                    }
                    let (x, forwarded) = (x.index_select(asked, 0)?, forwarded.index_select(asked, 0)?);
                    return self.logits(&norm(&forwarded, None, Some(&x), &self.weights.norm)?).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// What attention adds.
    fn attended(&self, layer: &Layer, input: &Tensor, step: Step<'_>) -> Result<Tensor> {
        let description = &layer.description;
        let turn = Turn { norms: layer.head_norms.as_ref(), angles: &self.weights.angles[description.rotary] };
        let scores = Scores { softcap: self.decoder.attention_softcap, window: description.window };
        let queries = ops::keep(layer.qkv.apply(input)?, turn, step)?;
        let context = ops::attention(&queries, scores, step)?;
        normed(layer.attention_out.apply(&context)?, layer.attention_norm_after.as_ref())
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let logits = self.weights.output.apply(x)?.to_dtype(DType::F32)?;
        self.decoder.output_softcap.map_or(Ok(logits.clone()), |cap| ops::softcapped(&logits, cap))
    }
}

/// What the feed-forward part adds.
fn forwarded(layer: &Layer, input: &Tensor) -> Result<Tensor> {
    let inner = glu(&layer.up.apply(input)?, layer.description.activation)?;
    normed(layer.down.apply(&inner)?, layer.feed_forward_norm_after.as_ref())
}

fn normed(x: Tensor, of: Option<&Norm>) -> Result<Tensor> {
    of.map_or(Ok(x.clone()), |of| norm(&x, None, None, of))
}
