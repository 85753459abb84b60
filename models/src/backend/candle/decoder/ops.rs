//! What a decoder does beyond an encoder, as ops of Candle's: tensors come in and go out, keys and values go into the cache. On the CPU in
//! f32 they run the vector code of `kernels`, on CUDA in f32, f16 and bf16 the CUDA code; anything else runs Candle's own steps, see
//! [`super::ops_plain`] (on Metal all but norms and gates). All give the same up to rounding.

use super::batch::{Arrays, Batch};
use super::cache::Cache;
use super::ops_plain;
use crate::arch::encoder::Heads;
use crate::backend::candle::encoder::{Angles, Norm};
use crate::backend::candle::ops::{
    Fused, Op, ROWS_PER_TASK, is_fused, norm, on_cuda, slice_of, slice_of_mut, with_slices,
};
use candle_core::{CpuStorage, CustomOp2, Error, IndexOp, InplaceOp1, Layout, Result, Shape, Tensor};
use kernels::attention::Rows;
use kernels::attention_paged::{self, Params, Scratch, Sequence, attention_paged_part};
use kernels::launch::columns::Columns;
use kernels::{rms_norm, rotary};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// A step with what it runs on.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) heads: &'a Heads,
    pub(super) batch: &'a Batch,
    pub(super) arrays: &'a Arrays,
    pub(super) cache: &'a Cache,
}

/// How queries and keys are turned.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    /// Of each head of queries, and of keys, before that.
    pub(super) norms: Option<&'a (Norm, Norm)>,
    pub(super) angles: &'a Angles,
}

/// What scores are, beside products.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// See [`Params::softcap`].
    pub(super) softcap: Option<f32>,
    /// See [`Params::window`].
    pub(super) window: Option<usize>,
}

/// Turns queries and keys to their positions and puts keys and values into the cache. Gives the queries.
///
/// # Shapes
/// `qkv`: `[t, (queries + 2 · keys) · d]`, contiguous and of no other use; gives `[t, s]`, contiguous, whose first columns are the
/// queries, `[t, queries · d]`.
pub(super) fn keep(qkv: Tensor, turn: Turn<'_>, step: Step<'_>) -> Result<Tensor> {
    match step.cache {
        Cache::Host(cache) => {
            qkv.inplace_op1(&KeepOp { turn, step, cache })?;
            Ok(qkv)
        }
        #[cfg(feature = "cuda")]
        Cache::Device(cache) if is_fused(&qkv) && qkv.device().is_cuda() && is_on_cuda(step.heads) => {
            super::ops_cuda::keep(&qkv, turn, step, cache)
        }
        Cache::Device(cache) => ops_plain::keep(&qkv, turn, step, cache),
    }
}

/// Every query looks at its sequence's keys.
///
/// # Shapes
/// `queries`: what [`keep`] gives; gives `[t, queries · d]`.
pub(super) fn attention(queries: &Tensor, scores: Scores, step: Step<'_>) -> Result<Tensor> {
    match step.cache {
        Cache::Device(cache) if !(queries.device().is_cuda() && is_fused(queries) && is_on_cuda(step.heads)) => {
            ops_plain::attention(queries, scores, step, cache)
        }
        _ => queries.apply_op1_no_bwd(&Fused(AttentionOp { scores, step })),
    }
}

/// Whether the CUDA code takes such heads: rows are read eight elements at a time.
pub(super) fn is_on_cuda(heads: &Heads) -> bool {
    cfg!(feature = "cuda") && heads.dim <= 256 && heads.dim.is_multiple_of(8)
}

/// `x + y`, and that normalised.
///
/// # Shapes
/// All `[t, h]`; `x` and `y` contiguous.
pub(super) fn add_norm(x: &Tensor, y: &Tensor, of: &Norm) -> Result<(Tensor, Tensor)> {
    if !is_fused(x) || !is_fused(y) {
        let sum = (x + y)?;
        let normed = norm(&sum, None, None, of)?;
        return Ok((sum, normed));
    }
    let both = x.apply_op2_no_bwd(y, &AddNormOp { norm: of })?;
    Ok((both.i(0)?, both.i(1)?))
}

/// See [`keep`].
struct KeepOp<'a> {
    turn: Turn<'a>,
    step: Step<'a>,
    cache: &'a Mutex<attention_paged::Cache>,
}

impl InplaceOp1 for KeepOp<'_> {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let qkv = slice_of_mut(storage, layout, "keep")?;
        let Step { heads, batch, .. } = self.step;
        let (q, k, width) = (heads.query_width(), heads.keys * heads.dim, heads.width());
        let parts = qkv.par_chunks_mut(ROWS_PER_TASK * width).zip(batch.positions.par_chunks(ROWS_PER_TASK));
        let normalise = |rows: &mut [f32], of: &Norm, weight: &[f32]| {
            rms_norm::rms_norm(rows, &rms_norm::Params { weight, eps: of.epsilon }).map_err(Error::wrap)
        };
        let table = &self.turn.angles.table;
        match self.turn.norms {
            None => parts.try_for_each(|(rows, positions)| {
                rotary::rotary(rows, width, q + k, positions, table).map_err(Error::wrap)
            })?,
            Some((of_queries, of_keys)) => {
                with_slices([&of_queries.weight, &of_keys.weight], |[query_weight, key_weight]| {
                    parts.try_for_each(|(rows, positions)| {
                        for row in rows.chunks_exact_mut(width) {
                            normalise(&mut row[..q], of_queries, query_weight)?;
                            normalise(&mut row[q..q + k], of_keys, key_weight)?;
                        }
                        rotary::rotary(rows, width, q + k, positions, table).map_err(Error::wrap)
                    })
                })?;
            }
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for run in &batch.runs {
            let rows = |column: usize| Rows { values: &qkv[run.rows.start * width + column..], stride: width };
            cache.write(&run.table, run.first, rows(q), rows(q + k), run.rows.len()).map_err(Error::wrap)?;
        }
        Ok(())
    }
}

/// See [`attention`].
pub(super) struct AttentionOp<'a> {
    pub(super) scores: Scores,
    pub(super) step: Step<'a>,
}

impl Op for AttentionOp<'_> {
    const NAME: &'static str = "attention_paged";

    fn dims(&self, rows: usize, _: usize) -> (usize, usize) {
        (rows, self.step.heads.query_width())
    }

    fn cpu(&self, x: &[f32], width: usize, out: &mut [f32]) -> Result<()> {
        let Step { heads, batch, cache, .. } = self.step;
        let Cache::Host(cache) = cache else { candle_core::bail!("{}: the cache is not the host's", Self::NAME) };
        let cache = &*cache.lock().unwrap_or_else(PoisonError::into_inner);
        let params = Params {
            heads: heads.queries,
            head_dim: heads.dim,
            scale: heads.scale,
            softcap: self.scores.softcap,
            window: self.scores.window,
        };
        // A task is the heads of a run that share keys.
        let group = heads.queries / heads.keys;
        let mut tasks = Vec::with_capacity(batch.runs.len() * heads.keys);
        let mut rest = Columns::whole(out, heads.query_width());
        for run in &batch.runs {
            let (mut mine, others) = rest.split_rows(run.rows.len());
            rest = others;
            for key in 0..heads.keys {
                let (columns, others) = mine.split_columns(group * heads.dim);
                mine = others;
                tasks.push((run, key * group..(key + 1) * group, columns));
            }
        }
        tasks.into_par_iter().try_for_each(|(run, of_heads, out)| {
            let sequence = Sequence { queries: run.rows.clone(), table: &run.table, length: run.length() };
            let (q, scratch) = (Rows { values: x, stride: width }, &mut Scratch::default());
            attention_paged_part(q, cache, &sequence, &params, of_heads, scratch, out).map_err(Error::wrap)
        })
    }

    on_cuda!(super::ops_cuda::attention_paged);
}

/// See [`add_norm`].
pub(super) struct AddNormOp<'a> {
    pub(super) norm: &'a Norm,
}

impl CustomOp2 for AddNormOp<'_> {
    fn name(&self) -> &'static str {
        "add_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = x_layout.shape().dims2()?;
        let (x, y) = (slice_of(x, x_layout, "add_norm")?, slice_of(y, y_layout, "add_norm")?);
        let mut both = vec![0.0; 2 * rows * width];
        let (sums, normed) = both.split_at_mut(rows * width);
        let chunk = ROWS_PER_TASK * width;
        with_slices([&self.norm.weight], |[weight]| {
            let parts = sums.par_chunks_mut(chunk).zip(normed.par_chunks_mut(chunk));
            let parts = parts.zip(x.par_chunks(chunk)).zip(y.par_chunks(chunk));
            parts.try_for_each(|(((sums, normed), x), y)| {
                sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum = x + y);
                normed.copy_from_slice(sums);
                let params = rms_norm::Params { weight, eps: self.norm.epsilon };
                rms_norm::rms_norm(normed, &params).map_err(Error::wrap)
            })
        })?;
        Ok((CpuStorage::F32(both), (2, rows, width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        y: &candle_core::CudaStorage,
        y_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, width) = x_layout.shape().dims2()?;
        let both = super::ops_cuda::add_norm(self, (x, x_layout), (y, y_layout), rows, width)?;
        Ok((both, (2, rows, width).into()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        x: &candle_core::MetalStorage,
        x_layout: &Layout,
        y: &candle_core::MetalStorage,
        y_layout: &Layout,
    ) -> Result<(candle_core::MetalStorage, Shape)> {
        let (rows, width) = x_layout.shape().dims2()?;
        let both = crate::backend::candle::ops_metal::add_norm(self.norm, (x, x_layout), (y, y_layout), width)?;
        Ok((both, (2, rows, width).into()))
    }
}

/// `cap · tanh(x / cap)`
pub(super) fn softcapped(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    (x / cap)?.tanh()? * cap
}
