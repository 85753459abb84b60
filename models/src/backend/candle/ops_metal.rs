//! Launches the Metal code of `kernels` on Candle's storage: checked operands come in, a new storage goes out or one is changed. What is
//! told to the device is what [`kernels::launch::metal`] describes. Never a wait: all is in the order of Candle's one queue.

use super::encoder::{Biases, Norm};
use super::ops::{ActivateOp, AttentionOp, GluOp, NormOp, Op, PoolOp, RotaryOp};
use super::ops_trial::try_ops;
use crate::arch::encoder::{Heads, NormKind};
use candle_core::backend::BackendStorage;
use candle_core::{DType, Device, Error, Layout, MetalDevice, MetalStorage, Result, Storage, Tensor};
use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder, ComputePipeline, Library};
use kernels::launch::metal::{
    self as code, Access, Attention, Gelu, Glu, Launch, LayerNorm, Pool, RmsNorm, Rotary, Rows, Type,
};
use objc2_metal::{MTLCompileOptions, MTLComputePipelineState as _, MTLSize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Threads of a SIMD-group, as the code counts on.
const SIMD_WIDTH: usize = 32;

/// What a GPU's compiler made.
#[derive(Default)]
struct Compiled {
    /// By op.
    libraries: BTreeMap<&'static str, Library>,
    /// By function.
    pipelines: BTreeMap<&'static str, ComputePipeline>,
}

/// By the GPU's number in the system: however many devices of Candle's there are on a GPU, its code is compiled once.
static COMPILED: Mutex<BTreeMap<u64, Compiled>> = Mutex::new(BTreeMap::new());

/// GPUs whose code was tried, and whether it runs there.
static TRIED: Mutex<BTreeMap<u64, bool>> = Mutex::new(BTreeMap::new());

/// Whether the code runs on a GPU. It is tried there once, against Candle's own steps on the CPU, because neither the compiler nor the GPU
/// that it meets is ours; where it does not compile or gives something else it is not used, which is said aloud.
pub(super) fn runs_on(device: &MetalDevice) -> bool {
    let gpu = device.metal_device();
    let tried = || TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = tried().get(&gpu.registry_id()).copied();
    known.unwrap_or_else(|| {
        let on = Device::Metal(device.clone());
        let result = [DType::F32, DType::F16].into_iter().try_for_each(|dtype| try_ops(&on, dtype));
        if let Err(why) = &result {
            let gpu = gpu.architecture_name();
            tracing::warn!(
                gpu,
                why,
                "our Metal code does not run on this GPU, so models take Candle's own steps there, which are slower; please \
                 report this line"
            );
        }
        tried().insert(gpu.registry_id(), result.is_ok());
        result.is_ok()
    })
}

/// Whether there is code for attention over such heads, and their rows begin where it can read them.
pub(super) fn takes_heads(qkv: &Tensor, heads: &Heads) -> bool {
    code::attention_takes_heads_of(heads.dim) && qkv.layout().start_offset().is_multiple_of(4)
}

/// Where an operand begins.
#[derive(Clone)]
struct View {
    buffer: Buffer,
    /// In bytes.
    offset: usize,
}

impl View {
    /// So many elements later.
    fn behind(&self, elements: usize, dtype: DType) -> Self {
        Self { buffer: self.buffer.clone(), offset: self.offset + elements * dtype.size_in_bytes() }
    }
}

/// An operand of so many elements of a type.
fn view_of(storage: &MetalStorage, layout: &Layout, dtype: DType, elements: usize) -> Result<View> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("an operand of Metal code has to be contiguous")
    };
    if storage.dtype() != dtype || end - start != elements {
        let found = storage.dtype();
        candle_core::bail!(
            "an operand of Metal code has {} elements of {found:?}, not {elements} of {dtype:?}",
            end - start
        );
    }
    Ok(View { buffer: storage.buffer().clone(), offset: start * dtype.size_in_bytes() })
}

fn view(tensor: &Tensor, dtype: DType, elements: usize) -> Result<View> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Metal(storage) = &*storage else { candle_core::bail!("an operand is not on the Metal device") };
    view_of(storage, layout, dtype, elements)
}

/// The code's name for a type.
fn type_of(dtype: DType) -> Result<Type> {
    match dtype {
        DType::F32 => Ok(Type::F32),
        DType::F16 => Ok(Type::F16),
        other => candle_core::bail!("there is no Metal code for {other:?}"),
    }
}

/// What an op runs on: `[rows, width]`.
pub(super) struct Input<'a> {
    device: &'a MetalDevice,
    x: View,
    dtype: DType,
    of: Type,
    rows: usize,
    width: usize,
}

impl<'a> Input<'a> {
    fn new(storage: &'a MetalStorage, layout: &Layout, width: usize) -> Result<Self> {
        let (dtype, elements) = (storage.dtype(), layout.shape().elem_count());
        let x = view_of(storage, layout, dtype, elements)?;
        Ok(Self { device: storage.device(), x, dtype, of: type_of(dtype)?, rows: elements / width, width })
    }

    /// A new storage that a launch writes.
    fn made(
        &self,
        elements: usize,
        dtype: DType,
        describe: impl FnOnce(View) -> Result<Launch<View>>,
    ) -> Result<MetalStorage> {
        let buffer = self.device.new_buffer(elements, dtype, "")?;
        encode(self.device, &describe(View { buffer: (*buffer).clone(), offset: 0 })?)?;
        Ok(MetalStorage::new(buffer, self.device.clone(), elements, dtype))
    }
}

/// Runs an op on whatever type its input has.
pub(super) fn run<O: Op>(op: &O, storage: &MetalStorage, layout: &Layout, width: usize) -> Result<MetalStorage> {
    op.metal(&Input::new(storage, layout, width)?)
}

/// Puts a launch behind those that were before.
fn encode(device: &MetalDevice, launch: &Launch<View>) -> Result<()> {
    if launch.groups.contains(&0) {
        return Ok(());
    }
    let pipeline = pipeline(device, launch)?;
    let commands = device.command_encoder()?;
    let encoder: &ComputeCommandEncoder = commands.as_ref();
    encoder.set_compute_pipeline_state(&pipeline);
    for (index, (view, access)) in launch.buffers.iter().zip(launch.module.buffers).enumerate() {
        // Candle keeps launches apart of which one writes what another reads.
        match access {
            Access::Read => encoder.set_input_buffer(index, Some(&view.buffer), view.offset),
            Access::Write => encoder.set_output_buffer(index, Some(&view.buffer), view.offset),
        }
    }
    let params = launch.params.as_slice();
    encoder.set_bytes_directly(launch.buffers.len(), size_of_val(params), params.as_ptr().cast());
    let size = |[width, height, depth]: [u32; 3]| MTLSize {
        width: width as usize,
        height: height as usize,
        depth: depth as usize,
    };
    encoder.dispatch_thread_groups(size(launch.groups), size([launch.threads, 1, 1]));
    Ok(())
}

/// A function for a GPU, which is compiled at its first use.
fn pipeline(device: &MetalDevice, launch: &Launch<View>) -> Result<ComputePipeline> {
    let (gpu, module) = (device.metal_device(), launch.module);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.entry(gpu.registry_id()).or_default();
    if let Some(pipeline) = compiled.pipelines.get(launch.function) {
        return Ok(pipeline.clone());
    }
    let refused = |error| Error::Msg(format!("{}: this Mac's Metal does not take our code: {error}", launch.function));
    let library = match compiled.libraries.get(module.op) {
        Some(library) => library.clone(),
        None => {
            let options = MTLCompileOptions::new();
            #[expect(deprecated, reason = "what is there in its place is unknown before macOS 15")]
            options.setFastMathEnabled(false);
            let library = gpu.new_library_with_source(module.source, Some(&options)).map_err(refused)?;
            compiled.libraries.insert(module.op, library.clone());
            library
        }
    };
    let function = library.get_function(launch.function, None).map_err(refused)?;
    let pipeline = gpu.new_compute_pipeline_state_with_function(&function).map_err(refused)?;
    let (width, most) = (pipeline.as_ref().threadExecutionWidth(), pipeline.max_total_threads_per_threadgroup());
    if width != SIMD_WIDTH || most < launch.threads as usize {
        let (function, threads) = (launch.function, launch.threads);
        candle_core::bail!(
            "{function}: the Metal code is for GPUs with SIMD-groups of {SIMD_WIDTH} threads and threadgroups of {threads}; this one \
             has {width}, and {most} at most"
        );
    }
    compiled.pipelines.insert(launch.function, pipeline.clone());
    Ok(pipeline)
}

/// See [`super::ops::norm`].
pub(super) fn norm(op: &NormOp<'_>, on: &Input<'_>) -> Result<MetalStorage> {
    let (rows, dim, Norm { kind, weight, bias, epsilon: eps }) = (on.rows, on.width, op.norm);
    let residual = op.residual.map(|residual| view(residual, on.dtype, rows * dim)).transpose()?;
    let (weight, x) = (view(weight, on.dtype, dim)?, on.x.clone());
    on.made(rows * dim, on.dtype, |out| match kind {
        NormKind::Layer => {
            let bias = view(bias, on.dtype, dim)?;
            LayerNorm { rows, dim, eps: *eps, x, residual, weight, bias, out }.launch(on.of).map_err(Error::wrap)
        }
        NormKind::Rms => {
            // Nobody wants the sum.
            let norm = RmsNorm { rows, dim, eps: *eps, x, residual, weight, sum: None, out };
            norm.launch(on.of).map_err(Error::wrap)
        }
    })
}

/// The sum of two, and behind it that normalised.
///
/// # Shapes
/// `x`, `y`: `[rows, width]`; gives `[2, rows, width]`.
pub(super) fn add_norm(
    norm: &Norm,
    (x, x_layout): (&MetalStorage, &Layout),
    (y, y_layout): (&MetalStorage, &Layout),
    width: usize,
) -> Result<MetalStorage> {
    let on = Input::new(x, x_layout, width)?;
    let elements = on.rows * width;
    let residual = Some(view_of(y, y_layout, on.dtype, elements)?);
    let weight = view(&norm.weight, on.dtype, width)?;
    on.made(2 * elements, on.dtype, |sum| {
        let out = sum.behind(elements, on.dtype);
        let (rows, eps, x) = (on.rows, norm.epsilon, on.x.clone());
        let norm = RmsNorm { rows, dim: width, eps, x, residual, weight, sum: Some(sum), out };
        norm.launch(on.of).map_err(Error::wrap)
    })
}

/// See [`super::ops::glu`].
pub(super) fn glu(op: &GluOp, on: &Input<'_>) -> Result<MetalStorage> {
    let (rows, dim, activation) = (on.rows, on.width / 2, op.activation);
    on.made(rows * dim, on.dtype, |out| {
        Glu { rows, dim, activation, x: on.x.clone(), out }.launch(on.of).map_err(Error::wrap)
    })
}

/// See [`super::ops::attention`].
pub(super) fn attention(op: &AttentionOp<'_>, on: &Input<'_>) -> Result<MetalStorage> {
    let (heads, cu_seqlens) = (op.heads, op.places.packed.cu_seqlens.as_slice());
    let (q, k) = (heads.query_width(), heads.keys * heads.dim);
    let rows = |first| Rows { first: on.x.behind(first, on.dtype), stride: on.width };
    let bias = |bias: &Biases| -> Result<(View, usize)> {
        Ok((view(&bias.table, DType::F32, bias.relative.table().len())?, bias.relative.span()))
    };
    on.made(on.rows * q, on.dtype, |out| {
        let attention = Attention {
            sequences: cu_seqlens.len() - 1,
            longest: cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0),
            heads: heads.queries,
            kv_heads: heads.keys,
            head_dim: heads.dim,
            scale: heads.scale,
            reach: op.reach,
            q: rows(0),
            k: rows(q),
            v: rows(q + k),
            cu_seqlens: view(&op.places.cu_seqlens, DType::U32, cu_seqlens.len())?,
            bias: op.bias.map(bias).transpose()?,
            out,
        };
        attention.launch(on.of).map_err(Error::wrap)
    })
}

/// See [`super::ops::pool`].
pub(super) fn pool(op: &PoolOp<'_>, on: &Input<'_>) -> Result<MetalStorage> {
    let ends = op.places.packed.cu_seqlens.len();
    let (sequences, dim, kind, norm) = (ends - 1, on.width, op.kind, kernels::pool::Norm::None);
    on.made(sequences * dim, DType::F32, |out| {
        let cu_seqlens = view(&op.places.cu_seqlens, DType::U32, ends)?;
        let pool = Pool { sequences, dim, kind, norm, x: on.x.clone(), cu_seqlens, out };
        pool.launch(on.of).map_err(Error::wrap)
    })
}

/// See [`super::ops::activate`], which is GELU here.
pub(super) fn gelu(op: &ActivateOp<'_>, storage: &MetalStorage, layout: &Layout) -> Result<()> {
    let on = Input::new(storage, layout, op.width)?;
    let bias = op.bias.map(|bias| view(bias, on.dtype, op.width)).transpose()?;
    let gelu = Gelu { rows: on.rows, dim: op.width, x: on.x.clone(), bias };
    encode(on.device, &gelu.launch(on.of).map_err(Error::wrap)?)
}

/// See [`super::ops::rotary`].
pub(super) fn rotary(op: &RotaryOp<'_>, storage: &MetalStorage, layout: &Layout) -> Result<()> {
    let on = Input::new(storage, layout, op.stride)?;
    let table = &op.angles.table;
    let angles = |of: &Tensor| view(of, DType::F32, table.cos().len());
    let rotary = Rotary {
        rows: on.rows,
        stride: op.stride,
        width: op.width,
        head_dim: table.head_dim(),
        x: on.x.clone(),
        positions: view(&op.places.positions, DType::U32, on.rows)?,
        cos: angles(&op.angles.cos)?,
        sin: angles(&op.angles.sin)?,
    };
    encode(on.device, &rotary.launch(on.of).map_err(Error::wrap)?)
}
