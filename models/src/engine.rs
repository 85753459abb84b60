//! What a device thread drives. A batch of items goes in, one output per item comes out, in the same order.
//! Plain data only: no type of a backend shows here, so batching and scheduling are tested with the fake engine.

use crate::generate::Plan;
use crate::tensor::{DataType, NamedTensor};
pub use kernels::sample::{Error as NoChoice, Rows};

/// One unit of work.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A token sequence for an encoder.
    Tokens(Tokens),
    /// Named tensors, already checked against the engine's [`Info::inputs`]. When [`Info::batches_rows`] is true,
    /// all share their outermost dimension and the engine may join the rows of several items.
    Tensors(Vec<NamedTensor>),
}

/// A token sequence, with its special tokens, without padding.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tokens {
    /// Token ids, `[n]`, n ≥ 1.
    pub ids: Vec<u32>,
    /// Segment ids, `[n]`, or empty for all zero.
    pub type_ids: Vec<u32>,
}

impl Item {
    /// What this item costs of a batch's budget: tokens of a sequence, rows of tensors.
    pub fn cost(&self) -> usize {
        match self {
            Item::Tokens(tokens) => tokens.ids.len(),
            Item::Tensors(tensors) => tensors.first().map_or(1, |t| t.tensor.rows().max(1)),
        }
    }
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A pooled embedding (not normalised), or a classifier's logits.
    Vector(Vec<f32>),
    /// The model's named outputs for this item's rows.
    Tensors(Vec<NamedTensor>),
}

/// Where an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// The host's processor.
    Cpu,
    /// A CUDA device by its ordinal.
    Cuda(usize),
    /// A Metal device by its ordinal.
    Metal(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

/// Name, type and shape of one input or output. `None` is a dimension that differs from call to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The model's name for it.
    pub name: String,
    /// Element type.
    pub datatype: DataType,
    /// Dimensions, outermost first.
    pub shape: Vec<Option<usize>>,
}

/// What an engine is and where it really runs. Shown wherever a model is shown: nothing falls back unseen.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// `candle`, `onnxruntime`, `tract` or `fake`.
    pub backend: &'static str,
    /// What executes the graph: `candle-cpu`, `CPUExecutionProvider`, `CUDAExecutionProvider`, `tract`, …
    pub provider: String,
    /// The library behind it with its version and path, when it was found at run time.
    pub library: Option<String>,
    /// Where it runs.
    pub device: Device,
    /// Results are comparable bit by bit (within stated tolerances) only inside one class, e.g. `candle-cpu-f32-avx512`.
    pub execution_class: String,
    /// Memory that the weights take on the device, in bytes.
    pub weights_bytes: u64,
    /// What the engine takes; for encoders what its graph takes.
    pub inputs: Vec<TensorSpec>,
    /// What the engine gives.
    pub outputs: Vec<TensorSpec>,
    /// For encoders, the length of [`Output::Vector`].
    pub vector_len: Option<usize>,
    /// For encoders, the longest sequence, special tokens included.
    pub max_tokens: Option<usize>,
    /// Whether rows of different items may be joined along the outermost dimension.
    pub batches_rows: bool,
}

/// Runs batches on one device. Owned by that device's thread, so it may keep state without locks.
pub trait Engine: Send {
    /// What it is and where it runs.
    fn info(&self) -> &Info;

    /// Runs one batch. Returns as many outputs as items, in their order. The result of an item does not depend on
    /// the other items of its batch beyond the rounding that the execution class states.
    ///
    /// # Errors
    /// The whole batch fails; the caller runs its items one by one to find the one at fault.
    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error>;

    /// How many batches it can run side by side, each with its part of the device.
    fn sides(&self) -> usize {
        1
    }

    /// Calls `work` once for each side, all at the same time, with what runs a batch there as [`run`](Self::run) does. Returns
    /// when all calls have. A side that finds no more batches returns, and its part of the device helps the others.
    fn run_sides(&mut self, work: &(dyn Fn(Side<'_>) + Sync)) {
        work(&mut |items| self.run(items));
    }
}

/// Runs a batch on one side of an engine.
pub type Side<'a> = &'a mut dyn FnMut(&[Item]) -> Result<Vec<Output>, Error>;

/// What writes text and where it really runs.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorInfo {
    /// `kernels`, `candle` or `fake`.
    pub backend: &'static str,
    /// What executes it: `kernels-cpu`, `candle-cuda`, …
    pub provider: String,
    /// Where it runs.
    pub device: Device,
    /// Texts are comparable only inside one class, see [`Info::execution_class`].
    pub execution_class: String,
    /// Memory that the weights take on the device, in bytes.
    pub weights_bytes: u64,
    /// Logits of a token; its ids are below this.
    pub vocabulary: usize,
    /// Tokens of a sequence at most, as the model was trained and as the KV cache has room.
    pub context: usize,
    /// Tokens of a block of the KV cache.
    pub block_tokens: usize,
    /// Blocks of the KV cache.
    pub blocks: usize,
    /// Bytes of a block, of all layers.
    pub block_bytes: u64,
}

impl GeneratorInfo {
    /// As far as it is what is shown of any engine.
    pub fn as_info(&self) -> Info {
        Info {
            backend: self.backend,
            provider: self.provider.clone(),
            library: None,
            device: self.device,
            execution_class: self.execution_class.clone(),
            weights_bytes: self.weights_bytes,
            inputs: vec![],
            outputs: vec![],
            vector_len: None,
            max_tokens: Some(self.context),
            batches_rows: false,
        }
    }
}

/// Writes text on one device, a token of each sequence at a step. Owned by that device's thread.
pub trait Generator: Send {
    /// What it is and where it runs.
    fn info(&self) -> &GeneratorInfo;

    /// Runs a step: the tokens' keys and values go into the blocks that the plan names, and `choose` is given the logits of every
    /// part that is to be sampled, `[vocabulary]`, with the part's place in the plan. What a sequence gets does not depend on the
    /// others beyond the rounding that the execution class states.
    ///
    /// # Errors
    /// The whole step fails; what it wrote into the cache is of no use then.
    fn step(&mut self, plan: &Plan, choose: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), Error>;

    /// Runs a step as [`step`](Self::step) does, and chooses tokens where their logits are, for those parts that it is told how.
    ///
    /// # Errors
    /// As [`step`](Self::step)'s.
    fn step_and_choose(&mut self, plan: &Plan, choose: &mut dyn Choose) -> Result<(), Error> {
        self.step(plan, &mut |at, logits| choose.logits(at, logits))
    }
}

/// Whoever wants the tokens of a step. A part's place in the plan says which one is meant; each is chosen once, here or there.
pub trait Choose {
    /// Adds what a part's token is to be chosen by. Returns false, with nothing added, where its logits are wanted.
    fn ask(&mut self, at: usize, rows: &mut Rows) -> bool;

    /// A part's token has been chosen as it was asked, or cannot be.
    fn chosen(&mut self, at: usize, token: Result<u32, NoChoice>);

    /// The logits of a part, `[vocabulary]`, of no use afterwards.
    fn logits(&mut self, at: usize, logits: &mut [f32]);
}

/// Why a batch failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The items do not fit the model: the caller's fault.
    #[error("{0}")]
    Input(String),
    /// The device has no room; a smaller batch may fit.
    #[error("out of memory on {device}: {detail}; send smaller batches or unload a model")]
    OutOfMemory {
        /// Where.
        device: Device,
        /// The backend's own words.
        detail: String,
    },
    /// The device is gone or broken.
    #[error("{device} failed: {detail}")]
    Device {
        /// Where.
        device: Device,
        /// The backend's own words.
        detail: String,
    },
    /// The backend failed for another reason.
    #[error("{backend} failed: {detail}")]
    Backend {
        /// Which backend.
        backend: &'static str,
        /// Its own words.
        detail: String,
    },
}
