//! A decoder's weights as the ops of `kernels` take them. The table of words stays in the mapped file, of which only the rows that
//! occur are ever read.

use super::super::weights::{NormWeights, PackedDense, load_dense, load_norm, values};
use crate::arch::decoder::{Decoder, Dense, Layer, Norm};
use crate::load::Error;
use crate::load::safetensors::Checkpoint;
use crate::manifest::Quantization;
use kernels::rotary::Table;
use rayon::prelude::*;

/// One layer, see [`Layer`].
pub(super) struct LayerWeights {
    pub(super) description: Layer,
    pub(super) attention_norm: NormWeights,
    pub(super) qkv: PackedDense,
    pub(super) head_norms: Option<(NormWeights, NormWeights)>,
    pub(super) attention_out: PackedDense,
    pub(super) attention_norm_after: Option<NormWeights>,
    pub(super) feed_forward_norm: NormWeights,
    pub(super) up: PackedDense,
    pub(super) down: PackedDense,
    pub(super) feed_forward_norm_after: Option<NormWeights>,
}

/// All of a decoder but its table of words.
pub(super) struct Weights {
    pub(super) layers: Vec<LayerWeights>,
    pub(super) norm: NormWeights,
    pub(super) output: PackedDense,
    pub(super) rotaries: Vec<Table>,
}

impl Weights {
    /// Packs them, the layers side by side on the pool that the caller installed. Angles are made for so many positions.
    pub(super) fn load(
        decoder: &Decoder,
        checkpoint: &Checkpoint,
        positions: usize,
        quantization: Option<Quantization>,
    ) -> Result<Self, Error> {
        values(&decoder.words, checkpoint)?;
        let norm = |norm: &Norm| load_norm(norm, decoder.norm_offset, checkpoint);
        let maybe = |of: &Option<Norm>| of.as_ref().map(norm).transpose();
        let dense = |dense: &Dense| load_dense(dense, checkpoint, quantization);
        let layer = |layer: &Layer| -> Result<LayerWeights, Error> {
            let head_norms = match &layer.head_norms {
                Some((q, k)) => Some((norm(q)?, norm(k)?)),
                None => None,
            };
            Ok(LayerWeights {
                attention_norm: norm(&layer.attention_norm)?,
                qkv: dense(&layer.qkv)?,
                head_norms,
                attention_out: dense(&layer.attention_out)?,
                attention_norm_after: maybe(&layer.attention_norm_after)?,
                feed_forward_norm: norm(&layer.feed_forward_norm)?,
                up: dense(&layer.up)?,
                down: dense(&layer.down)?,
                feed_forward_norm_after: maybe(&layer.feed_forward_norm_after)?,
                description: layer.clone(),
            })
        };
        Ok(Self {
            layers: decoder.layers.par_iter().map(layer).collect::<Result<_, _>>()?,
            norm: norm(&decoder.norm)?,
            output: dense(&decoder.output)?,
            rotaries: decoder.rotaries.iter().map(|rotary| rotary.table(positions)).collect(),
        })
    }

    /// Bytes of the packed weights.
    pub(super) fn bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.attention_out, &layer.up, &layer.down]);
        layers.chain([&self.output]).map(|dense| dense.weights.bytes() as u64).sum()
    }
}
