//! Launches the CUDA code of `kernels` on Candle's storage: checked operands come in, a new storage goes out or one is changed.
//! Every launch is as the head of the op's `cuda.cu` says. Never a synchronisation: all is in the order of a device's one stream.

use super::encoder::Norm;
use super::ops::{ActivateOp, AttentionOp, GluOp, NormOp, Op, PoolOp, RotaryOp};
use crate::arch::encoder::NormKind;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};
use kernels::launch::cuda::MODULES;
use kernels::pool::Kind;
use std::ops::Deref;

/// A device with a stream of its own, on which all is done that is asked of it, whichever thread asks.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: there is one stream, whose order is that of the calls, and tensors are never used with another device's.
    unsafe { device.disable_event_tracking() };
    Ok(Device::Cuda(device))
}

/// Blocks in a grid's second dimension at most.
const GRID_Y_MAX: usize = 65_535;

/// A type that the CUDA code is compiled for.
pub(super) trait Element: CudaDType + DeviceRepr {
    /// The end of the names of its functions.
    const NAME: &'static str;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
}

impl Element for f16 {
    const NAME: &'static str = "f16";
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
}

/// A contiguous operand on the device.
pub(super) type View<'a, T> = CudaView<'a, T>;

/// What an op makes: `[rows, width]` on this device.
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    pub(super) device: &'a CudaDevice,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Out<'_> {
    pub(super) fn memory<T: DeviceRepr>(&self) -> Result<CudaSlice<T>> {
        // SAFETY: whoever asks launches a function that writes every element, before anybody reads one.
        unsafe { self.device.alloc::<T>(self.rows * self.width) }
    }

    pub(super) fn storage<T: Element>(&self, memory: CudaSlice<T>) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(memory, self.device.clone())
    }
}

/// Runs an op on whatever type its input has.
pub(super) fn run<O: Op>(
    op: &O,
    storage: &CudaStorage,
    layout: &Layout,
    width: usize,
    (rows, out_width): (usize, usize),
) -> Result<CudaStorage> {
    let out = Out { device: &storage.device, rows, width: out_width };
    match storage.dtype() {
        DType::F32 => op.cuda::<f32>(&view_of(storage, layout)?, width, out),
        DType::F16 => op.cuda::<f16>(&view_of(storage, layout)?, width, out),
        DType::BF16 => op.cuda::<bf16>(&view_of(storage, layout)?, width, out),
        other => candle_core::bail!("{}: there is no CUDA code for {other:?}", O::NAME),
    }
}

pub(super) fn view_of<'a, T: Element>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    slice_of(storage.as_cuda_slice::<T>()?, layout)
}

pub(super) fn slice_of<'a, T>(slice: &'a CudaSlice<T>, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(slice.slice(start..end)),
        None => candle_core::bail!("an operand of CUDA code has to be contiguous"),
    }
}

/// Lends a tensor's memory.
pub(super) fn with_view<T: CudaDType, R>(
    tensor: &Tensor,
    run: impl FnOnce(&CudaView<'_, T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("an operand is not on the CUDA device") };
    run(&slice_of(storage.as_cuda_slice::<T>()?, layout)?)
}

/// Lends a tensor's memory, where there is a tensor.
fn with_optional<T: CudaDType, R>(
    tensor: Option<&Tensor>,
    run: impl FnOnce(Option<&CudaView<'_, T>>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => with_view(tensor, |view| run(Some(view))),
        None => run(None),
    }
}

/// Calls a function with the type of a storage as `T`.
macro_rules! with_type {
    ($storage:expr, $function:ident($($argument:expr),*)) => {
        match $storage.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            other => candle_core::bail!("{}: there is no CUDA code for {other:?}", stringify!($function)),
        }
    };
}
pub(super) use with_type;

/// A pointer that may be null.
macro_rules! optional {
    ($builder:ident, $view:expr, $null:expr) => {
        match $view {
            Some(view) => $builder.arg(view),
            None => $builder.arg($null),
        }
    };
}
pub(super) use optional;

/// A function of an op's module, which is loaded at its first use.
macro_rules! function {
    ($device:expr, $op:literal, $($name:tt)+) => {
        $device.get_or_load_custom_func(&format!($($name)+), concat!("neurogrid_", $op), $crate::backend::candle::ops_cuda::ptx_of($op, &$device)?)?
    };
}
pub(super) use function;

/// An op's code for the card that a device is.
pub(super) fn ptx_of(op: &str, device: &CudaDevice) -> Result<&'static str> {
    let module = MODULES.iter().find(|module| module.op == op).expect("the list has every op with CUDA code");
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    let capability = (major.unsigned_abs(), minor.unsigned_abs());
    match module.ptx_for(capability) {
        Some(text) => Ok(text),
        None => candle_core::bail!("{op}: compute capability {major}.{minor} is older than this build's code"),
    }
}

pub(super) fn count(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(candle_core::Error::wrap)
}

/// A grid in which each thread has neighbouring columns, 16 bytes of them, and strides over rows.
fn by_columns<T>(rows: usize, columns: usize) -> Result<LaunchConfig> {
    const THREADS: usize = 128;
    let grid_dim = (count((columns * size_of::<T>()).div_ceil(16 * THREADS))?, count(rows.min(GRID_Y_MAX))?, 1);
    Ok(LaunchConfig { grid_dim, block_dim: (count(THREADS)?, 1, 1), shared_mem_bytes: 0 })
}

/// See [`super::ops::embed`]. Applied to the first table.
pub(super) struct EmbedOp<'a> {
    pub(super) terms: &'a [(&'a Tensor, Tensor)],
    pub(super) tokens: usize,
    pub(super) norm: Option<&'a Norm>,
}

impl CustomOp1 for EmbedOp<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("embed: on the CPU tables are taken one after the other")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        let out = Out { device: &storage.device, rows: self.tokens, width };
        Ok((with_type!(storage, embed(self, out))?, (self.tokens, width).into()))
    }
}

fn embed<T: Element>(op: &EmbedOp<'_>, out: Out<'_>) -> Result<CudaStorage> {
    let mut memory = out.memory::<T>()?;
    // Locked as long as their memory is lent.
    let tables: Vec<_> = op.terms.iter().map(|(table, _)| table.storage_and_layout()).collect();
    let rows: Vec<_> = op.terms.iter().map(|(_, rows)| rows.storage_and_layout()).collect();
    let norms: Vec<_> =
        op.norm.iter().flat_map(|norm| [&norm.weight, &norm.bias]).map(Tensor::storage_and_layout).collect();
    let tables = tables.iter().map(lent::<T>).collect::<Result<Vec<_>>>()?;
    let rows = rows.iter().map(lent::<u32>).collect::<Result<Vec<_>>>()?;
    let norms = norms.iter().map(lent::<T>).collect::<Result<Vec<_>>>()?;
    let function = function!(out.device, "embed", "embed_{}", T::NAME);
    let (row_count, dim, null) = (count(out.rows)?, count(out.width)?, 0_u64);
    let epsilon = op.norm.map_or(0.0, |norm| norm.epsilon);
    let mut builder = function.builder();
    for place in 0..3 {
        optional!(builder, tables.get(place), &null);
    }
    for place in 0..3 {
        optional!(builder, rows.get(place), &null);
    }
    for place in 0..2 {
        optional!(builder, norms.get(place), &null);
    }
    builder.arg(&mut memory).arg(&epsilon).arg(&row_count).arg(&dim);
    let config =
        LaunchConfig { grid_dim: (count(out.rows.div_ceil(4))?, 1, 1), block_dim: (32, 4, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of the function's head; there is a row of each table for every token, and whoever made the batch has
    // held them against the tables.
    unsafe { builder.launch(config) }.w()?;
    Ok(out.storage(memory))
}

/// The memory of a tensor that is locked.
fn lent<'a, T: CudaDType>((storage, layout): &'a (impl Deref<Target = Storage>, &Layout)) -> Result<CudaView<'a, T>> {
    let Storage::Cuda(storage) = &**storage else { candle_core::bail!("an operand is not on the CUDA device") };
    slice_of(storage.as_cuda_slice::<T>()?, layout)
}

/// See [`super::ops::norm`].
pub(super) fn norm<T: Element>(op: &NormOp<'_>, x: &View<'_, T>, width: usize, out: Out<'_>) -> Result<CudaStorage> {
    let mut memory = out.memory::<T>()?;
    let config =
        LaunchConfig { grid_dim: (count(out.rows.div_ceil(4))?, 1, 1), block_dim: (32, 4, 1), shared_mem_bytes: 0 };
    let (rows, dim, null) = (count(out.rows)?, count(width)?, 0_u64);
    let mut launch = |shift: Option<&View<'_, T>>, residual: Option<&View<'_, T>>| {
        with_view::<T, _>(&op.norm.weight, |weight| {
            with_view::<T, _>(&op.norm.bias, |bias| {
                let function = match op.norm.kind {
                    NormKind::Layer => function!(out.device, "layer_norm", "layer_norm_{}", T::NAME),
                    NormKind::Rms => function!(out.device, "rms_norm", "rms_norm_{}", T::NAME),
                };
                let mut builder = function.builder();
                builder.arg(x);
                optional!(builder, shift, &null);
                optional!(builder, residual, &null);
                builder.arg(weight);
                match op.norm.kind {
                    NormKind::Layer => builder.arg(bias),
                    // Nobody wants the sum.
                    NormKind::Rms => builder.arg(&null),
                };
                builder.arg(&mut memory).arg(&op.norm.epsilon).arg(&rows).arg(&dim);
                // SAFETY: the arguments are those of the function's head; every row has `width` elements.
                unsafe { builder.launch(config) }.w().map(|_| ())
            })
        })
    };
    with_optional::<T, _>(op.shift, |shift| with_optional::<T, _>(op.residual, |residual| launch(shift, residual)))?;
    Ok(out.storage(memory))
}

/// See [`super::ops::glu`].
pub(super) fn glu<T: Element>(op: &GluOp, x: &View<'_, T>, _: usize, out: Out<'_>) -> Result<CudaStorage> {
    let mut memory = out.memory::<T>()?;
    let function = function!(out.device, "glu", "glu_{}", T::NAME);
    let (rows, dim, activation) = (count(out.rows)?, count(out.width)?, op.activation as u32);
    let mut builder = function.builder();
    builder.arg(x).arg(&mut memory).arg(&rows).arg(&dim).arg(&activation);
    // SAFETY: the arguments are those of the function's head; `x` has both halves of every row.
    unsafe { builder.launch(by_columns::<T>(out.rows, out.width)?) }.w()?;
    Ok(out.storage(memory))
}

/// The instance of attention's code that takes heads of so many elements: its width, and the warps of a block of queries.
pub(super) fn instance_of(dim: usize) -> Result<(usize, usize)> {
    match [32, 64, 128, 256].into_iter().find(|width| dim <= *width) {
        Some(instance) => Ok((instance, if instance == 256 { 2 } else { 4 })),
        None => candle_core::bail!("attention: heads of {dim} are too wide"),
    }
}

/// See [`super::ops::attention`].
pub(super) fn attention<T: Element>(
    op: &AttentionOp<'_>,
    x: &View<'_, T>,
    stride: usize,
    out: Out<'_>,
) -> Result<CudaStorage> {
    let mut memory = out.memory::<T>()?;
    let (heads, cu_seqlens) = (op.heads, op.places.packed.cu_seqlens.as_slice());
    let (instance, warps) = instance_of(heads.dim)?;
    let longest = cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0);
    let config = LaunchConfig {
        grid_dim: (count(longest.div_ceil(16 * warps))?, count(heads.queries)?, count(cu_seqlens.len() - 1)?),
        block_dim: (32, count(warps)?, 1),
        shared_mem_bytes: 0,
    };
    let (q, k) = (heads.query_width(), heads.keys * heads.dim);
    let (queries, keys, values) = (x.slice(..), x.slice(q..), x.slice(q + k..));
    let far = |reach: usize| u32::try_from(reach).unwrap_or(u32::MAX);
    let (behind, ahead) = (far(op.reach.behind), far(op.reach.ahead));
    let (stride, null) = (count(stride)?, 0_u64);
    let (query_heads, key_heads, dim) = (count(heads.queries)?, count(heads.keys)?, count(heads.dim)?);
    let span = count(op.bias.map_or(0, |bias| bias.relative.span()))?;
    let function = function!(out.device, "attention", "attention_{}_{instance}", T::NAME);
    let mut launch = |shift: Option<&View<'_, T>>, bias: Option<&CudaView<'_, f32>>| {
        with_view::<u32, _>(&op.places.cu_seqlens, |cu_seqlens| {
            let mut builder = function.builder();
            builder.arg(&queries).arg(&keys).arg(&values);
            optional!(builder, shift, &null);
            builder.arg(cu_seqlens);
            optional!(builder, bias, &null);
            builder.arg(&mut memory).arg(&stride).arg(&stride).arg(&stride);
            builder.arg(&query_heads).arg(&key_heads).arg(&dim).arg(&heads.scale);
            builder.arg(&behind).arg(&ahead).arg(&span);
            // SAFETY: the arguments are those of the function's head; `x` has a row for every token of the sequences, and the
            // bias every distance in the longest of them (a model's longest sequence is what the table was made for).
            unsafe { builder.launch(config) }.w().map(|_| ())
        })
    };
    let table = op.bias.map(|bias| &bias.table);
    with_optional::<T, _>(op.shift, |shift| with_optional::<f32, _>(table, |bias| launch(shift, bias)))?;
    Ok(out.storage(memory))
}

/// See [`super::ops::pool`].
pub(super) fn pool<T: Element>(op: &PoolOp<'_>, x: &View<'_, T>, width: usize, out: Out<'_>) -> Result<CudaStorage> {
    let mut memory = out.memory::<f32>()?;
    let function = function!(out.device, "pool", "pool_{}", T::NAME);
    let kind = match op.kind {
        Kind::Mean => 0_u32,
        Kind::Cls => 1,
        Kind::Last => 2,
    };
    let (dim, normalise) = (count(width)?, 0_u32);
    let config = LaunchConfig { grid_dim: (count(out.rows)?, 1, 1), block_dim: (32, 16, 1), shared_mem_bytes: 0 };
    with_view::<u32, _>(&op.places.cu_seqlens, |cu_seqlens| {
        let mut builder = function.builder();
        builder.arg(x).arg(cu_seqlens).arg(&mut memory).arg(&dim).arg(&kind).arg(&normalise);
        // SAFETY: the arguments are those of the function's head; `x` has a row for every token of the sequences.
        unsafe { builder.launch(config) }.w().map(|_| ())
    })?;
    Ok(out.storage(memory))
}

/// See [`super::ops::activate`].
pub(super) fn activate(op: &ActivateOp<'_>, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    with_type!(storage, activate_of(op, storage, layout))
}

fn activate_of<T: Element>(op: &ActivateOp<'_>, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    let function = function!(storage.device, "linear", "linear_{}", T::NAME);
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("activate: the input has gaps") };
    let rows = (end - start) / op.width;
    let (row_count, dim, activation, null) = (count(rows)?, count(op.width)?, op.activation as u32, 0_u64);
    let mut x = storage.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
    with_optional::<T, _>(op.bias, |bias| {
        let mut builder = function.builder();
        builder.arg(&mut x);
        optional!(builder, bias, &null);
        builder.arg(&row_count).arg(&dim).arg(&activation);
        // SAFETY: the arguments are those of the function's head; `x` is whole rows.
        unsafe { builder.launch(by_columns::<T>(rows, op.width)?) }.w().map(|_| ())
    })
}

/// See [`super::ops::rotary`].
pub(super) fn rotary(op: &RotaryOp<'_>, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    with_type!(storage, rotary_of(op, storage, layout))
}

fn rotary_of<T: Element>(op: &RotaryOp<'_>, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    let function = function!(storage.device, "rotary", "rotary_{}", T::NAME);
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("rotary: the input has gaps") };
    let rows = (end - start) / op.stride;
    let half = op.angles.table.head_dim() / 2;
    let (row_count, stride, width) = (count(rows)?, count(op.stride)?, count(op.width)?);
    let half_count = count(half)?;
    let mut x = storage.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
    with_view::<u32, _>(&op.places.positions, |positions| {
        with_view::<f32, _>(&op.angles.cos, |cos| {
            with_view::<f32, _>(&op.angles.sin, |sin| {
                let mut builder = function.builder();
                builder.arg(&mut x).arg(positions).arg(cos).arg(sin);
                builder.arg(&row_count).arg(&stride).arg(&width).arg(&half_count);
                // SAFETY: the arguments are those of the function's head; there is a position for every row, and an angle for
                // every position (a model's longest sequence is what the tables were made for).
                unsafe { builder.launch(by_columns::<T>(rows, op.width / 2)?) }.w().map(|_| ())
            })
        })
    })
}
