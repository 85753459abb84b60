//! Writes text on the CPU: a plan comes in, its tokens go through the ops of `kernels` side by side, logits come back. Any
//! architecture that describes itself as a [`Decoder`] runs here. Never a tensor library, never padding, never a choice of a token.

mod forward;
mod weights;

use super::together::together;
use crate::arch::Decode;
use crate::arch::decoder::Decoder;
use crate::engine::{Device, Error, Generator, GeneratorInfo};
use crate::generate::{Part, Plan};
use crate::load::checkpoint::Checkpoint;
use crate::load::{self, Source};
use forward::{Forward, Run, Workspace};
use kernels::attention_paged::{Cache, Kind, Shape};
use rayon::ThreadPool;
use std::sync::Arc;
use weights::Weights;

/// Tokens of a block of the KV cache: small enough that what sequences begin with alike is shared to nearly its end, and large enough
/// that tables stay short.
pub(crate) const BLOCK_TOKENS: usize = 16;

struct Cpu {
    decoder: Decoder,
    weights: Weights,
    /// For the table of words, which stays in the mapped file.
    checkpoint: Checkpoint,
    /// One for each layer.
    caches: Vec<Cache>,
    workspace: Workspace,
    pool: Arc<ThreadPool>,
    info: GeneratorInfo,
}

/// Loads a decoder's weights, with a KV cache of at most so many bytes.
///
/// # Errors
/// When the weights do not fit the configuration, the cache has no room for one block, or the threads cannot be started.
pub(crate) fn load(source: Source<'_>, decode: Decode, cache_bytes: u64) -> Result<Box<dyn Generator>, load::Error> {
    let Source { manifest, options, .. } = source;
    let refused = |detail: String| load::Error::Backend { backend: "kernels", model: manifest.id(), detail };
    let threads = options.thread_count();
    let pool = super::super::pool(threads).map_err(|detail| load::Error::Device { device: options.device, detail })?;
    let checkpoint = Checkpoint::open(source.folder, manifest)?;
    let decoder = decode(source.config, &checkpoint)?.for_sequences_of(manifest.max_tokens);
    let trained = manifest.max_tokens.map_or(decoder.context, |most| most.min(decoder.context));

    let too_large = || refused("a block of its KV cache is larger than memory can be".into());
    let block_bytes = block_bytes(&decoder).ok_or_else(too_large)?;
    let blocks = (cache_bytes / block_bytes).min(BLOCKS_MAX) as usize;
    if blocks == 0 {
        return Err(refused(format!(
            "its KV cache needs {block_bytes} bytes for {BLOCK_TOKENS} tokens and may have {cache_bytes}; allow it more"
        )));
    }
    let context = trained.min(blocks * BLOCK_TOKENS);
    let cache = |_| Cache::new(shape(&decoder, blocks), Kind::F32).map_err(|e| refused(e.to_string()));
    let caches = decoder.layers.iter().map(cache).collect::<Result<Vec<_>, _>>()?;
    let weights = pool.install(|| Weights::load(&decoder, &checkpoint, context, manifest.quantization))?;
    let precision = manifest.quantization.map_or(manifest.precision.as_str(), |quantization| quantization.name());
    let info = GeneratorInfo {
        backend: "kernels",
        provider: "kernels-cpu".into(),
        device: Device::Cpu,
        execution_class: format!("kernels-cpu-{precision}-{}", kernels::launch::isa().float()),
        weights_bytes: weights.bytes() + checkpoint.bytes(&decoder.words.name),
        vocabulary: decoder.vocabulary(),
        context,
        block_tokens: BLOCK_TOKENS,
        blocks,
        block_bytes,
    };
    Ok(Box::new(Cpu { decoder, weights, checkpoint, caches, workspace: Workspace::new(threads), pool, info }))
}

/// Bytes of a block of the KV cache, of all layers; nothing where no memory holds it.
pub(crate) fn block_bytes(decoder: &Decoder) -> Option<u64> {
    let bytes = shape(decoder, 1).bytes(Kind::F32)? as u64;
    bytes.checked_mul(decoder.layers.len() as u64)
}

fn shape(decoder: &Decoder, blocks: usize) -> Shape {
    Shape { blocks, block: BLOCK_TOKENS, kv_heads: decoder.heads.keys, head_dim: decoder.heads.dim }
}

/// Blocks are numbered in 32 bits.
const BLOCKS_MAX: u64 = u32::MAX as u64;

impl Generator for Cpu {
    fn info(&self) -> &GeneratorInfo {
        &self.info
    }

    fn step(&mut self, plan: &Plan, choose: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), Error> {
        let runs: Vec<Run<'_>> = plan.parts().map(|part| self.run_of(part)).collect::<Result<_, _>>()?;
        if runs.is_empty() {
            return Ok(());
        }
        let Self { decoder, weights, checkpoint, caches, workspace, pool, info } = self;
        let mut forward = Forward { decoder, weights, checkpoint, caches, threads: pool.current_num_threads() };
        let logits = together(pool, || forward.run(&runs, workspace));
        let logits = logits.map_err(|detail| Error::Backend { backend: "kernels", detail })?;
        let asked = plan.parts().enumerate().filter(|(_, part)| part.is_sampled).map(|(at, _)| at);
        asked.zip(logits.chunks_exact_mut(info.vocabulary)).for_each(|(at, logits)| choose(at, logits));
        Ok(())
    }
}

impl Cpu {
    /// A part that has been checked against the model's bounds; its table is checked by the op that writes.
    fn run_of<'p>(&self, part: Part<'p>) -> Result<Run<'p>, Error> {
        let end = part.position + part.tokens.len();
        if part.tokens.is_empty() || end > self.info.context {
            let context = self.info.context;
            return Err(Error::Input(format!("tokens {} to {end} of a context of {context}", part.position)));
        }
        if let Some(id) = part.tokens.iter().find(|id| **id as usize >= self.info.vocabulary) {
            let vocabulary = self.info.vocabulary;
            return Err(Error::Input(format!("token id {id} is not below the vocabulary's {vocabulary}")));
        }
        Ok(Run { tokens: part.tokens, first: part.position, table: part.blocks, is_asked: part.is_sampled })
    }
}
