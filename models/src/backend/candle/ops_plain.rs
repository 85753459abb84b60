//! The ops in Candle's own steps, for types and heads that the fused forms are not written for (half precision on the CPU, bf16
//! on Metal). Tensors come in and go out. Not fast: a sequence at a time, with whole matrices of scores.

use super::encoder::{Angles, Biases, Norm, Places};
use crate::arch::encoder::{Activation, Heads, NormKind, Reach};
use candle_core::{D, DType, IndexOp, Result, Tensor};
use kernels::pool::Kind;

/// See [`ops::norm`].
pub(super) fn norm(x: &Tensor, residual: Option<&Tensor>, norm: &Norm) -> Result<Tensor> {
    let x = residual.map_or(Ok(x.clone()), |residual| x + residual)?.contiguous()?;
    match norm.kind {
        NormKind::Layer => candle_nn::ops::layer_norm(&x, &norm.weight, &norm.bias, norm.epsilon),
        NormKind::Rms => candle_nn::ops::rms_norm(&x, &norm.weight, norm.epsilon),
    }
}

/// A row added to each row, where there is one.
pub(super) fn add(x: &Tensor, row: Option<&Tensor>) -> Result<Tensor> {
    row.map_or(Ok(x.clone()), |row| x.broadcast_add(row))
}

/// An activation by itself.
pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(x.clone()),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
    }
}

/// See [`ops::glu`].
pub(super) fn glu(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    activate(&x.narrow(1, 0, half)?.contiguous()?, activation)? * x.narrow(1, half, half)?
}

/// See [`ops::rotary`].
pub(super) fn rotary(x: &Tensor, width: usize, positions: &Tensor, angles: &Angles) -> Result<Tensor> {
    let (rows, stride) = x.dims2()?;
    let half = angles.cos.dim(1)?;
    let of_tokens = |table: &Tensor| table.index_select(positions, 0)?.unsqueeze(1);
    let (cos, sin) = (of_tokens(&angles.cos)?, of_tokens(&angles.sin)?);
    let heads = x.narrow(1, 0, width)?.to_dtype(DType::F32)?.reshape((rows, width / (2 * half), 2 * half))?;
    let (a, b) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[first, second], 2)?.reshape((rows, width))?.to_dtype(x.dtype())?;
    Tensor::cat(&[turned, x.narrow(1, width, stride - width)?], 1)
}

/// See [`ops::attention`].
pub(super) fn attention(
    qkv: &Tensor,
    places: &Places,
    heads: &Heads,
    reach: Reach,
    bias: Option<&Biases>,
) -> Result<Tensor> {
    let (q, k) = (heads.query_width(), heads.keys * heads.dim);
    let of_sequence = |ends: &[u32]| -> Result<Tensor> {
        let (first, len) = (ends[0] as usize, (ends[1] - ends[0]) as usize);
        let rows = qkv.narrow(0, first, len)?.to_dtype(DType::F32)?;
        let part = |from: usize, count: usize| {
            rows.narrow(1, from, count * heads.dim)?.reshape((len, count, heads.dim))?.transpose(0, 1)?.contiguous()
        };
        // Key heads as many times as there are query heads to each.
        let repeated = |x: Tensor| {
            let times = heads.queries / heads.keys;
            let shape = (heads.keys, times, len, heads.dim);
            x.unsqueeze(1)?.broadcast_as(shape)?.reshape((heads.queries, len, heads.dim))
        };
        let queries = part(0, heads.queries)?;
        let (keys, values) = (repeated(part(q, heads.keys)?)?, repeated(part(q + k, heads.keys)?)?);
        let mut scores = (queries.matmul(&keys.t()?.contiguous()?)? * f64::from(heads.scale))?;
        if let Some(bias) = bias {
            scores = (scores + distances(bias, len)?)?;
        }
        if let Some(mask) = mask(reach, len, qkv)? {
            scores = scores.broadcast_add(&mask)?;
        }
        let context = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&values)?;
        context.transpose(0, 1)?.contiguous()?.reshape((len, q))?.to_dtype(qkv.dtype())
    };
    let parts: Vec<Tensor> = places.packed.cu_seqlens.windows(2).map(of_sequence).collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

/// The bias of every pair of tokens: `[heads, len, len]`.
fn distances(bias: &Biases, len: usize) -> Result<Tensor> {
    let span = bias.relative.span();
    // A query's row begins at the distance to the first key.
    let of_query = |query: usize| bias.table.i((.., span - query..span - query + len));
    Tensor::stack(&(0..len).map(of_query).collect::<Result<Vec<_>>>()?, 1)
}

/// Minus infinity where a key is out of reach: `[1, len, len]`. Every query reaches itself.
fn mask(reach: Reach, len: usize, like: &Tensor) -> Result<Option<Tensor>> {
    let out_of_reach =
        |query: usize, key: usize| query > key.saturating_add(reach.behind) || key > query.saturating_add(reach.ahead);
    if !out_of_reach(len - 1, 0) && !out_of_reach(0, len - 1) {
        return Ok(None);
    }
    let value = |index: usize| if out_of_reach(index / len, index % len) { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..len * len).map(value).collect();
    Tensor::from_vec(values, (1, len, len), like.device()).map(Some)
}

/// See [`ops::pool`].
pub(super) fn pool(x: &Tensor, places: &Places, kind: Kind) -> Result<Tensor> {
    let of_sequence = |ends: &[u32]| {
        let rows = x.narrow(0, ends[0] as usize, (ends[1] - ends[0]) as usize)?.to_dtype(DType::F32)?;
        match kind {
            Kind::Mean => rows.mean(0),
            Kind::Cls => rows.i(0),
            Kind::Last => rows.i(rows.dim(0)? - 1),
        }
    };
    Tensor::stack(&places.packed.cu_seqlens.windows(2).map(of_sequence).collect::<Result<Vec<_>>>()?, 0)
}
