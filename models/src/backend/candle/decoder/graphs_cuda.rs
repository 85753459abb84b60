//! Steps of single tokens as CUDA graphs: the launches of a step are recorded once for each shape and replayed with one call, which is what
//! counts where a step is hundreds of short kernels. A step comes in, logits go out, the same that it gives launch by launch.
//!
//! A shape is a number of rows and a length for which attention is laid out, both doubled from one to the next; rows without a text write into
//! a block that is nobody's. A shape's first step runs launch by launch, which loads code and brings constants to the device, is
//! recorded, and replayed at once: where the two differ there are no graphs any more, and the log says so.
//!
//! Only where nothing else moves: Candle's products with GGUF's blocks keep working memory that is replaced when it has to grow, and a graph
//! would go on using the old one, so steps of such models are never recorded.

use super::batch::Batch;
use super::forward::Forward;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CpuStorage, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Tensor};
use std::collections::HashMap;

/// Rows of a step that is recorded at most: with more, launches are not what takes the time.
pub(super) const ROWS_MAX: usize = 64;
/// The shortest length for which attention is laid out.
const REACH_MIN: usize = 512;
/// Graphs that are kept at most: all rows at four lengths.
const GRAPHS_MAX: usize = 28;

/// What is alike in the steps that a graph replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    reach: usize,
}

/// A recorded step.
struct Replay {
    graph: CudaGraph,
    /// What it reads: the numbers of a batch, see [`Batch::numbers`].
    numbers: Tensor,
}

// SAFETY: the graph is only launched and destroyed by who has the generator, one call at a time.
unsafe impl Send for Replay {}

/// The graphs of a model.
pub(super) struct Graphs {
    device: Device,
    /// A block that no text has.
    spare: u32,
    replays: HashMap<Shape, Replay>,
    /// `[rows, vocabulary]` in f32: where graphs leave their logits, of the most rows that were recorded.
    logits: Option<Tensor>,
    is_off: bool,
}

impl Graphs {
    /// None yet.
    pub(super) fn new(device: &Device, spare: u32) -> Self {
        Self { device: device.clone(), spare, replays: HashMap::new(), logits: None, is_off: false }
    }

    /// Whether a step is one for graphs.
    pub(super) fn take(&self, batch: &Batch) -> bool {
        !self.is_off && batch.decodes_only().is_some_and(|(rows, _)| (1..=ROWS_MAX).contains(&rows))
    }

    /// Runs a step. Gives its logits, `[rows, vocabulary]` in f32 on the device, which the next step overwrites.
    pub(super) fn run(&mut self, batch: Batch, forward: &Forward<'_>) -> Result<Tensor> {
        let Some((rows, reach)) = batch.decodes_only() else { candle_core::bail!("a step with prompts has no graph") };
        let shape = Shape { rows: rows.next_power_of_two(), reach: reach.max(REACH_MIN).next_power_of_two() };
        let batch = batch.padded(shape.rows, shape.reach, self.spare);
        let numbers = batch.numbers();
        if let (Some(replay), Some(logits)) = (self.replays.get(&shape), &self.logits) {
            replay.numbers.inplace_op1(&Write(&numbers))?;
            replay.graph.launch().w()?;
            return logits.narrow(0, 0, rows);
        }
        let count = numbers.len();
        let numbers = Tensor::from_vec(numbers, count, &self.device)?;
        let logits = self.recorded(shape, &batch, numbers, forward)?;
        logits.narrow(0, 0, rows)
    }

    /// Runs a shape's first step launch by launch, and records it.
    fn recorded(&mut self, shape: Shape, batch: &Batch, numbers: Tensor, forward: &Forward<'_>) -> Result<Tensor> {
        let device = self.device.as_cuda_device()?.clone();
        // Constants of launches stay on the device while this lives, and are found there when the launches are recorded.
        let _constants = device.enable_cuda_graph_htod_cache();
        let arrays = batch.arrays_in(&numbers)?;
        let step = || match forward.run(batch, &arrays)? {
            Some(logits) => Ok(logits),
            None => candle_core::bail!("a step that is recorded asks for logits"),
        };
        let wanted = step()?;
        if self.logits.as_ref().is_none_or(|logits| logits.dims()[0] < shape.rows) {
            // What was recorded writes into the one that goes.
            self.replays.clear();
            self.logits = Some(Tensor::zeros(wanted.shape(), DType::F32, &self.device)?);
        }
        if self.replays.len() >= GRAPHS_MAX {
            self.replays.clear();
        }
        let Some(logits) = &self.logits else { return Ok(wanted) };
        let replay = record(&device, || logits.slice_set(&step()?, 0, 0))
            .map(|graph| Replay { graph, numbers: numbers.clone() });
        let replay = replay.and_then(|replay| {
            replay.graph.launch().w()?;
            agree(&logits.narrow(0, 0, shape.rows)?, &wanted)?;
            Ok(replay)
        });
        match replay {
            Ok(replay) => drop(self.replays.insert(shape, replay)),
            Err(error) => {
                tracing::warn!(%error, rows = shape.rows, "no CUDA graphs for this model: its steps are launched kernel by kernel");
                self.replays.clear();
                (self.logits, self.is_off) = (None, true);
            }
        }
        Ok(wanted)
    }
}

/// Records what is launched meanwhile, of which nothing runs.
fn record(device: &CudaDevice, launch: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    let stream = device.cuda_stream();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let launched = launch();
    // In any case: a stream that is being recorded runs nothing.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
    launched?;
    match graph? {
        Some(graph) => Ok(graph),
        None => candle_core::bail!("nothing was recorded"),
    }
}

/// Whether a replay gives what the launches gave, up to the order of sums.
fn agree(found: &Tensor, wanted: &Tensor) -> Result<()> {
    let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (found, wanted) = (numbers(found)?, numbers(wanted)?);
    let largest = wanted.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // A NaN is not within.
    let within = found.iter().zip(&wanted).filter(|(a, b)| (**a - **b).abs() <= 0.02 * largest).count();
    if within < wanted.len() {
        candle_core::bail!("a replayed step gives {} of {} logits otherwise", wanted.len() - within, wanted.len());
    }
    Ok(())
}

/// Writes numbers over those of a tensor.
struct Write<'a>(&'a [u32]);

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("write: a CPU has no graphs")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device.clone();
        device.memcpy_htod(self.0, storage.as_cuda_slice_mut::<u32>()?)
    }
}

#[cfg(test)]
impl Graphs {
    /// How many shapes are replayed, unless there are no graphs any more.
    pub(super) fn count(&self) -> Option<usize> {
        (!self.is_off).then_some(self.replays.len())
    }
}
