//! An encoder on Candle's tensors: token sequences come in, packed side by side they go through the ops, one vector each goes out.
//! Any architecture that describes itself runs here, on any device of Candle's. Never padding, never a mask.

#[cfg(test)]
mod tests;
#[cfg(any(feature = "cuda", test))]
mod trial;

#[cfg(feature = "cuda")]
pub(crate) use trial::try_device;

use super::ops;
use crate::arch::Weights;
use crate::arch::encoder::{self, Activation, Layer, NormKind, Slice};
use crate::backend::cpu::weights::load_bias;
use crate::backend::packed::{Packed, Pooled};
use crate::engine::Tokens;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use candle_core::{DType, Device, Result, Tensor};
use kernels::attention::Relative;
use kernels::rotary::Table;

/// Tokens that go through the layers at once at most: what is more comes after them, so that intermediate results stay bounded (a
/// layer of BERT-large takes up to 1.5 GB of them in f32).
const TOKENS_AT_ONCE: usize = 32_768;

/// `x W + b`
struct Dense {
    /// `[inputs, outputs]`
    weight: Tensor,
    bias: Option<Tensor>,
}

/// A normalisation over the last dimension.
pub(super) struct Norm {
    pub(super) kind: NormKind,
    pub(super) weight: Tensor,
    /// Zeros where the checkpoint has none.
    pub(super) bias: Tensor,
    pub(super) epsilon: f32,
}

/// One layer, see [`Layer`].
struct LayerWeights {
    description: Layer,
    attention_norm: Option<Norm>,
    qkv: Dense,
    head_norms: Option<(Norm, Norm)>,
    attention_out: Dense,
    attention_norm_after: Option<Norm>,
    feed_forward_norm: Option<Norm>,
    up: Dense,
    down: Dense,
    feed_forward_norm_after: Option<Norm>,
}

/// Angles of rotary positions, here and on the device.
pub(super) struct Angles {
    pub(super) table: Table,
    /// `[positions, d / 2]`
    pub(super) cos: Tensor,
    /// `[positions, d / 2]`
    pub(super) sin: Tensor,
}

impl Angles {
    /// For so many positions.
    pub(super) fn new(rotary: &encoder::Rotary, positions: usize, device: &Device) -> std::result::Result<Self, Error> {
        let table = rotary.table(positions);
        let shape = (positions, rotary.frequencies.len());
        let on_device =
            |values: &[f32]| Tensor::from_slice(values, shape, device).map_err(|e| failed("a table of angles", &e));
        Ok(Self { cos: on_device(table.cos())?, sin: on_device(table.sin())?, table })
    }
}

/// Biases of scores, here and on the device.
pub(super) struct Biases {
    pub(super) relative: Relative,
    /// `[heads, 2 · span + 1]`
    pub(super) table: Tensor,
}

/// Where a batch's sequences begin and which position each token has, here and on the device.
pub(super) struct Places {
    pub(super) packed: Packed,
    /// `[sequences + 1]`
    #[cfg_attr(not(any(feature = "cuda", feature = "metal")), expect(dead_code, reason = "only GPUs read it there"))]
    pub(super) cu_seqlens: Tensor,
    /// `[t]`
    pub(super) positions: Tensor,
}

/// An encoder with its weights on a device.
pub(super) struct Encoder {
    pub(super) description: encoder::Encoder,
    device: Device,
    words: Tensor,
    positions: Option<Tensor>,
    types: Option<Tensor>,
    embedding_norm: Option<Norm>,
    layers: Vec<LayerWeights>,
    norm: Option<Norm>,
    /// In f32 whatever the layers are: they are small, and answers hang on them directly.
    steps: Vec<(Dense, Activation, Option<Norm>)>,
    bias: Option<Biases>,
    rotaries: Vec<Angles>,
}

impl Encoder {
    /// Puts an encoder's weights on a device, its layers in `dtype`.
    pub(super) fn load(
        description: encoder::Encoder,
        checkpoint: &Checkpoint,
        device: &Device,
        dtype: DType,
    ) -> std::result::Result<Self, Error> {
        let weights = Weights::new(checkpoint, device.clone(), dtype);
        let exact = Weights::new(checkpoint, device.clone(), DType::F32);
        let layer = |layer: &Layer| -> std::result::Result<LayerWeights, Error> {
            Ok(LayerWeights {
                attention_norm: optional_norm(layer.attention_norm.as_ref(), &weights)?,
                qkv: dense(&layer.qkv, &weights)?,
                head_norms: match &layer.head_norms {
                    Some((q, k)) => Some((norm(q, &weights)?, norm(k, &weights)?)),
                    None => None,
                },
                attention_out: dense(&layer.attention_out, &weights)?,
                attention_norm_after: optional_norm(layer.attention_norm_after.as_ref(), &weights)?,
                feed_forward_norm: optional_norm(layer.feed_forward_norm.as_ref(), &weights)?,
                up: dense(&layer.up, &weights)?,
                down: dense(&layer.down, &weights)?,
                feed_forward_norm_after: optional_norm(layer.feed_forward_norm_after.as_ref(), &weights)?,
                description: layer.clone(),
            })
        };
        let tokens_max = description.bounds.tokens;
        let on_device = |values: &[f32], shape: (usize, usize)| {
            Tensor::from_slice(values, shape, device).map_err(|e| failed("a table of the model", &e))
        };
        let angles = |rotary: &encoder::Rotary| Angles::new(rotary, tokens_max, device);
        let step = |step: &encoder::Step| -> std::result::Result<(Dense, Activation, Option<Norm>), Error> {
            Ok((dense(&step.dense, &exact)?, step.activation, optional_norm(step.norm.as_ref(), &exact)?))
        };
        let embeddings = &description.embeddings;
        let bias = match &description.bias {
            Some(bias) => {
                let relative = load_bias(bias, description.heads.queries, tokens_max, checkpoint)?;
                let shape = (relative.heads(), 2 * relative.span() + 1);
                Some(Biases { table: on_device(relative.table(), shape)?, relative })
            }
            None => None,
        };
        Ok(Self {
            device: device.clone(),
            words: slice(&embeddings.words, &weights)?,
            positions: embeddings.positions.as_ref().map(|positions| slice(&positions.table, &weights)).transpose()?,
            types: embeddings.types.as_ref().map(|types| slice(types, &weights)).transpose()?,
            embedding_norm: optional_norm(embeddings.norm.as_ref(), &weights)?,
            layers: description.layers.iter().map(layer).collect::<std::result::Result<_, _>>()?,
            norm: optional_norm(description.norm.as_ref(), &weights)?,
            steps: description.head.steps.iter().map(step).collect::<std::result::Result<_, _>>()?,
            bias,
            rotaries: description.rotaries.iter().map(angles).collect::<std::result::Result<_, _>>()?,
            description,
        })
    }

    /// One vector per sequence. They have been checked against the encoder's bounds. `read` launches what makes rows of them, and reads these.
    pub(super) fn run(
        &self,
        sequences: &[&Tokens],
        read: impl Fn(&dyn Fn() -> Result<Tensor>) -> Result<Vec<Vec<f32>>>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|sequence| {
                tokens += sequence.ids.len();
                tokens <= TOKENS_AT_ONCE
            });
            // A sequence that is longer than all that goes alone.
            let (now, later) = rest.split_at(fits.count().max(1));
            vectors.extend(read(&|| self.forward(now))?);
            rest = later;
        }
        Ok(vectors)
    }

    /// `[sequences, v]`, in f32.
    fn forward(&self, sequences: &[&Tokens]) -> Result<Tensor> {
        let packed = Packed::new(sequences, self.description.bounds.types);
        let on_device = |numbers: &[u32]| Tensor::from_slice(numbers, numbers.len(), &self.device);
        let places =
            Places { cu_seqlens: on_device(&packed.cu_seqlens)?, positions: on_device(&packed.positions)?, packed };
        let packed = &places.packed;
        let mut terms = vec![(&self.words, on_device(&packed.ids)?)];
        if let (Some(table), Some(rows)) = (&self.positions, packed.rows(&self.description.embeddings)) {
            terms.push((table, on_device(&rows)?));
        }
        if let Some(table) = &self.types {
            terms.push((table, on_device(&packed.types)?));
        }
        let mut x = ops::embed(&terms, self.embedding_norm.as_ref())?;
        for layer in &self.layers {
            x = self.layer(layer, x, &places)?;
        }
        x = normalised(self.norm.as_ref(), x)?;
        let mut vectors = match packed.pooled(&self.description.head) {
            Pooled::Kind(kind) => ops::pool(&x, &places, kind)?,
            Pooled::Tokens(tokens) => x.index_select(&on_device(&tokens)?, 0)?.to_dtype(DType::F32)?,
        };
        for (dense, activation, norm) in &self.steps {
            vectors = normalised(norm.as_ref(), dense.activated(&vectors, *activation)?)?;
        }
        Ok(vectors)
    }

    fn layer(&self, layer: &LayerWeights, x: Tensor, places: &Places) -> Result<Tensor> {
        let (heads, description) = (&self.description.heads, &layer.description);
        let input = normalised(layer.attention_norm.as_ref(), x.clone())?;
        // What stands between the two is for whole queries and keys, bias and all.
        let is_direct = layer.head_norms.is_none() && description.rotary.is_none();
        let mut qkv = if is_direct { layer.qkv.product(&input)? } else { layer.qkv.apply(&input)? };
        let shift = layer.qkv.bias.as_ref().filter(|_| is_direct);
        let (q, k) = (heads.query_width(), heads.keys * heads.dim);
        if let Some((of_queries, of_keys)) = &layer.head_norms {
            qkv = normalised_heads(&qkv, &[(q, Some(of_queries)), (k, Some(of_keys)), (k, None)], heads.dim)?;
        }
        if let Some(rotary) = description.rotary {
            qkv = ops::rotary(qkv, q + k, places, &self.rotaries[rotary])?;
        }
        let context = ops::attention(&qkv, shift, places, heads, description.reach, self.bias.as_ref())?;
        let x = layer.attention_out.normalised(&context, layer.attention_norm_after.as_ref(), &x)?;

        let input = normalised(layer.feed_forward_norm.as_ref(), x.clone())?;
        let inner = match description.gated {
            true => ops::glu(&layer.up.apply(&input)?, description.activation)?,
            false => layer.up.activated(&input, description.activation)?,
        };
        layer.down.normalised(&inner, layer.feed_forward_norm_after.as_ref(), &x)
    }
}

impl Dense {
    /// `x W`
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.activated(x, Activation::None)
    }

    fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::activate(self.product(x)?, self.bias.as_ref(), activation)
    }

    /// `norm(x W + b + residual)`, whatever there is of it.
    fn normalised(&self, x: &Tensor, norm: Option<&Norm>, residual: &Tensor) -> Result<Tensor> {
        match norm {
            Some(norm) => ops::norm(&self.product(x)?, self.bias.as_ref(), Some(residual), norm),
            None => self.apply(x)? + residual,
        }
    }
}

/// `norm(x)`, where there is a norm.
fn normalised(norm: Option<&Norm>, x: Tensor) -> Result<Tensor> {
    norm.map_or(Ok(x.clone()), |norm| ops::norm(&x, None, None, norm))
}

/// Parts of `x` side by side, `[t, width]` each: where there is a norm, each head of `dim` elements on its own.
fn normalised_heads(x: &Tensor, parts: &[(usize, Option<&Norm>)], dim: usize) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let mut first = 0;
    let mut done = Vec::with_capacity(parts.len());
    for (width, norm) in parts {
        let part = x.narrow(1, first, *width)?.contiguous()?;
        first += width;
        done.push(match norm {
            Some(norm) => {
                ops::norm(&part.reshape((rows * width / dim, dim))?, None, None, norm)?.reshape((rows, *width))?
            }
            None => part,
        });
    }
    Tensor::cat(&done, 1)
}

pub(super) fn failed(name: &str, error: &candle_core::Error) -> Error {
    Error::Tensor { name: name.into(), detail: error.to_string() }
}

fn slice(slice: &Slice, weights: &Weights<'_>) -> std::result::Result<Tensor, Error> {
    let whole = weights.get(&slice.name, &slice.shape)?;
    whole.narrow(0, slice.rows.start, slice.rows.len()).map_err(|e| failed(&slice.name, &e))
}

fn joined(slices: &[Slice], weights: &Weights<'_>) -> std::result::Result<Tensor, Error> {
    let parts: Vec<Tensor> = slices.iter().map(|part| slice(part, weights)).collect::<std::result::Result<_, _>>()?;
    Tensor::cat(&parts, 0).map_err(|e| failed(slices.first().map_or("", |slice| &slice.name), &e))
}

fn dense(dense: &encoder::Dense, weights: &Weights<'_>) -> std::result::Result<Dense, Error> {
    // A product of few rows with a contiguous matrix was measured 1.8 times as fast on CPUs as with a transposed view.
    let transposed = joined(&dense.weights, weights)?.t().and_then(|weight| weight.contiguous());
    Ok(Dense {
        weight: transposed.map_err(|e| failed(&dense.weights[0].name, &e))?,
        bias: if dense.biases.is_empty() { None } else { Some(joined(&dense.biases, weights)?) },
    })
}

fn norm(norm: &encoder::Norm, weights: &Weights<'_>) -> std::result::Result<Norm, Error> {
    let weight = weights.get(&norm.weight, &[norm.width])?;
    let bias = match &norm.bias {
        Some(bias) => weights.get(bias, &[norm.width])?,
        None => weight.zeros_like().map_err(|e| failed(&norm.weight, &e))?,
    };
    Ok(Norm { kind: norm.kind, weight, bias, epsilon: norm.epsilon })
}

fn optional_norm(of: Option<&encoder::Norm>, weights: &Weights<'_>) -> std::result::Result<Option<Norm>, Error> {
    of.map(|of| norm(of, weights)).transpose()
}
