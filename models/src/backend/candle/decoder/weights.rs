//! A decoder's weights on a device: a description and a checkpoint come in, tensors and matrices of blocks go out. Plain numbers become the
//! type that is computed in; GGUF's blocks stay as they are, for Candle's own products with them.

use crate::arch::decoder::{self, Decoder, NormKind, Slice};
use crate::arch::encoder::Activation;
use crate::backend::candle::encoder::{Angles, Norm, failed};
use crate::backend::candle::ops::{activate, embed};
use crate::load::Error;
use crate::load::checkpoint::{Checkpoint, Type, View};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{D, DType, Device, Tensor};
use kernels::linear_quantized::Blocks;
use kernels::stored::Stored;
use std::borrow::Cow;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Error>;

/// A matrix.
#[derive(Clone)]
pub(super) enum Matrix {
    /// `[outputs, inputs]`; on a CPU a view of what lies there transposed.
    Plain(Tensor),
    /// `[outputs, inputs]`
    Blocks(Arc<QTensor>),
}

impl Matrix {
    fn bytes(&self) -> u64 {
        match self {
            Self::Plain(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Blocks(blocks) => blocks.storage_size_in_bytes() as u64,
        }
    }
}

/// `x Wᵀ + b`
pub(super) struct Dense {
    /// Several, whose outputs lie side by side: a file may hold queries in one type and values in another.
    pieces: Vec<Matrix>,
    bias: Option<Tensor>,
}

impl Dense {
    /// # Shapes
    /// `x`: `[rows, inputs]`, contiguous; gives `[rows, outputs]`.
    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let of = |piece: &Matrix| match piece {
            Matrix::Plain(weights) => x.matmul(&weights.t()?),
            Matrix::Blocks(weights) => x.apply_op1_no_bwd(weights.as_ref()),
        };
        let product = match self.pieces.as_slice() {
            [piece] => of(piece)?,
            pieces => Tensor::cat(&pieces.iter().map(of).collect::<candle_core::Result<Vec<_>>>()?, D::Minus1)?,
        };
        activate(product, self.bias.as_ref(), Activation::None)
    }
}

/// One layer, see [`decoder::Layer`].
pub(super) struct Layer {
    pub(super) description: decoder::Layer,
    pub(super) attention_norm: Norm,
    pub(super) qkv: Dense,
    pub(super) head_norms: Option<(Norm, Norm)>,
    pub(super) attention_out: Dense,
    pub(super) attention_norm_after: Option<Norm>,
    pub(super) feed_forward_norm: Norm,
    pub(super) up: Dense,
    pub(super) down: Dense,
    pub(super) feed_forward_norm_after: Option<Norm>,
}

/// All of a decoder.
pub(super) struct Weights {
    words: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) output: Dense,
    pub(super) angles: Vec<Angles>,
    dtype: DType,
}

impl Weights {
    /// Puts them on a device, to be computed with in `dtype`. Angles are made for so many positions.
    pub(super) fn load(
        of: &Decoder,
        checkpoint: &Checkpoint,
        positions: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let loader = Loader { checkpoint, device, dtype, norm_offset: of.norm_offset };
        let words = loader.matrix(std::slice::from_ref(&of.words), of.hidden, false)?;
        let is_tied = of.output.biases.is_empty() && of.output.weights == [of.words.clone()];
        let output = match is_tied {
            true => Dense { pieces: vec![words.clone()], bias: None },
            false => loader.dense(&of.output)?,
        };
        Ok(Self {
            words,
            layers: of.layers.iter().map(|layer| loader.layer(layer)).collect::<Result<_>>()?,
            norm: loader.norm(&of.norm)?,
            output,
            angles: of.rotaries.iter().map(|rotary| Angles::new(rotary, positions, device)).collect::<Result<_>>()?,
            dtype,
        })
    }

    /// Bytes of the matrices; one that is used twice counts once.
    pub(super) fn bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.attention_out, &layer.up, &layer.down]);
        let is_other = |piece: &&Matrix| match (piece, &self.words) {
            (Matrix::Plain(a), Matrix::Plain(b)) => a.id() != b.id(),
            (Matrix::Blocks(a), Matrix::Blocks(b)) => !Arc::ptr_eq(a, b),
            _ => true,
        };
        let pieces = layers.chain([&self.output]).flat_map(|dense| &dense.pieces).filter(is_other);
        pieces.chain([&self.words]).map(Matrix::bytes).sum()
    }

    /// The vectors of some tokens, `[t, h]`.
    pub(super) fn vectors(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        match &self.words {
            Matrix::Plain(table) => embed(&[(table, ids.clone())], None),
            Matrix::Blocks(table) => table.embedding(ids)?.to_dtype(self.dtype),
        }
    }
}

/// Where weights come from and what becomes of them.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    dtype: DType,
    norm_offset: f32,
}

impl Loader<'_> {
    fn layer(&self, layer: &decoder::Layer) -> Result<Layer> {
        let maybe = |of: &Option<decoder::Norm>| of.as_ref().map(|norm| self.norm(norm)).transpose();
        Ok(Layer {
            attention_norm: self.norm(&layer.attention_norm)?,
            qkv: self.dense(&layer.qkv)?,
            head_norms: match &layer.head_norms {
                Some((q, k)) => Some((self.norm(q)?, self.norm(k)?)),
                None => None,
            },
            attention_out: self.dense(&layer.attention_out)?,
            attention_norm_after: maybe(&layer.attention_norm_after)?,
            feed_forward_norm: self.norm(&layer.feed_forward_norm)?,
            up: self.dense(&layer.up)?,
            down: self.dense(&layer.down)?,
            feed_forward_norm_after: maybe(&layer.feed_forward_norm_after)?,
            description: layer.clone(),
        })
    }

    fn view(&self, slice: &Slice) -> Result<View<'_>> {
        let wrong = |detail: String| Error::Tensor { name: slice.name.clone(), detail };
        let view = self.checkpoint.tensor(&slice.name).ok_or_else(|| wrong("is missing".into()))?;
        if view.shape != slice.shape || slice.rows.end > slice.shape[0] {
            return Err(wrong(format!("has shape {:?}, the configuration says {:?}", view.shape, slice.shape)));
        }
        Ok(view)
    }

    /// The blocks that a tensor is stored in, if it is.
    fn blocks(&self, slice: &Slice) -> Option<Blocks> {
        match self.checkpoint.tensor(&slice.name)?.stored {
            Type::Blocks(blocks) => Some(blocks),
            _ => None,
        }
    }

    /// Some rows of a tensor as they are stored, on the device.
    fn stored(&self, slice: &Slice) -> Result<Tensor> {
        let view = self.view(slice)?;
        let dtype = match view.stored {
            Type::Plain(Stored::F32) => DType::F32,
            Type::Plain(Stored::F16) => DType::F16,
            Type::Plain(Stored::Bf16) => DType::BF16,
            Type::F64 => DType::F64,
            other => {
                let detail = format!("is stored as {other}; f16, bf16, f32 and f64 are supported here");
                return Err(Error::Tensor { name: slice.name.clone(), detail });
            }
        };
        let mut shape = slice.shape.clone();
        shape[0] = slice.rows.len();
        let rows = whole(view.rows(slice.rows.clone()));
        Tensor::from_raw_buffer(&rows, dtype, &shape, self.device).map_err(|e| failed(&slice.name, &e))
    }

    /// Rows of several tensors below each other, in a type.
    fn joined(&self, slices: &[Slice], dtype: DType) -> Result<Tensor> {
        let wrong = |e: candle_core::Error| failed(slices.first().map_or("", |slice| &slice.name), &e);
        let part = |slice: &Slice| self.stored(slice)?.to_dtype(dtype).map_err(wrong);
        let parts = slices.iter().map(part).collect::<Result<Vec<_>>>()?;
        if let [part] = parts.as_slice() { Ok(part.clone()) } else { Tensor::cat(&parts, 0).map_err(wrong) }
    }

    /// One piece, of tensors that are stored alike.
    fn matrix(&self, slices: &[Slice], inputs: usize, is_transposed: bool) -> Result<Matrix> {
        let wrong = |e: candle_core::Error| failed(&slices[0].name, &e);
        let Some(blocks) = self.blocks(&slices[0]) else {
            let plain = self.joined(slices, self.dtype)?;
            // A product of few rows with a contiguous matrix was measured 1.8 times as fast on CPUs as with a transposed view.
            let transposed = || plain.t()?.contiguous()?.t();
            let is_transposed = is_transposed && self.device.is_cpu();
            return Ok(Matrix::Plain(if is_transposed { transposed().map_err(wrong)? } else { plain }));
        };
        let Some(stored_as) = type_of(blocks) else {
            let detail = format!(
                "is stored as {blocks:?}, which Candle has no products with; use the backend kernels, or another file"
            );
            return Err(Error::Tensor { name: slices[0].name.clone(), detail });
        };
        let mut rows = Vec::new();
        for slice in slices {
            rows.extend(self.view(slice)?.rows(slice.rows.clone()));
        }
        let outputs = slices.iter().map(|slice| slice.rows.len()).sum::<usize>();
        // Copied, because Candle wants them to begin at even addresses.
        let bytes = Cow::Owned(whole(rows).into_owned());
        let stored = QStorage::from_data(bytes, self.device, stored_as).map_err(wrong)?;
        Ok(Matrix::Blocks(Arc::new(QTensor::new(stored, (outputs, inputs)).map_err(wrong)?)))
    }

    fn dense(&self, dense: &decoder::Dense) -> Result<Dense> {
        let alike = dense.weights.chunk_by(|a, b| self.blocks(a) == self.blocks(b));
        Ok(Dense {
            pieces: alike.map(|slices| self.matrix(slices, dense.inputs, true)).collect::<Result<_>>()?,
            bias: if dense.biases.is_empty() { None } else { Some(self.joined(&dense.biases, self.dtype)?) },
        })
    }

    fn norm(&self, norm: &decoder::Norm) -> Result<Norm> {
        let wrong = |e: candle_core::Error| failed(&norm.weight, &e);
        if norm.kind != NormKind::Rms || norm.bias.is_some() {
            let detail = "is of a norm with a mean, which decoders do not have here".into();
            return Err(Error::Tensor { name: norm.weight.clone(), detail });
        }
        let exact = self.joined(&[Slice::whole(&norm.weight, &[norm.width])], DType::F32)?;
        let weight = exact.affine(1.0, f64::from(self.norm_offset)).and_then(|weight| weight.to_dtype(self.dtype));
        let weight = weight.map_err(wrong)?;
        let bias = weight.zeros_like().map_err(wrong)?;
        Ok(Norm { kind: norm.kind, weight, bias, epsilon: norm.epsilon })
    }
}

/// Parts one after the other.
fn whole(parts: Vec<&[u8]>) -> Cow<'_, [u8]> {
    match parts.as_slice() {
        [part] => Cow::Borrowed(part),
        parts => Cow::Owned(parts.concat()),
    }
}

/// Candle's name for blocks, where it has them.
fn type_of(blocks: Blocks) -> Option<GgmlDType> {
    Some(match blocks {
        Blocks::Q4_0 => GgmlDType::Q4_0,
        Blocks::Q4_1 => GgmlDType::Q4_1,
        Blocks::Q5_0 => GgmlDType::Q5_0,
        Blocks::Q5_1 => GgmlDType::Q5_1,
        Blocks::Q8_0 => GgmlDType::Q8_0,
        Blocks::Q4_K => GgmlDType::Q4K,
        Blocks::Q5_K => GgmlDType::Q5K,
        Blocks::Q6_K => GgmlDType::Q6K,
        Blocks::IQ4_NL => return None,
    })
}
