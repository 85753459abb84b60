//! A decoder's weights as the ops of `kernels` take them. The table of words stays in the mapped file, of which only the rows that
//! occur are ever read.

use super::super::weights::{NormWeights, PackedDense, load_dense, load_norm, values, view, words};
use crate::arch::decoder::{Decoder, Dense, Layer, Norm, Slice};
use crate::load::Error;
use crate::load::checkpoint::{Checkpoint, Type};
use crate::manifest::Quantization;
use kernels::embed::{self, Term};
use kernels::linear_quantized::{Blocks, dequantize};
use kernels::rotary::Table;
use kernels::stored::Values;
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
        Words::of(&decoder.words, checkpoint)?;
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

/// The table of words, where it lies in the mapped file.
pub(super) enum Words<'a> {
    /// One number after the other.
    Plain(Values<'a>),
    /// Rows of blocks.
    Blocks(Blocks, &'a [u8]),
}

impl<'a> Words<'a> {
    /// # Errors
    /// When the tensor is missing, of another shape, or of a type that is not read.
    pub(super) fn of(slice: &Slice, checkpoint: &'a Checkpoint) -> Result<Self, Error> {
        let view = view(slice, checkpoint)?;
        match view.stored {
            Type::Blocks(blocks) => Ok(Self::Blocks(blocks, view.data)),
            _ => values(slice, checkpoint).map(Self::Plain),
        }
    }

    /// The vectors of some tokens, `[ids, width]`, by the pool that the caller installed.
    pub(super) fn vectors(&self, ids: &[u32], width: usize, out: &mut [f32]) -> Result<(), String> {
        match *self {
            Self::Plain(table) => embed::embed(&[Term { table, indices: ids }], width, None, out).map_err(words),
            Self::Blocks(blocks, bytes) => {
                let row = blocks.row_bytes(width).map_err(words)?;
                out.par_chunks_exact_mut(width).zip(ids).try_for_each(|(out, id)| {
                    let first = *id as usize * row;
                    let bytes = bytes.get(first..first + row).ok_or_else(|| format!("token {id} has no vector"))?;
                    dequantize(blocks, bytes, out).map_err(words)
                })
            }
        }
    }
}
