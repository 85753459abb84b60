//! Launches the CUDA code of a decoder's ops on Candle's storage, as the encoder's are: see [`crate::backend::candle::ops_cuda`].

use super::cache::Cache;
use super::ops::{AddNormOp, AttentionOp, Step, Turn};
use crate::backend::candle::ops_cuda::{
    Element, Out, View, count, function, instance_of, optional, view_of, with_type, with_view,
};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, DType, IndexOp, InplaceOp2, Layout, Result, Storage, Tensor};
use half::{bf16, f16};
use std::cell::RefCell;

/// See [`super::ops::add_norm`]. Gives the sum, and behind it that normalised.
pub(super) fn add_norm(
    op: &AddNormOp<'_>,
    x: (&CudaStorage, &Layout),
    y: (&CudaStorage, &Layout),
    rows: usize,
    width: usize,
) -> Result<CudaStorage> {
    let storage = x.0;
    with_type!(storage, add_norm_of(op, x, y, rows, width))
}

fn add_norm_of<T: Element>(
    op: &AddNormOp<'_>,
    (x, x_layout): (&CudaStorage, &Layout),
    (y, y_layout): (&CudaStorage, &Layout),
    rows: usize,
    width: usize,
) -> Result<CudaStorage> {
    let out = Out { device: &x.device, rows: 2 * rows, width };
    let mut memory = out.memory::<T>()?;
    let (x, y) = (view_of::<T>(x, x_layout)?, view_of::<T>(y, y_layout)?);
    let function = function!(out.device, "rms_norm", "rms_norm_{}", T::NAME);
    let config =
        LaunchConfig { grid_dim: (count(rows.div_ceil(4))?, 1, 1), block_dim: (32, 4, 1), shared_mem_bytes: 0 };
    let (row_count, dim, null) = (count(rows)?, count(width)?, 0_u64);
    {
        let (mut sum, mut normed) = memory.split_at_mut(rows * width);
        with_view::<T, _>(&op.norm.weight, |weight| {
            let mut builder = function.builder();
            builder.arg(&y).arg(&null).arg(&x).arg(weight).arg(&mut sum).arg(&mut normed);
            builder.arg(&op.norm.epsilon).arg(&row_count).arg(&dim);
            // SAFETY: the arguments are those of the function's head; `x`, `y` and both halves of the memory are rows of `width`.
            unsafe { builder.launch(config) }.w().map(|_| ())
        })?;
    }
    Ok(out.storage(memory))
}

/// See [`super::ops::keep`].
pub(super) fn keep(qkv: &Tensor, turn: Turn<'_>, step: Step<'_>, cache: &Tensor) -> Result<Tensor> {
    let op = KeepOp { turn, step, queries: RefCell::new(None) };
    cache.inplace_op2(qkv, &op)?;
    let Some(queries) = op.queries.into_inner() else { candle_core::bail!("keep: the cache is not on a CUDA device") };
    let shape = (qkv.dim(0)?, step.heads.query_width());
    Ok(Tensor::from_storage(Storage::Cuda(queries), shape, BackpropOp::none(), false))
}

/// What changes the cache in place, and leaves queries beside it.
struct KeepOp<'a> {
    turn: Turn<'a>,
    step: Step<'a>,
    queries: RefCell<Option<CudaStorage>>,
}

impl InplaceOp2 for KeepOp<'_> {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("keep: on the CPU the cache is not a tensor")
    }

    fn cuda_fwd(
        &self,
        cache: &mut CudaStorage,
        cache_layout: &Layout,
        qkv: &CudaStorage,
        layout: &Layout,
    ) -> Result<()> {
        *self.queries.borrow_mut() = Some(with_type!(qkv, keep_of(self, cache, cache_layout, qkv, layout))?);
        Ok(())
    }
}

fn keep_of<T: Element>(
    op: &KeepOp<'_>,
    cache: &mut CudaStorage,
    cache_layout: &Layout,
    qkv: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    let Step { heads, arrays, .. } = op.step;
    let out = Out { device: &qkv.device, rows: layout.shape().dims2()?.0, width: heads.query_width() };
    let mut queries = out.memory::<T>()?;
    let qkv = view_of::<T>(qkv, layout)?;
    let Some((start, end)) = cache_layout.contiguous_offsets() else { candle_core::bail!("keep: the cache has gaps") };
    let mut whole = cache.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
    let (mut keys, mut values) = whole.split_at_mut((end - start) / 2);
    let function = function!(out.device, "attention_paged", "attention_paged_keep_{}", T::NAME);
    let all = heads.queries + 2 * heads.keys;
    let config = LaunchConfig {
        grid_dim: (count(out.rows)?, count(all.div_ceil(4))?, 1),
        block_dim: (32, 4, 1),
        shared_mem_bytes: 0,
    };
    let (query_heads, key_heads, half) = (count(heads.queries)?, count(heads.keys)?, count(heads.dim / 2)?);
    let (q_eps, k_eps) = op.turn.norms.map_or((0.0, 0.0), |(q, k)| (q.epsilon, k.epsilon));
    let null = 0_u64;
    let mut launch = |norms: Option<(&View<'_, T>, &View<'_, T>)>| {
        with_view::<u32, _>(&arrays.positions, |positions| {
            with_view::<u32, _>(&arrays.slots, |slots| {
                with_view::<f32, _>(&op.turn.angles.cos, |cos| {
                    with_view::<f32, _>(&op.turn.angles.sin, |sin| {
                        let mut builder = function.builder();
                        builder.arg(&qkv).arg(&mut queries).arg(&mut keys).arg(&mut values);
                        builder.arg(positions).arg(slots).arg(cos).arg(sin);
                        optional!(builder, norms.map(|norms| norms.0), &null);
                        optional!(builder, norms.map(|norms| norms.1), &null);
                        builder.arg(&q_eps).arg(&k_eps).arg(&query_heads).arg(&key_heads).arg(&half);
                        // SAFETY: the arguments are those of the function's head; `qkv` has a row for every position and slot,
                        // the batch has checked slots against the cache and positions against the tables' length.
                        unsafe { builder.launch(config) }.w().map(|_| ())
                    })
                })
            })
        })
    };
    match op.turn.norms {
        Some((of_queries, of_keys)) => with_view::<T, _>(&of_queries.weight, |query_weight| {
            with_view::<T, _>(&of_keys.weight, |key_weight| launch(Some((query_weight, key_weight))))
        })?,
        None => launch(None)?,
    }
    Ok(out.storage(queries))
}

/// Keys that are weighed together when a single query looks at them, as the CUDA code has it.
const SPLIT: usize = 128;

/// See [`super::ops::attention`].
pub(super) fn attention_paged<T: Element>(
    op: &AttentionOp<'_>,
    q: &View<'_, T>,
    stride: usize,
    out: Out<'_>,
) -> Result<CudaStorage> {
    let Step { heads, batch, arrays, .. } = op.step;
    let Cache::Device(cache) = op.step.cache else { candle_core::bail!("attention_paged: the cache is the host's") };
    let (keys, values) = (cache.i(0)?, cache.i(1)?);
    let mut memory = out.memory::<T>()?;
    let (instance, warps) = instance_of(heads.dim)?;
    let (decodes, prefills) = batch.runs.split_at(batch.decodes);
    let group = heads.queries / heads.keys;
    let together = [1, 4].into_iter().find(|heads| group <= *heads).unwrap_or(8);
    let window = op.scores.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX));
    let softcap = op.scores.softcap.unwrap_or(0.0);
    let splits = batch.splits(SPLIT, op.scores.window);
    let (query_heads, key_heads, dim) = (count(heads.queries)?, count(heads.keys)?, count(heads.dim)?);
    let (stride, table_stride) = (count(stride)?, count(arrays.tables.dim(1)?)?);
    let (split_count, null) = (count(splits)?, 0_u64);

    with_view::<T, _>(&keys, |keys| {
        with_view::<T, _>(&values, |values| {
            with_view::<u32, _>(&arrays.tables, |tables| {
                with_view::<u32, _>(&arrays.lengths, |lengths| {
                    if !decodes.is_empty() {
                        let function = function!(
                            out.device,
                            "attention_paged",
                            "attention_paged_decode_{}_{instance}_{together}",
                            T::NAME
                        );
                        let tiles = heads.keys * group.div_ceil(together);
                        let config = LaunchConfig {
                            grid_dim: (split_count, count(tiles)?, count(decodes.len())?),
                            block_dim: (32, 4, 1),
                            shared_mem_bytes: 0,
                        };
                        let elements = decodes.len() * heads.queries * splits * (2 + heads.dim);
                        // SAFETY: of the records only those are read that a block has written before.
                        let mut parts = unsafe { out.device.alloc::<f32>(if splits > 1 { elements } else { 1 }) }?;
                        let mut builder = function.builder();
                        builder.arg(q).arg(keys).arg(values).arg(tables).arg(lengths).arg(&mut memory);
                        match splits > 1 {
                            true => builder.arg(&mut parts),
                            false => builder.arg(&null),
                        };
                        builder.arg(&stride).arg(&query_heads).arg(&key_heads).arg(&dim).arg(&table_stride);
                        builder.arg(&heads.scale).arg(&softcap).arg(&window);
                        // SAFETY: the arguments are those of the function's head; the first runs are one token each, so their
                        // queries are the first rows; the batch has checked tables against the cache.
                        unsafe { builder.launch(config) }.w()?;
                        if splits > 1 {
                            let function =
                                function!(out.device, "attention_paged", "attention_paged_merge_{}", T::NAME);
                            let config = LaunchConfig {
                                grid_dim: (count(heads.queries.div_ceil(4))?, count(decodes.len())?, 1),
                                block_dim: (32, 4, 1),
                                shared_mem_bytes: 0,
                            };
                            let mut builder = function.builder();
                            builder.arg(&parts).arg(lengths).arg(&mut memory);
                            builder.arg(&query_heads).arg(&dim).arg(&split_count).arg(&window);
                            // SAFETY: the arguments are those of the function's head, the records those of the launch before.
                            unsafe { builder.launch(config) }.w()?;
                        }
                    }
                    if !prefills.is_empty() {
                        let most = prefills.iter().map(|run| run.rows.len()).max().unwrap_or(0);
                        let config = LaunchConfig {
                            grid_dim: (count(most.div_ceil(16 * warps))?, query_heads, count(prefills.len())?),
                            block_dim: (32, count(warps)?, 1),
                            shared_mem_bytes: 0,
                        };
                        let function =
                            function!(out.device, "attention_paged", "attention_paged_prefill_{}_{instance}", T::NAME);
                        let (tables, lengths) =
                            (tables.slice(decodes.len() * table_stride as usize..), lengths.slice(decodes.len()..));
                        with_view::<u32, _>(&arrays.cu_queries, |cu_queries| {
                            let cu_queries = cu_queries.slice(decodes.len()..);
                            let mut builder = function.builder();
                            builder.arg(q).arg(keys).arg(values).arg(&cu_queries).arg(&tables).arg(&lengths);
                            builder.arg(&mut memory).arg(&stride).arg(&query_heads).arg(&key_heads).arg(&dim);
                            builder.arg(&table_stride).arg(&heads.scale).arg(&softcap).arg(&window);
                            // SAFETY: the arguments are those of the function's head; the batch has checked tables against the
                            // cache, and every row is of one run.
                            unsafe { builder.launch(config) }.w().map(|_| ())
                        })?;
                    }
                    Ok(())
                })
            })
        })
    })?;
    Ok(out.storage(memory))
}
