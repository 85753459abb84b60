//! Engines on Candle: token sequences are packed side by side, tensor rows are joined; one output per item comes back. Any
//! architecture that describes itself as an encoder runs here, and those that are made of Candle's tensors themselves; `decoder/` writes
//! text with any that describes itself as one.
//!
//! Candle itself splits matrix products by the number of physical cores, but every piece runs on the pool that the
//! engine installs, so no batch uses more threads than [`Options::threads`](crate::load::Options::threads). Engines
//! that ask for the same number share one pool for the life of the process.

mod decoder;
mod encoder;
mod ops;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a launch is a promise about its arguments; see the SAFETY notes")]
mod ops_cuda;
#[cfg(feature = "metal")]
mod ops_metal;
mod ops_plain;
#[cfg(any(feature = "metal", test))]
mod ops_trial;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a copy goes on behind the call that asks for it; see the SAFETY notes")]
mod pipe_cuda;

pub(crate) use decoder::{load as load_text, need as text_need};

#[cfg(feature = "cuda")]
pub(crate) use encoder::try_device;

use super::{bound_tokens, check_tokens, pool};
use crate::arch::{self, Weights};
#[cfg(feature = "cuda")]
use crate::engine::Side;
use crate::engine::{Device, Engine, Error, Info, Item, Output, TensorSpec};
use crate::load::checkpoint::Checkpoint;
use crate::load::{self, Source};
use crate::manifest::Manifest;
use crate::tensor::{DataType, NamedTensor, Tensor};
use candle_core as candle;
use encoder::Encoder;
use rayon::ThreadPool;
use std::sync::Arc;

/// What runs.
enum Model {
    /// Token sequences to one vector each.
    Encoder(Box<Encoder>),
    /// Rows of a tensor to rows of another.
    Rows(Box<dyn arch::Rows>),
}

struct Candle {
    model: Model,
    info: Info,
    device: candle::Device,
    pool: Arc<ThreadPool>,
    #[cfg(feature = "cuda")]
    pipe: Option<pipe_cuda::Pipe>,
}

/// Loads a model's safetensors.
///
/// # Errors
/// When the device is not there, or the weights do not fit the configuration.
pub(crate) fn load(source: Source<'_>) -> Result<Box<dyn Engine>, load::Error> {
    let Source { manifest, options, .. } = source;
    let device = open(options.device)?;
    let dtype = compute_type(options.device, &manifest.precision);
    tell_of_compute_type(options.device, manifest, dtype);
    let pool = pool(options.thread_count()).map_err(|detail| load::Error::Device { device: options.device, detail })?;
    let checkpoint = Checkpoint::open(source.folder, manifest)?;
    let architecture = load::architecture(&manifest.architecture);
    let model = match architecture.map(|architecture| (architecture.describe, architecture.build)) {
        Some((Some(describe), _)) => {
            let mut description = describe(source.config, manifest, &checkpoint)?;
            bound_tokens(&mut description.bounds, manifest);
            let load = || Encoder::load(description, &checkpoint, &device, dtype);
            Model::Encoder(Box::new(on(&device, &pool, load)?))
        }
        Some((None, Some(build))) => {
            let weights = Weights::new(&checkpoint, device.clone(), dtype);
            Model::Rows(on(&device, &pool, || build(source.config, manifest, &weights))?)
        }
        _ => {
            return Err(load::Error::NoBackend {
                model: manifest.id(),
                asked: options.backend,
                why: format!("architecture {:?} is not one that Candle has here", manifest.architecture),
            });
        }
    };
    finish(&device, options.device)?;
    let stored: u64 = checkpoint.names().filter_map(|n| checkpoint.tensor(n)).map(|t| elements(t.shape)).sum();
    let info = info(&model, source, stored * dtype.size_in_bytes() as u64, dtype);
    Ok(Box::new(Candle {
        model,
        info,
        #[cfg(feature = "cuda")]
        pipe: device.is_cuda().then(pipe_cuda::Pipe::default),
        device,
        pool,
    }))
}

/// Runs work where its device wants it: a CPU's on the pool's threads, a GPU's on this one, which has nothing to share out.
pub(super) fn on<R: Send>(device: &candle::Device, pool: &ThreadPool, work: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { pool.install(work) } else { work() }
}

/// Waits until all is done that was asked of a device: what memory it takes is known then.
fn finish(device: &candle::Device, named: Device) -> Result<(), load::Error> {
    device.synchronize().map_err(|e| load::Error::Device { device: named, detail: e.to_string() })
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|dim| *dim as u64).product()
}

fn info(model: &Model, source: Source<'_>, weights_bytes: u64, dtype: candle::DType) -> Info {
    let device = source.options.device;
    let provider = provider(device).to_string();
    let class = match device {
        Device::Cpu => format!("{provider}-{}-{}", dtype.as_str(), super::cpu_class()),
        Device::Cuda(_) | Device::Metal(_) => format!("{provider}-{}", dtype.as_str()),
    };
    let mut info = Info {
        backend: "candle",
        provider,
        library: None,
        device,
        execution_class: class,
        weights_bytes,
        inputs: vec![],
        outputs: vec![],
        vector_len: None,
        max_tokens: None,
        batches_rows: true,
    };
    match model {
        Model::Encoder(encoder) => {
            let bounds = encoder.description.bounds;
            let spec = |name: &str| TensorSpec { name: name.into(), datatype: DataType::I64, shape: vec![None, None] };
            info.inputs = vec![spec("input_ids"), spec("token_type_ids")];
            let shape = vec![None, Some(bounds.vector)];
            info.outputs = vec![TensorSpec { name: "vector".into(), datatype: DataType::F32, shape }];
            info.vector_len = Some(bounds.vector);
            info.max_tokens = Some(bounds.tokens);
        }
        Model::Rows(rows) => {
            info.inputs = vec![rows.input()];
            info.outputs = vec![rows.output()];
        }
    }
    info
}

/// What executes on a device.
fn provider(device: Device) -> &'static str {
    match device {
        Device::Cpu => "candle-cpu",
        Device::Cuda(_) => "candle-cuda",
        Device::Metal(_) => "candle-metal",
    }
}

/// CPUs have no fast half-precision arithmetic, so they compute in f32; GPUs compute as the weights are stored, and beside blocks of few
/// bits in f32. A card that has no bf16 takes such weights as f32: f16 would be fast there, but models that were trained in bf16 have
/// activations that f16 cannot hold.
fn compute_type(device: Device, precision: &str) -> candle::DType {
    match (device, precision) {
        (Device::Cuda(_) | Device::Metal(_), "f16") => candle::DType::F16,
        (Device::Cuda(ordinal), "bf16") if !super::cuda::has_bf16(ordinal) => candle::DType::F32,
        (Device::Cuda(_) | Device::Metal(_), "bf16") => candle::DType::BF16,
        _ => candle::DType::F32,
    }
}

/// Says aloud that a model takes twice the memory and more time than its owner may expect.
fn tell_of_compute_type(device: Device, manifest: &Manifest, dtype: candle::DType) {
    if device != Device::Cpu && manifest.precision == "bf16" && dtype == candle::DType::F32 {
        tracing::info!(model = %manifest.id(), %device, "this card has no bf16, so the model is calculated in f32");
    }
}

pub(super) fn open(device: Device) -> Result<candle::Device, load::Error> {
    let refuse = |detail: String| load::Error::Device { device, detail };
    match device {
        Device::Cpu => Ok(candle::Device::Cpu),
        Device::Metal(_) if !cfg!(feature = "metal") => {
            Err(refuse("this build has no Metal: use the macOS binary, or build with --features metal".into()))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => ops_cuda::open(ordinal).map_err(|e| refuse(e.to_string())),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => {
            Err(refuse("this build has no CUDA: use the CUDA binary or the CUDA container image".into()))
        }
        Device::Metal(ordinal) => candle::Device::new_metal(ordinal).map_err(|e| refuse(e.to_string())),
    }
}

impl Engine for Candle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error> {
        match &self.model {
            Model::Encoder(encoder) => self.answer(encoder, items),
            Model::Rows(rows) => {
                let inputs = items.iter().map(|item| self.check_rows(item)).collect::<Result<_, _>>()?;
                on(&self.device, &self.pool, || self.run_rows(&**rows, inputs))
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn sides(&self) -> usize {
        if self.pipe.is_some() && matches!(self.model, Model::Encoder(_)) { pipe_cuda::SIDES } else { 1 }
    }

    #[cfg(feature = "cuda")]
    fn run_sides(&mut self, work: &(dyn Fn(Side<'_>) + Sync)) {
        let (sides, Model::Encoder(encoder)) = (self.sides(), &self.model) else {
            return work(&mut |items| self.run(items));
        };
        let engine = &*self;
        std::thread::scope(|scope| {
            for _ in 1..sides {
                scope.spawn(|| work(&mut |items| engine.answer(encoder, items)));
            }
            work(&mut |items| engine.answer(encoder, items));
        });
    }
}

impl Candle {
    /// One vector per sequence of tokens.
    fn answer(&self, encoder: &Encoder, items: &[Item]) -> Result<Vec<Output>, Error> {
        let bounds = &encoder.description.bounds;
        let sequences = items.iter().map(|item| check_tokens(bounds, item)).collect::<Result<Vec<_>, _>>()?;
        let vectors = on(&self.device, &self.pool, || encoder.run(&sequences, |launch| self.read(launch)));
        Ok(vectors.map_err(|e| failed(self.info.device, &e))?.into_iter().map(Output::Vector).collect())
    }

    fn read(&self, launch: &dyn Fn() -> candle::Result<candle::Tensor>) -> candle::Result<Vec<Vec<f32>>> {
        #[cfg(feature = "cuda")]
        if let Some(pipe) = &self.pipe {
            return pipe.run(launch);
        }
        launch()?.to_vec2()
    }

    fn check_rows<'a>(&self, item: &'a Item) -> Result<&'a Tensor, Error> {
        let spec = &self.info.inputs[0];
        match item {
            Item::Tensors(tensors) => match tensors.as_slice() {
                [NamedTensor { name, tensor }] if *name == spec.name => {
                    let shape = tensor.shape();
                    let fits = tensor.datatype() == spec.datatype
                        && shape.len() == spec.shape.len()
                        && shape.iter().zip(&spec.shape).all(|(have, want)| want.is_none_or(|want| want == *have));
                    if fits { Ok(tensor) } else { Err(Error::Input(format!("input {name} has shape {shape:?}"))) }
                }
                _ => Err(Error::Input(format!("the one input of this model is {}", spec.name))),
            },
            Item::Tokens(_) => Err(Error::Input("this model takes tensors, not tokens".into())),
        }
    }

    /// Joins the rows of all items, runs them as one, and takes them apart again.
    fn run_rows(&self, model: &dyn arch::Rows, inputs: Vec<&Tensor>) -> Result<Vec<Output>, Error> {
        if inputs.is_empty() {
            return Ok(vec![]);
        }
        let counts: Vec<usize> = inputs.iter().map(|tensor| tensor.rows()).collect();
        let run = || -> candle::Result<(Vec<usize>, Vec<f32>)> {
            let values: Vec<f32> = inputs.iter().flat_map(|t| t.to_f32().unwrap_or_default()).collect();
            let mut shape = inputs[0].shape().to_vec();
            shape[0] = counts.iter().sum();
            let out = model.forward(&candle::Tensor::from_vec(values, shape, &self.device)?)?;
            Ok((out.dims().to_vec(), out.flatten_all()?.to_vec1()?))
        };
        let (shape, values) = run().map_err(|e| failed(self.info.device, &e))?;
        let row_len: usize = shape[1..].iter().product();
        let mut rest = values.as_slice();
        let mut outputs = Vec::with_capacity(counts.len());
        for rows in counts {
            let (mine, others) = rest.split_at(rows * row_len);
            rest = others;
            let tensor = Tensor::from_f32([&[rows], &shape[1..]].concat(), mine)
                .map_err(|e| Error::Backend { backend: "candle", detail: e.to_string() })?;
            outputs.push(Output::Tensors(vec![NamedTensor { name: self.info.outputs[0].name.clone(), tensor }]));
        }
        Ok(outputs)
    }
}

/// What a failure means to whoever drives the device.
fn failed(device: Device, error: &candle::Error) -> Error {
    let detail = error.to_string();
    let words = detail.to_ascii_lowercase();
    // What Candle itself refuses, such as shapes that do not fit, says nothing of the device.
    let is_drivers = ["drivererror", "cuda_error", "cublas", "curand", "metal"].iter().any(|word| words.contains(word));
    match device {
        _ if super::says_out_of_memory(&words) => Error::OutOfMemory { device, detail },
        Device::Cuda(_) | Device::Metal(_) if is_drivers => Error::Device { device, detail },
        Device::Cpu | Device::Cuda(_) | Device::Metal(_) => Error::Backend { backend: "candle", detail },
    }
}

#[cfg(test)]
mod tests;
