//! The ops in Candle's own steps, for devices and types that the fused forms are not written for (Metal, half precision on the CPU, heads
//! of an odd width). Tensors come in and go out. Not fast: a sequence at a time, its keys and values gathered first, with whole matrices of
//! scores.

use super::batch::Run;
use super::ops::{Scores, Step, Turn, softcapped};
use crate::backend::candle::{ops, ops_plain};
use candle_core::{DType, Result, Tensor};

/// See [`super::ops::keep`].
pub(super) fn keep(qkv: &Tensor, turn: Turn<'_>, step: Step<'_>, cache: &Tensor) -> Result<Tensor> {
    let Step { heads, arrays, .. } = step;
    let (q, k) = (heads.query_width(), heads.keys * heads.dim);
    let mut qkv = qkv.clone();
    let rows = qkv.dim(0)?;
    if let Some((of_queries, of_keys)) = turn.norms {
        let normed = |first: usize, width: usize, of| {
            let part = qkv.narrow(1, first, width)?.contiguous()?;
            ops::norm(&part.reshape((rows * width / heads.dim, heads.dim))?, None, None, of)?.reshape((rows, width))
        };
        qkv = Tensor::cat(&[normed(0, q, of_queries)?, normed(q, k, of_keys)?, qkv.narrow(1, q + k, k)?], 1)?;
    }
    let turned = ops_plain::rotary(&qkv, q + k, &arrays.positions, turn.angles)?;
    let slots = arrays.slots.unsqueeze(1)?.broadcast_as((rows, k))?.contiguous()?;
    for (which, first) in [(0, q), (1, q + k)] {
        cache.get(which)?.scatter_set(&slots, &turned.narrow(1, first, k)?.contiguous()?, 0)?;
    }
    turned.narrow(1, 0, q)?.contiguous()
}

/// See [`super::ops::attention`].
pub(super) fn attention(queries: &Tensor, scores: Scores, step: Step<'_>, cache: &Tensor) -> Result<Tensor> {
    let Step { heads, batch, .. } = step;
    let of_run = |run: &Run| -> Result<Tensor> {
        let (count, length) = (run.rows.len(), run.length());
        let slots: Vec<u32> = (0..length).map(|position| run.slot(position)).collect();
        let slots = Tensor::from_vec(slots, length, queries.device())?;
        // Heads first; those of keys as many times as there are heads of queries to each.
        let times = heads.queries / heads.keys;
        let cached = |which: usize| {
            let rows = cache.get(which)?.index_select(&slots, 0)?.to_dtype(DType::F32)?;
            let of_heads = rows.reshape((length, heads.keys, heads.dim))?.transpose(0, 1)?.contiguous()?;
            let shape = (heads.keys, times, length, heads.dim);
            of_heads.unsqueeze(1)?.broadcast_as(shape)?.reshape((heads.queries, length, heads.dim))
        };
        let rows = queries.narrow(0, run.rows.start, count)?.narrow(1, 0, heads.query_width())?;
        let rows = rows.to_dtype(DType::F32)?.reshape((count, heads.queries, heads.dim))?;
        let rows = rows.transpose(0, 1)?.contiguous()?;
        let products = (rows.matmul(&cached(0)?.t()?.contiguous()?)? * f64::from(heads.scale))?;
        let products = scores.softcap.map_or(Ok(products.clone()), |cap| softcapped(&products, cap))?;
        let products = products.broadcast_add(&mask(run, scores.window, queries)?)?;
        let context = candle_nn::ops::softmax_last_dim(&products)?.matmul(&cached(1)?)?;
        context.transpose(0, 1)?.contiguous()?.reshape((count, heads.query_width()))?.to_dtype(queries.dtype())
    };
    Tensor::cat(&batch.runs.iter().map(of_run).collect::<Result<Vec<_>>>()?, 0)
}

/// Minus infinity where a key is not seen: `[1, queries, keys]`. Every query sees its own.
fn mask(run: &Run, window: Option<usize>, like: &Tensor) -> Result<Tensor> {
    let window = window.unwrap_or(usize::MAX);
    let value = |position: usize, key: usize| match key <= position && position - key < window {
        true => 0.0,
        false => f32::NEG_INFINITY,
    };
    let of_query = |position: usize| (0..run.length()).map(move |key| value(position, key));
    let values: Vec<f32> = (run.first..run.length()).flat_map(of_query).collect();
    Tensor::from_vec(values, (1, run.rows.len(), run.length()), like.device())
}
