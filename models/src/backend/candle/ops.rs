//! The ops of `kernels` as ops of Candle's: tensors come in and go out. On the CPU in f32 they run the vector code, on CUDA in f32,
//! f16 and bf16 the CUDA code, on Metal in f32 and f16 the Metal code; anything else runs Candle's own steps, see
//! [`super::ops_plain`]. All give the same up to rounding.

use super::encoder::{Angles, Biases, Norm, Places};
use super::ops_plain;
use crate::arch::encoder::{Activation, Heads, NormKind, Reach};
use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Error, InplaceOp1, Layout, Result, Shape, Storage, Tensor};
use kernels::attention::{self as packed_attention, Rows, attention_part};
use kernels::launch::columns::Columns;
use kernels::pool::{self, Kind};
use kernels::{glu as gated, layer_norm, rms_norm, rotary as turn};
use rayon::prelude::*;

/// Rows that one thread takes at a time: some tens of kilobytes, which is worth handing over and fits its cache.
pub(super) const ROWS_PER_TASK: usize = 32;

/// Whether the fused form takes it.
pub(super) fn is_fused(x: &Tensor) -> bool {
    let types = match x.device() {
        Device::Cpu => &[DType::F32][..],
        Device::Cuda(_) => &[DType::F32, DType::F16, DType::BF16],
        #[cfg(feature = "metal")]
        Device::Metal(device) if super::ops_metal::runs_on(device) => &[DType::F32, DType::F16],
        Device::Metal(_) => &[],
    };
    x.is_contiguous() && types.contains(&x.dtype())
}

/// Rows of up to three tables added up, one sum a token, normalised where there is a norm.
///
/// # Shapes
/// Tables: `[any, h]`, contiguous, of one type; their rows: `[t]` in u32; gives `[t, h]`.
pub(super) fn embed(terms: &[(&Tensor, Tensor)], of: Option<&Norm>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let [(first, rows), ..] = terms
        && first.device().is_cuda()
        && terms.iter().all(|(table, _)| is_fused(table))
        && terms.len() <= 3
        && of.is_none_or(|of| of.kind == NormKind::Layer)
    {
        return first.apply_op1_no_bwd(&super::ops_cuda::EmbedOp { terms, tokens: rows.elem_count(), norm: of });
    }
    let taken = terms.iter().map(|(table, rows)| table.index_select(rows, 0));
    let Some(sum) = taken.reduce(|sum, rows| sum? + rows?) else { candle_core::bail!("embed: there is no table") };
    match of {
        Some(of) => norm(&sum?, None, None, of),
        None => sum,
    }
}

/// `norm(x + shift + residual)` over the last dimension.
///
/// # Shapes
/// `x`, `residual`: `[t, h]`, contiguous; `shift`: `[h]`.
pub(super) fn norm(x: &Tensor, shift: Option<&Tensor>, residual: Option<&Tensor>, norm: &Norm) -> Result<Tensor> {
    if x.device().is_cuda() && is_fused(x) {
        return x.apply_op1_no_bwd(&Fused(NormOp { shift, residual, norm }));
    }
    let x = ops_plain::add(x, shift)?;
    if !is_fused(&x) {
        return ops_plain::norm(&x, residual, norm);
    }
    x.apply_op1_no_bwd(&Fused(NormOp { shift: None, residual, norm }))
}

/// What a product has behind it: `activation(x + bias)`.
///
/// # Shapes
/// `x`: `[t, f]`, contiguous and of no other use: its memory is the result's; `bias`: `[f]`.
pub(super) fn activate(x: Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    if bias.is_none() && activation == Activation::None {
        return Ok(x);
    }
    if !is_fused(&x) || (activation != Activation::Gelu && !x.device().is_cuda()) {
        return ops_plain::activate(&ops_plain::add(&x, bias)?, activation);
    }
    x.inplace_op1(&ActivateOp { bias, activation, width: x.dim(D::Minus1)? })?;
    Ok(x)
}

/// The activation of the first half of each row times its second half.
///
/// # Shapes
/// `x`: `[t, 2 f]`, contiguous; gives `[t, f]`.
pub(super) fn glu(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if !is_fused(x) {
        return ops_plain::glu(x, activation);
    }
    x.apply_op1_no_bwd(&Fused(GluOp { activation }))
}

/// Turns the heads in the first `width` columns of `x` to their tokens' positions.
///
/// # Shapes
/// `x`: `[t, stride]`, contiguous and of no other use: its memory is the result's.
pub(super) fn rotary(x: Tensor, width: usize, places: &Places, angles: &Angles) -> Result<Tensor> {
    if !is_fused(&x) {
        return ops_plain::rotary(&x, width, &places.positions, angles);
    }
    x.inplace_op1(&RotaryOp { width, stride: x.dim(D::Minus1)?, places, angles })?;
    Ok(x)
}

/// Every head of every sequence looks at its keys, after `shift` is added to each row.
///
/// # Shapes
/// `qkv`: `[t, (queries + 2 · keys) · d]`, contiguous; `shift`: `[(queries + 2 · keys) · d]`; gives `[t, queries · d]`.
pub(super) fn attention(
    qkv: &Tensor,
    shift: Option<&Tensor>,
    places: &Places,
    heads: &Heads,
    reach: Reach,
    bias: Option<&Biases>,
) -> Result<Tensor> {
    let op = AttentionOp { shift, places, heads, reach, bias };
    let is_for = is_fused(qkv) && op.is_for(qkv);
    if is_for && qkv.device().is_cuda() {
        return qkv.apply_op1_no_bwd(&Fused(op));
    }
    let qkv = ops_plain::add(qkv, shift)?;
    if !is_for {
        return ops_plain::attention(&qkv, places, heads, reach, bias);
    }
    qkv.apply_op1_no_bwd(&Fused(AttentionOp { shift: None, ..op }))
}

/// One vector per sequence, in f32.
///
/// # Shapes
/// `x`: `[t, h]`, contiguous; gives `[sequences, h]`.
pub(super) fn pool(x: &Tensor, places: &Places, kind: Kind) -> Result<Tensor> {
    if !is_fused(x) {
        return ops_plain::pool(x, places, kind);
    }
    x.apply_op1_no_bwd(&Fused(PoolOp { places, kind }))
}

/// An op that makes a new tensor of `x: [rows, width]`.
pub(super) trait Op {
    /// Its name in errors.
    const NAME: &'static str;

    /// The result's rows and width.
    fn dims(&self, rows: usize, width: usize) -> (usize, usize);

    /// On the CPU; `out` is zeros.
    fn cpu(&self, x: &[f32], width: usize, out: &mut [f32]) -> Result<()>;

    /// On a GPU.
    #[cfg(feature = "cuda")]
    fn cuda<T: super::ops_cuda::Element>(
        &self,
        x: &super::ops_cuda::View<'_, T>,
        width: usize,
        out: super::ops_cuda::Out<'_>,
    ) -> Result<candle_core::CudaStorage>;

    /// On an Apple GPU.
    #[cfg(feature = "metal")]
    fn metal(&self, _: &super::ops_metal::Input<'_>) -> Result<candle_core::MetalStorage> {
        candle_core::bail!("{}: there is no Metal code", Self::NAME)
    }
}

/// [`Op::cuda`] by a function of `ops_cuda`; nothing in a build without CUDA.
macro_rules! on_cuda {
    ($function:path) => {
        #[cfg(feature = "cuda")]
        fn cuda<T: crate::backend::candle::ops_cuda::Element>(
            &self,
            x: &crate::backend::candle::ops_cuda::View<'_, T>,
            width: usize,
            out: crate::backend::candle::ops_cuda::Out<'_>,
        ) -> Result<candle_core::CudaStorage> {
            $function(self, x, width, out)
        }
    };
}
pub(super) use on_cuda;

/// [`Op::metal`] by a function of `ops_metal`; nothing in a build without Metal.
macro_rules! on_metal {
    ($function:path) => {
        #[cfg(feature = "metal")]
        fn metal(&self, on: &super::ops_metal::Input<'_>) -> Result<candle_core::MetalStorage> {
            $function(self, on)
        }
    };
}

/// An [`Op`] as Candle knows ops.
pub(super) struct Fused<O>(pub(super) O);

impl<O: Op> CustomOp1 for Fused<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let dims = self.0.dims(rows, width);
        let mut out = vec![0.0; dims.0 * dims.1];
        self.0.cpu(slice_of(storage, layout, O::NAME)?, width, &mut out)?;
        Ok((CpuStorage::F32(out), dims.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let dims = self.0.dims(rows, width);
        Ok((super::ops_cuda::run(&self.0, storage, layout, width, dims)?, dims.into()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        storage: &candle_core::MetalStorage,
        layout: &Layout,
    ) -> Result<(candle_core::MetalStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        Ok((super::ops_metal::run(&self.0, storage, layout, width)?, self.0.dims(rows, width).into()))
    }
}

/// A contiguous f32 tensor's values.
pub(super) fn slice_of<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => Err(Error::Msg(format!("{op}: the input has to be contiguous f32"))),
    }
}

/// Lends the values of contiguous f32 tensors on the CPU.
pub(super) fn with_slices<R, const N: usize>(
    tensors: [&Tensor; N],
    run: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[][..]; N];
    for ((storage, layout), slice) in guards.iter().zip(&mut slices) {
        let Storage::Cpu(storage) = &**storage else { candle_core::bail!("an operand is not on the CPU") };
        *slice = slice_of(storage, layout, "an operand")?;
    }
    run(slices)
}

/// See [`norm`].
pub(super) struct NormOp<'a> {
    /// On CUDA only.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "elsewhere it has been added before"))]
    pub(super) shift: Option<&'a Tensor>,
    pub(super) residual: Option<&'a Tensor>,
    pub(super) norm: &'a Norm,
}

impl Op for NormOp<'_> {
    const NAME: &'static str = "norm";

    fn dims(&self, rows: usize, width: usize) -> (usize, usize) {
        (rows, width)
    }

    fn cpu(&self, x: &[f32], width: usize, out: &mut [f32]) -> Result<()> {
        let Norm { kind, weight, bias, epsilon: eps } = self.norm;
        let chunk = ROWS_PER_TASK * width;
        // Where there is no residual, nothing is read of this operand.
        with_slices([weight, bias, self.residual.unwrap_or(weight)], |[weight, bias, residual]| {
            let parts = out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate();
            parts.try_for_each(|(part, (out, x))| {
                let residual = self.residual.map(|_| &residual[part * chunk..][..x.len()]);
                match kind {
                    NormKind::Layer => {
                        let params = layer_norm::Params { weight, bias, eps: *eps };
                        layer_norm::layer_norm(x, residual, &params, out).map_err(Error::wrap)
                    }
                    NormKind::Rms => {
                        out.copy_from_slice(x);
                        let added = out.iter_mut().zip(residual.unwrap_or_default());
                        added.for_each(|(out, residual)| *out += residual);
                        rms_norm::rms_norm(out, &rms_norm::Params { weight, eps: *eps }).map_err(Error::wrap)
                    }
                }
            })
        })
    }

    on_cuda!(super::ops_cuda::norm);
    on_metal!(super::ops_metal::norm);
}

/// See [`glu`].
pub(super) struct GluOp {
    pub(super) activation: Activation,
}

impl Op for GluOp {
    const NAME: &'static str = "glu";

    fn dims(&self, rows: usize, width: usize) -> (usize, usize) {
        (rows, width / 2)
    }

    fn cpu(&self, x: &[f32], width: usize, out: &mut [f32]) -> Result<()> {
        let half = width / 2;
        let parts = out.par_chunks_mut(ROWS_PER_TASK * half).zip(x.par_chunks(ROWS_PER_TASK * width));
        parts.try_for_each(|(out, x)| gated::glu(x, half, self.activation, out).map_err(Error::wrap))
    }

    on_cuda!(super::ops_cuda::glu);
    on_metal!(super::ops_metal::glu);
}

/// See [`attention`].
pub(super) struct AttentionOp<'a> {
    /// On CUDA only.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "elsewhere it has been added before"))]
    pub(super) shift: Option<&'a Tensor>,
    pub(super) places: &'a Places,
    pub(super) heads: &'a Heads,
    pub(super) reach: Reach,
    pub(super) bias: Option<&'a Biases>,
}

impl AttentionOp<'_> {
    /// Whether there is code for such heads where the input is.
    fn is_for(&self, qkv: &Tensor) -> bool {
        match qkv.device() {
            Device::Cpu => true,
            // Rows of keys are read 16 bytes at a time.
            Device::Cuda(_) => {
                self.heads.dim <= 256 && (self.heads.dim * qkv.dtype().size_in_bytes()).is_multiple_of(16)
            }
            #[cfg(feature = "metal")]
            Device::Metal(_) => super::ops_metal::takes_heads(qkv, self.heads),
            #[cfg(not(feature = "metal"))]
            Device::Metal(_) => false,
        }
    }
}

impl Op for AttentionOp<'_> {
    const NAME: &'static str = "attention";

    fn dims(&self, rows: usize, _: usize) -> (usize, usize) {
        (rows, self.heads.query_width())
    }

    fn cpu(&self, x: &[f32], width: usize, out: &mut [f32]) -> Result<()> {
        let cu_seqlens = self.places.packed.cu_seqlens.as_slice();
        let params = packed_attention::Params {
            cu_seqlens,
            heads: self.heads.queries,
            kv_heads: self.heads.keys,
            head_dim: self.heads.dim,
            scale: self.heads.scale,
            reach: self.reach,
            bias: self.bias.map(|bias| &bias.relative),
        };
        let (q, k) = (self.heads.query_width(), self.heads.keys * self.heads.dim);
        let rows = |first: usize| Rows { values: &x[first..], stride: width };
        let mut tasks = Vec::with_capacity(cu_seqlens.len());
        let mut rest = Columns::whole(out, q);
        for (sequence, ends) in cu_seqlens.windows(2).enumerate() {
            let (mine, others) = rest.split_rows((ends[1] - ends[0]) as usize);
            rest = others;
            tasks.push((sequence, mine));
        }
        tasks.into_par_iter().try_for_each(|(sequence, out)| {
            let scratch = &mut packed_attention::Scratch::default();
            let (queries, keys, values) = (rows(0), rows(q), rows(q + k));
            attention_part(queries, keys, values, &params, sequence, 0..params.heads, scratch, out).map_err(Error::wrap)
        })
    }

    on_cuda!(super::ops_cuda::attention);
    on_metal!(super::ops_metal::attention);
}

/// See [`pool`].
pub(super) struct PoolOp<'a> {
    pub(super) places: &'a Places,
    pub(super) kind: Kind,
}

impl Op for PoolOp<'_> {
    const NAME: &'static str = "pool";

    fn dims(&self, _: usize, width: usize) -> (usize, usize) {
        (self.places.packed.cu_seqlens.len() - 1, width)
    }

    fn cpu(&self, x: &[f32], width: usize, out: &mut [f32]) -> Result<()> {
        let cu_seqlens = self.places.packed.cu_seqlens.as_slice();
        let params = pool::Params { cu_seqlens, dim: width, kind: self.kind, norm: pool::Norm::None };
        pool::pool(x, &params, out).map_err(Error::wrap)
    }

    on_cuda!(super::ops_cuda::pool);
    on_metal!(super::ops_metal::pool);
}

/// See [`activate`].
pub(super) struct ActivateOp<'a> {
    pub(super) bias: Option<&'a Tensor>,
    /// GELU, but on CUDA any.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "elsewhere there is one"))]
    pub(super) activation: Activation,
    pub(super) width: usize,
}

impl InplaceOp1 for ActivateOp<'_> {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let values = slice_of_mut(storage, layout, self.name())?;
        let parts = values.par_chunks_mut(ROWS_PER_TASK * self.width);
        let run = |bias: Option<&[f32]>| parts.try_for_each(|rows| kernels::gelu(rows, bias)).map_err(Error::wrap);
        match self.bias {
            Some(bias) => with_slices([bias], |[bias]| run(Some(bias))),
            None => run(None),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        super::ops_cuda::activate(self, storage, layout)
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &mut candle_core::MetalStorage, layout: &Layout) -> Result<()> {
        super::ops_metal::gelu(self, storage, layout)
    }
}

/// See [`rotary`].
pub(super) struct RotaryOp<'a> {
    pub(super) width: usize,
    pub(super) stride: usize,
    pub(super) places: &'a Places,
    pub(super) angles: &'a Angles,
}

impl InplaceOp1 for RotaryOp<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let values = slice_of_mut(storage, layout, "rotary")?;
        let parts = values.par_chunks_mut(ROWS_PER_TASK * self.stride);
        let parts = parts.zip(self.places.packed.positions.par_chunks(ROWS_PER_TASK));
        parts.try_for_each(|(rows, positions)| {
            turn::rotary(rows, self.stride, self.width, positions, &self.angles.table).map_err(Error::wrap)
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        super::ops_cuda::rotary(self, storage, layout)
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &mut candle_core::MetalStorage, layout: &Layout) -> Result<()> {
        super::ops_metal::rotary(self, storage, layout)
    }
}

pub(super) fn slice_of_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    op: &'static str,
) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => Err(Error::Msg(format!("{op}: the input has to be contiguous f32"))),
    }
}
