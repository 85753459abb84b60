//! Writes text on Candle's devices: a plan comes in, its tokens go through the layers side by side, logits come back to the processor. Any
//! architecture that describes itself as a [`Decoder`] runs here. On CUDA devices steps of single tokens are replayed, and tokens are chosen where
//! logits are. Never padding of what is computed with, never a choice that depends on the device.

mod batch;
mod cache;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a launch is a promise about its arguments; see the SAFETY notes")]
mod choice_cuda;
mod forward;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a graph may go to another thread with who has it; see the SAFETY note")]
mod graphs_cuda;
mod ops;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a launch is a promise about its arguments; see the SAFETY notes")]
mod ops_cuda;
mod ops_plain;
#[cfg(test)]
mod tests;
mod weights;

use super::{compute_type, failed, finish, on, open, provider, tell_of_compute_type};
use crate::arch::Decode;
use crate::arch::decoder::Decoder;
#[cfg(feature = "cuda")]
use crate::engine::{Choose, Rows};
use crate::engine::{Device, Error, Generator, GeneratorInfo};
use crate::generate::Plan;
use crate::load::checkpoint::{Checkpoint, Type};
use crate::load::{self, Source, TextNeed};
use crate::manifest::Manifest;
use batch::Batch;
use cache::{BLOCK_TOKENS, BLOCKS_MAX, Cache};
use candle_core as candle;
use candle_core::{DType, Tensor};
use forward::Forward;
#[cfg(feature = "cuda")]
use kernels::sample::{Draw, History, Params};
use rayon::ThreadPool;
use std::sync::Arc;
use weights::Weights;

/// Tokens of a step whose intermediate results are counted when memory is: what steps have at most where a device is fast.
const STEP_TOKENS: u64 = 4096;

struct Writer {
    decoder: Decoder,
    weights: Weights,
    /// One for each layer.
    caches: Vec<Cache>,
    device: candle::Device,
    pool: Arc<ThreadPool>,
    info: GeneratorInfo,
    #[cfg(feature = "cuda")]
    graphs: Option<graphs_cuda::Graphs>,
}

/// Loads a decoder's weights, with a KV cache of at most so many bytes.
///
/// # Errors
/// When the device is not there, the weights do not fit the configuration, or the cache has no room for one block.
pub(crate) fn load(source: Source<'_>, decode: Decode, cache_bytes: u64) -> Result<Box<dyn Generator>, load::Error> {
    Ok(Box::new(writer(source, decode, cache_bytes)?))
}

fn writer(source: Source<'_>, decode: Decode, cache_bytes: u64) -> Result<Writer, load::Error> {
    let Source { manifest, options, .. } = source;
    let refused = |detail: String| load::Error::Backend { backend: "candle", model: manifest.id(), detail };
    let device = open(options.device)?;
    let dtype = compute_type(options.device, &manifest.precision);
    tell_of_compute_type(options.device, manifest, dtype);
    let pool = super::pool(options.thread_count());
    let pool = pool.map_err(|detail| load::Error::Device { device: options.device, detail })?;
    let checkpoint = Checkpoint::open(source.folder, manifest)?;
    let decoder = decode(source.config, &checkpoint)?.for_sequences_of(manifest.max_tokens);

    let block_bytes = block_bytes(&decoder, options.device, dtype);
    let block_bytes =
        block_bytes.ok_or_else(|| refused("a block of its KV cache is larger than memory can be".into()))?;
    let blocks = (cache_bytes / block_bytes).min(BLOCKS_MAX) as usize;
    if blocks == 0 {
        return Err(refused(format!(
            "its KV cache needs {block_bytes} bytes for {BLOCK_TOKENS} tokens and may have {cache_bytes}; allow it more"
        )));
    }
    let context = trained(&decoder, manifest).min(blocks * BLOCK_TOKENS);
    let weights = on(&device, &pool, || Weights::load(&decoder, &checkpoint, context, &device, dtype))?;
    let cache = |_| Cache::new(&decoder.heads, blocks + spare_blocks(options.device), &device, dtype);
    let caches = decoder.layers.iter().map(cache).collect::<candle::Result<Vec<_>>>();
    let caches = caches.map_err(|e| refused(failed(options.device, &e).to_string()))?;
    finish(&device, options.device)?;
    let stored = if is_in_blocks(&checkpoint) { manifest.precision.as_str() } else { dtype.as_str() };
    let provider = provider(options.device);
    let info = GeneratorInfo {
        backend: "candle",
        execution_class: match options.device {
            Device::Cpu => format!("{provider}-{stored}-{}", crate::backend::cpu_class()),
            _ => format!("{provider}-{stored}"),
        },
        provider: provider.into(),
        device: options.device,
        weights_bytes: weights.bytes(),
        vocabulary: decoder.vocabulary(),
        context,
        block_tokens: BLOCK_TOKENS,
        blocks,
        block_bytes,
    };
    Ok(Writer {
        #[cfg(feature = "cuda")]
        graphs: (ops::is_on_cuda(&decoder.heads) && device.is_cuda() && !is_in_blocks(&checkpoint))
            .then(|| graphs_cuda::Graphs::new(&device, blocks as u32)),
        decoder,
        weights,
        caches,
        device,
        pool,
        info,
    })
}

/// Blocks of the cache that no text has: on CUDA devices rows without a text write there.
fn spare_blocks(device: Device) -> usize {
    usize::from(matches!(device, Device::Cuda(_)))
}

/// Counts what a decoder takes of a device's memory; nothing where a block of its KV cache is larger than any.
pub(crate) fn need(
    decoder: &Decoder,
    checkpoint: &Checkpoint,
    manifest: &Manifest,
    device: Device,
) -> Option<TextNeed> {
    let dtype = compute_type(device, &manifest.precision);
    let context = trained(decoder, manifest);
    let tensors = checkpoint.names().filter_map(|name| checkpoint.tensor(name));
    let weights: u64 = tensors
        .map(|tensor| match tensor.stored {
            Type::Blocks(_) => tensor.data.len() as u64,
            _ => tensor.shape.iter().product::<usize>() as u64 * dtype.size_in_bytes() as u64,
        })
        .sum();
    let angles = (decoder.rotaries.len() * context * decoder.heads.dim * size_of::<f32>()) as u64;
    // The residual, its sum and norm, queries, keys and values, both halves of the gate, and its result.
    let widest = decoder.layers.iter().map(|layer| layer.up.outputs + layer.down.inputs).max().unwrap_or(0);
    let row = 4 * decoder.hidden + 2 * decoder.heads.width() + widest;
    let working = STEP_TOKENS.min(context as u64) * (row * dtype.size_in_bytes()) as u64;
    let block_bytes = block_bytes(decoder, device, dtype)?;
    let spare = spare_blocks(device) as u64 * block_bytes;
    Some(TextNeed {
        weights_bytes: weights + angles + working + spare + choice_bytes(decoder, device),
        block_bytes,
        block_tokens: BLOCK_TOKENS,
        context,
    })
}

/// What a CUDA device needs to replay steps and to choose tokens: logits that stay, and for each token a place on the grid.
fn choice_bytes(decoder: &Decoder, device: Device) -> u64 {
    #[cfg(feature = "cuda")]
    if matches!(device, Device::Cuda(_)) {
        let row =
            decoder.vocabulary() * (size_of::<f32>() + size_of::<u16>()) + kernels::sample::CELLS * size_of::<u32>();
        return (graphs_cuda::ROWS_MAX * row) as u64;
    }
    let _ = (decoder, device);
    0
}

/// Tokens of a sequence at most, whatever the cache holds.
fn trained(decoder: &Decoder, manifest: &Manifest) -> usize {
    manifest.max_tokens.map_or(decoder.context, |most| most.min(decoder.context))
}

/// Bytes of a block of the KV cache, of all layers.
fn block_bytes(decoder: &Decoder, device: Device, dtype: DType) -> Option<u64> {
    let is_host = device == Device::Cpu && dtype == DType::F32;
    cache::block_bytes(&decoder.heads, is_host, dtype)?.checked_mul(decoder.layers.len() as u64)
}

fn is_in_blocks(checkpoint: &Checkpoint) -> bool {
    let stored = |name: &str| checkpoint.tensor(name).is_some_and(|tensor| matches!(tensor.stored, Type::Blocks(_)));
    checkpoint.names().any(stored)
}

impl Generator for Writer {
    fn info(&self) -> &GeneratorInfo {
        &self.info
    }

    fn step(&mut self, plan: &Plan, choose: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), Error> {
        let Some(logits) = self.logits(plan)? else { return Ok(()) };
        let mut logits = self.on_host(&logits)?;
        sampled(plan).zip(logits.chunks_exact_mut(self.info.vocabulary)).for_each(|(at, logits)| choose(at, logits));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn step_and_choose(&mut self, plan: &Plan, choose: &mut dyn Choose) -> Result<(), Error> {
        if !self.device.is_cuda() {
            return self.step(plan, &mut |at, logits| choose.logits(at, logits));
        }
        let Some(logits) = self.logits(plan)? else { return Ok(()) };
        let mut rows = Rows::new(self.info.vocabulary);
        let mut is_asked = |at| {
            let is_asked = choose.ask(at, &mut rows);
            // Its row is left as it is, and read afterwards.
            let nothing = Params { temperature: 0.0, ..Params::default() };
            if !is_asked && let Err(error) = rows.push(&nothing, &History::default(), Draw { seed: 0, position: 0 }) {
                return Err(Error::Backend { backend: "candle", detail: error.to_string() });
            }
            Ok((at, is_asked))
        };
        let asked = sampled(plan).map(&mut is_asked).collect::<Result<Vec<_>, _>>()?;
        let chosen = choice_cuda::choose(&logits, &rows).map_err(|e| failed(self.info.device, &e))?;
        for (row, ((at, is_asked), token)) in asked.into_iter().zip(chosen).enumerate() {
            if is_asked {
                choose.chosen(at, token);
            } else {
                let row = logits.narrow(0, row, 1).map_err(|e| failed(self.info.device, &e))?;
                choose.logits(at, &mut self.on_host(&row)?);
            }
        }
        Ok(())
    }
}

/// The places in a plan of what is sampled, in order.
fn sampled(plan: &Plan) -> impl Iterator<Item = usize> + '_ {
    plan.parts().enumerate().filter(|(_, part)| part.is_sampled).map(|(at, _)| at)
}

impl Writer {
    /// Runs a plan. Gives the logits that it asks for, `[sampled, vocabulary]` in f32 on the device.
    fn logits(&mut self, plan: &Plan) -> Result<Option<Tensor>, Error> {
        let batch = Batch::new(plan, &self.info)?;
        if plan.is_empty() {
            return Ok(None);
        }
        let forward = Forward { decoder: &self.decoder, weights: &self.weights, caches: &self.caches };
        #[cfg(feature = "cuda")]
        if let Some(graphs) = self.graphs.as_mut().filter(|graphs| graphs.take(&batch)) {
            return graphs.run(batch, &forward).map(Some).map_err(|e| failed(self.info.device, &e));
        }
        let run = || forward.run(&batch, &batch.arrays(&self.device)?);
        on(&self.device, &self.pool, run).map_err(|e| failed(self.info.device, &e))
    }

    fn on_host(&self, logits: &Tensor) -> Result<Vec<f32>, Error> {
        let read = || logits.flatten_all()?.to_vec1();
        read().map_err(|e: candle::Error| failed(self.info.device, &e))
    }
}
