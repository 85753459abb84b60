//! Engine on Candle: token sequences are grouped by length and padded, tensor rows are joined; one output per item
//! comes back. On the CPU the groups of a batch run side by side on a pool of the asked size.
//!
//! Candle itself splits matrix products by the number of physical cores, but every piece runs on the pool that the
//! engine installs, so no batch uses more threads than [`Options::threads`](crate::load::Options::threads). Engines
//! that ask for the same number share one pool for the life of the process.

use super::plan::{self, Costs};
use super::{check_tokens, pool};
use crate::arch::{self, Model, Padded, Weights};
use crate::engine::{Device, Engine, Error, Info, Item, Output, TensorSpec, Tokens};
use crate::load::safetensors::Checkpoint;
use crate::load::{self, Source};
use crate::tensor::{DataType, NamedTensor, Tensor};
use candle_core as candle;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::sync::Arc;

/// On a CPU small groups keep the layers' intermediate results in the cache (some megabytes at 512 tokens), and give
/// every thread something to do.
const CPU_COSTS: Costs = Costs { group_tokens_max: 512, group_overhead: 16 };

/// On a GPU a group should fill the device; starting one costs as much as some hundred tokens.
const GPU_COSTS: Costs = Costs { group_tokens_max: 32_768, group_overhead: 512 };

struct Candle {
    model: Model,
    info: Info,
    device: candle::Device,
    pool: Arc<ThreadPool>,
}

/// Loads a model's safetensors.
///
/// # Errors
/// When the device is not there, or the weights do not fit the configuration.
pub(crate) fn load(source: Source<'_>) -> Result<Box<dyn Engine>, load::Error> {
    let Source { manifest, options, .. } = source;
    let build = load::architecture(&manifest.architecture).and_then(|architecture| architecture.build);
    let build = build.ok_or_else(|| load::Error::NoBackend {
        model: manifest.id(),
        asked: options.backend,
        why: format!("architecture {:?} is not one that Candle has here", manifest.architecture),
    })?;
    let device = open(options.device)?;
    let dtype = compute_type(options.device, &manifest.precision);
    let pool = pool(options.thread_count()).map_err(|detail| load::Error::Device { device: options.device, detail })?;
    let checkpoint = Checkpoint::open(source.folder, manifest)?;
    let model = pool.install(|| build(source.config, manifest, &Weights::new(&checkpoint, device.clone(), dtype)))?;
    let stored: u64 = checkpoint.names().filter_map(|n| checkpoint.tensor(n)).map(|t| elements(t.shape)).sum();
    let info = info(&model, source, stored * dtype.size_in_bytes() as u64, dtype);
    Ok(Box::new(Candle { model, info, device, pool }))
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|dim| *dim as u64).product()
}

fn info(model: &Model, source: Source<'_>, weights_bytes: u64, dtype: candle::DType) -> Info {
    let device = source.options.device;
    let provider = match device {
        Device::Cpu => "candle-cpu".to_string(),
        Device::Cuda(_) => "candle-cuda".to_string(),
        Device::Metal(_) => "candle-metal".to_string(),
    };
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
            let bounds = encoder.bounds();
            let spec = |name: &str| TensorSpec { name: name.into(), datatype: DataType::I64, shape: vec![None, None] };
            info.inputs = vec![spec("input_ids"), spec("attention_mask"), spec("token_type_ids")];
            let shape = vec![None, Some(bounds.vector)];
            info.outputs = vec![TensorSpec { name: "vector".into(), datatype: DataType::F32, shape }];
            info.vector_len = Some(bounds.vector);
            info.max_tokens = Some(source.manifest.max_tokens.unwrap_or(bounds.tokens).min(bounds.tokens));
        }
        Model::Rows(rows) => {
            info.inputs = vec![rows.input()];
            info.outputs = vec![rows.output()];
        }
    }
    info
}

/// CPUs have no fast half-precision arithmetic, so they compute in f32; GPUs compute as the weights are stored.
fn compute_type(device: Device, precision: &str) -> candle::DType {
    match (device, precision) {
        (Device::Cuda(_) | Device::Metal(_), "f16") => candle::DType::F16,
        (Device::Cuda(_) | Device::Metal(_), "bf16") => candle::DType::BF16,
        _ => candle::DType::F32,
    }
}

fn open(device: Device) -> Result<candle::Device, load::Error> {
    let refuse = |detail: String| load::Error::Device { device, detail };
    match device {
        Device::Cpu => Ok(candle::Device::Cpu),
        Device::Cuda(_) if !cfg!(feature = "cuda") => {
            Err(refuse("this build has no CUDA: use the CUDA binary or the CUDA container image".into()))
        }
        Device::Metal(_) if !cfg!(feature = "metal") => {
            Err(refuse("this build has no Metal: use the macOS binary, or build with --features metal".into()))
        }
        Device::Cuda(ordinal) => candle::Device::new_cuda(ordinal).map_err(|e| refuse(e.to_string())),
        Device::Metal(ordinal) => candle::Device::new_metal(ordinal).map_err(|e| refuse(e.to_string())),
    }
}

impl Engine for Candle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error> {
        match &self.model {
            Model::Encoder(encoder) => {
                let sequences =
                    items.iter().map(|item| check_tokens(&encoder.bounds(), item)).collect::<Result<_, _>>()?;
                self.encode(&**encoder, sequences)
            }
            Model::Rows(rows) => {
                let inputs = items.iter().map(|item| self.check_rows(item)).collect::<Result<_, _>>()?;
                self.pool.install(|| self.run_rows(&**rows, inputs))
            }
        }
    }
}

impl Candle {
    fn encode(&self, encoder: &dyn arch::Encoder, sequences: Vec<&Tokens>) -> Result<Vec<Output>, Error> {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.ids.len()).collect();
        let is_cpu = self.device.is_cpu();
        let groups = plan::plan(&lengths, if is_cpu { CPU_COSTS } else { GPU_COSTS });
        let run = |group: &plan::Group| -> candle::Result<Vec<Vec<f32>>> {
            let members: Vec<_> = group.members.iter().map(|index| sequences[*index]).collect();
            encoder.forward(&pad(&members, group.longest))?.to_vec2()
        };
        let results: Result<Vec<_>, _> = if is_cpu {
            self.pool.install(|| groups.par_iter().map(run).collect())
        } else {
            groups.iter().map(run).collect()
        };
        let mut outputs = vec![Output::Vector(vec![]); sequences.len()];
        for (group, vectors) in groups.iter().zip(results.map_err(|e| self.failed(&e))?) {
            for (index, vector) in group.members.iter().zip(vectors) {
                outputs[*index] = Output::Vector(vector);
            }
        }
        Ok(outputs)
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
        let (shape, values) = run().map_err(|e| self.failed(&e))?;
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

    fn failed(&self, error: &candle::Error) -> Error {
        let (device, detail) = (self.info.device, error.to_string());
        let words = detail.to_ascii_lowercase();
        match device {
            _ if words.contains("out of memory") || words.contains("out_of_memory") => {
                Error::OutOfMemory { device, detail }
            }
            Device::Cpu => Error::Backend { backend: "candle", detail },
            Device::Cuda(_) | Device::Metal(_) => Error::Device { device, detail },
        }
    }
}

/// Sequences side by side, padded with zeros.
fn pad(sequences: &[&Tokens], longest: usize) -> Padded {
    let mut padded = Padded {
        lengths: sequences.iter().map(|tokens| tokens.ids.len()).collect(),
        longest,
        ids: vec![0; sequences.len() * longest],
        type_ids: vec![0; sequences.len() * longest],
    };
    for (row, tokens) in sequences.iter().enumerate() {
        let start = row * longest;
        padded.ids[start..start + tokens.ids.len()].copy_from_slice(&tokens.ids);
        padded.type_ids[start..start + tokens.type_ids.len()].copy_from_slice(&tokens.type_ids);
    }
    padded
}

#[cfg(test)]
#[path = "candle_tests.rs"]
mod tests;
