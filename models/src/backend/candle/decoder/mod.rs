//! Writes text on Candle's devices: a plan comes in, its tokens go through the layers side by side, logits come back to the processor. Any
//! architecture that describes itself as a [`Decoder`] runs here. Never padding, never a choice of a token.

mod batch;
mod cache;
mod forward;
mod ops;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a launch is a promise about its arguments; see the SAFETY notes")]
mod ops_cuda;
mod ops_plain;
#[cfg(test)]
mod tests;
mod weights;

use super::{compute_type, failed, open, provider, tell_of_compute_type};
use crate::arch::Decode;
use crate::arch::decoder::Decoder;
use crate::engine::{Device, Error, Generator, GeneratorInfo};
use crate::generate::Plan;
use crate::load::checkpoint::{Checkpoint, Type};
use crate::load::{self, Source, TextNeed};
use crate::manifest::Manifest;
use batch::Batch;
use cache::{BLOCK_TOKENS, BLOCKS_MAX, Cache};
use candle_core as candle;
use candle_core::DType;
use forward::Forward;
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
}

/// Loads a decoder's weights, with a KV cache of at most so many bytes.
///
/// # Errors
/// When the device is not there, the weights do not fit the configuration, or the cache has no room for one block.
pub(crate) fn load(source: Source<'_>, decode: Decode, cache_bytes: u64) -> Result<Box<dyn Generator>, load::Error> {
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
    let weights = pool.install(|| Weights::load(&decoder, &checkpoint, context, &device, dtype))?;
    let cache = |_| Cache::new(&decoder.heads, blocks, &device, dtype);
    let caches = decoder.layers.iter().map(cache).collect::<candle::Result<Vec<_>>>();
    let caches = caches.map_err(|e| refused(failed(options.device, &e).to_string()))?;
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
    Ok(Box::new(Writer { decoder, weights, caches, device, pool, info }))
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
    Some(TextNeed {
        weights_bytes: weights + angles + working,
        block_bytes: block_bytes(decoder, device, dtype)?,
        block_tokens: BLOCK_TOKENS,
        context,
    })
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
        let batch = Batch::new(plan, &self.info)?;
        if plan.is_empty() {
            return Ok(());
        }
        let Self { decoder, weights, caches, device, pool, info } = self;
        let forward = Forward { decoder, weights, caches, device };
        let run = || -> candle::Result<Vec<f32>> {
            forward.run(&batch)?.map_or(Ok(vec![]), |logits| logits.flatten_all()?.to_vec1())
        };
        let mut logits = pool.install(run).map_err(|e| failed(info.device, &e))?;
        let asked = plan.parts().enumerate().filter(|(_, part)| part.is_sampled).map(|(at, _)| at);
        asked.zip(logits.chunks_exact_mut(info.vocabulary)).for_each(|(at, logits)| choose(at, logits));
        Ok(())
    }
}
