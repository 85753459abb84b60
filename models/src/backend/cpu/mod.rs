//! Engine on the CPU for encoders: token sequences come in, packed side by side they go through the ops of `kernels`, one
//! vector per item comes back. Any architecture that describes itself as an [`Encoder`] runs here. Never a tensor library,
//! never padding.

pub(crate) mod decoder;
mod forward;
mod product;
mod scratch;
mod together;
pub(super) mod weights;

use super::check_tokens;
use crate::arch::encoder::Encoder;
use crate::engine::{Device, Engine, Error, Info, Item, Output, Side, TensorSpec, Tokens};
use crate::load::checkpoint::Checkpoint;
use crate::load::{self, Source};
use crate::tensor::DataType;
use forward::{Forward, Workspace};
use rayon::ThreadPool;
use std::sync::Arc;
use together::together;
use weights::Weights;

struct Cpu {
    encoder: Encoder,
    weights: Weights,
    /// For the tables, which stay in the mapped files.
    checkpoint: Checkpoint,
    workspace: Workspace,
    pool: Arc<ThreadPool>,
    info: Info,
}

/// Loads an encoder's safetensors.
///
/// # Errors
/// When the weights do not fit the configuration, or the threads cannot be started.
pub(crate) fn load(source: Source<'_>, describe: crate::arch::Describe) -> Result<Box<dyn Engine>, load::Error> {
    let Source { manifest, options, .. } = source;
    let threads = options.thread_count();
    let pool = super::pool(threads).map_err(|detail| load::Error::Device { device: options.device, detail })?;
    let checkpoint = Checkpoint::open(source.folder, manifest)?;
    let mut encoder = describe(source.config, manifest, &checkpoint)?;
    let tokens_max = super::bound_tokens(&mut encoder.bounds, manifest);
    let weights = pool.install(|| Weights::load(&encoder, &checkpoint, tokens_max, manifest.quantization))?;
    let spec = |name: &str| TensorSpec { name: name.into(), datatype: DataType::I64, shape: vec![None, None] };
    let vector = vec![None, Some(encoder.bounds.vector)];
    let precision = manifest.quantization.map_or(manifest.precision.as_str(), |quantization| quantization.name());
    let info = Info {
        backend: "kernels",
        provider: "kernels-cpu".into(),
        library: None,
        device: Device::Cpu,
        execution_class: format!("kernels-cpu-{precision}-{}", kernels::launch::isa().float()),
        weights_bytes: weights.bytes() + checkpoint.bytes(&encoder.embeddings.words.name),
        inputs: vec![spec("input_ids"), spec("token_type_ids")],
        outputs: vec![TensorSpec { name: "vector".into(), datatype: DataType::F32, shape: vector }],
        vector_len: Some(encoder.bounds.vector),
        max_tokens: Some(tokens_max),
        batches_rows: true,
    };
    Ok(Box::new(Cpu { encoder, weights, checkpoint, workspace: Workspace::new(threads), pool, info }))
}

impl Engine for Cpu {
    fn info(&self) -> &Info {
        &self.info
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error> {
        let run: Run = |forward, sequences, workspace| forward.run(sequences, workspace);
        together(&self.pool, || self.batch(items, run))
    }

    fn sides(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn run_sides(&mut self, work: &(dyn Fn(Side<'_>) + Sync)) {
        let run: Run = |forward, sequences, workspace| forward.run_side(sequences, workspace);
        self.pool.broadcast(|_| work(&mut |items| self.batch(items, run)));
    }
}

/// How a batch goes through.
type Run = for<'f> fn(&Forward<'f>, &[&Tokens], &Workspace) -> Result<Vec<Vec<f32>>, String>;

impl Cpu {
    /// Called on a thread of the pool.
    fn batch(&self, items: &[Item], run: Run) -> Result<Vec<Output>, Error> {
        let Self { encoder, weights, checkpoint, workspace, pool, .. } = self;
        let sequences = items.iter().map(|item| check_tokens(&encoder.bounds, item)).collect::<Result<Vec<_>, _>>()?;
        if sequences.is_empty() {
            return Ok(vec![]);
        }
        let forward = Forward { encoder, weights, checkpoint, threads: pool.current_num_threads() };
        let vectors = run(&forward, &sequences, workspace);
        let vectors = vectors.map_err(|detail| Error::Backend { backend: "kernels", detail })?;
        Ok(vectors.into_iter().map(Output::Vector).collect())
    }
}
